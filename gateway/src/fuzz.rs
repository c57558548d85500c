//! What the fuzz targets call; docs/fuzzing.md says how they are run.
//!
//! Arrives: bytes, of anybody. Leaves: nothing, or a panic where a promise of a module is broken. Always holds: what
//! one input does, another does not see, so that a finding can be repeated. In tests every input that is kept in
//! `fuzz/corpus/` is replayed, without a fuzzer.

/// Names, tags, times, patterns.
mod names;
/// What a damaged disk may present.
mod stored;
/// Payloads of every format, through the one door.
mod values;

pub use crate::http::fuzz::{body, question};
pub use crate::listen::coap::fuzz::coap;
pub use crate::listen::mqtt::fuzz::mqtt;
pub use names::names;
pub use stored::{batch, chunk, rollup, sketch, snapshot};
pub use values::{lines, payload, posted, publication};

use crate::archive::levels::{Level, Levels};
use crate::catalog::{Catalog, Limits};
use crate::clock::Clock;
use crate::config::Config;
use crate::http::{About, Site};
use crate::journal::Intake;
use crate::listen::admit::Admission;
use crate::listen::mqtt::retained::Retained;
use crate::live::Live;
use crate::metrics::Metrics;
use crate::query::Engine;
use daemon::auth::{Auth, Users};
use daemon::http::web::Web;
use daemon::memory::Memory;
use jiff::tz::TimeZone;
use model::Micros;
use model::time::SECOND_US;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicI64};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// A name, and what is called with every input.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("payload", payload),
    ("publication", publication),
    ("posted", posted),
    ("lines", lines),
    ("names", names),
    ("question", question),
    ("body", body),
    ("mqtt", mqtt),
    ("coap", coap),
    ("batch", batch),
    ("chunk", chunk),
    ("rollup", rollup),
    ("sketch", sketch),
    ("snapshot", snapshot),
];

/// The time that it is.
pub(crate) const NOW_US: Micros = 1_800_000_000 * SECOND_US;
/// Few enough to be reached.
pub(crate) const LIMITS: Limits = Limits { devices: 8, series: 64, client_share: 100 };

/// The first byte says how the others are to be read.
pub(crate) fn choice(data: &[u8]) -> (u8, &[u8]) {
    data.split_first().map_or((0, data), |(&first, rest)| (first, rest))
}

/// Counters are shared: nothing depends on them.
pub(crate) fn metrics() -> Arc<Metrics> {
    static METRICS: OnceLock<Arc<Metrics>> = OnceLock::new();
    Arc::clone(METRICS.get_or_init(Arc::default))
}

pub(crate) fn clock() -> Clock {
    Clock::Manual(Arc::new(AtomicI64::new(NOW_US)))
}

/// A zone whose clocks show an hour twice.
pub(crate) fn zone(is_local: bool) -> TimeZone {
    static ZONE: OnceLock<TimeZone> = OnceLock::new();
    if !is_local {
        return TimeZone::UTC;
    }
    ZONE.get_or_init(|| TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").expect("a zone")).clone()
}

/// A door with the rules of the default configuration, behind which nobody is known.
pub(crate) fn admission(zone: TimeZone) -> Arc<Admission> {
    let config = Config::default();
    let rules = config.rules().expect("the default rules");
    let catalog = Arc::new(Catalog::new(LIMITS, 0));
    let tags = config.influx.device_tags;
    Arc::new(Admission::new(catalog, clock(), metrics(), zone, config.time.max_skew.micros(), tags, rules))
}

/// What waits for nothing.
pub(crate) fn at_once<F: Future>(future: F) -> F::Output {
    thread_local! {
        static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    }
    RUNTIME.with(|runtime| {
        let _entered = runtime.enter();
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => output,
            Poll::Pending => panic!("it waits"),
        }
    })
}

/// What requests share, over a store that is not there.
pub(crate) fn site(admission: Arc<Admission>, live: &Arc<Live>) -> Arc<Site> {
    let config = Config::default();
    let (catalog, metrics) = (Arc::clone(&admission.catalog), Arc::clone(&admission.metrics));
    let levels = Levels { base: Level::new(0, 60 * SECOND_US), rollups: Vec::new(), former: Vec::new() };
    let engine = Engine::new("".into(), catalog, Arc::default(), clock(), levels, 0, 1 << 20);
    Arc::new(Site {
        admission,
        intake: Arc::new(Intake::new(1 << 30)),
        engine: Arc::new(engine),
        questions: Arc::new(Semaphore::new(1)),
        looks: Arc::new(Semaphore::new(1)),
        query_timeout: config.query.timeout.0,
        live: Arc::clone(live),
        metrics,
        subscriptions: Arc::default(),
        retained: Arc::new(Retained::new(0, 0, clock())),
        local: daemon::local::LocalToken::new("tidegate").expect("there is randomness"),
        auth: Arc::new(Auth::new(Users::default())),
        anonymous: true,
        body_max: config.http.max_body.bytes(),
        ingest_memory: Memory::new(config.http.ingest_memory.bytes()),
        web: Web::new(&[], &[]),
        connections_max: 1,
        live_max: 1,
        uplink: None,
        about: About {
            id: "g".into(),
            incarnation: Arc::default(),
            started_us: NOW_US,
            addresses: Vec::new(),
            store: "".into(),
        },
        growth: Arc::default(),
        budget_bytes: None,
        ready: AtomicBool::new(true),
        stop: CancellationToken::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn whatever_was_found_once_is_found_no_more() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        for (name, target) in TARGETS {
            let inputs: Vec<_> = std::fs::read_dir(corpus.join(name)).expect(name).map(|e| e.unwrap().path()).collect();
            assert!(!inputs.is_empty(), "{name} has no inputs");
            for path in inputs {
                let input = std::fs::read(&path).unwrap();
                let outcome = std::panic::catch_unwind(|| target(&input));
                assert!(outcome.is_ok(), "{} with {}", name, path.display());
            }
            target(&[]);
        }
    }
}
