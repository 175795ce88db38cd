//! The simulated fleet: its state, its events, and the loop that lets time pass.
//!
//! Each kind of event is handled in the file that its end of the matter stands in: `downloading`, `serving`,
//! `membership`, `neighbours`. An event changes the state at once; whatever takes time is another event.
//!
//! Not modelled, because it does not decide: connections that must be made first, memory for chunks, stalled streams
//! (`pace`), hashing, and records on disk. Messages are counted and delayed and take no room on the links.

use drizzle_engine::{announce::Announcements, binding::Sent, lease::Lease, slots::Slots};
use drizzle_proto::{ChunkSet, PeerId};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    clock::{Clock, MILLI, Nanos, SECOND},
    disk::Disk,
    event::Event,
    links::{LinkId, Links},
    options::{Options, millis},
    peer::{File, Peer, Share, Transfer, TransferId, peer_info, seed_for},
    scenario::{BEGIN, Leaves, Plan},
    slab::Slab,
    tally::{Log, Tally},
    tracker::Tracker,
};

/// Daemons come up within this long.
const COME_UP: Nanos = SECOND / 2;
/// Progress is counted this often, as the daemon does.
const TICK: Nanos = 200 * MILLI;
/// The tracker looks after its leases this often.
const PULSE: Nanos = 500 * MILLI;
/// A message that was lost comes this much later: TCP repeats it.
const REPEATED_AFTER: Nanos = 200 * MILLI;
/// A fleet in which no chunk is stored for this long has come to an end.
const PATIENCE: Nanos = 60 * SECOND;
/// Bins of the use of the uplinks, for each bound.
const BINS: f64 = 400.0;

/// The fleet.
#[derive(Debug)]
pub struct World {
    pub(super) options: Options,
    /// What is simulated.
    pub plan: Plan,
    pub(super) clock: Clock<Event>,
    /// The network.
    pub links: Links,
    /// The peers, sources first.
    pub peers: Vec<Peer>,
    /// Their ids: each message of news needs the one of its sender, and nothing else of it.
    pub(super) ids: Vec<PeerId>,
    pub(super) files: Vec<File>,
    pub(super) tracker: Tracker,
    pub(super) transfers: Slab<Transfer>,
    /// What was counted.
    pub tally: Tally,
    pub(super) log: Log,
    pub(super) rng: StdRng,
    /// Downloads that have not ended.
    pub(super) active: usize,
    pub(super) stored_at: Nanos,
    /// Links of each rack: to the others, and from them.
    pub zones: Vec<(LinkId, LinkId)>,
    touched: Vec<LinkId>,
}

impl World {
    /// The fleet of a scenario, before its begin.
    pub fn new(options: &Options, log: Log) -> Result<Self, String> {
        let plan = Plan::of(options);
        let clock = Clock::default();
        // A bin of some milliseconds.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let bin = (plan.bound * SECOND as f64 / BINS) as Nanos;
        let mut links = Links::new(options.tolerance, bin);
        let tracker = Tracker::new(options.seed, clock.instant()).map_err(|error| error.to_string())?;
        let file = |nth| File::new(nth, options.chunks, options.chunk_bytes(), options.seed);
        let files = (0..plan.files).map(file).collect::<Result<Vec<_>, _>>()?;
        let mut world_peers = Vec::with_capacity(plan.peers.len());
        for (index, planned) in (0u32..).zip(&plan.peers) {
            let seed = |purpose| seed_for(options.seed, index, purpose);
            let shares = files.iter().enumerate().map(|(nth, file)| Share {
                held: if planned.source_of == Some(nth) {
                    ChunkSet::full(file.count())
                } else {
                    ChunkSet::empty(file.count())
                },
                download: None,
                listeners: Vec::new(),
                unsaid: ChunkSet::empty(file.count()),
                is_scarce: false,
                tells_at: None,
                told_at: None,
            });
            let (up, down) = (links.add(planned.up), links.add(planned.down));
            let mut slots = Slots::new(options.slots as usize);
            slots.limit(options.up_limit.unwrap_or_default());
            let announce = std::time::Duration::from_nanos(millis(options.announce));
            world_peers.push(Peer {
                info: peer_info(index, planned.zone, seed(0))?,
                plan: planned.clone(),
                alive: false,
                up,
                down,
                slots,
                choices: Sent::default(),
                rng: StdRng::seed_from_u64(seed(2)),
                sent: 0.0,
                timer: None,
                disk: Disk::new(options.disk * 1e6),
                lease: Lease::new(seed(1), clock.instant()).gathering(announce),
                announcements: Announcements::default(),
                lease_at: None,
                shares: shares.collect(),
            });
        }
        let zones = plan.thin.map(|thin| (0..plan.zones).map(|_| (links.add(thin), links.add(thin))).collect());
        let active = plan.downloaders().count() * plan.files;
        let mut world = Self {
            options: options.clone(),
            plan,
            clock,
            links,
            ids: world_peers.iter().map(|peer| peer.info.id()).collect(),
            peers: world_peers,
            files,
            tracker,
            transfers: Slab::default(),
            tally: Tally::default(),
            log,
            rng: StdRng::seed_from_u64(options.seed),
            active,
            stored_at: BEGIN,
            zones: zones.unwrap_or_default(),
            touched: Vec::new(),
        };
        world.begin();
        Ok(world)
    }

    fn begin(&mut self) {
        self.clock.plan(PULSE, Event::Pulse);
        for index in (0u32..).take(self.peers.len()) {
            let up = self.rng.random_range(0..COME_UP);
            self.clock.plan(up, Event::Up(index));
            let plan = &self.peers[index as usize].plan;
            if let Leaves::KilledAt(at) = plan.leaves {
                self.clock.plan(at, Event::Kill(index));
            }
            if plan.source_of.is_none() {
                self.clock.plan(plan.begins, Event::Begin(index));
            }
        }
    }

