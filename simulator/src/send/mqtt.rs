//! The MQTT driver: one task, one connection, one session.
//!
//! Arrives: a source of messages and a broker's address. Leaves: PUBLISH packets, and in the book
//! what was sent and acknowledged. Always holds: a batch is settled in the book before its bytes go
//! to the socket. A broken connection is opened again with growing pauses, for as long as messages are
//! open or to come. QoS 2 keeps its session on the broker, so that an interrupted exchange stays
//! exactly-once; lower levels start afresh, like most sensors. Deliberately absent: subscriptions.

mod connect;

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use super::session::{Meaning, Session};
use super::wire::{Answer, Wire, is_acknowledged};
use super::{DRAIN_MAX, Gate, Next, SendError, Source};
use crate::book::{Book, Page};
use crate::message::Message;

const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// A batch of packets is handed to the socket when it has grown to this.
const BATCH_BYTES: usize = 64 << 10;
const READ_BYTES: usize = 2 << 10;

/// What all MQTT connections of a run have in common.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) address: String,
    pub(crate) login: Option<(String, String)>,
    pub(crate) wire: Wire,
    pub(crate) qos: u8,
    pub(crate) inflight_max: u16,
    /// Probability per second that a connection is cut.
    pub(crate) cut_per_s: f64,
}

/// One MQTT connection to be.
pub(crate) struct MqttLink {
    pub(crate) target: Arc<Target>,
    pub(crate) client_id: String,
    pub(crate) source: Box<dyn Source>,
}

/// How a conversation ended.
enum End {
    /// All is said and acknowledged, or the drain time is over.
    Done,
    /// The connection broke or was cut.
    Lost(String),
}

/// A connection with everything that outlives a single TCP stream.
struct Client {
    link: MqttLink,
    session: Session,
    page: Page,
    stop: CancellationToken,
    inbox: BytesMut,
    outbox: BytesMut,
    /// To be sent before the source is asked again; often the second time of a message sent twice.
    ahead: Option<Message>,
    /// The source has nothing more to say.
    over: bool,
    stopped: bool,
    /// Set when the source is over or the run is stopped: until when open messages are waited for.
    drain_until: Option<Instant>,
}

/// Carries all of a source's messages to the broker.
pub(crate) async fn carry(
    link: MqttLink,
    place: usize,
    book: Book,
    mut gate: Gate,
    stop: CancellationToken,
) -> Result<(), SendError> {
    let session = Session::new(link.target.wire, link.target.qos, link.target.inflight_max);
    let mut client = Client {
        link,
        session,
        page: Page::new(book, place),
        stop,
        inbox: BytesMut::with_capacity(4 << 10),
        outbox: BytesMut::with_capacity(4 << 10),
        ahead: None,
        over: false,
        stopped: false,
        drain_until: None,
    };
    let mut stream = {
        let _turn = gate.turn().await;
        client.open_first().await?
    };
    gate.wait_for_start().await;
    loop {
        match client.converse(&mut stream).await? {
            End::Done => return client.close(stream).await,
            End::Lost(reason) => {
                tracing::debug!(client = client.link.client_id, reason, "connection lost");
                drop(stream);
                match client.reopen().await? {
                    Some(reopened) => stream = reopened,
                    None => return Ok(()),
                }
            }
        }
    }
}

impl Client {
    fn keeps_session(&self) -> bool {
        self.link.target.qos == 2
    }

    /// Sends and listens until all is done or the connection breaks.
    async fn converse(&mut self, stream: &mut TcpStream) -> Result<End, SendError> {
        let (mut reader, mut writer) = stream.split();
        let cut_at = cut_time(self.link.target.cut_per_s, Instant::now());
        let (mut ping_at, mut heard_at) = (Instant::now() + KEEP_ALIVE / 2, Instant::now());
        let timer = time::sleep_until(ping_at);
        tokio::pin!(timer);
        loop {
            let now = Instant::now();
            self.notice_stop();
            let source_wake = self.fill(now);
            if self.is_done(now) && (self.outbox.is_empty() || self.session.open_count() > 0) {
                self.page.settle(now)?;
                return Ok(End::Done);
            }
            if cut_at.is_some_and(|cut_at| cut_at <= now) {
                self.page.settle(now)?;
                return Ok(End::Lost("cut on purpose".to_owned()));
            }
            if now >= ping_at {
                if now.duration_since(heard_at) > KEEP_ALIVE {
                    return Ok(End::Lost("nothing heard for a whole keep-alive time".to_owned()));
                }
                self.link.target.wire.ping(&mut self.outbox);
                ping_at = now + KEEP_ALIVE / 2;
            }
            let wake = [source_wake, cut_at, self.drain_until].into_iter().flatten().fold(ping_at, Instant::min);
            if timer.deadline() != wake {
                timer.as_mut().reset(wake);
            }
            self.page.settle(now)?;
            // Left alone, a read would offer the socket 64 bytes at a time.
            self.inbox.reserve(READ_BYTES);
            tokio::select! {
                biased;
                written = writer.write_buf(&mut self.outbox), if !self.outbox.is_empty() => {
                    if let Err(error) = written {
                        return Ok(End::Lost(error.to_string()));
                    }
                }
                read = reader.read_buf(&mut self.inbox) => {
                    match read {
                        Ok(0) => return Ok(End::Lost("closed by the broker".to_owned())),
                        Ok(_) => heard_at = Instant::now(),
                        Err(error) => return Ok(End::Lost(error.to_string())),
                    }
                    if let Some(reason) = self.hear(heard_at) {
                        self.page.settle(heard_at)?;
                        return Ok(End::Lost(reason));
                    }
                }
                () = &mut timer => {}
                () = self.stop.cancelled(), if !self.stopped => {}
            }
        }
    }

