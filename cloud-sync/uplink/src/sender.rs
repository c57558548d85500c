//! Reads, sends, waits.
//!
//! One task owns all state. Batches are read one after another and pushed side by side; what
//! comes of a push decides what is acknowledged, where the next one goes, and when. Always
//! holds: what was acknowledged is saved soon, and what is saved was acknowledged.

use super::client::{Client, PushError};
use super::picker::Picker;
use super::progress::Progress;
use super::shards::{REMEMBERED, Shards, UNDER_WAY_MAX};
use super::status::{EndpointStatus, Status};
use super::{EndpointError, Identity, Options, Portion, Saved, Source, SourceError};
use model::{Micros, varint};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wire::proto::{Heartbeat, PushReply, PushRequest, Sender};

const FORMAT: u8 = 1;
/// Batch numbers that a restart skips, because they may have been used.
const NUMBERS_SKIPPED: u64 = 1_000;
/// What the cloud has not taken for so long is backlog.
const OUTAGE: Duration = Duration::from_secs(60);
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// A refusal is not repeated sooner.
const RENEW_EVERY: Duration = Duration::from_secs(20);
const REFUSED_WAIT: Duration = Duration::from_secs(10);
/// How long the last save may take.
const GRACE: Duration = Duration::from_secs(5);
/// One batch in so many is of the backlog, however much fresh data there is.
const BACKLOG_SHARE: u32 = 4;

/// The uplink, not yet sending.
pub struct Uplink {
    options: Options,
    identity: Identity,
    source: Arc<dyn Source>,
    status: Arc<Status>,
    clients: Vec<Client>,
    picker: Picker,
    progress: Progress,
    shards: Shards,
    next_batch: u64,
    latest: watch::Receiver<u64>,
    /// Changes from here on are live.
    live_from: u64,
    /// Those below may be sent: the others wait for their moment.
    live_until: u64,
    live_at: Instant,
    backlog_at: Instant,
    heartbeat_at: Instant,
    not_before: Instant,
    last_success: Instant,
    in_flight: usize,
    /// Batches under way; heartbeats are 0.
    under_way: Vec<u64>,
    /// Summaries in a batch, about: fewer while the cloud cannot read one.
    batch: usize,
    /// Changes among which there is one that it cannot.
    doubted: Option<Range<u64>>,
    reading: bool,
    turns: u32,
    /// What the cloud may take for complete.
    complete_us: Micros,
    unsaved: Option<Saved>,
    saving: bool,
    /// What is on its way to disk: until it is there, the source does not know of it.
    being_saved: Vec<(u64, Range<u64>)>,
    save_at: Instant,
    /// When a store that is refused may next ask whether it began its life by a wrong clock.
    renew_at: Option<Instant>,
    renewed_at: Instant,
}

/// What a task has come to.
enum Done {
    Read { changes: Range<u64>, is_backlog: bool, portion: Result<(Portion, Vec<u8>), SourceError> },
    Pushed(Box<Pushed>),
    Saved(Result<(), (SourceError, Saved)>),
    Renewed(Result<Option<u64>, SourceError>),
}

struct Pushed {
    endpoint: usize,
    batch: u64,
    changes: Range<u64>,
    summaries: usize,
    bytes: usize,
    /// What was expected of the shards when it was sent.
    expected: Shards,
    reply: Result<PushReply, PushError>,
}

impl Uplink {
    /// An uplink over a source, which goes on where it has been.
    pub fn new(
        options: Options,
        identity: Identity,
        source: Arc<dyn Source>,
        status: Arc<Status>,
    ) -> Result<Self, UplinkError> {
        let client = |endpoint| Client::new(endpoint, &options.tls, options.token.as_deref(), options.timeout);
        let clients = options.endpoints.iter().map(client).collect::<Result<Vec<_>, _>>()?;
        let saved = source.saved()?;
        let (next_batch, progress, shards) = read_state(&saved).unwrap_or_else(|| {
            if !saved.is_empty() {
                tracing::error!("what the uplink had saved cannot be read: everything that is kept is sent again");
            }
            (1, Progress::default(), Shards::default())
        });
        let latest = source.latest();
        let live_from = *latest.borrow() + 1;
        let now = Instant::now();
        let options_batch = options.batch;
        let mut uplink = Uplink {
            picker: Picker::new(options.balance, options.endpoints.iter().map(|endpoint| endpoint.weight)),
            in_flight: options.in_flight.clamp(1, UNDER_WAY_MAX),
            options,
            identity,
            source,
            status,
            clients,
            progress,
            shards,
            next_batch,
            latest,
            live_from,
            live_until: live_from,
            live_at: now,
            backlog_at: now,
            heartbeat_at: now,
            not_before: now,
            last_success: now,
            under_way: Vec::new(),
            batch: options_batch,
            doubted: None,
            reading: false,
            turns: 0,
            complete_us: Micros::MIN,
            unsaved: None,
            saving: false,
            being_saved: Vec::new(),
            save_at: now,
            renew_at: None,
            renewed_at: now,
        };
        uplink.live_at = uplink.next_moment(now);
        Ok(uplink)
    }

