//! The vocabulary of the tests: `gateway()`, `simulator()`, `tool()`, `eventually()`.
//!
//! Always holds: what is tested is the real binary over real sockets on free ports, in a
//! directory of its own; processes end with their handle, by id; nothing sleeps for luck.

/// The cloud daemon.
pub mod cloud;

/// A private etcd, and a wire that can be cut.
pub mod etcd;

/// A disk whose power can be cut.
pub mod powercut;

/// Whether answers are what OpenAPI documents say.
pub mod schema;

use gateway::inside::Folded;
use gateway::inside::each_summary;
use model::Summary;
use rusqlite::{Connection, OpenFlags};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use tempfile::TempDir;
pub use xtask::cargo::root;
pub use xtask::postgres;

/// How long anything that must happen may take; a slow machine is no failure.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A binary of this tree, built now if it is not up to date.
pub fn binary(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let built = xtask::cargo::cargo().args(["build", "--quiet", "--workspace", "--bins"]).status();
        assert!(built.is_ok_and(|status| status.success()), "the binaries do not build");
    });
    root().join("target/debug").join(name)
}

/// Waits until `happened` gives something; fails naming `what` after [`PATIENCE`].
pub fn eventually<T>(what: &str, mut happened: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(result) = happened() {
            return result;
        }
        assert!(Instant::now() < until, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The time now, in seconds since the epoch.
#[expect(clippy::disallowed_methods, reason = "the gateway under test has the same clock")]
pub fn now_s() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// A seed from the environment (`TIDEGATE_TEST_SEED`) or at random, printed so that a failure
/// can be repeated.
pub fn seed() -> u64 {
    let given = std::env::var("TIDEGATE_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    println!("seed: TIDEGATE_TEST_SEED={seed}");
    seed
}

/// An independent client; fails with what to install.
pub fn tool(name: &str, package: &str) -> Command {
    let found = Command::new("sh").args(["-c", &format!("command -v {name}")]).output();
    assert!(
        found.is_ok_and(|output| output.status.success()),
        "{name} is missing: install Debian's {package}, or run cargo xtask test as root"
    );
    Command::new(name)
}

/// libcoap's client, by whichever name Debian gave it.
pub fn coap_client() -> Command {
    let names = ["coap-client", "coap-client-notls", "coap-client-openssl", "coap-client-gnutls"];
    let found = names.iter().find(|name| {
        Command::new("sh").args(["-c", &format!("command -v {name}")]).output().is_ok_and(|o| o.status.success())
    });
    tool(found.unwrap_or(&"coap-client"), "libcoap3-bin")
}

/// Runs to its end and gives standard output; fails with both outputs unless it ends well.
pub fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?} does not start: {e}"));
    assert!(output.status.success(), "{command:?} ended with {}\n{}", output.status, both(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Both outputs of a process, for messages.
pub fn both(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A gateway to be started.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    sets: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    disk_mib: Option<u64>,
    own_clock: bool,
}

/// A gateway with default settings on free ports.
pub fn gateway() -> Plan {
    Plan::default()
}

impl Plan {
    /// Sets a configuration key.
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.sets.push((key.into(), value.into()));
        self
    }

    /// Makes every commit slow, as a bad card would.
    pub fn slow_commits(mut self, ms: u64) -> Self {
        self.environment.push(("TIDEGATE_TEST_SLOW_COMMIT_MS".into(), ms.to_string()));
        self
    }

    /// Gives it a clock of its own, which [`Gateway::set_clock`] sets.
    pub fn own_clock(mut self) -> Self {
        self.own_clock = true;
        self
    }

    /// Gives it a disk of its own of so many MiB, in a mount namespace of its own.
    pub fn small_disk(mut self, mib: u64) -> Self {
        self.disk_mib = Some(mib);
        self
    }

    /// Starts it in a new directory.
    pub fn start(self) -> Gateway {
        self.start_in(Arc::new(tempfile::tempdir().expect("a directory")))
    }

    /// Starts it in this directory.
    pub fn start_in(self, directory: Arc<TempDir>) -> Gateway {
        let mut gateway = Gateway {
            plan: self,
            directory,
            child: None,
            mqtt: ([127, 0, 0, 1], 0).into(),
            coap: ([127, 0, 0, 1], 0).into(),
            http: ([127, 0, 0, 1], 0).into(),
            log: Arc::default(),
        };
        gateway.start();
        gateway
    }

    /// The command line, for a gateway that is to fail.
    pub fn command(&self, directory: &Path) -> Command {
        let mut command = match self.disk_mib {
            None => Command::new(binary("tidegate")),
            Some(mib) => {
                let mut command = tool("unshare", "util-linux");
                let mount = format!("mount -t tmpfs -o size={mib}m none \"$0\" && exec \"$@\"");
                command.args(["--mount", "--map-root-user", "sh", "-c", &mount]).arg(directory).arg(binary("tidegate"));
                command
            }
        };
        command.arg("--set").arg(format!("gateway.data_dir={}", directory.join("data").display()));
        for listener in ["mqtt", "coap", "http"] {
            command.arg("--set").arg(format!("{listener}.listen=127.0.0.1:0"));
        }
        for (key, value) in &self.sets {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        command.envs(self.environment.iter().cloned());
        if self.own_clock {
            command.envs(own_clock(directory));
            // What the kernel says of its own clock says nothing of this one.
            command.env("TIDEGATE_TEST_OWN_CLOCK", "1");
        }
        command
    }
}

/// What gives a process a clock of its own, which a file in `directory` sets.
pub fn own_clock(directory: &Path) -> Vec<(&'static str, String)> {
    let file = clock_file(directory);
    if !file.exists() {
        std::fs::write(&file, "+0").expect("a clock");
    }
    let mut environment = vec![("LD_PRELOAD", faketime()), ("FAKETIME_TIMESTAMP_FILE", file.display().to_string())];
    let on = ["FAKETIME_NO_CACHE", "FAKETIME_DONT_FAKE_MONOTONIC", "DONT_FAKE_MONOTONIC", "NO_FAKE_STAT"];
    environment.extend(on.map(|name| (name, "1".to_owned())));
    environment
}

fn clock_file(directory: &Path) -> PathBuf {
    directory.join("clock")
}

/// The library that shows a process another time.
fn faketime() -> String {
    sweep_faketime();
    let environment = output(tool("faketime", "faketime").args(["-m", "-f", "+0", "env"]));
    let preload = environment.lines().find_map(|line| line.strip_prefix("LD_PRELOAD="));
    preload.expect("faketime preloads its library").to_owned()
}

/// The library makes a semaphore and a piece of memory, called by the number of the process, and fails if
/// they are there; who was killed has left them, and numbers come again.
fn sweep_faketime() {
    for entry in std::fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let number = name.strip_prefix("sem.faketime_sem_").or_else(|| name.strip_prefix("faketime_shm_"));
        if number.is_some_and(|number| !Path::new("/proc").join(number).exists()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// A summary as the store has it.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Whose.
    pub device: String,
    /// Of what.
    pub metric: String,
    /// The window's start.
    pub start_us: i64,
    /// How often it has come to something else, from 1.
    pub revision: u32,
    /// What it says.
    pub summary: Summary,
}

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    plan: Plan,
    /// Where its data lies.
    pub directory: Arc<TempDir>,
    child: Option<Child>,
    /// Where it listens.
    pub mqtt: SocketAddr,
    /// Where it listens.
    pub coap: SocketAddr,
    /// Where it listens.
    pub http: SocketAddr,
    log: Arc<Mutex<String>>,
}

/// Starts a daemon and waits until it says where it listens; its log goes on to be kept.
fn listening<const N: usize>(
    command: &mut Command,
    mut listeners: [(&str, &mut SocketAddr); N],
    log: &Arc<Mutex<String>>,
) -> Child {
    let mut child =
        command.stderr(Stdio::piped()).spawn().unwrap_or_else(|e| panic!("{command:?} does not start: {e}"));
    let mut lines = BufReader::new(child.stderr.take().expect("a log")).lines();
    let remember = |log: &Mutex<String>, line: &str| {
        let mut log = log.lock().expect("the log");
        log.push_str(line);
        log.push('\n');
    };
    let mut bound = 0;
    while bound < N {
        let line = match lines.next() {
            Some(Ok(line)) => line,
            _ => panic!("the daemon ended before it listened:\n{}", log.lock().expect("the log")),
        };
        for (name, address) in &mut listeners {
            if let Some((_, at)) = line.split_once(&format!("{name} listens on ")) {
                **address = at.trim().parse().expect("an address");
                bound += 1;
            }
        }
        remember(log, &line);
    }
    let log = Arc::clone(log);
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| remember(&log, &line)));
    child
}

/// Asks for JSON.
fn get_json(url: &str) -> Value {
    let mut answer = ureq::get(url).call().unwrap_or_else(|e| panic!("GET {url}: {e}"));
    answer.body_mut().with_config().limit(1 << 30).read_json().expect("JSON")
}

/// The rows of an answer, of all its pages.
fn all_rows(get: impl Fn(&str) -> Value, path: &str) -> Vec<Value> {
    let mut rows = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = get(&format!("{path}{cursor}"));
        rows.extend(page["rows"].as_array().expect("rows").iter().cloned());
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return rows,
        }
    }
}

