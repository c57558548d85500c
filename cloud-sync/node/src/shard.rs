//! Where rows live.
//!
//! A shard is an existing engine behind one trait: SQLite files, or PostgreSQL. Always holds:
//! every write and every read checks, in its own transaction, that the shard owns the slots it
//! touches at the epochs that the caller believes in; whoever acts on an older map changes and
//! learns nothing.

/// How long a shard may take.
pub(super) mod deadline;
/// Rows to answers, whatever engine they come from.
mod merge;
/// Where a shard is, by its URL.
pub mod place;
/// PostgreSQL: a database.
pub mod postgres;
/// SQLite: one file.
pub mod sqlite;

use super::row::{Floor, Key, Row};
use async_trait::async_trait;
use daemon::aggregates::{Filter, GroupBy, GroupKey, Range};
use model::identity::SLOTS;
use model::time::{SECOND_US, window_start};
use model::{Micros, Summary};
use placement::Epoch;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use uplink::Held;
use wire::HeldWindow;

/// What a shard may do with a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It owns it: reads and writes.
    Open,
    /// It is being copied here: writes only.
    Importing,
    /// All of it has been copied here and it is about to be handed over: writes only.
    Arrived,
    /// It still owns it, but is about to hand it over: reads only.
    Fenced,
    /// It owned it once: neither.
    Closed,
}

impl State {
    /// As it is stored.
    pub fn name(self) -> &'static str {
        ["open", "importing", "arrived", "fenced", "closed"][self as usize]
    }

    /// The reverse; whatever else it may be called, nothing may be done.
    pub fn of_name(name: &str) -> Self {
        let known = [State::Open, State::Importing, State::Arrived, State::Fenced];
        known.into_iter().find(|state| state.name() == name).unwrap_or(State::Closed)
    }
}

/// A slot at a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    /// Which.
    pub slot: u16,
    /// As of which change of hands.
    pub epoch: Epoch,
    /// What may be done.
    pub state: State,
}

/// Why a shard did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// The caller's map is not the shard's.
    #[error("slot {slot} is {} there", found.map_or("unknown".into(), |(state, epoch)| format!("{} at epoch {epoch}", state.name())))]
    Fenced {
        /// The first slot that differs.
        slot: u16,
        /// What it is at the shard.
        found: Option<(State, Epoch)>,
    },
    /// It does not hold batches that were acknowledged.
    #[error("it has been restored from a backup")]
    Lacking(Held),
    /// Another store sends under this gateway's id, or has sent a newer state.
    #[error("{0}")]
    Refused(String),
    /// Two stores send under this gateway's id at one time: both are to be refused.
    #[error("{}", disputed(.0))]
    Disputed(String),
    /// The engine does not answer, or says no.
    #[error("{0}")]
    Down(String),
    /// More than one question may take.
    #[error("{0}")]
    TooMuch(String),
}

/// Whose a shard is; it is written into the shard itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The cloud's id, random, of its founding.
    pub cloud: String,
    /// The shard's name in its map.
    pub shard: String,
}

impl Identity {
    /// Why a shard that is `found`'s may not be used as this one's.
    fn check(&self, found: &Identity) -> Result<(), ShardError> {
        if self == found {
            return Ok(());
        }
        let what = if self.cloud == found.cloud {
            format!("it is shard {:?} of this cloud, not {:?}: two names for one place?", found.shard, self.shard)
        } else {
            format!(
                "it belongs to another cloud, {}, as its shard {:?}; give this one a place of its own, or, if the map of \
                 that cloud is lost, stop the daemons and make it anew with `tidegate-cloud doctor --repair`",
                found.cloud, found.shard
            )
        };
        Err(ShardError::Down(what))
    }
}

/// Who sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sender {
    /// The gateway's id.
    pub gateway: Arc<str>,
    /// The life of its store.
    pub incarnation: u64,
    /// How often the store was started.
    pub starts: u64,
    /// Random for each start.
    pub session: u64,
}

