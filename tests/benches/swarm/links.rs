//! One source and one downloader over long and lossy links: how fast Drizzle is there, beside plain TCP, and what the
//! daemons need in memory.
//!
//! The source, the downloader and the tracker are network namespaces, and the downloader is at the end of a line: what
//! reaches it has a rate, with a queue of 50 ms before it. Half of the round trip is added to each way, and a lossy link
//! loses packets both ways.
//! Plain TCP is bytes from memory that are thrown away where they arrive: no file, no hash.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use drizzle_tests::{
    Place, Running,
    content::random,
    host::Host,
    line::{Line, Way},
    wait::until_within,
};

use crate::{MIB, machine, median, megabytes, scale::digest, sorted};

/// Bytes that plain TCP is given at a time.
const PIECE: usize = 256 << 10;
/// So long frames wait before the line at the most.
const QUEUE: Duration = Duration::from_millis(50);
/// Where the hosts are.
const NETWORK: &str = "10.9.0.0/24";
/// Where its receiver listens.
const COPY: &str = "10.9.0.3:7500";

/// Measures one pair over long and lossy links, in network namespaces; needs root.
#[derive(Debug, Args)]
pub(crate) struct Links {
    /// Links, each as the milliseconds that its round trip takes more and the per cent of packets that it loses each way
    #[arg(long, value_name = "MS:LOSS,...", value_delimiter = ',', default_value = "0:0,20:0,200:0,0:1,200:1")]
    links: Vec<Link>,
    /// Congestion controls of TCP
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_value = "cubic,bbr")]
    control: Vec<String>,
    /// Rate of the link to the downloader, in Mbit/s; not shaped if 0
    #[arg(long, value_name = "MBIT", default_value_t = 1000)]
    rate: u32,
    /// Size of the file, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    size: u64,
    /// Size of a chunk, as `peer-cli share` takes it; by the size of the file if not given
    #[arg(long, value_name = "SIZE")]
    chunk_size: Option<String>,
    /// The most that the downloader takes, as `peer-svc --down` takes it
    #[arg(long, value_name = "RATE")]
    down: Option<String>,
    /// Seconds after which a transfer is cut off: what came by then counts
    #[arg(long, value_name = "S", default_value_t = 30)]
    seconds: u64,
    /// Connections of plain TCP, each number measured by itself
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_values_t = [1, 8])]
    plain: Vec<usize>,
    /// How often everything is measured; the median counts
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// What cargo says to a benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// A link, beside its rate.
#[derive(Debug, Clone, Copy)]
struct Link {
    round_trip: Duration,
    /// Per cent.
    loss: f64,
}

impl FromStr for Link {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':').and_then(|(millis, loss)| Some((millis.parse().ok()?, loss.parse().ok()?)));
        let link = parts.map(|(millis, loss)| Self { round_trip: Duration::from_millis(millis), loss });
        link.filter(|link| link.round_trip <= Duration::from_secs(2) && (0.0..=20.0).contains(&link.loss)).ok_or_else(
            || "give the milliseconds of a round trip, up to 2000, and per cent of loss, up to 20: 200:1".to_owned(),
        )
    }
}

impl Link {
    /// As it is given.
    fn option(self) -> String {
        format!("{}:{}", self.round_trip.as_millis(), self.loss)
    }

    fn name(self) -> String {
        let Self { round_trip, loss } = self;
        match (round_trip.as_millis(), loss > 0.0) {
            (0, false) => "as it is".to_owned(),
            (0, true) => format!("{loss} % lost"),
            (millis, false) => format!("+{millis} ms"),
            (millis, true) => format!("+{millis} ms, {loss} % lost"),
        }
    }
}

/// What was measured of one link.
#[derive(Debug, Clone)]
struct Pair {
    /// MB/s, from the command to its end.
    rate: f64,
    /// Most memory that the source and the downloader had resident, in MiB.
    peak: (f64, f64),
    /// MB/s of plain TCP, with each number of connections.
    plain: Vec<f64>,
}

