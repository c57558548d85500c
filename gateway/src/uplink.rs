//! The store as the uplink sees it.
//!
//! Arrives: ranges of changes. Leaves: the windows that they name, as they are now, with all
//! metrics of their devices. Always holds: what is sent is what the store says at that moment,
//! and whatever changes later is another change. Where the windows of the configured length
//! have been retired before they were sent, the longer ones that are left go instead. What may hold
//! readings of a time when the clock was not set is not sent; it is a change again when it is.

use crate::archive::levels::{Level, Levels};
use crate::archive::read::Raw;
use crate::archive::rollup::Folded;
use crate::archive::{DAY_US, day};
use crate::catalog::{Catalog, Present, Series};
use crate::clock::{Clock, Quality};
use crate::journal::changes::{self, Change, revision_of};
use crate::journal::steps::read_summary;
use crate::journal::{Intake, ReadError, Step, schema};
use crate::metrics::Metrics;
use model::time::{SECOND_US, window_start};
use model::{Micros, Summary};
use rusqlite::{Connection, OptionalExtension};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uplink::{Portion, Saved, Source, SourceError};
use wire::{Batch, Device, Window};

/// From when a window is due until its summary is on disk, with time to spare.
const CLOSING_US: Micros = 60 * SECOND_US;

/// What the uplink reads and writes.
pub(crate) struct Summaries {
    /// A connection that only reads.
    pub db: Mutex<Connection>,
    /// The store's file.
    pub store: PathBuf,
    /// Who is there.
    pub catalog: Arc<Catalog>,
    /// Where summaries are.
    pub levels: Levels,
    /// Where steps go.
    pub intake: Arc<Intake>,
    /// The id of the latest change.
    pub latest: watch::Receiver<u64>,
    /// The time.
    pub clock: Clock,
    /// How far windows are behind.
    pub metrics: Arc<Metrics>,
    /// `window.lateness`.
    pub lateness_us: Micros,
    /// `uplink.retain_after_ack`.
    pub retain_us: Micros,
    /// The life of the store.
    pub incarnation: Arc<AtomicU64>,
    /// It began in this run.
    pub is_new: bool,
    /// The gateway stops.
    pub stop: CancellationToken,
}

/// Windows of devices, by device, length and start, with a series that was named.
type Places = BTreeMap<(u32, Micros, Micros), u32>;

fn failed(e: impl std::fmt::Display) -> SourceError {
    SourceError(e.to_string())
}

impl Source for Summaries {
    fn latest(&self) -> watch::Receiver<u64> {
        self.latest.clone()
    }

    fn read(&self, changes: Range<u64>, summaries: usize) -> Result<Portion, SourceError> {
        let db = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        self.portion(&db, changes, summaries).map_err(failed)
    }

    fn made_us(&self, change: u64) -> Option<Micros> {
        let db = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        let mut query = db.prepare_cached("SELECT made_us FROM change WHERE id >= ?1 ORDER BY id LIMIT 1").ok()?;
        query.query_row([change as i64], |row| row.get(0)).optional().ok()?
    }

    fn saved(&self) -> Result<Vec<u8>, SourceError> {
        let db = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(schema::meta(&db, "uplink").map_err(failed)?.unwrap_or_default())
    }

    fn save(&self, saved: Saved) -> Result<(), SourceError> {
        let now_us = self.clock.now_us();
        let until_us = now_us.saturating_sub(self.retain_us);
        self.intake.commit(Step::Uplink { saved, now_us, until_us }, &self.stop).map_err(failed)?;
        Ok(())
    }

    fn sent_since(&self, batch: u64) -> Result<Option<Vec<Range<u64>>>, SourceError> {
        let db = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        let floor: Option<i64> = schema::meta(&db, "sent_floor").map_err(failed)?;
        if floor.is_some_and(|floor| batch <= floor as u64) {
            return Ok(None);
        }
        let mut query = db.prepare("SELECT from_change, to_change FROM sent WHERE batch >= ?1").map_err(failed)?;
        let range = |row: &rusqlite::Row<'_>| Ok(row.get::<_, i64>(0)? as u64..row.get::<_, i64>(1)? as u64);
        let ranges = query.query_map([batch as i64], range).map_err(failed)?;
        Ok(Some(ranges.collect::<Result<_, _>>().map_err(failed)?))
    }

    fn everything_again(&self) -> Result<(), SourceError> {
        let fill = Fill {
            store: self.store.clone(),
            catalog: Arc::clone(&self.catalog),
            levels: self.levels.clone(),
            intake: Arc::clone(&self.intake),
            stop: self.stop.clone(),
        };
        self.intake.commit(Step::Filling { done: false }, &self.stop).map_err(failed)?;
        std::thread::Builder::new().name("uplink-fill".into()).spawn(move || fill.run()).map_err(failed)?;
        Ok(())
    }

