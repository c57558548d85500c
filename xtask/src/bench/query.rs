//! `cargo xtask bench query`: answers over HTTP on the loopback, beside plain SQLite rows with
//! an index in this process and by Python, and DuckDB's Python package (if python3, or the interpreter in
//! `BENCH_PYTHON`, has it) on the exported Parquet. Medians; every peer computes the same.

use super::day::{self, DAY_S, Day, FROM_S, YEAR_DAYS, YEAR_DEVICE};
use super::usage::Usage;
use crate::process::{Gateway, cargo, root};
use anyhow::{Context, Result, ensure};
use clap::Args;
use rusqlite::Connection;
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// What is measured.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Series.
    #[arg(long, default_value_t = 1_000)]
    series: usize,
    /// How often each question is asked.
    #[arg(long, default_value_t = 11)]
    times: usize,
}

/// A question in every peer's words.
struct Question {
    name: &'static str,
    path: String,
    sqlite: Option<&'static str>,
    duckdb: &'static str,
}

fn questions() -> Vec<Question> {
    let range = format!("from={FROM_S}&to={}", FROM_S + DAY_S);
    let one = format!("device={}&metric=temperature&{range}", day::device(500));
    vec![
        Question {
            name: "one series, its raw day",
            path: format!("/v1/readings?{one}&limit=100000"),
            sqlite: Some("SELECT time_us, value FROM reading WHERE series = 500 ORDER BY time_us"),
            duckdb: "SELECT time, value FROM r WHERE device = 'd0100' AND metric = 'temperature' ORDER BY time",
        },
        Question {
            name: "one series, hourly mean and p95",
            path: format!("/v1/aggregates?{one}&window=1h&stats=count,mean,p95"),
            sqlite: None,
            duckdb: "SELECT time_bucket(INTERVAL 1 hour, time), count(*), avg(value), quantile_disc(value, 0.95) FROM r
                     WHERE device = 'd0100' AND metric = 'temperature' GROUP BY 1 ORDER BY 1",
        },
        Question {
            name: "one series, its year by day",
            path: format!(
                "/v1/aggregates?device={YEAR_DEVICE}&from={}&to={FROM_S}&window=1d&stats=count,mean,min,max,stddev",
                FROM_S - YEAR_DAYS * DAY_S
            ),
            sqlite: Some(
                "SELECT time_us / 86400000000, count(*), avg(value), min(value), max(value) FROM reading
                 WHERE series = 1000000 GROUP BY 1 ORDER BY 1",
            ),
            duckdb: "SELECT time_bucket(INTERVAL 1 day, time), count(*), avg(value), min(value), max(value), stddev_samp(value)
                     FROM y GROUP BY 1 ORDER BY 1",
        },
        Question {
            name: "all series, hourly mean and p95",
            path: format!("/v1/aggregates?{range}&window=1h&stats=mean,p95&limit=100000"),
            sqlite: None,
            duckdb: "SELECT device, metric, time_bucket(INTERVAL 1 hour, time), avg(value), quantile_disc(value, 0.95)
                     FROM r GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
        },
        Question {
            name: "one metric of all, p99",
            path: format!("/v1/aggregates?metric=pressure&{range}&group_by=metric&stats=count,mean,stddev,p99"),
            sqlite: None,
            duckdb: "SELECT count(*), avg(value), stddev_samp(value), quantile_disc(value, 0.99) FROM r
                     WHERE metric = 'pressure'",
        },
        Question {
            name: "a million readings, count and mean",
            path: format!("/v1/aggregates?device=d000*&device=d001*&{range}&group_by=all&stats=count,mean,max"),
            sqlite: Some("SELECT count(*), avg(value), max(value) FROM reading WHERE series < 100"),
            duckdb: "SELECT count(*), avg(value), max(value) FROM r WHERE device < 'd0020'",
        },
        Question {
            name: "latest value of every series",
            path: "/v1/devices?limit=10000".into(),
            sqlite: Some(
                "WITH RECURSIVE s(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM s WHERE n < (SELECT max(series) FROM reading))
                 SELECT n, (SELECT value FROM reading WHERE series = n ORDER BY time_us DESC LIMIT 1) FROM s",
            ),
            duckdb: "SELECT device, metric, arg_max(value, time) FROM r GROUP BY 1, 2",
        },
    ]
}

