//! Late, twice, out of order, across restarts and kills: answers and summaries end up as a
//! plain computation over the distinct readings has them.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tests::{Gateway, Stored, eventually, gateway, seed};

const LENGTH_S: i64 = 10;
/// Shortly before midnight, so that windows and chunks of two days are met; both are old.
const OLD_FROM_S: i64 = 1_709_251_200 - 300;
const SPAN_S: i64 = 600;

/// The distinct readings by series and time in microseconds; the last one sent counts.
type Readings = BTreeMap<(String, String), BTreeMap<i64, Value>>;

struct Fleet {
    random: StdRng,
    sent: Vec<(String, String, i64, Value)>,
    from_s: i64,
    /// How far the devices have come.
    now_s: i64,
}

impl Fleet {
    fn value(&mut self) -> Value {
        match self.random.random_range(0..12) {
            0 => json!("offline"),
            1 => json!(self.random.random_bool(0.5)),
            _ => json!(f64::from(self.random.random_range(10_000..10_400)) / 10.0),
        }
    }

    /// Some readings: mostly new ones, some late, some repeated, some corrected; shuffled.
    fn batch(&mut self) -> Vec<(String, String, i64, Value)> {
        self.now_s = (self.now_s + self.random.random_range(1..30)).min(self.from_s + SPAN_S);
        let mut batch = Vec::new();
        for _ in 0..self.random.random_range(1..80) {
            let luck = self.random.random_range(0..10);
            if luck < 2 && !self.sent.is_empty() {
                let at = self.random.random_range(0..self.sent.len());
                let (device, metric, time_us, value) = self.sent[at].clone();
                // Again as it was, or corrected.
                let value = if luck == 0 { value } else { self.value() };
                batch.push((device, metric, time_us, value));
                continue;
            }
            let (earliest_s, latest_s) =
                if luck < 5 { (self.from_s, self.now_s) } else { (self.from_s.max(self.now_s - 20), self.now_s) };
            let device = format!("d{}", self.random.random_range(0..3));
            let metric = ["t", "h"][self.random.random_range(0..2)].to_owned();
            let time_us = self.random.random_range(earliest_s * 10..=latest_s * 10) * 100_000;
            let value = self.value();
            batch.push((device, metric, time_us, value));
        }
        self.sent.extend(batch.iter().cloned());
        batch
    }
}

fn send(gateway: &Gateway, batch: &[(String, String, i64, Value)], readings: &mut Readings) {
    let line = |(device, metric, time_us, value): &(String, String, i64, Value)| {
        json!({"device": device, "metric": metric, "value": value, "time": time_us}).to_string()
    };
    let body: Vec<String> = batch.iter().map(line).collect();
    let (status, answer) = gateway.post("/v1/readings", "application/x-ndjson", body.join("\n").as_bytes());
    assert_eq!(status, 200, "{answer}");
    for (device, metric, time_us, value) in batch {
        readings.entry((device.clone(), metric.clone())).or_default().insert(*time_us, value.clone());
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Bool(b) => Some(f64::from(u8::from(*b))),
        value => value.as_f64(),
    }
}

/// What a window comes to: count, texts, sum, min, max, first, last, p90.
#[derive(Debug, Clone, PartialEq)]
struct Summary {
    count: u64,
    texts: u64,
    sum: f64,
    extremes: Option<(f64, f64)>,
    ends: (String, String),
    p90: Option<f64>,
}

/// As answers show it: booleans as numbers.
fn shown(value: &Value) -> String {
    number(value).map_or_else(|| value.as_str().unwrap_or_default().to_owned(), |n| format!("{n:?}"))
}

fn summarise<'a>(own: impl Iterator<Item = &'a Value>) -> Option<Summary> {
    let values: Vec<&Value> = own.collect();
    let mut numbers: Vec<f64> = values.iter().filter_map(|value| number(value)).collect();
    numbers.sort_by(f64::total_cmp);
    let n = numbers.len();
    Some(Summary {
        count: n as u64,
        texts: (values.len() - n) as u64,
        sum: numbers.iter().sum(),
        extremes: Some((*numbers.first().unwrap_or(&0.0), *numbers.last().unwrap_or(&0.0))).filter(|_| n > 0),
        ends: (shown(values.first()?), shown(values.last()?)),
        p90: (n > 0).then(|| numbers[(0.9 * n as f64 - 1e-9).ceil() as usize - 1]),
    })
}

