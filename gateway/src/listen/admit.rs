//! From decoded names to series and times: the one door for all protocols.
//!
//! Arrives: what a message was addressed to, its payload, and who sent it. Leaves: rows, rejects and counts
//! in a [`Parcel`]. Always holds: every reading gets an event time here, and every stamp that
//! is not taken at its word is flagged, counted and named; two values for one moment in one payload are named.

use super::unmatched::{Topic, Unmatched};
use crate::catalog::{Catalog, Removed, Series};
use crate::clock::{Clock, Quality};
use crate::decode::flat::{self, Plain};
use crate::decode::line::{Dialect, Lines, Precision};
use crate::decode::posted::{self, Body};
use crate::decode::topic::Rules;
use crate::decode::{self, Format, Reading, Reason, Reject, Sink, Stamp, Target, UNIT_BYTES_MAX};
use crate::journal::{Parcel, Rejected};
use crate::metrics::Metrics;
use crate::readings::flag;
use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashTable};
use jiff::tz::TimeZone;
use model::time::LAST_US;
use model::{Micros, Value, check_name};
use smallvec::SmallVec;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// The beginning of a rejected payload that is kept.
const REJECT_PAYLOAD_BYTES: usize = 1_024;
/// Rejects kept of one message; the rest are counted.
const REJECTS_PER_MESSAGE: usize = 20;
/// Rejects of one message that its answer names.
pub(crate) const REJECTS_NAMED: usize = 1_000;
/// Identities of one payload that are compared with each other: 17 MiB of them.
const IDENTITIES_MAX: usize = 1 << 20;
/// Rejects of one client that are kept in a minute; the rest are counted.
const KEPT_OF_ONE: usize = 1_000;
const KEPT_EVERY_US: Micros = 60 * model::time::SECOND_US;
const KEPT_CLIENTS_MAX: usize = 10_000;
/// Topics whose series a listener remembers.
const ROUTES_MAX: usize = 50_000;
/// A topic longer than this is matched each time.
const ROUTE_BYTES_MAX: usize = 256;
/// Metrics of an object that a route remembers.
const ROUTE_FIELDS_MAX: usize = 32;
/// What is kept of a reject's source and detail.
const REJECT_TEXT_CHARS: usize = 300;

/// What every listener shares.
pub(crate) struct Admission {
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
    /// `influx.device_tags`.
    pub device_tags: Vec<String>,
    /// What no rule takes.
    pub unmatched: Unmatched,
    /// Since when, and how many rejects of each client have been kept.
    kept: Mutex<HashMap<Box<str>, (Micros, usize), RandomState>>,
    rules: RwLock<Arc<Rules>>,
    generation: AtomicU64,
}

/// What a listener remembers of topics it has seen, so that a topic is matched once.
#[derive(Default)]
pub(crate) struct Routes {
    generation: u64,
    known: HashMap<Box<str>, Route, RandomState>,
}

enum Route {
    /// Not readings.
    Other(Arc<Topic>),
    /// Where plain payloads and plain objects go.
    Known(Box<Known>),
    /// The payload has to be looked at.
    Decode,
}

/// A topic of a device, and the series that its payloads have led to.
#[derive(Default)]
struct Known {
    /// A plain number goes straight to this one.
    plain: Option<Arc<Series>>,
    /// A plain object's metrics, in the order in which they came first.
    fields: SmallVec<[(Box<str>, Arc<Series>); 8]>,
    /// The topic names a metric.
    is_metric: bool,
}

/// When a message arrived, read once for all that arrived together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival {
    /// The gateway's time.
    pub now_us: Micros,
    clock: Quality,
}

/// Where a message came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin<'a> {
    /// The topic, path or resource, as `/v1/rejects` shows it.
    pub source: &'a str,
    /// The user, or else the address: new names are rationed by it.
    pub client: &'a str,
}

