//! What `POST /v1/readings` takes: `{"readings":[...]}`, an array of readings, NDJSON, SenML.
//!
//! Leaves one outcome per reading, in order, because the answer names rejects by index.

use super::node::NODES_MAX;
use super::object::{push_leaf, read_stamp};
use super::text::is_missing;
use super::{Decoded, Format, Node, Reading, Reason, Reject, Stamp, Target, cbor, from_tree, json, senml};
use jiff::tz::TimeZone;

/// What the body says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// JSON, one document.
    Json,
    /// JSON, one document per line.
    Lines,
    /// CBOR, one document.
    Cbor,
    /// SenML in JSON.
    SenmlJson,
    /// SenML in CBOR.
    SenmlCbor,
}

/// One element of the body: its readings, or why there are none.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Its place in the body, from 0.
    pub index: usize,
    /// What can be kept.
    pub readings: Vec<Reading>,
    /// What cannot.
    pub rejects: Vec<Reject>,
    /// Values that say that there is none.
    pub missing: u32,
}

/// Reads a body; an error means that nothing of it could be read.
pub fn decode(body: &[u8], kind: Body, zone: &TimeZone) -> Result<Vec<Item>, Reject> {
    match kind {
        Body::Lines if body.iter().filter(|&&b| b == b'\n').count() > NODES_MAX => {
            Err(Reject::whole(Reason::TooLarge, format!("more than {NODES_MAX} lines in one body: send it in parts")))
        }
        Body::Lines => Ok(lines(body, zone)),
        Body::Json => tree(json::parse(body)?, false, zone),
        Body::SenmlJson => tree(json::parse(body)?, true, zone),
        Body::Cbor => tree(cbor::parse(body)?, false, zone),
        Body::SenmlCbor => tree(cbor::parse(body)?, true, zone),
    }
}

fn lines(body: &[u8], zone: &TimeZone) -> Vec<Item> {
    let lines = body.split(|&b| b == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    let item = |(index, line): (usize, &[u8])| match json::parse(line) {
        Ok(node) => one(index, node, zone),
        Err(reject) => Item { index, readings: Vec::new(), rejects: vec![reject], missing: 0 },
    };
    lines.enumerate().map(item).collect()
}

fn tree(node: Node, is_senml: bool, zone: &TimeZone) -> Result<Vec<Item>, Reject> {
    if is_senml || senml::looks_like(&node) {
        let Decoded { readings, rejects, missing } = from_tree(Target::default(), Format::Senml, node, zone);
        return Ok(vec![Item { index: 0, readings, rejects, missing }]);
    }
    let readings = match node {
        Node::Array(readings) => readings,
        Node::Object(fields) if fields.iter().any(|(key, _)| key == "readings") => {
            match fields.into_iter().find(|(key, _)| key == "readings") {
                Some((_, Node::Array(readings))) => readings,
                _ => return Err(Reject::whole(Reason::Malformed, "\"readings\" is not an array")),
            }
        }
        single @ Node::Object(_) => vec![single],
        _ => return Err(Reject::whole(Reason::Malformed, "the body is neither {\"readings\":[...]} nor an array")),
    };
    Ok(readings.into_iter().enumerate().map(|(index, node)| one(index, node, zone)).collect())
}

/// One `{"device","metric","value","time"?,"unit"?}`.
fn one(index: usize, node: Node, zone: &TimeZone) -> Item {
    let mut out = Decoded::default();
    if let Err(reject) = read(node, zone, &mut out) {
        out.rejects.push(reject);
    }
    Item { index, readings: out.readings, rejects: out.rejects, missing: out.missing }
}

fn read(node: Node, zone: &TimeZone, out: &mut Decoded) -> Result<(), Reject> {
    let malformed = |what: &str| Reject::whole(Reason::Malformed, what);
    if !matches!(node, Node::Object(_)) {
        return Err(malformed("a reading is an object with device, metric and value"));
    }
    let text = |name: &str| match node.get(name) {
        Some(Node::Text(text)) => Ok(text.clone()),
        Some(_) => Err(malformed(&format!("{name} is not a text"))),
        None => Err(malformed(&format!("{name} is missing"))),
    };
    let (device, metric) = (text("device")?, text("metric")?);
    let value = node.get("value").cloned().ok_or_else(|| malformed("value is missing"))?;
    let stamp = match node.get("time") {
        Some(time) => read_stamp(time, zone).map_err(|e| Reject::leaf(Reason::BadTime, "time", e))?,
        None => Stamp::None,
    };
    let unit = node.get("unit").and_then(Node::as_text).map(str::to_owned);
    // A value that spells a word for "no value" is missing; other texts stay as they are.
    let value = match value {
        Node::Text(word) if is_missing(&word) => Node::Null,
        other => other,
    };
    push_leaf(out, metric, value, stamp, unit);
    out.readings.iter_mut().for_each(|reading| reading.device = Some(device.clone()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Value;

    fn outcome(body: &str, kind: Body) -> Vec<(usize, usize)> {
        let items = decode(body.as_bytes(), kind, &TimeZone::UTC).unwrap();
        items.iter().map(|item| (item.readings.len(), item.rejects.len())).collect()
    }

    #[test]
    fn each_reading_has_its_own_outcome() {
        let good = r#"{"device":"a","metric":"t","value":1,"time":"2024-01-01T00:00:00Z"}"#;
        let body = format!(
            r#"{{"readings":[{good},{{"device":"a","value":1}},{{"device":"a","metric":"t","value":null}},7]}}"#
        );
        assert_eq!(outcome(&body, Body::Json), [(1, 0), (0, 1), (0, 0), (0, 1)]);
        assert_eq!(outcome(&format!("{good}\n\nx\n{good}"), Body::Lines), [(1, 0), (0, 1), (1, 0)]);
        assert_eq!(outcome(&format!("[{good}]"), Body::Json), [(1, 0)]);
        assert_eq!(outcome(good, Body::Json), [(1, 0)]);
        assert_eq!(outcome(r#"[{"bn":"a:","n":"t","v":1}]"#, Body::Json), [(1, 0)]);
    }

    #[test]
    fn a_posted_text_is_a_text() {
        let body = r#"{"device":"a","metric":"t","value":"on"}"#;
        let items = decode(body.as_bytes(), Body::Json, &TimeZone::UTC).unwrap();
        assert_eq!(items[0].readings[0].value, Value::Text("on".into()));
    }

    #[test]
    fn a_body_that_is_nothing_is_an_error() {
        for body in ["", "7", "{\"readings\":3}", "{"] {
            assert!(decode(body.as_bytes(), Body::Json, &TimeZone::UTC).is_err(), "{body}");
        }
    }
}
