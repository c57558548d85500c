//! Who is there: devices, their series, and the latest value of each.
//!
//! Arrives: names from the decoders, committed readings from the journal. Leaves: dense ids,
//! births for the journal to write, answers to `/v1/devices`. Always holds: a name keeps its
//! id until it is removed, and no id is given twice; the birth of an id is handed to the journal
//! before any reading that uses it; devices and series never exceed their limits. Deliberately
//! absent: SQLite.

use crate::archive::SERIES_MAX;
use crate::clock::Correction;
use crate::readings::{Readings, flag};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use model::{Micros, Value};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A device.
#[derive(Debug)]
pub(crate) struct Device {
    /// Dense, from 0.
    pub id: u32,
    /// Its id as people know it.
    pub name: Arc<str>,
    labels: RwLock<Labels>,
    era: AtomicU32,
    removed: AtomicBool,
}

/// Classes of microseconds: each start assigns times of another class than the one before, and so
/// does every time the clock is put back, so that times which come twice do not meet.
const CLASSES: i64 = 4;
/// So many names any client may bring, whatever its share.
const FEW_NAMES: usize = 100;
/// Clocks are put right by less than this now and then; times then go on until it has caught up.
const PUT_BACK_US: Micros = 1_000_000;

/// What people say of a device.
pub(crate) type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// A metric of a device.
#[derive(Debug)]
pub(crate) struct Series {
    /// Dense, from 0.
    pub id: u32,
    /// Whose.
    pub device: Arc<Device>,
    /// The metric's name.
    pub metric: Arc<str>,
    unit: RwLock<Unit>,
    assigned_us: AtomicI64,
    removed: AtomicBool,
}

/// A unit, and when it was last told differently.
#[derive(Debug, Default)]
struct Unit {
    name: Option<Box<str>>,
    since_us: Option<Micros>,
}

/// A unit that changes is written at most once in this time.
const UNIT_EVERY_US: Micros = 60_000_000;

/// Something new that the journal must write before it is used.
#[derive(Debug, Clone)]
pub(crate) enum Birth {
    /// A device.
    Device(Arc<Device>),
    /// A series of a device already born.
    Series(Arc<Series>),
    /// A unit told for the first time, or a new one.
    Unit(Arc<Series>),
    /// New labels.
    Labels(Arc<Device>),
    /// A device or a metric of one that is no more.
    Removed(Arc<Removed>),
}

/// A device that is removed with all its metrics, or one metric of it.
#[derive(Debug)]
pub(crate) struct Removed {
    /// The device.
    pub device: Arc<Device>,
    /// The metric; `None` is the whole device.
    pub metric: Option<Arc<str>>,
    /// The series that go.
    pub series: Vec<Arc<Series>>,
    /// How many removals there have been, with this one.
    pub era: u32,
    /// Readings that go, repetitions included.
    pub readings: u64,
}

/// Who is there at one moment, for whoever sends it on.
#[derive(Debug)]
pub(crate) struct Present {
    /// Series by id; nothing where one has been removed.
    pub series: Vec<Option<Arc<Series>>>,
    /// Devices by id, likewise, each with its era: how many removals there had been when it was born, or
    /// when a metric of it was last removed.
    pub devices: Vec<Option<(Arc<Device>, u32)>>,
}

/// The latest reading of a series, by event time.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Latest {
    /// Its event time.
    pub time_us: Micros,
    /// Its value.
    pub value: Value,
    /// When the gateway last received any reading of the series.
    pub received_us: Micros,
    /// How many readings have been acknowledged, repetitions included.
    pub readings: u64,
    /// Its time lies in the future: any that can be believed counts as later.
    pub doubtful: bool,
}