impl Admission {
    /// Everything that listeners share, with the ingest rules of the start.
    pub(crate) fn new(
        catalog: Arc<Catalog>,
        clock: Clock,
        metrics: Arc<Metrics>,
        zone: TimeZone,
        max_skew_us: Micros,
        device_tags: Vec<String>,
        rules: Rules,
    ) -> Self {
        Admission {
            catalog,
            clock,
            metrics,
            zone,
            max_skew_us,
            device_tags,
            unmatched: Unmatched::default(),
            kept: Mutex::default(),
            rules: RwLock::new(Arc::new(rules)),
            generation: AtomicU64::new(1),
        }
    }

    /// Replaces the ingest rules; messages from now on follow them.
    pub(crate) fn set_rules(&self, rules: Rules) {
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Removes a device, or one metric of it, see [`Catalog::remove`].
    pub(crate) fn remove(&self, device: &str, metric: Option<&str>) -> Option<Arc<Removed>> {
        let removed = self.catalog.remove(device, metric)?;
        // What listeners remember leads to series that are no more.
        self.generation.fetch_add(1, Ordering::Release);
        Some(removed)
    }

    fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// True if another reject of a client is kept: one that only sends rejects must not push out all others'.
    fn may_keep(&self, client: &str, now_us: Micros) -> bool {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() > KEPT_CLIENTS_MAX {
            kept.clear();
        }
        let entry = kept.entry(client.into()).or_insert((now_us, 0));
        if !(0..KEPT_EVERY_US).contains(&(now_us - entry.0)) {
            *entry = (now_us, 0);
        }
        entry.1 += 1;
        entry.1 <= KEPT_OF_ONE
    }

    /// The moment now.
    pub(crate) fn arrival(&self) -> Arrival {
        let now_us = self.clock.now_us();
        Arrival { now_us, clock: self.clock.quality_at(now_us) }
    }

    /// Takes a message that was published to `topic`; one that no rule matches is no reading. Says why if
    /// nothing of it was kept.
    pub(crate) fn publication(
        &self,
        routes: &mut Routes,
        origin: Origin<'_>,
        payload: &[u8],
        arrival: Arrival,
        parcel: &mut Parcel,
    ) -> Option<Reject> {
        let topic = origin.source;
        let generation = self.generation.load(Ordering::Acquire);
        if routes.generation != generation || routes.known.len() > ROUTES_MAX {
            routes.known.clear();
            routes.generation = generation;
        }
        if let Some(route) = routes.known.get_mut(topic) {
            return match route {
                Route::Other(seen) => {
                    seen.count(payload.len(), arrival.now_us);
                    self.metrics.unmatched.inc();
                    None
                }
                Route::Known(known) if self.straight(known, payload, arrival, parcel) => None,
                Route::Known(known) => self.matched(origin, Some(known), payload, arrival, parcel),
                Route::Decode => self.matched(origin, None, payload, arrival, parcel),
            };
        }
        let mut route = match self.rules().route(topic) {
            None => {
                let seen = self.unmatched.see(topic, payload.len(), arrival.now_us);
                self.metrics.unmatched.inc();
                Route::Other(seen)
            }
            Some((Target { device: Some(device), metric }, Format::Auto | Format::Json | Format::Text))
                if check_name(device).is_ok() && metric.is_none_or(|metric| check_name(metric).is_ok()) =>
            {
                Route::Known(Box::new(Known { is_metric: metric.is_some(), ..Known::default() }))
            }
            Some(_) => Route::Decode,
        };
        let refused = match &mut route {
            Route::Other(_) => None,
            Route::Known(known) => self.matched(origin, Some(known), payload, arrival, parcel),
            Route::Decode => self.matched(origin, None, payload, arrival, parcel),
        };
        if topic.len() <= ROUTE_BYTES_MAX {
            routes.known.insert(topic.into(), route);
        }
        refused
    }

    /// Takes a plain number, or an object of plain fields, whose series are known; false leaves all as it was.
    #[inline]
    fn straight(&self, known: &Known, payload: &[u8], arrival: Arrival, parcel: &mut Parcel) -> bool {
        if let Some(series) = &known.plain
            && let Some(n) = decode::plain_number(payload)
        {
            parcel.readings.push_number(series.id, series.assign_time(arrival.now_us), n, arrival.flags());
            return true;
        }
        if known.fields.is_empty() || payload.first() != Some(&b'{') {
            return false;
        }
        let Some(flat) = flat::read(payload, known.is_metric, &self.zone) else { return false };
        // Every field has to be known before the first is taken.
        let mut series: SmallVec<[&Arc<Series>; 8]> = SmallVec::new();
        for (at, (key, _)) in flat.fields.iter().enumerate() {
            let usual = known.fields.get(at).filter(|(name, _)| **name == **key);
            match usual.or_else(|| known.fields.iter().find(|(name, _)| **name == **key)) {
                Some((_, found)) => series.push(found),
                None => return false,
            }
        }
        if matches!(flat.stamp, Stamp::At(us) | Stamp::Twice(us, _) if decode::is_unset(us)) {
            return false; // has to be named
        }
        for ((_, value), series) in flat.fields.iter().zip(series) {
            let (time_us, flags) = self.time(series, flat.stamp, arrival);
            match value {
                Plain::Number(n) => parcel.readings.push_number(series.id, time_us, *n, flags),
                Plain::Bool(b) => parcel.readings.push(series.id, time_us, Value::Bool(*b), flags),
            }
        }
        true
    }

    fn matched(
        &self,
        origin: Origin<'_>,
        known: Option<&mut Known>,
        payload: &[u8],
        arrival: Arrival,
        parcel: &mut Parcel,
    ) -> Option<Reject> {
        let rules = self.rules();
        let (target, format) = rules.route(origin.source)?;
        if let (Some(known), Some(device)) = (known, target.device) {
            self.remember(known, device, target.metric, format, payload, origin.client);
        }
        let admitted = self.payload(origin, target, format, payload, arrival, parcel);
        admitted.first_lost().filter(|_| admitted.accepted == 0).cloned()
    }

    /// Notes which series a plain payload leads to, for the next one.
    fn remember(
        &self,
        known: &mut Known,
        device: &str,
        metric: Option<&str>,
        format: Format,
        payload: &[u8],
        client: &str,
    ) {
        if let Some(metric) = metric
            && known.plain.is_none()
            && format != Format::Json
            && decode::plain_number(payload).is_some()
        {
            known.plain = self.catalog.resolve(device, metric, client).ok();
        }
        if format == Format::Text || payload.first() != Some(&b'{') {
            return;
        }
        let Some(flat) = flat::read(payload, known.is_metric, &self.zone) else { return };
        for (key, _) in flat.fields {
            let is_known = known.fields.iter().any(|(name, _)| **name == *key);
            let name = match metric {
                None => key.to_owned(),
                Some(metric) if key == "value" => metric.to_owned(),
                Some(metric) => format!("{metric}.{key}"),
            };
            if !is_known
                && known.fields.len() < ROUTE_FIELDS_MAX
                && check_name(&name).is_ok()
                && let Ok(series) = self.catalog.resolve(device, &name, client)
            {
                known.fields.push((key.into(), series));
            }
        }
    }

    /// Takes a payload that was addressed to `target`; says how many readings it held.
    pub(crate) fn payload(
        &self,
        origin: Origin<'_>,
        target: Target<'_>,
        format: Format,
        payload: &[u8],
        arrival: Arrival,
        parcel: &mut Parcel,
    ) -> Admitted {
        let mut taking = Taking::new(self, origin, target, arrival, payload);
        decode::decode(target, format, payload, &self.zone, &mut taking.filling(parcel));
        taking.finish()
    }

    /// Takes the body of a `POST /v1/readings`; an error means that nothing of it can be read.
    pub(crate) fn posted(
        &self,
        origin: Origin<'_>,
        kind: Body,
        body: &[u8],
        arrival: Arrival,
        parcel: &mut Parcel,
    ) -> Result<Admitted, Reject> {
        let mut taking = Taking::new(self, origin, Target::default(), arrival, body);
        posted::decode(body, kind, &self.zone, &mut taking.filling(parcel))
            .inspect_err(|reject| self.metrics.reject(reject.reason))?;
        Ok(taking.finish())
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
        if decode::is_unset(us) {
            self.metrics.restamped.inc();
            return (series.assign_time(arrival.now_us), arrival.flags() | flag::RESTAMPED);
        }
        let future = arrival.is_clock_set() && us > arrival.now_us.saturating_add(self.max_skew_us);
        if future {
            self.metrics.future.inc();
        }
        (us, arrival.flags() | flag::STAMPED | if future { flag::FUTURE } else { 0 })
    }
}

/// A payload on its way into parcels.
pub(crate) struct Taking<'a> {
    admission: &'a Admission,
    origin: Origin<'a>,
    target: Target<'a>,
    arrival: Arrival,
    payload: &'a [u8],
    index: usize,
    admitted: Admitted,
    rejects_kept: usize,
    stamped: Stamped,
}