impl Sender {
    /// Why a sender is refused whom another, known one stands against.
    fn check(&self, known: &KnownSender, now_us: Micros) -> Result<(), ShardError> {
        let of = &known.sender;
        // A later life, such as that of a backup that is used, ends a dispute over an earlier one.
        if known.disputed && self.incarnation <= of.incarnation {
            return Err(ShardError::Refused(disputed(&self.gateway)));
        }
        let (ours, theirs) = ((self.incarnation, self.starts), (of.incarnation, of.starts));
        if ours > theirs || (ours == theirs && self.session == of.session) {
            return Ok(());
        }
        // Copies are of one life. What a store sent before it was started again may still be under way for a while.
        if self.incarnation == of.incarnation && (ours == theirs || now_us - known.since_us > STRAY_US) {
            return Err(ShardError::Disputed(self.gateway.to_string()));
        }
        Err(ShardError::Refused(format!(
            "another gateway sends under the id {:?}: either this store is a copy of it, or an older one. Stop one of the \
             two, or give this one another gateway.id",
            self.gateway
        )))
    }
}

/// How long a push of a store that was started again meanwhile may be under way.
const STRAY_US: Micros = 60 * SECOND_US;

fn disputed(gateway: &str) -> String {
    format!(
        "two stores send under the id {gateway:?}, and the cloud takes neither: stop one of them, or let it begin \
         with a fresh store and another gateway.id; then say that whoever sends next counts, with `tidegate-cloud gateways accept {gateway}`"
    )
}

/// Who sends, as a shard knows it.
#[derive(Debug, Clone)]
struct KnownSender {
    sender: Sender,
    /// Which of its batches are here.
    held: Held,
    /// Since when it has been this session.
    since_us: Micros,
    /// Two have sent at one time.
    disputed: bool,
}

impl KnownSender {
    /// What is held: batches are numbered anew in every life of a store, so that those of another say nothing.
    fn held_in(&self, incarnation: u64) -> Held {
        if self.sender.incarnation == incarnation { self.held } else { Held::default() }
    }
}

/// Labels of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labelled {
    /// Where the device lives.
    pub slot: u16,
    /// The device.
    pub device: Arc<str>,
    /// All its labels.
    pub labels: BTreeMap<String, String>,
}

/// A device, or a metric of one, that is no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// Where the device lives.
    pub slot: u16,
    /// The device.
    pub device: Arc<str>,
    /// What of it, and below which version.
    pub floor: Floor,
}

/// Which of two sets of labels is the later one: the store's life, and the batch that brought it.
pub type LabelsVersion = (u64, u64);

/// What a shard gets of a push.
#[derive(Debug, Clone)]
pub struct Write {
    /// From whom.
    pub sender: Sender,
    /// The batch's number.
    pub batch: u64,
    /// What was acknowledged to the gateway before.
    pub expected: Held,
    /// Sorted by key, each key once.
    pub rows: Vec<Row>,
    /// Labels to set.
    pub labels: Vec<Labelled>,
    /// What is no more.
    pub removed: Vec<Removal>,
    /// The slots that are touched, with their epochs.
    pub fences: Vec<(u16, Epoch)>,
}

/// What a move copies of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Windows as gateways sent them.
    Windows,
    /// Hours whose windows have been retired, so that nobody can compute them again.
    Sealed,
}

impl Part {
    /// The table that it is in, in every engine, and which of its rows `s`.
    fn rows(self) -> (&'static str, &'static str) {
        match self {
            Part::Windows => ("summary", "true"),
            Part::Sealed => ("rollup", "s.revision = 1"),
        }
    }
}

/// All times.
pub const EVER: Range = Range { from_us: Micros::MIN, to_us: Micros::MAX };

/// What a gateway says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Beat {
    /// The gateway's id.
    pub gateway: String,
    /// When the cloud heard from it.
    pub seen_us: Micros,
    /// The gateway's clock then.
    pub now_us: Micros,
    /// Changes not acknowledged.
    pub backlog: u64,
    /// When the oldest of them was made; 0 without any.
    pub oldest_us: Micros,
    /// Only late readings can change windows that end here or before.
    pub complete_us: Micros,
    /// Its version.
    pub version: String,
    /// The life of its store.
    pub incarnation: u64,
    /// Two stores send under its id.
    #[serde(default)]
    pub disputed: bool,
}

