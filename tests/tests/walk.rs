//! A cloud that lives through everything at once: kills, stops, moves that are begun and cancelled, clocks that leap, and
//! parts of it that are put back to any earlier time, in random order under load. At the end it has what the gateways have.

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use rustix::process::Signal;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tests::cloud::{Cloud, agree, cloud};
use tests::{Gateway, gateway, own_clock, seed};

const SHARDS: [&str; 3] = ["shard-000", "shard-001", "third"];

/// Of event time, for what is posted at once.
const SPAN_S: i64 = 60;

struct Walk {
    random: StdRng,
    cloud: Cloud,
    gateways: Vec<Gateway>,
    /// What the cloud had on disk at earlier times.
    snapshots: Vec<TempDir>,
    /// Numbers that were acknowledged, by gateway.
    sent: Vec<u64>,
    start_s: i64,
    next_s: i64,
}

impl Walk {
    fn data(&self) -> PathBuf {
        self.cloud.directory.path().join("cloud")
    }

    fn post(&mut self) {
        for (gateway, sent) in self.gateways.iter().zip(&mut self.sent) {
            let (mut lines, many) = (String::new(), self.random.random_range(1..SPAN_S));
            for n in 0..many {
                let _ = writeln!(lines, "t,device=d{} value={n} {}", self.random.random_range(0..40), self.next_s + n);
            }
            let (status, answer) = gateway.post("/api/v2/write?precision=s", "text/plain", lines.as_bytes());
            assert_eq!(status, 204, "{answer}");
            *sent += many as u64;
        }
        self.next_s += SPAN_S;
    }

    /// Copies files whose names begin so.
    fn copy(&self, from: &Path, to: &Path, begins: &str) {
        for file in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
            let name = file.file_name().into_string().unwrap();
            if name.starts_with(begins) {
                std::fs::copy(file.path(), to.join(name)).unwrap();
            }
        }
    }

    /// Puts files back to what they were at some earlier time.
    fn put_back(&mut self, begins: &str) -> bool {
        if self.snapshots.is_empty() {
            return false;
        }
        let at = self.random.random_range(0..self.snapshots.len());
        let (data, from) = (self.data(), self.snapshots[at].path().to_owned());
        for file in std::fs::read_dir(&data).unwrap().map(Result::unwrap) {
            if file.file_name().to_string_lossy().starts_with(begins) {
                std::fs::remove_file(file.path()).unwrap();
            }
        }
        self.copy(&from, &data, begins);
        true
    }

    /// What an operator does whom the doctor has told to: makes the map anew.
    fn repair(&mut self) -> String {
        let said = self.cloud.offline_outcome(&["doctor", "--repair"]);
        let said = if said.contains("--none-missing") {
            self.cloud.offline_outcome(&["doctor", "--repair", "--none-missing"])
        } else {
            said
        };
        said.lines().next().unwrap_or_default().to_owned()
    }

    /// What was done, in words.
    fn step(&mut self) -> String {
        match self.random.random_range(0..10) {
            0 => {
                self.cloud.kill();
                self.cloud.start();
                "killed".into()
            }
            1 => {
                self.cloud.signal(Signal::STOP);
                std::thread::sleep(Duration::from_millis(self.random.random_range(100..2_000)));
                self.cloud.signal(Signal::CONT);
                "stopped for a while".into()
            }
            2 => {
                self.cloud.kill();
                let snapshot = tempfile::tempdir().unwrap();
                self.copy(&self.data(), snapshot.path(), "");
                self.snapshots.push(snapshot);
                self.cloud.start();
                "remembered".into()
            }
            3 => {
                self.cloud.kill();
                let done = self.put_back("");
                self.cloud.start();
                format!("all put back: {done}")
            }
            4 | 5 => {
                let shard = SHARDS[self.random.random_range(0..SHARDS.len())];
                self.cloud.kill();
                let done = self.put_back(&format!("{shard}.db"));
                self.cloud.start();
                format!("shard {shard} put back: {done}")
            }
            6 => {
                self.cloud.kill();
                let done = self.put_back("map.db");
                let said = self.repair();
                self.cloud.start();
                format!("the map put back: {done}; {said}")
            }
            7 => {
                for shard in SHARDS {
                    let weight = self.random.random_range(0..4_u32).to_string();
                    // One must keep a share.
                    let weight = if shard == SHARDS[0] { "1" } else { &weight };
                    self.cloud.verb(&["shards", "weight", shard, weight]);
                }
                self.cloud.verb(&["rebalance", "--no-wait"]);
                "slots begin to move".into()
            }
            8 => {
                std::thread::sleep(Duration::from_millis(self.random.random_range(0..700)));
                self.cloud.verb(&["moves", "cancel"]).trim().into()
            }
            _ => {
                let leap_s = self.random.random_range(-200_000..200_000_i64);
                std::fs::write(self.cloud.directory.path().join("clock"), format!("{leap_s:+}")).unwrap();
                format!("its clock is {leap_s} s off")
            }
        }
    }
}

