//! CoAP over UDP (RFC 7252, 7641, 7959).
//!
//! Arrives: datagrams. Leaves: parcels for the journal; answers, those to stored readings
//! piggybacked after the commit; notifications to observers. Always holds: a repetition is
//! answered as the first was and stored once; a full journal means that the socket is not read
//! (a confirmable request is then repeated by its sender); all tables are bounded.
//! Deliberately absent: DTLS, and who may speak for which device.

/// Bodies in blocks.
mod block;
/// Messages seen before.
mod exchange;
/// What the fuzz target does.
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
/// Who watches which latest value.
mod observe;
/// Who has shown that it receives what it asks for.
mod reach;
/// What a request asks for.
mod resource;

use crate::catalog::Latest;
use crate::clock::Quality;
use crate::config;
use crate::decode::Target;
use crate::http::Site;
use crate::journal::{DISK_FULL, Parcel};
use crate::listen::admit::{Admitted, Origin};
use crate::listen::{Receipt, lock};
use crate::live::{Event, Listener, Live};
use crate::metrics::Protocol;
use block::{Assembly, Block, Taken};
use coap_lite::{CoapOption, MessageClass, MessageType, Packet, ResponseType};
use daemon::seats::address_name;
use exchange::{Exchanges, Seen};
use futures_util::FutureExt;
use model::{Value, time};
use observe::{Notification, Observers};
use reach::Reach;
use resource::{Ask, Refusal, format};
use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

const DATAGRAM_BYTES: usize = 64 << 10;
/// Representations beyond this go out in blocks of it.
const BLOCK: Block = Block { number: 0, more: false, szx: 6 };
/// Representations of at most so many bytes are not cut for anybody.
const SMALL: usize = 64;
/// How long an answer may be kept by others (section 5.10.5); values change when they like.
const MAX_AGE_S: u8 = 60;

/// Where datagrams come from and go to.
enum Datagrams {
    /// A UDP socket.
    Udp(UdpSocket),
    /// Memory: the fuzz target needs no sockets.
    #[cfg(any(test, fuzzing))]
    Kept(Mutex<Vec<(SocketAddr, Vec<u8>)>>),
}

impl Datagrams {
    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        match self {
            Datagrams::Udp(socket) => socket.recv_from(buffer).await,
            #[cfg(any(test, fuzzing))]
            Datagrams::Kept(_) => std::future::pending().await,
        }
    }

    fn try_send_to(&self, packet: &[u8], to: SocketAddr) -> io::Result<usize> {
        match self {
            Datagrams::Udp(socket) => socket.try_send_to(packet, to),
            #[cfg(any(test, fuzzing))]
            Datagrams::Kept(kept) => {
                lock(kept).push((to, packet.to_vec()));
                Ok(packet.len())
            }
        }
    }
}

/// The socket and what answers need after a commit, on other threads.
struct Wire {
    socket: Datagrams,
    exchanges: Mutex<Exchanges>,
    message_id: AtomicU16,
}

/// The CoAP server.
pub(crate) struct Endpoint {
    wire: Arc<Wire>,
    site: Arc<Site>,
    live: Arc<Live>,
    assembly: Assembly,
    observers: Observers,
    reach: Reach,
    events: Option<Listener>,
    listing: Option<Listing>,
    body_max: usize,
}

/// The links as they were told last: the blocks of one listing are parts of the same text.
struct Listing {
    query: Vec<String>,
    made: Instant,
    links: String,
}

/// How long a listing is told on.
const LISTING_LIFE: Duration = Duration::from_secs(10);

/// A request on its way to its answer.
#[derive(Clone)]
struct Request {
    from: SocketAddr,
    kind: MessageType,
    message_id: u16,
    token: Vec<u8>,
    fingerprint: u64,
    block1: Option<Block>,
    bytes: usize,
}

/// An answer without its envelope.
struct Answer {
    code: ResponseType,
    options: Vec<(CoapOption, Vec<u8>)>,
    payload: Vec<u8>,
}

