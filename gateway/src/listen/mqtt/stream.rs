//! The reading half of a connection.
//!
//! Arrives: bytes of a socket. Leaves: parcels. Always holds: a socket is read only while its
//! last parcel has been taken and its client reads what it has coming; while it waits, its
//! acknowledgements still leave; what came before the end is stored, then the connection takes
//! its subscriptions with it and leaves its will.

use super::budget::Charge;
use super::connection::Connection;
use super::handshake;
use super::packet::{self, Violation};
use super::serve::{FAREWELL, Local, Scratch};
use super::session::{Flow, Session};
use crate::journal::intake::Taken;
use crate::journal::{Inbound, Parcel};
use crate::listen::admit::Routes;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::tcp::OwnedReadHalf;

/// What the log shows of a client identifier.
const CLIENT_SHOWN_BYTES: usize = 64;

/// The largest CONNECT: nobody is known yet, so little is kept for anybody.
pub(super) const CONNECT_BYTES_MAX: usize = 256 << 10;

/// The reading half of a connection.
pub(super) struct Stream {
    local: Rc<Local>,
    connection: Arc<Connection>,
    reader: OwnedReadHalf,
    /// The beginning of a packet whose rest has not come yet.
    partial: Partial,
    /// What the journal had no room for.
    waiting: Parcel,
}

/// Bytes that wait for the rest of their packet.
pub(super) struct Partial {
    pub(super) bytes: Vec<u8>,
    /// How many there must be before it is worth to look again.
    needed: usize,
    charge: Charge,
}

impl Partial {
    /// None yet.
    pub(super) fn new(charge: Charge) -> Self {
        Partial { bytes: Vec::new(), needed: 0, charge }
    }

    /// Keeps these bytes instead of those before.
    pub(super) fn set(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        if self.bytes.is_empty() && bytes.is_empty() {
            return Ok(());
        }
        self.bytes = bytes.to_vec();
        self.needed = packet::needed(bytes);
        self.charge.set(bytes.len())
    }

    /// Adds bytes; true if it is worth to look.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<bool, Violation> {
        self.bytes.extend_from_slice(bytes);
        self.charge.set(self.bytes.len())?;
        Ok(self.bytes.len() >= self.needed)
    }

    pub(super) fn take(&mut self) -> Vec<u8> {
        // Less is never too much.
        let _ = self.charge.set(0);
        self.needed = 0;
        std::mem::take(&mut self.bytes)
    }
}

/// What one pass over the socket came to.
enum Pass {
    /// All taken, or all that the journal has room for.
    Taken,
    /// The connection is over.
    End,
    /// The client sent what it must not.
    Broken(Violation),
}

impl Stream {
    pub(super) fn new(local: Rc<Local>, connection: Arc<Connection>, reader: OwnedReadHalf) -> Self {
        let partial = Partial::new(local.shared.assembly_memory.charge());
        Stream { local, connection, reader, partial, waiting: Parcel::default() }
    }

