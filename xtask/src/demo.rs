//! `cargo demo`: a gateway, a cloud with two shards, a small fleet on MQTT and CoAP, and the answers
//! of both on the screen.

use crate::process::{Cloud, Gateway, Running, cargo, root};
use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::Value;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

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
    let cloud = Cloud::start(&bin.join("tidegate-cloud"), &directory.path().join("cloud"), &[])?;
    let endpoint = format!("uplink.endpoints=[\"http://{}\"]", cloud.grpc);
    let sets = ["window.length=10s", &endpoint, "uplink.jitter=1s", "uplink.heartbeat=2s"];
    let data = directory.path().join("data");
    let gateway = Gateway::start(&bin.join("tidegate"), &data, &sets)?;
    println!(
        "mqtt {}   coap {}   http http://{}   cloud http://{}",
        gateway.mqtt, gateway.coap, gateway.http, cloud.http
    );
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
        show(&gateway, &cloud)?;
        std::thread::sleep(Duration::from_secs(1));
    };
    if let Some(status) = status {
        ensure!(status.success(), "the fleet ended with {status}");
        verify(&bin, &gateway, &ledger)?;
        compare(&bin, &gateway, &cloud, &data)?;
    }
    drop(fleet);
    gateway.running.stop().context("the gateway")?;
    cloud.running.stop().context("the cloud")
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

/// Waits until everything is forwarded; then the cloud must hold the same, and say the same.
fn compare(bin: &Path, gateway: &Gateway, cloud: &Cloud, data: &Path) -> Result<()> {
    println!("waiting until the last windows have closed and are forwarded");
    let until = Instant::now() + FORWARDED_WITHIN;
    loop {
        let status = gateway.get("/v1/status")?;
        if status["windows"]["open"] == 0 && status["windows"]["dirty"] == 0 && status["uplink"]["backlog"] == 0 {
            break;
        }
        ensure!(Instant::now() < until, "not everything is forwarded: {}", status["uplink"]);
        std::thread::sleep(Duration::from_millis(200));
    }
    let mut command = Command::new(bin.join("tidegate"));
    command.arg("--set").arg(format!("gateway.data_dir={}", data.display()));
    let status = command.args(["verify", "--cloud", &format!("http://{}", cloud.http)]).status()?;
    ensure!(status.success(), "the cloud does not hold what the gateway holds");
    let (here, there) = (fleet_wide(&gateway.get(FLEET_WIDE)?), fleet_wide(&cloud.get(FLEET_WIDE)?));
    println!("all devices, from the gateway: {here}\nall devices, from the cloud:   {there}");
    ensure!(here == there, "the answers of the cloud differ from the gateway's");
    Ok(())
}

/// One answer over all devices and metrics.
const FLEET_WIDE: &str = "/v1/aggregates?stats=count,min,max&group_by=all";
const FORWARDED_WITHIN: Duration = Duration::from_secs(60);

fn fleet_wide(answer: &Value) -> String {
    let row = &answer["rows"][0];
    format!("{} numbers, from {} to {}", row["count"], row["min"], row["max"])
}

/// The answers of now: every series' last minute.
fn show(gateway: &Gateway, cloud: &Cloud) -> Result<()> {
    let status = gateway.get("/v1/status")?;
    let answer = gateway.get("/v1/aggregates?from=now-1m&stats=count,mean,min,max,p95,last&limit=1000")?;
    let rows = answer["rows"].as_array().cloned().unwrap_or_default();
    let (here, there) = (fleet_wide(&gateway.get(FLEET_WIDE)?), fleet_wide(&cloud.get(FLEET_WIDE)?));
    if !std::io::stdout().is_terminal() {
        println!(
            "{} readings, {} devices, {} series in the last minute; all of it: {here} (cloud: {there})",
            status["readings"],
            status["devices"],
            rows.len()
        );
        return Ok(());
    }
    let mut screen = String::from("\x1b[2J\x1b[H");
    screen += &format!(
        "Tidegate demo   http://{}   {} readings acknowledged after their commit   Ctrl-C ends it\n\
         cloud           http://{}   {} summaries forwarded, {} waiting\n\n\
         all devices, from the gateway: {here}\nall devices, from the cloud:   {there}\n\n",
        gateway.http, status["readings"], cloud.http, status["uplink"]["summaries"], status["uplink"]["backlog"]
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
