//! Which holder has what, which can take another fetch right now, and which rests until when.
//!
//! Invariants:
//! - `shelves[load]` lists exactly the holders that have something, carry `load` fetches and have room
//!   for one more; `resting` lists exactly those that rest.
//! - `bounds` has for each holder a lower bound on the rarity of every waiting chunk that it has. It lets a search
//!   skip the rare chunks that only saturated holders have without looking at them one by one. (They lie together: a
//!   look at all of them is a look at two cache lines, and not at one in each holder.)
//! - A chunk for which a holder once gave wrong bytes is never again taken to be held by it.
//!
//! A holder that is gone stays on record with nothing to offer, so that its offences and the fetches it
//! still carries are known when it returns.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use drizzle_proto::{ChunkIndex, ChunkSet, PeerId, PeerInfo};
use rand::{Rng, RngExt, seq::IndexedRandom};

use super::{conduct::Conduct, rarity::RarityOrder};

/// Where a holder stands in [`Holders`].
pub(super) type Key = usize;

/// Up to so many holders are tried blindly before the whole shelf is looked through.
const BLIND_TRIES: usize = 8;

/// What a holder has.
#[derive(Debug, Clone)]
pub(super) enum Held {
    /// Nothing, or the holder is gone.
    Nothing,
    /// The whole file; not counted in the chunks' relative rarity.
    All,
    /// These chunks, perhaps by now all.
    Part(ChunkSet),
}

impl Held {
    pub(super) fn contains(&self, chunk: ChunkIndex) -> bool {
        match self {
            Self::Nothing => false,
            Self::All => true,
            Self::Part(chunks) => chunks.contains(chunk),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::All => false,
            Self::Part(chunks) => chunks.is_empty(),
        }
    }

    fn intersects(&self, chunks: &ChunkSet) -> bool {
        match self {
            Self::Nothing => false,
            Self::All => !chunks.is_empty(),
            Self::Part(held) => held.intersects(chunks),
        }
    }
}

/// One holder.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) peer: PeerInfo,
    pub(super) held: Held,
    pub(super) conduct: Conduct,
    /// Fetches that it may carry for us at once.
    pub(super) most: usize,
    /// Fetches that it carries for us.
    pub(super) load: usize,
    /// How many of them are second copies.
    pub(super) copies: usize,
    /// Chunks for which it gave wrong bytes.
    denied: BTreeSet<ChunkIndex>,
    /// Load and place on that shelf.
    shelf: Option<(usize, usize)>,
    /// Its entry in `resting`.
    rests: Option<Instant>,
}

impl Holder {
    /// Whether it gave wrong bytes for a chunk.
    pub(super) fn has_denied(&self, chunk: ChunkIndex) -> bool {
        self.denied.contains(&chunk)
    }
}

#[derive(Debug)]
pub(super) struct Holders {
    all: Vec<Holder>,
    bounds: Vec<u32>,
    keys: BTreeMap<PeerId, Key>,
    shelves: Vec<Vec<Key>>,
    resting: BTreeSet<(Instant, Key)>,
    /// The first of them: it is asked for at every event, and nearly always none is due.
    first_rest: Option<(Instant, Key)>,
    per_holder: usize,
    /// Holders of the whole file.
    seeds: u32,
}

impl Holders {
    pub(super) fn new(per_holder: usize) -> Self {
        Self {
            all: Vec::new(),
            bounds: Vec::new(),
            keys: BTreeMap::new(),
            shelves: vec![Vec::new(); per_holder],
            resting: BTreeSet::new(),
            first_rest: None,
            per_holder,
            seeds: 0,
        }
    }

