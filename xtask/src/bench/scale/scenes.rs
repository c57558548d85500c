//! What is simulated, and how it went: the herd of a minute, an outage, a shard that is down.
//!
//! Arrives: options, and what they come to. Leaves: tables. Always holds: lines that say "as
//! proposed" are of rules that the code does not have yet; all others are of those that it has.

use super::changes::{Closing, LOOKS_PER_S};
use super::chart::chart;
use super::cloud::{Cloud, Fault};
use super::fleet::{BEFORE, Scenario, Trouble, Until, run};
use super::gateway::Policy;
use super::tally::{Second, Tally};
use super::wheel::{PER_S, Step, of_ms, seconds};
use super::{Options, Plan};

/// How long the herd of a minute is watched.
const HERD: Step = 600 * PER_S;
/// What goes before a shard is down, in seconds.
const QUIET_S: u32 = 120;
/// After an outage nothing is simulated for longer than so many times as long.
const OUTAGES_MOST: f64 = 2.0;
/// And after a shard was down.
const DOWNS_MOST: u32 = 12;

/// As the options say, without trouble: every so many-th gateway, and as small a part of the cloud.
fn scenario(options: &Options, plan: &Plan, as_proposed: bool, sample: u32) -> Scenario {
    let (fleet, assumed) = (&options.fleet, &options.assumed);
    let looks = assumed.closing_s.max(1) * LOOKS_PER_S;
    let summaries_per_change = plan.load.summaries_per_window() / f64::from(looks);
    let batch = ((f64::from(fleet.batch) / summaries_per_change).floor() as u32).max(1);
    let policy = Policy {
        closing: Closing { window: fleet.window_s * PER_S, lateness: fleet.lateness_s * PER_S, looks },
        summaries_per_change,
        batch,
        read: assumed.read_ms * f64::from(PER_S) / 1e3 / f64::from(batch),
        jitter: fleet.jitter_s * PER_S,
        heartbeat: fleet.heartbeat_s * PER_S,
        timeout: fleet.timeout_s * PER_S,
        in_flight: fleet.in_flight,
        catch_up: f64::from(fleet.catch_up),
    };
    let steps = |us: f64| us * f64::from(PER_S * sample) / 1e6;
    // What a push takes besides its summaries is a shard's part.
    let per_push_us = plan.shard.us_per_write.min(plan.us_per_push);
    let cloud = Cloud {
        daemons: plan.daemons as usize,
        max_pushes: (fleet.max_pushes / sample).max(1),
        foresees: as_proposed,
        steps_per_push: steps(per_push_us),
        steps_per_summary: steps((plan.us_per_push - per_push_us) / plan.load.summaries_per_push()),
        reply: of_ms(assumed.commit_ms + assumed.network_ms),
        heartbeat: of_ms(assumed.network_ms + f64::from(plan.shards) * assumed.shard_ms),
        fault: None,
    };
    let gateways = fleet.gateways.div_ceil(sample);
    Scenario { gateways, policy, cloud, trouble: Trouble::None, until: Until::After(HERD), seed: options.seed }
}

fn name_of(as_proposed: bool) -> &'static str {
    if as_proposed { ", as proposed" } else { "" }
}

/// Of some seconds.
struct Rates {
    pushes: f64,
    /// Percent of pushes that were refused, ...
    refused: f64,
    /// ... that were not answered in time, ...
    timed_out: f64,
    /// ... that one shard did not take.
    failed: f64,
    /// Summaries that were not acknowledged.
    in_vain: f64,
}

impl Rates {
    fn of(seconds: &[Second]) -> Self {
        let per_s = |of: fn(&Second) -> f64| seconds.iter().map(of).sum::<f64>() / seconds.len().max(1) as f64;
        let pushes = per_s(|second| f64::from(second.pushes));
        let percent = |of: fn(&Second) -> f64| 100.0 * per_s(of) / pushes.max(1e-9);
        Rates {
            pushes,
            refused: percent(|second| f64::from(second.refused)),
            timed_out: percent(|second| f64::from(second.timed_out)),
            failed: percent(|second| f64::from(second.failed)),
            in_vain: per_s(|second| second.in_vain),
        }
    }
}

/// A fleet that sends each minute when it is over.
pub(super) fn herd(options: &Options, plan: &Plan) {
    let (minutes, capacity) = (HERD / PER_S / 60, plan.capacity() / 1e6);
    println!("\n2. The minute's herd: {minutes} minutes; the cloud stores {capacity:.2} M/s at most");
    println!(
        "{:<24} {:>12} {:>12} {:>12} {:>10} {:>10} {:>10}",
        "uplink.jitter", "peak to mean", "queue p50 ms", "queue p99 ms", "refused %", "late p50 s", "late p99 s"
    );
    for jitter_s in [0, options.fleet.jitter_s, options.fleet.window_s] {
        let mut bounded = scenario(options, plan, false, 1);
        bounded.policy.jitter = jitter_s * PER_S;
        let mut free = bounded.clone();
        (free.cloud.max_pushes, free.cloud.steps_per_push, free.cloud.steps_per_summary) = (u32::MAX, 0.0, 0.0);
        let (peak, tally) = (run(&free).peak_to_mean(|second| second.offered), run(&bounded));
        println!(
            "{:<24} {peak:>12.1} {:>12.0} {:>12.0} {:>10.1} {:>10.1} {:>10.1}",
            format!("{jitter_s} s"),
            tally.queue.at(0.5) * 1e3,
            tally.queue.at(0.99) * 1e3,
            Rates::of(&tally.seconds).refused,
            tally.fresh.others.at(0.5),
            tally.fresh.others.at(0.99)
        );
    }
}

