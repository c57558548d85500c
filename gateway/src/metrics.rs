//! What a person can run alerts on, as Prometheus text.
//!
//! Counters live where things happen; this is their one list. Names follow the Prometheus
//! conventions (base units, `_total` for counters).

use crate::decode::Reason;
use crate::journal::Cause;
use model::time::SECOND_US;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;
use uplink::Snapshot;

type Labels = Vec<(&'static str, &'static str)>;

/// The protocol that something came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// MQTT.
    Mqtt,
    /// CoAP.
    Coap,
    /// HTTP.
    Http,
}

impl Protocol {
    fn name(self) -> &'static str {
        ["mqtt", "coap", "http"][self as usize]
    }
}

/// All counters, cheap to share.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    messages: [Counter; 3],
    rejects: Family<Labels, Counter>,
    refused_connects: Family<Labels, Counter>,
    refused_logins: Counter,
    /// Readings on disk.
    pub readings: Counter,
    /// Values that say that there is none.
    pub missing: Counter,
    /// Messages that no ingest rule takes.
    pub unmatched: Counter,
    /// Integers beyond 2^53.
    pub inexact: Counter,
    /// Stamps of 1970, replaced by the receive time.
    pub restamped: Counter,
    /// Stamps beyond the skew bound.
    pub future: Counter,
    /// Readings whose receive time was put right.
    pub corrected: Counter,
    /// Readings for windows that had closed.
    pub late: Counter,
    /// Commits.
    pub commits: Counter,
    /// From the start of a transaction to its fsync.
    pub commit_seconds: Histogram,
    written: [Counter; 7],
    uplink_backlog: Gauge,
    uplink_oldest_s: Gauge,
    uplink_sent: [Counter; 4],
    /// How often it was looked at what is too old, or too much.
    pub retention_passes: Counter,
    retired: Family<Labels, Counter>,
    /// Windows with readings that came after their days had been sealed.
    pub sealed_late: Counter,
    /// Bytes waiting for the commit.
    pub queue_bytes: Gauge,
    /// How long commits wait for company, in seconds.
    pub commit_delay_s: Gauge<f64, AtomicU64>,
    /// What would be written in a day at the rate of late.
    pub written_per_day: Gauge,
    /// 1 while the disk is full.
    pub disk_full: Gauge,
    /// 1 while the store takes more than its budget and nothing may go.
    pub over_budget: Gauge,
    /// MQTT connections.
    pub connections: Gauge,
    /// Messages passed on to subscribers.
    pub delivered: Counter,
    /// QoS 0 messages that a slow subscriber did not get.
    pub dropped: Counter,
    /// Subscribers disconnected because their QoS 1 queue overflowed.
    pub overflowed: Counter,
    /// Events that a slow listener of `/v1/live` did not get.
    pub live_dropped: Counter,
    /// Windows summarised for the first time.
    pub windows_closed: Counter,
    /// Windows computed again because of late readings.
    pub windows_revised: Counter,
    /// Open windows of all series.
    pub windows_open: Gauge,
    /// Windows waiting to be computed again.
    pub windows_dirty: Gauge,
    /// How far windows are behind the journal, in seconds.
    pub window_lag_s: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("tidegate");
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let readings = counter("readings", "Readings committed");
        let missing = counter("missing_values", "Values that say that there is none");
        let unmatched =
            counter("unmatched_messages", "Published messages that no ingest rule takes; /v1/sniff names the topics");
        let refused_logins =
            counter("refused_logins", "Logins with a wrong name, password or token, or too many of them");
        let inexact = counter("inexact_values", "Integers beyond 2^53, kept as the nearest f64");
        let restamped = counter(
            "restamped_readings",
            "Readings stamped in 1970, as by a clock that nobody has set, kept with their receive time",
        );
        let future = counter("future_readings", "Readings stamped beyond the skew bound");
        let corrected = counter("corrected_readings", "Readings without a stamp, put right when the clock was set");
        let late = counter("late_readings", "Readings for windows that had closed");
        let commits = counter("commits", "Commits");
        let retention_passes = counter("retention_passes", "Looks at what is too old, or too much");
        let sealed_late = counter("sealed_windows_late", "Windows not revised, because their readings are retired");
        let delivered = counter("delivered_messages", "Messages passed on to subscribers");
        let dropped = counter("dropped_messages", "QoS 0 messages that a slow subscriber did not get");
        let overflowed = counter("overflowed_subscribers", "Subscribers disconnected for a full QoS 1 queue");
        let live_dropped = counter("live_dropped_events", "Events that a slow listener of /v1/live did not get");
        let windows_closed = counter("windows_closed", "Windows summarised for the first time");
        let windows_revised = counter("windows_recomputed", "Windows computed again because of late readings");
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let queue_bytes = gauge("queue_bytes", "Bytes waiting for the commit");
        let written_per_day =
            gauge("written_bytes_per_day", "Bytes that would be sent to the disk in a day at the rate of late");
        let disk_full = gauge("disk_full", "1 while commits wait for space on the disk");
        let over_budget = gauge("over_budget", "1 while the store takes more than its budget and nothing may go");
        let connections = gauge("mqtt_connections", "MQTT connections");
        let windows_open = gauge("windows_open", "Open windows of all series");
        let windows_dirty = gauge("windows_dirty", "Windows waiting to be computed again");
        let window_lag_s = gauge("window_lag_seconds", "How far windows are behind the journal");
        let commit_delay_s = Gauge::<f64, AtomicU64>::default();
        registry.register("commit_delay_seconds", "How long commits wait for company", commit_delay_s.clone());
        let commit_seconds = Histogram::new(exponential_buckets(0.0001, 2.0, 16));
        registry.register("commit_seconds", "From the start of a transaction to its fsync", commit_seconds.clone());
        let by_protocol = Family::<Labels, Counter>::default();
        registry.register("messages", "Messages received, by protocol", by_protocol.clone());
        let messages = [Protocol::Mqtt, Protocol::Coap, Protocol::Http]
            .map(|p| by_protocol.get_or_create(&vec![("protocol", p.name())]).clone());
        let rejects = Family::<Labels, Counter>::default();
        registry.register("rejects", "What could not be decoded, by reason", rejects.clone());
        let refused_connects = Family::<Labels, Counter>::default();
        registry.register("refused_connects", "MQTT clients that were not let in, by reason", refused_connects.clone());
        let by_cause = Family::<Labels, Counter>::default();
        let help = "Bytes handed to SQLite, by cause; it writes each to its log and later to its file, in pages";
        registry.register("content_bytes", help, by_cause.clone());
        let written = Cause::ALL.map(|cause| by_cause.get_or_create(&vec![("cause", cause.name())]).clone());
        let retired = Family::<Labels, Counter>::default();
        registry.register(
            "retired_rows",
            "Rows that are gone, because of their age or the disk budget",
            retired.clone(),
        );
        for reason in Reason::ALL {
            let _ = rejects.get_or_create(&vec![("reason", reason.as_str())]);
        }
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(format!("uplink_{name}"), help, gauge.clone());
            gauge
        };
        let uplink_backlog = gauge("backlog", "Changes to summaries that the cloud has not acknowledged");
        let uplink_oldest_s = gauge("oldest_seconds", "Age of the oldest of them");
        let uplink_sent = ["summaries", "batches", "bytes", "failures"].map(|name| {
            let counter = Counter::default();
            registry.register(
                format!("uplink_{name}"),
                "Sent to the cloud and acknowledged, or failed",
                counter.clone(),
            );
            counter
        });
        Metrics {
            registry,
            messages,
            rejects,
            refused_connects,
            refused_logins,
            readings,
            missing,
            unmatched,
            inexact,
            restamped,
            future,
            corrected,
            late,
            commits,
            commit_seconds,
            written,
            uplink_backlog,
            uplink_oldest_s,
            uplink_sent,
            retired,
            sealed_late,
            retention_passes,
            queue_bytes,
            commit_delay_s,
            written_per_day,
            disk_full,
            over_budget,
            connections,
            delivered,
            dropped,
            overflowed,
            live_dropped,
            windows_closed,
            windows_revised,
            windows_open,
            windows_dirty,
            window_lag_s,
        }
    }
}

