//! Rows to SQL and back, inside whatever transaction the caller has begun.

use super::Sqlite;
use super::rollup::{Seals, import_sealed};
use crate::node::row::{Key, Other, Row, Version, put_sketches, take_sketches, value_of_json, value_to_json};
use crate::node::shard::merge::HOUR_US;
use crate::node::shard::{
    Beat, Fence, Known, LabelsVersion, Part, Sender, ShardError, State, Write, check_lengths, check_readable,
    check_writable, tell_sealed,
};
use crate::placement::Epoch;
use crate::uplink::Held;
use model::time::window_start;
use model::{Micros, Sketch, Summary};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// "TIDC": tells the file from other SQLite files.
const APPLICATION_ID: i32 = 0x5449_4443;
const VERSION: i32 = MIGRATIONS.len() as i32;
/// What each version added to the one before; the first makes a shard out of an empty file.
const MIGRATIONS: &[&str] = &[VERSION_1, VERSION_2];
/// Devices of a slot have numbers from `slot << DEVICE_BITS` on.
const DEVICE_BITS: i64 = 40;

const VERSION_1: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID;
-- What this shard may do with each slot that it has ever known: open, importing, fenced, closed.
CREATE TABLE slot (slot INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, state TEXT NOT NULL) STRICT;
-- id is (slot << 40 | number). labels are a JSON object.
CREATE TABLE device (id INTEGER PRIMARY KEY, gateway TEXT NOT NULL, name TEXT NOT NULL,
    labels TEXT NOT NULL DEFAULT '{}', UNIQUE (name, gateway)) STRICT;
-- One row per window of a device; arrays are JSON, one entry for each metric. sketch holds all of them.
CREATE TABLE summary (device INTEGER NOT NULL, length_us INTEGER NOT NULL, start_us INTEGER NOT NULL,
    incarnation INTEGER NOT NULL, revision INTEGER NOT NULL, received_us INTEGER NOT NULL,
    metric TEXT NOT NULL, count TEXT NOT NULL, texts TEXT NOT NULL, sum TEXT NOT NULL, m2 TEXT NOT NULL,
    min TEXT NOT NULL, max TEXT NOT NULL, first_us TEXT NOT NULL, first TEXT NOT NULL,
    last_us TEXT NOT NULL, last TEXT NOT NULL, sketch BLOB NOT NULL,
    PRIMARY KEY (device, length_us, start_us)) STRICT, WITHOUT ROWID;
CREATE INDEX summary_received ON summary (received_us);
-- The same by hour and by day, for all hours that are not stale.
CREATE TABLE rollup (device INTEGER NOT NULL, length_us INTEGER NOT NULL, start_us INTEGER NOT NULL,
    incarnation INTEGER NOT NULL, revision INTEGER NOT NULL, received_us INTEGER NOT NULL,
    metric TEXT NOT NULL, count TEXT NOT NULL, texts TEXT NOT NULL, sum TEXT NOT NULL, m2 TEXT NOT NULL,
    min TEXT NOT NULL, max TEXT NOT NULL, first_us TEXT NOT NULL, first TEXT NOT NULL,
    last_us TEXT NOT NULL, last TEXT NOT NULL, sketch BLOB NOT NULL,
    PRIMARY KEY (device, length_us, start_us)) STRICT, WITHOUT ROWID;
CREATE TABLE stale (device INTEGER NOT NULL, hour_us INTEGER NOT NULL,
    PRIMARY KEY (device, hour_us)) STRICT, WITHOUT ROWID;
CREATE INDEX stale_hour ON stale (hour_us);
-- Lengths of windows that there have ever been.
CREATE TABLE length (length_us INTEGER PRIMARY KEY) STRICT;
-- Which batches of a gateway are here, and who may send more.
CREATE TABLE sender (gateway TEXT PRIMARY KEY, incarnation INTEGER NOT NULL, starts INTEGER NOT NULL,
    session INTEGER NOT NULL, highest INTEGER NOT NULL, recent INTEGER NOT NULL) STRICT, WITHOUT ROWID;
