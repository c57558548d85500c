//! A verification that cannot fail is worthless: an imaginary gateway tells the truth, then lies.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::ask::Stored;
use super::statistics::{Sample, windows};
use super::*;
use crate::ledger::read::Entry;

const START_US: i64 = 1_700_000_000_000_000;
const DEVICE: &str = "halle 3 & süd";

fn entry(value: &str, time_us: Option<i64>, sent_line: usize, acked_line: Option<usize>) -> Entry {
    Entry {
        device: DEVICE.into(),
        metric: "power".into(),
        time_us,
        value: value.to_owned(),
        attempt_count: 1,
        sent_line,
        acked_line,
    }
}

/// Five minutes of one reading a second.
fn honest_samples() -> Vec<Sample> {
    (0..300).map(|second| (START_US + second * 1_000_000, (second * second % 101) as f64 - 20.5)).collect()
}

fn ledger(samples: &[Sample]) -> Vec<Entry> {
    let sent = |(place, (time_us, value)): (usize, &Sample)| {
        entry(&value.to_string(), Some(*time_us), 2 * place, Some(2 * place + 1))
    };
    samples.iter().enumerate().map(sent).collect()
}

/// What a gateway that stores these samples answers, page by page, possibly with a lie.
struct Imaginary {
    samples: Vec<Sample>,
    lie: fn(&mut [Json]),
}

impl Imaginary {
    fn rows(&self, path: &str, query: &BTreeMap<String, String>) -> Vec<Json> {
        let time = |name: &str| clock::parse_time(&query[name]).unwrap();
        let range = Range { from_us: time("from"), to_us: time("to") };
        let named = |mut row: Json| {
            row["device"] = DEVICE.into();
            row["metric"] = "power".into();
            row
        };
        let mut rows: Vec<Json> = if path == "/v1/readings" {
            let row = |(time_us, value): &Sample| named(json!({"time": clock::rfc3339(*time_us), "value": value}));
            self.samples.iter().map(row).collect()
        } else {
            let window = parse_window(&query["window"]).unwrap();
            let row = |(start_us, (end_us, s)): (i64, (i64, statistics::Statistics))| {
                named(json!({
                    "start": clock::rfc3339(start_us), "end": clock::rfc3339(end_us),
                    "count": s.count, "sum": s.sum, "mean": s.mean, "min": s.min, "max": s.max,
                    "first": s.first, "last": s.last, "stddev": s.stddev, "p50": s.p50, "p95": s.p95,
                }))
            };
            windows(&self.samples, range, window.length_us).into_iter().map(row).collect()
        };
        (self.lie)(&mut rows);
        rows
    }

    /// Two pages, to see that the cursor is followed.
    fn answer(&self, target: &str) -> Json {
        let (path, query) = target.split_once('?').unwrap();
        let query: BTreeMap<String, String> =
            query.split('&').map(|pair| pair.split_once('=').unwrap()).map(|(k, v)| (k.into(), decoded(v))).collect();
        assert_eq!((query["device"].as_str(), query["metric"].as_str()), (DEVICE, "power"));
        let mut rows = self.rows(path, &query);
        let rest = rows.split_off(rows.len() / 2);
        match query.get("cursor").map(String::as_str) {
            None => json!({"rows": rows, "next": "second page/+="}),
            Some("second page/+=") => json!({"rows": rest, "next": null}),
            Some(other) => panic!("unexpected cursor {other}"),
        }
    }

    /// Serves until the test ends; answers the address.
    fn serve(self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut head = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                let Some(request) = head.next() else { continue };
                assert!(
                    head.by_ref()
                        .take_while(|line| !line.is_empty())
                        .any(|line| line == "authorization: Bearer secret")
                );
                let body = self.answer(request.split(' ').nth(1).unwrap()).to_string();
                let length = body.len();
                write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
                    .unwrap();
            }
        });
        address
    }
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let hex = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap()
            }
            other => other,
        });
    }
    String::from_utf8(bytes).unwrap()
}

