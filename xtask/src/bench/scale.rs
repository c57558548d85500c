//! `cargo xtask bench scale`: what 10,000 gateways need, and how they and the cloud behave.
//!
//! Arrives: the size of a fleet and what was measured of one shard and one daemon. Leaves: tables.
//! Always holds: whatever is printed was computed in this run, and a seed gives the same again.
//! Deliberately absent: sockets, files, processes. This is arithmetic and a model; what the model
//! leaves out stands in docs/scale.md.

/// Where devices come to lie.
mod balance;
/// What a gateway has to send.
mod changes;
/// Summaries stored over time, as text.
mod chart;
/// Daemons and shards.
mod cloud;
/// All of them, step by step.
mod fleet;
/// A gateway's uplink.
mod gateway;
/// Which daemon.
mod picker;
/// What is computed.
mod report;
/// What is simulated.
mod scenes;
/// How much is needed.
mod sizing;
/// What a run has come to.
mod tally;
/// Time.
mod wheel;

use anyhow::{Result, ensure};
use clap::Args;
use sizing::{Load, Shard};

/// What the program is told.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    fleet: Fleet,
    #[command(flatten)]
    measured: Measured,
    #[command(flatten)]
    assumed: Assumed,
    /// After an outage one gateway in so many is simulated, with as small a part of the cloud.
    #[arg(long, default_value_t = 4)]
    sample: u32,
    /// Gives the same run again.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// The fleet, and the options of gateways and daemons that matter here.
#[derive(Debug, Clone, Args)]
struct Fleet {
    #[arg(long, default_value_t = 10_000)]
    gateways: u32,
    /// Of each gateway.
    #[arg(long, default_value_t = 1_000)]
    devices: u32,
    /// Of each device.
    #[arg(long, default_value_t = 5)]
    metrics: u32,
    /// `window.length`.
    #[arg(long, default_value_t = 60)]
    window_s: u32,
    /// `window.lateness`.
    #[arg(long, default_value_t = 10)]
    lateness_s: u32,
    /// `uplink.jitter`.
    #[arg(long, default_value_t = 30)]
    jitter_s: u32,
    /// `uplink.batch`, in summaries.
    #[arg(long, default_value_t = 5_000)]
    batch: u32,
    /// `uplink.catch_up`, in summaries a second.
    #[arg(long, default_value_t = 20_000)]
    catch_up: u32,
    /// `uplink.heartbeat`.
    #[arg(long, default_value_t = 30)]
    heartbeat_s: u32,
    /// `uplink.timeout`.
    #[arg(long, default_value_t = 30)]
    timeout_s: u32,
    /// `uplink.in_flight`.
    #[arg(long, default_value_t = 4)]
    in_flight: usize,
    /// `cloud.max_pushes`, of each daemon.
    #[arg(long, default_value_t = 64)]
    max_pushes: u32,
    /// How long the cloud is out of reach, in hours.
    #[arg(long, default_value_t = 6.0)]
    outage_h: f64,
    /// How long a shard is down, in minutes.
    #[arg(long, default_value_t = 10.0)]
    down_min: f64,
    /// PostgreSQL shards; computed if it is not given.
    #[arg(long)]
    shards: Option<u32>,
    /// Daemons; computed if it is not given.
    #[arg(long)]
    daemons: Option<u32>,
}

/// What `cargo xtask bench cloud` measured of one shard; docs/benchmarks.md says on what.
#[derive(Debug, Clone, Args)]
struct Measured {
    /// Summaries a second into one PostgreSQL shard.
    #[arg(long, default_value_t = 210_000.0)]
    pg_summaries_per_s: f64,
    /// And into one SQLite shard.
    #[arg(long, default_value_t = 112_000.0)]
    sqlite_summaries_per_s: f64,
    /// CPU of a daemon, with PostgreSQL shards.
    #[arg(long, default_value_t = 2.9)]
    cpu_us_per_summary: f64,
    /// And with SQLite shards, which it works on itself.
    #[arg(long, default_value_t = 8.1)]
    sqlite_cpu_us_per_summary: f64,
    /// Bytes of a summary on the wire.
    #[arg(long, default_value_t = 13.0)]
    wire_bytes: f64,
    /// Summaries of one write in the measurement of summaries a second.
    #[arg(long, default_value_t = 5_000.0)]
    write_summaries: f64,
}