    /// Sends until `stop`; what is under way then is sent again after the next start.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut tasks: JoinSet<Done> = JoinSet::new();
        let mut latest = self.latest.clone();
        let mut source_is_there = true;
        loop {
            self.start(&mut tasks);
            self.tell();
            let wake = self.next_wake();
            tokio::select! {
                () = stop.cancelled() => break,
                Some(done) = tasks.join_next() => match done {
                    Ok(done) => self.settle(done, &mut tasks),
                    Err(e) => {
                        tracing::error!("a task of the uplink ended: {e}");
                        return;
                    }
                },
                changed = latest.changed(), if source_is_there => source_is_there = changed.is_ok(),
                () = tokio::time::sleep_until(wake.into()) => {}
            }
        }
        if let Some(saved) = self.unsaved.take() {
            let (source, saved) = (Arc::clone(&self.source), self.complete(saved));
            let last = tokio::task::spawn_blocking(move || source.save(saved));
            if tokio::time::timeout(GRACE, last).await.is_err() {
                tracing::warn!("the uplink's progress could not be saved in time; some summaries are sent again");
            }
        }
    }

    /// Starts whatever may be started.
    fn start(&mut self, tasks: &mut JoinSet<Done>) {
        let now = Instant::now();
        if self.unsaved.is_some() && !self.saving && self.save_at <= now {
            self.save(tasks);
        }
        if self.renew_at.take_if(|at| *at <= now).is_some() {
            self.renewed_at = now;
            let (source, is_acknowledged) = (Arc::clone(&self.source), !self.shards.expected().is_empty());
            tasks.spawn_blocking(move || Done::Renewed(source.renew(is_acknowledged)));
        }
        if self.not_before > now {
            return;
        }
        if self.heartbeat_at <= now && self.under_way.len() < self.in_flight {
            self.heartbeat_at = now + self.options.heartbeat;
            self.push(tasks, 0, 0..0, 0, Vec::new());
        }
        if self.live_at <= now {
            self.live_at = self.next_moment(now);
            self.live_until = *self.latest.borrow() + 1;
        }
        if self.may_read() {
            self.read(tasks, now);
        }
    }

    /// A batch that is slow must not be overtaken by more than a shard remembers.
    fn may_read(&self) -> bool {
        let slowest = self.under_way.iter().copied().filter(|&batch| batch > 0).min().unwrap_or(self.next_batch);
        let ahead = (self.next_batch - slowest) as usize;
        !self.reading && self.under_way.len() < self.in_flight && ahead < REMEMBERED - UNDER_WAY_MAX
    }

    /// Takes changes to be sent and reads what they come to.
    fn read(&mut self, tasks: &mut JoinSet<Done>, now: Instant) {
        let backlog = if self.options.in_order { 1..self.live_until } else { 1..self.live_from };
        let live = self.live_from..self.live_until;
        self.turns = self.turns.wrapping_add(1);
        let backlog_first = self.options.in_order || self.turns.is_multiple_of(BACKLOG_SHARE);
        let order = if backlog_first { [(backlog, true), (live, false)] } else { [(live, false), (backlog, true)] };
        for (within, is_backlog) in order {
            if is_backlog && self.backlog_at > now {
                continue;
            }
            if let Some(changes) = self.progress.take(within) {
                self.reading = true;
                let (source, summaries) = (Arc::clone(&self.source), self.batch);
                tasks.spawn_blocking(move || {
                    let portion = source.read(changes.clone(), summaries).map(|portion| {
                        let bytes = if portion.batch.is_empty() { Vec::new() } else { portion.batch.encode() };
                        (portion, bytes)
                    });
                    Done::Read { changes, is_backlog, portion }
                });
                return;
            }
        }
    }

    fn settle(&mut self, done: Done, tasks: &mut JoinSet<Done>) {
        let now = Instant::now();
        match done {
            Done::Renewed(Ok(Some(incarnation))) => {
                tracing::info!("this store began its life by a wrong clock: the cloud is told a later time");
                self.identity.incarnation = incarnation;
            }
            Done::Renewed(Ok(None)) => {}
            Done::Renewed(Err(e)) => tracing::warn!("uplink: {e}"),
            Done::Read { changes, is_backlog, portion } => {
                self.reading = false;
                match portion {
                    Ok((portion, bytes)) => {
                        let until = portion.until.clamp(changes.start + 1, changes.end);
                        self.progress.put_back(until..changes.end);
                        let (changes, summaries) = (changes.start..until, portion.batch.summaries());
                        if is_backlog && self.options.catch_up > 0 {
                            let share = summaries as f64 / f64::from(self.options.catch_up);
                            self.backlog_at = now + Duration::from_secs_f64(share * rand::random_range(0.8..1.2));
                        }
                        if bytes.is_empty() {
                            // Nothing is left of what had changed.
                            self.progress.acknowledge(changes);
                            self.unsaved_mut();
                            return;
                        }
                        let batch = self.next_batch;
                        self.next_batch += 1;
                        self.push(tasks, batch, changes, summaries, bytes);
                    }
                    Err(e) => {
                        self.progress.put_back(changes);
                        self.fail(format!("the store cannot be read: {e}"));
                        self.not_before = now + REFUSED_WAIT;
                    }
                }
            }
            Done::Pushed(pushed) => {
                if let Some(at) = self.under_way.iter().position(|&batch| batch == pushed.batch) {
                    self.under_way.swap_remove(at);
                }
                self.pushed(*pushed, now);
            }
            Done::Saved(saved) => {
                self.saving = false;
                self.being_saved.clear();
                if let Err((e, saved)) = saved {
                    self.fail(format!("progress cannot be saved: {e}"));
                    self.unsaved_mut().sent.extend(saved.sent);
                }
            }
        }
    }

    fn push(&mut self, tasks: &mut JoinSet<Done>, batch: u64, changes: Range<u64>, summaries: usize, bytes: Vec<u8>) {
        let endpoint = match self.picker.pick(Instant::now(), rand::random()) {
            Ok(endpoint) => endpoint,
            Err(again) => {
                self.progress.put_back(changes);
                self.not_before = again;
                return;
            }
        };
        self.under_way.push(batch);
        let client = self.clients[endpoint].clone();
        let length = bytes.len();
        let (request, expected) = (self.request(batch, bytes), self.shards.clone());
        tasks.spawn(async move {
            let reply = client.push(&request).await;
            Done::Pushed(Box::new(Pushed { endpoint, batch, changes, summaries, bytes: length, expected, reply }))
        });
    }

    fn request(&self, batch: u64, summaries: Vec<u8>) -> PushRequest {
        let (backlog, oldest_us) = self.backlog();
        PushRequest {
            sender: Some(Sender {
                gateway: self.identity.gateway.clone(),
                incarnation: self.identity.incarnation,
                starts: self.identity.starts,
                session: self.identity.session,
                version: self.identity.version.to_owned(),
            }),
            batch,
            summaries,
            heartbeat: Some(Heartbeat {
                now_us: self.source.now_us(),
                backlog,
                oldest_us: oldest_us.unwrap_or(0),
                complete_us: self.complete_us,
            }),
            expected: self.shards.expected(),
        }
    }

    fn pushed(&mut self, pushed: Pushed, now: Instant) {
        let Pushed { endpoint, batch, changes, summaries, bytes, expected, reply } = pushed;
        match reply {
            Ok(reply) => {
                self.picker.succeeded(endpoint);
                self.answered(now);
                let now_us = self.source.now_us();
                self.status.change(|status| status.last_answer_us = Some(now_us));
                if reply.in_flight > 0 {
                    self.in_flight = self.options.in_flight.clamp(1, UNDER_WAY_MAX).min(reply.in_flight as usize);
                }
                if reply.lacking {
                    self.progress.put_back(changes);
                } else if batch > 0 {
                    self.progress.acknowledge(changes.clone());
                    self.doubted.take_if(|doubted| self.progress.has(doubted));
                    if self.doubted.is_none() {
                        self.batch = (self.batch * 2).min(self.options.batch);
                    }
                    self.shards.acknowledged(batch, &reply.shards);
                    self.unsaved_mut().sent.push((batch, changes));
                    self.status.change(|status| {
                        status.batches += 1;
                        status.summaries += summaries as u64;
                        status.bytes += bytes as u64;
                        status.last_error = None;
                    });
                } else {
                    self.status.change(|status| status.last_error = None);
                }
                // Replies overtake each other: only what was acknowledged before it was sent can be missing.
                if reply.lacking || batch == 0 {
                    self.replay(&expected, &reply);
                }
            }
            Err(error) => {
                self.progress.put_back(changes.clone());
                match &error {
                    PushError::Again(_) => self.picker.failed(endpoint, now),
                    PushError::Later(wait, _) => {
                        self.picker.succeeded(endpoint);
                        // Who is asked to wait has been answered: what is fresh from now on stays so.
                        self.answered(now);
                        self.not_before = now + wait.mul_f64(rand::random_range(1.0..2.0));
                    }
                    PushError::Unreadable(text) => {
                        self.picker.succeeded(endpoint);
                        self.unreadable(changes, text);
                    }
                    PushError::TooLarge(_) => {
                        self.picker.succeeded(endpoint);
                        if changes.end - changes.start <= 1 {
                            self.not_before = now + REFUSED_WAIT.mul_f64(rand::random_range(1.0..2.0));
                        }
                        self.doubt(changes);
                    }
                    PushError::Refused(_) => {
                        self.picker.succeeded(endpoint);
                        self.renew_at.get_or_insert(now.max(self.renewed_at + RENEW_EVERY));
                        self.not_before = now + REFUSED_WAIT.mul_f64(rand::random_range(1.0..2.0));
                    }
                }
                if batch == 0 {
                    // The cloud should hear soon after it is back.
                    self.heartbeat_at = self.heartbeat_at.min(now + REFUSED_WAIT);
                }
                self.fail(format!("{}: {}", self.options.endpoints[endpoint].url, error.text()));
            }
        }
    }

    /// The cloud is there. If it was not for long, what has waited is backlog.
    fn answered(&mut self, now: Instant) {
        if now.duration_since(self.last_success) > OUTAGE {
            self.live_from = *self.latest.borrow() + 1;
        }
        self.last_success = now;
    }

    /// What the cloud cannot read must not hold up the rest: it is sent in smaller batches, until the one
    /// change that is to blame stands alone.
    fn unreadable(&mut self, changes: Range<u64>, text: &str) {
        if changes.end - changes.start == 1 {
            tracing::error!("uplink: change {} is not sent, because the cloud cannot read it: {text}", changes.start);
            self.progress.acknowledge(changes.clone());
            self.status.change(|status| status.set_aside += 1);
            self.unsaved_mut();
        }
        self.doubt(changes);
    }

    /// Until all of these are through, batches stay small.
    fn doubt(&mut self, changes: Range<u64>) {
        let doubted = self.doubted.take().unwrap_or_else(|| changes.clone());
        self.doubted = Some(doubted.start.min(changes.start)..doubted.end.max(changes.end));
        self.batch = (self.batch / 4).max(1);
    }

    /// If shards have been restored from backups, what they lack is sent again. They are expected to
    /// have it until that is sure, so that they go on to ask.
    fn replay(&mut self, expected: &Shards, reply: &PushReply) {
        let gone = expected.gone(&reply.members);
        let mut lacking = expected.lacking(&reply.shards);
        lacking.extend(gone.iter().cloned());
        let Some(from) = lacking.iter().map(|(_, batch)| *batch).min() else { return };
        let names: Vec<&str> = lacking.iter().map(|(shard, _)| shard.as_str()).collect();
        let sent = match self.source.sent_since(from) {
            Ok(Some(ranges)) => ranges,
            Ok(None) => match self.source.everything_again() {
                Ok(()) => Vec::new(),
                Err(e) => return self.fail(format!("what a restored shard lacks cannot be found: {e}")),
            },
            Err(e) => return self.fail(format!("what a restored shard lacks cannot be found: {e}")),
        };
        tracing::warn!("{} lacks batches from {from} on that it had: they are sent again", names.join(", "));
        // What was acknowledged and is not saved yet is not known to the source.
        let unsaved = self.unsaved.iter().flat_map(|saved| saved.sent.clone()).chain(self.being_saved.clone());
        let unsaved: Vec<_> = unsaved.filter(|(batch, _)| *batch >= from).map(|(_, changes)| changes).collect();
        sent.into_iter().chain(unsaved).for_each(|changes| self.progress.rewind(changes));
        self.shards.adopt(&reply.shards, &lacking);
        self.shards.forget(&gone);
        self.status.change(|status| status.replays += lacking.len() as u64);
        self.unsaved_mut();
    }

    fn fail(&self, what: String) {
        tracing::debug!("uplink: {what}");
        self.status.change(|status| {
            status.failures += 1;
            // Said once, not with every try.
            if status.last_error.is_none() {
                tracing::warn!("uplink: {what}");
            }
            status.last_error = Some(what);
        });
    }

    fn unsaved_mut(&mut self) -> &mut Saved {
        if self.unsaved.is_none() {
            self.save_at = Instant::now() + SAVE_EVERY;
        }
        self.unsaved.get_or_insert_default()
    }

    fn save(&mut self, tasks: &mut JoinSet<Done>) {
        if let Some(saved) = self.unsaved.take() {
            self.saving = true;
            let (source, saved) = (Arc::clone(&self.source), self.complete(saved));
            self.being_saved.clone_from(&saved.sent);
            tasks.spawn_blocking(move || Done::Saved(source.save(saved.clone()).map_err(|e| (e, saved))));
        }
    }

    /// With the state as it is now.
    fn complete(&self, saved: Saved) -> Saved {
        let mut state = vec![FORMAT];
        varint::put(&mut state, self.next_batch + NUMBERS_SKIPPED);
        self.progress.put(&mut state);
        self.shards.put(&mut state);
        Saved { state, done_below: self.progress.done_below(), ..saved }
    }

    /// When this gateway sends next, of those of the same minute each at another time.
    fn next_moment(&self, now: Instant) -> Instant {
        let Ok(jitter_us) = i64::try_from(self.options.jitter.as_micros()) else { return now };
        if jitter_us == 0 {
            return now;
        }
        let phase = xxhash_rust::xxh3::xxh3_64(self.identity.gateway.as_bytes()) as i64;
        let past_us = (self.source.now_us() - phase.rem_euclid(jitter_us)).rem_euclid(jitter_us);
        now + Duration::from_micros((jitter_us - past_us) as u64)
    }

    /// When something may become due by itself.
    fn next_wake(&self) -> Instant {
        let now = Instant::now();
        let save_at = if self.unsaved.is_some() && !self.saving { Some(self.save_at) } else { None };
        let may_read = self.may_read();
        let backlog_at = (may_read && self.progress.waiting_below(self.live_from) > 0).then_some(self.backlog_at);
        // Moments pass also while nothing waits: a change that comes then has to wait for the next. Without
        // jitter it is woken by the change itself.
        let live_at = (!self.options.jitter.is_zero()).then_some(self.live_at);
        let put_back = (may_read && self.progress.waiting_below(self.live_until) > 0).then_some(self.not_before);
        let sends = [Some(self.heartbeat_at), backlog_at, live_at, put_back].into_iter().flatten();
        let sends = sends.map(|at| at.max(self.not_before)).filter(|&at| at > now);
        sends.chain(save_at).min().unwrap_or(now + self.options.heartbeat)
    }

    /// How many changes are not acknowledged, and when the oldest of them was made.
    fn backlog(&self) -> (u64, Option<Micros>) {
        let backlog = self.progress.waiting_below(*self.latest.borrow() + 1);
        (backlog, (backlog > 0).then(|| self.source.made_us(self.progress.done_below())).flatten())
    }

    fn tell(&mut self) {
        let now = Instant::now();
        // Asked before: what becomes complete meanwhile may be a change that waits.
        let complete_us = self.source.complete_us();
        let (backlog, oldest_us) = self.backlog();
        let endpoint = |(at, endpoint): (usize, &super::Endpoint)| EndpointStatus {
            url: endpoint.url.clone(),
            state: self.picker.state(at, now),
        };
        let endpoints = self.options.endpoints.iter().enumerate().map(endpoint).collect();
        if backlog == 0 {
            self.complete_us = complete_us.max(self.complete_us);
        }
        self.status.change(|status| {
            status.backlog = backlog;
            status.oldest_us = oldest_us;
            status.endpoints = endpoints;
        });
    }
}

/// Why the uplink cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// An endpoint, or a certificate.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The store.
    #[error("the uplink's progress cannot be read: {0}")]
    Source(#[from] SourceError),
}

/// The changes below `end` that are not acknowledged, by what was saved last.
pub fn waiting(saved: &[u8], end: u64) -> Vec<Range<u64>> {
    read_state(saved).unwrap_or_default().1.waiting(end)
}

/// What is kept of what was saved when there is no uplink any more: should there be one again, its batches
/// must not have the numbers of earlier ones, which shards remember.
pub fn begun_anew(saved: &[u8]) -> Vec<u8> {
    let next_batch = read_state(saved).map_or(1, |(next_batch, ..)| next_batch);
    let mut state = vec![FORMAT];
    varint::put(&mut state, next_batch);
    Progress::default().put(&mut state);
    Shards::default().put(&mut state);
    state
}

fn read_state(bytes: &[u8]) -> Option<(u64, Progress, Shards)> {
    let rest = &mut &*bytes;
    (varint::take_byte(rest)? == FORMAT).then_some(())?;
    Some((varint::take(rest)?, Progress::read(rest)?, Shards::read(rest)?))
}
