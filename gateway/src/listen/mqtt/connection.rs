//! The sending half of a connection, shared by all who have something for it.
//!
//! Arrives: acknowledgements after their commit, messages of other clients, answers. Leaves:
//! bytes on the socket, written at once by whoever has them; what the socket does not take
//! waits in the outbox and the connection's own task writes it when it can. Always holds: the
//! outbox is bounded; QoS 0 beyond the bound is dropped and counted, QoS 1 beyond it
//! disconnects the subscriber (0x97); acknowledgements leave in order. TLS and WebSocket
//! streams take their place here, as other kinds of [`Wire`].

use super::budget::Waiting;
use super::packet::{Outgoing, Version, kind, put_acknowledgement, put_length, reason};
use super::retained::Publication;
use super::router::Delivery;
use crate::clock::Clock;
use crate::metrics::Metrics;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Notify;

/// Where bytes go.
#[derive(Debug)]
pub(crate) enum Wire {
    /// A TCP socket.
    Tcp(OwnedWriteHalf),
    /// Memory: tests need no sockets.
    #[cfg(any(test, fuzzing))]
    Kept(Arc<Mutex<Vec<u8>>>),
}

impl Wire {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Wire::Tcp(half) => half.try_write(bytes),
            #[cfg(any(test, fuzzing))]
            Wire::Kept(kept) => {
                kept.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
                Ok(bytes.len())
            }
        }
    }

    async fn writable(&self) -> io::Result<()> {
        match self {
            Wire::Tcp(half) => half.writable().await,
            #[cfg(any(test, fuzzing))]
            Wire::Kept(_) => Ok(()),
        }
    }
}

/// What a client said of itself when it connected.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    /// Its protocol.
    pub version: Version,
    /// Its id, given or assigned.
    pub client: Arc<str>,
    /// QoS 1 messages it takes unacknowledged.
    pub inflight_max: usize,
    /// The largest packet it takes.
    pub packet_max: usize,
}

/// A connection as others see it.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Unique in this process, from 1.
    pub id: u64,
    wire: Wire,
    peer: OnceLock<Peer>,
    out: Mutex<Outbox>,
    wake: Notify,
    metrics: Arc<Metrics>,
    clock: Clock,
    queue_max: usize,
    /// Seconds of the sweeper's clock when the client was last heard.
    pub heard_s: AtomicU32,
    /// Seconds of silence after which the connection ends; 0 means never.
    pub patience_s: AtomicU32,
    /// The gateway itself is not reading: silence proves nothing.
    pub paused: AtomicBool,
    /// Its session has ended.
    over: AtomicBool,
    waiting: Arc<Waiting>,
    /// Retained messages still to be shown to new subscriptions.
    showings: Mutex<VecDeque<Showing>>,
}

/// What a new subscription is still to be shown.
#[derive(Debug)]
pub(crate) struct Showing {
    /// What was subscribed to.
    pub filter: String,
    /// The highest QoS to deliver.
    pub qos: u8,
    /// The subscription's identifier.
    pub id: Option<u32>,
    /// Messages on topics up to this one have been looked at.
    pub after: Option<Box<str>>,
}

#[derive(Debug, Default)]
struct Outbox {
    bytes: Vec<u8>,
    /// The socket did not take everything; the connection's task waits for it.
    blocked: bool,
    /// Somebody will flush: acknowledgements of one commit leave in one write.
    touched: bool,
    inflight: BTreeSet<u16>,
    last_pkid: u16,
    queue: VecDeque<(Arc<Publication>, Delivery)>,
    queue_bytes: usize,
    /// Of what waits, so much is in the account of all.
    accounted: usize,
    closing: Option<u8>,
}

/// Bytes of acknowledgements that a client may leave unread before it is not read either.
const UNREAD_MAX: usize = 64 << 10;

impl Connection {
    /// A new connection, its peer not known yet.
    pub(super) fn new(
        id: u64,
        wire: Wire,
        metrics: Arc<Metrics>,
        clock: Clock,
        queue_max: usize,
        waiting: Arc<Waiting>,
    ) -> Self {
        Connection {
            id,
            wire,
            peer: OnceLock::new(),
            out: Mutex::default(),
            wake: Notify::new(),
            metrics,
            clock,
            queue_max,
            heard_s: AtomicU32::new(0),
            patience_s: AtomicU32::new(0),
            paused: AtomicBool::new(false),
            over: AtomicBool::new(false),
            waiting,
            showings: Mutex::default(),
        }
    }

