//! The limits of the rates at which chunks are sent and received. Which bytes go when is decided by
//! [`drizzle_engine::rate`]; here are the tasks that wait for it.
//!
//! Invariants: a task that is gone waits for nothing; the mutex is never held over an `.await`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use drizzle_engine::{
    priority::Owner,
    rate::{Gauge, Limiter, Wish, message_size},
    slots::Requester,
};
use drizzle_proto::RateLimit;
use tokio::{
    sync::{oneshot, watch},
    time::sleep_until,
};

/// Both limits of a daemon.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// What other peers are sent, shared among them.
    pub(crate) up: Arc<Gate<Requester>>,
    /// What comes from other peers, shared among the downloads.
    pub(crate) down: Arc<Gate<Owner>>,
}

impl Limits {
    /// As the daemon's options say.
    pub(crate) fn new(up: RateLimit, down: RateLimit) -> Self {
        Self { up: Gate::new(up), down: Gate::new(down) }
    }

    /// Changes those that are given; how they are then.
    pub(crate) fn change(&self, up: Option<RateLimit>, down: Option<RateLimit>) -> LimitState {
        if let Some(limit) = up {
            tracing::info!(%limit, "limit of what is sent");
            self.up.set(limit);
        }
        if let Some(limit) = down {
            tracing::info!(%limit, "limit of what comes");
            self.down.set(limit);
        }
        self.state()
    }

    /// How they are, and what passes.
    pub(crate) fn state(&self) -> LimitState {
        LimitState {
            up: self.up.limit(),
            down: self.down.limit(),
            up_rate: self.up.rate(),
            down_rate: self.down.rate(),
        }
    }
}

/// The limits, and what passes under them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LimitState {
    pub(crate) up: RateLimit,
    pub(crate) down: RateLimit,
    /// Bytes a second.
    pub(crate) up_rate: u64,
    pub(crate) down_rate: u64,
}

/// What bytes pass under one limit.
#[derive(Debug)]
pub(crate) struct Gate<K> {
    inner: Mutex<Inner<K>>,
    /// The limit; rung also when something may go earlier than those that wait know.
    changed: watch::Sender<RateLimit>,
}

#[derive(Debug)]
struct Inner<K> {
    limiter: Limiter<K>,
    waiting: HashMap<Wish, oneshot::Sender<()>>,
    gauge: Gauge,
}

impl<K: Ord + Clone> Inner<K> {
    /// Wakes every task whose bytes may go now.
    fn grant(&mut self, now: Instant) {
        while let Some(wish) = self.limiter.grant(now) {
            if let Some(waiting) = self.waiting.remove(&wish) {
                let _ = waiting.send(());
            }
        }
    }
}

