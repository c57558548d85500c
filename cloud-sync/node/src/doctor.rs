//! What is wrong with a cloud, in words.
//!
//! Arrives: the configuration of a daemon that does not run. Leaves: facts and problems, each with
//! what to do. Always holds: nothing is changed, unless a map is to be made anew.

use super::config::Config;
use super::coordinator;
use super::intake::now_us;
use super::map::{Map, Member, Placing};
use super::rebuild::{Found, rebuild};
use super::settle::{Behind, behind};
use super::shard::deadline::within;
use super::shard::{Shard, ShardError, place};
use anyhow::{Context, Result};
use model::identity::SLOTS;
use std::collections::BTreeMap;
use std::sync::Arc;
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

/// Makes a map that is older than its shards, or lost, anew from what the shards know; returns what it did.
///
/// # Errors
/// If a shard does not answer, or shards are missing: nothing has been changed then.
pub async fn repair(config: &Config, none_missing: bool) -> Result<String> {
    let coordinator = coordinator::open(&config.cloud.coordinator, &config.cloud.data_dir).await?;
    let known = coordinator.read().await?;
    let map = known.as_ref().map(|(_, text)| Map::of_text(text)).transpose()?;
    let mut members = map.as_ref().map_or_else(BTreeMap::new, |map| map.shards.clone());
    // Those of the configuration may have been added since.
    let is_known = |member: &Member| map.as_ref().is_some_and(|map| map.shards.values().any(|of| of.url == member.url));
    let more = config.shards().into_iter().filter(|(_, member)| !is_known(member));
    members.extend(more.filter(|(_, member)| map.is_none() || place::is_there(&member.url, &config.cloud.data_dir)));
    let (mut found, mut placing) = (Vec::new(), Placing::GatewayAndDevice);
    for (name, member) in members {
        let shard = look_at(config, &member).with_context(|| format!("shard {name}"))?;
        let answer = async {
            let identity = shard.identity().await?;
            Ok::<_, ShardError>((identity, shard.fences().await?, placing_of(&*shard).await?))
        };
        let (identity, fences, placed) = answer.await.with_context(|| format!("shard {name}"))?;
        placing = placed.unwrap_or(placing);
        match identity {
            Some(identity) => found.push((Found { member, identity, fences }, shard)),
            None if map.is_some() => {}
            None => anyhow::bail!("what is at the place of shard {name} belongs to nobody: name the right place"),
        }
    }
    let (found, shards): (Vec<Found>, Vec<Arc<dyn Shard>>) = found.into_iter().unzip();
    let rebuilt = rebuild(map.as_ref(), &found, placing, none_missing, now_us()).map_err(anyhow::Error::msg)?;
    if rebuilt.slots.is_empty() {
        return Ok("the map is as young as its shards: nothing was changed".into());
    }
    let version = known.map(|(version, _)| version);
    let is_done = coordinator.swap(version, &rebuilt.map.to_text()).await?;
    anyhow::ensure!(is_done, "another daemon has changed the map: try again");
    for (found, shard) in found.iter().zip(&shards) {
        // Who does not hear it now hears it from the daemon.
        let of = || format!("shard {}", found.identity.shard);
        shard.set_fences(rebuilt.fences(found)).await.with_context(of)?;
        // Who owns a slot now may lack what another had got of it.
        shard.forget_batches().await.with_context(of)?;
    }
    let (cloud, slots) = (&rebuilt.map.cloud, rebuilt.slots.len());
    Ok(format!(
        "the map of cloud {cloud} was made anew from {} shards: {slots} slots; gateways send again what they keep",
        found.len()
    ))
}

/// What decides the slots of the devices that a shard has.
async fn placing_of(shard: &dyn Shard) -> Result<Option<Placing>, ShardError> {
    for slot in shard.inhabited((0..SLOTS).collect()).await? {
        if let Some(known) = shard.export_names(slot).await?.devices.first() {
            let all = [Placing::GatewayAndDevice, Placing::Device];
            return Ok(all.into_iter().find(|placing| placing.slot(&known.gateway, &known.device) == slot));
        }
    }
    Ok(None)
}