    #[cfg(test)]
    pub(super) fn for_test(id: u64) -> Self {
        Connection::new(id, Wire::Kept(Arc::default()), Arc::default(), Clock::system(), 1_000, Waiting::new(1_000_000))
    }

    fn out(&self) -> MutexGuard<'_, Outbox> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Introduces the client, once.
    pub(crate) fn introduce(&self, peer: Peer) {
        let _ = self.peer.set(peer);
    }

    /// What the client said of itself, after CONNECT.
    pub(crate) fn peer(&self) -> Option<&Peer> {
        self.peer.get()
    }

    /// Appends an acknowledgement without sending it yet; true if nobody else will flush.
    pub(crate) fn acknowledge(&self, kind: u8, pkid: u16) -> bool {
        let mut out = self.out();
        if out.closing.is_some() {
            return false;
        }
        put_acknowledgement(&mut out.bytes, kind, pkid);
        !std::mem::replace(&mut out.touched, true)
    }

    /// Appends a packet without sending it yet; true if nobody else will flush.
    pub(crate) fn append(&self, packet: &[u8]) -> bool {
        let mut out = self.out();
        if out.closing.is_some() {
            return false;
        }
        out.bytes.extend_from_slice(packet);
        !std::mem::replace(&mut out.touched, true)
    }

    /// Retained messages are to be shown, once for each filter.
    pub(crate) fn show(&self, showing: Showing) {
        self.show_no_more(&showing.filter);
        self.showings().push_back(showing);
        self.wake.notify_one();
    }

    /// Retained messages are not wanted any more.
    pub(crate) fn show_no_more(&self, filter: &str) {
        self.showings().retain(|showing| showing.filter != filter);
    }

