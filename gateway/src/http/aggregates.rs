//! `GET /v1/aggregates`: statistics over windows.

use super::{Shared, ask};
use axum::extract::State;
use axum::response::Response;
use daemon::aggregates::GroupBy;
use daemon::http::aggregates::Asking;
pub(super) use daemon::http::aggregates::PARAMS;
use daemon::http::params::Asked;
use daemon::http::reply::{Problem, TABLES};
use serde_json::Map;

/// `GET /v1/aggregates`.
pub(super) async fn get(State(site): State<Shared>, asked: Asked) -> Result<Response, Problem> {
    let (params, form) = asked.read(PARAMS, TABLES)?;
    let asking = Asking::read(&params, form, site.engine.now_us())?;
    if asking.question.group_by.contains(&GroupBy::Gateway) {
        return Err(Problem::bad_request("group_by: this is the only gateway here; ask the cloud to group by gateway"));
    }
    let question = asking.question.clone();
    let answer = ask(&site, move |engine| engine.aggregates(&question)).await?;
    asking.reply(&answer, &Map::new())
}