    pub(super) fn get(&self, key: Key) -> &Holder {
        &self.all[key]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Holder> {
        self.all.iter()
    }

    pub(super) fn seeds(&self) -> u32 {
        self.seeds
    }

    pub(super) fn find(&self, peer: PeerId) -> Option<Key> {
        self.keys.get(&peer).copied()
    }

    /// The holder's record, made if it is new; a known holder may have moved.
    pub(super) fn enter(&mut self, peer: PeerInfo) -> Key {
        if let Some(key) = self.find(peer.id()) {
            self.all[key].peer = peer;
            return key;
        }
        let key = self.all.len();
        self.keys.insert(peer.id(), key);
        self.all.push(Holder {
            peer,
            held: Held::Nothing,
            conduct: Conduct::new(self.per_holder),
            most: self.per_holder,
            load: 0,
            copies: 0,
            denied: BTreeSet::new(),
            shelf: None,
            rests: None,
        });
        self.bounds.push(0);
        key
    }

    /// Changes a holder's load or conduct and puts it where it now belongs.
    pub(super) fn update(&mut self, key: Key, change: impl FnOnce(&mut Holder)) {
        change(&mut self.all[key]);
        self.place(key);
    }

    fn place(&mut self, key: Key) {
        let holder = &mut self.all[key];
        let (was, is) = (holder.rests, holder.conduct.rest_until());
        if was != is {
            was.map(|until| self.resting.remove(&(until, key)));
            is.map(|until| self.resting.insert((until, key)));
            holder.rests = is;
            self.first_rest = self.resting.first().copied();
        }
        if let Some((load, at)) = holder.shelf.take() {
            self.shelves[load].swap_remove(at);
            if let Some(&moved) = self.shelves[load].get(at) {
                self.all[moved].shelf = Some((load, at));
            }
        }
        let holder = &mut self.all[key];
        if !holder.held.is_empty() && holder.load < holder.conduct.room() {
            if self.shelves.len() <= holder.load {
                self.shelves.resize_with(holder.load + 1, Vec::new);
            }
            holder.shelf = Some((holder.load, self.shelves[holder.load].len()));
            self.shelves[holder.load].push(key);
        }
    }

    /// Ends every rest that is over.
    pub(super) fn wake(&mut self, now: Instant) {
        while let Some((until, key)) = self.first_rest
            && until <= now
        {
            self.update(key, |holder| holder.conduct.awake());
        }
    }

    /// When the next rest of a holder that has anything is over.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        let offers = |key: Key| !self.all[key].held.is_empty();
        let (until, key) = self.first_rest?;
        if offers(key) { Some(until) } else { self.resting.iter().find(|rest| offers(rest.1)).map(|rest| rest.0) }
    }

    /// The holder has exactly these chunks. Only what changed is touched.
    pub(super) fn set(&mut self, key: Key, mut chunks: ChunkSet, order: &mut RarityOrder) {
        for &denied in &self.all[key].denied {
            chunks.remove(denied);
        }
        match std::mem::replace(&mut self.all[key].held, Held::Nothing) {
            Held::All if chunks.is_full() => {
                self.all[key].held = Held::All;
                return;
            }
            Held::Part(old) if !chunks.is_full() => {
                chunks.difference(&old).iter().for_each(|chunk| self.gain(key, chunk, order));
                self.lose(&old.difference(&chunks), order);
                self.all[key].held = Held::Part(chunks);
            }
            old => {
                match old {
                    Held::Nothing => {}
                    Held::All => self.seeds -= 1,
                    Held::Part(old) => self.lose(&old, order),
                }
                self.bounds[key] = u32::MAX;
                if chunks.is_full() {
                    self.seeds += 1;
                    self.bounds[key] = 0;
                    self.all[key].held = Held::All;
                } else {
                    chunks.iter().for_each(|chunk| self.gain(key, chunk, order));
                    self.all[key].held = Held::Part(chunks);
                }
            }
        }
        self.place(key);
    }

    /// The holder has these chunks too.
    pub(super) fn add(&mut self, key: Key, chunks: &ChunkSet, order: &mut RarityOrder) {
        match std::mem::replace(&mut self.all[key].held, Held::Nothing) {
            Held::All => self.all[key].held = Held::All,
            Held::Nothing => self.set(key, chunks.clone(), order),
            Held::Part(mut held) => {
                // News is small against the file: nothing is done for what it does not tell.
                for chunk in chunks.iter() {
                    if !self.all[key].denied.contains(&chunk) && held.insert(chunk) {
                        self.gain(key, chunk, order);
                    }
                }
                self.all[key].held = Held::Part(held);
                self.place(key);
            }
        }
    }