/// All gateways, or some, have been cut off for hours.
pub(super) fn catch_up(options: &Options, plan: &Plan) {
    let sample = options.sample.max(1);
    println!("\n3. After {} hours out of reach; one gateway in {sample} is simulated", options.fleet.outage_h);
    println!(
        "{:<36} {:>8} {:>9} {:>9} {:>9} {:>9} {:>10} {:>10} {:>10}",
        "who was out, catch_up, in_flight",
        "over h",
        "pushes/s",
        "refused %",
        "timeout %",
        "MB/s",
        "late p50 s",
        "late p99 s",
        "others p99"
    );
    let (full, fair) = (f64::from(options.fleet.catch_up), plan.fair_catch_up().floor());
    let some = options.fleet.in_flight;
    let mut drawn = Vec::new();
    for (every, catch_up, in_flight) in
        [(1, full, some), (1, full, 1), (1, fair, some), (1, fair, 1), (10, full, some), (10, fair, some)]
    {
        let mut scenario = scenario(options, plan, false, sample);
        let steps = (options.fleet.outage_h * 3_600.0) as Step * PER_S;
        let most = f64::from(steps) * OUTAGES_MOST;
        (scenario.trouble, scenario.policy.catch_up) = (Trouble::Outage { steps, every }, catch_up);
        (scenario.until, scenario.policy.in_flight) = (Until::Settled(most as Step), in_flight);
        let tally = run(&scenario);
        let who = if every == 1 { "all".into() } else { format!("one in {every}") };
        let name = format!("{who}, {catch_up:.0}/s, {in_flight}");
        let over_h = over(&tally, 3_600.0, seconds(most as Step));
        caught_up(&name, &over_h, &tally, options.measured.wire_bytes, sample);
        if every == 1 && catch_up == full && in_flight == some {
            drawn.push((name, tally));
        }
    }
    println!("  MB/s: what comes and is not acknowledged; late: what closed after the outage");
    let looks = f64::from(options.assumed.closing_s.max(1) * LOOKS_PER_S);
    let per_change = plan.load.summaries_per_window() / looks;
    for (name, tally) in drawn {
        println!("  stored after it ({name}), hours:minutes; # closed after the outage, - before");
        print!("{}", chart(&tally.seconds, f64::from(sample), per_change, plan.capacity()));
    }
}

/// When all that is old was stored, in units of so many seconds; or that it was not while it was
/// simulated.
fn over(tally: &Tally, unit_s: f64, most_s: f64) -> String {
    match tally.caught_up_s {
        Some(s) => format!("{:.1}", s / unit_s),
        None => format!("> {:.0}", most_s / unit_s),
    }
}

fn caught_up(name: &str, over_h: &str, tally: &Tally, wire_bytes: f64, sample: u32) {
    let until = tally.caught_up_s.map_or(tally.seconds.len(), |s| s.ceil() as usize + 1);
    let rates = Rates::of(&tally.seconds[..until.min(tally.seconds.len())]);
    println!(
        "{name:<36} {over_h:>8} {:>9.0} {:>9.1} {:>9.1} {:>9.1} {:>10} {:>10} {:>10}",
        rates.pushes * f64::from(sample),
        rates.refused,
        rates.timed_out,
        rates.in_vain * wire_bytes * f64::from(sample) / 1e6,
        tally.fresh.hit.text(0.5),
        tally.fresh.hit.text(0.99),
        tally.fresh.others.text(0.99)
    );
}

/// One shard is down for a while; `touching` is the share of gateways that have devices there.
pub(super) fn shard_down(options: &Options, plan: &Plan, touching: f64) {
    let (sample, down_s) = (options.sample.max(1), (options.fleet.down_min * 60.0) as u32);
    let (shards, minutes) = (plan.shards, options.fleet.down_min);
    println!("\n4. One shard of {shards} is down for {minutes} minutes; one gateway in {sample} is simulated");
    println!(
        "{:<49} {:>7} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>10} {:>10}",
        "", "hit %", "pushes/s", "refused %", "timeout %", "failed %", "MB/s", "over min", "late p99 s", "others p99"
    );
    let silent = of_ms(options.assumed.silent_s * 1e3);
    let few = f64::from(plan.shards).recip();
    let some = options.fleet.in_flight;
    for (name, silent, touching, in_flight, as_proposed) in [
        ("refuses connections", 1, touching, some, false),
        ("silent", silent, touching, some, false),
        ("silent", silent, touching, 1, false),
        ("silent", silent, touching, some, true),
        ("silent, each gateway in one shard", silent, few, some, false),
        ("silent, each gateway in one shard", silent, few, some, true),
    ] {
        let mut scenario = scenario(options, plan, as_proposed, sample);
        let from = BEFORE + QUIET_S * PER_S;
        (scenario.trouble, scenario.policy.in_flight) = (Trouble::Fault { touching }, in_flight);
        scenario.cloud.fault = Some(Fault { during: from..from + down_s * PER_S, silent });
        scenario.until = Until::Settled(down_s * DOWNS_MOST * PER_S);
        let tally = run(&scenario);
        let rates = Rates::of(&tally.seconds[QUIET_S as usize..(QUIET_S + down_s) as usize]);
        println!(
            "{:<49} {:>7.1} {:>9.0} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>9} {:>10} {:>10}",
            format!("{name}, {in_flight}{}", name_of(as_proposed)),
            100.0 * touching,
            rates.pushes * f64::from(sample),
            rates.refused,
            rates.timed_out,
            rates.failed,
            rates.in_vain * options.measured.wire_bytes * f64::from(sample) / 1e6,
            over(&tally, 60.0, f64::from(down_s * DOWNS_MOST)),
            tally.old.hit.text(0.99),
            tally.old.others.text(0.99)
        );
    }
    println!("  MB/s: what comes and is not acknowledged; late: what closed meanwhile");
}
