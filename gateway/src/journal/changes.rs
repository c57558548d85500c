//! What has changed among summaries, for the uplink.
//!
//! Arrives: steps that write summaries, labels that are set. Leaves: rows of the table `change`,
//! whose ids are what the uplink's cursors move over. A row names windows; what they say is
//! looked up when it is sent. Always holds: a change is in the same commit as what it names;
//! ids only rise. Without an uplink nothing is recorded.

use super::{Step, SummaryRow, removal};
use crate::archive::levels::Levels;
use crate::archive::{DAY_US, series_of};
use crate::catalog::{Birth, Catalog, Removed};
use model::{Micros, varint};
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::watch;

/// Windows that one row names, at most.
const NAMED_MAX: usize = 250;

/// What a row names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Windows of one length, by series and start.
    Windows(Micros, Vec<(u32, Micros)>),
    /// All windows of a device that start in a stretch.
    Stretch {
        /// Whose.
        device: u32,
        /// The first start.
        from_us: Micros,
        /// Behind the last.
        to_us: Micros,
    },
    /// The labels of devices.
    Labels(Vec<u32>),
    /// A device, or a metric of one, that was removed.
    Removed(wire::Removed),
}

/// Records changes and tells of them; held by the writer.
#[derive(Debug)]
pub(crate) struct Recorder {
    latest: watch::Sender<u64>,
    recorded: u64,
}

impl Recorder {
    /// A recorder for a store.
    pub(crate) fn new(db: &Connection) -> rusqlite::Result<Self> {
        let latest = latest(db)?;
        Ok(Recorder { latest: watch::Sender::new(latest), recorded: latest })
    }

    /// The id of the latest change on disk.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    /// A transaction begins, perhaps once more: what an earlier try recorded was rolled back.
    pub(crate) fn begin(&mut self) {
        self.recorded = *self.latest.borrow();
    }

    /// Records what a step changes, in its transaction; about how many bytes that takes.
    pub(crate) fn record(&mut self, db: &Connection, step: &Step, now_us: Micros) -> rusqlite::Result<u64> {
        match step {
            Step::Windows { rows, .. } | Step::Revised(rows) => self.windows(db, &named(rows), now_us),
            Step::Rollups { changed, .. } => self.windows(db, changed, now_us),
            Step::Changes(changes) => {
                changes.iter().try_fold(0, |bytes, change| Ok(bytes + self.insert(db, change, now_us)?))
            }
            _ => Ok(0),
        }
    }

    /// Records labels that are set, and what is removed.
    pub(crate) fn births(&mut self, db: &Connection, births: &[Birth], now_us: Micros) -> rusqlite::Result<u64> {
        let (mut bytes, mut labelled) = (0, Vec::new());
        for birth in births {
            match birth {
                Birth::Labels(device) => labelled.push(device.id),
                Birth::Removed(removed) => bytes += self.insert(db, &Change::Removed(of_era(removed)), now_us)?,
                _ => {}
            }
        }
        if !labelled.is_empty() {
            bytes += self.insert(db, &Change::Labels(labelled), now_us)?;
        }
        Ok(bytes)
    }

    /// What was recorded is on disk.
    pub(crate) fn committed(&self) {
        self.latest.send_if_modified(|latest| std::mem::replace(latest, self.recorded) != self.recorded);
    }

    fn windows(
        &mut self,
        db: &Connection,
        (length_us, keys): &(Micros, Vec<(u32, Micros)>),
        now_us: Micros,
    ) -> rusqlite::Result<u64> {
        keys.chunks(NAMED_MAX).try_fold(0, |bytes, keys| {
            Ok(bytes + self.insert(db, &Change::Windows(*length_us, keys.to_vec()), now_us)?)
        })
    }

