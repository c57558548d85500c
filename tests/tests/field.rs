//! Payloads from the field: what a device sends, by whatever way, is what a question finds.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use tests::{Gateway, coap_client, eventually, gateway, output, tool};

/// 2024-05-01T12:00:00Z.
const T: i64 = 1_714_564_800;
const NS: &str = "1714564800000000000";

fn post(gateway: &Gateway, body: &str) -> (u16, Value) {
    let (status, answer) = gateway.post("/v1/readings", "application/json", body.as_bytes());
    (status, serde_json::from_str(&answer).unwrap_or(Value::Null))
}

fn write(gateway: &Gateway, query: &str, body: &str) -> (u16, String) {
    gateway.post(&format!("/api/v2/write{query}"), "text/plain", body.as_bytes())
}

/// Every reading of a device, `metric@seconds` to its value.
fn readings(gateway: &Gateway, device: &str) -> BTreeMap<String, Value> {
    let rows = gateway.rows(&format!("/v1/readings?device={device}"));
    let row = |row: Value| {
        let time = model::time::parse(row["time"].as_str().unwrap(), &jiff::tz::TimeZone::UTC).unwrap();
        (format!("{}@{}", row["metric"].as_str().unwrap(), time / 1_000_000), row["value"].clone())
    };
    rows.into_iter().map(row).collect()
}

fn at(metric: &str, value: impl Into<Value>) -> (String, Value) {
    (format!("{metric}@{T}"), value.into())
}

#[test]
fn a_point_is_its_measurement_tags_and_field() {
    let gateway = gateway().start();
    let body = format!(
        "cpu,cpu=cpu0,host=pi usage_idle=90 {NS}\ncpu,cpu=cpu1,host=pi usage_idle=10 {NS}\n\
         cpu,cpu=cpu-total,host=pi usage_idle=50 {NS}\nclimate,room=kitchen t=21 {NS}\nclimate,room=bath t=24 {NS}\n\
         note,host=pi text=\"two\nlines, \\\"quoted\\\"\" {NS}\n"
    );
    assert_eq!(write(&gateway, "", &body), (204, String::new()));
    let want = [
        at("cpu.usage_idle;cpu=cpu0", 90.0),
        at("cpu.usage_idle;cpu=cpu1", 10.0),
        at("cpu.usage_idle;cpu=cpu-total", 50.0),
        at("note.text", "two\nlines, \"quoted\""),
    ];
    assert_eq!(readings(&gateway, "pi"), BTreeMap::from(want));
    let rows = gateway.rows("/v1/aggregates?device=pi&metric=cpu.usage_idle&group_by=tag:cpu&stats=mean");
    let means: Vec<(Value, Value)> =
        rows.into_iter().map(|row| (row["tag:cpu"].clone(), row["mean"].clone())).collect();
    assert_eq!(means, [(json!("cpu-total"), json!(50.0)), (json!("cpu0"), json!(90.0)), (json!("cpu1"), json!(10.0))]);
    let one = gateway.rows("/v1/aggregates?device=climate&tag:room=bath&stats=count,mean");
    assert_eq!((one.len(), &one[0]["mean"]), (1, &json!(24.0)));
    let shown = gateway.rows("/v1/readings?metric=cpu.usage_idle;cpu%3Dcpu1");
    assert_eq!(shown.len(), 1, "a name as it is shown: {shown:?}");
}