    fn renew(&self, is_acknowledged: bool) -> Result<Option<u64>, SourceError> {
        let before = self.incarnation.load(Ordering::Relaxed);
        let shift_us = self.clock.trust().map_or(0, |trust| trust.shift_us()) as u64;
        let incarnation = match is_acknowledged {
            false => self.clock.now_us() as u64,
            // Began in this run, by the clock as it was then; an older store must not pass for a younger one.
            true if self.is_new && shift_us > 0 => before + shift_us,
            true => return Ok(None),
        };
        if self.clock.quality() == Quality::Unset || incarnation <= before {
            return Ok(None);
        }
        self.intake.commit(Step::Incarnation(incarnation), &self.stop).map_err(failed)?;
        self.incarnation.store(incarnation, Ordering::Relaxed);
        Ok(Some(incarnation))
    }

    fn complete_us(&self) -> Micros {
        if self.clock.trust().is_some_and(|trust| trust.holds_anything_back()) {
            return Micros::MIN;
        }
        let lag_us = self.metrics.window_lag_s.get() * SECOND_US;
        self.clock.now_us() - self.lateness_us - lag_us - CLOSING_US
    }

    fn now_us(&self) -> Micros {
        self.clock.now_us()
    }
}

impl Summaries {
    fn portion(&self, db: &Connection, changes: Range<u64>, summaries: usize) -> Result<Portion, ReadError> {
        let raw = Raw::open(db)?;
        let mut reader =
            Reader { raw: &raw, levels: &self.levels, present: self.catalog.present(), folded: HashMap::new() };
        let by_device = by_device(&reader.present.series);
        let is_held_back = |start_us: Micros, length_us: Micros| {
            self.clock.trust().is_some_and(|trust| trust.holds_back(start_us, start_us + length_us))
        };
        let (mut places, mut labels, mut until, mut many) = (Places::new(), BTreeSet::new(), changes.end, 0);
        let mut removed = Vec::new();
        changes::read(db, changes, |id, change| {
            let before = places.len();
            match change {
                Some(Change::Windows(length_us, keys)) => {
                    for (series, start_us) in keys.into_iter().filter(|key| !is_held_back(key.1, length_us)) {
                        if let Some(Some(known)) = reader.present.series.get(series as usize) {
                            places.entry((known.device.id, length_us, start_us)).or_insert(series);
                        }
                    }
                }
                Some(Change::Stretch { device, from_us, to_us }) => {
                    let length_us = self.levels.base.length_us;
                    let first_us = window_start(from_us + length_us - 1, length_us);
                    let own = by_device.get(&device).and_then(|own| own.first()).map(|series| series.id);
                    let starts = (first_us..to_us).step_by(length_us as usize);
                    for start_us in starts.filter(|&start_us| !is_held_back(start_us, length_us)) {
                        if let Some(series) = own {
                            places.entry((device, length_us, start_us)).or_insert(series);
                        }
                    }
                }
                Some(Change::Labels(devices)) => labels.extend(devices),
                Some(Change::Removed(one)) => removed.push(one),
                None => {
                    tracing::error!(
                        "change {id} for the uplink is damaged and left out; the windows it named are sent when they change again"
                    );
                }
            }
            if places.len() > before {
                many = places.keys().map(|(device, ..)| by_device.get(device).map_or(0, Vec::len)).sum();
            }
            if many + labels.len() + removed.len() >= summaries {
                until = id + 1;
                return false;
            }
            true
        })?;
        let mut batch = reader.batch(&by_device, places, &labels)?;
        batch.removed = removed;
        Ok(Portion { batch, until })
    }
}

/// Series by their devices.
type ByDevice = HashMap<u32, Vec<Arc<Series>>>;

fn by_device(series: &[Option<Arc<Series>>]) -> ByDevice {
    let mut by_device = ByDevice::new();
    for series in series.iter().flatten() {
        by_device.entry(series.device.id).or_default().push(Arc::clone(series));
    }
    by_device
}

/// Reads windows in one snapshot; the folded days of a series stay in memory for its other windows.
struct Reader<'a> {
    raw: &'a Raw<'a>,
    levels: &'a Levels,
    present: Present,
    folded: HashMap<i64, Vec<Folded>>,
}

