//! How many bytes go at which moment under a limit: a token bucket, shared fairly.
//!
//! Each *flow* (a requester, a download) waits with some wishes, in order, each for some bytes. While there is a limit,
//! wishes are granted in portions, each to the waiting flow that had least for its weight (start-time fair queueing,
//! P. Goyal et al., 1996). Without one every wish is granted at once.
//!
//! What holds (each line has a property test):
//! - over any stretch of time no more goes than the rate lets through in it and one [`burst`]: nothing else is saved up,
//!   however long nobody wants anything. (A wish for more than a [message](message_size) is granted with its last portion;
//!   the ones before it count from when they were due.)
//! - while some flow waits all the time, no less goes than the rate lets through, but for one portion;
//! - flows that wait all the time get bytes in proportion to their weights, within two portions each; one that was idle
//!   neither catches up nor is in the way, and none starves;
//! - a changed rate counts from the moment of its change, and takes no flow's turn away;
//! - of one flow the wishes are granted in the order of asking;
//! - [`Limiter::next_at`] is the moment at which there is something to grant, and not a later one.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use drizzle_proto::{RateLimit, limits::MESSAGE_SIZE};

/// So much of a second's rate is one message: little enough for a low limit to be smooth.
const MESSAGE_MILLIS: u64 = 25;
/// So many messages may go at once, so that a timer that is late costs no share of the rate.
const MESSAGES: u64 = 2;
/// Messages have this many bytes at least, on average: see `verify` in the daemon.
const LEAST_MESSAGE: u64 = 4 << 10;
/// Tokens are counted in billionths of a byte, so that no share of a rate is lost between two looks.
const NANOS: u128 = 1_000_000_000;
/// Shares of time are counted in bytes times this, divided by a weight.
const SCALE: u128 = 1 << 20;

/// Bytes that go at once under a limit: what its rate lets through in 50 ms, and two small messages at least.
pub fn burst(limit: RateLimit) -> u64 {
    let rate = limit.bytes_per_second().unwrap_or(u64::MAX);
    (rate / 1000).saturating_mul(MESSAGE_MILLIS).max(LEAST_MESSAGE).saturating_mul(MESSAGES)
}

/// Bytes of one message under a limit: half a burst at most.
pub fn message_size(limit: RateLimit) -> usize {
    usize::try_from(burst(limit) / MESSAGES).unwrap_or(usize::MAX).min(MESSAGE_SIZE)
}

/// Names one wish; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wish(u64);

#[derive(Debug)]
struct Flow {
    weight: u64,
    /// What it had, in bytes by its weight; compared with `Limiter::turn`.
    had: u128,
    /// With the bytes that are left of each.
    wishes: VecDeque<(Wish, u64)>,
}

/// One limit, and the flows that are under it.
#[derive(Debug)]
pub struct Limiter<K> {
    limit: RateLimit,
    /// What may go at `at`, in billionths of a byte.
    tokens: u128,
    at: Instant,
    /// Where the flow stands that was served last.
    turn: u128,
    next: u64,
    /// Those that wait, and those that had more than the others of late.
    flows: BTreeMap<K, Flow>,
}

impl<K: Ord + Clone> Limiter<K> {
    /// No flow yet. A burst may go at once.
    pub fn new(limit: RateLimit, now: Instant) -> Self {
        let tokens = full(limit);
        Self { limit, tokens, at: now, turn: 0, next: 0, flows: BTreeMap::new() }
    }

    /// The limit.
    pub fn limit(&self) -> RateLimit {
        self.limit
    }

    /// Another limit from now on. Call [`Limiter::grant`] then.
    pub fn set(&mut self, limit: RateLimit, now: Instant) {
        self.look(now);
        // Without a limit nothing was counted: what went a moment ago is not known.
        let tokens = if self.limit == RateLimit::UNLIMITED { 0 } else { self.tokens };
        self.limit = limit;
        self.tokens = tokens.min(full(limit));
    }

    /// A flow wants some bytes to go. It has this weight from now on, at least 1; what it had before counts by the weight
    /// that it had then.
    pub fn ask(&mut self, flow: K, weight: u64, bytes: u64) -> Wish {
        let wish = Wish(self.next);
        self.next += 1;
        let (turn, weight) = (self.turn, weight.max(1));
        let flow = self.flows.entry(flow).or_insert_with(|| Flow { weight, had: turn, wishes: VecDeque::new() });
        flow.weight = weight;
        if flow.wishes.is_empty() {
            flow.had = flow.had.max(turn);
        }
        flow.wishes.push_back((wish, bytes));
        wish
    }