#[test]
fn whatever_happens_to_a_cloud_in_whatever_order_it_ends_with_all_that_was_acknowledged() {
    let mut random = StdRng::seed_from_u64(seed());
    let steps = std::env::var("TIDEGATE_TEST_STEPS").ok().and_then(|steps| steps.parse().ok()).unwrap_or(40);
    let mut cloud = cloud().set("move.slots", "2048").set("retention.summaries", "1d").start();
    cloud.verb(&["shards", "add", "third", "sqlite:third.db"]);
    cloud.stop();
    for (name, value) in own_clock(cloud.directory.path()) {
        cloud.environment(name, &value);
    }
    cloud.start();
    let plan = |id: &str| {
        gateway()
            .set("gateway.id", id)
            .set("window.length", "1s")
            .set("window.lateness", "0s")
            .set("uplink.timeout", "5s")
            .forwarding_to(&[&cloud])
    };
    let gateways: Vec<Gateway> = ["site-a", "site-b"].map(|id| plan(id).start()).into();
    // Nothing of the future: its windows would have to wait.
    let start_s = tests::now_s() - (steps + 10) * SPAN_S;
    let random = StdRng::seed_from_u64(random.next_u64());
    let sent = vec![0; gateways.len()];
    let mut walk = Walk { random, cloud, gateways, snapshots: Vec::new(), sent, start_s, next_s: start_s };
    for number in 0..steps {
        walk.post();
        let what = walk.step();
        println!("{number}: {what}");
        std::thread::sleep(Duration::from_millis(walk.random.random_range(0..500)));
    }
    walk.post();
    std::fs::write(walk.cloud.directory.path().join("clock"), "+0").unwrap();
    // A shard of a time to which nothing else belongs: nobody can write there until the doctor has been obeyed.
    walk.cloud.stop();
    let said = walk.cloud.offline_outcome(&["doctor"]);
    if said.contains("doctor --repair") {
        println!("at the end: {}", walk.repair());
    }
    walk.cloud.start();
    // What was on its way has to come, and moves have to end.
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        let moves = walk.cloud.get("/v1/moves");
        let waits = walk.gateways.iter().any(|gateway| gateway.get("/v1/status")["uplink"]["backlog"] != 0);
        let expected: u64 = walk.gateways.iter().map(held).sum();
        if !waits && moves["rebalancing"] == false && walk.cloud.count() == expected {
            break;
        }
        if Instant::now() >= until {
            walk.gateways.iter().for_each(|gateway| println!("{}", difference(gateway, &walk.cloud)));
        }
        assert!(
            Instant::now() < until,
            "{} of {expected}, moves {moves}, uplinks {:?}, from {}",
            walk.cloud.count(),
            walk.gateways.iter().map(|gateway| gateway.get("/v1/status")["uplink"].clone()).collect::<Vec<_>>(),
            walk.start_s,
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    for gateway in &walk.gateways {
        let said = agree(gateway, &walk.cloud);
        // Whatever its clock said meanwhile.
        assert!(said.contains(" 0 only here because they are retired there"), "{said}");
    }
}

/// What differs between a gateway and the cloud.
fn difference(gateway: &Gateway, cloud: &Cloud) -> String {
    let mut command = std::process::Command::new(tests::binary("tidegate"));
    command.arg("--set").arg(format!("gateway.data_dir={}", gateway.directory.path().join("data").display()));
    tests::both(&command.args(["verify", "--cloud", &cloud.url("")]).output().unwrap())
}

/// Numbers that a gateway holds: some that were sent had the same series and time.
fn held(gateway: &Gateway) -> u64 {
    gateway.get("/v1/aggregates?stats=count&group_by=all")["rows"][0]["count"].as_u64().unwrap_or(0)
}
