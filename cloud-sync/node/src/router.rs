//! From windows to the shards that own them.
//!
//! Arrives: batches. Leaves: one write for each shard, all committed, or an error. Always
//! holds: a slot on its way is written at both its owners; a write that a shard refuses because
//! of an old map is done again with a new one; nothing is acknowledged that not every shard has.

use super::config::Config;
use super::coordinator::{self, Coordinator, CoordinatorError};
use super::intake::now_us;
use super::map::{Leftover, Map, MapError, Member, Placing};
use super::row::{Floor, Key, Row, Version};
use super::shard::deadline::within;
use super::shard::{Beat, Fence, Identity, Labelled, Removal, Sender, Shard, ShardError, State, Write, place};
use futures_util::future::join_all;
use model::Micros;
use model::aggregate::is_glob;
use model::identity::SLOTS;
use model::time::window_start;
use placement::{Epoch, PlacementError};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use uplink::Held;
use wire::Batch;

/// How often a change of the map is tried again.
const CANCEL_TRIES: u32 = 10;
/// How often a push or a question is tried again with a newer map before whoever asks is told to.
pub(crate) const TRIES: u32 = 40;
/// For so long a shard that did not answer in time is asked with less patience, and with how much.
const SILENT: Duration = Duration::from_secs(60);
const SILENT_PATIENCE: Duration = Duration::from_secs(2);
const HELD_PATIENCE: Duration = Duration::from_secs(3);
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// Why the map cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// The coordinator.
    #[error(transparent)]
    Coordinator(#[from] CoordinatorError),
    /// The document.
    #[error(transparent)]
    Map(#[from] MapError),
    /// There are no shards.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// There is no map, but a configured shard has one.
    #[error(
        "there is no map, but shard {name} belongs to cloud {cloud}: if the map of that cloud is lost, make it anew with \
         `tidegate-cloud doctor --repair`; otherwise give this cloud shards of its own"
    )]
    Taken {
        /// Which.
        name: String,
        /// Whose it is.
        cloud: String,
    },
    /// A shard cannot be opened.
    #[error("shard {name}: {error}")]
    Shard {
        /// Which.
        name: String,
        /// Why.
        error: ShardError,
    },
}

/// Why a push is not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PushFailure {
    /// Try again.
    Unavailable(String),
    /// Shards lack what was acknowledged.
    Lacking(Vec<(String, Held)>),
    /// Another store sends under this id.
    Refused(String),
}

/// The map and the shards of it, as of one version.
pub(crate) struct View {
    /// The document's version.
    pub version: u64,
    /// The document.
    pub map: Map,
    shards: HashMap<String, Arc<dyn Shard>>,
    /// All slots, by owner.
    all: Targets,
}

/// Slots with their epochs, by the shard that owns them.
pub(crate) type Targets = Vec<(String, Arc<Vec<(u16, Epoch)>>)>;

impl View {
    fn new(version: u64, map: Map, shards: HashMap<String, Arc<dyn Shard>>) -> Self {
        let all = by_owner(&map, 0..SLOTS);
        View { version, map, shards, all }
    }

    /// What a question over these gateways and devices has to look at: globs, and nothing for all.
    pub(crate) fn targets(&self, gateways: &[String], devices: &[String]) -> Targets {
        let placing = self.map.placing;
        let named = |names: &[String]| !names.is_empty() && names.iter().all(|name| !is_glob(name));
        // The gateway does not count there.
        let gateways = if placing == Placing::Device { &[String::new()] } else { gateways };
        let is_placed = (placing == Placing::Device || named(gateways)) && named(devices);
        if !is_placed || gateways.len() * devices.len() > usize::from(SLOTS) {
            return self.all.clone();
        }
        let slots = gateways.iter().flat_map(|gateway| devices.iter().map(|device| placing.slot(gateway, device)));
        by_owner(&self.map, slots.collect::<BTreeSet<u16>>())
    }

