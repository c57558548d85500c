//! Clients that speak CoAP.
#![no_main]

fuzz::target!(gateway::fuzz::coap);