    /// What is to be shown.
    pub(super) fn showings(&self) -> MutexGuard<'_, VecDeque<Showing>> {
        self.showings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session has ended.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
        self.showings().clear();
    }

    /// True if the session has ended.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Sends what has been appended.
    pub(crate) fn flush(&self) {
        let mut out = self.out();
        out.touched = false;
        self.write(&mut out);
    }

    /// Sends a packet after all before it.
    pub(crate) fn send(&self, packet: &[u8]) {
        let mut out = self.out();
        if out.closing.is_none() {
            out.bytes.extend_from_slice(packet);
            self.write(&mut out);
        }
    }

    /// Writes what the socket takes; leaves the rest to the connection's task.
    fn write(&self, out: &mut Outbox) {
        if out.blocked {
            return;
        }
        let mut written = 0;
        while written < out.bytes.len() {
            match self.wire.try_write(&out.bytes[written..]) {
                Ok(0) => break,
                Ok(n) => written += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    // The reading half sees the same end; nothing more can be sent.
                    out.closing.get_or_insert(reason::NORMAL);
                    written = out.bytes.len();
                    self.wake.notify_one();
                }
            }
        }
        out.bytes.drain(..written);
        self.account(out);
        if out.bytes.is_empty() {
            out.bytes.shrink_to(4 << 10);
        } else {
            out.blocked = true;
            self.wake.notify_one();
        }
    }

    /// Puts a message into the outbox; true if the caller has to flush it.
    pub(crate) fn send_publication(&self, publication: &Arc<Publication>, delivery: &Delivery) -> bool {
        let Some(peer) = self.peer() else { return false };
        let mut out = self.out();
        if out.closing.is_some() {
            return false;
        }
        let waiting = out.bytes.len() + out.queue_bytes;
        // Where all subscribers together have no room left, those give way for whom most waits.
        let queue_max = if self.waiting.is_full() { self.queue_max / 16 } else { self.queue_max };
        let sent = if delivery.qos == 0 {
            waiting <= queue_max && out.put(peer, &self.clock, publication, delivery, 0)
        } else if waiting > queue_max {
            self.metrics.overflowed.inc();
            drop(out);
            self.close(reason::QUOTA);
            return false;
        } else if out.inflight.len() < peer.inflight_max && out.queue.is_empty() {
            let pkid = out.next_pkid();
            out.put(peer, &self.clock, publication, delivery, pkid)
        } else {
            out.queue_bytes += publication.bytes();
            out.queue.push_back((Arc::clone(publication), delivery.clone()));
            self.account(&mut out);
            return false;
        };
        if !sent {
            self.metrics.dropped.inc();
            return false;
        }
        self.metrics.delivered.inc();
        self.account(&mut out);
        !std::mem::replace(&mut out.touched, true)
    }

    /// Tells the whole what waits here now.
    fn account(&self, out: &mut Outbox) {
        let now = out.bytes.len() + out.queue_bytes;
        self.waiting.change(out.accounted, now);
        out.accounted = now;
    }

    /// The client has acknowledged a QoS 1 message; the next one may leave.
    pub(crate) fn acknowledged(&self, pkid: u16) {
        let Some(peer) = self.peer() else { return };
        let mut out = self.out();
        if !out.inflight.remove(&pkid) {
            return;
        }
        while out.inflight.len() < peer.inflight_max {
            let Some((publication, delivery)) = out.queue.pop_front() else { break };
            out.queue_bytes -= publication.bytes();
            let pkid = out.next_pkid();
            let sent = out.put(peer, &self.clock, &publication, &delivery, pkid);
            let counter = if sent { &self.metrics.delivered } else { &self.metrics.dropped };
            counter.inc();
        }
        self.write(&mut out);
    }

    /// True if a retained message may be sent without displacing what is live.
    pub(crate) fn has_room(&self) -> bool {
        let Some(peer) = self.peer() else { return false };
        let out = self.out();
        let waiting = out.bytes.len() + out.queue_bytes;
        out.closing.is_none() && !out.blocked && waiting <= self.queue_max / 2 && out.inflight.len() < peer.inflight_max
    }

    /// Ends the connection, telling an MQTT 5 client why.
    pub(crate) fn close(&self, code: u8) {
        let mut out = self.out();
        if out.closing.is_some() {
            return;
        }
        out.closing = Some(code);
        if code != reason::NORMAL && self.peer().is_some_and(|peer| peer.version == Version::V5) {
            out.bytes.push(kind::DISCONNECT << 4);
            put_length(&mut out.bytes, 2);
            out.bytes.extend([code, 0]);
        }
        self.write(&mut out);
        drop(out);
        self.wake.notify_one();
    }

    /// Why the connection is to end, if it is.
    pub(crate) fn closing(&self) -> Option<u8> {
        self.out().closing
    }

    /// True if the client does not read what it has coming.
    pub(crate) fn is_backed_up(&self) -> bool {
        self.out().bytes.len() > UNREAD_MAX
    }

    /// Waits until there is something for the connection's task to do.
    pub(crate) fn woken(&self) -> tokio::sync::futures::Notified<'_> {
        self.wake.notified()
    }

    /// There is more for the connection's task to do.
    pub(super) fn wake_again(&self) {
        self.wake.notify_one();
    }

    /// True if bytes wait for the socket.
    pub(crate) fn is_blocked(&self) -> bool {
        self.out().blocked
    }

    /// Waits for the socket and writes on.
    pub(crate) async fn unblock(&self) -> io::Result<()> {
        self.wire.writable().await?;
        let mut out = self.out();
        out.blocked = false;
        self.write(&mut out);
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let accounted = self.out().accounted;
        self.waiting.change(accounted, 0);
    }
}

impl Outbox {
    /// Appends a PUBLISH; false if it has expired or the client takes no packets as large.
    fn put(&mut self, peer: &Peer, clock: &Clock, publication: &Publication, delivery: &Delivery, pkid: u16) -> bool {
        let Some(expiry_s) = publication.remaining_s(clock) else { return false };
        let before = self.bytes.len();
        Outgoing {
            topic: &publication.topic,
            properties: &publication.properties,
            payload: &publication.payload,
            qos: delivery.qos,
            retain: delivery.retain,
            pkid,
            expiry_s,
            subscriptions: &delivery.ids,
        }
        .put(peer.version, &mut self.bytes);
        let fits = self.bytes.len() - before <= peer.packet_max;
        if !fits {
            self.bytes.truncate(before);
        } else if pkid > 0 {
            self.inflight.insert(pkid);
        }
        fits
    }

    /// The next identifier that is not in flight; there are fewer in flight than identifiers.
    fn next_pkid(&mut self) -> u16 {
        loop {
            self.last_pkid = self.last_pkid.checked_add(1).unwrap_or(1);
            if !self.inflight.contains(&self.last_pkid) {
                return self.last_pkid;
            }
        }
    }
}
