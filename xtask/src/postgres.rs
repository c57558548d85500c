//! A private PostgreSQL server of Debian's package, for tests and benchmarks.
//!
//! Always holds: it has a directory and a port of its own, speaks on loopback only, and ends with
//! its handle.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const READY_WITHIN: Duration = Duration::from_secs(30);

/// A running server.
#[derive(Debug)]
pub struct Postgres {
    directory: TempDir,
    port: u16,
    child: Child,
}

/// A port that nobody has just now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}

/// A program of the newest version there is.
fn binary(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("install Debian's postgresql");
    let newest = versions.filter_map(|entry| Some(entry.ok()?.path())).max();
    newest.expect("install Debian's postgresql").join("bin").join(name)
}

/// PostgreSQL does not run as root.
fn unprivileged(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    command
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?} does not start: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Starts a server in a new directory.
pub fn postgres() -> Postgres {
    let directory = tempfile::tempdir().expect("a directory");
    if rustix::process::geteuid().is_root() {
        succeed(Command::new("chown").arg("postgres").arg(directory.path()));
    }
    let data = directory.path().join("data");
    let mut initialise = unprivileged(&binary("initdb"));
    initialise.args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8", "-D"]);
    succeed(initialise.arg(&data));
    let port = free_port();
    let mut server = unprivileged(&binary("postgres"));
    server.arg("-D").arg(&data).arg("-k").arg(directory.path()).args(["-p", &port.to_string()]);
    server.args(["-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200"]);
    let child = server.stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("postgres starts");
    let postgres = Postgres { directory, port, child };
    let until = Instant::now() + READY_WITHIN;
    while postgres.try_sql("postgres", "SELECT 1").is_none() {
        assert!(Instant::now() < until, "PostgreSQL does not answer within {READY_WITHIN:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    postgres
}

impl Postgres {
    /// A directory that the server may write to.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// `psql` towards a database.
    pub fn psql(&self, database: &str) -> Command {
        let mut psql = Command::new("psql");
        psql.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres", "-At", "-v", "ON_ERROR_STOP=1"]);
        psql.args(["-d", database]);
        psql
    }

    /// `pg_dump` of a table, as statements.
    pub fn dump(&self, database: &str, table: &str, to: &Path) {
        let mut dump = Command::new(binary("pg_dump"));
        dump.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres", "--data-only"]);
        dump.args(["--rows-per-insert=500", "-t", table, "-d", database]);
        succeed(dump.arg("-f").arg(to));
    }

    fn try_sql(&self, database: &str, sql: &str) -> Option<String> {
        let output = self.psql(database).args(["-c", sql]).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// What `psql` says to a statement.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        self.try_sql(database, sql).unwrap_or_else(|| panic!("{sql} fails in {database}"))
    }

    /// Makes a database; the URL of a shard in it.
    pub fn database(&self, name: &str) -> String {
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        format!("postgres://postgres@127.0.0.1:{}/{name}", self.port)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