#[test]
fn two_values_for_one_moment_are_named() {
    let gateway = gateway().start();
    let (status, said) = write(&gateway, "", &format!("m,device=a v=1 {NS}\nm,device=a v=2 {NS}\n"));
    assert!(status == 400 && said.contains("1 rejected") && said.contains("two values"), "{status} {said}");
    // Nanoseconds that are one microsecond.
    let (status, said) =
        write(&gateway, "", "m,device=b v=1 1714564800000000001\nm,device=b v=2 1714564800000000002\n");
    assert!(status == 400 && said.contains("two values"), "{said}");
    // The same twice is the same.
    assert_eq!(write(&gateway, "", &format!("m,device=c v=1 {NS}\nm,device=c v=1 {NS}\n")).0, 204);
    let (_, said) = post(&gateway, &format!(r#"{{"device":"d","a":{{"b":1}},"a.b":2,"time":{T}}}"#));
    assert!(said["rejected"][0]["reason"].as_str().unwrap().contains("two values"), "{said}");
}

#[test]
fn a_stamp_is_taken_at_its_word_or_named() {
    let gateway = gateway().start();
    assert_eq!(write(&gateway, "", &format!("tank,device=a level=41 {T}\n")).0, 204);
    assert_eq!(readings(&gateway, "a"), BTreeMap::from([at("tank.level", 41.0)]));
    for (name, precision) in
        [("s", T.to_string()), ("ms", format!("{T}000")), ("us", format!("{T}000000")), ("ns", NS.into())]
    {
        assert_eq!(
            write(&gateway, &format!("?precision={name}"), &format!("x,device=p{name} v=1 {precision}\n")).0,
            204
        );
        assert_eq!(readings(&gateway, &format!("p{name}")), BTreeMap::from([at("x.v", 1.0)]), "{name}");
    }
    // However old; only what a clock without a battery shows is not believed.
    for (device, time, seconds) in
        [("old", "1995-06-01T00:00:00Z", 801_964_800), ("older", "1901-01-01T00:00:00Z", -2_177_452_800_i64)]
    {
        let (status, said) =
            post(&gateway, &format!(r#"{{"device":"{device}","metric":"m","value":1,"time":"{time}"}}"#));
        assert_eq!((status, &said["accepted"], said.get("notes")), (200, &json!(1), None), "{said}");
        let key = format!("m@{seconds}");
        assert_eq!(readings(&gateway, device), BTreeMap::from([(key, json!(1.0))]));
        let rows = gateway.rows(&format!("/v1/aggregates?device={device}&stats=count"));
        assert_eq!((&rows[0]["start"], &rows[0]["count"]), (&json!(time), &json!(1)), "{rows:?}");
    }
    let (_, said) = post(&gateway, r#"{"device":"boot","metric":"m","value":1,"time":"1970-01-01T00:00:09Z"}"#);
    assert!(said["notes"][0]["reason"].as_str().unwrap().contains("1970"), "{said}");
    let rejects = gateway.rows("/v1/rejects");
    assert!(rejects.iter().any(|row| row["reason"] == "bad_time"), "{rejects:?}");
    for time in ["20240501120000", "2024-05-01T12:00:00Z", "1714564800", "1714564800000"] {
        for field in ["time", "timestamp", "ts", "t", "Time"] {
            let device = format!("f-{field}-{}", time.len());
            let (status, said) = post(
                &gateway,
                &format!(r#"{{"readings":[{{"device":"{device}","metric":"m","value":1,"{field}":"{time}"}}]}}"#),
            );
            assert_eq!((status, &said["accepted"]), (200, &json!(1)), "{field} {time} {said}");
            assert_eq!(readings(&gateway, &device), BTreeMap::from([at("m", 1.0)]), "{field} {time}");
        }
    }
    let (status, said) = post(&gateway, r#"{"device":"z","metric":"m","value":1,"time":"240501120000"}"#);
    assert!(status == 422 && said["rejected"][0]["reason"].as_str().unwrap().contains("RFC 3339"), "{status} {said}");
}

/// The same payload by MQTT, CoAP and HTTP.
#[test]
fn every_way_in_reads_the_same() {
    let gateway = gateway().start();
    let coap = gateway.get("/v1/status")["addresses"]["coap"].as_str().unwrap().to_owned();
    for (i, (value, want)) in [
        ("\"21.5\"", Some(json!(21.5))),
        ("\" 3.3 \"", Some(json!(3.3))),
        ("\"ON\"", Some(json!(true))),
        ("\"open\"", Some(json!("open"))),
        ("\"opening\"", Some(json!("opening"))),
        ("\"None\"", None),
        ("\"nan\"", None),
        ("nan", None),
        ("-nan", None),
        ("", None),
    ]
    .into_iter()
    .enumerate()
    {
        let body = format!(r#"{{"v":{value},"p":1,"time":{T}}}"#);
        let with_mark: Vec<u8> = [b"\xef\xbb\xbf", body.as_bytes(), b"\0"].concat();
        let names = [format!("mqtt{i}"), format!("coap{i}"), format!("http{i}"), format!("marked{i}")];
        gateway.publish(&["-q", "1", "-t", &format!("devices/{}", names[0]), "-m", &body]);
        output(coap_client().args([
            "-m",
            "put",
            "-t",
            "50",
            "-e",
            &body,
            &format!("coap://{coap}/devices/{}", names[1]),
        ]));
        let posted = format!(r#"{{"device":"{}","v":{value},"p":1,"time":{T}}}"#, names[2]);
        assert_eq!(post(&gateway, &posted).0, 200, "{posted}");
        let mut publish = tool("mosquitto_pub", "mosquitto-clients");
        let file = gateway.directory.path().join("payload");
        std::fs::write(&file, &with_mark).unwrap();
        publish.args(gateway.mosquitto()).args(["-q", "1", "-t", &format!("devices/{}", names[3]), "-f"]).arg(&file);
        output(&mut publish);
        let mut all = BTreeMap::from([at("p", 1.0)]);
        all.extend(want.map(|want| at("v", want)));
        for name in names {
            assert_eq!(
                eventually("it is there", || Some(readings(&gateway, &name)).filter(|r| !r.is_empty())),
                all,
                "{name} {body}"
            );
        }
    }
}

#[test]
fn senml_names_devices_and_tells_units_apart() {
    let gateway = gateway().start();
    let senml = |body: &str| gateway.post("/v1/readings", "application/senml+json", body.as_bytes()).0;
    let pack = format!(
        r#"[{{"n":"urn:dev:ow:10e2073a01080063","u":"Cel","v":23.1,"t":{T}}},{{"n":"urn:dev:ow:20e2073a01080064","u":"Cel","v":23.2,"t":{T}}}]"#
    );
    assert_eq!(senml(&pack), 200);
    let devices: Vec<Value> = gateway.rows("/v1/devices").into_iter().map(|row| row["id"].clone()).collect();
    assert_eq!(devices, ["urn:dev:ow:10e2073a01080063", "urn:dev:ow:20e2073a01080064"]);
    // RFC 8428, section 5.1.3: one name, three units.
    let pack = format!(
        r#"[{{"bn":"urn:dev:ow:30e2073a01080063","bt":{T},"bu":"%RH","v":20}},{{"u":"lon","v":24.3}},{{"u":"lat","v":60.1}}]"#
    );
    assert_eq!(senml(&pack), 200);
    let want = [at("value;unit=%RH", 20.0), at("value;unit=lon", 24.3), at("value;unit=lat", 60.1)];
    assert_eq!(readings(&gateway, "urn:dev:ow:30e2073a01080063"), BTreeMap::from(want));
}

#[test]
fn what_is_not_kept_is_no_success_and_what_no_rule_takes_is_seen() {
    let gateway = gateway().start();
    let (status, said) = post(&gateway, r#"{"readings":[{"device":"a"},7,{"device":"a","metric":"m","value":{}}]}"#);
    assert_eq!((status, &said["accepted"]), (422, &json!(0)), "{said}");
    let (status, said) = post(&gateway, r#"{"readings":[{"device":"a","metric":"m","value":1},7]}"#);
    assert_eq!((status, &said["accepted"], said["rejected"].as_array().unwrap().len()), (200, &json!(1), 1));
    for topic in ["/devices/x/t", "devices/house/kitchen/t", "zigbee2mqtt/Kitchen"] {
        gateway.publish(&["-q", "1", "-t", topic, "-m", "21.5"]);
    }
    let seen: Vec<Value> = gateway.rows("/v1/sniff").into_iter().map(|row| row["topic"].clone()).collect();
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert_eq!(gateway.metric("tidegate_unmatched_messages_total"), 3.0);
}

#[test]
fn zones_work_as_a_user_configures_them() {
    let gateway = gateway().set("time.zone", "Europe/Berlin").start();
    for (device, time, want) in [
        ("summer", "2026-07-01T12:00:00", "2026-07-01T10:00:00Z"),
        ("winter", "2026-01-01T12:00:00", "2026-01-01T11:00:00Z"),
        ("compact", "20260701120000", "2026-07-01T10:00:00Z"),
    ] {
        gateway.publish(&[
            "-q",
            "1",
            "-t",
            &format!("devices/{device}"),
            "-m",
            &format!(r#"{{"Time":"{time}","m":1}}"#),
        ]);
        let rows = eventually("it is there", || {
            Some(gateway.rows(&format!("/v1/readings?device={device}"))).filter(|r| !r.is_empty())
        });
        assert_eq!(rows[0]["time"], want, "{device}");
    }
}

#[test]
fn the_latest_value_is_the_newest_that_can_be_believed() {
    let mut gateway = gateway().start();
    let now = tests::now_s();
    for (value, time) in [(1, now - 10), (2, now + 10 * 365 * 86_400), (3, now - 5)] {
        post(&gateway, &format!(r#"{{"device":"a","metric":"m","value":{value},"time":{time}}}"#));
    }
    let latest = |gateway: &Gateway| gateway.get("/v1/devices/a")["metrics"][0]["value"].clone();
    assert_eq!(latest(&gateway), json!(3.0));
    gateway.restart();
    assert_eq!(latest(&gateway), json!(3.0), "after a restart");
}

#[test]
fn questions_are_asked_as_people_write_them() {
    let gateway = gateway().start();
    let now = tests::now_s();
    post(
        &gateway,
        &format!(
            r#"{{"readings":[{{"device":"what?","metric":"m*","value":1,"time":{}}},{{"device":"whats","metric":"mm","value":2,"time":{T}}}]}}"#,
            now - 60
        ),
    );
    assert_eq!(gateway.rows("/v1/readings?from=-1h").len(), 1);
    assert_eq!(gateway.rows("/v1/readings?from=2024-05-01&to=2024-05-02").len(), 1);
    assert_eq!(gateway.rows("/v1/readings?device=what%5C%3F").len(), 1, "a literal question mark");
    assert_eq!(gateway.rows("/v1/readings?device=what%3F").len(), 2);
    assert_eq!(gateway.rows("/v1/readings?metric=m%5C*").len(), 1, "a literal star");
    let whole = gateway.rows("/v1/aggregates?device=whats&stats=count");
    assert_eq!(
        (&whole[0]["start"], &whole[0]["end"]),
        (&json!("2024-05-01T12:00:00Z"), &json!("2024-05-01T12:00:00.000001Z"))
    );
    let (status, csv) = gateway.try_get("/v1/aggregates?stats=count&format=csv");
    assert!(status == 200 && csv.starts_with("device,metric,start,end,count"), "{csv}");
    for (path, needle) in [
        ("/v1/aggregates?window=9999d", "3660 days"),
        ("/v1/readings?limit=-1", "from 1 to 100000"),
        ("/v1/aggregates?format=xml", "json, csv, arrow, parquet"),
    ] {
        let (status, said) = gateway.try_get(path);
        assert!(status == 400 && said.contains(needle), "{path}: {status} {said}");
    }
}

#[test]
fn influxdb_clients_find_what_they_ask_for_first() {
    let gateway = gateway().start();
    for (path, want) in [("/ping", 204), ("/health", 200), ("/ready", 200)] {
        assert_eq!(gateway.try_get(path).0, want, "{path}");
    }
    let (status, said) = gateway.try_get("/query?q=CREATE%20DATABASE%20%22x%22");
    assert!(status == 200 && said.contains("\"statement_id\":0"), "{said}");
    assert_eq!(gateway.try_get("/query?q=SELECT%20*%20FROM%20m").0, 400);
    assert_eq!(gateway.post("/write?db=x&precision=s", "", format!("m,device=v1 a=1 {T}").as_bytes()).0, 204);
    assert_eq!(
        gateway.post("/api/v3/write_lp?db=x&precision=second", "", format!("m,device=v3 a=1 {T}").as_bytes()).0,
        204
    );
    for device in ["v1", "v3"] {
        assert_eq!(readings(&gateway, device), BTreeMap::from([at("m.a", 1.0)]));
    }
    let (_, text) = gateway.try_get("/metrics");
    assert!(text.contains("# TYPE tidegate_readings_total counter") && !text.contains("# EOF"), "{text}");
    assert!(!text.contains("tidegate_tidegate"));
}
