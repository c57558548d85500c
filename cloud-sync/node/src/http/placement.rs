//! `/v1/shards`, `/v1/placement`, `/v1/moves`.

use super::Shared;
use crate::map::{Map, Member, Placing};
use crate::router::View;
use crate::settle::behind;
use crate::shard::deadline::within;
use crate::shard::place::{hidden, is_there};
use crate::shard::{Identity, Shard, ShardError, State as SlotState};
use crate::{mover, query};
use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use daemon::http::params::Params;
use daemon::http::reply::{Problem, json};
use futures_util::future::join_all;
use model::check_name;
use model::identity::SLOTS;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// How long a shard may take to say how large it is.
const SIZE_TIMEOUT: Duration = Duration::from_secs(5);
/// Gateways with a device of one name that are listed.
const GATEWAYS_MAX: usize = 1_000;

fn unavailable(e: impl std::fmt::Display) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, e.to_string())
}

/// `GET /v1/shards`: who there is, with what share.
pub(super) async fn shards(State(site): State<Shared>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    Params::read(query.as_deref(), &[])?;
    site.router.refresh().await.map_err(unavailable)?;
    let view = site.router.view();
    let counts = view.map.table.counts();
    // One that hangs keeps nobody from seeing the others.
    let sizes = view.map.shards.keys().map(|name| within(SIZE_TIMEOUT, async { view.shard(name)?.size().await }));
    let mut rows = Vec::new();
    for ((name, member), size) in view.map.shards.iter().zip(join_all(sizes).await) {
        let slots = counts.get(name).copied().unwrap_or(0);
        rows.push(json!({
            "name": name, "url": hidden(&member.url), "weight": member.weight, "slots": slots,
            "share": slots as f64 / f64::from(SLOTS),
            "rows": size.as_ref().ok().map(|size| size.0), "bytes": size.as_ref().ok().map(|size| size.1),
            "up": size.is_ok(), "error": size.err().map(|e| e.to_string()),
        }));
    }
    Ok(json(&json!({"map_version": view.version, "rows": rows})))
}

/// What is to become of a shard.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    name: String,
    /// Adds one, or says where one that is there is now: a new host, or a new password.
    url: Option<String>,
    weight: Option<u32>,
    #[serde(default)]
    remove: bool,
    /// It must be there already: only its place changes.
    #[serde(default)]
    set: bool,
    /// It is lost for good: others get its slots.
    #[serde(default)]
    give_up: bool,
}

/// `POST /v1/shards`: adds a shard, changes its weight (0 drains it), or removes one that is empty.
/// Nothing moves until `POST /v1/moves`.
pub(super) async fn change(State(site): State<Shared>, Json(change): Json<Change>) -> Result<Response, Problem> {
    check_name(&change.name).map_err(|e| Problem::bad_request(format!("name: {e}")))?;
    let router = &site.router;
    for _ in 0..10 {
        router.refresh().await.map_err(unavailable)?;
        let view = router.view();
        let map = changed(&view, &change).map_err(Problem::bad_request)?;
        let (before, after) = (view.map.shards.get(&change.name), map.shards.get(&change.name));
        if let Some(member) = after.filter(|after| before.is_none_or(|before| before.url != after.url)) {
            // It must be there before the map names it, and be what the map takes it for.
            if before.is_some() && !is_there(&member.url, &site.config.cloud.data_dir) {
                return Err(Problem::bad_request(format!("there is no file {} in cloud.data_dir", member.url)));
            }
            let shard =
                router.open_shard(&change.name, member, None).map_err(|e| Problem::bad_request(e.to_string()))?;
            let refused = |e: ShardError| Problem::bad_request(format!("shard {}: {e}", change.name));
            let (of, known) = (shard.identity().await.map_err(refused)?, shard.fences().await.map_err(refused)?);
            check_identity(before.is_some(), of.as_ref(), &view.map.identity(&change.name))
                .map_err(Problem::bad_request)?;
            if before.is_none() && known.iter().any(|fence| fence.state != SlotState::Closed) {
                return Err(Problem::bad_request(
                    "a shard with slots is at that place already: give another place, or use `shards set` if that shard has moved",
                ));
            }
            let older = behind(&view.map, &change.name, &known).older.len();
            if before.is_some() && older > 0 {
                return Err(Problem::bad_request(format!(
                    "what is at that place is not shard {}, or an older state of it: it does not know {older} of its slots",
                    change.name
                )));
            }
        }
        if router.change(&view, &map).await.map_err(unavailable)? {
            if change.give_up {
                // Others learn at once what they have to take.
                router.settle().await.map_err(unavailable)?;
            }
            let view = router.view();
            let plan = mover::plan(&view).map_err(|e| Problem::bad_request(e.to_string()))?;
            return Ok(json(&json!({"map_version": view.version, "would_move": plan.len()})));
        }
    }
    Err(unavailable("the map keeps changing: try again"))
}