/// A parcel and what fills it.
struct Filling<'t, 'a> {
    taking: &'t mut Taking<'a>,
    parcel: &'t mut Parcel,
}

impl<'a> Taking<'a> {
    fn new(
        admission: &'a Admission,
        origin: Origin<'a>,
        target: Target<'a>,
        arrival: Arrival,
        payload: &'a [u8],
    ) -> Self {
        let (admitted, stamped) = (Admitted::default(), Stamped::default());
        Taking { admission, origin, target, arrival, payload, index: 0, admitted, rejects_kept: 0, stamped }
    }

    /// A body of line protocol; [`Taking::lines`] takes it, part by part.
    pub(crate) fn of_lines(admission: &'a Admission, origin: Origin<'a>, arrival: Arrival, body: &'a [u8]) -> Self {
        Taking::new(admission, origin, Target::default(), arrival, body)
    }

    /// Takes lines until the parcel holds `rows`; false behind the last line.
    pub(crate) fn lines(
        &mut self,
        lines: &mut Lines<'_>,
        precision: Precision,
        rows: usize,
        parcel: &mut Parcel,
    ) -> bool {
        let admission = self.admission;
        let dialect = Dialect { precision, device_tags: &admission.device_tags };
        // Lines that hold nothing to keep end a part, too.
        for _ in 0..rows {
            if parcel.readings.len() >= rows {
                return true;
            }
            if !lines.next(dialect, &mut self.filling(parcel)) {
                return false;
            }
        }
        true
    }

