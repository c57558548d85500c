//! `cargo xtask bench ingest`: acknowledged-after-commit readings per second, with decoding,
//! windows and everything on, beside Mosquitto storing nothing, in the same run.

use super::load::{self, Outcome, Payload};
use super::usage::Usage;
use crate::process::{Gateway, Running, cargo, root};
use anyhow::{Context, Result, ensure};
use clap::Args;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What is measured.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Seconds of measuring for each line.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Leave Mosquitto out.
    #[arg(long)]
    alone: bool,
    /// Only the line with so many connections and so many in flight, as 50x100.
    #[arg(long)]
    only: Option<String>,
    /// Only these payloads; repeats.
    #[arg(long = "payload")]
    payloads: Vec<Payload>,
}

/// How many connections, how many messages in flight on each, and what they say.
#[derive(Debug, Clone, Copy)]
struct Load {
    connections: usize,
    inflight: usize,
    payload: Payload,
}

/// Connections, and messages in flight on each.
const LOADS: [(usize, usize); 3] = [(50, 100), (50, 1), (1_500, 1)];
const WARM_UP: Duration = Duration::from_secs(2);

pub(crate) fn run(options: &Options) -> Result<()> {
    cargo(&["build", "--workspace", "--bins", "--release"])?;
    println!(
        "{:<22} {:>12} {:>12} {:>10} {:>10} {:>10} {:>12} {:>9}",
        "", "messages/s", "readings/s", "cpu us/msg", "p50 ms", "p99 ms", "bytes/rdg", "peak MB"
    );
    for (connections, inflight) in LOADS {
        if options.only.as_ref().is_some_and(|only| *only != format!("{connections}x{inflight}")) {
            continue;
        }
        for payload in Payload::ALL {
            if !options.payloads.is_empty() && !options.payloads.contains(&payload) {
                continue;
            }
            println!("{connections} connections x {inflight} in flight, {payload:?}");
            let load = Load { connections, inflight, payload };
            tidegate(load, options)?;
            if !options.alone {
                mosquitto(load, options)?;
            }
        }
    }
    Ok(())
}

/// Messages that were acknowledged while measuring, of a line that it prints.
fn measure(
    name: &str,
    pid: u32,
    address: SocketAddr,
    Load { connections, inflight, payload }: Load,
    seconds: u64,
) -> Result<u64> {
    let mut before = Usage::default();
    let duration = Duration::from_secs(seconds);
    let outcome: Outcome =
        load::run(address, connections, inflight, payload, WARM_UP, duration, || before = Usage::of(pid))?;
    let after = Usage::of(pid);
    let n = outcome.acknowledged as f64;
    let readings = n * payload.readings() as f64;
    let ms = |quantile: f64| outcome.latency_us.value_at_quantile(quantile) as f64 / 1e3;
    println!(
        "  {name:<20} {:>12.0} {:>12.0} {:>10.2} {:>10.2} {:>10.2} {:>12.1} {:>9.1}",
        n / outcome.elapsed.as_secs_f64(),
        readings / outcome.elapsed.as_secs_f64(),
        (after.cpu_s - before.cpu_s) * 1e6 / n,
        ms(0.5),
        ms(0.99),
        (after.written_bytes - before.written_bytes) as f64 / readings,
        after.peak_bytes as f64 / 1e6,
    );
    Ok(outcome.acknowledged)
}

fn tidegate(load: Load, options: &Options) -> Result<()> {
    let directory = tempfile::tempdir_in(root().join("target"))?;
    let gateway = Gateway::start(&root().join("target/release/tidegate"), directory.path(), &[])?;
    let messages = measure("tidegate", gateway.running.id(), gateway.mqtt.parse()?, load, options.seconds)?;
    // What was acknowledged must be there, all of it; otherwise the figure is worth nothing.
    let counted = gateway.get("/v1/status")?["readings"].as_u64().context("no count")?;
    let sent = messages * load.payload.readings();
    ensure!(counted >= sent, "{counted} readings are there of {sent} that were acknowledged");
    gateway.running.stop()
}

fn mosquitto(load: Load, options: &Options) -> Result<()> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut file = tempfile::NamedTempFile::new()?;
    writeln!(
        file,
        "listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nset_tcp_nodelay true\nlog_type none"
    )?;
    let running = Running::start(command(file.path()).stdout(Stdio::null()).stderr(Stdio::null()))
        .context("install Debian's mosquitto, or give --alone")?;
    let until = Instant::now() + Duration::from_secs(5);
    while TcpStream::connect(address).is_err() {
        ensure!(Instant::now() < until, "mosquitto does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    measure("mosquitto, no store", running.id(), address, load, options.seconds).map(drop)
}

fn command(config: &Path) -> Command {
    let program = if Path::new("/usr/sbin/mosquitto").exists() { "/usr/sbin/mosquitto" } else { "mosquitto" };
    let mut command = Command::new(program);
    command.arg("-c").arg(config);
    command
}
