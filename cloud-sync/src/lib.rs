//! Both halves of the conversation between gateways and the cloud.
//!
//! The uplink runs inside the gateway; the node is the cloud daemon, behind a feature that the
//! gateway does not enable. ARCHITECTURE.md has the map.

/// What travels between the two.
pub mod wire;

/// What fuzz targets and their replay call.
#[cfg(all(feature = "node", any(test, fuzzing)))]
pub mod fuzz;

/// The gateway's half: from changes in its store to acknowledged batches.
pub mod uplink;

/// The cloud daemon.
#[cfg(feature = "node")]
pub mod node;

/// Which shard owns which slot, and how to change that with the fewest moves.
pub mod placement;

/// An error with what caused it.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
