//! The cloud as its gateways feel it: room for pushes, a rate, a shard that is down.
//!
//! Arrives: pushes, each at one daemon. Leaves: events that say how each ends, and when. Always
//! holds: a daemon has at most `max_pushes` under way, and one more is refused at once, over gRPC as
//! over HTTP (`cloud-sync/node/src/intake.rs`). What is let in is stored in that order, at the rate
//! of the slowest part, because a push has rows for every shard. Deliberately absent: shards that
//! differ, and daemons that do. Pure.

use super::tally::Tally;
use super::wheel::{Step, Wheel, of_ms};
use std::ops::Range;

/// `RETRY_AFTER` of the intake.
const BUSY_MS: f64 = 1_000.0;
/// As proposed: how long a push waits that would touch a shard that is known to be down.
const DOWN_WAIT_MS: f64 = 30_000.0;

/// What the cloud can do.
#[derive(Debug, Clone)]
pub(super) struct Cloud {
    /// Daemons; every gateway knows all of them.
    pub(super) daemons: usize,
    /// `cloud.max_pushes`.
    pub(super) max_pushes: u32,
    /// Not in the code: what touches a shard that is known to be down is refused before anything is
    /// written.
    pub(super) foresees: bool,
    /// What a push takes of the slowest part, in steps, besides its summaries.
    pub(super) steps_per_push: f64,
    /// And for each summary.
    pub(super) steps_per_summary: f64,
    /// From the end of that until the reply is there.
    pub(super) reply: Step,
    /// How long a heartbeat takes, which asks all shards one after the other.
    pub(super) heartbeat: Step,
    /// A shard that is down for a while.
    pub(super) fault: Option<Fault>,
}

/// A shard that is down.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    /// From when until when.
    pub(super) during: Range<Step>,
    /// How long a daemon waits for it before a push fails.
    pub(super) silent: Step,
}

/// What is pushed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Load {
    /// Nothing but a sign of life.
    Heartbeat,
    /// So many summaries.
    Batch { summaries: f64 },
}

/// How a push ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Verdict {
    /// Every shard has it.
    Stored,
    /// No room, or as proposed a shard that is known to be down: again after so long.
    Busy(Step),
    /// One shard did not take it, the others have.
    Failed,
    /// The gateway has waited for as long as it does.
    TimedOut,
}

/// Whose push it is: a gateway, the place among its pushes, a number that no other push has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) gateway: u32,
    pub(super) place: u32,
    pub(super) number: u32,
}

/// What becomes due.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Event {
    /// It is time for a gateway.
    Wake(u32),
    /// A gateway has read a batch.
    Read(u32),
    /// A push has ended.
    Ended(Ticket, Verdict),
    /// A daemon has room for one more.
    Freed(usize),
}

/// A push at a daemon.
#[derive(Debug, Clone, Copy)]
pub(super) struct Push {
    pub(super) ticket: Ticket,
    pub(super) load: Load,
    /// Whether it has rows for the shard that is down.
    pub(super) touches: bool,
    pub(super) came: Step,
    /// When the gateway gives up.
    pub(super) until: Step,
}

/// The daemons at work.
#[derive(Debug)]
pub(super) struct Daemons<'a> {
    cloud: &'a Cloud,
    /// Pushes that each has under way.
    under_way: Vec<u32>,
    /// When all that was let in is stored.
    free_at: f64,
}

impl<'a> Daemons<'a> {
    pub(super) fn new(cloud: &'a Cloud) -> Self {
        Daemons { cloud, under_way: vec![0; cloud.daemons], free_at: 0.0 }
    }

