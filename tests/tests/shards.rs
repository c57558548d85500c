//! Both engines of shards beside a plain model: windows of all lengths, revised, rolled up, retired and
//! moved from one engine to the other, in any order.

use daemon::aggregates::{Filter, GroupBy, Range};
use model::time::window_start;
use model::{Micros, Sketch, Summary, Value};
use node::row::{Floor, Key, Row, Version};
use node::shard::postgres::Postgres;
use node::shard::sqlite::Sqlite;
use node::shard::{EVER, Fence, Labelled, Part, Question, Removal, Sender, Shard, ShardError, State, Write};
use placement::Epoch;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tests::postgres::postgres;
use tests::seed;
use uplink::Held;

const MINUTE_US: Micros = 60_000_000;
const HOUR_US: Micros = 60 * MINUTE_US;
const DAY_US: Micros = 24 * HOUR_US;
/// 2026-01-01T00:00:00Z.
const BEGIN_US: Micros = 1_767_225_600_000_000;
const END_US: Micros = BEGIN_US + 3 * DAY_US;
/// What each device's windows are long: some fit into an hour, some into a day, one into neither.
const LENGTHS_US: [Micros; 6] = [MINUTE_US, MINUTE_US, 15 * MINUTE_US, HOUR_US, 32 * MINUTE_US, 2 * DAY_US];
const GATEWAY: &str = "g";

fn device(number: usize) -> Arc<str> {
    format!("d{number}").into()
}

fn slot(device: &str) -> u16 {
    model::identity::slot(GATEWAY, device)
}

fn fences(epoch: Epoch) -> Vec<(u16, Epoch)> {
    (0..LENGTHS_US.len()).map(|number| (slot(&device(number)), epoch)).collect()
}

fn summary(random: &mut StdRng, start_us: Micros) -> Summary {
    let values: Vec<f64> = (0..random.random_range(1..6)).map(|_| f64::from(random.random_range(0..100))).collect();
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    Summary {
        count: values.len() as u64,
        texts: 0,
        sum: values.iter().sum(),
        m2: values.iter().map(|value| (value - mean).powi(2)).sum(),
        min: values.iter().copied().fold(f64::INFINITY, f64::min),
        max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        first: (start_us, Value::Number(values[0])),
        last: (start_us + values.len() as i64, Value::Number(values[values.len() - 1])),
        sketch: Sketch::of(values.iter().copied()),
    }
}

/// Count, sum and extremes, by device and start.
type Answer = BTreeMap<(String, Micros), (u64, i64, i64, i64)>;

/// What a shard should hold.
#[derive(Default)]
struct Model {
    windows: BTreeMap<(usize, Micros), (Version, Summary, Micros)>,
    stale: BTreeSet<(usize, Micros)>,
    sealed: BTreeSet<(usize, Micros)>,
    /// By device: the batch that brought them.
    labels: BTreeMap<String, u64>,
    /// By device: versions below are no more.
    floors: BTreeMap<usize, Version>,
}

impl Model {
    fn hour(number: usize, start_us: Micros) -> Option<(usize, Micros)> {
        (HOUR_US % LENGTHS_US[number] == 0).then_some((number, window_start(start_us, HOUR_US)))
    }

    fn write(&mut self, number: usize, row: &Row) {
        if self.floors.get(&number).is_some_and(|floor| row.version < *floor) {
            return;
        }
        let hour = Self::hour(number, row.key.start_us);
        if hour.is_some_and(|hour| self.sealed.contains(&hour)) {
            return;
        }
        let place = (number, row.key.start_us);
        if self.windows.get(&place).is_none_or(|(version, ..)| *version < row.version) {
            let summary = row.metrics.values().next().unwrap().clone();
            self.windows.insert(place, (row.version, summary, row.received_us));
            self.stale.insert((number, window_start(row.key.start_us, HOUR_US)));
        }
    }

    fn remove(&mut self, number: usize, floor: Version) {
        self.floors.insert(number, floor);
        self.windows.retain(|(own, _), (version, ..)| *own != number || *version >= floor);
        self.sealed.retain(|(own, _)| *own != number);
        self.labels.remove(&*device(number));
    }

