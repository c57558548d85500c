//! Query strings and the Accept header.
#![no_main]

fuzz::target!(gateway::fuzz::question);