-- What gateways that live here say of themselves, as JSON.
CREATE TABLE gateway (id TEXT PRIMARY KEY, slot INTEGER NOT NULL, beat TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE VIEW summaries AS
    SELECT d.gateway, d.name AS device, m.value AS metric,
        datetime(s.start_us / 1000000, 'unixepoch') AS start_utc, s.length_us / 1000000 AS length_s,
        s.count ->> m.key AS count, s.texts ->> m.key AS texts, s.sum ->> m.key AS sum,
        (s.sum ->> m.key) / (s.count ->> m.key) AS mean,
        CASE WHEN s.count ->> m.key > 1 THEN (s.m2 ->> m.key) / ((s.count ->> m.key) - 1) END AS variance,
        s.min ->> m.key AS min, s.max ->> m.key AS max, s.first ->> m.key AS first, s.last ->> m.key AS last,
        s.incarnation, s.revision
    FROM summary s JOIN device d ON d.id = s.device JOIN json_each(s.metric) m;
";

const VERSION_2: &str = "
ALTER TABLE device ADD COLUMN labels_incarnation INTEGER NOT NULL DEFAULT 0;
ALTER TABLE device ADD COLUMN labels_batch INTEGER NOT NULL DEFAULT 0;
UPDATE device SET labels_batch = 1 WHERE labels <> '{}';
CREATE INDEX rollup_received ON rollup (length_us, revision, received_us);
-- Rollups with revision 1 are sealed: their windows have been retired.
UPDATE rollup SET revision = 1 WHERE length_us = 3600000000
    AND received_us < (SELECT value FROM meta WHERE key = 'retired_us');
";

pub(super) fn open(path: &Path) -> Result<Connection, ShardError> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)
            .map_err(|e| ShardError::Down(format!("{} cannot be made: {e}", directory.display())))?;
    }
    let db = Connection::open(path)?;
    db.busy_timeout(Sqlite::BUSY)?;
    let fact = |name: &str| db.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i32>(0));
    let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    match (fact("application_id")?, fact("user_version")?, tables) {
        (0, 0, 0) => db.execute_batch(&format!(
            "PRAGMA page_size=8192; PRAGMA auto_vacuum=INCREMENTAL; PRAGMA synchronous=EXTRA; PRAGMA journal_mode=WAL;
             BEGIN IMMEDIATE; {} PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={VERSION}; COMMIT;",
            MIGRATIONS.concat()
        ))?,
        (APPLICATION_ID, VERSION, _) => {}
        (APPLICATION_ID, found @ 1..VERSION, _) => db.execute_batch(&format!(
            "PRAGMA synchronous=FULL; BEGIN IMMEDIATE; {} PRAGMA user_version={VERSION}; COMMIT;",
            MIGRATIONS[found as usize..].concat()
        ))?,
        (APPLICATION_ID, found, _) => {
            return Err(ShardError::Down(format!(
                "{} has schema version {found}, this build knows {VERSION}: run a newer tidegate-cloud",
                path.display()
            )));
        }
        _ => {
            return Err(ShardError::Down(format!("{} is no shard of Tidegate: choose another file", path.display())));
        }
    }
    db.execute_batch(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-16000; PRAGMA temp_store=MEMORY;",
    )?;
    db.set_prepared_statement_cache_capacity(64);
    Ok(db)
}

pub(super) fn open_reader(path: &Path) -> Result<Connection, ShardError> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    db.busy_timeout(Sqlite::BUSY)?;
    db.execute_batch("PRAGMA query_only=ON; PRAGMA cache_size=-8000; PRAGMA temp_store=MEMORY;")?;
    db.set_prepared_statement_cache_capacity(64);
    Ok(db)
}

/// All slots that are known, read again only when they have changed.
#[derive(Debug, Default)]
pub(super) struct Fences(Mutex<(i64, Arc<BTreeMap<u16, Fence>>)>);