    fn retire(&mut self, until_us: Micros) {
        let mut latest: BTreeMap<(usize, Micros), Micros> = BTreeMap::new();
        for ((number, start_us), (.., received_us)) in &self.windows {
            if let Some(hour) = Self::hour(*number, *start_us) {
                let latest_us = latest.entry(hour).or_insert(*received_us);
                *latest_us = (*latest_us).max(*received_us);
            }
        }
        let due = latest.into_iter().filter(|(hour, us)| *us < until_us && !self.stale.contains(hour));
        self.sealed.extend(due.map(|(hour, _)| hour));
    }

    /// Count, sum and extremes, by device and start.
    fn answer(&self, every_us: Option<Micros>) -> Answer {
        let mut cells: BTreeMap<(String, Micros), Summary> = BTreeMap::new();
        for ((number, start_us), (_, summary, _)) in &self.windows {
            if !(BEGIN_US..END_US).contains(start_us) {
                continue;
            }
            let at_us = every_us.map_or(BEGIN_US, |every_us| window_start(*start_us, every_us));
            let cell = cells.entry((device(*number).to_string(), at_us)).or_insert_with(|| Summary::empty(at_us));
            cell.add(summary);
        }
        cells.into_iter().map(|(key, summary)| (key, digest(&summary))).collect()
    }
}

fn digest(summary: &Summary) -> (u64, i64, i64, i64) {
    (summary.count, summary.sum.round() as i64, summary.min as i64, summary.max as i64)
}

async fn answer(shard: &dyn Shard, epoch: Epoch, every_us: Option<Micros>) -> Answer {
    let question = Question {
        filter: Filter::default(),
        gateways: Vec::new(),
        range: Range { from_us: BEGIN_US, to_us: END_US },
        grid: every_us.map(|us| (us, us)),
        group_by: vec![GroupBy::Device],
        sketches: true,
        fences: Arc::new(fences(epoch)),
        cells_max: 1_000_000,
    };
    let partial = shard.aggregate(question).await.unwrap();
    let mut answer = Answer::new();
    for ((group, at_us), cell) in partial {
        assert_eq!(cell.summary.sketch.count(), cell.summary.count, "sketches merge as counts do");
        answer.insert((group[0].as_deref().unwrap().to_owned(), at_us), digest(&cell.summary));
    }
    answer
}

