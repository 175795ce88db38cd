//! One source and N downloaders on hosts of their own with equal, slow links: how near the distribution comes to the
//! time that the links allow at best.
//!
//! Each host is a network namespace; `tc` shapes what leaves it and what reaches it. The tracker's links are not shaped:
//! what it sends is little, and no part of the bound.

use std::{
    fs,
    time::{Duration, Instant},
};

use clap::Args;
use drizzle_tests::{
    Place, Running,
    content::random,
    host::{Host, Shape},
    process::Process,
    sim::bound::{Supply, fluid},
    wait::DEADLINE,
};
use tokio::task::{JoinSet, LocalSet};

use crate::{MIB, machine, median, scale::digest, sorted};

/// Bytes of a file among the bytes on the wire: TCP with timestamps over Ethernet.
const PAYLOAD: f64 = 1448.0 / 1514.0;
/// At most so many hosts are on one network.
const MOST: usize = 200;

/// Measures swarms over links of equal rate, in network namespaces; needs root.
#[derive(Debug, Args)]
pub(crate) struct Sweep {
    /// Numbers of downloaders, each measured in turn
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_values_t = [8, 16], value_parser = parse_peers)]
    peers: Vec<usize>,
    /// Rate of each link, each way, in Mbit/s
    #[arg(long, value_name = "MBIT", default_value_t = 25.0, value_parser = parse_rate)]
    rate: f64,
    /// Uplink of the source, in Mbit/s; as the others if not given
    #[arg(long, value_name = "MBIT", value_parser = parse_rate)]
    source: Option<f64>,
    /// Size of the file, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    size: u64,
    /// Size of a chunk, as `peer-cli share` takes it; by the size of the file if not given
    #[arg(long, value_name = "SIZE")]
    chunk_size: Option<String>,
    /// How often everything is measured; the median counts
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// What cargo says to a benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn parse_peers(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|peers| (1..=MOST).contains(peers)).ok_or_else(|| format!("give 1 to {MOST} downloaders"))
}

fn parse_rate(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|rate| (0.1..=10_000.0).contains(rate))
        .ok_or_else(|| "give 0.1 to 10000 Mbit/s".to_owned())
}

/// One distribution.
#[derive(Debug, Clone)]
struct Distribution {
    /// Seconds from the start until each has the file, in order.
    ended: Vec<f64>,
    /// Copies of the file that left the source's interface, with all headers.
    copies: f64,
    /// Share of all processors that was in use.
    load: f64,
}

impl Sweep {
    /// Measures, and gives the table; `None`, once said why, if this machine cannot shape links.
    pub(crate) async fn measure(&self) -> Option<String> {
        let source = self.source.unwrap_or(self.rate);
        let numbers: Vec<String> = self.peers.iter().map(ToString::to_string).collect();
        let mut text = format!(
            "{}, {}; {}; medians of {} runs (lowest to highest).\n\
             Made by `tests/bench swarm --peers {} --rate {} --source {source} --size {}{} --runs {}`.\n\n\
             | downloaders | time over the bound | last over median | copies on the source's link | processors in use |\n\
             |---|---|---|---|---|\n",
            machine::processor(),
            machine::cores(),
            machine::today(),
            self.runs,
            numbers.join(","),
            self.rate,
            self.size,
            self.chunk_size.iter().map(|size| format!(" --chunk-size {size}")).collect::<String>(),
            self.runs,
        );
        let mut rows = vec![Vec::new(); self.peers.len()];
        for run in 1..=self.runs {
            for (&peers, row) in self.peers.iter().zip(&mut rows) {
                eprintln!("bench: run {run} of {}, {peers} downloaders", self.runs);
                row.push(self.distribute(peers).await?);
            }
        }
        for (&peers, row) in self.peers.iter().zip(&rows) {
            let bound = self.bound(peers);
            let ratios = sorted(row, |one| last(one) / bound);
            let tails = sorted(row, |one| last(one) / median(&one.ended).unwrap_or(f64::NAN));
            let copies = sorted(row, |one| one.copies);
            let loads = sorted(row, |one| one.load);
            let middle = |values: &[f64]| median(values).unwrap_or_default();
            text += &format!(
                "| {peers} | {:.2} ({:.2} to {:.2}) | {:.2} | {:.2} | {:.0} % |\n",
                middle(&ratios),
                ratios.first().copied().unwrap_or_default(),
                ratios.last().copied().unwrap_or_default(),
                middle(&tails),
                middle(&copies),
                100.0 * middle(&loads),
            );
        }
        Some(text)
    }

