//! A gateway's uplink: the rules of `cloud-sync/uplink/src/sender.rs` in steps of time.
//!
//! Arrives: that it is time, that a batch has been read, that a push has ended. Leaves: reads
//! and pushes, and when to wake it. Always holds: what it decides it decides as the sender does,
//! in the same order.
//! Deliberately absent: what is saved, restored shards, endpoints of different weights. Pure.

use super::changes::{Closing, Waiting};
use super::cloud::{Daemons, Event, Load, Push, Ticket, Verdict};
use super::picker::Picker;
use super::tally::Tally;
use super::wheel::{PER_S, Step, Wheel};
use rand::RngExt;
use rand::rngs::SmallRng;
use std::ops::Range;

/// `OUTAGE` of the sender.
const OUTAGE: Step = 60 * PER_S;
/// `REMEMBERED - UNDER_WAY_MAX` of the sender.
const AHEAD_MAX: u32 = 32;
/// `SAVE_EVERY` of the sender: saving wakes it, too.
const SAVE_EVERY: Step = PER_S;
/// `REFUSED_WAIT` of the sender.
const REFUSED_WAIT: Step = 10 * PER_S;
/// `BACKLOG_SHARE` of the sender.
const BACKLOG_SHARE: u32 = 4;

/// What is the same for all gateways.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    /// When windows close.
    pub(super) closing: Closing,
    /// Summaries of a change.
    pub(super) summaries_per_change: f64,
    /// `uplink.batch`, in changes.
    pub(super) batch: u32,
    /// Steps that reading one change takes.
    pub(super) read: f64,
    /// `uplink.jitter`.
    pub(super) jitter: Step,
    /// `uplink.heartbeat`.
    pub(super) heartbeat: Step,
    /// `uplink.timeout`.
    pub(super) timeout: Step,
    /// `uplink.in_flight`, or what the cloud's replies allow.
    pub(super) in_flight: usize,
    /// `uplink.catch_up`; 0 sets no bound.
    pub(super) catch_up: f64,
}

/// What a gateway acts on.
#[derive(Debug)]
pub(super) struct Scene<'a> {
    pub(super) now: Step,
    pub(super) policy: &'a Policy,
    pub(super) daemons: Daemons<'a>,
    pub(super) wheel: Wheel<Event>,
    pub(super) rng: SmallRng,
    pub(super) tally: Tally,
}

#[derive(Debug, Clone)]
struct UnderWay {
    number: u32,
    daemon: usize,
    /// Nothing for a heartbeat.
    changes: Range<u32>,
}

/// One gateway.
#[derive(Debug, Clone)]
pub(super) struct Gateway {
    id: u32,
    /// When its moments are.
    phase: Step,
    /// When it commits, behind the full second.
    offset: Step,
    /// Whether it was out of reach, or has devices in the shard that is down.
    is_hit: bool,
    picker: Picker,
    waiting: Waiting,
    /// Those below are in `waiting`, under way or acknowledged.
    known: u32,
    live_from: u32,
    live_until: u32,
    live_at: Step,
    backlog_at: Step,
    heartbeat_at: Step,
    not_before: Step,
    /// `last_success` of the sender.
    last_heard: Step,
    turns: u32,
    reading: Option<(Range<u32>, bool)>,
    pushes: Vec<Option<UnderWay>>,
    under_way: usize,
    /// Of the next push.
    next_number: u32,
    save_at: Option<Step>,
    wake_at: Step,
}

/// How a gateway begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start {
    pub(super) id: u32,
    pub(super) phase: Step,
    pub(super) offset: Step,
    pub(super) is_hit: bool,
    /// The cloud has not answered it since time began; else it has sent everything.
    pub(super) was_out: bool,
    pub(super) daemons: usize,
}

