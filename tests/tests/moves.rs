//! Slots change hands while gateways push, whoever is killed and whenever.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::time::Duration;
use tests::cloud::{Cloud, agree, cloud, drained, same_answers};
use tests::postgres::postgres;
use tests::{Background, Gateway, eventually, gateway, seed, simulator, verify};

fn post(gateway: &Gateway, devices: usize, from_s: i64, seconds: i64) {
    let reading = |device: usize, second: i64| {
        let value = (second % 17 + device as i64) as f64 / 10.0;
        json!({"device": format!("d{device}"), "metric": "m", "value": value, "time": from_s + second})
    };
    let readings: Vec<Value> = (0..devices).flat_map(|d| (0..seconds).map(move |s| reading(d, s))).collect();
    let body = json!({ "readings": readings }).to_string();
    assert_eq!(gateway.post("/v1/readings", "application/json", body.as_bytes()).0, 200);
}

fn slots(cloud: &Cloud) -> Vec<(String, u64)> {
    let rows = cloud.get("/v1/shards")["rows"].as_array().unwrap().clone();
    rows.iter().map(|row| (row["name"].as_str().unwrap().to_owned(), row["slots"].as_u64().unwrap())).collect()
}

fn rebalanced(cloud: &Cloud) {
    eventually("slots are where they belong", || {
        let moves = cloud.get("/v1/moves");
        (moves["rebalancing"] == false && moves["slots_to_go"] == 0).then_some(())
    });
}

/// Killed at every step of a move, the daemon goes on where it was, and pushes that come
/// meanwhile are neither lost nor doubled.
#[test]
fn a_move_that_is_killed_at_any_step_goes_on() {
    let mut cloud = cloud().set("move.slots", "8192").set("move.grace", "1s").start();
    let gateway = gateway().set("window.length", "1s").set("window.lateness", "0s").forwarding_to(&[&cloud]).start();
    let now_s = tests::now_s();
    let mut posted = 0;
    let mut more = |gateway: &Gateway| {
        post(gateway, 60, now_s - 3_000 + posted * 20, 10);
        posted += 1;
        posted as u64 * 600
    };
    let sent = more(&gateway);
    eventually("they arrive", || (cloud.count() == sent).then_some(()));
    let mut target = "shard-000";
    for step in ["copying", "comparing", "fenced", "closed", "handed over"] {
        // Everything goes to the other shard.
        let drained_shard = if target == "shard-000" { "shard-001" } else { "shard-000" };
        cloud.verb(&["shards", "weight", target, "1"]);
        cloud.verb(&["shards", "drain", drained_shard]);
        cloud.stop();
        cloud.environment("TIDEGATE_TEST_MOVE_PAUSE", step);
        cloud.start();
        cloud.verb(&["rebalance", "--no-wait"]);
        eventually("the move is held", || {
            cloud.log().contains(&format!("a test holds the move: {step}")).then_some(())
        });
        // While it is held, pushes go on, or wait until the slots are writable again.
        let sent = more(&gateway);
        if matches!(step, "copying" | "comparing") {
            eventually("pushes go on during the move", || (cloud.count() == sent).then_some(()));
        }
        cloud.kill();
        cloud.environment("TIDEGATE_TEST_MOVE_PAUSE", "");
        cloud.start();
        rebalanced(&cloud);
        eventually("all of it is there", || (cloud.count() == sent).then_some(()));
        assert!(slots(&cloud).contains(&(target.to_owned(), 16_384)), "{:?}", slots(&cloud));
        drained(&gateway);
        agree(&gateway, &cloud);
        same_answers(&gateway, &cloud, "1m", None);
        println!("killed while {step}");
        target = drained_shard;
    }
    eventually("what was left is deleted", || (cloud.get("/v1/moves")["leftovers"] == 0).then_some(()));
}

