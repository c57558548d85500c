//! What a shard may do with each slot, and at which epoch.
//!
//! Always holds: who writes has taken the shared lock before it reads a fence, who changes fences
//! takes it alone; so nobody writes by a fence that is not there any more.

use super::schema::LOCK;
use crate::shard::{Fence, Fenced, ShardError, State, check_writable};
use placement::Epoch;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_postgres::{GenericClient, Row as SqlRow};

/// All slots that are known, read again only when they have changed.
#[derive(Debug, Default)]
pub(super) struct Fences(Mutex<(i64, Arc<Fenced>)>);

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
                let read = Arc::new(Fenced::of(fences(db).await?.into_values()));
                *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (version, Arc::clone(&read));
                read
            }
        };
        known.check(wanted)
    }
}

pub(super) async fn fences(db: &impl GenericClient) -> Result<BTreeMap<u16, Fence>, ShardError> {
    let rows = db.query("SELECT slot, epoch, state FROM tidegate.slot", &[]).await?;
    Ok(rows.iter().map(fence_of).map(|fence| (fence.slot, fence)).collect())
}

pub(super) fn fence_of(row: &SqlRow) -> Fence {
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
