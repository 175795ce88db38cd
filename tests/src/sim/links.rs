//! Links and what flows over them, shared max-min fair: no flow can get more without taking from one that has less.
//!
//! A change of one flow could move every rate in the network. So rates are kept by a local rule (Bertsekas and
//! Gallager, Data Networks, 6.5): each link has a *share*, which is what it grants to a flow that nothing else limits;
//! a flow runs at the least share on its path. A link whose flows changed computes its share anew from the shares of the
//! others, and only a flow whose rate thereby changes by more than the tolerance makes its other links do so too.
//!
//! What holds once [`Links::settle`] is through (property tests in `tests/tests/sim`), within some tolerances:
//! - no link carries more than its capacity;
//! - each flow has a link on its path that is full and on which no flow is faster.
//!
//! With a tolerance of 2 % an event touches some tens of flows, however many there are. In a large fleet each is
//! somewhere else in memory, so what a look needs of the others (shares, rates, stops, what they carried) lies in arrays
//! of its own, which the processor's caches can hold.

use std::collections::VecDeque;

use super::clock::{Nanos, SECOND};

/// Where a link stands in [`Links`].
pub type LinkId = u32;
/// Where a flow stands in [`Links`]; used anew once it has ended.
pub type FlowId = u32;

/// Most links of a path: own uplink, out of a zone, into a zone, own downlink.
const MOST: usize = 4;

/// Links that are looked at in one go, for each that changed. What is left is looked at in the next one.
const LOOKS: usize = 4096;

#[derive(Debug)]
struct Link {
    capacity: f64,
    flows: Vec<On>,
    /// Waits in `changed`.
    queued: bool,
    /// Stands in `touched`.
    touched: bool,
}

/// A flow on a link.
#[derive(Debug, Clone, Copy)]
struct On {
    flow: FlowId,
    /// The other link of its path, if there is just one.
    other: Option<LinkId>,
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    path: [LinkId; MOST],
    links: usize,
    left: f64,
    /// `left` was true at this time.
    at: Nanos,
    /// Its owner is told when so many bytes are left.
    stop: f64,
    tag: u64,
}

impl Flow {
    fn path(&self) -> &[LinkId] {
        &self.path[..self.links]
    }

    /// When it gets to its stop at this rate.
    fn stops_at(&self, rate: f64) -> Nanos {
        // A nanosecond more rather than less. Without a rate it saturates, which is never.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let takes = ((self.left - self.stop).max(0.0) / rate * SECOND as f64) as Nanos;
        if rate > 0.0 { self.at.saturating_add(takes.saturating_add(1)) } else { Nanos::MAX }
    }

    /// Rounding of times and rates is no reason to wait.
    fn is_due(&self) -> bool {
        self.left <= self.stop + 0.5
    }
}

/// A flow that has come to its stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// Which one.
    pub flow: FlowId,
    /// What its owner calls it.
    pub tag: u64,
    /// Whether nothing is left.
    pub ended: bool,
}

/// All links and flows.
#[derive(Debug)]
pub struct Links {
    links: Vec<Link>,
    /// Of each link, what it grants to a flow that nothing else limits.
    shares: Vec<f64>,
    /// Of each link, the bytes that it has carried.
    carried: Vec<f64>,
    flows: Vec<Flow>,
    /// Of each flow, its rate.
    rates: Vec<f64>,
    /// Of each flow, when it gets to its stop.
    stops: Vec<Nanos>,
    free: Vec<FlowId>,
    tolerance: f64,
    changed: VecDeque<LinkId>,
    /// First links of paths on which a flow's rate or stop changed.
    touched: Vec<LinkId>,
    limits: Vec<f64>,
    /// Bytes that went over first links, by time.
    used: Vec<f64>,
    /// Width of a bin of `used`.
    bin: Nanos,
}

impl Links {
    /// No links yet. A rate that is wrong by less than `tolerance` times itself is left as it is. `bin` is the grain of
    /// [`Links::used`], in nanoseconds.
    pub fn new(tolerance: f64, bin: Nanos) -> Self {
        Self {
            links: Vec::new(),
            shares: Vec::new(),
            carried: Vec::new(),
            flows: Vec::new(),
            rates: Vec::new(),
            stops: Vec::new(),
            free: Vec::new(),
            tolerance,
            changed: VecDeque::new(),
            touched: Vec::new(),
            limits: Vec::new(),
            used: Vec::new(),
            bin: bin.max(1),
        }
    }