    /// A shard by name.
    pub(crate) fn shard(&self, name: &str) -> Result<&Arc<dyn Shard>, ShardError> {
        self.shards.get(name).ok_or_else(|| ShardError::Down("it is not open".into()))
    }
}

fn by_owner(map: &Map, slots: impl IntoIterator<Item = u16>) -> Targets {
    let mut by_owner: BTreeMap<&str, Vec<(u16, Epoch)>> = BTreeMap::new();
    for slot in slots {
        let owner = map.table.slot(slot);
        by_owner.entry(&owner.owner).or_default().push((slot, owner.epoch));
    }
    by_owner.into_iter().map(|(shard, slots)| (shard.to_owned(), Arc::new(slots))).collect()
}

/// Routes.
pub(crate) struct Router {
    coordinator: Arc<dyn Coordinator>,
    data_dir: PathBuf,
    /// Other daemons may use the same map.
    shared: bool,
    view: RwLock<Arc<View>>,
    /// Shards that did not answer a question in time, and when.
    silent: std::sync::Mutex<HashMap<String, Instant>>,
    refreshing: Mutex<()>,
}

impl Router {
    /// Opens the map, made of the configured shards if there is none, and all its shards.
    pub(crate) async fn open(config: &Config, coordinator: Arc<dyn Coordinator>) -> Result<Self, RouterError> {
        if coordinator.read().await?.is_none() {
            let map = match former_map(config).await? {
                Some(map) => Some(map),
                None => found(config, &*coordinator).await?,
            };
            if let Some(map) = map {
                // If another daemon is quicker, its map counts.
                coordinator.swap(None, &map).await?;
            }
        }
        name(&*coordinator).await?;
        let router = Router {
            coordinator,
            data_dir: config.cloud.data_dir.clone(),
            shared: config.cloud.coordinator.is_shared(),
            view: RwLock::new(Arc::new(View::new(0, Map::new(config.shards())?, HashMap::new()))),
            silent: std::sync::Mutex::default(),
            refreshing: Mutex::default(),
        };
        router.refresh().await?;
        Ok(router)
    }

    /// The map as this daemon knows it.
    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where the map lives.
    pub(crate) fn coordinator(&self) -> &Arc<dyn Coordinator> {
        &self.coordinator
    }

    /// How long a question may wait for a shard: not for long once more for one that has just kept another waiting.
    pub(crate) fn patience(&self, shard: &str, timeout: Duration) -> Duration {
        let silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        let is_silent = silent.get(shard).is_some_and(|since| since.elapsed() < SILENT);
        if is_silent { timeout.min(SILENT_PATIENCE) } else { timeout }
    }

    /// Notes whether a shard has answered in time.
    pub(crate) fn heard(&self, shard: &str, in_time: bool) {
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        if in_time {
            silent.remove(shard);
        } else {
            silent.insert(shard.to_owned(), Instant::now());
        }
    }

    /// Takes over a newer map, which a shard that refuses may know, or waits until there may be one.
    pub(crate) async fn catch_up(&self) -> Result<(), RouterError> {
        if !self.refresh().await? {
            tokio::time::sleep(TRY_AGAIN).await;
        }
        Ok(())
    }

    /// Reads the map again; true if it is another one.
    pub(crate) async fn refresh(&self) -> Result<bool, RouterError> {
        let _only = self.refreshing.lock().await;
        let Some((version, text)) = self.coordinator.read().await? else {
            return Err(CoordinatorError("the map has gone".into()).into());
        };
        let before = self.view();
        if before.version == version {
            return Ok(false);
        }
        let map = Map::of_text(&text)?;
        let mut shards = HashMap::new();
        for (name, member) in &map.shards {
            let same_place = before.map.shards.get(name).is_some_and(|known| known.url == member.url);
            let shard = match before.shards.get(name).filter(|_| same_place && before.map.cloud == map.cloud) {
                Some(shard) => Arc::clone(shard),
                None => {
                    if version > 1 && !place::is_there(&member.url, &self.data_dir) {
                        tracing::warn!("there is no file at the place of shard {name}: an empty one is made");
                    }
                    self.open_shard(name, member, Some(map.identity(name)))?
                }
            };
            shards.insert(name.clone(), shard);
        }
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(View::new(version, map, shards));
        Ok(true)
    }

