//! What is kept, and for how long.
//!
//! Arrives: ages, counted from receipt, and a budget. Leaves: steps that remove readings whose
//! summaries are there, and summaries whose rollups are. Always holds: readings go by whole
//! days of a series, never before their summaries are folded and nothing late is waiting to be
//! worked in; a day that has lost them is sealed in the same commit. A store above its budget
//! loses the oldest summaries of `window.length` first, then the oldest readings, then, slowly,
//! the oldest rollups, those of short windows first; each time with a word in the log: it never
//! refuses readings for it. What was received before the clock was set has no age.

use super::fold::{Folder, Interrupted};
use super::levels::{Level, is_sealed};
use super::read::Raw;
use super::{DAY_US, day_of, series_of};
use crate::clock::Quality;
use crate::journal::{ReadError, Step, schema};
use crate::window::dirty::read_blob;
use crate::window::revise::Stretch;
use model::Micros;
use model::time::{PLAUSIBLE_FROM_US, SECOND_US};
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// Days of series retired in one commit.
const SLICE_PLACES: usize = 128;
/// Rows of rollups retired in one commit.
const SLICE_ROLLUPS: usize = 256;
/// Rows looked at in one go.
const PAGE: i64 = 4_096;
/// Summaries above those of `window.length`.
const ROLLUPS: &str = "rollups";
/// How long a store may be above its budget before rollups go, about.
const PATIENCE: Duration = Duration::from_secs(300);
/// Pages given back in one commit.
const SLICE_PAGES: u32 = 128;
/// Pages are given back if a fifth of the file is unused, and more than this.
const FREE_BYTES_MAX: u64 = 16 << 20;

/// How long things are kept, in microseconds since their receipt; `None` for good.
#[derive(Debug, Clone)]
pub(crate) struct Retention {
    /// Readings.
    pub raw_us: Option<Micros>,
    /// Summaries of `window.length`, and of what that was before.
    pub summaries_us: Option<Micros>,
    /// Summaries at the levels above, in their order; the last holds for those behind it.
    pub rollups_us: Vec<Option<Micros>>,
    /// What the store may take; `None` is nine tenths of what the filesystem has for it.
    pub budget_bytes: Option<u64>,
}

/// What a store takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Pages in use.
    pub used_bytes: u64,
    /// Pages that will be used again.
    pub free_bytes: u64,
    /// What it may take.
    pub budget_bytes: u64,
}

/// How a store has grown of late: what it took, now and then.
#[derive(Debug, Default)]
pub(crate) struct Growth {
    samples: VecDeque<(Micros, u64)>,
}

/// How far apart samples are, and how many are kept: a day of them.
const SAMPLE_EVERY_US: Micros = 300 * SECOND_US;
const SAMPLES_MAX: usize = 288;
/// Less says nothing of a day.
const SAMPLED_LEAST_US: Micros = 900 * SECOND_US;

impl Growth {
    /// Takes note of what the store takes; `now_us` need not be a wall clock's.
    pub(crate) fn note(&mut self, now_us: Micros, used_bytes: u64) {
        if self.samples.back().is_some_and(|(us, _)| (0..SAMPLE_EVERY_US).contains(&(now_us - us))) {
            return;
        }
        if self.samples.back().is_some_and(|&(us, _)| us > now_us) {
            // The clock was put back.
            self.samples.clear();
        }
        self.samples.push_back((now_us, used_bytes));
        if self.samples.len() > SAMPLES_MAX {
            self.samples.pop_front();
        }
    }

    /// Bytes a day, if enough is known.
    pub(crate) fn bytes_per_day(&self) -> Option<i64> {
        let (&(from_us, before), &(to_us, now)) = self.samples.front().zip(self.samples.back())?;
        let took_us = to_us - from_us;
        (took_us >= SAMPLED_LEAST_US).then(|| ((now as f64 - before as f64) * DAY_US as f64 / took_us as f64) as i64)
    }
}