type Windows = BTreeMap<(String, String, i64, i64), Summary>;

/// Windows of every series, clipped at the range's edges, those without readings left out.
fn expected(readings: &Readings, (from_s, to_s): (i64, i64), length_s: i64, every_s: i64) -> Windows {
    let mut windows = Windows::new();
    for ((device, metric), own) in readings {
        let first = (from_s - length_s).div_euclid(every_s) * every_s;
        for start_s in (first..to_s).step_by(every_s as usize) {
            let (begin_s, end_s) = (start_s.max(from_s), (start_s + length_s).min(to_s));
            if begin_s < end_s
                && let Some(summary) = summarise(own.range(begin_s * 1_000_000..end_s * 1_000_000).map(|(_, v)| v))
            {
                windows.insert((device.clone(), metric.clone(), begin_s, end_s), summary);
            }
        }
    }
    windows
}

/// The range of all readings.
fn span(from_s: i64) -> (i64, i64) {
    (from_s, from_s + SPAN_S + 1)
}

fn check_answers(gateway: &Gateway, readings: &Readings, range: (i64, i64), (length_s, every_s): (i64, i64)) {
    check(gateway, readings, range, (length_s, every_s), "p90");
}

/// Until then answers come from the readings themselves.
fn until_archived(gateway: &Gateway) {
    eventually("everything is in the archive", || {
        let store = gateway.get("/v1/status")["store"].clone();
        (store["archived_seq"] == store["last_seq"]).then_some(())
    });
}

/// Whole days and hours, as rollups hold them.
fn check_days(gateway: &Gateway, readings: &Readings, from_s: i64) {
    let day = from_s.div_euclid(86_400) * 86_400;
    for windows in [(86_400, 86_400), (3_600, 3_600), (7_200, 3_600)] {
        check(gateway, readings, (day - 86_400, day + 2 * 86_400), windows, "mean");
    }
}

