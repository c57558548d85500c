//! A batch of summaries as it travels.
#![no_main]

fuzz::target!(cloud_sync::fuzz::frame);
