//! `cargo xtask bench wear`: what a gateway sends to the disk in a day at the rates of a house
//! and of a hall, with one commit a second, beside plain SQLite rows at the same rate. All run
//! at once, each as a process whose writes the kernel counts.

use super::day;
use super::usage::Usage;
use crate::process::{Gateway, Running, cargo, root};
use anyhow::{Context, Result, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rusqlite::Connection;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What is measured.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Seconds of measuring.
    #[arg(long, default_value_t = 300)]
    seconds: u64,
}

/// Devices, and readings a second of all together.
const FLEETS: [(u32, u32); 3] = [(5, 10), (200, 100), (1_000, 100)];
/// The fleet that the plain rows are compared with.
const ROWS: (u32, u32) = FLEETS[1];
/// Until every device has said something: what is written once is no matter of wear.
const WARM_UP: Duration = Duration::from_secs(15);
const DAY_S: f64 = 86_400.0;

struct House {
    name: String,
    /// Removed at the end.
    _directory: TempDir,
    gateway: Gateway,
    fleet: Running,
}

/// As of one moment.
struct Moment {
    at: Instant,
    written_bytes: u64,
    readings: u64,
    handed: serde_json::Value,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    cargo(&["build", "--workspace", "--bins", "--release"])?;
    let houses = FLEETS.into_iter().map(House::start).collect::<Result<Vec<_>>>()?;
    let rows = Rows::start(options.seconds)?;
    std::thread::sleep(WARM_UP);
    let before = houses.iter().map(House::now).collect::<Result<Vec<_>>>()?;
    wait(options.seconds)?;
    println!("{:<36} {:>14} {:>14} {:>10}", "commits of a second", "bytes/reading", "bytes/commit", "MB/day");
    for (house, before) in houses.into_iter().zip(before) {
        house.tell(&before)?;
    }
    rows.tell()
}

fn line(name: &str, written_bytes: u64, readings: u64, elapsed: Duration) {
    let per_s = written_bytes as f64 / elapsed.as_secs_f64();
    let per_reading = written_bytes as f64 / readings as f64;
    println!("{name:<36} {per_reading:>14.0} {per_s:>14.0} {:>10.0}", per_s * DAY_S / 1e6);
}

fn wait(seconds: u64) -> Result<()> {
    let bar = ProgressBar::new(seconds).with_style(ProgressStyle::with_template("{bar:40} {pos} of {len} s")?);
    for _ in 0..seconds {
        std::thread::sleep(Duration::from_secs(1));
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

impl House {
    fn start((devices, rate): (u32, u32)) -> Result<Self> {
        let directory = tempfile::tempdir_in(root().join("target"))?;
        let release = root().join("target/release");
        let sets = ["journal.commit_delay=1s"];
        let gateway = Gateway::start(&release.join("tidegate"), directory.path(), &sets)?;
        let mut fleet = Command::new(release.join("tidegate-sim"));
        fleet.args(["run", "--mqtt", &gateway.mqtt, "--devices", &devices.to_string(), "--rate", &rate.to_string()]);
        fleet.stdout(Stdio::null()).stderr(Stdio::null());
        let fleet = Running::start(&mut fleet)?;
        let name = format!("tidegate, {devices} devices, {rate}/s");
        Ok(House { name, _directory: directory, gateway, fleet })
    }

    fn now(&self) -> Result<Moment> {
        let status = self.gateway.get("/v1/status")?;
        Ok(Moment {
            at: Instant::now(),
            written_bytes: Usage::of(self.gateway.running.id()).written_bytes,
            readings: status["readings"].as_u64().context("no count of readings")?,
            handed: status["store"]["written_bytes"].clone(),
        })
    }

    fn tell(self, before: &Moment) -> Result<()> {
        let after = self.now()?;
        let readings = after.readings - before.readings;
        ensure!(readings > 0, "{}: nothing was stored", self.name);
        line(&self.name, after.written_bytes - before.written_bytes, readings, after.at - before.at);
        let causes = after.handed.as_object().context("no causes")?.iter().map(|(cause, bytes)| {
            let of = |bytes: &serde_json::Value| bytes.as_f64().unwrap_or(0.0);
            format!("{cause} {:.1}", (of(bytes) - of(&before.handed[cause])) / readings as f64)
        });
        println!("  handed to SQLite: {}", causes.collect::<Vec<_>>().join(", "));
        self.fleet.stop()?;
        self.gateway.running.stop()
    }
}

/// A table with a key of series and time, written by a thread of this process, which writes
/// nothing else.
struct Rows {
    _directory: TempDir,
    writer: std::thread::JoinHandle<Result<(u64, u64, Duration)>>,
}

impl Rows {
    fn start(seconds: u64) -> Result<Self> {
        let directory = tempfile::tempdir_in(root().join("target"))?;
        let path = directory.path().join("rows.db");
        let writer = std::thread::spawn(move || {
            let mut db = Connection::open(path)?;
            db.execute_batch(&format!("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; {}", day::ROWS))?;
            let (started, before) = (Instant::now(), Usage::of(std::process::id()).written_bytes);
            let (devices, rate) = (i64::from(ROWS.0), i64::from(ROWS.1));
            let mut readings = 0;
            for second in 1..=seconds {
                std::thread::sleep((started + Duration::from_secs(second)).saturating_duration_since(Instant::now()));
                let transaction = db.transaction()?;
                for _ in 0..rate {
                    let row = (readings % devices, readings * 1_000_000 / rate, 20.0 + (readings % 37) as f64 / 10.0);
                    transaction.prepare_cached("INSERT INTO reading VALUES (?1, ?2, ?3)")?.execute(row)?;
                    readings += 1;
                }
                transaction.commit()?;
            }
            Ok((Usage::of(std::process::id()).written_bytes - before, readings as u64, started.elapsed()))
        });
        Ok(Rows { _directory: directory, writer })
    }

    fn tell(self) -> Result<()> {
        let (written_bytes, readings, elapsed) =
            self.writer.join().map_err(|_| anyhow::anyhow!("the rows' thread panicked"))??;
        line(&format!("SQLite rows, {} devices, {}/s", ROWS.0, ROWS.1), written_bytes, readings, elapsed);
        Ok(())
    }
}
