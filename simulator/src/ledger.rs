//! The ledger: what was sent, and what the gateway acknowledged, line by line.
//!
//! Arrives: finished lines from the connections. Leaves: an append-only text file, read back by
//! [`read`]. Tab-separated, one event per line:
//!
//! ```text
//! #tidegate-ledger 1 seed=42
//! S  id  device  metric  time_us or -  value  service    sent: one line per reading
//! R  id or id-id                                         sent again: one more attempt
//! A  id or id-id                                         acknowledged
//! ```
//!
//! The service is `mqtt/0`, `mqtt/1`, `mqtt/2` or `coap/con`. Readings that travel in one message
//! share its acknowledgement, hence the ranges.
//! Always holds: an `S` line is appended before the message is handed to a socket, an `R` line before
//! a deliberate duplicate or a resend that the gateway cannot recognise as one, and an `A` line only
//! after PUBACK, PUBREC or 2.04. The file reaches the system at least every 200 ms and when the run
//! ends; a line without its newline was torn off and counts for nothing.
//! Deliberately absent: rewriting. An existing file is refused.

pub(crate) mod read;

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How long a line may wait in memory: half of the promised 200 ms, to leave room for a slow disk.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);
const BUFFER_BYTES: usize = 1 << 20;

/// Why a ledger cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LedgerError {
    #[error("ledger {0} exists already and is never overwritten; move it away or name another file")]
    Exists(PathBuf),
    #[error("ledger {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("ledger {0} does not start with a \"#tidegate-ledger 1\" line")]
    NotALedger(PathBuf),
    #[error("ledger {path}, line {line}: {reason}")]
    BadLine { path: PathBuf, line: usize, reason: String },
}

/// An open ledger, shared by all connections.
#[derive(Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
    writer: Mutex<BufWriter<File>>,
}

impl Ledger {
    /// Creates the file with its header and keeps it flushed for as long as the ledger lives.
    pub(crate) fn create(path: &Path, seed: u64) -> Result<Arc<Self>, LedgerError> {
        let file =
            OpenOptions::new().write(true).create_new(true).open(path).map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists => LedgerError::Exists(path.to_owned()),
                _ => LedgerError::Io { path: path.to_owned(), source },
            })?;
        let writer = Mutex::new(BufWriter::with_capacity(BUFFER_BYTES, file));
        let ledger = Arc::new(Self { path: path.to_owned(), writer });
        ledger.append(&format!("#tidegate-ledger 1 seed={seed}\n"))?;

        let weak = Arc::downgrade(&ledger);
        thread::spawn(move || {
            // A failed flush is reported by the next append, which meets the same error.
            while let Some(ledger) = weak.upgrade() {
                let _ = ledger.writer().flush();
                drop(ledger);
                thread::sleep(FLUSH_INTERVAL);
            }
        });
        Ok(ledger)
    }

    /// Appends whole lines.
    pub(crate) fn append(&self, lines: &str) -> Result<(), LedgerError> {
        debug_assert!(lines.is_empty() || lines.ends_with('\n'), "a ledger grows by whole lines");
        let written = self.writer().write_all(lines.as_bytes());
        written.map_err(|source| self.failed(source))
    }

    /// Brings everything to the disk; called once at the end of a run.
    pub(crate) fn close(&self) -> Result<(), LedgerError> {
        let mut writer = self.writer();
        let closed = writer.flush().and_then(|()| writer.get_ref().sync_all());
        closed.map_err(|source| self.failed(source))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn writer(&self) -> MutexGuard<'_, BufWriter<File>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, source: io::Error) -> LedgerError {
        LedgerError::Io { path: self.path.clone(), source }
    }
}

/// Gathers the ids of one kind of event and writes neighbours as one range.
#[derive(Debug, Default)]
pub(crate) struct Ranges {
    open: Option<RangeInclusive<u64>>,
}

impl Ranges {
    /// Adds ids; whatever they do not continue is written to `lines` first.
    pub(crate) fn add(&mut self, event: char, ids: &RangeInclusive<u64>, lines: &mut String) {
        match &mut self.open {
            Some(open) if *ids.start() == open.end() + 1 => *open = *open.start()..=*ids.end(),
            _ => {
                self.finish(event, lines);
                self.open = Some(ids.clone());
            }
        }
    }

    /// Writes the range that is still open.
    pub(crate) fn finish(&mut self, event: char, lines: &mut String) {
        use std::fmt::Write;
        if let Some(open) = self.open.take() {
            let (first, last) = open.into_inner();
            let written = match first == last {
                true => writeln!(lines, "{event}\t{first}"),
                false => writeln!(lines, "{event}\t{first}-{last}"),
            };
            written.expect("writing to a string cannot fail");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_ids_become_one_range() {
        let (mut ranges, mut lines) = (Ranges::default(), String::new());
        for ids in [1..=2, 3..=3, 5..=5, 7..=9] {
            ranges.add('A', &ids, &mut lines);
        }
        ranges.finish('A', &mut lines);
        assert_eq!(lines, "A\t1-3\nA\t5\nA\t7-9\n");
    }

    #[test]
    fn an_existing_ledger_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        Ledger::create(&path, 1).unwrap();
        let error = Ledger::create(&path, 1).unwrap_err();
        assert!(matches!(error, LedgerError::Exists(_)), "{error}");
    }

    #[test]
    fn lines_reach_the_file_without_being_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        let ledger = Ledger::create(&path, 1).unwrap();
        ledger.append("A\t1\n").unwrap();
        let written = |_| {
            thread::sleep(Duration::from_millis(20));
            std::fs::read_to_string(&path).unwrap().ends_with("A\t1\n")
        };
        assert!((0..100).any(written), "not flushed after two seconds");
    }
}
