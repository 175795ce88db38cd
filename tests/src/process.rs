//! A child process whose output is kept, and shown when a test fails.
//!
//! Output goes to files rather than pipes: a child that is killed loses nothing, one that nobody reads
//! never blocks, and a test can look at any time.

use std::{
    ffi::OsString,
    fs::{self, File},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{binaries, until};

/// Lines of each log that a failing test shows.
const SHOWN: usize = 60;

/// A child; it is killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts one of the binaries under test. `name` is for messages; the logs go to `logs`.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(name: &str, program: &str, args: &[OsString], logs: &Path) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let stdout = logs.join(format!("{count}-{program}.out"));
        let stderr = logs.join(format!("{count}-{program}.err"));
        let mut command = Command::new(binaries::path(program));
        for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("DRIZZLE_")) {
            command.env_remove(variable);
        }
        let child = command
            .args(args)
            .env("RUST_LOG", "info")
            // A test says itself what is shared and when, unless it is about just that.
            .env("DRIZZLE_SETTLE", "0s")
            .env("DRIZZLE_NO_WATCH", "true")
            .stdin(Stdio::null())
            .stdout(File::create(&stdout).expect("a log file can be made"))
            .stderr(File::create(&stderr).expect("a log file can be made"))
            .spawn()
            .expect("the binary starts");
        Self { name: name.to_owned(), child, status: None, stdout, stderr }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to stdout so far.
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// What it has written to stderr so far.
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// Its exit code if it has ended; 128 + N for signal N, as shells say.
    ///
    /// # Panics
    /// If the operating system does not tell.
    pub fn exit_code(&mut self) -> Option<i32> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("a child can be waited for");
        }
        self.status.map(code)
    }

    /// Waits for the end; the exit code.
    pub async fn ended(&mut self) -> i32 {
        let what = format!("the end of {}", self.name);
        until(&what, async || self.exit_code()).await
    }

    /// Sends a signal to the process, if it still runs.
    pub fn signal(&mut self, signal: Signal) {
        if self.exit_code().is_none() {
            let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a child has a pid");
            kill_process(pid, signal).expect("a child can be signalled");
        }
    }

    /// `kill -9`, and gone when this returns.
    pub fn kill(&mut self) {
        if self.exit_code().is_none() {
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
    }

    /// Most memory it ever had resident, in bytes.
    ///
    /// # Panics
    /// If it has ended.
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the process runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells the peak");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB") << 10
    }

    /// Processor time it has used so far.
    ///
    /// # Panics
    /// If it has ended.
    pub fn cpu_time(&self) -> Duration {
        cpu_time(self.pid())
    }

    #[allow(clippy::print_stderr, reason = "a failing test shows its daemons' logs")]
    fn show(&self) {
        for (stream, text) in [("stdout", self.stdout()), ("stderr", self.stderr())] {
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- {stream} of {} (last {} of {} lines)", self.name, lines.len().min(SHOWN), lines.len());
            for line in lines.iter().skip(lines.len().saturating_sub(SHOWN)) {
                eprintln!("    {line}");
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show();
        }
        self.kill();
    }
}

/// Processor time that a process has used so far, in user and kernel mode, in steps of a hundredth of a
/// second.
///
/// # Panics
/// If it has ended.
pub fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    // After the name, which is in parentheses and may contain anything: state is field 3, times 14 and 15.
    let (_, fields) = stat.rsplit_once(") ").expect("the name is in parentheses");
    let times = fields.split(' ').skip(11).take(2);
    let ticks: u64 = times.map(|ticks| ticks.parse::<u64>().expect("a number of ticks")).sum();
    // Linux counts in hundredths of a second on every common machine (USER_HZ).
    Duration::from_millis(ticks * 10)
}

fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