    /// Adds a link of so many bytes a second.
    pub fn add(&mut self, capacity: f64) -> LinkId {
        self.links.push(Link { capacity, flows: Vec::new(), queued: false, touched: false });
        self.shares.push(capacity);
        self.carried.push(0.0);
        LinkId::try_from(self.links.len() - 1).unwrap_or(LinkId::MAX)
    }

    /// Bytes a second that a link can carry.
    pub fn capacity(&self, link: LinkId) -> f64 {
        self.links[link as usize].capacity
    }

    /// Bytes that a link has carried, as far as its flows were looked at.
    pub fn carried(&self, link: LinkId) -> f64 {
        self.carried[link as usize]
    }

    /// Flows on a link.
    pub fn flows_on(&self, link: LinkId) -> impl ExactSizeIterator<Item = FlowId> + '_ {
        self.links[link as usize].flows.iter().map(|on| on.flow)
    }

    /// Bytes that went over first links (uplinks) in each bin of time.
    pub fn used(&self) -> &[f64] {
        &self.used
    }

    /// What the owner of a flow calls it.
    pub fn tag(&self, flow: FlowId) -> u64 {
        self.flows[flow as usize].tag
    }

    /// Bytes a second that a flow gets.
    pub fn rate(&self, flow: FlowId) -> f64 {
        self.rates[flow as usize]
    }

    /// The links of a flow.
    pub fn path(&self, flow: FlowId) -> &[LinkId] {
        self.flows[flow as usize].path()
    }

    /// Starts a flow of so many bytes over at most four links. Its owner is told when `stop` bytes are left, or when
    /// none is.
    pub fn start(&mut self, path: &[LinkId], bytes: f64, stop: f64, tag: u64, now: Nanos) -> FlowId {
        let mut links = [0; MOST];
        links[..path.len()].copy_from_slice(path);
        let stop = if stop < bytes { stop } else { 0.0 };
        let flow = Flow { path: links, links: path.len(), left: bytes, at: now, stop, tag };
        let id = match self.free.pop() {
            Some(id) => {
                self.flows[id as usize] = flow;
                (self.rates[id as usize], self.stops[id as usize]) = (0.0, Nanos::MAX);
                id
            }
            None => {
                self.flows.push(flow);
                self.rates.push(0.0);
                self.stops.push(Nanos::MAX);
                FlowId::try_from(self.flows.len() - 1).unwrap_or(FlowId::MAX)
            }
        };
        for &link in path {
            let other = match *path {
                [first, second] if first != second => Some(if link == first { second } else { first }),
                _ => None,
            };
            self.links[link as usize].flows.push(On { flow: id, other });
            self.change(link);
        }
        self.touch(path[0]);
        id
    }

    /// Ends a flow; the bytes that were left.
    pub fn end(&mut self, flow: FlowId, now: Nanos) -> f64 {
        self.advance(flow, now);
        let Flow { path, links, left, .. } = self.flows[flow as usize];
        for &link in &path[..links] {
            let flows = &mut self.links[link as usize].flows;
            // In the order of their beginning, so that the order of a run does not depend on how places are reused.
            flows.retain(|on| on.flow != flow);
            self.change(link);
        }
        self.touch(path[0]);
        self.free.push(flow);
        left
    }

    /// From now on the owner is told when nothing is left.
    pub fn run_out(&mut self, flow: FlowId) {
        self.flows[flow as usize].stop = 0.0;
        self.plan(flow);
        self.touch(self.flows[flow as usize].path[0]);
    }

    /// Bytes of a flow that are still to come.
    pub fn left(&mut self, flow: FlowId, now: Nanos) -> f64 {
        self.advance(flow, now);
        self.flows[flow as usize].left
    }

    /// The next stop of a flow whose first link this is.
    pub fn next_stop(&self, link: LinkId) -> Option<Nanos> {
        self.links[link as usize].flows.iter().map(|on| self.stops[on.flow as usize]).min()
    }

    /// The flows that are at their stop now, of those whose first link this is.
    pub fn stopped(&mut self, link: LinkId, now: Nanos) -> Vec<Stop> {
        let mut stopped = Vec::new();
        for nth in 0..self.links[link as usize].flows.len() {
            let id = self.links[link as usize].flows[nth].flow;
            if self.stops[id as usize] > now {
                continue;
            }
            self.advance(id, now);
            let flow = &self.flows[id as usize];
            if flow.is_due() {
                stopped.push(Stop { flow: id, tag: flow.tag, ended: flow.stop == 0.0 });
            } else {
                self.plan(id);
            }
        }
        stopped
    }

    /// Whether [`Links::settle`] has anything to do.
    pub fn is_unsettled(&self) -> bool {
        !self.changed.is_empty() || !self.touched.is_empty()
    }

    /// Computes the rates anew around what changed. The first links on which a flow's rate changed are added to
    /// `touched`, each once.
    pub fn settle(&mut self, now: Nanos, touched: &mut Vec<LinkId>) {
        let mut looks = LOOKS;
        while looks > 0
            && let Some(link) = self.changed.pop_front()
        {
            looks -= 1;
            self.links[link as usize].queued = false;
            self.look(link, now);
        }
        for &link in &self.touched {
            self.links[link as usize].touched = false;
        }
        touched.append(&mut self.touched);
    }

    fn touch(&mut self, link: LinkId) {
        if !std::mem::replace(&mut self.links[link as usize].touched, true) {
            self.touched.push(link);
        }
    }

    fn change(&mut self, link: LinkId) {
        if !std::mem::replace(&mut self.links[link as usize].queued, true) {
            self.changed.push_back(link);
        }
    }

    /// Computes when a flow gets to its stop.
    fn plan(&mut self, flow: FlowId) {
        self.stops[flow as usize] = self.flows[flow as usize].stops_at(self.rates[flow as usize]);
    }

    fn advance(&mut self, flow: FlowId, now: Nanos) {
        let rate = self.rates[flow as usize];
        let flow = &mut self.flows[flow as usize];
        let (path, links, at) = (flow.path, flow.links, flow.at);
        if now <= at {
            return;
        }
        let seconds = (now - at) as f64 / SECOND as f64;
        let moved = (rate * seconds).min(flow.left);
        flow.left -= moved;
        flow.at = now;
        for &link in &path[..links] {
            self.carried[link as usize] += moved;
        }
        self.note(moved, at, now);
    }

    /// Spreads bytes over the bins that they took.
    fn note(&mut self, bytes: f64, from: Nanos, to: Nanos) {
        let bin = |at: Nanos| usize::try_from(at / self.bin).unwrap_or(usize::MAX);
        let last = bin(to);
        if self.used.len() <= last {
            self.used.resize(last + 1, 0.0);
        }
        if from >= last as Nanos * self.bin {
            self.used[last] += bytes;
            return;
        }
        let first = bin(from);
        let each = bytes / (to - from) as f64;
        for bin in first..=last {
            let (begins, ends) = (bin as Nanos * self.bin, (bin as Nanos + 1) * self.bin);
            self.used[bin] += each * (ends.min(to) - begins.max(from)) as f64;
        }
    }

    /// Computes a link's share, and the rates that follow.
    fn look(&mut self, link: LinkId, now: Nanos) {
        let mut limits = std::mem::take(&mut self.limits);
        limits.clear();
        let at = &self.links[link as usize];
        let share_of = |other: LinkId| self.shares[other as usize];
        limits.extend(at.flows.iter().map(|on| match on.other {
            Some(other) => share_of(other),
            None => {
                let others = self.flows[on.flow as usize].path().iter().filter(|other| **other != link);
                others.fold(f64::INFINITY, |limit, other| limit.min(share_of(*other)))
            }
        }));
        let share = fair_share(at.capacity, &limits);
        self.shares[link as usize] = share;
        for (nth, limit) in limits.iter().enumerate() {
            let id = self.links[link as usize].flows[nth].flow;
            let rate = share.min(*limit);
            let before = self.rates[id as usize];
            if (rate - before).abs() <= self.tolerance * before {
                continue;
            }
            self.advance(id, now);
            self.rates[id as usize] = rate;
            self.plan(id);
            let Flow { path, links, .. } = self.flows[id as usize];
            self.touch(path[0]);
            for &other in path[..links].iter().filter(|other| **other != link) {
                self.change(other);
            }
        }
        self.limits = limits;
    }
}

/// What a link of this capacity grants to a flow that nothing else limits, if each of its flows is limited elsewhere to
/// this. If all are, and the link is not full, it is what one of them could get.
pub fn fair_share(capacity: f64, limits: &[f64]) -> f64 {
    if limits.is_empty() {
        return capacity;
    }
    let mut share = capacity / limits.len() as f64;
    loop {
        let (mut rest, mut free, mut largest) = (capacity, 0u32, 0.0f64);
        for &limit in limits {
            if limit < share {
                rest -= limit;
                largest = largest.max(limit);
            } else {
                free += 1;
            }
        }
        if free == 0 {
            return largest + rest.max(0.0);
        }
        let next = rest / f64::from(free);
        // It only grows; flows whose limit it passes are limited elsewhere.
        if next <= share * (1.0 + 1e-9) {
            return next.max(share);
        }
        share = next;
    }
}
