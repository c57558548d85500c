//! What a person can turn.
//!
//! Arrives: a TOML file, the environment, `--set`. Leaves: a [`Config`] that is whole, or all
//! problems at once, each with where it stands and what to do. Always holds: the defaults
//! equal the shipped `configs/gateway.toml` (a test compares them), and an unknown key is an
//! error. The field docs are the reference manual.

use crate::archive::SERIES_MAX;
use crate::catalog::Limits;
use crate::decode::Format;
use crate::decode::topic::{Rule, Rules};
use daemon::config::{Options, Size, Span, address};
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use uplink::{Balance, Endpoint, Options as UplinkOptions, Tls};

/// The whole configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Who this gateway is and where it keeps things.
    pub gateway: Gateway,
    /// The MQTT listener.
    pub mqtt: Mqtt,
    /// The CoAP listener.
    pub coap: Coap,
    /// The HTTP listener.
    pub http: Http,
    /// Who may come in.
    pub auth: Auth,
    /// How stamps are read.
    pub time: Time,
    /// The way to the disk.
    pub journal: Journal,
    /// What the disk can take.
    pub storage: Storage,
    /// Readings for years.
    pub archive: Archive,
    /// Aggregation.
    pub window: Window,
    /// How long things are kept.
    pub retention: Retention,
    /// The way to the cloud.
    pub uplink: Uplink,
    /// Bounds on what is kept.
    pub limits: Bounds,
    /// Bounds on a question.
    pub query: Query,
    /// InfluxDB line protocol.
    pub influx: Influx,
    /// Which topics are readings; the first match counts. Giving any replaces the two defaults.
    pub ingest: Vec<Ingest>,
}

/// Who this gateway is and where it keeps things.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gateway {
    /// The gateway's name in answers and in the cloud; empty generates one at the first start and keeps it.
    pub id: String,
    /// The directory of the store and the users file; created if missing.
    pub data_dir: PathBuf,
}

/// The MQTT listener.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mqtt {
    /// Address and port; port 0 picks a free one; empty turns MQTT off.
    pub listen: String,
    /// Lets clients without user name in, also from other machines.
    pub allow_anonymous: bool,
    /// Threads that serve connections; 0 means one for every two processor cores.
    pub threads: usize,
    /// Connections at once; one more is refused (0x97, or 3 in MQTT 3.1.1).
    pub max_connections: usize,
    /// The largest packet accepted; a larger one ends the connection (0x95).
    pub max_packet: Size,
    /// Memory for packets whose rest has not come yet, of all connections; a connection that needs more than its 4 KiB beyond it is closed (0x97).
    pub assembly_memory: Size,
    /// Memory for what is kept of all clients: identifiers, wills, subscriptions, topic aliases, QoS 2 identifiers. A client that needs more than its 4 KiB beyond it is refused a subscription, or closed (0x97).
    pub session_memory: Size,
    /// How long a new connection may take until its CONNECT is complete.
    pub connect_timeout: Span,
    /// What may wait for one slow subscriber: beyond it QoS 0 messages are dropped and counted, and QoS 1 disconnects it.
    pub subscriber_queue: Size,
    /// What may wait for all subscribers together: beyond it each may have a sixteenth of `mqtt.subscriber_queue`.
    pub delivery_memory: Size,
    /// QoS 1 messages a subscriber may have unacknowledged, if it does not ask for fewer.
    pub max_inflight: u16,
    /// QoS 2 messages of one client that it has not released; one more ends the connection (0x93).
    pub receive_maximum: u16,
    /// Subscriptions of one client.
    pub max_subscriptions: usize,
}

/// The CoAP listener.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Coap {
    /// Address and UDP port; port 0 picks a free one; empty turns CoAP off.
    pub listen: String,
    /// Lets devices in from other machines; CoAP without DTLS knows no users.
    pub allow_anonymous: bool,
    /// The largest body, assembled from blocks; a larger one is answered 4.13.
    pub max_body: Size,
    /// Memory for bodies that are still being assembled; beyond it the oldest is forgotten.
    pub assembly_memory: Size,
    /// Answers kept to repeat them to retransmissions, each for 247 s (EXCHANGE_LIFETIME).
    pub max_exchanges: usize,
    /// Observations at once; one more is answered without observing.
    pub max_observers: usize,
}

