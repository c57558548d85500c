//! Clients that send anything, without sockets: bytes to frames, frames to sessions, receipts to bytes.
//!
//! Always holds: however the bytes are cut, they come to the same; acknowledgements leave in the order of arrival, and
//! what leaves are whole packets; when all have gone, nothing is held for anybody.

use super::connection::{Connection, Wire};
use super::packet::{self, kind};
use super::retained::Retained;
use super::router::Router;
use super::serve::settle;
use super::session::{Flow, Session};
use super::stream::{CONNECT_BYTES_MAX, Partial};
use super::{Clients, Limits, Shared, handshake};
use crate::fuzz::{admission, choice, clock, metrics, zone};
use crate::journal::{Intake, Parcel};
use crate::listen::admit::Routes;
use daemon::auth::{Auth, Users};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

const CLIENTS: usize = 3;
const RETAINED: usize = 16;
/// Between bytes of different clients: a packet that no client may send, and then whose bytes follow. With the highest
/// bit set, the socket of that client is closed.
const TURN: [u8; 2] = [0xf0, 1];
const GONE: u8 = 0x80;

/// Bytes of a few clients. First byte: how they are cut.
pub fn mqtt(data: &[u8]) {
    let (seed, data) = choice(data);
    let (whole, cut) = (converse(data, None), converse(data, Some(seed)));
    if !whole.is_closed && !cut.is_closed {
        let same = |outcome: Outcome| (outcome.rows, outcome.rejects, outcome.acknowledged);
        assert_eq!(same(whole), same(cut));
    }
}

/// What a conversation came to.
#[derive(Debug, Default)]
struct Outcome {
    rows: usize,
    rejects: usize,
    acknowledged: [Vec<(u8, u16)>; CLIENTS],
    /// Messages passed on at QoS 0; how many are retained ones depends on when those are looked up.
    delivered: [usize; CLIENTS],
    /// A connection was ended by the gateway: what came behind it depends on when that was.
    is_closed: bool,
}

struct Broker {
    shared: Arc<Shared>,
    clients: [Option<Client>; CLIENTS],
    routes: Routes,
    connections: u64,
    outcome: Outcome,
}

struct Client {
    connection: Arc<Connection>,
    out: Arc<Mutex<Vec<u8>>>,
    partial: Partial,
    session: Option<Session>,
    expected: Vec<(u8, u16)>,
}

fn converse(data: &[u8], cut: Option<u8>) -> Outcome {
    let limits = Limits {
        connections: CLIENTS,
        packet_bytes: 1 << 20,
        assembly_bytes: 16 << 20,
        session_bytes: 64 << 10,
        connect_timeout: Duration::from_secs(10),
        queue_bytes: 64 << 10,
        delivery_bytes: 256 << 10,
        inflight: 4,
        receive_maximum: 8,
        subscriptions: 16,
    };
    let shared = Arc::new(Shared::new(
        admission(zone(false)),
        Arc::new(Intake::new(1 << 20)),
        Arc::new(Router::default()),
        Arc::new(Retained::new(RETAINED, 64 << 10, clock())),
        Arc::new(Auth::new(Users::default())),
        true,
        limits,
        Clients::restore(HashMap::new(), 2),
    ));
    let mut broker = Broker {
        shared,
        clients: Default::default(),
        routes: Routes::default(),
        connections: 0,
        outcome: Outcome::default(),
    };
    let (mut who, mut rest) = (0, data);
    loop {
        let turn = rest.windows(TURN.len() + 1).position(|bytes| bytes.starts_with(&TURN));
        let own = &rest[..turn.unwrap_or(rest.len())];
        match cut {
            None => drop(broker.bytes(who, own)),
            Some(seed) => drop(pieces(own, seed).all(|piece| broker.bytes(who, piece))),
        }
        let Some(at) = turn else { break };
        let next = rest[at + TURN.len()];
        who = usize::from(next & !GONE) % CLIENTS;
        if next & GONE != 0 {
            broker.end(who);
        }
        rest = &rest[at + TURN.len() + 1..];
    }
    broker.finish()
}

