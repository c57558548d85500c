//! What happened during a run, in numbers.
//!
//! Arrives: counts and latencies from every connection. Leaves: a [`Report`] for people or as JSON.
//! Always holds: `sent`, `acked` and `unacked` count readings, and a reading is counted once however
//! often its message travelled. Latencies are per message, from first handing it to the socket (for
//! CoAP: in the exchange that succeeded) to its acknowledgement. Deliberately absent: percentiles of
//! percentiles; the histograms are merged, never averaged.

use std::fmt::{self, Display};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::time::Instant;

/// Latencies are kept to three digits between a microsecond and an hour.
const LATENCY_MAX_US: u64 = 3_600_000_000;
/// One histogram per shard, so that thousands of connections neither share a lock nor own 200 kB each.
const SHARD_COUNT: usize = 8;

/// How the report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ReportForm {
    /// A few lines for people
    Text,
    /// One JSON object on standard output
    Json,
}

/// The counters that all connections share.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Readings handed to a socket at least once.
    pub(crate) sent: AtomicU64,
    /// Of these, sent with a service that acknowledges.
    pub(crate) sent_acknowledgeable: AtomicU64,
    pub(crate) acked: AtomicU64,
    pub(crate) messages: AtomicU64,
    /// Refusals by the gateway and exchanges that timed out.
    pub(crate) errors: AtomicU64,
    pub(crate) reconnects: AtomicU64,
    started: Mutex<Instant>,
    /// When the last message was sent or acknowledged, in microseconds since the start.
    last_event_us: AtomicU64,
    latencies_us: [Mutex<Histogram<u64>>; SHARD_COUNT],
}

impl Tally {
    pub(crate) fn new() -> Self {
        let histogram = |_| {
            let empty = Histogram::new_with_bounds(1, LATENCY_MAX_US, 3);
            Mutex::new(empty.expect("the bounds are valid"))
        };
        Self {
            sent: AtomicU64::new(0),
            sent_acknowledgeable: AtomicU64::new(0),
            acked: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            started: Mutex::new(Instant::now()),
            last_event_us: AtomicU64::new(0),
            latencies_us: std::array::from_fn(histogram),
        }
    }

