//! Which window a reading belongs to, when a window closes, what is late.
//!
//! Arrives: committed readings, and the time. Leaves: summaries of closed windows, and the
//! *dirty* windows whose readings must be read again. Always holds: a summary equals a
//! computation over the distinct readings up to its `through_seq`; watermarks are per device,
//! so that a wrong clock disturbs only its own; memory is bounded, because rows that do not
//! fit are folded into partial summaries, and a partial that can no longer be exact (a reading
//! not later than it has seen) makes its window dirty. Pure: no clock, no SQLite, no threads.

/// The thread around this: channels, clock, store.
pub(crate) mod driver;

/// Readings as they arrive, as a Polars frame.
pub(crate) mod frame;

/// Windows that are to be computed again.
pub(crate) mod dirty;

/// Sorted readings, cut into windows, as a Polars frame.
pub(crate) mod cut;

/// Dirty windows, computed again from the raw readings.
pub(crate) mod revise;

/// What of them waits to be written, folded or not.
mod pending;

use crate::journal::{Committed, SummaryRow};
use crate::readings::{Readings, flag};
use dirty::Dirty;
use frame::Columns;
use model::time::{SECOND_US, window_start};
use model::{Micros, Summary};
use polars::prelude::PolarsResult;
use revise::Stretch;
use std::collections::BTreeMap;

/// So long after its end a day is old: its windows are not kept open any more, and its
/// summaries are folded.
pub(crate) const OLD_AFTER_US: Micros = 3_600 * SECOND_US;

/// A window this far in the future was opened by a clock that was wrong.
const AHEAD_US: Micros = 24 * 3_600 * SECOND_US;

/// A window of a series: its start and whose it is.
pub(crate) type Key = (Micros, u32);

/// All open windows.
pub(crate) struct Windows {
    length_us: Micros,
    lateness_us: Micros,
    rows_max: usize,
    rows: Columns,
    /// By series: the latest time in `rows`.
    latest_us: Vec<Micros>,
    /// By series.
    device_of: Vec<u32>,
    devices: Vec<Device>,
    through_seq: u64,
    dirty: Dirty,
    /// Days that end here or before are old: their windows are not kept open.
    old_until_us: Micros,
    late: u64,
    old: u64,
}

/// The clock of a device and its open windows.
#[derive(Debug)]
struct Device {
    /// The latest event time, but for times in the future.
    watermark_us: Micros,
    /// When the gateway last heard it get on: a device whose clock stands still is silent.
    heard_us: Micros,
    /// Windows that end here or before are closed.
    closed_through_us: Micros,
    open: BTreeMap<Micros, Open>,
    /// The window of the last reading: usually that of the next.
    current_us: Option<Micros>,
}

#[derive(Debug)]
struct Open {
    first_seq: u64,
    partials: BTreeMap<u32, Partial>,
}

#[derive(Debug)]
struct Partial {
    summary: Summary,
    spoiled: bool,
}

/// How far a device's windows have got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Windows that end here or before are closed.
    pub closed_through_us: Micros,
    /// The start of the earliest open window; `i64::MAX` without one.
    pub open_from_us: Micros,
}

impl Default for Progress {
    fn default() -> Self {
        Progress { closed_through_us: Micros::MIN, open_from_us: Micros::MAX }
    }
}

impl Windows {
    /// No windows yet; `memory_bytes` bounds the rows kept.
    pub(crate) fn new(length_us: Micros, lateness_us: Micros, memory_bytes: usize) -> Self {
        Windows {
            length_us,
            lateness_us,
            rows_max: (memory_bytes / Columns::ROW_BYTES).max(1_000),
            rows: Columns::default(),
            latest_us: Vec::new(),
            device_of: Vec::new(),
            devices: Vec::new(),
            through_seq: 0,
            dirty: Dirty::default(),
            old_until_us: Micros::MIN,
            late: 0,
            old: 0,
        }
    }

    /// Learns whose each series is, by id; series are only ever added.
    pub(crate) fn learn(&mut self, device_of: impl IntoIterator<Item = u32>) {
        for device in device_of {
            self.device_of.push(device);
            self.latest_us.push(Micros::MIN);
            while self.devices.len() <= device as usize {
                self.devices.push(Device {
                    watermark_us: Micros::MIN,
                    heard_us: Micros::MIN,
                    closed_through_us: Micros::MIN,
                    open: BTreeMap::new(),
                    current_us: None,
                });
            }
        }
    }

    /// How many series it knows.
    pub(crate) fn known(&self) -> usize {
        self.device_of.len()
    }

    /// Takes committed readings; rows that `wanted` refuses have been summarised before.
    pub(crate) fn take(&mut self, committed: &Committed, mut wanted: impl FnMut(Key) -> bool) -> PolarsResult<()> {
        self.through_seq = committed.seq;
        let readings = &*committed.readings;
        for row in 0..readings.len() {
            self.take_row(committed, readings, row, &mut wanted);
            if self.rows.len() >= self.rows_max {
                self.fold()?;
            }
        }
        Ok(())
    }