impl Fences {
    /// Checks that the snapshot owns slots at epochs.
    pub(super) fn check(&self, db: &Connection, wanted: &[(u16, Epoch)]) -> Result<(), ShardError> {
        let mut version = db.prepare_cached("SELECT value FROM meta WHERE key = 'fences'")?;
        let version: i64 = version.query_row([], |row| row.get(0)).optional()?.unwrap_or(0);
        let known = {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if known.0 != version {
                *known = (version, Arc::new(fences(db)?));
            }
            Arc::clone(&known.1)
        };
        check_readable(&known, wanted)
    }
}

pub(super) fn fences(db: &Connection) -> rusqlite::Result<BTreeMap<u16, Fence>> {
    let mut query = db.prepare_cached("SELECT slot, epoch, state FROM slot")?;
    let rows = query.query_map([], |row| {
        let state = State::of_name(&row.get::<_, String>(2)?);
        Ok(Fence { slot: row.get(0)?, epoch: row.get::<_, i64>(1)? as u64, state })
    })?;
    rows.map(|row| row.map(|fence| (fence.slot, fence))).collect()
}

fn fence(db: &Connection, slot: u16) -> rusqlite::Result<Option<Fence>> {
    let mut query = db.prepare_cached("SELECT epoch, state FROM slot WHERE slot = ?1")?;
    let row = query.query_row([slot], |row| {
        let state = State::of_name(&row.get::<_, String>(1)?);
        Ok(Fence { slot, epoch: row.get::<_, i64>(0)? as u64, state })
    });
    row.optional()
}

fn check_all_writable(db: &Connection, wanted: &[(u16, Epoch)], importing_only: bool) -> Result<(), ShardError> {
    let each = |&(slot, epoch): &(u16, Epoch)| check_writable(slot, fence(db, slot)?.as_ref(), epoch, importing_only);
    wanted.iter().try_for_each(each)
}

pub(super) fn set_fences(db: &Connection, fences: &[Fence]) -> Result<(), ShardError> {
    for wanted in fences {
        if let Some(found) = fence(db, wanted.slot)?.filter(|found| found.epoch > wanted.epoch) {
            return Err(ShardError::fenced(wanted.slot, Some(&found)));
        }
        db.prepare_cached("INSERT OR REPLACE INTO slot VALUES (?1, ?2, ?3)")?.execute(params![
            wanted.slot,
            wanted.epoch as i64,
            wanted.state.name()
        ])?;
    }
    db.execute("INSERT INTO meta VALUES ('fences', 1) ON CONFLICT (key) DO UPDATE SET value = value + 1", [])?;
    Ok(())
}

pub(super) fn sender(db: &Connection, gateway: &str) -> rusqlite::Result<Option<(Sender, Held)>> {
    let mut query =
        db.prepare_cached("SELECT incarnation, starts, session, highest, recent FROM sender WHERE gateway = ?1")?;
    let row = query.query_row([gateway], |row| {
        let number = |at: usize| row.get::<_, i64>(at).map(|n| n as u64);
        let sender =
            Sender { gateway: gateway.into(), incarnation: number(0)?, starts: number(1)?, session: number(2)? };
        Ok((sender, Held { highest: number(3)?, recent: number(4)? }))
    });
    row.optional()
}

fn put_sender(db: &Connection, sender: &Sender, held: Held) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR REPLACE INTO sender VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
        &*sender.gateway,
        sender.incarnation as i64,
        sender.starts as i64,
        sender.session as i64,
        held.highest as i64,
        held.recent as i64
    ])?;
    Ok(())
}

pub(super) fn write(db: &Connection, write: &Write) -> Result<Held, ShardError> {
    check_all_writable(db, &write.fences, false)?;
    let mut held = Held::default();
    if let Some((known, kept)) = sender(db, &write.sender.gateway)? {
        write.sender.check(&known)?;
        held = kept;
    }
    if write.expected.lowest_not_in(held).is_some() {
        return Err(ShardError::Lacking(held));
    }
    put_rows(db, &write.rows)?;
    for labelled in &write.labels {
        let id = device(db, labelled.slot, &write.sender.gateway, &labelled.device)?;
        put_labels(db, id, &labelled.labels, (write.sender.incarnation, write.batch))?;
    }
    held.add(write.batch);
    put_sender(db, &write.sender, held)?;
    Ok(held)
}