/// Shards are added, re-weighted and removed; each plan moves what it must and no more.
#[test]
fn shards_are_added_weighted_and_removed() {
    let mut cloud = cloud().set("move.grace", "0s").start();
    let gateway = gateway().set("window.length", "1s").set("window.lateness", "0s").forwarding_to(&[&cloud]).start();
    post(&gateway, 100, tests::now_s() - 500, 5);
    eventually("they arrive", || (cloud.count() == 500).then_some(()));
    let said = cloud.verb(&["shards", "add", "third", "sqlite:third.db", "--weight", "2"]);
    assert!(said.contains("8192 slots would move"), "{said}");
    let plan = cloud.verb(&["rebalance", "--plan"]);
    assert!(plan.contains("third: weight 2 of 4, has 0 slots, shall have 8192"), "{plan}");
    assert!(plan.contains("4096 slots from shard-000 to third"), "{plan}");
    assert_eq!(slots(&cloud)[2], ("third".to_owned(), 0), "nothing moves before it is asked to");
    assert!(cloud.verb(&["rebalance"]).contains("8192 slots have moved"));
    assert_eq!(slots(&cloud).iter().map(|(_, n)| *n).collect::<Vec<_>>(), [4_096, 4_096, 8_192]);
    cloud.verb(&["shards", "drain", "shard-001"]);
    cloud.verb(&["rebalance"]);
    rebalanced(&cloud);
    eventually("nothing is left", || (cloud.get("/v1/moves")["leftovers"] == 0).then_some(()));
    cloud.verb(&["shards", "remove", "shard-001"]);
    assert_eq!(slots(&cloud).len(), 2);
    cloud.stop();
    let said = cloud.offline(&["doctor"]);
    assert!(said.contains("shard third: ") && said.ends_with("nothing is wrong\n"), "{said}");
    cloud.start();
    let place = cloud.get("/v1/placement?device=d7");
    assert_eq!(place["rows"].as_array().unwrap().len(), 1, "{place}");
    assert!(cloud.verb(&["placement", "d7"]).contains(place["shard"].as_str().unwrap()));
    assert_eq!(cloud.count(), 500);
    std::thread::sleep(Duration::from_millis(10));
    drained(&gateway);
    agree(&gateway, &cloud);
    same_answers(&gateway, &cloud, "all", None);
}

/// From SQLite to PostgreSQL is a rebalance: two shards become four, then the first two are
/// drained, while three gateways push and the daemon is killed at random.
#[test]
fn from_sqlite_to_postgresql_under_load_with_kills() {
    let mut random = StdRng::seed_from_u64(seed());
    let server = postgres();
    let mut cloud = cloud().set("move.slots", "1024").set("move.grace", "1s").start();
    let plan = gateway().set("window.length", "1s").set("window.lateness", "1s").forwarding_to(&[&cloud]);
    let gateways: Vec<Gateway> = (0..3).map(|n| plan.clone().set("gateway.id", &format!("gw-{n}")).start()).collect();
    let directory = tempfile::tempdir().unwrap();
    let ledgers: Vec<_> = (0..3).map(|n| directory.path().join(format!("ledger-{n}"))).collect();
    let fleet = |(gateway, ledger): (&Gateway, &std::path::PathBuf)| {
        let mut fleet = simulator("run");
        fleet.args(["--mqtt", &gateway.mqtt.to_string(), "--devices", "100", "--rate", "300", "--seconds", "45"]);
        Background::start(fleet.arg("--ledger").arg(ledger))
    };
    let fleets: Vec<Background> = gateways.iter().zip(&ledgers).map(fleet).collect();
    eventually("summaries of all gateways arrive", || {
        (cloud.get("/v1/gateways")["rows"].as_array()?.len() == 3 && cloud.count() > 1_000).then_some(())
    });
    let kill_until_rebalanced = |cloud: &mut Cloud, random: &mut StdRng| {
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(random.random_range(100..1_500)));
            cloud.kill();
            cloud.start();
        }
        rebalanced(cloud);
    };
    for n in 0..2 {
        cloud.verb(&["shards", "add", &format!("pg-{n}"), &server.database(&format!("shard_{n}"))]);
    }
    let plan = cloud.get("/v1/moves")["slots_to_go"].as_u64().unwrap();
    println!("2 shards become 4: {plan} of 16384 slots move, at least 8192 must");
    assert_eq!(plan, 8_192);
    cloud.verb(&["rebalance", "--no-wait"]);
    kill_until_rebalanced(&mut cloud, &mut random);
    assert!(slots(&cloud).iter().all(|(_, n)| *n == 4_096), "{:?}", slots(&cloud));
    for n in 0..2 {
        cloud.verb(&["shards", "drain", &format!("shard-{n:03}")]);
    }
    let plan = cloud.get("/v1/moves")["slots_to_go"].as_u64().unwrap();
    println!("2 of 4 are drained: {plan} of 16384 slots move, at least 8192 must");
    assert_eq!(plan, 8_192);
    cloud.verb(&["rebalance", "--no-wait"]);
    kill_until_rebalanced(&mut cloud, &mut random);
    fleets.into_iter().for_each(|fleet| fleet.finish(Duration::from_secs(120)));
    let mut total = 0;
    for (n, (gateway, ledger)) in gateways.iter().zip(&ledgers).enumerate() {
        verify(gateway, ledger);
        drained(gateway);
        agree(gateway, &cloud);
        for window in ["1m", "all"] {
            same_answers(gateway, &cloud, window, Some(&format!("gw-{n}")));
        }
        total += gateway.get("/v1/aggregates?stats=count&group_by=all")["rows"][0]["count"].as_u64().unwrap();
    }
    assert_eq!(cloud.count(), total);
    let rows = |n: u32| server.sql(&format!("shard_{n}"), "SELECT count(*) FROM tidegate.summary").parse::<u64>();
    assert!(rows(0).unwrap() > 100 && rows(1).unwrap() > 100);
    let plain = server.sql("shard_0", "SELECT sum(count) FROM tidegate.summaries").parse::<u64>().unwrap()
        + server.sql("shard_1", "SELECT sum(count) FROM tidegate.summaries").parse::<u64>().unwrap();
    assert_eq!(plain, total, "plain SQL says the same");
}

