//! The body of a POST /v1/readings.
#![no_main]

fuzz::target!(gateway::fuzz::posted);
