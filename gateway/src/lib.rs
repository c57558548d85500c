//! The gateway's library.

pub mod decode;
pub mod readings;
