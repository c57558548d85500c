//! The store's tables, settings and versions.
//!
//! One SQLite file. Raw readings are compressed batches; devices, series and summaries are
//! plain rows that a person reads with any SQLite tool (`SELECT * FROM summaries`). All times
//! are microseconds since the Unix epoch. `auto_vacuum`, page size and `application_id` are
//! set at creation: later is too late.

use super::pair;
use daemon::files;
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// "TIDE": tells the file from other SQLite files.
const APPLICATION_ID: i32 = 0x5449_4445;
const VERSION: i32 = MIGRATIONS.len() as i32;
const FILE: &str = "tidegate.db";

/// What each version added to the one before; the first makes a store out of an empty file.
const MIGRATIONS: &[&str] = &[VERSION_1, VERSION_2, VERSION_3, VERSION_4, VERSION_5, VERSION_6];

const VERSION_1: &str = "
-- Facts about the store itself: id, incarnation, created_us, replay_from.
CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID;
CREATE TABLE device (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, created_us INTEGER NOT NULL) STRICT;
CREATE TABLE series (id INTEGER PRIMARY KEY, device INTEGER NOT NULL REFERENCES device, metric TEXT NOT NULL,
    unit TEXT, UNIQUE (device, metric)) STRICT;
-- One row per commit; body holds the readings, see journal/batch.rs.
CREATE TABLE batch (seq INTEGER PRIMARY KEY, received_us INTEGER NOT NULL, readings INTEGER NOT NULL,
    first_us INTEGER NOT NULL, last_us INTEGER NOT NULL, body BLOB NOT NULL) STRICT;
-- One row per window and series. Numbers only in count, sum, m2 (sum of squared deviations
-- from the mean), min, max and sketch; first and last may be state texts.
CREATE TABLE summary (length_us INTEGER NOT NULL, start_us INTEGER NOT NULL, series INTEGER NOT NULL,
    revision INTEGER NOT NULL, through_seq INTEGER NOT NULL, count INTEGER NOT NULL, texts INTEGER NOT NULL,
    sum REAL, m2 REAL, min REAL, max REAL, first_us INTEGER NOT NULL, first ANY NOT NULL,
    last_us INTEGER NOT NULL, last ANY NOT NULL, sketch BLOB NOT NULL,
    PRIMARY KEY (length_us, start_us, series)) STRICT, WITHOUT ROWID;
CREATE TABLE reject (id INTEGER PRIMARY KEY, received_us INTEGER NOT NULL, source TEXT NOT NULL,
    reason TEXT NOT NULL, detail TEXT NOT NULL, payload BLOB NOT NULL) STRICT;
CREATE TABLE retained (topic TEXT PRIMARY KEY, qos INTEGER NOT NULL, properties BLOB NOT NULL,
    payload BLOB NOT NULL) STRICT, WITHOUT ROWID;
-- QoS 2 packet identifiers whose messages are stored and not yet released by their client.
CREATE TABLE inbound (client TEXT NOT NULL, pkid INTEGER NOT NULL, hash INTEGER NOT NULL,
    PRIMARY KEY (client, pkid)) STRICT, WITHOUT ROWID;
-- What a restart would otherwise recompute from all readings, see journal/recover.rs.
CREATE TABLE snapshot (id INTEGER PRIMARY KEY CHECK (id = 1), seq INTEGER NOT NULL, body BLOB NOT NULL) STRICT;
CREATE VIEW summaries AS
    SELECT d.name AS device, s.metric, datetime(y.start_us / 1000000, 'unixepoch') AS start_utc,
        y.length_us / 1000000 AS length_s, y.count, y.texts, y.sum, y.sum / y.count AS mean,
        CASE WHEN y.count > 1 THEN max(y.m2, 0) / (y.count - 1) END AS variance,
        y.min, y.max, y.first, y.last, y.revision
    FROM summary y JOIN series s ON s.id = y.series JOIN device d ON d.id = s.device;
";

const VERSION_2: &str = "
ALTER TABLE retained ADD COLUMN expires_us INTEGER;
-- Readings of one series and one day, see archive/chunk.rs; id is (day << 41 | series << 16 |
-- part) with days since the epoch. A part replaces those from part - covers on, and counts
-- once meta.archived_seq has reached its seq: batches up to there are in chunks.
CREATE TABLE chunk (id INTEGER PRIMARY KEY, covers INTEGER NOT NULL, seq INTEGER NOT NULL,
    received_us INTEGER NOT NULL, readings INTEGER NOT NULL, first_us INTEGER NOT NULL,
    last_us INTEGER NOT NULL, body BLOB NOT NULL) STRICT;
