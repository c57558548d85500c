//! Which batches of a gateway are here, who may send more, and what gateways say of themselves.

use super::fences::check_all_writable;
use crate::node::shard::{Beat, Sender, ShardError, held_of};
use crate::placement::Epoch;
use crate::uplink::Held;
use rusqlite::{Connection, OptionalExtension, params};

pub(super) fn sender(db: &Connection, gateway: &str) -> rusqlite::Result<Option<(Sender, Held)>> {
    let mut query =
        db.prepare_cached("SELECT incarnation, starts, session, highest, recent FROM sender WHERE gateway = ?1")?;
    let row = query.query_row([gateway], |row| {
        let number = |at: usize| row.get::<_, i64>(at).map(|n| n as u64);
        let sender =
            Sender { gateway: gateway.into(), incarnation: number(0)?, starts: number(1)?, session: number(2)? };
        Ok((sender, Held { highest: number(3)?, recent: number(4)? }))
    });
    row.optional()
}

pub(super) fn put_sender(db: &Connection, sender: &Sender, held: Held) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR REPLACE INTO sender VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
        &*sender.gateway,
        sender.incarnation as i64,
        sender.starts as i64,
        sender.session as i64,
        held.highest as i64,
        held.recent as i64
    ])?;
    Ok(())
}

pub(super) fn beat(db: &Connection, beat: &Beat, from: &Sender, fence: (u16, Epoch)) -> Result<(), ShardError> {
    check_all_writable(db, &[fence], false)?;
    let known = sender(db, &from.gateway)?;
    if let Some((known, _)) = &known {
        from.check(known)?;
    }
    if known.as_ref().is_none_or(|(known, _)| known != from) {
        put_sender(
            db,
            from,
            known.map_or_else(Held::default, |(known, held)| held_of(&known, held, from.incarnation)),
        )?;
    }
    put_beat(db, beat, fence.0)?;
    Ok(())
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