    /// A wish that is wanted no more. One that was granted or withdrawn before is ignored. Call [`Limiter::grant`] then.
    pub fn withdraw(&mut self, flow: &K, wish: Wish) {
        if let Some(flow) = self.flows.get_mut(flow) {
            flow.wishes.retain(|(other, _)| *other != wish);
        }
    }

    /// The next wish of which all bytes may go now. Call until `None`, after each wish, withdrawal and change, and at
    /// [`Limiter::next_at`].
    pub fn grant(&mut self, now: Instant) -> Option<Wish> {
        self.look(now);
        loop {
            let portion = self.portion();
            let waiting = self.flows.iter_mut().filter(|(_, flow)| !flow.wishes.is_empty());
            let Some((_, flow)) = waiting.min_by_key(|(_, flow)| flow.had) else { break };
            let (wish, left) = *flow.wishes.front()?;
            if self.limit != RateLimit::UNLIMITED {
                let bytes = left.min(portion);
                self.tokens = self.tokens.checked_sub(u128::from(bytes) * NANOS)?;
                self.turn = flow.had;
                flow.had += u128::from(bytes) * SCALE / u128::from(flow.weight);
                if left > bytes {
                    flow.wishes[0].1 = left - bytes;
                    continue;
                }
            }
            flow.wishes.pop_front();
            let turn = self.turn;
            self.flows.retain(|_, flow| !flow.wishes.is_empty() || flow.had > turn);
            return Some(wish);
        }
        // Nobody waits: nobody is behind, and nobody is owed anything.
        self.flows.clear();
        None
    }

    /// When there is something to grant, if nothing changes before. `None`: nobody waits. Ask after
    /// [`Limiter::grant`] has returned `None`.
    pub fn next_at(&self) -> Option<Instant> {
        let rate = self.limit.bytes_per_second()?;
        let waiting = self.flows.values().filter(|flow| !flow.wishes.is_empty());
        let (_, left) = waiting.min_by_key(|flow| flow.had)?.wishes.front()?;
        let wanted = u128::from((*left).min(self.portion())) * NANOS;
        let nanos = wanted.saturating_sub(self.tokens).div_ceil(u128::from(rate));
        Some(self.at + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// Most bytes that are granted in one go.
    fn portion(&self) -> u64 {
        message_size(self.limit) as u64
    }

    /// Counts what may go by now.
    fn look(&mut self, now: Instant) {
        if let Some(rate) = self.limit.bytes_per_second() {
            let passed = now.saturating_duration_since(self.at).as_nanos();
            self.tokens = (self.tokens + passed * u128::from(rate)).min(full(self.limit));
        }
        self.at = self.at.max(now);
    }
}

/// The tokens of a full bucket.
fn full(limit: RateLimit) -> u128 {
    u128::from(burst(limit)) * NANOS
}

/// How many bytes went a moment ago, for people.
#[derive(Debug)]
pub struct Gauge {
    since: Instant,
    /// Bytes of the last whole second, and of the present one.
    seconds: [u64; 2],
}

/// The rate is measured over whole stretches of this length.
const STRETCH: Duration = Duration::from_secs(1);

impl Gauge {
    /// Nothing yet.
    pub fn new(now: Instant) -> Self {
        Self { since: now, seconds: [0; 2] }
    }

    /// Some bytes went.
    pub fn went(&mut self, bytes: u64, now: Instant) {
        self.look(now);
        self.seconds[1] += bytes;
    }

    /// Bytes a second, over the last second and what there is of the present one.
    pub fn rate(&mut self, now: Instant) -> u64 {
        self.look(now);
        let took = now.saturating_duration_since(self.since) + STRETCH;
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        (self.seconds[0] + self.seconds[1]).saturating_mul(1000) / millis
    }

    fn look(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        if passed >= 2 * STRETCH {
            (self.since, self.seconds) = (now, [0; 2]);
        } else if passed >= STRETCH {
            (self.since, self.seconds) = (self.since + STRETCH, [self.seconds[1], 0]);
        }
    }
}

#[cfg(test)]
#[path = "rate_tests.rs"]
mod tests;
