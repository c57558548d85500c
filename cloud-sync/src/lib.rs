//! Both halves of the conversation between gateways and the cloud.
//!
//! What is here so far is the part that everything else stands on: where a device lives.
//! The uplink, the shards and the moves between them follow (docs/decisions, ARCHITECTURE.md).

/// Which shard owns which slot, and how to change that with the fewest moves.
pub mod placement;
