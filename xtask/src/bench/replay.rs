//! `cargo xtask bench replay`: what it costs when readings come in no order at all, beside the
//! same readings in order. Time runs until everything is folded and every summary is right.

use super::day::{self, Day, Reading};
use super::usage::Usage;
use crate::process::{cargo, root};
use anyhow::Result;
use clap::Args;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use std::time::Instant;

/// What is measured.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Series.
    #[arg(long, default_value_t = 1_000)]
    series: usize,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    cargo(&["build", "--workspace", "--bins", "--release"])?;
    let day = Day { series: options.series, period_s: 10, jitter_us: 0 };
    let mut readings: Vec<Reading> = Vec::with_capacity(day.readings());
    day.each(|reading| {
        readings.push(reading);
        Ok(())
    })?;
    println!("{} readings of {} series until everything is folded", readings.len(), day.series);
    println!("{:<12} {:>10} {:>10} {:>14} {:>10}", "", "seconds", "CPU s", "bytes/reading", "peak MB");
    let ordered = replay(day, &readings, "in order")?;
    readings.shuffle(&mut StdRng::seed_from_u64(9));
    let shuffled = replay(day, &readings, "shuffled")?;
    println!("shuffled costs {:.2} times the CPU", shuffled.cpu_s / ordered.cpu_s);
    Ok(())
}

fn replay(day: Day, readings: &[Reading], name: &str) -> Result<Usage> {
    let directory = tempfile::tempdir_in(root().join("target"))?;
    let started = Instant::now();
    let gateway = day::load_these(directory.path(), day, readings)?;
    let (took, usage) = (started.elapsed().as_secs_f64(), Usage::of(gateway.running.id()));
    let written = usage.written_bytes as f64 / readings.len() as f64;
    println!("{name:<12} {took:>10.1} {:>10.1} {written:>14.1} {:>10.0}", usage.cpu_s, usage.peak_bytes as f64 / 1e6);
    gateway.running.stop()?;
    Ok(usage)
}
