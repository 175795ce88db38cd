//! What a monitor reads: numbers in the text format of OpenMetrics, which Prometheus scrapes.
//!
//! | module | is |
//! |---|---|
//! | [`sheet`] | numbers that are looked up when they are asked for |
//! | [`scrapes`] | the server that is asked for them |
//! | [`machine`] | what every daemon tells of its process and its runtime |
//!
//! What holds: no label has a value that grows with files or peers (labels come from enums and fixed lists), no number
//! tells a file's name or a peer's id, and whoever counts pays an atomic addition.

pub mod machine;
pub mod scrapes;
pub mod sheet;

use std::fmt;

use prometheus_client::{encoding::text::encode, registry::Registry};

pub use prometheus_client::metrics::{
    counter::Counter,
    family::Family,
    histogram::{Histogram, exponential_buckets},
};

use self::sheet::AtScrape;
pub use self::{scrapes::serve, sheet::Sheet};
use crate::net::handshakes::{End, Handshakes, Went};

/// A label with its value. Both are written in this program.
pub type Label = [(&'static str, &'static str); 1];
/// Counters that differ in one label.
pub type Counters = Family<Label, Counter>;
/// Counters of seconds and the like.
pub type Fractions = Counter<f64, std::sync::atomic::AtomicU64>;

/// The numbers of one daemon.
#[derive(Debug)]
pub struct Exposition {
    registry: Registry,
    prefix: &'static str,
}

impl Exposition {
    /// For a daemon whose own numbers have this prefix: those of its process and of this thread's runtime to begin with.
    pub fn new(prefix: &'static str) -> Self {
        let mut new = Self { registry: Registry::default(), prefix };
        new.registry.register_collector(Box::new(AtScrape::new("", machine::collector())));
        new
    }

    /// Where numbers are registered that somebody counts.
    pub fn counted(&mut self) -> &mut Registry {
        self.registry.sub_registry_with_prefix(self.prefix)
    }

    /// Numbers that are looked up at each scrape.
    pub fn looked_up(&mut self, look: impl Fn(&mut Sheet<'_>) -> fmt::Result + Send + Sync + 'static) {
        self.registry.register_collector(Box::new(AtScrape::new(self.prefix, look)));
    }

    /// The TLS handshakes of a transport.
    pub fn handshakes(&mut self, handshakes: Handshakes) {
        self.looked_up(move |sheet| {
            for (end, name) in [(End::Accepted, "tls_accepted"), (End::Made, "tls_made")] {
                let help = "TLS handshakes, by how they went: full, resumed from a session of before, failed";
                let counts = Went::ALL.map(|went| (went.name(), handshakes.counted(end, went)));
                sheet.counters(name, help, "result", counts)?;
            }
            Ok(())
        });
    }

    /// All of them, as they are now.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_number_has_a_help_a_type_and_the_daemons_prefix() {
        let mut exposition = Exposition::new("drizzle_test");
        let counters = Counters::default();
        exposition.counted().register("things", "Things that happened", counters.clone());
        counters.get_or_create(&[("kind", "good")]).inc_by(3);
        let seconds = Histogram::new([0.1, 1.0]);
        exposition.counted().register("wait_seconds", "How long it took", seconds.clone());
        seconds.observe(0.5);
        exposition.looked_up(|sheet| {
            sheet.gauge("slots", "Slots that there are", 4)?;
            sheet.counter("bytes", "Bytes", 1 << 40)?;
            sheet.gauges("downloads", "Downloads", "state", [("running", 2), ("waiting", 0)])
        });
        let text = exposition.text().unwrap();
        for line in [
            "# TYPE drizzle_test_things counter",
            "drizzle_test_things_total{kind=\"good\"} 3",
            "drizzle_test_wait_seconds_bucket{le=\"1.0\"} 1",
            "# HELP drizzle_test_slots Slots that there are.",
            "drizzle_test_slots 4",
            "drizzle_test_bytes_total 1099511627776",
            "drizzle_test_downloads{state=\"running\"} 2",
            "drizzle_test_downloads{state=\"waiting\"} 0",
            "# TYPE process_resident_memory_bytes gauge",
            "# TYPE tokio_tasks gauge",
        ] {
            assert!(text.lines().any(|have| have == line), "{line}\n in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