impl Gateway {
    pub(super) fn new(start: Start, scene: &mut Scene<'_>) -> Self {
        let Start { id, phase, offset, is_hit, was_out, daemons } = start;
        let (now, policy) = (scene.now, scene.policy);
        let made = policy.closing.made_by(now, offset);
        let mut picker = Picker::new(daemons, scene.rng.random_range(0..daemons));
        let mut waiting = Waiting::default();
        if was_out {
            picker.open(|| now + scene.rng.random_range(0..30 * PER_S));
            waiting.put(0..made);
        }
        let live_from = if was_out { 0 } else { made };
        let mut gateway = Gateway {
            id,
            phase,
            offset,
            is_hit,
            picker,
            waiting,
            known: made,
            live_from,
            live_until: made,
            live_at: now,
            backlog_at: now,
            heartbeat_at: now + scene.rng.random_range(0..policy.heartbeat),
            not_before: now,
            last_heard: if was_out { 0 } else { now },
            turns: 0,
            reading: None,
            pushes: Vec::new(),
            under_way: 0,
            next_number: 0,
            save_at: None,
            wake_at: 0,
        };
        gateway.live_at = gateway.next_moment(now, policy);
        gateway.wake(scene);
        gateway
    }

    /// It may be time.
    pub(super) fn woken(&mut self, scene: &mut Scene<'_>) {
        if self.wake_at == scene.now {
            self.go_on(scene);
        }
    }

    /// A batch has been read.
    pub(super) fn read_done(&mut self, scene: &mut Scene<'_>) {
        let Some((changes, is_backlog)) = self.reading.take() else { return };
        let (now, policy) = (scene.now, scene.policy);
        if is_backlog && policy.catch_up > 0.0 {
            let share_s = changes.len() as f64 * policy.summaries_per_change / policy.catch_up;
            let steps = share_s * f64::from(PER_S) * scene.rng.random_range(0.8..1.2);
            self.backlog_at = now + steps as Step;
        }
        // As in the sender: a refusal that came meanwhile does not hold up this one.
        self.push(changes, scene);
        self.go_on(scene);
    }

    /// A push has ended, unless it had before.
    pub(super) fn ended(&mut self, ticket: Ticket, verdict: Verdict, scene: &mut Scene<'_>) {
        let place = &mut self.pushes[ticket.place as usize];
        if let Some(push) = place.take_if(|push| push.number == ticket.number) {
            self.under_way -= 1;
            self.settle(push, verdict, scene);
            self.go_on(scene);
        }
    }

    fn go_on(&mut self, scene: &mut Scene<'_>) {
        self.start(scene);
        self.wake(scene);
    }

    fn start(&mut self, scene: &mut Scene<'_>) {
        let (now, policy) = (scene.now, scene.policy);
        self.save_at = self.save_at.filter(|&at| at > now);
        if self.not_before > now {
            return;
        }
        if self.heartbeat_at <= now && self.under_way < policy.in_flight {
            self.heartbeat_at = now + policy.heartbeat;
            self.push(0..0, scene);
        }
        if self.live_at <= now {
            self.live_at = self.next_moment(now, policy);
            self.live_until = self.look(scene);
        }
        if self.may_read(policy) {
            self.read(scene);
        }
    }

    /// As in the sender, a batch that is slow is not overtaken by more than a shard remembers.
    fn may_read(&self, policy: &Policy) -> bool {
        let batches = self.pushes.iter().flatten().filter(|push| !push.changes.is_empty());
        let slowest = batches.map(|push| push.number).min().unwrap_or(self.next_number);
        self.reading.is_none() && self.under_way < policy.in_flight && self.next_number - slowest < AHEAD_MAX
    }

    /// All changes there are now wait, if they have not been sent.
    fn look(&mut self, scene: &Scene<'_>) -> u32 {
        let made = scene.policy.closing.made_by(scene.now, self.offset);
        self.waiting.put(self.known..made);
        self.known = made;
        made
    }

    fn read(&mut self, scene: &mut Scene<'_>) {
        let (backlog, live) = (0..self.live_from, self.live_from..self.live_until);
        self.turns = self.turns.wrapping_add(1);
        let backlog_first = self.turns.is_multiple_of(BACKLOG_SHARE);
        let order = if backlog_first { [(backlog, true), (live, false)] } else { [(live, false), (backlog, true)] };
        for (within, is_backlog) in order {
            if is_backlog && self.backlog_at > scene.now {
                continue;
            }
            if let Some(changes) = self.waiting.take(within, scene.policy.batch) {
                let steps = (changes.len() as f64 * scene.policy.read).round() as Step;
                let at = scene.wheel.within(scene.now + steps);
                scene.wheel.add(at, Event::Read(self.id));
                self.reading = Some((changes, is_backlog));
                return;
            }
        }
    }

