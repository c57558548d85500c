//! Rows to SQL and back, inside whatever transaction the caller has begun.

use super::super::merge::HOUR_US;
use super::retire::Seals;
use super::schema::LOCK;
use crate::node::row::{Key, Other, Row, Version, put_sketches, take_sketches};
use crate::node::shard::{
    Beat, Fence, Known, LabelsVersion, Part, Sender, ShardError, State, Write, check_lengths, check_writable,
    tell_sealed,
};
use crate::placement::Epoch;
use crate::uplink::Held;
use futures_util::{TryStreamExt, future, pin_mut};
use model::time::window_start;
use model::{Micros, Sketch, Summary, Value};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, GenericClient, IsolationLevel, Row as SqlRow, Transaction};

/// From so many rows on they are copied into a staging table; fewer are upserted one by one,
/// all in one round trip. `cargo xtask bench cloud` has the measurement.
const COPIED_FROM: usize = 200;
/// Devices of a slot have numbers from `slot << DEVICE_BITS` on.
const DEVICE_BITS: i64 = 40;

pub(super) const COLUMNS: &str =
    "metric, count, texts, sum, m2, min, max, first_us, first, first_text, last_us, last, last_text, sketch";
pub(super) const TYPES: [Type; 20] = [
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::TEXT_ARRAY,
    Type::INT8_ARRAY,
    Type::INT8_ARRAY,
    Type::FLOAT8_ARRAY,
    Type::FLOAT8_ARRAY,
    Type::FLOAT8_ARRAY,
    Type::FLOAT8_ARRAY,
    Type::INT8_ARRAY,
    Type::FLOAT8_ARRAY,
    Type::TEXT_ARRAY,
    Type::INT8_ARRAY,
    Type::FLOAT8_ARRAY,
    Type::TEXT_ARRAY,
    Type::BYTEA,
];
/// The higher version stays.
const ON_CONFLICT: &str = "ON CONFLICT (device, length_us, start_us) DO UPDATE SET
    incarnation = excluded.incarnation, revision = excluded.revision, received_us = excluded.received_us,
    metric = excluded.metric, count = excluded.count, texts = excluded.texts, sum = excluded.sum, m2 = excluded.m2,
    min = excluded.min, max = excluded.max, first_us = excluded.first_us, first = excluded.first,
    first_text = excluded.first_text, last_us = excluded.last_us, last = excluded.last,
    last_text = excluded.last_text, sketch = excluded.sketch
    WHERE (excluded.incarnation, excluded.revision) > (t.incarnation, t.revision)";

pub(super) const SENDER: &str =
    "SELECT incarnation, starts, session, highest, recent FROM tidegate.sender WHERE gateway = $1";

/// A snapshot that only reads.
pub(super) async fn snapshot(client: &mut Client) -> Result<Transaction<'_>, ShardError> {
    let snapshot = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
    let snapshot = snapshot.start().await?;
    // Before the snapshot is taken: a partition that is dropped must not vanish from under it.
    snapshot.batch_execute("LOCK TABLE tidegate.summary IN ACCESS SHARE MODE").await?;
    Ok(snapshot)
}

/// All slots that are known, read again only when they have changed.
#[derive(Debug, Default)]
pub(super) struct Fences(Mutex<(i64, Arc<BTreeMap<u16, Fence>>)>);

impl Fences {
    /// Checks that the snapshot owns slots at epochs.
    pub(super) async fn check(&self, db: &impl GenericClient, wanted: &[(u16, Epoch)]) -> Result<(), ShardError> {
        let version: i64 = db.query_one("SELECT value FROM tidegate.meta WHERE key = 'fences'", &[]).await?.get(0);
        let cached = {
            let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            (known.0 == version).then(|| Arc::clone(&known.1))
        };
        let known = match cached {
            Some(known) => known,
            None => {
                let read = Arc::new(fences(db).await?);
                *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (version, Arc::clone(&read));
                read
            }
        };
        super::super::check_readable(&known, wanted)
    }
}

