//! `tidegate forget`: a device, or a metric of one, and all its readings.
//!
//! Arrives: a name. Leaves: a store without it; the cloud hears of it through the uplink. Always holds: a
//! gateway that runs is asked, one that does not is not needed; nothing goes before somebody has said so twice.

use crate::catalog::Catalog;
use crate::config::Config;
use crate::journal::changes::Recorder;
use crate::journal::recover::recover;
use crate::journal::removal;
use crate::journal::schema::{self, OpenError};
use anyhow::{Context, Result, bail, ensure};
use daemon::config::address;
use daemon::local::LocalToken;
use reqwest::{Client, Method, StatusCode, Url};
use serde_json::Value;
use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

/// What is to go, and how.
#[derive(Debug)]
pub struct Forget {
    /// The device.
    pub device: String,
    /// One metric of it, instead of all.
    pub metric: Option<String>,
    /// Somebody has said so already.
    pub yes: bool,
    /// Where a gateway that runs answers; its configuration says so too.
    pub url: Option<String>,
}

impl Forget {
    /// Does it, and says what has gone.
    pub fn run(&self, config: &Config, now_us: i64) -> Result<()> {
        let gone = match schema::open_existing(&config.gateway.data_dir) {
            Ok(store) => {
                let catalog = Catalog::new(config.names(), 0);
                let last_seq = recover(&store.connection, &catalog)?.last_seq;
                let known =
                    catalog.series_of(&self.device).map(|series| series.iter().map(|s| s.metric.to_string()).collect());
                self.confirm(known)?;
                let removed = catalog.remove(&self.device, self.metric.as_deref()).context("it has gone meanwhile")?;
                // Whatever this configuration says: a store that records has a cloud that has to hear of it.
                let records = schema::meta::<String>(&store.connection, "recording")?.is_some();
                let recorder = records.then(|| Recorder::new(&store.connection)).transpose()?;
                let births = catalog.take_births();
                removal::write_alone(&store.connection, &births, recorder, last_seq, now_us)?;
                removed.readings
            }
            Err(OpenError::InUse(_)) => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let _ = rustls::crypto::ring::default_provider().install_default();
                runtime.block_on(self.ask(config))?
            }
            Err(e) => return Err(e.into()),
        };
        println!("{} is removed, with {gone} readings", self.what());
        if !config.uplink.endpoints.is_empty() {
            println!("the cloud removes it too when it hears of it");
        }
        Ok(())
    }

    fn what(&self) -> String {
        match &self.metric {
            Some(metric) => format!("{metric} of {}", self.device),
            None => self.device.clone(),
        }
    }

    /// Asks whoever has not said so yet, if there is such a thing.
    fn confirm(&self, known: Option<Vec<String>>) -> Result<()> {
        let Some(metrics) = known else { bail!("there is no device {:?}", self.device) };
        let many = match &self.metric {
            Some(metric) if !metrics.contains(metric) => {
                bail!("{:?} has no metric {metric:?}, but {}", self.device, metrics.join(", "))
            }
            Some(_) => String::new(),
            None => format!(" and its {} metrics ({})", metrics.len(), metrics.join(", ")),
        };
        if self.yes {
            return Ok(());
        }
        let stdin = std::io::stdin();
        ensure!(stdin.is_terminal(), "nothing is removed without a word: add --yes");
        print!(
            "{}{many}: all readings go for good, here and in the cloud. Type the device's name to go on: ",
            self.what()
        );
        std::io::stdout().flush()?;
        let mut line = String::new();
        stdin.lock().read_line(&mut line)?;
        ensure!(line.trim_end_matches(['\r', '\n']) == self.device, "that is not its name: nothing is removed");
        Ok(())
    }

    /// Has the gateway do it that has the store.
    async fn ask(&self, config: &Config) -> Result<u64> {
        let own = self.url.is_none().then_some(&*config.gateway.data_dir);
        let url = match &self.url {
            Some(url) => url.clone(),
            None => {
                let listens = address(&config.http.listen).ok().flatten();
                let mut listens = listens.filter(|address| address.port() != 0).context(
                    "a gateway runs here, and http.listen does not say where it answers: give --url, or stop it first",
                )?;
                if listens.ip().is_unspecified() {
                    listens.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
                }
                format!("http://{listens}")
            }
        };
        let token = LocalToken::read("tidegate", own, &url);
        let http = Client::builder().timeout(Duration::from_secs(60)).build()?;
        let mut place =
            Url::parse(&url).with_context(|| format!("--url {url}: write for example http://127.0.0.1:8080"))?;
        let path = ["v1", "devices", &self.device];
        place.path_segments_mut().map_err(|()| anyhow::anyhow!("{url} has no path"))?.pop_if_empty().extend(path);
        let ask = async |method: Method, place: Url| -> Result<Option<Value>> {
            let mut request = http.request(method, place.clone()).header("accept", "application/json");
            if let Some(token) = &token {
                request = request.bearer_auth(token);
            }
            let response = request.send().await.with_context(|| format!("{place} does not answer"))?;
            let status = response.status();
            let answer: Value = serde_json::from_str(&response.text().await?).unwrap_or_default();
            match status {
                StatusCode::NOT_FOUND => Ok(None),
                status if status.is_success() => Ok(Some(answer)),
                status => bail!("{}", answer["detail"].as_str().unwrap_or(status.as_str())),
            }
        };
        let name = |metric: &Value| metric["metric"].as_str().unwrap_or_default().to_owned();
        let device = ask(Method::GET, place.clone()).await?;
        self.confirm(device.map(|device| device["metrics"].as_array().into_iter().flatten().map(name).collect()))?;
        if let (Some(metric), Ok(mut path)) = (&self.metric, place.path_segments_mut()) {
            path.extend(["metrics", metric]);
        }
        let gone = ask(Method::DELETE, place).await?.context("it has gone meanwhile")?;
        Ok(gone["readings"].as_u64().unwrap_or(0))
    }
}