    /// All connections stand: the clock of the run starts now.
    pub(crate) fn start(&self, now: Instant) {
        *self.started.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    pub(crate) fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(*self.started.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes that something was sent or acknowledged at `now`.
    pub(crate) fn touch(&self, now: Instant) {
        self.last_event_us.fetch_max(self.elapsed(now).as_micros() as u64, Relaxed);
    }

    /// Adds a batch of acknowledgement latencies; `shard` spreads the connections over the locks.
    pub(crate) fn add_latencies(&self, shard: usize, latencies: &mut Vec<Duration>) {
        if latencies.is_empty() {
            return;
        }
        let shard = &self.latencies_us[shard % SHARD_COUNT];
        let mut histogram = shard.lock().unwrap_or_else(PoisonError::into_inner);
        for latency in latencies.drain(..) {
            histogram.saturating_record((latency.as_micros() as u64).max(1));
        }
    }

    /// All latencies so far in one histogram.
    pub(crate) fn latencies(&self) -> Histogram<u64> {
        let mut all = Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("the bounds are valid");
        for shard in &self.latencies_us {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            all.add(&*shard).expect("all shards have the same bounds");
        }
        all
    }

    /// The run in numbers.
    pub(crate) fn report(&self, seed: u64, ledger: Option<PathBuf>) -> Report {
        let sent = self.sent.load(Relaxed);
        let acked = self.acked.load(Relaxed);
        let seconds = self.last_event_us.load(Relaxed) as f64 / 1e6;
        // Without acknowledgements (QoS 0) the rate is that of handing over.
        let counted = if self.sent_acknowledgeable.load(Relaxed) == 0 { sent } else { acked };
        let messages = self.messages.load(Relaxed);
        Report {
            seed,
            sent,
            acked,
            unacked: self.sent_acknowledgeable.load(Relaxed) - acked,
            messages,
            errors: self.errors.load(Relaxed),
            reconnects: self.reconnects.load(Relaxed),
            seconds,
            rate_per_s: if seconds > 0.0 { counted as f64 / seconds } else { 0.0 },
            ack_ms: Percentiles::of(&self.latencies()),
            cpu_us_per_message: cpu_seconds().map(|cpu_s| cpu_s * 1e6 / messages.max(1) as f64),
            ledger,
        }
    }
}

/// A finished run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) sent: u64,
    pub(crate) acked: u64,
    pub(crate) unacked: u64,
    pub(crate) messages: u64,
    pub(crate) errors: u64,
    pub(crate) reconnects: u64,
    pub(crate) seconds: f64,
    pub(crate) rate_per_s: f64,
    pub(crate) ack_ms: Percentiles,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_us_per_message: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ledger: Option<PathBuf>,
}

/// Acknowledgement latencies in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

impl Percentiles {
    pub(crate) fn of(latencies_us: &Histogram<u64>) -> Self {
        let at_ms = |quantile| latencies_us.value_at_quantile(quantile) as f64 / 1e3;
        let max = latencies_us.max() as f64 / 1e3;
        // A bucket's upper edge may lie above the largest value that fell into it.
        let [p50, p90, p99, p999] = [0.5, 0.9, 0.99, 0.999].map(|quantile| at_ms(quantile).min(max));
        Self { p50, p90, p99, p999, max }
    }
}

impl Report {
    pub(crate) fn print(&self, form: ReportForm) {
        match form {
            ReportForm::Text => println!("{self}"),
            ReportForm::Json => {
                println!("{}", serde_json::to_string(self).expect("a report is plain numbers"));
            }
        }
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Percentiles { p50, p90, p99, p999, max } = self.ack_ms;
        writeln!(f, "readings    {} sent, {} acknowledged, {} unacknowledged", self.sent, self.acked, self.unacked)?;
        writeln!(f, "messages    {}", self.messages)?;
        writeln!(f, "errors      {}, reconnects {}", self.errors, self.reconnects)?;
        writeln!(f, "rate        {:.1} readings/s over {:.1} s", self.rate_per_s, self.seconds)?;
        writeln!(f, "ack ms      p50 {p50:.2}  p90 {p90:.2}  p99 {p99:.2}  p99.9 {p999:.2}  max {max:.2}")?;
        if let Some(cpu_us) = self.cpu_us_per_message {
            writeln!(f, "own cpu     {cpu_us:.1} us per message")?;
        }
        if let Some(ledger) = &self.ledger {
            writeln!(f, "ledger      {}", ledger.display())?;
        }
        write!(f, "seed        {}", self.seed)
    }
}

/// The processor time of this process so far, where the system tells (proc(5), fields 14 and 15).
fn cpu_seconds() -> Option<f64> {
    const TICKS_PER_S: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in brackets and may contain anything.
    let after_name = stat.rsplit_once(')')?.1;
    let mut fields = after_name.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_S)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_merges_all_shards() {
        let tally = Tally::new();
        for shard in 0..20 {
            tally.add_latencies(shard, &mut vec![Duration::from_millis(shard as u64 + 1)]);
        }
        let report = tally.report(7, None);
        assert_eq!(report.ack_ms.max.round(), 20.0);
        assert_eq!(report.ack_ms.p50.round(), 10.0);
    }

    #[test]
    fn the_json_form_has_the_agreed_fields() {
        let json = serde_json::to_value(Tally::new().report(7, None)).unwrap();
        for field in ["seed", "sent", "acked", "unacked", "errors", "reconnects", "seconds", "rate_per_s"] {
            assert!(json[field].is_number(), "{field}");
        }
        for field in ["p50", "p90", "p99", "p999", "max"] {
            assert!(json["ack_ms"][field].is_number(), "ack_ms.{field}");
        }
    }
}