/// A limit that a new name would exceed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LimitReached {
    /// Of all clients.
    #[error("{what} limit of {limit} reached: raise limits.{what} or remove what is not used")]
    Total {
        /// `devices` or `series`.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// Of one: what is left is for others.
    #[error(
        "{client} has brought {made} new {what} since the start and may bring no more, so that others can: raise \
         limits.{what} or limits.client_share"
    )]
    Share {
        /// A user or an address.
        client: String,
        /// `devices` or `series`.
        what: &'static str,
        /// How many it has brought.
        made: usize,
    },
}

/// How many names there may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Devices.
    pub devices: usize,
    /// Series.
    pub series: usize,
    /// Of what is free and what it has brought itself, a client may bring so many percent.
    pub client_share: usize,
}

/// New names that a client has brought since the start.
#[derive(Debug, Clone, Copy, Default)]
struct Brought {
    devices: usize,
    series: usize,
}

#[derive(Default)]
struct Names {
    devices: Vec<Arc<Device>>,
    series: Vec<Arc<Series>>,
    by_device: HashMap<Box<str>, Metrics, RandomState>,
    brought: HashMap<Box<str>, Brought, RandomState>,
    /// Who brought which series since the start, and whether a device with it.
    bringers: HashMap<u32, (Box<str>, bool), RandomState>,
    /// Series that have a name; `series` has the ids of removed ones too.
    named: usize,
    era: u32,
}

struct Metrics {
    device: Arc<Device>,
    series: HashMap<Box<str>, Arc<Series>, RandomState>,
}

/// All devices and series.
pub(crate) struct Catalog {
    names: RwLock<Names>,
    latest: RwLock<Vec<Option<Latest>>>,
    births: Mutex<Vec<Birth>>,
    limits: Limits,
    starts: u64,
}

/// Poisoning only tells that another thread panicked; every critical section here leaves the
/// data whole, so the data is used.
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl Device {
    /// How many removals there had been when it was born, or when a metric of it was last removed.
    pub(crate) fn era(&self) -> u32 {
        self.era.load(Ordering::Relaxed)
    }

    /// What people say of it.
    pub(crate) fn labels(&self) -> Labels {
        read(&self.labels).clone()
    }

    /// The value of one label.
    pub(crate) fn label(&self, name: &str) -> Option<Arc<str>> {
        read(&self.labels).get(name).cloned()
    }
}

impl Series {
    /// A time for an unstamped reading: now, but later than any assigned before, so that two
    /// unstamped readings never share an identity. Where the clock has been put back, times of
    /// another class are assigned: what was assigned before keeps its own.
    pub(crate) fn assign_time(&self, now_us: Micros) -> Micros {
        let assign = |last_us: i64| {
            let (class, put_back) = (last_us.rem_euclid(CLASSES), now_us < last_us.saturating_sub(PUT_BACK_US));
            let class = if put_back { (class + 1) % CLASSES } else { class };
            let this_us = now_us - now_us.rem_euclid(CLASSES) + class;
            if put_back { this_us } else { this_us.max(last_us.saturating_add(CLASSES)) }
        };
        match self.assigned_us.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last_us| Some(assign(last_us))) {
            Ok(last_us) | Err(last_us) => assign(last_us),
        }
    }

    /// True once it has been removed: its name leads elsewhere, or nowhere.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    /// The unit, if anybody told it.
    pub(crate) fn unit(&self) -> Option<Box<str>> {
        read(&self.unit).name.clone()
    }
}

impl Catalog {
    /// An empty catalog with limits on devices and series; `starts` counts those of the store.
    pub(crate) fn new(limits: Limits, starts: u64) -> Self {
        Catalog { names: RwLock::default(), latest: RwLock::default(), births: Mutex::default(), limits, starts }
    }

    /// Puts back a device from the store; ids must come in order.
    pub(crate) fn restore_device(&self, id: u32, name: &str, era: u32) {
        let mut names = write(&self.names);
        assert_eq!(id as usize, names.devices.len(), "device ids are dense");
        names.add_device(name, era);
    }

