//! `cargo xtask test`: what every change has to pass.

use crate::process::{cargo, root};
use anyhow::{Context, Result, ensure};
use std::process::Command;

/// Debian packages with the independent clients that the tests use.
const PACKAGES: [&str; 8] = [
    "mosquitto-clients",
    "libcoap3-bin",
    "curl",
    "python3",
    "python3-paho-mqtt",
    "faketime",
    "postgresql",
    "etcd-server",
];

/// The seed of whatever is random in the tests, unless `TIDEGATE_TEST_SEED` gives another: what every change has to pass is
/// the same for each. `cargo test` and `cargo xtask soak` draw their own.
const SEED: u64 = 20_260_101;

pub(crate) fn run() -> Result<()> {
    install()?;
    step("rustfmt", &["fmt", "--all", "--check"])?;
    step("clippy", &["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"])?;
    deny()?;
    step("build", &["build", "--workspace", "--bins"])?;
    println!("== test");
    let mut tests = xtask::cargo::cargo();
    if std::env::var_os("TIDEGATE_TEST_SEED").is_none() {
        tests.env("TIDEGATE_TEST_SEED", SEED.to_string());
    }
    ensure!(tests.args(["test", "--workspace"]).status()?.success(), "cargo test --workspace failed");
    Ok(())
}

/// cargo-deny where it is installed, and as far as it goes without its database of advisories. Licences and sources are
/// looked at by a test, too.
fn deny() -> Result<()> {
    let is_there = xtask::cargo::cargo().args(["deny", "--version"]).output().is_ok_and(|said| said.status.success());
    if !is_there {
        println!("== no cargo-deny: bans are not checked; `cargo install cargo-deny` brings it");
        return Ok(());
    }
    step("deny", &["deny", "--offline", "check", "bans", "licenses", "sources"])
}

fn step(name: &str, arguments: &[&str]) -> Result<()> {
    println!("== {name}");
    cargo(arguments)
}

/// Installs the packages that are missing, if that is ours to do.
fn install() -> Result<()> {
    let has = |package: &&&str| {
        let output = Command::new("dpkg-query").args(["-W", "-f", "${Status}", package]).output();
        output.is_ok_and(|output| output.stdout.ends_with(b"ok installed"))
    };
    let missing: Vec<&str> = PACKAGES.iter().filter(|package| !has(package)).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    let remedy = format!("the tests need Debian's {}: sudo apt-get install {0}", missing.join(" "));
    ensure!(rustix::process::geteuid().is_root(), "{remedy}");
    println!("== installing {}", missing.join(" "));
    let apt = |arguments: &[&str]| -> Result<bool> {
        let mut command = Command::new("apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").current_dir(root());
        Ok(command.status().with_context(|| remedy.clone())?.success())
    };
    let mut install = vec!["install", "--yes", "--no-install-recommends"];
    install.extend(&missing);
    if !apt(&install)? {
        ensure!(apt(&["update"])?, "{remedy}");
        ensure!(apt(&install)?, "{remedy}");
    }
    Ok(())
}
