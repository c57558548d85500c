//! A message to a topic, by the way that is remembered and the long one.
#![no_main]

fuzz::target!(gateway::fuzz::publication);
