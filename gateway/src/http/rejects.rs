//! `GET /v1/rejects`: the newest undecodable messages.

use super::{Shared, ask};
use crate::query::QueryError;
use axum::extract::State;
use axum::response::Response;
use daemon::http::params::Asked;
use daemon::http::reply::{Accept, Problem, TEXTS, csv, cursor, json};
use model::time;
use rusqlite::params;
use serde::Serialize;

pub(super) const PARAMS: &[&str] = &["limit", "cursor"];

#[derive(Serialize)]
struct Page {
    rows: Vec<Reject>,
    next: Option<String>,
}

#[derive(Serialize)]
struct Reject {
    id: i64,
    time: String,
    source: String,
    reason: String,
    detail: String,
    /// As text; bytes that are not UTF-8 are shown as U+FFFD.
    payload: String,
}

/// `GET /v1/rejects`, newest first.
pub(super) async fn get(State(site): State<Shared>, asked: Asked) -> Result<Response, Problem> {
    let (params, form) = asked.read(PARAMS, TEXTS)?;
    let limit = params.limit(100, 10_000)?;
    let before: i64 = params.cursor()?.unwrap_or(i64::MAX);
    let rows = ask(&site, move |engine| engine.with_store(|db| read(db, before, limit))).await?;
    let next = (rows.len() == limit).then(|| rows.last().map(|reject| cursor(&reject.id))).flatten();
    Ok(match form {
        Accept::Json => json(&Page { rows, next }),
        _ => {
            let line = |r: Reject| vec![r.time, r.source, r.reason, r.detail, r.payload];
            let head = ["time", "source", "reason", "detail", "payload"];
            csv(&head, rows.into_iter().map(line), next.as_deref())
        }
    })
}

fn read(db: &rusqlite::Connection, before: i64, limit: usize) -> Result<Vec<Reject>, QueryError> {
    let mut query = db.prepare_cached(
        "SELECT id, received_us, source, reason, detail, payload FROM reject WHERE id < ?1 ORDER BY id DESC LIMIT ?2",
    )?;
    let rows = query.query_map(params![before, limit as i64], |row| {
        Ok(Reject {
            id: row.get(0)?,
            time: time::format(row.get(1)?),
            source: row.get(2)?,
            reason: row.get(3)?,
            detail: row.get(4)?,
            payload: String::from_utf8_lossy(row.get_ref(5)?.as_blob().unwrap_or_default()).into_owned(),
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