/// Labels are of the batch that brought them: those of a later one stay.
fn put_labels(
    db: &Connection,
    id: i64,
    labels: &BTreeMap<String, String>,
    (incarnation, batch): LabelsVersion,
) -> rusqlite::Result<()> {
    let labels = serde_json::to_string(labels).unwrap_or_else(|_| "{}".into());
    db.prepare_cached(
        "UPDATE device SET labels = ?2, labels_incarnation = ?3, labels_batch = ?4
         WHERE id = ?1 AND (labels_incarnation, labels_batch) < (?3, ?4)",
    )?
    .execute(params![id, labels, incarnation as i64, batch as i64])?;
    Ok(())
}

pub(super) fn beat(db: &Connection, beat: &Beat, from: &Sender, fence: (u16, Epoch)) -> Result<(), ShardError> {
    check_all_writable(db, &[fence], false)?;
    let known = sender(db, &from.gateway)?;
    if let Some((known, _)) = &known {
        from.check(known)?;
    }
    if known.as_ref().is_none_or(|(known, _)| known != from) {
        put_sender(db, from, known.map_or_else(Held::default, |(_, held)| held))?;
    }
    put_beat(db, beat, fence.0)?;
    Ok(())
}

fn put_beat(db: &Connection, beat: &Beat, slot: u16) -> rusqlite::Result<()> {
    let body = serde_json::to_string(beat).unwrap_or_default();
    db.prepare_cached("INSERT OR REPLACE INTO gateway VALUES (?1, ?2, ?3)")?.execute(params![
        beat.gateway,
        slot,
        body
    ])?;
    Ok(())
}

pub(super) fn beats(db: &Connection) -> Result<Vec<Beat>, ShardError> {
    // Those that have moved away are told by the shard that they live in now.
    let mut query = db.prepare_cached(
        "SELECT g.beat FROM gateway g JOIN slot s ON s.slot = g.slot WHERE s.state IN ('open', 'fenced') ORDER BY g.id",
    )?;
    let rows = query.query_map([], |row| row.get::<_, String>(0))?;
    Ok(rows.filter_map(|beat| serde_json::from_str(&beat.ok()?).ok()).collect())
}

/// The numbers of a slot's devices.
fn numbers(slot: u16) -> (i64, i64) {
    (i64::from(slot) << DEVICE_BITS, (i64::from(slot) + 1) << DEVICE_BITS)
}

pub(super) fn slot_of(device: i64) -> u16 {
    (device >> DEVICE_BITS) as u16
}

/// The number of a device, given now if it has none.
fn device(db: &Connection, slot: u16, gateway: &str, name: &str) -> rusqlite::Result<i64> {
    let mut query = db.prepare_cached("SELECT id FROM device WHERE name = ?1 AND gateway = ?2")?;
    if let Some(id) = query.query_row([name, gateway], |row| row.get(0)).optional()? {
        return Ok(id);
    }
    let (first, behind) = numbers(slot);
    let mut last = db.prepare_cached("SELECT max(id) FROM device WHERE id >= ?1 AND id < ?2")?;
    let last: Option<i64> = last.query_row([first, behind], |row| row.get(0))?;
    let id = last.map_or(first, |last| last + 1);
    db.prepare_cached("INSERT INTO device (id, gateway, name) VALUES (?1, ?2, ?3)")?
        .execute(params![id, gateway, name])?;
    Ok(id)
}

pub(super) fn lengths(db: &Connection) -> rusqlite::Result<BTreeSet<Micros>> {
    let mut query = db.prepare_cached("SELECT length_us FROM length")?;
    query.query_map([], |row| row.get(0))?.collect()
}

