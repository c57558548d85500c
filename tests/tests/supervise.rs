//! What a daemon needs cannot end unseen: the process ends with its name, and whoever watches it starts it anew.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tests::{binary, both, gateway};

/// Runs until it ends by itself; what it said.
fn ends(command: &mut Command, name: &str) -> String {
    command.env("TIDEGATE_TEST_PANIC", name).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            let _ = child.kill();
            panic!("it goes on without its task {name}:\n{}", both(&child.wait_with_output().unwrap()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    let said = both(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("{name} panicked; see the log")), "{said}");
    assert!(said.contains("a test has asked for it"), "the panic itself is in the log: {said}");
    said
}

#[test]
fn a_gateway_ends_with_the_name_of_the_task_that_ended() {
    for name in ["mqtt", "coap", "http", "clock", "uplink"] {
        let directory = tempfile::tempdir().unwrap();
        let mut plan = gateway();
        for listener in ["mqtt", "coap", "http"] {
            plan = plan.set(&format!("{listener}.listen"), "127.0.0.1:0");
        }
        // An uplink that is there, to nowhere.
        let plan = plan.set("uplink.endpoints", "[\"http://127.0.0.1:9\"]");
        ends(&mut plan.command(directory.path()), name);
    }
}

#[test]
fn a_cloud_daemon_ends_with_the_name_of_the_task_that_ended() {
    for name in ["grpc", "http", "mover", "tidy", "map"] {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(binary("tidegate-cloud"));
        for set in ["cloud.listen=127.0.0.1:0", "http.listen=127.0.0.1:0"] {
            command.arg("--set").arg(set);
        }
        command.arg("--set").arg(format!("cloud.data_dir={}", directory.path().display()));
        ends(&mut command, name);
    }
}