impl Room {
    /// How many days until the budget is used up, growing so fast; `None` if it never is.
    pub(crate) fn days_left(&self, bytes_per_day: i64) -> Option<f64> {
        let left = self.budget_bytes.saturating_sub(self.used_bytes) as f64;
        (bytes_per_day > 0).then(|| (left / bytes_per_day as f64 * 10.0).round() / 10.0)
    }
}

/// Why something goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Age,
    Budget,
}

impl Why {
    fn name(self) -> &'static str {
        ["age", "budget"][self as usize]
    }
}

/// A day of a series and the rows of its chunks.
type Chunks = ((u32, i64), Vec<i64>);

impl Folder {
    /// Removes what is too old, and what the budget has no room for.
    pub(super) fn retire(
        &self,
        db: &Connection,
        now_us: Micros,
        pressed: &mut Option<Instant>,
    ) -> Result<(), Interrupted> {
        // Nothing has an age by a clock that is known to be wrong.
        let is_set = self.clock.quality() != Quality::Unset;
        if let Some(age_us) = self.retention.raw_us.filter(|_| is_set) {
            let mut after = (PLAUSIBLE_FROM_US, i64::MIN);
            while let Some(next) = self.retire_readings_before(db, now_us, age_us, after)? {
                after = next;
            }
        }
        for (level, age_us) in self.aged_levels().into_iter().filter(|_| is_set) {
            self.retire_rollups_before(db, level, now_us - age_us)?;
        }
        self.keep_the_budget(db, now_us, pressed)?;
        self.give_back(db)?;
        let used_bytes = self.room(db)?.used_bytes;
        self.growth.lock().unwrap_or_else(PoisonError::into_inner).note(now_us, used_bytes);
        Ok(())
    }

