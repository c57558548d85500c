//! From windows to the shards that own them.
//!
//! Arrives: batches. Leaves: one write for each shard, all committed, or an error. Always
//! holds: a slot on its way is written at both its owners; a write that a shard refuses because
//! of an old map is done again with a new one; nothing is acknowledged that not every shard has.

use super::config::Config;
use super::coordinator::{self, Coordinator, CoordinatorError};
use super::intake::now_us;
use super::map::{Leftover, Map, MapError, Member};
use super::row::{Floor, Key, Row, Version};
use super::shard::postgres::Postgres;
use super::shard::sqlite::Sqlite;
use super::shard::{Beat, Fence, Labelled, Removal, Sender, Shard, ShardError, State, Write};
use crate::placement::{Epoch, PlacementError};
use crate::uplink::Held;
use crate::wire::Batch;
use model::Micros;
use model::identity::slot;
use model::time::window_start;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

/// How often a change of the map is tried again.
const CANCEL_TRIES: u32 = 10;
/// How often a push is tried again with a newer map before its sender is asked to.
const TRIES: u32 = 40;
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
pub enum PushFailure {
    /// Try again.
    Unavailable(String),
    /// Shards lack what was acknowledged.
    Lacking(Vec<(String, Held)>),
    /// Another store sends under this id.
    Refused(String),
}

/// The map and the shards of it, as of one version.
pub struct View {
    /// The document's version.
    pub version: u64,
    /// The document.
    pub map: Map,
    shards: HashMap<String, Arc<dyn Shard>>,
}

impl View {
    /// A shard by name.
    pub fn shard(&self, name: &str) -> Result<&Arc<dyn Shard>, ShardError> {
        self.shards.get(name).ok_or_else(|| ShardError::Down("it is not open".into()))
    }
}

/// Routes.
pub struct Router {
    coordinator: Arc<dyn Coordinator>,
    data_dir: PathBuf,
    /// Other daemons may use the same map.
    shared: bool,
    view: RwLock<Arc<View>>,
    refreshing: Mutex<()>,
}

impl Router {
    /// Opens the map, made of the configured shards if there is none, and all its shards.
    pub async fn open(config: &Config, coordinator: Arc<dyn Coordinator>) -> Result<Self, RouterError> {
        if coordinator.read().await?.is_none() {
            let map = match former_map(config).await? {
                Some(map) => map,
                None => Map::new(config.shards())?.to_text(),
            };
            // If another daemon is quicker, its map counts.
            coordinator.swap(None, &map).await?;
        }
        let router = Router {
            coordinator,
            data_dir: config.cloud.data_dir.clone(),
            shared: config.cloud.coordinator != "sqlite",
            view: RwLock::new(Arc::new(View { version: 0, map: Map::new(config.shards())?, shards: HashMap::new() })),
            refreshing: Mutex::default(),
        };
        router.refresh().await?;
        Ok(router)
    }

    /// The map as this daemon knows it.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where the map lives.
    pub fn coordinator(&self) -> &Arc<dyn Coordinator> {
        &self.coordinator
    }

