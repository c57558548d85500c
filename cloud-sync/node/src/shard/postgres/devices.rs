//! Devices, their numbers and their labels.

use super::removal::{floors, put_floor};
use super::senders::put_beat;
use crate::shard::{Known, LabelsVersion, Names, ShardError, numbers};
use deadpool_postgres::ClientWrapper;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use tokio_postgres::{GenericClient, Row as SqlRow};

/// Labels are of the batch that brought them: those of a later one stay.
pub(super) async fn put_labels(
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

pub(super) async fn export_names(db: &ClientWrapper, slot: u16) -> Result<Names, ShardError> {
    let (first, behind) = numbers(slot);
    let devices = db
        .prepare_cached(
            "SELECT name, gateway, labels::text, labels_incarnation, labels_batch, id FROM tidegate.device
             WHERE id >= $1 AND id < $2 ORDER BY id",
        )
        .await?;
    let rows = db.query(&devices, &[&first, &behind]).await?;
    let mut floors = floors(&**db, rows.iter().map(|row| row.get(5))).await?;
    let mut known = |row: &SqlRow| Known {
        device: row.get::<_, String>(0).into(),
        gateway: row.get::<_, String>(1).into(),
        labels: labels_of(row, 2),
        labels_version: (row.get::<_, i64>(3) as u64, row.get::<_, i64>(4) as u64),
        metrics: Vec::new(),
        last_us: None,
        removed: floors.remove(&row.get(5)).unwrap_or_default(),
    };
    let beats = db.prepare_cached("SELECT beat FROM tidegate.gateway WHERE slot = $1").await?;
    let beats = db.query(&beats, &[&i32::from(slot)]).await?;
    let beats = beats.iter().filter_map(|row| serde_json::from_str(row.get(0)).ok()).collect();
    Ok(Names { slot, devices: rows.iter().map(&mut known).collect(), beats })
}

pub(super) async fn import_names(db: &impl GenericClient, names: &[Names]) -> Result<(), ShardError> {
    let of = |known: &Known| (Arc::clone(&known.gateway), Arc::clone(&known.device));
    let wanted = names.iter().flat_map(|names| {
        names.devices.iter().map(|known| (names.slot, Arc::clone(&known.gateway), Arc::clone(&known.device)))
    });
    let ids = devices_of(db, wanted.collect()).await?;
    for known in names.iter().flat_map(|names| &names.devices) {
        let id = ids[&of(known)];
        if known.labels_version > LabelsVersion::default() {
            put_labels(db, id, &known.labels, known.labels_version).await?;
        }
        for floor in &known.removed {
            // Rows come behind it: nothing is below it here.
            put_floor(db, id, floor, true).await?;
        }
    }
    for Names { slot, beats, .. } in names {
        for beat in beats {
            put_beat(db, beat, *slot).await?;
        }
    }
    Ok(())
}

pub(super) fn labels_of(row: &SqlRow, at: usize) -> BTreeMap<String, String> {
    serde_json::from_str(row.get::<_, &str>(at)).unwrap_or_default()
}
