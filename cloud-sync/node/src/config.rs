//! What a person can turn.
//!
//! Always holds: the defaults equal the shipped `configs/cloud.toml` (a test compares them), and
//! an unknown key is an error. The field docs are the reference manual.

use super::coordinator::CoordinatorUrl;
use super::map::Member;
use super::shard::place;
use daemon::config::{Options, Span, address};
use placement::Shard;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The whole configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The daemon itself.
    pub cloud: Cloud,
    /// The HTTP listener.
    pub http: Http,
    /// Who may come in.
    pub auth: Auth,
    /// Bounds on a question.
    pub query: Query,
    /// How slots move.
    #[serde(rename = "move")]
    pub moving: Moving,
    /// How long things are kept.
    pub retention: Retention,
}

/// The daemon itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cloud {
    /// The directory of the map, the SQLite shards and the users file; created if missing.
    pub data_dir: PathBuf,
    /// Address and port for gRPC pushes; port 0 picks a free one; empty turns gRPC off.
    pub listen: String,
    /// Lets gateways without a token in, also from other machines.
    pub allow_anonymous: bool,
    /// TLS for gRPC.
    pub tls: GrpcTls,
    /// The shards that the first map is made of: "sqlite:FILE", relative to the data directory, or "postgres://USER:PASSWORD@HOST/DATABASE"; "NAME=..." names one, else they are called shard-000 and so on. Later ones are added with `tidegate-cloud shards add`.
    pub shards: Vec<String>,
    /// Where the map lives: "sqlite" (in the data directory, for one daemon), "postgres://USER:PASSWORD@HOST/DATABASE" or "etcd://HOST:PORT,HOST:PORT/PREFIX", which several daemons share; their shards are then all in PostgreSQL. A new one takes over the map of the data directory, if there is one.
    pub coordinator: CoordinatorUrl,
    /// gRPC connections at once; an address may have as many as are free.
    pub max_connections: usize,
    /// Pushes at once, of all gateways; one more is asked to wait.
    pub max_pushes: usize,
    /// Pushes that a gateway may have under way.
    pub in_flight: u32,
}

/// TLS for gRPC.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GrpcTls {
    /// The server's certificate chain, in PEM; empty means no TLS.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Certificates that sign those of gateways, in PEM: then a gateway needs one whose common name or DNS name is its id. Empty asks for none.
    pub client_ca: PathBuf,
}

/// TLS for HTTP.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpTls {
    /// The server's certificate chain, in PEM; empty means no TLS.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
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
    /// Origins whose pages may read and write here, for example "https://dash.example"; none by default.
    pub origins: Vec<String>,
    /// TLS for HTTP.
    pub tls: HttpTls,
}

/// Who may come in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// The users file that `tidegate-cloud user add` writes; relative to the data directory. A gateway's user is called as its id.
    pub users: PathBuf,
    /// Users who may add, drain and move shards, beside those with the role "admin". Whoever can read `admin.token` in the data directory may, too: the verbs of this machine use it.
    pub admins: Vec<String>,
}

/// Bounds on a question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Query {
    /// Windows of groups in one answer, before paging; a question with more is refused.
    pub cells: usize,
    /// How long a shard may take for its part; then it counts as down.
    pub timeout: Span,
    /// Questions answered at once; the others wait.
    pub concurrency: usize,
}

/// How slots move from shard to shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Moving {
    /// Slots that move at once.
    pub slots: usize,
    /// Rows in one copy.
    pub rows: usize,
    /// How long the former owner keeps what has moved: should the new one be put back to an earlier state, slots go back whole.
    pub grace: Span,
}

/// How long things are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Summaries as gateways send them, counted from their receipt; hours and days are kept. "0s" keeps them for ever.
    pub summaries: Span,
}

impl Default for Cloud {
    fn default() -> Self {
        Cloud {
            data_dir: "tidegate-cloud".into(),
            listen: "127.0.0.1:7443".into(),
            allow_anonymous: false,
            tls: GrpcTls::default(),
            shards: vec!["sqlite:shard-000.db".into(), "sqlite:shard-001.db".into()],
            coordinator: CoordinatorUrl::Sqlite,
            max_connections: 20_000,
            max_pushes: 64,
            in_flight: 8,
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Http {
            listen: "127.0.0.1:8090".into(),
            allow_anonymous: false,
            max_connections: 512,
            hosts: Vec::new(),
            origins: Vec::new(),
            tls: HttpTls::default(),
        }
    }
}

impl Default for Auth {
    fn default() -> Self {
        Auth { users: "users.toml".into(), admins: vec!["admin".into()] }
    }
}

impl Default for Query {
    fn default() -> Self {
        Query { cells: 500_000, timeout: Span::seconds(30), concurrency: 4 }
    }
}

impl Default for Moving {
    fn default() -> Self {
        Moving { slots: 64, rows: 2_000, grace: Span::seconds(2 * 86_400) }
    }
}

impl Default for Retention {
    fn default() -> Self {
        Retention { summaries: Span::seconds(0) }
    }
}

impl Options for Config {
    const DEFAULT_FILE: &'static str = "tidegate-cloud.toml";

