//! `cargo demo`: a gateway, a small fleet on MQTT and CoAP, and the answers on the screen.

use crate::process::{Gateway, Running, cargo, root};
use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::Value;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What the demo shows.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Stop by itself and check the fleet's ledger against the answers.
    #[arg(long)]
    seconds: Option<u64>,
    /// How many devices.
    #[arg(long, default_value_t = 20)]
    devices: u32,
    /// Readings per second of all devices.
    #[arg(long, default_value_t = 40)]
    rate: u32,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    println!("building (the first time takes some minutes)");
    cargo(&["build", "--workspace", "--bins"])?;
    let directory = tempfile::tempdir()?;
    let bin = root().join("target/debug");
    let gateway = Gateway::start(&bin.join("tidegate"), &directory.path().join("data"), &["window.length=10s"])?;
    println!("mqtt {}   coap {}   http http://{}", gateway.mqtt, gateway.coap, gateway.http);
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))?;

    let ledger = directory.path().join("ledger");
    let mut fleet = Running::start(&mut fleet_command(&bin, &gateway, options, &ledger))?;
    let status = loop {
        if let Some(status) = fleet.ended() {
            break Some(status);
        }
        if interrupted.load(Ordering::Relaxed) {
            break None;
        }
        show(&gateway)?;
        std::thread::sleep(Duration::from_secs(1));
    };
    if let Some(status) = status {
        ensure!(status.success(), "the fleet ended with {status}");
        verify(&bin, &gateway, &ledger)?;
    }
    drop(fleet);
    gateway.running.stop().context("the gateway")
}

fn fleet_command(bin: &Path, gateway: &Gateway, options: &Options, ledger: &Path) -> Command {
    let mut command = Command::new(bin.join("tidegate-sim"));
    command.args(["run", "--quiet", "--protocol", "mix", "--mqtt", &gateway.mqtt, "--coap", &gateway.coap]);
    command.args(["--devices", &options.devices.to_string(), "--rate", &options.rate.to_string()]);
    command.arg("--ledger").arg(ledger);
    if let Some(seconds) = options.seconds {
        command.args(["--seconds", &seconds.to_string()]);
    }
    command
}

fn verify(bin: &Path, gateway: &Gateway, ledger: &Path) -> Result<()> {
    let mut command = Command::new(bin.join("tidegate-sim"));
    command.args(["verify", "--url", &format!("http://{}", gateway.http), "--window", "10s", "--window", "all"]);
    let status = command.arg("--ledger").arg(ledger).status().context("tidegate-sim does not start")?;
    ensure!(status.success(), "the answers differ from the ledger");
    Ok(())
}

/// The answers of now: every series' last minute.
fn show(gateway: &Gateway) -> Result<()> {
    let status = gateway.get("/v1/status")?;
    let answer = gateway.get("/v1/aggregates?from=now-1m&stats=count,mean,min,max,p95,last&limit=1000")?;
    let rows = answer["rows"].as_array().cloned().unwrap_or_default();
    if !std::io::stdout().is_terminal() {
        println!(
            "{} readings, {} devices, {} series in the last minute",
            status["readings"],
            status["devices"],
            rows.len()
        );
        return Ok(());
    }
    let mut screen = String::from("\x1b[2J\x1b[H");
    screen += &format!(
        "Tidegate demo   http://{}   {} readings acknowledged after their commit   Ctrl-C ends it\n\n",
        gateway.http, status["readings"]
    );
    screen += "the last minute          metric         count      mean       min       max       p95      last\n";
    for row in rows.iter().take(40) {
        let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let number = |name: &str| match &row[name] {
            Value::Number(n) => format!("{:10.2}", n.as_f64().unwrap_or_default()),
            other => format!("{:>10}", other.as_str().unwrap_or("-")),
        };
        screen += &format!("{:<24} {:<12} {:>7}", text("device"), text("metric"), row["count"]);
        ["mean", "min", "max", "p95", "last"].iter().for_each(|name| screen += &number(name));
        screen.push('\n');
    }
    print!("{screen}");
    Ok(std::io::stdout().flush()?)
}
