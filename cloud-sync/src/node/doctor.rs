//! What is wrong with a cloud, in words.
//!
//! Arrives: the configuration of a daemon that does not run. Leaves: facts and problems, each with
//! what to do. Always holds: nothing is changed.

use super::config::Config;
use super::coordinator;
use super::map::{Map, Member};
use super::router::{behind, open_shard};
use super::shard::{Fence, ShardError, State};
use anyhow::Result;
use std::time::Duration;

/// How long a shard may take until it answers at all; looking at all of it may take longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was found.
#[derive(Debug, Default)]
pub struct Findings {
    /// What there is.
    pub facts: Vec<String>,
    /// What is wrong, and what to do.
    pub problems: Vec<String>,
}

/// Looks at the map and at every shard.
pub async fn examine(config: &Config) -> Result<Findings> {
    let mut findings = Findings::default();
    let coordinator = coordinator::open(&config.cloud.coordinator, &config.cloud.data_dir).await?;
    let Some((version, text)) = coordinator.read().await? else {
        findings.facts.push("there is no map yet: the first start makes one".into());
        return Ok(findings);
    };
    let map = Map::of_text(&text)?;
    drop(coordinator);
    findings.facts.push(format!(
        "map version {version}: {} shards, {} slots on their way",
        map.shards.len(),
        map.transits.len()
    ));
    for (name, member) in &map.shards {
        let before = findings.problems.len();
        if let Err(e) = examine_shard(config, &map, name, member, &mut findings).await {
            let what = format!("shard {name}: {e}; its slots cannot be read or written until it is back");
            findings.problems.push(what);
        }
        let wrong = findings.problems.len() - before;
        let verdict = if wrong == 0 { "nothing is wrong".to_owned() } else { format!("{wrong} problems") };
        findings.facts.push(format!("shard {name}: {verdict}"));
    }
    Ok(findings)
}

async fn examine_shard(
    config: &Config,
    map: &Map,
    name: &str,
    member: &Member,
    findings: &mut Findings,
) -> Result<(), ShardError> {
    let shard = open_shard(name, member, &config.cloud.data_dir, config.cloud.coordinator != "sqlite");
    let shard = shard.map_err(|e| ShardError::Down(e.to_string()))?;
    let silent = |_| ShardError::Down(format!("no answer within {} s", PATIENCE.as_secs()));
    let known = tokio::time::timeout(PATIENCE, shard.fences()).await.map_err(silent)??;
    let older = behind(map, name, &known).older.len();
    if older > 0 {
        findings.problems.push(format!(
            "shard {name} is older than the map in {older} slots: it has been restored, or is another database. At the next \
             start slots that have moved lately go back to their former owners, and for the others it takes what the \
             gateways still keep; what is older has to come from a younger backup"
        ));
    }
    let ahead = |fence: &&Fence| fence.epoch > map.table.slot(fence.slot).epoch + 1;
    let ahead = known.iter().filter(ahead).count();
    if ahead > 0 {
        findings.problems.push(format!(
            "the map is older than shard {name} in {ahead} slots: it has been restored without its shards; put the map of \
             the same time back"
        ));
    }
    let stray = |fence: &&Fence| {
        let slot = map.table.slot(fence.slot);
        fence.state == State::Open && slot.owner != name && fence.epoch >= slot.epoch
    };
    let stray = known.iter().filter(stray).count();
    if stray > 0 {
        findings.problems.push(format!(
            "shard {name} takes {stray} slots for its own that the map gives to others: map and shards are not of one time"
        ));
    }
    let shut = |fence: &&Fence| {
        let slot = map.table.slot(fence.slot);
        let is_own = slot.owner == name && !map.transits.contains_key(&fence.slot);
        is_own && fence.state == State::Closed && fence.epoch >= slot.epoch
    };
    let shut = known.iter().filter(shut).count();
    if shut > 0 {
        findings.problems.push(format!(
            "shard {name} has closed {shut} slots that the map gives to it: two shards of the map may be one database, or map \
             and shards are not of one time"
        ));
    }
    for what in shard.check().await? {
        findings.problems.push(format!("shard {name}: {what}"));
    }
    let (rows, bytes) = shard.size().await?;
    findings.facts.push(format!("shard {name}: {} slots, {rows} rows, {bytes} bytes", map.slots_of(name).len()));
    Ok(())
}
