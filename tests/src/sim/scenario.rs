//! The scenarios: which peers there are, when they begin and end, and the bound of each.

use super::{
    bound::{Supply, fluid},
    clock::{Nanos, SECOND},
    options::{Options, Scenario, mbit},
};

/// Downloads begin this long after the daemons, which have their leases by then.
pub const BEGIN: Nanos = 2 * SECOND;

/// Between two peers that begin one after the other (staggered).
const STAGGER: Nanos = SECOND / 2;
/// Every so manieth peer is killed, is slow, or lies.
const TENTH: usize = 10;
/// Racks.
const RACKS: usize = 8;
/// Links of the peers (heterogeneous), in Mbit/s.
const MIX: [f64; 4] = [25.0, 50.0, 100.0, 200.0];

/// When a peer goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Leaves {
    /// It stays.
    Never,
    /// It is killed then.
    KilledAt(Nanos),
    /// It says goodbye when it has sent so many copies of the file.
    AfterCopies(f64),
}

/// One peer.
#[derive(Debug, Clone)]
pub struct PeerPlan {
    /// Uplink, in bytes a second.
    pub up: f64,
    /// Downlink, in bytes a second.
    pub down: f64,
    /// In which rack it stands.
    pub zone: usize,
    /// When it begins to download.
    pub begins: Nanos,
    /// The file that it has from the start, if it is a source.
    pub source_of: Option<usize>,
    /// Whether it serves wrong bytes.
    pub lies: bool,
    /// When it goes.
    pub leaves: Leaves,
    /// The least time that its own download takes, in seconds.
    pub bound: f64,
}

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The sources first.
    pub peers: Vec<PeerPlan>,
    /// Files, each with one source.
    pub files: usize,
    /// Racks.
    pub zones: usize,
    /// Link of each rack, each way, in bytes a second.
    pub thin: Option<f64>,
    /// The least time from the begin to the last peer's end, in seconds.
    pub bound: f64,
}

impl Plan {
    /// Of the scenario that the options name.
    pub fn of(options: &Options) -> Self {
        let source_up = mbit(options.source_up.unwrap_or(options.up));
        let plain = PeerPlan {
            up: mbit(options.up),
            down: mbit(options.down),
            zone: 0,
            begins: BEGIN,
            source_of: None,
            lies: false,
            leaves: Leaves::Never,
            bound: 0.0,
        };
        let files = if options.scenario == Scenario::TwoFiles { 2 } else { 1 };
        let sources = (0..files).map(|file| PeerPlan { up: source_up, source_of: Some(file), ..plain.clone() });
        let peers = vec![plain.clone(); options.peers as usize];
        let peers = sources.chain(peers).collect();
        let mut plan = Self { peers, files, zones: 1, thin: None, bound: 0.0 };
        plan.shape(options);
        for peer in &mut plan.peers {
            (peer.up, peer.down) = (options.up_of(peer.up), options.down_of(peer.down));
        }
        plan.bind(options);
        plan
    }

    /// The peers that download.
    pub fn downloaders(&self) -> impl Iterator<Item = &PeerPlan> {
        self.peers.iter().filter(|peer| peer.source_of.is_none())
    }

    fn shape(&mut self, options: &Options) {
        // Sources come first.
        let (sources, downloaders) = self.peers.split_at_mut(self.files);
        let quick = options.file_bytes() / options.up_of(sources[0].up).min(options.down_of(mbit(options.down)));
        match options.scenario {
            Scenario::Flash | Scenario::TwoFiles => {}
            Scenario::Staggered => {
                for (nth, peer) in downloaders.iter_mut().enumerate() {
                    peer.begins += nth as Nanos * STAGGER;
                }
            }
            Scenario::Heterogeneous => {
                for (nth, peer) in downloaders.iter_mut().enumerate() {
                    let rate = mbit(MIX[nth % MIX.len()]);
                    (peer.up, peer.down) = (rate, rate);
                }
            }
            Scenario::Churn => {
                // Half the time that a peer takes, to the nanosecond.
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                let midway = BEGIN + (quick / 2.0 * SECOND as f64) as Nanos;
                for (nth, peer) in downloaders.iter_mut().enumerate() {
                    match nth % TENTH {
                        3 => peer.leaves = Leaves::KilledAt(midway),
                        7 => (peer.up, peer.down) = (peer.up / 2.0, peer.down / 2.0),
                        _ => {}
                    }
                }
            }
            Scenario::Liars => {
                for peer in downloaders.iter_mut().skip(3).step_by(TENTH) {
                    peer.lies = true;
                }
            }
            Scenario::Racks => {
                self.zones = RACKS;
                self.thin = Some(mbit(options.thin.unwrap_or(options.up)));
                for (nth, peer) in downloaders.iter_mut().enumerate() {
                    peer.zone = nth % RACKS;
                }
            }
            Scenario::SourceLeaves => sources[0].leaves = Leaves::AfterCopies(options.leaves_after),
        }
    }

    fn bind(&mut self, options: &Options) {
        let wire = options.file_bytes() * options.overhead;
        let seconds = |at: Nanos| at.saturating_sub(BEGIN) as f64 / SECOND as f64;
        let source = self.peers[0].up;
        let supplies: Vec<Supply> = self.peers.iter().map(|peer| supply_of(peer, wire, &seconds)).collect();
        let stays = |peer: &&PeerPlan| !matches!(peer.leaves, Leaves::KilledAt(_));
        let receivers = self.downloaders().filter(stays).count();
        let slowest = self.downloaders().filter(stays).map(|peer| peer.down).fold(f64::INFINITY, f64::min);
        // Every file comes down the same link, and leaves a source of its own.
        let files = self.files as f64;
        let mut bound = fluid(wire * files, source * files, slowest, receivers, &supplies);
        if let Some(thin) = self.thin.filter(|_| self.downloaders().any(|peer| peer.zone > 0)) {
            bound = bound.max(wire / thin);
        }
        for peer in self.peers.iter_mut().filter(|peer| peer.source_of.is_none()) {
            let begins = seconds(peer.begins);
            // The source has begun to send before a late one begins.
            peer.bound = (wire * files / peer.down).max(wire / source - begins);
            if let Some(thin) = self.thin.filter(|_| peer.zone > 0) {
                peer.bound = peer.bound.max(wire / thin);
            }
            if stays(&&*peer) {
                bound = bound.max(begins + peer.bound);
            }
        }
        self.bound = bound;
    }
}

fn supply_of(peer: &PeerPlan, file: f64, seconds: &impl Fn(Nanos) -> f64) -> Supply {
    let mut supply =
        Supply { from: if peer.source_of.is_some() { 0.0 } else { seconds(peer.begins) }, ..Supply::steady(peer.up) };
    match peer.leaves {
        _ if peer.lies => supply.most = 0.0,
        Leaves::Never => {}
        Leaves::KilledAt(at) => supply.until = seconds(at),
        Leaves::AfterCopies(copies) => supply.most = copies * file,
    }
    supply
}
