//! Slots change hands, while gateways keep pushing.
//!
//! One daemon, the one with the lease, carries out the plan, some slots of one pair of shards at
//! a time: the new owner opens them as *importing*; the map gets both owners and the next epoch;
//! the old owner learns that epoch, which fences off every router with an older map; rows are
//! copied while routers write both; both sides are compared, and what has changed since once more
//! while the old owner takes no writes; it is closed, the map changes, the new owner is opened; after a grace period
//! the rest is deleted. Always holds: every step may be done again, by another daemon, after a
//! crash before or behind it; locks only choose who tries, shards decide.

use super::coordinator::CoordinatorError;
use super::intake::now_us;
use super::map::{Leftover, Transit};
use super::metrics::Metrics;
use super::router::{Router, RouterError, View};
use super::row::{Key, Row};
use super::shard::{EVER, Fence, Part, Shard, ShardError, State};
use daemon::aggregates::Range;
use daemon::config::Span;
use futures_util::stream::{self, TryStreamExt};
use model::Micros;
use model::time::SECOND_US;
use placement::{Epoch, Move};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How long the lease holds without being kept.
const LEASE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After a failure.
const PAUSE: Duration = Duration::from_secs(2);
/// Groups of slots that are copied, or slots that are compared, at a time.
const SIDE_BY_SIDE: usize = 8;
/// Slots of a group.
const TOGETHER: usize = 16;
const HOUR_US: Micros = 3_600 * SECOND_US;
/// By how much clocks of daemons may differ that say when a push was received.
const CLOCKS_US: Micros = 10 * 60 * SECOND_US;

/// Why a move does not go on, for now.
#[derive(Debug, thiserror::Error)]
enum MoveError {
    #[error(transparent)]
    Router(#[from] RouterError),
    #[error(transparent)]
    Coordinator(#[from] CoordinatorError),
    #[error("shard {shard}: {error}")]
    Shard { shard: String, error: ShardError },
    #[error("both copies of slot {0} still differ")]
    Differs(u16),
    #[error("the map has been changed by another daemon")]
    Overtaken,
    #[error("the lease has gone to another daemon")]
    Deposed,
    #[error("stopping")]
    Stopped,
}

/// How far the mover of this daemon has got.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Progress {
    /// This daemon has the lease.
    pub leads: bool,
    /// What it does with the slots that are on their way.
    pub phase: &'static str,
    /// Slots moved since the start.
    pub slots: u64,
    /// Rows copied since the start.
    pub rows: u64,
    /// Rows copied a second, of the slots that are on their way or were last.
    pub rows_per_s: f64,
    /// When copying those began, and how many rows had been copied then.
    begun: Option<(Instant, u64)>,
    /// What went wrong last, until something goes right.
    pub last_error: Option<String>,
}

impl Progress {
    fn copied(&mut self, rows: u64) {
        self.rows += rows;
        if let Some((at, before)) = self.begun {
            self.rows_per_s = (self.rows - before) as f64 / at.elapsed().as_secs_f64().max(0.001);
        }
    }
}

/// Shared with those who ask.
pub(crate) type SharedProgress = Arc<Mutex<Progress>>;

/// Who moves.
pub(crate) struct Mover {
    /// The map and the shards.
    pub router: Arc<Router>,
    /// This daemon's name for the lease.
    pub who: String,
    /// Slots at once.
    pub slots: usize,
    /// Rows in one copy.
    pub rows: usize,
    /// How long leftovers are kept.
    pub grace: Span,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// How far it has got.
    pub progress: SharedProgress,
    /// The daemon stops.
    pub stop: CancellationToken,
}

/// Slots that move together.
struct Lot<'a> {
    view: &'a View,
    from: String,
    to: String,
    slots: Vec<u16>,
}

impl Lot<'_> {
    fn epoch(&self, slot: u16) -> Epoch {
        self.view.map.table.slot(slot).epoch
    }

    fn fences(&self, state: State, ahead: Epoch) -> Vec<Fence> {
        self.slots.iter().map(|&slot| Fence { slot, epoch: self.epoch(slot) + ahead, state }).collect()
    }

    fn of(&self, shard: &str) -> Result<Arc<dyn Shard>, MoveError> {
        self.view.shard(shard).cloned().map_err(|error| at(shard, error))
    }
}

