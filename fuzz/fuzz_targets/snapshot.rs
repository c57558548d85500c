//! The latest readings in the store.
#![no_main]

fuzz::target!(gateway::fuzz::snapshot);