pub(crate) fn run(options: &Options) -> Result<()> {
    cargo(&["build", "--workspace", "--bins", "--release"])?;
    let day = Day { series: options.series, period_s: 10, jitter_us: 0 };
    let directory = tempfile::tempdir_in(root().join("target"))?;
    let year = YEAR_DAYS * DAY_S / 10;
    println!("loading {} readings of {} series, and {year} of one more", day.readings(), day.series);
    let started = Instant::now();
    let gateway = day::load(&directory.path().join("data"), day, &[])?;
    day::load_year(&gateway)?;
    let after_load = Usage::of(gateway.running.id());
    println!(
        "loaded and folded in {:.1} s, peak {:.0} MB",
        started.elapsed().as_secs_f64(),
        after_load.peak_bytes as f64 / 1e6
    );
    // A gateway of its own for the questions: its peak is theirs, and its start is measured.
    gateway.running.stop()?;
    let started = Instant::now();
    let gateway = Gateway::start(&root().join("target/release/tidegate"), &directory.path().join("data"), &[])?;
    println!("ready again after {:.2} s", started.elapsed().as_secs_f64());
    let rows = sqlite(directory.path(), day)?;
    let by_python = sqlite_by_python(directory.path(), options.times)?;
    let duckdb = duckdb(directory.path(), options.times)?;
    println!("milliseconds; tidegate over HTTP, SQLite in this process and by Python, DuckDB by Python");
    println!("{:<36} {:>12} {:>12} {:>12} {:>12}", "", "tidegate", "SQLite rows", "by Python", "DuckDB");
    let client = ureq::Agent::new_with_defaults();
    for question in questions() {
        let ours = median(options.times, || fetch(&client, &gateway, &question.path))?;
        let theirs = question.sqlite.map(|sql| median(options.times, || drain(&rows, sql))).transpose()?;
        let show = |ms: Option<f64>| ms.map_or_else(|| "-".into(), |ms| format!("{ms:.2}"));
        let of = |peer: &HashMap<String, f64>| show(peer.get(question.name).copied());
        let (python, duck) = (of(&by_python), of(&duckdb));
        println!("{:<36} {:>12} {:>12} {:>12} {:>12}", question.name, show(Some(ours)), show(theirs), python, duck);
    }
    println!("peak memory while asked: {:.0} MB", Usage::of(gateway.running.id()).peak_bytes as f64 / 1e6);
    gateway.running.stop()
}

/// The median in milliseconds.
fn median(times: usize, mut ask: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut took = Vec::with_capacity(times);
    for _ in 0..times {
        let started = Instant::now();
        ask()?;
        took.push(started.elapsed().as_secs_f64() * 1e3);
    }
    took.sort_by(f64::total_cmp);
    Ok(took[times / 2])
}

fn fetch(client: &ureq::Agent, gateway: &Gateway, path: &str) -> Result<()> {
    let url = format!("http://{}{path}", gateway.http);
    let mut answer =
        client.get(url).header("accept", "application/vnd.apache.arrow.stream, application/json").call()?;
    let bytes = answer.body_mut().with_config().limit(1 << 30).read_to_vec()?;
    ensure!(bytes.len() > 50, "an empty answer to {path}");
    Ok(())
}

fn drain(db: &Connection, sql: &str) -> Result<()> {
    let mut query = db.prepare_cached(sql)?;
    let mut rows = query.query([])?;
    let mut n = 0;
    while let Some(row) = rows.next()? {
        let _: rusqlite::types::Value = row.get(1)?;
        n += 1;
    }
    ensure!(n > 0, "no rows: {sql}");
    Ok(())
}

