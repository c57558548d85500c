//! Opens, wires and orders everything; the only module that knows all others.
//!
//! ```text
//! sockets -> Door (READ_MAX bytes being read; more is refused for now)
//!         -> Intake (cloud.max_pushes; one more is asked to wait) -> Router -> shards
//! shard   -> its writing thread (256 jobs; full: refused for now)          -> commit, then reply
//! mover   -> the coordinator's lease                                       -> shards
//! ```

use super::config::{Config, GrpcTls, HttpTls};
use super::coordinator::{self, CoordinatorError};
use super::door::{Door, Guarded, PUSH_TIMEOUT, READ_MAX};
use super::http::{self, Site};
use super::incoming::incoming;
use super::intake::{Grpc, Intake, now_us};
use super::metrics::Metrics;
use super::mover::{Mover, SharedProgress};
use super::router::{Router, RouterError, View};
use super::shard::{Shard, ShardError};
use super::witness::{Verdict, agree};
use daemon::auth::{Auth, Users, UsersError};
use daemon::config::address;
use daemon::files;
use daemon::http::web::Web;
use daemon::local::LocalToken;
use daemon::seats::Seats;
use daemon::sparse::Sparse;
use daemon::supervise::supervisor;
use daemon::tls::{Clients, Shown, TlsError};
use futures_util::future::join_all;
use model::Micros;
use model::time::SECOND_US;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use wire::MESSAGE_MAX;
use wire::proto::uplink_server::UplinkServer;

/// How long requests under way may take at the end.
const KEEPALIVE: Duration = Duration::from_secs(45);
const GRACE: Duration = Duration::from_secs(5);
/// What a push may send ahead of being read.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
/// How often shards are asked whether they are still what the map takes them for.
const ATTEND_EVERY: Duration = Duration::from_secs(20);
/// How often hours are rolled up and old rows retired.
const TIDY_EVERY: Duration = Duration::from_secs(2);
/// Rows that one look takes.
const TIDY_ROWS: usize = 500;

