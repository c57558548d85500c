//! Opens, wires and orders everything; the only module that knows all others.
//!
//! ```text
//! sockets -> Intake (cloud.max_pushes; one more is asked to wait) -> Router -> shards
//! shard   -> its writing thread (256 jobs; full: refused for now)          -> commit, then reply
//! mover   -> the coordinator's lease                                       -> shards
//! ```

use super::config::{Config, GrpcTls, HttpTls};
use super::coordinator::{self, CoordinatorError};
use super::http::{self, Site};
use super::intake::{Grpc, Intake, now_us};
use super::metrics::Metrics;
use super::mover::{Mover, SharedProgress};
use super::router::{Router, RouterError};
use crate::wire::proto::uplink_server::UplinkServer;
use daemon::auth::{Auth, Users, UsersError};
use daemon::config::address;
use daemon::tls::TlsError;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

/// How long requests under way may take at the end.
const GRACE: Duration = Duration::from_secs(5);
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
    /// A file that the configuration names.
    #[error("{0}")]
    File(String),
    /// A certificate or key.
    #[error(transparent)]
    Tls(#[from] TlsError),
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
}

/// What the listeners need for TLS, if they have it.
struct Tls {
    grpc: Option<ServerTlsConfig>,
    http: Option<Arc<rustls::ServerConfig>>,
}

impl Tls {
    fn read(config: &Config) -> Result<Self, AppError> {
        let given = |path: &PathBuf| (!path.as_os_str().is_empty()).then(|| path.clone());
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|e| AppError::File(format!("{} cannot be read: {e}", path.display())))
        };
        let GrpcTls { cert, key, client_ca } = &config.cloud.tls;
        let grpc = match given(cert) {
            None => None,
            Some(cert) => {
                // So that what is wrong is told at the start.
                daemon::tls::server(&cert, key)?;
                let mut grpc = ServerTlsConfig::new().identity(Identity::from_pem(read(&cert)?, read(key)?));
                if let Some(ca) = given(client_ca) {
                    grpc = grpc.client_ca_root(Certificate::from_pem(read(&ca)?));
                }
                Some(grpc)
            }
        };
        let HttpTls { cert, key } = &config.http.tls;
        let http = given(cert).map(|cert| daemon::tls::server(&cert, key)).transpose()?;
        Ok(Tls { grpc, http })
    }
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
        let coordinator = coordinator::open(&config.cloud.coordinator, &config.cloud.data_dir).await?;
        let router = Arc::new(Router::open(&config, coordinator).await?);
        router.settle().await?;
        let mut addresses = Vec::new();
        let grpc = bind("cloud.listen", "grpc", &config.cloud.listen, &mut addresses).await?;
        let http = bind("http.listen", "http", &config.http.listen, &mut addresses).await?;
        let tls = Tls::read(&config)?;
        let (metrics, auth) = (Arc::new(Metrics::default()), Arc::new(Auth::new(users)));
        let intake = Intake::new(
            Arc::clone(&router),
            Arc::clone(&auth),
            config.cloud.allow_anonymous,
            config.cloud.max_pushes,
            config.cloud.in_flight,
            Arc::clone(&metrics),
        );
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
            config,
            router,
            intake: Arc::new(intake),
            auth,
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

    /// What SIGHUP reads again: users.
    pub fn reloader(&self) -> impl Fn(&Config) + Send + Sync + use<> {
        let auth = Arc::clone(&self.site.auth);
        move |config| match Users::read(&config.users_file()) {
            Ok(users) => auth.set_users(users),
            Err(e) => tracing::error!("the users stay as they were: {e}"),
        }
    }

    /// Serves until `shutdown`, then stops in flow order.
    pub async fn run(self, shutdown: CancellationToken) {
        let App { site, grpc, http, tls, mover, stop } = self;
        let mut tasks: Vec<JoinHandle<()>> = Vec::new();
        if let Some(listener) = grpc {
            let service =
                UplinkServer::new(Grpc(Arc::clone(&site.intake))).max_decoding_message_size(Grpc::MESSAGE_MAX);
            let mut server = Server::builder();
            if let Some(config) = tls.grpc {
                // Its files have been read and its form checked.
                match server.tls_config(config) {
                    Ok(with_tls) => server = with_tls,
                    Err(e) => return tracing::error!("TLS for gRPC cannot be used: {e}"),
                }
            }
            let served = server.add_service(service);
            let stopped = stop.clone().cancelled_owned();
            tasks.push(tokio::spawn(async move {
                if let Err(e) = served.serve_with_incoming_shutdown(TcpIncoming::from(listener), stopped).await {
                    tracing::error!("gRPC ended: {e}");
                }
            }));
        }
        if let Some(listener) = http {
            tasks.push(tokio::spawn(http::serve(listener, tls.http, Arc::clone(&site), stop.clone())));
        }
        tasks.push(tokio::spawn(mover.run()));
        tasks.push(tokio::spawn(tidy(Arc::clone(&site), stop.clone())));
        tasks.push(tokio::spawn(follow(Arc::clone(&site.router), stop.clone())));
        shutdown.cancelled().await;
        stop.cancel();
        for task in tasks {
            let _ = tokio::time::timeout(GRACE, task).await;
        }
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

/// Rolls hours up and retires old rows, little by little.
async fn tidy(site: Arc<Site>, stop: CancellationToken) {
    let keep_us = site.config.retention.summaries.micros();
    let mut pause = TIDY_EVERY;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        let view = site.router.view();
        let mut most = 0;
        for name in view.map.shards.keys() {
            let Ok(shard) = view.shard(name) else { continue };
            let mut done = shard.roll_up(now_us(), TIDY_ROWS).await;
            // A copy that is being compared must not shrink on one side.
            if let (Ok(rolled), true, true) = (&done, keep_us > 0, view.map.transits.is_empty()) {
                let rolled = *rolled;
                done = shard.retire(now_us() - keep_us, TIDY_ROWS).await.map(|retired| rolled.max(retired));
            }
            match done {
                Ok(rows) => most = most.max(rows),
                Err(e) => tracing::debug!("shard {name} cannot be tidied now: {e}"),
            }
        }
        pause = if most < TIDY_ROWS { TIDY_EVERY } else { Duration::from_millis(50) };
    }
}
