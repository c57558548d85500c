//! Payloads of every format, through the one door: what is counted is what was handed on, and the same bytes come to
//! the same.

use super::{LIMITS, choice, zone};
use crate::catalog::Birth;
use crate::decode::line::{Dialect, Lines, Precision};
use crate::decode::node::NODES_MAX;
use crate::decode::posted::Body;
use crate::decode::{self, Format, Reading, Reject, Sink, Stamp, Target, UNIT_BYTES_MAX};
use crate::journal::Parcel;
use crate::listen::admit::{Admission, Admitted, Origin, REJECTS_NAMED, Routes, Taking};
use crate::readings::flag;
use jiff::tz::TimeZone;
use model::{Micros, Value, check_name};
use xxhash_rust::xxh3::Xxh3;

/// The longest state text.
const TEXT_BYTES_MAX: usize = 1_024;
/// What is said of a reject.
const REJECT_BYTES_MAX: usize = 2_000;

/// Counts what it is given, and keeps a hash of it.
struct Tally {
    hash: Xxh3,
    readings: usize,
    rejects: usize,
    missing: usize,
}

impl Tally {
    fn of(payload: impl FnOnce(&mut Tally)) -> Self {
        let mut tally = Tally { hash: Xxh3::new(), readings: 0, rejects: 0, missing: 0 };
        payload(&mut tally);
        tally
    }

    fn all(&self) -> (u64, usize, usize, usize) {
        (self.hash.digest(), self.readings, self.rejects, self.missing)
    }

    fn pieces(&self) -> usize {
        self.readings + self.rejects + self.missing
    }
}

impl Sink for Tally {
    fn reading(&mut self, reading: Reading<'_>) {
        self.readings += 1;
        assert_eq!(check_name(reading.metric), Ok(()));
        match &reading.value {
            Value::Number(n) => assert!(n.is_finite()),
            Value::Text(text) => assert!(text.len() <= TEXT_BYTES_MAX),
            Value::Bool(_) => {}
        }
        match reading.stamp {
            Stamp::At(us) => is_time(us),
            Stamp::Twice(earlier, later) => {
                is_time(earlier);
                is_time(later);
                assert!(earlier < later);
            }
            Stamp::None | Stamp::Relative(_) => {}
        }
        // Formatting is slow, so only of what is not most of it.
        self.hash.update(reading.metric.as_bytes());
        self.hash.update(reading.device.unwrap_or_default().as_bytes());
        // A long one may come with every reading of a payload, and is left out at the door.
        self.hash.update(reading.unit.filter(|unit| unit.len() <= UNIT_BYTES_MAX).unwrap_or_default().as_bytes());
        match &reading.value {
            Value::Number(n) => self.hash.update(&n.to_bits().to_le_bytes()),
            other => self.hash.update(format!("{other:?}").as_bytes()),
        }
        if reading.stamp != Stamp::None {
            self.hash.update(format!("{:?}", reading.stamp).as_bytes());
        }
    }

    fn reject(&mut self, reject: Reject) {
        self.rejects += 1;
        let text = reject.to_string();
        assert!(text.len() <= REJECT_BYTES_MAX, "{} bytes: {}", text.len(), &text[..text.floor_char_boundary(100)]);
        self.hash.update(text.as_bytes());
    }

    fn missing(&mut self) {
        self.missing += 1;
    }
}

fn is_time(us: Micros) {
    assert!((model::time::FIRST_US..=model::time::LAST_US).contains(&us), "{us}");
}

fn target(choice: u8) -> Target<'static> {
    Target { device: (choice & 8 != 0).then_some("d"), metric: (choice & 16 != 0).then_some("m") }
}

/// A payload by its format. First byte: format, target, zone.
pub fn payload(data: &[u8]) {
    let (choice, payload) = choice(data);
    let format = match choice & 7 {
        0 => Format::Text,
        1 => Format::Json,
        2 => Format::Cbor,
        3 => Format::Senml,
        _ => Format::Auto,
    };
    let (target, zone) = (target(choice), zone(choice & 32 != 0));
    let decoded = || Tally::of(|tally| decode::decode(target, format, payload, &zone, tally));
    let tally = decoded();
    assert_eq!(tally.all(), decoded().all());
    // A record of SenML may hold a value, a sum and a time that cannot be read.
    assert!(tally.pieces() <= 1 + 2 * payload.len() && tally.pieces() <= 2 * NODES_MAX, "{}", tally.pieces());
    let admission = super::admission(zone);
    let mut parcel = Parcel::default();
    let origin = Origin { source: "fuzz", client: "c" };
    let admitted = admission.payload(origin, target, format, payload, admission.arrival(), &mut parcel);
    check(&admission, &admitted, &parcel, &tally);
}

