//! The cloud's HTTP interface: one file per resource.
//!
//! Arrives: requests. Leaves: answers as the gateway gives them, over all gateways. Always
//! holds: an answer that lacks a shard's part says so.

/// `/v1/aggregates`.
mod aggregates;
/// `/v1/devices`, `/v1/gateways`, `/v1/summaries`.
mod lists;
/// `/v1/shards`, `/v1/placement`, `/v1/moves`.
mod placement;
/// `POST /v1/push`.
mod push;
/// `/v1/status`, health, metrics.
mod status;

use super::config::Config;
use super::door::Door;
use super::intake::Intake;
use super::metrics::Metrics;
use super::mover::SharedProgress;
use super::query::{Missing, QueryError};
use super::router::Router as Routes;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use axum::routing::{get, post};
use daemon::auth::Auth;
use daemon::http::reply::Problem;
use daemon::tls::{Shown, TlsListener};
use serde_json::{Map, Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// What all requests share.
pub struct Site {
    /// The configuration.
    pub config: Config,
    /// The map and the shards.
    pub router: Arc<Routes>,
    /// Who may push.
    pub door: Arc<Door>,
    /// What takes pushes.
    pub intake: Arc<Intake>,
    /// Who may come in.
    pub auth: Arc<Auth>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// How far the mover has got.
    pub moves: SharedProgress,
    /// How many questions run at once.
    pub questions: Semaphore,
    /// Bound addresses by listener.
    pub addresses: Vec<(&'static str, SocketAddr)>,
    /// When the daemon started.
    pub started_us: i64,
}

type Shared = Arc<Site>;

fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/push", post(push::push))
        .route("/v1/aggregates", get(aggregates::get))
        .route("/v1/devices", get(lists::devices))
        .route("/v1/gateways", get(lists::gateways))
        .route("/v1/summaries", get(lists::summaries))
        .route("/v1/shards", get(placement::shards).post(placement::change))
        .route("/v1/placement", get(placement::placement))
        .route("/v1/moves", get(placement::moves).post(placement::rebalance))
        .route("/v1/status", get(status::status))
        .route("/metrics", get(status::metrics))
        .route("/healthz", get(status::healthz))
        .route("/readyz", get(status::readyz))
        .fallback(nothing_here)
}

async fn nothing_here(request: Request) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("{} is no resource here", request.uri().path()))
}

/// Lets in who may come in, and lets change shards who may do that; pushes are looked at by the
/// door.
async fn guard(State(site): State<Shared>, request: Request, next: Next) -> Result<Response, Problem> {
    let path = request.uri().path();
    let changes = request.method() == Method::POST && matches!(path, "/v1/shards" | "/v1/moves");
    let open = matches!(path, "/healthz" | "/readyz" | "/v1/push");
    if !site.auth.has_users() {
        let is_local = site.addresses.iter().all(|(name, address)| *name != "http" || address.ip().is_loopback());
        if changes && !is_local {
            let detail = "shards are changed by users in auth.admins: make one with `tidegate-cloud user add admin`";
            return Err(Problem::new(StatusCode::FORBIDDEN, detail));
        }
        return Ok(next.run(request).await);
    }
    if open || (site.config.http.allow_anonymous && !changes) {
        return Ok(next.run(request).await);
    }
    let credentials = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let who = match credentials {
        Some(credentials) => site.auth.who(credentials).await,
        None => None,
    };
    match who {
        None => {
            let detail = "give the name and password (Basic) or the token (Bearer) of a user that `tidegate-cloud user add` made";
            Err(Problem::new(StatusCode::UNAUTHORIZED, detail))
        }
        Some(name) if changes && !site.config.auth.admins.contains(&name) => {
            Err(Problem::new(StatusCode::FORBIDDEN, format!("{name:?} is not in auth.admins, who may change shards")))
        }
        Some(_) => Ok(next.run(request).await),
    }
}

/// Serves until `stop`, then finishes the requests under way.
pub async fn serve(listener: TcpListener, tls: Option<Shown>, site: Shared, stop: CancellationToken) {
    let app = routes().layer(axum::middleware::from_fn_with_state(Arc::clone(&site), guard)).with_state(site);
    let stopped = stop.cancelled_owned();
    let served = match tls {
        None => axum::serve(listener, app).with_graceful_shutdown(stopped).await,
        Some(tls) => match TlsListener::new(listener, tls) {
            Ok(listener) => axum::serve(listener, app).with_graceful_shutdown(stopped).await,
            Err(e) => Err(e),
        },
    };
    if let Err(e) = served {
        tracing::error!("HTTP ended: {e}");
    }
}

impl From<QueryError> for Problem {
    fn from(error: QueryError) -> Self {
        let status = match &error {
            QueryError::TooMuch(_) => StatusCode::BAD_REQUEST,
            QueryError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Problem::new(status, error.to_string())
    }
}

/// What an answer says of shards that did not answer; an error if nobody wants it without them.
fn notes(missing: &[Missing], refuse: bool) -> Result<Map<String, Value>, Problem> {
    if missing.is_empty() {
        return Ok(Map::new());
    }
    let names: Vec<&str> = missing.iter().map(|missing| missing.shard.as_str()).collect();
    if refuse {
        let detail = format!(
            "shards {} do not answer: {}; leave out partial=refuse to get what there is",
            names.join(", "),
            missing[0].why
        );
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail));
    }
    let part = |missing: &Missing| json!({"shard": missing.shard, "why": missing.why, "slots": missing.slots});
    let parts: Vec<Value> = missing.iter().map(part).collect();
    Ok(Map::from_iter([("partial".into(), json!(true)), ("missing".into(), json!(parts))]))
}

/// `partial`: "allow" (the default) or "refuse".
fn refuses_partial(params: &daemon::http::params::Params) -> Result<bool, Problem> {
    match params.one("partial") {
        None | Some("allow") => Ok(false),
        Some("refuse") => Ok(true),
        Some(other) => Err(Problem::bad_request(format!("partial: {other:?} is neither allow nor refuse"))),
    }
}
