//! A private PostgreSQL server.

use super::{eventually, output, tool};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A server of Debian's package with a directory and a port of its own; it ends with its handle.
#[derive(Debug)]
pub struct Postgres {
    directory: TempDir,
    port: u16,
    child: Option<Child>,
}

/// The newest version there is.
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
    let mut command = tool("setpriv", "util-linux");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    command
}

/// A port that nobody has just now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}

/// Starts a server.
pub fn postgres() -> Postgres {
    let directory = tempfile::tempdir().expect("a directory");
    if rustix::process::geteuid().is_root() {
        output(Command::new("chown").arg("postgres").arg(directory.path()));
    }
    let data = directory.path().join("data");
    let mut initialise = unprivileged(&binary("initdb"));
    output(
        initialise
            .args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8", "-D"])
            .arg(&data),
    );
    let mut postgres = Postgres { directory, port: free_port(), child: None };
    postgres.start();
    postgres
}

impl Postgres {
    /// Starts it, on the port it had before.
    pub fn start(&mut self) {
        let mut server = unprivileged(&binary("postgres"));
        server.arg("-D").arg(self.directory.path().join("data")).arg("-k").arg(self.directory.path());
        server.args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200"]);
        self.child = Some(server.stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("postgres starts"));
        eventually("PostgreSQL answers", || self.try_sql("postgres", "SELECT 1"));
    }

    /// Kills it, as a power cut would stop it.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn try_sql(&self, database: &str, sql: &str) -> Option<String> {
        let mut psql = tool("psql", "postgresql-client");
        psql.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres", "-At", "-v", "ON_ERROR_STOP=1"]);
        let output = psql.args(["-d", database, "-c", sql]).output().ok()?;
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
        self.kill();
    }
}
