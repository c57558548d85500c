//! MQTT 3.1.1 and 5.0 on one port.
//!
//! Our own connections and sessions over rumqttd's codec (docs/decisions/0001). A few threads
//! serve many connections each; a thread reads sockets into parcels and, woken once for each
//! commit, sends all acknowledgements of that commit. Always holds: a connection is read only
//! while the journal takes its parcels; a panic ends one connection at most. The walk:
//! `accept` here, [`handshake`], then [`session`] for every frame.

/// The sending half of a connection.
pub mod connection;

/// From a socket to a client that is known.
mod handshake;

/// Frames and packets.
pub mod packet;

/// Properties of MQTT 5.0 packets.
mod properties;

/// Subscriptions, fan-out, retained messages.
pub mod router;

/// One thread and the connections it serves.
mod serve;

/// What a client's packets mean.
mod session;

use super::admit::Admission;
use super::auth::Auth;
use super::{Desk, lock};
use crate::journal::Intake;
use connection::Connection;
use packet::reason;
use router::{Publication, Router};
use smallvec::SmallVec;
use socket2::{Domain, Socket, Type};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;

/// What the kernel may hold of a connection's unread bytes: more would hide a flood there.
const RECEIVE_BUFFER_BYTES: usize = 128 << 10;
const BACKLOG: i32 = 1_024;
/// Connections beyond the limit that are told so; further ones are just closed.
const REFUSALS_AT_ONCE: usize = 64;

/// What is to be done for a connection once its parcel is on disk.
#[derive(Debug)]
pub struct Receipt {
    connection: Arc<Connection>,
    steps: SmallVec<[Step; 2]>,
}

#[derive(Debug)]
enum Step {
    /// Send an acknowledgement of this kind for this identifier.
    Acknowledge(u8, u16),
    /// Pass a message on to subscribers.
    Publish(Arc<Publication>),
}

impl Receipt {
    /// Takes the steps; connections that then have to be flushed are added to `touched`.
    pub fn settle(self, router: &Router, touched: &mut Vec<Arc<Connection>>) {
        let mut first = false;
        for step in self.steps {
            match step {
                Step::Acknowledge(kind, pkid) => first |= self.connection.acknowledge(kind, pkid),
                Step::Publish(publication) => router.publish(&publication, touched),
            }
        }
        if first {
            touched.push(self.connection);
        }
    }
}

/// Bounds from the configuration.
#[derive(Debug, Clone)]
pub struct Limits {
    /// `mqtt.max_connections`.
    pub connections: usize,
    /// `mqtt.max_packet`.
    pub packet_bytes: usize,
    /// `mqtt.assembly_memory`.
    pub assembly_bytes: usize,
    /// `mqtt.connect_timeout`.
    pub connect_timeout: Duration,
    /// `mqtt.subscriber_queue`.
    pub queue_bytes: usize,
    /// `mqtt.max_inflight`.
    pub inflight: usize,
    /// `mqtt.max_subscriptions`.
    pub subscriptions: usize,
}

/// What all connections share.
pub struct Shared {
    /// The door to the journal's rows.
    pub admission: Arc<Admission>,
    /// The queue before the journal.
    pub intake: Arc<Intake>,
    /// Subscriptions and retained messages.
    pub router: Arc<Router>,
    /// Who may come in.
    pub auth: Arc<Auth>,
    /// Clients without user name may come in.
    pub anonymous: bool,
    /// Bounds.
    pub limits: Limits,
    /// Connected clients and the QoS 2 identifiers of those that come back.
    pub clients: Clients,
    /// Open connections.
    pub open: AtomicUsize,
    /// Bytes of packets whose rest has not come yet.
    pub assembling: AtomicUsize,
    ids: AtomicU64,
}

impl Shared {
    /// Puts together what all connections share.
    pub fn new(
        admission: Arc<Admission>,
        intake: Arc<Intake>,
        router: Arc<Router>,
        auth: Arc<Auth>,
        anonymous: bool,
        limits: Limits,
        clients: Clients,
    ) -> Self {
        let (open, assembling, ids) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicU64::new(0));
        Shared { admission, intake, router, auth, anonymous, limits, clients, open, assembling, ids }
    }
}

