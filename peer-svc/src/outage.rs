//! Whether the tracker is away, as a log and a monitor have it.

use drizzle_proto::{Address, client::ClientError, metrics::Counter};

use crate::advertise::AdvertiseError;

/// Says that the tracker is away once, and once that it is back.
#[derive(Debug)]
pub(crate) struct Outage {
    is_on: bool,
    counted: Counter,
}

impl Outage {
    /// None yet; each one is counted.
    pub(crate) fn counted(counted: Counter) -> Self {
        Self { is_on: false, counted }
    }

    pub(crate) fn begins(&mut self, tracker: &Address, error: &ClientError) {
        if !std::mem::replace(&mut self.is_on, true) {
            self.counted.inc();
            tracing::warn!(%tracker, %error, "cannot reach the tracker; retrying");
        }
    }

    pub(crate) fn without_address(&mut self, error: &AdvertiseError) {
        if !std::mem::replace(&mut self.is_on, true) {
            tracing::warn!("not registered with the tracker, retrying: {error}");
        }
    }

    pub(crate) fn ends(&mut self, tracker: &Address) {
        if std::mem::take(&mut self.is_on) {
            tracing::info!(%tracker, "the tracker answers again");
        }
    }
}
