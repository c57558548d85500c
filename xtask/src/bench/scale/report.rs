//! What is computed, as tables: sizes, shards that are down, evenness, questions.

use super::balance::{Evenness, Placed};
use super::sizing::{Rollups, Shard, any_down, rollups};
use super::{Options, Plan};
use anyhow::Result;

const DAY_S: f64 = 86_400.0;
const MONTH_MIN: f64 = 30.0 * 24.0 * 60.0;
/// `query.timeout` and `query.cells` of the cloud.
const TIMEOUT_S: f64 = 30.0;
const CELLS: f64 = 500_000.0;
/// `CONNECTIONS` of `cloud-sync/node/src/shard/postgres.rs`.
const CONNECTIONS: u32 = 16;

fn line(name: &str, value: impl std::fmt::Display) {
    println!("{name:<60} {value:>16}");
}

/// A number with its thousands apart.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(super) fn sizes(options: &Options, plan: &Plan) {
    let (measured, assumed) = (&options.measured, &options.assumed);
    let Plan { load, shards, daemons, .. } = *plan;
    let (rows, summaries) = (load.rows_per_s(), load.summaries_per_s());
    println!("\n1. Arithmetic");
    line("windows of devices, that is rows, a second", grouped(rows));
    line("summaries a second", grouped(summaries));
    line("pushes a second", grouped(load.pushes_per_s()));
    line("MB a second on the wire", format!("{:.1}", summaries * measured.wire_bytes / 1e6));
    line("TB a day on the wire", format!("{:.2}", summaries * measured.wire_bytes * DAY_S / 1e12));
    line("rows a day", grouped(rows * DAY_S));
    line("TB a day on disk", format!("{:.1}", rows * DAY_S * assumed.row_bytes / 1e12));
    let busy = |shard: Shard, name: &str| {
        let plain = Shard { us_per_write: 0.0, ..shard }.needed(&load, assumed.utilisation);
        let needed = shard.needed(&load, assumed.utilisation);
        let text = |shards: Option<u32>| shards.map_or("none are enough".into(), |n| n.to_string());
        line(&format!("{name} shards, by summaries alone"), text(plain));
        line(&format!("{name} shards, with {} us for each write", assumed.us_per_write), text(needed));
    };
    busy(plan.shard, "PostgreSQL");
    busy(options.shard(measured.sqlite_summaries_per_s), "SQLite");
    line(&format!("daemons of {} cores", assumed.cores), daemons);
    let cores = summaries * measured.sqlite_cpu_us_per_summary / 1e6 / assumed.utilisation;
    line("cores of the only daemon that SQLite shards may have", format!("{cores:.0}"));
    println!("with {shards} PostgreSQL shards and {daemons} daemons");
    line("  how busy a shard is, %", format!("{:.0}", 100.0 * plan.shard.busy(&load, shards)));
    line("  summaries a second that the cloud can store", grouped(plan.capacity()));
    line("  rows a day per shard", grouped(rows * DAY_S / f64::from(shards)));
    line("  GB a day per shard", grouped(rows * DAY_S * assumed.row_bytes / 1e9 / f64::from(shards)));
    line("  rows of a push per shard", grouped(load.summaries_per_push() / f64::from(load.metrics * shards)));
    line("  writes a second in each shard, however many there are", grouped(load.pushes_per_s()));
    let beats = f64::from(load.gateways) / f64::from(options.fleet.heartbeat_s);
    line("  heartbeats a second, each of which asks every shard", grouped(beats));
    line("  connections of all daemons to each shard", daemons * CONNECTIONS);
}

/// What a shard that is down means for more and fewer shards.
pub(super) fn shards_down(options: &Options, plan: &Plan, placed: &Placed) -> Result<()> {
    println!(
        "\n{:<12} {:>22} {:>30} {:>26}",
        "shards", "gateways held up, %", "some shard is down, min/month", "in one shard each, min"
    );
    let share = options.assumed.down_min_per_month / MONTH_MIN;
    for shards in [1, 4, plan.shards, 100, 1_000, 10_000] {
        let touching = placed.touching(shards)?;
        println!(
            "{shards:<12} {:>22.2} {:>30.0} {:>26.0}",
            100.0 * touching,
            any_down(share, shards) * MONTH_MIN,
            share * MONTH_MIN
        );
    }
    Ok(())
}

pub(super) fn evenness(plan: &Plan, placed: &Placed) -> Result<()> {
    println!("\n5. Balance: {} devices in 16,384 slots", grouped(plan.load.devices()));
    println!("{:<12} {:>18} {:>26} {:>12}", "shards", "fullest / average", "slots moved for one more", "at least");
    for shards in [2, 8, plan.shards, plan.shards * 2, 100, 250] {
        let Evenness { peak, moved, least } = placed.evenness(shards)?;
        println!("{shards:<12} {peak:>18.4} {moved:>26} {least:>12}");
    }
    Ok(())
}

pub(super) fn questions(options: &Options, plan: &Plan) {
    let rate = options.assumed.hour_rows_per_s;
    let Plan { load, shards, daemons, .. } = *plan;
    let own = load.devices() / f64::from(shards);
    let windows_per_day = DAY_S / load.window_s;
    println!("\n6. Questions over 24 hours, {} rows/s and shard, {TIMEOUT_S} s (query.timeout)", grouped(rate));
    println!("{:<56} {:>14} {:>10} {:>8}", "", "rows per shard", "seconds", "");
    let of_gateway = f64::from(load.devices) / f64::from(shards);
    for (name, rows) in [
        ("the fleet, from days (whole days in UTC)", own),
        ("the fleet, from hours", own * 24.0),
        ("the fleet, from windows", own * windows_per_day),
        ("one device in 100, from hours", own * 24.0 / 100.0),
        ("one gateway, from hours (and its shard's devices)", own + of_gateway * 24.0),
        ("one named device, from windows", windows_per_day),
    ] {
        let seconds = rows / rate;
        let verdict = if seconds > TIMEOUT_S { "too long" } else { "" };
        println!("{name:<56} {:>14} {seconds:>10.2} {verdict:>8}", grouped(rows));
    }
    line("hours of the whole fleet in one answer, at most", format!("{:.1}", rate * TIMEOUT_S / own));
    line("devices of which hours of a day fit into query.cells", grouped(CELLS / (24.0 * f64::from(load.metrics))));
    line("heartbeats read as JSON for each answer", grouped(f64::from(load.gateways)));
    let Rollups { hours_per_s, rows_per_s, by_one_daemon_per_s } = rollups(&load, shards, rate);
    line("hours of devices to roll up, a second and shard", grouped(hours_per_s));
    line("  rows read for that, a second and shard", grouped(rows_per_s));
    line("  rolled up by one daemon, a second and shard, at most", grouped(by_one_daemon_per_s));
    line(&format!("  by {daemons} daemons, if they never meet"), grouped(by_one_daemon_per_s * f64::from(daemons)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_stand_apart() {
        assert_eq!([grouped(7.0), grouped(833_333.3), grouped(14_400_000_000.0)], ["7", "833,333", "14,400,000,000"]);
    }
}