/// The HTTP listener.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Address and port; port 0 picks a free one; empty turns HTTP off.
    pub listen: String,
    /// Lets requests without credentials in, also from other machines.
    pub allow_anonymous: bool,
    /// Connections at once; an address may have as many as are free.
    pub max_connections: usize,
    /// Names of this machine, beside its own and its addresses: a request for another name needs credentials.
    pub hosts: Vec<String>,
    /// Origins whose pages may read and write here (CORS), for example "https://dash.example"; none by default.
    pub origins: Vec<String>,
    /// The largest request body; a larger one is answered 413.
    pub max_body: Size,
    /// Memory for request bodies with readings, of all requests; a client takes at most half of it, and those that do not fit wait.
    pub ingest_memory: Size,
    /// Connections to `/v1/live` at once; one more is answered 503.
    pub max_live: usize,
}

/// Who may come in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// The users file that `tidegate user add` writes; relative to the data directory.
    pub users: PathBuf,
}

/// How stamps are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Time {
    /// The zone of local stamps without offset: "UTC" or a name such as "Europe/Berlin".
    pub zone: String,
    /// A stamp further in the future than this is kept, flagged, and moves no window.
    pub max_skew: Span,
}

/// The way to the disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Journal {
    /// How long a commit waits for company. "0ms" waits for nobody and takes whatever queued meanwhile; longer writes less to a card and acknowledges later.
    pub commit_delay: Span,
    /// Memory for readings that wait for the commit; full means sockets are not read.
    pub queue: Size,
    /// The write-ahead log is folded back into the store when it reaches this size.
    pub wal: Size,
}

/// What the disk can take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Storage {
    /// What may be written in a day: above it commits wait longer for company, up to 5s. "0 B" sets no bound. A card of 32 GB that survives 1,000 overwrites lasts ten years at 8 GiB a day.
    pub max_written_per_day: Size,
}

/// Readings for years.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Archive {
    /// How long readings may stay in the journal before they are folded into compressed chunks of one series and day; many go earlier. Longer writes less to a card, shorter answers faster.
    pub delay: Span,
}

/// Aggregation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Window {
    /// The length of the windows that are summarised, a whole number of seconds that divides a day.
    pub length: Span,
    /// How long a window stays open for late readings.
    pub lateness: Span,
    /// Longer windows that are kept ready for old days, each a whole multiple of the one before and a part of a day.
    pub rollups: Vec<Span>,
    /// Memory for readings of open windows; full means they are folded into partial summaries.
    pub memory: Size,
}

/// How long things are kept, counted from their receipt; "0s" keeps them for good.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Readings. Where they are gone, answers come from summaries, and late readings change nothing any more.
    pub raw: Span,
    /// Summaries of `window.length`. Where they are gone, answers come from the rollups.
    pub summaries: Span,
    /// Summaries of `window.rollups`, in their order; the last holds for those behind it.
    pub rollups: Vec<Span>,
    /// What the store may take, besides its log (`journal.wal`). When it takes more, the oldest summaries of `window.length` go first, then the oldest readings, then the oldest rollups, whatever their age. "0 B" is nine tenths of what the filesystem has for it.
    pub disk_budget: Size,
}

/// The way to the cloud: summaries are sent until they are acknowledged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Uplink {
    /// Where summaries are sent: "http://host:7443" (gRPC), "https://host:7443", or "https://host:8090/v1/push"; none means no cloud. "?weight=2" gives an endpoint twice the share of the others.
    pub endpoints: Vec<String>,
    /// How an endpoint is chosen: "round-robin" (by weight), "random" (by weight) or "two-choices" (of two the one with less under way).
    pub balance: Balance,
    /// What goes first after an outage: "live-first" (fresh summaries, the backlog beside them) or "in-order".
    pub order: Order,
    /// A file with the bearer token that the cloud knows this gateway by; empty means none.
    pub token_file: PathBuf,
    /// For endpoints with https.
    pub tls: UplinkTls,
    /// Batches under way at once, 1 to 32.
    pub in_flight: usize,
    /// Summaries in a batch, about.
    pub batch: usize,
    /// Summaries of the backlog in a second, at most; 0 sets no bound.
    pub catch_up: u32,
    /// Fresh summaries are sent once in this time, every gateway at a moment of its own, so that a fleet does not come all at once. "0s" sends at once.
    pub jitter: Span,
    /// How often the cloud hears from a gateway that has nothing to send.
    pub heartbeat: Span,
    /// How long a push may take.
    pub timeout: Span,
    /// How long it is remembered what was sent. A shard of the cloud that is restored from a younger backup is sent what it lacks; for an older one everything that is kept is sent again.
    pub retain_after_ack: Span,
}

