//! What is said of a run. The same run gives the same text, byte for byte.

use std::fmt;

use super::{
    clock::SECOND,
    options::Options,
    scenario::{BEGIN, Leaves},
    tally::{Tally, Traffic},
    world::World,
};

/// How one downloading peer fared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fared {
    /// Uplink, in bytes a second.
    pub up: f64,
    /// When it began, in seconds from the begin of the first.
    pub began: f64,
    /// How long its download took, in seconds; `None` if it did not end.
    pub took: Option<f64>,
    /// The least time that it takes, in seconds.
    pub bound: f64,
}

impl Fared {
    /// When it was done, in seconds from the begin of the first.
    pub fn ended(&self) -> Option<f64> {
        self.took.map(|took| self.began + took)
    }

    /// Its time over its own bound.
    pub fn ratio(&self) -> Option<f64> {
        self.took.map(|took| took / self.bound)
    }
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// What was simulated, in words.
    pub title: String,
    /// Least time from the begin to the last end, in seconds.
    pub bound: f64,
    /// The peers that downloaded and were not killed.
    pub peers: Vec<Fared>,
    /// Copies of a file that each source sent.
    pub copies: Vec<f64>,
    /// Copies of the file that came into each rack over its thin link; the source's rack first.
    pub across: Vec<f64>,
    /// Share of all uplinks that was in use, by time; bins of `bin` seconds from the begin.
    pub used: Vec<f64>,
    /// Width of a bin of `used`, in seconds.
    pub bin: f64,
    /// What was counted.
    pub tally: Tally,
    /// Events of the virtual clock.
    pub events: u64,
    /// Peers in all.
    pub fleet: usize,
}

impl Report {
    /// Of a world that has come to its end.
    pub fn of(options: &Options, world: &mut World) -> Self {
        let wire = options.file_bytes() * options.overhead;
        let bin = world.plan.bound / 400.0;
        let (mut peers, mut copies) = (Vec::new(), Vec::new());
        for (index, peer) in world.peers.iter().enumerate() {
            if peer.plan.source_of.is_some() {
                copies.push(world.links.carried(peer.up) / wire);
            } else if !matches!(peer.plan.leaves, Leaves::KilledAt(_)) {
                let took = world.ends(index).into_iter().try_fold(0.0f64, |last, took| Some(last.max(took?)));
                let began = (peer.plan.begins - BEGIN) as f64 / SECOND as f64;
                peers.push(Fared { up: peer.plan.up, began, took, bound: peer.plan.bound });
            }
        }
        let capacity: f64 = world.peers.iter().map(|peer| peer.plan.up).sum();
        let first = BEGIN as f64 / SECOND as f64 / bin;
        // A bin's number.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let first = first as usize;
        let used = world.links.used().iter().skip(first).map(|bytes| bytes / (capacity * bin));
        let (seed, scenario) = (options.seed, options.scenario);
        let known = match options.neighbours {
            0 => "all holders".to_owned(),
            count => format!("{count} neighbours"),
        };
        let title = format!(
            "{scenario:?}: {} peers x {} chunks of {} KiB, {}/{} Mbit/s, {known}, seed {seed}",
            options.peers, options.chunks, options.chunk_size, options.up, options.down
        );
        Self {
            title,
            bound: world.plan.bound,
            peers,
            copies,
            across: world.zones.iter().map(|(_, into)| world.links.carried(*into) / wire).collect(),
            used: used.collect(),
            bin,
            tally: world.tally,
            events: world.events(),
            fleet: world.peers.len(),
        }
    }

    /// Whether every peer has every file.
    pub fn is_complete(&self) -> bool {
        self.peers.iter().all(|peer| peer.took.is_some())
    }

    /// When each peer was done, in seconds from the begin of the first, in order; those that were not are left out.
    pub fn ends(&self) -> Vec<f64> {
        sorted(self.peers.iter().filter_map(Fared::ended))
    }

    /// The time of the last peer over the bound; infinite if one did not end.
    pub fn ratio(&self) -> f64 {
        if self.is_complete() { self.ends().last().copied().unwrap_or(0.0) / self.bound } else { f64::INFINITY }
    }