pub(super) async fn fences(db: &impl GenericClient) -> Result<BTreeMap<u16, Fence>, ShardError> {
    let rows = db.query("SELECT slot, epoch, state FROM tidegate.slot", &[]).await?;
    Ok(rows.iter().map(fence_of).map(|fence| (fence.slot, fence)).collect())
}

fn fence_of(row: &SqlRow) -> Fence {
    Fence { slot: row.get::<_, i32>(0) as u16, epoch: row.get::<_, i64>(1) as u64, state: State::of_name(row.get(2)) }
}

/// Takes the shared lock, and in the next statement reads what it protects.
pub(super) async fn lock_and_check(
    db: &impl GenericClient,
    wanted: &[(u16, Epoch)],
    importing_only: bool,
) -> Result<(), ShardError> {
    db.query("SELECT pg_advisory_xact_lock_shared($1)", &[&LOCK]).await?;
    let slots: Vec<i32> = wanted.iter().map(|(slot, _)| i32::from(*slot)).collect();
    let rows = db.query("SELECT slot, epoch, state FROM tidegate.slot WHERE slot = ANY($1)", &[&slots]).await?;
    let known: BTreeMap<u16, Fence> = rows.iter().map(fence_of).map(|fence| (fence.slot, fence)).collect();
    for &(slot, epoch) in wanted {
        check_writable(slot, known.get(&slot), epoch, importing_only)?;
    }
    Ok(())
}