    /// Puts back the place of a device or series that has been removed.
    pub(crate) fn restore_removed(&self, id: u32, device: Option<u32>) {
        let mut names = write(&self.names);
        match device.map(|device| Arc::clone(&names.devices[device as usize])) {
            None => {
                let device = device_of(id, "", 0);
                device.removed.store(true, Ordering::Relaxed);
                names.devices.push(device);
            }
            Some(device) => {
                let series = series_of(id, device, "", self.starts);
                series.removed.store(true, Ordering::Relaxed);
                names.series.push(Arc::new(series));
            }
        }
    }

    /// Puts back how many removals there have been.
    pub(crate) fn restore_era(&self, era: u32) {
        write(&self.names).era = era;
    }

    /// Puts back a label of a device from the store.
    pub(crate) fn restore_label(&self, device: u32, name: &str, value: &str) {
        if let Some(device) = read(&self.names).devices.get(device as usize) {
            write(&device.labels).insert(name.into(), value.into());
        }
    }

    /// Puts back a series from the store; ids must come in order.
    pub(crate) fn restore_series(&self, id: u32, device: u32, metric: &str, unit: Option<&str>) {
        let mut names = write(&self.names);
        assert_eq!(id as usize, names.series.len(), "series ids are dense");
        let device = names.devices[device as usize].name.clone();
        let series = names.add_series(&device, metric, self.starts);
        write(&series.unit).name = unit.map(Into::into);
    }

    /// The series of a device and metric, born now if it is new; `client` brings it.
    pub(crate) fn resolve(&self, device: &str, metric: &str, client: &str) -> Result<Arc<Series>, LimitReached> {
        if let Some(series) = self.find(device, metric) {
            return Ok(series);
        }
        let mut names = write(&self.names);
        if let Some(series) = names.find(device, metric) {
            return Ok(series);
        }
        let is_new = !names.by_device.contains_key(device);
        self.check_room(&names, is_new, client)?;
        let brought = names.brought.entry(client.into()).or_default();
        brought.series += 1;
        brought.devices += usize::from(is_new);
        if is_new {
            let era = names.era;
            let born = names.add_device(device, era);
            self.announce(Birth::Device(born));
        }
        let born = names.add_series(device, metric, self.starts);
        names.bringers.insert(born.id, (client.into(), is_new));
        // Still under the lock: whoever finds the series finds its birth announced.
        self.announce(Birth::Series(Arc::clone(&born)));
        Ok(born)
    }

    /// One client must not use up what is there for all: it may bring a share of what is free.
    fn check_room(&self, names: &Names, new_device: bool, client: &str) -> Result<(), LimitReached> {
        let Limits { devices, series, client_share } = self.limits;
        let brought = names.brought.get(client).copied().unwrap_or_default();
        let check = |what, there: usize, limit: usize, made: usize| {
            let Some(free) = limit.checked_sub(there).filter(|free| *free > 0) else {
                return Err(LimitReached::Total { what, limit });
            };
            // A few names are nobody's flood.
            if made >= FEW_NAMES && made * 100 >= (made + free) * client_share {
                return Err(LimitReached::Share { client: client.to_owned(), what, made });
            }
            Ok(())
        };
        // An id is given once.
        let ids = SERIES_MAX - names.series.len();
        check("series", names.named, series.min(names.named + ids), brought.series)?;
        if new_device { check("devices", names.by_device.len(), devices, brought.devices) } else { Ok(()) }
    }

    /// The series of a device and metric, if it exists.
    pub(crate) fn find(&self, device: &str, metric: &str) -> Option<Arc<Series>> {
        read(&self.names).find(device, metric)
    }

    /// Takes note of a unit; one that changes all the time is taken once a minute.
    pub(crate) fn tell_unit(&self, series: &Arc<Series>, unit: &str, now_us: Micros) {
        if read(&series.unit).name.as_deref() == Some(unit) {
            return;
        }
        let mut known = write(&series.unit);
        if known.since_us.is_some_and(|since_us| (0..UNIT_EVERY_US).contains(&(now_us - since_us))) {
            return;
        }
        *known = Unit { name: Some(unit.into()), since_us: Some(now_us) };
        drop(known);
        self.announce(Birth::Unit(Arc::clone(series)));
    }

