//! Shards that know less than the map: new ones, and those that were put back to an earlier state.
//!
//! Arrives: the map, and what shards know of their slots. Leaves: shards that know what the map gives
//! them; slots that go back to whoever still has them whole; gateways that are asked for what is lacking.
//! Always holds: one shard that does not answer does not keep the others waiting.

use super::intake::now_us;
use super::map::{Leftover, Map};
use super::router::{Router, RouterError, View};
use super::shard::{Fence, State};
use daemon::sparse::Sparse;
use futures_util::future::join_all;
use placement::{Epoch, Slot};
use std::collections::{BTreeSet, HashMap, HashSet};

impl Router {
    /// Makes shards know the slots that the map gives them. One that knows less than the map has
    /// been restored, or is new: it takes what the gateways still have.
    /// One that does not answer does not keep the others waiting.
    pub(crate) async fn settle(&self) -> Result<(), RouterError> {
        let view = self.view();
        let settled = join_all(view.map.shards.keys().map(|name| self.settle_one(name))).await;
        settled.into_iter().collect()
    }

    /// The same, once it is sure that shards are still what they were: one may have been made anew, or another file put
    /// in its place.
    pub(crate) async fn attend(&self) -> Result<(), RouterError> {
        let view = self.view();
        let attended = join_all(view.map.shards.keys().map(async |name| {
            self.attend_one(name).await?;
            self.settle_one(name).await
        }))
        .await;
        attended.into_iter().collect()
    }

    async fn attend_one(&self, name: &str) -> Result<(), RouterError> {
        let failed = |error| RouterError::Shard { name: name.to_owned(), error };
        if !self.view().shard(name).map_err(failed)?.attend().await.map_err(failed)? {
            tracing::warn!("there is another file at the place of shard {name}, or none");
            self.reopen(name).await?;
        }
        Ok(())
    }

    async fn settle_one(&self, name: &str) -> Result<(), RouterError> {
        static AHEAD: Sparse = Sparse::new();
        let failed = |error| RouterError::Shard { name: name.to_owned(), error };
        let view = self.view();
        let shard = view.shard(name).map_err(failed)?;
        let known = shard.fences().await.map_err(failed)?;
        let Behind { mut fences, older, ahead } = behind(&view.map, name, &known);
        if ahead > 0 {
            // Another daemon may have moved slots since this one has read the map.
            self.refresh().await?;
            let ahead = behind(&self.view().map, name, &known).ahead;
            if ahead > 0 && AHEAD.may_say().is_some() {
                tracing::error!(
                    "the map and shard {name} are not of one time: the shard is ahead in {ahead} slots, which nobody can \
                     write; stop the daemons and make the map anew with `tidegate-cloud doctor --repair`"
                );
            }
        }
        if !older.is_empty() {
            let back = self.give_back(&view, name, &older).await?;
            fences.retain(|fence| !back.contains(&fence.slot));
        }
        if !older.is_empty() && !known.is_empty() {
            tracing::warn!(
                "shard {name} is older than the map: it has been restored; the gateways are asked for what it lacks"
            );
            shard.forget_batches().await.map_err(failed)?;
        }
        if fences.is_empty() { Ok(()) } else { shard.set_fences(fences).await.map_err(failed) }
    }