    fn filling<'t>(&'t mut self, parcel: &'t mut Parcel) -> Filling<'t, 'a> {
        Filling { taking: self, parcel }
    }

    /// What became of the payload.
    pub(crate) fn finish(self) -> Admitted {
        self.admitted
    }

    /// Counts a reject, names it in the answer, and keeps the first with the beginning of the payload.
    fn reject(&mut self, reject: Reject, parcel: &mut Parcel) {
        self.admission.metrics.reject(reject.reason);
        if !reject.kept {
            self.admitted.rejected += 1;
        }
        if self.rejects_kept < REJECTS_PER_MESSAGE && self.admission.may_keep(self.origin.client, self.arrival.now_us) {
            self.rejects_kept += 1;
            parcel.rejects.push(Rejected {
                received_us: self.arrival.now_us,
                source: self.origin.source.chars().take(REJECT_TEXT_CHARS).collect(),
                reason: reject.reason.as_str(),
                detail: reject.to_string().chars().take(REJECT_TEXT_CHARS).collect(),
                payload: self.payload[..self.payload.len().min(REJECT_PAYLOAD_BYTES)].into(),
            });
        }
        if self.admitted.rejects.len() < REJECTS_NAMED {
            self.admitted.rejects.push((self.index, reject));
        }
    }

    fn take(&mut self, reading: Reading<'_>, parcel: &mut Parcel) -> Result<(), Reject> {
        let Some(device) = reading.device.or(self.target.device) else {
            let detail = "nobody to attribute it to: name a device";
            return Err(Reject::leaf(Reason::Unsupported, reading.metric, detail));
        };
        decode::check_device(device)?;
        let admission = self.admission;
        let series = admission
            .catalog
            .resolve(device, reading.metric, self.origin.client)
            .map_err(|e| Reject::leaf(Reason::Limit, reading.metric, e))?;
        if let Some(unit) = reading.unit {
            self.unit(&series, unit, parcel);
        }
        let (time_us, mut flags) = admission.time(&series, reading.stamp, self.arrival);
        if flags & flag::RESTAMPED != 0 {
            let detail =
                "its time is of the year 1970, as of a clock that nobody has set: it counts as taken when it arrived";
            self.reject(Reject::kept(Reason::BadTime, reading.metric, detail), parcel);
        }
        if reading.inexact {
            flags |= flag::INEXACT;
            admission.metrics.inexact.inc();
        }
        if flags & flag::STAMPED != 0 && !self.stamped.is_new(series.id, time_us, &reading.value) {
            self.admitted.accepted -= 1;
            let detail = format!("two values for {}: the last one counts", model::time::format(time_us));
            self.reject(Reject::leaf(Reason::DuplicateKey, reading.metric, detail), parcel);
        }
        parcel.readings.push(series.id, time_us, reading.value, flags);
        Ok(())
    }

    fn unit(&mut self, series: &Arc<Series>, unit: &str, parcel: &mut Parcel) {
        if unit.len() > UNIT_BYTES_MAX || unit.chars().any(char::is_control) {
            let detail = format!("a unit has at most {UNIT_BYTES_MAX} bytes and no control characters: left out");
            self.reject(Reject::kept(Reason::TooLarge, &*series.metric, detail), parcel);
        } else {
            self.admission.catalog.tell_unit(series, unit, self.arrival.now_us);
        }
    }
}