impl Answer {
    fn new(code: ResponseType) -> Self {
        Answer { code, options: Vec::new(), payload: Vec::new() }
    }

    fn refuse((code, detail): Refusal) -> Self {
        Answer { code, options: Vec::new(), payload: detail.into_bytes() }
    }

    fn content(content_format: u16, payload: Vec<u8>) -> Self {
        let options =
            vec![(CoapOption::ContentFormat, uint(content_format.into())), (CoapOption::MaxAge, vec![MAX_AGE_S])];
        Answer { code: ResponseType::Content, options, payload }
    }
}

/// What others must not guess.
fn secret() -> u64 {
    let mut bytes = [0_u8; 8];
    let _ = getrandom::fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// A whole number in as few bytes as it needs (section 3.2).
fn uint(n: u32) -> Vec<u8> {
    let bytes = n.to_be_bytes();
    bytes[bytes.iter().take_while(|&&byte| byte == 0).count()..].to_vec()
}

/// The whole number in at most `most` bytes.
fn read_uint(bytes: &[u8], most: usize) -> Option<u32> {
    (bytes.len() <= most).then(|| bytes.iter().fold(0, |n, &byte| n << 8 | u32::from(byte)))
}

impl Endpoint {
    /// An endpoint on a bound socket.
    pub(crate) fn new(socket: UdpSocket, config: &config::Coap, site: &Arc<Site>, live: Arc<Live>) -> Self {
        Endpoint::over(Datagrams::Udp(socket), config, site, live)
    }

    fn over(socket: Datagrams, config: &config::Coap, site: &Arc<Site>, live: Arc<Live>) -> Self {
        let mut first = [0_u8; 2];
        let _ = getrandom::fill(&mut first);
        Endpoint {
            wire: Arc::new(Wire {
                socket,
                exchanges: Mutex::new(Exchanges::new(config.max_exchanges)),
                message_id: AtomicU16::new(u16::from_le_bytes(first)),
            }),
            site: Arc::clone(site),
            live,
            assembly: Assembly::new(config.assembly_memory.bytes(), config.max_body.bytes()),
            // The clock's low bits: a start after this one goes on above it (RFC 7641, section 4.4).
            reach: Reach::new(secret(), Instant::now()),
            observers: Observers::new(config.max_observers, (site.engine.now_us() >> 17) as u32 & 0xff_ffff),
            events: None,
            listing: None,
            body_max: config.max_body.bytes(),
        }
    }

    /// Serves until `stop`.
    pub(crate) async fn serve(mut self, stop: CancellationToken) {
        let mut buffer = vec![0; DATAGRAM_BYTES];
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        let wire = Arc::clone(&self.wire);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                received = wire.socket.recv_from(&mut buffer) => match received {
                    Ok((length, from)) => {
                        // A panic ends what one datagram asked for, and nothing else.
                        let served = AssertUnwindSafe(self.datagram(&buffer[..length], from)).catch_unwind().await;
                        if served.is_err() {
                            tracing::error!(%from, "a datagram ended in a panic");
                        }
                    }
                    // An earlier answer met a closed port; the next datagram is another's.
                    Err(_) => continue,
                },
                event = next_event(&mut self.events) => self.event(event),
                _ = ticks.tick() => {
                    for (to, packet) in self.observers.retransmit(Instant::now()) {
                        self.wire.send(&packet, to);
                    }
                }
            }
        }
    }

    async fn datagram(&mut self, bytes: &[u8], from: SocketAddr) {
        let Ok(packet) = read(bytes) else {
            self.reject_malformed(bytes, from);
            return;
        };
        let message_id = packet.header.message_id;
        match (packet.header.get_type(), packet.header.code) {
            (MessageType::Reset, _) => self.observers.reset(from, message_id),
            (MessageType::Acknowledgement, _) => {
                let now = Instant::now();
                if let Some(notification) = self.observers.acknowledged(from, message_id, now) {
                    self.send_notification(&notification, now);
                }
            }
            // Also a method that is not known yet is a request (section 5.8): it gets 4.05.
            (_, MessageClass::Request(_) | MessageClass::Reserved(0x01..=0x1f)) => {
                self.request(packet, bytes, from).await;
            }
            // A ping, or something that only a client gets (section 4.2 and 4.3).
            (MessageType::Confirmable, _) => self.wire.reset(message_id, from),
            (MessageType::NonConfirmable, _) => {}
        }
    }

    fn reject_malformed(&self, bytes: &[u8], from: SocketAddr) {
        if let [first, _, high, low, ..] = bytes
            && first >> 6 == 1
            && (first >> 4) & 3 == 0
        {
            self.wire.reset(u16::from_be_bytes([*high, *low]), from);
        }
    }

    async fn request(&mut self, packet: Packet, bytes: &[u8], from: SocketAddr) {
        let request = Request {
            from,
            kind: packet.header.get_type(),
            message_id: packet.header.message_id,
            token: packet.get_token().to_vec(),
            fingerprint: xxh3_64(bytes),
            block1: None,
            bytes: bytes.len(),
        };
        if let Some(value) = packet.get_first_option(CoapOption::Unknown(reach::ECHO)) {
            self.reach.note(from, value, Instant::now());
        }
        let key = (from, request.message_id);
        let seen = lock(&self.wire.exchanges).see(key, request.fingerprint, Instant::now());
        match seen {
            Seen::New => {}
            Seen::Pending => return,
            Seen::Answered(answer) => return self.wire.send(&answer, from),
        }
        self.site.metrics.messages(Protocol::Coap).inc();
        if let Err(refusal) = self.answer(&packet, request.clone()).await {
            self.wire.answer(&request, Answer::refuse(refusal));
        }
    }

    async fn answer(&mut self, packet: &Packet, mut request: Request) -> Result<(), Refusal> {
        let ask = resource::read(packet)?;
        let Some(body) = self.whole_body(packet, &mut request)? else { return Ok(()) };
        match ask {
            Ask::Store { device, metric, format } => {
                let target = Target { device: Some(&device), metric: metric.as_deref() };
                let source = format!(
                    "coap /devices/{device}{}{}",
                    if metric.is_some() { "/" } else { "" },
                    metric.as_deref().unwrap_or_default()
                );
                let mut parcel = Parcel::default();
                let arrival = self.site.admission.arrival();
                let client = address_name(request.from.ip());
                let origin = Origin { source: &source, client: &client };
                let admitted = self.site.admission.payload(origin, target, format, &body, arrival, &mut parcel);
                self.store(request, admitted, parcel).await
            }
            Ask::Latest { device, metric, observe, accept } => {
                self.latest(packet, &request, (&device, &metric), observe, accept)
            }
            Ask::Time { accept } => {
                let answer = self.time(accept)?;
                self.reply(packet, &request, answer)
            }
            Ask::WellKnown { query, accept } => {
                if accept.is_some_and(|accept| accept != format::LINK) {
                    return Err((ResponseType::NotAcceptable, "links come as content format 40".into()));
                }
                let links = self.links(packet, query);
                self.reply(packet, &request, Answer::content(format::LINK, links.into_bytes()))
            }
        }
    }

    /// The links that match a query, made anew unless a later block of them is asked for.
    fn links(&mut self, packet: &Packet, query: Vec<String>) -> String {
        let later = packet.get_first_option(CoapOption::Block2).and_then(|value| Block::read(value));
        let later = later.is_some_and(|block| block.number > 0);
        let fresh = |listing: &&Listing| later && listing.query == query && listing.made.elapsed() < LISTING_LIFE;
        if let Some(listing) = self.listing.as_ref().filter(fresh) {
            return listing.links.clone();
        }
        let series = self.site.engine.catalog().series();
        let names = series.iter().map(|series| (&*series.device.name, &*series.metric));
        let links = resource::links(names, &query);
        self.listing = Some(Listing { query, made: Instant::now(), links: links.clone() });
        links
    }

    /// The body of a request, or nothing if this is not its last block.
    fn whole_body(&mut self, packet: &Packet, request: &mut Request) -> Result<Option<Vec<u8>>, Refusal> {
        let too_large = || (ResponseType::RequestEntityTooLarge, format!("a body may have {} bytes", self.body_max));
        let Some(value) = packet.get_first_option(CoapOption::Block1) else {
            return if packet.payload.len() > self.body_max {
                Err(too_large())
            } else {
                Ok(Some(packet.payload.clone()))
            };
        };
        let block = Block::read(value).ok_or((ResponseType::BadRequest, "Block1 that is none".to_owned()))?;
        request.block1 = Some(Block { more: block.more, ..block });
        let announced = packet.get_first_option(CoapOption::Size1).and_then(|size| read_uint(size, 4));
        if announced.is_some_and(|bytes| bytes as usize > self.body_max) {
            return Err(too_large());
        }
        let key = (request.from, operation(packet));
        match self.assembly.take(key, block, &packet.payload, Instant::now()) {
            Taken::Whole(body) => Ok(Some(body)),
            Taken::Continue => {
                self.wire.answer(request, Answer::new(ResponseType::Continue));
                Ok(None)
            }
            Taken::Gap => {
                let detail = "blocks are missing: begin again with block 0";
                Err((ResponseType::RequestEntityIncomplete, detail.into()))
            }
            Taken::TooLarge => Err(too_large()),
            Taken::BadLength => Err((ResponseType::BadRequest, "a block is not as long as it says".into())),
        }
    }

    /// Answers after the commit.
    async fn store(&mut self, request: Request, admitted: Admitted, mut parcel: Parcel) -> Result<(), Refusal> {
        if self.site.metrics.disk_full.get() == 1 {
            return Err((ResponseType::ServiceUnavailable, DISK_FULL.to_owned()));
        }
        let answer = match admitted.first_lost() {
            Some(first) if admitted.accepted == 0 => Answer::refuse((ResponseType::BadRequest, first.to_string())),
            _ => Answer::new(ResponseType::Changed),
        };
        let wire = Arc::clone(&self.wire);
        parcel.receipts.push((0, Receipt::Call(Box::new(move || wire.answer(&request, answer)))));
        let stopping = |_| (ResponseType::ServiceUnavailable, "the gateway is shutting down".to_owned());
        self.site.intake.push(&mut parcel).await.map_err(stopping)
    }

    fn latest(
        &mut self,
        packet: &Packet,
        request: &Request,
        (device, metric): (&str, &str),
        observe: Option<bool>,
        accept: Option<u16>,
    ) -> Result<(), Refusal> {
        let catalog = self.site.engine.catalog();
        let missing = || (ResponseType::NotFound, format!("no reading of {metric} of {device} yet"));
        let series = catalog.find(device, metric).ok_or_else(missing)?;
        if observe == Some(true) {
            // Listening begins before the value is read, so that no change falls between.
            self.events.get_or_insert_with(|| self.live.listen());
        }
        let latest = catalog.latest(series.id).ok_or_else(missing)?;
        let mut answer = represent(&latest, accept)?;
        let key = (request.from, request.token.clone());
        match observe {
            Some(true) => {
                if let Some(sequence) = self.observers.register(key, series.id, accept, Instant::now()) {
                    answer.options.push((CoapOption::Observe, uint(sequence)));
                }
            }
            Some(false) => self.observers.deregister(&key),
            None => {}
        }
        self.reply(packet, request, answer)
    }

    fn time(&self, accept: Option<u16>) -> Result<Answer, Refusal> {
        let clock = &self.site.admission.clock;
        if clock.quality() == Quality::Unset {
            return Err((ResponseType::ServiceUnavailable, "the gateway's own clock is not set yet".into()));
        }
        let now_us = clock.now_us();
        represent(
            &Latest {
                time_us: now_us,
                value: Value::Text(time::format(now_us).into()),
                received_us: now_us,
                readings: 0,
                doubtful: false,
            },
            accept,
        )
    }

    /// Sends a representation, the part of it that Block2 asks for if it is large.
    fn reply(&self, packet: &Packet, request: &Request, mut answer: Answer) -> Result<(), Refusal> {
        let asked = match packet.get_first_option(CoapOption::Block2) {
            Some(value) => {
                Some(Block::read(value).ok_or((ResponseType::BadRequest, "Block2 that is none".to_owned()))?)
            }
            None => None,
        };
        let now = Instant::now();
        let room = self.reach.room(request.from, request.bytes, now);
        // What is small goes whole: it may be another before its next block is asked for.
        let is_large = answer.payload.len() > room.map_or(BLOCK.size(), |room| room.clamp(SMALL, BLOCK.size()));
        if asked.is_some() || is_large {
            let body = std::mem::take(&mut answer.payload);
            let beyond = || (ResponseType::BadRequest, "the block lies beyond the end".to_owned());
            let block = asked.unwrap_or(BLOCK).within(room.unwrap_or(usize::MAX));
            let (part, block) = block::slice(&body, block).ok_or_else(beyond)?;
            answer.payload = part.to_vec();
            answer.options.push((CoapOption::Block2, block.write()));
            // The same in every block, whatever is known of the client by then: clients compare them.
            let tag = (xxh3_64(&body) as u32).to_be_bytes();
            answer.options.push((CoapOption::ETag, tag.to_vec()));
        }
        if room.is_some() && is_large {
            let value = self.reach.value(request.from, now);
            answer.options.push((CoapOption::Unknown(reach::ECHO), value.to_vec()));
        }
        self.wire.answer(request, answer);
        Ok(())
    }

    fn event(&mut self, event: Result<Event, RecvError>) {
        match event {
            Ok(Event::Readings(committed)) => {
                let changed: HashSet<u32> = committed.readings.series.iter().copied().collect();
                self.notify(|series| changed.contains(&series));
            }
            Ok(Event::Windows(_)) => {}
            // Some changes were missed: tell everybody the latest value.
            Err(RecvError::Lagged(_)) => self.notify(|_| true),
            Err(RecvError::Closed) => self.events = None,
        }
        if self.observers.is_empty() {
            self.events = None;
        }
    }

    fn notify(&mut self, changed: impl Fn(u32) -> bool) {
        let now = Instant::now();
        for notification in self.observers.notify(changed, now) {
            self.send_notification(&notification, now);
        }
    }

    fn send_notification(&mut self, notification: &Notification, now: Instant) {
        let latest = self.site.engine.catalog().latest(notification.series);
        if let Some(mut answer) = latest.and_then(|latest| represent(&latest, notification.accept).ok()) {
            answer.options.push((CoapOption::Observe, uint(notification.sequence)));
            let kind = if notification.confirmable { MessageType::Confirmable } else { MessageType::NonConfirmable };
            let message_id = self.wire.next_message_id();
            let (to, token) = &notification.to;
            let packet = envelope(kind, message_id, token, answer);
            self.wire.send(&packet, *to);
            self.observers.sent(&notification.to, message_id, notification.confirmable.then_some(packet), now);
        }
    }
}

