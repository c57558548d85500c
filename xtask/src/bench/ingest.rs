//! `cargo xtask bench ingest`: acknowledged-after-commit readings per second, with decoding,
//! windows and everything on, beside Mosquitto storing nothing, in the same run.

use super::load::{self, Outcome};
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
}

/// Connections, and messages in flight on each.
const LOADS: [(usize, usize); 3] = [(50, 100), (50, 1), (1_500, 1)];
const WARM_UP: Duration = Duration::from_secs(2);

pub(crate) fn run(options: &Options) -> Result<()> {
    cargo(&["build", "--workspace", "--bins", "--release"])?;
    println!(
        "{:<22} {:>12} {:>10} {:>10} {:>10} {:>12} {:>9}",
        "", "readings/s", "cpu us", "p50 ms", "p99 ms", "bytes/rdg", "peak MB"
    );
    for (connections, inflight) in LOADS {
        if options.only.as_ref().is_some_and(|only| *only != format!("{connections}x{inflight}")) {
            continue;
        }
        println!("{connections} connections x {inflight} in flight");
        tidegate(connections, inflight, options)?;
        if !options.alone {
            mosquitto(connections, inflight, options)?;
        }
    }
    Ok(())
}

fn measure(
    name: &str,
    pid: u32,
    address: SocketAddr,
    (connections, inflight): (usize, usize),
    seconds: u64,
) -> Result<()> {
    let mut before = Usage::default();
    let duration = Duration::from_secs(seconds);
    let outcome: Outcome = load::run(address, connections, inflight, WARM_UP, duration, || before = Usage::of(pid))?;
    let after = Usage::of(pid);
    let n = outcome.acknowledged as f64;
    let ms = |quantile: f64| outcome.latency_us.value_at_quantile(quantile) as f64 / 1e3;
    println!(
        "  {name:<20} {:>12.0} {:>10.2} {:>10.2} {:>10.2} {:>12.1} {:>9.1}",
        n / outcome.elapsed.as_secs_f64(),
        (after.cpu_s - before.cpu_s) * 1e6 / n,
        ms(0.5),
        ms(0.99),
        (after.written_bytes - before.written_bytes) as f64 / n,
        after.peak_bytes as f64 / 1e6,
    );
    Ok(())
}

fn tidegate(connections: usize, inflight: usize, options: &Options) -> Result<()> {
    let directory = tempfile::tempdir_in(root().join("target"))?;
    let gateway = Gateway::start(&root().join("target/release/tidegate"), directory.path(), &[])?;
    measure("tidegate", gateway.running.id(), gateway.mqtt.parse()?, (connections, inflight), options.seconds)?;
    // What was acknowledged must be there; otherwise the figure is worth nothing.
    let counted = gateway.get("/v1/status")?["readings"].as_u64().context("no count")?;
    ensure!(counted > 0, "nothing was stored");
    gateway.running.stop()
}

fn mosquitto(connections: usize, inflight: usize, options: &Options) -> Result<()> {
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
    measure("mosquitto, no store", running.id(), address, (connections, inflight), options.seconds)
}

fn command(config: &Path) -> Command {
    let program = if Path::new("/usr/sbin/mosquitto").exists() { "/usr/sbin/mosquitto" } else { "mosquitto" };
    let mut command = Command::new(program);
    command.arg("-c").arg(config);
    command
}
