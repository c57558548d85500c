//! A batch of summaries as it travels.
#![no_main]

fuzz::target!(node::fuzz::frame);
