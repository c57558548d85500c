//! What a person can turn: how options are read.
//!
//! Arrives: a TOML file, the environment, `--set`. Leaves: options that are whole, or all
//! problems at once, each with where it stands and what to do. Always holds: an unknown key is
//! an error that names the nearest known one.

/// Layers, unknown keys, places.
mod load;
/// Durations and sizes as people write them.
mod units;

pub use load::{Options, Problem, load};
use std::net::SocketAddr;
pub use units::{Size, Span};

/// Reads a listen address; `None` means the listener is off.
pub fn address(listen: &str) -> Result<Option<SocketAddr>, String> {
    if listen.is_empty() {
        return Ok(None);
    }
    let named = listen.replace("localhost:", "127.0.0.1:");
    named.parse().map(Some).map_err(|_| {
        format!(
            "{listen:?} is no address and port: write for example \"127.0.0.1:1883\", \"0.0.0.0:1883\" or \"[::]:1883\""
        )
    })
}