    /// Sets the labels of a device instead of those before; false if there is no such device.
    pub(crate) fn set_labels(&self, device: &str, labels: Labels) -> bool {
        let names = read(&self.names);
        let Some(device) = names.by_device.get(device).map(|metrics| Arc::clone(&metrics.device)) else {
            return false;
        };
        *write(&device.labels) = labels;
        self.announce(Birth::Labels(device));
        true
    }

    /// The labels of a device.
    pub(crate) fn labels(&self, device: &str) -> Labels {
        let names = read(&self.names);
        names.by_device.get(device).map(|metrics| metrics.device.labels()).unwrap_or_default()
    }

    /// True if the journal has something to write before the next batch.
    pub(crate) fn has_births(&self) -> bool {
        !self.births.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn announce(&self, birth: Birth) {
        self.births.lock().unwrap_or_else(PoisonError::into_inner).push(birth);
    }

    /// Takes what the journal has to write before the next batch.
    pub(crate) fn take_births(&self) -> Vec<Birth> {
        std::mem::take(&mut *self.births.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Removes a device, or one metric of it: from now on its name is free. `None` if there is nothing of that name.
    /// Readings of it that are under way already count as having come before.
    pub(crate) fn remove(&self, device: &str, metric: Option<&str>) -> Option<Arc<Removed>> {
        let mut names = write(&self.names);
        let (device, series) = match metric {
            Some(metric) => {
                let metrics = names.by_device.get_mut(device)?;
                (Arc::clone(&metrics.device), vec![metrics.series.remove(metric)?])
            }
            None => {
                let Metrics { device, series } = names.by_device.remove(device)?;
                device.removed.store(true, Ordering::Relaxed);
                (device, series.into_values().collect())
            }
        };
        names.named -= series.len();
        names.give_back(&series);
        names.era += 1;
        let era = names.era;
        device.era.store(era, Ordering::Relaxed);
        let mut latest = write(&self.latest);
        let mut readings = 0;
        for series in &series {
            series.removed.store(true, Ordering::Relaxed);
            let latest = latest.get_mut(series.id as usize).and_then(Option::take);
            readings += latest.map_or(0, |latest| latest.readings);
        }
        let removed = Arc::new(Removed { device, metric: metric.map(Into::into), series, era, readings });
        // Still under the lock: a new series of the same name is announced behind it.
        self.announce(Birth::Removed(Arc::clone(&removed)));
        Some(removed)
    }

    /// All devices, by id.
    pub(crate) fn devices(&self) -> Vec<Arc<Device>> {
        let names = read(&self.names);
        names.devices.iter().filter(|device| !device.removed.load(Ordering::Relaxed)).cloned().collect()
    }

    /// All series, by id.
    pub(crate) fn series(&self) -> Vec<Arc<Series>> {
        read(&self.names).series.iter().filter(|series| !series.is_removed()).cloned().collect()
    }

    /// Who is there at this moment.
    pub(crate) fn present(&self) -> Present {
        let names = read(&self.names);
        let device = |device: &Arc<Device>| {
            let era = device.era.load(Ordering::Relaxed);
            (!device.removed.load(Ordering::Relaxed)).then(|| (Arc::clone(device), era))
        };
        let series = |series: &Arc<Series>| (!series.is_removed()).then(|| Arc::clone(series));
        Present {
            series: names.series.iter().map(series).collect(),
            devices: names.devices.iter().map(device).collect(),
        }
    }

    /// How many devices and series there are.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let names = read(&self.names);
        (names.by_device.len(), names.named)
    }

    /// Ids of series are below this.
    pub(crate) fn ids(&self) -> u32 {
        read(&self.names).series.len() as u32
    }

    /// True if the series of this id has not been removed.
    pub(crate) fn has(&self, series: u32) -> bool {
        read(&self.names).series.get(series as usize).is_none_or(|series| !series.is_removed())
    }

    /// How many metrics the device of this id has.
    pub(crate) fn metrics_of(&self, device: u32) -> usize {
        let names = read(&self.names);
        let name = names.devices.get(device as usize).map(|device| &*device.name);
        name.and_then(|name| names.by_device.get(name)).map_or(0, |metrics| metrics.series.len())
    }

    /// The devices of the series whose ids are `from` or above, by id, removed ones included.
    pub(crate) fn devices_of_series(&self, from: u32) -> Vec<u32> {
        read(&self.names).series.iter().skip(from as usize).map(|series| series.device.id).collect()
    }

    /// The series of one device, by metric; `None` if there is no such device.
    pub(crate) fn series_of(&self, device: &str) -> Option<Vec<Arc<Series>>> {
        let names = read(&self.names);
        let mut series: Vec<_> = names.by_device.get(device)?.series.values().cloned().collect();
        series.sort_by(|a, b| a.metric.cmp(&b.metric));
        Some(series)
    }

    /// Takes note of committed readings.
    pub(crate) fn note(&self, readings: &Readings, received_us: Micros) {
        let mut latest = write(&self.latest);
        for row in 0..readings.len() {
            let series = readings.series[row] as usize;
            if series >= latest.len() {
                latest.resize(series + 1, None);
            }
            note_one(&mut latest[series], readings, row, received_us);
        }
    }

    /// Puts back the latest reading of a series from the store.
    pub(crate) fn restore_latest(&self, series: u32, restored: Latest) {
        let mut latest = write(&self.latest);
        let series = series as usize;
        if series >= latest.len() {
            latest.resize(series + 1, None);
        }
        latest[series] = Some(restored);
    }

    /// The latest reading of a series.
    pub(crate) fn latest(&self, series: u32) -> Option<Latest> {
        read(&self.latest).get(series as usize).cloned().flatten()
    }

    /// Receive times of a stretch turn out to have been wrong.
    pub(crate) fn correct(&self, correction: &Correction) {
        let Correction { from_us, to_us, shift_us, .. } = *correction;
        let wrong = from_us..to_us;
        for latest in write(&self.latest).iter_mut().flatten() {
            if wrong.contains(&latest.received_us) {
                latest.received_us += shift_us;
            }
            // With a clock that was behind, the readings that are moved come as the latest anyway.
            if shift_us < 0 && wrong.contains(&latest.time_us) {
                latest.time_us += shift_us;
            }
        }
    }

    /// The latest reading of every series, by id.
    pub(crate) fn all_latest(&self) -> Vec<Option<Latest>> {
        read(&self.latest).clone()
    }
}

fn note_one(slot: &mut Option<Latest>, readings: &Readings, row: usize, received_us: Micros) {
    let time_us = readings.time_us[row];
    match slot {
        None => {
            let doubtful = readings.flags[row] & flag::FUTURE != 0;
            *slot = Some(Latest { time_us, value: readings.value(row), received_us, readings: 1, doubtful });
        }
        Some(latest) => {
            latest.readings += u64::from(readings.flags[row] & flag::MOVED == 0);
            latest.received_us = received_us;
            // Given two that can be believed alike, the later; else the one that can.
            let doubtful = readings.flags[row] & flag::FUTURE != 0;
            if (!doubtful, time_us) >= (!latest.doubtful, latest.time_us) {
                latest.time_us = time_us;
                latest.doubtful = doubtful;
                match readings.flags[row] & flag::KIND {
                    flag::NUMBER => latest.value = Value::Number(readings.number[row]),
                    _ => latest.value = readings.value(row),
                }
            }
        }
    }
}

impl Names {
    fn find(&self, device: &str, metric: &str) -> Option<Arc<Series>> {
        self.by_device.get(device)?.series.get(metric).cloned()
    }

    /// What is gone was not brought.
    fn give_back(&mut self, series: &[Arc<Series>]) {
        for series in series {
            let Some((client, with_device)) = self.bringers.remove(&series.id) else { continue };
            if let Some(brought) = self.brought.get_mut(&client) {
                brought.series -= 1;
                brought.devices -= usize::from(with_device && series.device.removed.load(Ordering::Relaxed));
            }
        }
    }

    fn add_device(&mut self, name: &str, era: u32) -> Arc<Device> {
        let device = device_of(self.devices.len() as u32, name, era);
        self.devices.push(Arc::clone(&device));
        let metrics = Metrics { device: Arc::clone(&device), series: HashMap::default() };
        self.by_device.insert(name.into(), metrics);
        device
    }

    fn add_series(&mut self, device: &str, metric: &str, starts: u64) -> Arc<Series> {
        let metrics = self.by_device.get_mut(device).expect("the device was born before its series");
        let series = Arc::new(series_of(self.series.len() as u32, Arc::clone(&metrics.device), metric, starts));
        metrics.series.insert(metric.into(), Arc::clone(&series));
        self.series.push(Arc::clone(&series));
        self.named += 1;
        series
    }
}

fn device_of(id: u32, name: &str, era: u32) -> Arc<Device> {
    let (labels, removed) = Default::default();
    Arc::new(Device { id, name: name.into(), labels, era: era.into(), removed })
}

fn series_of(id: u32, device: Arc<Device>, metric: &str, starts: u64) -> Series {
    Series {
        id,
        device,
        metric: metric.into(),
        unit: RwLock::default(),
        assigned_us: AtomicI64::new(i64::MIN + (starts * 2 % CLASSES as u64) as i64),
        removed: AtomicBool::new(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog_of(devices: usize, series: usize, starts: u64) -> Catalog {
        Catalog::new(Limits { devices, series, client_share: 50 }, starts)
    }

    #[test]
    fn one_client_leaves_room_for_others() {
        let catalog = catalog_of(1_000, 10_000, 0);
        let bring = |client: &str| {
            (0..1_000).take_while(|i| catalog.resolve(&format!("{client}{i}"), "t", client).is_ok()).count()
        };
        assert_eq!(bring("hog"), 500);
        let refused = catalog.resolve("one more", "t", "hog").unwrap_err().to_string();
        assert!(refused.starts_with("hog has brought 500 new devices since the start"), "{refused}");
        assert_eq!(bring("piglet"), 250);
        assert!(catalog.resolve("honest", "t", "honest").is_ok());
        assert!(catalog.resolve("hog1", "t", "hog").is_ok());
        // What is removed is given back.
        let small = catalog_of(5, 6, 0);
        for round in 0..1_000 {
            assert!(small.resolve("a", "t", "tester").is_ok(), "{round}");
            assert!(small.remove("a", None).is_some());
        }
    }

    #[test]
    fn a_unit_that_alternates_is_taken_once_a_minute() {
        let catalog = catalog_of(1, 1, 0);
        let series = catalog.resolve("a", "t", "c").unwrap();
        for i in 0..120 {
            catalog.tell_unit(&series, if i % 2 == 0 { "C" } else { "F" }, i * 1_000_000);
        }
        let units = catalog.take_births().iter().filter(|birth| matches!(birth, Birth::Unit(_))).count();
        assert_eq!(units, 2);
    }

    #[test]
    fn a_reading_of_the_future_is_the_latest_only_until_one_can_be_believed() {
        let catalog = catalog_of(1, 1, 0);
        let note = |time_us, flags| {
            let mut readings = Readings::default();
            readings.push(0, time_us, Value::Number(time_us as f64), flags);
            catalog.note(&readings, 60);
            catalog.latest(0).unwrap().time_us
        };
        assert_eq!(note(9_000, flag::FUTURE), 9_000);
        assert_eq!(note(50, 0), 50);
        assert_eq!(note(9_001, flag::FUTURE), 50);
        assert_eq!(note(60, 0), 60);
    }

    #[test]
    fn what_is_removed_is_gone_its_name_is_free_and_its_id_is_not() {
        let catalog = catalog_of(1, 2, 0);
        let a = catalog.resolve("a", "t", "c").unwrap();
        catalog.resolve("a", "h", "c").unwrap();
        assert!(catalog.remove("b", None).is_none());
        assert!(catalog.remove("a", Some("x")).is_none());
        let removed = catalog.remove("a", Some("t")).unwrap();
        assert_eq!((removed.era, removed.series[0].id), (1, a.id));
        assert!(a.is_removed() && catalog.find("a", "t").is_none());
        assert_eq!((catalog.counts(), catalog.ids()), ((1, 1), 2));
        assert_eq!(catalog.resolve("a", "t", "c").unwrap().id, 2);
        catalog.remove("a", None).unwrap();
        assert_eq!((catalog.counts(), catalog.devices().len(), catalog.series().len()), ((0, 0), 0, 0));
        let again = catalog.resolve("b", "t", "c").unwrap();
        assert_eq!((again.id, again.device.id), (3, 1));
        let present = catalog.present();
        assert!(present.series[..3].iter().all(Option::is_none) && present.devices[0].is_none());
        assert_eq!(present.devices[1].as_ref().unwrap().1, 2, "born after two removals");
    }

    #[test]
    fn a_name_keeps_its_id_and_is_announced_once() {
        let catalog = catalog_of(10, 10, 0);
        let a = catalog.resolve("a", "t", "c").unwrap();
        assert_eq!(catalog.resolve("a", "t", "c").unwrap().id, a.id);
        assert_ne!(catalog.resolve("a", "h", "c").unwrap().id, a.id);
        let births = catalog.take_births();
        assert!(matches!(births.as_slice(), [Birth::Device(_), Birth::Series(_), Birth::Series(_)]));
        assert!(catalog.take_births().is_empty());
    }

    #[test]
    fn one_more_than_the_limit_is_refused_and_the_others_stay() {
        let catalog = catalog_of(1, 2, 0);
        catalog.resolve("a", "t", "c").unwrap();
        assert_eq!(
            catalog.resolve("b", "t", "c").unwrap_err().to_string(),
            "devices limit of 1 reached: raise limits.devices or remove what is not used"
        );
        catalog.resolve("a", "h", "c").unwrap();
        assert!(catalog.resolve("a", "x", "c").unwrap_err().to_string().starts_with("series limit of 2"));
        assert!(catalog.resolve("a", "t", "c").is_ok());
    }

    #[test]
    fn assigned_times_are_unique_within_their_series() {
        let series = catalog_of(1, 1, 0).resolve("a", "t", "c").unwrap();
        assert_eq!(series.assign_time(100), 100);
        assert_eq!(series.assign_time(100), 104);
        assert_eq!(series.assign_time(90), 108);
        assert_eq!(series.assign_time(203), 200);
    }

    #[test]
    fn a_clock_that_is_put_back_assigns_no_time_twice() {
        let mut seen = std::collections::BTreeSet::new();
        for starts in 1..3 {
            let series = catalog_of(1, 1, starts).resolve("a", "t", "c").unwrap();
            for back in 0..2 {
                for us in (0..4_000).chain(3 * PUT_BACK_US..3 * PUT_BACK_US + 400) {
                    assert!(seen.insert(series.assign_time(us)), "{us} of start {starts}, put back {back} times");
                }
            }
        }
    }

    #[test]
    fn the_latest_reading_is_the_latest_by_event_time() {
        let catalog = catalog_of(1, 1, 0);
        let mut readings = Readings::default();
        readings.push(0, 50, Value::Number(1.0), 0);
        readings.push(0, 40, Value::Text("late".into()), 0);
        catalog.note(&readings, 60);
        let latest = catalog.latest(0).unwrap();
        assert_eq!((latest.time_us, latest.value, latest.readings), (50, Value::Number(1.0), 2));
    }
}