    #[inline]
    fn take_row(
        &mut self,
        committed: &Committed,
        readings: &Readings,
        row: usize,
        wanted: &mut impl FnMut(Key) -> bool,
    ) {
        let (series, time_us, flags) = (readings.series[row], readings.time_us[row], readings.flags[row]);
        let device = &mut self.devices[self.device_of[series as usize] as usize];
        let start_us = match device.current_us {
            Some(start_us) if start_us <= time_us && time_us - start_us < self.length_us => start_us,
            _ => window_start(time_us, self.length_us),
        };
        if flags & flag::FUTURE == 0 && time_us > device.watermark_us {
            device.watermark_us = time_us;
            device.heard_us = committed.received_us;
        }
        if !wanted((start_us, series)) {
            return;
        }
        if start_us < self.old_until_us {
            self.old += 1;
            self.dirty.add_old((start_us, series), self.length_us);
            return;
        }
        if start_us.saturating_add(self.length_us) <= device.closed_through_us {
            self.late += 1;
            self.dirty.add((start_us, series), self.length_us);
            return;
        }
        if flags & flag::FUTURE != 0 {
            // A wrong clock must not hold a window open for years: it is computed when its
            // time has come.
            self.dirty.add((start_us, series), self.length_us);
            return;
        }
        if device.current_us != Some(start_us) {
            device.current_us = Some(start_us);
            let open = || Open { first_seq: committed.seq, partials: BTreeMap::new() };
            device.open.entry(start_us).or_insert_with(open);
        }
        let latest_us = &mut self.latest_us[series as usize];
        if time_us > *latest_us {
            *latest_us = time_us;
        } else {
            self.rows.disordered = true;
        }
        self.rows.push(series, start_us, time_us, readings.number[row], readings.text(row));
    }

    /// Folds the rows kept into partial summaries.
    fn fold(&mut self) -> PolarsResult<()> {
        let rows = std::mem::take(&mut self.rows);
        self.latest_us.fill(Micros::MIN);
        for group in rows.aggregate()? {
            let device = &mut self.devices[self.device_of[group.series as usize] as usize];
            let Some(open) = device.open.get_mut(&group.start_us) else {
                // Closed between its rows' arrival and now cannot be: closing folds first.
                debug_assert!(false, "rows without their window");
                self.dirty.add((group.start_us, group.series), self.length_us);
                continue;
            };
            let series = group.series;
            let summary = group.summarised();
            match open.partials.get_mut(&series) {
                None => {
                    open.partials.insert(series, Partial { summary, spoiled: false });
                }
                Some(partial) => {
                    // Merging is exact only for readings later than all before.
                    partial.spoiled |= summary.first.0 <= partial.summary.last.0;
                    if !partial.spoiled {
                        partial.summary.merge(&summary);
                    }
                }
            }
        }
        Ok(())
    }

    /// True if some window is due at `now_us`.
    pub(crate) fn is_due(&self, now_us: Micros) -> bool {
        self.devices.iter().any(|device| {
            device.watermark_us > now_us.saturating_add(AHEAD_US)
                || device
                    .open
                    .first_key_value()
                    .is_some_and(|(start_us, _)| self.boundary(device, now_us) >= start_us + self.length_us)
        })
    }

    /// Windows of the device that end here or before are due: by its own watermark, or, once
    /// it has been silent for the lateness, by the gateway's clock.
    fn boundary(&self, device: &Device, now_us: Micros) -> Micros {
        let by_watermark = device.watermark_us.saturating_sub(self.lateness_us);
        let by_age = by_watermark.max(self.old_until_us);
        if now_us.saturating_sub(device.heard_us) >= self.lateness_us {
            by_age.max(now_us - self.lateness_us)
        } else {
            by_age
        }
    }

    /// The gateway's clock was ahead, and windows were opened then: they are computed when
    /// their time has come, and must not hold up the others until then.
    fn put_off(&mut self, now_us: Micros) {
        let ahead_us = now_us.saturating_add(AHEAD_US);
        for device in self.devices.iter_mut().filter(|device| device.watermark_us > ahead_us) {
            device.watermark_us = now_us;
            device.current_us = None;
            for (start_us, open) in device.open.split_off(&ahead_us) {
                open.partials.keys().for_each(|&series| self.dirty.add((start_us, series), self.length_us));
            }
        }
    }

    /// Closes every window that is due and returns the summaries of those that need no
    /// further look at the raw readings.
    pub(crate) fn close(&mut self, now_us: Micros) -> PolarsResult<Vec<SummaryRow>> {
        self.fold()?;
        self.put_off(now_us);
        let mut rows = Vec::new();
        for i in 0..self.devices.len() {
            let boundary_us = self.boundary(&self.devices[i], now_us);
            let device = &mut self.devices[i];
            while let Some(first) = device.open.first_entry() {
                let (start_us, end_us) = (*first.key(), first.key() + self.length_us);
                if end_us > boundary_us {
                    break;
                }
                let open = first.remove();
                device.closed_through_us = device.closed_through_us.max(end_us);
                device.current_us = None;
                for (series, partial) in open.partials {
                    if start_us < self.old_until_us {
                        self.dirty.add_old((start_us, series), self.length_us);
                        continue;
                    }
                    if partial.spoiled || self.dirty.holds((start_us, series)) {
                        self.dirty.add((start_us, series), self.length_us);
                        continue;
                    }
                    let (length_us, through_seq) = (self.length_us, self.through_seq);
                    let summary = partial.summary;
                    rows.push(SummaryRow { series, start_us, length_us, through_seq, revision: 1, summary });
                }
            }
        }
        Ok(rows)
    }