    /// Reads the map again; true if it is another one.
    pub async fn refresh(&self) -> Result<bool, RouterError> {
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
            let known = before.shards.get(name).filter(|_| before.map.shards.get(name) == Some(member));
            let same_place = before.map.shards.get(name).is_some_and(|known| known.url == member.url);
            let shard = match known.or_else(|| before.shards.get(name).filter(|_| same_place)) {
                Some(shard) => Arc::clone(shard),
                None => self.open_shard(name, member)?,
            };
            shards.insert(name.clone(), shard);
        }
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(View { version, map, shards });
        Ok(true)
    }

    /// Changes the map; false if another daemon has changed it meanwhile. Its view is new afterwards.
    pub async fn change(&self, view: &View, map: &Map) -> Result<bool, RouterError> {
        let done = self.coordinator.swap(Some(view.version), &map.to_text()).await?;
        self.refresh().await?;
        Ok(done)
    }

    /// Opens a shard by its URL.
    pub fn open_shard(&self, name: &str, member: &Member) -> Result<Arc<dyn Shard>, RouterError> {
        open_shard(name, member, &self.data_dir, self.shared)
    }

    /// Makes shards know the slots that the map gives them. One that knows less than the map has
    /// been restored, or is new: it takes what the gateways still have.
    /// One that does not answer does not keep the others waiting.
    pub async fn settle(&self) -> Result<(), RouterError> {
        let mut failure = None;
        for name in self.view().map.shards.keys() {
            if let Err(error) = self.settle_one(name).await {
                failure.get_or_insert(error);
            }
        }
        failure.map_or(Ok(()), Err)
    }

    async fn settle_one(&self, name: &str) -> Result<(), RouterError> {
        let failed = |error| RouterError::Shard { name: name.to_owned(), error };
        let view = self.view();
        let shard = view.shard(name).map_err(failed)?;
        let known = shard.fences().await.map_err(failed)?;
        let Behind { mut fences, older } = behind(&view.map, name, &known);
        if !older.is_empty() {
            let back = self.give_back(&view, name, &older).await?;
            fences.retain(|fence| !back.contains(&fence.slot));
        }
        if !older.is_empty() && !known.is_empty() {
            tracing::warn!(
                "shard {name} is older than the map: it has been restored; the gateways are asked for what it lacks"
            );
            shard.forget_batches().await.map_err(failed)?;
        }
        if fences.is_empty() { Ok(()) } else { shard.set_fences(fences).await.map_err(failed) }
    }

    /// Slots of a shard that has been restored go back to whoever has had them before, where that one still has all
    /// that it handed over; they move again by and by. What came since, the gateways send once more.
    async fn give_back(&self, view: &View, name: &str, slots: &[u16]) -> Result<BTreeSet<u16>, RouterError> {
        let (mut map, mut back, now_us) = (view.map.clone(), Vec::new(), now_us());
        for former in view.map.shards.keys().filter(|former| *former != name) {
            let had = |left: &&Leftover| {
                left.shard == *former
                    && slots.contains(&left.slot)
                    && left.epoch == view.map.table.slot(left.slot).epoch
                    && left.after_us > now_us
            };
            let left: Vec<&Leftover> = view.map.leftovers.iter().filter(had).collect();
            if left.is_empty() {
                continue;
            }
            let failed = |error| RouterError::Shard { name: former.clone(), error };
            let known = view.shard(former).map_err(failed)?.fences().await.map_err(failed)?;
            let closed: HashSet<(u16, Epoch)> = known
                .iter()
                .filter(|fence| fence.state == State::Closed)
                .map(|fence| (fence.slot, fence.epoch))
                .collect();
            for left in left.into_iter().filter(|left| closed.contains(&(left.slot, left.epoch))) {
                let slot = map.table.slot_mut(left.slot);
                slot.owner.clone_from(former);
                slot.epoch += 1;
                back.push(Fence { slot: left.slot, epoch: slot.epoch, state: State::Closed });
            }
        }
        if back.is_empty() {
            return Ok(BTreeSet::new());
        }
        let slots: BTreeSet<u16> = back.iter().map(|fence| fence.slot).collect();
        map.leftovers.retain(|left| !slots.contains(&left.slot));
        map.leftovers.extend(back.iter().map(|fence| Leftover {
            slot: fence.slot,
            shard: name.to_owned(),
            epoch: fence.epoch,
            after_us: now_us,
        }));
        map.rebalancing = true;
        if !self.change(view, &map).await? {
            // Another daemon was quicker: looked at again.
            return Ok(slots);
        }
        tracing::warn!("{} slots of shard {name} go back to the shards that still have them whole", slots.len());
        view.shard(name)
            .cloned()
            .map_err(|error| RouterError::Shard { name: name.to_owned(), error })?
            .set_fences(back)
            .await
            .map_err(|error| RouterError::Shard { name: name.to_owned(), error })?;
        Ok(slots)
    }

    /// Stops what is on its way: owners stay who they are. It works at any step, also without the new owner, since
    /// until it owns a slot the former one has all of it.
    pub async fn cancel(&self) -> Result<usize, RouterError> {
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
    pub async fn push(
        &self,
        sender: &Sender,
        number: u64,
        batch: &Batch,
        expected: &HashMap<String, Held>,
        received_us: Micros,
    ) -> Result<Vec<(String, Held)>, PushFailure> {
        let parts = Parts::of(sender, batch, received_us);
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
                    let known = self.refresh().await.map_err(|e| PushFailure::Unavailable(e.to_string()))?;
                    if !known {
                        tokio::time::sleep(TRY_AGAIN).await;
                    }
                }
                Err(ShardFailure { shard, error: ShardError::Lacking(held) }) => {
                    return Err(PushFailure::Lacking(vec![(shard, held)]));
                }
                Err(ShardFailure { error: ShardError::Refused(text), .. }) => return Err(PushFailure::Refused(text)),
                Err(ShardFailure { shard, error }) => {
                    return Err(PushFailure::Unavailable(format!("shard {shard}: {error}")));
                }
                Ok(held) => return Ok(held),
            }
        }
        Err(PushFailure::Unavailable(last))
    }

    /// Notes a gateway that is there; returns what all shards hold of it.
    pub async fn beat(&self, sender: &Sender, beat: Beat) -> Result<Vec<(String, Held)>, PushFailure> {
        let at = slot(&sender.gateway);
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
                Some((_, ShardError::Fenced { .. })) if try_number + 1 < TRIES => {
                    let known = self.refresh().await.map_err(|e| PushFailure::Unavailable(e.to_string()))?;
                    if !known {
                        tokio::time::sleep(TRY_AGAIN).await;
                    }
                }
                Some((name, error)) => return Err(PushFailure::Unavailable(format!("shard {name}: {error}"))),
            }
        }
        Err(PushFailure::Unavailable("slots are being moved".into()))
    }
}