pub(super) async fn set_fences(db: &impl GenericClient, fences: &[Fence]) -> Result<(), ShardError> {
    db.query("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    let slots: Vec<i32> = fences.iter().map(|fence| i32::from(fence.slot)).collect();
    let epochs: Vec<i64> = fences.iter().map(|fence| fence.epoch as i64).collect();
    let states: Vec<&str> = fences.iter().map(|fence| fence.state.name()).collect();
    let higher = db
        .query(
            "SELECT s.slot, s.epoch, s.state FROM unnest($1::int[], $2::bigint[]) AS w(slot, epoch)
             JOIN tidegate.slot s ON s.slot = w.slot WHERE s.epoch > w.epoch LIMIT 1",
            &[&slots, &epochs],
        )
        .await?;
    if let Some(found) = higher.first().map(fence_of) {
        return Err(ShardError::fenced(found.slot, Some(&found)));
    }
    db.execute(
        "INSERT INTO tidegate.slot SELECT * FROM unnest($1::int[], $2::bigint[], $3::text[])
         ON CONFLICT (slot) DO UPDATE SET epoch = excluded.epoch, state = excluded.state",
        &[&slots, &epochs, &states],
    )
    .await?;
    db.execute("UPDATE tidegate.meta SET value = value + 1 WHERE key = 'fences'", &[]).await?;
    Ok(())
}

pub(super) fn sender_of(gateway: &str, row: &SqlRow) -> (Sender, Held) {
    let number = |at: usize| row.get::<_, i64>(at) as u64;
    let sender = Sender { gateway: gateway.into(), incarnation: number(0), starts: number(1), session: number(2) };
    (sender, Held { highest: number(3), recent: number(4) })
}

async fn put_sender(db: &impl GenericClient, sender: &Sender, held: Held) -> Result<(), ShardError> {
    db.execute(
        "INSERT INTO tidegate.sender VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (gateway) DO UPDATE SET
            incarnation = excluded.incarnation, starts = excluded.starts, session = excluded.session,
            highest = excluded.highest, recent = excluded.recent",
        &[
            &&*sender.gateway,
            &(sender.incarnation as i64),
            &(sender.starts as i64),
            &(sender.session as i64),
            &(held.highest as i64),
            &(held.recent as i64),
        ],
    )
    .await?;
    Ok(())
}

/// Who is known to send, whose next batch waits for the end of this transaction.
async fn known_sender(db: &impl GenericClient, from: &Sender) -> Result<Held, ShardError> {
    let gateway: &str = &from.gateway;
    db.execute("INSERT INTO tidegate.sender VALUES ($1, 0, 0, 0, 0, 0) ON CONFLICT (gateway) DO NOTHING", &[&gateway])
        .await?;
    let row = db.query_one(&format!("{SENDER} FOR UPDATE"), &[&gateway]).await?;
    let (known, held) = sender_of(gateway, &row);
    from.check(&known)?;
    Ok(held)
}

pub(super) async fn write(db: &Transaction<'_>, write: &Write) -> Result<Held, ShardError> {
    lock_and_check(db, &write.fences, false).await?;
    let mut held = known_sender(db, &write.sender).await?;
    if write.expected.lowest_not_in(held).is_some() {
        return Err(ShardError::Lacking(held));
    }
    put_rows(db, &write.rows).await?;
    if !write.labels.is_empty() {
        let gateway = &write.sender.gateway;
        let wanted = write.labels.iter().map(|of| (of.slot, Arc::clone(gateway), Arc::clone(&of.device)));
        let ids = devices_of(db, wanted.collect()).await?;
        for labelled in &write.labels {
            let id = ids[&(Arc::clone(gateway), Arc::clone(&labelled.device))];
            put_labels(db, id, &labelled.labels, (write.sender.incarnation, write.batch)).await?;
        }
    }
    held.add(write.batch);
    put_sender(db, &write.sender, held).await?;
    Ok(held)
}

/// Labels are of the batch that brought them: those of a later one stay.
async fn put_labels(
    db: &impl GenericClient,
    id: i64,
    labels: &BTreeMap<String, String>,
    (incarnation, batch): LabelsVersion,
) -> Result<(), ShardError> {
    let labels = serde_json::to_string(labels).unwrap_or_default();
    db.execute(
        "UPDATE tidegate.device SET labels = $2::text::jsonb, labels_incarnation = $3, labels_batch = $4
         WHERE id = $1 AND (labels_incarnation, labels_batch) < ($3, $4)",
        &[&id, &labels, &(incarnation as i64), &(batch as i64)],
    )
    .await?;
    Ok(())
}

pub(super) async fn beat(
    db: &impl GenericClient,
    beat: &Beat,
    from: &Sender,
    fence: (u16, Epoch),
) -> Result<(), ShardError> {
    lock_and_check(db, &[fence], false).await?;
    let held = known_sender(db, from).await?;
    put_sender(db, from, held).await?;
    put_beat(db, beat, fence.0).await
}

async fn put_beat(db: &impl GenericClient, beat: &Beat, slot: u16) -> Result<(), ShardError> {
    let body = serde_json::to_string(beat).unwrap_or_default();
    db.execute(
        "INSERT INTO tidegate.gateway AS g VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO UPDATE SET
            slot = excluded.slot, seen_us = excluded.seen_us, beat = excluded.beat WHERE excluded.seen_us >= g.seen_us",
        &[&beat.gateway, &i32::from(slot), &beat.seen_us, &body],
    )
    .await?;
    Ok(())
}

pub(super) async fn beats(db: &impl GenericClient) -> Result<Vec<Beat>, ShardError> {
    // Those that have moved away are told by the shard that they live in now.
    let rows = db
        .query(
            "SELECT g.beat FROM tidegate.gateway g JOIN tidegate.slot s ON s.slot = g.slot
             WHERE s.state IN ('open', 'fenced') ORDER BY g.id",
            &[],
        )
        .await?;
    Ok(rows.iter().filter_map(|row| serde_json::from_str(row.get(0)).ok()).collect())
}

fn numbers(slot: u16) -> (i64, i64) {
    (i64::from(slot) << DEVICE_BITS, (i64::from(slot) + 1) << DEVICE_BITS)
}

pub(super) fn slot_of(device: i64) -> u16 {
    (device >> DEVICE_BITS) as u16
}

/// Gateway and device.
type Name = (Arc<str>, Arc<str>);

/// The numbers of devices, given now to those that have none.
pub(super) async fn devices_of(
    db: &impl GenericClient,
    wanted: BTreeSet<(u16, Arc<str>, Arc<str>)>,
) -> Result<HashMap<Name, i64>, ShardError> {
    let mut ids: HashMap<Name, i64> = HashMap::with_capacity(wanted.len());
    let mut missing: Vec<&(u16, Arc<str>, Arc<str>)> = wanted.iter().collect();
    for attempt in 0..2 {
        let slots: Vec<i32> = missing.iter().map(|(slot, ..)| i32::from(*slot)).collect();
        let gateways: Vec<&str> = missing.iter().map(|(_, gateway, _)| &**gateway).collect();
        let names: Vec<&str> = missing.iter().map(|(.., name)| &**name).collect();
        if attempt > 0 {
            db.execute(
                "INSERT INTO tidegate.device (id, gateway, name)
                 SELECT (slot::bigint << 40) | nextval('tidegate.device_number'), gateway, name
                 FROM unnest($1::int[], $2::text[], $3::text[]) AS w(slot, gateway, name) ORDER BY name, gateway
                 ON CONFLICT (name, gateway) DO NOTHING",
                &[&slots, &gateways, &names],
            )
            .await?;
        }
        let rows = db
            .query(
                "SELECT d.id, d.gateway, d.name FROM unnest($1::text[], $2::text[]) AS w(gateway, name)
                 JOIN tidegate.device d ON d.name = w.name AND d.gateway = w.gateway",
                &[&gateways, &names],
            )
            .await?;
        for row in rows {
            ids.insert((row.get::<_, String>(1).into(), row.get::<_, String>(2).into()), row.get(0));
        }
        missing.retain(|(_, gateway, name)| !ids.contains_key(&(Arc::clone(gateway), Arc::clone(name))));
        if missing.is_empty() {
            return Ok(ids);
        }
    }
    Err(ShardError::Down("devices could not be given numbers".into()))
}

/// A row as PostgreSQL takes it.
pub(super) struct Columns {
    id: i64,
    length_us: i64,
    start_us: i64,
    incarnation: i64,
    revision: i64,
    received_us: i64,
    metric: Vec<String>,
    count: Vec<i64>,
    texts: Vec<i64>,
    numbers: [Vec<f64>; 4],
    first_us: Vec<i64>,
    first: Vec<Option<f64>>,
    first_text: Vec<Option<String>>,
    last_us: Vec<i64>,
    last: Vec<Option<f64>>,
    last_text: Vec<Option<String>>,
    sketch: Vec<u8>,
}

impl Columns {
    pub(super) fn of(id: i64, row: &Row) -> Self {
        let each = || row.metrics.values();
        let text = |value: &Value| match value {
            // PostgreSQL keeps no zero characters.
            Value::Text(text) => Some(text.replace('\0', "")),
            _ => None,
        };
        let numbers = |of: fn(&Summary) -> f64| each().map(of).collect();
        Columns {
            id,
            length_us: row.key.length_us,
            start_us: row.key.start_us,
            incarnation: row.version.incarnation as i64,
            revision: row.version.revision as i64,
            received_us: row.received_us,
            metric: row.metrics.keys().map(|name| name.to_string()).collect(),
            count: each().map(|s| s.count as i64).collect(),
            texts: each().map(|s| s.texts as i64).collect(),
            numbers: [numbers(|s| s.sum), numbers(|s| s.m2), numbers(|s| s.min), numbers(|s| s.max)],
            first_us: each().map(|s| s.first.0).collect(),
            first: each().map(|s| s.first.1.as_number()).collect(),
            first_text: each().map(|s| text(&s.first.1)).collect(),
            last_us: each().map(|s| s.last.0).collect(),
            last: each().map(|s| s.last.1.as_number()).collect(),
            last_text: each().map(|s| text(&s.last.1)).collect(),
            sketch: put_sketches(each().map(|s| &s.sketch)),
        }
    }

    pub(super) fn values(&self) -> [&(dyn ToSql + Sync); 20] {
        let [sum, m2, min, max] = &self.numbers;
        [
            &self.id,
            &self.length_us,
            &self.start_us,
            &self.incarnation,
            &self.revision,
            &self.received_us,
            &self.metric,
            &self.count,
            &self.texts,
            sum,
            m2,
            min,
            max,
            &self.first_us,
            &self.first,
            &self.first_text,
            &self.last_us,
            &self.last,
            &self.last_text,
            &self.sketch,
        ]
    }
}

/// The summaries of a row whose columns begin at `at`; sketches only if they are asked for.
pub(super) fn metrics_of(row: &SqlRow, at: usize, sketches: bool) -> Result<Vec<(String, Summary)>, ShardError> {
    let damaged = || ShardError::Down("a row is damaged: restore the shard from a backup".into());
    let names: Vec<String> = row.try_get(at)?;
    let (counts, texts): (Vec<i64>, Vec<i64>) = (row.try_get(at + 1)?, row.try_get(at + 2)?);
    let numbers: [Vec<f64>; 4] =
        [row.try_get(at + 3)?, row.try_get(at + 4)?, row.try_get(at + 5)?, row.try_get(at + 6)?];
    let ends = |at: usize| -> Result<Vec<(Micros, Value)>, ShardError> {
        let times: Vec<i64> = row.try_get(at)?;
        let values: Vec<Option<f64>> = row.try_get(at + 1)?;
        let texts: Vec<Option<String>> = row.try_get(at + 2)?;
        let value = |(number, text): (Option<f64>, Option<String>)| match text {
            Some(text) => Value::Text(text.into()),
            None => Value::Number(number.unwrap_or(0.0)),
        };
        Ok(times.into_iter().zip(values.into_iter().zip(texts).map(value)).collect())
    };
    let (first, last) = (ends(at + 7)?, ends(at + 10)?);
    let mut all = if sketches {
        take_sketches(row.try_get(at + 13)?, names.len()).ok_or_else(damaged)?
    } else {
        vec![Sketch::default(); names.len()]
    };
    let whole = [counts.len(), texts.len(), first.len(), last.len()] == [names.len(); 4]
        && numbers.iter().all(|column| column.len() == names.len());
    if !whole {
        return Err(damaged());
    }
    let of = |(n, name): (usize, String)| {
        let summary = Summary {
            count: counts[n] as u64,
            texts: texts[n] as u64,
            sum: numbers[0][n],
            m2: numbers[1][n],
            min: numbers[2][n],
            max: numbers[3][n],
            first: first[n].clone(),
            last: last[n].clone(),
            sketch: std::mem::take(&mut all[n]),
        };
        (name, summary)
    };
    Ok(names.into_iter().enumerate().map(of).collect())
}

/// Writes rows unless versions as high are there, and marks their hours stale.
pub(super) async fn put_rows(db: &Transaction<'_>, rows: &[Row]) -> Result<(), ShardError> {
    if rows.is_empty() {
        return Ok(());
    }
    let wanted = rows.iter().map(|row| (row.key.slot, Arc::clone(&row.key.gateway), Arc::clone(&row.key.device)));
    let ids = devices_of(db, wanted.collect()).await?;
    let id = |row: &Row| ids[&(Arc::clone(&row.key.gateway), Arc::clone(&row.key.device))];
    let found = db.query("SELECT length_us FROM tidegate.length", &[]).await?;
    let mut lengths: BTreeSet<Micros> = found.iter().map(|row| row.get(0)).collect();
    for row in rows {
        if lengths.insert(row.key.length_us) {
            check_lengths(lengths.len())?;
            let length_us = row.key.length_us;
            db.execute("INSERT INTO tidegate.length VALUES ($1) ON CONFLICT DO NOTHING", &[&length_us]).await?;
        }
    }
    let places = rows.iter().map(|row| (id(row), row.key.start_us, row.key.start_us + row.key.length_us));
    let (seals, mut sealed) = (Seals::read(db, places).await?, 0);
    let mut columns = Vec::with_capacity(rows.len());
    for row in rows {
        if seals.hold(id(row), row) {
            sealed += 1;
        } else if lengths.len() == 1 || supersede(db, id(row), row, &lengths).await? {
            columns.push(Columns::of(id(row), row));
        }
    }
    tell_sealed(sealed);
    columns.sort_by_key(|row| (row.id, row.length_us, row.start_us));
    let written = if columns.len() < COPIED_FROM {
        let upsert = format!(
            "INSERT INTO tidegate.summary AS t VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16,
                $17, $18, $19, $20) {ON_CONFLICT}"
        );
        let statement = db.prepare_typed(&upsert, &TYPES).await?;
        let values: Vec<_> = columns.iter().map(Columns::values).collect();
        let each = values.iter().map(|values| db.execute(&statement, values));
        let written = future::try_join_all(each).await?;
        columns.iter().zip(written).filter(|(_, n)| *n > 0).map(|(row, _)| (row.id, row.start_us)).collect()
    } else {
        copy(db, &columns).await?
    };
    mark_stale(db, written).await
}

