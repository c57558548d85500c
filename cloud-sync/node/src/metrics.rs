//! What is counted, as Prometheus text.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

type Labels = Vec<(&'static str, &'static str)>;

/// All counters, cheap to share.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Summaries stored.
    pub summaries: Counter,
    /// Windows of devices stored.
    pub windows: Counter,
    /// Bytes of batches stored.
    pub bytes: Counter,
    /// From a push to its answer.
    pub push_seconds: Histogram,
    refused: Family<Labels, Counter>,
    /// Rows copied from shard to shard.
    pub moved_rows: Counter,
    /// Slots that have changed hands.
    pub moved_slots: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("tidegate_cloud");
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let summaries = counter("summaries", "Summaries stored; one that came twice counts twice");
        let windows = counter("windows", "Windows of devices stored");
        let bytes = counter("push_bytes", "Bytes of batches stored, as they came");
        let moved_rows = counter("moved_rows", "Rows copied from shard to shard");
        let moved_slots = counter("moved_slots", "Slots that have changed hands");
        let push_seconds = Histogram::new(exponential_buckets(0.001, 2.0, 16));
        registry.register("push_seconds", "From a push to its answer", push_seconds.clone());
        let refused = Family::<Labels, Counter>::default();
        registry.register("refused_pushes", "Pushes not acknowledged, by reason", refused.clone());
        Metrics { registry, summaries, windows, bytes, push_seconds, refused, moved_rows, moved_slots }
    }
}

impl Metrics {
    /// Counts a push that is not acknowledged.
    pub fn refused(&self, why: &'static str) {
        self.refused.get_or_create(&vec![("reason", why)]).inc();
    }

    /// Everything, in the text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