/// Bytes in pieces of different lengths, most of them short.
fn pieces(mut bytes: &[u8], seed: u8) -> impl Iterator<Item = &[u8]> {
    let mut state = u32::from(seed) | 1;
    std::iter::from_fn(move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let most = 1 << (state >> 28);
        let length = (1 + (state >> 8) as usize % most).min(bytes.len());
        let (piece, rest) = bytes.split_at(length);
        bytes = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

impl Broker {
    /// Takes bytes of a socket, as a stream does; false if it has been closed.
    fn bytes(&mut self, who: usize, bytes: &[u8]) -> bool {
        if bytes.is_empty() {
            return true;
        }
        let mut client = match self.clients[who].take() {
            Some(client) => client,
            None => self.connect(),
        };
        let mut parcel = Parcel::default();
        let goes_on = match client.partial.add(bytes) {
            Ok(false) => true,
            Ok(true) => {
                let known = client.session.is_some() || self.greet(&mut client, &mut parcel);
                if known && client.session.is_some() { self.take(&mut client, &mut parcel) } else { known }
            }
            Err(violation) => {
                client.connection.close(violation.code);
                false
            }
        };
        self.clients[who] = Some(client);
        self.commit(parcel);
        if !goes_on {
            self.end(who);
        }
        self.end_closed();
        self.show();
        self.clients[who].is_some()
    }

    fn connect(&mut self) -> Client {
        self.connections += 1;
        let (out, shared) = (Arc::new(Mutex::default()), &self.shared);
        let (queue_max, waiting) = (shared.limits.queue_bytes, Arc::clone(&shared.delivery_memory));
        let wire = Wire::Kept(Arc::clone(&out));
        let connection = Connection::new(self.connections, wire, metrics(), clock(), queue_max, waiting);
        let partial = Partial::new(shared.assembly_memory.charge());
        Client { connection: Arc::new(connection), out, partial, session: None, expected: Vec::new() }
    }

    /// Answers CONNECT, if it is there; false if the client does not come in.
    fn greet(&mut self, client: &mut Client, parcel: &mut Parcel) -> bool {
        let max = self.shared.limits.packet_bytes.min(CONNECT_BYTES_MAX);
        let bytes = client.partial.take();
        let Ok(frame) = packet::frame(&bytes, max) else { return false };
        let Some(frame) = frame else {
            return client.partial.set(&bytes).is_ok() && bytes.first().is_none_or(|b| b >> 4 == kind::CONNECT);
        };
        let (shared, connection) = (Arc::clone(&self.shared), Arc::clone(&client.connection));
        let from = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut greeting = pin!(handshake::greet(&frame, &shared, &connection, 0, from, parcel));
        let mut context = Context::from_waker(Waker::noop());
        let mut polled = greeting.as_mut().poll(&mut context);
        if polled.is_pending() {
            // A connection with the same identifier has to end first.
            self.end_closed();
            polled = greeting.as_mut().poll(&mut context);
        }
        match polled {
            Poll::Ready(Ok(session)) => {
                client.session = Some(session);
                client.partial.set(&bytes[frame.raw.len()..]).is_ok()
            }
            Poll::Ready(Err(_)) => false,
            Poll::Pending => panic!("a client waits for another that has gone"),
        }
    }

    /// Takes all whole packets; false if the connection is over.
    fn take(&mut self, client: &mut Client, parcel: &mut Parcel) -> bool {
        let Client { session: Some(session), partial, expected, .. } = client else { return true };
        let arrival = self.shared.admission.arrival();
        let bytes = partial.take();
        let mut rest = bytes.as_slice();
        let mut goes_on = true;
        while goes_on {
            let frame = match packet::frame(rest, self.shared.limits.packet_bytes) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(violation) => {
                    session.connection.close(violation.code);
                    goes_on = false;
                    break;
                }
            };
            match session.frame(&frame, arrival, &mut self.routes, parcel) {
                Ok(Flow::Continue) => {
                    expected.extend(answer(session, &frame));
                    rest = &rest[frame.raw.len()..];
                }
                Ok(Flow::Goodbye) => goes_on = false,
                Err(violation) => {
                    session.connection.close(violation.code);
                    goes_on = false;
                }
            }
        }
        let goes_on = partial.set(rest).is_ok() && goes_on;
        session.settle(parcel);
        goes_on
    }

    /// All is on disk: receipts are settled.
    fn commit(&mut self, mut parcel: Parcel) {
        self.outcome.rows += parcel.readings.len();
        self.outcome.rejects += parcel.rejects.len();
        self.shared.retained.fit(&mut parcel.retain);
        parcel.retain.iter().for_each(|publication| self.shared.retained.apply(publication));
        assert!(self.shared.retained.count() <= RETAINED);
        let receipts = parcel.receipts.into_iter().map(|(_, receipt)| receipt);
        settle(&self.shared, receipts, &mut Vec::new());
    }

    /// Retained messages go out, as much as clients have room for.
    fn show(&mut self) {
        for session in self.clients.iter_mut().flatten().filter_map(|client| client.session.as_mut()) {
            while session.show_retained() {}
        }
        self.end_closed();
    }

    fn end_closed(&mut self) {
        for who in 0..CLIENTS {
            if self.clients[who].as_ref().is_some_and(|client| client.connection.closing().is_some()) {
                self.end(who);
            }
        }
    }

    fn end(&mut self, who: usize) {
        let Some(mut client) = self.clients[who].take() else { return };
        if let Some(session) = &mut client.session {
            let mut parcel = Parcel::default();
            session.end(self.shared.admission.arrival(), &mut self.routes, &mut parcel);
            self.commit(parcel);
            handshake::leave(session);
        }
        let is_closed = client.connection.closing().is_some();
        self.outcome.is_closed |= is_closed;
        let (acknowledged, delivered) = sent(&client.out.lock().unwrap_or_else(PoisonError::into_inner));
        self.outcome.delivered[who] += delivered;
        assert!(client.expected.starts_with(&acknowledged), "{:?} {acknowledged:?}", client.expected);
        assert!(is_closed || client.expected == acknowledged, "{:?} {acknowledged:?}", client.expected);
        self.outcome.acknowledged[who].extend(acknowledged);
    }

    fn finish(mut self) -> Outcome {
        (0..CLIENTS).for_each(|who| self.end(who));
        let shared = &self.shared;
        assert_eq!(shared.router.subscription_count(), 0);
        let held = [shared.assembly_memory.used(), shared.session_memory.used(), shared.delivery_memory.bytes()];
        assert_eq!(held, [0; 3]);
        self.outcome
    }
}

/// What answers a frame that has been taken.
fn answer(session: &Session, frame: &packet::Frame<'_>) -> Option<(u8, u16)> {
    match frame.kind {
        kind::PUBLISH => {
            let publish = packet::publish(session.version, frame).ok()?;
            match publish.qos {
                0 => None,
                1 => Some((kind::PUBACK, publish.pkid)),
                _ => Some((kind::PUBREC, publish.pkid)),
            }
        }
        kind::PUBREL => Some((kind::PUBCOMP, packet::acknowledgement(session.version, frame).ok()?.0)),
        _ => None,
    }
}

/// The acknowledgements among whole packets, and how many messages at QoS 0.
fn sent(mut out: &[u8]) -> (Vec<(u8, u16)>, usize) {
    let (mut all, mut delivered) = (Vec::new(), 0);
    while !out.is_empty() {
        let frame = packet::frame(out, usize::MAX).expect("a packet").expect("a whole packet");
        if matches!(frame.kind, kind::PUBACK | kind::PUBREC | kind::PUBCOMP) {
            all.push((frame.kind, u16::from_be_bytes([frame.body[0], frame.body[1]])));
        }
        delivered += usize::from(frame.kind == kind::PUBLISH && frame.flags & 6 == 0);
        out = &out[frame.raw.len()..];
    }
    (all, delivered)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client need not wait for SUBACK before it publishes.
    #[test]
    fn what_follows_its_own_subscription_in_one_segment_comes_back_to_a_client() {
        let connect = b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01c";
        let (subscribe, publish) = (b"\x82\x06\x00\x01\x00\x01x\x00", b"\x30\x04\x00\x01xy");
        let bytes = [&connect[..], subscribe, publish].concat();
        for cut in [None, Some(1), Some(7)] {
            assert_eq!(converse(&bytes, cut).delivered, [1, 0, 0], "{cut:?}");
        }
    }
}
