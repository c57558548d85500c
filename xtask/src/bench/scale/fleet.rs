//! All gateways and the cloud, step by step.
//!
//! Arrives: how gateways behave, what the cloud can do, what goes wrong. Leaves: a [`Tally`].
//! Always holds: the same scenario and seed give the same tally. Pure.

use super::changes::LOOK_EVERY;
use super::cloud::{Cloud, Daemons, Event};
use super::gateway::{Gateway, Policy, Scene, Start};
use super::tally::Tally;
use super::wheel::{PER_S, Step, Wheel};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use xxhash_rust::xxh3::xxh3_64;

/// Quiet time before a run of which everything has been sent.
pub(super) const BEFORE: Step = 600 * PER_S;
/// How often it is looked whether everything is as before.
const LOOK_AGAIN: Step = 10 * PER_S;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Trouble {
    /// Nothing.
    None,
    /// The cloud was out of reach for so long, for every so many-th gateway, and is back.
    Outage { steps: Step, every: u32 },
    /// What [`Cloud::fault`] says, for the gateways that have devices there: a share of all.
    Fault { touching: f64 },
}

/// How long a run takes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Until {
    /// So many steps.
    After(Step),
    /// Until nothing waits longer than usual, but at most so many steps.
    Settled(Step),
}

/// A run.
#[derive(Debug, Clone)]
pub(super) struct Scenario {
    pub(super) gateways: u32,
    pub(super) policy: Policy,
    pub(super) cloud: Cloud,
    pub(super) trouble: Trouble,
    pub(super) until: Until,
    pub(super) seed: u64,
}

/// A gateway's id; its moments and its device names follow from it.
pub(super) fn name(gateway: u32) -> String {
    format!("gateway-{gateway:05}")
}

/// `next_moment` of the sender: where in the time of the jitter a gateway has its moments.
fn phase(gateway: u32, jitter: Step) -> Step {
    let hash = xxh3_64(name(gateway).as_bytes()) as i64;
    let step_us = 1_000_000 / i64::from(PER_S);
    if jitter == 0 { 0 } else { (hash.rem_euclid(i64::from(jitter) * step_us) / step_us) as Step }
}

pub(super) fn run(scenario: &Scenario) -> Tally {
    let Scenario { gateways, policy, cloud, trouble, until, seed } = scenario;
    let begin = match trouble {
        Trouble::Outage { steps, .. } => *steps,
        _ => BEFORE,
    };
    let ends = cloud.fault.as_ref().map_or(begin, |fault| fault.during.end);
    let mut scene = Scene {
        now: begin,
        policy,
        daemons: Daemons::new(cloud),
        wheel: Wheel::new(begin),
        rng: SmallRng::seed_from_u64(*seed),
        tally: Tally::new(begin, ends),
    };
    let starts: Vec<Start> = (0..*gateways).map(|id| start(id, scenario, &mut scene.rng)).collect();
    scene.tally.old_left = starts.iter().map(|start| old(start, policy, begin, ends)).sum();
    let mut all: Vec<Gateway> = starts.iter().map(|&start| Gateway::new(start, &mut scene)).collect();
    let mut events: Vec<Event> = Vec::new();
    let (last, is_fixed) = match until {
        Until::After(steps) => (begin + steps, true),
        Until::Settled(steps) => (ends + steps, false),
    };
    while scene.now < last && (is_fixed || !is_settled(&scene, &starts, ends)) {
        let (now, due) = scene.wheel.advance(events);
        (scene.now, events) = (now, due);
        for event in events.drain(..) {
            happen(event, &mut all, &mut scene);
        }
    }
    scene.tally
}

fn happen(event: Event, all: &mut [Gateway], scene: &mut Scene<'_>) {
    match event {
        Event::Wake(id) => all[id as usize].woken(scene),
        Event::Read(id) => all[id as usize].read_done(scene),
        Event::Ended(ticket, verdict) => all[ticket.gateway as usize].ended(ticket, verdict, scene),
        Event::Freed(daemon) => scene.daemons.freed(daemon),
    }
}

fn start(id: u32, scenario: &Scenario, rng: &mut SmallRng) -> Start {
    let is_hit = match scenario.trouble {
        Trouble::None => false,
        Trouble::Outage { every, .. } => id.is_multiple_of(every),
        Trouble::Fault { touching } => rng.random_bool(touching),
    };
    Start {
        id,
        phase: phase(id, scenario.policy.jitter),
        offset: rng.random_range(0..LOOK_EVERY),
        is_hit,
        was_out: is_hit && matches!(scenario.trouble, Trouble::Outage { .. }),
        daemons: scenario.cloud.daemons,
    }
}

