//! What both daemons do alike.
//!
//! Arrives: arguments, configuration files, HTTP requests. Leaves: one configuration, questions
//! with types, answers in every form. Always holds: a key, a parameter or a form means the same
//! in the gateway and in the cloud. Deliberately absent: readings, summaries, stores.

/// Arguments that every verb takes, the log, signals, exit codes.
pub mod lifecycle;

/// Layers to one configuration; durations, sizes, addresses.
pub mod config;

/// Files that are nobody else's business.
pub mod files;

/// Connections at once, shared out by address.
pub mod seats;

/// Memory for one purpose, shared out by owner.
pub mod memory;

/// Words for the log that cannot flood it.
pub mod sparse;

/// Who may come in.
pub mod auth;

/// Tasks and threads that must live.
pub mod supervise;

/// What the verbs of this machine show.
pub mod local;

/// TLS in front of a listener.
pub mod tls;

/// Questions about windows, and their answers.
pub mod aggregates;

/// Answers as tables: Arrow and Parquet.
pub mod table;

/// HTTP: parameters, answers, errors.
pub mod http;
