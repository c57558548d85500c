//! Whoever can read the data directory may change what is in it: the token that the verbs of this machine show.

use crate::files;
use axum::http::Uri;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The file's name in the data directory.
pub const FILE: &str = "admin.token";

/// A directory of this user's alone.
fn runtime_directory(program: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{program}-{}", rustix::process::geteuid().as_raw()))
}

fn announced(program: &str, port: u16) -> PathBuf {
    runtime_directory(program).join(format!("{port}.token"))
}

/// A token that is made anew at every start.
#[derive(Debug)]
pub struct LocalToken {
    program: &'static str,
    token: String,
}

impl LocalToken {
    /// Makes one for a daemon.
    pub fn new(program: &'static str) -> io::Result<Self> {
        let mut bytes = [0_u8; 32];
        getrandom::fill(&mut bytes).map_err(|e| io::Error::other(e.to_string()))?;
        Ok(LocalToken { program, token: URL_SAFE_NO_PAD.encode(bytes) })
    }

    /// Writes it, readable by its owner only; once the ports are bound, so that it is the token of the daemon
    /// that listens there.
    pub fn write(&self, data_dir: &Path) -> io::Result<()> {
        files::replace(&data_dir.join(FILE), self.token.as_bytes())
    }

    /// Leaves it also where the verbs of the same user find it by the daemon's port alone (`--url`).
    pub fn announce(&self, port: u16) -> io::Result<()> {
        let directory = runtime_directory(self.program);
        files::directory(&directory)?;
        let metadata = std::fs::symlink_metadata(&directory)?;
        if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::other("it is another user's"));
        }
        files::close(&directory)?;
        files::replace(&announced(self.program, port), self.token.as_bytes())
    }

    /// The token of a daemon that runs on this machine, if it can be read; that of `data_dir` only where the URL is
    /// of the same configuration, since it is sent there.
    pub fn read(program: &str, data_dir: Option<&Path>, url: &str) -> Option<String> {
        let by_port = || {
            let url: Uri = url.parse().ok()?;
            let is_local = url.host().is_some_and(|host| {
                host == "localhost"
                    || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
            });
            let known = if url.scheme_str() == Some("https") { 443 } else { 80 };
            let port = url.port_u16().unwrap_or(known);
            std::fs::read_to_string(announced(program, port)).ok().filter(|_| is_local)
        };
        let token = by_port().or_else(|| std::fs::read_to_string(data_dir?.join(FILE)).ok())?;
        Some(token.trim().to_owned())
    }

    /// True if an `Authorization` header shows it.
    pub fn is_shown(&self, header: &str) -> bool {
        let shown = header.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        // All bytes are looked at: how long it takes tells nothing.
        shown.is_some_and(|(_, token)| {
            let (a, b) = (token.trim().as_bytes(), self.token.as_bytes());
            a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
        })
    }
}
