//! The neighbours of a download: which of them it listens to, and what holds of their chunks.
//!
//! In a large swarm the tracker cannot tell every peer of every other's every chunk. It introduces each downloader to a
//! bounded number of others instead, and a neighbour tells by itself which chunks it has and gets.
//!
//! What holds (each line has a property test):
//! - as long as a neighbour tells by itself, that counts: what the tracker says of its chunks means nothing, and it is
//!   not gone whatever the tracker says; it is once it stops telling, or once the tracker parts the two;
//! - none is listened to twice, nor one that holds every chunk, nor more than [`MOST`] at once;
//! - a neighbour that stopped telling is listened to again after a pause that grows, unless it cannot tell;
//! - without introductions nobody is listened to, and everything is as the tracker says.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use drizzle_proto::{
    PeerId, PeerInfo,
    holder::{ChunkNews, Holder, HolderChange, HolderChanges},
};
use rand::Rng;

use crate::{
    holder_view::{HolderView, Located},
    retry::{Backoff, Limits},
};

/// Neighbours that a download asks for, about: with some twenty a random graph of ten thousand hangs together, and the
/// rarest chunk of the neighbours is nearly the rarest of all.
pub const WANTED: u32 = 24;

/// Most neighbours that a download listens to at once.
pub const MOST: usize = 64;

/// Between attempts to listen: it may only just begin its download, or it is gone and the tracker does not know yet.
const LISTEN: Limits = Limits { first: Duration::from_millis(200), max: Duration::from_secs(10) };

/// Something to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Tell the download.
    Tell(Located),
    /// Listen to this peer from now on, in place of an earlier address of it.
    Listen(PeerInfo),
    /// Listen to it no longer.
    Ignore(PeerId),
}

/// Why a peer tells nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// It holds every chunk.
    Complete,
    /// It knows no such call.
    Unable,
    /// It was not reached, or broke off, or holds nothing of the file now.
    Lost,
}

#[derive(Debug)]
enum Ear {
    /// It is not listened to, and is to be from this moment on.
    Waits(Instant),
    /// It was asked to tell.
    Asked,
    /// It tells.
    Hears,
    /// It has nothing to tell.
    Shut,
}

#[derive(Debug)]
struct Neighbour {
    peer: PeerInfo,
    ear: Ear,
    backoff: Backoff,
    /// The tracker says that it is gone.
    is_gone: bool,
}

impl Neighbour {
    fn is_listened_to(&self) -> bool {
        matches!(self.ear, Ear::Asked | Ear::Hears)
    }

    fn tells(&self) -> bool {
        matches!(self.ear, Ear::Hears)
    }
}

/// The peers that a download was introduced to.
#[derive(Debug)]
pub struct Neighbours {
    view: HolderView,
    known: BTreeMap<PeerId, Neighbour>,
}

impl Neighbours {
    /// None is known yet; the peer itself (`own`) is never one.
    pub fn new(own: PeerId) -> Self {
        Self { view: HolderView::new(own), known: BTreeMap::new() }
    }

    /// The peer itself has another id from now on. Begin a new watch, too: its snapshot names the holder that had the id
    /// so far.
    pub fn renamed(&mut self, own: PeerId) -> Vec<Step> {
        let ignored = self.known.remove(&own).filter(Neighbour::is_listened_to).map(|_| Step::Ignore(own));
        let gone = self.view.renamed(own).map(|change| Step::Tell(Located::Change(change)));
        ignored.into_iter().chain(gone).collect()
    }

    /// Those that a new watch should keep.
    pub fn known(&self) -> Vec<PeerId> {
        self.known.keys().copied().collect()
    }

    /// After a message of the tracker.
    pub fn heard(&mut self, message: HolderChanges, now: Instant) -> Vec<Step> {
        let introduces = message.introduces;
        let located = self.view.apply(message, now);
        let mut steps = Vec::new();
        for located in located {
            match located {
                Located::Change(change) => self.change(change, introduces, now, &mut steps),
                other => steps.push(Step::Tell(other)),
            }
        }
        self.listen(now, &mut steps);
        steps
    }

