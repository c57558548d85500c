//! `cargo xtask bench cloud`: summaries into shards, out of them, and from one to another; beside
//! PostgreSQL's own COPY and INSERT of the same rows into the same tables.

use super::usage::Usage;
use crate::process::{Cloud, cargo, root};
use anyhow::{Context, Result, ensure};
use clap::Args;
use model::{Sketch, Summary, Value};
use prost::Message;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use wire::proto::{PushRequest, Sender};
use wire::{Batch, Device, Window};
use xtask::postgres::{Postgres, postgres};

/// What is measured.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Gateways that push side by side.
    #[arg(long, default_value_t = 4)]
    gateways: u64,
    /// Devices of each.
    #[arg(long, default_value_t = 500)]
    devices: u32,
    /// Metrics of a device.
    #[arg(long, default_value_t = 5)]
    metrics: u32,
    /// Windows of a minute of each device.
    #[arg(long, default_value_t = 40)]
    windows: i64,
}

const MINUTE_US: i64 = 60_000_000;
const HOUR_US: i64 = 60 * MINUTE_US;
/// 2026-01-01T00:00:00Z.
const BEGIN_US: i64 = 1_767_225_600_000_000;
/// Windows of devices in one push.
const PUSHED: usize = 1_000;
const SETTLED_WITHIN: Duration = Duration::from_secs(300);

pub(crate) fn run(options: &Options) -> Result<()> {
    cargo(&["build", "--workspace", "--bins", "--release"])?;
    let Options { gateways, devices, metrics, windows } = *options;
    println!("{gateways} gateways x {devices} devices x {metrics} metrics x {windows} minutes of six readings each");
    println!("{:<44} {:>13} {:>12} {:>14}", "", "summaries/s", "CPU us each", "wire bytes each");
    let directory = tempfile::tempdir_in(root().join("target"))?;
    let server = postgres();
    for name in ["sqlite", "postgres"] {
        let shards = shards(name, &server, 1);
        let cloud = start(&directory, name, &shards)?;
        pushed(&format!("into one {name} shard"), &cloud, options)?;
        if name == "postgres" {
            bare(&server, options)?;
        }
        moved(name, &cloud, &server)?;
        cloud.running.stop()?;
    }
    fleet(&directory)
}

fn shards(engine: &str, server: &Postgres, many: u32) -> String {
    let shard = |n: u32| match engine {
        "sqlite" => format!("\"s{n}=sqlite:s{n}.db\""),
        _ => format!("\"s{n}={}\"", server.database(&format!("shard_{n}"))),
    };
    format!("cloud.shards=[{}]", (0..many).map(shard).collect::<Vec<_>>().join(","))
}

fn start(directory: &TempDir, name: &str, shards: &str) -> Result<Cloud> {
    let sets = [shards, "move.slots=2048", "move.grace=0s"];
    Cloud::start(&root().join("target/release/tidegate-cloud"), &directory.path().join(name), &sets)
}

/// A summary of six readings of a sensor with one decimal, its stamps 20 ms apart from regular.
fn summary(start_us: i64, seed: u64) -> Summary {
    let base = 15.0 + (seed % 97) as f64 / 10.0;
    let values: Vec<f64> =
        (0..6).map(|n| ((base + ((seed >> 8).wrapping_mul(n + 7) % 9) as f64 / 10.0) * 10.0).round() / 10.0).collect();
    let mean = values.iter().sum::<f64>() / 6.0;
    Summary {
        count: 6,
        texts: 0,
        sum: values.iter().sum(),
        m2: values.iter().map(|value| (value - mean).powi(2)).sum(),
        min: values.iter().copied().fold(f64::INFINITY, f64::min),
        max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        first: (start_us + 2_000_000 + (seed % 20_000) as i64, Value::Number(values[0])),
        last: (start_us + 52_000_000 + (seed % 19_997) as i64, Value::Number(values[5])),
        sketch: Sketch::of(values.iter().copied()),
    }
}

