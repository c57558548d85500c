//! Sending: every connection pulls messages from its source and carries them to the gateway.
//!
//! Arrives: one [`Link`] per connection. Leaves: protocol traffic and entries in the book.
//! Always holds: all connections stand before the first message leaves; a connection takes a message
//! from its source only when it has room for it, so nothing queues without bound; when its source is
//! over, a connection waits up to [`DRAIN_MAX`] for what is still unacknowledged. Deliberately
//! absent: what the messages say.

pub(crate) mod coap;
pub(crate) mod exchange;
pub(crate) mod mqtt;
pub(crate) mod session;
pub(crate) mod wire;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::book::Book;
use crate::ledger::LedgerError;
use crate::message::Message;

/// How long a connection waits for acknowledgements after its last message.
pub(crate) const DRAIN_MAX: Duration = Duration::from_secs(30);
/// How many connections are being opened at the same time: below a usual listen backlog.
const CONNECTING_MAX: usize = 64;

/// What a source answers when it is asked for the next message.
#[derive(Debug)]
pub(crate) enum Next {
    Message(Message),
    /// Nothing yet; ask again at this time.
    NotBefore(Instant),
    /// Nothing ever again.
    Over,
}

/// Where a connection's messages come from.
pub(crate) trait Source: Send {
    fn next(&mut self, now: Instant) -> Next;

    /// The run is ending: produce nothing new, but let go of what was held back.
    fn finish(&mut self);
}

impl Source for Box<dyn Source> {
    fn next(&mut self, now: Instant) -> Next {
        (**self).next(now)
    }

    fn finish(&mut self) {
        (**self).finish();
    }
}

/// Why a run cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("cannot connect to the MQTT broker at {address}: {reason}")]
    Unreachable { address: String, reason: String },
    #[error("the MQTT broker at {address} refuses this client: {reason}")]
    Refused { address: String, reason: String },
    #[error("cannot open a UDP socket towards {address}: {source}")]
    Udp { address: String, source: std::io::Error },
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// One connection to be: where it goes and where its messages come from.
pub(crate) enum Link {
    Mqtt(mqtt::MqttLink),
    Coap(coap::CoapLink),
}

/// Lets connections open a few at a time and start together.
#[derive(Clone)]
pub(crate) struct Gate {
    connecting: Arc<Semaphore>,
    standing: Arc<Semaphore>,
    started: watch::Receiver<bool>,
}

impl Gate {
    /// Waits for a turn to open a connection; the turn lasts until the answer is dropped.
    pub(crate) async fn turn(&self) -> tokio::sync::SemaphorePermit<'_> {
        self.connecting.acquire().await.expect("the gate is never closed")
    }

    /// Reports that this connection stands and waits for all others.
    pub(crate) async fn wait_for_start(&mut self) {
        self.standing.add_permits(1);
        // An error means that the run was called off; the task is about to be dropped.
        let _ = self.started.wait_for(|started| *started).await;
    }
}

/// Opens every link, starts them together and returns when all have drained. `stop` ends the sources.
/// `on_start` runs once all connections stand.
pub(crate) async fn play(
    links: Vec<Link>,
    book: Book,
    stop: CancellationToken,
    on_start: impl Future<Output = ()>,
) -> Result<(), SendError> {
    let (start, started) = watch::channel(false);
    let gate =
        Gate { connecting: Arc::new(Semaphore::new(CONNECTING_MAX)), standing: Arc::new(Semaphore::new(0)), started };
    let link_count = links.len() as u32;
    let mut tasks = JoinSet::new();
    for (place, link) in links.into_iter().enumerate() {
        let (book, gate, stop) = (book.clone(), gate.clone(), stop.clone());
        match link {
            Link::Mqtt(link) => tasks.spawn(mqtt::carry(link, place, book, gate, stop)),
            Link::Coap(link) => tasks.spawn(coap::carry(link, place, book, gate, stop)),
        };
    }
    let all_stand = async {
        gate.standing.acquire_many(link_count).await.expect("the gate is never closed").forget();
    };
    tokio::select! {
        () = all_stand => {}
        early = next_end(&mut tasks) => return early,
        () = stop.cancelled() => return Ok(()),
    }
    book.tally.start(Instant::now());
    start.send_replace(true);
    let (mut on_start, mut announced) = (std::pin::pin!(on_start), false);
    while !tasks.is_empty() {
        tokio::select! {
            ended = next_end(&mut tasks) => ended?,
            () = &mut on_start, if !announced => announced = true,
        }
    }
    Ok(())
}

/// The next task's end. A panic inside a connection is a defect and goes on here.
async fn next_end(tasks: &mut JoinSet<Result<(), SendError>>) -> Result<(), SendError> {
    match tasks.join_next().await {
        Some(Ok(ended)) => ended,
        Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Some(Err(_)) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
