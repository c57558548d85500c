//! Independent clients work: mosquitto-clients, paho, libcoap, curl.

use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use tests::{Background, Gateway, coap_client, eventually, gateway, output, tool};

fn latest(gateway: &Gateway, device: &str, metric: &str) -> Value {
    let (status, text) = gateway.try_get(&format!("/v1/devices/{device}"));
    if status != 200 {
        return Value::Null;
    }
    let device: Value = serde_json::from_str(&text).unwrap();
    let metrics = device["metrics"].as_array().cloned().unwrap_or_default();
    metrics.into_iter().find(|m| m["metric"] == metric).map_or(Value::Null, |m| m["value"].clone())
}

/// Waits until there are so many subscriptions: Mosquitto's clients do not tell.
fn subscribed(gateway: &Gateway, count: u64) {
    eventually("the subscription", || (gateway.get("/v1/status")["subscriptions"] == count).then_some(()));
}

#[test]
fn mosquitto_pub_is_acknowledged_after_the_commit_and_mosquitto_sub_hears_it() {
    let gateway = gateway().start();
    for version in ["mqttv311", "mqttv5"] {
        let mut listen = tool("mosquitto_sub", "mosquitto-clients");
        listen.args(gateway.mosquitto()).args([
            "-V",
            version,
            "-q",
            "1",
            "-t",
            "devices/+/temperature",
            "-C",
            "2",
            "-v",
            "-d",
        ]);
        let mut listener = Background::start(listen.stdout(Stdio::piped()));
        let lines = BufReader::new(listener.0.stdout.take().unwrap()).lines().map_while(Result::ok);
        subscribed(&gateway, 1);
        for (qos, value) in [("1", "21.5"), ("2", "22.5")] {
            gateway.publish(&["-V", version, "-q", qos, "-t", "devices/a/temperature", "-m", value]);
            // Acknowledged means answered at once.
            assert_eq!(latest(&gateway, "a", "temperature"), value.parse::<f64>().unwrap());
        }
        let heard: Vec<String> = lines.filter(|line| line.starts_with("devices/")).collect();
        assert_eq!(heard, ["devices/a/temperature 21.5", "devices/a/temperature 22.5"]);
        listener.finish(tests::PATIENCE);
    }
}