fn put_rows(db: &Connection, rows: &[Row]) -> Result<(), ShardError> {
    let mut lengths = lengths(db)?;
    let mut ids: HashMap<(&str, &str), i64> = HashMap::new();
    let (mut seals, mut sealed) = (Seals::of(db)?, 0);
    // Rollups go by the hour in which a window starts.
    let mut stale: BTreeSet<(i64, Micros)> = BTreeSet::new();
    for row in rows {
        let Key { slot, gateway, device: name, length_us, start_us } = &row.key;
        let id = match ids.get(&(&**gateway, &**name)) {
            Some(id) => *id,
            None => device(db, *slot, gateway, name)?,
        };
        ids.insert((gateway, name), id);
        if lengths.insert(*length_us) {
            check_lengths(lengths.len())?;
            db.execute("INSERT OR IGNORE INTO length VALUES (?1)", [length_us])?;
        }
        if seals.hold(id, *length_us, *start_us)? {
            sealed += 1;
            continue;
        }
        if lengths.len() > 1 && !supersede(db, id, row, &lengths, &mut stale)? {
            continue;
        }
        if put_row(db, "summary", id, row)? {
            stale.insert((id, window_start(*start_us, HOUR_US)));
        }
    }
    let mut mark = db.prepare_cached("INSERT OR IGNORE INTO stale VALUES (?1, ?2)")?;
    for (id, hour_us) in stale {
        mark.execute([id, hour_us])?;
    }
    tell_sealed(sealed);
    Ok(())
}

/// Removes windows of other lengths that this one takes the place of; false if one of them stays.
fn supersede(
    db: &Connection,
    id: i64,
    row: &Row,
    lengths: &BTreeSet<Micros>,
    stale: &mut BTreeSet<(i64, Micros)>,
) -> Result<bool, ShardError> {
    let Key { length_us, start_us, .. } = row.key;
    let mut find = db.prepare_cached(
        "SELECT start_us, incarnation FROM summary WHERE device = ?1 AND length_us = ?2 AND start_us > ?3 AND start_us < ?4",
    )?;
    let mut found: Vec<(Micros, Other)> = Vec::new();
    for &other_us in lengths.iter().filter(|&&other_us| other_us != length_us) {
        let rows = find.query_map([id, other_us, start_us - other_us, start_us + length_us], |row| {
            Ok((row.get(0)?, Other { length_us: other_us, incarnation: row.get::<_, i64>(1)? as u64 }))
        })?;
        for other in rows {
            found.push(other?);
        }
    }
    if found.iter().any(|(_, other)| row.yields_to(*other)) {
        return Ok(false);
    }
    for (start_us, other) in found {
        db.prepare_cached("DELETE FROM summary WHERE device = ?1 AND length_us = ?2 AND start_us = ?3")?.execute([
            id,
            other.length_us,
            start_us,
        ])?;
        stale.insert((id, window_start(start_us, HOUR_US)));
    }
    Ok(true)
}

/// Writes a row unless a version as high is there; true if it was written.
pub(super) fn put_row(db: &Connection, table: &str, id: i64, row: &Row) -> Result<bool, ShardError> {
    let array = |of: &dyn Fn(&Summary) -> Json| Json::Array(row.metrics.values().map(of).collect()).to_string();
    let number = |n: f64| if n.is_finite() { Json::from(n) } else { Json::from(n.to_string()) };
    let extreme = |n: f64| if n.is_finite() { Json::from(n) } else { Json::Null };
    let names = Json::Array(row.metrics.keys().map(|name| Json::from(&**name)).collect()).to_string();
    let written = db
        .prepare_cached(&format!(
            "INSERT INTO {table} VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)
             ON CONFLICT DO UPDATE SET incarnation = excluded.incarnation, revision = excluded.revision,
                received_us = excluded.received_us, metric = excluded.metric, count = excluded.count,
                texts = excluded.texts, sum = excluded.sum, m2 = excluded.m2, min = excluded.min, max = excluded.max,
                first_us = excluded.first_us, first = excluded.first, last_us = excluded.last_us,
                last = excluded.last, sketch = excluded.sketch
             WHERE (excluded.incarnation, excluded.revision) > (incarnation, revision)"
        ))?
        .execute(params![
            id,
            row.key.length_us,
            row.key.start_us,
            row.version.incarnation as i64,
            row.version.revision as i64,
            row.received_us,
            names,
            array(&|s| Json::from(s.count)),
            array(&|s| Json::from(s.texts)),
            array(&|s| number(s.sum)),
            array(&|s| number(s.m2)),
            array(&|s| extreme(s.min)),
            array(&|s| extreme(s.max)),
            array(&|s| Json::from(s.first.0)),
            array(&|s| value_to_json(&s.first.1)),
            array(&|s| Json::from(s.last.0)),
            array(&|s| value_to_json(&s.last.1)),
            put_sketches(row.metrics.values().map(|summary| &summary.sketch)),
        ])?;
    Ok(written > 0)
}

