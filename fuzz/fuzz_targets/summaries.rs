//! A batch of summaries before it is packed.
#![no_main]

fuzz::target!(cloud_sync::fuzz::summaries);
