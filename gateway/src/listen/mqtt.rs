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
pub(crate) mod connection;

/// What the fuzz target does.
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

/// From a socket to a client that is known.
mod handshake;

/// Frames and packets.
pub(crate) mod packet;

/// Properties of MQTT 5.0 packets.
mod properties;

/// Messages, and the last one of each topic.
pub(crate) mod retained;

/// Subscriptions and fan-out.
pub(crate) mod router;

/// One thread and the connections it serves.
mod serve;

/// What a client's packets mean.
mod session;

/// The reading half of a connection.
mod stream;

use super::Desk;
use super::admit::Admission;
use crate::journal::Intake;
use budget::{Budget, Waiting};
pub(crate) use clients::Clients;
use connection::{Connection, Showing};
use daemon::auth::Auth;
use daemon::seats::{Seat, Seats};
use daemon::sparse::Sparse;
use retained::{Publication, Retained};
use router::{Router, Subscription};
use rumqttd::protocol::{Packet, QoS, RetainForwardRule, SubAck, SubscribeReasonCode, UnsubAck, UnsubAckReason};
pub(crate) use serve::Thread;
use smallvec::SmallVec;
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{Sender, channel};
use tokio_util::sync::CancellationToken;

/// What the kernel may hold of a connection's unread bytes: more would hide a flood there.
const RECEIVE_BUFFER_BYTES: usize = 128 << 10;
const BACKLOG: i32 = 1_024;
/// Connections beyond the limit that are told so; further ones are just closed.
const REFUSALS_AT_ONCE: usize = 64;

/// What is to be done for a connection once its parcel is on disk.
#[derive(Debug)]
pub(crate) struct Receipt {
    connection: Arc<Connection>,
    steps: SmallVec<[Step; 2]>,
}

#[derive(Debug)]
enum Step {
    /// Send an acknowledgement of this kind for this identifier.
    Acknowledge(u8, u16),
    /// Acknowledge a QoS 1 message of which nothing was kept, with the reason (MQTT 5 only).
    Refuse(u16, u8),
    /// Pass a message on to subscribers.
    Publish(Arc<Publication>),
    /// Subscribe, and say so: what the client published before is not news to it.
    Subscribe(Box<Subscribing>),
    /// Unsubscribe, and say so.
    Unsubscribe(Box<Unsubscribing>),
}

/// A SUBSCRIBE on its way.
#[derive(Debug)]
struct Subscribing {
    pkid: u16,
    filters: Vec<Result<Wish, SubscribeReasonCode>>,
}

/// A filter of it that is taken.
#[derive(Debug)]
struct Wish {
    filter: String,
    subscription: Subscription,
    retained: RetainForwardRule,
}

/// An UNSUBSCRIBE on its way.
#[derive(Debug)]
struct Unsubscribing {
    pkid: u16,
    filters: Vec<String>,
}

impl Subscribing {
    /// Returns true if the connection has to be flushed.
    fn settle(self, connection: &Connection, router: &Router) -> bool {
        let Some(version) = connection.peer().map(|peer| peer.version) else { return false };
        let mut return_codes = Vec::with_capacity(self.filters.len());
        for wish in self.filters {
            let code = wish.map_or_else(
                |code| code,
                |wish| {
                    let Wish { filter, subscription, retained } = wish;
                    let (qos, id) = (subscription.qos, subscription.id);
                    let new = router.subscribe(&filter, subscription);
                    let wanted = match retained {
                        RetainForwardRule::OnEverySubscribe => true,
                        RetainForwardRule::OnNewSubscribe => new,
                        RetainForwardRule::Never => false,
                    };
                    if wanted {
                        connection.show(Showing { filter, qos, id, after: None });
                    }
                    SubscribeReasonCode::Success(if qos == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce })
                },
            );
            return_codes.push(code);
        }
        let answer = SubAck { pkid: self.pkid, return_codes };
        connection.append(&packet::encode(version, Packet::SubAck(answer, None)))
    }
}

impl Unsubscribing {
    /// Returns true if the connection has to be flushed.
    fn settle(self, connection: &Connection, router: &Router) -> bool {
        let Some(version) = connection.peer().map(|peer| peer.version) else { return false };
        let mut reasons = Vec::with_capacity(self.filters.len());
        for filter in &self.filters {
            connection.show_no_more(filter);
            let found = router.unsubscribe(filter, connection.id);
            reasons.push(if found { UnsubAckReason::Success } else { UnsubAckReason::NoSubscriptionExisted });
        }
        let answer = UnsubAck { pkid: self.pkid, reasons };
        connection.append(&packet::encode(version, Packet::UnsubAck(answer, None)))
    }
}

