//! Reading a ledger back.
//!
//! Arrives: the text of a ledger. Leaves: one [`Entry`] per reading sent, in the order of sending.
//! Always holds: a torn last line (one without its newline) is ignored even if it could be read,
//! because half of `A 123` is `A 12`. Deliberately absent: any judgement of the entries.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::LedgerError;

/// One reading as the ledger knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) device: Arc<str>,
    pub(crate) metric: Arc<str>,
    /// Absent if the gateway was to stamp the reading.
    pub(crate) time_us: Option<i64>,
    pub(crate) value: String,
    /// How often the reading was sent: one, and one more for every `R` line.
    pub(crate) attempt_count: u64,
    /// The line that says it was sent, and the first one that says it was acknowledged.
    pub(crate) sent_line: usize,
    pub(crate) acked_line: Option<usize>,
}

/// Reads a ledger file.
pub(crate) fn load(path: &Path) -> Result<Vec<Entry>, LedgerError> {
    let failed = |source| LedgerError::Io { path: path.to_owned(), source };
    let bytes = fs::read(path).map_err(failed)?;
    // Only whole lines count; cutting there also drops half a character of a torn one.
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let text = std::str::from_utf8(&bytes[..whole])
        .map_err(|error| failed(std::io::Error::new(std::io::ErrorKind::InvalidData, error)))?;
    if !text.starts_with("#tidegate-ledger 1 ") {
        return Err(LedgerError::NotALedger(path.to_owned()));
    }
    let mut reader = Reader::default();
    for (line, content) in (1..).zip(text.lines()) {
        reader.line(line, content).map_err(|reason| LedgerError::BadLine { path: path.to_owned(), line, reason })?;
    }
    Ok(reader.entries)
}

#[derive(Default)]
struct Reader {
    entries: Vec<Entry>,
    place_of: HashMap<u64, usize>,
    names: HashMap<String, Arc<str>>,
}

impl Reader {
    fn line(&mut self, line: usize, content: &str) -> Result<(), String> {
        if content.starts_with('#') {
            return Ok(());
        }
        let fields: Vec<&str> = content.split('\t').collect();
        match fields[..] {
            ["S", id, device, metric, time_us, value, _service] => {
                let entry = Entry {
                    device: self.name(device),
                    metric: self.name(metric),
                    time_us: match time_us {
                        "-" => None,
                        number => Some(number.parse().map_err(|_| format!("\"{number}\" is not a time"))?),
                    },
                    value: value.to_owned(),
                    attempt_count: 1,
                    sent_line: line,
                    acked_line: None,
                };
                if self.place_of.insert(parse_id(id)?, self.entries.len()).is_some() {
                    return Err(format!("id {id} was sent before"));
                }
                self.entries.push(entry);
                Ok(())
            }
            ["A", ids] => self.each(ids, |entry| entry.acked_line = entry.acked_line.or(Some(line))),
            ["R", ids] => self.each(ids, |entry| entry.attempt_count += 1),
            _ => Err(format!("\"{content}\" is neither a sent (S), again (R) nor acknowledged (A) line")),
        }
    }

    fn each(&mut self, ids: &str, mut change: impl FnMut(&mut Entry)) -> Result<(), String> {
        let (first, last) = ids.split_once('-').unwrap_or((ids, ids));
        for id in parse_id(first)?..=parse_id(last)? {
            let place = self.place_of.get(&id).ok_or_else(|| format!("id {id} was never sent"))?;
            change(&mut self.entries[*place]);
        }
        Ok(())
    }

    fn name(&mut self, text: &str) -> Arc<str> {
        if let Some(name) = self.names.get(text) {
            return name.clone();
        }
        let name: Arc<str> = text.into();
        self.names.insert(text.to_owned(), name.clone());
        name
    }
}

fn parse_id(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("\"{text}\" is not an id"))
}

#[cfg(test)]
mod tests {
    use super::super::{Ledger, Ranges};
    use super::*;

    fn loaded(text: &str) -> Result<Vec<Entry>, LedgerError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        fs::write(&path, text).unwrap();
        load(&path)
    }

    #[test]
    fn what_was_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        let ledger = Ledger::create(&path, 9).unwrap();
        ledger.append("S\t1\tkeller-ü\tpower\t17\t2.50\tmqtt/1\nS\t2\tkeller-ü\tpower\t-\ttrue\tmqtt/2\n").unwrap();
        let (mut ranges, mut lines) = (Ranges::default(), String::new());
        ranges.add('A', &(1..=2), &mut lines);
        ranges.finish('A', &mut lines);
        ledger.append(&lines).unwrap();
        ledger.append("R\t2\n").unwrap();
        ledger.close().unwrap();

        let entries = load(&path).unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(&*entries[0].device, "keller-ü");
        assert_eq!((entries[0].time_us, entries[0].value.as_str()), (Some(17), "2.50"));
        assert_eq!((entries[0].sent_line, entries[0].acked_line), (2, Some(4)));
        assert_eq!((entries[1].time_us, entries[1].attempt_count), (None, 2));
    }

    #[test]
    fn a_torn_last_line_claims_nothing() {
        let lines: String = (1..=12).map(|id| format!("S\t{id}\td\tm\t{id}\t1\tmqtt/1\n")).collect();
        let entries = loaded(&format!("#tidegate-ledger 1 seed=1\n{lines}A\t1")).unwrap();
        assert!(entries.iter().all(|entry| entry.acked_line.is_none()), "half of \"A 12\" was believed");
        let entries = loaded("#tidegate-ledger 1 seed=1\nS\t1\td\tm\t1\t1\tmqtt/1\nS\t2\tkeller-\u{fc}").unwrap();
        assert_eq!(entries.len(), 1);
    }

    #[test]
    fn a_damaged_line_in_the_middle_is_named() {
        let error = loaded("#tidegate-ledger 1 seed=1\nA\t7\n").unwrap_err().to_string();
        assert!(error.ends_with("line 2: id 7 was never sent"), "{error}");
        let error = loaded("#tidegate-ledger 1 seed=1\nX\t7\nA\t7\n").unwrap_err().to_string();
        assert!(error.contains("line 2: \"X\t7\" is neither"), "{error}");
    }

    #[test]
    fn another_file_is_not_a_ledger() {
        assert!(matches!(loaded("timestamp,value\n"), Err(LedgerError::NotALedger(_))));
    }
}