impl Sink for Filling<'_, '_> {
    fn reading(&mut self, reading: Reading<'_>) {
        self.taking.admitted.accepted += 1;
        if let Err(reject) = self.taking.take(reading, self.parcel) {
            self.taking.admitted.accepted -= 1;
            self.taking.reject(reject, self.parcel);
        }
    }

    fn reject(&mut self, reject: Reject) {
        self.taking.reject(reject, self.parcel);
    }

    fn missing(&mut self) {
        self.taking.admission.metrics.missing.inc();
        self.taking.admitted.missing += 1;
    }

    fn element(&mut self, index: usize) {
        self.taking.index = index;
    }
}

/// The identities of a payload's stamped readings, each with a hash of its value.
#[derive(Default)]
struct Stamped {
    first: Option<(u32, Micros, u32)>,
    others: HashTable<(Micros, u32, u32)>,
    state: RandomState,
}

impl Stamped {
    /// Notes a reading; false if the payload had another value for the same series and time.
    fn is_new(&mut self, series: u32, time_us: Micros, value: &Value) -> bool {
        let hash = |value: &Value| match value {
            Value::Number(n) => self.state.hash_one(n.to_bits()) as u32,
            Value::Bool(b) => self.state.hash_one((b, 'b')) as u32,
            Value::Text(text) => self.state.hash_one(text) as u32,
        };
        let value = hash(value);
        // Most payloads hold one: nothing is allocated for it.
        let Some(first) = self.first else {
            self.first = Some((series, time_us, value));
            return true;
        };
        if first.0 == series && first.1 == time_us {
            self.first = Some((series, time_us, value));
            return first.2 == value;
        }
        // What a body may hold besides its bytes ends somewhere: then it is forgotten what came long before.
        if self.others.len() >= IDENTITIES_MAX {
            self.others.clear();
        }
        let place = |time_us: Micros, series: u32| self.state.hash_one((time_us, series));
        let entry = self.others.entry(
            place(time_us, series),
            |known| known.0 == time_us && known.1 == series,
            |known| place(known.0, known.1),
        );
        match entry {
            hashbrown::hash_table::Entry::Occupied(mut known) => {
                let before = std::mem::replace(&mut known.get_mut().2, value);
                before == value
            }
            hashbrown::hash_table::Entry::Vacant(vacant) => {
                vacant.insert((time_us, series, value));
                true
            }
        }
    }
}

