//! Which chunks a download asks of far peers, so that each crosses a thin link about once and then spreads on this side.
//!
//! What is near and what is far say the peers' labels: see [`Labels::is_far_from`]. The scheduler is not told of all that
//! a far holder has, but of this peer's *part* of it: of the chunks that no near peer has yet, those for which this peer
//! has the highest score among the near ones that download (rendezvous hashing, D. Thaler and C. Ravishankar, 1998). So
//! near peers bring different chunks, and when one comes or goes only its own part changes hands.
//!
//! What holds (each line has a property test):
//! - of a near holder everything is told, as it is;
//! - of a far one no chunk is told that a near one has;
//! - each chunk that only far holders have is in the part of exactly one of the near peers, if all know each other;
//! - a download that has stood still for [`PATIENCE`] takes over some chunks of others' parts, and again, until it has
//!   asked for all;
//! - without labels everything is near.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use drizzle_proto::{
    ChunkCount, ChunkIndex, ChunkSet, Labels, PeerId,
    holder::{Holder, HolderChange},
};
use rand::{Rng, seq::IndexedRandom};

/// A download that has nothing under way for so long does not wait for its near peers any more.
pub const PATIENCE: Duration = Duration::from_millis(500);
/// Chunks that it takes over then.
const TAKES_OVER: usize = 16;

/// What is near and far of one download.
#[derive(Debug)]
pub struct Locality {
    own: PeerId,
    labels: Labels,
    near: BTreeMap<PeerId, ChunkSet>,
    far: BTreeMap<PeerId, Holder>,
    near_held: ChunkSet,
    /// Chunks that this peer is to bring from afar, if no near peer has them.
    part: ChunkSet,
    taken_over: ChunkSet,
    still: Option<Instant>,
}