    fn push(&mut self, changes: Range<u32>, scene: &mut Scene<'_>) {
        let now = scene.now;
        let daemon = match self.picker.pick(now) {
            Ok(daemon) => daemon,
            Err(again) => {
                self.waiting.put(changes);
                self.not_before = again;
                return;
            }
        };
        let summaries = changes.len() as f64 * scene.policy.summaries_per_change;
        let load = if changes.is_empty() { Load::Heartbeat } else { Load::Batch { summaries } };
        let number = self.next_number;
        self.next_number += 1;
        let place = self.pushes.iter().position(Option::is_none).unwrap_or_else(|| {
            self.pushes.push(None);
            self.pushes.len() - 1
        });
        self.pushes[place] = Some(UnderWay { number, daemon, changes });
        self.under_way += 1;
        let ticket = Ticket { gateway: self.id, place: place as u32, number };
        let push = Push { ticket, load, touches: self.is_hit, came: now, until: now + scene.policy.timeout };
        scene.tally.came(now, load);
        scene.daemons.push(daemon, push, &mut scene.wheel, &mut scene.tally);
    }

    fn settle(&mut self, push: UnderWay, verdict: Verdict, scene: &mut Scene<'_>) {
        let now = scene.now;
        let UnderWay { daemon, changes, .. } = push;
        scene.tally.ended(now, changes.len() as f64 * scene.policy.summaries_per_change, verdict);
        if verdict == Verdict::Stored {
            self.picker.succeeded(daemon);
            self.heard(scene);
            self.acknowledged(changes, scene);
            return;
        }
        let is_heartbeat = changes.is_empty();
        self.waiting.put(changes);
        match verdict {
            Verdict::Stored => {}
            Verdict::Failed | Verdict::TimedOut => self.picker.failed(daemon, now),
            Verdict::Busy(wait) => {
                self.picker.succeeded(daemon);
                self.heard(scene);
                self.not_before = now + (f64::from(wait) * scene.rng.random_range(1.0..2.0)) as Step;
            }
        }
        if is_heartbeat {
            self.heartbeat_at = self.heartbeat_at.min(now + REFUSED_WAIT);
        }
    }

    /// The cloud is there: after an outage, what waits is backlog from now on.
    fn heard(&mut self, scene: &Scene<'_>) {
        if scene.now - self.last_heard > OUTAGE {
            self.live_from = self.look(scene);
        }
        self.last_heard = scene.now;
    }

    fn acknowledged(&mut self, changes: Range<u32>, scene: &mut Scene<'_>) {
        if !changes.is_empty() {
            self.save_at.get_or_insert(scene.now + SAVE_EVERY);
        }
        for change in changes {
            let made = scene.policy.closing.made_at(change, self.offset);
            scene.tally.stored(scene.now, made, self.is_hit);
        }
    }

    /// When this gateway sends next.
    fn next_moment(&self, now: Step, policy: &Policy) -> Step {
        if policy.jitter == 0 {
            return now;
        }
        let phase = self.phase % policy.jitter;
        now + policy.jitter - (now + policy.jitter - phase) % policy.jitter
    }

    /// Wakes it when something may become due by itself, or by a change.
    fn wake(&mut self, scene: &mut Scene<'_>) {
        let at = scene.wheel.within(self.next_wake(scene.now, scene.policy));
        if at != self.wake_at {
            self.wake_at = at;
            scene.wheel.add(at, Event::Wake(self.id));
        }
    }

    fn next_wake(&self, now: Step, policy: &Policy) -> Step {
        let change_at = policy.closing.made_at(policy.closing.made_by(now, self.offset), self.offset);
        let may_read = self.may_read(policy);
        let backlog_at = (may_read && self.waiting.any_within(0..self.live_from)).then_some(self.backlog_at);
        let live_at = (policy.jitter > 0).then_some(self.live_at);
        let is_put_back = self.waiting.any_within(0..self.live_until);
        let put_back = (may_read && is_put_back).then_some(self.not_before);
        let sends = [Some(self.heartbeat_at), backlog_at, live_at, put_back];
        let sends = sends.into_iter().flatten().map(|at| at.max(self.not_before));
        // Every change wakes it; it does something only if something waits, or if it need not wait for a moment.
        let change_at = (is_put_back || policy.jitter == 0).then_some(change_at);
        let wakes = sends.chain(change_at).chain(self.save_at).filter(|&at| at > now);
        wakes.min().unwrap_or(now + policy.heartbeat)
    }
}
