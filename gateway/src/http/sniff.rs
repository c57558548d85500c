//! `GET /v1/sniff`: topics that no rule takes, the one that spoke last first.

use super::Shared;
use crate::listen::unmatched::Seen;
use axum::extract::State;
use axum::response::Response;
use daemon::http::params::Asked;
use daemon::http::reply::{Accept, Problem, TEXTS, csv, json};
use serde::Serialize;

pub(super) const PARAMS: &[&str] = &["limit"];

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    seen: Seen,
    last_time: String,
}

#[derive(Serialize)]
struct Answer {
    rows: Vec<Shown>,
    next: Option<String>,
}

/// `GET /v1/sniff`.
pub(super) async fn get(State(site): State<Shared>, asked: Asked) -> Result<Response, Problem> {
    let (params, form) = asked.read(PARAMS, TEXTS)?;
    let limit = params.limit(100, 1_000)?;
    let show = |seen: Seen| Shown { last_time: model::time::format(seen.last_us), seen };
    let rows: Vec<Shown> = site.admission.unmatched.newest().into_iter().take(limit).map(show).collect();
    match form {
        Accept::Csv => {
            let row = |row: Shown| {
                vec![row.seen.topic, row.seen.messages.to_string(), row.seen.bytes.to_string(), row.last_time]
            };
            Ok(csv(&["topic", "messages", "bytes", "last_time"], rows.into_iter().map(row), None))
        }
        _ => Ok(json(&Answer { rows, next: None })),
    }
}
