//! The cloud daemon, in the order in which data flows.
//!
//! A push comes in, its windows are routed by slot to the shards that own them, each commits,
//! and only then is the push acknowledged. Questions scatter over the shards and merge. A map,
//! shared by all daemons through a coordinator, says who owns which slot; the shards themselves
//! refuse whoever acts on an older map.

/// Opens, wires and orders everything.
pub mod app;

/// What a person can turn.
pub mod config;

/// Who may send, before anything is read.
mod door;

/// Connections of gRPC.
mod incoming;

/// Pushes come in, over gRPC and HTTP.
mod intake;

/// Whether this daemon's clock can be believed.
mod witness;

/// From windows to the shards that own them.
mod router;

/// Who owns which slot: the document that all daemons share.
mod map;

/// Where that document lives.
mod coordinator;

/// Windows as rows.
pub mod row;

/// Where rows live.
pub mod shard;

/// Shards that know less than the map.
mod settle;

/// A map that knows less than its shards.
mod rebuild;

/// Copies of a whole cloud, and the way back.
pub mod backup;

/// Questions over many shards.
mod query;

/// Slots change hands.
mod mover;

/// What is counted.
mod metrics;

/// Answers over HTTP.
mod http;

/// What is wrong, in words.
pub mod doctor;

/// The verbs that talk to a running daemon.
pub mod client;

/// What fuzz targets and their replay call.
#[cfg(any(test, fuzzing))]
pub mod fuzz;
