//! Devices and metrics that are no more.
//!
//! Arrives: removals. Leaves: what a restart and the cloud have to know of them, and which rows are
//! still to go. Always holds: from the commit of a removal on its name leads nowhere, after a restart
//! too; what its series have left is swept in small steps, until nothing is left that could still
//! bring more of them.

use super::Step;
use super::changes::Recorder;
use super::schema::{meta, set_meta};
use super::steps::delete;
use super::writer::write_births;
use crate::archive::series_of;
use crate::catalog::{Birth, Removed};
use model::Micros;
use rusqlite::{Connection, params};
use std::collections::HashSet;

/// What stands before the id of a series or device in place of the name that it had; no name begins so.
const MARK: &str = "char(1) || id";
/// Rows that one commit removes.
const SLICE: usize = 512;

/// True for what stands in place of a name.
pub(crate) fn is_mark(name: &str) -> bool {
    name.starts_with('\u{1}')
}

/// Removes the names, in the transaction of a commit after which `seq` is the last batch.
pub(super) fn write(db: &Connection, removed: &Removed, seq: u64, now_us: Micros) -> rusqlite::Result<()> {
    let Removed { device, metric, series, era, .. } = removed;
    let mut rename = db.prepare_cached(&format!("UPDATE series SET metric = {MARK}, unit = NULL WHERE id = ?1"))?;
    let mut sweep = db.prepare_cached("INSERT OR REPLACE INTO sweep VALUES (?1, ?2, ?3)")?;
    for series in series {
        rename.execute([series.id])?;
        // Windows of a device that stays are told anew, without the metric.
        sweep.execute(params![series.id, seq as i64, metric.is_some().then_some(device.id)])?;
    }
    if metric.is_some() {
        db.prepare_cached("UPDATE device SET era = ?2 WHERE id = ?1")?.execute(params![device.id, era])?;
    } else {
        db.prepare_cached(&format!("UPDATE device SET name = {MARK} WHERE id = ?1"))?.execute([device.id])?;
        db.prepare_cached("DELETE FROM label WHERE device = ?1")?.execute([device.id])?;
        db.prepare_cached("DELETE FROM removed WHERE device = ?1")?.execute([&*device.name])?;
    }
    let name = metric.as_deref().unwrap_or_default();
    db.prepare_cached("INSERT OR REPLACE INTO removed VALUES (?1, ?2, ?3, ?4)")?.execute(params![
        &*device.name,
        name,
        era,
        now_us
    ])?;
    set_meta(db, "era", era)
}

/// Removes, while no gateway runs.
pub(crate) fn write_alone(
    db: &Connection,
    births: &[Birth],
    recorder: Option<Recorder>,
    last_seq: u64,
    now_us: Micros,
) -> rusqlite::Result<()> {
    let change = db.unchecked_transaction()?;
    write_births(db, births, last_seq, now_us)?;
    if let Some(mut recorder) = recorder {
        recorder.begin();
        recorder.births(db, births, now_us)?;
    }
    change.commit()
}

/// All that was removed and is not there again, device, metric and era; an empty metric is the device.
pub(crate) fn removed(db: &Connection) -> rusqlite::Result<Vec<(String, String, u32)>> {
    let mut query = db.prepare("SELECT device, metric, era FROM removed ORDER BY era")?;
    query.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
}

/// Series whose rows are to go.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sweep {
    series: HashSet<u32>,
    /// The last commit that may hold readings of them.
    seq: i64,
    /// Devices whose windows are still to be told anew.
    pub devices: Vec<u32>,
}