    /// Changes the map; false if another daemon has changed it meanwhile. Its view is new afterwards.
    pub(crate) async fn change(&self, view: &View, map: &Map) -> Result<bool, RouterError> {
        let done = self.coordinator.swap(Some(view.version), &map.to_text()).await?;
        self.refresh().await?;
        Ok(done)
    }

    /// Opens a shard by its URL, as it is or for its owner.
    pub(crate) fn open_shard(
        &self,
        name: &str,
        member: &Member,
        owner: Option<Identity>,
    ) -> Result<Arc<dyn Shard>, RouterError> {
        place::open(&member.url, &self.data_dir, self.shared, owner)
            .map_err(|error| RouterError::Shard { name: name.to_owned(), error })
    }

    /// Opens a shard anew: another file is at its place now.
    pub(super) async fn reopen(&self, name: &str) -> Result<(), RouterError> {
        let _only = self.refreshing.lock().await;
        let before = self.view();
        let Some(member) = before.map.shards.get(name) else { return Ok(()) };
        let mut shards = before.shards.clone();
        shards.insert(name.to_owned(), self.open_shard(name, member, Some(before.map.identity(name)))?);
        let view = View::new(before.version, before.map.clone(), shards);
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
        Ok(())
    }

    /// Stops what is on its way: owners stay who they are. It works at any step, also without the new owner, since
    /// until it owns a slot the former one has all of it.
    pub(crate) async fn cancel(&self) -> Result<usize, RouterError> {
        for _ in 0..CANCEL_TRIES {
            self.refresh().await?;
            let view = self.view();
            let mut map = view.map.clone();
            let mut owners: BTreeMap<String, Vec<Fence>> = BTreeMap::new();
            for (slot, transit) in std::mem::take(&mut map.transits) {
                let of = map.table.slot_mut(slot);
                // Above what the mover may have closed it at.
                of.epoch += 2;
                owners.entry(of.owner.clone()).or_default().push(Fence { slot, epoch: of.epoch, state: State::Open });
                let left = Leftover { slot, shard: transit.to, epoch: of.epoch, after_us: now_us() };
                map.leftovers.push(left);
            }
            map.rebalancing = false;
            if !self.change(&view, &map).await? {
                continue;
            }
            let stopped = view.map.transits.len();
            for (name, fences) in owners {
                let failed = |error| RouterError::Shard { name: name.clone(), error };
                view.shard(&name).map_err(failed)?.set_fences(fences).await.map_err(failed)?;
            }
            for left in map.leftovers.iter().filter(|left| view.map.transits.contains_key(&left.slot)) {
                let closed = Fence { slot: left.slot, epoch: left.epoch, state: State::Closed };
                // A target that is gone for good need not know.
                if let Ok(shard) = view.shard(&left.shard)
                    && shard.set_fences(vec![closed]).await.is_err()
                {
                    break;
                }
            }
            return Ok(stopped);
        }
        Err(CoordinatorError("the map keeps changing: try again".into()).into())
    }