    fn change(&mut self, change: HolderChange, introduces: bool, now: Instant, steps: &mut Vec<Step>) {
        match change {
            HolderChange::Is(holder) if introduces || self.known.contains_key(&holder.peer.id()) => {
                self.introduced(holder, now, steps);
            }
            HolderChange::Added(peer, _) if self.known.get(&peer).is_some_and(Neighbour::tells) => {}
            HolderChange::Parted(peer) => {
                if self.known.remove(&peer).is_some_and(|neighbour| neighbour.is_listened_to()) {
                    steps.push(Step::Ignore(peer));
                }
                steps.push(Step::Tell(Located::Change(HolderChange::Gone(peer))));
            }
            HolderChange::Gone(peer) => match self.known.get_mut(&peer) {
                Some(neighbour) if neighbour.tells() => neighbour.is_gone = true,
                Some(neighbour) => {
                    if neighbour.is_listened_to() {
                        steps.push(Step::Ignore(peer));
                    }
                    self.known.remove(&peer);
                    steps.push(Step::Tell(Located::Change(HolderChange::Gone(peer))));
                }
                None => steps.push(Step::Tell(Located::Change(HolderChange::Gone(peer)))),
            },
            change => steps.push(Step::Tell(Located::Change(change))),
        }
    }

    fn introduced(&mut self, holder: Holder, now: Instant, steps: &mut Vec<Step>) {
        let (id, is_full) = (holder.peer.id(), holder.chunks.is_full());
        let new = || Neighbour {
            peer: holder.peer.clone(),
            ear: Ear::Waits(now),
            backoff: Backoff::new(LISTEN),
            is_gone: false,
        };
        let neighbour = self.known.entry(id).or_insert_with(new);
        neighbour.is_gone = false;
        if neighbour.peer != holder.peer {
            if neighbour.is_listened_to() {
                steps.push(Step::Ignore(id));
            }
            *neighbour = new();
        }
        if is_full {
            if neighbour.is_listened_to() {
                steps.push(Step::Ignore(id));
            }
            neighbour.ear = Ear::Shut;
        } else if matches!(neighbour.ear, Ear::Shut) {
            // It held all, and now it does not.
            neighbour.ear = Ear::Waits(now);
        }
        if !neighbour.tells() {
            steps.push(Step::Tell(Located::Change(HolderChange::Is(holder))));
        }
    }

    /// A peer that is listened to told something.
    pub fn told(&mut self, peer: PeerId, news: ChunkNews) -> Option<Located> {
        let neighbour = self.known.get_mut(&peer).filter(|neighbour| neighbour.is_listened_to())?;
        let change = match news {
            ChunkNews::All(chunks) => {
                neighbour.ear = Ear::Hears;
                neighbour.backoff.succeeded();
                HolderChange::Is(Holder { peer: neighbour.peer.clone(), chunks })
            }
            ChunkNews::More(chunks) if neighbour.tells() => HolderChange::Added(peer, chunks),
            // What it held before is not known.
            ChunkNews::More(_) => return None,
        };
        Some(Located::Change(change))
    }

    /// A peer that was listened to tells nothing more.
    pub fn fell_silent(
        &mut self,
        peer: PeerId,
        silence: Silence,
        now: Instant,
        rng: &mut (impl Rng + ?Sized),
    ) -> Option<Located> {
        let neighbour = self.known.get_mut(&peer).filter(|neighbour| neighbour.is_listened_to())?;
        neighbour.ear = match silence {
            Silence::Complete | Silence::Unable => Ear::Shut,
            Silence::Lost => Ear::Waits(now + neighbour.backoff.failed(rng)),
        };
        if neighbour.is_gone {
            self.known.remove(&peer);
            return Some(Located::Change(HolderChange::Gone(peer)));
        }
        None
    }

    /// What is due by now.
    pub fn due(&mut self, now: Instant) -> Vec<Step> {
        let mut steps = Vec::new();
        for change in self.view.expire(now) {
            self.change(change, false, now, &mut steps);
        }
        self.listen(now, &mut steps);
        steps
    }

    /// When [`Neighbours::due`] is worth calling next.
    pub fn next_due(&self, now: Instant) -> Instant {
        let waits = self.known.values().filter_map(|neighbour| match neighbour.ear {
            Ear::Waits(at) => Some(at),
            _ => None,
        });
        let has_room = self.listened_to() < MOST;
        waits.filter(|_| has_room).chain([self.view.next_expiry(now)]).min().unwrap_or(now)
    }

    fn listened_to(&self) -> usize {
        self.known.values().filter(|neighbour| neighbour.is_listened_to()).count()
    }