/// What is neither configured nor measured.
#[derive(Debug, Clone, Args)]
struct Assumed {
    /// Bytes of a row on a shard's disk: a window of a device with all its metrics, and its index.
    #[arg(long, default_value_t = 1_000.0)]
    row_bytes: f64,
    /// Rows of hours (or of days, or windows) that one shard merges into an answer in a second.
    #[arg(long, default_value_t = 200_000.0)]
    hour_rows_per_s: f64,
    /// What a write takes of a shard besides its rows: locks, fences, the sender, the commit.
    #[arg(long, default_value_t = 500.0)]
    us_per_write: f64,
    /// How busy shards and daemons may be.
    #[arg(long, default_value_t = 0.5)]
    utilisation: f64,
    /// Cores of a daemon.
    #[arg(long, default_value_t = 4.0)]
    cores: f64,
    /// Seconds over which the windows of one minute close, because devices do not read in step.
    #[arg(long, default_value_t = 10)]
    closing_s: u32,
    /// How long a gateway reads a full batch.
    #[arg(long, default_value_t = 50.0)]
    read_ms: f64,
    /// How long a commit takes that does not wait.
    #[arg(long, default_value_t = 50.0)]
    commit_ms: f64,
    /// From a gateway to the cloud and back.
    #[arg(long, default_value_t = 20.0)]
    network_ms: f64,
    /// From a daemon to a shard and back.
    #[arg(long, default_value_t = 1.0)]
    shard_ms: f64,
    /// How long a daemon waits for a shard that is silent.
    #[arg(long, default_value_t = 5.0)]
    silent_s: f64,
    /// How long a shard is down in a month, in minutes; 43 are 99.9 %.
    #[arg(long, default_value_t = 43.0)]
    down_min_per_month: f64,
}

/// What is simulated: how many of what, and what they can do.
#[derive(Debug, Clone, Copy)]
struct Plan {
    load: Load,
    shard: Shard,
    shards: u32,
    daemons: u32,
    /// What a push of the usual size takes of the slower of shards and daemons.
    us_per_push: f64,
}

impl Plan {
    fn of(options: &Options) -> Result<Self> {
        let Options { fleet, measured, assumed, .. } = options;
        let (load, shard) = (options.load(), options.shard(measured.pg_summaries_per_s));
        let needed = fleet.shards.or_else(|| shard.needed(&load, assumed.utilisation));
        let shards = needed.ok_or_else(|| {
            anyhow::anyhow!(
                "{} pushes/s of {} us each keep a shard busier than {}, however many there are: give --shards",
                load.pushes_per_s().round(),
                assumed.us_per_write,
                assumed.utilisation
            )
        })?;
        let (cpu_us, cores) = (measured.cpu_us_per_summary, assumed.cores);
        let computed = || sizing::daemons(load.summaries_per_s(), cpu_us, cores, assumed.utilisation);
        let daemons = fleet.daemons.unwrap_or_else(computed);
        let summaries = load.summaries_per_push();
        let by_daemons_us = summaries * cpu_us / (cores * f64::from(daemons));
        let us_per_push = shard.us_per_push(summaries, shards).max(by_daemons_us);
        Ok(Plan { load, shard, shards, daemons, us_per_push })
    }

    /// Summaries that the cloud stores in a second, at most.
    fn capacity(&self) -> f64 {
        self.load.summaries_per_push() * 1e6 / self.us_per_push
    }

    /// The `uplink.catch_up` at which all gateways together ask for just what the cloud has left.
    fn fair_catch_up(&self) -> f64 {
        ((self.capacity() - self.load.summaries_per_s()) / f64::from(self.load.gateways)).max(1.0)
    }
}

impl Options {
    fn load(&self) -> Load {
        let Fleet { gateways, devices, metrics, window_s, batch, .. } = self.fleet;
        Load { gateways, devices, metrics, window_s: f64::from(window_s), batch }
    }

    fn shard(&self, summaries_per_s: f64) -> Shard {
        let (summaries_per_write, us_per_write) = (self.measured.write_summaries, self.assumed.us_per_write);
        Shard { summaries_per_s, summaries_per_write, us_per_write }
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let most_s = wheel::seconds(wheel::HORIZON as wheel::Step);
    ensure!(
        f64::from(options.fleet.timeout_s) < most_s,
        "--timeout-s is {}: give less than {most_s}",
        options.fleet.timeout_s
    );
    let plan = Plan::of(options)?;
    let Load { gateways, devices, metrics, .. } = plan.load;
    println!("{gateways} gateways x {devices} devices x {metrics} metrics, seed {}", options.seed);
    let placed = balance::Placed::new(gateways, devices);
    report::sizes(options, &plan);
    scenes::herd(options, &plan);
    scenes::catch_up(options, &plan);
    scenes::shard_down(options, &plan, placed.touching(plan.shards)?);
    report::shards_down(options, &plan, &placed)?;
    report::evenness(&plan, &placed)?;
    report::questions(options, &plan);
    Ok(())
}
