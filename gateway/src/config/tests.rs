//! What a person sees who wrote the configuration.

use super::*;
use daemon::config::load;
use expect_test::{Expect, expect};
use std::io::Write;

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/gateway.toml");

fn none() -> Vec<(String, String)> {
    Vec::new()
}

fn problems(file: &str, environment: &[(&str, &str)], sets: &[&str], want: Expect) {
    let mut on_disk = tempfile::NamedTempFile::new().unwrap();
    on_disk.write_all(file.as_bytes()).unwrap();
    let environment: Vec<_> = environment.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    let sets: Vec<_> = sets.iter().map(|s| s.to_string()).collect();
    let found = load::<Config>(Some(on_disk.path()), environment, &sets).expect_err("there are problems");
    let name = on_disk.path().display().to_string();
    let text: String = found.iter().map(|p| format!("{p}\n").replace(&name, "FILE")).collect();
    want.assert_eq(&text);
}

#[test]
fn the_shipped_file_equals_the_defaults() {
    let shipped = load::<Config>(Some(std::path::Path::new(SHIPPED)), none(), &[]).unwrap();
    assert_eq!(shipped, Config { ingest: default_ingest(), ..Config::default() });
}

#[test]
fn a_token_is_not_sent_in_the_clear() {
    for (endpoint, is_fine) in [
        ("http://127.0.0.1:8090/v1/push", true),
        ("https://cloud.example:8090/v1/push", true),
        ("http://cloud.example:7443", false),
    ] {
        let sets = [format!("uplink.endpoints=[\"{endpoint}\"]"), "uplink.token_file=/etc/token".into()];
        assert_eq!(load::<Config>(None, none(), &sets).is_ok(), is_fine, "{endpoint}");
    }
}

#[test]
fn the_tags_that_name_a_device_have_two_names() {
    for set in ["influx.device_tags=[\"node\"]", "ingest.influx.device_tags=[\"node\"]"] {
        let config = load::<Config>(None, none(), &[set.to_owned()]).unwrap();
        assert_eq!(config.influx.device_tags, ["node"], "{set}");
    }
}

#[test]
fn the_shipped_file_names_every_key() {
    let text = std::fs::read_to_string(SHIPPED).unwrap().parse::<toml::Table>().unwrap();
    let defaults = toml::Table::try_from(Config::default()).unwrap();
    for (section, keys) in &defaults {
        for key in keys.as_table().into_iter().flatten().map(|(key, _)| key) {
            assert!(text[section].get(key).is_some(), "configs/gateway.toml lacks {section}.{key}");
        }
    }
}

#[test]
fn command_line_beats_environment_beats_file() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(
        file,
        "[mqtt]\nlisten = \"127.0.0.1:1\"\n[http]\nlisten = \"127.0.0.1:1\"\n[coap]\nlisten = \"127.0.0.1:1\""
    )
    .unwrap();
    let environment = ["MQTT", "HTTP"].map(|s| (format!("TIDEGATE_{s}__LISTEN"), "127.0.0.1:2".to_owned()));
    let config: Config = load(Some(file.path()), environment, &["mqtt.listen=127.0.0.1:3".into()]).unwrap();
    assert_eq!(config.mqtt.listen, "127.0.0.1:3");
    assert_eq!(config.http.listen, "127.0.0.1:2");
    assert_eq!(config.coap.listen, "127.0.0.1:1");
}

#[test]
fn every_problem_is_named_at_once_with_place_and_remedy() {
    let file = "[mqtt]\nlisten = \"example:x\"\nmax_conections = 5\n\n[window]\nlength = \"fast\"\nlateness = 3\n\
                \n[[ingest]]\ntopic = \"a/{metric}\"\n";
    let environment = [("TIDEGATE_JOURNAL__QUEUE", "1 KiB"), ("OTHER", "x")];
    problems(
        file,
        &environment,
        &["mqtt.threads=many", "journal", "limits=3"],
        expect![[r#"
        --set: journal: write KEY=VALUE, for example --set mqtt.listen=127.0.0.1:2883
        FILE:3: mqtt.max_conections: unknown key; did you mean mqtt.max_connections?
        FILE:7: window.lateness: invalid type: integer `3`, expected a string
        FILE:6: window.length: "fast" is no duration: write for example "250ms", "10s", "5m" or "7d"
        --set: mqtt.threads: invalid type: string "many", expected usize
        --set: limits: is a section, not a key
        FILE:2: mqtt.listen: "example:x" is no address and port: write for example "127.0.0.1:1883", "0.0.0.0:1883" or "[::]:1883"
        environment variable TIDEGATE_JOURNAL__QUEUE: journal.queue: is below its least value 64 KiB
        FILE:9: ingest: rule 1 ("a/{metric}"): no {device} in the pattern: add it, or set device = "..." beside the topic
    "#]],
    );
}

#[test]
fn a_file_that_is_no_toml_is_named_with_its_line() {
    problems(
        "[mqtt]\nlisten = = 3\n",
        &[],
        &[],
        expect![[r#"
        FILE:2: extra `=`, expected nothing
    "#]],
    );
}
