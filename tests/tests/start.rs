//! Starting, refusing to start, stopping, reading again.

use rustix::process::Signal;
use std::io::Write;
use std::process::{Command, Stdio};
use tests::{Gateway, binary, both, eventually, gateway, output, tool};

fn refused(plan: &tests::Plan) -> (i32, String) {
    let directory = tempfile::tempdir().unwrap();
    let output = plan.command(directory.path()).output().unwrap();
    (output.status.code().unwrap(), both(&output))
}

#[test]
fn bad_configuration_is_exit_code_2_with_every_problem_at_once() {
    let (code, said) = refused(&gateway().set("mqtt.lisen", "x").set("window.length", "soon"));
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("did you mean mqtt.listen?") && said.contains("window.length"), "{said}");
    let output = Command::new(binary("tidegate")).arg("--nonsense").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn nobody_gets_in_from_beyond_loopback_by_default() {
    let (code, said) = refused(&gateway().set("mqtt.listen", "0.0.0.0:0").set("coap.listen", "0.0.0.0:0"));
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("tidegate user add") && said.contains("coap.allow_anonymous = true"), "{said}");
}

#[test]
fn a_second_gateway_on_the_same_directory_is_refused() {
    let first = gateway().start();
    let output = gateway().command(first.directory.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(both(&output).contains("in use by another gateway"), "{}", both(&output));
}

#[test]
fn a_foreign_or_newer_file_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let db = rusqlite::Connection::open(data.join("tidegate.db")).unwrap();
    db.execute_batch("CREATE TABLE mine (x)").unwrap();
    let output = gateway().command(directory.path()).output().unwrap();
    assert!(both(&output).contains("not a Tidegate store"), "{}", both(&output));
    db.execute_batch("PRAGMA application_id = 0x54494445; PRAGMA user_version = 99").unwrap();
    let output = gateway().command(directory.path()).output().unwrap();
    assert!(both(&output).contains("run a newer tidegate"), "{}", both(&output));
}

#[test]
fn sigterm_drains_and_exits_0_and_the_id_is_kept() {
    let mut gateway = gateway().start();
    gateway.publish(&["-q", "1", "-t", "devices/a/t", "-m", "1"]);
    let id = gateway.get("/v1/status")["id"].clone();
    assert!(gateway.stop().success(), "{}", gateway.log());
    gateway.start();
    assert_eq!(gateway.get("/v1/status")["id"], id);
    assert_eq!(gateway.get("/v1/devices/a")["readings"], 1);
}

fn add_user(gateway: &Gateway, name: &str, password: &str) {
    let data = format!("gateway.data_dir={}", gateway.directory.path().join("data").display());
    let mut command = Command::new(binary("tidegate"));
    let mut child = command.args(["user", "add", name, "--set", &data]).stdin(Stdio::piped()).spawn().unwrap();
    writeln!(child.stdin.take().unwrap(), "{password}").unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn users_are_asked_for_on_every_protocol_and_read_again_on_sighup() {
    let mut gateway = gateway().start();
    add_user(&gateway, "ann", "s3cret");
    gateway.restart();
    let publish = |gateway: &Gateway, login: &[&str]| {
        let mut command = tool("mosquitto_pub", "mosquitto-clients");
        command.args(gateway.mosquitto()).args(["-q", "1", "-t", "devices/a/t", "-m", "1"]).args(login);
        command.output().unwrap().status.success()
    };
    assert!(!publish(&gateway, &[]));
    assert!(!publish(&gateway, &["-u", "ann", "-P", "wrong"]));
    assert!(publish(&gateway, &["-u", "ann", "-P", "s3cret"]));
    assert_eq!(gateway.try_get("/v1/devices").0, 401);
    assert_eq!(gateway.try_get("/healthz").0, 200);
    let mut curl = tool("curl", "curl");
    let said = output(curl.args(["-sS", "-u", "ann:s3cret", &gateway.url("/v1/devices/a")]));
    assert!(said.contains("\"readings\":1"), "{said}");
    assert!(!publish(&gateway, &["-u", "bob", "-P", "other"]));
    add_user(&gateway, "bob", "other");
    gateway.signal(Signal::HUP);
    eventually("bob may come in", || publish(&gateway, &["-u", "bob", "-P", "other"]).then_some(()));
}

#[test]
fn an_ingest_rule_maps_foreign_topics() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tidegate.toml");
    std::fs::write(&file, "[[ingest]]\ntopic = \"{device}/sensor/{metric}/state\"\n").unwrap();
    let data = std::sync::Arc::new(directory);
    let mut command = gateway().command(data.path());
    command.arg("check").arg("--config").arg(&file);
    assert_eq!(output(&mut command).trim(), "the configuration is good");
}