/// The columns that [`take_metrics`] reads.
pub(super) const COLUMNS: &str = "metric, count, texts, sum, m2, min, max, first_us, first, last_us, last, sketch";

/// The summaries of a row whose columns begin at `at`; sketches only if they are asked for.
pub(super) fn take_metrics(
    row: &rusqlite::Row<'_>,
    at: usize,
    sketches: bool,
) -> Result<Vec<(String, Summary)>, ShardError> {
    fn array<T: serde::de::DeserializeOwned>(row: &rusqlite::Row<'_>, at: usize) -> Option<Vec<T>> {
        serde_json::from_str(row.get_ref(at).ok()?.as_str().ok()?).ok()
    }
    let number = |value: &Json| match value {
        Json::String(text) => text.parse().ok(),
        value => value.as_f64(),
    };
    let read = || -> Option<Vec<(String, Summary)>> {
        let names: Vec<String> = array(row, at)?;
        let (counts, texts) = (array::<u64>(row, at + 1)?, array::<u64>(row, at + 2)?);
        let (sums, m2s) = (array::<Json>(row, at + 3)?, array::<Json>(row, at + 4)?);
        let (mins, maxs) = (array::<Option<f64>>(row, at + 5)?, array::<Option<f64>>(row, at + 6)?);
        let (first_us, firsts) = (array::<Micros>(row, at + 7)?, array::<Json>(row, at + 8)?);
        let (last_us, lasts) = (array::<Micros>(row, at + 9)?, array::<Json>(row, at + 10)?);
        let mut all = if sketches {
            take_sketches(row.get_ref(at + 11).ok()?.as_blob().ok()?, names.len())?
        } else {
            vec![Sketch::default(); names.len()]
        };
        let of = |(n, name): (usize, String)| {
            let summary = Summary {
                count: *counts.get(n)?,
                texts: *texts.get(n)?,
                sum: number(sums.get(n)?)?,
                m2: number(m2s.get(n)?)?,
                min: mins.get(n)?.unwrap_or(f64::INFINITY),
                max: maxs.get(n)?.unwrap_or(f64::NEG_INFINITY),
                first: (*first_us.get(n)?, value_of_json(firsts.get(n)?)?),
                last: (*last_us.get(n)?, value_of_json(lasts.get(n)?)?),
                sketch: std::mem::take(all.get_mut(n)?),
            };
            Some((name, summary))
        };
        names.into_iter().enumerate().map(of).collect()
    };
    read().ok_or_else(|| ShardError::Down("a row is damaged: restore the shard from a backup".into()))
}