/// A question to one shard.
#[derive(Debug, Clone)]
pub struct Question {
    /// Of which series.
    pub filter: Filter,
    /// Of which gateways, ids or globs; none means all.
    pub gateways: Vec<String>,
    /// Windows that start in it.
    pub range: Range,
    /// Length and way to the next; `None` for one window over all.
    pub grid: Option<(Micros, Micros)>,
    /// What is answered together.
    pub group_by: Vec<GroupBy>,
    /// Whether sketches are needed.
    pub sketches: bool,
    /// The slots that the shard is asked about, with their epochs.
    pub fences: Arc<Vec<(u16, Epoch)>>,
    /// Cells at most.
    pub cells_max: usize,
}

impl Question {
    /// The windows that hold a time, by their starts, with their ends.
    pub fn windows_of(&self, at_us: Micros) -> Vec<(Micros, Micros)> {
        let Some((length_us, every_us)) = self.grid else {
            return vec![(self.range.from_us, self.range.to_us)];
        };
        let first_us = window_start(at_us - length_us, every_us) + every_us;
        (first_us..=at_us).step_by(every_us as usize).map(|start_us| (start_us, start_us + length_us)).collect()
    }
}

/// What a window of a group comes to in one shard.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Merged.
    pub summary: Summary,
    /// The longest window in it that reaches beyond its edge.
    pub beyond_us: Option<Micros>,
}

/// One shard's part of an answer, by group and start.
pub type Partial = BTreeMap<(GroupKey, Micros), Cell>;

/// Merges a window into what there is at its place.
pub fn add_cell(partial: &mut Partial, key: (GroupKey, Micros), summary: &Summary, beyond_us: Option<Micros>) {
    match partial.get_mut(&key) {
        Some(known) => {
            known.summary.add(summary);
            known.beyond_us = known.beyond_us.max(beyond_us);
        }
        None => drop(partial.insert(key, Cell { summary: summary.clone(), beyond_us })),
    }
}

/// An error if there is more than one answer may hold.
pub fn check_cells(partial: &Partial, most: usize) -> Result<(), ShardError> {
    if partial.len() <= most {
        return Ok(());
    }
    Err(ShardError::TooMuch(format!(
        "the answer has more than {most} windows of groups: ask for longer windows, a shorter range or fewer series"
    )))
}

/// A device as a shard knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its id.
    pub device: Arc<str>,
    /// Whose.
    pub gateway: Arc<str>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// As of when.
    pub labels_version: LabelsVersion,
    /// Its metrics, in its latest window.
    pub metrics: Vec<String>,
    /// The end of its latest window.
    pub last_us: Option<Micros>,
    /// What of it is no more.
    pub removed: Vec<Floor>,
}

/// Who is in a slot.
#[derive(Debug, Clone, PartialEq)]
pub struct Names {
    /// Which.
    pub slot: u16,
    /// Its devices, with their labels.
    pub devices: Vec<Known>,
    /// Its gateways.
    pub beats: Vec<Beat>,
}

impl ShardError {
    /// That a slot is something else at the shard.
    fn fenced(slot: u16, found: Option<&Fence>) -> Self {
        ShardError::Fenced { slot, found: found.map(|fence| (fence.state, fence.epoch)) }
    }
}

/// Checks that a slot may be written by who believes in `epoch`.
fn check_writable(slot: u16, found: Option<&Fence>, epoch: Epoch, importing_only: bool) -> Result<(), ShardError> {
    let writable = |state| match state {
        State::Open => !importing_only,
        State::Importing | State::Arrived => true,
        State::Fenced | State::Closed => false,
    };
    match found {
        Some(fence) if fence.epoch == epoch && writable(fence.state) => Ok(()),
        found => Err(ShardError::fenced(slot, found)),
    }
}

/// Rows that a push deletes itself of what it says is no more; the rest goes by and by.
const SWEPT_AT_ONCE: usize = 2_000;

/// Devices of a slot have numbers from `slot << DEVICE_BITS` on, in every engine.
const DEVICE_BITS: i64 = 40;

/// The numbers of a slot's devices, from and to (exclusive).
fn numbers(slot: u16) -> (i64, i64) {
    (i64::from(slot) << DEVICE_BITS, (i64::from(slot) + 1) << DEVICE_BITS)
}

