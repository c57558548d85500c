//! Whoever can read the data directory may change what is in it: the token that the verbs of this machine show.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use daemon::files;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The file's name in the data directory.
pub const FILE: &str = "admin.token";

/// A directory of this user's alone.
fn runtime_directory() -> PathBuf {
    std::env::temp_dir().join(format!("tidegate-cloud-{}", rustix::process::geteuid().as_raw()))
}

fn announced(port: u16) -> PathBuf {
    runtime_directory().join(format!("{port}.token"))
}

/// A token that is made anew at every start.
#[derive(Debug)]
pub struct LocalToken(String);

impl LocalToken {
    /// Makes one.
    pub fn new() -> io::Result<Self> {
        let mut bytes = [0_u8; 32];
        getrandom::fill(&mut bytes).map_err(|e| io::Error::other(e.to_string()))?;
        Ok(LocalToken(URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// Writes it, readable by its owner only; once the ports are bound, so that it is the token of the daemon
    /// that listens there.
    pub fn write(&self, data_dir: &Path) -> io::Result<()> {
        files::replace(&data_dir.join(FILE), self.0.as_bytes())
    }

    /// Leaves it also where the verbs of the same user find it by the daemon's port alone (`--url`).
    pub fn announce(&self, port: u16) -> io::Result<()> {
        let directory = runtime_directory();
        files::directory(&directory)?;
        let metadata = std::fs::symlink_metadata(&directory)?;
        if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::other("it is another user's"));
        }
        files::close(&directory)?;
        files::replace(&announced(port), self.0.as_bytes())
    }

    /// The token of a daemon that runs on this machine, if it can be read; that of `data_dir` only where the URL is
    /// of the same configuration, since it is sent there.
    pub fn read(data_dir: Option<&Path>, url: &str) -> Option<String> {
        let by_port = || {
            let url = reqwest::Url::parse(url).ok()?;
            let is_local = url.host_str().is_some_and(|host| {
                host == "localhost"
                    || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
            });
            let port = url.port_or_known_default().filter(|_| is_local)?;
            std::fs::read_to_string(announced(port)).ok()
        };
        by_port().or_else(|| std::fs::read_to_string(data_dir?.join(FILE)).ok())
    }

    /// True if an `Authorization` header shows it.
    pub fn is_shown(&self, header: &str) -> bool {
        let shown = header.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        // All bytes are looked at: how long it takes tells nothing.
        shown.is_some_and(|(_, token)| {
            let (a, b) = (token.trim().as_bytes(), self.0.as_bytes());
            a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
        })
    }
}