impl Links {
    /// Measures, and gives the table; `None`, once said why, if this machine cannot shape links.
    pub(crate) async fn measure(&self) -> Option<String> {
        let mut rows: Vec<(Link, &str, Vec<Pair>)> = Vec::new();
        for &link in &self.links {
            for control in &self.control {
                // Said where it is not there.
                if Host::new(&[])?.congestion_control(NETWORK, "lo", control) {
                    rows.push((link, control, Vec::new()));
                }
            }
        }
        for run in 1..=self.runs {
            for (link, control, pairs) in &mut rows {
                eprintln!("bench: run {run} of {}, {}, {control}", self.runs, link.name());
                let (rate, peak) = self.drizzle(*link, control).await?;
                let plain = self.plain.iter().map(|connections| self.plain(*link, control, *connections));
                let pair = Pair { rate, peak, plain: plain.collect::<Option<_>>()? };
                eprintln!("bench: {pair:.0?}");
                pairs.push(pair);
            }
        }
        Some(self.table(&rows))
    }

    fn table(&self, rows: &[(Link, &str, Vec<Pair>)]) -> String {
        let list = |numbers: &[usize]| numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let buffer = |name: &str| {
            let text = fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
            text.split_whitespace().last().and_then(|most| most.parse::<u64>().ok()).unwrap_or_default() / MIB
        };
        let mut text = format!(
            "{}, {}; {}; medians of {} runs (lowest to highest). TCP's buffers here grow to {} MiB at a sender and \
             {} MiB at a receiver.\n\
             Made by `tests/bench links --links {} --control {} --rate {} --size {}{}{} --seconds {} --plain {} --runs {}`.\n\n\
             | link | control | Drizzle, MB/s | memory, source / downloader |",
            machine::processor(),
            machine::cores(),
            machine::today(),
            self.runs,
            buffer("tcp_wmem"),
            buffer("tcp_rmem"),
            self.links.iter().map(|link| link.option()).collect::<Vec<_>>().join(","),
            self.control.join(","),
            self.rate,
            self.size,
            self.chunk_size.iter().map(|size| format!(" --chunk-size {size}")).collect::<String>(),
            self.down.iter().map(|rate| format!(" --down {rate}")).collect::<String>(),
            self.seconds,
            list(&self.plain),
            self.runs,
        );
        for connections in &self.plain {
            text += &format!(" TCP over {connections}, MB/s |");
        }
        text += &format!("\n{}|\n", "|---".repeat(4 + self.plain.len()));
        for (link, control, pairs) in rows {
            let spread = |of: &dyn Fn(&Pair) -> f64| {
                let values = sorted(pairs, of);
                let at = |value: Option<&f64>| figure(value.copied().unwrap_or_default());
                format!("{} ({} to {})", at(median(&values).as_ref()), at(values.first()), at(values.last()))
            };
            let middle = |of: &dyn Fn(&Pair) -> f64| median(&sorted(pairs, of)).unwrap_or_default();
            text += &format!(
                "| {} | {control} | {} | {:.0} / {:.0} MiB |",
                link.name(),
                spread(&|pair| pair.rate),
                middle(&|pair| pair.peak.0),
                middle(&|pair| pair.peak.1),
            );
            for nth in 0..self.plain.len() {
                text += &format!(" {} |", spread(&|pair| pair.plain[nth]));
            }
            text += "\n";
        }
        text
    }

    /// A tracker, a source and a downloader, the last at the end of such a line.
    fn hosts(&self, link: Link, control: &str) -> Option<(Line, Vec<Host>)> {
        let (switch, hosts) = Host::numbered(3)?;
        for host in &hosts {
            if !host.congestion_control(NETWORK, "eth0", control) {
                return None;
            }
            // Each packet by itself, as on a wire.
            host.ip("link set eth0 gso_max_segs 1");
        }
        let rate = (self.rate > 0).then_some(f64::from(self.rate) * 1e6 / 8.0);
        let way = Way { rate, queue: QUEUE, delay: link.round_trip / 2, loss: link.loss / 100.0 };
        let line = Line::new(switch, "port2", &hosts[2], way, Way { rate: None, ..way })?;
        Some((line, hosts))
    }

