//! What real clients of InfluxDB send, replayed as it was recorded (`tests/data/recorded`): every request gets an
//! answer that its client takes for success, and every point arrives, tag for tag.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use model::tags::{push_name, push_tag};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;
use tests::{Gateway, gateway, root};

/// `influx.device_tags` at its default.
const DEVICE_TAGS: [&str; 2] = ["device", "host"];

fn file(name: &str) -> PathBuf {
    root().join("tests/data/recorded").join(name)
}

fn json_lines(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(file(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn http(gateway: &Gateway) -> SocketAddr {
    gateway.url("").trim_start_matches("http://").trim_end_matches('/').parse().unwrap()
}

/// Sends a request byte for byte, but for the name of the host; status and body of the answer.
fn replay(to: SocketAddr, request: &Value) -> (u16, String) {
    let text = |key: &str| request[key].as_str();
    let body = match text("body_base64") {
        Some(packed) => STANDARD.decode(packed).unwrap(),
        None => text("body").unwrap_or_default().as_bytes().to_vec(),
    };
    let mut head = format!("{} {} HTTP/1.1\r\nHost: {to}\r\n", text("method").unwrap(), text("path").unwrap());
    let mut is_chunked = false;
    for (name, value) in request["headers"].as_object().unwrap() {
        is_chunked |= name.eq_ignore_ascii_case("transfer-encoding");
        if !name.eq_ignore_ascii_case("connection") {
            head.push_str(&format!("{name}: {}\r\n", value.as_str().unwrap()));
        }
    }
    let mut sent = Vec::new();
    if is_chunked {
        for piece in body.chunks(1_000) {
            sent.extend(format!("{:x}\r\n", piece.len()).into_bytes());
            sent.extend([piece, b"\r\n"].concat());
        }
        sent.extend(b"0\r\n\r\n");
    } else {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        sent = body;
    }
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes()).unwrap();
    stream.write_all(&sent).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, answer)
}

/// Device, metric and time; a point without a time of its own has none.
type Identity = (String, String, Option<i64>);

/// The series of a field, spelled as docs/decisions/0009-values.md says.
fn identity(point: &Value, field: &str) -> Identity {
    let tags = point["tags"].as_object().unwrap();
    let (measurement, by) =
        (point["measurement"].as_str().unwrap(), DEVICE_TAGS.iter().find(|name| tags.contains_key(**name)));
    let mut metric = String::new();
    if by.is_some() {
        push_name(&mut metric, measurement, true);
        metric.push('.');
    }
    push_name(&mut metric, field, by.is_none());
    let sorted: BTreeMap<&String, &str> = tags.iter().map(|(key, value)| (key, value.as_str().unwrap())).collect();
    for (key, value) in sorted.into_iter().filter(|(key, _)| by.is_none_or(|by| *by != key.as_str())) {
        push_tag(&mut metric, key, value);
    }
    let device = by.map_or(measurement, |by| tags[*by].as_str().unwrap());
    (device.to_owned(), metric, point["time_ns"].as_i64().map(|ns| ns.div_euclid(1_000)))
}

/// All readings that there are; of those whose time the gateway gave, without it.
fn stored(gateway: &Gateway, timed: &BTreeSet<Identity>) -> BTreeMap<Identity, Value> {
    let mut stored = BTreeMap::new();
    let mut cursor = String::new();
    loop {
        let page = gateway
            .get(&format!("/v1/readings?limit=100000&from=1971-01-01T00:00:00Z&to=2200-01-01T00:00:00Z{cursor}"));
        for row in page["rows"].as_array().unwrap() {
            let text = |key: &str| row[key].as_str().unwrap().to_owned();
            let time_us = text("time").parse::<jiff::Timestamp>().unwrap().as_microsecond();
            let at = (text("device"), text("metric"), Some(time_us));
            let at = if timed.contains(&at) { at } else { (at.0, at.1, None) };
            assert!(stored.insert(at.clone(), row["value"].clone()).is_none(), "{at:?} twice");
        }
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return stored,
        }
    }
}

/// What a field's value should be stored as: a text that means a number, a boolean or nothing is that.
fn meaning(value: &Value) -> Option<Value> {
    let Some(text) = value.as_str() else { return Some(value.clone()) };
    let trimmed = text.trim();
    let is_number = trimmed.starts_with(|c: char| c.is_ascii_digit() || c == '-') && trimmed.parse::<f64>().is_ok();
    let is_code = trimmed.len() > 1 && trimmed.starts_with('0') && trimmed.bytes().all(|b| b.is_ascii_digit());
    match trimmed.to_ascii_lowercase().as_str() {
        "" | "unknown" | "unavailable" | "null" => None,
        "on" | "true" => Some(true.into()),
        "off" | "false" => Some(false.into()),
        _ if trimmed == "None" => None,
        _ if is_number && !is_code => Some(trimmed.parse::<f64>().unwrap().into()),
        _ => Some(text.trim_matches(|c: char| c.is_whitespace() || c == '\0').into()),
    }
}

fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a.to_bits() == b.to_bits() || (a == 0.0 && b == 0.0),
        _ => a == b,
    }
}

/// Replays a session to a gateway of its own; all of `points` arrive and nothing else.
fn replayed(session: &str, points: &[Value], refused: &[u16]) {
    let gateway = gateway().start();
    let to = http(&gateway);
    for request in json_lines(&format!("{session}.jsonl")) {
        let (status, answer) = replay(to, &request);
        let told = request["answer"].as_u64().unwrap() as u16;
        let path = request["path"].as_str().unwrap();
        let is_flux = path.starts_with("/api/v2/query");
        if is_flux || path.to_ascii_uppercase().contains("Q=SELECT") {
            assert!(
                status == if is_flux { 404 } else { 400 } && answer.contains("/v1/aggregates"),
                "questions have their own place: {answer}"
            );
            continue;
        }
        // An empty write is refused by InfluxDB too, and clients count on that or on success.
        let is_good = (200..300).contains(&status) || (told == 400 && status == 400) || refused.contains(&status);
        assert!(is_good, "{session}: {} {}: {answer}", request["method"], request["path"]);
    }
    let mut expected: BTreeMap<Identity, Option<Value>> = BTreeMap::new();
    for point in points {
        for (field, value) in point["fields"].as_object().unwrap() {
            // What means nothing takes the place of nothing.
            let (at, value) = (identity(point, field), meaning(value));
            if value.is_some() || !expected.contains_key(&at) {
                expected.insert(at, value);
            }
        }
    }
    let timed: BTreeSet<Identity> = expected.keys().cloned().collect();
    let stored = stored(&gateway, &timed);
    let missing: Vec<_> = expected.iter().filter(|(at, value)| value.is_some() && !stored.contains_key(*at)).collect();
    assert!(missing.is_empty(), "{session}: {} are missing, as {:?}", missing.len(), missing[0]);
    for (at, value) in &stored {
        let wanted = expected.get(at).unwrap_or_else(|| panic!("{session}: {at:?} = {value} was not sent"));
        assert!(same(value, wanted.as_ref().unwrap_or(&Value::Null)), "{session}: {at:?} is {value}, not {wanted:?}");
    }
    println!("{session}: {} points, {} values of {} arrived", points.len(), stored.len(), expected.len());
}

/// Points that InfluxDB's own parser reads from a session.
fn read_by_influxdb(session: &str) -> Vec<Value> {
    let points = json_lines(&format!("{session}.influxdb.jsonl"));
    points.into_iter().filter(|point| point["error"].is_null()).collect()
}

/// Telegraf's default inputs, core for core and interface for interface: what its file output has arrives whole.
#[test]
fn telegraf_arrives_whole() {
    let truth = std::fs::read_to_string(file("telegraf.truth.lp")).unwrap();
    let points = read_by_influxdb("telegraf");
    assert_eq!(truth.lines().count(), points.len());
    for session in ["telegraf-v2-gzip", "telegraf-v2-identity", "telegraf-v1"] {
        replayed(session, &points, &[]);
    }
}

#[test]
fn home_assistant_arrives_whole() {
    for year in ["home-assistant", "home-assistant-2025"] {
        for session in ["v1", "v1-tags", "v2", "v2-tags"] {
            let session = format!("{year}-{session}");
            // With times in seconds some states fall on the same point: the last one counts, and that is said.
            let refused: &[u16] = if session.ends_with("v2-tags") { &[400] } else { &[] };
            replayed(&session, &read_by_influxdb(&session), refused);
        }
    }
}

#[test]
fn the_clients_of_influxdb_for_python_and_javascript_connect_probe_and_write() {
    for session in ["python-v1", "python-v2", "python-v3", "js-v1", "js-v2", "js-v3", "curl"] {
        replayed(session, &json_lines(&format!("{session}.truth.jsonl")), &[]);
    }
}

/// What clients spell so that InfluxDB reads something else than they meant: read as InfluxDB reads it.
#[test]
fn odd_spellings_are_read_as_influxdb_reads_them() {
    for session in ["python-v1-odd", "python-v2-odd", "js-v1-odd", "js-v2-odd"] {
        // Lines that are refused make the answer 400, as InfluxDB does, and the others are kept.
        replayed(session, &read_by_influxdb(session), &[400, 422]);
    }
}
