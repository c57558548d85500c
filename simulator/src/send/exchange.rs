//! CoAP exchanges as a pure client sees them (RFC 7252, sections 4 and 5).
//!
//! Arrives: messages to post, datagrams from a server, the time. Leaves: datagrams to send, and what
//! each answer means for which message. Always holds: a confirmable message is retransmitted after
//! ACK_TIMEOUT (2 s, times 1 to 1.5), then after twice that, at most four times, and given up after
//! one more wait; a message counts as acknowledged only by a 2.04 response to its own token; a message
//! identifier is used once in the life of an endpoint. Deliberately absent: sockets, and block-wise
//! transfer (a reading fits a datagram).

use std::collections::HashMap;
use std::time::Duration;

use coap_lite::{CoapOption, ContentFormat, MessageClass, MessageType, Packet, RequestType, ResponseType};
use tokio::time::Instant;

use crate::message::Message;

const ACK_TIMEOUT: Duration = Duration::from_secs(2);
const RETRANSMIT_MAX: u32 = 4;
/// How long a server that has said "later" (an empty acknowledgement) is waited for.
const SEPARATE_RESPONSE_MAX: Duration = Duration::from_secs(60);
/// Fewer than 65,536: an endpoint that has used up its identifiers has to be replaced.
const EXCHANGES_PER_ENDPOINT: u32 = 60_000;
/// What 5.03 means without Max-Age would be 60 s; nobody waits that long for a simulator.
const UNAVAILABLE_PAUSE_S: u32 = 1;

/// What a datagram meant.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    Acked {
        message: Message,
        sent_at: Instant,
    },
    /// Any final answer that is not 2.04.
    Refused {
        message: Message,
        reason: String,
    },
    /// 5.03: to be tried again after this time.
    Unavailable {
        message: Message,
        pause: Duration,
    },
    Nothing,
}

#[derive(Debug)]
struct Exchange {
    message: Message,
    token: u64,
    datagram: Vec<u8>,
    sent_at: Instant,
    timeout: Duration,
    due: Instant,
    retransmit_count: u32,
    /// The server has the message and will answer separately: no more retransmissions.
    is_pending: bool,
}

/// The open exchanges of one endpoint (one local port).
#[derive(Debug)]
pub(crate) struct Exchanges {
    next_mid: u16,
    next_token: u64,
    started_count: u32,
    open: HashMap<u16, Exchange>,
}

impl Exchanges {
    /// A fresh endpoint; both start values should be random (RFC 7252, 4.4 and 5.3.1).
    pub(crate) fn new(first_mid: u16, first_token: u64) -> Self {
        Self { next_mid: first_mid, next_token: first_token, started_count: 0, open: HashMap::new() }
    }

    pub(crate) fn open_count(&self) -> usize {
        self.open.len()
    }

    /// Whether the endpoint has used up its message identifiers.
    pub(crate) fn is_worn(&self) -> bool {
        self.started_count >= EXCHANGES_PER_ENDPOINT
    }

    /// Opens an exchange and answers its datagram. `spread` is the random factor, 1 to 1.5.
    pub(crate) fn start(&mut self, message: Message, now: Instant, spread: f64) -> &[u8] {
        assert!(!self.is_worn(), "a worn endpoint is replaced before it repeats an identifier");
        assert!((1.0..=1.5).contains(&spread), "ACK_RANDOM_FACTOR is 1.5");
        let (mid, token) = (self.next_mid, self.next_token);
        self.next_mid = self.next_mid.wrapping_add(1);
        self.next_token = self.next_token.wrapping_add(1);
        self.started_count += 1;
        let timeout = ACK_TIMEOUT.mul_f64(spread);
        let exchange = Exchange {
            datagram: request(&message, mid, token),
            message,
            token,
            sent_at: now,
            timeout,
            due: now + timeout,
            retransmit_count: 0,
            is_pending: false,
        };
        &self.open.entry(mid).insert_entry(exchange).into_mut().datagram
    }

