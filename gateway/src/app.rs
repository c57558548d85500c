//! Opens, wires and orders everything; the only module that knows all others.
//!
//! The map of channels:
//!
//! ```text
//! accept  -> sockets (256 a thread; full: none is accepted)             -> listening threads
//! sockets -> Intake (journal.queue, bytes; full: sockets are not read) -> writer thread
//! writer  -> Desks (what the commit held)                              -> listening threads: acknowledgements
//! writer  -> handover (8 MiB; full: the writer waits)                  -> windows thread
//! windows -> Intake's chores (32; full: windows stay open)              -> writer thread: summaries
//! archive -> Intake's chores (one step at a time)                      -> writer thread: chunks
//! archive -> disturbed windows (one lot, after the clock was set)      -> windows thread: dirty windows
//! writer  -> Recorder (one number)                                    -> uplink task: what to read and send
//! windows -> Live (256 events; full: the listener loses the oldest)    -> /v1/live, CoAP observers
//! ```
//!
//! It stops in flow order: sockets are no longer read, the writer commits what waits, desks
//! are settled, connections say goodbye, windows end.

/// What a start finds in the store.
mod found;

use crate::archive::fold::Folder;
use crate::archive::levels::Levels;
use crate::archive::retire::Retention;
use crate::catalog::Catalog;
use crate::clock::{Clock, Steady};
use crate::config::Config;
use crate::http;
use crate::http::{About, Site};
use crate::journal::ReadError;
use crate::journal::changes::Recorder;
use crate::journal::pace::Pace;
use crate::journal::recover::recover;
use crate::journal::schema::{self, OpenError};
use crate::journal::writer::Writer;
use crate::journal::{Intake, handover};
use crate::listen::admit::Admission;
use crate::listen::mqtt::router::Router;
use crate::listen::mqtt::{self, Clients};
use crate::listen::{Desk, coap};
use crate::live::Live;
use crate::metrics::{Metrics, Usage};
use crate::query::Engine;
use crate::uplink::{Fill, Summaries};
use crate::window::Windows;
use crate::window::driver::{Driver, SharedProgress, look_every};
use daemon::auth::{Auth, Users, UsersError};
use daemon::config::{Span, address};
use daemon::http::web::Web;
use daemon::local::LocalToken;
use daemon::memory::Memory;
use daemon::supervise::supervisor;
use found::{begin_uplink, changed_levels, forget_uplink, identify, read_inbound, restore_retained, watch_clock};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle as TaskHandle;
use tokio_util::sync::CancellationToken;
use uplink::{Status as UplinkStatus, Uplink, UplinkError};

/// Questions about the gateway itself that are answered at once.
const LOOKS: usize = 2;
/// How long requests under way may take at the end.
const GRACE: Duration = Duration::from_secs(5);