/// What is at a place must be nobody's to be added, and the shard itself to be set.
fn check_identity(is_there: bool, of: Option<&Identity>, wanted: &Identity) -> Result<(), String> {
    let Identity { cloud, shard } = wanted;
    match of {
        Some(of) if of == wanted => Ok(()),
        Some(of) if of.cloud == *cloud => {
            Err(format!("shard {:?} is at that place, not {shard:?}: give another place, or name that one", of.shard))
        }
        Some(of) => {
            Err(format!("a shard of another cloud ({}) is at that place: give a place that nobody uses", of.cloud))
        }
        None if is_there => Err(format!(
            "what is at that place is not shard {shard}: it belongs to nobody yet. Put the shard's data there first, or do \
             without it with `shards give-up`"
        )),
        None => Ok(()),
    }
}

fn changed(view: &View, change: &Change) -> Result<Map, String> {
    let mut map = view.map.clone();
    if change.give_up {
        return given_up(map, &change.name);
    }
    if change.remove {
        let slots = map.table.counts().get(&change.name).copied().unwrap_or(0);
        let transits = map.transits.values().filter(|transit| transit.to == change.name).count();
        if slots + transits > 0 {
            return Err(format!("{} still has {slots} slots: drain it and rebalance first", change.name));
        }
        map.shards.remove(&change.name).ok_or_else(|| format!("there is no shard {}", change.name))?;
        map.leftovers.retain(|leftover| leftover.shard != change.name);
        if !map.retired.contains(&change.name) {
            map.retired.push(change.name.clone());
        }
        return Ok(map);
    }
    match map.shards.get_mut(&change.name) {
        None if change.set => return Err(format!("there is no shard {}", change.name)),
        None => {
            let url =
                change.url.clone().ok_or_else(|| format!("there is no shard {}; give a url to add it", change.name))?;
            if let Some((other, _)) = map.shards.iter().find(|(_, member)| member.url == url) {
                return Err(format!("shard {other} is at that place"));
            }
            map.retired.retain(|retired| *retired != change.name);
            map.shards.insert(change.name.clone(), Member { url, weight: change.weight.unwrap_or(1) });
        }
        Some(member) => {
            member.url = change.url.clone().unwrap_or_else(|| member.url.clone());
            member.weight = change.weight.unwrap_or(member.weight);
        }
    }
    if map.weights().values().all(|&weight| weight == 0) {
        return Err("one shard must keep a weight above 0".into());
    }
    Ok(map)
}

/// The map without a shard that is lost: its slots begin anew elsewhere, with what gateways still keep.
fn given_up(mut map: Map, name: &str) -> Result<Map, String> {
    map.shards.remove(name).ok_or_else(|| format!("there is no shard {name}"))?;
    let mut weights = map.weights();
    if weights.values().all(|&weight| weight == 0) {
        return Err("one shard must keep a weight above 0".into());
    }
    // What is on its way from it or to it is not any more.
    let stopped: Vec<u16> = map
        .transits
        .values()
        .filter(|transit| transit.to == name || map.table.slot(transit.slot).owner == name)
        .map(|transit| transit.slot)
        .collect();
    for slot in stopped {
        map.transits.remove(&slot);
        map.table.slot_mut(slot).epoch += 2;
    }
    weights.insert(name.to_owned(), 0);
    let plan = map.table.plan(&weights).map_err(|e| e.to_string())?;
    for change in plan.iter().filter(|change| change.from == name) {
        let slot = map.table.slot_mut(change.slot);
        slot.owner.clone_from(&change.to);
        slot.epoch += 2;
    }
    map.leftovers.retain(|leftover| leftover.shard != name);
    Ok(map)
}

