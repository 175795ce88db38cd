//! A child process whose output is kept, and shown when a test fails.
//!
//! Output goes to files rather than pipes: a child that is killed loses nothing, one that nobody reads
//! never blocks, and a test can look at any time.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    net::SocketAddr,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use rustix::{
    net::{Shutdown, getsockname, shutdown, sockopt::socket_acceptconn},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open},
};

use crate::{
    binaries,
    wait::{DEADLINE, until_within},
};

/// Lines of each log that a failing test shows.
const SHOWN: usize = 60;

/// Where a child's stdout or stderr goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Output {
    /// Into a file that the test can read.
    #[default]
    Kept,
    /// Onto a disk that is full.
    FullDisk,
    /// Into a pipe that nobody reads any more.
    NoReader,
    /// Into a pipe whose reader sleeps: it is soon full.
    SleepingReader,
}

impl Output {
    fn open(self, kept: &Path) -> Stdio {
        // There is a file to read in any case.
        let file = File::create(kept).expect("a log file can be made");
        match self {
            Self::Kept => file.into(),
            Self::FullDisk => File::options().write(true).open("/dev/full").expect("Linux has it").into(),
            Self::NoReader => std::io::pipe().expect("a pipe can be made").1.into(),
            Self::SleepingReader => {
                let (reader, writer) = std::io::pipe().expect("a pipe can be made");
                // Open until this process ends.
                std::mem::forget(reader);
                writer.into()
            }
        }
    }
}

/// A program that has ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code.
    pub code: i32,
    /// All that it wrote to stdout.
    pub stdout: String,
    /// All that it wrote to stderr.
    pub stderr: String,
}

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
        Self::start_with(name, program, args, logs, [Output::Kept; 2])
    }

    /// Starts one whose stdout and stderr go elsewhere.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start_with(name: &str, program: &str, args: &[OsString], logs: &Path, outputs: [Output; 2]) -> Self {
        Self::start_as(&[], name, program, args, logs, outputs)
    }

    /// Runs one of the binaries under test to its end.
    ///
    /// # Panics
    /// If it cannot be started, or does not end.
    pub async fn ran<A: AsRef<OsStr>>(program: &str, args: &[A], logs: &Path) -> Ended {
        let args: Vec<OsString> = args.iter().map(|arg| arg.as_ref().to_owned()).collect();
        let mut run = Self::start(program, program, &args, logs);
        let code = run.ended().await;
        Ended { code, stdout: run.stdout(), stderr: run.stderr() }
    }

    /// [`Process::start`] by way of a command that becomes the program, such as `ip netns exec HOST`.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start_by(starter: &[&str], name: &str, program: &str, args: &[OsString], logs: &Path) -> Self {
        Self::start_as(starter, name, program, args, logs, [Output::Kept; 2])
    }

    fn start_as(
        starter: &[&str],
        name: &str,
        program: &str,
        args: &[OsString],
        logs: &Path,
        [to_stdout, to_stderr]: [Output; 2],
    ) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let stdout = logs.join(format!("{count}-{program}.out"));
        let stderr = logs.join(format!("{count}-{program}.err"));
        let mut line: Vec<OsString> = starter.iter().map(OsString::from).collect();
        line.push(binaries::path(program).into());
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]);
        for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("DRIZZLE_")) {
            command.env_remove(variable);
        }
        // Where it cannot be written, each line is a chance to fail.
        let level = if to_stderr == Output::Kept { "info" } else { "trace" };
        let child = command
            .args(args)
            // A test says itself what is shared and when, unless it is about just that.
            .env("DRIZZLE_SETTLE", "0s")
            .env("DRIZZLE_NO_WATCH", "true")
            // Hosts of namespaces and containers reach each other without TLS, unless the test is about that.
            .env("DRIZZLE_INSECURE", "true")
            .env("RUST_LOG", level)
            // What a person reads must not depend on it.
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(to_stdout.open(&stdout))
            .stderr(to_stderr.open(&stderr))
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
        self.ended_within(DEADLINE).await
    }

    /// The same, for a process that may take so long.
    pub async fn ended_within(&mut self, deadline: Duration) -> i32 {
        let what = format!("the end of {}", self.name);
        until_within(deadline, &what, async || self.exit_code()).await
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

/// Shuts the socket that a process listens with at this address, as a fault of the kernel or a debugger would.
///
/// # Panics
/// If there is none, or this process may not touch that one.
pub fn break_listener(pid: u32, address: SocketAddr) {
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    let process = pidfd_open(process, PidfdFlags::empty()).expect("the process runs");
    let listens = |socket: &OwnedFd| {
        let own = getsockname(socket).ok().and_then(|own| SocketAddr::try_from(own).ok());
        own == Some(address) && socket_acceptconn(socket) == Ok(true)
    };
    let numbers = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs");
    let numbers = numbers.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut opened = numbers.filter_map(|number| pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok());
    let listener = opened.find(listens).expect("it listens there");
    shutdown(&listener, Shutdown::Both).expect("a listener can be shut");
}

fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
