//! Killed at random moments under load: what was acknowledged is there, once.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::time::Duration;
use tests::{Background, eventually, gateway, seed, simulator, verify};

/// Twenty kills in a row under one fleet that reconnects and resends. Every acknowledged
/// reading is there after each restart, and the aggregates agree at the end.
#[test]
fn twenty_kills_in_a_row_lose_nothing_acknowledged() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut gateway =
        gateway().set("window.length", "5s").set("window.lateness", "1s").set("archive.delay", "1s").start();
    let directory = tempfile::tempdir().unwrap();
    let ledger = directory.path().join("ledger");
    let mut fleet = simulator("run");
    fleet.args(["--mqtt", &gateway.mqtt.to_string(), "--coap", &gateway.coap.to_string(), "--protocol", "mix"]);
    fleet.args(["--devices", "30", "--rate", "3000", "--seconds", "30", "--duplicate", "0.02", "--disorder", "0.02"]);
    let fleet = Background::start(fleet.arg("--ledger").arg(&ledger));
    for kill in 0..20 {
        let before = gateway.get("/v1/status")["readings"].as_u64().unwrap();
        std::thread::sleep(Duration::from_millis(random.random_range(100..900)));
        eventually("readings arrive", || (gateway.get("/v1/status")["readings"].as_u64()? > before).then_some(()));
        gateway.kill();
        gateway.start();
        println!("kill {kill}");
    }
    fleet.finish(Duration::from_secs(120));
    verify(&gateway, &ledger);
    gateway.kill();
    gateway.start();
    verify(&gateway, &ledger);
}

/// The same at QoS 2, whose unstamped readings count exactly once.
#[test]
fn unstamped_readings_at_qos_2_count_exactly_once_across_kills() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut gateway = gateway().start();
    let directory = tempfile::tempdir().unwrap();
    let ledger = directory.path().join("ledger");
    let mut fleet = simulator("run");
    fleet.args(["--mqtt", &gateway.mqtt.to_string(), "--qos", "2", "--payload", "number", "--connections", "4"]);
    fleet.args(["--devices", "8", "--rate", "500", "--seconds", "6"]);
    let fleet = Background::start(fleet.arg("--ledger").arg(&ledger));
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(random.random_range(300..1_200)));
        gateway.kill();
        gateway.start();
    }
    fleet.finish(Duration::from_secs(60));
    verify(&gateway, &ledger);
}

/// Windows that closed before a kill are not summarised again from a part of their readings.
#[test]
fn summaries_stay_right_across_kills() {
    let mut gateway = gateway().set("window.length", "2s").set("window.lateness", "1s").start();
    let from_s = tests::now_s() / 2 * 2 - 300;
    let post = |gateway: &tests::Gateway, times: std::ops::Range<i64>| {
        let reading = |second: i64| {
            let time = jiff::Timestamp::from_second(from_s + second).unwrap();
            format!(r#"{{"device":"d","metric":"m","value":{second},"time":"{time}"}}"#)
        };
        let body: Vec<String> = times.map(reading).collect();
        assert_eq!(gateway.post("/v1/readings", "application/x-ndjson", body.join("\n").as_bytes()).0, 200);
    };
    post(&gateway, 0..31);
    eventually("windows close", || (gateway.metric("tidegate_windows_closed_total") >= 14.0).then_some(()));
    gateway.kill();
    gateway.start();
    post(&gateway, 25..61);
    let counts = || -> Option<Vec<(u64, f64)>> {
        let stored = gateway.summaries(2)?;
        Some(stored.into_iter().map(|stored| (stored.summary.count, stored.summary.sum)).collect())
    };
    let want: Vec<(u64, f64)> = (0..30).map(|i| (2, f64::from(i * 4 + 1))).chain([(1, 60.0)]).collect();
    eventually("every window has its summary", || (counts()? == want).then_some(()));
}
