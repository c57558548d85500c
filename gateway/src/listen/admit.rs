//! From decoded names to series and times: the one door for all protocols.
//!
//! Arrives: what a message was addressed to, and its payload. Leaves: rows, rejects and counts
//! in a [`Parcel`]. Always holds: every reading gets an event time here, and every stamp that
//! is not taken at its word is flagged and counted.

use crate::catalog::{Catalog, Series};
use crate::clock::{Clock, Quality};
use crate::decode::topic::Rules;
use crate::decode::{self, Decoded, Format, Reading, Reason, Reject, Stamp, Target};
use crate::journal::{Parcel, Rejected};
use crate::metrics::Metrics;
use crate::readings::flag;
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use jiff::tz::TimeZone;
use model::time::{LAST_US, PLAUSIBLE_FROM_US};
use model::{Micros, check_name};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// The beginning of a rejected payload that is kept.
const REJECT_PAYLOAD_BYTES: usize = 1_024;
/// Rejects kept of one message; the rest are counted.
const REJECTS_PER_MESSAGE: usize = 20;
/// Topics whose series a listener remembers.
const ROUTES_MAX: usize = 50_000;
/// A topic longer than this is matched each time.
const ROUTE_BYTES_MAX: usize = 256;
/// What is kept of a reject's source and detail.
const REJECT_TEXT_CHARS: usize = 300;

/// What every listener shares.
pub struct Admission {
    /// Who is there.
    pub catalog: Arc<Catalog>,
    /// Receive times.
    pub clock: Clock,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The zone of local stamps.
    pub zone: TimeZone,
    /// `time.max_skew`.
    pub max_skew_us: Micros,
    rules: RwLock<Arc<Rules>>,
    generation: AtomicU64,
}

/// What a listener remembers of topics it has seen, so that a topic is matched once.
#[derive(Default)]
pub struct Routes {
    generation: u64,
    known: HashMap<Box<str>, Route, RandomState>,
}

#[derive(Clone)]
enum Route {
    /// Not readings.
    Other,
    /// A number goes straight to this series.
    Series(Arc<Series>),
    /// The payload has to be looked at.
    Decode,
}

/// When a message arrived, read once for all that arrived together.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// The gateway's time.
    pub now_us: Micros,
    clock: Quality,
}

impl Admission {
    /// Everything that listeners share, with the ingest rules of the start.
    pub fn new(
        catalog: Arc<Catalog>,
        clock: Clock,
        metrics: Arc<Metrics>,
        zone: TimeZone,
        max_skew_us: Micros,
        rules: Rules,
    ) -> Self {
        Admission {
            catalog,
            clock,
            metrics,
            zone,
            max_skew_us,
            rules: RwLock::new(Arc::new(rules)),
            generation: AtomicU64::new(1),
        }
    }