    fn listen(&mut self, now: Instant, steps: &mut Vec<Step>) {
        let mut room = MOST - self.listened_to();
        for neighbour in self.known.values_mut() {
            if room > 0 && matches!(neighbour.ear, Ear::Waits(at) if at <= now) {
                neighbour.ear = Ear::Asked;
                steps.push(Step::Listen(neighbour.peer.clone()));
                room -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use drizzle_proto::{Address, ChunkCount, ChunkSet, Labels};
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const OWN: u8 = 0;

    fn peer(n: u8) -> PeerId {
        PeerId::from_bytes([n; 16])
    }

    fn info(n: u8, port: u16) -> PeerInfo {
        PeerInfo::new(peer(n), Address::new(&format!("h{n}:{port}")).unwrap(), Labels::default())
    }

    fn set(bits: u8) -> ChunkSet {
        let count = ChunkCount::new(3).unwrap();
        let mut set = ChunkSet::empty(count);
        for bit in 0..3 {
            if bits & (1 << bit) != 0 {
                set.insert(count.index(bit).unwrap());
            }
        }
        set
    }

    fn is(n: u8, port: u16, bits: u8) -> HolderChange {
        HolderChange::Is(Holder { peer: info(n, port), chunks: set(bits) })
    }

    fn message(changes: Vec<HolderChange>, introduces: bool) -> HolderChanges {
        HolderChanges { reset: false, changes, synced: true, introduces }
    }

    #[test]
    fn a_neighbour_that_tells_counts_more_than_the_tracker() {
        let now = Instant::now();
        let mut neighbours = Neighbours::new(peer(OWN));
        let steps = neighbours.heard(message(vec![is(1, 1, 1)], true), now);
        let told = Step::Tell(Located::Change(is(1, 1, 1)));
        assert_eq!(steps, [told, Step::Tell(Located::Synced), Step::Listen(info(1, 1))]);
        assert_eq!(neighbours.told(peer(1), ChunkNews::More(set(2))), None, "nothing is known of what it holds");
        assert_eq!(neighbours.told(peer(1), ChunkNews::All(set(3))), Some(Located::Change(is(1, 1, 3))));
        assert_eq!(neighbours.heard(message(vec![is(1, 1, 0)], true), now), [], "a tracker that forgot");
        assert_eq!(neighbours.heard(message(vec![HolderChange::Gone(peer(1))], true), now), []);
        let gone = Some(Located::Change(HolderChange::Gone(peer(1))));
        let rng = &mut StdRng::seed_from_u64(1);
        assert_eq!(neighbours.fell_silent(peer(1), Silence::Lost, now, rng), gone);
        assert!(neighbours.known().is_empty());
    }

    #[test]
    fn a_tracker_that_does_not_introduce_is_believed() {
        let now = Instant::now();
        let mut neighbours = Neighbours::new(peer(OWN));
        let added = HolderChange::Added(peer(1), set(2));
        let steps = neighbours.heard(message(vec![is(1, 1, 1), added.clone()], false), now);
        let tell = |change| Step::Tell(Located::Change(change));
        assert_eq!(steps, [tell(is(1, 1, 1)), tell(added), Step::Tell(Located::Synced)]);
    }

    #[test]
    fn one_that_moved_is_listened_to_at_its_new_address() {
        let now = Instant::now();
        let mut neighbours = Neighbours::new(peer(OWN));
        neighbours.heard(message(vec![is(1, 1, 1)], true), now);
        neighbours.told(peer(1), ChunkNews::All(set(1)));
        let steps = neighbours.heard(message(vec![is(1, 2, 1)], true), now);
        let told = Step::Tell(Located::Change(is(1, 2, 1)));
        assert_eq!(steps, [Step::Ignore(peer(1)), told, Step::Listen(info(1, 2))]);
    }

    #[derive(Debug, Clone)]
    enum Event {
        Heard(Vec<HolderChange>, bool, bool),
        Told(u8, ChunkNews),
        Silent(u8, Silence),
        Later(u64),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let n = 0u8..5;
        let change = prop_oneof![
            4 => (n.clone(), 1u16..3, 0u8..8).prop_map(|(n, port, bits)| is(n, port, bits)),
            2 => n.clone().prop_map(|n| HolderChange::Gone(peer(n))),
            1 => n.clone().prop_map(|n| HolderChange::Parted(peer(n))),
        ];
        let news = prop_oneof![
            (0u8..8).prop_map(|bits| ChunkNews::All(set(bits))),
            (1u8..8).prop_map(|bits| ChunkNews::More(set(bits))),
        ];
        let silence = prop_oneof![Just(Silence::Complete), Just(Silence::Unable), Just(Silence::Lost)];
        let event = prop_oneof![
            3 => (proptest::collection::vec(change, 0..4), any::<bool>(), any::<bool>())
                .prop_map(|(changes, reset, introduces)| Event::Heard(changes, reset, introduces)),
            3 => (n.clone(), news).prop_map(|(n, news)| Event::Told(n, news)),
            2 => (n, silence).prop_map(|(n, silence)| Event::Silent(n, silence)),
            1 => (0u64..30_000).prop_map(Event::Later),
        ];
        proptest::collection::vec(event, 1..60)
    }

    fn names(change: &HolderChange, peer: PeerId) -> bool {
        match change {
            HolderChange::Is(holder) => holder.peer.id() == peer,
            HolderChange::Added(named, _) | HolderChange::Gone(named) | HolderChange::Parted(named) => *named == peer,
        }
    }

    proptest! {
        #[test]
        fn a_download_knows_what_the_best_informed_say(events in events(), always in any::<Option<bool>>()) {
            let (mut now, rng) = (Instant::now(), &mut StdRng::seed_from_u64(1));
            let mut neighbours = Neighbours::new(peer(OWN));
            // Those that are listened to: whether they told all they have, and what.
            let mut ears: BTreeMap<PeerId, Option<ChunkSet>> = BTreeMap::new();
            // What the download believes.
            let mut belief: BTreeMap<PeerId, ChunkSet> = BTreeMap::new();
            let mut deaf: BTreeSet<PeerId> = BTreeSet::new();
            for event in events {
                let mut steps = Vec::new();
                match event {
                    Event::Heard(changes, reset, introduces) => {
                        let introduces = always.unwrap_or(introduces);
                        // One that moved, or came anew, is another.
                        deaf.retain(|deaf| !changes.iter().any(|change| names(change, *deaf)));
                        let message = HolderChanges { reset, changes, synced: true, introduces };
                        steps = neighbours.heard(message, now);
                    }
                    Event::Told(n, news) => {
                        let told = neighbours.told(peer(n), news.clone());
                        match (ears.get_mut(&peer(n)), news) {
                            (Some(ear), ChunkNews::All(chunks)) => *ear = Some(chunks),
                            (Some(Some(ear)), ChunkNews::More(chunks)) => ear.union_with(&chunks),
                            _ => prop_assert_eq!(&told, &None),
                        }
                        steps.extend(told.map(Step::Tell));
                    }
                    Event::Silent(n, silence) => {
                        let told = neighbours.fell_silent(peer(n), silence, now, rng);
                        if ears.remove(&peer(n)).is_some() && silence == Silence::Unable {
                            deaf.insert(peer(n));
                        }
                        steps.extend(told.map(Step::Tell));
                    }
                    Event::Later(millis) => {
                        now += Duration::from_millis(millis);
                        steps = neighbours.due(now);
                    }
                }
                for step in steps {
                    match step {
                        Step::Listen(info) => {
                            prop_assert!(always != Some(false), "nobody is listened to without introductions");
                            prop_assert!(info.id() != peer(OWN) && !deaf.contains(&info.id()));
                            prop_assert_eq!(ears.insert(info.id(), None), None, "listened to twice");
                        }
                        Step::Ignore(peer) => prop_assert!(ears.remove(&peer).is_some()),
                        Step::Tell(Located::Change(HolderChange::Is(holder))) => {
                            prop_assert!(holder.peer.id() != peer(OWN));
                            belief.insert(holder.peer.id(), holder.chunks);
                        }
                        Step::Tell(Located::Change(HolderChange::Added(peer, chunks))) => {
                            belief.get_mut(&peer).expect("a known holder").union_with(&chunks);
                        }
                        Step::Tell(Located::Change(HolderChange::Gone(peer) | HolderChange::Parted(peer))) => {
                            prop_assert!(belief.remove(&peer).is_some(), "it is told once");
                            prop_assert!(ears.get(&peer).is_none_or(Option::is_none), "it tells, and is there");
                        }
                        Step::Tell(_) => {}
                    }
                }
                for (peer, ear) in &ears {
                    if let Some(told) = ear {
                        prop_assert_eq!(belief.get(peer), Some(told), "the one that tells knows best");
                    }
                }
                prop_assert!(ears.len() <= MOST);
            }
        }
    }
}