    /// Slots of a shard that has been restored go back to whoever has had them before, where that one still has all
    /// that it handed over; they move again by and by. What came since, the gateways send once more.
    async fn give_back(&self, view: &View, name: &str, slots: &[u16]) -> Result<BTreeSet<u16>, RouterError> {
        let (mut map, mut back, now_us) = (view.map.clone(), Vec::new(), now_us());
        for former in view.map.shards.keys().filter(|former| *former != name) {
            let had = |left: &&Leftover| {
                left.shard == *former
                    && slots.contains(&left.slot)
                    && left.epoch == view.map.table.slot(left.slot).epoch
                    && left.after_us > now_us
            };
            let left: Vec<&Leftover> = view.map.leftovers.iter().filter(had).collect();
            if left.is_empty() {
                continue;
            }
            let failed = |error| RouterError::Shard { name: former.clone(), error };
            let known = view.shard(former).map_err(failed)?.fences().await.map_err(failed)?;
            let closed: HashSet<(u16, Epoch)> = known
                .iter()
                .filter(|fence| fence.state == State::Closed)
                .map(|fence| (fence.slot, fence.epoch))
                .collect();
            for left in left.into_iter().filter(|left| closed.contains(&(left.slot, left.epoch))) {
                let slot = map.table.slot_mut(left.slot);
                slot.owner.clone_from(former);
                slot.epoch += 1;
                back.push(Fence { slot: left.slot, epoch: slot.epoch, state: State::Closed });
            }
        }
        if back.is_empty() {
            return Ok(BTreeSet::new());
        }
        let slots: BTreeSet<u16> = back.iter().map(|fence| fence.slot).collect();
        map.leftovers.retain(|left| !slots.contains(&left.slot));
        map.leftovers.extend(back.iter().map(|fence| Leftover {
            slot: fence.slot,
            shard: name.to_owned(),
            epoch: fence.epoch,
            after_us: now_us,
        }));
        map.rebalancing = true;
        if !self.change(view, &map).await? {
            // Another daemon was quicker: looked at again.
            return Ok(slots);
        }
        tracing::warn!("{} slots of shard {name} go back to the shards that still have them whole", slots.len());
        view.shard(name)
            .cloned()
            .map_err(|error| RouterError::Shard { name: name.to_owned(), error })?
            .set_fences(back)
            .await
            .map_err(|error| RouterError::Shard { name: name.to_owned(), error })?;
        Ok(slots)
    }
}

/// Where a shard knows less than the map.
pub(super) struct Behind {
    /// What it is to be told.
    pub(super) fences: Vec<Fence>,
    /// The slots in which it is older, and not only short of the last step of a move.
    pub(super) older: Vec<u16>,
    /// How many slots it knows something of that the map does not.
    pub(super) ahead: usize,
}

/// True if a shard knows something of a slot that the map does not: the map is older, or both have been put back to
/// times that do not belong together.
pub(super) fn is_ahead(map: &Map, shard: &str, fence: &Fence) -> bool {
    let Slot { owner, epoch } = map.table.slot(fence.slot);
    let is_moving = map.transits.contains_key(&fence.slot);
    let is_wrong = match (is_moving, owner == shard) {
        (true, _) => false,
        (false, true) => fence.state != State::Open,
        (false, false) => matches!(fence.state, State::Open | State::Fenced),
    };
    // A move begins at the next owner, and ends at the former one, before the map knows.
    let may_be_ahead = is_moving || fence.state == State::Importing;
    fence.epoch > epoch + Epoch::from(may_be_ahead) || is_wrong && fence.epoch >= *epoch
}

/// What a shard that knows these fences does not know of the map.
pub(super) fn behind(map: &Map, shard: &str, known: &[Fence]) -> Behind {
    let ahead = known.iter().filter(|fence| is_ahead(map, shard, fence)).count();
    let known: HashMap<u16, &Fence> = known.iter().map(|fence| (fence.slot, fence)).collect();
    let mut behind = Behind { fences: Vec::new(), older: Vec::new(), ahead };
    for (slot, epoch) in map.slots_of(shard) {
        let known = known.get(&slot);
        if map.transits.contains_key(&slot) || known.is_some_and(|fence| fence.epoch >= epoch) {
            continue;
        }
        let arrived = known.is_some_and(|fence| fence.state == State::Arrived && fence.epoch + 1 == epoch);
        if !arrived {
            behind.older.push(slot);
        }
        behind.fences.push(Fence { slot, epoch, state: State::Open });
    }
    behind
}
