//! Answers and errors.

use crate::table::{TableError, to_arrow, to_parquet};
use arrow_array::RecordBatch;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use model::Value;
use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};

/// An error as RFC 9457 has it.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    detail: String,
}

impl Problem {
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Problem { status, detail: detail.into() }
    }

    pub fn bad_request(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, detail)
    }

    pub fn stopping() -> Self {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the gateway is shutting down; try again when it is back")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("Error");
        let status = self.status.as_u16();
        // "code" and "message" are where InfluxDB clients look.
        let body = serde_json::json!({
            "type": "about:blank", "title": title, "status": status, "detail": self.detail,
            "code": if self.status.is_server_error() { "unavailable" } else { "invalid" }, "message": self.detail,
        });
        let mut response = (self.status, body.to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"tidegate\", Bearer"));
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// The forms an answer can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accept {
    Json,
    Csv,
    Arrow,
    Parquet,
}

/// Lists that people read.
pub const TEXTS: &[Accept] = &[Accept::Json, Accept::Csv];
/// Lists that dataframe tools read too.
pub const TABLES: &[Accept] = &[Accept::Json, Accept::Csv, Accept::Arrow, Accept::Parquet];

const ARROW_TYPE: &str = "application/vnd.apache.arrow.stream";
const PARQUET_TYPE: &str = "application/vnd.apache.parquet";

impl Accept {
    fn name(self) -> &'static str {
        match self {
            Accept::Json => "json",
            Accept::Csv => "csv",
            Accept::Arrow => "arrow",
            Accept::Parquet => "parquet",
        }
    }

    fn content_type(self) -> &'static str {
        match self {
            Accept::Json => "application/json",
            Accept::Csv => "text/csv",
            Accept::Arrow => ARROW_TYPE,
            Accept::Parquet => PARQUET_TYPE,
        }
    }
}

/// What an `Accept` header gives a type: the weight of the most specific range that it is in (RFC 9110,
/// section 12.5.1), and how specific that is.
fn weight(accepted: &str, content_type: &str) -> Option<(f32, usize)> {
    let kind = content_type.split('/').next().unwrap_or_default();
    let matching = accepted.split(',').filter_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let specific = match name.as_str() {
            "*/*" | "*" | "" => 0,
            name if name.strip_suffix("/*") == Some(kind) => 1,
            name if name == content_type => 2,
            _ => return None,
        };
        let q = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
        Some((specific, q.map_or(1.0, |q| q.parse::<f32>().unwrap_or(0.0).clamp(0.0, 1.0))))
    });
    matching.max_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))).map(|(specific, q)| (q, specific))
}

/// True if a request names this type among those that it accepts.
pub fn is_accepted(headers: &HeaderMap, content_type: &str) -> bool {
    let mut accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.any(|accepted| weight(accepted, content_type).is_some_and(|(q, specific)| q > 0.0 && specific == 2))
}

/// The form that a request accepts, of those that there are: the one with the highest weight, and of several the
/// first. `format=` beside it says the same to whoever cannot set a header.
pub fn accept(headers: &HeaderMap, forms: &[Accept]) -> Result<Accept, Problem> {
    let values: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let accepted = values.join(",");
    if accepted.trim().is_empty() {
        return Ok(Accept::Json);
    }
    let mut best: Option<(f32, Accept)> = None;
    for form in forms {
        if let Some((q, _)) = weight(&accepted, form.content_type()).filter(|(q, _)| *q > 0.0)
            && best.is_none_or(|(most, _)| q > most)
        {
            best = Some((q, *form));
        }
    }
    best.map(|(_, form)| form).ok_or_else(|| {
        let known: Vec<&str> = forms.iter().map(|form| form.content_type()).collect();
        Problem::new(StatusCode::NOT_ACCEPTABLE, format!("answers come as {}", known.join(", ")))
    })
}