/// What goes first after an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Fresh summaries, the backlog beside them.
    LiveFirst,
    /// The oldest.
    InOrder,
}

/// For endpoints with https.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UplinkTls {
    /// Certificates that sign the cloud's one, in PEM; empty means the system's.
    pub ca: PathBuf,
    /// This gateway's certificate, in PEM, if the cloud asks for one; empty means none.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Bounds on what is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bounds {
    /// Devices; readings of one more are rejected.
    pub devices: usize,
    /// Series, that is metrics of devices; readings of one more are rejected.
    pub series: usize,
    /// How many new devices and series one client (a user, or else an address) may bring from one start to the next, in percent of those that are free and those it has brought: 50 leaves as many to others, 100 sets no bound.
    pub client_share: usize,
    /// Rejects kept, newest first.
    pub rejects: usize,
    /// Retained messages kept; one more is not retained.
    pub retained: usize,
    /// Memory for retained messages; one that does not fit is not retained.
    pub retained_memory: Size,
}

/// Bounds on a question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Query {
    /// Memory for the readings of one question; one that needs more is refused (422).
    pub memory: Size,
    /// Questions answered at once; the others wait.
    pub concurrency: usize,
    /// How long a question may take; one that takes longer is ended (504).
    pub timeout: Span,
}

/// InfluxDB line protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Influx {
    /// The tags that may name a point's device: the first that is there does. Without any, the measurement does.
    pub device_tags: Vec<String>,
}

/// Which topics are readings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ingest {
    /// Levels are literal, `+`, `{device}` or `{metric}`; a last `#` stands for any rest.
    pub topic: String,
    /// "auto", "text", "json", "cbor" or "senml".
    #[serde(default)]
    pub format: Format,
    /// The device, where the topic has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The metric, where the topic has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
}

impl Default for Gateway {
    fn default() -> Self {
        Gateway { id: String::new(), data_dir: "data".into() }
    }
}

impl Default for Mqtt {
    fn default() -> Self {
        Mqtt {
            listen: "127.0.0.1:1883".into(),
            allow_anonymous: false,
            threads: 0,
            max_connections: 10_000,
            max_packet: Size::mib(2),
            assembly_memory: Size::mib(32),
            session_memory: Size::mib(16),
            connect_timeout: Span::seconds(10),
            subscriber_queue: Size::mib(1),
            delivery_memory: Size::mib(32),
            max_inflight: 100,
            receive_maximum: 1_000,
            max_subscriptions: 1_000,
        }
    }
}

impl Default for Coap {
    fn default() -> Self {
        Coap {
            listen: "127.0.0.1:5683".into(),
            allow_anonymous: false,
            max_body: Size::mib(1),
            assembly_memory: Size::mib(8),
            max_exchanges: 20_000,
            max_observers: 1_000,
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Http {
            listen: "127.0.0.1:8080".into(),
            allow_anonymous: false,
            max_connections: 512,
            hosts: Vec::new(),
            origins: Vec::new(),
            max_body: Size::mib(16),
            ingest_memory: Size::mib(32),
            max_live: 100,
        }
    }
}

impl Default for Auth {
    fn default() -> Self {
        Auth { users: "users.toml".into() }
    }
}

impl Default for Time {
    fn default() -> Self {
        Time { zone: "UTC".into(), max_skew: Span::seconds(3_600) }
    }
}

impl Default for Journal {
    fn default() -> Self {
        Journal { commit_delay: Span::millis(0), queue: Size::mib(8), wal: Size::mib(8) }
    }
}

impl Default for Storage {
    fn default() -> Self {
        Storage { max_written_per_day: Size(0) }
    }
}

impl Default for Archive {
    fn default() -> Self {
        Archive { delay: Span::seconds(6 * 3_600) }
    }
}

impl Default for Window {
    fn default() -> Self {
        Window {
            length: Span::seconds(60),
            lateness: Span::seconds(10),
            rollups: vec![Span::seconds(3_600), Span::seconds(86_400)],
            memory: Size::mib(16),
        }
    }
}

impl Default for Retention {
    fn default() -> Self {
        Retention {
            raw: Span::days(90),
            summaries: Span::days(365),
            rollups: vec![Span::days(3_650), Span::seconds(0)],
            disk_budget: Size(0),
        }
    }
}

impl Default for Uplink {
    fn default() -> Self {
        Uplink {
            endpoints: Vec::new(),
            balance: Balance::RoundRobin,
            order: Order::LiveFirst,
            token_file: PathBuf::new(),
            tls: UplinkTls::default(),
            in_flight: 4,
            batch: 5_000,
            catch_up: 20_000,
            jitter: Span::seconds(30),
            heartbeat: Span::seconds(30),
            timeout: Span::seconds(30),
            retain_after_ack: Span::days(7),
        }
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            devices: 10_000,
            series: 100_000,
            client_share: 50,
            rejects: 10_000,
            retained: 10_000,
            retained_memory: Size::mib(16),
        }
    }
}