/// How high a peer scores for a chunk (SplitMix64).
fn score(peer: PeerId, chunk: ChunkIndex) -> u64 {
    let id = u128::from_be_bytes(*peer.as_bytes());
    // Both halves count.
    #[allow(clippy::cast_possible_truncation)]
    let id = ((id >> 64) as u64).wrapping_mul(0xd6e8_feb8_6659_fd93) ^ id as u64;
    let mut z = id.wrapping_add(u64::from(chunk.get()).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Locality {
    /// Of a download of so many chunks by this peer.
    pub fn new(own: PeerId, labels: Labels, count: ChunkCount) -> Self {
        Self {
            own,
            labels,
            near: BTreeMap::new(),
            far: BTreeMap::new(),
            near_held: ChunkSet::empty(count),
            part: ChunkSet::full(count),
            taken_over: ChunkSet::empty(count),
            still: None,
        }
    }

    /// Whether these labels are far from here.
    pub fn is_far(&self, labels: &Labels) -> bool {
        self.labels.is_far_from(labels)
    }

    /// Whether this far peer holds the whole file.
    pub fn is_full(&self, peer: PeerId) -> bool {
        self.far.get(&peer).is_some_and(|holder| holder.chunks.is_full())
    }

    /// What the scheduler is to be told when this changes, about that holder and others.
    pub fn apply(&mut self, change: HolderChange) -> Vec<HolderChange> {
        // A peer that does not say where it is is far from none: nothing is kept for it.
        if self.labels.is_empty() {
            return vec![change];
        }
        // What may be asked of far peers does not matter while there is none: most news is such.
        if let HolderChange::Added(peer, chunks) = &change
            && self.far.is_empty()
        {
            self.near_added(*peer, chunks);
            return vec![change];
        }
        let before = self.told_of_far();
        let mut told = Vec::new();
        match change {
            HolderChange::Is(holder) if self.is_far(holder.peer.labels()) => {
                let id = holder.peer.id();
                if self.near.remove(&id).is_some() {
                    self.near_changed();
                }
                told.push(HolderChange::Is(self.cut(&holder)));
                self.far.insert(id, holder);
            }
            HolderChange::Is(holder) => {
                let id = holder.peer.id();
                self.far.remove(&id);
                match self.near.insert(id, holder.chunks.clone()) {
                    None => self.near_came(id, &holder.chunks),
                    Some(was) if was.difference(&holder.chunks).is_empty() => {
                        self.near_held.union_with(&holder.chunks);
                    }
                    Some(_) => self.near_changed(),
                }
                told.push(HolderChange::Is(holder));
            }
            HolderChange::Added(peer, chunks) => {
                if let Some(far) = self.far.get_mut(&peer) {
                    far.chunks.union_with(&chunks);
                    told.push(HolderChange::Added(peer, chunks.intersection(&before)));
                } else {
                    self.near_added(peer, &chunks);
                    told.push(HolderChange::Added(peer, chunks));
                }
            }
            HolderChange::Gone(peer) | HolderChange::Parted(peer) => {
                self.far.remove(&peer);
                if self.near.remove(&peer).is_some() {
                    self.near_changed();
                }
                told.push(HolderChange::Gone(peer));
            }
        }
        told.extend(self.far_again(&before));
        told
    }

    /// Nothing is under way, though these chunks are missing: what the scheduler is to be told, if it is time to take over
    /// what near peers do not bring.
    pub fn stands_still(
        &mut self,
        missing: &ChunkSet,
        now: Instant,
        rng: &mut (impl Rng + ?Sized),
    ) -> Vec<HolderChange> {
        let since = *self.still.get_or_insert(now);
        if now < since + PATIENCE {
            return Vec::new();
        }
        self.still = Some(now);
        let withheld: Vec<ChunkIndex> = self.withheld(missing).iter().collect();
        let before = self.told_of_far();
        for &chunk in withheld.sample(rng, TAKES_OVER) {
            self.taken_over.insert(chunk);
        }
        self.far_again(&before)
    }

    /// Something is under way.
    pub fn goes_on(&mut self) {
        self.still = None;
    }

    /// Of the missing chunks, those that far holders have and near peers are to bring.
    pub fn withheld(&self, missing: &ChunkSet) -> ChunkSet {
        let mut far = ChunkSet::empty(missing.count());
        self.far.values().for_each(|holder| far.union_with(&holder.chunks));
        far.intersection(missing).difference(&self.near_held).difference(&self.told_of_far())
    }

    /// Chunks that may be asked of far holders.
    fn told_of_far(&self) -> ChunkSet {
        let mut told = self.part.clone();
        told.union_with(&self.taken_over);
        told.difference(&self.near_held)
    }

    fn cut(&self, holder: &Holder) -> Holder {
        Holder { peer: holder.peer.clone(), chunks: holder.chunks.intersection(&self.told_of_far()) }
    }

    /// The far holders as they are to be told now, if that is not what was told before.
    fn far_again(&self, before: &ChunkSet) -> Vec<HolderChange> {
        let now = self.told_of_far();
        if now == *before {
            return Vec::new();
        }
        let again = |holder: &Holder| Holder { peer: holder.peer.clone(), chunks: holder.chunks.intersection(&now) };
        self.far.values().map(|holder| HolderChange::Is(again(holder))).collect()
    }

    /// A near peer has these chunks more.
    fn near_added(&mut self, peer: PeerId, chunks: &ChunkSet) {
        if let Some(near) = self.near.get_mut(&peer) {
            near.union_with(chunks);
            self.near_held.union_with(chunks);
        }
    }

    /// A near peer came with these chunks. It takes those out of the part for which it scores higher; nothing else changes.
    fn near_came(&mut self, peer: PeerId, chunks: &ChunkSet) {
        self.near_held.union_with(chunks);
        // What near peers hold together becomes less only in `near_changed`, which computes the part anew.
        if self.near_held.is_full() {
            return;
        }
        let mut part = self.part.clone();
        for chunk in self.part.iter().filter(|chunk| score(peer, *chunk) >= score(self.own, *chunk)) {
            part.remove(chunk);
        }
        self.part = part;
    }

    /// Near peers went, or hold less than before.
    fn near_changed(&mut self) {
        let count = self.part.count();
        self.near_held = ChunkSet::empty(count);
        self.near.values().for_each(|held| self.near_held.union_with(held));
        // While some near peer has all, nothing comes from afar.
        if self.near_held.is_full() {
            return;
        }
        let mut part = ChunkSet::empty(count);
        for chunk in count.indices() {
            let own = score(self.own, chunk);
            if self.near.keys().all(|peer| score(*peer, chunk) < own) {
                part.insert(chunk);
            }
        }
        self.part = part;
    }
}

#[cfg(test)]
mod tests {
    use drizzle_proto::{Address, PeerInfo};
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const CHUNKS: u32 = 40;

    fn count() -> ChunkCount {
        ChunkCount::new(CHUNKS).unwrap()
    }

    fn peer(n: u8) -> PeerId {
        PeerId::from_bytes([n.wrapping_mul(37).wrapping_add(1); 16])
    }

    fn labels(zone: u8) -> Labels {
        Labels::new([("zone", format!("z{zone}"))]).unwrap()
    }

    fn set(chunks: u64) -> ChunkSet {
        let mut set = ChunkSet::empty(count());
        count().indices().filter(|chunk| chunks & (1 << chunk.get()) != 0).for_each(|chunk| _ = set.insert(chunk));
        set
    }

    /// Peers with even numbers are in zone 0.
    fn is(n: u8, chunks: u64) -> HolderChange {
        let peer = PeerInfo::new(peer(n), Address::new("h:1").unwrap(), labels(n % 2));
        HolderChange::Is(Holder { peer, chunks: set(chunks) })
    }

    fn full(n: u8) -> HolderChange {
        is(n, u64::MAX)
    }

    /// What a scheduler knows.
    #[derive(Debug, Default)]
    struct Belief(BTreeMap<PeerId, ChunkSet>);

    impl Belief {
        fn hear(&mut self, told: Vec<HolderChange>) {
            for change in told {
                match change {
                    HolderChange::Is(holder) => drop(self.0.insert(holder.peer.id(), holder.chunks)),
                    HolderChange::Added(peer, chunks) => {
                        self.0.get_mut(&peer).expect("a known one").union_with(&chunks);
                    }
                    HolderChange::Gone(peer) | HolderChange::Parted(peer) => drop(self.0.remove(&peer)),
                }
            }
        }
    }

    fn of(own: u8) -> Locality {
        Locality::new(peer(own), labels(own % 2), count())
    }

    #[test]
    fn a_chunk_that_only_far_holders_have_is_the_part_of_one_near_peer() {
        let near = [2, 4, 6, 8];
        let mut times = vec![0; CHUNKS as usize];
        for own in near {
            let (mut locality, mut belief) = (of(own), Belief::default());
            for other in near.into_iter().filter(|other| *other != own) {
                belief.hear(locality.apply(is(other, 0)));
            }
            belief.hear(locality.apply(full(1)));
            belief.0[&peer(1)].iter().for_each(|chunk| times[chunk.as_usize()] += 1);
            assert!((3..=20).contains(&belief.0[&peer(1)].len()), "about a quarter");
        }
        assert_eq!(times, vec![1; CHUNKS as usize]);
    }

    #[test]
    fn a_peer_alone_in_its_place_asks_for_everything_and_one_beside_a_source_for_nothing() {
        let (mut locality, mut belief) = (of(2), Belief::default());
        belief.hear(locality.apply(full(1)));
        assert!(belief.0[&peer(1)].is_full());
        belief.hear(locality.apply(full(4)));
        assert!(belief.0[&peer(1)].is_empty() && belief.0[&peer(4)].is_full());
        belief.hear(locality.apply(HolderChange::Gone(peer(4))));
        assert!(belief.0[&peer(1)].is_full());
    }

    #[test]
    fn what_near_peers_do_not_bring_is_taken_over_bit_by_bit() {
        let (mut locality, mut belief, mut now) = (of(2), Belief::default(), Instant::now());
        let rng = &mut StdRng::seed_from_u64(1);
        for near in [4, 6, 8] {
            belief.hear(locality.apply(is(near, 0)));
        }
        belief.hear(locality.apply(full(1)));
        let missing = ChunkSet::full(count());
        let at_first = belief.0[&peer(1)].len();
        assert_eq!(locality.withheld(&missing).len(), CHUNKS - at_first);
        assert_eq!(locality.stands_still(&missing, now, rng), []);
        locality.goes_on();
        now += PATIENCE;
        assert_eq!(locality.stands_still(&missing, now, rng), [], "it went on meanwhile");
        now += PATIENCE;
        belief.hear(locality.stands_still(&missing, now, rng));
        assert_eq!(belief.0[&peer(1)].len() as usize, at_first as usize + TAKES_OVER);
        for _ in 0..3 {
            now += PATIENCE;
            belief.hear(locality.stands_still(&missing, now, rng));
        }
        assert!(belief.0[&peer(1)].is_full() && locality.withheld(&missing).is_empty());
    }

    proptest! {
        #[test]
        fn near_is_told_as_it_is_and_far_without_what_is_near(
            steps in proptest::collection::vec((0u8..9, 0u8..4, any::<u64>()), 1..60),
            labelled in any::<bool>(),
        ) {
            let own = if labelled { labels(0) } else { Labels::default() };
            let mut locality = Locality::new(peer(100), own, count());
            let (mut truth, mut belief) = (BTreeMap::<u8, ChunkSet>::new(), Belief::default());
            for (n, kind, chunks) in steps {
                let change = match kind {
                    0 => {
                        truth.remove(&n);
                        HolderChange::Gone(peer(n))
                    }
                    1 if truth.contains_key(&n) => {
                        truth.get_mut(&n).unwrap().union_with(&set(chunks));
                        HolderChange::Added(peer(n), set(chunks))
                    }
                    _ => {
                        truth.insert(n, set(chunks));
                        is(n, chunks)
                    }
                };
                belief.hear(locality.apply(change));
                let is_near = |n: &u8| !labelled || n.is_multiple_of(2);
                let mut near = ChunkSet::empty(count());
                truth.iter().filter(|(n, _)| is_near(n)).for_each(|(_, chunks)| near.union_with(chunks));
                prop_assert_eq!(belief.0.len(), truth.len());
                for (n, chunks) in &truth {
                    let told = &belief.0[&peer(*n)];
                    if is_near(n) {
                        prop_assert_eq!(told, chunks);
                    } else {
                        prop_assert!(told.difference(chunks).is_empty() && !told.intersects(&near));
                        let rest = chunks.difference(&near).difference(told);
                        prop_assert!(rest.difference(&locality.withheld(&rest)).is_empty(), "told or withheld");
                    }
                }
            }
        }
    }
}
