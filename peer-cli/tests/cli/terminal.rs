//! What a person sees on a terminal, through the real binary on a real one: the kernel's, with its echo and its
//! Ctrl-C, and what it shows worked out by an emulator.

use std::{
    fs::File,
    io::{Read, Write},
    num::NonZero,
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use crate::support::*;
use drizzle_proto::wire::{self, chunk_event::Step, download_event::Event};
use rustix::{
    fs::{Mode, OFlags, open},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize},
};

const ROWS: NonZero<u16> = NonZero::new(24).unwrap();

/// A terminal that shows nothing new for so long will not.
const DEADLINE: Duration = Duration::from_secs(60);

/// A terminal with one program on it.
pub(crate) struct Terminal {
    keyboard: File,
    output: Receiver<Vec<u8>>,
    emulator: vt100::Parser,
    child: Child,
}

impl Terminal {
    /// Runs a command on a new terminal of this width.
    pub(crate) fn run(command: &Command, columns: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = || -> OwnedFd { open(&name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap() };
        let size = Winsize { ws_row: ROWS.get(), ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(slave(), size).unwrap();
        let mut modes = tcgetattr(slave()).unwrap();
        // Ctrl-C throws away what is written and not read yet: on a busy machine, that may be half a picture.
        modes.local_modes |= LocalModes::NOFLSH;
        tcsetattr(slave(), OptionalActions::Now, &modes).unwrap();
        // In a session of its own, whose terminal this is, so that Ctrl-C is a signal to it alone.
        let mut on_terminal = Command::new("setsid");
        on_terminal.arg("--ctty").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            on_terminal.env(name, value.unwrap());
        }
        on_terminal.env("TERM", "xterm").env_remove("NO_COLOR");
        on_terminal.stdin(Stdio::from(slave())).stdout(Stdio::from(slave())).stderr(Stdio::from(slave()));
        let child = on_terminal.spawn().unwrap();
        let keyboard = File::from(master);
        let mut screen = keyboard.try_clone().unwrap();
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // It ends with an error when no program has the terminal any more.
            while let Ok(read @ 1..) = screen.read(&mut buffer) {
                let _ = sender.send(buffer[..read].to_vec());
            }
        });
        drop(on_terminal);
        let emulator = vt100::Parser::new(ROWS, NonZero::new(columns).unwrap(), 0);
        Self { keyboard, output, emulator, child }
    }

    /// What is on the screen, without the blanks at the ends of its lines; what wrapped is one line.
    pub(crate) fn screen(&self) -> String {
        self.emulator.screen().contents()
    }

    /// Waits until all of this is on the screen.
    pub(crate) fn until(&mut self, shown: &[&str]) {
        // What is painted again and again is never silent.
        let end = Instant::now() + DEADLINE;
        while !shown.iter().all(|part| self.screen().contains(part)) {
            let more = self.output.recv_timeout(end.saturating_duration_since(Instant::now()));
            let more = more.unwrap_or_else(|error| panic!("{error} before {shown:?}:\n{}", self.screen()));
            self.emulator.process(&more);
        }
    }

    pub(crate) fn type_in(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    /// The exit code, and the lines that are on the screen then.
    pub(crate) fn ended(mut self) -> (Option<i32>, Vec<String>) {
        while let Ok(more) = self.output.recv_timeout(DEADLINE) {
            self.emulator.process(&more);
        }
        let lines = self.screen().lines().map(str::to_owned).collect();
        (self.child.wait().unwrap().code(), lines)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A download that shows a bar, a line for each of this many sources, and an offence above them.
fn running(sources: u8) -> Script {
    let source = |at: u8| wire::SourceProgress { peer: format!("10.0.0.{at}:7401"), ..source(3) };
    let offence = wire::ChunkEvent {
        step: Step::Failed.into(),
        chunk: 4,
        peer: "10.0.0.2:7401".into(),
        reason: "stalled".into(),
    };
    let now = wire::DownloadProgress {
        bytes_stored: 5 * MIB,
        sources: (1..=sources).map(source).collect(),
        ..Default::default()
    };
    Script {
        download: vec![started("model.bin"), Event::Chunk(offence), Event::Progress(now)].into(),
        hang: true,
        ..Script::default()
    }
}

/// What is on the screen after Ctrl-C.
const CANCELLED: [&str; 5] = [
    "10.0.0.2:7401: stalled (chunk 4)",
    "cancelling; Ctrl-C again leaves at once",
    "peer-cli: cancelled model.bin; its verified chunks are kept (5.00 MiB of 10.0 MiB)",
    "  10.0.0.2:7401: wrong bytes (chunks 3-5,7)",
    "Run the same command to go on from there.",
];

#[test]
fn a_typed_ctrl_c_leaves_nothing_of_the_bars_on_the_screen() {
    for columns in [80, 60] {
        for sources in [0, 1, 3, 40] {
            let daemon = Daemon::start(running(sources));
            let mut terminal = Terminal::run(&daemon.command(&["download", "model.bin"]), columns);
            terminal.until(&["50%"]);
            terminal.type_in(b"\x03");
            let (code, lines) = terminal.ended();
            assert_eq!(code, Some(130), "{lines:?}");
            assert_eq!(lines, CANCELLED, "{columns} columns, {sources} sources");
        }
    }
}

#[test]
fn keys_typed_while_it_runs_do_not_move_the_bars() {
    let daemon = Daemon::start(running(2));
    let mut terminal = Terminal::run(&daemon.command(&["download", "model.bin"]), 60);
    terminal.until(&["50%", "10.0.0.2:7401 "]);
    terminal.type_in(b"is it done yet?");
    terminal.type_in(b"\x03");
    let (_, lines) = terminal.ended();
    assert_eq!(lines, CANCELLED);
}
