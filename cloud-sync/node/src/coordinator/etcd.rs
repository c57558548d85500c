//! etcd, over its JSON gateway (API v3): consensus is etcd's.
//!
//! The map is one key, whose modification revision is its version; the lease is a key bound to
//! an etcd lease. Any of several members is asked.

use super::{Coordinator, CoordinatorError};
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(3);
/// How long one watch is kept open.
const WATCH: Duration = Duration::from_secs(30);
/// Before a watch that failed is begun anew.
const PAUSE: Duration = Duration::from_secs(1);

/// The map in etcd.
pub(crate) struct Etcd {
    members: Vec<String>,
    prefix: String,
    http: reqwest::Client,
    /// The etcd lease that this daemon's leadership is bound to.
    lease: Mutex<Option<String>>,
}

fn failed(e: impl std::fmt::Display) -> CoordinatorError {
    CoordinatorError(format!("etcd: {e}"))
}

fn encoded(text: &str) -> String {
    STANDARD.encode(text)
}

fn decoded(value: &Value) -> Option<String> {
    String::from_utf8(STANDARD.decode(value.as_str()?).ok()?).ok()
}

/// etcd writes 64-bit numbers as texts.
fn number(value: &Value) -> Option<u64> {
    value.as_str().map_or_else(|| value.as_u64(), |text| text.parse().ok())
}

impl Etcd {
    /// Members, each as `HOST:PORT`, and what keys begin with.
    pub(crate) fn new(has_tls: bool, members: &[String], prefix: &str) -> Result<Self, CoordinatorError> {
        let scheme = if has_tls { "https" } else { "http" };
        let members = members.iter().map(|member| format!("{scheme}://{member}")).collect();
        let http = reqwest::Client::builder().connect_timeout(TIMEOUT).build().map_err(failed)?;
        Ok(Etcd { members, prefix: prefix.to_owned(), http, lease: Mutex::default() })
    }

    fn key(&self, name: &str) -> String {
        encoded(&format!("{}/{name}", self.prefix))
    }

    /// Asks one member after the other until one answers.
    async fn ask(&self, path: &str, body: &Value) -> Result<Value, CoordinatorError> {
        let mut last = failed("no member");
        for member in &self.members {
            let asked = self.http.post(format!("{member}/v3/{path}")).timeout(TIMEOUT).json(body).send().await;
            match asked {
                Ok(response) if response.status().is_success() => return response.json().await.map_err(failed),
                Ok(response) => {
                    let status = response.status();
                    last = failed(format!("{member}: {status}: {}", response.text().await.unwrap_or_default()));
                }
                Err(e) => last = failed(format!("{member}: {e}")),
            }
        }
        Err(last)
    }

    async fn granted(&self, ttl: Duration) -> Result<String, CoordinatorError> {
        let answer = self.ask("lease/grant", &json!({"TTL": ttl.as_secs()})).await?;
        number(&answer["ID"]).map(|id| id.to_string()).ok_or_else(|| failed("no lease was granted"))
    }

    fn held(&self) -> Option<String> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn hold(&self, lease: Option<String>) {
        *self.lease.lock().unwrap_or_else(PoisonError::into_inner) = lease;
    }
}

#[async_trait]
impl Coordinator for Etcd {
    async fn read(&self) -> Result<Option<(u64, String)>, CoordinatorError> {
        // Linearizable, which is etcd's default.
        let answer = self.ask("kv/range", &json!({"key": self.key("map")})).await?;
        let Some(found) = answer["kvs"].get(0) else { return Ok(None) };
        let document = decoded(&found["value"]).ok_or_else(|| failed("the map is no text"))?;
        let version = number(&found["mod_revision"]).ok_or_else(|| failed("the map has no revision"))?;
        Ok(Some((version, document)))
    }

    async fn swap(&self, version: Option<u64>, document: &str) -> Result<bool, CoordinatorError> {
        let key = self.key("map");
        let compare = match version {
            None => json!({"key": key, "target": "CREATE", "create_revision": "0", "result": "EQUAL"}),
            Some(version) => {
                json!({"key": key, "target": "MOD", "mod_revision": version.to_string(), "result": "EQUAL"})
            }
        };
        let put = json!({"request_put": {"key": key, "value": encoded(document)}});
        let answer = self.ask("kv/txn", &json!({"compare": [compare], "success": [put]})).await?;
        Ok(answer["succeeded"] == true)
    }

    async fn lead(&self, who: &str, ttl: Duration) -> Result<bool, CoordinatorError> {
        let key = self.key("leader");
        if let Some(lease) = self.held() {
            let kept = self.ask("lease/keepalive", &json!({"ID": lease})).await?;
            let found = self.ask("kv/range", &json!({"key": key})).await?;
            let is_ours = decoded(&found["kvs"][0]["value"]).as_deref() == Some(who);
            if is_ours && number(&kept["result"]["TTL"]).is_some_and(|ttl| ttl > 0) {
                return Ok(true);
            }
            self.hold(None);
        }
        let lease = self.granted(ttl).await?;
        let compare = json!({"key": key, "target": "CREATE", "create_revision": "0", "result": "EQUAL"});
        let put = json!({"request_put": {"key": key, "value": encoded(who), "lease": lease}});
        let answer = self.ask("kv/txn", &json!({"compare": [compare], "success": [put]})).await?;
        if answer["succeeded"] == true {
            self.hold(Some(lease));
            return Ok(true);
        }
        let _ = self.ask("lease/revoke", &json!({"ID": lease})).await;
        Ok(false)
    }

    async fn resign(&self, _who: &str) -> Result<(), CoordinatorError> {
        let held = self.held();
        self.hold(None);
        match held {
            Some(lease) => self.ask("lease/revoke", &json!({"ID": lease})).await.map(drop),
            None => Ok(()),
        }
    }

    async fn changed(&self, version: u64) {
        let request = json!({"create_request": {"key": self.key("map"), "start_revision": (version + 1).to_string()}});
        for member in &self.members {
            let watch = self.http.post(format!("{member}/v3/watch")).timeout(WATCH).json(&request).send().await;
            let Ok(mut response) = watch else { continue };
            // The first message says that the watch has begun; the next one that there is a change.
            while let Ok(Some(chunk)) = response.chunk().await {
                if String::from_utf8_lossy(&chunk).contains("\"events\"") {
                    return;
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
