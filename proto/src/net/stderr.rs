//! Stderr that neither fails nor hangs, for logs.
//!
//! A log is read by a terminal, a pipe or a file, and each of them can be gone, full or asleep (a terminal that was
//! stopped with Ctrl-S, a `tee` that hangs): that must not end or hold up a task which only wanted to say something.
//! What holds: writing returns no error; a reader that takes nothing is waited for a moment once, and then lines
//! are left out until it takes some again, and is told how many.

use std::{
    io::{self, StderrLock, Write},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A reader that is only busy takes something in this time.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// When it sleeps already.
const NO_PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// A pipe that can be written has room for this many bytes (POSIX: PIPE_BUF, on Linux).
const PIECE: usize = 4096;

/// Lines that were left out since the last one that was written.
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// The process's stderr; each write is one line or more, and is written whole or cut where its reader fell asleep.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // No other thread takes the room between looking and writing.
        let mut stderr = io::stderr().lock();
        let before = LEFT_OUT.load(Ordering::Relaxed);
        let patience = if before == 0 { PATIENCE } else { NO_PATIENCE };
        if before > 0 && has_room(&stderr, patience) {
            LEFT_OUT.store(0, Ordering::Relaxed);
            let _ = writeln!(stderr, "({before} lines of this log are missing: its reader took none)");
        }
        for piece in bytes.chunks(PIECE) {
            if !has_room(&stderr, patience) {
                LEFT_OUT.fetch_add(1, Ordering::Relaxed);
                break;
            }
            if stderr.write_all(piece).is_err() {
                break;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a write returns at once, be it with an error.
fn has_room(stderr: &StderrLock<'_>, patience: Timespec) -> bool {
    let mut watched = [PollFd::new(stderr, PollFlags::OUT)];
    match poll(&mut watched, Some(&patience)) {
        Ok(ready) => ready > 0,
        Err(rustix::io::Errno::INTR) => false,
        // What cannot be watched does not hang either.
        Err(_) => true,
    }
}