    fn fault(&self, now: Step, touches: bool) -> Option<&'a Fault> {
        self.cloud.fault.as_ref().filter(|fault| touches && fault.during.contains(&now))
    }

    /// A push comes.
    pub(super) fn push(&mut self, daemon: usize, push: Push, wheel: &mut Wheel<Event>, tally: &mut Tally) {
        let (now, fault) = (push.came, self.fault(push.came, push.touches));
        let Cloud { max_pushes, foresees, reply, .. } = *self.cloud;
        let is_heartbeat = matches!(push.load, Load::Heartbeat);
        if foresees && fault.is_some() && !is_heartbeat {
            wheel.add(now + reply, Event::Ended(push.ticket, Verdict::Busy(of_ms(DOWN_WAIT_MS))));
            return;
        }
        if self.under_way[daemon] >= max_pushes {
            wheel.add(now + reply, Event::Ended(push.ticket, Verdict::Busy(of_ms(BUSY_MS))));
            return;
        }
        let done = self.store(now, &push, tally).max(fault.map_or(0, |fault| now + fault.silent));
        // A heartbeat only learns less.
        let verdict = if fault.is_some() && !is_heartbeat { Verdict::Failed } else { Verdict::Stored };
        let (at, verdict) = if done < push.until { (done, verdict) } else { (push.until, Verdict::TimedOut) };
        self.under_way[daemon] += 1;
        wheel.add(at, Event::Freed(daemon));
        wheel.add(at, Event::Ended(push.ticket, verdict));
    }

    /// A daemon has room again.
    pub(super) fn freed(&mut self, daemon: usize) {
        self.under_way[daemon] -= 1;
    }

    /// When a push will be stored; one that nobody waits for any more when its turn comes is not.
    fn store(&mut self, now: Step, push: &Push, tally: &mut Tally) -> Step {
        let Load::Batch { summaries } = push.load else { return now + self.cloud.heartbeat };
        let begin = self.free_at.max(f64::from(now));
        if begin < f64::from(push.until) {
            self.free_at = begin + self.cloud.steps_per_push + summaries * self.cloud.steps_per_summary;
        }
        tally.queue.record(begin - f64::from(push.came));
        self.free_at.max(begin).ceil() as Step + self.cloud.reply
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cloud(foresees: bool) -> Cloud {
        Cloud {
            daemons: 2,
            max_pushes: 2,
            foresees,
            steps_per_push: 10.0,
            steps_per_summary: 0.1,
            reply: 5,
            heartbeat: 3,
            fault: Some(Fault { during: 1_000..2_000, silent: 500 }),
        }
    }

    const LIVE: Load = Load::Batch { summaries: 100.0 };

    /// Pushes that come at a step, each at a daemon, and what becomes of them.
    fn ends(foresees: bool, now: Step, pushes: &[(usize, Load, bool)]) -> Vec<(Step, u32, Verdict)> {
        let (cloud, mut tally) = (cloud(foresees), Tally::new(0, 0));
        let (mut daemons, mut wheel) = (Daemons::new(&cloud), Wheel::new(now));
        for (&(daemon, load, touches), number) in pushes.iter().zip(0..) {
            let ticket = Ticket { gateway: 0, place: 0, number };
            let push = Push { ticket, load, touches, came: now, until: now + 3_000 };
            daemons.push(daemon, push, &mut wheel, &mut tally);
        }
        let mut ends = Vec::new();
        for _ in 0..4_000 {
            let (now, events) = wheel.advance(Vec::new());
            for event in events {
                match event {
                    Event::Ended(ticket, verdict) => ends.push((now, ticket.number, verdict)),
                    Event::Freed(daemon) => daemons.freed(daemon),
                    Event::Wake(_) | Event::Read(_) => {}
                }
            }
        }
        ends
    }

    #[test]
    fn one_too_many_is_refused() {
        let pushes = [(0, LIVE, true), (0, LIVE, true), (0, LIVE, true), (1, LIVE, true), (1, Load::Heartbeat, true)];
        let expected = [
            (103, 4, Verdict::Stored),
            (105, 2, Verdict::Busy(100)),
            (125, 0, Verdict::Stored),
            (145, 1, Verdict::Stored),
            (165, 3, Verdict::Stored),
        ];
        assert_eq!(ends(false, 100, &pushes), expected, "the other daemon has room, the shards are the same");
    }

    #[test]
    fn what_is_slower_than_the_gateway_waits_times_out() {
        let (cloud, mut tally) = (cloud(false), Tally::new(0, 0));
        let (mut daemons, mut wheel) = (Daemons::new(&cloud), Wheel::new(0));
        let ticket = Ticket { gateway: 0, place: 0, number: 7 };
        daemons.push(0, Push { ticket, load: LIVE, touches: false, came: 0, until: 10 }, &mut wheel, &mut tally);
        let due = (0..10).map(|_| wheel.advance(Vec::new())).last();
        assert_eq!(due, Some((10, vec![Event::Freed(0), Event::Ended(ticket, Verdict::TimedOut)])));
    }

    #[test]
    fn a_silent_shard_fails_pushes_and_holds_their_room() {
        let pushes = [(0, LIVE, true), (0, LIVE, false), (0, LIVE, true), (1, Load::Heartbeat, true)];
        let expected = [
            (1_005, 2, Verdict::Busy(100)),
            (1_045, 1, Verdict::Stored),
            (1_500, 0, Verdict::Failed),
            (1_500, 3, Verdict::Stored),
        ];
        assert_eq!(ends(false, 1_000, &pushes), expected);
    }

    #[test]
    fn as_proposed_a_shard_that_is_down_takes_no_room() {
        let down = ends(true, 1_500, &[(0, LIVE, true), (0, LIVE, false)]);
        assert_eq!(down, [(1_505, 0, Verdict::Busy(3_000)), (1_525, 1, Verdict::Stored)]);
    }
}