impl Metrics {
    /// The counter of messages that came in by `protocol`.
    pub(crate) fn messages(&self, protocol: Protocol) -> &Counter {
        &self.messages[protocol as usize]
    }

    /// Counts bytes written, and gives them back.
    pub(crate) fn written(&self, cause: Cause, bytes: u64) -> u64 {
        self.written[cause as usize].inc_by(bytes);
        bytes
    }

    /// Takes over how the uplink does.
    pub(crate) fn note_uplink(&self, uplink: &Snapshot, now_us: i64) {
        self.uplink_backlog.set(uplink.backlog as i64);
        self.uplink_oldest_s.set(uplink.oldest_us.map_or(0, |us| (now_us - us).max(0) / SECOND_US));
        let sent = [uplink.summaries, uplink.batches, uplink.bytes, uplink.failures];
        for (counter, sent) in self.uplink_sent.iter().zip(sent) {
            counter.inc_by(sent.saturating_sub(counter.get()));
        }
    }

    /// Counts rows that go for good.
    pub(crate) fn retired(&self, what: &'static str, why: &'static str, rows: u64) {
        self.retired.get_or_create(&vec![("what", what), ("why", why)]).inc_by(rows);
    }

    /// Bytes handed to SQLite, by cause.
    pub(crate) fn written_by_cause(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Cause::ALL.iter().zip(&self.written).map(|(cause, counter)| (cause.name(), counter.get()))
    }

