//! The book that a connection keeps: counters for the report and lines for the ledger.
//!
//! Arrives: "this message is about to leave", "these ids were acknowledged". Leaves: shared counters
//! and whole ledger lines, handed over in batches. Always holds: [`Page::settle`] is called before
//! the bytes of a batch go to a socket, so the ledger is never behind the wire. Deliberately absent:
//! any idea of how messages travel.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::Instant;

use crate::ledger::{Ledger, LedgerError, Ranges};
use crate::message::Message;
use crate::report::Tally;

/// What all connections of a run share.
#[derive(Debug, Clone)]
pub(crate) struct Book {
    pub(crate) tally: Arc<Tally>,
    pub(crate) ledger: Option<Arc<Ledger>>,
}

/// One connection's page of the book: events of the current batch, not yet handed over.
#[derive(Debug)]
pub(crate) struct Page {
    book: Book,
    shard: usize,
    lines: String,
    acked: Ranges,
    latencies: Vec<Duration>,
    dirty: bool,
}

impl Page {
    pub(crate) fn new(book: Book, shard: usize) -> Self {
        Self { book, shard, lines: String::new(), acked: Ranges::default(), latencies: Vec::new(), dirty: false }
    }

    /// A message is about to leave for the first time, or as a deliberate copy.
    pub(crate) fn sent(&mut self, message: &mut Message, is_acknowledged: bool) {
        let tally = &self.book.tally;
        tally.messages.fetch_add(1, Relaxed);
        if message.copy {
            self.sent_again(&message.ids);
            return;
        }
        self.dirty = true;
        let count = message.reading_count();
        tally.sent.fetch_add(count, Relaxed);
        if is_acknowledged {
            tally.sent_acknowledgeable.fetch_add(count, Relaxed);
        }
        self.lines.push_str(&std::mem::take(&mut message.record));
    }

    /// A message is about to leave once more, in a way that may store it twice.
    pub(crate) fn sent_again(&mut self, ids: &RangeInclusive<u64>) {
        self.dirty = true;
        if self.book.ledger.is_some() {
            let mut again = Ranges::default();
            again.add('R', ids, &mut self.lines);
            again.finish('R', &mut self.lines);
        }
    }

    /// The gateway has acknowledged a message.
    pub(crate) fn acked(&mut self, message: &Message, latency: Duration) {
        self.dirty = true;
        if message.copy {
            return;
        }
        self.latencies.push(latency);
        self.book.tally.acked.fetch_add(message.reading_count(), Relaxed);
        if self.book.ledger.is_some() {
            self.acked.add('A', &message.ids, &mut self.lines);
        }
    }

    /// The gateway has refused a message, or never answered.
    pub(crate) fn failed(&self) {
        self.book.tally.errors.fetch_add(1, Relaxed);
    }

    pub(crate) fn reconnected(&self) {
        self.book.tally.reconnects.fetch_add(1, Relaxed);
    }

    /// Hands the batch over. To be called before the batch's bytes go to a socket.
    pub(crate) fn settle(&mut self, now: Instant) -> Result<(), LedgerError> {
        if !std::mem::take(&mut self.dirty) {
            return Ok(());
        }
        self.book.tally.touch(now);
        self.book.tally.add_latencies(self.shard, &mut self.latencies);
        self.acked.finish('A', &mut self.lines);
        match &self.book.ledger {
            Some(ledger) => ledger.append(&self.lines)?,
            None => debug_assert!(self.lines.is_empty(), "records are composed for a ledger only"),
        }
        self.lines.clear();
        Ok(())
    }
}
