//! A batch of summaries before it is packed.
#![no_main]

fuzz::target!(node::fuzz::summaries);