    /// Stores a batch; returns the shards that it touched, with what they hold, once all have
    /// committed.
    pub(crate) async fn push(
        &self,
        sender: &Sender,
        number: u64,
        batch: &Batch,
        expected: &HashMap<String, Held>,
        received_us: Micros,
    ) -> Result<Vec<(String, Held)>, PushFailure> {
        let parts = Parts::of(self.view().map.placing, sender, batch, received_us);
        let mut last = String::new();
        for _ in 0..TRIES {
            let view = self.view();
            let (owners, importers) = split(&view.map, sender, number, &parts, expected);
            // Importers get what owners have accepted: a copy never has more than what it is a copy of.
            let written = match write_all(&view, owners).await {
                Ok(mut held) => write_all(&view, importers).await.map(|more| {
                    held.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
                    held.extend(more);
                    held
                }),
                failed => failed,
            };
            match written {
                Err(ShardFailure { shard, error: error @ ShardError::Fenced { .. } }) => {
                    last = format!("shard {shard}: {error}");
                    self.catch_up().await.map_err(|e| PushFailure::Unavailable(e.to_string()))?;
                }
                Err(ShardFailure { shard, error: ShardError::Lacking(held) }) => {
                    return Err(PushFailure::Lacking(vec![(shard, held)]));
                }
                Err(ShardFailure { error: ShardError::Refused(text), .. }) => return Err(PushFailure::Refused(text)),
                Err(ShardFailure { error: error @ ShardError::Disputed(_), .. }) => {
                    return Err(self.dispute(sender, &error).await);
                }
                Err(ShardFailure { shard, error }) => {
                    return Err(PushFailure::Unavailable(format!("shard {shard}: {error}")));
                }
                Ok(held) => return Ok(held),
            }
        }
        Err(PushFailure::Unavailable(last))
    }

    /// Two stores send under one id: no shard takes either any more.
    async fn dispute(&self, sender: &Sender, why: &ShardError) -> PushFailure {
        let gateway: &str = &sender.gateway;
        let view = self.view();
        let told = join_all(view.shards.values().map(|shard| shard.dispute(gateway, sender.incarnation))).await;
        // One that does not answer finds it out by itself.
        told.iter().filter_map(|told| told.as_ref().err()).for_each(|e| tracing::warn!("gateway {gateway}: {e}"));
        tracing::error!("gateway {gateway}: {why}");
        PushFailure::Refused(why.to_string())
    }

    /// Notes a gateway that is there; returns what all shards hold of it.
    pub(crate) async fn beat(&self, sender: &Sender, beat: Beat) -> Result<Vec<(String, Held)>, PushFailure> {
        let at = self.view().map.placing.slot_of_gateway(&sender.gateway);
        for try_number in 0..TRIES {
            let view = self.view();
            let owner = view.map.table.slot(at);
            let mut targets = vec![owner.owner.clone()];
            targets.extend(view.map.transits.get(&at).map(|transit| transit.to.clone()));
            let mut failure = None;
            for name in targets {
                let shard = view.shard(&name).map_err(|e| PushFailure::Unavailable(format!("shard {name}: {e}")))?;
                if let Err(error) = shard.beat(beat.clone(), sender.clone(), (at, owner.epoch)).await {
                    failure = Some((name, error));
                    break;
                }
            }
            match failure {
                None => return Ok(held(&view, sender).await),
                Some((_, ShardError::Refused(text))) => return Err(PushFailure::Refused(text)),
                Some((_, error @ ShardError::Disputed(_))) => return Err(self.dispute(sender, &error).await),
                Some((_, ShardError::Fenced { .. })) if try_number + 1 < TRIES => {
                    self.catch_up().await.map_err(|e| PushFailure::Unavailable(e.to_string()))?;
                }
                Some((name, error)) => return Err(PushFailure::Unavailable(format!("shard {name}: {error}"))),
            }
        }
        Err(PushFailure::Unavailable("slots are being moved".into()))
    }
}

