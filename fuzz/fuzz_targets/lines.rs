//! Line protocol.
#![no_main]

fuzz::target!(gateway::fuzz::lines);