CREATE TABLE label (device INTEGER NOT NULL REFERENCES device, name TEXT NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (device, name)) STRICT, WITHOUT ROWID;
CREATE VIEW chunks AS
    SELECT d.name AS device, s.metric, date((c.id >> 41) * 86400, 'unixepoch') AS day, c.id & 65535 AS part,
        c.readings, length(c.body) AS bytes, c.first_us, c.last_us, c.received_us
    FROM chunk c JOIN series s ON s.id = (c.id >> 16) & 33554431 JOIN device d ON d.id = s.device;
";

const VERSION_3: &str = "
CREATE TABLE level (id INTEGER PRIMARY KEY, length_us INTEGER NOT NULL UNIQUE) STRICT;
INSERT INTO level (length_us) SELECT DISTINCT length_us FROM summary;
-- Summaries of one series at one level over a span of days, see archive/levels.rs; id is
-- (span << 41 | series << 16 | level). Rows of the table summary that are as old have gone.
CREATE TABLE rollup (id INTEGER PRIMARY KEY, received_us INTEGER NOT NULL, windows INTEGER NOT NULL,
    from_us INTEGER NOT NULL, to_us INTEGER NOT NULL, body BLOB NOT NULL) STRICT;
CREATE INDEX rollup_received ON rollup (received_us);
CREATE INDEX chunk_received ON chunk (received_us);
CREATE INDEX summary_revised ON summary (series, start_us) WHERE revision > 1;
-- Days, counted from the epoch, whose readings have been retired: what is left are rollups.
CREATE TABLE retired (series INTEGER NOT NULL, from_day INTEGER NOT NULL, to_day INTEGER NOT NULL,
    PRIMARY KEY (series, from_day)) STRICT, WITHOUT ROWID;
CREATE VIEW rollups AS
    SELECT d.name AS device, s.metric, l.length_us / 1000000 AS length_s, r.windows, length(r.body) AS bytes,
        datetime(r.from_us / 1000000, 'unixepoch') AS from_utc, datetime(r.to_us / 1000000, 'unixepoch') AS to_utc
    FROM rollup r JOIN series s ON s.id = (r.id >> 16) & 33554431 JOIN device d ON d.id = s.device
        JOIN level l ON l.id = r.id & 65535;
";

const VERSION_4: &str = "
-- What the uplink sends: windows that have come to something, see journal/changes.rs.
CREATE TABLE change (id INTEGER PRIMARY KEY AUTOINCREMENT, made_us INTEGER NOT NULL, body BLOB NOT NULL) STRICT;
-- Which changes a batch has carried to the cloud, from and to (exclusive).
CREATE TABLE sent (batch INTEGER PRIMARY KEY, from_change INTEGER NOT NULL, to_change INTEGER NOT NULL,
    acknowledged_us INTEGER NOT NULL) STRICT;
CREATE INDEX sent_from ON sent (from_change);
";

const VERSION_5: &str = "
-- Parts of days that still grow lie by part: their id is (day << 41 | 1 << 40 | part - 65536 << 25 |
-- series), see archive.rs. This finds those of one series and day.
CREATE INDEX chunk_by_part ON chunk (id >> 41, id & 33554431) WHERE id & 1099511627776 <> 0;
DROP VIEW chunks;
CREATE VIEW chunks AS
    SELECT d.name AS device, s.metric, date((c.id >> 41) * 86400, 'unixepoch') AS day,
        iif(c.id & 1099511627776, 65536 + (c.id >> 25 & 32767), c.id & 65535) AS part,
        c.readings, length(c.body) AS bytes, c.first_us, c.last_us, c.received_us
    FROM chunk c JOIN series s ON s.id = iif(c.id & 1099511627776, c.id & 33554431, c.id >> 16 & 16777215)
        JOIN device d ON d.id = s.device;
";

const VERSION_6: &str = "
-- How many removals there had been when a device was born, or when a metric of it was last removed: what
-- is sent of it is of a later revision than anything sent before.
ALTER TABLE device ADD COLUMN era INTEGER NOT NULL DEFAULT 0;
-- What has been removed; an empty metric stands for the whole device. The series keep their rows, with
-- char(1) and an id for a name.
CREATE TABLE removed (device TEXT NOT NULL, metric TEXT NOT NULL, era INTEGER NOT NULL, removed_us INTEGER NOT NULL,
    PRIMARY KEY (device, metric)) STRICT, WITHOUT ROWID;
