//! What `POST /v1/readings` takes: `{"readings":[...]}`, an array of readings, NDJSON, SenML.
//!
//! A reading is `{"device","metric","value"}` with optional `time` and `unit`, or an object of metrics with the
//! device beside them, as over MQTT. Tells the sink which element each piece belongs to, because the answer
//! names rejects by index.

use super::node::NODES_MAX;
use super::object::{self, BadTime, Whose, without_repeats};
use super::{Format, Node, Reason, Reject, Sink, Target, cbor, check_device, from_tree, json, senml, text};
use jiff::tz::TimeZone;

/// What the body says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
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

/// Reads a body; an error means that nothing of it could be read.
pub(crate) fn decode(body: &[u8], kind: Body, zone: &TimeZone, sink: &mut dyn Sink) -> Result<(), Reject> {
    match kind {
        Body::Lines => lines(body, zone, sink),
        Body::Json => tree(&json::parse(body)?, false, zone, sink)?,
        Body::SenmlJson => tree(&json::parse(body)?, true, zone, sink)?,
        Body::Cbor => tree(&cbor::parse(body)?, false, zone, sink)?,
        Body::SenmlCbor => tree(&cbor::parse(body)?, true, zone, sink)?,
    }
    Ok(())
}

fn lines(body: &[u8], zone: &TimeZone, sink: &mut dyn Sink) {
    let lines = text::clean(body).split(|&b| b == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    for (index, line) in lines.enumerate() {
        sink.element(index);
        match json::parse(line) {
            Ok(node) => one(&node, zone, sink),
            Err(reject) => sink.reject(reject),
        }
    }
}

fn tree(node: &Node, is_senml: bool, zone: &TimeZone, sink: &mut dyn Sink) -> Result<(), Reject> {
    if is_senml || senml::looks_like(node) {
        from_tree(Target::default(), Format::Senml, node, zone, sink);
        return Ok(());
    }
    let readings = match node {
        Node::Array(readings) => readings.as_slice(),
        Node::Object(fields) => match fields.iter().find(|(key, _)| key == "readings") {
            Some((_, Node::Array(readings))) => readings.as_slice(),
            Some(_) => return Err(Reject::whole(Reason::Malformed, "\"readings\" is not an array")),
            None => std::slice::from_ref(node),
        },
        _ => return Err(Reject::whole(Reason::Malformed, "the body is neither {\"readings\":[...]} nor an array")),
    };
    debug_assert!(readings.len() <= NODES_MAX);
    for (index, node) in readings.iter().enumerate() {
        sink.element(index);
        one(node, zone, sink);
    }
    Ok(())
}

fn one(node: &Node, zone: &TimeZone, sink: &mut dyn Sink) {
    let malformed = |detail: &str| Reject::whole(Reason::Malformed, detail);
    let Node::Object(fields) = node else { return sink.reject(malformed("a reading is an object")) };
    let text = |name: &str| match node.get(name) {
        Some(Node::Text(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(malformed(&format!("{name} is not a text"))),
        None => Ok(None),
    };
    let (device, metric) = match (text("device"), text("metric")) {
        (Ok(Some(device)), Ok(metric)) => (device, metric),
        (Ok(None), Ok(_)) => return sink.reject(malformed("device is missing")),
        (Err(reject), _) | (_, Err(reject)) => return sink.reject(reject),
    };
    if let Err(reject) = check_device(device) {
        return sink.reject(reject);
    }
    match (metric, node.get("value")) {
        (Some(_), None) => return sink.reject(malformed("value is missing")),
        (None, Some(_)) => return sink.reject(malformed("metric is missing")),
        _ => {}
    }
    if metric.is_some() && node.get("unit").is_some_and(|unit| !matches!(unit, Node::Text(_) | Node::Null)) {
        return sink.reject(Reject::leaf(Reason::Malformed, "unit", "a unit is a text"));
    }
    let is_name = |key: &str| key == "device" || (metric.is_some() && key == "metric");
    let fields: Vec<_> = without_repeats(fields, "", sink).filter(|(key, _)| !is_name(key)).collect();
    if fields.is_empty() {
        return sink.reject(malformed("metric is missing: give metric and value, or metrics by their names"));
    }
    object::object(Whose { device: Some(device), metric }, &fields, zone, BadTime::Refuse, sink);
}