    /// A share and a download of it; MB/s, and the memory of both ends in MiB.
    async fn drizzle(&self, link: Link, control: &str) -> Option<(f64, (f64, f64))> {
        let (_line, hosts) = self.hosts(link, control)?;
        let place = Place::new();
        let _tracker = place.tracker(&hosts[0], &[]).await;
        let options = ["--tracker", "10.9.0.1:7400", "--no-watch"];
        let source = place.peer(&hosts[1], "source", &options).await;
        let down: Vec<&str> = self.down.iter().flat_map(|rate| ["--down", rate]).collect();
        let receiver = place.peer(&hosts[2], "receiver", &[&options[..], &down].concat()).await;
        let (file, size) = (place.path("source/file"), self.size * MIB);
        let bytes = usize::try_from(size).expect("a size that fits into memory");
        fs::write(&file, random(self.size, bytes)).expect("the file can be written");
        let chunk_size = self.chunk_size.iter().flat_map(|size| ["--chunk-size", size]);
        let share: Vec<&str> = ["share", &file].into_iter().chain(chunk_size).collect();
        place.cli(&hosts[1], &share).await.expect(0);

        let (before, begun) = (hosts[2].came_in("eth0"), Instant::now());
        let mut download = hosts[2].cli(&["download", "file"], &place.logs());
        let has_ended = self.ended(&mut download).await;
        let elapsed = begun.elapsed();
        let came = if has_ended { size } else { hosts[2].came_in("eth0") - before };
        let peak = [&source, &receiver].map(|daemon| megabytes(daemon.peak_memory()) / megabytes(MIB));
        if has_ended {
            download.ended().await.expect(0);
            assert_eq!(digest(place.path("receiver/file").as_ref()), digest(file.as_ref()), "it is what was shared");
        }
        Some((megabytes(came) / elapsed.as_secs_f64(), (peak[0], peak[1])))
    }

    /// Whether a download ends before it is cut off.
    async fn ended(&self, download: &mut Running) -> bool {
        let cut_off = Instant::now() + Duration::from_secs(self.seconds);
        let deadline = Duration::from_secs(2 * self.seconds + 10);
        until_within(deadline, "the end of a download", async || {
            if download.has_ended() {
                return Some(true);
            }
            (Instant::now() >= cut_off).then_some(false)
        })
        .await
    }

    /// As many bytes over plain TCP; MB/s.
    fn plain(&self, link: Link, control: &str, connections: usize) -> Option<f64> {
        let (_line, hosts) = self.hosts(link, control)?;
        let (left, came) = (AtomicU64::new(self.size * MIB), AtomicU64::new(0));
        let cut_off = Instant::now() + Duration::from_secs(self.seconds);
        let listener = hosts[2].within(|| TcpListener::bind(COPY)).expect("the port is free");
        let begun = Instant::now();
        let connect = |_| thread::spawn(|| TcpStream::connect(COPY).expect("the receiver listens"));
        // A thread is where the one is that started it.
        let senders: Vec<_> = hosts[1].within(|| (0..connections).map(connect).collect());
        thread::scope(|scope| {
            for sender in senders {
                let socket = sender.join().expect("it is connected");
                scope.spawn(|| send(socket, &left));
                let (socket, _) = listener.accept().expect("it is connected");
                scope.spawn(|| receive(socket, &came, cut_off));
            }
        });
        let elapsed = begun.elapsed();
        Some(megabytes(came.into_inner()) / elapsed.as_secs_f64())
    }
}

/// Sends pieces of what is left, until nothing is or the receiver wants no more.
fn send(mut socket: TcpStream, left: &AtomicU64) {
    let piece = vec![0; PIECE];
    let take = |left: u64| left.checked_sub(PIECE as u64);
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
        if socket.write_all(&piece).is_err() {
            return;
        }
    }
}

/// Counts what comes, until the end or until it is cut off.
fn receive(mut socket: TcpStream, came: &AtomicU64, cut_off: Instant) {
    let mut piece = vec![0; PIECE];
    loop {
        let left = cut_off.saturating_duration_since(Instant::now());
        if left.is_zero() || socket.set_read_timeout(Some(left)).is_err() {
            break;
        }
        match socket.read(&mut piece) {
            Ok(0) | Err(_) => break,
            Ok(read) => came.fetch_add(read as u64, Ordering::Relaxed),
        };
    }
    // A sender that still writes hears of it.
    let _ = socket.shutdown(Shutdown::Both);
}

/// A rate for a person: a slow one with more figures.
fn figure(value: f64) -> String {
    if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}