/// Batches of one gateway: window after window of all its devices.
fn batches(gateway: u64, devices: u32, metrics: u32, windows: i64, length_us: i64) -> Vec<Batch> {
    let names: Vec<Arc<str>> = (0..metrics).map(|metric| format!("metric-{metric}").into()).collect();
    let known: Vec<Device> =
        (0..devices).map(|n| Device { id: format!("gw{gateway}-sensor-{n:05}").into(), labels: None }).collect();
    let mut all: Vec<Window> = Vec::new();
    let mut seed = gateway + 1;
    for at in 0..windows {
        for device in 0..devices {
            let start_us = BEGIN_US + at * length_us;
            let mut next = || {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                seed >> 20
            };
            let metrics = names.iter().map(|name| (Arc::clone(name), summary(start_us, next()))).collect();
            all.push(Window { device, start_us, length_us, revision: u64::from(metrics_revision(&metrics)), metrics });
        }
    }
    let batch = |windows: &[Window]| Batch { devices: known.clone(), windows: windows.to_vec(), ..Batch::default() };
    all.chunks(PUSHED).map(batch).collect()
}

fn metrics_revision(metrics: &BTreeMap<Arc<str>, Summary>) -> u32 {
    metrics.len() as u32
}

/// Pushes side by side, each gateway one batch after the other; bytes on the wire.
fn push(cloud: &Cloud, all: Vec<Vec<Batch>>) -> Result<u64> {
    let encoded: Vec<Vec<Vec<u8>>> = all.iter().map(|batches| batches.iter().map(Batch::encode).collect()).collect();
    let bytes = encoded.iter().flatten().map(|batch| batch.len() as u64).sum();
    let url = format!("http://{}/v1/push", cloud.http);
    let pushing = encoded.into_iter().enumerate().map(|(gateway, batches)| {
        let url = url.clone();
        std::thread::spawn(move || -> Result<()> {
            let agent = ureq::Agent::new_with_defaults();
            for (n, summaries) in batches.into_iter().enumerate() {
                let sender = Sender {
                    gateway: format!("gw{gateway}"),
                    incarnation: 1,
                    starts: 1,
                    session: 1,
                    version: "bench".into(),
                };
                let request =
                    PushRequest { sender: Some(sender), batch: n as u64 + 1, summaries, ..PushRequest::default() };
                agent.post(&url).content_type("application/x-protobuf").send(&request.encode_to_vec()[..])?;
            }
            Ok(())
        })
    });
    let pushing: Vec<_> = pushing.collect();
    for thread in pushing {
        thread.join().map_err(|_| anyhow::anyhow!("a pushing thread panicked"))??;
    }
    Ok(bytes)
}

fn pushed(name: &str, cloud: &Cloud, options: &Options) -> Result<()> {
    let Options { gateways, devices, metrics, windows } = *options;
    let all: Vec<Vec<Batch>> = (0..gateways).map(|gw| batches(gw, devices, metrics, windows, MINUTE_US)).collect();
    let summaries: usize = all.iter().flatten().map(Batch::summaries).sum();
    let before = Usage::of(cloud.running.id()).cpu_s;
    let started = Instant::now();
    let bytes = push(cloud, all)?;
    let (seconds, cpu_s) = (started.elapsed().as_secs_f64(), Usage::of(cloud.running.id()).cpu_s - before);
    let n = summaries as f64;
    println!("{name:<44} {:>13.0} {:>12.2} {:>14.1}", n / seconds, cpu_s * 1e6 / n, bytes as f64 / n);
    let stored = cloud.get("/v1/aggregates?stats=count&group_by=all&partial=refuse")?["rows"][0]["count"].as_u64();
    ensure!(stored == Some(summaries as u64 * 6), "{stored:?} readings are there instead of {}", summaries * 6);
    Ok(())
}

