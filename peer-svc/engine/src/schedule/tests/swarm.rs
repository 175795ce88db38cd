//! A swarm of schedulers: one source, equal full-duplex links, every peer serves what it has stored.
//!
//! The model of the design: a link is shared evenly by the streams on it, four requests per downloader,
//! four upload slots per holder, everyone else told "busy" at once. Time is cut into sixteenths of a
//! chunk time.

use rand::seq::SliceRandom;

use super::*;

const SLOTS: usize = 4;
const TICK: Duration = Duration::from_millis(6);
/// Bytes of a chunk, in units that a whole link moves in one tick.
const CHUNK: f64 = 16.0;

struct Node {
    /// `None` for the source.
    scheduler: Option<Scheduler>,
    rng: StdRng,
    uploads: usize,
    downloads: usize,
}

struct Stream {
    from: usize,
    to: usize,
    fetch: Fetch,
    left: f64,
}

/// Chunk times until every one of `downloaders` has all `chunks`.
fn spread(downloaders: u8, chunks: u32, seed: u64) -> f64 {
    let start = Instant::now();
    let mut order_rng = rng(seed);
    let mut nodes: Vec<Node> = (0..=downloaders)
        .map(|id| {
            let scheduler = (id > 0).then(|| {
                let mut scheduler = Scheduler::new(&full(chunks), limits(SLOTS, SLOTS));
                scheduler.holder_is(info(0), full(chunks));
                for other in (1..=downloaders).filter(|&other| other != id) {
                    scheduler.holder_is(info(other), some(chunks, []));
                }
                scheduler
            });
            Node { scheduler, rng: rng(seed + u64::from(id)), uploads: 0, downloads: 0 }
        })
        .collect();
    let mut streams: Vec<Stream> = Vec::new();
    let mut turn: Vec<usize> = (1..nodes.len()).collect();
    for tick in 0u32.. {
        let now = start + tick * TICK;
        // No peer is always first to ask.
        turn.shuffle(&mut order_rng);
        for &to in &turn {
            while let Some(fetch) = nodes[to].next(now) {
                let from = usize::from(fetch.holder.id().as_bytes()[0]);
                if nodes[from].uploads == SLOTS {
                    nodes[to].end(&fetch, Outcome::Busy, now);
                } else {
                    nodes[from].uploads += 1;
                    nodes[to].downloads += 1;
                    streams.push(Stream { from, to, fetch, left: CHUNK });
                }
            }
        }
        for stream in &mut streams {
            stream.left -= 1.0 / nodes[stream.from].uploads.max(nodes[stream.to].downloads) as f64;
        }
        let (done, running): (Vec<_>, Vec<_>) = streams.into_iter().partition(|stream| stream.left <= 1e-9);
        streams = running;
        for Stream { from, to, fetch, .. } in done {
            nodes[from].uploads -= 1;
            nodes[to].downloads -= 1;
            for loser in nodes[to].end(&fetch, Outcome::Stored, now + TICK) {
                let at = streams.iter().position(|stream| stream.to == to && stream.fetch.id == loser).unwrap();
                let loser = streams.swap_remove(at);
                nodes[loser.from].uploads -= 1;
                nodes[to].downloads -= 1;
                nodes[to].end(&loser.fetch, Outcome::Cancelled, now + TICK);
            }
            let holder = peer(u8::try_from(to).expect("few peers"));
            let others = nodes.iter_mut().enumerate().filter(|&(other, _)| other != to);
            for scheduler in others.filter_map(|(_, node)| node.scheduler.as_mut()) {
                scheduler.holder_added(holder, &some(chunks, [fetch.chunk.get()]));
            }
        }
        if nodes.iter().filter_map(|node| node.scheduler.as_ref()).all(Scheduler::is_complete) {
            return f64::from(tick + 1) / CHUNK;
        }
    }
    unreachable!("the loop ends when all are done");
}

impl Node {
    fn next(&mut self, now: Instant) -> Option<Fetch> {
        self.scheduler.as_mut()?.next(now, &mut self.rng)
    }

    fn end(&mut self, fetch: &Fetch, outcome: Outcome, now: Instant) -> Vec<FetchId> {
        self.scheduler.as_mut().map_or_else(Vec::new, |own| own.finished(fetch.id, outcome, now, &mut self.rng))
    }
}

/// Time over the fluid bound, which for equal links is the time of one copy over one link.
fn ratio(downloaders: u8, chunks: u32, seed: u64) -> f64 {
    spread(downloaders, chunks, seed) / f64::from(chunks)
}

/// Over seeds 1 to 12 the worst ratios are 1.17 and 1.23, so a policy that loses a twentieth of the links' time fails.
#[test]
fn eight_peers_finish_near_the_bound() {
    let ratio = ratio(8, 128, 1);
    assert!((1.0..1.22).contains(&ratio), "{ratio:.3} times the bound");
}

#[test]
fn thirty_two_peers_finish_near_the_bound() {
    let ratio = ratio(32, 128, 1);
    assert!((1.0..1.26).contains(&ratio), "{ratio:.3} times the bound");
}
