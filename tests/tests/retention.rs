//! What happens to readings and summaries as they grow old.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tests::{Gateway, eventually, gateway, now_s, seed};

const DAY_S: i64 = 86_400;
const HOUR_S: i64 = 3_600;
const STATS: &str = "count,sum,min,max,first,last,stddev";

fn send(gateway: &Gateway, rows: &[(i64, f64)]) {
    let line = |(time_s, value): &(i64, f64)| {
        json!({"device": "d", "metric": "m", "value": value, "time": time_s}).to_string()
    };
    for rows in rows.chunks(20_000) {
        let body: Vec<String> = rows.iter().map(line).collect();
        let (status, answer) = gateway.post("/v1/readings", "application/x-ndjson", body.join("\n").as_bytes());
        assert_eq!(status, 200, "{answer}");
    }
}

fn readings(random: &mut StdRng, from_s: i64, to_s: i64, every_s: usize) -> Vec<(i64, f64)> {
    (from_s..to_s).step_by(every_s).map(|s| (s, f64::from(random.random_range(1_000..1_300)) / 10.0)).collect()
}

fn ask(gateway: &Gateway, (from_s, to_s): (i64, i64), window: &str, stats: &str) -> Vec<Value> {
    gateway.rows(&format!("/v1/aggregates?device=d&from={from_s}&to={to_s}&window={window}&stats={stats}"))
}

/// Rows without what says that they are sealed.
fn plain(mut rows: Vec<Value>) -> Vec<Value> {
    for row in &mut rows {
        let row = row.as_object_mut().unwrap();
        row.remove("sealed");
        row.remove("resolution");
    }
    rows
}

fn assert_alike(got: &[Value], want: &[Value], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (got, want) in got.iter().zip(want) {
        for (name, want) in want.as_object().unwrap() {
            match (name.as_str(), got[name].as_f64(), want.as_f64()) {
                ("sum" | "stddev", Some(got), Some(want)) => {
                    assert!((got - want).abs() <= 1e-9 * 1e5, "{what}: {name} {got} {want}")
                }
                ("p95", Some(got), Some(want)) => assert!((got - want).abs() <= 0.0055 * want, "{what}: {got} {want}"),
                _ => assert_eq!(&got[name], want, "{what}: {name}"),
            }
        }
    }
}

/// A running gateway does not believe a leap forward before it has lasted.
fn move_clock(gateway: &mut Gateway, offset_s: i64) {
    gateway.stop();
    gateway.set_clock(offset_s);
    gateway.start();
}

fn until_archived(gateway: &Gateway) {
    eventually("everything is in the archive, and nothing is dirty", || {
        let status = gateway.get("/v1/status");
        let is = status["store"]["archived_seq"] == status["store"]["last_seq"] && status["windows"]["dirty"] == 0;
        is.then_some(())
    });
}

#[test]
fn todays_summaries_are_rows_and_are_folded_when_the_day_is_old() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut gateway = gateway().own_clock().set("window.length", "10s").set("archive.delay", "200ms").start();
    let now = now_s();
    let rows = readings(&mut random, now - 600, now - 30, 3);
    send(&gateway, &rows);
    // One of them late, so that its window is revised.
    eventually("windows close", || (gateway.metric("tidegate_windows_closed_total") >= 50.0).then_some(()));
    send(&gateway, &[(now - 500, 7.0)]);
    until_archived(&gateway);
    let before = eventually("the late one is worked in", || {
        let stored = gateway.summaries(10)?;
        stored.iter().any(|stored| stored.revision == 2).then_some(stored)
    });
    let counts = |gateway: &Gateway| {
        let db = rusqlite::Connection::open(gateway.directory.path().join("data/tidegate.db")).unwrap();
        let count = |table: &str| -> i64 {
            db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
        };
        (count("summary"), count("rollup"))
    };
    assert_eq!(counts(&gateway), (before.len() as i64, 0));
    move_clock(&mut gateway, 2 * DAY_S);
    eventually("they are folded", || (counts(&gateway).0 == 0).then_some(()));
    assert!(counts(&gateway).1 >= 3, "a row for each of three levels");
    let key =
        |stored: &tests::Stored| (stored.start_us, stored.revision, stored.summary.count, stored.summary.first.clone());
    let folded = gateway.summaries(10).unwrap();
    assert_eq!(folded.iter().map(key).collect::<Vec<_>>(), before.iter().map(key).collect::<Vec<_>>());
    assert!(folded.iter().zip(&before).all(|(folded, before)| folded.summary.says_the_same(&before.summary)));
    // A later one revises what is folded, also when the clock is put back.
    send(&gateway, &[(now - 400, 9.0)]);
    let revised = |gateway: &Gateway, s: i64| {
        let start_us = s.div_euclid(10) * 10_000_000;
        gateway.summaries(10)?.into_iter().find(|stored| stored.start_us == start_us).map(|stored| stored.revision)
    };
    eventually("it is revised", || (revised(&gateway, now - 400)? == 2).then_some(()));
    move_clock(&mut gateway, 0);
    send(&gateway, &[(now - 300, 9.0)]);
    eventually("it is revised", || (revised(&gateway, now - 300)? == 2).then_some(()));
    assert_eq!(gateway.summaries(10).unwrap().len(), before.len());
}