fn check(gateway: &Gateway, readings: &Readings, range: (i64, i64), (length_s, every_s): (i64, i64), more: &str) {
    let path = format!(
        "/v1/aggregates?from={}&to={}&window={length_s}s&every={every_s}s&limit=97\
         &stats=count,text_count,sum,min,max,first,last,{more}",
        range.0, range.1
    );
    let rows = gateway.rows(&path);
    let want = expected(readings, range, length_s, every_s);
    assert_eq!(rows.len(), want.len(), "{path}");
    for row in &rows {
        let second = |name: &str| row[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_second();
        let text = |name: &str| row[name].as_str().unwrap().to_owned();
        let key = (text("device"), text("metric"), second("start"), second("end"));
        let want = want.get(&key).unwrap_or_else(|| panic!("{key:?} is not expected"));
        let got = Summary {
            count: row["count"].as_u64().unwrap(),
            texts: row["text_count"].as_u64().unwrap(),
            sum: row["sum"].as_f64().unwrap_or(0.0),
            extremes: row["min"].as_f64().zip(row["max"].as_f64()),
            ends: (shown(&row["first"]), shown(&row["last"])),
            p90: if more == "p90" { row["p90"].as_f64() } else { want.p90 },
        };
        assert!((got.sum - want.sum).abs() <= 1e-9 * want.sum.abs(), "{key:?}: {got:?} {want:?}");
        assert_eq!(got, Summary { sum: got.sum, ..want.clone() }, "{key:?}");
    }
}

/// The summaries in the store, once nothing is open or dirty any more.
fn check_summaries(gateway: &Gateway, readings: &Readings, from_s: i64, length_s: i64) {
    eventually("all windows are closed and clean", || {
        let windows = gateway.get("/v1/status")["windows"].clone();
        (windows["open"] == 0 && windows["dirty"] == 0).then_some(())
    });
    let want = expected(readings, span(from_s), length_s, length_s);
    // The last of them may still be on its way to the disk.
    eventually("the summaries equal a computation", || {
        let got: Windows =
            gateway.summaries(length_s)?.into_iter().map(|stored| shown_window(stored, from_s, length_s)).collect();
        let differs = |(key, want): &(&(String, String, i64, i64), &Summary)| {
            got.get(*key).is_none_or(|got| {
                (got.sum - want.sum).abs() > 1e-9 * want.sum.abs()
                    || *got != Summary { sum: got.sum, p90: got.p90, ..(*want).clone() }
                    || got.p90.zip(want.p90).is_some_and(|(got, want)| (got - want).abs() > 0.0055 * want.abs())
            })
        };
        let (different, more) = (want.iter().find(differs), got.keys().find(|key| !want.contains_key(*key)));
        if let Some((key, want)) = different {
            println!("{key:?}: {:?}, and should be {want:?}", got.get(key));
        }
        if let Some(key) = more {
            println!("{key:?} has a summary and no readings");
        }
        (different.is_none() && more.is_none()).then_some(())
    });
}

fn shown_window(stored: Stored, from_s: i64, length_s: i64) -> ((String, String, i64, i64), Summary) {
    let s = stored.summary;
    let end = |value: &model::Value| match value {
        model::Value::Text(text) => text.to_string(),
        value => format!("{:?}", value.as_number().unwrap_or(f64::NAN)),
    };
    let start_s = stored.start_us / 1_000_000;
    // Windows at the edges of the range are clipped in answers and whole here: the range is a
    // multiple of their length but for its last second.
    let end_s = (start_s + length_s).min(from_s + SPAN_S + 1);
    let summary = Summary {
        count: s.count,
        texts: s.texts,
        sum: s.sum,
        extremes: (s.count > 0).then_some((s.min, s.max)),
        ends: (end(&s.first.1), end(&s.last.1)),
        p90: s.quantile(0.9),
    };
    ((stored.device, stored.metric, start_s, end_s), summary)
}

#[test]
fn any_order_any_lateness_and_any_restart_end_in_the_same_answers() {
    lateness(OLD_FROM_S);
}

#[test]
fn the_same_holds_for_windows_of_today() {
    lateness(tests::now_s() / 60 * 60 - 2 * SPAN_S);
}

fn lateness(from_s: i64) {
    let seed = seed();
    let mut fleet = Fleet { random: StdRng::seed_from_u64(seed), sent: Vec::new(), from_s, now_s: from_s };
    let mut readings = Readings::new();
    let mut gateway = gateway()
        .set("window.length", "10s")
        .set("window.lateness", "1s")
        .set("window.memory", "256 KiB")
        .set("query.memory", "1 MiB")
        .set("archive.delay", "200ms")
        .set("window.rollups", "[\"1m\", \"1h\", \"1d\"]")
        .start();
    for round in 0..60 {
        let batch = fleet.batch();
        send(&gateway, &batch, &mut readings);
        match fleet.random.random_range(0..20) {
            0 => gateway.restart(),
            1 => {
                gateway.kill();
                gateway.start();
            }
            2..6 => {
                let (length_s, every_s) = [(10, 10), (60, 20), (7, 7), (86_400, 86_400)][round % 4];
                check_answers(&gateway, &readings, span(from_s), (length_s, every_s));
                check_days(&gateway, &readings, from_s);
            }
            _ => {}
        }
    }
    for windows in [(10, 10), (60, 20), (7, 7), (86_400, 86_400)] {
        check_answers(&gateway, &readings, span(from_s), windows);
    }
    check_summaries(&gateway, &readings, from_s, LENGTH_S);
    until_archived(&gateway);
    check_days(&gateway, &readings, from_s);
    gateway.kill();
    gateway.start();
    check_answers(&gateway, &readings, span(from_s), (60, 20));
    // Once more, late, into what has been closed and folded.
    let late = fleet.batch();
    send(&gateway, &late, &mut readings);
    check_answers(&gateway, &readings, span(from_s), (10, 10));
    check_summaries(&gateway, &readings, from_s, LENGTH_S);
    check_days(&gateway, &readings, from_s);
    if from_s == OLD_FROM_S {
        check_summaries(&gateway, &readings, from_s, 60);
    }
    // Other rollups: all that is archived is looked at again, twice and with what is late.
    for rollups in ["[\"1h\"]", "[\"1m\", \"2h\", \"1d\"]"] {
        let late = fleet.batch();
        send(&gateway, &late, &mut readings);
        gateway.set("window.rollups", rollups);
        gateway.restart();
    }
    check_summaries(&gateway, &readings, from_s, LENGTH_S);
    until_archived(&gateway);
    check_days(&gateway, &readings, from_s);
    check_answers(&gateway, &readings, span(from_s), (60, 20));
}
