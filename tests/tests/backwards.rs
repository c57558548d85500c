//! What goes back in time: stores that begin anew, shards that are put back, clocks that are wrong. Nothing that was
//! acknowledged is lost or becomes coarser.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tests::cloud::{Cloud, agree, cloud, drained};
use tests::{Gateway, Plan, eventually, gateway, own_clock};
use xtask::postgres::postgres;

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

/// Only the map is put back to a time before slots moved, and then it is lost: the shards know who has what.
#[test]
fn a_map_that_is_put_back_or_lost_is_made_anew_from_the_shards() {
    let mut cloud = cloud().start();
    let gateway = plan(&cloud).start();
    let start_s = tests::now_s() - 10_000;
    (0..50).for_each(|n| post(&gateway, &format!("d{n}"), start_s, 10));
    arrives(&cloud, 500);
    cloud.stop();
    let data = cloud.directory.path().join("cloud");
    let map = data.join("map.db");
    let before = std::fs::read(&map).unwrap();
    cloud.start();
    cloud.verb(&["shards", "add", "third", "sqlite:third.db", "--weight", "2"]);
    cloud.verb(&["rebalance"]);
    drained(&gateway);
    let owners = |cloud: &Cloud| -> Vec<(String, u64)> {
        let row = |row: serde_json::Value| (row["name"].as_str().unwrap().to_owned(), row["slots"].as_u64().unwrap());
        cloud.rows("/v1/shards").into_iter().map(row).collect()
    };
    let moved = owners(&cloud);
    cloud.stop();

    // A map from before the third shard knows nothing of it: a shard is missing, and nothing is changed.
    let newest = std::fs::read(&map).unwrap();
    std::fs::write(&map, before).unwrap();
    let said = offline_error(&cloud, &["doctor"]);
    assert!(
        said.contains("the map and shard shard-000 are not of one time") && said.contains("doctor --repair"),
        "{said}"
    );
    let said = offline_error(&cloud, &["doctor", "--repair"]);
    assert!(said.contains("nobody has 8192 of 16384 slots: name all shards"), "{said}");
    let shards = r#"cloud.shards=["sqlite:shard-000.db", "sqlite:shard-001.db", "third=sqlite:third.db"]"#;
    std::fs::remove_file(&map).unwrap();
    let said = offline_error(&cloud, &["run"]);
    assert!(said.contains("there is no map, but shard shard-000 belongs to cloud"), "{said}");
    let said = offline_error(&cloud, &["doctor", "--repair"]);
    assert!(said.contains("nobody has 8192 of 16384 slots: name all shards"), "{said}");
    assert!(!map.exists() || std::fs::read(&map).unwrap() != newest);
    let said = cloud.offline(&["--set", shards, "doctor", "--repair"]);
    assert!(said.contains("was made anew from 3 shards: 16384 slots"), "{said}");
    cloud.start();
    assert_eq!(owners(&cloud), moved);
    arrives(&cloud, 500);
    post(&gateway, "d1", start_s + 100, 10);
    arrives(&cloud, 510);

    // An older map that knows all shards.
    cloud.stop();
    let before = std::fs::read(&map).unwrap();
    cloud.start();
    cloud.verb(&["shards", "drain", "third"]);
    cloud.verb(&["rebalance"]);
    cloud.stop();
    std::fs::write(&map, before).unwrap();
    let said = offline_error(&cloud, &["doctor"]);
    assert!(said.contains("are not of one time"), "{said}");
    let said = cloud.offline(&["doctor", "--repair"]);
    assert!(said.contains("was made anew from 3 shards: 8192 slots"), "{said}");
    let said = cloud.offline(&["doctor", "--repair"]);
    assert!(said.contains("nothing was changed"), "{said}");
    cloud.start();
    post(&gateway, "d2", start_s + 100, 10);
    arrives(&cloud, 520);
    drained(&gateway);
    agree(&gateway, &cloud);
    cloud.stop();
    let said = cloud.offline(&["doctor"]);
    assert!(said.ends_with("nothing is wrong\n"), "{said}");
}