    /// Lets time pass until every download has ended, or nothing goes on any more.
    pub fn run(&mut self) {
        while self.active > 0
            && let Some(event) = self.clock.advance()
        {
            if self.clock.now() > self.stored_at.max(self.last_begin()) + PATIENCE {
                break;
            }
            self.happen(event);
            if self.links.is_unsettled() {
                self.settle();
            }
        }
    }

    fn last_begin(&self) -> Nanos {
        self.plan.peers.last().map_or(BEGIN, |peer| peer.begins)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Up(peer) => self.up(peer),
            Event::Kill(peer) => self.depart(peer),
            Event::Begin(peer) => self.begin_downloads(peer),
            Event::Tick(peer) => self.tick(peer),
            Event::Wake { peer, file } => self.wake(peer, file.into()),
            Event::Uplink(peer) => self.uplink(peer),
            Event::Request(id) => self.requested(id),
            Event::Read(id) => self.send(id),
            Event::Bound(id) => self.bound(id),
            Event::Refused(id, refusal) => self.refused(id, refusal),
            Event::Arrived(id) => self.arrived(id),
            Event::Written(id) => self.written(id),
            Event::Cancelled(id) => self.cancel_heard(id),
            Event::Lease(peer) => self.lease_due(peer),
            Event::Call(peer, call) => self.tracker_called(peer, *call),
            Event::Answer(peer, answer) => self.tracker_answered(peer, *answer),
            Event::Watch(peer) => self.watch(peer),
            Event::Push(watches) => self.push_all(watches),
            Event::Pushed { peer, file, message } => self.pushed(peer, file.into(), *message),
            Event::Tell { peer, file } => self.tell(peer, file.into()),
            Event::Told { peer, file, from, chunks, all } => self.told(peer, file.into(), from, &chunks, all),
            Event::Listen { peer, file, to } => self.listened(peer, file.into(), to),
            Event::Silent { peer, file, from, silence } => self.fell_silent(peer, file.into(), from, silence),
            Event::Neighbours { peer, file } => self.neighbours_due(peer, file.into()),
            Event::Gone(peer) => self.gone(peer),
            Event::Pulse => self.pulse(),
        }
    }

    fn up(&mut self, index: u32) {
        let peer = &mut self.peers[index as usize];
        peer.alive = true;
        // Ticks of a fleet do not come all at once.
        let first = self.clock.now() + self.rng.random_range(0..TICK);
        self.clock.plan(first, Event::Tick(index));
        self.lease_due(index);
    }

    fn tick(&mut self, index: u32) {
        if !self.peers[index as usize].alive {
            return;
        }
        self.count_sent(index);
        for file in 0..self.files.len() {
            self.count(index, file);
        }
        self.clock.plan(self.clock.now() + TICK, Event::Tick(index));
    }

    fn pulse(&mut self) {
        self.tracker.pulse(self.clock.instant());
        self.ring(None);
        self.clock.plan(self.clock.now() + PULSE, Event::Pulse);
    }

    fn settle(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        self.links.settle(self.clock.now(), &mut touched);
        for link in touched.drain(..) {
            self.plan_uplink(link / 2);
        }
        self.touched = touched;
    }

    /// How long a message from this peer takes, to whomever.
    pub(super) fn delay(&mut self, from: u32) -> Nanos {
        let link = self.peers[from as usize].up;
        let mut delay = millis(self.options.latency);
        if self.options.backlog > 0.0 && self.links.flows_on(link).len() > 0 {
            delay += millis(self.options.backlog * 1024.0 / self.links.capacity(link) * 1000.0);
        }
        delay + self.repeated()
    }

    /// What is added to the way of a message that is lost at first.
    pub(super) fn repeated(&mut self) -> Nanos {
        match self.options.loss {
            loss if loss > 0.0 && self.rng.random_bool(loss.min(0.99)) => REPEATED_AFTER,
            _ => 0,
        }
    }

    /// The links between two peers.
    pub(super) fn path(&self, from: u32, to: u32) -> ([LinkId; 4], usize) {
        let (from, to) = (&self.peers[from as usize], &self.peers[to as usize]);
        match (self.zones.get(from.plan.zone), self.zones.get(to.plan.zone)) {
            (Some((out, _)), Some((_, into))) if from.plan.zone != to.plan.zone => ([from.up, *out, *into, to.down], 4),
            _ => ([from.up, to.down, 0, 0], 2),
        }
    }

    /// A peer stops at once, with whatever it was doing.
    pub(super) fn depart(&mut self, index: u32) {
        let peer = &mut self.peers[index as usize];
        if !std::mem::replace(&mut peer.alive, false) {
            return;
        }
        self.log.line(self.clock.now(), || format!("p{index} gone"));
        for share in &mut peer.shares {
            let ended = share.download.take().is_some_and(|download| download.ended.is_none());
            self.active -= usize::from(ended);
        }
        let concerned: Vec<TransferId> = self
            .transfers
            .iter()
            .filter(|(_, transfer)| transfer.from == index || transfer.to == index)
            .map(|(id, _)| id)
            .collect();
        for id in concerned {
            self.break_off(id, index);
        }
        let heard = self.clock.now() + millis(self.options.latency);
        self.clock.plan(heard, Event::Gone(index));
    }

    /// What the decisions of this run are logged to.
    pub fn log(&mut self) -> &mut Log {
        &mut self.log
    }

    /// Events of the virtual clock so far.
    pub fn events(&self) -> u64 {
        self.clock.planned()
    }

    /// The time now, in nanoseconds.
    pub fn now(&self) -> Nanos {
        self.clock.now()
    }
}