type Identifiers = HashMap<u16, u64>;

/// Clients by id.
#[derive(Debug, Default)]
pub struct Clients {
    connected: Mutex<HashMap<Arc<str>, Arc<Connection>>>,
    inbound: Mutex<HashMap<Arc<str>, Identifiers>>,
}

impl Clients {
    /// Clients that are not connected but have QoS 2 identifiers in the store.
    pub fn restore(inbound: HashMap<Arc<str>, Identifiers>) -> Self {
        Clients { connected: Mutex::default(), inbound: Mutex::new(inbound) }
    }

    /// A client has connected; a connection it has already is closed (section 3.1.4).
    fn enter(&self, client: &Arc<str>, connection: &Arc<Connection>) {
        let old = lock(&self.connected).insert(Arc::clone(client), Arc::clone(connection));
        if let Some(old) = old {
            old.close(reason::TAKEN_OVER);
        }
    }

    fn leave(&self, client: &Arc<str>, connection: &Arc<Connection>) {
        let mut connected = lock(&self.connected);
        if connected.get(client).is_some_and(|current| current.id == connection.id) {
            connected.remove(client);
        }
    }

    fn take_inbound(&self, client: &str) -> Identifiers {
        lock(&self.inbound).remove(client).unwrap_or_default()
    }

    fn keep_inbound(&self, client: &Arc<str>, identifiers: Identifiers) {
        if !identifiers.is_empty() {
            lock(&self.inbound).insert(Arc::clone(client), identifiers);
        }
    }
}

/// The threads that serve connections and settle receipts of all protocols.
pub struct Threads {
    senders: Vec<UnboundedSender<TcpStream>>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Starts a thread for every desk. They stop reading at `stop`, and end at `finish` once
    /// what is on their desks is settled.
    pub fn start(
        shared: &Arc<Shared>,
        desks: &[Arc<Desk>],
        stop: &CancellationToken,
        finish: &CancellationToken,
    ) -> io::Result<Self> {
        let (mut senders, mut handles) = (Vec::new(), Vec::new());
        for (i, desk) in desks.iter().enumerate() {
            let (sender, sockets): (_, UnboundedReceiver<TcpStream>) = unbounded_channel();
            let thread = serve::Thread {
                shared: Arc::clone(shared),
                desk: Arc::clone(desk),
                desk_index: i,
                stop: stop.clone(),
                finish: finish.clone(),
            };
            let handle = std::thread::Builder::new().name(format!("listen-{i}")).spawn(move || thread.run(sockets))?;
            senders.push(sender);
            handles.push(handle);
        }
        Ok(Threads { senders, handles })
    }

    /// Waits until all have ended.
    pub fn join(self) {
        drop(self.senders);
        for handle in self.handles {
            if handle.join().is_err() {
                tracing::error!("a listening thread panicked");
            }
        }
    }

    /// Where to hand new sockets to.
    pub fn senders(&self) -> Vec<UnboundedSender<TcpStream>> {
        self.senders.clone()
    }
}

/// Binds the port, so that a problem with it is known at the start.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts connections and deals them out to the threads in turn, until `stop`.
pub async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    threads: Vec<UnboundedSender<TcpStream>>,
    stop: CancellationToken,
) {
    let mut turn = 0;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, _)) => {
                if shared.open.load(Ordering::Relaxed) >= shared.limits.connections + REFUSALS_AT_ONCE {
                    continue;
                }
                // Acknowledgements are small and wanted now.
                let _ = socket.set_nodelay(true);
                if threads[turn % threads.len()].send(socket).is_err() {
                    return;
                }
                turn += 1;
            }
            Err(e) => {
                // Out of file descriptors, most likely: connections that end will free some.
                tracing::warn!("a connection could not be accepted: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
