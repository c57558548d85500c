//! What a push does, inside whatever transaction the caller has begun.

use super::devices::{devices_of, put_labels};
use super::fences::lock_and_check;
use super::removal::put_removed;
use super::rows::put_rows;
use super::senders::{known_sender, put_sender};
use crate::shard::{ShardError, Write};
use std::sync::Arc;
use tokio_postgres::Transaction;
use uplink::Held;

pub(super) async fn write(db: &Transaction<'_>, write: &Write) -> Result<Held, ShardError> {
    lock_and_check(db, &write.fences, false).await?;
    let mut held = known_sender(db, &write.sender).await?;
    if write.expected.lowest_not_in(held).is_some() {
        return Err(ShardError::Lacking(held));
    }
    put_removed(db, &write.sender.gateway, &write.removed, write.batch).await?;
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