fn slot_of(device: i64) -> u16 {
    (device >> DEVICE_BITS) as u16
}

/// Columns by name, of a table that has a short name in a statement.
fn of_table(table: &str, columns: &str) -> String {
    columns.split(", ").map(|column| format!("{table}.{column}")).collect::<Vec<_>>().join(", ")
}

/// Lengths of windows that a shard may hold: each row looks for windows of all others.
const LENGTHS_MAX: usize = 32;
/// With more of them, retention looks whether there are windows of each.
const LENGTHS_MANY: usize = LENGTHS_MAX / 2;

fn check_lengths(lengths: usize) -> Result<(), ShardError> {
    if lengths <= LENGTHS_MAX {
        return Ok(());
    }
    Err(ShardError::Refused(format!(
        "a shard holds windows of at most {LENGTHS_MAX} lengths: use one window.length for all gateways; \
         a length is free again when retention.summaries has removed its windows"
    )))
}

/// Windows that came for hours or days whose windows are retired.
fn tell_sealed(windows: usize) {
    if windows > 0 {
        tracing::warn!("{windows} windows are not taken: they are of hours whose windows have been retired");
    }
}

/// What is known of each slot.
#[derive(Debug)]
struct Fenced(Vec<Option<Fence>>);

impl Default for Fenced {
    fn default() -> Self {
        Fenced(vec![None; usize::from(SLOTS)])
    }
}

impl Fenced {
    fn of(fences: impl IntoIterator<Item = Fence>) -> Self {
        let mut fenced = Fenced::default();
        for fence in fences {
            if let Some(place) = fenced.0.get_mut(usize::from(fence.slot)) {
                *place = Some(fence);
            }
        }
        fenced
    }

    /// Checks that slots may be read at epochs.
    fn check(&self, wanted: &[(u16, Epoch)]) -> Result<(), ShardError> {
        let readable = |state| matches!(state, State::Open | State::Fenced);
        let of = |slot: u16| self.0.get(usize::from(slot)).and_then(Option::as_ref);
        let is_wrong = |(slot, epoch): &&(u16, Epoch)| {
            of(*slot).is_none_or(|fence| fence.epoch != *epoch || !readable(fence.state))
        };
        match wanted.iter().find(is_wrong) {
            None => Ok(()),
            Some((slot, _)) => Err(ShardError::fenced(*slot, of(*slot))),
        }
    }
}

/// Some of all slots.
struct Slots(Vec<bool>);

impl Slots {
    fn of(fences: &[(u16, Epoch)]) -> Self {
        let mut slots = vec![false; usize::from(SLOTS)];
        for (slot, _) in fences {
            if let Some(place) = slots.get_mut(usize::from(*slot)) {
                *place = true;
            }
        }
        Slots(slots)
    }

    /// True if a device of this number is in one of them.
    fn hold(&self, device: i64) -> bool {
        self.0.get(usize::from(slot_of(device))).is_some_and(|&is_in| is_in)
    }
}