/// What a verb of a cloud that does not run says when it refuses.
fn offline_error(cloud: &Cloud, arguments: &[&str]) -> String {
    let mut command = std::process::Command::new(tests::binary("tidegate-cloud"));
    let data = cloud.directory.path().join("cloud");
    command.arg("--set").arg(format!("cloud.data_dir={}", data.display()));
    command.args(["--set", "cloud.listen=127.0.0.1:0", "--set", "http.listen=127.0.0.1:0"]);
    let output = command.args(arguments).output().unwrap();
    assert!(!output.status.success(), "{}", tests::both(&output));
    tests::both(&output)
}

/// A database belongs to one cloud: another one that is given it touches nothing.
#[test]
fn a_database_of_another_cloud_is_refused() {
    let server = postgres();
    let url = server.database("own");
    let shards = format!("[{url:?}]");
    let mut first = cloud().set("cloud.shards", &shards).start();
    let gateway = plan(&first).start();
    post(&gateway, "d", tests::now_s() - 1_000, 10);
    arrives(&first, 10);
    let second = cloud().start();
    let refused = second.try_verb(&["shards", "add", "mine", &url]);
    assert!(refused.contains("a shard of another cloud"), "{refused}");
    let output = std::process::Command::new(tests::binary("tidegate-cloud"))
        .args(["--set", "cloud.listen=127.0.0.1:0", "--set", "http.listen=127.0.0.1:0", "--set"])
        .arg(format!("cloud.data_dir={}", tempfile::tempdir().unwrap().path().join("cloud").display()))
        .args(["--set", &format!("cloud.shards={shards}")])
        .output()
        .unwrap();
    let said = tests::both(&output);
    assert!(
        !output.status.success() && said.contains("there is no map, but shard shard-000 belongs to cloud"),
        "{said}"
    );
    post(&gateway, "d", tests::now_s() - 900, 10);
    arrives(&first, 20);

    // It moves to another host, and something else is put in its place.
    let other = server.database("other");
    let refused = first.try_verb(&["shards", "set", "shard-000", &other]);
    assert!(refused.contains("it belongs to nobody yet"), "{refused}");
    first.stop();
    server.sql("postgres", "CREATE DATABASE moved TEMPLATE own");
    first.start();
    first.verb(&["shards", "set", "shard-000", &url.replace("/own", "/moved")]);
    post(&gateway, "d", tests::now_s() - 800, 10);
    arrives(&first, 30);
    assert_eq!(server.sql("own", "SELECT count(*) FROM tidegate.summary"), "20");
}