/// Into a staging table first, which belongs to the connection.
async fn copy(db: &Transaction<'_>, rows: &[Columns]) -> Result<Vec<(i64, Micros)>, ShardError> {
    db.batch_execute(
        "CREATE TEMPORARY TABLE IF NOT EXISTS tidegate_staging (LIKE tidegate.summary) ON COMMIT DELETE ROWS",
    )
    .await?;
    let sink = db.copy_in("COPY tidegate_staging FROM STDIN BINARY").await?;
    let writer = BinaryCopyInWriter::new(sink, &TYPES);
    pin_mut!(writer);
    for row in rows {
        writer.as_mut().write(&row.values()).await?;
    }
    writer.finish().await?;
    let written = db
        .query(
            &format!(
                "INSERT INTO tidegate.summary AS t SELECT * FROM tidegate_staging ORDER BY device, length_us, start_us
                 {ON_CONFLICT} RETURNING t.device, t.start_us"
            ),
            &[],
        )
        .await?;
    Ok(written.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Under the shared lock the generation cannot change: whoever rolls up waits for this write.
pub(super) async fn mark_stale(db: &Transaction<'_>, written: Vec<(i64, Micros)>) -> Result<(), ShardError> {
    let hours: BTreeSet<(i64, Micros)> =
        written.into_iter().map(|(id, start_us)| (id, window_start(start_us, HOUR_US))).collect();
    let (ids, hours): (Vec<i64>, Vec<Micros>) = hours.into_iter().unzip();
    db.execute(
        "INSERT INTO tidegate.stale SELECT w.device, w.hour_us, m.value
         FROM unnest($1::bigint[], $2::bigint[]) AS w(device, hour_us), tidegate.meta m WHERE m.key = 'generation'
         ON CONFLICT DO NOTHING",
        &[&ids, &hours],
    )
    .await?;
    Ok(())
}

/// Removes windows of other lengths that this one takes the place of; false if one of them stays.
async fn supersede(db: &Transaction<'_>, id: i64, row: &Row, lengths: &BTreeSet<Micros>) -> Result<bool, ShardError> {
    let Key { length_us, start_us, .. } = row.key;
    let others: Vec<Micros> = lengths.iter().copied().filter(|&other_us| other_us != length_us).collect();
    let end_us = start_us + length_us;
    let found = db
        .query(
            "SELECT length_us, start_us, incarnation FROM tidegate.summary
             WHERE device = $1 AND length_us = ANY($2) AND start_us < $4 AND start_us + length_us > $3",
            &[&id, &others, &start_us, &end_us],
        )
        .await?;
    let other = |row: &SqlRow| Other { length_us: row.get(0), incarnation: row.get::<_, i64>(2) as u64 };
    if found.iter().any(|found| row.yields_to(other(found))) {
        return Ok(false);
    }
    let mut removed = Vec::new();
    for found in found {
        let (other_us, start_us): (Micros, Micros) = (found.get(0), found.get(1));
        db.execute(
            "DELETE FROM tidegate.summary WHERE device = $1 AND length_us = $2 AND start_us = $3",
            &[&id, &other_us, &start_us],
        )
        .await?;
        removed.push((id, start_us));
    }
    mark_stale(db, removed).await?;
    Ok(true)
}

pub(super) async fn inhabited(db: &impl GenericClient, slots: &[u16]) -> Result<Vec<u16>, ShardError> {
    let slots: Vec<i32> = slots.iter().map(|slot| i32::from(*slot)).collect();
    let rows = db
        .query(
            "SELECT s FROM unnest($1::int[]) s WHERE EXISTS (SELECT 1 FROM tidegate.gateway g WHERE g.slot = s)
                OR EXISTS (SELECT 1 FROM tidegate.device d WHERE d.id >= s::bigint << 40 AND d.id < (s + 1)::bigint << 40)",
            &[&slots],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get::<_, i32>(0) as u16).collect())
}

pub(super) async fn export(
    db: &impl GenericClient,
    slot: u16,
    part: Part,
    after: Option<&Key>,
    limit: usize,
) -> Result<Vec<Row>, ShardError> {
    let (table, which) = part.rows();
    let (first, behind) = numbers(slot);
    let place = match after {
        Some(key) => {
            let of = "SELECT id FROM tidegate.device WHERE name = $1 AND gateway = $2";
            let id = db.query_opt(of, &[&&*key.device, &&*key.gateway]).await?;
            (id.map_or(first, |row| row.get(0)), key.length_us, key.start_us)
        }
        None => (first, 0, Micros::MIN),
    };
    let columns = COLUMNS.split(", ").map(|column| format!("s.{column}")).collect::<Vec<_>>().join(", ");
    let rows = db
        .query(
            &format!(
                "SELECT s.length_us, s.start_us, s.incarnation, s.revision, s.received_us, d.gateway, d.name, {columns}
                 FROM tidegate.{table} s JOIN tidegate.device d ON d.id = s.device
                 WHERE (s.device, s.length_us, s.start_us) > ($1, $2, $3) AND s.device < $4 AND {which}
                 ORDER BY s.device, s.length_us, s.start_us LIMIT $5"
            ),
            &[&place.0, &place.1, &place.2, &behind, &(limit as i64)],
        )
        .await?;
    let of = |row: &SqlRow| -> Result<Row, ShardError> {
        let metrics = metrics_of(row, 7, true)?;
        Ok(Row {
            key: Key {
                slot,
                gateway: row.get::<_, String>(5).into(),
                device: row.get::<_, String>(6).into(),
                length_us: row.get(0),
                start_us: row.get(1),
            },
            version: version(row, 2),
            received_us: row.get(4),
            metrics: metrics.into_iter().map(|(name, summary)| (name.into(), summary)).collect(),
        })
    };
    rows.iter().map(of).collect()
}

fn version(row: &SqlRow, at: usize) -> Version {
    Version { incarnation: row.get::<_, i64>(at) as u64, revision: row.get::<_, i64>(at + 1) as u64 }
}

pub(super) async fn export_names(db: &impl GenericClient, slot: u16) -> Result<(Vec<Known>, Vec<Beat>), ShardError> {
    let (first, behind) = numbers(slot);
    let rows = db
        .query(
            "SELECT name, gateway, labels::text, labels_incarnation, labels_batch FROM tidegate.device
             WHERE id >= $1 AND id < $2 ORDER BY id",
            &[&first, &behind],
        )
        .await?;
    let known = |row: &SqlRow| Known {
        device: row.get::<_, String>(0).into(),
        gateway: row.get::<_, String>(1).into(),
        labels: labels_of(row, 2),
        labels_version: (row.get::<_, i64>(3) as u64, row.get::<_, i64>(4) as u64),
        metrics: Vec::new(),
        last_us: None,
    };
    let beats = db.query("SELECT beat FROM tidegate.gateway WHERE slot = $1", &[&i32::from(slot)]).await?;
    let beats = beats.iter().filter_map(|row| serde_json::from_str(row.get(0)).ok()).collect();
    Ok((rows.iter().map(known).collect(), beats))
}

pub(super) async fn import_names(
    db: &impl GenericClient,
    slot: u16,
    known: &[Known],
    beats: &[Beat],
) -> Result<(), ShardError> {
    let wanted = known.iter().map(|known| (slot, Arc::clone(&known.gateway), Arc::clone(&known.device)));
    let ids = devices_of(db, wanted.collect()).await?;
    for known in known.iter().filter(|known| known.labels_version > LabelsVersion::default()) {
        let id = ids[&(Arc::clone(&known.gateway), Arc::clone(&known.device))];
        put_labels(db, id, &known.labels, known.labels_version).await?;
    }
    for beat in beats {
        put_beat(db, beat, slot).await?;
    }
    Ok(())
}

pub(super) async fn digests(db: &impl GenericClient, slot: u16) -> Result<BTreeMap<i64, (u64, u64)>, ShardError> {
    let (first, behind) = numbers(slot);
    let rows = db
        .query_raw(
            "SELECT d.gateway, d.name, s.length_us, s.start_us, s.incarnation, s.revision
             FROM (SELECT device, length_us, start_us, incarnation, revision FROM tidegate.summary
                    WHERE device >= $1 AND device < $2
                UNION ALL SELECT device, -length_us, start_us, incarnation, revision FROM tidegate.rollup
                    WHERE device >= $1 AND device < $2 AND revision = 1) s
             JOIN tidegate.device d ON d.id = s.device",
            [first, behind],
        )
        .await?;
    pin_mut!(rows);
    let mut digests: BTreeMap<i64, (u64, u64)> = BTreeMap::new();
    while let Some(row) = rows.try_next().await? {
        let key = Key {
            slot,
            gateway: row.get::<_, String>(0).into(),
            device: row.get::<_, String>(1).into(),
            length_us: row.get(2),
            start_us: row.get(3),
        };
        let hour = digests.entry(key.start_us.div_euclid(HOUR_US)).or_default();
        *hour = (hour.0 + 1, hour.1.wrapping_add(key.digest(version(&row, 4))));
    }
    Ok(digests)
}

pub(super) async fn delete(db: &impl GenericClient, wanted: Fence, limit: usize) -> Result<usize, ShardError> {
    let slot = wanted.slot;
    db.query("SELECT pg_advisory_xact_lock_shared($1)", &[&LOCK]).await?;
    let of = "SELECT slot, epoch, state FROM tidegate.slot WHERE slot = $1";
    let found = db.query_opt(of, &[&i32::from(slot)]).await?.as_ref().map(fence_of);
    if found != Some(wanted) {
        return Err(ShardError::fenced(slot, found.as_ref()));
    }
    let (first, behind) = numbers(slot);
    let rows = db
        .execute(
            "DELETE FROM tidegate.summary WHERE (device, length_us, start_us) IN
                (SELECT device, length_us, start_us FROM tidegate.summary WHERE device >= $1 AND device < $2 LIMIT $3)",
            &[&first, &behind, &(limit as i64)],
        )
        .await? as usize;
    if rows < limit {
        for table in ["rollup", "stale"] {
            let sql = format!("DELETE FROM tidegate.{table} WHERE device >= $1 AND device < $2");
            db.execute(&sql, &[&first, &behind]).await?;
        }
        db.execute("DELETE FROM tidegate.device WHERE id >= $1 AND id < $2", &[&first, &behind]).await?;
        db.execute("DELETE FROM tidegate.gateway WHERE slot = $1", &[&i32::from(slot)]).await?;
    }
    Ok(rows)
}

pub(super) async fn size(db: &impl GenericClient) -> Result<(u64, u64), ShardError> {
    let row = db
        .query_one(
            "SELECT (SELECT count(*) FROM tidegate.summary), (SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
                FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'tidegate' AND c.relkind = 'r')",
            &[],
        )
        .await?;
    Ok((row.get::<_, i64>(0) as u64, row.get::<_, i64>(1) as u64))
}

pub(super) fn labels_of(row: &SqlRow, at: usize) -> BTreeMap<String, String> {
    serde_json::from_str(row.get::<_, &str>(at)).unwrap_or_default()
}