    /// Takes messages from the source while there is room; answers when to look again.
    fn fill(&mut self, now: Instant) -> Option<Instant> {
        while !self.over && self.session.has_room() && self.outbox.len() < BATCH_BYTES {
            let mut message = match self.ahead.take() {
                Some(ahead) => ahead,
                None => match self.link.source.next(now) {
                    Next::Message(message) => message,
                    Next::NotBefore(wake) => return Some(wake),
                    Next::Over => {
                        self.over = true;
                        self.drain_until.get_or_insert(now + DRAIN_MAX);
                        return None;
                    }
                },
            };
            self.ahead = message.twice.then(|| message.to_copy());
            self.page.sent(&mut message, is_acknowledged(self.link.target.qos));
            self.session.publish(message, now, &mut self.outbox);
        }
        None
    }

    /// Takes every whole packet from the inbox; an answer is a reason to part.
    fn hear(&mut self, now: Instant) -> Option<String> {
        loop {
            let answer = match self.link.target.wire.read(&mut self.inbox) {
                Ok(Some(Answer::Goodbye { reason })) => return Some(format!("dismissed: {reason}")),
                Ok(Some(answer)) => answer,
                Ok(None) => return None,
                Err(error) => return Some(error.to_string()),
            };
            match self.session.answer(answer, &mut self.outbox) {
                Meaning::Acked { message, sent_at } => self.page.acked(&message, now - sent_at),
                Meaning::Refused { message, reason } => {
                    tracing::warn!(topic = message.topic, reason, "the gateway refused a message");
                    self.page.failed();
                }
                Meaning::Nothing => {}
                Meaning::Nonsense { reason } => {
                    self.page.failed();
                    return Some(reason);
                }
            }
        }
    }

    fn notice_stop(&mut self) {
        if !self.stopped && self.stop.is_cancelled() {
            self.stopped = true;
            self.drain_until.get_or_insert(Instant::now() + DRAIN_MAX);
            self.link.source.finish();
        }
    }

    /// Finds out whether a stopped source still holds something back.
    fn look_ahead(&mut self, now: Instant) {
        if self.ahead.is_none() && !self.over {
            match self.link.source.next(now) {
                Next::Message(message) => self.ahead = Some(message),
                Next::NotBefore(_) => {}
                Next::Over => self.over = true,
            }
        }
    }

    fn is_done(&self, now: Instant) -> bool {
        let drained = self.over && self.session.open_count() == 0;
        drained || self.drain_until.is_some_and(|until| now >= until)
    }

    /// Parts politely, and takes a kept session off the broker: nobody will come back for it.
    async fn close(&mut self, mut stream: TcpStream) -> Result<(), SendError> {
        self.part(&mut stream).await;
        let is_left_behind = self.keeps_session() && self.session.open_count() == 0;
        if is_left_behind && let Ok(mut stream) = self.open(true).await {
            self.part(&mut stream).await;
        }
        Ok(())
    }

    async fn part(&mut self, stream: &mut TcpStream) {
        self.outbox.clear();
        self.link.target.wire.disconnect(&mut self.outbox);
        // Whether the farewell arrives changes nothing: everything is acknowledged or given up.
        let _ = stream.write_all_buf(&mut self.outbox).await;
        let _ = stream.shutdown().await;
    }
}

/// When a connection is to be cut: cuts come independently, so the time between them is exponential.
fn cut_time(cut_per_s: f64, now: Instant) -> Option<Instant> {
    if cut_per_s <= 0.0 {
        return None;
    }
    let uniform: f64 = rand::random_range(f64::EPSILON..1.0);
    Some(now + Duration::from_secs_f64(-uniform.ln() / cut_per_s))
}