impl Reader<'_> {
    fn level(&self, length_us: Micros) -> Option<Level> {
        self.levels.all().into_iter().find(|level| level.length_us == length_us)
    }

    /// A window as it is now.
    fn window(&mut self, level: Level, series: u32, start_us: Micros) -> Result<Option<Folded>, ReadError> {
        // Folded ones first: their rows are removed later.
        let id = level.id(day(start_us), series);
        if !self.folded.contains_key(&id) {
            let rows = level.read(self.raw, day(start_us), series, true)?.unwrap_or_default();
            self.folded.insert(id, rows.windows);
        }
        let rows = &self.folded[&id];
        match rows.binary_search_by_key(&start_us, |row| row.start_us) {
            Ok(at) => Ok(Some(rows[at].clone())),
            Err(_) => read_summary(self.raw.db(), level.length_us, start_us, series),
        }
    }

    /// The shortest window that is left of a time whose windows have been retired.
    fn longer(&mut self, series: u32, at_us: Micros) -> Result<Option<(Micros, Micros)>, ReadError> {
        for level in self.levels.rollups.clone() {
            let start_us = window_start(at_us, level.length_us);
            let is_retired = !self.levels.base.has(self.raw.db(), day(at_us), series)?;
            if is_retired
                && level.has(self.raw.db(), day(at_us), series)?
                && self.window(level, series, start_us)?.is_some()
            {
                return Ok(Some((level.length_us, start_us)));
            }
        }
        Ok(None)
    }

    /// Device by device, series by series: of folded days those of one series are in memory.
    fn batch(&mut self, by_device: &ByDevice, places: Places, labels: &BTreeSet<u32>) -> Result<Batch, ReadError> {
        let ids: BTreeSet<u32> = places.keys().map(|(device, ..)| *device).chain(labels.iter().copied()).collect();
        let mut batch = Batch::default();
        for id in &ids {
            let Some(Some((device, era))) = self.present.devices.get(*id as usize).cloned() else { continue };
            let place = batch.devices.len();
            let own = || device.labels().iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
            batch.devices.push(Device { id: Arc::clone(&device.name), labels: labels.contains(id).then(own) });
            let own = places.range((*id, 0, Micros::MIN)..=(*id, Micros::MAX, Micros::MAX));
            let wanted: BTreeMap<(Micros, Micros), u32> =
                own.map(|((_, length_us, start_us), series)| ((*length_us, *start_us), *series)).collect();
            let series = by_device.get(id).map_or(&[][..], Vec::as_slice);
            let mut windows = self.windows_of(series, wanted.keys().copied().collect())?;
            let mut longer = BTreeSet::new();
            for (window, series) in wanted {
                if !windows.contains_key(&window) {
                    longer.extend(self.longer(series, window.1)?);
                }
            }
            windows.extend(self.windows_of(series, longer)?);
            for ((length_us, start_us), (revision, metrics)) in windows {
                let revision = revision_of(era) + revision;
                batch.windows.push(Window { device: place as u32, start_us, length_us, revision, metrics });
            }
        }
        Ok(batch)
    }

    /// Windows of a device, by length and start, of all its series that have them.
    fn windows_of(&mut self, series: &[Arc<Series>], wanted: BTreeSet<(Micros, Micros)>) -> Result<Windows, ReadError> {
        let mut windows = Windows::new();
        for series in series {
            let (id, metric) = (series.id, &series.metric);
            self.folded.clear();
            for &(length_us, start_us) in &wanted {
                let Some(level) = self.level(length_us) else { continue };
                if let Some(window) = self.window(level, id, start_us)? {
                    let (revision, metrics) = windows.entry((length_us, start_us)).or_default();
                    // Each only rises, so their sum does.
                    *revision += u64::from(window.revision);
                    metrics.insert(Arc::clone(metric), window.summary);
                }
            }
        }
        Ok(windows)
    }
}

/// By length and start: a revision, and summaries by metric.
type Windows = BTreeMap<(Micros, Micros), (u64, BTreeMap<Arc<str>, Summary>)>;

/// Makes everything that is kept a change once more, in a thread of its own.
pub(crate) struct Fill {
    /// The store's file.
    pub store: PathBuf,
    /// Who is there.
    pub catalog: Arc<Catalog>,
    /// Where summaries are.
    pub levels: Levels,
    /// Where steps go.
    pub intake: Arc<Intake>,
    /// The gateway stops; it is done again at the next start.
    pub stop: CancellationToken,
}

impl Fill {
    /// Does it.
    pub(crate) fn run(&self) {
        match self.try_run() {
            Ok(stretches) => tracing::info!("all that is kept is sent to the cloud: {stretches} days of devices"),
            Err(_) if self.stop.is_cancelled() => {}
            Err(e) => tracing::error!("what is kept cannot all be sent to the cloud: {e}; restart to try again"),
        }
    }

    fn try_run(&self) -> anyhow::Result<usize> {
        let mut written = 0;
        let labelled: Vec<u32> = self
            .catalog
            .devices()
            .iter()
            .filter(|device| !device.labels().is_empty())
            .map(|device| device.id)
            .collect();
        let db = schema::open_reader(&self.store)?;
        let mut slice = vec![Change::Labels(labelled)];
        slice.extend(changes::removed(&db)?);
        for (number, device) in changes::days(&db, &self.levels, &self.catalog)? {
            let series = self.catalog.metrics_of(device);
            let range = number * DAY_US..(number + 1) * DAY_US;
            slice.extend(changes::stretches(device, series, self.levels.base.length_us, range));
            written += 1;
            if slice.len() >= changes::STRETCHES {
                self.intake.commit(Step::Changes(std::mem::take(&mut slice)), &self.stop)?;
            }
        }
        self.intake.commit(Step::Changes(slice), &self.stop)?;
        self.intake.commit(Step::Filling { done: true }, &self.stop)?;
        Ok(written)
    }
}