/// `GET /v1/placement?device=&gateway=`: the slot of a device and who owns it; without `gateway`, at each gateway that
/// has sent a device of that name.
pub(super) async fn placement(State(site): State<Shared>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    let params = Params::read(query.as_deref(), &["device", "gateway"])?;
    let device = params.one("device").ok_or_else(|| Problem::bad_request("device: which one?"))?;
    check_name(device).map_err(|e| Problem::bad_request(format!("device: {e}")))?;
    let mut gateways = match params.one("gateway") {
        Some(gateway) => {
            check_name(gateway).map_err(|e| Problem::bad_request(format!("gateway: {e}")))?;
            vec![gateway.to_owned()]
        }
        None => gateways_with(&site, device).await?,
    };
    let view = site.router.view();
    if gateways.is_empty() && view.map.placing == Placing::Device {
        // It does not matter whose it will be.
        gateways.push(String::new());
    }
    if gateways.is_empty() {
        let detail = format!("no gateway has sent a device {device:?}: give gateway= to see where it would be");
        return Err(Problem::new(StatusCode::NOT_FOUND, detail));
    }
    let row = |gateway: &String| {
        let at = view.map.placing.slot(gateway, device);
        let owner = view.map.table.slot(at);
        json!({
            "gateway": gateway, "device": device, "slot": at, "shard": owner.owner, "epoch": owner.epoch,
            "moving_to": view.map.transits.get(&at).map(|transit| &transit.to),
        })
    };
    let rows: Vec<Value> = gateways.iter().map(row).collect();
    // The only one also stands by itself.
    let mut body = if let [only] = &rows[..] { only.clone() } else { json!({"device": device}) };
    body["rows"] = json!(rows);
    body["map_version"] = json!(view.version);
    Ok(json(&body))
}

/// Gateways with a device of exactly this name, as far as shards answer.
async fn gateways_with(site: &Shared, device: &str) -> Result<Vec<String>, Problem> {
    let named = vec![device.to_owned()];
    let asked = |shard: Arc<dyn Shard>, fences| {
        let named = named.clone();
        async move { shard.devices(named, None, GATEWAYS_MAX, fences).await }
    };
    let found = query::scatter(&site.router, &[], &named, site.config.query.timeout.0, asked).await;
    let (parts, _) = found.map_err(unavailable)?;
    let gateways: BTreeSet<String> = parts
        .into_iter()
        .flatten()
        .filter(|known| &*known.device == device)
        .map(|known| known.gateway.to_string())
        .collect();
    Ok(gateways.into_iter().take(GATEWAYS_MAX).collect())
}

/// What a plan moves, by pair of shards.
fn by_pair(view: &View) -> Result<Vec<Value>, Problem> {
    let plan = mover::plan(view).map_err(|e| Problem::bad_request(e.to_string()))?;
    let mut pairs: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for change in &plan {
        *pairs.entry((&change.from, &change.to)).or_default() += 1;
    }
    Ok(pairs.into_iter().map(|((from, to), slots)| json!({"from": from, "to": to, "slots": slots})).collect())
}

/// `GET /v1/moves`: what is on its way, what is to follow, how far it has got.
pub(super) async fn moves(State(site): State<Shared>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    Params::read(query.as_deref(), &[])?;
    site.router.refresh().await.map_err(unavailable)?;
    let view = site.router.view();
    let progress = site.moves.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let transit = |transit: &crate::map::Transit| json!({"slot": transit.slot, "from": view.map.table.slot(transit.slot).owner, "to": transit.to});
    let transits: Vec<Value> = view.map.transits.values().map(transit).collect();
    let to_go: usize = mover::plan(&view).map_or(0, |plan| plan.len());
    Ok(json(&json!({
        "map_version": view.version, "rebalancing": view.map.rebalancing, "slots_to_go": to_go, "under_way": transits,
        "plan": by_pair(&view)?, "leftovers": view.map.leftovers.len(),
        "this_daemon": {
            "leads": progress.leads, "phase": progress.phase, "slots_moved": progress.slots,
            "rows_copied": progress.rows, "rows_per_s": progress.rows_per_s.round(), "last_error": progress.last_error,
        },
    })))
}

/// `POST /v1/moves`: moves slots until shares are as the weights say.
pub(super) async fn rebalance(State(site): State<Shared>) -> Result<Response, Problem> {
    let router = &site.router;
    for _ in 0..10 {
        router.refresh().await.map_err(unavailable)?;
        let view = router.view();
        let plan = by_pair(&view)?;
        let mut map = view.map.clone();
        map.rebalancing = true;
        if router.change(&view, &map).await.map_err(unavailable)? {
            return Ok(json(&json!({"map_version": router.view().version, "plan": plan})));
        }
    }
    Err(unavailable("the map keeps changing: try again"))
}

/// `DELETE /v1/moves`: stops moving; what is on its way stays where it was.
pub(super) async fn cancel(State(site): State<Shared>) -> Result<Response, Problem> {
    let stopped = site.router.cancel().await.map_err(unavailable)?;
    let mut progress = site.moves.lock().unwrap_or_else(PoisonError::into_inner);
    (progress.last_error, progress.phase) = (None, "");
    drop(progress);
    Ok(json(&json!({"map_version": site.router.view().version, "stopped": stopped})))
}