async fn check(shard: &dyn Shard, epoch: Epoch, model: &Model) {
    for every_us in [Some(HOUR_US), Some(DAY_US), None] {
        assert_eq!(answer(shard, epoch, every_us).await, model.answer(every_us), "by {every_us:?}");
    }
    let known = shard.devices(Vec::new(), None, 100, Arc::new(fences(epoch))).await.unwrap();
    let labels =
        known.iter().filter_map(|known| Some((known.device.to_string(), known.labels.get("batch")?.parse().ok()?)));
    assert_eq!(labels.collect::<BTreeMap<_, _>>(), model.labels);
    // Of what is sealed the hours are left: nothing is missing where shorter windows are asked for.
    let total = |cells: Answer| cells.values().map(|cell| (cell.0, cell.1)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    assert_eq!(total(answer(shard, epoch, Some(5 * MINUTE_US)).await), total(model.answer(None)));
}

fn sender() -> Sender {
    Sender { gateway: GATEWAY.into(), incarnation: 1, starts: 1, session: 1 }
}

/// All slots are there, at their first epoch.
async fn open(shard: &dyn Shard) {
    let open = fences(1).into_iter().map(|(slot, epoch)| Fence { slot, epoch, state: State::Open });
    shard.set_fences(open.collect()).await.unwrap();
}

/// Computes all hours that are stale; how many there were.
async fn roll_up(shard: &dyn Shard) -> usize {
    let mut hours = 0;
    loop {
        // PostgreSQL takes two looks: the first ends a generation of writes.
        let until_us = END_US + DAY_US;
        let rolled = shard.roll_up(until_us, 1_000).await.unwrap() + shard.roll_up(until_us, 1_000).await.unwrap();
        if rolled == 0 {
            return hours;
        }
        hours += rolled;
    }
}

/// A row of a window without anything else to it.
fn row(name: &Arc<str>, length_us: Micros, start_us: Micros, received_us: Micros) -> Row {
    let key = Key { slot: slot(name), gateway: GATEWAY.into(), device: Arc::clone(name), length_us, start_us };
    let metrics = BTreeMap::from([("m".into(), Summary { texts: 1, ..Summary::empty(start_us) })]);
    Row { key, version: Version { incarnation: 1, revision: 1 }, received_us, metrics }
}

/// A push of windows, at the first epoch.
fn push(batch: u64, rows: Vec<Row>) -> Write {
    let (expected, labels, removed) = (Held::default(), Vec::new(), Vec::new());
    Write { sender: sender(), batch, expected, rows, labels, removed, fences: fences(1) }
}

/// A push that says that something is no more.
fn removal(batch: u64, name: &Arc<str>, metric: Option<&str>, version: Version, now_us: Micros, epoch: Epoch) -> Write {
    let floor = Floor { metric: metric.map(Into::into), version, received_us: now_us };
    let removed = vec![Removal { slot: slot(name), device: Arc::clone(name), floor }];
    Write { removed, fences: fences(epoch), ..push(batch, Vec::new()) }
}

/// A metric goes from windows, from hours that stand for them and from what comes late; what is of a later
/// revision stays, and a copy is the same.
async fn a_metric_goes(shard: &dyn Shard, other: &dyn Shard) {
    open(shard).await;
    let name = device(0);
    let write = async |batch: u64, hours: std::ops::Range<i64>, revision: u64| {
        let of = |hour: i64| {
            let mut row = row(&name, MINUTE_US, BEGIN_US + hour * HOUR_US, BEGIN_US + hour);
            row.version.revision = revision;
            let x = row.metrics["m"].clone();
            row.metrics.insert("x".into(), x);
            row
        };
        let rows = hours.map(of).collect();
        shard.write(push(batch, rows)).await.unwrap();
    };
    let texts = async |shard: &dyn Shard, metric: &str, epoch: Epoch| -> u64 {
        let question = Question {
            filter: Filter { metrics: vec![metric.into()], ..Filter::default() },
            gateways: Vec::new(),
            range: Range { from_us: BEGIN_US, to_us: END_US },
            grid: None,
            group_by: vec![GroupBy::Device],
            sketches: false,
            fences: Arc::new(fences(epoch)),
            cells_max: 1_000,
        };
        shard.aggregate(question).await.unwrap().values().map(|cell| cell.summary.texts).sum()
    };
    write(1, 0..30, 1).await;
    roll_up(shard).await;
    while shard.retire(BEGIN_US + 10, 100).await.unwrap() > 0 {}
    write(2, 30..40, (1 << 32) + 1).await;
    let floor = Version { incarnation: 1, revision: 1 << 32 };
    shard.write(removal(3, &name, Some("x"), floor, BEGIN_US + 35, 1)).await.unwrap();
    while shard.sweep(7).await.unwrap() > 0 {}
    // A batch that was under way, and one that was sent again.
    write(4, 20..32, 2).await;
    assert_eq!((texts(shard, "m", 1).await, texts(shard, "x", 1).await), (40, 10));
    roll_up(shard).await;
    assert_eq!((texts(shard, "m", 1).await, texts(shard, "x", 1).await), (40, 10));
    moved(shard, other, 1).await.unwrap();
    roll_up(other).await;
    assert_eq!((texts(other, "m", 3).await, texts(other, "x", 3).await), (40, 10));
    let known = other.devices(Vec::new(), None, 10, Arc::new(fences(3))).await.unwrap();
    assert_eq!(known.len(), 1);
    other.write(removal(5, &name, None, Version { revision: 2 << 32, ..floor }, END_US, 3)).await.unwrap();
    assert!(other.devices(Vec::new(), None, 10, Arc::new(fences(3))).await.unwrap().is_empty());
    assert_eq!((texts(other, "m", 3).await, texts(other, "x", 3).await), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metric_that_is_removed_is_gone_from_both_engines() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| Sqlite::open(&directory.path().join(name), None).unwrap();
    let server = postgres();
    let database = |name: &str| Postgres::new(&server.database(name), None).unwrap();
    let [first, second] = [database("first"), database("second")];
    first.roll_up(BEGIN_US, 1).await.unwrap();
    second.roll_up(BEGIN_US, 1).await.unwrap();
    a_metric_goes(&file("a"), &first).await;
    a_metric_goes(&second, &file("b")).await;
}

/// A longer window that says no more than the shorter ones in it does not take their place; one that says more does.
async fn shorter_windows_stay(shard: &dyn Shard) {
    open(shard).await;
    let name = device(0);
    let write = async |batch: u64, rows: Vec<Row>| {
        shard.write(push(batch, rows)).await.unwrap();
    };
    let of = |length_us: Micros, start_us: Micros, texts: u64| {
        let mut row = row(&name, length_us, start_us, END_US);
        row.metrics.get_mut("m").unwrap().texts = texts;
        row
    };
    let hours = [BEGIN_US, BEGIN_US + HOUR_US];
    let minutes = |hour_us: Micros| (0..60).map(move |n| of(MINUTE_US, hour_us + n * MINUTE_US, 2));
    write(1, hours.into_iter().flat_map(minutes).collect()).await;
    write(2, vec![of(HOUR_US, hours[0], 120), of(HOUR_US, hours[1], 121)]).await;
    let left = shard.export(slot(&name), Part::Windows, EVER, None, 1_000).await.unwrap();
    let lengths = |hour_us: Micros| {
        let own = left.iter().filter(move |row| window_start(row.key.start_us, HOUR_US) == hour_us);
        own.map(|row| row.key.length_us).collect::<Vec<_>>()
    };
    assert_eq!(lengths(hours[0]), [MINUTE_US; 60]);
    assert_eq!(lengths(hours[1]), [HOUR_US]);
    // Of another life of the store it does: what it holds is what counts.
    let mut newer = of(HOUR_US, hours[0], 120);
    newer.version.incarnation = 2;
    write(3, vec![newer]).await;
    assert_eq!(shard.export(slot(&name), Part::Windows, EVER, None, 1_000).await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn shorter_windows_stay_in_both_engines() {
    let directory = tempfile::tempdir().unwrap();
    shorter_windows_stay(&Sqlite::open(&directory.path().join("s"), None).unwrap()).await;
    let server = postgres();
    let shard = Postgres::new(&server.database("shorter"), None).unwrap();
    shard.roll_up(BEGIN_US, 1).await.unwrap();
    shorter_windows_stay(&shard).await;
}

/// A shard takes windows of so many lengths and no more, until those of some have been retired.
async fn lengths_are_free_again(shard: &dyn Shard) {
    open(shard).await;
    let write = async |batch: u64, rows: Vec<Row>| shard.write(push(batch, rows)).await;
    let lengths = (1..3_600).filter(|s| 3_600 % s == 0).map(|s| s * 1_000_000).take(33).collect::<Vec<Micros>>();
    let (last, lengths) = lengths.split_last().unwrap();
    // Each in an hour of its own: they take the place of nothing.
    let name = device(0);
    let rows = |received_us: Micros| {
        let hours = lengths.iter().zip(0..);
        hours.map(|(&us, hour)| row(&name, us, BEGIN_US + hour * HOUR_US, received_us + hour)).collect::<Vec<_>>()
    };
    write(1, rows(BEGIN_US)).await.unwrap();
    let one_more = || vec![row(&device(1), *last, END_US, BEGIN_US)];
    let refused = write(2, one_more()).await.unwrap_err();
    assert!(matches!(refused, ShardError::Refused(_)), "{refused:?}");
    // All but the last length are retired.
    roll_up(shard).await;
    let until_us = BEGIN_US + lengths.len() as Micros - 1;
    while shard.retire(until_us, 1_000).await.unwrap() > 0 {}
    write(2, one_more()).await.unwrap();
    // What is left is still known: a window of another length takes its place.
    let (length_us, start_us) = (lengths[lengths.len() - 1], BEGIN_US + (lengths.len() as Micros - 1) * HOUR_US);
    assert_ne!(length_us, *last);
    let mut instead = row(&name, *last, start_us, END_US);
    instead.version.incarnation = 2;
    write(3, vec![instead]).await.unwrap();
    let left = shard.export(slot(&name), Part::Windows, EVER, None, 100).await.unwrap();
    let left: Vec<Micros> =
        left.into_iter().filter(|row| row.key.device == name).map(|row| row.key.length_us).collect();
    assert_eq!(left, [*last]);
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_of_windows_are_bounded_and_free_again_in_both_engines() {
    let directory = tempfile::tempdir().unwrap();
    lengths_are_free_again(&Sqlite::open(&directory.path().join("s"), None).unwrap()).await;
    let server = postgres();
    let shard = Postgres::new(&server.database("lengths"), None).unwrap();
    shard.roll_up(BEGIN_US, 1).await.unwrap();
    lengths_are_free_again(&shard).await;
}

/// Writes so large that they are copied: windows that are new, known, or newer.
#[tokio::test(flavor = "multi_thread")]
async fn large_writes_of_new_and_known_windows_keep_the_higher_version() {
    let directory = tempfile::tempdir().unwrap();
    let server = postgres();
    let database = Postgres::new(&server.database("large"), None).unwrap();
    database.roll_up(BEGIN_US, 1).await.unwrap();
    for shard in [&database as &dyn Shard, &Sqlite::open(&directory.path().join("s"), None).unwrap()] {
        open(shard).await;
        let name = device(0);
        let write = async |batch: u64, windows: std::ops::Range<i64>, revision: u64| {
            let of = |n: i64| {
                let mut row = row(&name, MINUTE_US, BEGIN_US + n * MINUTE_US, END_US);
                row.version.revision = revision;
                row.metrics.get_mut("m").unwrap().texts = batch;
                row
            };
            let rows = windows.map(of).collect();
            shard.write(push(batch, rows)).await.unwrap();
        };
        write(1, 0..400, 1).await;
        write(2, 200..600, 1).await;
        write(3, 500..900, 2).await;
        write(4, 1_000..1_400, 1).await;
        let rows = shard.export(slot(&name), Part::Windows, EVER, None, 2_000).await.unwrap();
        let found: Vec<(i64, u64)> =
            rows.iter().map(|row| ((row.key.start_us - BEGIN_US) / MINUTE_US, row.metrics["m"].texts)).collect();
        let by = |range: std::ops::Range<i64>, batch: u64| range.map(move |n| (n, batch));
        let expected = by(0..400, 1).chain(by(400..500, 2)).chain(by(500..900, 3)).chain(by(1_000..1_400, 4));
        assert_eq!(found, expected.collect::<Vec<_>>());
        assert_eq!(roll_up(shard).await, 23, "all hours of what was written are stale");
    }
}

/// Version 1 is made by taking back what version 2 added.
#[tokio::test(flavor = "multi_thread")]
async fn a_postgresql_shard_of_an_earlier_version_is_brought_up_to_date_with_all_that_is_in_it() {
    let server = postgres();
    let url = server.database("earlier");
    let shard = Postgres::new(&url, None).unwrap();
    open(&shard).await;
    let name = device(0);
    let rows = (0..4).map(|hour| row(&name, MINUTE_US, BEGIN_US + hour * HOUR_US, BEGIN_US + hour)).collect();
    let labels = BTreeMap::from([("site".to_owned(), "north".to_owned())]);
    let labels = vec![Labelled { slot: slot(&name), device: Arc::clone(&name), labels }];
    let write = Write {
        sender: sender(),
        batch: 9,
        expected: Held::default(),
        rows,
        labels,
        removed: Vec::new(),
        fences: fences(1),
    };
    shard.write(write).await.unwrap();
    roll_up(&shard).await;
    drop(shard);
    let retired_us = BEGIN_US + 2;
    server.sql(
        "earlier",
        &format!(
            "ALTER TABLE tidegate.device DROP COLUMN labels_incarnation, DROP COLUMN labels_batch;
             DROP INDEX tidegate.rollup_received; DROP TABLE tidegate.removed; DROP TABLE tidegate.identity;
             ALTER TABLE tidegate.sender DROP COLUMN since_us, DROP COLUMN disputed;
             DROP INDEX tidegate.device_by_name, tidegate.device_by_gateway; UPDATE tidegate.version SET version = 1;
             INSERT INTO tidegate.meta VALUES ('retired_us', {retired_us});"
        ),
    );
    let shard = Postgres::new(&url, None).unwrap();
    shard.roll_up(END_US, 100).await.unwrap();
    assert_eq!(server.sql("earlier", "SELECT version FROM tidegate.version"), "4");
    let sealed =
        format!("SELECT start_us FROM tidegate.rollup WHERE length_us = {HOUR_US} AND revision = 1 ORDER BY 1");
    assert_eq!(server.sql("earlier", &sealed), format!("{BEGIN_US}\n{}", BEGIN_US + HOUR_US), "received before");
    let versions = "SELECT labels, labels_incarnation, labels_batch FROM tidegate.device";
    assert_eq!(server.sql("earlier", versions), "{\"site\": \"north\"}|0|1", "labels older than any to come");
    let index = "SELECT to_regclass('tidegate.rollup_received') IS NOT NULL";
    assert_eq!(server.sql("earlier", index), "t");
    assert_eq!(shard.export(slot(&name), Part::Windows, EVER, None, 100).await.unwrap().len(), 4, "nothing is lost");
}

/// All that a move does, as the mover does it.
async fn moved(from: &dyn Shard, to: &dyn Shard, epoch: Epoch) -> Result<(), ShardError> {
    let set =
        |epoch: Epoch, state: State| fences(epoch).into_iter().map(move |(slot, epoch)| Fence { slot, epoch, state });
    to.set_fences(set(epoch + 1, State::Importing).collect()).await?;
    from.set_fences(set(epoch + 1, State::Open).collect()).await?;
    let slots: BTreeSet<u16> = fences(0).into_iter().map(|(slot, _)| slot).collect();
    for &slot in &slots {
        let names = from.export_names(slot).await?;
        to.import_names(vec![names], vec![(slot, epoch + 1)]).await?;
        for part in [Part::Windows, Part::Sealed] {
            let mut after = None;
            loop {
                let rows = from.export(slot, part, EVER, after, 7).await?;
                let Some(last) = rows.last() else { break };
                after = Some(last.key.clone());
                to.import(rows, part, vec![(slot, epoch + 1)]).await?;
            }
        }
        assert_eq!(from.digests(slot, EVER).await?, to.digests(slot, EVER).await?, "both copies of slot {slot}");
    }
    from.set_fences(set(epoch + 2, State::Closed).collect()).await?;
    to.set_fences(set(epoch + 2, State::Open).collect()).await?;
    for &slot in &slots {
        let closed = Fence { slot, epoch: epoch + 2, state: State::Closed };
        while from.delete(closed, 50).await? == 50 {}
    }
    Ok(())
}

async fn rolled_up(shard: &dyn Shard, model: &mut Model) {
    roll_up(shard).await;
    model.stale.clear();
}

async fn run(shards: [Arc<dyn Shard>; 2], seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut at, mut epoch, mut now_us, mut batch, mut era) = (0, 1, END_US, 0_u64, 0_u64);
    let (mut model, mut most_sealed) = (Model::default(), 0);
    // Makes partitions for the days.
    shards[0].roll_up(BEGIN_US, 1).await.unwrap();
    shards[1].roll_up(BEGIN_US, 1).await.unwrap();
    open(&*shards[0]).await;
    for _ in 0..120 {
        now_us += HOUR_US;
        let shard = &*shards[at];
        match random.random_range(0..11) {
            0..6 => {
                let mut rows: BTreeMap<Key, Row> = BTreeMap::new();
                let hour_us = BEGIN_US + random.random_range(0..72) * HOUR_US;
                for _ in 0..random.random_range(1..40) {
                    let number = random.random_range(0..LENGTHS_US.len());
                    let start_us = window_start(hour_us + random.random_range(0..90) * MINUTE_US, LENGTHS_US[number]);
                    // What comes late is of the era before.
                    let era = era.saturating_sub(random.random_range(0..3) / 2);
                    let version = Version { incarnation: 1, revision: (era << 32) + random.random_range(1..9) };
                    let metrics = BTreeMap::from([("m".into(), summary(&mut random, start_us))]);
                    let plain = row(&device(number), LENGTHS_US[number], start_us, now_us);
                    rows.insert(plain.key.clone(), Row { version, metrics, ..plain });
                }
                for row in rows.values() {
                    model.write(row.key.device[1..].parse().unwrap(), row);
                }
                batch += 1;
                let rows = rows.into_values().collect();
                let expected = Held::default();
                // Batches overtake each other; labels are those of the latest one.
                let number = batch.saturating_sub(random.random_range(0..4)).max(1);
                let name = device(random.random_range(0..LENGTHS_US.len()));
                let of = BTreeMap::from([("batch".to_owned(), number.to_string())]);
                let labels = vec![Labelled { slot: slot(&name), device: Arc::clone(&name), labels: of }];
                let latest = model.labels.entry(name.to_string()).or_default();
                *latest = number.max(*latest);
                let removed = Vec::new();
                let write =
                    Write { sender: sender(), batch: number, expected, rows, labels, removed, fences: fences(epoch) };
                shard.write(write).await.unwrap();
            }
            6..8 => rolled_up(shard, &mut model).await,
            10 => {
                era += 1;
                // Batches on both sides of it keep their order.
                batch += 8;
                let number = random.random_range(0..LENGTHS_US.len());
                let version = Version { incarnation: 1, revision: era << 32 };
                shard.write(removal(batch - 4, &device(number), None, version, now_us, epoch)).await.unwrap();
                model.remove(number, version);
            }
            8 => {
                let until_us = now_us - [2, 10, 30].choose(&mut random).unwrap() * HOUR_US;
                while shard.retire(until_us, 1_000).await.unwrap() > 0 {}
                model.retire(until_us);
            }
            _ => {
                moved(shard, &*shards[1 - at], epoch).await.unwrap();
                (at, epoch) = (1 - at, epoch + 2);
                // Rollups are computed anew there.
                let hours = model.windows.keys().map(|&(number, us)| (number, window_start(us, HOUR_US)));
                model.stale.extend(hours.filter(|hour| !model.sealed.contains(hour)));
            }
        }
        check(&*shards[at], epoch, &model).await;
        most_sealed = most_sealed.max(model.sealed.len());
    }
    println!("{} windows, up to {most_sealed} hours sealed, {} moves, {era} removals", model.windows.len(), epoch / 2);
    // What is removed loses its seals.
    assert!(most_sealed > 0 && epoch > 1 && era > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_and_postgresql_answer_as_a_plain_model_does() {
    let seed = seed();
    let server = postgres();
    for round in 0..4 {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| Arc::new(Sqlite::open(&directory.path().join(name), None).unwrap()) as Arc<dyn Shard>;
        let database = |name: &str| {
            Arc::new(Postgres::new(&server.database(&format!("{name}_{round}")), None).unwrap()) as Arc<dyn Shard>
        };
        let shards = match round {
            0 => [file("a"), file("b")],
            1 => [database("a"), database("b")],
            _ => [file("a"), database("b")],
        };
        run(shards, seed.wrapping_add(round)).await;
    }
}