impl Receipt {
    /// Takes the steps; connections that then have to be flushed are added to `touched`.
    pub(crate) fn settle(self, router: &Router, touched: &mut Vec<Arc<Connection>>) {
        let mut first = false;
        for step in self.steps {
            match step {
                Step::Acknowledge(kind, pkid) => first |= self.connection.acknowledge(kind, pkid),
                Step::Refuse(pkid, code) => {
                    let [high, low] = pkid.to_be_bytes();
                    first |= self.connection.append(&[packet::kind::PUBACK << 4, 3, high, low, code]);
                }
                Step::Publish(publication) => router.publish(&publication, touched),
                // A connection that is over has given up its subscriptions already, and takes no new ones.
                Step::Subscribe(_) if self.connection.is_over() => {}
                Step::Subscribe(subscribing) => first |= subscribing.settle(&self.connection, router),
                Step::Unsubscribe(unsubscribing) => first |= unsubscribing.settle(&self.connection, router),
            }
        }
        if first {
            touched.push(self.connection);
        }
    }
}

/// Bounds from the configuration.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
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
    /// `mqtt.delivery_memory`.
    pub delivery_bytes: usize,
    /// `mqtt.max_inflight`.
    pub inflight: usize,
    /// `mqtt.receive_maximum`.
    pub receive_maximum: usize,
    /// `mqtt.max_subscriptions`.
    pub subscriptions: usize,
}

/// What all connections share.
pub(crate) struct Shared {
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
    /// For what each connection keeps of its client.
    session_memory: Arc<Budget>,
    /// For what waits for subscribers.
    delivery_memory: Arc<Waiting>,
    ids: AtomicU64,
}

impl Shared {
    /// Puts together what all connections share.
    #[expect(clippy::too_many_arguments, reason = "each is one thing that connections share")]
    pub(crate) fn new(
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
            delivery_memory: Waiting::new(limits.delivery_bytes),
            ids: AtomicU64::new(0),
            limits,
        }
    }
}

/// Threads that serve connections and settle receipts of all protocols, one for every desk.
/// They stop reading at `stop`, and end at `finish` once what is on their desks is settled.
pub(crate) fn threads(
    shared: &Arc<Shared>,
    desks: &[Arc<Desk>],
    stop: &CancellationToken,
    finish: &CancellationToken,
) -> (Vec<Thread>, Vec<Sender<Accepted>>) {
    let thread = |(desk_index, desk): (usize, &Arc<Desk>)| {
        let (sender, sockets) = channel(SOCKETS_MAX);
        let (shared, desk) = (Arc::clone(shared), Arc::clone(desk));
        (Thread { shared, desk, desk_index, sockets, stop: stop.clone(), finish: finish.clone() }, sender)
    };
    desks.iter().enumerate().map(thread).unzip()
}

/// Binds the port, so that a problem with it is known at the start.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Connections that wait for their thread, which takes them in turn with its others; while there are as many, none is
/// accepted.
const SOCKETS_MAX: usize = 256;

/// A connection and its seat.
pub(crate) struct Accepted {
    pub(super) socket: TcpStream,
    pub(super) seat: Seat,
}

/// Accepts connections and deals them out to the threads in turn, until `stop`.
pub(crate) async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    threads: Vec<Sender<Accepted>>,
    stop: CancellationToken,
) {
    static FULL: Sparse = Sparse::new();
    // Some more than are served, so that those beyond can be told so.
    let seats = Seats::new(shared.limits.connections + REFUSALS_AT_ONCE);
    let mut turn = 0;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, from)) => {
                let Some(seat) = seats.take(from.ip()) else {
                    if let Some(unsaid) = FULL.may_say() {
                        tracing::warn!(
                            %from, unsaid,
                            "a connection was refused: mqtt.max_connections, or half of what is free for one address"
                        );
                    }
                    continue;
                };
                // Acknowledgements are small and wanted now.
                let _ = socket.set_nodelay(true);
                let dealt = threads[turn % threads.len()].send(Accepted { socket, seat });
                if tokio::select! { () = stop.cancelled() => true, dealt = dealt => dealt.is_err() } {
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