impl<K: Ord + Clone> Gate<K> {
    /// With this limit.
    pub(crate) fn new(limit: RateLimit) -> Arc<Self> {
        let now = Instant::now();
        let (limiter, gauge) = (Limiter::new(limit, now), Gauge::new(now));
        let inner = Inner { limiter, waiting: HashMap::new(), gauge };
        Arc::new(Self { inner: Mutex::new(inner), changed: watch::Sender::new(limit) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner<K>> {
        // No change of it can panic half-way.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The limit.
    pub(crate) fn limit(&self) -> RateLimit {
        self.lock().limiter.limit()
    }

    /// Bytes a second that pass now.
    pub(crate) fn rate(&self) -> u64 {
        self.lock().gauge.rate(Instant::now())
    }

    /// Without a limit: counts the bytes, and nobody waits.
    fn passes_at_once(&self, bytes: u64) -> bool {
        let mut inner = self.lock();
        let is_unlimited = inner.limiter.limit() == RateLimit::UNLIMITED;
        if is_unlimited {
            inner.gauge.went(bytes, Instant::now());
        }
        is_unlimited
    }

    /// Without a limit: the bytes of the next message of what is `left`, which may go now.
    pub(crate) fn message_now(&self, left: u64) -> Option<u64> {
        let bytes = left.min(message_size(RateLimit::UNLIMITED) as u64);
        self.passes_at_once(bytes).then_some(bytes)
    }

    /// Another limit from now on.
    pub(crate) fn set(&self, limit: RateLimit) {
        let now = Instant::now();
        let mut inner = self.lock();
        inner.limiter.set(limit, now);
        inner.grant(now);
        drop(inner);
        self.changed.send_replace(limit);
    }

    /// Waits until some bytes of a flow with this weight may pass: a message of what is `left`, whose size follows the
    /// limit, also when that changes meanwhile. How many they are. `must_wait` is called if they may not yet.
    pub(crate) async fn message(&self, flow: K, weight: u64, left: u64, mut must_wait: impl FnMut()) -> u64 {
        loop {
            let mut changed = self.changed.subscribe();
            let limit = self.limit();
            let bytes = left.min(message_size(limit) as u64);
            // What it returns locks the sender, and must not outlive the wait. The sender lives as long as this.
            let changes = async { drop(changed.wait_for(|now| *now != limit).await) };
            tokio::select! {
                biased;
                () = self.pass(flow.clone(), weight, bytes, &mut must_wait) => return bytes,
                () = changes => {}
            }
        }
    }

    /// Waits until so many bytes of a flow with this weight may pass. `must_wait` is called first if they may not yet.
    pub(crate) async fn pass(&self, flow: K, weight: u64, bytes: u64, must_wait: impl FnOnce()) {
        if self.passes_at_once(bytes) {
            return;
        }
        let mut changed = self.changed.subscribe();
        let (sender, mut granted) = oneshot::channel();
        let _waits = {
            let now = Instant::now();
            let mut inner = self.lock();
            let wish = inner.limiter.ask(flow.clone(), weight, bytes);
            inner.waiting.insert(wish, sender);
            inner.grant(now);
            Waits { gate: self, flow, wish }
        };
        if granted.try_recv().is_err() {
            must_wait();
            loop {
                let next = self.lock().limiter.next_at().unwrap_or_else(Instant::now);
                tokio::select! {
                    // The sender goes only with an answer.
                    _ = &mut granted => break,
                    () = sleep_until(next.into()) => self.lock().grant(Instant::now()),
                    _ = changed.changed() => {}
                }
            }
        }
        self.lock().gauge.went(bytes, Instant::now());
    }
}

/// A wish that is withdrawn when dropped.
struct Waits<'a, K: Ord + Clone> {
    gate: &'a Gate<K>,
    flow: K,
    wish: Wish,
}

impl<K: Ord + Clone> Drop for Waits<'_, K> {
    fn drop(&mut self) {
        let mut inner = self.gate.lock();
        if inner.waiting.remove(&self.wish).is_some() {
            inner.limiter.withdraw(&self.flow, self.wish);
            inner.grant(Instant::now());
            drop(inner);
            self.gate.changed.send_modify(|_| ());
        }
    }
}

/// For how long a limit held something up, so far.
#[derive(Debug, Default)]
pub(crate) struct HeldUp(Mutex<(Duration, Option<Instant>)>);

impl HeldUp {
    fn lock(&self) -> MutexGuard<'_, (Duration, Option<Instant>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is held up from now on.
    pub(crate) fn begins(&self) {
        self.lock().1 = Some(Instant::now());
    }

    /// It goes on; how long it was held up, if it was.
    pub(crate) fn ends(&self) -> Duration {
        let mut held = self.lock();
        let last = held.1.take().map(|since| since.elapsed()).unwrap_or_default();
        held.0 += last;
        last
    }

    /// In all, until now.
    pub(crate) fn so_far(&self) -> Duration {
        let held = self.lock();
        held.0 + held.1.map(|since| since.elapsed()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;

    fn limit(rate: u64) -> RateLimit {
        RateLimit::new(rate).unwrap()
    }

    #[tokio::test]
    async fn what_waits_goes_in_its_time_and_at_once_when_the_limit_is_lifted() {
        let gate = Gate::new(limit(64 * KIB));
        let begun = Instant::now();
        gate.pass(1, 1, 8 * KIB, || panic!("a burst may go at once")).await;
        gate.pass(1, 1, 8 * KIB, || {}).await;
        assert!(begun.elapsed() >= Duration::from_millis(125), "{:?}", begun.elapsed());
        let slow = {
            let gate = gate.clone();
            tokio::spawn(async move { gate.pass(2, 1, 1 << 40, || {}).await })
        };
        while gate.lock().waiting.is_empty() {
            tokio::task::yield_now().await;
        }
        gate.set(RateLimit::UNLIMITED);
        slow.await.unwrap();
        assert!(gate.lock().waiting.is_empty() && gate.rate() > 0);
    }

    #[tokio::test]
    async fn a_message_that_waits_when_the_limit_becomes_low_becomes_small() {
        let gate = Gate::new(limit(16 << 20));
        gate.pass(1, 1, 800 * KIB, || {}).await;
        let large = gate.message(1, 1, 1 << 40, || {}).await;
        assert_eq!(large, 256 * KIB);
        let mut waits = std::pin::pin!(gate.message(1, 1, 1 << 40, || {}));
        // Far more than there is.
        let mut others: Vec<_> = (2..6).map(|flow| Box::pin(gate.pass(flow, 1, 64 << 20, || {}))).collect();
        std::future::poll_fn(|context| {
            others.iter_mut().for_each(|other| assert!(other.as_mut().poll(context).is_pending()));
            assert!(waits.as_mut().poll(context).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
        gate.set(limit(64 * KIB));
        drop(others);
        assert_eq!(waits.await, 4 * KIB);
    }

    #[tokio::test]
    async fn a_task_that_is_gone_is_in_nobodys_way() {
        let gate = Gate::new(limit(64 * KIB));
        gate.pass(1, 1, 8 * KIB, || {}).await;
        let mut waits = Box::pin(gate.pass(1, 1, 1 << 40, || {}));
        let polled = std::future::poll_fn(|context| std::task::Poll::Ready(waits.as_mut().poll(context).is_ready()));
        assert!(!polled.await);
        drop(waits);
        assert!(gate.lock().waiting.is_empty());
        gate.pass(1, 1, KIB, || {}).await;
    }

    #[test]
    fn time_held_up_is_counted_while_it_lasts_and_after_it() {
        let held = HeldUp::default();
        assert_eq!((held.ends(), held.so_far()), (Duration::ZERO, Duration::ZERO));
        held.begins();
        while held.so_far().is_zero() {}
        let last = held.ends();
        assert!(!last.is_zero());
        assert_eq!((held.so_far(), held.ends()), (last, Duration::ZERO));
    }
}
