//! Pushes come in, over gRPC and HTTP.
//!
//! Arrives: push requests, and who the door says they are from. Leaves: replies, after every shard that a batch
//! touches has committed. Always holds: a gateway speaks only for itself; what is under way is
//! bounded, and one more is asked to wait.

use super::door::{REMEDY, Who};
use super::metrics::Metrics;
use super::router::{PushFailure, Router};
use super::shard::{Beat, Sender};
use super::witness::Witnesses;
use daemon::memory::Memory;
use model::{Micros, check_name};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};
use tracing::Instrument;
use uplink::Held;
use wire::proto::uplink_server::Uplink;
use wire::proto::{PushReply, PushRequest};
use wire::{Batch, DECODED_MAX, UNREADABLE, WireError};

/// Bytes of what a program says of its version.
const VERSION_MAX: usize = 64;
/// How long a sender waits whom there is no room for.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a push is not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The request cannot be understood.
    Invalid(String),
    /// It is larger than any may be.
    TooLarge(String),
    /// The batch in it cannot: nobody will ever take it.
    Unreadable(String),
    /// Who sends is not known.
    Unauthenticated(String),
    /// Who sends may not send this.
    Forbidden(String),
    /// Another store sends under the same id.
    Conflict(String),
    /// Too much is under way.
    Busy(Duration),
    /// Try again.
    Unavailable(String),
}

/// Takes pushes.
pub(crate) struct Intake {
    router: Arc<Router>,
    room: Semaphore,
    memory: Arc<Memory>,
    in_flight: u32,
    metrics: Arc<Metrics>,
    /// What gateways say of the time.
    pub witnesses: Witnesses,
}

/// What the log shows of a gateway's id that nobody has checked yet.
const GATEWAY_SHOWN_CHARS: usize = 64;

/// The time.
#[expect(clippy::disallowed_methods, reason = "the cloud's one place")]
pub(crate) fn now_us() -> Micros {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as Micros)
}

/// What all batches together may take once they are decoded.
const MEMORY_MAX: usize = DECODED_MAX + (64 << 20);

impl Intake {
    /// For so many pushes at once.
    pub(crate) fn new(router: Arc<Router>, max_pushes: usize, in_flight: u32, metrics: Arc<Metrics>) -> Self {
        let (room, memory) = (Semaphore::new(max_pushes), Memory::new(MEMORY_MAX));
        Intake { router, room, memory, in_flight, metrics, witnesses: Witnesses::new(Instant::now()) }
    }

    /// Takes a push.
    pub(crate) async fn push(&self, who: &Who, request: PushRequest) -> Result<PushReply, Refusal> {
        let started = Instant::now();
        let gateway: String =
            request.sender.iter().flat_map(|sender| sender.gateway.chars()).take(GATEWAY_SHOWN_CHARS).collect();
        let reply = self.try_push(who, request).instrument(tracing::info_span!("push", gateway)).await;
        self.metrics.push_seconds.observe(started.elapsed().as_secs_f64());
        reply
    }

    async fn try_push(&self, who: &Who, request: PushRequest) -> Result<PushReply, Refusal> {
        let from = request.sender.ok_or_else(|| Refusal::Invalid("the push has no sender".into()))?;
        check_name(&from.gateway).map_err(|e| Refusal::Invalid(format!("gateway {:?}: {e}", from.gateway)))?;
        check(who, &from.gateway)?;
        let _room = self.room.try_acquire().map_err(|_| Refusal::busy())?;
        if from.incarnation > i64::MAX as u64 || from.version.len() > VERSION_MAX {
            return Err(Refusal::Invalid("the sender's incarnation or version is out of range".into()));
        }
        let sender = Sender {
            gateway: from.gateway.as_str().into(),
            incarnation: from.incarnation,
            starts: from.starts,
            session: from.session,
        };
        let (ours_us, now) = (now_us(), Instant::now());
        if let Some(heartbeat) = &request.heartbeat {
            self.witnesses.note(&sender.gateway, heartbeat.now_us, now);
        }
        let received_us = self.witnesses.time_us(ours_us, now);
        if request.batch == 0 {
            let heartbeat = request.heartbeat.unwrap_or_default();
            let beat = Beat {
                gateway: from.gateway,
                seen_us: received_us,
                now_us: heartbeat.now_us,
                backlog: heartbeat.backlog,
                oldest_us: heartbeat.oldest_us,
                complete_us: heartbeat.complete_us,
                version: from.version,
                incarnation: from.incarnation,
                disputed: false,
            };
            let held = self.router.beat(&sender, beat).await.map_err(|failure| refusal(&failure))?;
            let members = self.router.view().map.members();
            return Ok(PushReply { members, ..self.reply(held, false) });
        }
        let bytes = request.summaries.len();
        // Its memory is held until the batch is stored.
        let mut hold = self.memory.hold(&sender.gateway);
        let decoded = tokio::task::spawn_blocking(move || {
            let batch = Batch::decode_within(&request.summaries, &mut |bytes| hold.take(bytes));
            (batch, hold)
        });
        let (batch, _hold) = decoded.await.map_err(|e| Refusal::Unavailable(e.to_string()))?;
        let batch = batch.map_err(|e| match e {
            WireError::Busy => Refusal::busy(),
            WireError::TooLarge => Refusal::TooLarge(e.to_string()),
            other => Refusal::Unreadable(other.to_string()),
        })?;
        let expected: HashMap<String, Held> = request
            .expected
            .into_iter()
            .map(|echo| {
                let held = Held::of(&echo);
                (echo.shard, held)
            })
            .collect();
        match self.router.push(&sender, request.batch, &batch, &expected, received_us).await {
            Ok(held) => {
                self.metrics.summaries.inc_by(batch.summaries() as u64);
                self.metrics.windows.inc_by(batch.windows.len() as u64);
                self.metrics.bytes.inc_by(bytes as u64);
                Ok(self.reply(held, false))
            }
            Err(PushFailure::Lacking(held)) => Ok(self.reply(held, true)),
            Err(failure) => Err(refusal(&failure)),
        }
    }