impl Default for Influx {
    fn default() -> Self {
        Influx { device_tags: vec!["device".into(), "host".into()] }
    }
}

impl Default for Query {
    fn default() -> Self {
        Query { memory: Size::mib(64), concurrency: 2, timeout: Span::seconds(30) }
    }
}

/// The rules in force when the file gives none.
pub fn default_ingest() -> Vec<Ingest> {
    let rule = |topic: &str| Ingest { topic: topic.into(), format: Format::Auto, device: None, metric: None };
    vec![rule("devices/{device}/{metric}"), rule("devices/{device}")]
}

impl Options for Config {
    const ALIASES: &'static [(&'static str, &'static str)] = &[("ingest.influx.device_tags", "influx.device_tags")];
    const DEFAULT_FILE: &'static str = "tidegate.toml";

    fn validate(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut wrong = |key: &str, what: String| problems.push((key.to_owned(), what));
        for (key, listen) in
            [("mqtt.listen", &self.mqtt.listen), ("coap.listen", &self.coap.listen), ("http.listen", &self.http.listen)]
        {
            if let Err(what) = address(listen) {
                wrong(key, what);
            }
        }
        let length_us = self.window.length.micros();
        if length_us < 1_000_000 || length_us % 1_000_000 != 0 || 86_400_000_000 % length_us != 0 {
            wrong(
                "window.length",
                "must be a whole number of seconds that divides a day, such as 10s, 1m or 1h".into(),
            );
        }
        if self.window.rollups.len() > 8 {
            wrong("window.rollups", "has more than 8 lengths".into());
        }
        for rollup in &self.window.rollups {
            let us = rollup.micros();
            if us < 1_000_000 || 86_400_000_000 % us != 0 {
                wrong("window.rollups", format!("{rollup} is no part of a day: use for example [\"1h\", \"1d\"]"));
            }
        }
        let (raw, summaries) = (self.retention.raw, self.retention.summaries);
        if raw > Span::seconds(0) && raw < Span::seconds(3_600) {
            wrong("retention.raw", "is below its least value 1h; \"0s\" keeps readings for good".into());
        }
        if summaries > Span::seconds(0) && (summaries < raw || raw == Span::seconds(0)) {
            wrong(
                "retention.summaries",
                format!("is shorter than retention.raw ({raw}): answers come from readings first"),
            );
        }
        if self.retention.disk_budget > Size(0) && self.retention.disk_budget < Size::mib(1) {
            wrong("retention.disk_budget", "is below its least value 1 MiB; \"0 B\" takes what the disk has".into());
        }
        if self.journal.commit_delay > Span::seconds(60) {
            wrong("journal.commit_delay", "is above 60s: devices would give up waiting; choose less".into());
        }
        for (key, size, least) in [
            ("mqtt.max_packet", self.mqtt.max_packet, Size::kib(1)),
            ("journal.queue", self.journal.queue, Size::kib(64)),
            ("http.ingest_memory", self.http.ingest_memory, Size::kib(64)),
            ("journal.wal", self.journal.wal, Size::kib(256)),
            ("window.memory", self.window.memory, Size::kib(256)),
            ("query.memory", self.query.memory, Size::mib(1)),
        ] {
            if size < least {
                wrong(key, format!("is below its least value {least}"));
            }
        }
        for (key, number) in [
            ("mqtt.max_connections", self.mqtt.max_connections),
            ("mqtt.max_inflight", usize::from(self.mqtt.max_inflight)),
            ("mqtt.receive_maximum", usize::from(self.mqtt.receive_maximum)),
            ("http.max_connections", self.http.max_connections),
            ("limits.devices", self.limits.devices),
            ("limits.series", self.limits.series),
            ("query.concurrency", self.query.concurrency),
        ] {
            if number == 0 {
                wrong(key, "must be at least 1".into());
            }
        }
        if !(1..=100).contains(&self.limits.client_share) {
            wrong("limits.client_share", format!("{} is not between 1 and 100", self.limits.client_share));
        }
        if self.limits.series > SERIES_MAX {
            wrong("limits.series", format!("is above {SERIES_MAX}, the most that the archive can number"));
        }
        for endpoint in &self.uplink.endpoints {
            if let Err(e) = endpoint.parse::<Endpoint>() {
                wrong("uplink.endpoints", e.to_string());
            }
            if !self.uplink.token_file.as_os_str().is_empty() && is_in_the_clear(endpoint) {
                let what = format!(
                    "{endpoint} would be told the token in the clear: use https, or leave uplink.token_file empty"
                );
                wrong("uplink.endpoints", what);
            }
        }
        if !(1..=32).contains(&self.uplink.in_flight) {
            wrong("uplink.in_flight", format!("{} is not between 1 and 32", self.uplink.in_flight));
        }
        if !(1..=50_000).contains(&self.uplink.batch) {
            wrong("uplink.batch", format!("{} is not between 1 and 50000", self.uplink.batch));
        }
        if self.uplink.heartbeat.micros() < 1_000_000 {
            wrong("uplink.heartbeat", "is shorter than 1s".into());
        }
        if self.uplink.tls.cert.as_os_str().is_empty() != self.uplink.tls.key.as_os_str().is_empty() {
            wrong("uplink.tls.cert", "needs uplink.tls.key beside it, and the other way round".into());
        }
        if let Err(what) = self.zone() {
            wrong("time.zone", what);
        }
        if let Err(what) = self.rules() {
            wrong("ingest", what);
        }
        problems
    }
}

