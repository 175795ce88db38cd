//! Which peers of one swarm know each other.
//!
//! To tell every watcher of every holder's every chunk is a message for each chunk, holder and watcher. A watcher that
//! asks to be introduced gets a bounded number of neighbours instead, drawn at random from the holders and from those
//! that only download so far; what these get later they tell each other. So a watcher costs the tracker a few messages,
//! however large the swarm is.
//!
//! A newcomer is linked with as many as it wants; while the swarm is small enough, everyone knows everyone. In a larger
//! one it is put between two that know each other and have enough links, again and again: these part, and so every peer
//! has about as many links as it wants, and the links are those of a random graph. (Links that are added only give those
//! that come first many and those that come last few: they are the last to the end. A limit on them makes a crowd hang
//! together like a chain.) A source is a member like any other: some know it, and none is known by all. A link is mutual;
//! a holder that does not watch is not told of it.
//!
//! Three quarters of the neighbours are near, by the labels, where there are so many; where there are no more, all near
//! peers know each other.
//!
//! What holds (each line has a property test):
//! - a watcher is linked with as many as it wants when it comes, if so many are there that have room, and loses no more
//!   than a quarter of them before it is linked with others;
//! - no peer has more than three times the links of the watcher that wants most, but for those that a watcher brings along;
//! - links are mutual, none leads to the peer itself, and none to a peer that neither holds nor watches;
//! - each holder is linked with some watcher, if there are watchers with room;
//! - a watcher that was told everything there is to tell knows of each of its links, and of no other peer; one that does
//!   not watch, and so need not tell by itself what it holds, is told again whenever that changed.

use std::collections::{BTreeMap, BTreeSet};

use drizzle_proto::{Labels, PeerId, PeerInfo};
use rand::{
    RngExt,
    rngs::StdRng,
    seq::{IndexedRandom, SliceRandom},
};

/// Most neighbours that count, of those that a watcher wants or brings along.
pub const MOST: usize = 256;

/// A peer has so many times the links that it wants at most: some come with a watcher, or when a peer leaves.
const SPREAD: usize = 3;

/// This part of a watcher's neighbours are near, if there are so many.
const NEAR: usize = 3;
const OF: usize = 4;

/// Draws for each neighbour that is wanted, before every peer is looked at.
const DRAWS: usize = 8;

#[derive(Debug, Default)]
struct Member {
    labels: Labels,
    links: BTreeSet<PeerId>,
    /// How many of them are near.
    near: usize,
    is_holder: bool,
    watch: Option<Watching>,
}

#[derive(Debug)]
struct Watching {
    /// Names the watch.
    serial: u64,
    peer: PeerInfo,
    wanted: usize,
    /// Peers of which the watcher is to be told.
    untold: BTreeSet<PeerId>,
    is_begun: bool,
}

/// The links of one swarm.
#[derive(Debug)]
pub struct Introductions {
    members: BTreeMap<PeerId, Member>,
    /// The members again, to draw from.
    drawn: Vec<PeerId>,
    watching: BTreeMap<u64, PeerId>,
    /// Watches with something to tell, since this was asked for last.
    rung: BTreeSet<u64>,
    rng: StdRng,
}

/// What a watcher is to be told.
#[derive(Debug, PartialEq, Eq)]
pub struct Telling {
    /// It is the first time.
    pub begins: bool,
    /// What became of these peers.
    pub peers: Vec<(PeerId, Link)>,
    /// There is nothing more to tell now.
    pub is_all: bool,
}

/// How a watcher stands to a peer.
#[derive(Debug, PartialEq, Eq)]
pub enum Link {
    /// They are neighbours. With where the other one is, if it is a watcher.
    Linked(Option<PeerInfo>),
    /// They are neighbours no longer.
    Parted,
    /// It is gone.
    Gone,
}