/// Verifies five honest minutes against a gateway that lies like this.
fn verdict_on(samples: Vec<Sample>, lie: fn(&mut [Json])) -> Verdict {
    let series = witness::series(vec![ledger(&honest_samples())]);
    let url = Imaginary { samples, lie }.serve();
    let gateway = Gateway::new(&url, Login::Bearer("secret"));
    let windows = ["1m", "1h", "all"].map(|text| parse_window(text).unwrap());
    verify(&series, &gateway, &windows, Duration::ZERO).unwrap()
}

fn is_window(row: &Json) -> bool {
    row.get("count").is_some()
}

#[test]
fn an_honest_gateway_is_verified() {
    let verdict = verdict_on(honest_samples(), |_| {});
    assert_eq!(verdict.differences, []);
    assert_eq!((verdict.series_count, verdict.reading_count), (1, 300));
    assert!(verdict.window_count >= 8, "{} windows", verdict.window_count);
    assert_eq!(verdict.tolerance.quantile_exact_count, verdict.tolerance.quantile_count);
}

#[test]
fn every_changed_statistic_is_found() {
    for name in ["count", "sum", "mean", "min", "max", "first", "last", "stddev", "p50", "p95"] {
        let verdict = lying_about(name);
        assert!(!verdict.differences.is_empty(), "a wrong {name} was not noticed");
        assert!(verdict.differences.iter().all(|difference| difference.what == name), "{:?}", verdict.differences);
    }
}

/// A function pointer captures nothing, so there is one lie per place in the list of statistics.
fn lying_about(name: &str) -> Verdict {
    fn lie<const PLACE: usize>(rows: &mut [Json]) {
        let name = ask::STATS.split(',').nth(PLACE).unwrap();
        if let Some(row) = rows.iter_mut().find(|row| is_window(row)) {
            row[name] = json!(row[name].as_f64().unwrap() * 1.006 + 0.001);
        }
    }
    let lies: [fn(&mut [Json]); 10] =
        [lie::<0>, lie::<1>, lie::<2>, lie::<3>, lie::<4>, lie::<5>, lie::<6>, lie::<7>, lie::<8>, lie::<9>];
    let place = ask::STATS.split(',').position(|stat| stat == name).unwrap();
    verdict_on(honest_samples(), lies[place])
}

#[test]
fn a_quantile_within_the_sketch_error_is_accepted_and_reported() {
    let verdict = verdict_on(honest_samples(), |rows| {
        if let Some(row) = rows.iter_mut().find(|row| is_window(row)) {
            row["p95"] = json!(row["p95"].as_f64().unwrap() * 1.005);
        }
    });
    assert_eq!(verdict.differences, []);
    assert!((verdict.tolerance.quantile_worst - 0.005).abs() < 1e-6);
}

#[test]
fn a_missing_reading_is_found_in_the_readings_and_in_every_window() {
    let mut samples = honest_samples();
    samples.remove(150);
    let verdict = verdict_on(samples, |_| {});
    assert!(verdict.differences.iter().any(|difference| difference.got == "nothing"));
    for window in ["1m", "1h", "all"] {
        let is_count = |difference: &&Difference| {
            difference.what == "count" && difference.window.as_ref().is_some_and(|text| text.starts_with(window))
        };
        assert_eq!(verdict.differences.iter().filter(is_count).count(), 1, "{window}");
    }
}

#[test]
fn an_invented_reading_and_a_changed_value_are_found() {
    let mut samples = honest_samples();
    samples[10].1 += 1e-12;
    samples.insert(21, (START_US + 20_500_000, 1.0));
    let verdict = verdict_on(samples, |_| {});
    let readings: Vec<_> = verdict.differences.iter().filter(|difference| difference.window.is_none()).collect();
    assert_eq!(readings.len(), 2, "{readings:?}");
    assert!(readings.iter().any(|difference| difference.expected.contains("never sent")));
}

#[test]
fn a_missing_and_an_invented_window_are_found() {
    let verdict = verdict_on(honest_samples(), |rows| {
        if rows.len() > 3 && is_window(&rows[0]) {
            rows[2]["start"] = "1999-01-01T00:00:00Z".into();
        }
    });
    let got: Vec<&str> = verdict.differences.iter().map(|difference| difference.got.as_str()).collect();
    assert_eq!(got, ["no row", "count 60"]);
}

