//! `cargo xtask bench store`: bytes on disk and bytes written for each reading, beside plain
//! SQLite rows and Parquet of the same readings.

use super::day::{self, Day};
use super::usage::Usage;
use crate::process::{cargo, root};
use anyhow::{Context, Result, ensure};
use clap::Args;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// What is measured.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Series.
    #[arg(long, default_value_t = 1_000)]
    series: usize,
    /// Seconds from one reading of a series to the next.
    #[arg(long, default_value_t = 10)]
    period: i64,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    cargo(&["build", "--workspace", "--bins", "--release"])?;
    println!("a day of {} series, a reading every {} s; bytes per reading", options.series, options.period);
    println!("{:<34} {:>10} {:>10} {:>10}", "", "readings", "summaries", "written");
    for (name, jitter_us) in [("regular stamps", 0), ("20 ms of jitter", 10_000)] {
        let day = Day { series: options.series, period_s: options.period, jitter_us };
        println!("{name}");
        tidegate(day)?;
        rows(day)?;
    }
    Ok(())
}

fn line(name: &str, n: f64, readings: u64, summaries: Option<u64>, written: Option<u64>) {
    let per = |bytes: Option<u64>| bytes.map_or_else(String::new, |bytes| format!("{:.2}", bytes as f64 / n));
    println!("  {name:<32} {:>10} {:>10} {:>10}", per(Some(readings)), per(summaries), per(written));
}

fn tidegate(day: Day) -> Result<()> {
    let directory = tempfile::tempdir_in(root().join("target"))?;
    let gateway = day::load(directory.path(), day, &[])?;
    let store = directory.path().join("tidegate.db");
    let db = Connection::open_with_flags(&store, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    until_whole(&db)?;
    let written = Usage::of(gateway.running.id()).written_bytes;
    let by_cause = gateway.get("/v1/status")?["store"]["written_bytes"].clone();
    gateway.running.stop()?;
    let sum = |sql: &str| -> Result<u64> { Ok(db.query_row(sql, [], |row| row.get::<_, i64>(0))? as u64) };
    // What chunks take with their rows' own columns.
    let chunks = sum("SELECT coalesce(sum(length(body) + 36), 0) FROM chunk")?;
    let rows = sum("SELECT coalesce(sum(length(sketch) + 90), 0) FROM summary")?;
    let summaries = rows + sum("SELECT coalesce(sum(length(body) + 36), 0) FROM rollup")?;
    let n = day.readings() as f64;
    line("tidegate", n, chunks, Some(summaries), Some(written));
    let causes: Vec<String> = by_cause
        .as_object()
        .into_iter()
        .flatten()
        .map(|(cause, bytes)| format!("{cause} {:.2}", bytes.as_f64().unwrap_or(0.0) / n))
        .collect();
    println!("    handed to SQLite: {}", causes.join(", "));
    let free = sum("SELECT freelist_count * 4096 FROM pragma_freelist_count")?;
    println!(
        "  {:<32} {:>10.2}   ({:.2} of them free)",
        "  its whole file",
        store.metadata()?.len() as f64 / n,
        free as f64 / n
    );
    let out = directory.path().join("export");
    let status = Command::new(root().join("target/release/tidegate"))
        .args(["--set", &format!("gateway.data_dir={}", directory.path().display()), "export", "--out"])
        .arg(&out)
        .stdout(std::process::Stdio::null())
        .status()?;
    ensure!(status.success(), "the export failed");
    line("parquet (zstd), by tidegate export", n, size_below(&out)?, None, None);
    Ok(())
}

/// The parts of the day become one when it has been quiet for `archive.delay`.
fn until_whole(db: &Connection) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(120);
    let parts = "SELECT max(n) FROM (SELECT count(*) n FROM chunks GROUP BY device, metric, day)";
    while db.query_row(parts, [], |row| row.get::<_, i64>(0))? > 1 {
        ensure!(Instant::now() < until, "the day is still in parts after two minutes");
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// Plain rows: a table with a key of series and time.
fn rows(day: Day) -> Result<()> {
    let directory = tempfile::tempdir_in(root().join("target"))?;
    let path = directory.path().join("rows.db");
    let mut db = Connection::open(&path)?;
    db.execute_batch(&format!("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; {}", day::ROWS))?;
    let before = Usage::of(std::process::id()).written_bytes;
    let mut waiting = Vec::new();
    let mut commit = |waiting: &mut Vec<day::Reading>| -> Result<()> {
        let transaction = db.transaction()?;
        {
            let mut insert = transaction.prepare_cached("INSERT INTO reading VALUES (?1, ?2, ?3)")?;
            for reading in waiting.drain(..) {
                insert.execute((reading.series as i64, reading.time_us, reading.value))?;
            }
        }
        Ok(transaction.commit()?)
    };
    day.each(|reading| {
        waiting.push(reading);
        if waiting.len() >= 100_000 { commit(&mut waiting) } else { Ok(()) }
    })?;
    commit(&mut waiting)?;
    db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?;
    let written = Usage::of(std::process::id()).written_bytes - before;
    line("SQLite rows, 100,000 a commit", day.readings() as f64, path.metadata()?.len(), None, Some(written));
    Ok(())
}

fn size_below(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { size_below(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}
