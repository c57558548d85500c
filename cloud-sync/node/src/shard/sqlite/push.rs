//! What a push does, inside whatever transaction the caller has begun.

use super::devices::{device, put_labels};
use super::fences::check_all_writable;
use super::removal::put_removed;
use super::rows::put_rows;
use super::senders::{put_sender, sender};
use crate::intake::now_us;
use crate::shard::{ShardError, Write};
use rusqlite::Connection;
use uplink::Held;

pub(super) fn write(db: &Connection, write: &Write) -> Result<Held, ShardError> {
    check_all_writable(db, &write.fences, false)?;
    let mut held = Held::default();
    if let Some(known) = sender(db, &write.sender.gateway)? {
        write.sender.check(&known, now_us())?;
        held = known.held_in(write.sender.incarnation);
    }
    if write.expected.lowest_not_in(held).is_some() {
        return Err(ShardError::Lacking(held));
    }
    put_removed(db, &write.sender.gateway, &write.removed, write.batch)?;
    put_rows(db, &write.rows)?;
    for labelled in &write.labels {
        let id = device(db, labelled.slot, &write.sender.gateway, &labelled.device)?;
        put_labels(db, id, &labelled.labels, (write.sender.incarnation, write.batch))?;
    }
    held.add(write.batch);
    put_sender(db, &write.sender, held)?;
    Ok(held)
}