    /// Replaces the ingest rules; messages from now on follow them.
    pub fn set_rules(&self, rules: Rules) {
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The moment now.
    pub fn arrival(&self) -> Arrival {
        let now_us = self.clock.now_us();
        Arrival { now_us, clock: self.clock.quality_at(now_us) }
    }

    /// Takes a message that was published to `topic`; one that no rule matches is no reading.
    pub fn publication(&self, routes: &mut Routes, topic: &str, payload: &[u8], arrival: Arrival, parcel: &mut Parcel) {
        let generation = self.generation.load(Ordering::Acquire);
        if routes.generation != generation || routes.known.len() > ROUTES_MAX {
            routes.known.clear();
            routes.generation = generation;
        }
        match routes.known.get(topic) {
            Some(Route::Other) => {}
            Some(Route::Series(series)) if let Some(n) = decode::plain_number(payload) => {
                let time_us = series.assign_time(arrival.now_us);
                parcel.readings.push_number(series.id, time_us, n, arrival.flags());
            }
            Some(_) => self.matched(topic, payload, arrival, parcel),
            None => {
                let route = self.route(topic, payload);
                let other = matches!(route, Route::Other);
                if topic.len() <= ROUTE_BYTES_MAX {
                    routes.known.insert(topic.into(), route);
                }
                if !other {
                    self.matched(topic, payload, arrival, parcel);
                }
            }
        }
    }

    /// What to remember of a topic, decided by its rule and its first payload.
    fn route(&self, topic: &str, payload: &[u8]) -> Route {
        let rules = self.rules();
        match rules.route(topic) {
            None => Route::Other,
            Some((Target { device: Some(device), metric: Some(metric) }, Format::Auto | Format::Text))
                if decode::plain_number(payload).is_some()
                    && check_name(device).is_ok()
                    && check_name(metric).is_ok() =>
            {
                self.catalog.resolve(device, metric).map_or(Route::Decode, Route::Series)
            }
            Some(_) => Route::Decode,
        }
    }

    fn matched(&self, topic: &str, payload: &[u8], arrival: Arrival, parcel: &mut Parcel) {
        let rules = self.rules();
        if let Some((target, format)) = rules.route(topic) {
            self.payload(topic, target, format, payload, arrival, parcel);
        }
    }

    /// Takes a payload that was addressed to `target`; says how many readings it held.
    pub fn payload(
        &self,
        source: &str,
        target: Target<'_>,
        format: Format,
        payload: &[u8],
        arrival: Arrival,
        parcel: &mut Parcel,
    ) -> Admitted {
        let decoded = decode::decode(target, format, payload, &self.zone);
        self.decoded(source, target, decoded, payload, arrival, parcel)
    }

    /// Takes what has been decoded already.
    pub fn decoded(
        &self,
        source: &str,
        target: Target<'_>,
        decoded: Decoded,
        payload: &[u8],
        arrival: Arrival,
        parcel: &mut Parcel,
    ) -> Admitted {
        self.metrics.missing.inc_by(u64::from(decoded.missing));
        let mut rejects = decoded.rejects;
        let mut accepted = 0;
        for reading in decoded.readings {
            match self.reading(target, reading, arrival, parcel) {
                Ok(()) => accepted += 1,
                Err(reject) => rejects.push(reject),
            }
        }
        self.keep_rejects(source, &rejects, payload, arrival, parcel);
        Admitted { accepted, rejects }
    }

    /// Takes one reading.
    pub fn reading(
        &self,
        target: Target<'_>,
        reading: Reading,
        arrival: Arrival,
        parcel: &mut Parcel,
    ) -> Result<(), Reject> {
        let Some(device) = reading.device.as_deref().or(target.device) else {
            let detail = "nobody to attribute it to: name a device";
            return Err(Reject::leaf(Reason::Unsupported, reading.metric, detail));
        };
        if let Err(e) = check_name(device) {
            let leaf: String = device.chars().take(64).flat_map(char::escape_default).collect();
            return Err(Reject::leaf(Reason::BadName, leaf, format!("device {e}")));
        }
        let series = self
            .catalog
            .resolve(device, &reading.metric)
            .map_err(|e| Reject::leaf(Reason::Limit, reading.metric.clone(), e))?;
        if let Some(unit) = &reading.unit {
            self.catalog.tell_unit(&series, unit);
        }
        let (time_us, mut flags) = self.time(&series, reading.stamp, arrival);
        if reading.inexact {
            flags |= flag::INEXACT;
            self.metrics.inexact.inc();
        }
        parcel.readings.push(series.id, time_us, reading.value, flags);
        Ok(())
    }

    fn time(&self, series: &Series, stamp: Stamp, arrival: Arrival) -> (Micros, u8) {
        let us = match stamp {
            Stamp::None => return (series.assign_time(arrival.now_us), arrival.flags()),
            Stamp::At(us) => us,
            // The one that is nearer to now: devices send soon after they have measured.
            Stamp::Twice(earlier, later) => {
                let is_later = (arrival.now_us - later).abs() < (arrival.now_us - earlier).abs();
                if arrival.is_clock_set() && is_later { later } else { earlier }
            }
            Stamp::Relative(us) => {
                let us = arrival.now_us.saturating_add(us).min(LAST_US);
                if arrival.clock == Quality::Unset {
                    // As wrong as the clock that it is counted from, and put right with it.
                    return (us, arrival.flags());
                }
                us
            }
        };
        if us < PLAUSIBLE_FROM_US {
            self.metrics.restamped.inc();
            return (series.assign_time(arrival.now_us), arrival.flags() | flag::RESTAMPED);
        }
        let future = arrival.is_clock_set() && us > arrival.now_us.saturating_add(self.max_skew_us);
        if future {
            self.metrics.future.inc();
        }
        (us, arrival.flags() | flag::STAMPED | if future { flag::FUTURE } else { 0 })
    }

    /// Counts rejects and keeps the first of them with the beginning of the payload.
    fn keep_rejects(&self, source: &str, rejects: &[Reject], payload: &[u8], arrival: Arrival, parcel: &mut Parcel) {
        for (i, reject) in rejects.iter().enumerate() {
            self.metrics.reject(reject.reason);
            if i < REJECTS_PER_MESSAGE {
                parcel.rejects.push(Rejected {
                    received_us: arrival.now_us,
                    source: source.chars().take(REJECT_TEXT_CHARS).collect(),
                    reason: reject.reason.as_str(),
                    detail: reject.to_string().chars().take(REJECT_TEXT_CHARS).collect(),
                    payload: payload[..payload.len().min(REJECT_PAYLOAD_BYTES)].into(),
                });
            }
        }
    }
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// Readings taken.
    pub accepted: usize,
    /// What was not.
    pub rejects: Vec<Reject>,
}

impl Arrival {
    fn is_clock_set(self) -> bool {
        self.clock != Quality::Unset
    }

