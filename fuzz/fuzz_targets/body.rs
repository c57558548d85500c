//! Bodies of requests, packed or plain.
#![no_main]

fuzz::target!(gateway::fuzz::body);