    fn insert(&mut self, db: &Connection, change: &Change, now_us: Micros) -> rusqlite::Result<u64> {
        let body = encode(change);
        db.prepare_cached("INSERT INTO change (made_us, body) VALUES (?1, ?2)")?.execute(params![now_us, body])?;
        self.recorded = db.last_insert_rowid() as u64;
        Ok(body.len() as u64 + 16)
    }
}

/// Summaries that one stretch names, about.
const STRETCH_SUMMARIES: i64 = 5_000;

/// All windows of a device with so many series in a range, as stretches that can be sent one by one.
pub(crate) fn stretches(
    device: u32,
    series: usize,
    length_us: Micros,
    range: Range<Micros>,
) -> impl Iterator<Item = Change> {
    let step_us = (STRETCH_SUMMARIES / (series as i64).max(1)).max(1) * length_us;
    let to_us = range.end;
    range.step_by(step_us as usize).map(move |from_us| {
        let to_us = to_us.min(from_us.saturating_add(step_us));
        Change::Stretch { device, from_us, to_us }
    })
}

/// Stretches that one commit carries.
pub(crate) const STRETCHES: usize = 1_000;

/// Days of devices that have summaries.
pub(crate) fn days(db: &Connection, levels: &Levels, catalog: &Catalog) -> rusqlite::Result<BTreeSet<(i64, u32)>> {
    let present = catalog.present().series;
    let device = |id: u32| Some(present.get(id as usize)?.as_ref()?.device.id);
    let mut days = BTreeSet::new();
    for level in levels.all() {
        let mut ids = db.prepare("SELECT id FROM rollup WHERE (id & 65535) = ?1")?;
        let mut rows = ids.query([level.number()])?;
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(0)?;
            let first = level.first_day_of(id);
            let span = first..first + level.span_days;
            days.extend(
                device(series_of(id)).into_iter().flat_map(|device| span.clone().map(move |day| (day, device))),
            );
        }
    }
    let mut recent = db.prepare("SELECT DISTINCT start_us / ?1, series FROM summary")?;
    let mut rows = recent.query([DAY_US])?;
    while let Some(row) = rows.next()? {
        days.extend(device(row.get(1)?).map(|device| (row.get::<_, i64>(0).unwrap_or_default(), device)));
    }
    Ok(days)
}

/// All removals that there have been, for a cloud that may not know of them.
pub(crate) fn removed(db: &Connection) -> rusqlite::Result<Vec<Change>> {
    let of = |(device, metric, era): (String, String, u32)| {
        let metric = Some(metric).filter(|metric| !metric.is_empty()).map(Into::into);
        Change::Removed(wire::Removed { device: device.into(), metric, revision: revision_of(era) })
    };
    Ok(removal::removed(db)?.into_iter().map(of).collect())
}

/// Revisions of an era begin here: above those of the era before.
pub(crate) fn revision_of(era: u32) -> u64 {
    u64::from(era) << 32
}

fn of_era(removed: &Removed) -> wire::Removed {
    wire::Removed {
        device: Arc::clone(&removed.device.name),
        metric: removed.metric.clone(),
        revision: revision_of(removed.era),
    }
}

/// The windows that rows are of.
fn named(rows: &[SummaryRow]) -> (Micros, Vec<(u32, Micros)>) {
    let length_us = rows.first().map_or(0, |row| row.length_us);
    (length_us, rows.iter().map(|row| (row.series, row.start_us)).collect())
}

/// The highest id that was ever given.
pub(crate) fn latest(db: &Connection) -> rusqlite::Result<u64> {
    let latest: Option<i64> =
        db.query_row("SELECT seq FROM sqlite_sequence WHERE name = 'change'", [], |row| row.get(0)).optional()?;
    Ok(latest.unwrap_or(0) as u64)
}