/// An engine that holds rows.
#[async_trait]
pub trait Shard: Send + Sync + 'static {
    /// Stores what a push has for this shard; returns once it is on disk, with what the shard
    /// holds of this gateway then.
    async fn write(&self, write: Write) -> Result<Held, ShardError>;

    /// What the shard holds of a life of a gateway's store.
    async fn held(&self, gateway: &str, incarnation: u64) -> Result<Held, ShardError>;

    /// Notes that a gateway is there; its slot is that of its id.
    async fn beat(&self, beat: Beat, sender: Sender, fence: (u16, Epoch)) -> Result<(), ShardError>;

    /// Refuses whoever sends for a gateway from this life or an earlier one, until its sender is forgotten.
    async fn dispute(&self, gateway: &str, incarnation: u64) -> Result<(), ShardError>;

    /// Forgets who sends for a gateway, so that whoever comes next is taken; with `wholly`, also that it was there.
    /// Its windows stay. False if it was not known.
    async fn forget_sender(&self, gateway: &str, wholly: bool) -> Result<bool, ShardError>;

    /// All gateways that live here.
    async fn beats(&self) -> Result<Vec<Beat>, ShardError>;

    /// Answers for the slots that it owns.
    async fn aggregate(&self, question: Question) -> Result<Partial, ShardError>;

    /// Devices by id, behind `after`, at most `limit`.
    async fn devices(
        &self,
        patterns: Vec<String>,
        after: Option<(String, String)>,
        limit: usize,
        fences: Arc<Vec<(u16, Epoch)>>,
    ) -> Result<Vec<Known>, ShardError>;

    /// Windows of a gateway, by device and start, behind `after`.
    async fn windows(
        &self,
        gateway: String,
        after: Option<(String, Micros, Micros)>,
        limit: usize,
        fences: Arc<Vec<(u16, Epoch)>>,
    ) -> Result<Vec<HeldWindow>, ShardError>;

    /// Whose it is; `None` if it is nobody's yet.
    async fn identity(&self) -> Result<Option<Identity>, ShardError>;

    /// Makes the tables of a shard that has been made anew, and checks again whose it is; false if what is at
    /// its place now has to be opened anew.
    async fn attend(&self) -> Result<bool, ShardError>;

    /// All slots that it has ever known.
    async fn fences(&self) -> Result<Vec<Fence>, ShardError>;

    /// Sets slots; one that is known at a higher epoch is left, and is an error.
    async fn set_fences(&self, fences: Vec<Fence>) -> Result<(), ShardError>;

    /// Rows of a slot that start in a range, behind `after`, in the order of their keys.
    async fn export(
        &self,
        slot: u16,
        part: Part,
        range: Range,
        after: Option<Key>,
        limit: usize,
    ) -> Result<Vec<Row>, ShardError>;

    /// Where windows of slots start that were received at a time or later, by slot.
    async fn changed(&self, slots: Vec<u16>, since_us: Micros) -> Result<BTreeMap<u16, Range>, ShardError>;

    /// Which slots, of some, have anything in them.
    async fn inhabited(&self, slots: Vec<u16>) -> Result<Vec<u16>, ShardError>;

    /// The names in a slot.
    async fn export_names(&self, slot: u16) -> Result<Names, ShardError>;

    /// Takes copies of rows into slots that are being imported; higher versions stay. Windows of hours
    /// that are sealed go.
    async fn import(&self, rows: Vec<Row>, part: Part, fences: Vec<(u16, Epoch)>) -> Result<(), ShardError>;

    /// Takes names into slots that are being imported.
    async fn import_names(&self, names: Vec<Names>, fences: Vec<(u16, Epoch)>) -> Result<(), ShardError>;

    /// Rows and the sum of their digests, by hour of window starts in a range, of a slot; sealed hours are
    /// rows too.
    async fn digests(&self, slot: u16, range: Range) -> Result<BTreeMap<i64, (u64, u64)>, ShardError>;

    /// Deletes rows of a slot that is still what `fence` says, at most `limit`; how many there were.
    async fn delete(&self, fence: Fence, limit: usize) -> Result<usize, ShardError>;

    /// Forgets which batches it holds: the gateways send again what they keep.
    async fn forget_batches(&self) -> Result<(), ShardError>;

    /// What is wrong with what it holds, in words; it may take long.
    async fn check(&self) -> Result<Vec<String>, ShardError>;

    /// Rows, and bytes on disk.
    async fn size(&self) -> Result<(u64, u64), ShardError>;

    /// The time by a clock of the engine's own, if it has one.
    async fn clock_us(&self) -> Result<Option<Micros>, ShardError>;

    /// Deletes the windows of hours all of which were received before, at most `limit` hours; how many
    /// hours there were. They are sealed from then on: what still comes for them is not taken.
    async fn retire(&self, until_us: Micros, limit: usize) -> Result<usize, ShardError>;

    /// Deletes what is held of devices and metrics that are no more, at most `limit` rows; how many there were.
    async fn sweep(&self, limit: usize) -> Result<usize, ShardError>;

    /// Computes rollups of hours that have changed, at most `limit`; how many there were.
    async fn roll_up(&self, until_us: Micros, limit: usize) -> Result<usize, ShardError>;
}
