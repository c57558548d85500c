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
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use axum::routing::{delete, get, post};
use daemon::auth::{Auth, Denied, Role};
use daemon::http::reply::Problem;
use daemon::http::web::Web;
use daemon::local::LocalToken;
use daemon::seats::{Seats, address_name};
use daemon::tls::Shown;
use serde_json::{Map, Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// What all requests share.
pub(crate) struct Site {
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
    /// Which names and origins are ours.
    pub web: Web,
    /// Who may do everything, because he can read the data directory.
    pub local: LocalToken,
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
        .route("/v1/moves", get(placement::moves).post(placement::rebalance).delete(placement::cancel))
        .route("/v1/gateways/{gateway}", delete(lists::forget))
        .route("/v1/gateways/{gateway}/accept", post(lists::accept))
        .route("/v1/status", get(status::status))
        .route("/metrics", get(status::metrics))
        .route("/openapi.json", get(status::openapi))
        .route("/healthz", get(status::healthz))
        .route("/readyz", get(status::readyz))
        .fallback(nothing_here)
}

async fn nothing_here(request: Request) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("{} is no resource here", request.uri().path()))
}

const WHO: &str =
    "give the name and password (Basic) or the token (Bearer) of a user that `tidegate-cloud user add` made";
const WAIT: &str = "too many logins at once, or too many wrong ones before: try again in a minute";
const CHANGES: &str = "shards and slots are changed with a credential: the verbs of this machine use admin.token in \
                       cloud.data_dir, others a user with the role \"admin\" (--token-file)";

/// Lets in who may come in, each to what its role allows; pushes are looked at by the door.
async fn guard(
    State(site): State<Shared>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let origin = site.web.allowed(request.headers());
    if let Some(preflight) = site.web.preflight(request.method(), request.headers()) {
        return Ok(preflight);
    }
    let path = request.uri().path();
    let is_open = matches!(path, "/healthz" | "/readyz" | "/v1/push");
    let who = if is_open { Shows::Nothing } else { site.who(request.headers(), from).await? };
    // Gateways and probes call the daemon as they please; the door asks who pushes.
    site.web.check(request.method(), request.headers(), is_open || who != Shows::Nothing)?;
    if !is_open {
        site.may(&who, &request)?;
    }
    let mut response = daemon::http::serve::within_patience(request, next).await?;
    site.web.finish(origin, &mut response);
    Ok(response)
}

/// What a request shows of whoever sends it.
#[derive(Debug, PartialEq, Eq)]
enum Shows {
    Nothing,
    /// The token of this data directory.
    Local,
    User(String),
}

impl Site {
    async fn who(&self, headers: &HeaderMap, from: SocketAddr) -> Result<Shows, Problem> {
        let Some(credentials) = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()) else {
            return Ok(Shows::Nothing);
        };
        if self.local.is_shown(credentials) {
            return Ok(Shows::Local);
        }
        match self.auth.who(credentials, &address_name(from.ip())).await {
            Ok(name) => Ok(Shows::User(name)),
            Err(Denied::Later) => Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, WAIT)),
            Err(Denied::Wrong) if self.auth.asks() => Err(Problem::new(StatusCode::UNAUTHORIZED, WHO)),
            Err(Denied::Wrong) => Ok(Shows::Nothing),
        }
    }

    fn may(&self, who: &Shows, request: &Request) -> Result<(), Problem> {
        let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
        let user = match who {
            Shows::Local => return Ok(()),
            Shows::Nothing if changes => return Err(Problem::new(StatusCode::UNAUTHORIZED, CHANGES)),
            Shows::Nothing if self.config.http.allow_anonymous || !self.auth.asks() => return Ok(()),
            Shows::Nothing => return Err(Problem::new(StatusCode::UNAUTHORIZED, WHO)),
            Shows::User(name) => name,
        };
        let has = |role| self.auth.stored(user).is_some_and(|stored| stored.may(role));
        let is_admin = has(Role::Admin) || self.config.auth.admins.contains(user);
        // A gateway compares what is here with what it has itself.
        let own = || {
            let query = request.uri().query().unwrap_or_default().as_bytes();
            let mut gateways = form_urlencoded::parse(query).filter(|(key, _)| key == "gateway").peekable();
            request.uri().path() == "/v1/summaries" && gateways.peek().is_some() && gateways.all(|(_, id)| id == *user)
        };
        let right = if changes { is_admin } else { is_admin || has(Role::Read) || (has(Role::Push) && own()) };
        if right {
            return Ok(());
        }
        let role = if changes { "admin" } else { "read" };
        let detail = format!(
            "{user:?} has not the role {role:?}: give it with `tidegate-cloud user add {user} --role {role}`, or use \
             another user"
        );
        Err(Problem::new(StatusCode::FORBIDDEN, detail))
    }
}

/// Serves until `stop`, then finishes the requests under way.
pub(crate) async fn serve(listener: TcpListener, tls: Option<Shown>, site: Shared, stop: CancellationToken) {
    let seats = Seats::new(site.config.http.max_connections);
    let app = routes().layer(axum::middleware::from_fn_with_state(Arc::clone(&site), guard)).with_state(site);
    daemon::http::serve::serve(listener, tls, app, seats, stop).await;
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