/// A database that is made anew under a daemon that runs is noticed without a restart.
#[test]
fn a_database_that_is_made_anew_under_a_running_daemon_is_noticed() {
    let server = postgres();
    let shards = format!(r#"["sqlite:a.db", "b={}"]"#, server.database("b"));
    let cloud = cloud().set("cloud.shards", &shards).start();
    let gateway = plan(&cloud).start();
    let start_s = tests::now_s() - 10_000;
    (0..50).for_each(|n| post(&gateway, &format!("d{n}"), start_s, 10));
    arrives(&cloud, 500);
    drained(&gateway);
    server.sql("postgres", "DROP DATABASE b WITH (FORCE)");
    server.sql("postgres", "CREATE DATABASE b");
    let begun = Instant::now();
    (0..50).for_each(|n| post(&gateway, &format!("d{n}"), start_s + 20, 10));
    while cloud.get("/v1/aggregates?stats=count&group_by=all")["rows"][0]["count"] != 1_000 {
        assert!(begun.elapsed() < Duration::from_secs(60), "what was there has not come again");
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("{:.0} s later all is there", begun.elapsed().as_secs_f64());
    drained(&gateway);
    agree(&gateway, &cloud);
}

/// A server that hangs is no daemon that hangs: the others answer, and it is named.
#[test]
fn a_shard_that_hangs_is_named_and_the_others_answer() {
    let server = postgres();
    let shards = format!(r#"["sqlite:a.db", "b={}"]"#, server.database("b"));
    let mut cloud = cloud().set("cloud.shards", &shards).set("query.timeout", "2s").start();
    let gateway = plan(&cloud).start();
    let start_s = tests::now_s() - 10_000;
    (0..50).for_each(|n| post(&gateway, &format!("d{n}"), start_s, 10));
    arrives(&cloud, 500);
    drained(&gateway);
    // Whatever touches these tables waits for a session that does nothing.
    let locks = "BEGIN; LOCK TABLE tidegate.slot, tidegate.meta, tidegate.summary IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(600)";
    let mut session = server.psql("b").args(["-c", locks]).spawn().unwrap();
    eventually("the shard hangs", || {
        let answer = cloud.get("/v1/aggregates?stats=count&group_by=all");
        (answer["missing"][0]["shard"] == "b").then_some(())
    });
    let begun = Instant::now();
    let rows = cloud.rows("/v1/shards");
    let up: Vec<&serde_json::Value> = rows.iter().map(|row| &row["up"]).collect();
    assert_eq!(up, [false, true], "{rows:?}");
    assert!(rows[0]["error"].as_str().unwrap().contains("no answer within"), "{rows:?}");
    let answer = cloud.get("/v1/aggregates?stats=count&group_by=all");
    assert_eq!((&answer["partial"], &answer["missing"][0]["shard"]), (&true.into(), &"b".into()), "{answer}");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    // It also stops and starts meanwhile.
    cloud.stop();
    cloud.start();
    session.kill().unwrap();
    session.wait().unwrap();
    server.sql("b", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()");
    (0..50).for_each(|n| post(&gateway, &format!("d{n}"), start_s + 20, 10));
    arrives(&cloud, 1_000);
    drained(&gateway);
    agree(&gateway, &cloud);
}

/// A copy of a gateway's directory, as it is now.
fn twin(gateway: &mut Gateway) -> Arc<tempfile::TempDir> {
    assert!(gateway.stop().success());
    let twin = tempfile::tempdir().unwrap();
    let data = twin.path().join("data");
    std::fs::create_dir(&data).unwrap();
    copy(&gateway.directory.path().join("data"), &data);
    gateway.start();
    Arc::new(twin)
}

fn is_refused(gateway: &Gateway) -> bool {
    let error = gateway.get("/v1/status")["uplink"]["last_error"].clone();
    error.as_str().is_some_and(|error| error.contains("two stores send under the id"))
}

/// Two clones that have been started equally often: the cloud takes neither, until somebody says which one counts.
#[test]
fn of_two_clones_neither_is_taken_until_one_is_accepted() {
    let cloud = cloud().start();
    let mut first = plan(&cloud).start();
    let start_s = tests::now_s() - 10_000;
    post(&first, "d", start_s, 10);
    arrives(&cloud, 10);
    drained(&first);
    let directory = twin(&mut first);
    post(&first, "d", start_s + 20, 10);
    arrives(&cloud, 20);
    let second = plan(&cloud).start_in(directory);
    post(&second, "e", start_s + 40, 10);
    eventually("the copy is refused", || is_refused(&second).then_some(()));
    post(&first, "d", start_s + 60, 10);
    eventually("and so is the other", || is_refused(&first).then_some(()));
    assert_eq!(cloud.count(), 20);
    let listed = cloud.verb(&["gateways", "list"]);
    assert!(listed.contains("DISPUTED"), "{listed}");
    drop(second);
    cloud.verb(&["gateways", "accept", "site-7"]);
    arrives(&cloud, 30);
    drained(&first);
    agree(&first, &cloud);
    assert!(!cloud.verb(&["gateways", "list"]).contains("DISPUTED"));
}

/// A clone that was started more often passes for the original that was started again; that the original still
/// sends is noticed by and by.
#[test]
fn a_clone_that_was_started_more_often_is_noticed_when_the_original_sends_on() {
    let cloud = cloud().start();
    let mut first = plan(&cloud).start();
    let start_s = tests::now_s() - 10_000;
    post(&first, "d", start_s, 10);
    arrives(&cloud, 10);
    drained(&first);
    let directory = twin(&mut first);
    let mut second = plan(&cloud).set("uplink.endpoints", "[]").start_in(directory);
    (0..3).for_each(|_| {
        assert!(second.stop().success());
        second.start();
    });
    let directory = Arc::clone(&second.directory);
    drop(second);
    let second = plan(&cloud).start_in(directory);
    post(&second, "e", start_s + 40, 10);
    arrives(&cloud, 20);
    let begun = Instant::now();
    while !(is_refused(&first) && is_refused(&second)) {
        post(&first, "d", start_s + 60 + begun.elapsed().as_secs() as i64, 1);
        post(&second, "e", start_s + 60 + begun.elapsed().as_secs() as i64, 1);
        assert!(begun.elapsed() < Duration::from_secs(150), "they are not noticed");
        std::thread::sleep(Duration::from_secs(1));
    }
    println!("noticed after {:.0} s", begun.elapsed().as_secs_f64());
}

/// A card dies, and the fresh store's first start has a clock of a month ago, as every board without a battery clock
/// has: it is taken as soon as the clock is right.
#[test]
fn a_fresh_store_whose_first_start_had_a_wrong_clock_is_taken_when_the_clock_is_right() {
    let cloud = cloud().start();
    let first = plan(&cloud).start();
    let start_s = tests::now_s() - 10_000;
    post(&first, "d", start_s, 10);
    arrives(&cloud, 10);
    drop(first);
    let directory = Arc::new(tempfile::tempdir().unwrap());
    drop(own_clock(directory.path()));
    std::fs::write(directory.path().join("clock"), "-2592000").unwrap();
    let fresh = plan(&cloud).own_clock().start_in(directory);
    let life = fresh.get("/v1/status")["incarnation"].clone();
    eventually("it is refused", || {
        let error = fresh.get("/v1/status")["uplink"]["last_error"].clone();
        error.as_str().filter(|error| error.contains("another gateway sends under the id")).map(drop)
    });
    fresh.set_clock(0);
    // Some of it lies in a shard that has never heard of the first store.
    (0..20).for_each(|n| post(&fresh, &format!("e{n}"), start_s + 100, 10));
    arrives(&cloud, 210);
    drained(&fresh);
    eventually("it has a later life", || (fresh.get("/v1/status")["incarnation"] != life).then_some(()));
    post(&fresh, "d", start_s + 200, 10);
    arrives(&cloud, 220);
    agree(&fresh, &cloud);
}

/// Everything is lost, and put back from yesterday's backup, one shard into another database.
#[test]
fn a_cloud_comes_back_from_its_backup_and_gets_what_came_since() {
    let server = postgres();
    let shards = format!(r#"["sqlite:a.db", "b={}"]"#, server.database("b"));
    let mut cloud = cloud().set("cloud.shards", &shards).start();
    let gateway = plan(&cloud).start();
    let start_s = tests::now_s() - 10_000;
    (0..50).for_each(|n| post(&gateway, &format!("d{n}"), start_s, 10));
    arrives(&cloud, 500);
    cloud.verb(&["shards", "weight", "b", "3"]);
    cloud.verb(&["rebalance"]);
    drained(&gateway);
    let kept = tempfile::tempdir().unwrap();
    let directory = kept.path().join("backup").display().to_string();
    let said = cloud.offline(&["backup", &directory]);
    assert!(said.contains("shard b: ") && said.contains("shard shard-000: "), "{said}");
    let said = offline_error(&cloud, &["backup", &directory]);
    assert!(said.contains("is not empty: choose another directory"), "{said}");
    (0..50).for_each(|n| post(&gateway, &format!("d{n}"), start_s + 20, 10));
    arrives(&cloud, 1_000);
    drained(&gateway);

    let said = offline_error(&cloud, &["restore", &directory]);
    assert!(said.contains("in use by another tidegate-cloud"), "{said}");
    cloud.kill();
    std::fs::remove_dir_all(cloud.directory.path().join("cloud")).unwrap();
    let place = format!("b={}", server.database("b2"));
    let said = offline_error(&cloud, &["restore", &directory, "--place", "c=x"]);
    assert!(said.contains("the backup has no shard c: it has b, shard-000"), "{said}");
    let said = offline_error(&cloud, &["restore", &directory]);
    assert!(said.contains("has a schema tidegate already"), "{said}");
    let said = cloud.offline(&["restore", &directory, "--place", &place]);
    assert!(said.contains("shard b: restored"), "{said}");
    server.sql("postgres", "DROP DATABASE b WITH (FORCE)");
    let said = cloud.offline(&["doctor"]);
    assert!(said.ends_with("nothing is wrong\n"), "{said}");
    let said = offline_error(&cloud, &["restore", &directory]);
    assert!(said.contains("there is a map already"), "{said}");
    cloud.start();
    arrives(&cloud, 1_000);
    drained(&gateway);
    agree(&gateway, &cloud);
}