#[test]
fn retired_readings_leave_answers_at_the_resolution_that_is_kept() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut gateway = gateway()
        .own_clock()
        .set("archive.delay", "200ms")
        .set("retention.raw", "12h")
        .set("retention.summaries", "60d")
        .start();
    // A day and a half, long ago, and some of today.
    let from_s = 1_709_251_200 - DAY_S / 2;
    let range = (from_s, from_s + DAY_S + DAY_S / 2);
    send(&gateway, &readings(&mut random, range.0, range.1, 7));
    let now = now_s();
    send(&gateway, &readings(&mut random, now - 300, now - 100, 5));
    until_archived(&gateway);
    let ask_all = |gateway: &Gateway| {
        ["1m", "5m", "1h", "6h", "1d", "all"]
            .map(|window| (window, ask(gateway, range, window, &format!("{STATS},p95"))))
    };
    let before = ask_all(&gateway);
    assert!(before.iter().all(|(_, rows)| rows.iter().all(|row| row.get("sealed").is_none())));
    move_clock(&mut gateway, 2 * DAY_S);
    eventually("the readings are retired", || {
        let left = gateway.rows(&format!("/v1/readings?device=d&from={}&to={}", range.0, range.1));
        left.is_empty().then_some(())
    });
    let check = |gateway: &Gateway, resolution: &str| {
        for ((window, after), (_, before)) in ask_all(gateway).into_iter().zip(&before) {
            assert!(after.iter().all(|row| row["sealed"] == true), "{window}");
            assert!(after.iter().any(|row| row["resolution"] == resolution) || window != "1m", "{window} {after:?}");
            assert_alike(&plain(after), before, window);
        }
    };
    check(&gateway, "1m");
    // A window that is finer than what is left is as long as that.
    let fine = ask(&gateway, (from_s, from_s + 120), "10s", "count");
    assert_eq!(fine.len(), 2);
    assert_eq!((&fine[0]["resolution"], fine[0]["start"].as_str()), (&json!("1m"), Some("2024-02-29T12:00:00Z")));
    assert_eq!(fine[0]["end"].as_str(), Some("2024-02-29T12:01:00Z"));
    // What comes now is kept and shown, and changes no summary.
    send(&gateway, &[(from_s + 60, 1e6)]);
    eventually("it is counted", || (gateway.metric("tidegate_sealed_windows_late_total") >= 1.0).then_some(()));
    assert_eq!(gateway.rows(&format!("/v1/readings?device=d&from={}&to={}", range.0, range.1)).len(), 1);
    check(&gateway, "1m");
    gateway.restart();
    check(&gateway, "1m");
    // Later the minutes go, too; hours and days stay.
    move_clock(&mut gateway, 70 * DAY_S);
    eventually("the summaries of minutes are gone", || gateway.summaries(60)?.is_empty().then_some(()));
    for ((window, after), (_, before)) in ask_all(&gateway).into_iter().zip(&before).skip(2) {
        assert_alike(&plain(after), before, window);
    }
    let minutes = ask(&gateway, range, "1m", "count");
    assert_eq!((minutes.len(), &minutes[0]["resolution"]), (36, &json!("1h")));
}

#[test]
fn a_store_above_its_budget_degrades_and_goes_on() {
    let mut random = StdRng::seed_from_u64(seed());
    let budget = 3_u64 << 20;
    let gateway = gateway()
        .set("archive.delay", "200ms")
        .set("journal.wal", "256 KiB")
        .set("retention.disk_budget", "3 MiB")
        .start();
    let from_s = 1_709_251_200;
    let mut sums = Vec::new();
    for day in 0..8 {
        let noise = |(s, _): (i64, f64)| (s, random.random_range(1e-3..1e3_f64));
        let rows: Vec<_> = readings(&mut StdRng::seed_from_u64(0), from_s + day * DAY_S, from_s + (day + 1) * DAY_S, 1);
        let rows: Vec<_> = rows.into_iter().map(noise).collect();
        sums.push(rows.iter().map(|(_, value)| value).sum::<f64>());
        send(&gateway, &rows);
    }
    until_archived(&gateway);
    eventually("the store is within its budget", || {
        let store = gateway.get("/v1/status")["store"].clone();
        assert_eq!(store["budget_bytes"], budget);
        (store["used_bytes"].as_u64()? <= budget).then_some(())
    });
    let days = ask(&gateway, (from_s, from_s + 8 * DAY_S), "1d", "count,sum");
    assert_eq!(days.len(), 8, "{days:?}");
    for (day, sum) in days.iter().zip(sums) {
        assert_eq!(day["count"], DAY_S);
        assert!((day["sum"].as_f64().unwrap() - sum).abs() <= 1e-9 * sum);
    }
    assert_eq!(days[0]["sealed"], true, "the oldest readings went first");
    assert!(gateway.log().contains("disk budget: "), "and the log says so");
    send(&gateway, &[(now_s(), 1.0)]);
    let hours = ask(&gateway, (from_s, from_s + 2 * HOUR_S), "1h", "count");
    assert_eq!(hours.iter().map(|row| row["count"].as_i64().unwrap()).collect::<Vec<_>>(), [HOUR_S; 2]);
}

/// A clock that is wrong for a moment deletes nothing.
#[test]
fn a_leap_of_the_clock_retires_nothing() {
    let gateway = gateway().own_clock().set("archive.delay", "200ms").start();
    let from_s = 1_709_251_200;
    send(&gateway, &readings(&mut StdRng::seed_from_u64(1), from_s, from_s + HOUR_S, 1));
    until_archived(&gateway);
    let passes = |gateway: &Gateway| gateway.metric("tidegate_retention_passes_total");
    gateway.set_clock(3_000 * DAY_S);
    let before = passes(&gateway);
    eventually("retention has looked at it twice", || (passes(&gateway) >= before + 2.0).then_some(()));
    gateway.set_clock(0);
    let rows = ask(&gateway, (from_s, from_s + HOUR_S), "all", "count");
    assert_eq!((&rows[0]["count"], rows[0].get("sealed")), (&json!(HOUR_S), None));
    assert_eq!(
        gateway.rows(&format!("/v1/readings?device=d&from={from_s}&to={}&limit=5000", from_s + HOUR_S)).len(),
        3_600
    );
}
