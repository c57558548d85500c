//! The gateway's HTTP interface: one file per resource.
//!
//! Arrives: requests. Leaves: answers in JSON or CSV, errors as RFC 9457 problems that say
//! what to do. Always holds: a reading posted is answered after its commit; a question runs on
//! a thread of its own, few at a time; nobody without credentials gets past [`guard`] where
//! credentials are asked for, but for liveness and readiness.

/// `/v1/aggregates`.
mod aggregates;
/// Bodies with readings, and their memory.
mod body;
/// `/v1/devices`.
mod devices;
/// What the fuzz targets do.
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
/// What InfluxDB's clients ask before they write.
mod influx;
/// `POST /v1/readings` and line protocol.
mod ingest;
/// `/v1/live`.
mod live;
/// `/v1/readings`.
mod readings;
/// `/v1/rejects`.
mod rejects;
/// `/v1/sniff`.
mod sniff;
/// `/v1/status`, health, `/metrics`, `/openapi.json`.
mod status;

use crate::archive::retire::Growth;
use crate::journal::Intake;
use crate::listen::admit::Admission;
use crate::listen::mqtt::retained::Retained;
use crate::listen::mqtt::router::Router as Subscriptions;
use crate::live::Live;
use crate::metrics::Metrics;
use crate::query::patience::Patience;
use crate::query::{Engine, QueryError};
use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use axum::routing::{delete, get, post, put};
use daemon::auth::{Auth, Denied, Role, User};
use daemon::http::reply::Problem;
use daemon::http::web::Web;
use daemon::local::LocalToken;
use daemon::memory::Memory;
use daemon::seats::{Seats, address_name};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use uplink::Status as UplinkStatus;

/// Facts about this gateway for `/v1/status`.
#[derive(Debug, Clone)]
pub(crate) struct About {
    /// The gateway's id.
    pub id: String,
    /// The life of its store.
    pub incarnation: Arc<AtomicU64>,
    /// When it started.
    pub started_us: i64,
    /// Bound addresses by listener.
    pub addresses: Vec<(&'static str, SocketAddr)>,
    /// The store's file.
    pub store: std::path::PathBuf,
}

/// What all requests share.
pub(crate) struct Site {
    /// The door to the journal's rows.
    pub admission: Arc<Admission>,
    /// The queue before the journal.
    pub intake: Arc<Intake>,
    /// Answers.
    pub engine: Arc<Engine>,
    /// How many questions run at once.
    pub questions: Arc<Semaphore>,
    /// Questions about the gateway itself, which do not wait for the others.
    pub looks: Arc<Semaphore>,
    /// `query.timeout`.
    pub query_timeout: Duration,
    /// Events.
    pub live: Arc<Live>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Subscriptions, for the status.
    pub subscriptions: Arc<Subscriptions>,
    /// Retained messages, for the status.
    pub retained: Arc<Retained>,
    /// Who may come in.
    pub auth: Arc<Auth>,
    /// What this machine's verbs show.
    pub local: LocalToken,
    /// Requests without credentials may come in.
    pub anonymous: bool,
    /// `http.max_body`.
    pub body_max: usize,
    /// `http.ingest_memory`.
    pub ingest_memory: Arc<Memory>,
    /// Which names and origins are ours.
    pub web: Web,
    /// `http.max_connections`.
    pub connections_max: usize,
    /// `http.max_live`.
    pub live_max: usize,
    /// How the uplink does, if there is one.
    pub uplink: Option<Arc<UplinkStatus>>,
    /// For the status.
    pub about: About,
    /// How the store grows.
    pub growth: Arc<Mutex<Growth>>,
    /// `retention.disk_budget`.
    pub budget_bytes: Option<u64>,
    /// The gateway takes readings.
    pub ready: AtomicBool,
    /// The gateway stops: streams end.
    pub stop: CancellationToken,
}

type Shared = Arc<Site>;

/// Who sent a request: a user, or else an address.
#[derive(Debug, Clone)]
pub(crate) struct Client(Arc<str>);

impl Client {
    pub(crate) fn name(&self) -> &str {
        &self.0
    }
}

/// Every path, with the methods it takes; the OpenAPI document lists the same.
fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/readings", get(readings::get).post(ingest::readings))
        .route("/api/v2/write", post(ingest::lines))
        .route("/api/v3/write_lp", post(ingest::lines_v3))
        .route("/write", post(ingest::lines_v1))
        .route("/query", get(influx::query).post(influx::query))
        .route("/api/v2/buckets", get(influx::buckets))
        .route("/api/v2/query", post(influx::flux))
        .route("/ping", get(influx::ping))
        .route("/health", get(influx::health))
        .route("/ready", get(influx::ready))
        .route("/v1/devices", get(devices::list))
        .route("/v1/devices/{device}", get(devices::one).delete(devices::remove))
        .route("/v1/devices/{device}/metrics/{metric}", delete(devices::remove_metric))
        .route("/v1/devices/{device}/labels", put(devices::put_labels))
        .route("/v1/aggregates", get(aggregates::get))
        .route("/v1/rejects", get(rejects::get))
        .route("/v1/sniff", get(sniff::get))
        .route("/v1/live", get(live::get))
        .route("/v1/status", get(status::status))
        .route("/metrics", get(status::metrics))
        .route("/openapi.json", get(status::openapi))
        .route("/healthz", get(status::healthz))
        .route("/readyz", get(status::readyz))
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
}