    fn validate(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut wrong = |key: &str, what: String| problems.push((key.to_owned(), what));
        for (key, listen) in [("cloud.listen", &self.cloud.listen), ("http.listen", &self.http.listen)] {
            if let Err(what) = address(listen) {
                wrong(key, what);
            }
        }
        if self.shards().len() != self.cloud.shards.len() || self.cloud.shards.is_empty() {
            wrong("cloud.shards", "there must be at least one, each with a name of its own".into());
        }
        // The default shards are those of one daemon; which ones several have is said once, or known to their map.
        let is_own = self.cloud.shards != Cloud::default().shards;
        for (name, member) in self.shards() {
            if let Err(what) = place::check(&member.url) {
                wrong("cloud.shards", format!("shard {name}: {what}"));
            } else if is_own && self.cloud.coordinator.is_shared() && member.url.starts_with("sqlite:") {
                wrong("cloud.shards", format!("shard {name}: {}", place::FOR_ONE));
            }
        }
        let given = |path: &PathBuf| !path.as_os_str().is_empty();
        for (key, cert, private) in [
            ("cloud.tls.cert", &self.cloud.tls.cert, &self.cloud.tls.key),
            ("http.tls.cert", &self.http.tls.cert, &self.http.tls.key),
        ] {
            if given(cert) != given(private) {
                wrong(key, "needs the key beside it, and the other way round".into());
            }
        }
        if given(&self.cloud.tls.client_ca) && !given(&self.cloud.tls.cert) {
            wrong("cloud.tls.client_ca", "needs cloud.tls.cert and cloud.tls.key".into());
        }
        for (key, n) in [
            ("cloud.max_connections", self.cloud.max_connections),
            ("http.max_connections", self.http.max_connections),
            ("cloud.max_pushes", self.cloud.max_pushes),
            ("cloud.in_flight", self.cloud.in_flight as usize),
            ("query.cells", self.query.cells),
            ("query.concurrency", self.query.concurrency),
            ("move.slots", self.moving.slots),
            ("move.rows", self.moving.rows),
        ] {
            if n == 0 {
                wrong(key, "must be at least 1".into());
            }
        }
        problems
    }
}

impl Config {
    /// The shards of the first map.
    pub fn shards(&self) -> BTreeMap<Shard, Member> {
        let member = |(n, text): (usize, &String)| {
            let named = text.split_once('=').filter(|(name, _)| !name.contains(':'));
            let (name, url) = named.map_or((format!("shard-{n:03}"), text.as_str()), |(name, url)| (name.into(), url));
            (name, Member { url: url.to_owned(), weight: 1 })
        };
        self.cloud.shards.iter().enumerate().map(member).collect()
    }

    /// The users file.
    pub fn users_file(&self) -> PathBuf {
        self.cloud.data_dir.join(&self.auth.users)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use daemon::config::load;

    #[test]
    fn the_shipped_file_equals_the_defaults_and_names_every_key() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/cloud.toml");
        let shipped: Config = load(Some(path.as_ref()), Vec::new(), &[]).unwrap();
        assert_eq!(shipped, Config::default());
        let text = std::fs::read_to_string(path).unwrap();
        let mut sections = vec![(String::new(), serde_json::to_value(Config::default()).unwrap())];
        while let Some((prefix, section)) = sections.pop() {
            for (key, value) in section.as_object().unwrap() {
                let whole = format!("{prefix}{key}");
                if value.is_object() {
                    assert!(text.contains(&format!("[{whole}]")), "{whole}");
                    sections.push((format!("{whole}."), value.clone()));
                } else {
                    assert!(text.lines().any(|line| line.starts_with(&format!("{key} ="))), "{whole}");
                }
            }
        }
    }

    #[test]
    fn shards_have_names() {
        let cloud = Cloud { shards: vec!["a=sqlite:x.db".into(), "postgres://u:p@h/d?x=1".into()], ..Cloud::default() };
        let shards = Config { cloud, ..Config::default() }.shards();
        assert_eq!(shards["a"].url, "sqlite:x.db");
        assert_eq!(shards["shard-001"].url, "postgres://u:p@h/d?x=1");
    }
}
