//! The store and its log belong together.
//!
//! Arrives: a data directory before anything in it is opened. Leaves: the word that the log continues the store,
//! or why it does not. Always holds: nothing is changed by looking. SQLite itself would play a log onto whatever
//! file lies beside it, and deletes one that lies beside an empty file; so a backup that is put back beside a newer
//! log, or a file that is gone or full of zeros, would end in a damaged or an empty store that takes readings.
//!
//! Each start counts: the number is in the store (`meta.log_generation`), folded into its file while the log is
//! empty, and in a small file beside it. A store whose own file, read without its log, is of an earlier start than
//! that is not the one that the log continues.

use super::schema::{OpenError, meta, set_meta};
use daemon::files;
use rusqlite::{Connection, OpenFlags};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

const KEY: &str = "log_generation";
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Refuses a store that is not what its log expects.
pub(super) fn check(path: &Path) -> Result<(), OpenError> {
    let length = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let log = beside(path, "-wal");
    let log_bytes = length(&log);
    if length(path) == 0 {
        return if log_bytes == 0 { Ok(()) } else { Err(OpenError::Gone { path: path.into(), log }) };
    }
    let mut magic = [0; 16];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    if read.is_err() || magic != *MAGIC {
        return Err(OpenError::Damaged(path.into()));
    }
    let noted =
        std::fs::read_to_string(beside(path, "-generation")).ok().and_then(|text| text.trim().parse::<i64>().ok());
    match (noted, own_generation(path)) {
        (Some(noted), Some(own)) if own < noted && log_bytes > 0 => Err(OpenError::Other { path: path.into(), log }),
        (Some(noted), Some(own)) if own < noted => {
            // A backup that was put back without a log: what was noted was of another file.
            let _ = std::fs::remove_file(beside(path, "-generation"));
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The number in the file itself, without its log; `None` where that cannot be read, as in the middle of a
/// checkpoint that a power cut ended.
fn own_generation(path: &Path) -> Option<i64> {
    let uri =
        format!("file:{}?immutable=1", path.to_str()?.replace('%', "%25").replace('?', "%3f").replace('#', "%23"));
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(uri, flags).ok()?;
    // Stores of before this was counted have none; nor has a page that a checkpoint has half written.
    meta::<i64>(&connection, KEY).ok().flatten()
}

/// Counts this start, in the store and beside it. Where there is no room for that, the store stays as it was.
pub(super) fn count(connection: &Connection, path: &Path) {
    let counted = || -> Result<(), Box<dyn std::error::Error>> {
        let generation = meta::<i64>(connection, KEY)?.unwrap_or(0) + 1;
        set_meta(connection, KEY, generation)?;
        let busy: i64 = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        if busy == 0 {
            files::replace(&beside(path, "-generation"), generation.to_string().as_bytes())?;
        }
        Ok(())
    };
    if let Err(e) = counted() {
        tracing::warn!("this start is not counted, so a backup put back beside its log will not be noticed: {e}");
    }
}

/// A copy is of no start: beside another store's log it is not what that expects.
pub(super) fn of_a_copy(copy: &Connection) -> rusqlite::Result<()> {
    set_meta(copy, KEY, 0)
}