pub(super) fn export(
    db: &Connection,
    slot: u16,
    part: Part,
    after: Option<&Key>,
    limit: usize,
) -> Result<Vec<Row>, ShardError> {
    let (table, which) = part.rows();
    let (first, behind) = numbers(slot);
    let place = match after {
        Some(key) => {
            let mut query = db.prepare_cached("SELECT id FROM device WHERE name = ?1 AND gateway = ?2")?;
            let id: Option<i64> = query.query_row([&*key.device, &*key.gateway], |row| row.get(0)).optional()?;
            (id.unwrap_or(first), key.length_us, key.start_us)
        }
        None => (first, 0, i64::MIN),
    };
    let columns = COLUMNS.split(", ").map(|column| format!("s.{column}")).collect::<Vec<_>>().join(", ");
    let mut query = db.prepare_cached(&format!(
        "SELECT s.length_us, s.start_us, s.incarnation, s.revision, s.received_us, d.gateway, d.name, {columns}
         FROM {table} s JOIN device d ON d.id = s.device
         WHERE (s.device, s.length_us, s.start_us) > (?1, ?2, ?3) AND s.device < ?4 AND {which}
         ORDER BY s.device, s.length_us, s.start_us LIMIT ?5"
    ))?;
    let mut found = query.query(params![place.0, place.1, place.2, behind, limit as i64])?;
    let mut rows = Vec::new();
    while let Some(row) = found.next()? {
        let metrics = take_metrics(row, 7, true)?;
        rows.push(Row {
            key: Key {
                slot,
                gateway: row.get::<_, String>(5)?.into(),
                device: row.get::<_, String>(6)?.into(),
                length_us: row.get(0)?,
                start_us: row.get(1)?,
            },
            version: version(row, 2)?,
            received_us: row.get(4)?,
            metrics: metrics.into_iter().map(|(name, summary)| (name.into(), summary)).collect(),
        });
    }
    Ok(rows)
}

fn version(row: &rusqlite::Row<'_>, at: usize) -> rusqlite::Result<Version> {
    Ok(Version { incarnation: row.get::<_, i64>(at)? as u64, revision: row.get::<_, i64>(at + 1)? as u64 })
}

pub(super) fn export_names(db: &Connection, slot: u16) -> Result<(Vec<Known>, Vec<Beat>), ShardError> {
    let (first, behind) = numbers(slot);
    let mut query =
        db.prepare_cached(
            "SELECT name, gateway, labels, labels_incarnation, labels_batch FROM device WHERE id >= ?1 AND id < ?2 ORDER BY id",
        )?;
    let known = query.query_map([first, behind], |row| {
        Ok(Known {
            device: row.get::<_, String>(0)?.into(),
            gateway: row.get::<_, String>(1)?.into(),
            labels: serde_json::from_str(&row.get::<_, String>(2)?).unwrap_or_default(),
            labels_version: (row.get::<_, i64>(3)? as u64, row.get::<_, i64>(4)? as u64),
            metrics: Vec::new(),
            last_us: None,
        })
    })?;
    let known = known.collect::<rusqlite::Result<_>>()?;
    let mut query = db.prepare_cached("SELECT beat FROM gateway WHERE slot = ?1")?;
    let beats = query.query_map([slot], |row| row.get::<_, String>(0))?;
    Ok((known, beats.filter_map(|beat| serde_json::from_str(&beat.ok()?).ok()).collect()))
}

/// Which slots, of some, have devices or gateways.
pub(super) fn inhabited(db: &Connection, slots: &[u16]) -> Result<Vec<u16>, ShardError> {
    let mut of_devices = db.prepare_cached("SELECT 1 FROM device WHERE id >= ?1 AND id < ?2 LIMIT 1")?;
    let mut gateways = db.prepare_cached("SELECT DISTINCT slot FROM gateway")?;
    let gateways = gateways.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<BTreeSet<u16>>>()?;
    let mut inhabited = Vec::new();
    for &slot in slots {
        let (first, behind) = numbers(slot);
        if gateways.contains(&slot) || of_devices.exists([first, behind])? {
            inhabited.push(slot);
        }
    }
    Ok(inhabited)
}

pub(super) fn import(db: &Connection, rows: &[Row], part: Part, fences: &[(u16, Epoch)]) -> Result<(), ShardError> {
    check_all_writable(db, fences, true)?;
    if part == Part::Windows {
        return put_rows(db, rows);
    }
    let id = |row: &Row| device(db, row.key.slot, &row.key.gateway, &row.key.device);
    let ids = rows.iter().map(id).collect::<rusqlite::Result<Vec<i64>>>()?;
    import_sealed(db, &ids, rows)
}

