//! Clocks of gateways: set late, set in the middle of work, put back.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tests::cloud::{agree, cloud, drained};
use tests::{Gateway, Plan, eventually, gateway, seed};

#[expect(clippy::disallowed_methods, reason = "the test says what the clock should have shown")]
fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as i64
}

const DAY_S: i64 = 86_400;

/// What has been acknowledged: by series and value, when.
#[derive(Default)]
struct Sent(BTreeMap<(String, u64), (i64, i64)>);

impl Sent {
    /// Sends readings without a stamp, each with a value of its own, and waits for the commit.
    fn unstamped(&mut self, gateway: &Gateway, devices: u32, how_often: u64) {
        for _ in 0..how_often {
            let value = self.0.len() as u64;
            let readings: Vec<String> = (0..devices)
                .map(|n| format!(r#"{{"device":"d{n}","metric":"t","value":{}}}"#, value + u64::from(n)))
                .collect();
            let before = now_us();
            let body = format!(r#"{{"readings":[{}]}}"#, readings.join(","));
            let (status, answer) = gateway.post("/v1/readings", "application/json", body.as_bytes());
            assert_eq!(status, 200, "{answer}");
            for n in 0..devices {
                self.0.insert((format!("d{n}"), value + u64::from(n)), (before, now_us()));
            }
        }
    }

    /// Every one of them is there once, with the time at which it was sent.
    fn is_there(&self, gateway: &Gateway) -> Option<()> {
        let rows = gateway.rows("/v1/readings?device=d*&from=0&limit=5000");
        let moment = |row: &Value| {
            let time: jiff::Timestamp = row["time"].as_str().unwrap().parse().unwrap();
            time.as_microsecond()
        };
        let found: Vec<_> = rows
            .iter()
            .map(|row| {
                ((row["device"].as_str().unwrap().to_owned(), row["value"].as_f64().unwrap() as u64), moment(row))
            })
            .collect();
        assert_eq!(found.len(), self.0.len(), "each once");
        let slack = 1_500_000;
        let wrong = found.iter().find(|(key, us)| {
            let (from, to) = self.0[key];
            !(from - slack..=to + slack).contains(us)
        });
        wrong.is_none().then_some(())
    }

    fn count(&self) -> u64 {
        self.0.len() as u64
    }
}

fn plan() -> Plan {
    gateway().own_clock().set("window.length", "1s").set("window.lateness", "0s")
}

fn offset_to(us: i64) -> i64 {
    (us - now_us()) / 1_000_000
}

/// All windows of a store, added up.
fn summarised(gateway: &Gateway) -> Option<(u64, i64)> {
    let stored = gateway.summaries(1)?;
    let first = stored.iter().map(|stored| stored.start_us).min()?;
    Some((stored.iter().map(|stored| stored.summary.count).sum(), first))
}

/// Summaries are of all readings, and none is where they never were.
fn windows_are_right(gateway: &Gateway, readings: u64) {
    eventually("windows are right", || {
        let (count, first) = summarised(gateway)?;
        (count == readings && first > now_us() - DAY_S * 1_000_000).then_some(())
    });
}

fn status(gateway: &Gateway, name: &str) -> Value {
    gateway.get("/v1/status")[name].clone()
}

/// Readings without a stamp are answered at once, at the times that the clock shows, and not
/// forwarded; when the clock is set they are where they belong, also those that were in chunks.
fn boots_at(begin_us: i64, plan: Plan, has_history: bool) {
    let cloud = cloud().start();
    let mut sent = Sent::default();
    let mut gateway = plan.forwarding_to(&[&cloud]).start();
    if has_history {
        sent.unstamped(&gateway, 3, 5);
        eventually("they are forwarded", || (cloud.count() == sent.count()).then_some(()));
        gateway.stop();
    } else {
        gateway.stop();
    }
    gateway.set_clock(offset_to(begin_us));
    gateway.start();
    let before = sent.count();
    assert_eq!(status(&gateway, "clock"), "unset");
    sent.unstamped(&gateway, 3, 20);
    let stamped = format!(r#"{{"readings":[{{"device":"s","metric":"t","value":1,"time":{}}}]}}"#, now_us() / 1_000);
    assert_eq!(gateway.post("/v1/readings", "application/json", stamped.as_bytes()).0, 200);
    let (from_s, to_s) = (begin_us / 1_000_000 - 60, begin_us / 1_000_000 + 3_600);
    let there = gateway.get(&format!("/v1/aggregates?device=d*&from={from_s}&to={to_s}&stats=count&group_by=all"));
    assert_eq!(there["rows"][0]["count"].as_u64(), Some(sent.count() - before), "answered at once");
    eventually("windows of the wrong time are closed", || {
        let (_, first) = summarised(&gateway)?;
        (first < begin_us + 3_600_000_000).then_some(())
    });
    eventually("what is not of the wrong time has been sent", || {
        (status(&gateway, "uplink")["backlog"] == 0).then_some(())
    });
    assert_eq!(cloud.count(), before, "not forwarded");
    assert_eq!(status(&gateway, "readings"), sent.count() - before + 1);
    gateway.set_clock(0);
    eventually("the times are right", || sent.is_there(&gateway));
    assert_eq!(status(&gateway, "clock"), "set");
    sent.unstamped(&gateway, 3, 5);
    windows_are_right(&gateway, sent.count() + 1);
    drained(&gateway);
    eventually("all are forwarded", || (cloud.count() == sent.count() + 1).then_some(()));
    let said = agree(&gateway, &cloud);
    assert!(said.contains(" 0 differences"), "{said}");
    eventually("they are counted", || (gateway.metric("tidegate_corrected_readings_total") == 60.0).then_some(()));
    let latest = sent.0.keys().filter(|(device, _)| device == "d0").map(|(_, value)| *value as f64).reduce(f64::max);
    for restart in [false, true] {
        if restart {
            gateway.kill();
            gateway.start();
            sent.is_there(&gateway).expect("the same after a restart");
        }
        let device = gateway.get("/v1/devices/d0");
        assert_eq!(device["readings"].as_u64(), Some(sent.count() / 3), "counted once: {device}");
        assert_eq!(device["metrics"][0]["value"].as_f64(), latest, "{device}");
    }
}

#[test]
fn a_boot_in_1970_ends_with_the_right_times() {
    boots_at(600_000_000, plan(), false);
}

#[test]
fn a_boot_in_1970_of_a_gateway_with_a_past_that_folds_at_once() {
    boots_at(600_000_000, plan().set("archive.delay", "50ms"), true);
}

#[test]
fn a_boot_last_week_is_noticed_by_what_the_store_has() {
    boots_at(now_us() - 7 * DAY_S * 1_000_000, plan().set("archive.delay", "300ms"), true);
}

/// Nothing says that the clock is wrong, until it leaps to the right time.
#[test]
fn a_first_boot_last_week_is_put_right_when_the_clock_leaps() {
    let mut sent = Sent::default();
    let mut gateway = plan().start();
    gateway.stop();
    gateway.set_clock(-7 * DAY_S);
    gateway.start();
    assert_eq!(status(&gateway, "clock"), "set");
    sent.unstamped(&gateway, 2, 10);
    gateway.set_clock(0);
    eventually("the times are right", || sent.is_there(&gateway));
    windows_are_right(&gateway, sent.count());
}

/// Killed wherever it may be while it puts times right; and set while it does not run.
#[test]
fn kills_while_times_are_put_right_lose_and_double_nothing() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut sent = Sent::default();
    let mut gateway = plan().set("archive.delay", "400ms").start();
    gateway.stop();
    gateway.set_clock(offset_to(1_000_000_000));
    gateway.start();
    sent.unstamped(&gateway, 5, 200);
    gateway.kill();
    gateway.start();
    sent.unstamped(&gateway, 5, 100);
    for round in 0..6 {
        match round {
            0 => {
                gateway.kill();
                gateway.set_clock(0);
            }
            _ => gateway.kill(),
        }
        gateway.start();
        std::thread::sleep(Duration::from_millis(random.random_range(0..400)));
        sent.unstamped(&gateway, 5, 1);
    }
    eventually("the times are right", || sent.is_there(&gateway));
    windows_are_right(&gateway, sent.count());
    let readings = gateway.get("/v1/devices/d0")["readings"].as_u64();
    assert_eq!(readings, Some(sent.count() / 5), "each counted once");
}

/// What was read before the clock was put back keeps its time, and what comes after shares none.
#[test]
fn a_clock_that_is_put_back_merges_nothing() {
    let mut gateway = plan().start();
    let mut sent = Sent::default();
    for offset_s in [0, -3_600, 0, -2, 0, -40] {
        gateway.set_clock(offset_s);
        sent.unstamped(&gateway, 2, 30);
        if offset_s == -2 {
            gateway.restart();
        }
    }
    assert_eq!(gateway.rows("/v1/readings?device=d*&from=0&limit=5000").len() as u64, sent.count());
    gateway.set_clock(0);
    windows_are_right(&gateway, sent.count());
}
