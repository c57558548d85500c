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

pub(crate) fn run() -> Result<()> {
    install()?;
    step("rustfmt", &["fmt", "--all", "--check"])?;
    step("clippy", &["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"])?;
    step("build", &["build", "--workspace", "--bins"])?;
    step("test", &["test", "--workspace"])
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
