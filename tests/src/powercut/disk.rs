//! What a disk holds after a cut.
//!
//! Pure: events and a seed to files. Always holds: what was synced is there to the byte;
//! unsynced writes may be there, not be there, or be torn at sectors, in any combination, so
//! that a later one may have come through and an earlier one not; a file may not exist, or
//! still exist, until its directory is synced.

use super::Event;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;

/// Disks write this much as a whole, or not at all.
const SECTOR_BYTES: usize = 512;

/// Files with what is on disk and what is still on its way.
#[derive(Debug, Default)]
pub struct Disk {
    files: BTreeMap<String, File>,
}

#[derive(Debug, Default, Clone)]
struct File {
    durable: Option<Vec<u8>>,
    pending: Vec<Op>,
}

#[derive(Debug, Clone)]
enum Op {
    Created,
    Written(usize, Vec<u8>),
    Truncated(usize),
    Deleted,
}

impl Disk {
    /// Takes what happened next.
    pub fn take(&mut self, event: &Event) {
        let files = &mut self.files;
        let mut pend = |name: &String, op| files.entry(name.clone()).or_default().pending.push(op);
        match event {
            Event::Created(name) => pend(name, Op::Created),
            Event::Written(name, at, bytes) => pend(name, Op::Written(*at as usize, bytes.clone())),
            Event::Truncated(name, length) => pend(name, Op::Truncated(*length as usize)),
            Event::Deleted(name) => pend(name, Op::Deleted),
            Event::Synced(name) => {
                let file = files.entry(name.clone()).or_default();
                let new = file.pending.iter().any(|op| matches!(op, Op::Created));
                for op in std::mem::take(&mut file.pending) {
                    apply(&mut file.durable, &op, |_| true);
                }
                // SQLite syncs the directory with the first sync of a new journal or log.
                if new && (name.ends_with("-wal") || name.ends_with("-journal")) {
                    files.values_mut().for_each(sync_entry);
                }
            }
            Event::Told(_) => {}
        }
    }

    /// The files by name if the power fails now.
    pub fn after_cut(&self, seed: u64) -> BTreeMap<String, Vec<u8>> {
        let mut random = StdRng::seed_from_u64(seed);
        // How eager the disk was is itself by chance: from "nothing unsynced" to "nearly all".
        let eagerness = random.random_range(0.0..1.0);
        let mut files = BTreeMap::new();
        for (name, file) in &self.files {
            let mut content = file.durable.clone();
            for op in &file.pending {
                let luck: f64 = random.random_range(0.0..1.0);
                if luck < eagerness * 0.8 {
                    apply(&mut content, op, |_| true);
                } else if luck < eagerness {
                    apply(&mut content, op, |_| random.random_bool(0.5));
                }
            }
            files.extend(content.map(|content| (name.clone(), content)));
        }
        files
    }
}

/// Whether a file exists is on disk now; what it holds need not be.
fn sync_entry(file: &mut File) {
    if let Some(last) = file.pending.iter().rposition(|op| matches!(op, Op::Deleted)) {
        file.pending.drain(..=last);
        file.durable = None;
    }
    if file.pending.iter().any(|op| matches!(op, Op::Created)) {
        file.durable.get_or_insert_default();
    }
}

fn apply(content: &mut Option<Vec<u8>>, op: &Op, mut sector_came_through: impl FnMut(usize) -> bool) {
    match op {
        Op::Deleted => *content = None,
        Op::Created => {
            content.get_or_insert_default();
        }
        Op::Truncated(length) => {
            // Of a file that was deleted and never came back nothing is left to cut.
            content.get_or_insert_default().resize(*length, 0);
        }
        Op::Written(at, bytes) => {
            let content = content.get_or_insert_default();
            let mut done = 0;
            while done < bytes.len() {
                let begin = at + done;
                let end = (begin / SECTOR_BYTES + 1) * SECTOR_BYTES;
                let length = (end - begin).min(bytes.len() - done);
                if sector_came_through(begin / SECTOR_BYTES) {
                    if content.len() < begin + length {
                        content.resize(begin + length, 0);
                    }
                    content[begin..begin + length].copy_from_slice(&bytes[done..done + length]);
                }
                done += length;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(byte: u8) -> Event {
        Event::Written("f".into(), 0, vec![byte; 2_048])
    }

    fn after_cut(events: &[Event], seed: u64) -> BTreeMap<String, Vec<u8>> {
        let mut disk = Disk::default();
        events.iter().for_each(|event| disk.take(event));
        disk.after_cut(seed)
    }

    #[test]
    fn what_was_synced_is_there_and_what_was_not_may_be_torn() {
        let events = [Event::Created("f".into()), written(1), Event::Synced("f".into()), written(2)];
        let (mut old, mut new, mut torn) = (0, 0, 0);
        for seed in 0..300 {
            let content = &after_cut(&events, seed)["f"];
            assert_eq!(content.len(), 2_048);
            for sector in content.chunks(SECTOR_BYTES) {
                assert!(sector.iter().all(|&byte| byte == sector[0]), "sectors are whole");
            }
            match (content.contains(&1), content.contains(&2)) {
                (true, false) => old += 1,
                (false, _) => new += 1,
                (true, true) => torn += 1,
            }
        }
        assert!(old > 20 && new > 20 && torn > 10, "{old} {new} {torn}");
    }

    #[test]
    fn a_file_that_was_never_synced_may_not_exist() {
        let events = [Event::Created("f".into()), written(1)];
        let exists = (0..100).filter(|&seed| after_cut(&events, seed).contains_key("f")).count();
        assert!((10..90).contains(&exists), "{exists}");
    }
}
