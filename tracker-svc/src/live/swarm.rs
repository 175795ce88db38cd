//! One file's holders, and what a watcher of them must be told.
//!
//! Invariants: a listed peer holds at least one chunk, or the file has none; a watcher that applies
//! every message of its [`Cursor`] in order knows exactly the present holders once [`Swarm::next_message`]
//! yields nothing. The log of changes is bounded: a watcher that falls behind it starts over with a
//! snapshot, so that a slow watcher costs the tracker nothing.
//!
//! A log entry names the peer and what sort of change it was, and a message tells the peer's state as of
//! now. Changes of different peers do not depend on each other, so several changes of one peer merge into
//! one. Never does I/O, never reads the clock.

use std::collections::{HashMap, VecDeque};

use drizzle_proto::{
    ChunkCount, ChunkRanges, ChunkSet, FileInfo, PeerId, PeerInfo,
    holder::{Holder, HolderChange, HolderChanges},
};

use crate::limits::{LOG_LIMIT, MAX_LOGGED_RANGES, MESSAGE_BUDGET};

/// Bytes of ids and framing of one holder in a message.
const HOLDER_OVERHEAD: usize = 96;

/// What one peer holds; all chunks cost no memory.
#[derive(Debug)]
struct Member {
    peer: PeerInfo,
    /// `None`: every chunk.
    part: Option<ChunkSet>,
    /// The revision at which the peer appeared: what was logged of it before is history.
    since: u64,
}

#[derive(Debug, Clone)]
enum Logged {
    /// The peer appeared, disappeared, or changed too much to say how.
    Whole,
    Added(ChunkRanges),
}

/// The holders of one file.
#[derive(Debug)]
pub struct Swarm {
    file: FileInfo,
    /// By peer id. Most files of a large folder have one holder, for which a tree would take ten times the
    /// memory; and a peer that joins a swarm of ten thousand moves half a MiB, once.
    holders: Vec<Member>,
    full: u32,
    watchers: usize,
    /// Number of changes so far; the log has the last ones.
    revision: u64,
    log: VecDeque<(PeerId, Logged)>,
    log_limit: usize,
}

/// How far a watcher has read.
#[derive(Debug, Clone)]
pub struct Cursor(Position);

#[derive(Debug, Clone)]
enum Position {
    /// In a snapshot that was begun at this revision; holders up to and including `after` are told.
    Snapshot { revision: u64, after: Option<PeerId> },
    /// Everything before this revision is told.
    Live { revision: u64 },
}

impl Swarm {
    /// Without holders.
    pub fn new(file: FileInfo) -> Self {
        let log = VecDeque::new();
        Self { file, holders: Vec::new(), full: 0, watchers: 0, revision: 0, log, log_limit: LOG_LIMIT }
    }

    /// The file.
    pub fn file(&self) -> &FileInfo {
        &self.file
    }

    /// Whether there is neither a holder nor a watcher.
    pub fn is_idle(&self) -> bool {
        self.holders.is_empty() && self.watchers == 0
    }

    /// Watchers.
    pub fn watchers(&self) -> usize {
        self.watchers
    }

    /// Peers that hold every chunk, and peers that hold some.
    pub fn counts(&self) -> (u32, u32) {
        let all = u32::try_from(self.holders.len()).unwrap_or(u32::MAX);
        (self.full, all - self.full)
    }

    /// Whether the peer holds some of the file.
    pub fn is_holder(&self, peer: PeerId) -> bool {
        self.find(peer).is_ok()
    }

    /// Every peer that holds some of the file.
    pub fn peers(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.infos().map(PeerInfo::id)
    }

    /// The same, as others know them.
    pub fn infos(&self) -> impl Iterator<Item = &PeerInfo> {
        self.holders.iter().map(|member| &member.peer)
    }

    /// Whether announcing this set makes its sender a holder.
    pub fn makes_holder(held: &ChunkSet) -> bool {
        // An empty file is held in full by each peer that says so.
        !held.is_empty() || held.is_full()
    }