/// Looks at the map and at every shard.
pub async fn examine(config: &Config) -> Result<Findings> {
    let mut findings = Findings::default();
    let coordinator = coordinator::open(&config.cloud.coordinator, &config.cloud.data_dir).await?;
    let Some((version, text)) = coordinator.read().await? else {
        return without_map(config, findings).await;
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
            let what = if place::is_there(&member.url, &config.cloud.data_dir) {
                format!("shard {name}: {e}; its slots cannot be read or written until it is back")
            } else {
                format!("shard {name}: {e}; put it back before the daemon starts, which makes an empty one otherwise")
            };
            findings.problems.push(what);
        }
        let wrong = findings.problems.len() - before;
        let verdict = if wrong == 0 { "nothing is wrong".to_owned() } else { format!("{wrong} problems") };
        findings.facts.push(format!("shard {name}: {verdict}"));
    }
    Ok(findings)
}

/// There is none before the first start, or it is lost.
async fn without_map(config: &Config, mut findings: Findings) -> Result<Findings> {
    for (name, member) in config.shards() {
        let shard = look_at(config, &member);
        let of = match shard {
            Ok(shard) => shard.identity().await,
            Err(e) => Err(e),
        };
        match of {
            Ok(Some(of)) => findings.problems.push(format!(
                "there is no map, but shard {name} belongs to cloud {}: if the map is lost, make it anew with \
                 `tidegate-cloud doctor --repair`",
                of.cloud
            )),
            Ok(None) => findings.facts.push(format!("shard {name}: nobody's yet")),
            Err(_) if !place::is_there(&member.url, &config.cloud.data_dir) => {
                findings.facts.push(format!("shard {name}: not there yet"));
            }
            Err(e) => findings.problems.push(format!("shard {name}: {e}")),
        }
    }
    if findings.problems.is_empty() {
        findings.facts.push("there is no map yet: the first start makes one".into());
    }
    Ok(findings)
}

/// A shard as it is; whatever is not there is not made.
fn look_at(config: &Config, member: &Member) -> Result<Arc<dyn Shard>, ShardError> {
    if !place::is_there(&member.url, &config.cloud.data_dir) {
        return Err(ShardError::Down(format!(
            "there is no file {} in {}",
            member.url,
            config.cloud.data_dir.display()
        )));
    }
    place::open(&member.url, &config.cloud.data_dir, config.cloud.coordinator.is_shared(), None)
}

async fn examine_shard(
    config: &Config,
    map: &Map,
    name: &str,
    member: &Member,
    findings: &mut Findings,
) -> Result<(), ShardError> {
    let shard = look_at(config, member)?;
    let known = within(PATIENCE, shard.fences()).await?;
    if let Some(of) = shard.identity().await?.filter(|of| *of != map.identity(name)) {
        findings.problems.push(format!(
            "what is at the place of shard {name} is shard {} of cloud {}, and this is cloud {}: say where the shard is with \
             `shards set`, or put its backup there",
            of.shard, of.cloud, map.cloud
        ));
        return Ok(());
    }
    let Behind { older, ahead, .. } = behind(map, name, &known);
    let older = older.len();
    if older > 0 {
        findings.problems.push(format!(
            "shard {name} is older than the map in {older} slots: it has been restored, or is another database. At the next \
             start slots that have moved lately go back to their former owners, and for the others it takes what the \
             gateways still keep; what is older has to come from a younger backup"
        ));
    }
    if ahead > 0 {
        findings.problems.push(format!(
            "the map and shard {name} are not of one time: the shard is ahead in {ahead} slots; one of both has been put back \
             without the other, or two shards of the map are one database; make the map anew with `tidegate-cloud doctor \
             --repair`"
        ));
    }
    for what in shard.check().await? {
        findings.problems.push(format!("shard {name}: {what}"));
    }
    let (rows, bytes) = shard.size().await?;
    findings.facts.push(format!("shard {name}: {} slots, {rows} rows, {bytes} bytes", map.slots_of(name).len()));
    Ok(())
}