/// The form that `format=` names.
pub fn form(name: &str, forms: &[Accept]) -> Result<Accept, Problem> {
    forms.iter().copied().find(|form| form.name() == name).ok_or_else(|| {
        let known: Vec<&str> = forms.iter().map(|form| form.name()).collect();
        Problem::bad_request(format!("format: {name:?} is not one of {}", known.join(", ")))
    })
}

/// An answer in JSON.
pub fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => with_type(body, "application/json"),
        Err(e) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
    }
}

pub fn with_type(body: impl Into<Body>, content_type: &'static str) -> Response {
    ([(header::CONTENT_TYPE, content_type)], body.into()).into_response()
}

/// An answer in CSV (RFC 4180); the cursor of the next page stands in the `Link` header.
pub fn csv(head: &[&str], rows: impl Iterator<Item = Vec<String>>, next: Option<&str>) -> Response {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    // Writing to memory cannot fail, and all rows are as long as the head.
    let _ = writer.write_record(head);
    rows.for_each(|row| drop(writer.write_record(row)));
    with_next(with_type(writer.into_inner().unwrap_or_default(), "text/csv; charset=utf-8"), next)
}

/// A table for dataframe tools; the cursor of the next page stands in the `Link` header.
pub fn table(table: Result<RecordBatch, TableError>, form: Accept, next: Option<&str>) -> Result<Response, Problem> {
    let encode = if form == Accept::Parquet { to_parquet } else { to_arrow };
    let bytes = table.and_then(|table| encode(&table));
    let bytes = bytes.map_err(|e| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    Ok(with_next(with_type(bytes, form.content_type()), next))
}

fn with_next(mut response: Response, next: Option<&str>) -> Response {
    let link = next.and_then(|next| HeaderValue::from_str(&format!("<?cursor={next}>; rel=\"next\"")).ok());
    if let Some(link) = link {
        response.headers_mut().insert(header::LINK, link);
    }
    response
}

/// A value as CSV shows it; nothing is an empty field.
pub fn csv_value(value: Option<&Value>, whole: bool) -> String {
    match value {
        None => String::new(),
        Some(Value::Number(n)) if whole => format!("{n:.0}"),
        Some(Value::Number(n)) => n.to_string(),
        Some(Value::Bool(b)) => b.to_string(),
        Some(Value::Text(text)) => text.to_string(),
    }
}

/// A value as JSON shows it.
pub struct JsonValue<'a>(pub Option<&'a Value>, pub bool);

impl Serialize for JsonValue<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            None => s.serialize_none(),
            Some(Value::Number(n)) if self.1 => s.serialize_u64(*n as u64),
            Some(Value::Number(n)) => s.serialize_f64(*n),
            Some(Value::Bool(b)) => s.serialize_bool(*b),
            Some(Value::Text(text)) => s.serialize_str(text),
        }
    }
}

/// A place to go on from, which its receiver need not understand.
pub fn cursor(place: &impl Serialize) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(place).unwrap_or_default())
}

/// Reads a cursor back.
pub fn read_cursor<T: DeserializeOwned>(text: &str) -> Result<T, Problem> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok();
    let place = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    place.ok_or_else(|| Problem::bad_request("cursor is not one that this resource gave: pass back `next` as it came"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_with_the_highest_weight_is_taken() {
        let ask = |text: &'static str| {
            let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(text))]);
            accept(&headers, TABLES).ok()
        };
        for (text, want) in [
            ("*/*", Some(Accept::Json)),
            ("text/*", Some(Accept::Csv)),
            ("text/csv;q=0.5, application/json;q=0.4", Some(Accept::Csv)),
            ("text/csv;q=0.4, application/json;q=0.5", Some(Accept::Json)),
            ("application/json;q=0, */*", Some(Accept::Csv)),
            ("text/html, application/xhtml+xml, */*;q=0.8", Some(Accept::Json)),
            ("TEXT/CSV", Some(Accept::Csv)),
            ("text/csv; charset=utf-8; q=1", Some(Accept::Csv)),
            ("image/png", None),
            ("application/json;q=0", None),
        ] {
            assert_eq!(ask(text), want, "{text}");
        }
    }
}