/// What all shards that answer hold of a sender.
async fn held(view: &View, sender: &Sender) -> Vec<(String, Held)> {
    let mut held = Vec::new();
    for (name, shard) in &view.shards {
        match shard.held(&sender.gateway, sender.incarnation).await {
            Ok(of) => held.push((name.clone(), of)),
            Err(e) => tracing::debug!("shard {name} does not say what it holds of {}: {e}", sender.gateway),
        }
    }
    held
}

/// Where a shard knows less than the map.
pub struct Behind {
    /// What it is to be told.
    pub fences: Vec<Fence>,
    /// The slots in which it is older, and not only short of the last step of a move.
    pub older: Vec<u16>,
}

/// What a shard that knows these fences does not know of the map.
pub fn behind(map: &Map, shard: &str, known: &[Fence]) -> Behind {
    let known: HashMap<u16, &Fence> = known.iter().map(|fence| (fence.slot, fence)).collect();
    let mut behind = Behind { fences: Vec::new(), older: Vec::new() };
    for (slot, epoch) in map.slots_of(shard) {
        let known = known.get(&slot);
        if map.transits.contains_key(&slot) || known.is_some_and(|fence| fence.epoch >= epoch) {
            continue;
        }
        let arrived = known.is_some_and(|fence| fence.state == State::Arrived && fence.epoch + 1 == epoch);
        if !arrived {
            behind.older.push(slot);
        }
        behind.fences.push(Fence { slot, epoch, state: State::Open });
    }
    behind
}

/// Opens a shard by its URL; files are relative to `data_dir`, and only for daemons that share
/// their map with no other.
pub fn open_shard(name: &str, member: &Member, data_dir: &Path, shared: bool) -> Result<Arc<dyn Shard>, RouterError> {
    let failed = |error| RouterError::Shard { name: name.to_owned(), error };
    match member.url.split_once(':') {
        Some(("sqlite", _)) if shared => Err(failed(ShardError::Down(
            "an SQLite shard has one daemon, and cloud.coordinator is for several: move it to PostgreSQL first, with \
             cloud.coordinator = \"sqlite\""
                .into(),
        ))),
        Some(("sqlite", file)) => {
            let below = below(file).map_err(|what| failed(ShardError::Down(what)))?;
            Ok(Arc::new(Sqlite::open(&data_dir.join(below)).map_err(failed)?))
        }
        Some(("postgres" | "postgresql", _)) => Ok(Arc::new(Postgres::new(&member.url).map_err(failed)?)),
        _ => Err(failed(ShardError::Down(format!(
            "{:?} is no shard: write sqlite:FILE or postgres://USER:PASSWORD@HOST/DATABASE",
            hidden(&member.url)
        )))),
    }
}

/// A file's path, which leads nowhere but below the data directory.
fn below(file: &str) -> Result<&Path, String> {
    let path = Path::new(file);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    if file.is_empty() || file.contains('\0') || !plain {
        return Err(format!(
            "sqlite:{file} is not below cloud.data_dir: give a file's name, without \"..\" or a leading \"/\""
        ));
    }
    Ok(path)
}

/// A URL as it may be shown: without what lets others in. One that cannot be understood shows its scheme only.
pub(super) fn hidden(url: &str) -> String {
    let Some((scheme, _)) = url.split_once(':').filter(|(scheme, _)| *scheme != "sqlite") else {
        return url.to_owned();
    };
    let Ok(mut shown) = reqwest::Url::parse(url) else { return format!("{scheme}://...") };
    let _ = shown.set_password(None);
    let pairs: Vec<(String, String)> =
        shown.query_pairs().into_owned().filter(|(key, _)| !key.contains("pass") && !key.contains("key")).collect();
    shown.set_query(None);
    if !pairs.is_empty() {
        shown.query_pairs_mut().extend_pairs(pairs);
    }
    shown.to_string()
}

/// The map of the data directory, when a coordinator for several daemons takes over.
async fn former_map(config: &Config) -> Result<Option<String>, RouterError> {
    if config.cloud.coordinator == "sqlite" || !coordinator::Sqlite::is_in(&config.cloud.data_dir) {
        return Ok(None);
    }
    let former = coordinator::Sqlite::open(&config.cloud.data_dir)?.read().await?;
    tracing::info!("the map of {} is taken over", config.cloud.data_dir.display());
    Ok(former.map(|(_, map)| map))
}

/// What a batch has for slots.
struct Parts {
    /// Sorted, each once.
    rows: Vec<Row>,
    labels: Vec<Labelled>,
    removed: Vec<Removal>,
}

impl Parts {
    fn of(sender: &Sender, batch: &Batch, received_us: Micros) -> Self {
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