/// True for a URL whose connection others can read: plain HTTP beyond this machine.
pub fn is_in_the_clear(url: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(url) else { return false };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_local = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    url.scheme() == "http" && !is_local
}

impl Config {
    /// The zone of local stamps.
    pub fn zone(&self) -> Result<TimeZone, String> {
        match self.time.zone.as_str() {
            "UTC" => Ok(TimeZone::UTC),
            name => TimeZone::get(name).map_err(|_| {
                format!("zone {name:?} is not known here: use \"UTC\" or a name of the IANA database such as \"Europe/Berlin\"")
            }),
        }
    }

    /// How many names there may be.
    pub fn names(&self) -> Limits {
        let Bounds { devices, series, client_share, .. } = self.limits;
        Limits { devices, series, client_share }
    }

    /// The ingest rules, compiled.
    pub fn rules(&self) -> Result<Rules, String> {
        let given = if self.ingest.is_empty() { default_ingest() } else { self.ingest.clone() };
        let compile = |(i, rule): (usize, &Ingest)| {
            Rule::new(&rule.topic, rule.device.as_deref(), rule.metric.as_deref(), rule.format)
                .map_err(|e| format!("rule {} ({:?}): {e}", i + 1, rule.topic))
        };
        given.iter().enumerate().map(compile).collect::<Result<_, _>>().map(Rules)
    }

    /// How summaries are sent; `None` without a cloud.
    pub fn uplink(&self) -> Result<Option<UplinkOptions>, String> {
        let uplink = &self.uplink;
        if uplink.endpoints.is_empty() {
            return Ok(None);
        }
        let given = |path: &PathBuf| (!path.as_os_str().is_empty()).then(|| path.clone());
        let token = given(&uplink.token_file).map(|path| {
            let text = std::fs::read_to_string(&path);
            text.map(|text| text.trim().to_owned()).map_err(|e| format!("uplink.token_file {}: {e}", path.display()))
        });
        let endpoints: Result<Vec<Endpoint>, _> = uplink.endpoints.iter().map(|text| text.parse()).collect();
        Ok(Some(UplinkOptions {
            endpoints: endpoints.map_err(|e| e.to_string())?,
            balance: uplink.balance,
            in_order: uplink.order == Order::InOrder,
            token: token.transpose()?,
            tls: Tls { ca: given(&uplink.tls.ca), identity: given(&uplink.tls.cert).zip(given(&uplink.tls.key)) },
            in_flight: uplink.in_flight,
            batch: uplink.batch,
            catch_up: uplink.catch_up,
            jitter: uplink.jitter.0,
            heartbeat: uplink.heartbeat.0,
            timeout: uplink.timeout.0,
        }))
    }

    /// The users file.
    pub fn users_file(&self) -> PathBuf {
        self.gateway.data_dir.join(&self.auth.users)
    }

    /// How many threads serve MQTT connections.
    pub fn mqtt_threads(&self) -> usize {
        match self.mqtt.threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get().div_ceil(2)),
            n => n,
        }
    }
}

#[cfg(test)]
mod tests;
