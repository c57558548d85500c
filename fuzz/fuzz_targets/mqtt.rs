//! Clients that speak MQTT.
#![no_main]

fuzz::target!(gateway::fuzz::mqtt);
