//! Which batches of a gateway are here, who may send more, and what gateways say of themselves.

use super::fences::lock_and_check;
use crate::intake::now_us;
use crate::shard::{Beat, KnownSender, Sender, ShardError};
use placement::Epoch;
use tokio_postgres::{GenericClient, Row as SqlRow};
use uplink::Held;

pub(super) const SENDER: &str =
    "SELECT incarnation, starts, session, highest, recent, since_us, disputed FROM tidegate.sender WHERE gateway = $1";

pub(super) fn sender_of(gateway: &str, row: &SqlRow) -> KnownSender {
    let number = |at: usize| row.get::<_, i64>(at) as u64;
    let sender = Sender { gateway: gateway.into(), incarnation: number(0), starts: number(1), session: number(2) };
    let held = Held { highest: number(3), recent: number(4) };
    KnownSender { sender, held, since_us: row.get(5), disputed: row.get(6) }
}

pub(super) async fn put_sender(db: &impl GenericClient, sender: &Sender, held: Held) -> Result<(), ShardError> {
    db.execute(
        "INSERT INTO tidegate.sender AS s VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (gateway) DO UPDATE SET
            incarnation = excluded.incarnation, starts = excluded.starts, session = excluded.session,
            highest = excluded.highest, recent = excluded.recent,
            disputed = s.disputed AND excluded.incarnation <= s.incarnation,
            since_us = CASE WHEN s.session = excluded.session THEN s.since_us ELSE excluded.since_us END",
        &[
            &&*sender.gateway,
            &(sender.incarnation as i64),
            &(sender.starts as i64),
            &(sender.session as i64),
            &(held.highest as i64),
            &(held.recent as i64),
            &now_us(),
        ],
    )
    .await?;
    Ok(())
}

/// Who is known to send, whose next batch waits for the end of this transaction.
pub(super) async fn known_sender(db: &impl GenericClient, from: &Sender) -> Result<Held, ShardError> {
    let gateway: &str = &from.gateway;
    db.execute("INSERT INTO tidegate.sender VALUES ($1, 0, 0, 0, 0, 0) ON CONFLICT (gateway) DO NOTHING", &[&gateway])
        .await?;
    let row = db.query_one(&format!("{SENDER} FOR UPDATE"), &[&gateway]).await?;
    let known = sender_of(gateway, &row);
    from.check(&known, now_us())?;
    Ok(known.held_in(from.incarnation))
}

pub(super) async fn dispute(db: &impl GenericClient, gateway: &str, incarnation: u64) -> Result<(), ShardError> {
    // Also where nothing of it has come yet; a later life is in no dispute.
    let sql = "INSERT INTO tidegate.sender AS s VALUES ($1, $2, 0, 0, 0, 0, 0, true)
        ON CONFLICT (gateway) DO UPDATE SET disputed = true WHERE s.incarnation <= excluded.incarnation";
    db.execute(sql, &[&gateway, &(incarnation as i64)]).await?;
    say_disputed(db, gateway, true).await.map(drop)
}

pub(super) async fn forget(db: &impl GenericClient, gateway: &str, wholly: bool) -> Result<bool, ShardError> {
    let senders = db.execute("DELETE FROM tidegate.sender WHERE gateway = $1", &[&gateway]).await?;
    let gateways = if wholly {
        db.execute("DELETE FROM tidegate.gateway WHERE id = $1", &[&gateway]).await?
    } else {
        say_disputed(db, gateway, false).await?
    };
    Ok(senders + gateways > 0)
}

async fn say_disputed(db: &impl GenericClient, gateway: &str, disputed: bool) -> Result<u64, ShardError> {
    let set = "UPDATE tidegate.gateway SET beat = jsonb_set(beat::jsonb, '{disputed}', to_jsonb($2::boolean))::text WHERE id = $1";
    Ok(db.execute(set, &[&gateway, &disputed]).await?)
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

pub(super) async fn put_beat(db: &impl GenericClient, beat: &Beat, slot: u16) -> Result<(), ShardError> {
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
