//! What each payload comes to: the table that a user of the decoders can rely on.

use super::*;
use ciborium::cbor;
use expect_test::{Expect, expect};
use proptest::prelude::*;

const METRIC: Target<'_> = Target { device: Some("a"), metric: Some("m") };
const DEVICE: Target<'_> = Target { device: Some("a"), metric: None };

fn show(out: &Decoded) -> String {
    let mut lines = Vec::new();
    for r in &out.readings {
        let device = r.device.as_deref().map(|d| format!("{d} ")).unwrap_or_default();
        let stamp = match r.stamp {
            Stamp::None => String::new(),
            Stamp::At(us) | Stamp::Twice(us, _) => format!(" @ {}", model::time::format(us)),
            Stamp::Relative(us) => format!(" @ {us} us"),
        };
        let unit = r.unit.as_deref().map(|u| format!(" [{u}]")).unwrap_or_default();
        let inexact = if r.inexact { " inexact" } else { "" };
        lines.push(format!("{device}{} = {:?}{unit}{stamp}{inexact}", r.metric, r.value));
    }
    lines.extend(out.rejects.iter().map(|r| format!("reject {}: {r}", r.reason.as_str())));
    if out.missing > 0 {
        lines.push(format!("{} missing", out.missing));
    }
    lines.join("\n") + "\n"
}

fn check(target: Target<'_>, payload: impl AsRef<[u8]>, want: Expect) {
    want.assert_eq(&show(&decode(target, Format::Auto, payload.as_ref(), &TimeZone::UTC)));
}

fn encoded(value: &ciborium::Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).unwrap();
    bytes
}

