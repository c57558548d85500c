//! The progress bar.
//!
//! Arrives: the shared counters, read a few times a second. Leaves: one line on a terminal.
//! Always holds: drawing never slows a connection down; it only reads. Deliberately absent: any
//! output when standard error is not a terminal.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{self, Instant};

use crate::report::Tally;
use crate::runner::Length;

const REDRAW_INTERVAL: Duration = Duration::from_millis(250);

/// Draws until it is aborted.
pub(crate) async fn show(tally: Arc<Tally>, length: Length) {
    let bar = Cleared(bar(length));
    let (mut last_acked, mut last_drawn) = (0, Instant::now());
    loop {
        time::sleep(REDRAW_INTERVAL).await;
        let now = Instant::now();
        let (sent, acked) = (tally.sent.load(Relaxed), tally.acked.load(Relaxed));
        let waiting = tally.sent_acknowledgeable.load(Relaxed).saturating_sub(acked);
        // At QoS 0 nothing is acknowledged; then the rate of sending is what there is to see.
        let counted = if acked > 0 { acked } else { sent };
        let rate = (counted - last_acked.min(counted)) as f64 / (now - last_drawn).as_secs_f64();
        (last_acked, last_drawn) = (counted, now);
        let p99_ms = tally.latencies().value_at_quantile(0.99) as f64 / 1e3;
        bar.0.set_position(match (length.readings, length.duration) {
            (Some(_), _) => counted,
            (None, Some(_)) => tally.elapsed(now).as_millis() as u64,
            (None, None) => 0,
        });
        bar.0.set_message(format!("{rate:.0}/s  acked {acked}  in flight {waiting}  p99 {p99_ms:.1} ms"));
    }
}

/// A bar that leaves no trace when its task ends.
struct Cleared(ProgressBar);

impl Drop for Cleared {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn bar(length: Length) -> ProgressBar {
    let duration_ms = length.duration.map(|duration| duration.as_millis() as u64);
    match length.readings.or(duration_ms) {
        Some(end) => styled(ProgressBar::new(end), "{elapsed_precise} [{bar:24}] {msg}"),
        None => styled(ProgressBar::new_spinner(), "{elapsed_precise} {spinner} {msg}"),
    }
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("the template is valid");
    bar.with_style(style.progress_chars("=> "))
}