#[test]
fn retained_messages_and_wills_reach_later_subscribers_also_after_a_restart() {
    let mut gateway = gateway().start();
    gateway.publish(&["-r", "-q", "1", "-t", "state/a", "-m", "kept"]);
    gateway.publish(&["-r", "-q", "1", "-t", "state/b", "-m", "gone"]);
    gateway.publish(&["-r", "-q", "1", "-t", "state/b", "-n"]);
    gateway.kill();
    gateway.start();
    let mut listen = tool("mosquitto_sub", "mosquitto-clients");
    let heard = output(listen.args(gateway.mosquitto()).args(["-t", "state/#", "-C", "1", "-v", "-W", "10"]));
    assert_eq!(heard.trim(), "state/a kept");

    let mut watch = tool("mosquitto_sub", "mosquitto-clients");
    watch.args(gateway.mosquitto()).args(["-t", "wills/#", "-C", "1", "-v", "-W", "20"]);
    let mut watcher = Background::start(watch.stdout(Stdio::piped()));
    let mut lines = BufReader::new(watcher.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    subscribed(&gateway, 1);
    let mut doomed = tool("mosquitto_sub", "mosquitto-clients");
    doomed.args(gateway.mosquitto()).args([
        "-t",
        "x",
        "--will-topic",
        "wills/a",
        "--will-payload",
        "died",
        "--will-qos",
        "1",
    ]);
    let doomed = Background::start(&mut doomed);
    subscribed(&gateway, 2);
    drop(doomed); // SIGKILL: no DISCONNECT
    assert_eq!(lines.find(|line| line.starts_with("wills/")).as_deref(), Some("wills/a died"));
}

const PAHO: &str = r#"
import sys, threading, json
import paho.mqtt.client as mqtt
host, port, version = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
protocol = mqtt.MQTTv5 if version == 5 else mqtt.MQTTv311
heard, subscribed = [], threading.Event()
done = threading.Event()
def on_message(client, userdata, message):
    heard.append([message.topic, message.payload.decode(), message.qos, message.retain])
    if len(heard) == 3: done.set()
listener = mqtt.Client(client_id=f"listener{version}", protocol=protocol)
listener.on_message = on_message
listener.on_subscribe = lambda *a: subscribed.set()
listener.connect(host, port, keepalive=30)
listener.loop_start()
listener.subscribe([(f"devices/paho{version}/#", 1)])
assert subscribed.wait(10), "no SUBACK"
sender = mqtt.Client(client_id=f"sender{version}", protocol=protocol)
sender.connect(host, port, keepalive=0)
sender.loop_start()
for qos, payload in [(0, "1"), (1, json.dumps({"value": 2, "time": 1700000000})), (2, "3")]:
    info = sender.publish(f"devices/paho{version}/m", payload, qos=qos)
    info.wait_for_publish(10)
    assert info.is_published(), f"QoS {qos} was not acknowledged"
assert done.wait(10), f"heard only {heard}"
sender.disconnect(); listener.disconnect()
print(json.dumps(heard))
"#;

#[test]
fn paho_for_python_works_in_both_versions_at_every_qos() {
    let gateway = gateway().start();
    for version in ["4", "5"] {
        let mut python = Command::new("/usr/bin/python3");
        let (host, port) = (gateway.mqtt.ip().to_string(), gateway.mqtt.port().to_string());
        let heard: Value = serde_json::from_str(&output(python.args(["-c", PAHO, &host, &port, version]))).unwrap();
        let payloads: Vec<_> = heard.as_array().unwrap().iter().map(|m| m[1].as_str().unwrap().to_owned()).collect();
        assert_eq!(payloads.len(), 3, "{heard}");
        let rows = gateway.rows(&format!("/v1/readings?device=paho{version}"));
        let mut values: Vec<f64> = rows.iter().map(|row| row["value"].as_f64().unwrap()).collect();
        values.sort_by(f64::total_cmp);
        assert_eq!(values, [1.0, 2.0, 3.0]);
    }
}

#[test]
fn libcoap_stores_reads_observes_and_sends_blocks() {
    let gateway = gateway().start();
    let uri = |path: &str| format!("coap://{}{path}", gateway.coap);
    output(coap_client().args(["-m", "put", "-e", "21.5", &uri("/devices/a/t")]));
    assert_eq!(latest(&gateway, "a", "t"), 21.5);
    output(coap_client().args(["-m", "post", "-t", "50", "-e", r#"{"h":40,"on":true}"#, &uri("/devices/a")]));
    assert_eq!((latest(&gateway, "a", "h"), latest(&gateway, "a", "on")), (40.0.into(), true.into()));
    let senml = r#"[{"bn":"urn:dev:a:","n":"v","v":3.25}]"#;
    output(coap_client().args(["-m", "post", "-t", "110", "-e", senml, &uri("/devices/a")]));
    assert_eq!(output(coap_client().args(["-m", "get", &uri("/devices/a/v")])).trim(), "3.25");
    let links = output(coap_client().args(["-m", "get", &uri("/.well-known/core")]));
    assert!(links.contains("</devices/a/t>") && links.contains("</time>"), "{links}");
    let time: jiff::Timestamp = output(coap_client().args(["-m", "get", &uri("/time")])).trim().parse().unwrap();
    assert!(time.as_second() > 1_700_000_000);

    let values: Vec<String> = (0..400).map(|i| format!("\"m{i}\":{i}")).collect();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "{{{}}}", values.join(",")).unwrap();
    let path = file.path().display().to_string();
    output(coap_client().args(["-b", "64", "-m", "post", "-t", "50", "-f", &path, &uri("/devices/blocks")]));
    assert_eq!(gateway.get("/v1/devices/blocks")["metrics"].as_array().unwrap().len(), 400);
    let links = output(coap_client().args(["-m", "get", &uri("/.well-known/core?href=/devices/blocks/*")]));
    assert_eq!(links.matches("</devices/blocks/").count(), 400, "a large answer comes in blocks");

    let mut observe = coap_client();
    observe.args(["-m", "get", "-s", "20", &uri("/devices/a/t")]);
    let mut observer = Background::start(observe.stdout(Stdio::piped()));
    let mut out = observer.0.stdout.take().unwrap();
    let mut heard = String::new();
    let mut read_until = |text: &str| {
        let mut byte = [0];
        while !heard.contains(text) {
            assert_eq!(std::io::Read::read(&mut out, &mut byte).unwrap(), 1, "heard only {heard:?}");
            heard.push(char::from(byte[0]));
        }
    };
    read_until("21.5");
    gateway.publish(&["-q", "1", "-t", "devices/a/t", "-m", "33.25"]);
    read_until("33.25");
}

#[test]
fn coap_refusals_carry_the_codes_of_the_rfcs() {
    let gateway = gateway().start();
    let ask = |arguments: &[&str], path: &str| {
        let mut command = coap_client();
        command.args(["-v", "6"]).args(arguments).arg(format!("coap://{}{path}", gateway.coap));
        tests::both(&command.output().unwrap())
    };
    for (arguments, path, code) in [
        (&["-m", "get"][..], "/nothing", "4.04"),
        (&["-m", "get"][..], "/devices/a/none", "4.04"),
        (&["-m", "delete"][..], "/devices/a/t", "4.05"),
        (&["-m", "post", "-t", "50", "-e", "{"][..], "/devices/a", "4.00"),
        (&["-m", "post", "-t", "41", "-e", "x"][..], "/devices/a", "4.15"),
        (&["-m", "get", "-O", "9,x"][..], "/time", "4.02"),
    ] {
        let said = ask(arguments, path);
        assert!(said.contains(&format!("c:{code}")) || said.starts_with(code), "{path}: want {code} in {said}");
    }
    assert_eq!(gateway.get("/v1/rejects")["rows"].as_array().unwrap().len(), 1);
}

#[test]
fn curl_posts_readings_in_every_form_and_gets_problems_that_help() {
    let gateway = gateway().start();
    let curl = |arguments: &[&str], path: &str| {
        let mut command = tool("curl", "curl");
        output(command.args(["-sS", "-w", " %{http_code}"]).args(arguments).arg(gateway.url(path)))
    };
    let json = r#"{"readings":[{"device":"d","metric":"m","value":1.5},{"device":"d","metric":"m","value":"1e999x","time":"soon"}]}"#;
    let said = curl(&["-d", json, "-H", "content-type: application/json"], "/v1/readings");
    assert!(said.starts_with(r#"{"accepted":1,"rejected":[{"index":1,"reason":"time: "#), "{said}");
    let senml = r#"[{"bn":"urn:dev:x:","n":"t","u":"Cel","v":20}]"#;
    let said = curl(&["-d", senml, "-H", "content-type: application/senml+json"], "/v1/readings");
    assert_eq!(said, r#"{"accepted":1,"rejected":[]} 200"#);
    let said = curl(&["--data-binary", "weather,host=roof temp=3.5 1700000000000000000"], "/api/v2/write?bucket=b");
    assert_eq!(said, " 204");
    assert_eq!(gateway.rows("/v1/readings?device=roof")[0]["value"], 3.5);
    let said = curl(&["--data-binary", "bad"], "/api/v2/write");
    assert!(said.contains("partial write: 0 readings kept, 1 rejected") && said.ends_with(" 400"), "{said}");
    for (arguments, path, code) in [
        (&[][..], "/v1/aggregates?window=1x", "400"),
        (&[][..], "/v1/readings?form=now", "400"),
        (&[][..], "/v1/readings?cursor=zzz", "400"),
        (&[][..], "/v2", "404"),
        (&[][..], "/v1/devices/nobody", "404"),
        (&["-X", "DELETE"][..], "/v1/devices", "405"),
        (&["-H", "accept: image/png"][..], "/v1/devices", "406"),
        (&["-d", "x", "-H", "content-type: image/png"][..], "/v1/readings", "415"),
    ] {
        let said = curl(arguments, path);
        assert!(said.contains("\"detail\":") && said.ends_with(&format!(" {code}")), "{path}: {said}");
    }
}

#[test]
fn the_live_stream_shows_readings_and_windows_as_they_come() {
    let gateway = gateway().set("window.length", "1s").set("window.lateness", "1s").start();
    let mut curl = tool("curl", "curl");
    curl.args(["-sSN", &gateway.url("/v1/live?device=a")]);
    let mut stream = Background::start(curl.stdout(Stdio::piped()));
    let mut lines = BufReader::new(stream.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    // The listener is counted once it listens; until then events may pass it by.
    eventually("a reading is heard", || {
        gateway.publish(&["-q", "1", "-t", "devices/b/t", "-m", "1"]);
        gateway.publish(&["-q", "1", "-t", "devices/a/t", "-m", "21.5"]);
        let line = lines.next()?;
        assert!(!line.contains("\"b\""), "{line}");
        line.contains("event: reading").then_some(())
    });
    let window = lines.find(|line| line.contains("\"mean\":21.5")).expect("a window");
    assert!(window.contains("\"device\":\"a\""), "{window}");
}
