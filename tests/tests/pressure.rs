//! A slow store, a flood, and subscribers that do not read.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use tests::cloud::cloud;
use tests::{Background, coap_client, eventually, gateway, output, simulator, verify};

const MEMORY_MAX: u64 = 150 << 20;

#[test]
fn a_slow_store_and_a_flood_keep_memory_bounded_and_everybody_connected() {
    let gateway = gateway().set("journal.queue", "1 MiB").slow_commits(200).start();
    let directory = tempfile::tempdir().unwrap();
    let ledger = directory.path().join("ledger");
    let mut flood = simulator("run");
    flood.args(["--mqtt", &gateway.mqtt.to_string(), "--rate", "0", "--devices", "100", "--connections", "50"]);
    flood.args(["--inflight", "2000", "--seconds", "10", "--report", "json"]);
    let report = output(flood.arg("--ledger").arg(&ledger));
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!((report["reconnects"].as_u64(), report["unacked"].as_u64()), (Some(0), Some(0)), "{report}");
    assert!(report["acked"].as_u64().unwrap() > 10_000, "{report}");
    assert!(gateway.peak_bytes() < MEMORY_MAX, "peak {} MB", gateway.peak_bytes() >> 20);
    verify(&gateway, &ledger);
}

/// A client that subscribes to everything and then never reads.
fn deaf_subscriber(gateway: &tests::Gateway, qos: u8) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.mqtt).unwrap();
    stream.write_all(b"\x10\x10\0\x04MQTT\x04\x02\0\0\0\x04deaf").unwrap();
    let mut connack = [0; 4];
    stream.read_exact(&mut connack).unwrap();
    assert_eq!(connack, [0x20, 2, 0, 0]);
    stream.write_all(&[0x82, 6, 0, 1, 0, 1, b'#', qos]).unwrap();
    let mut suback = [0; 5];
    stream.read_exact(&mut suback).unwrap();
    assert_eq!(suback, [0x90, 3, 0, 1, qos]);
    stream
}

#[test]
fn a_subscriber_that_never_reads_changes_nothing_for_publishers() {
    for qos in [0, 1] {
        let gateway = gateway().set("mqtt.subscriber_queue", "64 KiB").start();
        let deaf = deaf_subscriber(&gateway, qos);
        let directory = tempfile::tempdir().unwrap();
        let ledger = directory.path().join("ledger");
        let mut fleet = simulator("run");
        fleet.args(["--mqtt", &gateway.mqtt.to_string(), "--rate", "0", "--devices", "20", "--readings", "200000"]);
        let fleet = Background::start(fleet.args(["--inflight", "100"]).arg("--ledger").arg(&ledger));
        fleet.finish(Duration::from_secs(60));
        verify(&gateway, &ledger);
        let lost = if qos == 0 { "tidegate_dropped_messages_total" } else { "tidegate_overflowed_subscribers_total" };
        assert!(gateway.metric(lost) > 0.0, "{lost}");
        assert!(gateway.peak_bytes() < MEMORY_MAX);
        drop(deaf);
    }
}

/// A client that publishes and never reads its acknowledgements is not read either, so that
/// they do not pile up.
#[test]
fn a_publisher_that_never_reads_its_acknowledgements_is_not_read_for_ever() {
    let gateway = gateway().start();
    let mut stream = TcpStream::connect(gateway.mqtt).unwrap();
    stream.write_all(b"\x10\x10\0\x04MQTT\x04\x02\0\0\0\x04deaf").unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let packet = b"\x32\x13\0\x0bdevices/a/t\0\x0121.5".repeat(1_000);
    let mut sent = 0_usize;
    while sent < 400 << 20 {
        match stream.write(&packet) {
            Ok(n) => sent += n,
            Err(_) => break,
        }
    }
    assert!(sent < 400 << 20, "the gateway read on although nobody read its acknowledgements");
    assert!(gateway.peak_bytes() < MEMORY_MAX);
}

/// On a full disk nothing is acknowledged: MQTT waits, HTTP and CoAP are told so. When there
/// is space again, everything goes on and nothing is lost.
#[test]
fn a_full_disk_acknowledges_nothing_and_goes_on_when_there_is_space() {
    let cloud = cloud().start();
    let gateway = gateway()
        .small_disk(14)
        .set("journal.wal", "512 KiB")
        .set("archive.delay", "1s")
        .set("window.length", "1s")
        .set("window.lateness", "1s")
        .forwarding_to(&[&cloud])
        .start();
    std::fs::write(gateway.inside("filler"), vec![0; 11 << 20]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let ledger = directory.path().join("ledger");
    let mut fleet = simulator("run");
    fleet.args(["--mqtt", &gateway.mqtt.to_string(), "--rate", "100000", "--devices", "50", "--seconds", "8"]);
    let fleet = Background::start(fleet.args(["--inflight", "100"]).arg("--ledger").arg(&ledger));
    eventually("the disk is full", || (gateway.metric("tidegate_disk_full") == 1.0).then_some(()));
    let acknowledged = gateway.metric("tidegate_readings_total");
    let body = br#"{"readings":[{"device":"late","metric":"m","value":1}]}"#;
    let (status, answer) = gateway.post("/v1/readings", "application/json", body);
    assert_eq!(status, 503, "{answer}");
    assert!(answer.contains("the disk is full"), "{answer}");
    let mut put = coap_client();
    put.args(["-v", "6", "-m", "put", "-e", "1", &format!("coap://{}/devices/late/m", gateway.coap)]);
    let told = tests::both(&put.output().unwrap());
    assert!(told.contains("5.03"), "{told}");
    assert_eq!(gateway.try_get("/readyz").0, 503);
    assert_eq!(gateway.metric("tidegate_readings_total"), acknowledged, "nothing was acknowledged meanwhile");
    std::fs::remove_file(gateway.inside("filler")).unwrap();
    eventually("it goes on", || (gateway.metric("tidegate_disk_full") == 0.0).then_some(()));
    fleet.finish(Duration::from_secs(60));
    verify(&gateway, &ledger);
    assert_eq!(gateway.post("/v1/readings", "application/json", body).0, 200);
    // What could not be written meanwhile is not taken for sent.
    let here = gateway.get("/v1/aggregates?stats=count&group_by=all")["rows"][0]["count"].as_u64();
    eventually("the cloud has everything", || (Some(cloud.count()) == here).then_some(()));
}