async fn next_event(events: &mut Option<Listener>) -> Result<Event, RecvError> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

/// Decodes a datagram; a payload marker without payload is malformed (section 3).
fn read(bytes: &[u8]) -> Result<Packet, ()> {
    if bytes.first().is_none_or(|first| first >> 6 != 1) {
        return Err(());
    }
    let packet = Packet::from_bytes(bytes).map_err(|_| ())?;
    let marker_only = packet.payload.is_empty()
        && bytes.last() == Some(&0xff)
        && packet.to_bytes_unlimited().is_ok_and(|again| again.len() + 1 == bytes.len());
    if marker_only { Err(()) } else { Ok(packet) }
}

/// What blocks of one body have in common: method and options but for the block's own.
fn operation(packet: &Packet) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&[u8::from(packet.header.code)]);
    for (number, values) in packet.options() {
        if ![CoapOption::Block1, CoapOption::Size1].contains(&CoapOption::from(*number)) {
            hash.update(&number.to_be_bytes());
            values.iter().for_each(|value| {
                hash.update(&(value.len() as u32).to_be_bytes());
                hash.update(value);
            });
        }
    }
    hash.digest()
}

/// A value in the format that is accepted: text, JSON or CBOR with its time.
fn represent(latest: &Latest, accept: Option<u16>) -> Result<Answer, Refusal> {
    let value = match &latest.value {
        Value::Number(n) => serde_json::json!(n),
        Value::Bool(b) => serde_json::json!(b),
        Value::Text(text) => serde_json::json!(&**text),
    };
    let document = serde_json::json!({ "value": value, "time": time::format(latest.time_us) });
    match accept {
        None | Some(format::TEXT) => {
            let text = match &latest.value {
                Value::Number(n) => n.to_string(),
                Value::Bool(b) => b.to_string(),
                Value::Text(text) => text.to_string(),
            };
            Ok(Answer::content(format::TEXT, text.into_bytes()))
        }
        Some(format::JSON) => Ok(Answer::content(format::JSON, document.to_string().into_bytes())),
        Some(format::CBOR) => {
            let mut bytes = Vec::new();
            // Writing to memory cannot fail.
            let _ = ciborium::into_writer(&document, &mut bytes);
            Ok(Answer::content(format::CBOR, bytes))
        }
        Some(other) => {
            Err((ResponseType::NotAcceptable, format!("content format {other} is not offered: 0, 50 or 60")))
        }
    }
}

