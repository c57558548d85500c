//! What is wrong with a cloud, in words.
//!
//! Arrives: the configuration of a daemon that does not run. Leaves: facts and problems, each with
//! what to do. Always holds: nothing is changed.

use super::config::Config;
use super::coordinator;
use super::map::Map;
use super::router::{behind, open_shard};
use anyhow::{Context, Result};

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
        let shard = match open_shard(name, member, &config.cloud.data_dir, config.cloud.coordinator != "sqlite") {
            Ok(shard) => shard,
            Err(e) => {
                findings.problems.push(format!("{e}; its slots cannot be read or written until it is back"));
                continue;
            }
        };
        let known = shard.fences().await.with_context(|| format!("shard {name}"))?;
        let behind = behind(&map, name, &known).older.len();
        if behind > 0 && !known.is_empty() {
            findings.problems.push(format!(
                "shard {name} is older than the map in {behind} slots: it has been restored. At the next start it takes what the \
                 gateways still keep; what is older has to come from a younger backup"
            ));
        }
        for what in shard.check().await.with_context(|| format!("shard {name}"))? {
            findings.problems.push(format!("shard {name}: {what}"));
        }
        let (rows, bytes) = shard.size().await.with_context(|| format!("shard {name}"))?;
        findings.facts.push(format!("shard {name}: {} slots, {rows} rows, {bytes} bytes", map.slots_of(name).len()));
    }
    Ok(findings)
}
