//! What the developer verbs share with the tests.

/// A private PostgreSQL server.
pub mod postgres;
