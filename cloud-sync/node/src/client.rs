//! The verbs that talk to a running daemon.

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;

/// A running daemon's HTTP interface.
pub struct Client {
    url: String,
    http: reqwest::Client,
    token: Option<String>,
}

impl Client {
    /// Of the daemon at `url`.
    pub fn new(url: &str, token: Option<String>) -> Result<Self> {
        let http = reqwest::Client::builder().timeout(Duration::from_secs(60)).build()?;
        Ok(Client { url: url.trim_end_matches('/').to_owned(), http, token })
    }

    async fn ask(&self, path: &str, body: Option<Value>) -> Result<Value> {
        let method = if body.is_some() { Method::POST } else { Method::GET };
        self.send(method, &[path], body).await
    }

    /// A request to a path, of which all but the first part may hold anything.
    async fn send(&self, method: Method, path: &[&str], body: Option<Value>) -> Result<Value> {
        let mut url = reqwest::Url::parse(&format!("{}{}", self.url, path[0]))
            .with_context(|| format!("--url {}: write for example http://127.0.0.1:8090", self.url))?;
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend(&path[1..]);
        }
        let mut request = self.http.request(method, url.clone());
        if let Some(body) = &body {
            request = request.json(body);
        }
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let response =
            request.send().await.with_context(|| format!("{url} does not answer: is tidegate-cloud running?"))?;
        let status = response.status();
        let text = response.text().await?;
        let answer: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        if !status.is_success() {
            bail!("{}", answer["detail"].as_str().unwrap_or(&text));
        }
        Ok(answer)
    }

    /// `shards list`.
    pub async fn list(&self) -> Result<()> {
        let answer = self.ask("/v1/shards", None).await?;
        println!("{:<16} {:>6} {:>6} {:>7} {:>12} {:>14}  url", "shard", "weight", "slots", "share", "rows", "bytes");
        for row in answer["rows"].as_array().into_iter().flatten() {
            let text = |key: &str| row[key].as_str().unwrap_or("-").to_owned();
            let number = |key: &str| row[key].as_u64().map_or_else(|| "-".into(), |n| n.to_string());
            let share = row["share"].as_f64().unwrap_or(0.0) * 100.0;
            let up = if row["up"] == true { "" } else { "  DOWN: " };
            let error = row["error"].as_str().unwrap_or("");
            println!(
                "{:<16} {:>6} {:>6} {share:>6.1}% {:>12} {:>14}  {}{up}{error}",
                text("name"),
                number("weight"),
                number("slots"),
                number("rows"),
                number("bytes"),
                text("url")
            );
        }
        Ok(())
    }

    /// `shards add`, `shards drain`, `shards weight`, `shards remove`.
    pub async fn change(&self, change: Value) -> Result<()> {
        let answer = self.ask("/v1/shards", Some(change)).await?;
        match answer["would_move"].as_u64() {
            Some(0) => println!("done; nothing has to move"),
            Some(n) => println!(
                "done; {n} slots would move: see `tidegate-cloud rebalance --plan`, then run `tidegate-cloud rebalance`"
            ),
            None => println!("done"),
        }
        Ok(())
    }

    /// `moves list`.
    pub async fn moves(&self) -> Result<()> {
        let moves = self.ask("/v1/moves", None).await?;
        let under_way = moves["under_way"].as_array().map_or(0, Vec::len);
        println!(
            "{under_way} slots on their way, {} to go, {} kept by former owners",
            moves["slots_to_go"], moves["leftovers"]
        );
        let daemon = &moves["this_daemon"];
        let phase = daemon["phase"].as_str().filter(|phase| !phase.is_empty()).unwrap_or("idle");
        println!(
            "this daemon: {phase}, {} slots moved, {} rows copied, {} rows/s",
            daemon["slots_moved"], daemon["rows_copied"], daemon["rows_per_s"]
        );
        if let Some(error) = daemon["last_error"].as_str() {
            println!("last error: {error}");
        }
        Ok(())
    }

    /// `moves cancel`.
    pub async fn cancel(&self) -> Result<()> {
        let answer = self.send(Method::DELETE, &["/v1/moves"], None).await?;
        println!("{} slots stay where they were; nothing moves before `rebalance`", answer["stopped"]);
        Ok(())
    }

    /// `gateways list`.
    pub async fn gateways(&self) -> Result<()> {
        let answer = self.ask("/v1/gateways", None).await?;
        for missing in answer["missing"].as_array().into_iter().flatten() {
            let text = |key: &str| missing[key].as_str().unwrap_or("?").to_owned();
            println!("shard {} does not answer ({}): gateways of it are missing here", text("shard"), text("why"));
        }
        println!("{:<24} {:<30} {:>8}  {:<12} clock", "gateway", "last seen", "backlog", "version");
        for row in answer["rows"].as_array().into_iter().flatten() {
            let text = |key: &str| row[key].as_str().unwrap_or("-").to_owned();
            let silent = match (&row["disputed"], &row["silent"]) {
                (Value::Bool(true), _) => "  DISPUTED: two stores send under this id",
                (_, Value::Bool(true)) => "  SILENT",
                _ => "",
            };
            let offset_s = row["clock_offset_s"].as_f64().unwrap_or(0.0);
            println!(
                "{:<24} {:<30} {:>8}  {:<12} {offset_s:+.1} s{silent}",
                text("id"),
                text("last_seen"),
                row["backlog"].to_string(),
                text("version")
            );
        }
        Ok(())
    }

    /// `gateways accept`, `gateways forget`.
    pub async fn gateway(&self, gateway: &str, wholly: bool) -> Result<()> {
        if wholly {
            self.send(Method::DELETE, &["/v1/gateways", gateway], None).await?;
            println!("{gateway} is forgotten; what it has sent stays");
        } else {
            self.send(Method::POST, &["/v1/gateways", gateway, "accept"], None).await?;
            println!("whoever sends next as {gateway} is taken");
        }
        Ok(())
    }

    /// `placement DEVICE [--gateway ID]`.
    pub async fn placement(&self, device: &str, gateway: Option<&str>) -> Result<()> {
        let asked = [("device", Some(device)), ("gateway", gateway)];
        let asked = asked.into_iter().filter_map(|(key, value)| Some((key, value?)));
        let query = reqwest::Url::parse_with_params("http://x/v1/placement", asked)?;
        let answer = self.ask(&format!("{}?{}", query.path(), query.query().unwrap_or_default()), None).await?;
        for row in answer["rows"].as_array().into_iter().flatten() {
            let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
            let (gateway, device, shard) = (text("gateway"), text("device"), text("shard"));
            print!("{gateway} {device}: slot {}, {shard}, epoch {}", row["slot"], row["epoch"]);
            match row["moving_to"].as_str() {
                Some(to) => println!(", moving to {to}"),
                None => println!(),
            }
        }
        Ok(())
    }

    /// `rebalance --plan`: what would move, and why.
    pub async fn plan(&self) -> Result<()> {
        let shards = self.ask("/v1/shards", None).await?;
        let rows: Vec<&Value> = shards["rows"].as_array().into_iter().flatten().collect();
        let total: u64 = rows.iter().filter_map(|row| row["weight"].as_u64()).sum();
        let slots: u64 = rows.iter().filter_map(|row| row["slots"].as_u64()).sum();
        for row in &rows {
            let (weight, has) = (row["weight"].as_u64().unwrap_or(0), row["slots"].as_u64().unwrap_or(0));
            let wants = slots as f64 * weight as f64 / total.max(1) as f64;
            println!(
                "{}: weight {weight} of {total}, has {has} slots, shall have {wants:.0}",
                row["name"].as_str().unwrap_or("?")
            );
        }
        let moves = self.ask("/v1/moves", None).await?;
        for row in moves["plan"].as_array().into_iter().flatten() {
            let text = |key: &str| row[key].as_str().unwrap_or("?").to_owned();
            println!("{} slots from {} to {}", row["slots"], text("from"), text("to"));
        }
        println!("{} of {slots} slots would move", moves["slots_to_go"]);
        Ok(())
    }

    /// `rebalance`: starts it and shows how far it has got until it is done.
    pub async fn rebalance(&self, wait: bool) -> Result<()> {
        let moves = self.ask("/v1/moves", None).await?;
        let total = moves["slots_to_go"].as_u64().unwrap_or(0);
        self.ask("/v1/moves", Some(json!({}))).await?;
        if !wait {
            println!("{total} slots are to move: see `tidegate-cloud rebalance --plan` and /v1/moves");
            return Ok(());
        }
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} slots  {msg}  {elapsed}")
            .expect("the template is right");
        let bar = ProgressBar::new(total).with_style(style);
        let left = loop {
            // A daemon that restarts meanwhile goes on.
            match self.ask("/v1/moves", None).await {
                Ok(moves) => {
                    let left = moves["slots_to_go"].as_u64().unwrap_or(0);
                    bar.set_position(total.saturating_sub(left));
                    bar.set_message(moves["this_daemon"]["phase"].as_str().unwrap_or_default().to_owned());
                    if moves["rebalancing"] == false {
                        break left;
                    }
                }
                Err(e) => bar.set_message(e.to_string()),
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        };
        let moved = total.saturating_sub(left);
        if left > 0 {
            bar.abandon_with_message("stopped");
            anyhow::bail!("{moved} slots have moved, and {left} are left: somebody has stopped it");
        }
        bar.finish_with_message("done");
        println!("{moved} slots have moved");
        Ok(())
    }
}