    /// The time of the last peer over the median; infinite if none ended.
    pub fn last_over_median(&self) -> f64 {
        let ends = self.ends();
        ends.last().map_or(f64::INFINITY, |last| last / median(&ends))
    }

    /// The times of the peers over their own bounds, in order.
    pub fn own_ratios(&self) -> Vec<f64> {
        sorted(self.peers.iter().filter_map(Fared::ratio))
    }

    /// Use of the uplinks in each tenth of the time until the last end, from 0 to 1.
    pub fn deciles(&self) -> Vec<f64> {
        let last = self.ends().last().copied().unwrap_or(0.0);
        // A number of bins.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let bins = ((last / self.bin).ceil() as usize).min(self.used.len());
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
        (0..10).map(|tenth| mean(&self.used[bins * tenth / 10..bins * (tenth + 1) / 10])).collect()
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The middle one of values in order; 0 of none.
pub fn median(values: &[f64]) -> f64 {
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// A number with two decimals for each of some.
fn listed(values: &[f64]) -> String {
    values.iter().map(|value| format!("{value:.2}")).collect::<Vec<_>>().join(" ")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        let (ends, own) = (self.ends(), self.own_ratios());
        let (first, last) = (ends.first().copied().unwrap_or(0.0), ends.last().copied().unwrap_or(0.0));
        match self.is_complete() {
            true => writeln!(f, "ratio to the bound    {:.3}   ({last:.2} s over {:.2} s)", self.ratio(), self.bound)?,
            false => writeln!(
                f,
                "ratio to the bound    none: {} of {} peers did not end (bound {:.2} s)",
                self.peers.len() - ends.len(),
                self.peers.len(),
                self.bound
            )?,
        }
        writeln!(f, "last over median      {:.3}", self.last_over_median())?;
        writeln!(f, "spread                first {first:.2} s, median {:.2} s, last {last:.2} s", median(&ends))?;
        let worst = own.last().copied().unwrap_or(0.0);
        writeln!(f, "over own bound        median {:.3}, worst {worst:.3}", median(&own))?;
        for (up, ratios) in self.by_link() {
            let worst = ratios.last().copied().unwrap_or(0.0);
            writeln!(f, "  {:>5.0} Mbit/s        median {:.3}, worst {worst:.3}", up / 125_000.0, median(&ratios))?;
        }
        writeln!(f, "source copies         {}", listed(&self.copies))?;
        if !self.across.is_empty() {
            writeln!(f, "copies into racks     {}", listed(&self.across))?;
        }
        writeln!(f, "uplink use, deciles   {}", listed(&self.deciles()))?;
        let peers = self.fleet as f64;
        let mut traffic = |what: &str, Traffic { messages, bytes }: Traffic| {
            let (messages, kib) = (messages as f64 / peers, bytes as f64 / peers / 1024.0);
            writeln!(f, "{what:<22}{messages:.0} messages, {kib:.1} KiB a peer")
        };
        let Tally { to_tracker, from_tracker, news, requests, .. } = self.tally;
        traffic("to the tracker", to_tracker)?;
        traffic("from the tracker", from_tracker)?;
        traffic("news of neighbours", news)?;
        traffic("requests", requests)?;
        let Tally { fetches, granted, busy, failed, cancelled, caught, .. } = self.tally;
        writeln!(
            f,
            "decisions             {fetches} fetches, {granted} granted, {busy} busy, {cancelled} cancelled, {failed} failed, {caught} wrong"
        )?;
        writeln!(f, "events                {}", self.events)
    }
}

impl Report {
    /// Ratios to the own bound by uplink, where there are several kinds.
    fn by_link(&self) -> Vec<(f64, Vec<f64>)> {
        let mut links = sorted(self.peers.iter().map(|peer| peer.up));
        links.dedup();
        if links.len() < 2 {
            return Vec::new();
        }
        let of = |up: f64| sorted(self.peers.iter().filter(move |peer| peer.up == up).filter_map(Fared::ratio));
        links.into_iter().map(|up| (up, of(up))).collect()
    }
}
