//! Numbers that are looked up when they are asked for, and cost nothing before.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder, NoLabelSet},
    metrics::MetricType,
};

/// Where they are written, one scrape.
#[derive(Debug)]
pub struct Sheet<'a> {
    encoder: DescriptorEncoder<'a>,
    prefix: &'static str,
}

impl Sheet<'_> {
    /// What may rise and fall.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Number) -> fmt::Result {
        self.family(name, help, MetricType::Gauge, |encoder| encoder.encode_gauge(&value.gauge()))
    }

    /// What only rises.
    pub fn counter(&mut self, name: &str, help: &str, value: impl Number) -> fmt::Result {
        self.family(name, help, MetricType::Counter, |encoder| count(encoder, &value))
    }

    /// Several of one kind that differ in one label.
    pub fn gauges<N: Number>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: impl IntoIterator<Item = (&'static str, N)>,
    ) -> fmt::Result {
        self.family(name, help, MetricType::Gauge, |encoder| {
            values
                .into_iter()
                .try_for_each(|(key, value)| encoder.encode_family(&[(label, key)])?.encode_gauge(&value.gauge()))
        })
    }

    /// Likewise.
    pub fn counters<N: Number>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: impl IntoIterator<Item = (&'static str, N)>,
    ) -> fmt::Result {
        self.family(name, help, MetricType::Counter, |encoder| {
            values.into_iter().try_for_each(|(key, value)| {
                let labels = [(label, key)];
                count(&mut encoder.encode_family(&labels)?, &value)
            })
        })
    }

    /// What never changes, as labels.
    pub fn info(&mut self, name: &str, help: &str, label: (&'static str, &str)) -> fmt::Result {
        self.family(name, help, MetricType::Info, |encoder| encoder.encode_info(&[label]))
    }

    fn family(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        write: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
    ) -> fmt::Result {
        let name = if self.prefix.is_empty() { name.to_owned() } else { format!("{}_{name}", self.prefix) };
        // Those that are registered end their help so.
        write(&mut self.encoder.encode_descriptor(&name, &format!("{help}."), None, kind)?)
    }
}

/// A counter's value, without an exemplar.
fn count(encoder: &mut MetricEncoder<'_>, value: &impl Number) -> fmt::Result {
    encoder.encode_counter::<NoLabelSet, _, u64>(&value.counter(), None)
}

/// A number that can be told: whole ones stay whole.
pub trait Number {
    /// As a gauge has it.
    fn gauge(&self) -> impl EncodeGaugeValue;
    /// As a counter has it.
    fn counter(&self) -> impl EncodeCounterValue;
}

impl Number for u64 {
    fn gauge(&self) -> impl EncodeGaugeValue {
        *self
    }
    fn counter(&self) -> impl EncodeCounterValue {
        *self
    }
}

impl Number for f64 {
    fn gauge(&self) -> impl EncodeGaugeValue {
        *self
    }
    fn counter(&self) -> impl EncodeCounterValue {
        *self
    }
}

/// What looks them up.
pub(super) struct AtScrape<L> {
    prefix: &'static str,
    look: L,
}

impl<L: Fn(&mut Sheet<'_>) -> fmt::Result> AtScrape<L> {
    pub(super) fn new(prefix: &'static str, look: L) -> Self {
        Self { prefix, look }
    }
}

impl<L> fmt::Debug for AtScrape<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AtScrape").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl<L: Fn(&mut Sheet<'_>) -> fmt::Result + Send + Sync + 'static> Collector for AtScrape<L> {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        (self.look)(&mut Sheet { encoder, prefix: self.prefix })
    }
}