impl Gateway {
    /// A path in its directory as it sees it, also if it has a disk of its own.
    pub fn inside(&self, name: &str) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.pid()));
        root.join(self.directory.path().strip_prefix("/").expect("an absolute path")).join(name)
    }

    /// Starts it, on the ports it had before.
    pub fn start(&mut self) {
        let mut command = self.plan.command(self.directory.path());
        for (name, address) in [("mqtt", self.mqtt), ("coap", self.coap), ("http", self.http)] {
            if address.port() != 0 {
                command.arg("--set").arg(format!("{name}.listen={address}"));
            }
        }
        let listeners = [("mqtt", &mut self.mqtt), ("coap", &mut self.coap), ("http", &mut self.http)];
        self.child = Some(listening(&mut command, listeners, &self.log));
        eventually("the gateway is ready", || ureq::get(self.url("/readyz")).call().ok());
    }

    /// Sets a configuration key for the next start.
    pub fn set(&mut self, key: &str, value: &str) {
        self.plan.sets.push((key.into(), value.into()));
    }

    /// Sets the clock it sees, so many seconds from the true one; it must have one of its own.
    pub fn set_clock(&self, offset_s: i64) {
        let beside = self.directory.path().join("clock.new");
        std::fs::write(&beside, format!("{offset_s:+}")).expect("a clock");
        std::fs::rename(beside, clock_file(self.directory.path())).expect("a clock");
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.log.lock().expect("the log").clone()
    }

    /// All summaries of windows of so many seconds that have readings, of whatever age; nothing
    /// if the store cannot be read just now.
    pub fn summaries(&self, length_s: i64) -> Option<Vec<Stored>> {
        let path = self.directory.path().join("data/tidegate.db");
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).ok()?;
        let mut names =
            db.prepare("SELECT s.id, d.name, s.metric FROM series s JOIN device d ON d.id = s.device").ok()?;
        let names = names.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?)))).ok()?;
        let names: HashMap<u32, (String, String)> = names.collect::<Result<_, _>>().ok()?;
        let mut found: BTreeMap<(i64, u32), Stored> = BTreeMap::new();
        each_summary(&db, length_s * 1_000_000, |series, Folded { start_us, revision, summary }| {
            let (device, metric) = names[&series].clone();
            found.entry((start_us, series)).or_insert(Stored { device, metric, start_us, revision, summary });
        })
        .ok()?;
        Some(found.into_values().filter(|stored| !stored.summary.is_empty()).collect())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running gateway").id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid() as i32).expect("a process id");
        kill_process(pid, signal).expect("the gateway runs");
    }

    /// Kills it with SIGKILL, as a power cut would stop it.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("a running gateway");
        child.kill().expect("the gateway runs");
        child.wait().expect("it ends");
    }

    /// Asks it to stop with SIGTERM and waits.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        let mut child = self.child.take().expect("a running gateway");
        eventually("the gateway stops", || child.try_wait().expect("a child"))
    }

    /// Stops and starts it again.
    pub fn restart(&mut self) {
        assert!(self.stop().success(), "the gateway stopped badly:\n{}", self.log());
        self.start();
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

    /// Posts a body; the status and the answer.
    pub fn post(&self, path: &str, content_type: &str, body: &[u8]) -> (u16, String) {
        let agent = ureq::Agent::new_with_config(ureq::Agent::config_builder().http_status_as_error(false).build());
        let mut answer = agent.post(self.url(path)).content_type(content_type).send(body).expect("an answer");
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap_or_default())
    }

    /// Asks and gives the status and the answer, whatever it is.
    pub fn try_get(&self, path: &str) -> (u16, String) {
        let agent = ureq::Agent::new_with_config(ureq::Agent::config_builder().http_status_as_error(false).build());
        let mut answer = agent.get(self.url(path)).call().expect("an answer");
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap_or_default())
    }

    /// A counter from `/metrics`, without labels.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.try_get("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("no metric {name}"))
    }

    /// Its peak resident memory.
    pub fn peak_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("a running gateway");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// `mosquitto_pub` towards it.
    pub fn publish(&self, arguments: &[&str]) {
        let mut command = tool("mosquitto_pub", "mosquitto-clients");
        output(command.args(self.mosquitto()).args(arguments));
    }

    /// Address arguments of Mosquitto's clients.
    pub fn mosquitto(&self) -> [String; 4] {
        ["-h".into(), self.mqtt.ip().to_string(), "-p".into(), self.mqtt.port().to_string()]
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            println!("log of the gateway:\n{}", self.log());
        }
    }
}

