//! What goes back in time: stores that begin anew, shards that are put back, clocks that are wrong. Nothing that was
//! acknowledged is lost or becomes coarser.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tests::cloud::{Cloud, agree, cloud, drained};
use tests::{Gateway, Plan, eventually, gateway, own_clock};

fn plan(cloud: &Cloud) -> Plan {
    gateway()
        .set("gateway.id", "site-7")
        .set("window.length", "1s")
        .set("window.lateness", "0s")
        .forwarding_to(&[cloud])
}

/// A reading a second.
fn post(gateway: &Gateway, device: &str, from_s: i64, many: i64) {
    let lines: String = (0..many).map(|i| format!("t,device={device} value={i} {}\n", from_s + i)).collect();
    let (status, answer) = gateway.post("/api/v2/write?precision=s", "text/plain", lines.as_bytes());
    assert_eq!(status, 204, "{answer}");
}

fn copy(from: &Path, to: &Path) {
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// What the cloud has on disk.
fn backup(cloud: &mut Cloud) -> tempfile::TempDir {
    cloud.stop();
    let backup = tempfile::tempdir().unwrap();
    copy(&cloud.directory.path().join("cloud"), backup.path());
    cloud.start();
    backup
}

fn put_back(cloud: &mut Cloud, backup: &tempfile::TempDir) {
    cloud.kill();
    let data = cloud.directory.path().join("cloud");
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::create_dir(&data).unwrap();
    copy(backup.path(), &data);
    cloud.start();
}

/// Several clouds are put back at once, on few cores: what is sent again may take its time.
fn arrives(cloud: &Cloud, many: u64) {
    let until = Instant::now() + Duration::from_secs(180);
    while cloud.count() != many {
        assert!(Instant::now() < until, "{} of {many} have arrived", cloud.count());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A cloud with 810 readings is put back to what it has now after some more have come.
fn gets_what_it_lacks(cloud: &mut Cloud, gateway: &Gateway, device: &str, start_s: i64) {
    let backup = backup(cloud);
    for step in 1..4 {
        post(gateway, device, start_s + step * 10, 10);
        arrives(cloud, 810 + 10 * step as u64);
    }
    drained(gateway);
    put_back(cloud, &backup);
    assert_eq!(cloud.count(), 810);
    arrives(cloud, 840);
    drained(gateway);
}

/// A gateway's card dies, and a fresh store under the same id counts its batches from 1; then the cloud is put back.
#[test]
fn a_restored_cloud_is_noticed_by_a_gateway_whose_store_is_fresh() {
    let mut cloud = cloud().start();
    let start_s = tests::now_s() - 10_000;
    let mut first = plan(&cloud).start();
    for step in 0..40 {
        post(&first, "old", start_s + step * 20, 20);
        arrives(&cloud, 20 * (step as u64 + 1));
    }
    drained(&first);
    first.kill();
    drop(first);
    let second = plan(&cloud).start();
    post(&second, "new", start_s, 10);
    arrives(&cloud, 810);
    drained(&second);
    gets_what_it_lacks(&mut cloud, &second, "new", start_s);
    assert!(second.get("/v1/status")["uplink"]["replays"].as_u64() >= Some(1));
}

/// The same where the uplink was taken out of the configuration for a while.
#[test]
fn a_restored_cloud_is_noticed_after_the_uplink_was_off_and_on() {
    let mut cloud = cloud().start();
    let start_s = tests::now_s() - 10_000;
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let mut gateway = plan(&cloud).start_in(Arc::clone(&directory));
    for step in 0..40 {
        post(&gateway, "d", start_s + step * 20, 20);
        arrives(&cloud, 20 * (step as u64 + 1));
    }
    drained(&gateway);
    assert!(gateway.stop().success());
    gateway.set("uplink.endpoints", "[]");
    gateway.start();
    assert!(gateway.stop().success());
    drop(gateway);
    let gateway = plan(&cloud).start_in(directory);
    post(&gateway, "e", start_s, 10);
    arrives(&cloud, 810);
    drained(&gateway);
    gets_what_it_lacks(&mut cloud, &gateway, "e", start_s);
    agree(&gateway, &cloud);
}

/// The whole cloud is put back to a time before a shard was added: what only that one had is sent again.
#[test]
fn a_cloud_from_before_a_shard_was_added_gets_what_that_one_had() {
    let mut cloud = cloud().start();
    let gateway = plan(&cloud).start();
    let start_s = tests::now_s() - 10_000;
    (0..30).for_each(|n| post(&gateway, &format!("d{n}"), start_s, 10));
    arrives(&cloud, 300);
    drained(&gateway);
    let backup = backup(&mut cloud);
    cloud.verb(&["shards", "add", "third", "sqlite:third.db", "--weight", "6"]);
    cloud.verb(&["rebalance"]);
    for step in 1..5 {
        (0..30).for_each(|n| post(&gateway, &format!("d{n}"), start_s + step * 10, 10));
        arrives(&cloud, 300 + 300 * step as u64);
    }
    drained(&gateway);
    put_back(&mut cloud, &backup);
    assert_eq!(cloud.count(), 300);
    arrives(&cloud, 1_500);
    drained(&gateway);
    agree(&gateway, &cloud);
}

/// A daemon whose clock leaps two days ahead retires nothing of today, and says why.
#[test]
fn a_daemon_whose_clock_is_ahead_seals_nothing() {
    let mut cloud = cloud().set("retention.summaries", "1d").start();
    let gateway = plan(&cloud).start();
    // This hour and the last: all of it was received just now.
    let start_s = tests::now_s() - 4_000;
    post(&gateway, "d", start_s, 4_000);
    arrives(&cloud, 4_000);
    drained(&gateway);
    cloud.stop();
    for (name, value) in own_clock(cloud.directory.path()) {
        cloud.environment(name, &value);
    }
    std::fs::write(cloud.directory.path().join("clock"), "+172800").unwrap();
    cloud.start();
    eventually("it doubts its clock", || cloud.log().contains("nothing is retired, because").then_some(()));
    post(&gateway, "d", start_s - 100, 100);
    arrives(&cloud, 4_100);
    drained(&gateway);
    let said = agree(&gateway, &cloud);
    assert!(said.contains(" 0 only here because they are retired there"), "{said}");
    assert!(said.contains("4100 windows with 4100 readings equal"), "{said}");
}

/// A shard is put back to what it was in the middle of a move to it, while the move waits for its last step, and after
/// it: what gateways keep no more is there all the same, since the former owner has it.
#[test]
fn a_shard_that_is_put_back_into_the_middle_of_a_move_loses_nothing() {
    for (at, later) in [("comparing", "handed over"), ("copying", "closed"), ("copying", "")] {
        let mut cloud = cloud().set("move.slots", "16384").start();
        let gateway = plan(&cloud).start();
        let start_s = tests::now_s() - 10_000;
        (0..100).for_each(|n| post(&gateway, &format!("d{n}"), start_s, 5));
        arrives(&cloud, 500);
        drained(&gateway);
        // Nobody has it but the cloud.
        drop(gateway);
        let held = |cloud: &mut Cloud, step: &str| {
            cloud.environment("TIDEGATE_TEST_MOVE_PAUSE", step);
            cloud.start();
            let says = format!("a test holds the move: {step}");
            eventually("the move is held", || cloud.log().contains(&says).then_some(()));
            cloud.kill();
        };
        let shard = cloud.directory.path().join("cloud");
        let files = |name: &str| ["", "-wal", "-shm"].map(|end| format!("{name}.db{end}"));
        cloud.verb(&["shards", "add", "third", "sqlite:third.db"]);
        cloud.verb(&["shards", "drain", "shard-000"]);
        cloud.verb(&["shards", "drain", "shard-001"]);
        cloud.stop();
        cloud.environment("TIDEGATE_TEST_MOVE_PAUSE", at);
        cloud.start();
        cloud.verb(&["rebalance", "--no-wait"]);
        eventually("the move is held", || cloud.log().contains(&format!("a test holds the move: {at}")).then_some(()));
        cloud.kill();
        let backup = tempfile::tempdir().unwrap();
        for name in files("third").iter().filter(|name| shard.join(name).exists()) {
            std::fs::copy(shard.join(name), backup.path().join(name)).unwrap();
        }
        if later.is_empty() {
            cloud.environment("TIDEGATE_TEST_MOVE_PAUSE", "");
            cloud.start();
            let moved = |cloud: &Cloud| cloud.get("/v1/moves")["rebalancing"] == false;
            eventually("all has moved", || moved(&cloud).then_some(()));
            cloud.kill();
        } else {
            held(&mut cloud, later);
        }
        files("third").iter().for_each(|name| drop(std::fs::remove_file(shard.join(name))));
        copy(backup.path(), &shard);
        cloud.environment("TIDEGATE_TEST_MOVE_PAUSE", "");
        cloud.start();
        eventually("it is moved once more", || {
            let owns = |row: &serde_json::Value| row["name"] == "third" && row["slots"] == 16_384;
            let moves = cloud.get("/v1/moves");
            (moves["rebalancing"] == false && cloud.rows("/v1/shards").iter().any(owns)).then_some(())
        });
        assert_eq!(cloud.count(), 500, "put back to {at}, after {later}");
        println!("put back to {at}, after {later:?}: all is there");
    }
}
