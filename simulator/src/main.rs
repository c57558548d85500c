//! `tidegate-sim`: plays a fleet of sensors against a gateway and checks the gateway's answers.
//!
//! Arrives: a command line. Leaves: protocol traffic (MQTT, CoAP), a ledger of what was sent and
//! acknowledged, a report or a verdict on standard output, and an exit code.
//! Always holds: the ledger never claims an acknowledgement that did not come, because everything
//! that is verified later rests on it. Deliberately absent: any crate of the gateway. The simulator
//! knows only the public protocols, so it is an honest witness.

/// What time it is, and how times and durations are written.
mod clock;

/// Who exists and what it measures: the arguments and a seed become a fleet of sensors.
mod args;
mod device;
mod fleet;
mod scenario;

/// Recorded data instead of simulated sensors.
mod replay;

/// Readings become messages, and messages meet misfortune.
mod fault;
mod message;

/// Messages travel: MQTT and CoAP, with every acknowledgement matched to what it is for.
mod send;

/// What happened, for later proof and for the eye.
mod book;
mod ledger;
mod progress;
mod report;

/// One run from its links to its report.
mod runner;

/// The ledger against the gateway's answers.
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Plays a fleet of sensors against a Tidegate gateway, keeps a ledger of every reading sent and
/// acknowledged, and checks the gateway's answers against it.
#[derive(Parser)]
#[command(name = "tidegate-sim", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Simulate a fleet of sensors over MQTT and CoAP
    Run(Box<scenario::RunArgs>),
    /// Send a recorded CSV file as if its sensors were live
    Replay(Box<replay::ReplayArgs>),
    /// Recompute every answer from a ledger and compare it with the gateway's
    Verify(verify::VerifyArgs),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()))
        .with_writer(std::io::stderr)
        .init();
    let outcome = match arguments.verb {
        Verb::Run(args) => scenario::run(*args),
        Verb::Replay(args) => replay::run(*args),
        Verb::Verify(args) => verify::run(&args),
    };
    outcome.unwrap_or_else(|error| {
        // Every error names its cause itself.
        eprintln!("error: {error}");
        ExitCode::from(if error.is::<BadUse>() { 2 } else { 1 })
    })
}

/// What the caller asked for cannot be done as asked: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct BadUse(String);

impl BadUse {
    fn because(reason: impl std::fmt::Display) -> anyhow::Error {
        anyhow::Error::new(Self(reason.to_string()))
    }
}
