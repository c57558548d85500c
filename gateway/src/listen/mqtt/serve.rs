//! One thread and the connections it serves.
//!
//! Arrives: sockets, and the receipts of commits. Leaves: connections that read, and settled
//! receipts. Always holds: all connections of a thread share one read buffer, so an idle one
//! holds none; a connection that panics ends alone, and like any other leaves its will; a
//! panic elsewhere ends the thread, which is noticed.

use super::connection::{Connection, Wire};
use super::packet::reason;
use super::stream::Stream;
use super::{Accepted, Receipt, Shared};
use crate::journal::Parcel;
use crate::listen::admit::Routes;
use crate::listen::{self, Desk};
use daemon::seats::Seat;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::Notify;
use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

const READ_BYTES: usize = 64 << 10;
/// How long connections may take to send their last bytes at the end.
pub(super) const FAREWELL: Duration = Duration::from_millis(500);

/// A thread that serves connections.
pub(crate) struct Thread {
    pub(super) shared: Arc<Shared>,
    pub(super) desk: Arc<Desk>,
    pub(super) desk_index: usize,
    pub(super) sockets: Receiver<Accepted>,
    pub(super) stop: CancellationToken,
    pub(super) finish: CancellationToken,
}

/// What the tasks of one thread share.
pub(super) struct Local {
    pub(super) shared: Arc<Shared>,
    pub(super) desk_index: usize,
    pub(super) stop: CancellationToken,
    pub(super) scratch: RefCell<Scratch>,
    /// Seconds since the thread started, by the sweeper.
    pub(super) now_s: Cell<u32>,
    /// The journal's writer is to be woken.
    pub(super) nudge: Notify,
    connections: RefCell<HashMap<u64, Arc<Connection>>>,
}

/// Used by whichever connection is being read.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) read: Vec<u8>,
    pub(super) routes: Routes,
    pub(super) parcel: Parcel,
}

impl Thread {
    /// Serves until `finish`.
    pub(crate) fn run(self) -> io::Result<()> {
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
        runtime.block_on(self.serve())
    }

    async fn serve(mut self) -> io::Result<()> {
        let scratch = RefCell::new(Scratch { read: vec![0; READ_BYTES], ..Scratch::default() });
        let local = Rc::new(Local {
            shared: self.shared,
            desk_index: self.desk_index,
            stop: self.stop,
            scratch,
            connections: RefCell::default(),
            now_s: Cell::new(1),
            nudge: Notify::new(),
        });
        let mut settling = tokio::task::spawn_local(settle_receipts(Rc::clone(&local), Arc::clone(&self.desk)));
        let mut nudging = tokio::task::spawn_local(wake_writer(Rc::clone(&local)));
        let mut sweeping = tokio::task::spawn_local(sweep(Rc::clone(&local)));
        loop {
            tokio::select! {
                () = self.finish.cancelled() => break,
                Err(panic) = &mut settling => return Err(io::Error::other(panic)),
                Err(panic) = &mut nudging => return Err(io::Error::other(panic)),
                Err(panic) = &mut sweeping => return Err(io::Error::other(panic)),
                Some(Accepted { socket, seat }) = self.sockets.recv() => {
                    // The accepting side registered it with another runtime.
                    if let Ok(socket) = socket.into_std().and_then(TcpStream::from_std) {
                        let peer = socket.peer_addr().map_or_else(|_| "gone".to_owned(), |peer| peer.to_string());
                        let span = tracing::info_span!("mqtt", peer, client = tracing::field::Empty);
                        tokio::task::spawn_local(serve_connection(Rc::clone(&local), socket, seat).instrument(span));
                    }
                }
            }
        }
        settling.abort();
        sweeping.abort();
        nudging.abort();
        settle(&local.shared, self.desk.pile_now(), &mut Vec::new());
        let connections: Vec<_> = local.connections.borrow().values().cloned().collect();
        connections.iter().for_each(|connection| connection.close(reason::SHUTTING_DOWN));
        let _ = tokio::time::timeout(FAREWELL, async {
            while !local.connections.borrow().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        Ok(())
    }
}

/// Wakes the journal's writer once for all connections that were ready together: this task
/// stands behind theirs in the queue. One commit then holds what all of them brought.
async fn wake_writer(local: Rc<Local>) {
    loop {
        local.nudge.notified().await;
        local.shared.intake.wake();
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
pub(super) fn settle(
    shared: &Shared,
    receipts: impl IntoIterator<Item = listen::Receipt>,
    touched: &mut Vec<Arc<Connection>>,
) {
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

async fn serve_connection(local: Rc<Local>, socket: TcpStream, _seat: Seat) {
    let (reader, writer) = socket.into_split();
    let shared = &local.shared;
    let id = shared.ids.fetch_add(1, Ordering::Relaxed) + 1;
    let (metrics, clock) = (Arc::clone(&shared.admission.metrics), shared.admission.clock.clone());
    let connection = Arc::new(Connection::new(
        id,
        Wire::Tcp(writer),
        metrics,
        clock,
        shared.limits.queue_bytes,
        Arc::clone(&shared.delivery_memory),
    ));
    connection.heard_s.store(local.now_s.get(), Ordering::Relaxed);
    connection.patience_s.store(shared.limits.connect_timeout.as_secs().max(1) as u32, Ordering::Relaxed);
    let _counted = Counted::new(&local, &connection);
    let mut stream = Stream::new(Rc::clone(&local), connection, reader);
    match stream.first_packet().await {
        Ok(Some(session)) => stream.converse(session).await,
        Ok(None) => {}
        Err(violation) => tracing::debug!("refused: {violation}"),
    }
}
