//! What a start finds in the store, and what it settles there before anybody is let in.

use super::Watch;
use crate::archive::levels::Levels;
use crate::archive::{DAY_US, chunk_id, day, day_of, series_of};
use crate::clock::{self, Clock, Ledger, Trust};
use crate::config::Config;
use crate::journal::schema::{self, Store};
use crate::journal::steps::{read_ledger, write_ledger};
use crate::listen::mqtt::retained::{Publication, Retained};
use crate::window::dirty::write_blob;
use crate::window::revise::Stretch;
use rusqlite::Connection;
use std::collections::HashMap;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use uplink::{Identity, begun_anew};

/// The clock is believed or not by what the store has, too: no right time is earlier.
pub(super) fn watch_clock(trust: &Arc<Trust>, db: &Connection, stop: &CancellationToken) -> rusqlite::Result<Watch> {
    let Ledger { unset, waiting } = read_ledger(db)?;
    let latest =
        "SELECT max(us) FROM (SELECT max(received_us) us FROM batch UNION ALL SELECT max(received_us) FROM chunk)";
    let latest_us: Option<i64> = db.query_row(latest, [], |row| row.get(0))?;
    let seq = "SELECT max(seq) FROM (SELECT max(seq) seq FROM batch UNION ALL SELECT max(seq) FROM chunk)";
    let last_seq: Option<i64> = db.query_row(seq, [], |row| row.get(0))?;
    let start = clock::Start { floor_us: latest_us.unwrap_or_default(), from_seq: last_seq.unwrap_or(0) + 1 };
    let watching = clock::watch(trust, start, unset, waiting, stop.clone());
    // On disk before anything is acknowledged under such a clock.
    if let Some(ledger) = trust.changed() {
        write_ledger(db, &ledger)?;
    }
    Ok(Box::pin(watching))
}

/// Who this is: the id is made at the first start and kept; the incarnation is the time at which
/// the store began this life of its, and rises when a copy is used or windows get another length.
pub(super) fn identify(store: &Store, config: &Config, clock: &Clock) -> rusqlite::Result<Identity> {
    let random = || {
        let mut bytes = [0_u8; 8];
        let _ = getrandom::fill(&mut bytes);
        u64::from_le_bytes(bytes)
    };
    let db = &store.connection;
    let now_us = clock.now_us();
    let kept: Option<String> = schema::meta(db, "incarnation")?;
    if kept.is_none() {
        schema::set_meta(db, "created_us", now_us)?;
    }
    let created_us: i64 = schema::meta(db, "created_us")?.unwrap_or(now_us);
    // Earlier versions kept a random text, which has no order.
    let before = kept.map(|kept| kept.parse::<u64>().unwrap_or(created_us.max(1) as u64));
    let length_us = config.window.length.micros();
    let cut_us: Option<i64> = schema::meta(db, "window_length_us")?;
    let is_copy = schema::meta::<i64>(db, "copied")?.is_some();
    let incarnation = match before {
        Some(before) if !is_copy && cut_us.is_none_or(|cut_us| cut_us == length_us) => before,
        Some(before) => (before + 1).max(now_us.max(1) as u64),
        None => now_us.max(1) as u64,
    };
    let starts = schema::meta::<i64>(db, "starts")?.unwrap_or(0) as u64 + 1;
    let id = match (config.gateway.id.as_str(), schema::meta::<String>(db, "id")?) {
        ("", Some(kept)) => kept,
        ("", None) => format!("gw-{:08x}", random() as u32),
        (given, _) => given.to_owned(),
    };
    let settled = db.unchecked_transaction()?;
    schema::set_meta(db, "id", &id)?;
    schema::set_meta(db, "incarnation", incarnation.to_string())?;
    schema::set_meta(db, "starts", starts as i64)?;
    db.execute("DELETE FROM meta WHERE key = 'copied'", [])?;
    settled.commit()?;
    Ok(Identity { gateway: id, incarnation, starts, session: random(), version: env!("CARGO_PKG_VERSION") })
}

/// True if not all that is kept has been recorded.
pub(super) fn begin_uplink(db: &Connection) -> rusqlite::Result<bool> {
    Ok(schema::meta::<String>(db, "recording")?.as_deref() != Some("all"))
}

/// Without an uplink nothing is recorded: should there be one again, everything is sent again.
pub(super) fn forget_uplink(db: &Connection) -> rusqlite::Result<()> {
    if let Some(saved) = schema::meta::<Vec<u8>>(db, "uplink")? {
        schema::set_meta(db, "uplink", begun_anew(&saved))?;
    }
    db.execute_batch("DELETE FROM meta WHERE key = 'recording'; DELETE FROM change; DELETE FROM sent;")
}

