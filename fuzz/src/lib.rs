//! What the targets have in common: each is a function of the crate that it tests.

pub use libfuzzer_sys;
use std::panic;

/// A target that calls a function with every input.
#[macro_export]
macro_rules! target {
    ($function:path) => {
        $crate::libfuzzer_sys::fuzz_target!(init: $crate::catch_those_of_the_codec(), |data: &[u8]| $function(data));
    };
}

/// The fuzzer ends the process at any panic. Those of rumqttd's codec are caught where it is called, and are no
/// findings.
pub fn catch_those_of_the_codec() {
    let end = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let is_of_the_codec =
            info.location().is_some_and(|at| at.file().contains("/rumqttd-") || at.file().contains("/bytes-"));
        if !is_of_the_codec {
            end(info);
        }
    }));
}