fn envelope(kind: MessageType, message_id: u16, token: &[u8], answer: Answer) -> Vec<u8> {
    let mut packet = Packet::new();
    packet.header.set_version(1);
    packet.header.set_type(kind);
    packet.header.message_id = message_id;
    packet.header.code = MessageClass::Response(answer.code);
    packet.set_token(token.to_vec());
    answer.options.into_iter().for_each(|(option, value)| packet.add_option(option, value));
    packet.payload = answer.payload;
    packet.to_bytes_unlimited().unwrap_or_default()
}

impl Wire {
    fn next_message_id(&self) -> u16 {
        self.message_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends, if the socket takes it: what is lost now is repeated as the network would.
    fn send(&self, packet: &[u8], to: SocketAddr) {
        if let Err(e) = self.socket.try_send_to(packet, to) {
            tracing::debug!("a datagram to {to} was not sent: {e}");
        }
    }

    /// Answers a request and remembers the answer for its repetitions.
    fn answer(&self, request: &Request, mut answer: Answer) {
        if let Some(block) = request.block1 {
            answer.options.push((CoapOption::Block1, block.write()));
        }
        let (kind, message_id) = match request.kind {
            MessageType::Confirmable => (MessageType::Acknowledgement, request.message_id),
            _ => (MessageType::NonConfirmable, self.next_message_id()),
        };
        let packet = envelope(kind, message_id, &request.token, answer);
        lock(&self.exchanges).answer((request.from, request.message_id), request.fingerprint, &packet);
        self.send(&packet, request.from);
    }

    fn reset(&self, message_id: u16, to: SocketAddr) {
        let mut packet = Packet::new();
        packet.header.set_version(1);
        packet.header.set_type(MessageType::Reset);
        packet.header.code = MessageClass::Empty;
        packet.header.message_id = message_id;
        self.send(&packet.to_bytes_unlimited().unwrap_or_default(), to);
    }
}
