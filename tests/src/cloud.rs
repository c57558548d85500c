//! The cloud daemon: `cloud()`, and what a gateway's store and the cloud must agree on.

use super::{Gateway, all_rows, binary, both, eventually, get_json, listening};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::net::SocketAddr;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

/// A cloud daemon to be started.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    sets: Vec<(String, String)>,
    environment: Vec<(String, String)>,
}

/// A cloud daemon with default settings on free ports: two SQLite shards.
pub fn cloud() -> Plan {
    Plan::default()
}

impl Plan {
    /// Sets a configuration key.
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.sets.push((key.into(), value.into()));
        self
    }

    /// Starts it in a new directory.
    pub fn start(self) -> Cloud {
        self.start_in(Arc::new(tempfile::tempdir().expect("a directory")))
    }

    /// Starts it in this directory.
    pub fn start_in(self, directory: Arc<TempDir>) -> Cloud {
        let nowhere: SocketAddr = ([127, 0, 0, 1], 0).into();
        let mut cloud = Cloud { plan: self, directory, child: None, grpc: nowhere, http: nowhere, log: Arc::default() };
        cloud.start();
        cloud
    }
}

/// A running cloud daemon.
#[derive(Debug)]
pub struct Cloud {
    plan: Plan,
    /// Where its data lies.
    pub directory: Arc<TempDir>,
    child: Option<Child>,
    /// Where it listens.
    pub grpc: SocketAddr,
    /// Where it listens.
    pub http: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl Cloud {
    /// Starts it, on the ports it had before.
    pub fn start(&mut self) {
        let mut command = Command::new(binary("tidegate-cloud"));
        command.arg("--set").arg(format!("cloud.data_dir={}", self.directory.path().join("cloud").display()));
        command.arg("--set").arg(format!("cloud.listen={}", self.grpc));
        command.arg("--set").arg(format!("http.listen={}", self.http));
        for (key, value) in &self.plan.sets {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        command.envs(self.plan.environment.iter().cloned());
        let listeners = [("grpc", &mut self.grpc), ("http", &mut self.http)];
        self.child = Some(listening(&mut command, listeners, &self.log));
        eventually("the cloud is ready", || ureq::get(self.url("/readyz")).call().ok());
    }

    /// Sets an environment variable for the next start; an empty one is none.
    pub fn environment(&mut self, name: &str, value: &str) {
        self.plan.environment.retain(|(known, _)| known != name);
        if !value.is_empty() {
            self.plan.environment.push((name.into(), value.into()));
        }
    }

    /// What a gateway needs to push to it over gRPC.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.grpc)
    }

    /// A URL of its HTTP interface.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    /// Asks for JSON.
    pub fn get(&self, path: &str) -> Value {
        get_json(&self.url(path))
    }

    /// The rows of an answer, of all its pages.
    pub fn rows(&self, path: &str) -> Vec<Value> {
        all_rows(|path| self.get(path), path)
    }

    /// `tidegate-cloud` with a verb that talks to it.
    pub fn verb(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(binary("tidegate-cloud"));
        super::output(command.arg("--url").arg(self.url("")).args(arguments))
    }

    /// The same for a verb that is refused; what it said.
    pub fn try_verb(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(binary("tidegate-cloud"));
        let output = command.arg("--url").arg(self.url("")).args(arguments).output().expect("tidegate-cloud starts");
        assert!(!output.status.success(), "{}", both(&output));
        both(&output)
    }

    /// `tidegate-cloud` with a verb for a daemon that does not run.
    pub fn offline(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(binary("tidegate-cloud"));
        command.arg("--set").arg(format!("cloud.data_dir={}", self.directory.path().join("cloud").display()));
        super::output(command.args(arguments))
    }

    /// The same for a verb that may refuse; what it said.
    pub fn offline_outcome(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(binary("tidegate-cloud"));
        command.arg("--set").arg(format!("cloud.data_dir={}", self.directory.path().join("cloud").display()));
        both(&command.args(arguments).output().expect("tidegate-cloud starts"))
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.log.lock().expect("the log").clone()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.as_ref().expect("a running cloud").id() as i32).expect("a process id");
        kill_process(pid, signal).expect("the cloud runs");
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("a running cloud");
        child.kill().expect("the cloud runs");
        child.wait().expect("it ends");
    }

    /// Asks it to stop with SIGTERM and waits.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let mut child = self.child.take().expect("a running cloud");
        let status = eventually("the cloud stops", || child.try_wait().expect("a child"));
        assert!(status.success(), "the cloud stopped badly: {status}\n{}", self.log());
    }

    /// How many numbers it holds, of all gateways.
    pub fn count(&self) -> u64 {
        let answer = self.get("/v1/aggregates?stats=count&group_by=all&partial=refuse");
        answer["rows"][0]["count"].as_u64().unwrap_or(0)
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            println!("log of the cloud:\n{}", self.log());
        }
    }
}

impl super::Plan {
    /// Forwards to clouds, at once and often.
    pub fn forwarding_to(self, clouds: &[&Cloud]) -> Self {
        let endpoints: Vec<String> = clouds.iter().map(|cloud| format!("{:?}", cloud.endpoint())).collect();
        self.set("uplink.endpoints", &format!("[{}]", endpoints.join(",")))
            .set("uplink.jitter", "0s")
            .set("uplink.heartbeat", "1s")
    }
}

/// Waits until a gateway has nothing left to send.
pub fn drained(gateway: &Gateway) {
    eventually("the uplink has sent everything", || {
        let status = gateway.get("/v1/status");
        let windows = &status["windows"];
        let idle = windows["open"] == 0 && windows["dirty"] == 0 && status["uplink"]["backlog"] == 0;
        idle.then_some(())
    });
}

/// `tidegate verify --cloud`: both hold the same windows in the same versions; what it said.
pub fn agree(gateway: &Gateway, cloud: &Cloud) -> String {
    let mut command = Command::new(binary("tidegate"));
    command.arg("--set").arg(format!("gateway.data_dir={}", gateway.directory.path().join("data").display()));
    let output = command.args(["verify", "--cloud", &cloud.url("")]).output().expect("tidegate starts");
    assert!(output.status.success(), "{}\nuplink: {:#}", both(&output), gateway.get("/v1/status")["uplink"]);
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    println!("{said}");
    said
}

/// Statistics over windows of `window`: the same from a gateway and from the cloud.
pub fn same_answers(gateway: &Gateway, cloud: &Cloud, window: &str, gateway_id: Option<&str>) {
    let path =
        format!("/v1/aggregates?window={window}&stats=count,text_count,sum,mean,min,max,first,last,stddev&limit=5000");
    let own = gateway_id.map_or(String::new(), |id| format!("&gateway={id}"));
    let (here, there) = (gateway.rows(&path), cloud.rows(&format!("{path}{own}")));
    assert_eq!(here.len(), there.len(), "windows of {window}");
    for (here, there) in here.iter().zip(&there) {
        for name in ["device", "metric", "start", "end", "count", "text_count", "min", "max", "first", "last"] {
            assert_eq!(here[name], there[name], "{name} of {here} and {there}");
        }
        for name in ["sum", "mean", "stddev"] {
            let (a, b) = (here[name].as_f64(), there[name].as_f64());
            let near = a == b || (a.unwrap() - b.unwrap()).abs() <= 1e-9 * a.unwrap().abs().max(1e3);
            assert!(near, "{name} of {here} and {there}");
        }
    }
    println!("{} windows of {window} with the same answers", here.len());
}