/// Calls `each` with the changes of a range, in their order, until it says that it is enough.
pub(crate) fn read(
    db: &Connection,
    changes: Range<u64>,
    mut each: impl FnMut(u64, Option<Change>) -> bool,
) -> rusqlite::Result<()> {
    let mut query = db.prepare_cached("SELECT id, body FROM change WHERE id >= ?1 AND id < ?2 ORDER BY id")?;
    let mut rows = query.query([changes.start as i64, changes.end as i64])?;
    while let Some(row) = rows.next()? {
        let change = decode(row.get_ref(1)?.as_blob().unwrap_or_default());
        if !each(row.get::<_, i64>(0)? as u64, change) {
            break;
        }
    }
    Ok(())
}

fn encode(change: &Change) -> Vec<u8> {
    let mut out = Vec::new();
    match change {
        Change::Windows(length_us, keys) => {
            out.push(0);
            varint::put(&mut out, *length_us as u64);
            let (mut series, mut number) = (0, 0);
            for &(this_series, start_us) in keys {
                let this_number = start_us.div_euclid((*length_us).max(1));
                varint::put_signed(&mut out, i64::from(this_series) - series);
                varint::put_signed(&mut out, this_number - number);
                (series, number) = (i64::from(this_series), this_number);
            }
        }
        Change::Stretch { device, from_us, to_us } => {
            out.push(1);
            varint::put(&mut out, u64::from(*device));
            varint::put_signed(&mut out, *from_us);
            varint::put_signed(&mut out, *to_us);
        }
        Change::Labels(devices) => {
            out.push(2);
            devices.iter().for_each(|&device| varint::put(&mut out, u64::from(device)));
        }
        Change::Removed(wire::Removed { device, metric, revision }) => {
            out.push(3);
            varint::put(&mut out, *revision);
            for name in [&**device, metric.as_deref().unwrap_or_default()] {
                varint::put(&mut out, name.len() as u64);
                out.extend(name.as_bytes());
            }
        }
    }
    out
}

fn decode(bytes: &[u8]) -> Option<Change> {
    let rest = &mut &*bytes;
    let number = |n: u64| u32::try_from(n).ok();
    Some(match varint::take_byte(rest)? {
        0 => {
            let length_us = i64::try_from(varint::take(rest)?).ok()?;
            let (mut series, mut window, mut keys) = (0_i64, 0_i64, Vec::new());
            while !rest.is_empty() {
                series = series.checked_add(varint::take_signed(rest)?)?;
                window = window.checked_add(varint::take_signed(rest)?)?;
                keys.push((u32::try_from(series).ok()?, window.checked_mul(length_us)?));
            }
            Change::Windows(length_us, keys)
        }
        1 => Change::Stretch {
            device: number(varint::take(rest)?)?,
            from_us: varint::take_signed(rest)?,
            to_us: varint::take_signed(rest)?,
        },
        2 => {
            let mut devices = Vec::new();
            while !rest.is_empty() {
                devices.push(number(varint::take(rest)?)?);
            }
            Change::Labels(devices)
        }
        3 => Change::Removed(wire::Removed {
            revision: varint::take(rest)?,
            device: varint::take_str(rest)?.into(),
            metric: Some(varint::take_str(rest)?).filter(|metric| !metric.is_empty()).map(Into::into),
        }),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn changes_come_back(keys in prop::collection::vec((any::<u32>(), -1_000_000..50_000_000_i64), 0..50), device: u32) {
            let length_us = 60_000_000;
            let keys: Vec<_> = keys.into_iter().map(|(series, minute)| (series, minute * length_us)).collect();
            for change in [
                Change::Windows(length_us, keys.clone()),
                Change::Stretch { device, from_us: -5, to_us: 86_400_000_000 },
                Change::Labels(keys.iter().map(|(series, _)| *series).collect()),
                Change::Removed(wire::Removed { device: "a/b".into(), metric: None, revision: revision_of(device) }),
                Change::Removed(wire::Removed { device: "a".into(), metric: Some("t;x=y".into()), revision: 1 }),
            ] {
                prop_assert_eq!(decode(&encode(&change)), Some(change));
            }
        }

        #[test]
        fn damage_does_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = decode(&bytes);
        }
    }
}