fn at(shard: &str, error: ShardError) -> MoveError {
    MoveError::Shard { shard: shard.to_owned(), error }
}

impl Mover {
    /// Moves whatever is to be moved, whenever this daemon has the lease.
    pub(crate) async fn run(self) {
        loop {
            let pause = match self.look().await {
                Ok(true) => Duration::ZERO,
                Ok(false) => LOOK_EVERY,
                Err(MoveError::Stopped) => break,
                Err(e) => {
                    tracing::warn!("moving slots: {e}; it is tried again");
                    self.note(|progress| progress.last_error = Some(e.to_string()));
                    PAUSE
                }
            };
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        // Who comes next need not wait for the lease to run out.
        let _ = self.router.coordinator().resign(&self.who).await;
    }

    fn note(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Every longer piece of work asks this in between.
    async fn still_leads(&self) -> Result<(), MoveError> {
        if self.stop.is_cancelled() {
            return Err(MoveError::Stopped);
        }
        if self.router.coordinator().lead(&self.who, LEASE).await? { Ok(()) } else { Err(MoveError::Deposed) }
    }

    /// Does the next thing there is to do; false if there is nothing.
    async fn look(&self) -> Result<bool, MoveError> {
        let led = self.still_leads().await;
        let led_before = self.progress.lock().unwrap_or_else(PoisonError::into_inner).leads;
        self.note(|progress| progress.leads = led.is_ok());
        match led {
            Err(MoveError::Deposed) => return Ok(false),
            other => other?,
        }
        self.router.refresh().await?;
        let view = self.router.view();
        let failed = self.progress.lock().unwrap_or_else(PoisonError::into_inner).last_error.is_some();
        // Whoever led before may have left the last step of a move undone.
        if !led_before || failed || !view.map.transits.is_empty() {
            // A shard that is down holds up only what belongs there.
            let settled = self.router.settle().await;
            self.note(|progress| progress.last_error = settled.err().map(|e| e.to_string()));
        }
        if !view.map.transits.is_empty() {
            self.carry(&view).await?;
            return Ok(true);
        }
        if view.map.rebalancing {
            return self.begin(&view).await;
        }
        self.clean_up(&view).await
    }

    /// Puts the first slots of the plan on their way.
    async fn begin(&self, view: &View) -> Result<bool, MoveError> {
        let plan = view.map.table.plan(&view.map.weights()).map_err(RouterError::from)?;
        let Some(first) = plan.first() else {
            if let Err(e) = self.router.settle().await {
                tracing::warn!("{e}; it is told its slots when it answers");
            }
            let mut map = view.map.clone();
            map.rebalancing = false;
            self.change(view, &map).await?;
            self.note(|progress| (progress.phase, progress.last_error) = ("", None));
            tracing::info!("all slots are where they belong");
            return Ok(true);
        };
        let together = |change: &&Move| (&change.from, &change.to) == (&first.from, &first.to);
        let slots: Vec<u16> = plan.iter().filter(together).map(|change| change.slot).take(self.slots).collect();
        let lot = Lot { view, from: first.from.clone(), to: first.to.clone(), slots };
        let mut map = view.map.clone();
        // What is still there of an earlier time would be in the way.
        let own = |leftover: &&Leftover| leftover.shard == lot.to && lot.slots.contains(&leftover.slot);
        for leftover in view.map.leftovers.iter().filter(own) {
            self.delete(view, leftover).await?;
        }
        map.leftovers.retain(|leftover| !(leftover.shard == lot.to && lot.slots.contains(&leftover.slot)));
        lot.of(&lot.to)?.set_fences(lot.fences(State::Importing, 1)).await.map_err(|e| at(&lot.to, e))?;
        for &slot in &lot.slots {
            map.table.slot_mut(slot).epoch += 1;
            map.transits.insert(slot, Transit { slot, to: lot.to.clone() });
        }
        self.change(view, &map).await?;
        tracing::info!(
            "{} slots are on their way from {} to {}, {} to go",
            lot.slots.len(),
            lot.from,
            lot.to,
            plan.len()
        );
        Ok(true)
    }

    /// Carries slots that are on their way to their new owner.
    async fn carry(&self, view: &View) -> Result<(), MoveError> {
        let mut pairs: BTreeMap<(String, String), Vec<u16>> = BTreeMap::new();
        for transit in view.map.transits.values() {
            let from = view.map.table.slot(transit.slot).owner.clone();
            pairs.entry((from, transit.to.clone())).or_default().push(transit.slot);
        }
        let Some(((from, to), slots)) = pairs.into_iter().next() else { return Ok(()) };
        let lot = Lot { view, from, to, slots };
        let is_closed = self.is_closed(&lot).await?;
        if is_closed && !self.has_arrived(&lot).await? {
            return self.open_again(&lot).await;
        }
        if !is_closed {
            self.phase("fencing");
            let (old, new) = (lot.of(&lot.from)?, lot.of(&lot.to)?);
            new.set_fences(lot.fences(State::Importing, 0)).await.map_err(|e| at(&lot.to, e))?;
            old.set_fences(lot.fences(State::Open, 0)).await.map_err(|e| at(&lot.from, e))?;
            pause_for_tests("copying").await;
            self.phase("copying");
            self.note(|progress| progress.begun = Some((Instant::now(), progress.rows)));
            let slots = old.inhabited(lot.slots.clone()).await.map_err(|e| at(&lot.from, e))?;
            let groups: Vec<&[u16]> = slots.chunks(TOGETHER).collect();
            self.each(&groups, |group| self.copy_group(&lot, group)).await?;
            pause_for_tests("comparing").await;
            self.phase("comparing");
            // What was received since may be in one of both only, for a moment, by whatever clock.
            let since_us = now_us().saturating_sub(CLOCKS_US);
            let doubtful = self.compare(&lot).await?;
            self.phase("cutting over");
            old.set_fences(lot.fences(State::Fenced, 0)).await.map_err(|e| at(&lot.from, e))?;
            pause_for_tests("fenced").await;
            if let Err(e) = self.settle(&lot, since_us, doubtful).await {
                old.set_fences(lot.fences(State::Open, 0)).await.map_err(|e| at(&lot.from, e))?;
                return Err(e);
            }
            self.still_leads().await?;
            // From here on the copy is known to be whole, also if this shard is put back to an earlier state.
            new.set_fences(lot.fences(State::Arrived, 0)).await.map_err(|e| at(&lot.to, e))?;
            old.set_fences(lot.fences(State::Closed, 1)).await.map_err(|e| at(&lot.from, e))?;
            pause_for_tests("closed").await;
        }
        self.hand_over(&lot).await
    }

    /// True if the old owner has been closed already, by whoever did it.
    async fn is_closed(&self, lot: &Lot<'_>) -> Result<bool, MoveError> {
        let known = lot.of(&lot.from)?.fences().await.map_err(|e| at(&lot.from, e))?;
        let closed: BTreeSet<u16> = known
            .iter()
            .filter(|fence| fence.state == State::Closed && fence.epoch == lot.epoch(fence.slot) + 1)
            .map(|fence| fence.slot)
            .collect();
        Ok(lot.slots.iter().all(|slot| closed.contains(slot)))
    }

    /// True if the new owner knows that it has everything: it may have been put back to an earlier state since.
    async fn has_arrived(&self, lot: &Lot<'_>) -> Result<bool, MoveError> {
        let known = lot.of(&lot.to)?.fences().await.map_err(|e| at(&lot.to, e))?;
        let arrived = lot.fences(State::Arrived, 0);
        Ok(arrived.iter().all(|fence| known.contains(fence)))
    }

    /// The old owner goes on as if the move had not begun.
    async fn open_again(&self, lot: &Lot<'_>) -> Result<(), MoveError> {
        tracing::warn!(
            "shard {} has been restored in the middle of a move from {}, which begins anew",
            lot.to,
            lot.from
        );
        let mut map = lot.view.map.clone();
        for &slot in &lot.slots {
            map.table.slot_mut(slot).epoch += 2;
            map.transits.remove(&slot);
        }
        map.rebalancing = true;
        self.change(lot.view, &map).await?;
        let opened = lot.fences(State::Open, 2);
        lot.of(&lot.from)?.set_fences(opened).await.map_err(|e| at(&lot.from, e))
    }

    /// Does something with several slots, or groups of them, at a time.
    async fn each<T: Copy, F>(&self, of: &[T], work: impl Fn(T) -> F) -> Result<(), MoveError>
    where
        F: Future<Output = Result<(), MoveError>>,
    {
        stream::iter(of.iter().copied().map(Ok)).try_for_each_concurrent(SIDE_BY_SIDE, work).await
    }

    /// Copies names and rows of some slots. What several have is put into one commit: most slots have little.
    async fn copy_group(&self, lot: &Lot<'_>, slots: &[u16]) -> Result<(), MoveError> {
        let old = lot.of(&lot.from)?;
        self.copy_names(lot, slots).await?;
        for part in [Part::Windows, Part::Sealed] {
            let mut waiting = Vec::new();
            for &slot in slots {
                let rows = old.export(slot, part, EVER, None, self.rows).await.map_err(|e| at(&lot.from, e))?;
                let behind = rows.last().filter(|_| rows.len() >= self.rows).map(|row| row.key.clone());
                waiting.extend(rows);
                if waiting.len() >= self.rows {
                    self.put(lot, part, std::mem::take(&mut waiting)).await?;
                    self.still_leads().await?;
                }
                if behind.is_some() {
                    self.copy_rows(lot, slot, part, EVER, behind).await?;
                }
            }
            self.put(lot, part, waiting).await?;
        }
        Ok(())
    }

    /// Copies names, and rows that start in a range.
    async fn copy(&self, lot: &Lot<'_>, slot: u16, range: Range) -> Result<(), MoveError> {
        self.copy_names(lot, &[slot]).await?;
        for part in [Part::Windows, Part::Sealed] {
            self.copy_rows(lot, slot, part, range, None).await?;
        }
        Ok(())
    }

    async fn copy_names(&self, lot: &Lot<'_>, slots: &[u16]) -> Result<(), MoveError> {
        let (old, new) = (lot.of(&lot.from)?, lot.of(&lot.to)?);
        let mut names = Vec::with_capacity(slots.len());
        for &slot in slots {
            names.push(old.export_names(slot).await.map_err(|e| at(&lot.from, e))?);
        }
        let fences = slots.iter().map(|&slot| (slot, lot.epoch(slot))).collect();
        new.import_names(names, fences).await.map_err(|e| at(&lot.to, e))
    }

    /// Copies the rows of a slot that start in a range, behind a key.
    async fn copy_rows(
        &self,
        lot: &Lot<'_>,
        slot: u16,
        part: Part,
        range: Range,
        mut after: Option<Key>,
    ) -> Result<(), MoveError> {
        let old = lot.of(&lot.from)?;
        loop {
            let rows = old.export(slot, part, range, after, self.rows).await.map_err(|e| at(&lot.from, e))?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = Some(last.key.clone());
            let many = rows.len();
            self.put(lot, part, rows).await?;
            if many < self.rows {
                return Ok(());
            }
            self.still_leads().await?;
        }
    }

    /// Puts rows where they go to.
    async fn put(&self, lot: &Lot<'_>, part: Part, rows: Vec<Row>) -> Result<(), MoveError> {
        if rows.is_empty() {
            return Ok(());
        }
        let many = rows.len() as u64;
        let slots: BTreeSet<u16> = rows.iter().map(|row| row.key.slot).collect();
        let fences = slots.into_iter().map(|slot| (slot, lot.epoch(slot))).collect();
        lot.of(&lot.to)?.import(rows, part, fences).await.map_err(|e| at(&lot.to, e))?;
        self.metrics.moved_rows.inc_by(many);
        self.note(|progress| progress.copied(many));
        Ok(())
    }

    /// Compares both copies, hour by hour, while both are written, and copies once more what differs; returns where
    /// they may still differ. The new one has nothing that the old one has not, but for what was removed
    /// meanwhile: pushes are written there first.
    async fn compare(&self, lot: &Lot<'_>) -> Result<BTreeMap<u16, Range>, MoveError> {
        let (old, new) = (lot.of(&lot.from)?, lot.of(&lot.to)?);
        let ours = old.inhabited(lot.slots.clone()).await.map_err(|e| at(&lot.from, e))?;
        let theirs = new.inhabited(lot.slots.clone()).await.map_err(|e| at(&lot.to, e))?;
        let slots: Vec<u16> = ours.into_iter().chain(theirs).collect::<BTreeSet<_>>().into_iter().collect();
        let doubtful = Mutex::new(BTreeMap::new());
        self.each(&slots, async |slot| {
            if let Some(range) = self.difference(lot, slot, EVER).await? {
                self.copy(lot, slot, range).await?;
                doubtful.lock().unwrap_or_else(PoisonError::into_inner).insert(slot, range);
            }
            self.still_leads().await
        })
        .await?;
        Ok(doubtful.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes both copies equal while the old owner takes no writes: only what has changed since they were compared, or
    /// differed then, is looked at.
    async fn settle(&self, lot: &Lot<'_>, since_us: Micros, mut ranges: BTreeMap<u16, Range>) -> Result<(), MoveError> {
        for shard in [&lot.from, &lot.to] {
            let changed = lot.of(shard)?.changed(lot.slots.clone(), since_us).await.map_err(|e| at(shard, e))?;
            for (slot, range) in changed {
                let known = ranges.entry(slot).or_insert(range);
                *known = Range { from_us: known.from_us.min(range.from_us), to_us: known.to_us.max(range.to_us) };
            }
        }
        let slots: Vec<u16> = ranges.keys().copied().collect();
        self.each(&slots, async |slot| {
            let Some(range) = self.difference(lot, slot, whole_hours(ranges[&slot])).await? else { return Ok(()) };
            self.copy(lot, slot, range).await?;
            if self.difference(lot, slot, range).await?.is_none() {
                return Ok(());
            }
            self.empty(lot, slot).await?;
            self.copy(lot, slot, EVER).await?;
            match self.difference(lot, slot, EVER).await? {
                None => Ok(()),
                Some(_) => Err(MoveError::Differs(slot)),
            }
        })
        .await
    }

    /// The hours in which both copies of a slot differ, from the first to the last.
    async fn difference(&self, lot: &Lot<'_>, slot: u16, range: Range) -> Result<Option<Range>, MoveError> {
        let (old, new) = (lot.of(&lot.from)?, lot.of(&lot.to)?);
        let (ours, theirs) = tokio::join!(old.digests(slot, range), new.digests(slot, range));
        let (ours, theirs) = (ours.map_err(|e| at(&lot.from, e))?, theirs.map_err(|e| at(&lot.to, e))?);
        let hours: BTreeSet<i64> = ours.keys().chain(theirs.keys()).copied().collect();
        let mut differ = hours.into_iter().filter(|hour| ours.get(hour) != theirs.get(hour));
        let Some(first) = differ.next() else { return Ok(None) };
        let last = differ.next_back().unwrap_or(first);
        Ok(Some(Range { from_us: first * HOUR_US, to_us: (last + 1) * HOUR_US }))
    }

    /// What was removed between being read and being written is only in the copy: it is made anew.
    async fn empty(&self, lot: &Lot<'_>, slot: u16) -> Result<(), MoveError> {
        let new = lot.of(&lot.to)?;
        let importing = Fence { slot, epoch: lot.epoch(slot), state: State::Importing };
        while new.delete(importing, self.rows).await.map_err(|e| at(&lot.to, e))? == self.rows {
            self.still_leads().await?;
        }
        Ok(())
    }

    /// The map changes, and the new owner is opened.
    async fn hand_over(&self, lot: &Lot<'_>) -> Result<(), MoveError> {
        let mut map = lot.view.map.clone();
        let after_us = now_us().saturating_add(self.grace.micros());
        for &slot in &lot.slots {
            let changed = map.table.slot_mut(slot);
            changed.owner.clone_from(&lot.to);
            changed.epoch += 1;
            let epoch = changed.epoch;
            map.transits.remove(&slot);
            map.leftovers.push(Leftover { slot, shard: lot.from.clone(), epoch, after_us });
        }
        self.change(lot.view, &map).await?;
        pause_for_tests("handed over").await;
        lot.of(&lot.to)?.set_fences(lot.fences(State::Open, 1)).await.map_err(|e| at(&lot.to, e))?;
        self.metrics.moved_slots.inc_by(lot.slots.len() as u64);
        self.note(|progress| {
            progress.slots += lot.slots.len() as u64;
            progress.last_error = None;
        });
        Ok(())
    }

    async fn change(&self, view: &View, map: &super::map::Map) -> Result<(), MoveError> {
        if self.router.change(view, map).await? { Ok(()) } else { Err(MoveError::Overtaken) }
    }

    /// Deletes what former owners have kept for long enough; false if there is nothing yet.
    async fn clean_up(&self, view: &View) -> Result<bool, MoveError> {
        let now_us = now_us();
        let due: Vec<&Leftover> = view.map.leftovers.iter().filter(|leftover| leftover.after_us <= now_us).collect();
        if due.is_empty() {
            return Ok(false);
        }
        self.phase("deleting");
        let mut by_shard: BTreeMap<&str, Vec<u16>> = BTreeMap::new();
        for leftover in &due {
            by_shard.entry(&leftover.shard).or_default().push(leftover.slot);
        }
        for (name, slots) in by_shard {
            let Ok(shard) = view.shard(name) else { continue };
            let inhabited: BTreeSet<u16> = shard.inhabited(slots).await.map_err(|e| at(name, e))?.into_iter().collect();
            for leftover in due.iter().filter(|leftover| leftover.shard == name && inhabited.contains(&leftover.slot)) {
                self.delete(view, leftover).await?;
            }
        }
        let mut map = view.map.clone();
        map.leftovers.retain(|leftover| leftover.after_us > now_us);
        self.change(view, &map).await?;
        self.phase("");
        Ok(true)
    }

    async fn delete(&self, view: &View, leftover: &Leftover) -> Result<(), MoveError> {
        // A shard that has been removed has nothing left.
        let Ok(shard) = view.shard(&leftover.shard) else { return Ok(()) };
        let closed = Fence { slot: leftover.slot, epoch: leftover.epoch, state: State::Closed };
        loop {
            self.still_leads().await?;
            match shard.delete(closed, self.rows).await {
                Ok(rows) if rows < self.rows => return Ok(()),
                Ok(_) => {}
                // It has come back since.
                Err(ShardError::Fenced { .. }) => return Ok(()),
                Err(error) => return Err(at(&leftover.shard, error)),
            }
        }
    }

    fn phase(&self, phase: &'static str) {
        self.note(|progress| progress.phase = phase);
    }
}

fn whole_hours(range: Range) -> Range {
    let hour = |us: Micros| us.div_euclid(HOUR_US);
    Range { from_us: hour(range.from_us) * HOUR_US, to_us: (hour(range.to_us - 1) + 1) * HOUR_US }
}

/// Tests stop a move where they want to kill it.
async fn pause_for_tests(step: &str) {
    if std::env::var("TIDEGATE_TEST_MOVE_PAUSE").is_ok_and(|at| at == step) {
        tracing::info!("a test holds the move: {step}");
        std::future::pending::<()>().await;
    }
}

/// Plans what the weights ask for.
pub(crate) fn plan(view: &View) -> Result<Vec<Move>, RouterError> {
    Ok(view.map.table.plan(&view.map.weights())?)
}