/// A move whose target is lost is stopped, and what waited for it goes on; a shard is told its new place, and another
/// database is not taken for it; a lost shard is given up; a gateway is accepted anew and forgotten.
#[test]
fn an_operator_can_always_get_out() {
    let server = postgres();
    let mut cloud = cloud().set("move.slots", "16384").start();
    let gateway = gateway().set("window.length", "1s").set("window.lateness", "0s").forwarding_to(&[&cloud]).start();
    let start_s = tests::now_s() - 5_000;
    post(&gateway, 50, start_s, 10);
    eventually("they arrive", || (cloud.count() == 500).then_some(()));
    cloud.verb(&["shards", "add", "third", &server.database("third"), "--weight", "2"]);
    cloud.stop();
    cloud.environment("TIDEGATE_TEST_MOVE_PAUSE", "copying");
    cloud.start();
    cloud.verb(&["rebalance", "--no-wait"]);
    eventually("the move is held", || cloud.log().contains("a test holds the move: copying").then_some(()));
    cloud.kill();
    server.sql("postgres", "DROP DATABASE third WITH (FORCE)");
    cloud.environment("TIDEGATE_TEST_MOVE_PAUSE", "");
    cloud.start();
    post(&gateway, 50, start_s + 20, 10);
    eventually("pushes wait", || gateway.get("/v1/status")["uplink"]["last_error"].as_str().map(drop));
    let said = cloud.verb(&["moves", "list"]);
    assert!(said.contains("slots on their way"), "{said}");
    let said = cloud.verb(&["moves", "cancel"]);
    assert!(said.contains("4096 slots stay where they were"), "{said}");
    eventually("pushes go on", || (cloud.count() == 1_000).then_some(()));
    let said = cloud.verb(&["shards", "give-up", "third", "--yes"]);
    assert!(said.contains("done"), "{said}");
    drained(&gateway);
    agree(&gateway, &cloud);

    // The same shard at another place, and something else there.
    cloud.stop();
    let data = cloud.directory.path().join("cloud");
    for end in ["", "-wal"].iter().filter(|end| data.join(format!("shard-000.db{end}")).exists()) {
        std::fs::copy(data.join(format!("shard-000.db{end}")), data.join(format!("moved.db{end}"))).unwrap();
    }
    cloud.start();
    let refused = cloud.try_verb(&["shards", "set", "shard-000", "sqlite:other.db"]);
    assert!(refused.contains("there is no file sqlite:other.db"), "{refused}");
    let refused = cloud.try_verb(&["gateways", "forget", "nobody"]);
    assert!(refused.contains("there is no gateway"), "{refused}");
    cloud.verb(&["shards", "set", "shard-000", "sqlite:moved.db"]);
    post(&gateway, 50, start_s + 40, 10);
    eventually("it is written there", || (cloud.count() == 1_500).then_some(()));
    assert!(cloud.rows("/v1/shards").iter().any(|row| row["url"] == "sqlite:moved.db"));

    let refused = cloud.try_verb(&["shards", "set", "nobody", "sqlite:x.db"]);
    assert!(refused.contains("there is no shard nobody"), "{refused}");
    for place in ["sqlite:shard-001.db", "sqlite:moved.db"] {
        let refused = cloud.try_verb(&["shards", "add", "twin", place]);
        assert!(refused.contains("at that place"), "{refused}");
    }

    // A shard that is lost for good, and a fresh one that takes its place: what gateways keep comes again.
    cloud.verb(&["shards", "add", "fresh", "sqlite:fresh.db"]);
    cloud.verb(&["shards", "give-up", "shard-001", "--yes"]);
    assert_eq!(slots(&cloud), [("fresh".to_owned(), 8_192), ("shard-000".to_owned(), 8_192)]);
    eventually("what was there comes again", || (cloud.count() == 1_500).then_some(()));
    drained(&gateway);
    agree(&gateway, &cloud);

    let id = gateway.get("/v1/status")["id"].as_str().unwrap().to_owned();
    assert!(cloud.verb(&["gateways", "list"]).contains(&id));
    cloud.verb(&["gateways", "accept", &id]);
    post(&gateway, 50, start_s + 60, 10);
    eventually("it sends on", || (cloud.count() == 2_000).then_some(()));
    drop(gateway);
    cloud.verb(&["gateways", "forget", &id]);
    assert!(!cloud.verb(&["gateways", "list"]).contains(&id));
    assert_eq!(cloud.count(), 2_000);
}
