//! Which batches of a gateway are here, who may send more, and what gateways say of themselves.

use super::fences::check_all_writable;
use crate::intake::now_us;
use crate::shard::{Beat, KnownSender, Sender, ShardError};
use placement::Epoch;
use rusqlite::{Connection, OptionalExtension, params};
use uplink::Held;

pub(super) fn sender(db: &Connection, gateway: &str) -> rusqlite::Result<Option<KnownSender>> {
    let mut query = db.prepare_cached(
        "SELECT incarnation, starts, session, highest, recent, since_us, disputed FROM sender WHERE gateway = ?1",
    )?;
    let row = query.query_row([gateway], |row| {
        let number = |at: usize| row.get::<_, i64>(at).map(|n| n as u64);
        let sender =
            Sender { gateway: gateway.into(), incarnation: number(0)?, starts: number(1)?, session: number(2)? };
        let held = Held { highest: number(3)?, recent: number(4)? };
        Ok(KnownSender { sender, held, since_us: row.get(5)?, disputed: row.get(6)? })
    });
    row.optional()
}

pub(super) fn put_sender(db: &Connection, sender: &Sender, held: Held) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO sender AS s VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0) ON CONFLICT (gateway) DO UPDATE SET
            incarnation = excluded.incarnation, starts = excluded.starts, session = excluded.session,
            highest = excluded.highest, recent = excluded.recent,
            disputed = CASE WHEN excluded.incarnation > s.incarnation THEN 0 ELSE s.disputed END,
            since_us = CASE WHEN s.session = excluded.session THEN s.since_us ELSE excluded.since_us END",
    )?
    .execute(params![
        &*sender.gateway,
        sender.incarnation as i64,
        sender.starts as i64,
        sender.session as i64,
        held.highest as i64,
        held.recent as i64,
        now_us()
    ])?;
    Ok(())
}

pub(super) fn beat(db: &Connection, beat: &Beat, from: &Sender, fence: (u16, Epoch)) -> Result<(), ShardError> {
    check_all_writable(db, &[fence], false)?;
    let known = sender(db, &from.gateway)?;
    if let Some(known) = &known {
        from.check(known, now_us())?;
    }
    if known.as_ref().is_none_or(|known| known.sender != *from) {
        let held = known.map_or_else(Held::default, |known| known.held_in(from.incarnation));
        put_sender(db, from, held)?;
    }
    put_beat(db, beat, fence.0)?;
    Ok(())
}

pub(super) fn dispute(db: &Connection, gateway: &str, incarnation: u64) -> rusqlite::Result<()> {
    // Also where nothing of it has come yet; a later life is in no dispute.
    let sql = "INSERT INTO sender AS s VALUES (?1, ?2, 0, 0, 0, 0, 0, 1)
        ON CONFLICT (gateway) DO UPDATE SET disputed = 1 WHERE s.incarnation <= excluded.incarnation";
    db.execute(sql, params![gateway, incarnation as i64])?;
    db.execute("UPDATE gateway SET beat = json_set(beat, '$.disputed', json('true')) WHERE id = ?1", [gateway])?;
    Ok(())
}

pub(super) fn forget(db: &Connection, gateway: &str, wholly: bool) -> rusqlite::Result<bool> {
    let senders = db.execute("DELETE FROM sender WHERE gateway = ?1", [gateway])?;
    let gateways = db.execute(
        if wholly {
            "DELETE FROM gateway WHERE id = ?1"
        } else {
            "UPDATE gateway SET beat = json_set(beat, '$.disputed', json('false')) WHERE id = ?1"
        },
        [gateway],
    )?;
    Ok(senders + gateways > 0)
}

pub(super) fn put_beat(db: &Connection, beat: &Beat, slot: u16) -> rusqlite::Result<()> {
    let body = serde_json::to_string(beat).unwrap_or_default();
    db.prepare_cached("INSERT OR REPLACE INTO gateway VALUES (?1, ?2, ?3)")?.execute(params![
        beat.gateway,
        slot,
        body
    ])?;
    Ok(())
}

pub(super) fn beats(db: &Connection) -> Result<Vec<Beat>, ShardError> {
    // Those that have moved away are told by the shard that they live in now.
    let mut query = db.prepare_cached(
        "SELECT g.beat FROM gateway g JOIN slot s ON s.slot = g.slot WHERE s.state IN ('open', 'fenced') ORDER BY g.id",
    )?;
    let rows = query.query_map([], |row| row.get::<_, String>(0))?;
    Ok(rows.filter_map(|beat| serde_json::from_str(&beat.ok()?).ok()).collect())
}