impl Sweep {
    /// Reads what is to be swept.
    pub(crate) fn read(db: &Connection) -> rusqlite::Result<Self> {
        let mut sweep = Sweep::default();
        let mut query = db.prepare_cached("SELECT series, seq, device FROM sweep")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            sweep.series.insert(row.get(0)?);
            sweep.seq = sweep.seq.max(row.get(1)?);
            sweep.devices.extend(row.get::<_, Option<u32>>(2)?);
        }
        sweep.devices.sort_unstable();
        sweep.devices.dedup();
        Ok(sweep)
    }

    /// True if there is nothing to sweep.
    pub(crate) fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    /// True once nothing is under way that could bring more rows: neither in batches nor in open windows.
    pub(crate) fn is_settled(&self, db: &Connection) -> rusqlite::Result<bool> {
        let archived: i64 = meta(db, "archived_seq")?.unwrap_or(0);
        let replay_from: i64 = meta(db, "replay_from")?.unwrap_or(1);
        let left = db.prepare_cached("SELECT 1 FROM batch WHERE seq <= ?1 LIMIT 1")?.exists([self.seq])?;
        Ok((archived >= self.seq || !left) && replay_from > self.seq)
    }

    /// Steps that remove what is there of them; the last, if there is nothing, strikes them off the list.
    pub(crate) fn steps(&self, db: &Connection) -> rusqlite::Result<Vec<Step>> {
        let settled = self.is_settled(db)?;
        let chunks = self.rows(db, "SELECT id FROM chunk INDEXED BY chunk_received")?;
        let rollups = self.rows(db, "SELECT id FROM rollup INDEXED BY rollup_received")?;
        let summaries = self.summaries(db)?;
        if settled && chunks.is_empty() && rollups.is_empty() && summaries.is_empty() {
            return Ok(vec![Step::Swept(self.series.iter().copied().collect())]);
        }
        let chunks = chunks.chunks(SLICE).map(|ids| Step::Remove(ids.to_vec()));
        let rollups = rollups.chunks(SLICE).map(|ids| Step::RetireRollups(ids.to_vec()));
        let summaries = summaries.chunks(SLICE).map(|keys| Step::Sweep(keys.to_vec()));
        Ok(chunks.chain(rollups).chain(summaries).collect())
    }

    /// Ids of rows of the series, from an index that has nothing else.
    fn rows(&self, db: &Connection, sql: &str) -> rusqlite::Result<Vec<i64>> {
        let mut query = db.prepare_cached(sql)?;
        let ids = query.query_map([], |row| row.get::<_, i64>(0))?;
        ids.filter(|id| id.as_ref().map_or(true, |id| self.series.contains(&series_of(*id)))).collect()
    }

    fn summaries(&self, db: &Connection) -> rusqlite::Result<Vec<(Micros, Micros, u32)>> {
        let mut query = db.prepare_cached("SELECT length_us, start_us, series FROM summary")?;
        let keys = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        keys.filter(|key| key.as_ref().map_or(true, |(_, _, series)| self.series.contains(series))).collect()
    }
}

/// Removes summaries by length, start and series.
pub(super) fn sweep(db: &Connection, keys: &[(Micros, Micros, u32)]) -> rusqlite::Result<()> {
    let mut delete = db.prepare_cached("DELETE FROM summary WHERE length_us = ?1 AND start_us = ?2 AND series = ?3")?;
    keys.iter()
        .try_for_each(|&(length_us, start_us, series)| delete.execute(params![length_us, start_us, series]).map(drop))
}

/// Nothing is left of these series.
pub(super) fn swept(db: &Connection, series: &[u32]) -> rusqlite::Result<()> {
    let ids: Vec<i64> = series.iter().copied().map(i64::from).collect();
    delete(db, "DELETE FROM retired WHERE series = ?1", &ids)?;
    delete(db, "DELETE FROM sweep WHERE series = ?1", &ids)
}

/// The windows of these devices have been told anew.
pub(super) fn told(db: &Connection, devices: &[u32]) -> rusqlite::Result<()> {
    let ids: Vec<i64> = devices.iter().copied().map(i64::from).collect();
    delete(db, "UPDATE sweep SET device = NULL WHERE device = ?1", &ids)
}
