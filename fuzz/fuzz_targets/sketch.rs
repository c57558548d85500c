//! The distribution of a window's numbers.
#![no_main]

fuzz::target!(gateway::fuzz::sketch);