    /// Retires the readings of a page of chunks that are old enough; returns where the next begins.
    fn retire_readings_before(
        &self,
        db: &Connection,
        now_us: Micros,
        age_us: Micros,
        after: (Micros, i64),
    ) -> Result<Option<(Micros, i64)>, Interrupted> {
        let until_us = now_us - age_us;
        let mut query = db.prepare_cached(
            "SELECT received_us, id FROM chunk WHERE received_us < ?1 AND (received_us, id) > (?2, ?3)
             ORDER BY received_us, id LIMIT ?4",
        )?;
        let rows = query.query_map(params![until_us, after.0, after.1, PAGE], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let page: Vec<(Micros, i64)> = rows.collect::<Result<_, _>>()?;
        let Some(&last) = page.last() else { return Ok(None) };
        let raw = Raw::open(db)?;
        let mut places: BTreeMap<(u32, i64), Vec<i64>> = BTreeMap::new();
        for (_, id) in page {
            let (series, day) = (series_of(id), day_of(id));
            if !places.contains_key(&(series, day)) && raw.received_us(day, series)?.is_some_and(|us| us < until_us) {
                places.insert((series, day), raw.part_ids(day, series)?);
            }
        }
        let ready = self.ready(&raw, now_us, places.into_iter().collect())?;
        drop(raw);
        self.retire_readings(ready, Why::Age)?;
        Ok(Some(last))
    }

    /// Those whose summaries are folded and say all that there is to say.
    fn ready(&self, raw: &Raw<'_>, now_us: Micros, places: Vec<Chunks>) -> Result<Vec<Chunks>, ReadError> {
        let first_row = "SELECT min(start_us) FROM summary WHERE length_us = ?1";
        let length_us = self.levels.base.length_us;
        let rows_from_us: Option<Micros> = raw.db().query_row(first_row, [length_us], |row| row.get(0))?;
        // What no window has seen yet is not among what is dirty either.
        let windows_seq = schema::meta::<i64>(raw.db(), "windows_seq")?.unwrap_or(0);
        let unseen = "SELECT min(first_us) FROM batch WHERE seq > ?1";
        let unseen_us: Option<Micros> = raw.db().query_row(unseen, [windows_seq], |row| row.get(0))?;
        let recent_us = now_us - crate::window::OLD_AFTER_US;
        let unfolded = [rows_from_us, unseen_us].into_iter().flatten().min().unwrap_or(Micros::MAX);
        let folded_until_us = unfolded.min(recent_us);
        let blob: Vec<u8> = schema::meta(raw.db(), "dirty")?.unwrap_or_default();
        let dirty: Vec<Stretch> = read_blob(&blob).collect();
        let dirty_series: HashSet<u32> = dirty.iter().map(|stretch| stretch.series).collect();
        let is_dirty = |series: u32, from_us: Micros, to_us: Micros| {
            let touches = |s: &Stretch| s.series == series && s.from_us < to_us && from_us < s.to_us;
            dirty_series.contains(&series) && dirty.iter().any(touches)
        };
        let mut ready = Vec::new();
        for ((series, day), chunks) in places {
            let (from_us, to_us) = (day * DAY_US, (day + 1) * DAY_US);
            let mut has_summary = false;
            for level in self.levels.all() {
                has_summary |= level.has_windows(raw, day, series)?;
            }
            if has_summary && to_us <= folded_until_us && !is_dirty(series, from_us, to_us) {
                ready.push(((series, day), chunks));
            }
        }
        Ok(ready)
    }

    fn retire_readings(&self, ready: Vec<Chunks>, why: Why) -> Result<(), Interrupted> {
        for slice in ready.chunks(SLICE_PLACES) {
            let places = slice.iter().map(|(place, _)| *place).collect();
            let chunks: Vec<i64> = slice.iter().flat_map(|(_, ids)| ids).copied().collect();
            self.metrics.retired("readings", why.name(), chunks.len() as u64);
            self.step(Step::Retire { chunks, places })?;
        }
        Ok(())
    }

    /// The levels that age, and their ages.
    fn aged_levels(&self) -> Vec<(Level, Micros)> {
        let ages = &self.retention.rollups_us;
        let fine = self.levels.fine().map(|level| (level, self.retention.summaries_us));
        let above = self.levels.rollups.iter().enumerate();
        let above = above.map(|(at, level)| (*level, ages.get(at).or(ages.last()).copied().flatten()));
        // What is not configured any more is kept as long as anything, since nobody can make it anew.
        let longest = ages.iter().copied().reduce(|a, b| a.zip(b).map(|(a, b)| a.max(b))).flatten();
        let former = self.levels.former.iter().filter(|level| !self.levels.is_fine(level));
        let former = former.map(|level| (*level, longest));
        fine.chain(above).chain(former).filter_map(|(level, age_us)| Some((level, age_us?))).collect()
    }

    fn retire_rollups_before(&self, db: &Connection, level: Level, until_us: Micros) -> Result<(), Interrupted> {
        let mut after = (PLAUSIBLE_FROM_US, i64::MIN);
        loop {
            let mut query = db.prepare_cached(
                "SELECT received_us, id FROM rollup WHERE received_us < ?1 AND (received_us, id) > (?2, ?3)
                 AND (id & 65535) = ?4 ORDER BY received_us, id LIMIT ?5",
            )?;
            let page = params![until_us, after.0, after.1, level.number(), SLICE_ROLLUPS as i64];
            let rows = query.query_map(page, |row| Ok((row.get(0)?, row.get(1)?)))?;
            let rows: Vec<(Micros, i64)> = rows.collect::<Result<_, _>>()?;
            let Some(&last) = rows.last() else { return Ok(()) };
            after = last;
            let ids = rows.into_iter().map(|(_, id)| id).collect();
            let ids = of_sealed_days(&Raw::open(db)?, &level, ids)?;
            if !ids.is_empty() {
                self.metrics.retired("summaries", Why::Age.name(), ids.len() as u64);
                self.step(Step::RetireRollups(ids))?;
            }
        }
    }

    /// Goes below the budget, if that can be done without touching what is not folded yet.
    fn keep_the_budget(
        &self,
        db: &Connection,
        now_us: Micros,
        pressed: &mut Option<Instant>,
    ) -> Result<(), Interrupted> {
        let mut gone: BTreeMap<&str, (u64, i64)> = BTreeMap::new();
        loop {
            let Room { used_bytes, budget_bytes, .. } = self.room(db)?;
            if used_bytes <= budget_bytes {
                self.metrics.over_budget.set(0);
                *pressed = None;
                break;
            }
            // What is above the budget may be on its way into the archive.
            let patience = Duration::from_micros(self.delay_us as u64 * 2).min(PATIENCE) + PATIENCE;
            let also_rollups = pressed.is_some_and(|since| since.elapsed() >= patience);
            let next = self.retire_the_oldest(db, now_us, also_rollups)?;
            if next.is_none() {
                pressed.get_or_insert_with(Instant::now);
            }
            if next.is_none() && also_rollups && self.metrics.over_budget.set(1) == 0 {
                tracing::error!(
                    "the store takes {used_bytes} bytes, more than its budget of {budget_bytes}, and there is nothing left \
                     that may go: raise retention.disk_budget, or send less"
                );
            }
            let Some((what, rows, day)) = next else { break };
            let (count, last_day) = gone.entry(what).or_insert((0, day));
            *count += rows;
            *last_day = day.max(*last_day);
            if what == ROLLUPS {
                // The last that is left goes slowly.
                break;
            }
        }
        for (what, (rows, day)) in gone {
            let until = model::time::format((day + 1) * DAY_US);
            tracing::warn!("disk budget: {rows} rows of {what} from before {until} are gone");
        }
        Ok(())
    }

    /// Removes a slice of what should go first: what it was, how many rows, up to which day.
    fn retire_the_oldest(
        &self,
        db: &Connection,
        now_us: Micros,
        also_rollups: bool,
    ) -> Result<Option<(&'static str, u64, i64)>, Interrupted> {
        for level in self.levels.fine().filter(|_| !self.levels.rollups.is_empty()) {
            if let Some((ids, day)) = oldest_rollups(db, &level)? {
                let ids = of_sealed_days(&Raw::open(db)?, &level, ids)?;
                if !ids.is_empty() {
                    return self.retire_rollups(ids, day, "summaries").map(Some);
                }
            }
        }
        if let Some(ready) = self.oldest_readings(db, now_us)? {
            let rows = ready.iter().map(|(_, ids)| ids.len() as u64).sum();
            let day = ready.iter().map(|((_, day), _)| *day).max().unwrap_or_default();
            self.retire_readings(ready, Why::Budget)?;
            return Ok(Some(("readings", rows, day)));
        }
        for level in self.levels.all().into_iter().filter(|_| also_rollups) {
            if let Some((ids, day)) = oldest_rollups(db, &level)? {
                let newest_us = level.folded_until_us(db)?.unwrap_or(Micros::MIN);
                if (day + 1) * DAY_US < newest_us {
                    return self.retire_rollups(ids, day, ROLLUPS).map(Some);
                }
            }
        }
        Ok(None)
    }

    fn retire_rollups(
        &self,
        ids: Vec<i64>,
        day: i64,
        what: &'static str,
    ) -> Result<(&'static str, u64, i64), Interrupted> {
        let rows = ids.len() as u64;
        self.metrics.retired(what, Why::Budget.name(), rows);
        self.step(Step::RetireRollups(ids))?;
        Ok((what, rows, day))
    }

    /// A slice of the oldest readings that may go.
    fn oldest_readings(&self, db: &Connection, now_us: Micros) -> Result<Option<Vec<Chunks>>, Interrupted> {
        let raw = Raw::open(db)?;
        let mut query = raw.db().prepare_cached("SELECT id FROM chunk WHERE id > ?1 ORDER BY id LIMIT ?2")?;
        let mut after = i64::MIN;
        loop {
            let ids = query.query_map([after, PAGE], |row| row.get(0))?.collect::<Result<Vec<i64>, _>>()?;
            let Some(&last) = ids.last() else { return Ok(None) };
            after = last;
            let places: HashSet<(u32, i64)> = ids.into_iter().map(|id| (series_of(id), day_of(id))).collect();
            let mut places: Vec<_> = places.into_iter().collect();
            places.sort_unstable_by_key(|&(series, day)| (day, series));
            let with_ids = |(series, day): (u32, i64)| Ok(((series, day), raw.part_ids(day, series)?));
            let places = places.into_iter().map(with_ids).collect::<Result<Vec<_>, ReadError>>()?;
            let mut ready = self.ready(&raw, now_us, places)?;
            ready.truncate(SLICE_PLACES);
            if !ready.is_empty() {
                return Ok(Some(ready));
            }
        }
    }

    /// Gives pages back to the filesystem when many are unused.
    fn give_back(&self, db: &Connection) -> Result<(), Interrupted> {
        let is_much = |room: &Room, part: u64| {
            room.free_bytes > FREE_BYTES_MAX && room.free_bytes > (room.used_bytes + room.free_bytes) / part
        };
        if !is_much(&self.room(db)?, 5) {
            return Ok(());
        }
        while is_much(&self.room(db)?, 10) {
            self.step(Step::Vacuum { pages: SLICE_PAGES })?;
        }
        Ok(())
    }

    fn room(&self, db: &Connection) -> rusqlite::Result<Room> {
        room(db, &self.store, self.retention.budget_bytes)
    }
}

/// Those rows of a level whose days have no readings any more: from the others they would only
/// be made anew.
fn of_sealed_days(raw: &Raw<'_>, level: &Level, ids: Vec<i64>) -> Result<Vec<i64>, ReadError> {
    let mut sealed = Vec::new();
    for id in ids {
        let (series, first) = (series_of(id), level.first_day_of(id));
        let mut readings = false;
        for day in first..first + level.span_days {
            readings |= raw.received_us(day, series)?.is_some() && !is_sealed(raw, day, series)?;
        }
        if !readings {
            sealed.push(id);
        }
    }
    Ok(sealed)
}

/// A slice of the oldest rows at a level, of one span, and its last day.
fn oldest_rollups(db: &Connection, level: &Level) -> rusqlite::Result<Option<(Vec<i64>, i64)>> {
    let first = "SELECT id FROM rollup WHERE (id & 65535) = ?1 ORDER BY id LIMIT 1";
    let first: Option<i64> = db.prepare_cached(first)?.query_row([level.number()], |row| row.get(0)).optional()?;
    let Some(first) = first else { return Ok(None) };
    let end_day = level.first_day_of(first) + level.span_days;
    let mut query = db.prepare_cached(
        "SELECT id FROM rollup WHERE id >= ?1 AND id < ?2 AND (id & 65535) = ?3 ORDER BY id LIMIT ?4",
    )?;
    let ids = query
        .query_map(params![first, level.id(end_day, 0), level.number(), SLICE_ROLLUPS as i64], |row| row.get(0))?;
    Ok(Some((ids.collect::<Result<Vec<i64>, _>>()?, end_day - 1)))
}

/// What a store takes, and may take.
pub(crate) fn room(db: &Connection, store: &std::path::Path, budget_bytes: Option<u64>) -> rusqlite::Result<Room> {
    let pragma = |name: &str| db.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0));
    let page_bytes = pragma("page_size")? as u64;
    let (pages, free) = (pragma("page_count")? as u64, pragma("freelist_count")? as u64);
    let used_bytes = (pages - free.min(pages)) * page_bytes;
    let budget_bytes = budget_bytes.unwrap_or_else(|| {
        // A filesystem that does not say is taken to have room.
        let available = rustix::fs::statvfs(store).map_or(u64::MAX / 2, |fs| fs.f_bavail.saturating_mul(fs.f_frsize));
        (used_bytes + free * page_bytes + available) / 10 * 9
    });
    Ok(Room { used_bytes, free_bytes: free * page_bytes, budget_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_told_once_enough_is_known_and_survives_a_clock_put_back() {
        let mut growth = Growth::default();
        let room = Room { used_bytes: 900, free_bytes: 0, budget_bytes: 10_900 };
        for minute in 0..10 {
            growth.note(minute * 60 * SECOND_US, minute as u64 * 100);
            assert_eq!(growth.bytes_per_day(), None);
        }
        growth.note(30 * 60 * SECOND_US, 100);
        assert_eq!(growth.bytes_per_day(), Some(100 * 48));
        assert_eq!(room.days_left(4_800), Some(2.1));
        assert_eq!((room.days_left(0), room.days_left(-1)), (None, None));
        growth.note(-DAY_US, 100);
        assert_eq!(growth.bytes_per_day(), None);
    }
}