/// Changes of a gateway that are old and not stored when a run begins, or will be.
fn old(start: &Start, policy: &Policy, begin: Step, ends: Step) -> u64 {
    let made_before = |at: Step| policy.closing.made_by(at - 1, start.offset);
    // What is made in the very step of the begin counts as sent.
    let sent = if start.was_out { 0 } else { policy.closing.made_by(begin, start.offset) };
    u64::from(made_before(ends).saturating_sub(sent))
}

/// True if no more waits than a minute and a half's changes.
fn is_settled(scene: &Scene<'_>, starts: &[Start], ends: Step) -> bool {
    if !scene.now.is_multiple_of(LOOK_AGAIN) || scene.now < ends || scene.tally.old_left > 0 {
        return false;
    }
    let closing = scene.policy.closing;
    let fresh = |start: &Start| {
        let before = closing.made_by(ends - 1, start.offset);
        u64::from(closing.made_by(scene.now, start.offset) - before)
    };
    let made: u64 = starts.iter().map(fresh).sum();
    let usual = starts.len() as u64 * u64::from(closing.looks) * 3 / 2;
    made.saturating_sub(scene.tally.fresh_stored) <= usual
}

#[cfg(test)]
mod tests {
    use super::super::changes::Closing;
    use super::super::cloud::Fault;
    use super::*;

    /// A hundred gateways of 5,000 summaries a minute; the cloud can do twice that.
    fn scenario() -> Scenario {
        let policy = Policy {
            closing: Closing { window: 60 * PER_S, lateness: 10 * PER_S, looks: 50 },
            summaries_per_change: 100.0,
            batch: 50,
            read: 0.1,
            jitter: 30 * PER_S,
            heartbeat: 30 * PER_S,
            timeout: 30 * PER_S,
            in_flight: 4,
            catch_up: 20_000.0,
        };
        let cloud = Cloud {
            daemons: 2,
            max_pushes: 8,
            foresees: false,
            steps_per_push: 0.0,
            steps_per_summary: 0.006,
            reply: 7,
            heartbeat: 2,
            fault: None,
        };
        Scenario { gateways: 100, policy, cloud, trouble: Trouble::None, until: Until::After(300 * PER_S), seed: 1 }
    }

    fn stored(tally: &Tally) -> f64 {
        tally.total(|second| f64::from(second.fresh + second.old) * 100.0)
    }

    #[test]
    fn a_quiet_fleet_sends_everything_once() {
        let tally = run(&scenario());
        let made = 5.0 * 100.0 * 5_000.0;
        assert!((stored(&tally) - made).abs() < 0.02 * made, "{}", stored(&tally));
        assert!(tally.fresh.others.at(0.99) < 32.0, "{}", tally.fresh.others.at(0.99));
        assert_eq!(run(&scenario()).queue.at(0.9), tally.queue.at(0.9), "the same seed gives the same run");
    }

    /// The moment of most gateways is not in the first second of a minute's changes.
    #[test]
    fn moments_pass_idle() {
        let tally = run(&scenario());
        let first = tally.seconds.iter().skip(10).step_by(60).map(|second| second.pushes).sum::<u32>();
        assert!(f64::from(first) < 50.0, "of 100 gateways in 5 minutes: {first}");
    }

    #[test]
    fn after_an_outage_everything_arrives_and_no_faster_than_the_cloud_stores() {
        for every in [1, 10] {
            let trouble = Trouble::Outage { steps: 1_800 * PER_S, every };
            let until = Until::Settled(10_000 * PER_S);
            let tally = run(&Scenario { trouble, until, ..scenario() });
            let took_s = tally.caught_up_s.expect("everything arrives");
            let backlog = 30.0 * 5_000.0 * 100.0 / f64::from(every);
            assert!(took_s >= 0.95 * backlog / 16_667.0, "{took_s} s");
            assert!(tally.seconds.iter().all(|second| f64::from(second.fresh + second.old) * 100.0 < 2.0 * 16_667.0));
        }
    }

    #[test]
    fn a_shard_that_is_down_holds_up_everything_until_it_is_back() {
        let during = BEFORE + 60 * PER_S..BEFORE + 360 * PER_S;
        let cloud = Cloud { fault: Some(Fault { during, silent: 1 }), ..scenario().cloud };
        let trouble = Trouble::Fault { touching: 1.0 };
        let tally = run(&Scenario { cloud, trouble, until: Until::Settled(10_000 * PER_S), ..scenario() });
        assert!(tally.caught_up_s.is_some_and(|took_s| took_s > 60.0), "{:?}", tally.caught_up_s);
        assert!((62..360).all(|second| tally.seconds[second].fresh + tally.seconds[second].old == 0));
        assert!(tally.total(|second| second.in_vain) > 0.0);
    }
}