    fn flags(self) -> u8 {
        if self.clock == Quality::Vouched { 0 } else { flag::CLOCK_UNSET }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use model::time::SECOND_US;
    use std::sync::atomic::AtomicI64;

    const NOW_US: Micros = 1_800_000_000 * SECOND_US;

    fn admission() -> Admission {
        let clock = Clock::Manual(Arc::new(AtomicI64::new(NOW_US)));
        let rules = Config::default().rules().unwrap();
        let catalog = Arc::new(Catalog::new(2, 10, 0));
        Admission::new(catalog, clock, Arc::default(), TimeZone::UTC, 3_600 * SECOND_US, rules)
    }

    fn publish(admission: &Admission, routes: &mut Routes, topic: &str, payload: &str) -> Parcel {
        let mut parcel = Parcel::default();
        admission.publication(routes, topic, payload.as_bytes(), admission.arrival(), &mut parcel);
        parcel
    }

    #[test]
    fn a_metric_may_turn_from_number_to_text_and_back() {
        let (admission, mut routes) = (admission(), Routes::default());
        for (payload, kind) in
            [("21.5", flag::NUMBER), ("offline", flag::TEXT), ("on", flag::BOOL), ("22", flag::NUMBER)]
        {
            let parcel = publish(&admission, &mut routes, "devices/a/t", payload);
            assert_eq!(parcel.readings.flags, [kind], "{payload}");
            assert_eq!(parcel.readings.series, [0]);
        }
    }

    #[test]
    fn unstamped_readings_of_one_moment_keep_their_own_times() {
        let (admission, mut routes) = (admission(), Routes::default());
        let times: Vec<_> =
            (0..3).map(|_| publish(&admission, &mut routes, "devices/a/t", "1").readings.time_us[0]).collect();
        assert_eq!(times, [NOW_US, NOW_US + 4, NOW_US + 8]);
    }

    /// Clocks in Berlin show 02:30 twice on that day; the gateway hears both as they are shown.
    #[test]
    fn the_hour_that_comes_twice_is_two_hours() {
        let clock_us = Arc::new(AtomicI64::new(0));
        let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let rules = Config::default().rules().unwrap();
        let catalog = Arc::new(Catalog::new(2, 10, 0));
        let clock = Clock::Manual(Arc::clone(&clock_us));
        let admission = Admission::new(catalog, clock, Arc::default(), berlin, 3_600 * SECOND_US, rules);
        let mut routes = Routes::default();
        let payload = r#"{"value":1,"Time":"2026-10-25T02:30:00"}"#;
        for now in ["2026-10-25T00:30:02Z", "2026-10-25T01:30:02Z"] {
            clock_us.store(model::time::parse(now, &TimeZone::UTC).unwrap(), std::sync::atomic::Ordering::Relaxed);
            let parcel = publish(&admission, &mut routes, "devices/a/t", payload);
            let want = clock_us.load(std::sync::atomic::Ordering::Relaxed) - 2 * SECOND_US;
            assert_eq!(parcel.readings.time_us[0], want, "{now}");
        }
    }

    #[test]
    fn stamps_not_taken_at_their_word_are_flagged_and_counted() {
        let (admission, mut routes) = (admission(), Routes::default());
        let parcel = publish(&admission, &mut routes, "devices/a/t", r#"{"value":1,"time":"1970-01-01T00:00:09Z"}"#);
        assert_eq!((parcel.readings.time_us[0], parcel.readings.flags[0]), (NOW_US, flag::RESTAMPED));
        let parcel = publish(&admission, &mut routes, "devices/a/t", r#"{"value":1,"time":"3000-01-01T00:00:00Z"}"#);
        assert_eq!(parcel.readings.flags[0], flag::STAMPED | flag::FUTURE);
        assert_eq!((admission.metrics.restamped.get(), admission.metrics.future.get()), (1, 1));
    }

    #[test]
    fn other_topics_are_no_readings_until_the_rules_say_so() {
        let (admission, mut routes) = (admission(), Routes::default());
        assert!(publish(&admission, &mut routes, "esp/t/state", "1").is_empty());
        let rule = crate::decode::topic::Rule::new("{device}/{metric}/state", None, None, Format::Auto).unwrap();
        admission.set_rules(Rules(vec![rule]));
        assert_eq!(publish(&admission, &mut routes, "esp/t/state", "1").readings.len(), 1);
    }

    #[test]
    fn beyond_the_limits_readings_are_rejected_by_name() {
        let (admission, mut routes) = (admission(), Routes::default());
        for device in ["a", "b", "c"] {
            let parcel = publish(&admission, &mut routes, &format!("devices/{device}/t"), "1");
            assert_eq!(parcel.rejects.len(), usize::from(device == "c"), "{device}");
        }
    }

    #[test]
    fn a_bad_device_name_is_a_reject() {
        let (admission, mut routes) = (admission(), Routes::default());
        let parcel = publish(&admission, &mut routes, "devices//t", "1");
        assert_eq!(parcel.rejects[0].detail, "device name is empty");
        assert_eq!(parcel.rejects[0].reason, "bad_name");
    }
}