fn sqlite(directory: &Path, day: Day) -> Result<Connection> {
    let mut db = Connection::open(directory.join("rows.db"))?;
    db.execute_batch(&format!(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; PRAGMA cache_size=-64000; {}",
        day::ROWS
    ))?;
    let transaction = db.transaction()?;
    {
        let mut insert = transaction.prepare("INSERT INTO reading VALUES (?1, ?2, ?3)")?;
        day.each(|reading| {
            insert.execute((reading.series as i64, reading.time_us, reading.value))?;
            Ok(())
        })?;
        day::each_of_year(|time_us, value| {
            insert.execute((1_000_000, time_us, value))?;
            Ok(())
        })?;
    }
    transaction.commit()?;
    Ok(db)
}

/// Medians in milliseconds by question; empty without DuckDB.
fn duckdb(directory: &Path, times: usize) -> Result<HashMap<String, f64>> {
    let python = python();
    let has = Command::new(&python).args(["-c", "import duckdb"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        println!("DuckDB is left out: {python} has no package duckdb (pip install duckdb, or set BENCH_PYTHON)");
        return Ok(HashMap::new());
    }
    let mut script = String::from("import duckdb, time, statistics\ndb = duckdb.connect()\n");
    for (view, from_s, to_s) in [("r", FROM_S, FROM_S + DAY_S), ("y", FROM_S - YEAR_DAYS * DAY_S, FROM_S)] {
        let export = directory.join(view);
        let status = Command::new(root().join("target/release/tidegate"))
            .args(["--set", &format!("gateway.data_dir={}", directory.join("data").display()), "export"])
            .args(["--from", &from_s.to_string(), "--to", &to_s.to_string(), "--out"])
            .arg(&export)
            .stdout(std::process::Stdio::null())
            .status()?;
        ensure!(status.success(), "the export failed");
        script += &format!(
            "db.execute(\"CREATE VIEW {view} AS SELECT * FROM read_parquet('{}/*/*.parquet', hive_partitioning=true)\")\n",
            export.display()
        );
    }
    for question in questions() {
        script += &timed(question.name, question.duckdb, "fetchnumpy", times);
    }
    medians(&python, &script)
}

/// The same rows through Python's own module, as a person would ask.
fn sqlite_by_python(directory: &Path, times: usize) -> Result<HashMap<String, f64>> {
    let file = directory.join("rows.db");
    let mut script = format!(
        "import sqlite3, time, statistics\ndb = sqlite3.connect('{}')\ndb.execute('PRAGMA cache_size=-64000')\n",
        file.display()
    );
    for question in questions() {
        if let Some(sql) = question.sqlite {
            script += &timed(question.name, sql, "fetchall", times);
        }
    }
    medians(&python(), &script)
}

fn python() -> String {
    std::env::var("BENCH_PYTHON").unwrap_or_else(|_| "python3".into())
}

/// Python that prints a question's name and the median of its times.
fn timed(name: &str, sql: &str, fetch: &str, times: usize) -> String {
    format!(
        "took = []\nfor i in range({times}):\n  t = time.perf_counter(); db.execute(\"\"\"{sql}\"\"\").{fetch}(); \
         took.append((time.perf_counter() - t) * 1e3)\nprint(\"{name}\\t%f\" % statistics.median(took))\n"
    )
}

fn medians(python: &str, script: &str) -> Result<HashMap<String, f64>> {
    let output = Command::new(python).args(["-c", script]).output()?;
    ensure!(output.status.success(), "{python}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let line = |line: &str| -> Result<(String, f64)> {
        let (name, ms) = line.split_once('\t').context("the script says something else")?;
        Ok((name.to_owned(), ms.parse()?))
    };
    text.lines().map(line).collect()
}