/// The same rows into the same table, with its index, by PostgreSQL's own means.
fn bare(server: &Postgres, options: &Options) -> Result<()> {
    let summaries = options.gateways * u64::from(options.devices * options.metrics) * options.windows as u64;
    let file = server.directory().join("rows.copy");
    let statements = server.directory().join("rows.sql");
    server.sql(
        "shard_0",
        &format!(
            "COPY (SELECT * FROM tidegate.summary ORDER BY start_us, device) TO '{}' (FORMAT binary)",
            file.display()
        ),
    );
    server.sql("postgres", "CREATE DATABASE bare TEMPLATE template0");
    let make =
        "CREATE SCHEMA tidegate; CREATE TABLE tidegate.summary (device bigint NOT NULL, length_us bigint NOT NULL,
        start_us bigint NOT NULL, incarnation bigint NOT NULL, revision bigint NOT NULL, received_us bigint NOT NULL,
        metric text[] NOT NULL, count bigint[] NOT NULL, texts bigint[] NOT NULL, sum float8[] NOT NULL,
        m2 float8[] NOT NULL, min float8[] NOT NULL, max float8[] NOT NULL, first_us bigint[] NOT NULL,
        first float8[] NOT NULL, first_text text[] NOT NULL, last_us bigint[] NOT NULL, last float8[] NOT NULL,
        last_text text[] NOT NULL, sketch bytea NOT NULL, PRIMARY KEY (device, length_us, start_us));
        CREATE INDEX ON tidegate.summary (received_us);";
    server.sql("bare", make);
    let time = |name: &str, command: &mut Command| -> Result<()> {
        let started = Instant::now();
        let status = command.stdout(std::process::Stdio::null()).status().context("psql does not start")?;
        ensure!(status.success(), "{name}: {status}");
        println!("{name:<44} {:>13.0}", summaries as f64 / started.elapsed().as_secs_f64());
        Ok(())
    };
    let copy = format!("COPY tidegate.summary FROM '{}' (FORMAT binary)", file.display());
    time("  the same rows by one bare COPY", server.psql("bare").args(["-c", &copy]))?;
    server.dump("bare", "tidegate.summary", &statements);
    server.sql("bare", "TRUNCATE tidegate.summary");
    time("  by bare INSERTs of 500 rows each", server.psql("bare").arg("-q").arg("-f").arg(&statements))
}

fn moved(engine: &str, cloud: &Cloud, server: &Postgres) -> Result<()> {
    let place = match engine {
        "sqlite" => "sqlite:s1.db".to_owned(),
        _ => server.database("shard_1"),
    };
    let rows = cloud.get("/v1/shards")?["rows"][0]["rows"].as_u64().unwrap_or(0);
    let verb = |arguments: &[&str]| -> Result<()> {
        let mut command = Command::new(root().join("target/release/tidegate-cloud"));
        let output = command.args(["--url", &format!("http://{}", cloud.http)]).args(arguments).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    verb(&["shards", "add", "s1", &place])?;
    let started = Instant::now();
    verb(&["rebalance"])?;
    let seconds = started.elapsed().as_secs_f64();
    println!("  half of its {rows} rows to a second one: {seconds:.1} s, {:.0} rows/s", rows as f64 / 2.0 / seconds);
    Ok(())
}

/// The p99 of 10,000 devices over 24 hours, from hours and days.
fn fleet(directory: &TempDir) -> Result<()> {
    let shards = "cloud.shards=[\"s0=sqlite:s0.db\",\"s1=sqlite:s1.db\"]";
    let cloud = start(directory, "fleet", shards)?;
    push(&cloud, (0..4).map(|gateway| batches(gateway, 2_500, 1, 24, HOUR_US)).collect())?;
    let question = |window: &str| {
        let (from_s, to_s) = (BEGIN_US / 1_000_000, (BEGIN_US + 24 * HOUR_US) / 1_000_000);
        format!("/v1/aggregates?from={from_s}&to={to_s}&window={window}&group_by=metric&stats=count,mean,p99")
    };
    let time = |name: &str, window: &str| -> Result<()> {
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let started = Instant::now();
            let answer = cloud.get(&question(window))?;
            best = best.min(started.elapsed().as_secs_f64());
            let count: u64 =
                answer["rows"].as_array().into_iter().flatten().filter_map(|row| row["count"].as_u64()).sum();
            ensure!(count == 10_000 * 24 * 6, "{count} readings in the answer");
        }
        println!("  {name:<60} {:>8.0} ms", best * 1e3);
        Ok(())
    };
    println!("p99 of 10,000 devices over 24 hours, two SQLite shards");
    time("one window, from 240,000 windows as they came", "all")?;
    let until = Instant::now() + SETTLED_WITHIN;
    while !settled(&directory.path().join("fleet"))? {
        ensure!(Instant::now() < until, "hours are not rolled up within {SETTLED_WITHIN:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
    time("one window, from 10,000 days", "all")?;
    time("24 windows, from 240,000 hours", "1h")?;
    cloud.running.stop()
}

/// True once no hour is stale.
fn settled(directory: &Path) -> Result<bool> {
    let mut stale = 0;
    for n in 0..2 {
        let db = rusqlite::Connection::open(directory.join(format!("s{n}.db")))?;
        stale += db.query_row("SELECT count(*) FROM stale", [], |row| row.get::<_, i64>(0))?;
    }
    Ok(stale == 0)
}