/// Why the gateway does not start, or stopped before its time.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A listener would let anybody in.
    #[error("{0}")]
    Exposed(String),
    /// The store.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store's content.
    #[error(transparent)]
    Recover(#[from] ReadError),
    /// The users file.
    #[error(transparent)]
    Users(#[from] UsersError),
    /// The way to the cloud.
    #[error(transparent)]
    Uplink(#[from] UplinkError),
    /// A file that the configuration names.
    #[error("{0}")]
    File(String),
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
    /// The store, while reading its facts.
    #[error("the store cannot be read: {0}")]
    Store(#[from] rusqlite::Error),
    /// A thread could not be started.
    #[error("a thread could not be started: {0}")]
    Thread(#[from] io::Error),
    /// A thread ended with an error.
    #[error("{0}")]
    Ended(String),
}

struct Sockets {
    mqtt: Option<TcpListener>,
    coap: Option<UdpSocket>,
    http: Option<TcpListener>,
}

/// The thread that writes the store.
const JOURNAL: &str = "journal";

/// A gateway that is bound and wired, not yet serving.
pub struct App {
    config: Config,
    sockets: Sockets,
    shared: Arc<mqtt::Shared>,
    desks: Vec<Arc<Desk>>,
    site: Arc<Site>,
    live: Arc<Live>,
    writer: Writer,
    driver: Driver,
    folder: Folder,
    uplink: Option<(Uplink, Option<Fill>)>,
    watch: Option<Watch>,
    stop: CancellationToken,
}

/// Watches the clock.
type Watch = Pin<Box<dyn Future<Output = ()> + Send>>;

impl App {
    /// Opens the store, binds the ports and wires everything.
    pub async fn build(config: Config, clock: Clock) -> Result<Self, AppError> {
        let store = schema::open(&config.gateway.data_dir)?;
        let users = Users::read(&config.users_file())?;
        check_exposure(&config, &users).map_err(AppError::Exposed)?;
        let identity = identify(&store, &config, &clock)?;
        let incarnation = Arc::new(AtomicU64::new(identity.incarnation));
        let stop = CancellationToken::new();
        let watch = clock.trust().map(|trust| watch_clock(trust, &store.connection, &stop)).transpose()?;
        let options = config.uplink().map_err(AppError::File)?;
        let catalog = Arc::new(Catalog::new(config.names(), identity.starts));
        let mut recovered = recover(&store.connection, &catalog)?;
        let length_us = config.window.length.micros();
        let rollups_us: Vec<i64> = config.window.rollups.iter().map(|rollup| rollup.micros()).collect();
        let levels = Levels::settle(&store.connection, length_us, &rollups_us)?;
        if changed_levels(&store.connection, &levels, clock.now_us())? {
            recovered.replay_from = 1;
        }
        let metrics = Arc::new(Metrics::default());
        let intake = Arc::new(Intake::new(config.journal.queue.bytes()));
        let router = Arc::new(Router::default());
        let retained = restore_retained(&store.connection, &config, &clock)?;
        let clients = Clients::restore(read_inbound(&store.connection)?, config.mqtt.max_connections);
        let auth = Arc::new(Auth::new(users));
        let admission = Arc::new(Admission::new(
            Arc::clone(&catalog),
            clock.clone(),
            Arc::clone(&metrics),
            config.zone().unwrap_or(jiff::tz::TimeZone::UTC),
            config.time.max_skew.micros(),
            config.influx.device_tags.clone(),
            config.rules().unwrap_or_default(),
        ));
        let (sockets, addresses) = bind(&config).await?;
        let local = local_token(&config, &addresses)?;
        let shared = Arc::new(mqtt::Shared::new(
            Arc::clone(&admission),
            Arc::clone(&intake),
            Arc::clone(&router),
            Arc::clone(&retained),
            Arc::clone(&auth),
            config.mqtt.allow_anonymous,
            mqtt_limits(&config),
            clients,
        ));
        let desks: Vec<_> = (0..config.mqtt_threads()).map(|_| Arc::new(Desk::default())).collect();
        let live = Arc::new(Live::default());
        let progress = SharedProgress::default();
        let engine = Arc::new(Engine::new(
            store.path.clone(),
            Arc::clone(&catalog),
            Arc::clone(&progress),
            clock.clone(),
            levels.clone(),
            config.window.lateness.micros(),
            config.query.memory.bytes(),
        ));
        let uplink_status = options.as_ref().map(|_| Arc::new(UplinkStatus::default()));
        let site = Arc::new(Site {
            admission,
            intake: Arc::clone(&intake),
            engine,
            questions: Arc::new(Semaphore::new(config.query.concurrency)),
            looks: Arc::new(Semaphore::new(LOOKS)),
            query_timeout: config.query.timeout.0,
            live: Arc::clone(&live),
            metrics: Arc::clone(&metrics),
            subscriptions: router,
            retained: Arc::clone(&retained),
            anonymous: config.http.allow_anonymous,
            auth,
            local,
            body_max: config.http.max_body.bytes(),
            ingest_memory: Memory::new(config.http.ingest_memory.bytes()),
            web: Web::new(&config.http.hosts, &config.http.origins),
            connections_max: config.http.max_connections,
            live_max: config.http.max_live,
            uplink: uplink_status.clone(),
            about: About {
                id: identity.gateway.clone(),
                incarnation: Arc::clone(&incarnation),
                started_us: clock.now_us(),
                addresses,
                store: store.path.clone(),
            },
            growth: Arc::default(),
            budget_bytes: retention(&config).budget_bytes,
            ready: AtomicBool::new(false),
            stop: stop.clone(),
        });
        let recorder = match options {
            Some(_) => Some(Recorder::new(&store.connection)?),
            None => {
                forget_uplink(&store.connection)?;
                None
            }
        };
        let fill = Fill {
            store: store.path.clone(),
            catalog: Arc::clone(&catalog),
            levels: levels.clone(),
            intake: Arc::clone(&intake),
            stop: stop.clone(),
        };
        let uplink = match (options, &recorder, uplink_status) {
            (Some(options), Some(recorder), Some(status)) => {
                let summaries = Summaries {
                    db: Mutex::new(schema::open_reader(&store.path)?),
                    store: store.path.clone(),
                    catalog: Arc::clone(&catalog),
                    levels: levels.clone(),
                    intake: Arc::clone(&intake),
                    latest: recorder.subscribe(),
                    clock: clock.clone(),
                    metrics: Arc::clone(&metrics),
                    lateness_us: config.window.lateness.micros(),
                    retain_us: config.uplink.retain_after_ack.micros(),
                    incarnation: Arc::clone(&incarnation),
                    is_new: identity.starts == 1,
                    stop: stop.clone(),
                };
                // What was there before there was an uplink is sent too.
                let fill = begin_uplink(&store.connection)?.then_some(fill);
                Some((Uplink::new(options, identity, Arc::new(summaries), status)?, fill))
            }
            _ => None,
        };
        let (committed_sender, committed) = handover::handover();
        let (disturbed_sender, disturbed) = std::sync::mpsc::sync_channel(1);
        let memory_bytes = config.window.memory.bytes();
        let driver = Driver {
            windows: Windows::new(length_us, config.window.lateness.micros(), memory_bytes),
            memory_bytes,
            delay: config.archive.delay.0,
            look_every: look_every(config.journal.commit_delay.0),
            levels: levels.clone(),
            committed,
            intake: Arc::clone(&intake),
            catalog: Arc::clone(&catalog),
            metrics: Arc::clone(&metrics),
            steady: Steady::new(&clock, Instant::now()),
            clock: clock.clone(),
            live: Arc::clone(&live),
            progress,
            store: store.path.clone(),
            disturbed,
            replay_from: recovered.replay_from,
            last_seq: recovered.last_seq,
            stop: stop.clone(),
        };
        let folder = Folder {
            store: store.path.clone(),
            intake: Arc::clone(&intake),
            metrics: Arc::clone(&metrics),
            levels,
            retention: retention(&config),
            growth: Arc::clone(&site.growth),
            delay_us: config.archive.delay.micros(),
            clock: clock.clone(),
            catalog: Arc::clone(&catalog),
            disturbed: disturbed_sender,
            stop: stop.clone(),
        };
        let writer = Writer {
            pace: pace(&config, &metrics),
            store,
            last_seq: recovered.last_seq,
            intake,
            catalog,
            retained,
            desks: desks.clone(),
            committed: committed_sender,
            metrics,
            clock,
            wal_max: config.journal.wal.0,
            rejects_max: config.limits.rejects,
            recorder,
            slow: slow_for_tests(),
        };
        Ok(App { config, sockets, shared, desks, site, live, writer, driver, folder, uplink, watch, stop })
    }

    /// The bound addresses by listener.
    pub fn addresses(&self) -> &[(&'static str, SocketAddr)] {
        &self.site.about.addresses
    }

    /// What SIGHUP reads again: users and ingest rules.
    pub fn reloader(&self) -> impl Fn(&Config) + Send + Sync + use<> {
        let (admission, auth) = (Arc::clone(&self.site.admission), Arc::clone(&self.site.auth));
        let clients = Arc::clone(&self.shared);
        move |config| {
            admission.set_rules(config.rules().unwrap_or_default());
            match Users::read(&config.users_file()) {
                Ok(users) => {
                    if users.users.is_empty() && auth.asks() {
                        tracing::warn!("nobody is left in the users file: nobody without a user name comes in");
                    }
                    auth.set_users(users);
                    clients.clients.end_strangers(&auth);
                }
                Err(e) => tracing::error!("the users stay as they were: {e}"),
            }
        }
    }

    /// Serves until `shutdown`, then stops in flow order.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), AppError> {
        let App { config, sockets, shared, desks, site, live, writer, driver, folder, uplink, watch, stop } = self;
        let finish = CancellationToken::new();
        let (supervisor, mut ended) = supervisor(stop.clone());
        let (threads, senders) = mqtt::threads(&shared, &desks, &stop, &finish);
        let listening = threads.into_iter().map(|thread| supervisor.thread("listen", move || thread.run()));
        let listening = listening.collect::<io::Result<Vec<_>>>()?;
        // It ends with the journal, whose word comes later.
        let windows = supervisor.follower("windows", move || driver.run())?;
        let folding = supervisor.thread("archive", move || folder.run())?;
        let writing = supervisor.thread(JOURNAL, move || writer.run())?;
        let mut tasks: Vec<TaskHandle<()>> = Vec::new();
        tasks.extend(watch.map(|watch| supervisor.errand("clock", watch)));
        if let Some(listener) = sockets.mqtt {
            tasks.push(supervisor.task("mqtt", mqtt::accept(listener, shared, senders, stop.clone())));
        }
        if let Some(socket) = sockets.coap {
            let endpoint = coap::Endpoint::new(socket, &config.coap, &site, live);
            tasks.push(supervisor.task("coap", endpoint.serve(stop.clone())));
        }
        if let Some(listener) = sockets.http {
            tasks.push(supervisor.task("http", http::serve(listener, Arc::clone(&site), stop.clone())));
        }
        if let Some((uplink, fill)) = uplink {
            if let Some(fill) = fill {
                tasks.push(supervisor.errand("uplink-fill", async move {
                    if let Err(e) = tokio::task::spawn_blocking(move || fill.run()).await {
                        std::panic::resume_unwind(e.into_panic());
                    }
                }));
            }
            tasks.push(supervisor.task("uplink", uplink.run(stop.clone())));
        }
        site.set_ready(true);
        let failure = tokio::select! {
            () = shutdown.cancelled() => None,
            failure = ended.next() => Some(failure),
        };
        site.set_ready(false);
        stop.cancel();
        if let Some(failure) = &failure {
            tracing::error!("{}: the gateway stops", failure.what);
        }
        if let Some(failure) = failure.as_ref().filter(|failure| failure.name == JOURNAL) {
            // Nothing more may be acknowledged: no draining.
            return Err(AppError::Ended(failure.what.clone()));
        }
        for task in tasks {
            let _ = tokio::time::timeout(GRACE, task).await;
        }
        site.intake.close();
        let joined = tokio::task::spawn_blocking(move || {
            let wrote = writing.join();
            finish.cancel();
            let listened = listening.into_iter().map(JoinHandle::join).fold(Ok(()), Result::and);
            wrote.and(listened).and(windows.join()).and(folding.join())
        });
        match (joined.await, failure.or_else(|| ended.now())) {
            (_, Some(failure)) => Err(AppError::Ended(failure.what)),
            (Ok(Ok(())), None) => Ok(()),
            _ => Err(AppError::Ended("a thread panicked while stopping; see the log".into())),
        }
    }
}

/// What `tidegate forget` shows; once the ports are bound, so that it is the token of the gateway that listens there.
fn local_token(config: &Config, addresses: &[(&str, SocketAddr)]) -> io::Result<LocalToken> {
    let local = LocalToken::new("tidegate")?;
    local.write(&config.gateway.data_dir)?;
    if let Some((_, address)) = addresses.iter().find(|(name, _)| *name == "http")
        && let Err(e) = local.announce(address.port())
    {
        tracing::debug!("the token of this gateway is only in its data directory: {e}");
    }
    Ok(local)
}

/// What would keep a start from succeeding, without starting: users, doors, files that are named, addresses.
pub fn check(config: &Config) -> Result<(), AppError> {
    let users = Users::read(&config.users_file())?;
    check_exposure(config, &users).map_err(AppError::Exposed)?;
    config.uplink().map_err(AppError::File)?;
    Ok(())
}

/// A commit's delay that only tests set, to stand in for a slow disk.
fn slow_for_tests() -> Duration {
    let ms = std::env::var("TIDEGATE_TEST_SLOW_COMMIT_MS").ok().and_then(|text| text.parse().ok());
    Duration::from_millis(ms.unwrap_or(0))
}

/// Nobody in by default: beyond loopback somebody must have said who, or that anybody may.
pub fn check_exposure(config: &Config, users: &Users) -> Result<(), String> {
    let has_users = !users.users.is_empty();
    let mut problems = Vec::new();
    for (name, listen, anonymous, by_users) in [
        ("mqtt", &config.mqtt.listen, config.mqtt.allow_anonymous, true),
        ("http", &config.http.listen, config.http.allow_anonymous, true),
        ("coap", &config.coap.listen, config.coap.allow_anonymous, false),
    ] {
        let beyond = matches!(address(listen), Ok(Some(address)) if !address.ip().is_loopback());
        if beyond && !anonymous && !(by_users && has_users) {
            let remedy = if by_users { "add a user with `tidegate user add NAME`, or " } else { "" };
            problems.push(format!(
                "{name}.listen {listen} would let anybody on the network in: {remedy}set {name}.allow_anonymous = true, \
                 or listen on 127.0.0.1"
            ));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n")) }
}

fn mqtt_limits(config: &Config) -> mqtt::Limits {
    mqtt::Limits {
        connections: config.mqtt.max_connections,
        receive_maximum: usize::from(config.mqtt.receive_maximum),
        session_bytes: config.mqtt.session_memory.bytes(),
        packet_bytes: config.mqtt.max_packet.bytes(),
        assembly_bytes: config.mqtt.assembly_memory.bytes(),
        connect_timeout: config.mqtt.connect_timeout.0,
        queue_bytes: config.mqtt.subscriber_queue.bytes(),
        delivery_bytes: config.mqtt.delivery_memory.bytes(),
        inflight: usize::from(config.mqtt.max_inflight),
        subscriptions: config.mqtt.max_subscriptions,
    }
}

fn pace(config: &Config, metrics: &Metrics) -> Pace {
    let (least, budget) = (config.journal.commit_delay.0, config.storage.max_written_per_day.0);
    metrics.commit_delay_s.set(least.as_secs_f64());
    Pace::new(least, Some(budget).filter(|&bytes| bytes > 0), Instant::now(), Usage::now().written_bytes)
}

fn retention(config: &Config) -> Retention {
    let age = |span: Span| Some(span.micros()).filter(|&us| us > 0);
    Retention {
        raw_us: age(config.retention.raw),
        summaries_us: age(config.retention.summaries),
        rollups_us: config.retention.rollups.iter().map(|span| age(*span)).collect(),
        budget_bytes: Some(config.retention.disk_budget.0).filter(|&bytes| bytes > 0),
    }
}

type Bound = (Sockets, Vec<(&'static str, SocketAddr)>);

async fn bind(config: &Config) -> Result<Bound, AppError> {
    let mut addresses = Vec::new();
    let at = |listen: &str| address(listen).ok().flatten();
    let mut sockets = Sockets { mqtt: None, coap: None, http: None };
    if let Some(address) = at(&config.mqtt.listen) {
        let failed = |source| AppError::Bind { key: "mqtt.listen", address, source };
        let listener = mqtt::bind(address).map_err(failed)?;
        addresses.push(("mqtt", listener.local_addr().map_err(failed)?));
        sockets.mqtt = Some(listener);
    }
    if let Some(address) = at(&config.coap.listen) {
        let failed = |source| AppError::Bind { key: "coap.listen", address, source };
        let socket = UdpSocket::bind(address).await.map_err(failed)?;
        addresses.push(("coap", socket.local_addr().map_err(failed)?));
        sockets.coap = Some(socket);
    }
    if let Some(address) = at(&config.http.listen) {
        let failed = |source| AppError::Bind { key: "http.listen", address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        addresses.push(("http", listener.local_addr().map_err(failed)?));
        sockets.http = Some(listener);
    }
    Ok((sockets, addresses))
}
