//! A payload of any format, sent to a topic or resource.
#![no_main]

fuzz::target!(gateway::fuzz::payload);