/// The simulator with a verb.
pub fn simulator(verb: &str) -> Command {
    let mut command = Command::new(binary("tidegate-sim"));
    command.arg(verb);
    if verb != "verify" {
        command.arg("--quiet");
    }
    command
}

/// Checks a ledger against the answers of a gateway.
pub fn verify(gateway: &Gateway, ledger: &Path) {
    let mut command = simulator("verify");
    command.args(["--url", &gateway.url(""), "--window", "1m", "--window", "1h", "--window", "all"]);
    let said = output(command.arg("--ledger").arg(ledger));
    assert!(said.contains(" 0 differences"), "{said}");
    println!("{}", said.lines().last().unwrap_or_default());
}

/// A process that ends with its handle.
#[derive(Debug)]
pub struct Background(pub Child);

impl Background {
    /// Starts it.
    pub fn start(command: &mut Command) -> Self {
        Background(command.spawn().unwrap_or_else(|e| panic!("{command:?} does not start: {e}")))
    }

    /// Waits for its end, which must be a good one.
    pub fn finish(mut self, patience: Duration) {
        let until = Instant::now() + patience;
        loop {
            match self.0.try_wait().expect("a child") {
                Some(status) => return assert!(status.success(), "it ended with {status}"),
                None => assert!(Instant::now() < until, "it does not end within {patience:?}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
