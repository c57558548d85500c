//! The CoAP driver: one task, one endpoint.
//!
//! Arrives: a source of messages and a server's address. Leaves: confirmable POST requests, and in the
//! book what was sent and acknowledged. Always holds: the book is settled before a datagram leaves;
//! messages that were given up or told to wait are tried again in a new exchange and keep counting as
//! in flight. An endpoint whose message identifiers are used up is replaced by one on a new port
//! (identifiers must not repeat within EXCHANGE_LIFETIME, 247 s). Deliberately absent: DTLS.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UdpSocket, lookup_host};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use super::exchange::{Exchanges, Meaning};
use super::{DRAIN_MAX, Gate, Next, SendError, Source};
use crate::book::{Book, Page};
use crate::message::Message;

/// The longest pause that a 5.03 is granted.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// An answer to a reading is a few dozen bytes; diagnostics may be longer.
const DATAGRAM_BYTES_MAX: usize = 2_048;

/// What all CoAP connections of a run have in common.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) address: String,
    pub(crate) inflight_max: u16,
}

/// One CoAP endpoint to be.
pub(crate) struct CoapLink {
    pub(crate) target: Arc<Target>,
    pub(crate) source: Box<dyn Source>,
}

struct Client {
    link: CoapLink,
    socket: UdpSocket,
    exchanges: Exchanges,
    page: Page,
    /// Messages to be tried again, and when.
    postponed: Vec<(Instant, Message)>,
    over: bool,
    stopped: bool,
    drain_until: Option<Instant>,
}

/// Carries all of a source's messages to the server.
pub(crate) async fn carry(
    link: CoapLink,
    place: usize,
    book: Book,
    mut gate: Gate,
    stop: CancellationToken,
) -> Result<(), SendError> {
    let socket = endpoint(&link.target).await?;
    gate.wait_for_start().await;
    let client = Client {
        link,
        socket,
        exchanges: fresh_exchanges(),
        page: Page::new(book, place),
        postponed: Vec::new(),
        over: false,
        stopped: false,
        drain_until: None,
    };
    client.converse(&stop).await
}

impl Client {
    async fn converse(mut self, stop: &CancellationToken) -> Result<(), SendError> {
        let mut datagram = [0; DATAGRAM_BYTES_MAX];
        loop {
            let now = Instant::now();
            if !self.stopped && stop.is_cancelled() {
                self.stopped = true;
                self.drain_until.get_or_insert(now + DRAIN_MAX);
                self.link.source.finish();
            }
            let source_wake = self.fill(now).await?;
            self.retransmit(now).await;
            if self.is_done(now) {
                return Ok(self.page.settle(now)?);
            }
            let retry = self.postponed.iter().map(|(due, _)| *due).min();
            let wakes = [source_wake, retry, self.exchanges.next_due(), self.drain_until];
            let wake = wakes.into_iter().flatten().min().unwrap_or(now + DRAIN_MAX);
            tokio::select! {
                biased;
                received = self.socket.recv(&mut datagram) => self.hear(received, &datagram).await?,
                () = time::sleep_until(wake) => {}
                () = stop.cancelled(), if !self.stopped => {}
            }
        }
    }

    fn in_flight_count(&self) -> usize {
        self.exchanges.open_count() + self.postponed.len()
    }

    /// Starts exchanges while there is room; answers when to look at the source again.
    async fn fill(&mut self, now: Instant) -> Result<Option<Instant>, SendError> {
        self.retry_postponed(now).await?;
        while !self.over && self.in_flight_count() < usize::from(self.link.target.inflight_max) {
            if !self.has_identifiers().await? {
                return Ok(None);
            }
            let mut message = match self.link.source.next(now) {
                Next::Message(message) => message,
                Next::NotBefore(wake) => return Ok(Some(wake)),
                Next::Over => {
                    self.over = true;
                    self.drain_until.get_or_insert(now + DRAIN_MAX);
                    break;
                }
            };
            self.page.sent(&mut message, true);
            self.start(message, now).await?;
        }
        Ok(None)
    }