async fn nothing_here(request: Request) -> Problem {
    let detail = format!("{} is no resource here; /openapi.json lists them", request.uri().path());
    Problem::new(StatusCode::NOT_FOUND, detail)
}

async fn wrong_method(request: Request) -> Problem {
    let detail =
        format!("{} does not take {}; /openapi.json lists what it takes", request.uri().path(), request.method());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
}

const WHO: &str = "give the name and password (Basic) or the token (Bearer) of a user that `tidegate user add` made";
/// Whoever shows the token of the data directory.
const LOCAL: &str = "(this machine)";
const WAIT: &str = "too many logins at once, or too many wrong ones before: try again in a minute";

/// Lets in who may come in, and says who it is.
async fn guard(
    State(site): State<Shared>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let origin = site.web.allowed(request.headers());
    if let Some(preflight) = site.web.preflight(request.method(), request.headers()) {
        return Ok(preflight);
    }
    let open = matches!(request.uri().path(), "/healthz" | "/readyz");
    let address = address_name(from.ip());
    let user = match influx::credentials(&request) {
        Some(credentials) if site.local.is_shown(&credentials) => Some(LOCAL.to_owned()),
        Some(credentials) if !open && site.auth.asks() => match site.auth.who(&credentials, &address).await {
            Ok(user) => Some(user),
            Err(Denied::Later) => return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, WAIT)),
            Err(Denied::Wrong) if site.anonymous => None,
            Err(Denied::Wrong) => return Err(Problem::new(StatusCode::UNAUTHORIZED, WHO)),
        },
        _ => None,
    };
    if user.is_none() && !open && !site.anonymous && site.auth.asks() {
        return Err(Problem::new(StatusCode::UNAUTHORIZED, WHO));
    }
    site.web.check(request.method(), request.headers(), open || user.is_some())?;
    if request.method() == Method::DELETE && site.auth.asks() {
        may_remove(&site, user.as_deref())?;
    }
    let client = user.map_or(address, |name| format!("user {name}"));
    request.extensions_mut().insert(Client(client.into()));
    let mut response = daemon::http::serve::within_patience(request, next).await?;
    site.web.finish(origin, &mut response);
    Ok(response)
}

/// Whose roles are named, and no admin among them, removes nothing; nobody does so without a name.
fn may_remove(site: &Site, user: Option<&str>) -> Result<(), Problem> {
    let Some(name) = user else { return Err(Problem::new(StatusCode::UNAUTHORIZED, WHO)) };
    let is_restricted = |user: &User| !user.roles.is_empty() && !user.may(Role::Admin);
    if site.auth.stored(name).as_ref().is_some_and(is_restricted) {
        let detail =
            format!("{name} may not remove anything: add the role with `tidegate user add {name} --role admin`");
        return Err(Problem::new(StatusCode::FORBIDDEN, detail));
    }
    Ok(())
}

/// Serves until `stop`, then finishes the requests under way.
pub(crate) async fn serve(listener: TcpListener, site: Shared, stop: CancellationToken) {
    let seats = Seats::new(site.connections_max);
    let app = routes().layer(axum::middleware::from_fn_with_state(Arc::clone(&site), guard)).with_state(site);
    daemon::http::serve::serve(listener, None, app, seats, stop).await;
}

/// Runs a question on a thread where it may block, when it is its turn. It has `query.timeout`, and ends soon
/// after whoever asked has left; its turn lasts until it has ended.
async fn ask<T: Send + 'static>(
    site: &Shared,
    question: impl FnOnce(&Engine) -> Result<T, QueryError> + Send + 'static,
) -> Result<T, Problem> {
    let turn = Arc::clone(&site.questions).acquire_owned().await.map_err(|_| Problem::stopping())?;
    run(site, turn, question).await
}

/// The same for what is quick and wanted most when others are slow: the status.
async fn look<T: Send + 'static>(
    site: &Shared,
    question: impl FnOnce(&Engine) -> Result<T, QueryError> + Send + 'static,
) -> Result<T, Problem> {
    let turn = Arc::clone(&site.looks).acquire_owned().await.map_err(|_| Problem::stopping())?;
    run(site, turn, question).await
}

async fn run<T: Send + 'static>(
    site: &Shared,
    turn: OwnedSemaphorePermit,
    question: impl FnOnce(&Engine) -> Result<T, QueryError> + Send + 'static,
) -> Result<T, Problem> {
    let engine = Arc::clone(&site.engine);
    let (patience, _waiter) = Patience::until(Instant::now() + site.query_timeout);
    let answered = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        patience.answer(|| question(&engine))
    });
    match answered.await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) if error.is_interrupted() => {
            let detail = format!(
                "the question took longer than query.timeout ({:?}): ask for less at once, or raise it",
                site.query_timeout
            );
            Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, detail))
        }
        Ok(Err(error)) => {
            tracing::error!("a question could not be answered: {error}");
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
        }
        Err(_) => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the question ended in a panic; see the log")),
    }
}

impl Site {
    /// The gateway takes readings.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// The gateway takes readings from now on, or no more.
    pub(crate) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }
}
