//! Readings of one commit in the store.
#![no_main]

fuzz::target!(gateway::fuzz::batch);