#[test]
fn plain_numbers_booleans_and_states() {
    check(
        METRIC,
        "21.5",
        expect![[r#"
        m = Number(21.5)
    "#]],
    );
    check(
        METRIC,
        " -4e-2\n",
        expect![[r#"
        m = Number(-0.04)
    "#]],
    );
    check(
        METRIC,
        "+7",
        expect![[r#"
        m = Number(7.0)
    "#]],
    );
    check(
        METRIC,
        "ON",
        expect![[r#"
        m = Bool(true)
    "#]],
    );
    check(
        METRIC,
        "closed",
        expect![[r#"
        m = Bool(false)
    "#]],
    );
    check(
        METRIC,
        "half open",
        expect![[r#"
        m = Text("half open")
    "#]],
    );
    check(
        METRIC,
        "21,5",
        expect![[r#"
        m = Text("21,5")
    "#]],
    );
}

#[test]
fn the_words_for_no_value_are_counted_not_kept() {
    for payload in ["", "null", "nan", "NaN", "unknown", "Unavailable", " "] {
        let out = decode(METRIC, Format::Auto, payload.as_bytes(), &TimeZone::UTC);
        assert_eq!(out, Decoded { missing: 1, ..Decoded::default() }, "{payload:?}");
    }
    check(
        DEVICE,
        r#"{"a":null,"b":"unknown","c":NaN,"d":""}"#,
        expect![[r#"
        4 missing
    "#]],
    );
}

#[test]
fn numbers_at_the_edges_of_f64() {
    check(
        METRIC,
        "inf",
        expect![[r#"
        reject not_finite: m: inf is beyond the finite 64-bit numbers
    "#]],
    );
    check(
        METRIC,
        "1e999",
        expect![[r#"
        reject not_finite: m: 1e999 is beyond the finite 64-bit numbers
    "#]],
    );
    check(
        METRIC,
        "9007199254740992",
        expect![[r#"
        m = Number(9007199254740992.0)
    "#]],
    );
    check(
        METRIC,
        "9007199254740993",
        expect![[r#"
        m = Number(9007199254740992.0) inexact
    "#]],
    );
    check(
        METRIC,
        "5e-324",
        expect![[r#"
        m = Number(5e-324)
    "#]],
    );
    check(
        DEVICE,
        r#"{"a":1e999,"b":-Infinity,"c":9007199254740993,"d":1}"#,
        expect![[r#"
        c = Number(9007199254740992.0) inexact
        d = Number(1.0)
        reject not_finite: a: 1e999 is beyond the finite 64-bit numbers
        reject not_finite: b: -Infinity is beyond the finite 64-bit numbers
    "#]],
    );
}

#[test]
fn objects_nest_and_batches_repeat() {
    check(
        DEVICE,
        r#"{"t":21.5,"h":40}"#,
        expect![[r#"
        t = Number(21.5)
        h = Number(40.0)
    "#]],
    );
    check(
        DEVICE,
        r#"{"DS18B20":{"Temperature":20.6,"Id":"0316"},"Time":"2017-02-16T10:13:52"}"#,
        expect![[r#"
        DS18B20.Temperature = Number(20.6) @ 2017-02-16T10:13:52Z
        DS18B20.Id = Text("0316") @ 2017-02-16T10:13:52Z
    "#]],
    );
    check(
        DEVICE,
        r#"[{"t":1,"time":1700000000},{"t":2,"time":1700000001}]"#,
        expect![[r#"
        t = Number(1.0) @ 2023-11-14T22:13:20Z
        t = Number(2.0) @ 2023-11-14T22:13:21Z
    "#]],
    );
    check(
        DEVICE,
        r#"{"acc":[0.1,0.2],"on":true}"#,
        expect![[r#"
        acc.0 = Number(0.1)
        acc.1 = Number(0.2)
        on = Bool(true)
    "#]],
    );
    check(
        METRIC,
        r#"{"value":21.5,"unit":"C","time":"2013-07-04T00:00:00Z","battery":99}"#,
        expect![[r#"
        m = Number(21.5) [C] @ 2013-07-04T00:00:00Z
        m.battery = Number(99.0) @ 2013-07-04T00:00:00Z
    "#]],
    );
    check(
        METRIC,
        r#"{"x":1,"y":2}"#,
        expect![[r#"
        m.x = Number(1.0)
        m.y = Number(2.0)
    "#]],
    );
    check(
        METRIC,
        "[1,2]",
        expect![[r#"
        m = Number(1.0)
        m = Number(2.0)
    "#]],
    );
}

#[test]
fn time_fields_follow_the_rules() {
    check(
        DEVICE,
        r#"{"t":1700000000,"h":40}"#,
        expect![[r#"
        h = Number(40.0) @ 2023-11-14T22:13:20Z
    "#]],
    );
    check(
        METRIC,
        r#"{"value":1,"t":21}"#,
        expect![[r#"
        m = Number(1.0) @ 1970-01-01T00:00:21Z
    "#]],
    );
    check(
        METRIC,
        r#"{"value":1,"ts":1700000000123}"#,
        expect![[r#"
        m = Number(1.0) @ 2023-11-14T22:13:20.123Z
    "#]],
    );
    check(
        METRIC,
        r#"{"value":1,"timestamp":1700000000123456789}"#,
        expect![[r#"
        m = Number(1.0) @ 2023-11-14T22:13:20.123456Z
    "#]],
    );
    check(
        METRIC,
        r#"{"value":1,"time":"3000-01-01T00:00:00Z"}"#,
        expect![[r#"
        m = Number(1.0) @ 3000-01-01T00:00:00Z
    "#]],
    );
    check(
        METRIC,
        r#"{"value":1,"time":"1970-01-01T00:00:05Z"}"#,
        expect![[r#"
        m = Number(1.0) @ 1970-01-01T00:00:05Z
    "#]],
    );
    check(
        METRIC,
        r#"{"value":1,"time":null}"#,
        expect![[r#"
        m = Number(1.0)
    "#]],
    );
    check(
        METRIC,
        r#"{"value":1,"time":"soon"}"#,
        expect![[r#"
        m = Number(1.0)
        reject bad_time: time: time "soon" is neither RFC 3339 nor an epoch number
    "#]],
    );
    check(
        METRIC,
        r#"{"value":1,"time":1e40}"#,
        expect![[r#"
        m = Number(1.0)
        reject bad_time: time: time 10000000000000000000000000000000000000000 is outside the years 0000 to 9999
    "#]],
    );
}

#[test]
fn one_bad_leaf_is_named_and_its_neighbours_are_kept() {
    check(
        DEVICE,
        r#"{"t":21.5,"t":22.5,"p":{"q":1e400},"ok":1}"#,
        expect![[r#"
        t = Number(22.5)
        ok = Number(1.0)
        reject duplicate_key: t: the key is there twice; the last one counts
        reject not_finite: p.q: 1e400 is beyond the finite 64-bit numbers
    "#]],
    );
    let long = format!(r#"{{"pad":"{}","ok":1}}"#, "x".repeat(1_000_000));
    check(
        DEVICE,
        long,
        expect![[r#"
        ok = Number(1.0)
        reject too_large: pad: a state text of 1000000 bytes, the limit is 1024
    "#]],
    );
    check(
        DEVICE,
        format!(r#"{{"{}":1,"ok":1}}"#, "k".repeat(256)),
        expect![[r#"
        ok = Number(1.0)
        reject bad_name: kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk: metric name has 256 bytes, the limit is 255
    "#]],
    );
    check(
        DEVICE,
        r#"{"a\u0000b":1,"ok":1,"":2,"s":"a\u0007b"}"#,
        expect![[r#"
        ok = Number(1.0)
        reject bad_name: a\u{0}b: metric name has a control character
        reject bad_name: metric name is empty
        reject malformed: s: a state text with control characters
    "#]],
    );
}

#[test]
fn what_cannot_be_read_at_all_is_one_reject() {
    check(
        DEVICE,
        r#"{"t":21.5"#,
        expect![[r#"
        reject malformed: not JSON: EOF while parsing an object at line 1 column 9
    "#]],
    );
    check(
        DEVICE,
        r#"{"t":21.5} x"#,
        expect![[r#"
        reject malformed: not JSON: trailing characters at line 1 column 12
    "#]],
    );
    check(
        DEVICE,
        "21.5",
        expect![[r#"
        reject unsupported: plain text needs a metric: send it to devices/{device}/{metric}, or send a JSON object
    "#]],
    );
    check(
        DEVICE,
        "",
        expect![[r#"
        reject unsupported: an empty payload needs a metric: send it to devices/{device}/{metric}, or send a JSON object
    "#]],
    );
    check(
        DEVICE,
        "7.5 ",
        expect![[r#"
        reject unsupported: plain text needs a metric: send it to devices/{device}/{metric}, or send a JSON object
    "#]],
    );
    check(
        METRIC,
        b"\xff\xfe\x00",
        expect![[r#"
        reject not_utf8: neither UTF-8 text nor CBOR: bad byte at 0
    "#]],
    );
    check(
        METRIC,
        b"ab\xc3",
        expect![[r#"
        reject not_utf8: neither UTF-8 text nor CBOR: bad byte at 2
    "#]],
    );
    check(
        METRIC,
        "[".repeat(100_000),
        expect![[r#"
        reject too_large: nested deeper than 32 levels
    "#]],
    );
    check(
        METRIC,
        format!("[{}1]", "1,".repeat(200_000)),
        expect![[r#"
        reject too_large: more than 200000 values in one payload
    "#]],
    );
    check(
        METRIC,
        [0x9f; 5_000],
        expect![[r#"
        reject too_large: nested deeper than 32 levels
    "#]],
    );
    check(
        METRIC,
        [0xa1, 0x61],
        expect![[r#"
        reject malformed: not CBOR: it ends too early
    "#]],
    );
}

#[test]
fn strings_in_json_mean_what_they_spell() {
    check(
        DEVICE,
        r#"{"a":"21.5","b":"off","c":"007","d":"0.5","e":"offline"}"#,
        expect![[r#"
        a = Number(21.5)
        b = Bool(false)
        c = Text("007")
        d = Number(0.5)
        e = Text("offline")
    "#]],
    );
}

#[test]
fn cbor_maps_are_like_json_objects() {
    let map = cbor!({"t" => 21.5, "n" => {"x" => true}, "s" => "dry", "none" => null}).unwrap();
    check(
        DEVICE,
        encoded(&map),
        expect![[r#"
        t = Number(21.5)
        n.x = Bool(true)
        s = Text("dry")
        1 missing
    "#]],
    );
    check(
        METRIC,
        encoded(&cbor!({"value" => 3, "time" => 1_700_000_000}).unwrap()),
        expect![[r#"
        m = Number(3.0) @ 2023-11-14T22:13:20Z
    "#]],
    );
}

#[test]
fn senml_json_follows_rfc_8428() {
    let example = r#"[{"bn":"urn:dev:ow:10e2073a0108006:","bt":1.276020076001e+09,"bu":"A","bver":5,"n":"voltage","u":"V","v":120.1},
        {"n":"current","t":-5,"v":1.2},{"n":"current","t":-4,"v":1.3},{"n":"door","vb":false},{"n":"note","vs":"fine"}]"#;
    check(
        DEVICE,
        example,
        expect![[r#"
        voltage = Number(120.1) [V] @ 2010-06-08T18:01:16.001Z
        current = Number(1.2) [A] @ 2010-06-08T18:01:11.001Z
        current = Number(1.3) [A] @ 2010-06-08T18:01:12.001Z
        door = Bool(false) @ 2010-06-08T18:01:16.001Z
        note = Text("fine") @ 2010-06-08T18:01:16.001Z
    "#]],
    );
    check(
        Target::default(),
        example,
        expect![[r#"
        urn:dev:ow:10e2073a0108006 voltage = Number(120.1) [V] @ 2010-06-08T18:01:16.001Z
        urn:dev:ow:10e2073a0108006 current = Number(1.2) [A] @ 2010-06-08T18:01:11.001Z
        urn:dev:ow:10e2073a0108006 current = Number(1.3) [A] @ 2010-06-08T18:01:12.001Z
        urn:dev:ow:10e2073a0108006 door = Bool(false) @ 2010-06-08T18:01:16.001Z
        urn:dev:ow:10e2073a0108006 note = Text("fine") @ 2010-06-08T18:01:16.001Z
    "#]],
    );
    check(
        DEVICE,
        r#"[{"n":"t","v":1},{"n":"t","t":-10,"v":2},{"n":"x","vd":"aGk"},{"n":"e","s":7}]"#,
        expect![[r#"
        t = Number(1.0)
        t = Number(2.0) @ -10000000 us
        e.sum = Number(7.0)
        reject unsupported: x: a SenML data value (vd) is no reading
    "#]],
    );
    check(
        DEVICE,
        r#"[{"bn":"d:","bv":20,"n":"t","v":1.5},{"n":"u"},{"n":"w","v":"1"}]"#,
        expect![[r#"
        t = Number(21.5)
        u = Number(20.0)
        reject unsupported: w: a SenML v that is not a number is no reading
    "#]],
    );
    check(
        DEVICE,
        r#"[{"bver":11,"bn":"x","v":1}]"#,
        expect![[r#"
        reject senml_unknown: 0: bver is above 10, the version of RFC 8428
    "#]],
    );
    check(
        DEVICE,
        r#"[{"bn":"x","v":1},{"n":"y","must_":1,"v":2}]"#,
        expect![[r#"
        x = Number(1.0)
        reject senml_unknown: 1: field must_ must be understood, and is not
    "#]],
    );
    check(
        DEVICE,
        r#"[{"bn":"a:","n":"t","v":1},{"bn":"b:","n":"t","v":2}]"#,
        expect![[r#"
        a:t = Number(1.0)
        b:t = Number(2.0)
    "#]],
    );
}

#[test]
fn senml_cbor_uses_integer_labels() {
    use ciborium::Value;
    let int = |n: i64| Value::Integer(n.into());
    let text = |t: &str| Value::Text(t.into());
    let first = Value::Map(vec![
        (int(-2), text("urn:dev:ow:1:")),
        (int(-3), Value::Float(1.320078429e9)),
        (int(0), text("temp")),
        (int(1), text("Cel")),
        (int(2), Value::Float(23.5)),
    ]);
    let second = Value::Map(vec![(int(0), text("open")), (int(4), Value::Bool(true)), (int(6), int(60))]);
    check(
        DEVICE,
        encoded(&Value::Array(vec![first, second])),
        expect![[r#"
        temp = Number(23.5) [Cel] @ 2011-10-31T16:27:09Z
        open = Bool(true) @ 2011-10-31T16:28:09Z
    "#]],
    );
}

#[test]
fn line_protocol_names_devices_by_tag_or_measurement() {
    let body = "weather,device=roof,site=a\\ b temp=21.5,hum=40i,state=\"a, \\\"b\\\"\" 1700000000000000000\n\
                # note\n\noven temp=200,on=t\ncpu,host=pi load=0.5 1700000000000000000\nbad\nx y=1 z\n";
    expect![[r#"
        roof weather.temp = Number(21.5) @ 2023-11-14T22:13:20Z
        roof weather.hum = Number(40.0) @ 2023-11-14T22:13:20Z
        roof weather.state = Text("a, \"b\"") @ 2023-11-14T22:13:20Z
        oven temp = Number(200.0)
        oven on = Bool(true)
        pi cpu.load = Number(0.5) @ 2023-11-14T22:13:20Z
        reject malformed: line 6: a line is: measurement[,tags] fields [time]
        reject malformed: line 7: time "z" is not a whole number
    "#]]
    .assert_eq(&show(&line::decode(body, line::Precision::Nanos)));
}

#[test]
fn the_quick_way_agrees_with_the_long_one() {
    for text in ["21.5", "-3", "0", "100", "1.", "-0.5"] {
        let slow = decode(METRIC, Format::Auto, text.as_bytes(), &TimeZone::UTC);
        assert_eq!(Some(&slow.readings[0].value), plain_number(text.as_bytes()).map(Value::Number).as_ref(), "{text}");
    }
    for text in ["", "-", ".5", "1e3", "--1", "1.2.3", "on", "1234567890123456", " 1", "0x1"] {
        assert_eq!(plain_number(text.as_bytes()), None, "{text}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), device_level in any::<bool>()) {
        let target = if device_level { DEVICE } else { METRIC };
        for format in [Format::Auto, Format::Text, Format::Json, Format::Cbor, Format::Senml] {
            let _ = decode(target, format, &bytes, &TimeZone::UTC);
        }
        let _ = line::decode(&String::from_utf8_lossy(&bytes), line::Precision::Nanos);
    }

    #[test]
    fn no_json_makes_it_panic(text in r#"[\[\]{}",:0-9a-z.eE+ -]{0,80}"#) {
        let _ = decode(DEVICE, Format::Auto, text.as_bytes(), &TimeZone::UTC);
    }

    #[test]
    fn every_number_is_read_back_exactly(n in any::<f64>().prop_filter("finite", |n| n.is_finite())) {
        let out = decode(METRIC, Format::Auto, format!("{n:e}").as_bytes(), &TimeZone::UTC);
        prop_assert_eq!(&out.readings[0].value, &Value::Number(n));
    }
}
