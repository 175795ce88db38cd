//! What is counted while a run goes on, and the log of decisions.

use std::{
    fmt,
    io::{self, Write},
};

/// Messages of one kind, over all peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// How many.
    pub messages: u64,
    /// Their bytes, estimated: ids, bitfields and framing.
    pub bytes: u64,
}

impl Traffic {
    /// So many messages of so many bytes each.
    pub fn add(&mut self, messages: u64, bytes: u64) {
        self.messages += messages;
        self.bytes += messages * bytes;
    }
}

/// Everything that is counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// From peers to the tracker.
    pub to_tracker: Traffic,
    /// From the tracker to peers.
    pub from_tracker: Traffic,
    /// News between neighbours.
    pub news: Traffic,
    /// Requests for chunks, and their answers other than chunks.
    pub requests: Traffic,
    /// What the schedulers decided: chunks asked for.
    pub fetches: u64,
    /// Requests that were granted a slot.
    pub granted: u64,
    /// Requests that were told "busy".
    pub busy: u64,
    /// Transfers that failed, by the holder's fault.
    pub failed: u64,
    /// Transfers that the requester cancelled.
    pub cancelled: u64,
    /// Chunks that came and were wrong.
    pub caught: u64,
    /// Chunks that were stored although they were wrong: never.
    pub believed: u64,
}

/// A line for each decision, if they are wanted.
pub struct Log(Option<Box<dyn Write>>);

impl Log {
    /// To a writer, or nowhere.
    pub fn new(to: Option<Box<dyn Write>>) -> Self {
        Self(to)
    }

    /// Writes a line that begins with the time, in nanoseconds.
    pub fn line(&mut self, at: u64, text: impl FnOnce() -> String) {
        if let Some(out) = &mut self.0 {
            // A log that cannot be written is found out at the end.
            let _ = writeln!(out, "{:>6}.{:09} {}", at / 1_000_000_000, at % 1_000_000_000, text());
        }
    }

    /// Whether everything was written.
    pub fn finish(&mut self) -> io::Result<()> {
        self.0.as_mut().map_or(Ok(()), |out| out.flush())
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Log({})", self.0.is_some())
    }
}