    /// Takes over how many logins were refused.
    pub(crate) fn note_logins(&self, refused: u64) {
        self.refused_logins.inc_by(refused.saturating_sub(self.refused_logins.get()));
    }

    /// A client was not let in.
    pub(crate) fn refused_connect(&self, reason: &'static str) {
        self.refused_connects.get_or_create(&vec![("reason", reason)]).inc();
    }

    /// Counts a reject.
    pub(crate) fn reject(&self, reason: Reason) {
        self.rejects.get_or_create(&vec![("reason", reason.as_str())]).inc();
    }

    /// How many rejects there have been.
    pub(crate) fn rejects_total(&self) -> u64 {
        let count = |reason: &Reason| self.rejects.get_or_create(&vec![("reason", reason.as_str())]).get();
        Reason::ALL.iter().map(count).sum()
    }

    /// Everything, in the text format, with what the operating system counts for us.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        let usage = Usage::now();
        let process = format!(
            "# HELP process_resident_memory_bytes Resident memory.\n# TYPE process_resident_memory_bytes gauge\n\
             process_resident_memory_bytes {}\n\
             # HELP process_cpu_seconds CPU time.\n# TYPE process_cpu_seconds counter\nprocess_cpu_seconds_total {}\n\
             # HELP tidegate_written_bytes Bytes sent to the disk, of any cause.\n# TYPE tidegate_written_bytes counter\n\
             tidegate_written_bytes_total {}\n# EOF\n",
            usage.resident_bytes, usage.cpu_s, usage.written_bytes
        );
        text.trim_end_matches("# EOF\n").to_owned() + &process
    }
}

/// What the operating system says of this process; zeros where it does not.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Usage {
    /// Resident memory.
    pub resident_bytes: u64,
    /// User and system time.
    pub cpu_s: f64,
    /// Bytes sent to the block layer.
    pub written_bytes: u64,
}

impl Usage {
    /// As of now.
    pub(crate) fn now() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
        };
        let stat = read("/proc/self/stat");
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let ticks: u64 = after_name.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
        Usage {
            resident_bytes: field(&read("/proc/self/status"), "VmRSS:") * 1024,
            cpu_s: ticks as f64 / 100.0,
            written_bytes: field(&read("/proc/self/io"), "write_bytes:"),
        }
    }
}
