//! A day of a thousand sensors, loaded over HTTP and folded.
//!
//! Five kinds of signals as sensors write them: temperature in tenths, humidity in halves,
//! pressure in hundredths, power in watts, a door that opens now and then. Seeded, so that
//! every run and every peer sees the same readings.

use crate::process::{Gateway, root};
use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// 2026-06-01T00:00:00Z.
pub(super) const FROM_S: i64 = 1_780_272_000;
pub(super) const DAY_S: i64 = 86_400;
const BODY_BYTES: usize = 4 << 20;

/// What a day consists of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Day {
    pub(super) series: usize,
    pub(super) period_s: i64,
    /// Stamps are off by up to so much.
    pub(super) jitter_us: i64,
}

/// One reading.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub(super) series: usize,
    pub(super) time_us: i64,
    pub(super) value: f64,
}

/// Kinds of signals, by series modulo five.
pub(super) const METRICS: [&str; 5] = ["temperature", "humidity", "pressure", "power", "door"];

pub(super) fn device(series: usize) -> String {
    format!("d{:04}", series / METRICS.len())
}

pub(super) fn metric(series: usize) -> &'static str {
    METRICS[series % METRICS.len()]
}

impl Day {
    pub(super) fn readings(self) -> usize {
        self.series * (DAY_S / self.period_s) as usize
    }

    /// Calls `each` with every reading, in order of time.
    pub(super) fn each(self, mut each: impl FnMut(Reading) -> Result<()>) -> Result<()> {
        let mut random = StdRng::seed_from_u64(7);
        let begin = [210.0, 90.0, 101_325.0, 240.0, 0.0];
        let mut state: Vec<f64> = (0..self.series).map(|series| begin[series % 5]).collect();
        for step in 0..DAY_S / self.period_s {
            for (series, state) in state.iter_mut().enumerate() {
                let luck: f64 = random.random_range(0.0..1.0);
                match series % 5 {
                    0 if luck < 0.3 => *state += if luck < 0.15 { 1.0 } else { -1.0 },
                    1 if luck < 0.2 => *state += if luck < 0.1 { 1.0 } else { -1.0 },
                    2 => *state += ((luck - 0.5) * 6.0).round(),
                    3 => *state = (*state + (luck - 0.5) * 40.0).clamp(0.0, 3_000.0).round(),
                    4 if luck < 0.002 => *state = 1.0 - *state,
                    _ => {}
                }
                let scale = [10.0, 2.0, 100.0, 1.0, 1.0][series % 5];
                let jitter_us =
                    if self.jitter_us == 0 { 0 } else { random.random_range(-self.jitter_us..self.jitter_us) };
                let time_us = (FROM_S + step * self.period_s) * 1_000_000 + self.period_s * 500_000 + jitter_us;
                each(Reading { series, time_us, value: *state / scale })?;
            }
        }
        Ok(())
    }
}

/// The peer's table of plain rows.
pub(super) const ROWS: &str =
    "CREATE TABLE reading (series INTEGER, time_us INTEGER, value REAL, PRIMARY KEY (series, time_us)) WITHOUT ROWID;";

/// Days of one more series, before the day: for questions about a year.
pub(super) const YEAR_DAYS: i64 = 365;
pub(super) const YEAR_DEVICE: &str = "year";

/// Calls `each` with time and value of every reading of the year, a reading every 10 s.
pub(super) fn each_of_year(mut each: impl FnMut(i64, f64) -> Result<()>) -> Result<()> {
    let mut random = StdRng::seed_from_u64(8);
    let mut state = 200.0;
    for time_s in (FROM_S - YEAR_DAYS * DAY_S..FROM_S).step_by(10) {
        let luck: f64 = random.random_range(0.0..1.0);
        state += if luck < 0.15 {
            1.0
        } else if luck < 0.3 {
            -1.0
        } else {
            0.0
        };
        each(time_s * 1_000_000, state / 10.0)?;
    }
    Ok(())
}

/// A gateway with the day in it, folded.
pub(super) fn load(data: &Path, day: Day, sets: &[&str]) -> Result<Gateway> {
    let sets: Vec<&str> = sets.iter().copied().chain(["archive.delay=10s"]).collect();
    let gateway = Gateway::start(&root().join("target/release/tidegate"), data, &sets)?;
    let names: Vec<String> = (0..day.series).map(|series| format!("{} {}=", device(series), metric(series))).collect();
    send(&gateway, |write| day.each(|reading| write(&names[reading.series], reading.value, reading.time_us)))?;
    until_folded(&gateway, day.readings() as u64)?;
    Ok(gateway)
}

/// The same with these readings of it, in this order.
pub(super) fn load_these(data: &Path, day: Day, readings: &[Reading]) -> Result<Gateway> {
    let gateway = Gateway::start(&root().join("target/release/tidegate"), data, &["archive.delay=10s"])?;
    let names: Vec<String> = (0..day.series).map(|series| format!("{} {}=", device(series), metric(series))).collect();
    send(&gateway, |write| readings.iter().try_for_each(|r| write(&names[r.series], r.value, r.time_us)))?;
    until_folded(&gateway, readings.len() as u64)?;
    Ok(gateway)
}

/// Adds the year.
pub(super) fn load_year(gateway: &Gateway) -> Result<()> {
    let before = gateway.get("/v1/status")?["readings"].as_u64().context("no count")?;
    let name = format!("{YEAR_DEVICE} temperature=");
    send(gateway, |write| each_of_year(|time_us, value| write(&name, value, time_us)))?;
    until_folded(gateway, before + (YEAR_DAYS * DAY_S / 10) as u64)
}

/// Takes the name before a value, the value, the time.
type Write<'a> = dyn FnMut(&str, f64, i64) -> Result<()> + 'a;

fn send(gateway: &Gateway, each: impl FnOnce(&mut Write<'_>) -> Result<()>) -> Result<()> {
    let url = format!("http://{}/api/v2/write?precision=us", gateway.http);
    let mut body = String::with_capacity(BODY_BYTES + 100);
    let send = |body: &mut String| -> Result<()> {
        let answer = ureq::post(&url).send(body.as_bytes())?;
        ensure!(answer.status().as_u16() == 204, "not taken: {}", answer.status());
        body.clear();
        Ok(())
    };
    each(&mut |name, value, time_us| {
        writeln!(body, "{name}{value} {time_us}")?;
        if body.len() >= BODY_BYTES { send(&mut body) } else { Ok(()) }
    })?;
    send(&mut body)
}

fn until_folded(gateway: &Gateway, readings: u64) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(300);
    loop {
        let status = gateway.get("/v1/status")?;
        let store = &status["store"];
        if store["archived_seq"] == store["last_seq"] && status["windows"]["dirty"] == 0 {
            let counted = status["readings"].as_u64().context("no count")?;
            ensure!(counted == readings, "{counted} readings of {readings}");
            return Ok(());
        }
        ensure!(Instant::now() < until, "not folded after five minutes: {store}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