/// Settles entries against stored readings; the samples' values and the number of differences.
fn settled(entries: Vec<Entry>, stored: &[(i64, Json)]) -> (Vec<f64>, usize) {
    let stored: Vec<Stored> =
        stored.iter().map(|(time_us, value)| Stored { time_us: *time_us, value: value.clone() }).collect();
    let settled = witness::series(vec![entries])[0].settle(&stored);
    (settled.samples.iter().map(|(_, value)| *value).collect(), settled.differences.len())
}

#[test]
fn the_last_of_several_values_with_one_identity_replaces_the_others() {
    let in_order = || vec![entry("1", Some(7), 1, Some(2)), entry("2", Some(7), 3, Some(4))];
    assert_eq!(settled(in_order(), &[(7, json!(2.0))]), (vec![2.0], 0));
    assert_eq!(settled(in_order(), &[(7, json!(1.0))]), (vec![2.0], 1), "a superseded value came back");
    let overlapping = || vec![entry("1", Some(7), 1, Some(3)), entry("2", Some(7), 2, Some(4))];
    for value in [1.0, 2.0] {
        assert_eq!(settled(overlapping(), &[(7, json!(value))]), (vec![value], 0), "either may have come last");
    }
    assert_eq!(settled(overlapping(), &[(7, json!(3.0))]).1, 1);
}

#[test]
fn an_unacknowledged_reading_may_be_stored_or_not() {
    let entries = || vec![entry("1", Some(7), 1, Some(2)), entry("2", Some(8), 3, None)];
    assert_eq!(settled(entries(), &[(7, json!(1))]), (vec![1.0], 0));
    assert_eq!(settled(entries(), &[(7, json!(1)), (8, json!(2))]), (vec![1.0, 2.0], 0));
    assert_eq!(settled(entries(), &[(8, json!(2))]).1, 1, "an acknowledged reading is missing");
}

#[test]
fn unstamped_values_are_stored_as_often_as_acknowledged_and_at_most_as_often_as_sent() {
    let entries = || {
        let again = Entry { attempt_count: 2, ..entry("5", None, 3, Some(4)) };
        vec![entry("5", None, 1, Some(2)), again, entry("true", None, 5, Some(6))]
    };
    let stored = |fives: i64| (0..fives).map(|at| (at, json!(5))).chain([(99, json!(true))]).collect::<Vec<_>>();
    assert_eq!(settled(entries(), &stored(1)).1, 1);
    assert_eq!(settled(entries(), &stored(2)), (vec![5.0, 5.0, 1.0], 0));
    assert_eq!(settled(entries(), &stored(3)).1, 0);
    assert_eq!(settled(entries(), &stored(4)).1, 1);
}

#[test]
fn a_boolean_is_not_a_number() {
    assert_eq!(settled(vec![entry("true", Some(7), 1, Some(2))], &[(7, json!(true))]), (vec![1.0], 0));
    assert_eq!(settled(vec![entry("true", Some(7), 1, Some(2))], &[(7, json!(1))]).1, 1);
}

proptest! {
    #[test]
    fn any_number_survives_ledger_and_answer(value in proptest::num::f64::NORMAL | proptest::num::f64::ZERO) {
        let text = value.to_string();
        let json: Json = serde_json::from_str(&serde_json::to_string(&value).unwrap()).unwrap();
        prop_assert_eq!(settled(vec![entry(&text, Some(7), 1, Some(2))], &[(7, json)]), (vec![value + 0.0], 0));
    }
}

#[test]
fn several_ledgers_are_one_history() {
    let runs = vec![vec![entry("1", Some(7), 5, Some(9))], vec![entry("2", Some(7), 2, Some(3))]];
    let series = witness::series(runs);
    let stored = [Stored { time_us: 7, value: json!(2) }];
    assert_eq!(series[0].settle(&stored).differences, []);
    assert_eq!(series[0].range(), Some(Range { from_us: 7, to_us: 8 }));
}
