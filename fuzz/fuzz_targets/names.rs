//! Names, tags, times, patterns.
#![no_main]

fuzz::target!(gateway::fuzz::names);
