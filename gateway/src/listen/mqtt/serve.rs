//! One thread and the connections it serves.
//!
//! Arrives: sockets, and the receipts of commits. Leaves: parcels. Always holds: a socket is
//! read only while its last parcel has been taken and its client reads what it has coming;
//! all connections of a thread share one read buffer, so an idle one holds none; a connection
//! that ends takes its subscriptions with it and leaves its will.

use super::connection::{Connection, Wire};
use super::packet::{self, Violation, reason};
use super::session::{Flow, Session};
use super::{Receipt, Shared, handshake};
use crate::journal::Parcel;
use crate::listen::admit::Routes;
use crate::listen::{self, Desk};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;

const READ_BYTES: usize = 64 << 10;
/// How long connections may take to send their last bytes at the end.
const FAREWELL: Duration = Duration::from_millis(500);

/// A thread that serves connections.
pub(super) struct Thread {
    pub(super) shared: Arc<Shared>,
    pub(super) desk: Arc<Desk>,
    pub(super) desk_index: usize,
    pub(super) stop: CancellationToken,
    pub(super) finish: CancellationToken,
}

/// What the tasks of one thread share.
struct Local {
    shared: Arc<Shared>,
    desk_index: usize,
    stop: CancellationToken,
    scratch: RefCell<Scratch>,
    connections: RefCell<HashMap<u64, Arc<Connection>>>,
    now_s: Cell<u32>,
}

#[derive(Default)]
struct Scratch {
    read: Vec<u8>,
    routes: Routes,
    parcel: Parcel,
}

impl Thread {
    pub(super) fn run(self, sockets: UnboundedReceiver<TcpStream>) {
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        match runtime {
            Ok(runtime) => runtime.block_on(self.serve(sockets)),
            Err(e) => tracing::error!("a listening thread could not start: {e}"),
        }
    }