    /// Adds chunks to what a peer holds; whether that changed anything. `held` is over this file's chunks.
    pub fn announce(&mut self, peer: &PeerInfo, held: &ChunkSet) -> bool {
        if !Self::makes_holder(held) || held.count() != self.count() {
            return false;
        }
        let change = match self.find(peer.id()).map(|at| &mut self.holders[at]) {
            Err(at) => {
                let part = (!held.is_full()).then(|| held.clone());
                self.full += u32::from(part.is_none());
                if self.holders.is_empty() {
                    self.holders.reserve_exact(1);
                }
                self.holders.insert(at, Member { peer: peer.clone(), part, since: self.revision });
                Logged::Whole
            }
            Ok(Member { part: None, .. }) => return false,
            Ok(Member { part: slot @ Some(_), .. }) => {
                let Some(part) = slot else { return false };
                let new = held.difference(part);
                if new.is_empty() {
                    return false;
                }
                part.union_with(&new);
                if part.is_full() {
                    *slot = None;
                    self.full += 1;
                }
                let ranges = if self.watchers > 0 { new.ranges() } else { ChunkRanges::default() };
                if ranges.iter().len() > MAX_LOGGED_RANGES { Logged::Whole } else { Logged::Added(ranges) }
            }
        };
        self.log(peer.id(), change);
        true
    }

    /// Drops a holder; whether it was one.
    pub fn remove(&mut self, peer: PeerId) -> bool {
        let Ok(at) = self.find(peer) else { return false };
        let member = self.holders.remove(at);
        self.full -= u32::from(member.part.is_none());
        self.log(peer, Logged::Whole);
        true
    }

    /// A new watcher, to be told a snapshot first. End it with [`Swarm::unwatch`].
    pub fn watch(&mut self) -> Cursor {
        self.watchers += 1;
        Cursor(Position::Snapshot { revision: self.revision, after: None })
    }

    /// Ends one watcher.
    pub fn unwatch(&mut self) {
        self.watchers -= 1;
        if self.watchers == 0 {
            self.log = VecDeque::new();
        }
    }

    /// What the watcher must be told next; nothing if it knows everything.
    pub fn next_message(&self, cursor: &mut Cursor) -> Option<HolderChanges> {
        match cursor.0 {
            Position::Snapshot { revision, after } => Some(self.snapshot(cursor, revision, after)),
            Position::Live { revision } if revision == self.revision => None,
            Position::Live { revision } => Some(self.changes(cursor, revision)),
        }
    }

    /// Holders in order of their ids, after the given one, as many as fit into about `budget` bytes and
    /// at least one; and whether that was all.
    pub fn page(&self, after: Option<PeerId>, budget: usize) -> (Vec<Holder>, bool) {
        let mut page = Vec::new();
        let mut bytes = 0;
        let from = self.behind(after);
        for member in &self.holders[from..] {
            bytes += self.weight(member);
            if bytes > budget && !page.is_empty() {
                return (page, false);
            }
            page.push(self.holder(member));
        }
        (page, true)
    }

    /// At most so many holders, as many as fit into about `budget` bytes and at least one: those after the given one, and
    /// then from the first on.
    pub fn sample(&self, after: Option<PeerId>, most: usize, budget: usize) -> Vec<Holder> {
        let (before, behind) = self.holders.split_at(self.behind(after));
        let mut bytes = 0;
        let fits = |member: &&Member| {
            let is_first = bytes == 0;
            bytes += self.weight(member);
            is_first || bytes <= budget
        };
        behind.iter().chain(before).take(most).take_while(fits).map(|member| self.holder(member)).collect()
    }

    /// Where the holders after this one begin.
    fn behind(&self, after: Option<PeerId>) -> usize {
        after.map_or(0, |after| self.holders.partition_point(|member| member.peer.id() <= after))
    }

    /// What one peer holds, if anything.
    pub fn holder_of(&self, peer: PeerId) -> Option<Holder> {
        self.get(peer).map(|member| self.holder(member))
    }

    fn count(&self) -> ChunkCount {
        self.file.layout.chunk_count()
    }

    /// Where a peer is, or where it would have to be.
    fn find(&self, peer: PeerId) -> Result<usize, usize> {
        self.holders.binary_search_by_key(&peer, |member| member.peer.id())
    }

    fn get(&self, peer: PeerId) -> Option<&Member> {
        self.find(peer).ok().map(|at| &self.holders[at])
    }