    /// Reads until CONNECT is complete and answers it; what follows it stays in `partial`.
    pub(super) async fn first_packet(&mut self) -> Result<Option<Session>, Violation> {
        let max = self.local.shared.limits.packet_bytes.min(CONNECT_BYTES_MAX);
        loop {
            if let Some(frame) = packet::frame(&self.partial.bytes, max)? {
                let length = frame.raw.len();
                let (shared, desk) = (&self.local.shared, self.local.desk_index);
                let from = self.reader.peer_addr().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip());
                let greeting = handshake::greet(&frame, shared, &self.connection, desk, from, &mut self.waiting);
                // Passwords take time to check: for a client that has gone nobody spends it. What came behind
                // CONNECT is taken also from a client that has gone since.
                let is_all = self.partial.bytes.len() == length;
                let session = tokio::select! {
                    biased;
                    session = greeting => session?,
                    () = gone(&mut self.reader), if is_all => return Ok(None),
                };
                let rest = self.partial.take();
                self.partial.set(&rest[length..])?;
                return Ok(Some(session));
            }
            // A first byte that is no CONNECT is not worth waiting for.
            if self.partial.bytes.first().is_some_and(|byte| byte >> 4 != packet::kind::CONNECT) {
                return Err(packet::protocol_error("first packet is not CONNECT"));
            }
            let (local, connection) = (Rc::clone(&self.local), Arc::clone(&self.connection));
            let woken = connection.woken();
            let read = tokio::select! {
                () = local.stop.cancelled() => return Ok(None),
                () = woken => if connection.closing().is_some() { return Ok(None) } else { continue },
                read = poll_fn(|cx| self.poll_read_partial(cx)) => read,
            };
            match read {
                Ok(true) => {}
                Ok(false) | Err(_) => return Ok(None),
            }
        }
    }

    /// Reads on; false at the end.
    fn poll_read_partial(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut scratch = self.local.scratch.borrow_mut();
        let mut buffer = ReadBuf::new(&mut scratch.read);
        ready!(Pin::new(&mut self.reader).poll_read(cx, &mut buffer))?;
        let more = !buffer.filled().is_empty() && self.partial.add(buffer.filled()).is_ok();
        Poll::Ready(Ok(more))
    }

    /// Takes what the client sends until the connection is over, then says farewell for it.
    pub(super) async fn converse(mut self, mut session: Session) {
        let shown = session.client.floor_char_boundary(CLIENT_SHOWN_BYTES);
        tracing::Span::current().record("client", &session.client[..shown]);
        if unpanicked(self.talk(&mut session)).await.is_err() {
            // What the packet left half done belongs to nobody.
            self.local.scratch.borrow_mut().parcel = Parcel::default();
            tracing::error!("a packet made its connection panic; see above");
        }
        self.farewell(session).await;
    }

    async fn talk(&mut self, session: &mut Session) {
        let (local, connection) = (Rc::clone(&self.local), Arc::clone(&self.connection));
        let mut pass = self.rest(session);
        let woken = connection.woken();
        tokio::pin!(woken);
        loop {
            match pass {
                Pass::Taken => {}
                Pass::End => return,
                Pass::Broken(violation) => {
                    tracing::debug!("disconnected: {violation}");
                    connection.close(violation.code);
                }
            }
            if connection.closing().is_some() {
                return;
            }
            if session.show_retained() {
                // Others have their turn first.
                tokio::task::yield_now().await;
                connection.wake_again();
            }
            let mut waiting = std::mem::take(&mut self.waiting);
            let full = !waiting.is_empty();
            connection.paused.store(full, Ordering::Relaxed);
            let may_read = !full && !connection.is_backed_up() && !local.stop.is_cancelled();
            let blocked = connection.is_blocked();
            pass = tokio::select! {
                biased;
                () = woken.as_mut() => {
                    woken.set(connection.woken());
                    Pass::Taken
                }
                written = connection.unblock(), if blocked => match written {
                    Ok(()) => Pass::Taken,
                    Err(_) => Pass::End,
                },
                taken = local.shared.intake.push(&mut waiting), if full => match taken {
                    Ok(()) => Pass::Taken,
                    Err(_) => Pass::End,
                },
                pass = poll_fn(|cx| self.poll_pass(cx, session)), if may_read => pass,
                () = local.stop.cancelled(), if may_read => Pass::Taken,
            };
            if full {
                self.waiting = waiting;
            }
        }
    }

    /// Reads what there is and takes it.
    fn poll_pass(&mut self, cx: &mut Context<'_>, session: &mut Session) -> Poll<Pass> {
        let local = Rc::clone(&self.local);
        let mut scratch = local.scratch.borrow_mut();
        let Scratch { read, routes, parcel } = &mut *scratch;
        let mut buffer = ReadBuf::new(read);
        match ready!(Pin::new(&mut self.reader).poll_read(cx, &mut buffer)) {
            Ok(()) if buffer.filled().is_empty() => return Poll::Ready(Pass::End),
            Ok(()) => {}
            Err(_) => return Poll::Ready(Pass::End),
        }
        self.connection.heard_s.store(self.local.now_s.get(), Ordering::Relaxed);
        if self.partial.bytes.is_empty() {
            return Poll::Ready(self.take(buffer.filled(), session, routes, parcel));
        }
        match self.partial.add(buffer.filled()) {
            Ok(true) => {
                let partial = self.partial.take();
                Poll::Ready(self.take(&partial, session, routes, parcel))
            }
            Ok(false) => Poll::Ready(Pass::Taken),
            Err(violation) => Poll::Ready(Pass::Broken(violation)),
        }
    }

    /// Takes what came behind CONNECT in the same bytes.
    fn rest(&mut self, session: &mut Session) -> Pass {
        let local = Rc::clone(&self.local);
        let mut scratch = local.scratch.borrow_mut();
        let partial = self.partial.take();
        let Scratch { routes, parcel, .. } = &mut *scratch;
        std::mem::swap(parcel, &mut self.waiting);
        self.take(&partial, session, routes, parcel)
    }

    /// Takes all whole packets and keeps the beginning of the next.
    fn take(&mut self, mut bytes: &[u8], session: &mut Session, routes: &mut Routes, parcel: &mut Parcel) -> Pass {
        let shared = Arc::clone(&self.local.shared);
        let arrival = shared.admission.arrival();
        let outcome = loop {
            match packet::frame(bytes, shared.limits.packet_bytes) {
                Ok(Some(frame)) => match session.frame(&frame, arrival, routes, parcel) {
                    Ok(Flow::Continue) => bytes = &bytes[frame.raw.len()..],
                    Ok(Flow::Goodbye) => break Pass::End,
                    Err(violation) => break Pass::Broken(violation),
                },
                Ok(None) => break Pass::Taken,
                Err(violation) => break Pass::Broken(violation),
            }
        };
        let outcome = match (self.partial.set(bytes), outcome) {
            (Err(violation), Pass::Taken) => Pass::Broken(violation),
            (_, outcome) => outcome,
        };
        session.settle(parcel);
        if parcel.is_empty() {
            return outcome;
        }
        match shared.intake.try_push_quietly(parcel) {
            Ok(Taken::Yes) => outcome,
            Ok(Taken::WakeWriter) => {
                self.local.nudge.notify_one();
                outcome
            }
            Ok(Taken::No) => {
                self.waiting = std::mem::take(parcel);
                outcome
            }
            Err(_) => {
                *parcel = Parcel::default();
                Pass::End
            }
        }
    }

    async fn farewell(mut self, mut session: Session) {
        let shared = Arc::clone(&self.local.shared);
        self.connection.paused.store(true, Ordering::Relaxed);
        // A gateway that is stopping takes nothing more and publishes no wills.
        let _ = shared.intake.push(&mut self.waiting).await;
        let mut parcel = Parcel::default();
        {
            let mut scratch = self.local.scratch.borrow_mut();
            session.end(shared.admission.arrival(), &mut scratch.routes, &mut parcel);
        }
        let _ = shared.intake.push(&mut parcel).await;
        if let Some(client) = handshake::leave(&mut session) {
            let mut parcel = Parcel { inbound: vec![Inbound::Forgotten { client }], ..Parcel::default() };
            let _ = shared.intake.push(&mut parcel).await;
        }
        // Let the last bytes out, DISCONNECT among them, before the socket closes.
        let _ = tokio::time::timeout(FAREWELL, async {
            while self.connection.is_blocked() && self.connection.unblock().await.is_ok() {}
        })
        .await;
    }
}

/// Waits until the client has closed its side, without taking what it has sent.
async fn gone(reader: &mut OwnedReadHalf) {
    const LOOK_EVERY: Duration = Duration::from_millis(200);
    loop {
        match reader.peek(&mut [0]).await {
            Ok(0) | Err(_) => return,
            Ok(_) => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

/// Runs to the end, or to a panic, which is caught.
async fn unpanicked<F: Future>(future: F) -> Result<F::Output, ()> {
    let mut future = pin!(future);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(_) => Poll::Ready(Err(())),
    })
    .await
}
