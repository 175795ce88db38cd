//! What happens in the simulated fleet: the events of the virtual clock, and what they carry.

use std::rc::Rc;

use drizzle_engine::{
    neighbours::Silence,
    schedule::{Offence, Outcome},
};
use drizzle_proto::{
    ChunkSet,
    announcement::{FileChunks, FileOutcome},
    holder::HolderChanges,
};

use super::peer::TransferId;

/// A file's number; small, because there are many events.
pub(super) type Nth = u8;

/// As a number in an event.
pub(super) fn nth(file: usize) -> Nth {
    Nth::try_from(file).unwrap_or(Nth::MAX)
}

/// What happens next.
#[derive(Debug)]
pub(super) enum Event {
    /// A daemon comes up.
    Up(u32),
    /// A peer is killed.
    Kill(u32),
    /// Its user asks for the files.
    Begin(u32),
    /// Progress is counted.
    Tick(u32),
    /// The scheduler of a download wants to be asked.
    Wake { peer: u32, file: Nth },
    /// A flow of this peer may be at its stop.
    Uplink(u32),
    /// A request arrives at its holder.
    Request(TransferId),
    /// The holder has read the chunk.
    Read(TransferId),
    /// The first bytes of a chunk are at the requester: it knows now which one it is.
    Bound(TransferId),
    /// The answer is no.
    Refused(TransferId, Refusal),
    /// The last byte of a chunk arrives.
    Arrived(TransferId),
    /// It is on disk.
    Written(TransferId),
    /// The holder hears that the requester gave up.
    Cancelled(TransferId),
    /// The lease of a peer is due.
    Lease(u32),
    /// A call arrives at the tracker.
    Call(u32, Box<TrackerCall>),
    /// The tracker's answer arrives.
    Answer(u32, Box<TrackerAnswer>),
    /// A watch begins.
    Watch(u32),
    /// The tracker tells watchers, one after the other.
    Push(Box<[u32]>),
    /// A message of a watch arrives.
    Pushed { peer: u32, file: Nth, message: Box<HolderChanges> },
    /// A peer tells its neighbours.
    Tell { peer: u32, file: Nth },
    /// One of them hears it: these chunks more, or all that there are.
    Told { peer: u32, file: Nth, from: u32, chunks: Rc<ChunkSet>, all: bool },
    /// A peer is asked by another to tell.
    Listen { peer: u32, file: Nth, to: u32 },
    /// A neighbour tells nothing more.
    Silent { peer: u32, file: Nth, from: u32, silence: Silence },
    /// A download looks after those that it listens to.
    Neighbours { peer: u32, file: Nth },
    /// Connections to a peer that is gone break.
    Gone(u32),
    /// The tracker looks after its leases.
    Pulse,
}

/// Why a chunk does not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No slot is free.
    Busy,
    /// The holder has it not.
    NotHeld,
    /// No peer answers there.
    Unreachable,
    /// The stream broke.
    BrokeOff,
}

impl Refusal {
    pub(super) fn outcome(self) -> Outcome {
        match self {
            Self::Busy => Outcome::Busy,
            Self::NotHeld => Outcome::Failed(Offence::NotHeld),
            Self::Unreachable => Outcome::Failed(Offence::Unreachable),
            Self::BrokeOff => Outcome::Failed(Offence::BrokeOff),
        }
    }
}

/// A call on its way to the tracker.
#[derive(Debug)]
pub(super) enum TrackerCall {
    /// Asks for a lease.
    Register,
    /// Prolongs this one.
    Renew(u64),
    /// Tells news.
    Announce(u64, Vec<FileChunks>),
}

/// What comes back.
#[derive(Debug)]
pub(super) enum TrackerAnswer {
    /// A lease, unless it was refused.
    Registered(Option<u64>),
    /// Whether the lease is known.
    Renewed(u64, bool),
    /// What became of the news; `None` if the lease is not known.
    Announced(u64, Vec<FileChunks>, Option<Vec<FileOutcome>>),
}