impl Introductions {
    /// Among these holders.
    pub fn new<'a>(holders: impl IntoIterator<Item = &'a PeerInfo>, rng: StdRng) -> Self {
        let mut new =
            Self { members: BTreeMap::new(), drawn: Vec::new(), watching: BTreeMap::new(), rung: BTreeSet::new(), rng };
        for holder in holders {
            new.enter(holder).is_holder = true;
        }
        new
    }

    /// Whether nobody watches.
    pub fn is_idle(&self) -> bool {
        self.watching.is_empty()
    }

    /// The watches.
    pub fn watches(&self) -> impl Iterator<Item = u64> + '_ {
        self.watching.keys().copied()
    }

    /// Watches that have something to tell since this was called last.
    pub fn take_rung(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.rung)
    }

    /// A peer watches, and wants so many neighbours; some it brings along. A watch of the same peer before is told
    /// nothing more.
    pub fn watch(&mut self, serial: u64, peer: PeerInfo, wanted: usize, known: &[PeerId]) {
        let id = peer.id();
        let member = self.enter(&peer);
        let watching = Watching { serial, peer, wanted: wanted.min(MOST), untold: BTreeSet::new(), is_begun: false };
        let before = member.watch.replace(watching);
        if let Some(before) = before {
            self.watching.remove(&before.serial);
        }
        self.watching.insert(serial, id);
        self.rung.insert(serial);
        // What it knew by another watch, it is told again.
        let links: Vec<PeerId> = self.members[&id].links.iter().copied().collect();
        links.into_iter().for_each(|link| self.tell(id, link));
        for other in known.iter().take(MOST).filter(|other| **other != id) {
            if self.members.contains_key(other) {
                self.link(id, *other);
            }
        }
        self.fill(id);
    }

    /// A watch is over.
    pub fn unwatch(&mut self, serial: u64) {
        self.rung.remove(&serial);
        let Some(peer) = self.watching.remove(&serial) else { return };
        let Some(member) = self.members.get_mut(&peer) else { return };
        member.watch = None;
        if !member.is_holder {
            self.leave(peer);
        }
    }

    /// A peer holds something, which it did not before.
    pub fn appeared(&mut self, holder: &PeerInfo) {
        let id = holder.id();
        let member = self.enter(holder);
        member.is_holder = true;
        let has_moved = match &mut member.watch {
            Some(watching) if watching.peer != *holder => {
                watching.peer = holder.clone();
                true
            }
            _ => false,
        };
        if member.links.is_empty() {
            let wanted = self.watching.values().map(|watcher| self.wanted(*watcher)).max().unwrap_or(0);
            self.draw(id, wanted.div_ceil(2), |member, _| member.watch.is_some());
        }
        if has_moved {
            self.tell_all(id);
        } else {
            self.changed(id);
        }
    }

    /// A peer holds something else than before.
    pub fn changed(&mut self, peer: PeerId) {
        // A peer that watches tells its neighbours by itself.
        if self.members.get(&peer).is_some_and(|member| member.watch.is_none()) {
            self.tell_all(peer);
        }
    }

    /// A peer holds nothing any more.
    pub fn disappeared(&mut self, holder: PeerId) {
        let Some(member) = self.members.get_mut(&holder) else { return };
        member.is_holder = false;
        if member.watch.is_none() {
            self.leave(holder);
        }
    }

    /// What a watch is to be told now, at most about so many peers.
    pub fn next_telling(&mut self, serial: u64, most: usize) -> Option<Telling> {
        let id = self.watching.get(&serial)?;
        let watching = self.members.get_mut(id)?.watch.as_mut()?;
        let begins = !std::mem::replace(&mut watching.is_begun, true);
        let untold: Vec<PeerId> = std::iter::from_fn(|| watching.untold.pop_first()).take(most).collect();
        if untold.is_empty() && !begins {
            return None;
        }
        let is_all = watching.untold.is_empty();
        let links = &self.members[id].links;
        let link = |peer: &PeerId| match self.members.get(peer) {
            None => Link::Gone,
            Some(_) if !links.contains(peer) => Link::Parted,
            Some(member) => Link::Linked(member.watch.as_ref().map(|watching| watching.peer.clone())),
        };
        Some(Telling { begins, peers: untold.iter().map(|peer| (*peer, link(peer))).collect(), is_all })
    }

    fn wanted(&self, peer: PeerId) -> usize {
        self.members.get(&peer).and_then(|member| member.watch.as_ref()).map_or(0, |watching| watching.wanted)
    }

    /// The peer as a member, from now on with these labels.
    fn enter(&mut self, peer: &PeerInfo) -> &mut Member {
        let (id, drawn) = (peer.id(), &mut self.drawn);
        let member = self.members.entry(id).or_insert_with(|| {
            drawn.push(id);
            Member::default()
        });
        if member.labels != *peer.labels() {
            member.labels = peer.labels().clone();
            self.count_near(id);
            let links: Vec<PeerId> = self.members[&id].links.iter().copied().collect();
            links.into_iter().for_each(|link| self.count_near(link));
        }
        self.members.entry(id).or_default()
    }

    /// Counts the near links of a peer anew: labels changed.
    fn count_near(&mut self, peer: PeerId) {
        let near = self.members[&peer].links.iter().filter(|link| self.are_near(peer, **link)).count();
        if let Some(member) = self.members.get_mut(&peer) {
            member.near = near;
        }
    }

    /// A watcher hears of a peer; others hear nothing.
    fn tell(&mut self, watcher: PeerId, peer: PeerId) {
        if let Some(watching) = self.members.get_mut(&watcher).and_then(|member| member.watch.as_mut()) {
            watching.untold.insert(peer);
            self.rung.insert(watching.serial);
        }
    }

    /// Those that know a peer hear of it.
    fn tell_all(&mut self, peer: PeerId) {
        let links = self.members.get(&peer).map(|member| member.links.clone());
        links.into_iter().flatten().for_each(|other| self.tell(other, peer));
    }

    fn link(&mut self, one: PeerId, other: PeerId) {
        let near = usize::from(self.are_near(one, other));
        for (from, to) in [(one, other), (other, one)] {
            if let Some(member) = self.members.get_mut(&from)
                && member.links.insert(to)
            {
                member.near += near;
                self.tell(from, to);
            }
        }
    }

    fn part(&mut self, one: PeerId, other: PeerId) {
        let near = usize::from(self.are_near(one, other));
        for (from, to) in [(one, other), (other, one)] {
            if let Some(member) = self.members.get_mut(&from)
                && member.links.remove(&to)
            {
                member.near -= near;
                self.tell(from, to);
            }
        }
    }

    /// A peer is gone; those that it leaves are linked with each other in its place.
    fn leave(&mut self, peer: PeerId) {
        let Some(member) = self.members.remove(&peer) else { return };
        self.drawn.retain(|drawn| *drawn != peer);
        let mut left: Vec<PeerId> = member.links.iter().copied().collect();
        for other in &left {
            if let Some(linked) = self.members.get_mut(other) {
                linked.links.remove(&peer);
                linked.near -= usize::from(!member.labels.is_far_from(&linked.labels));
            }
            self.tell(*other, peer);
        }
        left.shuffle(&mut self.rng);
        for pair in left.chunks_exact(2) {
            self.link(pair[0], pair[1]);
        }
        left.into_iter().for_each(|other| self.fill(other));
    }

    /// Links a watcher with as many as it wants, if it has far fewer.
    fn fill(&mut self, watcher: PeerId) {
        let wanted = self.wanted(watcher);
        let has = self.links_of(watcher);
        if 4 * has < 3 * wanted {
            // Most of them near, so that chunks spread there; and some far, so that each chunk comes there.
            let near = (wanted * NEAR / OF).saturating_sub(self.near_links_of(watcher));
            self.draw(watcher, near.min(wanted - has), |_, is_near| is_near);
            let left = |swarm: &Self| wanted.saturating_sub(swarm.links_of(watcher));
            // Where all are near, there is none to be found.
            self.draw_of(watcher, left(self), false, |_, is_near| !is_near);
            self.draw(watcher, left(self), |_, _| true);
        }
    }

    /// Links a peer with so many others at random. Two that have as many links as they want and know each other part for
    /// it, so that they keep their number, near and far. `fits` is also told whether the other one is near.
    fn draw(&mut self, peer: PeerId, wanted: usize, fits: impl Fn(&Member, bool) -> bool) {
        self.draw_of(peer, wanted, true, fits);
    }

    /// The same; with `all`, until none is left that fits, and otherwise until some draws in a row found none.
    fn draw_of(&mut self, peer: PeerId, mut wanted: usize, all: bool, fits: impl Fn(&Member, bool) -> bool) {
        while wanted > 0 {
            let drawn = (0..DRAWS).find_map(|_| {
                let other = self.drawn[self.rng.random_range(0..self.drawn.len())];
                self.has_room(peer, other, &fits).then_some(other)
            });
            // Few are left: each is looked at.
            let other = drawn.or_else(|| {
                let mut left = self.drawn.iter().copied().filter(|_| all);
                left.find(|other| self.has_room(peer, *other, &fits))
            });
            let Some(other) = other else { return };
            wanted -= 1;
            if let Some(third) = (wanted > 0).then(|| self.replaceable(peer, other, &fits)).flatten() {
                self.part(other, third);
                self.link(peer, third);
                let is_near = self.are_near(peer, third);
                wanted -= usize::from(self.members.get(&third).is_some_and(|third| fits(third, is_near)));
            }
            self.link(peer, other);
        }
    }

    /// A link of a peer that has enough of them, with another one that has enough and that a newcomer does not know.
    fn replaceable(&mut self, newcomer: PeerId, peer: PeerId, fits: impl Fn(&Member, bool) -> bool) -> Option<PeerId> {
        let enough = self.wanted(newcomer);
        if self.links_of(peer) < enough.max(self.wanted(peer)) {
            return None;
        }
        let is_near = self.are_near(newcomer, peer);
        // Near peers share out what comes from afar, so as many as may be all know each other: of those that have few near
        // ones a far one parts, if they have more of these than they want.
        let parts_near = |one: PeerId| self.near_links_of(one) >= self.wanted(one) * NEAR / OF;
        let far = |one: PeerId| self.links_of(one) - self.near_links_of(one);
        let enough_far = |one: PeerId| self.wanted(one) * (OF - NEAR) / OF;
        let parts_far = |one: PeerId| far(one) > enough_far(one);
        let near_parts = is_near && parts_near(peer);
        let far_parts = !is_near || !near_parts && parts_far(peer) && far(newcomer) < 2 * enough_far(newcomer);
        let has_enough = |other: &PeerId| {
            let is_other_near = self.are_near(peer, *other);
            self.are_near(newcomer, *other) == is_other_near
                && self.links_of(*other) >= enough.max(self.wanted(*other))
                && if is_other_near {
                    near_parts && parts_near(*other) && self.has_room(newcomer, *other, &fits)
                } else {
                    far_parts && self.has_room(newcomer, *other, |_, _| true)
                }
        };
        let third: Vec<PeerId> = self.members[&peer].links.iter().filter(|other| has_enough(other)).copied().collect();
        third.choose(&mut self.rng).copied()
    }

    fn are_near(&self, one: PeerId, other: PeerId) -> bool {
        let (one, other) = (self.members.get(&one), self.members.get(&other));
        one.zip(other).is_none_or(|(one, other)| !one.labels.is_far_from(&other.labels))
    }

    fn near_links_of(&self, peer: PeerId) -> usize {
        self.members.get(&peer).map_or(0, |member| member.near)
    }

    fn links_of(&self, peer: PeerId) -> usize {
        self.members.get(&peer).map_or(0, |member| member.links.len())
    }

    /// Whether another peer may have one more link, with this one.
    fn has_room(&self, peer: PeerId, other: PeerId, fits: impl Fn(&Member, bool) -> bool) -> bool {
        let most = SPREAD * self.wanted(peer).max(self.wanted(other));
        let has_room = |member: &Member| {
            fits(member, self.are_near(peer, other)) && member.links.len() < most && !member.links.contains(&peer)
        };
        other != peer && self.members.get(&other).is_some_and(has_room)
    }
}

#[cfg(test)]
#[path = "introductions_tests.rs"]
mod tests;
