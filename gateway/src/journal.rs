//! x
pub mod batch;
