//! Developer verbs: `cargo demo` and `cargo xtask test|bench|soak|dist|tidy`.
//!
//! Always holds: every verb starts its own processes on free ports or its own directory and
//! ends them by id. Deliberately absent: anything a user of the gateway needs.

/// `cargo xtask bench`: programs that measure, never tests.
mod bench;
/// `cargo demo`.
mod demo;
/// Starting, asking and ending our own processes.
mod process;
/// `cargo xtask soak`: programs that look for faults.
mod soak;
/// `cargo xtask test`.
mod test;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use process::{cargo, root};

/// Tidegate's developer verbs.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a gateway and a small fleet, and show the answers.
    Demo(demo::Options),
    /// Install what the tests need (as root), then fmt, clippy and every test.
    Test,
    /// Measure, beside a named peer, and print a table.
    Bench {
        #[command(subcommand)]
        verb: BenchVerb,
    },
    /// Look for faults for longer than the tests do; without a verb by cutting the power thousands of times.
    Soak {
        #[command(subcommand)]
        verb: Option<SoakVerb>,
    },
    /// Build the binaries that go onto a Pi, and print their sizes.
    Dist,
    /// Check the tree itself: the map, the module headers.
    Tidy,
}

#[derive(Debug, Subcommand)]
enum BenchVerb {
    /// Readings acknowledged after their commit, beside Mosquitto storing nothing.
    Ingest(bench::ingest::Options),
    /// Bytes on disk and bytes written for each reading, beside SQLite rows and Parquet.
    Store(bench::store::Options),
    /// Bytes sent to the disk in a day with one commit a second, beside SQLite rows.
    Wear(bench::wear::Options),
    /// Answers over HTTP, beside SQLite rows and DuckDB.
    Query(bench::query::Options),
    /// Summaries into SQLite and PostgreSQL shards, beside bare COPY and INSERT; moves; fleet questions.
    Cloud(bench::cloud::Options),
    /// Readings in no order, beside the same readings in order.
    Replay(bench::replay::Options),
    /// What 10,000 gateways need, by arithmetic and a model of them; measures nothing.
    Scale(Box<bench::scale::Options>),
}

#[derive(Debug, Subcommand)]
enum SoakVerb {
    /// Cut the power thousands of times, and kill.
    Power,
    /// Everything that is known to have gone wrong in a cloud, and random walks through all of it.
    Cloud(soak::Walks),
    /// Run the fuzz targets, and print a table.
    Fuzz(soak::Fuzzing),
}

fn main() -> Result<()> {
    // `cargo demo -- --seconds 20` arrives as `demo -- --seconds 20`.
    match Arguments::parse_from(std::env::args().filter(|argument| argument != "--")).verb {
        Verb::Demo(options) => demo::run(&options),
        Verb::Test => test::run(),
        Verb::Bench { verb: BenchVerb::Ingest(options) } => bench::ingest::run(&options),
        Verb::Bench { verb: BenchVerb::Store(options) } => bench::store::run(&options),
        Verb::Bench { verb: BenchVerb::Wear(options) } => bench::wear::run(&options),
        Verb::Bench { verb: BenchVerb::Query(options) } => bench::query::run(&options),
        Verb::Bench { verb: BenchVerb::Cloud(options) } => bench::cloud::run(&options),
        Verb::Bench { verb: BenchVerb::Replay(options) } => bench::replay::run(&options),
        Verb::Bench { verb: BenchVerb::Scale(options) } => bench::scale::run(&options),
        Verb::Soak { verb: None | Some(SoakVerb::Power) } => soak::power(),
        Verb::Soak { verb: Some(SoakVerb::Cloud(options)) } => soak::cloud(&options),
        Verb::Soak { verb: Some(SoakVerb::Fuzz(options)) } => soak::fuzz(&options),
        Verb::Dist => dist(),
        Verb::Tidy => cargo(&["test", "--workspace", "--test", "tidy"]),
    }
}

fn dist() -> Result<()> {
    cargo(&["build", "--workspace", "--bins", "--profile", "dist"])?;
    for name in ["tidegate", "tidegate-cloud", "tidegate-sim"] {
        let path = root().join("target/dist").join(name);
        let bytes = path.metadata().with_context(|| format!("{} is missing", path.display()))?.len();
        ensure!(bytes > 0, "{} is empty", path.display());
        println!("{:>6.1} MB  {}", bytes as f64 / 1e6, path.display());
    }
    Ok(())
}
