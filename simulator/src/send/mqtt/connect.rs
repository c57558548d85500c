//! Opening an MQTT connection, and opening it again.
//!
//! Arrives: a client without a connection. Leaves: a stream past CONNACK, with everything that was
//! open written to the outbox again. Always holds: a refusal that will not change (a wrong password)
//! ends the run; anything else is tried again with growing, random pauses. The first connection is
//! given up after a while, later ones only when nobody waits for them. Deliberately absent: any
//! reading from an open connection; that is the conversation's.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{self, Instant};

use super::{Client, KEEP_ALIVE};
use crate::message::Message;
use crate::send::SendError;
use crate::send::wire::{Answer, Hello};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the first connection may fail before the run gives up: a gateway may still be starting.
const FIRST_CONNECT_MAX: Duration = Duration::from_secs(10);
const PAUSE: std::ops::Range<Duration> = Duration::from_millis(50)..Duration::from_secs(5);

/// Why a connection could not be opened.
pub(super) enum Failure {
    /// Worth another try.
    Passing(String),
    Final(SendError),
}

impl Client {
    /// Opens the connection for the first time.
    pub(super) async fn open_first(&mut self) -> Result<TcpStream, SendError> {
        let give_up_at = Instant::now() + FIRST_CONNECT_MAX;
        let mut pause = PAUSE.start;
        loop {
            match self.open(!self.keeps_session()).await {
                Ok(stream) => return Ok(stream),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(reason)) if Instant::now() > give_up_at => {
                    let address = self.link.target.address.clone();
                    return Err(SendError::Unreachable { address, reason });
                }
                Err(Failure::Passing(_)) => pause = rest(pause).await,
            }
        }
    }

    /// Opens the connection again and again; nothing means that nobody waits for it any longer.
    pub(super) async fn reopen(&mut self) -> Result<Option<TcpStream>, SendError> {
        self.page.reconnected();
        let mut pause = PAUSE.start;
        loop {
            self.notice_stop();
            if self.stopped {
                self.look_ahead(Instant::now());
            }
            if self.is_done(Instant::now()) {
                return Ok(None);
            }
            match self.open(!self.keeps_session()).await {
                Ok(stream) => return Ok(Some(stream)),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(reason)) => {
                    tracing::debug!(client = self.link.client_id, reason, "cannot reconnect");
                    tokio::select! {
                        longer = rest(pause) => pause = longer,
                        () = self.stop.cancelled(), if !self.stopped => {}
                    }
                }
            }
        }
    }

    /// Opens the connection once.
    pub(super) async fn open(&mut self, is_clean: bool) -> Result<TcpStream, Failure> {
        let opened = time::timeout(CONNECT_TIMEOUT, self.shake_hands(is_clean)).await;
        opened.unwrap_or_else(|_| Err(Failure::Passing("no answer within 10 s".to_owned())))
    }

    /// CONNECT and CONNACK; afterwards the outbox holds what has to be sent again.
    async fn shake_hands(&mut self, is_clean: bool) -> Result<TcpStream, Failure> {
        let target = self.link.target.clone();
        let mut stream = TcpStream::connect(&target.address).await.map_err(passing)?;
        stream.set_nodelay(true).map_err(passing)?;
        let hello = Hello {
            client_id: &self.link.client_id,
            login: target.login.as_ref(),
            is_clean,
            keep_alive_s: KEEP_ALIVE.as_secs() as u16,
        };
        self.inbox.clear();
        self.outbox.clear();
        target.wire.connect(&hello, &mut self.outbox);
        stream.write_all_buf(&mut self.outbox).await.map_err(passing)?;
        loop {
            match target.wire.read(&mut self.inbox).map_err(|error| Failure::Passing(error.to_string()))? {
                Some(Answer::Welcome { session_present, receive_max }) => {
                    let page = &mut self.page;
                    let again = |message: &Message| page.sent_again(&message.ids);
                    self.session.resume(session_present, receive_max, &mut self.outbox, again);
                    return Ok(stream);
                }
                Some(Answer::Unwelcome { reason, for_good: true }) => {
                    let address = target.address.clone();
                    return Err(Failure::Final(SendError::Refused { address, reason }));
                }
                Some(Answer::Unwelcome { reason, for_good: false }) => return Err(Failure::Passing(reason)),
                Some(other) => return Err(Failure::Passing(format!("{other:?} instead of CONNACK"))),
                None => {
                    if stream.read_buf(&mut self.inbox).await.map_err(passing)? == 0 {
                        return Err(Failure::Passing("closed before CONNACK".to_owned()));
                    }
                }
            }
        }
    }
}

/// Sleeps for about `pause` and answers the next, longer one.
async fn rest(pause: Duration) -> Duration {
    let jitter = rand::random_range(0.5..1.5);
    time::sleep(pause.mul_f64(jitter)).await;
    (pause * 2).min(PAUSE.end)
}

fn passing(error: io::Error) -> Failure {
    let remedy = match error.raw_os_error() {
        // EMFILE: the limit on open files counts connections too.
        Some(24) => " (raise the limit with `ulimit -n`)",
        _ => "",
    };
    Failure::Passing(format!("{error}{remedy}"))
}