    async fn serve(self, mut sockets: UnboundedReceiver<TcpStream>) {
        let scratch = RefCell::new(Scratch { read: vec![0; READ_BYTES], ..Scratch::default() });
        let local = Rc::new(Local {
            shared: self.shared,
            desk_index: self.desk_index,
            stop: self.stop,
            scratch,
            connections: RefCell::default(),
            now_s: Cell::new(1),
        });
        let settling = tokio::task::spawn_local(settle_receipts(Rc::clone(&local), Arc::clone(&self.desk)));
        let sweeping = tokio::task::spawn_local(sweep(Rc::clone(&local)));
        loop {
            tokio::select! {
                () = self.finish.cancelled() => break,
                Some(socket) = sockets.recv() => {
                    // The accepting side registered it with another runtime.
                    if let Ok(socket) = socket.into_std().and_then(TcpStream::from_std) {
                        tokio::task::spawn_local(serve_connection(Rc::clone(&local), socket));
                    }
                }
            }
        }
        settling.abort();
        sweeping.abort();
        let mut touched = Vec::new();
        settle(&local.shared, self.desk.pile_now(), &mut touched);
        let connections: Vec<_> = local.connections.borrow().values().cloned().collect();
        connections.iter().for_each(|connection| connection.close(reason::SHUTTING_DOWN));
        let _ = tokio::time::timeout(FAREWELL, async {
            while !local.connections.borrow().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

async fn settle_receipts(local: Rc<Local>, desk: Arc<Desk>) {
    let mut touched = Vec::new();
    loop {
        let mut pile = desk.take().await;
        settle(&local.shared, pile.drain(..), &mut touched);
        desk.give_back(pile);
    }
}

/// Takes all steps first and then flushes each connection once.
fn settle(shared: &Shared, receipts: impl IntoIterator<Item = listen::Receipt>, touched: &mut Vec<Arc<Connection>>) {
    for receipt in receipts {
        match receipt {
            listen::Receipt::Mqtt(receipt) => Receipt::settle(receipt, &shared.router, touched),
            listen::Receipt::Call(call) => call(),
        }
    }
    touched.drain(..).for_each(|connection| connection.flush());
}

/// Once a second, ends connections that have been silent for too long.
async fn sweep(local: Rc<Local>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        let now_s = local.now_s.get() + 1;
        local.now_s.set(now_s);
        for connection in local.connections.borrow().values() {
            let patience_s = connection.patience_s.load(Ordering::Relaxed);
            let silent_s = now_s.saturating_sub(connection.heard_s.load(Ordering::Relaxed));
            if connection.paused.load(Ordering::Relaxed) {
                connection.heard_s.store(now_s, Ordering::Relaxed);
            } else if patience_s > 0 && silent_s > patience_s {
                connection.close(reason::KEEP_ALIVE);
            }
        }
    }
}

/// Counts a connection for as long as it lives, whatever ends it.
struct Counted {
    local: Rc<Local>,
    connection: Arc<Connection>,
}

impl Counted {
    fn new(local: &Rc<Local>, connection: &Arc<Connection>) -> Self {
        local.shared.open.fetch_add(1, Ordering::Relaxed);
        local.shared.admission.metrics.connections.inc();
        local.connections.borrow_mut().insert(connection.id, Arc::clone(connection));
        Counted { local: Rc::clone(local), connection: Arc::clone(connection) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.local.shared.open.fetch_sub(1, Ordering::Relaxed);
        self.local.shared.admission.metrics.connections.dec();
        self.local.connections.borrow_mut().remove(&self.connection.id);
    }
}

async fn serve_connection(local: Rc<Local>, socket: TcpStream) {
    let (reader, writer) = socket.into_split();
    let shared = &local.shared;
    let id = shared.ids.fetch_add(1, Ordering::Relaxed) + 1;
    let metrics = Arc::clone(&shared.admission.metrics);
    let connection = Arc::new(Connection::new(id, Wire::Tcp(writer), metrics, shared.limits.queue_bytes));
    connection.heard_s.store(local.now_s.get(), Ordering::Relaxed);
    connection.patience_s.store(shared.limits.connect_timeout.as_secs().max(1) as u32, Ordering::Relaxed);
    let _counted = Counted::new(&local, &connection);
    let mut stream = Stream { local: Rc::clone(&local), connection, reader, partial: Partial::new(shared) };
    let mut parcel = Parcel::default();
    match stream.first_packet(&mut parcel).await {
        Ok(Some(session)) => stream.converse(session, parcel).await,
        Ok(None) => {}
        Err(violation) => tracing::debug!(connection = id, "refused: {violation}"),
    }
}

/// The reading half of a connection.
struct Stream {
    local: Rc<Local>,
    connection: Arc<Connection>,
    reader: OwnedReadHalf,
    /// The beginning of a packet whose rest has not come yet.
    partial: Partial,
}

/// Bytes that wait for the rest of their packet, counted for as long as they are kept.
struct Partial {
    bytes: Vec<u8>,
    shared: Arc<Shared>,
}

/// What every connection may keep, however many there are.
const PARTIAL_FREE_BYTES: usize = READ_BYTES;

impl Partial {
    fn new(shared: &Arc<Shared>) -> Self {
        Partial { bytes: Vec::new(), shared: Arc::clone(shared) }
    }

    /// Keeps these bytes instead of those before; an error if all connections keep too much.
    fn set(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        if self.bytes.is_empty() && bytes.is_empty() {
            return Ok(());
        }
        let total = &self.shared.assembling;
        total.fetch_sub(self.bytes.len(), Ordering::Relaxed);
        let now = total.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
        self.bytes = bytes.to_vec();
        if now > self.shared.limits.assembly_bytes && bytes.len() > PARTIAL_FREE_BYTES {
            return Err(Violation { code: reason::QUOTA, what: "mqtt.assembly_memory reached" });
        }
        Ok(())
    }

    fn take(&mut self) -> Vec<u8> {
        self.shared.assembling.fetch_sub(self.bytes.len(), Ordering::Relaxed);
        std::mem::take(&mut self.bytes)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        self.take();
    }
}

/// What one pass over the socket came to.
enum Pass {
    /// All taken.
    Taken,
    /// The journal is full; this waits.
    Full(Parcel),
    /// The connection is over.
    End,
    /// The client sent what it must not.
    Broken(Violation),
}

impl Stream {
    /// Reads until CONNECT is complete and answers it; what follows it stays in `partial`.
    async fn first_packet(&mut self, parcel: &mut Parcel) -> Result<Option<Session>, Violation> {
        let max = self.local.shared.limits.packet_bytes;
        loop {
            if let Some(frame) = packet::frame(&self.partial.bytes, max)? {
                let length = frame.raw.len();
                let greeting =
                    handshake::greet(&frame, &self.local.shared, &self.connection, self.local.desk_index, parcel);
                let session = greeting.await?;
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
                Ok(bytes) if bytes.is_empty() => return Ok(None),
                Ok(bytes) => self.partial.set(&bytes)?,
                Err(_) => return Ok(None),
            }
        }
    }

    /// Reads on; all bytes so far, or none at the end.
    fn poll_read_partial(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Vec<u8>>> {
        let mut scratch = self.local.scratch.borrow_mut();
        let mut buffer = ReadBuf::new(&mut scratch.read);
        ready!(Pin::new(&mut self.reader).poll_read(cx, &mut buffer))?;
        if buffer.filled().is_empty() {
            return Poll::Ready(Ok(Vec::new()));
        }
        Poll::Ready(Ok([&self.partial.bytes, buffer.filled()].concat()))
    }

    async fn converse(mut self, mut session: Session, first: Parcel) {
        let local = Rc::clone(&self.local);
        let connection = Arc::clone(&self.connection);
        if !first.is_empty() && local.shared.intake.push(first).await.is_err() {
            return;
        }
        let mut pass = self.rest(&mut session);
        let woken = connection.woken();
        tokio::pin!(woken);
        loop {
            match pass {
                Pass::Taken => {}
                Pass::Full(parcel) => {
                    connection.paused.store(true, Ordering::Relaxed);
                    let taken = local.shared.intake.push(parcel).await;
                    connection.paused.store(false, Ordering::Relaxed);
                    if taken.is_err() {
                        break;
                    }
                }
                Pass::End => break,
                Pass::Broken(violation) => {
                    tracing::debug!(client = &*session.client, "disconnected: {violation}");
                    connection.close(violation.code);
                    break;
                }
            }
            if connection.closing().is_some() {
                break;
            }
            let may_read = !connection.is_backed_up() && !local.stop.is_cancelled();
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
                pass = poll_fn(|cx| self.poll_pass(cx, &mut session)), if may_read => pass,
                () = local.stop.cancelled(), if may_read => Pass::Taken,
            };
        }
        self.farewell(session).await;
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
            Poll::Ready(self.take(buffer.filled(), session, routes, parcel))
        } else {
            let mut partial = self.partial.take();
            partial.extend_from_slice(buffer.filled());
            Poll::Ready(self.take(&partial, session, routes, parcel))
        }
    }

    /// Takes what came behind CONNECT in the same bytes.
    fn rest(&mut self, session: &mut Session) -> Pass {
        let local = Rc::clone(&self.local);
        let mut scratch = local.scratch.borrow_mut();
        let partial = self.partial.take();
        let Scratch { routes, parcel, .. } = &mut *scratch;
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
        match (shared.intake.try_push(parcel), outcome) {
            (Ok(true), outcome) => outcome,
            (Ok(false), Pass::Taken) => Pass::Full(std::mem::take(parcel)),
            // What came before the end is stored, and so is what came before the violation.
            (Ok(false), outcome) => {
                let (intake, late) = (Arc::clone(&shared.intake), std::mem::take(parcel));
                tokio::task::spawn_local(async move { intake.push(late).await });
                outcome
            }
            (Err(_), _) => {
                *parcel = Parcel::default();
                Pass::End
            }
        }
    }

    async fn farewell(self, mut session: Session) {
        let shared = Arc::clone(&self.local.shared);
        shared.clients.leave(&session.client, &self.connection);
        if session.persistent {
            shared.clients.keep_inbound(&session.client, std::mem::take(&mut session.inbound));
        }
        let mut parcel = Parcel::default();
        {
            let mut scratch = self.local.scratch.borrow_mut();
            session.end(shared.admission.arrival(), &mut scratch.routes, &mut parcel);
        }
        if !parcel.is_empty() {
            // A gateway that is stopping publishes no wills.
            let _ = shared.intake.push(parcel).await;
        }
        // Let the last bytes out, DISCONNECT among them, before the socket closes.
        let _ = tokio::time::timeout(FAREWELL, async {
            while self.connection.is_blocked() && self.connection.unblock().await.is_ok() {}
        })
        .await;
    }
}