    /// The holder has nothing to offer any more.
    pub(super) fn clear(&mut self, key: Key, order: &mut RarityOrder) {
        match std::mem::replace(&mut self.all[key].held, Held::Nothing) {
            Held::Nothing => {}
            Held::All => self.seeds -= 1,
            Held::Part(old) => self.lose(&old, order),
        }
        self.place(key);
    }

    /// The holder has not this chunk, whatever was said; if `forever`, whatever will be said. The chunk
    /// was just asked of it and so does not wait: no bound depends on it.
    pub(super) fn strike(&mut self, key: Key, chunk: ChunkIndex, forever: bool, order: &mut RarityOrder) {
        debug_assert!(!order.is_waiting(chunk));
        if forever {
            self.all[key].denied.insert(chunk);
        }
        match &mut self.all[key].held {
            Held::Nothing => {}
            Held::All => {
                let mut rest = ChunkSet::full(order.count());
                rest.remove(chunk);
                self.set(key, rest, order);
            }
            Held::Part(chunks) => {
                if chunks.remove(chunk) {
                    order.lower(chunk);
                    self.place(key);
                }
            }
        }
    }

    fn gain(&mut self, key: Key, chunk: ChunkIndex, order: &mut RarityOrder) {
        order.raise(chunk);
        if order.is_waiting(chunk) {
            let bound = &mut self.bounds[key];
            *bound = order.rarity(chunk).min(*bound);
        }
    }

    fn lose(&mut self, chunks: &ChunkSet, order: &mut RarityOrder) {
        let mut rarest = u32::MAX;
        for chunk in chunks.iter() {
            order.lower(chunk);
            if order.is_waiting(chunk) {
                rarest = order.rarity(chunk).min(rarest);
            }
        }
        // No chunk fell by more than one, and none below `rarest`.
        for bound in self.bounds.iter_mut().filter(|bound| rarest < **bound && **bound < u32::MAX) {
            *bound -= 1;
        }
    }

    /// A chunk waits again: the bounds of those that have it must not exclude it.
    pub(super) fn returned(&mut self, chunk: ChunkIndex, order: &RarityOrder) {
        let rarity = order.rarity(chunk);
        for (bound, holder) in self.bounds.iter_mut().zip(&self.all).filter(|(bound, _)| rarity < **bound) {
            if holder.held.contains(chunk) {
                *bound = rarity;
            }
        }
    }

    /// The lowest rarity at which an available holder may have a waiting chunk; `None` if none is available.
    pub(super) fn lowest_bound(&self) -> Option<u32> {
        self.shelves.iter().flatten().map(|&key| self.bounds[key]).min()
    }

    /// No available holder has a waiting chunk that is rarer than `rarity`.
    pub(super) fn raise_bounds(&mut self, rarity: u32) {
        for &key in self.shelves.iter().flatten() {
            let bound = &mut self.bounds[key];
            *bound = rarity.max(*bound);
        }
    }

    /// The available holders that may have a waiting chunk of this rarity, by load.
    pub(super) fn candidates(&self, rarity: u32) -> Candidates {
        self.available(|key| self.bounds[key] <= rarity)
    }

    /// Available holders that carry nothing for us but second copies: those that delivered since their last offence,
    /// or the others.
    pub(super) fn rescuers(&self, delivered: bool) -> Candidates {
        let qualifies = |holder: &Holder| holder.load == holder.copies && holder.conduct.has_delivered() == delivered;
        self.available(|key| qualifies(&self.all[key]))
    }

