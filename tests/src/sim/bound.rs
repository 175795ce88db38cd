//! The fluid bound: how long a distribution takes at the very least, whatever the peers do.
//!
//! From Kumar and Ross, "Peer-Assisted File Distribution: The Minimum Distribution Time" (2006): a file of F bytes from
//! a source with uplink `u_s` to N peers with uplinks `u_i` and slowest downlink `d` takes at least
//! `max(F / u_s, F / d, N * F / (u_s + sum u_i))`. Here each uplink may be there for a part of the time only.

/// An uplink, while it is there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Supply {
    /// Bytes a second.
    pub rate: f64,
    /// Seconds from the begin of the distribution.
    pub from: f64,
    /// Seconds likewise; infinite for one that stays.
    pub until: f64,
    /// Bytes that it sends at most.
    pub most: f64,
}

impl Supply {
    /// One that is there all the time.
    pub fn steady(rate: f64) -> Self {
        Self { rate, from: 0.0, until: f64::INFINITY, most: f64::INFINITY }
    }

    fn by(&self, time: f64) -> f64 {
        (self.rate * (time.min(self.until) - self.from).max(0.0)).min(self.most)
    }
}

/// When the uplinks together can have sent so many bytes, in seconds; infinite if never.
pub fn supplied_at(bytes: f64, supplies: &[Supply]) -> f64 {
    let by = |time: f64| supplies.iter().map(|supply| supply.by(time)).sum::<f64>();
    let (mut low, mut high) = (0.0, 1.0);
    while by(high) < bytes {
        (low, high) = (high, high * 2.0);
        if high > 1e12 {
            return f64::INFINITY;
        }
    }
    for _ in 0..100 {
        let middle = f64::midpoint(low, high);
        if by(middle) < bytes { low = middle } else { high = middle }
    }
    high
}

/// The least time to bring `bytes` from a source to `receivers`, of which the slowest has the downlink `down`, in
/// seconds. `supplies` are all uplinks, the source's among them.
pub fn fluid(bytes: f64, source: f64, down: f64, receivers: usize, supplies: &[Supply]) -> f64 {
    (bytes / source).max(bytes / down).max(supplied_at(bytes * receivers as f64, supplies))
}
