//! `GET /v1/aggregates`: statistics over windows, of all gateways.

use super::{Shared, notes, refuses_partial};
use crate::intake::now_us;
use crate::query;
use axum::extract::State;
use axum::response::Response;
use daemon::http::aggregates::{Asking, PARAMS};
use daemon::http::params::Asked;
use daemon::http::reply::{Accept, Problem, TABLES};

/// `GET /v1/aggregates`.
pub(super) async fn get(State(site): State<Shared>, asked: Asked) -> Result<Response, Problem> {
    let known: Vec<&str> = PARAMS.iter().copied().chain(["gateway", "partial"]).collect();
    let (params, form) = asked.read(&known, TABLES)?;
    let asking = Asking::read(&params, form, now_us())?;
    // Tables and CSV have no place to say that a part is missing.
    let refuse = refuses_partial(&params)? || form != Accept::Json;
    let _turn = site.questions.acquire().await.map_err(|_| Problem::stopping())?;
    let gateways = params.all("gateway");
    let config = &site.config.query;
    let answered = query::aggregates(&site.router, &asking.question, &gateways, config.timeout.0, config.cells);
    let (answer, missing) = answered.await?;
    asking.reply(&answer, &notes(&missing, refuse)?)
}
