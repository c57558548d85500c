//! The body of a push to the cloud.
#![no_main]

fuzz::target!(node::fuzz::push);
