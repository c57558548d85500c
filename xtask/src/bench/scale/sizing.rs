//! How much comes, and how much is needed for it. Pure.
//!
//! Arrives: the size of the fleet, what was measured of one shard and one daemon. Leaves: rates,
//! shards, daemons, rows. Always holds: a push has rows for every shard, so every shard commits as
//! many writes as there are pushes, however many shards there are.

/// A fleet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) gateways: u32,
    /// Of each gateway.
    pub(super) devices: u32,
    /// Of each device.
    pub(super) metrics: u32,
    /// `window.length`.
    pub(super) window_s: f64,
    /// `uplink.batch`, in summaries.
    pub(super) batch: u32,
}

impl Load {
    pub(super) fn devices(&self) -> f64 {
        f64::from(self.gateways) * f64::from(self.devices)
    }

    /// Windows of devices, which are rows.
    pub(super) fn rows_per_s(&self) -> f64 {
        self.devices() / self.window_s
    }

    pub(super) fn summaries_per_s(&self) -> f64 {
        self.rows_per_s() * f64::from(self.metrics)
    }

    /// Summaries of a gateway for each window.
    pub(super) fn summaries_per_window(&self) -> f64 {
        f64::from(self.devices) * f64::from(self.metrics)
    }

    /// Summaries of one push: those of a window of all devices, or a full batch.
    pub(super) fn summaries_per_push(&self) -> f64 {
        self.summaries_per_window().min(f64::from(self.batch))
    }

    pub(super) fn pushes_per_s(&self) -> f64 {
        self.summaries_per_s() / self.summaries_per_push()
    }
}

/// What was measured of one shard.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shard {
    pub(super) summaries_per_s: f64,
    /// Summaries of one write in that measurement.
    pub(super) summaries_per_write: f64,
    /// What a write takes besides its rows.
    pub(super) us_per_write: f64,
}

impl Shard {
    pub(super) fn us_per_summary(&self) -> f64 {
        (1e6 / self.summaries_per_s - self.us_per_write / self.summaries_per_write).max(0.0)
    }

    /// How long a shard of so many works on a push.
    pub(super) fn us_per_push(&self, summaries: f64, shards: u32) -> f64 {
        self.us_per_write + summaries / f64::from(shards) * self.us_per_summary()
    }

    /// The share of its time that a shard of so many works.
    pub(super) fn busy(&self, load: &Load, shards: u32) -> f64 {
        load.pushes_per_s() * self.us_per_push(load.summaries_per_push(), shards) / 1e6
    }

    /// The fewest shards that are busy for at most this share of their time; none are enough if
    /// writes alone take longer.
    pub(super) fn needed(&self, load: &Load, utilisation: f64) -> Option<u32> {
        let left = utilisation - load.pushes_per_s() * self.us_per_write / 1e6;
        let rows = load.summaries_per_s() * self.us_per_summary() / 1e6;
        (left > 0.0).then(|| (rows / left - 1e-9).ceil().max(1.0) as u32)
    }
}

/// Daemons of so many cores for so much CPU.
pub(super) fn daemons(summaries_per_s: f64, cpu_us_per_summary: f64, cores: f64, utilisation: f64) -> u32 {
    (summaries_per_s * cpu_us_per_summary / 1e6 / (cores * utilisation) - 1e-9).ceil().max(1.0) as u32
}

/// The share of time in which at least one of so many shards is down.
pub(super) fn any_down(share: f64, shards: u32) -> f64 {
    1.0 - (1.0 - share).powf(f64::from(shards))
}

/// How hours and days keep up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rollups {
    /// Hours of devices that a shard has to fold in a second.
    pub(super) hours_per_s: f64,
    /// Rows that it reads for that: the windows of each, and the hours of its day so far.
    pub(super) rows_per_s: f64,
    /// Hours of each shard that one daemon folds in a second, one shard after the other.
    pub(super) by_one_daemon_per_s: f64,
}

/// `TIDY_ROWS` and the shorter pause of `cloud-sync/node/src/app.rs`.
const TIDY_HOURS: f64 = 500.0;
const TIDY_PAUSE_S: f64 = 0.05;

pub(super) fn rollups(load: &Load, shards: u32, rows_per_s: f64) -> Rollups {
    // Every hour makes its day anew, from 12.5 hours on average.
    let rows_per_hour = 3_600.0 / load.window_s + 12.5;
    let hours_per_s = load.devices() / f64::from(shards) / 3_600.0;
    let look_s = f64::from(shards) * TIDY_HOURS * rows_per_hour / rows_per_s + TIDY_PAUSE_S;
    Rollups { hours_per_s, rows_per_s: hours_per_s * rows_per_hour, by_one_daemon_per_s: TIDY_HOURS / look_s }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Load = Load { gateways: 10_000, devices: 1_000, metrics: 5, window_s: 60.0, batch: 5_000 };

    #[test]
    fn the_target_is_arithmetic() {
        assert_eq!((TARGET.rows_per_s().round(), TARGET.summaries_per_s().round()), (166_667.0, 833_333.0));
        assert_eq!((TARGET.summaries_per_push(), TARGET.pushes_per_s().round()), (5_000.0, 167.0));
        assert_eq!(daemons(TARGET.summaries_per_s(), 6.0, 4.0, 0.5), 3, "5 cores at half, four each");
    }

    #[test]
    fn as_many_shards_as_are_busy_for_the_share() {
        let free = Shard { summaries_per_s: 50_000.0, summaries_per_write: 5_000.0, us_per_write: 0.0 };
        assert_eq!(free.needed(&TARGET, 0.5), Some(34), "833,333 / 25,000");
        let costly = Shard { us_per_write: 1_000.0, ..free };
        let needed = costly.needed(&TARGET, 0.5).unwrap();
        assert!(needed > 34 && costly.busy(&TARGET, needed) <= 0.5 && costly.busy(&TARGET, needed - 1) > 0.5);
        let hopeless = Shard { us_per_write: 4_000.0, ..free };
        assert_eq!(hopeless.needed(&TARGET, 0.5), None, "167 writes a second are in each of them");
    }

    #[test]
    fn more_shards_are_down_more_often() {
        assert!((any_down(0.001, 1) - 0.001).abs() < 1e-12);
        assert!((any_down(0.001, 30) - 0.0296).abs() < 1e-4);
    }

    #[test]
    fn rollups_need_their_rows() {
        let Rollups { hours_per_s, rows_per_s, by_one_daemon_per_s } = rollups(&TARGET, 10, 145_000.0);
        assert_eq!((hours_per_s.round(), rows_per_s.round()), (278.0, 20_139.0));
        assert!((by_one_daemon_per_s - 500.0 / 2.55).abs() < 1e-6, "{by_one_daemon_per_s}");
    }
}