    /// Takes a datagram; the first part of the answer is a datagram to send back, if one is owed.
    pub(crate) fn receive(&mut self, datagram: &[u8], now: Instant) -> (Option<Vec<u8>>, Meaning) {
        let Ok(packet) = Packet::from_bytes(datagram) else { return (None, Meaning::Nothing) };
        let mid = packet.header.message_id;
        match (packet.header.get_type(), packet.header.code) {
            (MessageType::Acknowledgement, MessageClass::Empty) => {
                if let Some(exchange) = self.open.get_mut(&mid) {
                    exchange.is_pending = true;
                    exchange.due = now + SEPARATE_RESPONSE_MAX;
                }
                (None, Meaning::Nothing)
            }
            (MessageType::Acknowledgement, MessageClass::Response(response)) => {
                let is_ours = self.open.get(&mid).is_some_and(|open| packet.get_token() == open.token.to_be_bytes());
                (None, if is_ours { self.conclude(mid, response, &packet) } else { Meaning::Nothing })
            }
            (MessageType::Reset, _) => {
                let refused =
                    |exchange: Exchange| Meaning::Refused { message: exchange.message, reason: "RST".to_owned() };
                (None, self.open.remove(&mid).map_or(Meaning::Nothing, refused))
            }
            (kind, MessageClass::Response(response)) => {
                let reply = (kind == MessageType::Confirmable).then(|| empty(MessageType::Acknowledgement, mid));
                let asked = |(_, open): &(&u16, &Exchange)| packet.get_token() == open.token.to_be_bytes();
                match self.open.iter().find(asked).map(|(mid, _)| *mid) {
                    Some(mid) => (reply, self.conclude(mid, response, &packet)),
                    None => (reply, Meaning::Nothing),
                }
            }
            // A ping or a request: this endpoint serves nothing.
            (MessageType::Confirmable, _) => (Some(empty(MessageType::Reset, mid)), Meaning::Nothing),
            _ => (None, Meaning::Nothing),
        }
    }

    fn conclude(&mut self, mid: u16, response: ResponseType, packet: &Packet) -> Meaning {
        let Some(Exchange { message, sent_at, .. }) = self.open.remove(&mid) else { return Meaning::Nothing };
        match response {
            ResponseType::Changed => Meaning::Acked { message, sent_at },
            ResponseType::ServiceUnavailable => {
                let max_age = packet.get_first_option(CoapOption::MaxAge);
                let seconds = max_age
                    .map_or(UNAVAILABLE_PAUSE_S, |bytes| bytes.iter().fold(0, |age, byte| age << 8 | u32::from(*byte)));
                Meaning::Unavailable { message, pause: Duration::from_secs(seconds.max(1).into()) }
            }
            other => {
                let text = String::from_utf8_lossy(&packet.payload);
                Meaning::Refused { message, reason: format!("{other:?} {text}").trim_end().to_owned() }
            }
        }
    }

    /// When [`Self::overdue`] wants to be called next.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.open.values().map(|exchange| exchange.due).min()
    }

    /// Retransmits what is due; answers the messages that are given up.
    pub(crate) fn overdue(&mut self, now: Instant, mut resend: impl FnMut(&[u8])) -> Vec<Message> {
        for exchange in self.open.values_mut().filter(|exchange| exchange.due <= now) {
            if exchange.is_pending || exchange.retransmit_count == RETRANSMIT_MAX {
                continue;
            }
            exchange.retransmit_count += 1;
            exchange.timeout *= 2;
            exchange.due = now + exchange.timeout;
            resend(&exchange.datagram);
        }
        // Whatever is still due has had its last chance.
        self.open.extract_if(|_, exchange| exchange.due <= now).map(|(_, exchange)| exchange.message).collect()
    }
}

fn request(message: &Message, mid: u16, token: u64) -> Vec<u8> {
    let mut packet = Packet::new();
    packet.header.set_type(MessageType::Confirmable);
    packet.header.code = MessageClass::Request(RequestType::Post);
    packet.header.message_id = mid;
    packet.set_token(token.to_be_bytes().to_vec());
    for segment in message.topic.split('/') {
        packet.add_option(CoapOption::UriPath, segment.as_bytes().to_vec());
    }
    let format = if message.is_json { ContentFormat::ApplicationJSON } else { ContentFormat::TextPlain };
    packet.set_content_format(format);
    packet.payload = message.payload.to_vec();
    packet.to_bytes().expect("a reading is far below the size limit")
}

fn empty(kind: MessageType, mid: u16) -> Vec<u8> {
    let mut packet = Packet::new();
    packet.header.set_type(kind);
    packet.header.code = MessageClass::Empty;
    packet.header.message_id = mid;
    packet.to_bytes().expect("an empty message is four bytes")
}

#[cfg(test)]
mod tests;
