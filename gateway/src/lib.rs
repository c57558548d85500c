//! The gateway's library.

pub mod catalog;
pub mod clock;
pub mod config;
pub mod decode;
pub mod journal;
pub mod readings;
