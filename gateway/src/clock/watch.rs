//! Watches the system's clock.
//!
//! Arrives: both clocks, twice a second, and what kernel and time services say. Leaves: what
//! [`Trust`] knows. Always holds: a leap is seen before its own length has passed.

use super::line::{Line, Sample, Start, Unset};
use super::{Correction, Trust, wall_us};
use model::Micros;
use rustix::time::{ClockId, clock_gettime};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

const EVERY: Duration = Duration::from_millis(500);
/// Each stands for a service that will set the clock, if the kernel does not say that it is set.
const SERVICES: [&str; 3] = ["/run/systemd/timesync", "/run/chrony", "/run/ntpd.pid"];
/// Written by systemd-timesyncd when it has set the clock.
const TIMESYNC_DONE: &str = "/run/systemd/timesync/synchronized";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Begins to watch, with what the last start left and what the store says. The
/// result runs until `stop`.
pub(crate) fn watch(
    trust: &Arc<Trust>,
    start: Start,
    before: Option<Unset>,
    waiting: Vec<Correction>,
    stop: CancellationToken,
) -> impl Future<Output = ()> + use<> {
    let boot = std::fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned();
    let now = sample();
    let (mut line, given_up) = Line::new(boot, start, now, before);
    trust.restore(waiting.into_iter().chain(given_up).collect());
    trust.tell(line.vouched, line.kept(), Vec::new());
    if line.unset {
        tracing::warn!(
            "the clock does not seem to be set: {}; readings without a time of their own are kept, and put \
             right and forwarded when it is",
            line.doubt(now)
        );
    }
    let trust = Arc::clone(trust);
    async move {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let corrections = line.observe(sample());
            trust.tell(line.vouched, line.kept(), corrections);
        }
    }
}

fn sample() -> Sample {
    let synchronized = is_synchronized();
    Sample { wall_us: wall_us(), boot_us: boot_us(), synchronized, awaited: !synchronized && is_awaited() }
}

/// Since the machine was started, times of sleep included.
pub(super) fn boot_us() -> Micros {
    let since = clock_gettime(ClockId::Boottime);
    since.tv_sec * 1_000_000 + since.tv_nsec / 1_000
}

fn is_awaited() -> bool {
    std::env::var_os("TIDEGATE_TEST_OWN_CLOCK").is_none() && SERVICES.iter().any(|service| Path::new(service).exists())
}

/// What the kernel says of its clock, or a service of what it has done. A clock that a test shows is
/// none of theirs.
fn is_synchronized() -> bool {
    if std::env::var_os("TIDEGATE_TEST_OWN_CLOCK").is_some() {
        return false;
    }
    // SAFETY: all zeros is a request to change nothing, which fills the structure.
    #[expect(unsafe_code, reason = "no crate of ours asks the kernel this")]
    let (state, status) = unsafe {
        let mut answer: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut answer), answer.status)
    };
    let by_kernel = state >= 0 && state != libc::TIME_ERROR && status & libc::STA_UNSYNC == 0;
    by_kernel || Path::new(TIMESYNC_DONE).exists()
}