    async fn retry_postponed(&mut self, now: Instant) -> Result<(), SendError> {
        while let Some(place) = self.postponed.iter().position(|(due, _)| *due <= now) {
            if !self.has_identifiers().await? {
                break;
            }
            let (_, message) = self.postponed.swap_remove(place);
            self.page.sent_again(&message.ids);
            self.start(message, now).await?;
        }
        Ok(())
    }

    /// Replaces a worn endpoint as soon as its last exchange is over.
    async fn has_identifiers(&mut self) -> Result<bool, SendError> {
        if self.exchanges.is_worn() && self.exchanges.open_count() == 0 {
            self.socket = endpoint(&self.link.target).await?;
            self.exchanges = fresh_exchanges();
        }
        Ok(!self.exchanges.is_worn())
    }

    async fn start(&mut self, message: Message, now: Instant) -> Result<(), SendError> {
        let twice = message.twice;
        if twice {
            self.page.sent_again(&message.ids);
        }
        self.page.settle(now)?;
        let datagram = self.exchanges.start(message, now, rand::random_range(1.0..1.5));
        post(&self.socket, datagram).await;
        if twice {
            // A stuttering radio repeats the datagram itself, message identifier and all.
            post(&self.socket, datagram).await;
        }
        Ok(())
    }

    async fn retransmit(&mut self, now: Instant) {
        let mut again = Vec::new();
        for mut message in self.exchanges.overdue(now, |datagram| again.push(datagram.to_vec())) {
            tracing::debug!(topic = message.topic, "no answer from the gateway, starting over");
            self.page.failed();
            message.twice = false;
            self.postponed.push((now, message));
        }
        for datagram in again {
            post(&self.socket, &datagram).await;
        }
    }

    async fn hear(&mut self, received: io::Result<usize>, datagram: &[u8]) -> Result<(), SendError> {
        let now = Instant::now();
        let length = match received {
            Ok(length) => length,
            // A port without a listener reports itself; retransmission is the answer to that too.
            Err(error) => {
                tracing::debug!(%error, "cannot receive");
                return Ok(());
            }
        };
        let (reply, meaning) = self.exchanges.receive(&datagram[..length], now);
        if let Some(reply) = reply {
            post(&self.socket, &reply).await;
        }
        match meaning {
            Meaning::Acked { message, sent_at } => self.page.acked(&message, now - sent_at),
            Meaning::Refused { message, reason } => {
                tracing::warn!(topic = message.topic, reason, "the gateway refused a message");
                self.page.failed();
            }
            Meaning::Unavailable { mut message, pause } => {
                message.twice = false;
                self.postponed.push((now + pause.min(PAUSE_MAX), message));
            }
            Meaning::Nothing => {}
        }
        Ok(self.page.settle(now)?)
    }

    fn is_done(&self, now: Instant) -> bool {
        let drained = self.over && self.in_flight_count() == 0;
        drained || self.drain_until.is_some_and(|until| now >= until)
    }
}

fn fresh_exchanges() -> Exchanges {
    Exchanges::new(rand::random(), rand::random())
}

/// A new local port that talks to the target alone.
async fn endpoint(target: &Target) -> Result<UdpSocket, SendError> {
    let failed = |source| SendError::Udp { address: target.address.clone(), source };
    let mut addresses = lookup_host(&target.address).await.map_err(failed)?;
    let none = || failed(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    let remote = addresses.next().ok_or_else(none)?;
    let local = if remote.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(local).await.map_err(failed)?;
    socket.connect(remote).await.map_err(failed)?;
    Ok(socket)
}

/// Hands a datagram to the network, which may lose it as it may any other.
async fn post(socket: &UdpSocket, datagram: &[u8]) {
    if let Err(error) = socket.send(datagram).await {
        tracing::debug!(%error, "datagram lost on this side");
    }
}