    fn holder(&self, member: &Member) -> Holder {
        let chunks = member.part.clone().unwrap_or_else(|| ChunkSet::full(self.count()));
        Holder { peer: member.peer.clone(), chunks }
    }

    /// Upper bound of a holder's bytes on the wire: runs never exceed the bitfield by more than this. Of a set that is
    /// short on the wire an eighth of what it takes in the memory of whoever is told counts, who bounds that as well.
    fn weight(&self, member: &Member) -> usize {
        let count = self.count().get() as usize;
        let chunks = if member.part.is_some() { count.div_ceil(8).max(48) } else { (count / 64).max(8) };
        let (address, labels) = (member.peer.address().as_str().len(), member.peer.labels());
        HOLDER_OVERHEAD + address + labels.weight() + 8 * labels.iter().len() + chunks
    }

    fn log(&mut self, peer: PeerId, change: Logged) {
        self.revision += 1;
        // Without watchers the log is not read; the next one begins with a snapshot.
        if self.watchers == 0 {
            return;
        }
        if self.log.len() == self.log_limit {
            self.log.pop_front();
        }
        self.log.push_back((peer, change));
    }

    fn snapshot(&self, cursor: &mut Cursor, revision: u64, after: Option<PeerId>) -> HolderChanges {
        let (page, complete) = self.page(after, MESSAGE_BUDGET);
        cursor.0 = match page.last() {
            Some(last) if !complete => Position::Snapshot { revision, after: Some(last.peer.id()) },
            // Whatever happened since the snapshot was begun is told as changes; told twice, it is the same.
            _ => Position::Live { revision },
        };
        let changes = page.into_iter().map(HolderChange::Is).collect();
        HolderChanges { reset: after.is_none(), changes, synced: complete, introduces: false }
    }

    fn changes(&self, cursor: &mut Cursor, revision: u64) -> HolderChanges {
        let oldest = self.revision - self.log.len() as u64;
        let Some(from) = revision.checked_sub(oldest).and_then(|from| usize::try_from(from).ok()) else {
            return self.snapshot(cursor, self.revision, None);
        };
        // For each peer, in the order in which it first changed: `None` if its whole state must be told.
        let mut merged: Vec<(PeerId, Option<ChunkSet>)> = Vec::new();
        let mut places: HashMap<PeerId, usize> = HashMap::new();
        let mut bytes = 0;
        let mut at = revision;
        for (peer, change) in self.log.range(from..) {
            let (more, added) = match (change, self.get(*peer)) {
                // The watcher may not know this peer, which left meanwhile: how, the log tells further on.
                (Logged::Added(_), None) => (0, ChunkSet::empty(self.count()).into()),
                (Logged::Added(_), Some(member)) if at < member.since => (0, ChunkSet::empty(self.count()).into()),
                (Logged::Added(ranges), Some(_)) => {
                    let chunks = (12 * ranges.iter().len()).max(self.count().get() as usize / 64);
                    (HOLDER_OVERHEAD + chunks, ChunkSet::from_ranges(self.count(), ranges).ok())
                }
                (Logged::Whole, Some(member)) => (self.weight(member), None),
                (Logged::Whole, None) => (HOLDER_OVERHEAD, None),
            };
            if bytes + more > MESSAGE_BUDGET && at > revision {
                break;
            }
            bytes += more;
            at += 1;
            match places.get(peer) {
                None => {
                    places.insert(*peer, merged.len());
                    merged.push((*peer, added));
                }
                Some(&place) => {
                    merged[place].1 = match (merged[place].1.take(), added) {
                        (Some(mut before), Some(added)) => {
                            before.union_with(&added);
                            Some(before)
                        }
                        _ => None,
                    };
                }
            }
        }
        cursor.0 = Position::Live { revision: at };
        let changes = merged.into_iter().filter_map(|(peer, added)| match (self.get(peer), added) {
            (_, Some(added)) => (!added.is_empty()).then_some(HolderChange::Added(peer, added)),
            (Some(member), None) => Some(HolderChange::Is(self.holder(member))),
            (None, None) => Some(HolderChange::Gone(peer)),
        });
        HolderChanges { reset: false, changes: changes.collect(), synced: true, introduces: false }
    }
}

#[cfg(test)]
#[path = "swarm_tests.rs"]
mod tests;
