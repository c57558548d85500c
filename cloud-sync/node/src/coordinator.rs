//! Where the map lives.
//!
//! A coordinator keeps one document, changed by compare-and-set, and one lease, held by the
//! daemon that moves slots. Always holds: neither decides anything about data; whoever acts on
//! an old map, or still thinks that it holds the lease, is refused by the shards.

/// etcd.
mod etcd;
/// A database.
mod postgres;
/// A file, for one daemon.
mod sqlite;

use crate::shard::place;
use async_trait::async_trait;
pub(crate) use etcd::Etcd;
pub(crate) use postgres::Postgres;
use serde::{Deserialize, Serialize};
pub(crate) use sqlite::Sqlite;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Why the coordinator did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator cannot be used: {0}")]
pub struct CoordinatorError(pub String);

/// One document and one lease.
#[async_trait]
pub(crate) trait Coordinator: Send + Sync + 'static {
    /// The document with its version; `None` before there is one.
    async fn read(&self) -> Result<Option<(u64, String)>, CoordinatorError>;

    /// Replaces the document of a version; `None`: there must be none yet. False if another was
    /// quicker.
    async fn swap(&self, version: Option<u64>, document: &str) -> Result<bool, CoordinatorError>;

    /// Takes or keeps the lease; false if another holds it.
    async fn lead(&self, who: &str, ttl: Duration) -> Result<bool, CoordinatorError>;

    /// Lets the lease go.
    async fn resign(&self, who: &str) -> Result<(), CoordinatorError>;

    /// Returns when the document may have another version.
    async fn changed(&self, version: u64);
}

/// Which coordinator, as it is written in a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum CoordinatorUrl {
    /// `sqlite`: a file in the data directory, for one daemon.
    Sqlite,
    /// `postgres://USER:PASSWORD@HOST/DATABASE`.
    Postgres(String),
    /// `etcd://HOST:PORT,HOST:PORT/PREFIX`; `etcds://` speaks TLS.
    Etcd {
        /// Whether it is `etcds://`.
        has_tls: bool,
        /// Each as `HOST:PORT`.
        members: Vec<String>,
        /// Of its keys.
        prefix: String,
    },
}

impl CoordinatorUrl {
    /// True where several daemons share one map.
    pub(crate) fn is_shared(&self) -> bool {
        *self != CoordinatorUrl::Sqlite
    }
}

impl TryFrom<String> for CoordinatorUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        const WANTED: &str =
            "write \"sqlite\", \"postgres://USER:PASSWORD@HOST/DATABASE\" or \"etcd://HOST:PORT,HOST:PORT/PREFIX\"";
        match text.split_once("://") {
            None if text == "sqlite" => Ok(CoordinatorUrl::Sqlite),
            Some(("postgres" | "postgresql", _)) => {
                place::check(&text)?;
                Ok(CoordinatorUrl::Postgres(text))
            }
            Some((scheme @ ("etcd" | "etcds"), rest)) => {
                let (members, prefix) = rest.split_once('/').unwrap_or((rest, "tidegate"));
                let members: Vec<String> =
                    members.split(',').filter(|member| !member.is_empty()).map(str::to_owned).collect();
                match members.iter().find(|member| reqwest::Url::parse(&format!("http://{member}")).is_err()) {
                    Some(bad) => Err(format!("{bad:?} is not HOST:PORT: {WANTED}")),
                    None if members.is_empty() => Err(format!("there is no member of etcd: {WANTED}")),
                    None => Ok(CoordinatorUrl::Etcd {
                        has_tls: scheme == "etcds",
                        members,
                        prefix: prefix.trim_matches('/').to_owned(),
                    }),
                }
            }
            _ => Err(format!("{:?} is not a coordinator: {WANTED}", place::hidden(&text))),
        }
    }
}

impl From<CoordinatorUrl> for String {
    fn from(url: CoordinatorUrl) -> Self {
        match url {
            CoordinatorUrl::Sqlite => "sqlite".into(),
            CoordinatorUrl::Postgres(url) => url,
            CoordinatorUrl::Etcd { has_tls, members, prefix } => {
                format!("{}://{}/{prefix}", if has_tls { "etcds" } else { "etcd" }, members.join(","))
            }
        }
    }
}

/// The document with its version, without taking the map from a daemon that uses it.
pub(crate) async fn look(url: &CoordinatorUrl, directory: &Path) -> Result<Option<(u64, String)>, CoordinatorError> {
    match url {
        CoordinatorUrl::Sqlite => Sqlite::look(directory),
        other => open(other, directory).await?.read().await,
    }
}

/// Opens the coordinator of a configuration.
pub(crate) async fn open(url: &CoordinatorUrl, directory: &Path) -> Result<Arc<dyn Coordinator>, CoordinatorError> {
    Ok(match url {
        CoordinatorUrl::Sqlite => Arc::new(Sqlite::open(directory)?),
        CoordinatorUrl::Postgres(url) => {
            let pool = crate::shard::postgres::pool(url).map_err(|e| CoordinatorError(e.to_string()))?;
            Arc::new(Postgres::open(pool).await?)
        }
        CoordinatorUrl::Etcd { has_tls, members, prefix } => Arc::new(Etcd::new(*has_tls, members, prefix)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinator_is_written_as_it_was_read_and_mistakes_are_named() {
        for text in ["sqlite", "postgres://u:p@h/d", "etcd://a:1,b:2/x", "etcds://a:1/tidegate"] {
            assert_eq!(String::from(CoordinatorUrl::try_from(text.to_owned()).unwrap()), text);
        }
        for (text, said) in [
            ("zookeeper", "not a coordinator"),
            ("zk://u:secret@h", "zk://u@h"),
            ("etcd://", "no member"),
            ("etcd://a:x/y", "a:x"),
            ("postgres://h:port/d", "port"),
        ] {
            let error = CoordinatorUrl::try_from(text.to_owned()).unwrap_err();
            assert!(error.contains(said) && !error.contains("secret"), "{text}: {error}");
        }
    }
}