-- Series that are no more, of which there may be readings or summaries yet, see journal/removal.rs.
CREATE TABLE sweep (series INTEGER PRIMARY KEY, seq INTEGER NOT NULL, device INTEGER) STRICT;
DROP VIEW summaries;
CREATE VIEW summaries AS
    SELECT d.name AS device, s.metric, datetime(y.start_us / 1000000, 'unixepoch') AS start_utc,
        y.length_us / 1000000 AS length_s, y.count, y.texts, y.sum, y.sum / y.count AS mean,
        CASE WHEN y.count > 1 THEN max(y.m2, 0) / (y.count - 1) END AS variance,
        y.min, y.max, y.first, y.last, y.revision
    FROM summary y JOIN series s ON s.id = y.series JOIN device d ON d.id = s.device WHERE unicode(s.metric) > 1;
DROP VIEW chunks;
CREATE VIEW chunks AS
    SELECT d.name AS device, s.metric, date((c.id >> 41) * 86400, 'unixepoch') AS day,
        iif(c.id & 1099511627776, 65536 + (c.id >> 25 & 32767), c.id & 65535) AS part,
        c.readings, length(c.body) AS bytes, c.first_us, c.last_us, c.received_us
    FROM chunk c JOIN series s ON s.id = iif(c.id & 1099511627776, c.id & 33554431, c.id >> 16 & 16777215)
        JOIN device d ON d.id = s.device WHERE unicode(s.metric) > 1;
DROP VIEW rollups;
CREATE VIEW rollups AS
    SELECT d.name AS device, s.metric, l.length_us / 1000000 AS length_s, r.windows, length(r.body) AS bytes,
        datetime(r.from_us / 1000000, 'unixepoch') AS from_utc, datetime(r.to_us / 1000000, 'unixepoch') AS to_utc
    FROM rollup r JOIN series s ON s.id = (r.id >> 16) & 33554431 JOIN device d ON d.id = s.device
        JOIN level l ON l.id = r.id & 65535 WHERE unicode(s.metric) > 1;
";

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be made or written.
    #[error(
        "data directory {path} cannot be used: {source}; choose another with gateway.data_dir or fix its permissions"
    )]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// There is none.
    #[error("there is no store at {0}: check gateway.data_dir")]
    Nothing(PathBuf),
    /// Another gateway has it.
    #[error("data directory {0} is in use by another gateway: stop it, or choose another with gateway.data_dir")]
    InUse(PathBuf),
    /// The log is there and the store is not.
    #[error(
        "{path} is empty or gone, but {log} holds commits for it, so nothing was touched: put the store back (a copy \
         of it, or of a filesystem snapshot), or move both away to begin anew"
    )]
    Gone {
        /// The file.
        path: PathBuf,
        /// Its log.
        log: PathBuf,
    },
    /// The log is another's.
    #[error(
        "{path} is older than {log}, which holds commits for a later one, so nothing was touched: if you have put a \
         backup back, move {log} and what else begins with tidegate.db- away first; else put the right file back"
    )]
    Other {
        /// The file.
        path: PathBuf,
        /// The log beside it.
        log: PathBuf,
    },
    /// Not even SQLite's.
    #[error(
        "{0} is damaged from its first page on, so nothing was touched: keep a copy, then put a backup back, or save \
         what can be read with `tidegate doctor --salvage NEW_DIRECTORY`"
    )]
    Damaged(PathBuf),
    /// Not ours.
    #[error("{0} is an SQLite file, but not a Tidegate store: choose another gateway.data_dir")]
    Foreign(PathBuf),
    /// From the future.
    #[error("{path} has schema version {found}, this build knows up to {VERSION}: run a newer tidegate")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i32,
    },
    /// Anything else that SQLite says.
    #[error("store {path} cannot be opened: {source}; `tidegate doctor` says what is wrong with it")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
}

/// A store that this process alone writes.
#[derive(Debug)]
pub struct Store {
    /// The writing connection.
    pub connection: Connection,
    /// The file.
    pub path: PathBuf,
    _lock: File,
}

