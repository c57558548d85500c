//! Devices and metrics that are removed are gone: from answers, from the store, from the cloud, after a restart.

use std::process::{Command, Stdio};
use tests::cloud::{agree, cloud, drained, same_answers};
use tests::{Gateway, binary, both, eventually, gateway};

fn lines(gateway: &Gateway, body: &str) {
    let (status, answer) = gateway.post("/api/v2/write?precision=s", "text/plain", body.as_bytes());
    assert_eq!(status, 204, "{answer}");
}

/// A reading a second from a time on, of each device and metric.
fn history(series: &[(&str, &str)], from_s: i64, many: i64) -> String {
    let each = (0..many).flat_map(|i| series.iter().map(move |(device, metric)| (i, device, metric)));
    each.map(|(i, device, metric)| format!("{metric},device={device} value={i} {}\n", from_s + i)).collect()
}

fn delete(gateway: &Gateway, path: &str) -> (u16, String) {
    let agent = ureq::Agent::new_with_config(ureq::Agent::config_builder().http_status_as_error(false).build());
    let mut answer = agent.delete(gateway.url(path)).call().unwrap();
    (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
}

fn count(gateway: &Gateway, filter: &str) -> u64 {
    let rows = gateway.rows(&format!("/v1/aggregates?window=all&stats=count&group_by=all&{filter}"));
    rows.first().map_or(0, |row| row["count"].as_u64().unwrap())
}

fn in_store<T: rusqlite::types::FromSql>(gateway: &Gateway, sql: &str) -> T {
    let db = rusqlite::Connection::open_with_flags(
        gateway.directory.path().join("data/tidegate.db"),
        rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY,
    );
    db.unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
}

/// `tidegate forget` with nobody to ask.
fn forget(gateway: &Gateway, arguments: &[&str]) -> (bool, String) {
    let data = format!("gateway.data_dir={}", gateway.directory.path().join("data").display());
    let mut command = Command::new(binary("tidegate"));
    command.arg("forget").args(arguments).args(["--set", &data]).stdin(Stdio::null());
    let output = command.output().unwrap();
    (output.status.success(), both(&output))
}

#[test]
fn a_removed_metric_and_a_removed_device_are_gone_and_their_names_are_free() {
    let mut gateway =
        gateway().set("window.length", "1s").set("window.lateness", "1s").set("archive.delay", "1s").start();
    let all = [("a", "temp"), ("a", "hum"), ("b", "temp"), ("c/d", "temp")];
    // Some of it in chunks and rollups, some in batches and in windows that are open.
    lines(&gateway, &history(&all, 1_750_000_000, 300));
    eventually("all is archived", || (in_store::<i64>(&gateway, "SELECT count(*) FROM batch") == 0).then_some(()));
    lines(&gateway, &history(&all, tests::now_s() - 17, 20));
    let (status, answer) = delete(&gateway, "/v1/devices/a/metrics/temp.value");
    assert_eq!((status, &*answer), (200, "{\"device\":\"a\",\"metrics\":[\"temp.value\"],\"readings\":320}"));
    let (status, answer) = delete(&gateway, "/v1/devices/c%2Fd");
    assert_eq!(status, 200, "{answer}");
    for path in ["/v1/devices/a/metrics/temp.value", "/v1/devices/c%2Fd", "/v1/devices/nobody"] {
        assert_eq!(delete(&gateway, path).0, 404, "{path}");
    }
    // A new one of the same name begins with nothing.
    lines(&gateway, "temp,device=a value=5 1750000000\n");
    let check = |gateway: &Gateway| {
        assert_eq!(count(gateway, "device=a&metric=temp.value"), 1);
        assert_eq!(count(gateway, "device=a&metric=hum.value"), 320);
        assert_eq!(count(gateway, "device=b"), 320);
        assert_eq!(count(gateway, ""), 641);
        let readings = gateway.rows("/v1/readings?device=a&metric=temp.value&from=2020-01-01T00:00:00Z");
        assert_eq!((readings.len(), &readings[0]["value"]), (1, &5.0.into()));
        let devices = gateway.rows("/v1/devices");
        assert_eq!(devices.iter().map(|device| device["id"].as_str().unwrap()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(gateway.get("/v1/status")["series"], 3);
    };
    check(&gateway);
    // In the middle of it, and once it is over.
    gateway.kill();
    gateway.start();
    check(&gateway);
    eventually("nothing of them is left", || {
        (in_store::<i64>(&gateway, "SELECT count(*) FROM sweep") == 0).then_some(())
    });
    let left = "SELECT (SELECT count(*) FROM chunk WHERE (id >> 40 & 1 = 0 AND (id >> 16 & 16777215) IN (0, 3))
            OR (id >> 40 & 1 = 1 AND (id & 33554431) IN (0, 3)))
        + (SELECT count(*) FROM rollup WHERE (id >> 16 & 33554431) IN (0, 3))
        + (SELECT count(*) FROM summary WHERE series IN (0, 3))";
    assert_eq!(in_store::<i64>(&gateway, left), 0);
    assert_eq!(in_store::<String>(&gateway, "SELECT group_concat(DISTINCT device) FROM chunks"), "a,b");
    check(&gateway);
    gateway.restart();
    check(&gateway);
}

/// What the limit asks for can be done, and a device that was removed has made room.
#[test]
fn removing_makes_room_for_others() {
    let gateway = gateway().set("limits.devices", "2").start();
    lines(&gateway, "t,device=a value=1\nt,device=b value=1\n");
    let (status, answer) = gateway.post("/api/v2/write", "text/plain", b"t,device=c value=1");
    assert!(status == 400 && answer.contains("devices limit of 2"), "{status} {answer}");
    assert_eq!(delete(&gateway, "/v1/devices/a").0, 200);
    lines(&gateway, "t,device=c value=1");
}

/// The verb, while the gateway runs and while it does not; nothing goes before somebody has said so.
#[test]
fn forgetting_is_asked_for_twice() {
    let mut gateway = gateway().start();
    lines(&gateway, "t,device=a value=1\nh,device=a value=1\nt,device=b value=1\n");
    let url = gateway.url("");
    let (done, said) = forget(&gateway, &["a", "--url", &url]);
    assert!(!done && said.contains("add --yes"), "{said}");
    let (done, said) = forget(&gateway, &["a", "x", "--yes", "--url", &url]);
    assert!(!done && said.contains("has no metric \"x\", but h.value, t.value"), "{said}");
    let (done, said) = forget(&gateway, &["a", "h.value", "--yes", "--url", &url]);
    assert!(done && said.contains("h.value of a is removed, with 1 readings"), "{said}");
    assert_eq!(count(&gateway, ""), 2);
    gateway.stop();
    let (done, said) = forget(&gateway, &["nobody", "--yes"]);
    assert!(!done && said.contains("there is no device \"nobody\""), "{said}");
    let (done, said) = forget(&gateway, &["a", "--yes"]);
    assert!(done && said.contains("a is removed, with 1 readings"), "{said}");
    gateway.start();
    assert_eq!(count(&gateway, ""), 1);
    assert_eq!(gateway.rows("/v1/devices").len(), 1);
}

/// Also by a verb that is told nothing of the uplink, while nothing runs.
#[test]
fn what_is_forgotten_while_nothing_runs_goes_in_the_cloud_too() {
    let cloud = cloud().start();
    let mut gateway =
        gateway().set("window.length", "1s").set("window.lateness", "1s").forwarding_to(&[&cloud]).start();
    lines(&gateway, &history(&[("a", "temp"), ("b", "temp")], 1_750_000_000, 50));
    eventually("all is there", || (cloud.count() == 100).then_some(()));
    gateway.stop();
    let (done, said) = forget(&gateway, &["a", "--yes"]);
    assert!(done, "{said}");
    gateway.start();
    eventually("the cloud has heard of it", || (cloud.count() == 50).then_some(()));
    drained(&gateway);
    agree(&gateway, &cloud);
}

/// The cloud loses what the gateway has removed, also what it has sent while the cloud was away, and keeps the rest.
#[test]
fn what_is_removed_goes_in_the_cloud_too() {
    let mut cloud = cloud().start();
    let mut gateway = gateway()
        .set("window.length", "1s")
        .set("window.lateness", "1s")
        .set("archive.delay", "1s")
        .forwarding_to(&[&cloud])
        .start();
    let all = [("a", "temp"), ("a", "hum"), ("b", "temp"), ("c", "temp"), ("c", "hum")];
    lines(&gateway, &history(&all, 1_750_000_000, 100));
    eventually("all is there", || (cloud.count() == 500).then_some(()));
    assert_eq!(delete(&gateway, "/v1/devices/a/metrics/temp.value").0, 200);
    assert_eq!(delete(&gateway, "/v1/devices/b").0, 200);
    lines(&gateway, &history(&[("b", "temp")], 1_750_000_050, 10));
    eventually("the cloud has heard of it", || (cloud.count() == 310).then_some(()));
    // And while the cloud is away, with a kill before the gateway could tell it.
    cloud.stop();
    assert_eq!(delete(&gateway, "/v1/devices/c").0, 200);
    lines(&gateway, &history(&[("d", "temp")], 1_750_000_000, 5));
    gateway.kill();
    gateway.start();
    cloud.start();
    eventually("the cloud has heard of that too", || (cloud.count() == 115).then_some(()));
    drained(&gateway);
    let said = agree(&gateway, &cloud);
    assert!(said.contains(" 0 differences"), "{said}");
    for window in ["1s", "1m", "all"] {
        same_answers(&gateway, &cloud, window, None);
    }
    let devices = cloud.rows("/v1/devices");
    assert_eq!(devices.iter().map(|device| device["id"].as_str().unwrap()).collect::<Vec<_>>(), ["a", "b", "d"]);
}
