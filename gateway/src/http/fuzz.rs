//! Questions and bodies, without connections.

use super::Client;
use super::body::collect;
use crate::decode::line::Precision;
use crate::fuzz::{NOW_US, at_once, choice};
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, header};
use daemon::http::aggregates::Asking;
use daemon::http::params::Params;
use daemon::http::reply::{TABLES, TEXTS, accept, form, is_accepted};
use daemon::memory::Memory;
use flate2::read::MultiGzDecoder;
use model::time::{FIRST_US, LAST_US};
use std::convert::Infallible;
use std::io::Read;

/// A head is no longer.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Each part is an allocation of ours.
const PARTS_MAX: usize = 4_096;
/// `http.max_body` and `http.ingest_memory`, smaller than in earnest, so that they are reached.
const BODY_MAX: usize = 256 << 10;
const MEMORY: usize = 384 << 10;

/// A query, and on a line of its own what the `Accept` header says.
pub fn question(data: &[u8]) {
    let data = &data[..data.len().min(HEAD_BYTES_MAX)];
    let end = data.iter().position(|&b| b == b'\n').unwrap_or(data.len());
    let (query, accepted) = (String::from_utf8_lossy(&data[..end]), data.get(end + 1..).unwrap_or_default());
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(accepted) {
        headers.insert(header::ACCEPT, value);
    }
    for forms in [TEXTS, TABLES] {
        if let Ok(one) = accept(&headers, forms) {
            assert!(forms.contains(&one));
        }
    }
    is_accepted(&headers, "application/openmetrics-text");
    readings(&query);
    influx(&query);
    let Ok(params) = Params::read(Some(&query), super::aggregates::PARAMS) else { return };
    let form = params.one("fill").and_then(|name| form(name, TABLES).ok()).unwrap_or(TABLES[0]);
    let Ok(Asking { question, .. }) = Asking::read(&params, form, NOW_US) else { return };
    let range = question.range;
    assert!(FIRST_US <= range.from_us && range.to_us <= LAST_US + 1);
    assert!((1..=100_000).contains(&question.limit) && !question.stats.is_empty());
    if let Some((length_us, every_us)) = question.grid() {
        assert!(length_us > 0 && every_us > 0);
        let first_us = question.first_start_us();
        // The window before it ends before the range begins.
        assert!(first_us + length_us > range.from_us && first_us - every_us + length_us <= range.from_us);
    }
    for (device, metric) in [("d", "m"), ("sim-1", "cpu.usage_idle;cpu=cpu0;mode=a=b")] {
        let _ = question.filter.matches(device, metric);
    }
    let _ = question.quantiles();
}

fn readings(query: &str) {
    let Ok(params) = Params::read(Some(query), super::readings::PARAMS) else { return };
    if let Ok(range) = params.range(NOW_US) {
        assert!(range.from_us < range.to_us);
    }
    let _ = params.limit(1_000, 100_000);
    let _ = params.cursor::<(i64, String, String)>();
}

/// What InfluxDB's clients put into a query.
fn influx(query: &str) {
    if let Ok(params) = Params::read(Some(query), &["db", "rp", "precision", "consistency", "u", "p"]) {
        let _ = params.parsed::<Precision>("precision");
    }
    let Ok(request) = Request::builder().uri(format!("/query?{query}")).body(Body::empty()) else { return };
    let _ = super::influx::credentials(&request);
    let _ = at_once(super::influx::query(request));
}

/// A body in parts. First two bytes: whether it is packed, and how long parts are.
pub fn body(data: &[u8]) {
    let (flags, rest) = choice(data);
    let (length, rest) = choice(rest);
    let gzip = flags & 1 != 0;
    let parts: Vec<_> =
        rest.chunks(1 + usize::from(length) * 16 + rest.len() / PARTS_MAX).map(Bytes::copy_from_slice).collect();
    let stream = futures_util::stream::iter(parts.into_iter().map(Ok::<_, Infallible>));
    let memory = Memory::new(MEMORY);
    let client = Client("c".into());
    let taken = at_once(collect(Body::from_stream(stream), gzip, BODY_MAX, memory.hold(&client.0)));
    let Ok(taken) = taken else { return };
    assert!(taken.bytes.len() <= BODY_MAX);
    if gzip {
        let mut plain = Vec::new();
        let whole = MultiGzDecoder::new(rest).take(BODY_MAX as u64 + 1).read_to_end(&mut plain);
        assert!(whole.is_err() || plain == taken.bytes, "unpacked differently");
    } else {
        assert_eq!(taken.bytes, rest);
    }
    drop(taken);
    assert!(memory.hold(&"other".into()).take(MEMORY / 2) && memory.hold(&client.0).take(MEMORY / 2), "all is free");
}