/// Opens the store in `directory`, created if there is none.
pub fn open(directory: &Path) -> Result<Store, OpenError> {
    let at = |source| OpenError::Directory { path: directory.into(), source };
    files::directory(directory).map_err(at)?;
    let lock = File::options().create(true).truncate(false).write(true).open(directory.join("lock")).map_err(at)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(directory.into())),
        Err(TryLockError::Error(source)) => return Err(at(source)),
    }
    let path = file(directory);
    let sqlite = |source| OpenError::Sqlite { path: path.clone(), source };
    pair::check(&path)?;
    let connection = Connection::open(&path).map_err(sqlite)?;
    let version: i32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(sqlite)?;
    let application: i32 = connection.query_row("PRAGMA application_id", [], |row| row.get(0)).map_err(sqlite)?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(sqlite)?;
    match (application, version, tables) {
        (0, 0, 0) => create(&connection).map_err(sqlite)?,
        (APPLICATION_ID, found, _) if found > VERSION => return Err(OpenError::Newer { path, found }),
        (APPLICATION_ID, found, _) if found > 0 => migrate(&connection, found).map_err(sqlite)?,
        _ => return Err(OpenError::Foreign(path)),
    }
    settle(&connection).map_err(sqlite)?;
    pair::count(&connection, &path);
    files::close_all(directory);
    Ok(Store { connection, path, _lock: lock })
}

/// Opens the store in `directory`, which must be there.
pub fn open_existing(directory: &Path) -> Result<Store, OpenError> {
    let path = file(directory);
    if path.exists() { open(directory) } else { Err(OpenError::Nothing(path)) }
}

fn create(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        // EXTRA: a journal of the time before the log must not come back to life after a power cut.
        "PRAGMA page_size=4096; PRAGMA auto_vacuum=INCREMENTAL; PRAGMA synchronous=EXTRA; PRAGMA journal_mode=WAL;",
    )?;
    migrate(connection, 0)
}

/// Brings a store of an earlier version up to this one, in one transaction.
fn migrate(connection: &Connection, found: i32) -> rusqlite::Result<()> {
    if found == VERSION {
        return Ok(());
    }
    if found > 0 {
        tracing::info!("the store is brought from schema version {found} to {VERSION}");
    }
    let steps: String = MIGRATIONS[found as usize..].concat();
    connection.execute_batch(&format!(
        "PRAGMA synchronous=FULL; BEGIN IMMEDIATE; PRAGMA application_id={APPLICATION_ID}; {steps}
         PRAGMA user_version={VERSION}; COMMIT;"
    ))
}

/// FULL is what makes "committed" mean "on disk"; checkpoints are the writer's business.
fn settle(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0;
         PRAGMA temp_store=MEMORY; PRAGMA cache_size=-2000;",
    )?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(())
}

/// The store's file in a data directory.
pub fn file(directory: &Path) -> PathBuf {
    directory.join(FILE)
}

/// Writes a whole, compact copy of the store as of now, also while a gateway writes to it; it
/// appears under its name when it is on disk.
pub fn backup(path: &Path, to: &Path) -> std::io::Result<()> {
    let beside = to.with_extension("part");
    let copy = || -> rusqlite::Result<()> {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.execute("VACUUM INTO ?1", [beside.to_string_lossy()])?;
        // A copy that is used goes its own way: it must not pass for this store.
        let copy = Connection::open(&beside)?;
        copy.execute_batch("PRAGMA journal_mode=DELETE; PRAGMA synchronous=FULL")?;
        pair::of_a_copy(&copy)?;
        set_meta(&copy, "copied", 1)
    };
    let _ = std::fs::remove_file(&beside);
    // Made here, for its owner only: SQLite would follow a link and take any mode.
    drop(files::create_new(&beside)?);
    copy().map_err(std::io::Error::other)?;
    File::open(&beside)?.sync_all()?;
    std::fs::rename(&beside, to)
}

/// Opens a connection that only reads.
pub fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    read_only(path, "")
}

/// Opens a connection that reads the tables whose definitions can be read, also where those of
/// others are damaged (see [`undefined`]).
pub fn open_damaged(path: &Path) -> rusqlite::Result<Connection> {
    read_only(path, "PRAGMA writable_schema=ON; ")
}

fn read_only(path: &Path, first: &str) -> rusqlite::Result<Connection> {
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    let settings = "PRAGMA query_only=ON; PRAGMA cache_size=-1000; PRAGMA temp_store=MEMORY;";
    connection.execute_batch(&format!("{first}{settings}"))?;
    Ok(connection)
}

