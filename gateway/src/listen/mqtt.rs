//! MQTT 3.1.1 and 5.0 on one port.
//!
//! Our own connections and sessions over rumqttd's codec (docs/decisions/0001). A few threads
//! serve many connections each; a thread reads sockets into parcels and, woken once for each
//! commit, sends all acknowledgements of that commit. Always holds: a connection is read only
//! while the journal takes its parcels; a panic ends one connection at most. The walk:
//! `accept` here, [`handshake`], then [`session`] for every frame.

/// Memory that all connections share.
mod budget;

/// Who is connected, and who comes back.
mod clients;

/// The sending half of a connection.
pub mod connection;

/// From a socket to a client that is known.
mod handshake;

/// Frames and packets.
pub mod packet;

/// Properties of MQTT 5.0 packets.
mod properties;

/// Messages, and the last one of each topic.
pub mod retained;

/// Subscriptions and fan-out.
pub mod router;

/// One thread and the connections it serves.
mod serve;

/// What a client's packets mean.
mod session;

/// The reading half of a connection.
mod stream;

use super::Desk;
use super::admit::Admission;
use crate::journal::Intake;
use budget::Budget;
pub use clients::Clients;
use connection::Connection;
use daemon::auth::Auth;
use retained::{Publication, Retained};
use router::Router;
pub use serve::Thread;
use smallvec::SmallVec;
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
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
    /// `mqtt.session_memory`.
    pub session_bytes: usize,
    /// `mqtt.connect_timeout`.
    pub connect_timeout: Duration,
    /// `mqtt.subscriber_queue`.
    pub queue_bytes: usize,
    /// `mqtt.max_inflight`.
    pub inflight: usize,
    /// `mqtt.receive_maximum`.
    pub receive_maximum: usize,
    /// `mqtt.max_subscriptions`.
    pub subscriptions: usize,
}

/// What all connections share.
pub struct Shared {
    /// The door to the journal's rows.
    pub admission: Arc<Admission>,
    /// The queue before the journal.
    pub intake: Arc<Intake>,
    /// Subscriptions.
    pub router: Arc<Router>,
    /// Retained messages.
    pub retained: Arc<Retained>,
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
    /// For packets whose rest has not come yet.
    assembly_memory: Arc<Budget>,
    /// For wills, topic aliases and QoS 2 identifiers.
    session_memory: Arc<Budget>,
    ids: AtomicU64,
}

impl Shared {
    /// Puts together what all connections share.
    #[expect(clippy::too_many_arguments, reason = "each is one thing that connections share")]
    pub fn new(
        admission: Arc<Admission>,
        intake: Arc<Intake>,
        router: Arc<Router>,
        retained: Arc<Retained>,
        auth: Arc<Auth>,
        anonymous: bool,
        limits: Limits,
        clients: Clients,
    ) -> Self {
        Shared {
            admission,
            intake,
            router,
            retained,
            auth,
            anonymous,
            clients,
            open: AtomicUsize::new(0),
            assembly_memory: Budget::new(limits.assembly_bytes, "mqtt.assembly_memory reached"),
            session_memory: Budget::new(limits.session_bytes, "mqtt.session_memory reached"),
            ids: AtomicU64::new(0),
            limits,
        }
    }
}

/// Threads that serve connections and settle receipts of all protocols, one for every desk.
/// They stop reading at `stop`, and end at `finish` once what is on their desks is settled.
pub fn threads(
    shared: &Arc<Shared>,
    desks: &[Arc<Desk>],
    stop: &CancellationToken,
    finish: &CancellationToken,
) -> (Vec<Thread>, Vec<UnboundedSender<TcpStream>>) {
    let thread = |(desk_index, desk): (usize, &Arc<Desk>)| {
        let (sender, sockets) = unbounded_channel();
        let (shared, desk) = (Arc::clone(shared), Arc::clone(desk));
        (Thread { shared, desk, desk_index, sockets, stop: stop.clone(), finish: finish.clone() }, sender)
    };
    desks.iter().enumerate().map(thread).unzip()
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
