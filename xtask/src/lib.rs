//! What the developer verbs share with the tests.

/// Cargo within cargo.
pub mod cargo;

/// A private PostgreSQL server.
pub mod postgres;