/// A message to a topic, thrice: the way that is remembered leads where the long one does. First byte: topic, zone.
pub fn publication(data: &[u8]) {
    let (choice, payload) = choice(data);
    let topics = ["devices/d/m", "devices/d", "devices//", "devices/d/value", "tele/d/SENSOR", "a/b/c", "$SYS/a", ""];
    let admission = super::admission(zone(choice & 32 != 0));
    let origin = Origin { source: topics[usize::from(choice) % topics.len()], client: "c" };
    let (mut known, mut unknown) = (Routes::default(), Routes::default());
    let take = |routes: &mut Routes| {
        let mut parcel = Parcel::default();
        let refused = admission.publication(routes, origin, payload, admission.arrival(), &mut parcel);
        (refused, parcel)
    };
    // Names are given away in the first, so that the others find the same.
    take(&mut known);
    let (straight, way) = (take(&mut known), take(&mut unknown));
    assert_eq!(straight.0, way.0);
    let (a, b) = (straight.1.readings, way.1.readings);
    assert_eq!((&a.series, &a.flags, &a.texts), (&b.series, &b.flags, &b.texts));
    let bits = |numbers: &[f64]| numbers.iter().map(|n| n.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&a.number), bits(&b.number));
    for row in 0..a.len() {
        assert!(a.flags[row] & flag::STAMPED == 0 || a.time_us[row] == b.time_us[row]);
    }
    assert_eq!(straight.1.rejects.len(), way.1.rejects.len());
}

/// The body of a `POST /v1/readings`. First byte: kind, zone.
pub fn posted(data: &[u8]) {
    let (choice, body) = choice(data);
    let kind = match choice & 7 {
        0 => Body::Lines,
        1 => Body::Cbor,
        2 => Body::SenmlJson,
        3 => Body::SenmlCbor,
        _ => Body::Json,
    };
    let zone = zone(choice & 32 != 0);
    let decoded = |zone: &TimeZone| {
        let mut outcome = Ok(());
        let tally = Tally::of(|tally| outcome = decode::posted::decode(body, kind, zone, tally));
        (outcome, tally)
    };
    let (outcome, tally) = decoded(&zone);
    let (again, same) = decoded(&zone);
    assert_eq!((&outcome, tally.all()), (&again, same.all()));
    assert!(tally.pieces() <= 1 + 2 * body.len(), "{}", tally.pieces());
    let admission = super::admission(zone);
    let mut parcel = Parcel::default();
    let origin = Origin { source: "fuzz", client: "c" };
    match admission.posted(origin, kind, body, admission.arrival(), &mut parcel) {
        Ok(admitted) => check(&admission, &admitted, &parcel, &tally),
        Err(reject) => assert_eq!(Err(reject), outcome),
    }
}

/// Line protocol, at once and in parts. First byte: precision.
pub fn lines(data: &[u8]) {
    let (choice, body) = choice(data);
    let precision = match choice & 7 {
        0 => Precision::Hours,
        1 => Precision::Minutes,
        2 => Precision::Seconds,
        3 => Precision::Millis,
        4 => Precision::Micros,
        5 => Precision::Nanos,
        _ => Precision::Auto,
    };
    let tally = Tally::of(|tally| {
        let tags = ["host".to_owned(), "device".to_owned()];
        let (mut lines, dialect) = (Lines::new(body), Dialect { precision, device_tags: &tags });
        let mut many = 0;
        while lines.next(dialect, tally) {
            many += 1;
        }
        assert!(many <= body.len());
    });
    assert!(tally.pieces() <= body.len(), "{}", tally.pieces());
    let take = |rows: usize| {
        let admission = super::admission(TimeZone::UTC);
        let origin = Origin { source: "fuzz", client: "c" };
        let mut taking = Taking::of_lines(&admission, origin, admission.arrival(), body);
        let (mut lines, mut whole) = (Lines::new(body), Parcel::default());
        loop {
            let mut parcel = Parcel::default();
            let more = taking.lines(&mut lines, precision, rows, &mut parcel);
            whole.readings.append(&mut parcel.readings);
            whole.rejects.append(&mut parcel.rejects);
            if !more {
                let admitted = taking.finish();
                check(&admission, &admitted, &whole, &tally);
                return (admitted, whole.readings);
            }
        }
    };
    let (at_once, in_parts) = (take(usize::MAX), take(1));
    assert_eq!(at_once.0, in_parts.0);
    assert_eq!(format!("{:?}", at_once.1), format!("{:?}", in_parts.1));
}

/// What came through the door is what the decoder handed on, and within the limits.
fn check(admission: &Admission, admitted: &Admitted, parcel: &Parcel, tally: &Tally) {
    let Admitted { accepted, rejected, missing, rejects } = admitted;
    let readings = &parcel.readings;
    let rows = readings.len();
    assert_eq!([readings.time_us.len(), readings.flags.len(), readings.number.len()], [rows; 3]);
    // Of two values for one moment both are rows, and one is a reject.
    assert!(*accepted <= rows && rows <= accepted + rejected, "{accepted} {rows} {rejected}");
    assert_eq!(*missing, tally.missing);
    assert!(accepted + rejected >= tally.readings && accepted + rejected <= tally.readings + tally.rejects);
    assert!(rejects.len() <= REJECTS_NAMED && parcel.rejects.len() <= 20);
    readings.time_us.iter().for_each(|&us| is_time(us));
    readings.texts.iter().for_each(|(row, text)| {
        assert!((*row as usize) < rows && text.len() <= TEXT_BYTES_MAX);
    });
    let (devices, series) = admission.catalog.counts();
    assert!(devices <= LIMITS.devices && series <= LIMITS.series);
    assert!(readings.series.iter().all(|&id| (id as usize) < series));
    for birth in admission.catalog.take_births() {
        let (Birth::Series(series) | Birth::Unit(series)) = birth else { continue };
        assert_eq!((check_name(&series.device.name), check_name(&series.metric)), (Ok(()), Ok(())));
        assert!(series.unit().is_none_or(|unit| unit.len() <= UNIT_BYTES_MAX));
    }
}