    /// Seconds that the links allow at best.
    #[allow(clippy::cast_precision_loss, reason = "figures for a person")]
    fn bound(&self, peers: usize) -> f64 {
        let payload = |mbit: f64| mbit * 1e6 / 8.0 * PAYLOAD;
        let (source, rate) = (payload(self.source.unwrap_or(self.rate)), payload(self.rate));
        let mut supplies = vec![Supply::steady(rate); peers];
        supplies.push(Supply::steady(source));
        fluid((self.size * MIB) as f64, source, rate, peers, &supplies)
    }

    #[allow(clippy::cast_precision_loss, reason = "figures for a person")]
    async fn distribute(&self, peers: usize) -> Option<Distribution> {
        // The tracker, the source, and the downloaders.
        let (switch, hosts) = Host::numbered(peers + 2)?;
        for (n, host) in hosts.iter().enumerate().skip(1) {
            let up = if n == 1 { self.source.unwrap_or(self.rate) } else { self.rate };
            let shaped =
                |host: &Host, interface: &str, rate: f64| host.shape(interface, Shape::fast(&format!("{rate}mbit")));
            if !shaped(host, "eth0", up) || !shaped(&switch, &format!("port{n}"), self.rate) {
                return None;
            }
        }
        let place = Place::new();
        let tracker = place.tracker(&hosts[0], &[]).await;
        let options = ["--tracker", "10.9.0.1:7400", "--no-watch"];
        let mut daemons = Vec::new();
        for (n, host) in hosts.iter().enumerate().skip(1) {
            daemons.push(place.peer(host, &n.to_string(), &options).await);
        }
        let file = place.path("1/file");
        let bytes = usize::try_from(self.size * MIB).expect("a size that fits into memory");
        fs::write(&file, random(self.size, bytes)).expect("the file can be written");
        let chunk_size = self.chunk_size.iter().flat_map(|size| ["--chunk-size", size]);
        let share: Vec<&str> = ["share", &file].into_iter().chain(chunk_size).collect();
        place.cli(&hosts[1], &share).await.expect(0);

        let cpu = || daemons.iter().chain([&tracker]).map(Process::cpu_time).sum();
        let (before, sent): (Duration, u64) = (cpu(), hosts[1].sent("eth0"));
        let (begun, deadline) = (Instant::now(), DEADLINE.max(Duration::from_secs_f64(10.0 * self.bound(peers))));
        let (local, mut downloads) = (LocalSet::new(), JoinSet::new());
        for host in &hosts[2..] {
            let download = host.cli(&["download", "file"], &place.logs());
            downloads.spawn_local_on(seconds_until_ended(download, begun, deadline), &local);
        }
        let mut ended = local.run_until(downloads.join_all()).await;
        let (elapsed, after) = (begun.elapsed(), cpu());
        let copies = (hosts[1].sent("eth0") - sent) as f64 / (self.size * MIB) as f64;
        ended.sort_by(f64::total_cmp);

        let expected = digest(file.as_ref());
        for n in 2..peers + 2 {
            assert_eq!(digest(place.path(&format!("{n}/file")).as_ref()), expected, "what arrived is what was shared");
        }
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
        let load = after.saturating_sub(before).as_secs_f64() / elapsed.as_secs_f64() / cores;
        Some(Distribution { ended, copies, load })
    }
}

async fn seconds_until_ended(download: Running, begun: Instant, deadline: Duration) -> f64 {
    download.ended_within(deadline).await.expect(0);
    begun.elapsed().as_secs_f64()
}

fn last(distribution: &Distribution) -> f64 {
    distribution.ended.last().copied().unwrap_or_default()
}