    /// A window that turns out to have a summary already: it is computed again from all its
    /// readings instead.
    pub(crate) fn mark_dirty(&mut self, key: Key) {
        self.dirty.add(key, self.length_us);
    }

    /// Windows have lost readings: they are computed again.
    pub(crate) fn disturb(&mut self, stretches: impl IntoIterator<Item = Stretch>) {
        self.dirty.add_stretches(stretches);
    }

    /// Takes about `most` dirty windows to compute again; one lot at a time.
    pub(crate) fn take_dirty(&mut self, most: usize, now_us: Micros) -> Vec<Stretch> {
        let Windows { dirty, devices, device_of, length_us, lateness_us, old_until_us, .. } = self;
        let lot = dirty.take(most, *length_us, *old_until_us, |series| {
            let device = device_of.get(series as usize).and_then(|&device| devices.get(device as usize));
            let passed_us = now_us.saturating_sub(*lateness_us);
            // What is open will close by itself.
            let open_us = device.and_then(|device| device.open.keys().next().copied()).unwrap_or(Micros::MAX);
            device.map_or(passed_us, |device| device.closed_through_us.max(passed_us)).min(open_us)
        });
        for stretch in &lot {
            // What comes for them from now on is late, though no such window was ever open.
            if let Some(&device) = device_of.get(stretch.series as usize) {
                let device = &mut devices[device as usize];
                device.closed_through_us = device.closed_through_us.max(stretch.to_us);
            }
        }
        lot
    }

    /// Takes about `most` old days to compute again, likewise.
    pub(crate) fn take_old(&mut self, most: usize) -> Vec<Stretch> {
        self.dirty.take_old(most)
    }

    /// From now on days that end there or before are old. It only rises.
    pub(crate) fn set_old_until(&mut self, us: Micros) {
        if us > self.old_until_us {
            self.old_until_us = us;
            self.dirty.age(us, self.length_us);
        }
    }

    /// True if every dirty window of an old day is counted among the old days.
    pub(crate) fn old_days_are_known(&self) -> bool {
        !self.dirty.has_stretch_before(self.old_until_us)
    }

    /// All commits up to here have been taken.
    pub(crate) fn begin_behind(&mut self, seq: u64) {
        self.through_seq = seq;
    }

    /// Days that end there or before are old.
    pub(crate) fn old_until_us(&self) -> Micros {
        self.old_until_us
    }

    /// The windows taken have been computed, but for what is given back.
    pub(crate) fn revised(&mut self, again: impl IntoIterator<Item = Stretch>) {
        self.dirty.done(again);
    }

    /// The lowest sequence that an open window still needs.
    pub(crate) fn replay_from(&self) -> u64 {
        let open = self.devices.iter().flat_map(|device| device.open.values()).map(|open| open.first_seq);
        open.min().unwrap_or(self.through_seq + 1)
    }

    /// What a restart has to know of dirty windows, if that has changed.
    pub(crate) fn dirty_blob(&mut self, now_us: Micros) -> Option<Vec<u8>> {
        self.dirty.blob(self.length_us, self.old_until_us, now_us)
    }

    /// Takes back what [`Windows::dirty_blob`] gave.
    pub(crate) fn restore_dirty(&mut self, blob: &[u8]) {
        self.dirty.restore(blob, self.length_us);
    }

    /// How far each device's windows have got, by device.
    pub(crate) fn progress(&self) -> Vec<Progress> {
        let of = |device: &Device| Progress {
            closed_through_us: device.closed_through_us,
            open_from_us: device.open.first_key_value().map_or(Micros::MAX, |(start_us, _)| *start_us),
        };
        self.devices.iter().map(of).collect()
    }

    /// How many windows are open, and how many are dirty.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let open = self.devices.iter().map(|device| device.open.len()).sum();
        (open, self.dirty.len())
    }

    /// How many readings came too late since this was last asked: for windows that had closed,
    /// and for old days.
    pub(crate) fn take_late(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.late), std::mem::take(&mut self.old))
    }

    /// All commits up to here have been taken.
    pub(crate) fn through_seq(&self) -> u64 {
        self.through_seq
    }

    /// How many windows wait to be computed again, and how many old days.
    pub(crate) fn dirty_counts(&self) -> (usize, usize) {
        (self.dirty.recent_len(), self.dirty.old_len())
    }
}

#[cfg(test)]
mod tests;