/// The tables that a store of its version has and this one does not define, in order of names.
///
/// # Errors
/// If no store of that version can be made in memory.
pub fn undefined(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let version: usize = connection.query_row("PRAGMA user_version", [], |row| row.get::<_, u32>(0))? as usize;
    let right = Connection::open_in_memory()?;
    right.execute_batch(&MIGRATIONS[..version.min(MIGRATIONS.len())].concat())?;
    // As bytes: a damaged name is seldom UTF-8.
    let columns = "SELECT CAST(t.name AS BLOB) AS at, CAST(c.name AS BLOB)
        FROM pragma_table_list t, pragma_table_info(t.name) c WHERE t.schema = 'main' AND t.type = 'table'
        ORDER BY at, c.cid";
    let tables = |db: &Connection| -> rusqlite::Result<BTreeMap<Vec<u8>, Vec<Vec<u8>>>> {
        let mut tables = BTreeMap::<_, Vec<_>>::new();
        let mut query = db.prepare(columns)?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            tables.entry(row.get(0)?).or_default().push(row.get(1)?);
        }
        Ok(tables)
    };
    let there = tables(connection)?;
    let lost = tables(&right)?.into_iter().filter(|(name, columns)| there.get(name) != Some(columns));
    Ok(lost.map(|(name, _)| String::from_utf8_lossy(&name).into_owned()).collect())
}

/// Opens a connection that moves pages from the write-ahead log into the file.
pub fn open_checkpointer(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.execute_batch("PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0; PRAGMA cache_size=-500;")?;
    Ok(connection)
}

/// A fact about the store.
pub fn meta<T: rusqlite::types::FromSql>(connection: &Connection, key: &str) -> rusqlite::Result<Option<T>> {
    connection.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional()
}

/// Sets a fact about the store.
pub fn set_meta(connection: &Connection, key: &str, value: impl rusqlite::ToSql) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT INTO meta VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value")?
        .execute(rusqlite::params![key, value])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::batch;
    use crate::readings::Readings;
    use rusqlite::params;

    /// A store as the gateway of an earlier version left it.
    fn store_of(version: usize, directory: &Path) {
        let connection = Connection::open(file(directory)).unwrap();
        connection.execute_batch("PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL").unwrap();
        connection.execute_batch(&MIGRATIONS[..version].concat()).unwrap();
        connection
            .execute_batch(&format!("PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={version}"))
            .unwrap();
        let mut readings = Readings::default();
        readings.push_number(0, 1_700_000_000_000_000, 21.5, 0);
        connection
            .execute_batch(
                "INSERT INTO device (id, name, created_us) VALUES (0, 'a', 0); INSERT INTO series VALUES (0, 0, 't', NULL)",
            )
            .unwrap();
        let row = params![1, 5, 1, readings.time_us[0], readings.time_us[0], batch::encode(&readings)];
        connection.execute("INSERT INTO batch VALUES (?1, ?2, ?3, ?4, ?5, ?6)", row).unwrap();
        connection
            .execute("INSERT INTO retained (topic, qos, properties, payload) VALUES ('t', 1, x'', x'78')", [])
            .unwrap();
    }

    #[test]
    fn a_store_of_every_earlier_version_is_brought_up_to_date_with_all_that_is_in_it() {
        for version in 1..=MIGRATIONS.len() {
            let directory = tempfile::tempdir().unwrap();
            store_of(version, directory.path());
            let store = open(directory.path()).unwrap();
            let db = &store.connection;
            let found: i32 = db.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
            assert_eq!(found, VERSION, "from {version}");
            let raw = crate::archive::read::Raw::open(db).unwrap();
            let wanted = crate::archive::read::Wanted::new(&[0]);
            let tail = raw.tail(&wanted, 0, i64::MAX, 10).unwrap().unwrap();
            assert_eq!(tail.points(0).number, [21.5], "from {version}");
            drop(raw);
            let kept: (String, Option<i64>) = db
                .query_row("SELECT topic, expires_us FROM retained", [], |row| Ok((row.get(0)?, row.get(1)?)))
                .unwrap();
            assert_eq!(kept, ("t".into(), None));
            db.query_row("SELECT count(*) FROM chunks", [], |row| row.get::<_, i64>(0)).unwrap();
        }
    }

    #[test]
    fn a_store_from_the_future_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        drop(open(directory.path()).unwrap());
        let connection = Connection::open(file(directory.path())).unwrap();
        connection.pragma_update(None, "user_version", VERSION + 1).unwrap();
        drop(connection);
        let error = open(directory.path()).unwrap_err().to_string();
        assert!(error.contains("run a newer tidegate"), "{error}");
    }
}