/// Why the daemon does not start, or stopped before its time.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A listener would let anybody in.
    #[error("{0}")]
    Exposed(String),
    /// The map cannot be reached.
    #[error(transparent)]
    Coordinator(#[from] CoordinatorError),
    /// The map or a shard.
    #[error(transparent)]
    Router(#[from] RouterError),
    /// The users file.
    #[error(transparent)]
    Users(#[from] UsersError),
    /// A certificate or key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The data directory.
    #[error("cloud.data_dir {path} cannot be used: {source}; choose another, or make it this user's")]
    Directory {
        /// Where.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// A port.
    #[error("{key} {address} cannot be bound: {source}; choose another address, or stop what uses it")]
    Bind {
        /// The configuration key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the operating system says.
        source: io::Error,
    },
    /// A task that the daemon needs.
    #[error("{0}: the daemon stops")]
    Ended(String),
}

/// What the listeners show, if they have TLS.
#[derive(Clone)]
struct Tls {
    grpc: Option<Shown>,
    http: Option<Shown>,
}

impl Tls {
    fn read(config: &Config) -> Result<Self, TlsError> {
        let (grpc, http) = certificates(config)?;
        Ok(Tls { grpc: grpc.map(Shown::new), http: http.map(Shown::new) })
    }

    fn read_again(&self, config: &Config) -> Result<(), TlsError> {
        let (grpc, http) = certificates(config)?;
        for (shown, config) in [(&self.grpc, grpc), (&self.http, http)] {
            if let (Some(shown), Some(config)) = (shown, config) {
                shown.set(config);
            }
        }
        Ok(())
    }
}

type Certificate = Option<Arc<rustls::ServerConfig>>;

/// For gRPC, and for HTTP.
fn certificates(config: &Config) -> Result<(Certificate, Certificate), TlsError> {
    fn given(path: &Path) -> Option<&Path> {
        (!path.as_os_str().is_empty()).then_some(path)
    }
    let GrpcTls { cert, key, client_ca } = &config.cloud.tls;
    let asked = given(client_ca).map_or(Clients::Anybody, Clients::Must);
    let grpc = given(cert).map(|cert| daemon::tls::server(cert, key, asked, b"h2")).transpose()?;
    let HttpTls { cert, key } = &config.http.tls;
    // People ask here, too, who have none.
    let asked = given(client_ca).map_or(Clients::Anybody, Clients::May);
    let http = given(cert).map(|cert| daemon::tls::server(cert, key, asked, b"http/1.1")).transpose()?;
    Ok((grpc, http))
}

/// A cloud daemon that is bound and wired, not yet serving.
pub struct App {
    site: Arc<Site>,
    grpc: Option<TcpListener>,
    http: Option<TcpListener>,
    tls: Tls,
    mover: Mover,
    stop: CancellationToken,
}

impl App {
    /// Opens the map and the shards, binds the ports and wires everything.
    pub async fn build(config: Config) -> Result<Self, AppError> {
        let users = Users::read(&config.users_file())?;
        check_exposure(&config, &users).map_err(AppError::Exposed)?;
        let local = prepare(&config.cloud.data_dir)?;
        let coordinator = coordinator::open(&config.cloud.coordinator, &config.cloud.data_dir).await?;
        let router = Arc::new(Router::open(&config, coordinator).await?);
        if let Err(e) = router.settle().await {
            // Its slots wait; the mover tries again.
            tracing::warn!("{e}; what belongs there waits until it answers");
        }
        let mut addresses = Vec::new();
        let grpc = bind("cloud.listen", "grpc", &config.cloud.listen, &mut addresses).await?;
        let http = bind("http.listen", "http", &config.http.listen, &mut addresses).await?;
        let failed = |source| AppError::Directory { path: config.cloud.data_dir.clone(), source };
        local.write(&config.cloud.data_dir).map_err(failed)?;
        if let Some((_, address)) = addresses.iter().find(|(name, _)| *name == "http")
            && let Err(e) = local.announce(address.port())
        {
            tracing::info!("verbs with --url need --token-file or cloud.data_dir: {e}");
        }
        let tls = Tls::read(&config)?;
        let (metrics, auth) = (Arc::new(Metrics::default()), Arc::new(Auth::new(users)));
        // Asking for certificates means that nobody comes in who shows nothing.
        let asks = !config.cloud.tls.client_ca.as_os_str().is_empty();
        let anonymous = config.cloud.allow_anonymous;
        let door = Door::new(Arc::clone(&auth), anonymous, asks, READ_MAX, Arc::clone(&metrics));
        let intake =
            Intake::new(Arc::clone(&router), config.cloud.max_pushes, config.cloud.in_flight, Arc::clone(&metrics));
        let (stop, moves) = (CancellationToken::new(), SharedProgress::default());
        let mover = Mover {
            router: Arc::clone(&router),
            who: format!("{:016x}", rand::random::<u64>()),
            slots: config.moving.slots,
            rows: config.moving.rows,
            grace: config.moving.grace,
            metrics: Arc::clone(&metrics),
            progress: Arc::clone(&moves),
            stop: stop.clone(),
        };
        let site = Arc::new(Site {
            questions: Semaphore::new(config.query.concurrency),
            router,
            door: Arc::new(door),
            intake: Arc::new(intake),
            auth,
            web: Web::new(&config.http.hosts, &config.http.origins),
            local,
            config,
            metrics,
            moves,
            addresses,
            started_us: now_us(),
        });
        Ok(App { site, grpc, http, tls, mover, stop })
    }

    /// The bound addresses by listener.
    pub fn addresses(&self) -> &[(&'static str, SocketAddr)] {
        &self.site.addresses
    }

    /// What SIGHUP reads again: users and certificates.
    pub fn reloader(&self) -> impl Fn(&Config) + Send + Sync + use<> {
        let (auth, tls) = (Arc::clone(&self.site.auth), self.tls.clone());
        move |config| {
            match Users::read(&config.users_file()) {
                Ok(users) => auth.set_users(users),
                Err(e) => tracing::error!("the users stay as they were: {e}"),
            }
            if let Err(e) = tls.read_again(config) {
                tracing::error!("the certificates stay as they were: {e}");
            }
        }
    }

    /// Serves until `shutdown`, then stops in flow order.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), AppError> {
        let App { site, grpc, http, tls, mover, stop } = self;
        let (supervisor, mut ended) = supervisor(stop.clone());
        let mut tasks: Vec<JoinHandle<()>> = Vec::new();
        if let Some(listener) = grpc {
            tasks.push(supervisor.task("grpc", serve_grpc(listener, tls.grpc, Arc::clone(&site), stop.clone())));
        }
        if let Some(listener) = http {
            tasks.push(supervisor.task("http", http::serve(listener, tls.http, Arc::clone(&site), stop.clone())));
        }
        tasks.push(supervisor.task("mover", mover.run()));
        tasks.push(supervisor.task("tidy", tidy(Arc::clone(&site), stop.clone())));
        tasks.push(supervisor.task("shards", attend(Arc::clone(&site.router), stop.clone())));
        tasks.push(supervisor.task("map", follow(Arc::clone(&site.router), stop.clone())));
        let failure = tokio::select! {
            () = shutdown.cancelled() => None,
            failure = ended.next() => Some(failure),
        };
        stop.cancel();
        for task in tasks {
            let _ = tokio::time::timeout(GRACE, task).await;
        }
        failure.map_or(Ok(()), |failure| Err(AppError::Ended(failure.what)))
    }
}

/// The data directory is there, and nobody else's.
fn prepare(data_dir: &Path) -> Result<LocalToken, AppError> {
    let failed = |source| AppError::Directory { path: data_dir.to_owned(), source };
    files::directory(data_dir).map_err(failed)?;
    files::close_all(data_dir);
    LocalToken::new("tidegate-cloud").map_err(failed)
}

/// Pushes over gRPC. A connection has a few under way, each of them read piece by piece; those for
/// which the intake has no room are told to wait, since a queue here would only make them old.
async fn serve_grpc(listener: TcpListener, tls: Option<Shown>, site: Arc<Site>, stop: CancellationToken) {
    let service = UplinkServer::new(Grpc(Arc::clone(&site.intake))).max_decoding_message_size(MESSAGE_MAX);
    let service = Guarded { inner: service, door: Arc::clone(&site.door) };
    let served = Server::builder()
        .timeout(PUSH_TIMEOUT)
        // A peer that is gone without a word gives its seat back.
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(site.config.cloud.in_flight + 1)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(4 * STREAM_WINDOW_BYTES)
        .add_service(service);
    let stopped = stop.cancelled_owned();
    let seats = Seats::new(site.config.cloud.max_connections);
    let ended = served.serve_with_incoming_shutdown(incoming(listener, tls, seats), stopped).await;
    if let Err(e) = ended {
        tracing::error!("gRPC ended: {e}");
    }
}

async fn bind(
    key: &'static str,
    name: &'static str,
    listen: &str,
    addresses: &mut Vec<(&'static str, SocketAddr)>,
) -> Result<Option<TcpListener>, AppError> {
    let Some(address) = address(listen).ok().flatten() else { return Ok(None) };
    let failed = |source| AppError::Bind { key, address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    addresses.push((name, listener.local_addr().map_err(failed)?));
    Ok(Some(listener))
}

/// Nobody in by default: beyond loopback somebody must have said who, or that anybody may.
fn check_exposure(config: &Config, users: &Users) -> Result<(), String> {
    let mut problems = Vec::new();
    for (key, listen, anonymous) in [
        ("cloud", &config.cloud.listen, config.cloud.allow_anonymous),
        ("http", &config.http.listen, config.http.allow_anonymous),
    ] {
        let beyond = matches!(address(listen), Ok(Some(address)) if !address.ip().is_loopback());
        if beyond && !anonymous && users.users.is_empty() {
            problems.push(format!(
                "{key}.listen {listen} would let anybody on the network in: add a user with `tidegate-cloud user add NAME`, or \
                 set {key}.allow_anonymous = true, or listen on 127.0.0.1"
            ));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n")) }
}

/// What would keep a start from succeeding, without starting: users, doors, certificates, shards and where the
/// map is.
pub fn check(config: &Config) -> Result<(), AppError> {
    let users = Users::read(&config.users_file())?;
    check_exposure(config, &users).map_err(AppError::Exposed)?;
    certificates(config)?;
    Ok(())
}

/// Takes over what other daemons change in the map.
async fn follow(router: Arc<Router>, stop: CancellationToken) {
    loop {
        let version = router.view().version;
        tokio::select! {
            () = stop.cancelled() => return,
            () = router.coordinator().changed(version) => {}
        }
        if let Err(e) = router.refresh().await {
            tracing::warn!("the map cannot be read: {e}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// Notices shards that have been put back, made anew or moved under this daemon.
async fn attend(router: Arc<Router>, stop: CancellationToken) {
    static SILENT: Sparse = Sparse::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(ATTEND_EVERY) => {}
        }
        if let Err(e) = router.attend().await
            && SILENT.may_say().is_some()
        {
            tracing::warn!("{e}; what belongs there waits");
        }
    }
}

/// Retires what is old by a clock that somebody has confirmed.
async fn retire(site: &Site, name: &str, shard: &dyn Shard, keep_us: Micros) -> Result<usize, ShardError> {
    static WRONG: Sparse = Sparse::new();
    let now_us = now_us();
    let doubt = match (site.intake.witnesses.verdict(now_us, Instant::now()), shard.clock_us().await?) {
        (Verdict::Unknown, _) => return Ok(0),
        (Verdict::Wrong(ahead_us), _) => Some(format!("{} s ahead of most gateways", ahead_us / SECOND_US)),
        (Verdict::Right, Some(theirs_us)) if !agree(theirs_us, now_us) => {
            Some(format!("{} s ahead of shard {name}'s", (now_us - theirs_us) / SECOND_US))
        }
        (Verdict::Right, _) => None,
    };
    if let Some(doubt) = doubt {
        if WRONG.may_say().is_some() {
            tracing::error!("nothing is retired, because this daemon's clock is {doubt}: set it right");
        }
        return Ok(0);
    }
    shard.retire(now_us - keep_us, TIDY_ROWS).await
}

/// The most rows that one kind of work took.
async fn tidy_one(site: &Site, view: &View, name: &str, keep_us: Option<Micros>) -> Result<usize, ShardError> {
    let shard = view.shard(name)?;
    let swept = shard.sweep(TIDY_ROWS).await?;
    let rolled = shard.roll_up(now_us(), TIDY_ROWS).await?;
    let retired = match keep_us {
        Some(keep_us) => retire(site, name, &**shard, keep_us).await?,
        None => 0,
    };
    Ok(swept.max(rolled).max(retired))
}

/// Rolls hours up and retires old rows, little by little.
async fn tidy(site: Arc<Site>, stop: CancellationToken) {
    let keep_us = Some(site.config.retention.summaries.micros()).filter(|&keep_us| keep_us > 0);
    let mut pause = TIDY_EVERY;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        let view = site.router.view();
        // A copy that is being compared must not shrink on one side.
        let keep_us = keep_us.filter(|_| view.map.transits.is_empty());
        let each = view.map.shards.keys().map(async |name| match tidy_one(&site, &view, name, keep_us).await {
            Ok(rows) => rows,
            Err(e) => {
                tracing::debug!("shard {name} cannot be tidied now: {e}");
                0
            }
        });
        let most = join_all(each).await.into_iter().max().unwrap_or(0);
        pause = if most < TIDY_ROWS { TIDY_EVERY } else { Duration::from_millis(50) };
    }
}