pub(super) fn import_names(
    db: &Connection,
    slot: u16,
    known: &[Known],
    beats: &[Beat],
    epoch: Epoch,
) -> Result<(), ShardError> {
    check_all_writable(db, &[(slot, epoch)], true)?;
    for known in known {
        let id = device(db, slot, &known.gateway, &known.device)?;
        put_labels(db, id, &known.labels, known.labels_version)?;
    }
    for beat in beats {
        let mut later = db.prepare_cached("SELECT 1 FROM gateway WHERE id = ?1 AND beat ->> 'seen_us' >= ?2")?;
        if !later.exists(params![beat.gateway, beat.seen_us])? {
            put_beat(db, beat, slot)?;
        }
    }
    Ok(())
}

pub(super) fn digests(db: &Connection, slot: u16) -> Result<BTreeMap<i64, (u64, u64)>, ShardError> {
    let (first, behind) = numbers(slot);
    let mut query = db.prepare_cached(
        "SELECT d.gateway, d.name, s.length_us, s.start_us, s.incarnation, s.revision
         FROM (SELECT device, length_us, start_us, incarnation, revision FROM summary WHERE device >= ?1 AND device < ?2
            UNION ALL SELECT device, -length_us, start_us, incarnation, revision FROM rollup
            WHERE device >= ?1 AND device < ?2 AND revision = 1) s JOIN device d ON d.id = s.device",
    )?;
    let mut found = query.query([first, behind])?;
    let mut digests: BTreeMap<i64, (u64, u64)> = BTreeMap::new();
    while let Some(row) = found.next()? {
        let (gateway, device): (String, String) = (row.get(0)?, row.get(1)?);
        let (length_us, start_us) = (row.get(2)?, row.get(3)?);
        let key = Key { slot, gateway: gateway.into(), device: device.into(), length_us, start_us };
        let hour = digests.entry(start_us.div_euclid(HOUR_US)).or_default();
        *hour = (hour.0 + 1, hour.1.wrapping_add(key.digest(version(row, 4)?)));
    }
    Ok(digests)
}

pub(super) fn delete(db: &Connection, wanted: Fence, limit: usize) -> Result<usize, ShardError> {
    let slot = wanted.slot;
    let found = fence(db, slot)?;
    if found != Some(wanted) {
        return Err(ShardError::fenced(slot, found.as_ref()));
    }
    let (first, behind) = numbers(slot);
    let rows = db.execute(
        "DELETE FROM summary WHERE (device, length_us, start_us) IN
            (SELECT device, length_us, start_us FROM summary WHERE device >= ?1 AND device < ?2 LIMIT ?3)",
        params![first, behind, limit as i64],
    )?;
    if rows < limit {
        for table in ["rollup", "stale"] {
            db.execute(&format!("DELETE FROM {table} WHERE device >= ?1 AND device < ?2"), [first, behind])?;
        }
        db.execute("DELETE FROM device WHERE id >= ?1 AND id < ?2", [first, behind])?;
        db.execute("DELETE FROM gateway WHERE slot = ?1", [slot])?;
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_of_an_earlier_version_is_brought_up_to_date_with_all_that_is_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shard.db");
        let before = Connection::open(&path).unwrap();
        let make = format!("{VERSION_1} PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version=1;");
        before.execute_batch(&make).unwrap();
        before
            .execute_batch(
                "INSERT INTO device VALUES (7, 'g', 'd', '{\"site\":\"north\"}');
                 INSERT INTO rollup VALUES (7, 3600000000, 0, 0, 0, 5, '[]', '[]', '[]', '[]', '[]', '[]', '[]', '[]',
                    '[]', '[]', '[]', x'');
                 INSERT INTO meta VALUES ('retired_us', 6);",
            )
            .unwrap();
        drop(before);
        let db = open(&path).unwrap();
        let row = "SELECT (SELECT labels_batch FROM device), (SELECT revision FROM rollup)";
        let found: (i64, i64) = db.query_row(row, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        assert_eq!(found, (1, 1), "labels that are older than any to come, and an hour that is sealed");
        drop(db);
        assert!(open(&path).is_ok(), "and again");
    }
}
