//! What InfluxDB's clients and firmwares ask before they write, and how they show who they are.

use super::Shared;
use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use daemon::http::params::Params;
use daemon::http::reply::{Problem, json};
use serde_json::json;

/// The version whose interface this is: clients look at its first number.
const VERSION: &str = "2.7.0-tidegate";

/// The id of the one bucket and of its organisation.
const ID: &str = "7469646567617465";

/// `GET /ping` and `HEAD /ping`.
pub(super) async fn ping() -> Response {
    let headers = [
        (HeaderName::from_static("x-influxdb-version"), VERSION),
        (HeaderName::from_static("x-influxdb-build"), "OSS"),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

/// `GET /health`.
pub(super) async fn health(State(site): State<Shared>) -> Response {
    let ready = site.is_ready();
    let body = json!({
        "name": "influxdb", "status": if ready { "pass" } else { "fail" },
        "message": if ready { "ready for queries and writes" } else { "not ready" },
        "checks": [], "version": VERSION, "commit": "",
    });
    let mut response = json(&body);
    if !ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

/// `GET /ready`.
pub(super) async fn ready(State(site): State<Shared>) -> Result<Response, Problem> {
    if !site.is_ready() {
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not ready"));
    }
    Ok(json(&json!({ "status": "ready", "started": model::time::format(site.about.started_us) })))
}

/// `GET` or `POST /query`: databases need not be made, and there is nothing else that is answered here.
pub(super) async fn query(request: Request) -> Result<Response, Problem> {
    let mut texts: Vec<String> = request.uri().query().map(str::to_owned).into_iter().collect();
    let is_form = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/x-www-form"));
    if is_form {
        const FORM_BYTES_MAX: usize = 64 << 10;
        let body = axum::body::to_bytes(request.into_body(), FORM_BYTES_MAX).await;
        let body = body.map_err(|_| Problem::bad_request("the form cannot be read"))?;
        texts.push(String::from_utf8_lossy(&body).into_owned());
    }
    let pairs = texts.iter().flat_map(|text| form_urlencoded::parse(text.as_bytes()));
    let Some(question) = pairs.filter(|(key, _)| key == "q").map(|(_, value)| value.into_owned()).last() else {
        return Err(Problem::bad_request("missing required parameter \"q\""));
    };
    let words: Vec<String> = question.split_whitespace().map(str::to_ascii_uppercase).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["CREATE", "DATABASE" | "RETENTION", ..] => Ok(json(&json!({ "results": [{ "statement_id": 0 }] }))),
        ["SHOW", "DATABASES" | "DATABASES;"] => {
            let names: [[&str; 1]; 1] = [["tidegate"]];
            let series = json!([{ "name": "databases", "columns": ["name"], "values": names }]);
            Ok(json(&json!({ "results": [{ "statement_id": 0, "series": series }] })))
        }
        _ => {
            let detail = "InfluxQL is not answered here: ask /v1/aggregates or /v1/readings (see /openapi.json)";
            Err(Problem::bad_request(detail))
        }
    }
}

/// `GET /api/v2/buckets`: whatever name is asked for is one, since all of them take what is written.
pub(super) async fn buckets(RawQuery(query): RawQuery) -> Result<Response, Problem> {
    let params = Params::read(query.as_deref(), &["name", "org", "orgID", "id", "limit", "offset", "after"])?;
    let name = params.one("name").unwrap_or("tidegate");
    let bucket = json!({ "id": ID, "orgID": ID, "type": "user", "name": name, "retentionRules": [] });
    Ok(json(&json!({ "links": { "self": "/api/v2/buckets" }, "buckets": [bucket] })))
}

/// `POST /api/v2/query`: Flux.
pub(super) async fn flux() -> Problem {
    let detail = "Flux is not answered here: ask /v1/aggregates or /v1/readings (see /openapi.json)";
    Problem::new(StatusCode::NOT_FOUND, detail)
}

/// What a request shows to be let in: `Authorization`, or InfluxDB 1's user and password, which stand in the
/// query, or as `Token user:password`.
pub(super) fn credentials(request: &Request) -> Option<String> {
    let basic = |user: &str, password: &str| format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
    if let Some(value) = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()) {
        let pair = value.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("token"));
        return Some(match pair.and_then(|(_, pair)| pair.split_once(':')) {
            Some((user, password)) => basic(user, password),
            None => value.to_owned(),
        });
    }
    if !matches!(request.uri().path(), "/write" | "/query" | "/ping") {
        return None;
    }
    let pairs: Vec<_> = form_urlencoded::parse(request.uri().query()?.as_bytes()).into_owned().collect();
    let one = |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    Some(basic(one("u")?, one("p")?))
}