    /// The available holders that qualify. The only holder of the whole file comes last: its uplink is the one that nobody
    /// can replace. (Of one source and four peers on a fast machine, it sent 1.7 copies as one among equals, and 1.1 so.)
    fn available(&self, qualifies: impl Fn(Key) -> bool) -> Candidates {
        let is_source = |key: Key| self.seeds == 1 && matches!(self.all[key].held, Held::All);
        let (mut keys, mut tiers) = (Vec::with_capacity(self.all.len()), Vec::with_capacity(self.shelves.len() + 1));
        let mut source = None;
        for shelf in self.shelves.iter().filter(|shelf| !shelf.is_empty()) {
            let begins = keys.len();
            keys.extend(shelf.iter().copied().filter(|key| qualifies(*key)));
            if source.is_none()
                && let Some(at) = keys[begins..].iter().position(|key| is_source(*key))
            {
                source = Some(keys.swap_remove(begins + at));
            }
            tiers.push(keys.len());
        }
        keys.extend(source);
        tiers.push(keys.len());
        Candidates { keys, tiers }
    }
}

/// Holders that could take a fetch, in tiers: by load, then the only source. Valid until the holders change.
#[derive(Debug)]
pub(super) struct Candidates {
    keys: Vec<Key>,
    /// Where each tier ends.
    tiers: Vec<usize>,
}

impl Candidates {
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    fn tiers(&self) -> impl Iterator<Item = &[Key]> {
        let begins = std::iter::once(0).chain(self.tiers.iter().copied());
        begins.zip(&self.tiers).map(|(begins, ends)| &self.keys[begins..*ends])
    }

    /// A random one among the first tier that has the chunk.
    pub(super) fn pick(&self, chunk: ChunkIndex, holders: &Holders, rng: &mut (impl Rng + ?Sized)) -> Option<Key> {
        let has = |key: Key| holders.all[key].held.contains(chunk);
        self.tiers().filter(|tier| !tier.is_empty()).find_map(|tier| {
            // Mostly some random one will do; the result is equally likely either way.
            let blind = if tier.len() > BLIND_TRIES { BLIND_TRIES } else { 0 };
            (0..blind).map(|_| tier[rng.random_range(0..tier.len())]).find(|&key| has(key)).or_else(|| {
                let able: Vec<Key> = tier.iter().copied().filter(|&key| has(key)).collect();
                able.choose(rng).copied()
            })
        })
    }

    /// Keeps only those that have one of the chunks.
    pub(super) fn retain(&mut self, chunks: &ChunkSet, holders: &Holders) {
        let (mut left, mut begins) = (Vec::with_capacity(self.keys.len()), 0);
        for ends in &mut self.tiers {
            let tier = &self.keys[begins..*ends];
            begins = *ends;
            left.extend(tier.iter().copied().filter(|&key| holders.all[key].held.intersects(chunks)));
            *ends = left.len();
        }
        self.keys = left;
    }
}

#[cfg(test)]
impl Holders {
    /// Recomputes what is kept incrementally.
    pub(super) fn check(&self, order: &RarityOrder, waiting: &ChunkSet) {
        for chunk in waiting.iter() {
            let parts = self.all.iter().filter(|holder| matches!(&holder.held, Held::Part(c) if c.contains(chunk)));
            assert_eq!(order.rarity(chunk) as usize, parts.count(), "rarity of {chunk}");
        }
        for (key, holder) in self.all.iter().enumerate() {
            let available = !holder.held.is_empty() && holder.load < holder.conduct.room();
            assert_eq!(holder.shelf.is_some(), available);
            if let Some((load, at)) = holder.shelf {
                assert_eq!((load, self.shelves[load][at]), (holder.load, key));
            }
            for chunk in waiting.iter().filter(|&chunk| holder.held.contains(chunk)) {
                assert!(self.bounds[key] <= order.rarity(chunk), "bound {} hides {chunk}", self.bounds[key]);
            }
            assert!(holder.denied.iter().all(|&chunk| !holder.held.contains(chunk)));
        }
        assert_eq!(self.seeds as usize, self.all.iter().filter(|holder| matches!(holder.held, Held::All)).count());
        assert_eq!(self.first_rest.as_ref(), self.resting.first());
        assert_eq!(self.resting.len(), self.all.iter().filter(|holder| holder.rests.is_some()).count());
    }
}