/// True if windows had another length before: where a restart may begin to read was decided
/// for those, so windows of the new length need everything. What is in chunks is marked to be
/// computed again, also when there are other rollups than before.
pub(super) fn changed_levels(db: &Connection, levels: &Levels, now_us: i64) -> rusqlite::Result<bool> {
    let length_us = levels.base.length_us;
    let rollups: Vec<String> = levels.rollups.iter().map(|level| level.length_us.to_string()).collect();
    let rollups = rollups.join(",");
    let before: Option<i64> = schema::meta(db, "window_length_us")?;
    let rollups_before: Option<String> = schema::meta(db, "rollup_lengths_us")?;
    if before == Some(length_us) && rollups_before.as_deref() == Some(&*rollups) {
        return Ok(false);
    }
    let changed = db.unchecked_transaction()?;
    if before.is_some_and(|before| before != length_us) {
        schema::set_meta(db, "replay_from", 1)?;
    }
    if before.is_some() {
        mark_archived(db, now_us)?;
    }
    schema::set_meta(db, "window_length_us", length_us)?;
    schema::set_meta(db, "rollup_lengths_us", &rollups)?;
    changed.commit()?;
    Ok(before.is_some_and(|before| before != length_us))
}

/// Adds all days that have chunks to what is dirty: one stretch for each series up to now, and
/// days in the future one by one, since those wait.
fn mark_archived(db: &Connection, now_us: i64) -> rusqlite::Result<()> {
    let first: Option<i64> = db.query_row("SELECT min(id) FROM chunk", [], |row| row.get(0))?;
    let Some(first) = first else { return Ok(()) };
    let (from_us, to_us) = (day_of(first) * DAY_US, (day(now_us) + 1) * DAY_US);
    let series: u32 = db.query_row("SELECT coalesce(max(id) + 1, 0) FROM series", [], |row| row.get(0))?;
    let past = (0..series).filter(|_| from_us < to_us).map(|series| Stretch { series, from_us, to_us });
    let mut ids = db.prepare("SELECT id FROM chunk WHERE id >= ?1")?;
    let ids = ids.query_map([chunk_id(day(to_us), 0, 0)], |row| row.get::<_, i64>(0))?;
    let future = ids.map(|id| {
        id.map(|id| {
            let from_us = day_of(id) * DAY_US;
            Stretch { series: series_of(id), from_us, to_us: from_us + DAY_US }
        })
    });
    let stretches = past.map(Ok).chain(future).collect::<Result<Vec<_>, _>>()?;
    let mut dirty: Vec<u8> = schema::meta(db, "dirty")?.unwrap_or_default();
    dirty.extend(write_blob(&stretches));
    schema::set_meta(db, "dirty", dirty)
}

/// Retained messages that have not expired.
pub(super) fn restore_retained(db: &Connection, config: &Config, clock: &Clock) -> rusqlite::Result<Arc<Retained>> {
    let (count_max, bytes_max) = (config.limits.retained, config.limits.retained_memory.bytes());
    let retained = Retained::new(count_max, bytes_max, clock.clone());
    db.execute("DELETE FROM retained WHERE expires_us <= ?1", [clock.now_us()])?;
    let mut query = db.prepare("SELECT topic, qos, properties, payload, expires_us FROM retained")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        retained.apply(&Arc::new(Publication {
            topic: row.get::<_, String>(0)?.into(),
            qos: row.get(1)?,
            properties: row.get::<_, Vec<u8>>(2)?.into(),
            payload: row.get::<_, Vec<u8>>(3)?.into(),
            retain: true,
            expires_us: row.get(4)?,
            from: 0,
        }));
    }
    Ok(Arc::new(retained))
}

/// QoS 2 packet identifiers that their clients have not released yet.
pub(super) fn read_inbound(db: &Connection) -> rusqlite::Result<HashMap<Arc<str>, HashMap<u16, u64>>> {
    let mut inbound: HashMap<Arc<str>, HashMap<u16, u64>> = HashMap::new();
    let mut query = db.prepare("SELECT client, pkid, hash FROM inbound")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let client: String = row.get(0)?;
        inbound.entry(client.into()).or_default().insert(row.get(1)?, row.get::<_, i64>(2)? as u64);
    }
    Ok(inbound)
}
