//! Several cloud daemons over one map: whoever is killed, cut off or stopped in the middle of a
//! move, nothing is lost or doubled.

use rustix::process::Signal;
use std::path::Path;
use std::time::Duration;
use tests::cloud::{Cloud, agree, cloud, drained, same_answers};
use tests::etcd::{etcd, wire};
use tests::postgres::{Postgres, postgres};
use tests::{Background, Gateway, eventually, gateway, simulator, verify};

/// Two daemons over the same two databases.
fn daemons(server: &Postgres, coordinators: [&str; 2]) -> [Cloud; 2] {
    let shard = |n: u32| format!("\"pg-{n}={}\"", server.database(&format!("shard_{n}")));
    let shards = format!("[{},{}]", shard(0), shard(1));
    coordinators.map(|coordinator| {
        cloud()
            .set("cloud.coordinator", coordinator)
            .set("cloud.shards", &shards)
            .set("move.slots", "2048")
            .set("move.grace", "1s")
            .start()
    })
}

fn fleet(gateway: &Gateway, ledger: &Path, seconds: u32) -> Background {
    let mut fleet = simulator("run");
    fleet.args(["--mqtt", &gateway.mqtt.to_string(), "--devices", "80", "--rate", "200"]);
    Background::start(fleet.args(["--seconds", &seconds.to_string()]).arg("--ledger").arg(ledger))
}

fn rebalanced(cloud: &Cloud) {
    eventually("slots are where they belong", || {
        let moves = cloud.get("/v1/moves");
        (moves["rebalancing"] == false && moves["slots_to_go"] == 0).then_some(())
    });
}

/// Everything the gateways hold is in the cloud, by both daemons' word.
fn check(gateways: &[Gateway], ledgers: &[std::path::PathBuf], clouds: &[Cloud; 2]) {
    let mut total = 0;
    for (gateway, ledger) in gateways.iter().zip(ledgers) {
        verify(gateway, ledger);
        drained(gateway);
        let id = gateway.get("/v1/status")["id"].as_str().unwrap().to_owned();
        for cloud in clouds {
            agree(gateway, cloud);
            same_answers(gateway, cloud, "1m", Some(&id));
        }
        total += gateway.get("/v1/aggregates?stats=count&group_by=all")["rows"][0]["count"].as_u64().unwrap();
    }
    assert_eq!((clouds[0].count(), clouds[1].count()), (total, total));
}

#[test]
fn two_daemons_over_etcd_survive_kills_a_partition_and_a_stopped_mover() {
    let (server, etcd) = (postgres(), etcd());
    let wire = wire(etcd.address);
    let coordinators = [format!("etcd://{}/test", etcd.address), format!("etcd://{}/test", wire.address)];
    let mut clouds = daemons(&server, [&coordinators[0], &coordinators[1]]);
    let plan = gateway()
        .set("window.length", "1s")
        .set("window.lateness", "1s")
        .set("uplink.timeout", "2s")
        .set("uplink.balance", "two-choices")
        .forwarding_to(&[&clouds[0], &clouds[1]]);
    let gateways: Vec<Gateway> = (0..2).map(|n| plan.clone().set("gateway.id", &format!("gw-{n}")).start()).collect();
    let directory = tempfile::tempdir().unwrap();
    let ledgers: Vec<_> = (0..2).map(|n| directory.path().join(format!("ledger-{n}"))).collect();
    let fleets: Vec<_> = gateways.iter().zip(&ledgers).map(|(gateway, ledger)| fleet(gateway, ledger, 60)).collect();
    eventually("summaries arrive", || (clouds[0].count() > 500).then_some(()));

    for n in 0..2 {
        clouds[n].kill();
        let before = clouds[1 - n].count();
        eventually("the other daemon takes them", || (clouds[1 - n].count() > before + 200).then_some(()));
        clouds[n].start();
    }
    println!("each daemon has been killed");

    for n in 2..4 {
        clouds[0].verb(&["shards", "add", &format!("pg-{n}"), &server.database(&format!("shard_{n}"))]);
    }
    clouds[0].verb(&["rebalance", "--no-wait"]);
    let leads = |cloud: &Cloud| cloud.get("/v1/moves")["this_daemon"]["leads"] == true;
    let leader = eventually("a daemon moves slots", || {
        let leader = (0..2).find(|&n| leads(&clouds[n]))?;
        let under_way = clouds[leader].get("/v1/moves")["under_way"].as_array()?.len();
        (under_way > 0).then_some(leader)
    });
    clouds[leader].signal(Signal::STOP);
    let other = &clouds[1 - leader];
    // The lease runs out, and the other one goes on.
    eventually("the other daemon leads", || leads(other).then_some(()));
    rebalanced(other);
    clouds[leader].signal(Signal::CONT);
    println!("the mover has been stopped, and the other one has gone on");

    clouds[0].verb(&["shards", "drain", "pg-0"]);
    wire.cut();
    clouds[0].verb(&["rebalance", "--no-wait"]);
    rebalanced(&clouds[0]);
    // The daemon that is cut off believes in an old map: shards refuse it, so it gives no wrong answer.
    let path = "/v1/aggregates?stats=count&group_by=all&partial=refuse";
    let agent = ureq::Agent::new_with_config(ureq::Agent::config_builder().http_status_as_error(false).build());
    let answer = agent.get(clouds[1].url(path)).call().unwrap();
    assert_eq!(answer.status(), 503);
    wire.mend();
    println!("a daemon has been cut off from etcd while slots moved");

    fleets.into_iter().for_each(|fleet| fleet.finish(Duration::from_secs(120)));
    check(&gateways, &ledgers, &clouds);
}

#[test]
fn two_daemons_over_postgresql_move_slots_while_both_are_killed() {
    let server = postgres();
    let coordinator = server.database("coordinator");
    let mut clouds = daemons(&server, [&coordinator, &coordinator]);
    let plan = gateway().set("window.length", "1s").set("window.lateness", "1s").set("uplink.timeout", "2s");
    let gateways = [plan.forwarding_to(&[&clouds[0], &clouds[1]]).start()];
    let directory = tempfile::tempdir().unwrap();
    let ledgers = [directory.path().join("ledger")];
    let fleet = fleet(&gateways[0], &ledgers[0], 25);
    eventually("summaries arrive", || (clouds[0].count() > 500).then_some(()));
    clouds[0].verb(&["shards", "add", "pg-2", &server.database("shard_2"), "--weight", "2"]);
    clouds[0].verb(&["rebalance", "--no-wait"]);
    for n in [0, 1, 0] {
        std::thread::sleep(Duration::from_millis(700));
        clouds[n].kill();
        clouds[n].start();
    }
    rebalanced(&clouds[1]);
    fleet.finish(Duration::from_secs(120));
    check(&gateways, &ledgers, &clouds);
}
