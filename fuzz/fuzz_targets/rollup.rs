//! Summaries of a series in the store.
#![no_main]

fuzz::target!(gateway::fuzz::rollup);
