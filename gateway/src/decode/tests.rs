//! What each payload comes to: the table that a user of the decoders can rely on.

use super::*;
use ciborium::cbor;
use expect_test::{Expect, expect};
use proptest::prelude::*;

/// Keeps all that it is given.
#[derive(Debug, Default, PartialEq)]
struct Decoded {
    readings: Vec<Kept>,
    rejects: Vec<Reject>,
    missing: u32,
}

#[derive(Debug, PartialEq)]
struct Kept {
    device: Option<String>,
    metric: String,
    value: Value,
    stamp: Stamp,
    unit: Option<String>,
    inexact: bool,
}

impl Sink for Decoded {
    fn reading(&mut self, reading: Reading<'_>) {
        let Reading { device, metric, value, stamp, unit, inexact } = reading;
        let (device, metric, unit) = (device.map(str::to_owned), metric.to_owned(), unit.map(str::to_owned));
        self.readings.push(Kept { device, metric, value, stamp, unit, inexact });
    }

    fn reject(&mut self, reject: Reject) {
        self.rejects.push(reject);
    }

    fn missing(&mut self) {
        self.missing += 1;
    }
}

fn decode(target: Target<'_>, format: Format, payload: &[u8], zone: &TimeZone) -> Decoded {
    let mut out = Decoded::default();
    super::decode(target, format, payload, zone, &mut out);
    out
}