    fn reply(&self, held: Vec<(String, Held)>, lacking: bool) -> PushReply {
        let echo = |(shard, held): (String, Held)| held.echo(shard);
        let shards = held.into_iter().map(echo).collect();
        PushReply { shards, in_flight: self.in_flight, lacking, members: Vec::new() }
    }
}

/// A gateway speaks only for itself.
fn check(who: &Who, gateway: &str) -> Result<(), Refusal> {
    match who {
        Who::Certified(names) if !names.iter().any(|name| name == gateway) => {
            Err(Refusal::Forbidden(format!("the certificate is {}'s, not {gateway:?}'s", names.join(", "))))
        }
        Who::User(name) if name != gateway => {
            Err(Refusal::Forbidden(format!("the token is {name:?}'s, not {gateway:?}'s: {REMEDY}")))
        }
        _ => Ok(()),
    }
}

fn refusal(failure: &PushFailure) -> Refusal {
    match failure {
        PushFailure::Unavailable(text) => Refusal::Unavailable(text.clone()),
        PushFailure::Refused(text) => Refusal::Conflict(text.clone()),
        PushFailure::Lacking(held) => Refusal::Unavailable(format!("{held:?}")),
    }
}

impl Refusal {
    /// There is no room now.
    pub fn busy() -> Self {
        Refusal::Busy(RETRY_AFTER)
    }

    /// Counts it, where it leaves.
    pub fn counted(self, metrics: &Metrics) -> Self {
        metrics.refused(self.name());
        tracing::debug!("a push is refused: {self:?}");
        self
    }

    /// As metrics name it.
    pub fn name(&self) -> &'static str {
        match self {
            Refusal::Invalid(_) => "invalid",
            Refusal::TooLarge(_) => "too-large",
            Refusal::Unreadable(_) => "unreadable",
            Refusal::Unauthenticated(_) => "unauthenticated",
            Refusal::Forbidden(_) => "forbidden",
            Refusal::Conflict(_) => "conflict",
            Refusal::Busy(_) => "busy",
            Refusal::Unavailable(_) => "unavailable",
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Invalid(text) => Status::invalid_argument(text),
            Refusal::TooLarge(text) => Status::out_of_range(text),
            Refusal::Unreadable(text) => {
                let mut status = Status::invalid_argument(text);
                status.metadata_mut().insert(UNREADABLE, MetadataValue::from_static("1"));
                status
            }
            Refusal::Unauthenticated(text) => Status::unauthenticated(text),
            Refusal::Forbidden(text) => Status::permission_denied(text),
            Refusal::Conflict(text) => Status::failed_precondition(text),
            Refusal::Unavailable(text) => Status::unavailable(text),
            Refusal::Busy(after) => {
                let mut status = Status::resource_exhausted("too many pushes at once: try again later");
                let ms = (after.as_millis() as u64).into();
                status.metadata_mut().insert("retry-after-ms", ms);
                status
            }
        }
    }
}

/// gRPC.
pub(crate) struct Grpc(pub Arc<Intake>);

#[tonic::async_trait]
impl Uplink for Grpc {
    async fn push(&self, request: Request<PushRequest>) -> Result<Response<PushReply>, Status> {
        // Whoever came in by the door is somebody.
        let who = request.extensions().get::<Who>().cloned();
        let who = who.ok_or_else(|| Status::internal("a push did not come in by the door"))?;
        let reply = self.0.push(&who, request.into_inner()).await;
        Ok(Response::new(reply.map_err(|refusal| refusal.counted(&self.0.metrics))?))
    }
}
