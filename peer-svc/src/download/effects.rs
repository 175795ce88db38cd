//! What happens to a download, and what is to be done about it: the words of [`super::transfer`].

use std::{collections::BTreeMap, time::Duration};

use drizzle_engine::{
    meter::Intake,
    schedule::{Fetch, FetchId},
};
use drizzle_proto::{ChunkSet, PeerId, RateLimit};

use super::{events::DownloadEvent, failure::Failure};
use crate::{
    fetch::{FetchFailure, News},
    locate::Located,
    store::{partials::RecordError, write::StoredChunk},
};

/// Something that happened.
#[derive(Debug)]
pub(super) enum Input {
    /// The download begins; always the first.
    Begin,
    /// A caller cancelled it.
    Cancelled,
    /// The daemon stops.
    Shutdown,
    /// News of the file's holders.
    Located(Located),
    /// There will be no more news of the file's holders.
    LocatingEnded,
    /// This fetch ended, with its chunk stored or without.
    Fetched(FetchId, Result<StoredChunk, FetchFailure>),
    /// The stored chunks were recorded, or could not be; it took so long.
    Recorded(Result<(), RecordError>, Duration),
    /// These chunks were read again, and those of `sound` are what they should be.
    Proved { checked: ChunkSet, sound: ChunkSet },
    /// A task of this transfer panicked; its text.
    Panicked(String),
    /// Something happened to a fetch that goes on.
    News(FetchId, News),
    /// How far it is; told at a steady pace.
    Counted(Counts),
    /// Without progress it is to give up after this long from now on.
    Patience(Duration),
    /// The moment that [`Transfer::wake_at`] named has come.
    Woken,
    /// This process did not run for so long.
    Slept(Duration),
}

/// What is counted while a download runs.
#[derive(Debug, Clone, Default)]
pub(super) struct Counts {
    /// Bytes that came from each holder so far.
    pub(super) received: BTreeMap<PeerId, u64>,
    /// How soon the first bytes of an answer came from a holder since this was counted last, at best.
    pub(super) answered: BTreeMap<PeerId, Duration>,
    /// Bytes that are here of the chunk of each fetch that has asked its holder.
    pub(super) had: BTreeMap<FetchId, u32>,
    /// Bytes that came over the network so far.
    pub(super) wire: u64,
    /// What this peer itself holds it to.
    pub(super) own: Bounds,
    /// Share of the last second that the threads which receive its chunks spent writing them.
    pub(super) writing: f64,
    /// What this machine takes in, over all its downloads.
    pub(super) intake: Intake,
    /// Chunks that come at present, for all its downloads.
    pub(super) receiving: u32,
}

/// What a peer holds a download to for its own sake.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Bounds {
    /// The limit that all downloads together are under.
    pub(super) limit: RateLimit,
    /// Streams that it may run because of its priority; `None`: as many as it likes.
    pub(super) streams: Option<usize>,
    /// For how long the limit has held up each fetch that runs, until now.
    pub(super) held_up: BTreeMap<FetchId, Duration>,
}

/// Something to do.
#[derive(Debug)]
pub(super) enum Effect {
    /// Fetch this chunk, prove it, write it.
    Fetch(Fetch),
    /// Give up this fetch; its end needs no report.
    Abort(FetchId),
    /// Offer this chunk to other peers; whether it is scarce among them, and whether it came from far.
    Offer { stored: StoredChunk, is_scarce: bool, is_far: bool },
    /// Stop offering these chunks: they are not what was recorded.
    TakeBack(ChunkSet),
    /// Tell those that watch.
    Tell(DownloadEvent),
    /// Sync, then record that these chunks are stored.
    Record(ChunkSet),
    /// Read these chunks again and check their hashes.
    Prove(ChunkSet),
    /// Look for holders of these chunks: no known one has them.
    Seek(ChunkSet),
    /// Close the connections to this peer.
    Forget(PeerId),
    /// The fetching is over; always the last.
    End(Ended),
}

/// How the fetching ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// Every wanted chunk is stored and proved.
    Complete,
    /// It ended before that.
    Failed(Failure),
}