/// What became of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Admitted {
    /// Readings taken.
    pub accepted: usize,
    /// Pieces that were not.
    pub rejected: usize,
    /// Values that say that there is none.
    pub missing: usize,
    /// The first of what was not taken, or not as it was sent, each with its place in the payload.
    pub rejects: Vec<(usize, Reject)>,
}

impl Admitted {
    /// The first piece that was not taken.
    pub(crate) fn first_lost(&self) -> Option<&Reject> {
        self.rejects.iter().map(|(_, reject)| reject).find(|reject| !reject.kept)
    }
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
    use crate::catalog::Limits;
    use crate::config::Config;
    use model::time::SECOND_US;
    use std::sync::atomic::AtomicI64;

    const NOW_US: Micros = 1_800_000_000 * SECOND_US;

    fn admission() -> Admission {
        let clock = Clock::Manual(Arc::new(AtomicI64::new(NOW_US)));
        let rules = Config::default().rules().unwrap();
        let catalog = Arc::new(Catalog::new(Limits { devices: 2, series: 10, client_share: 50 }, 0));
        Admission::new(catalog, clock, Arc::default(), TimeZone::UTC, 3_600 * SECOND_US, Vec::new(), rules)
    }

    fn publish(admission: &Admission, routes: &mut Routes, topic: &str, payload: &str) -> Parcel {
        let mut parcel = Parcel::default();
        let origin = Origin { source: topic, client: "c" };
        admission.publication(routes, origin, payload.as_bytes(), admission.arrival(), &mut parcel);
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

    /// The second payload of a topic goes a shorter way than the first.
    #[test]
    fn an_article_number_stays_a_text_however_often_it_comes() {
        let (admission, mut routes) = (admission(), Routes::default());
        for payload in ["007", "007", "7", "007", "0", "0.7"] {
            let parcel = publish(&admission, &mut routes, "devices/a/t", payload);
            assert_eq!(parcel.readings.text(0), (payload == "007").then_some("007"), "{payload}");
        }
    }

    /// A form feed is no space in JSON.
    #[test]
    fn what_is_no_json_is_refused_however_often_it_comes() {
        let (admission, mut routes) = (admission(), Routes::default());
        for (payload, rows) in [("{\"a\":1}\x0c", 0), ("{\"a\":1}\x0c", 0), ("{\"a\":1}\r\n", 1), ("{\"a\":1}\x0c", 0)]
        {
            let parcel = publish(&admission, &mut routes, "devices/a", payload);
            assert_eq!((parcel.readings.len(), parcel.rejects.len()), (rows, 1 - rows), "{payload:?}");
        }
    }

    #[test]
    fn a_whole_zero_has_no_sign_however_often_it_comes() {
        let (admission, mut routes) = (admission(), Routes::default());
        for (payload, want) in
            [("1", 1.0), ("-0", 0.0), ("-0.0", -0.0), (r#"{"value":-0}"#, 0.0), (r#"{"value":-0}"#, 0.0)]
        {
            let parcel = publish(&admission, &mut routes, "devices/a/t", payload);
            assert_eq!(parcel.readings.number[0].to_bits(), f64::to_bits(want), "{payload}");
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
        let catalog = Arc::new(Catalog::new(Limits { devices: 2, series: 10, client_share: 50 }, 0));
        let clock = Clock::Manual(Arc::clone(&clock_us));
        let admission = Admission::new(catalog, clock, Arc::default(), berlin, 3_600 * SECOND_US, Vec::new(), rules);
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
