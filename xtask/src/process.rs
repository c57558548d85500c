//! Starting, asking and ending our own processes.

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
pub(crate) use xtask::cargo::root;

/// Runs cargo in the tree; its output is ours.
pub(crate) fn cargo(arguments: &[&str]) -> Result<()> {
    let status = xtask::cargo::cargo().args(arguments).status().context("cargo does not start")?;
    ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(())
}

/// A process that ends with its handle.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| format!("{name} does not start"))?;
        Ok(Running { child })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end and waits; an error unless it ended well.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM);
        let status = self.wait_for(Duration::from_secs(20)).context("it does not end")?;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }

    fn wait_for(&mut self, patience: Duration) -> Option<std::process::ExitStatus> {
        let until = Instant::now() + patience;
        while Instant::now() < until {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }

    /// Its status, if it has ended.
    pub(crate) fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().ok().flatten()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Starts a daemon and waits until it says where it listens, on all of these.
fn listening<const N: usize>(command: &mut Command, names: [&str; N]) -> Result<(Running, [String; N])> {
    let mut running = Running::start(command.stderr(Stdio::piped()))?;
    let log = running.child.stderr.take().context("no log")?;
    let mut addresses = [const { String::new() }; N];
    let mut lines = BufReader::new(log).lines();
    while addresses.iter().any(String::is_empty) {
        let Some(Ok(line)) = lines.next() else { bail!("the daemon ended before it listened") };
        for (name, address) in names.iter().zip(&mut addresses) {
            if let Some((_, bound)) = line.split_once(&format!("{name} listens on ")) {
                *address = bound.trim().to_owned();
            }
        }
    }
    // Somebody has to read the rest of the log.
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| eprintln!("{line}")));
    Ok((running, addresses))
}

fn get(address: &str, path: &str) -> Result<Value> {
    let text = ureq::get(format!("http://{address}{path}")).call()?.body_mut().read_to_string()?;
    Ok(serde_json::from_str(&text)?)
}

/// A gateway and where it listens.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) running: Running,
    pub(crate) mqtt: String,
    pub(crate) coap: String,
    pub(crate) http: String,
}

impl Gateway {
    /// Starts a gateway on free ports and waits until it says where it listens.
    pub(crate) fn start(binary: &Path, data: &Path, sets: &[&str]) -> Result<Self> {
        let mut command = Command::new(binary);
        command.arg("--set").arg(format!("gateway.data_dir={}", data.display()));
        for listener in ["mqtt", "coap", "http"] {
            command.arg("--set").arg(format!("{listener}.listen=127.0.0.1:0"));
        }
        for set in sets {
            command.arg("--set").arg(set);
        }
        let (running, [mqtt, coap, http]) = listening(&mut command, ["mqtt", "coap", "http"])?;
        Ok(Gateway { running, mqtt, coap, http })
    }

    /// Asks over HTTP.
    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        get(&self.http, path)
    }
}

/// A cloud daemon and where it listens.
#[derive(Debug)]
pub(crate) struct Cloud {
    pub(crate) running: Running,
    pub(crate) grpc: String,
    pub(crate) http: String,
}

impl Cloud {
    /// Starts a cloud daemon on free ports and waits until it says where it listens.
    pub(crate) fn start(binary: &Path, data: &Path, sets: &[&str]) -> Result<Self> {
        let mut command = Command::new(binary);
        command.arg("--set").arg(format!("cloud.data_dir={}", data.display()));
        command.args(["--set", "cloud.listen=127.0.0.1:0", "--set", "http.listen=127.0.0.1:0"]);
        for set in sets {
            command.arg("--set").arg(set);
        }
        let (running, [grpc, http]) = listening(&mut command, ["grpc", "http"])?;
        Ok(Cloud { running, grpc, http })
    }

    /// Asks over HTTP.
    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        get(&self.http, path)
    }
}