/// What all shards that answer soon hold of a sender: a heartbeat must not wait for one that hangs.
async fn held(view: &View, sender: &Sender) -> Vec<(String, Held)> {
    let asked = view.shards.iter().map(async |(name, shard)| {
        match within(HELD_PATIENCE, shard.held(&sender.gateway, sender.incarnation)).await {
            Ok(of) => Some((name.clone(), of)),
            Err(e) => {
                tracing::debug!("shard {name} does not say what it holds of {}: {e}", sender.gateway);
                None
            }
        }
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// The map of the data directory, when a coordinator for several daemons takes over.
async fn former_map(config: &Config) -> Result<Option<String>, RouterError> {
    if !config.cloud.coordinator.is_shared() || !coordinator::Sqlite::is_in(&config.cloud.data_dir) {
        return Ok(None);
    }
    let former = coordinator::Sqlite::open(&config.cloud.data_dir)?.read().await?;
    tracing::info!("the map of {} is taken over", config.cloud.data_dir.display());
    Ok(former.map(|(_, map)| map))
}

/// A first map, unless a configured shard belongs to a cloud already: then that one's map is lost, or this is another.
async fn found(config: &Config, coordinator: &dyn Coordinator) -> Result<Option<String>, RouterError> {
    let is_there = |member: &Member| place::is_there(&member.url, &config.cloud.data_dir);
    for (name, member) in config.shards().into_iter().filter(|(_, member)| is_there(member)) {
        let failed = |error| RouterError::Shard { name: name.clone(), error };
        let shared = config.cloud.coordinator.is_shared();
        let shard = place::open(&member.url, &config.cloud.data_dir, shared, None).map_err(failed)?;
        // One that does not answer now says so when it does.
        let Ok(Some(of)) = shard.identity().await else { continue };
        if coordinator.read().await?.is_some() {
            // It is the one that another daemon has founded meanwhile.
            return Ok(None);
        }
        return Err(RouterError::Taken { name, cloud: of.cloud });
    }
    Ok(Some(Map::new(config.shards())?.to_text()))
}

/// Gives the cloud an id if it was founded before clouds had any.
async fn name(coordinator: &dyn Coordinator) -> Result<(), RouterError> {
    while let Some((version, text)) = coordinator.read().await? {
        let mut map = Map::of_text(&text)?;
        if !map.cloud.is_empty() {
            break;
        }
        map.cloud = format!("{:016x}", rand::random::<u64>());
        coordinator.swap(Some(version), &map.to_text()).await?;
    }
    Ok(())
}

/// What a batch has for slots.
struct Parts {
    /// Sorted, each once.
    rows: Vec<Row>,
    labels: Vec<Labelled>,
    removed: Vec<Removal>,
}

impl Parts {
    fn of(placing: Placing, sender: &Sender, batch: &Batch, received_us: Micros) -> Self {
        let slot = |device: &str| placing.slot(&sender.gateway, device);
        let slots: Vec<u16> = batch.devices.iter().map(|device| slot(&device.id)).collect();
        let labels = batch.devices.iter().zip(&slots).filter_map(|(device, &slot)| {
            Some(Labelled { slot, device: Arc::clone(&device.id), labels: device.labels.clone()? })
        });
        let removed = batch.removed.iter().map(|removed| {
            let version = Version { incarnation: sender.incarnation, revision: removed.revision };
            Removal {
                slot: slot(&removed.device),
                device: Arc::clone(&removed.device),
                floor: Floor { metric: removed.metric.clone(), version, received_us },
            }
        });
        let mut rows: BTreeMap<Key, Row> = BTreeMap::new();
        for window in &batch.windows {
            let at = window.device as usize;
            let key = Key {
                slot: slots[at],
                gateway: Arc::clone(&sender.gateway),
                device: Arc::clone(&batch.devices[at].id),
                length_us: window.length_us,
                start_us: window.start_us,
            };
            let version = Version { incarnation: sender.incarnation, revision: window.revision };
            let row = Row { key: key.clone(), version, received_us, metrics: window.metrics.clone() };
            if rows.get(&key).is_none_or(|known| known.version < version) {
                rows.insert(key, row);
            }
        }
        Parts {
            rows: without_overlaps(rows.into_values().collect()),
            labels: labels.collect(),
            removed: removed.collect(),
        }
    }
}

/// Of windows of one device that overlap the longest stay: all are of one life of the store.
fn without_overlaps(rows: Vec<Row>) -> Vec<Row> {
    let lengths: BTreeSet<Micros> = rows.iter().map(|row| row.key.length_us).collect();
    if lengths.len() < 2 {
        return rows;
    }
    // Windows of one length lie side by side, so looking up the one that holds a time is enough.
    let there: HashSet<(Arc<str>, Micros, Micros)> =
        rows.iter().map(|row| (Arc::clone(&row.key.device), row.key.length_us, row.key.start_us)).collect();
    let is_covered = |row: &Row| {
        let Key { device, length_us, start_us, .. } = &row.key;
        lengths.range(length_us + 1..).any(|longer_us| {
            let first_us = window_start(*start_us, *longer_us);
            let last_us = window_start(start_us + length_us - 1, *longer_us);
            [first_us, last_us].iter().any(|&at_us| there.contains(&(Arc::clone(device), *longer_us, at_us)))
        })
    };
    let covered: Vec<bool> = rows.iter().map(is_covered).collect();
    rows.into_iter().zip(covered).filter(|(_, covered)| !covered).map(|(row, _)| row).collect()
}

/// One write for each shard that owns a slot that is touched, and one for each that is getting one.
fn split(map: &Map, sender: &Sender, batch: u64, parts: &Parts, expected: &HashMap<String, Held>) -> (Writes, Writes) {
    let mut writes: [Writes; 2] = Default::default();
    let mut fences: [BTreeMap<String, BTreeMap<u16, Epoch>>; 2] = Default::default();
    let mut each = |slot: u16, add: &dyn Fn(&mut Write)| {
        let owner = map.table.slot(slot);
        let importer = map.transits.get(&slot).map(|transit| &transit.to);
        for (role, shard) in std::iter::once(&owner.owner).chain(importer).enumerate() {
            let write = writes[role].entry(shard.clone()).or_insert_with(|| Write {
                sender: sender.clone(),
                batch,
                expected: expected.get(shard).copied().unwrap_or_default(),
                rows: Vec::new(),
                labels: Vec::new(),
                removed: Vec::new(),
                fences: Vec::new(),
            });
            add(write);
            fences[role].entry(shard.clone()).or_default().insert(slot, owner.epoch);
        }
    };
    for row in &parts.rows {
        each(row.key.slot, &|write| write.rows.push(row.clone()));
    }
    for labelled in &parts.labels {
        each(labelled.slot, &|write| write.labels.push(labelled.clone()));
    }
    for removal in &parts.removed {
        each(removal.slot, &|write| write.removed.push(removal.clone()));
    }
    for (writes, fences) in writes.iter_mut().zip(fences) {
        for (shard, fences) in fences {
            if let Some(write) = writes.get_mut(&shard) {
                write.fences = fences.into_iter().collect();
            }
        }
    }
    let [owners, importers] = writes;
    (owners, importers)
}

/// By shard.
type Writes = BTreeMap<String, Write>;

struct ShardFailure {
    shard: String,
    error: ShardError,
}

/// All writes side by side; the worst failure, if any fails.
async fn write_all(view: &View, writes: Writes) -> Result<Vec<(String, Held)>, ShardFailure> {
    let mut tasks = JoinSet::new();
    for (name, write) in writes {
        let shard = view.shard(&name).map_err(|error| ShardFailure { shard: name.clone(), error })?;
        let shard = Arc::clone(shard);
        tasks.spawn(async move { (name, shard.write(write).await) });
    }
    let (mut held, mut failure): (Vec<(String, Held)>, Option<ShardFailure>) = (Vec::new(), None);
    while let Some(done) = tasks.join_next().await {
        match done {
            Ok((name, Ok(of))) => held.push((name, of)),
            Ok((shard, Err(error))) => {
                // A map that is old explains all others.
                let replaces = failure.is_none() || matches!(error, ShardError::Fenced { .. });
                if replaces {
                    failure = Some(ShardFailure { shard, error });
                }
            }
            Err(e) => failure = Some(ShardFailure { shard: "?".into(), error: ShardError::Down(e.to_string()) }),
        }
    }
    match failure {
        None => Ok(held),
        Some(failure) => Err(failure),
    }
}