fn lines(body: &[u8], precision: line::Precision) -> Decoded {
    let device_tags = ["device".to_owned(), "host".to_owned()];
    let dialect = line::Dialect { precision, device_tags: &device_tags };
    let (mut out, mut lines) = (Decoded::default(), line::Lines::new(body));
    while lines.next(dialect, &mut out) {}
    out
}

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
    let word = |r: &Reject| if r.kept { "kept" } else { "reject" };
    lines.extend(out.rejects.iter().map(|r| format!("{} {}: {r}", word(r), r.reason.as_str())));
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
            m = Text("closed")
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
            kept bad_time: time: time "soon" is neither RFC 3339 nor an epoch number; the readings count as taken when they arrived
        "#]],
    );
    check(
        METRIC,
        r#"{"value":1,"time":1e40}"#,
        expect![[r#"
            m = Number(1.0)
            kept bad_time: time: time 10000000000000000000000000000000000000000 is outside the years 0000 to 9999; the readings count as taken when they arrived
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
            reject senml_unknown: 0: bver is above 10, the version of RFC 8428; the records from here on are left out
        "#]],
    );
    check(
        DEVICE,
        r#"[{"bn":"x","v":1},{"n":"y","must_":1,"v":2}]"#,
        expect![[r#"
            x = Number(1.0)
            reject senml_unknown: 1: field must_ must be understood, and is not; the records from here on are left out
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
        roof weather.temp;site=a b = Number(21.5) @ 2023-11-14T22:13:20Z
        roof weather.hum;site=a b = Number(40.0) @ 2023-11-14T22:13:20Z
        roof weather.state;site=a b = Text("a, \"b\"") @ 2023-11-14T22:13:20Z
        oven temp = Number(200.0)
        oven on = Bool(true)
        pi cpu.load = Number(0.5) @ 2023-11-14T22:13:20Z
        reject malformed: line 6: a line is: measurement[,tags] fields [time]
        reject malformed: line 7: time "z" is not a whole number
    "#]]
    .assert_eq(&show(&lines(body.as_bytes(), line::Precision::Nanos)));
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

#[test]
fn posted_readings_are_as_elsewhere() {
    let posted = |body: &str, kind| {
        let mut out = Decoded::default();
        posted::decode(body.as_bytes(), kind, &TimeZone::UTC, &mut out).map(|()| out)
    };
    let show =
        |body: &str, kind| posted(body, kind).map_or_else(|reject| format!("error: {reject}\n"), |out| show(&out));
    let good = r#"{"device":"a","metric":"t","value":1,"time":"2024-01-01T00:00:00Z"}"#;
    let body = format!(
        r#"{{"readings":[{good},{{"device":"a","value":1}},{{"device":"a","metric":"t","value":null}},7,
            {{"device":"a","metric":"t","value":"21.5","timestamp":1714564800,"battery":99}},
            {{"device":"b","temperature":21.5,"humidity":40,"time":1714564800}},
            {{"device":"b","metric":"t","value":1,"ts":"soon"}},{{"device":"b","metric":"t","value":1,"unit":{{}}}},{{"device":"c"}}]}}"#
    );
    expect![[r#"
        a t = Number(1.0) @ 2024-01-01T00:00:00Z
        a t = Number(21.5) @ 2024-05-01T12:00:00Z
        a t.battery = Number(99.0) @ 2024-05-01T12:00:00Z
        b temperature = Number(21.5) @ 2024-05-01T12:00:00Z
        b humidity = Number(40.0) @ 2024-05-01T12:00:00Z
        reject malformed: metric is missing
        reject malformed: a reading is an object
        reject bad_time: ts: time "soon" is neither RFC 3339 nor an epoch number
        reject malformed: unit: a unit is a text
        reject malformed: metric is missing: give metric and value, or metrics by their names
        1 missing
    "#]]
    .assert_eq(&show(&body, posted::Body::Json));
    expect![[r#"
        a t = Number(1.0) @ 2024-01-01T00:00:00Z
        a t = Number(1.0) @ 2024-01-01T00:00:00Z
        reject malformed: not JSON: expected value at line 1 column 1
    "#]]
    .assert_eq(&show(&format!("{good}\n\nx\n{good}"), posted::Body::Lines));
    for body in ["", "7", "{\"readings\":3}", "{"] {
        assert!(posted(body, posted::Body::Json).is_err(), "{body}");
    }
}

#[test]
fn what_programs_print_for_no_value_costs_a_leaf_and_not_its_neighbours() {
    for word in
        ["nan", "-nan", "NAN", "nan(0x8000000000000)", "-nan(ind)", "1.#QNAN", "-1.#IND00", "None", "(null)", "", "NaN"]
    {
        let payload = format!(r#"{{"t":{word},"p":1}}"#);
        let out = decode(DEVICE, Format::Auto, payload.as_bytes(), &TimeZone::UTC);
        assert_eq!((out.readings.len(), out.missing, out.rejects.len()), (1, 1, 0), "{payload} {out:?}");
        let out = decode(METRIC, Format::Auto, word.as_bytes(), &TimeZone::UTC);
        assert_eq!((out.readings.len(), out.missing), (0, 1), "{word}");
    }
    check(
        DEVICE,
        r#"{"t":inf,"u":-inf,"v":+21.5,"w":007.5,"x":007,"s":"a: nan, \"b\": inf","p":1}"#,
        expect![[r#"
            v = Number(21.5)
            w = Number(7.5)
            x = Number(7.0)
            s = Text("a: nan, \"b\": inf")
            p = Number(1.0)
            reject not_finite: t: Infinity is beyond the finite 64-bit numbers
            reject not_finite: u: -Infinity is beyond the finite 64-bit numbers
        "#]],
    );
    check(
        DEVICE,
        b"\xef\xbb\xbf{\"t\":21.5}\0\0",
        expect![[r#"
        t = Number(21.5)
    "#]],
    );
    check(
        METRIC,
        b"21.5\0",
        expect![[r#"
        m = Number(21.5)
    "#]],
    );
}

#[test]
fn one_grammar_of_values_on_every_way_in() {
    for (text, want) in [
        ("21.5", Some(Value::Number(21.5))),
        (" 3.3 ", Some(Value::Number(3.3))),
        ("007", Some(Value::Text("007".into()))),
        ("05.30", Some(Value::Number(5.3))),
        ("ON", Some(Value::Bool(true))),
        ("open", Some(Value::Text("open".into()))),
        ("opening", Some(Value::Text("opening".into()))),
        ("None", None),
        ("none", Some(Value::Text("none".into()))),
        ("nan", None),
        ("unavailable", None),
    ] {
        let one = |out: Decoded| out.readings.into_iter().next().map(|kept| kept.value);
        let quoted = format!("{text:?}");
        let mut posted = Decoded::default();
        let body = format!(r#"{{"device":"a","metric":"m","value":{quoted}}}"#);
        posted::decode(body.as_bytes(), posted::Body::Json, &TimeZone::UTC, &mut posted).unwrap();
        for (way, got) in [
            ("plain", one(decode(METRIC, Format::Auto, text.as_bytes(), &TimeZone::UTC))),
            ("json", one(decode(DEVICE, Format::Auto, format!(r#"{{"m":{quoted}}}"#).as_bytes(), &TimeZone::UTC))),
            ("cbor", one(decode(DEVICE, Format::Auto, &encoded(&cbor!({"m" => text}).unwrap()), &TimeZone::UTC))),
            (
                "senml",
                one(decode(DEVICE, Format::Auto, format!(r#"[{{"n":"m","vs":{quoted}}}]"#).as_bytes(), &TimeZone::UTC)),
            ),
            ("line", one(lines(format!("x m={quoted}").as_bytes(), line::Precision::Auto))),
            ("posted", one(posted)),
        ] {
            assert_eq!(got, want, "{text:?} by {way}");
        }
    }
}

#[test]
fn one_point_of_line_protocol_is_one_series() {
    let body = "cpu,cpu=cpu0,host=pi usage_idle=90 1714564800000000000\ncpu,cpu=cpu1,host=pi usage_idle=10 1714564800000000000\n\
                climate,room=kitchen t=21\nclimate,room=bath t=24 1714564800\na.b,device=d c=1\na,device=d b.c=2\nd a.b=3\n";
    expect![[r#"
        pi cpu.usage_idle;cpu=cpu0 = Number(90.0) @ 2024-05-01T12:00:00Z
        pi cpu.usage_idle;cpu=cpu1 = Number(10.0) @ 2024-05-01T12:00:00Z
        climate t;room=kitchen = Number(21.0)
        climate t;room=bath = Number(24.0) @ 2024-05-01T12:00:00Z
        d a%2Eb.c = Number(1.0)
        d a.b.c = Number(2.0)
        d a%2Eb = Number(3.0)
    "#]]
    .assert_eq(&show(&lines(body.as_bytes(), line::Precision::Auto)));
}

/// What is looked at once for each field makes a line quadratic: a megabyte of each takes a moment.
#[test]
fn long_lines_take_time_in_proportion() {
    let begun = std::time::Instant::now();
    let tags: String = (0..100).map(|i| format!(",t{i}={}", "x".repeat(5_000))).collect();
    for body in [
        format!("m {}", "v,".repeat(500_000)),
        format!("m {}", "v=1,".repeat(250_000)),
        format!("m {}", "v=\"x\",".repeat(15_000)),
        format!("m {}", "v,".repeat(15_000)),
        format!("m{tags} {}", "a=1,".repeat(15_000)),
    ] {
        let out = lines(body.as_bytes(), line::Precision::Auto);
        assert!(out.readings.len() <= 20_000 && out.readings.len() + out.rejects.len() > 0);
    }
    // A hang, not a measure: proportional it takes a tenth of a second.
    assert!(begun.elapsed() < std::time::Duration::from_secs(20));
}

#[test]
fn lines_are_read_as_influxdb_reads_them() {
    let body = b"m\\ x\\,y,t\\ ag=v\\=1\\\\x f\\ 1=1i,s=\"a \\\"b\\\" \\\\ c=d,e\nf\",g=2u 1\r\nm a=\"x,b=2\nm c=\"y\" 2\n\
        \xff a=1\nm,t=1,t=2 a=1\nm,t= a=1\nm \n  # c\nm a=1,b,c=2,=3,d=x\nq\"x,h=\"y\" a=T,b=f,c=-1.5e3\nm a=\"21.5\" ,\n";
    expect![[r#"
        m x,y f 1;t ag=v=1\\x = Number(1.0) @ 1970-01-01T00:00:01Z
        m x,y s;t ag=v=1\\x = Text("a \"b\" \\ c=d,e\nf") @ 1970-01-01T00:00:01Z
        m x,y g;t ag=v=1\\x = Number(2.0) @ 1970-01-01T00:00:01Z
        m c = Text("y") @ 1970-01-01T00:00:02Z
        m a = Number(1.0)
        m c = Number(2.0)
        q"x a;h="y" = Bool(true)
        q"x b;h="y" = Bool(false)
        q"x c;h="y" = Number(-1500.0)
        reject malformed: line 3: a text has no closing quote, or something follows it
        reject malformed: line 5: it is not UTF-8
        reject malformed: line 6: tag "t" is there twice
        reject malformed: line 7: tag "t=" is not key=value
        reject malformed: line 8: a line is: measurement[,tags] fields [time]
        reject malformed: m b: a field is key=value
        reject malformed: m =3: a field is key=value
        reject malformed: m d=x: the field has no readable value
        reject malformed: line 12: time "," is not a whole number
    "#]]
    .assert_eq(&show(&lines(body, line::Precision::Seconds)));
}

/// They are left out at the door; a mebibyte of them would be compared for each of a pack's records.
#[test]
fn units_that_are_too_long_tell_no_series_apart() {
    let of = |length: usize| {
        let (a, b) = ("x".repeat(length), "y".repeat(length));
        let pack = format!(r#"[{{"n":"d/t","u":"{a}","v":1}},{{"n":"d/t","u":"{b}","v":2}}]"#);
        let out = decode(Target::default(), Format::Senml, pack.as_bytes(), &TimeZone::UTC);
        out.readings.into_iter().map(|reading| reading.metric).collect::<Vec<_>>()
    };
    assert_eq!(of(UNIT_BYTES_MAX).len(), 2);
    assert_ne!(of(UNIT_BYTES_MAX)[0], of(UNIT_BYTES_MAX)[1]);
    assert_eq!(of(UNIT_BYTES_MAX + 1), ["t", "t"]);
}

#[test]
fn senml_names_units_and_sums() {
    check(
        Target::default(),
        r#"[{"bn":"urn:dev:ow:10e2073a01080063","bt":1.320067464e+09,"bu":"%RH","v":20},{"u":"lon","v":24.30621},{"u":"lat","v":60.07965},{"t":60,"v":20.3}]"#,
        expect![[r#"
        urn:dev:ow:10e2073a01080063 value;unit=%RH = Number(20.0) [%RH] @ 2011-10-31T13:24:24Z
        urn:dev:ow:10e2073a01080063 value;unit=lon = Number(24.30621) [lon] @ 2011-10-31T13:24:24Z
        urn:dev:ow:10e2073a01080063 value;unit=lat = Number(60.07965) [lat] @ 2011-10-31T13:24:24Z
        urn:dev:ow:10e2073a01080063 value;unit=%RH = Number(20.3) [%RH] @ 2011-10-31T13:25:24Z
    "#]],
    );
    check(
        Target::default(),
        r#"[{"n":"urn:dev:ow:10e2073a01080063","u":"Cel","v":23.1,"t":1714564800}]"#,
        expect![[r#"
        urn:dev:ow:10e2073a01080063 value = Number(23.1) [Cel] @ 2024-05-01T12:00:00Z
    "#]],
    );
    check(
        Target::default(),
        r#"[{"bt":1714564800},{"n":"urn:dev:mac:0024befffe804ff1/temp","v":1},{"n":"house/kitchen/temp","v":2}]"#,
        expect![[r#"
        urn:dev:mac:0024befffe804ff1 temp = Number(1.0) @ 2024-05-01T12:00:00Z
        house/kitchen temp = Number(2.0) @ 2024-05-01T12:00:00Z
    "#]],
    );
    check(
        Target::default(),
        r#"[{"bn":"m:","bs":100},{"n":"e","s":5},{"n":"f","v":1,"s":2,"u":"Wh"},{"n":"g"}]"#,
        expect![[r#"
        m e.sum = Number(105.0)
        m f = Number(1.0) [Wh]
        m f.sum = Number(102.0)
        m g.sum = Number(100.0)
    "#]],
    );
}

#[test]
fn cbor_tags_are_numbers_and_times() {
    use ciborium::Value as Cbor;
    let int = |n: i64| Cbor::Integer(n.into());
    let tag = |tag, items: Vec<Cbor>| Cbor::Tag(tag, Box::new(Cbor::Array(items)));
    let map = Cbor::Map(vec![
        (Cbor::Text("temp".into()), tag(4, vec![int(-1), int(215)])),
        (Cbor::Text("half".into()), tag(5, vec![int(-1), int(3)])),
        (Cbor::Text("big".into()), Cbor::Tag(2, Box::new(Cbor::Bytes(vec![1, 0])))),
        (Cbor::Text("huge".into()), tag(4, vec![int(400), int(1)])),
        (Cbor::Text("time".into()), Cbor::Tag(1, Box::new(int(1_714_564_800)))),
    ]);
    check(
        DEVICE,
        encoded(&map),
        expect![[r#"
        temp = Number(21.5) @ 2024-05-01T12:00:00Z
        half = Number(1.5) @ 2024-05-01T12:00:00Z
        big = Number(256.0) @ 2024-05-01T12:00:00Z inexact
        reject not_finite: huge: a decimal fraction is beyond the finite 64-bit numbers
    "#]],
    );
    let pack = Cbor::Array(vec![Cbor::Map(vec![
        (int(-2), Cbor::Text("urn:dev:s21:".into())),
        (int(-3), tag(4, vec![int(-3), int(1_714_564_800_500)])),
        (int(0), Cbor::Text("temp".into())),
        (int(2), tag(4, vec![int(-1), int(215)])),
    ])]);
    check(
        DEVICE,
        encoded(&pack),
        expect![[r#"
        temp = Number(21.5) @ 2024-05-01T12:00:00.5Z
    "#]],
    );
    check(
        METRIC,
        [0xfb, 0x40, 0x35, 0x80, 0, 0, 0, 0, 0],
        expect![[r#"
        m = Number(21.5)
    "#]],
    );
    for bytes in [
        &[0xc4, 0x82, 0x20][..],
        &[0xa1, 0x61, 0x74, 0xc4, 0x01],
        &[0xa1, 0x61, 0x74, 0x7b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    ] {
        assert_eq!(decode(DEVICE, Format::Cbor, bytes, &TimeZone::UTC).rejects.len(), 1, "{bytes:x?}");
    }
}

#[test]
fn digits_without_separators_are_a_date_or_named() {
    check(
        METRIC,
        r#"{"value":1,"time":"20240501120000"}"#,
        expect![[r#"
        m = Number(1.0) @ 2024-05-01T12:00:00Z
    "#]],
    );
    check(
        METRIC,
        r#"{"value":1,"time":20240501120000}"#,
        expect![[r#"
        m = Number(1.0) @ 2024-05-01T12:00:00Z
    "#]],
    );
    check(
        METRIC,
        r#"{"value":1,"time":240501120000}"#,
        expect![[r#"
        m = Number(1.0)
        kept bad_time: time: time 240501120000 may be a date without separators or an epoch number: send RFC 3339; the readings count as taken when they arrived
    "#]],
    );
    check(
        METRIC,
        r#"{"value":1,"time":"1999-12-31"}"#,
        expect![[r#"
        m = Number(1.0) @ 1999-12-31T00:00:00Z
    "#]],
    );
}

fn flat_value() -> impl Strategy<Value = String> {
    prop_oneof![
        "-?(0|[1-9][0-9]{0,6})(\\.[0-9]{1,4})?",
        "true|false|null|nan",
        "-?0?[0-9]{1,17}(e[0-9])?",
        "\"[a-z0-9.]{0,5}\""
    ]
}

proptest! {
    /// The quick way for objects reads what the tree reads, or leaves it to the tree.
    #[test]
    fn a_flat_object_is_read_as_its_tree(
        fields in prop::collection::vec(("time|ts|t|T|value|unit|a|b|c\\.d|Time", flat_value()), 0..6),
        stamp in prop_oneof!["1[67][0-9]{8}", "1[67][0-9]{11}", "[0-9]{1,15}", "\"2024-05-01T12:00:00Z\"", "\"soon\""],
        at in 0..6_usize,
        is_metric in any::<bool>(),
    ) {
        let mut texts: Vec<String> = fields.iter().map(|(key, value)| format!("{key:?}: {value}")).collect();
        texts.insert(at.min(texts.len()), format!("\"time\":{stamp}"));
        let payload = format!("{{{}}}", texts.join(" ,"));
        if let Some(flat) = flat::read(payload.as_bytes(), is_metric, &TimeZone::UTC) {
            let target = if is_metric { METRIC } else { DEVICE };
            let tree = decode(target, Format::Auto, payload.as_bytes(), &TimeZone::UTC);
            prop_assert_eq!(tree.rejects, vec![]);
            let name = |key: &str| match (is_metric, key) {
                (true, "value") => "m".to_owned(),
                (true, key) => format!("m.{key}"),
                (false, key) => key.to_owned(),
            };
            let value = |plain| match plain { flat::Plain::Number(n) => Value::Number(n), flat::Plain::Bool(b) => Value::Bool(b) };
            let quick: Vec<_> = flat.fields.iter().map(|(key, plain)| (name(key), value(*plain), flat.stamp)).collect();
            let slow: Vec<_> = tree.readings.into_iter().map(|kept| (kept.metric, kept.value, kept.stamp)).collect();
            prop_assert_eq!(quick, slow, "{}", payload);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), device_level in any::<bool>()) {
        let target = if device_level { DEVICE } else { METRIC };
        for format in [Format::Auto, Format::Text, Format::Json, Format::Cbor, Format::Senml] {
            let _ = decode(target, format, &bytes, &TimeZone::UTC);
        }
        let _ = lines(&bytes, line::Precision::Auto);
        for kind in [posted::Body::Json, posted::Body::Lines, posted::Body::Cbor, posted::Body::SenmlCbor] {
            let _ = posted::decode(&bytes, kind, &TimeZone::UTC, &mut Decoded::default());
        }
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
