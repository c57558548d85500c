//! Tables, settings and versions of the file.

use super::Sqlite;
use crate::shard::{Identity, ShardError};
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use std::path::Path;

/// "TIDC": tells the file from other SQLite files.
const APPLICATION_ID: i32 = 0x5449_4443;
const VERSION: i32 = MIGRATIONS.len() as i32;
/// What each version added to the one before; the first makes a shard out of an empty file.
const MIGRATIONS: &[&str] = &[VERSION_1, VERSION_2, VERSION_3, VERSION_4];

const VERSION_1: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID;
-- What this shard may do with each slot that it has ever known: open, importing, arrived, fenced, closed.
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

const VERSION_3: &str = "
-- Devices that are no more, and metrics of devices: an empty metric stands for the whole device. What is of an
-- earlier version is not taken; swept says that nothing is left of it here.
CREATE TABLE removed (device INTEGER NOT NULL, metric TEXT NOT NULL, incarnation INTEGER NOT NULL,
    revision INTEGER NOT NULL, received_us INTEGER NOT NULL, swept INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (device, metric)) STRICT, WITHOUT ROWID;
CREATE INDEX removed_unswept ON removed (device) WHERE swept = 0;
";

const VERSION_4: &str = "
-- Lists are read page by page.
CREATE INDEX device_by_gateway ON device (gateway, name);
-- Since when a sender has been this session, and whether two stores send at one time.
ALTER TABLE sender ADD COLUMN since_us INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sender ADD COLUMN disputed INTEGER NOT NULL DEFAULT 0;
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

/// Whose the shard is.
pub(super) fn identity(db: &Connection) -> rusqlite::Result<Option<Identity>> {
    let fact = |key: &str| {
        db.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get::<_, String>(0)).optional()
    };
    let (cloud, shard) = (fact("cloud")?, fact("shard")?);
    Ok(cloud.zip(shard).map(|(cloud, shard)| Identity { cloud, shard }))
}

/// Takes a shard that is nobody's; an error if it is somebody else's.
pub(super) fn own(db: &Connection, owner: &Identity) -> Result<(), ShardError> {
    if let Some(found) = identity(db)? {
        return owner.check(&found);
    }
    let facts = "INSERT INTO meta VALUES ('cloud', ?1), ('shard', ?2)";
    db.execute(facts, [&owner.cloud, &owner.shard])?;
    Ok(())
}

pub(super) fn open_reader(path: &Path) -> Result<Connection, ShardError> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    db.busy_timeout(Sqlite::BUSY)?;
    db.execute_batch("PRAGMA query_only=ON; PRAGMA cache_size=-8000; PRAGMA temp_store=MEMORY;")?;
    db.set_prepared_statement_cache_capacity(64);
    Ok(db)
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
