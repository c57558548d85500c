//! Sensors as pure functions of time.
//!
//! Arrives: a seed, a device index, the time of the last tick and of this one.
//! Leaves: the readings that the device takes at this tick, rounded as real sensors round.
//! Always holds: the same three inputs give the same readings, on any machine and in any order, so
//! that a fleet can be replayed from its seed. Deliberately absent: state, clocks and protocols; a
//! sensor's history (drift, gaps, stuck values, counters) is computed from hashes of time slots.

use std::f64::consts::TAU;
use std::fmt::{self, Display};

const SECOND_US: i64 = 1_000_000;
const MINUTE_US: i64 = 60 * SECOND_US;
const HOUR_US: i64 = 60 * MINUTE_US;
const DAY_US: i64 = 24 * HOUR_US;

/// In this share of hours a device falls silent for a while (a lost radio link).
const GAP_PROBABILITY: f64 = 0.05;
/// In this share of half hours a sensor repeats its last value (a hung bus).
const STUCK_PROBABILITY: f64 = 0.02;

/// What a device measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Temperature and humidity of a room.
    Climate,
    /// Electrical power and the energy counter behind it.
    Meter,
    /// Vibration and bearing temperature of a rotating machine.
    Machine,
    /// A door contact, reported on change, and its battery.
    Door,
}

/// One measured value in the precision that the sensor reports.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value {
    Number { value: f64, decimals: u8 },
    Flag(bool),
}

impl Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number { value, decimals } => write!(f, "{value:.*}", usize::from(*decimals)),
            Self::Flag(on) => write!(f, "{on}"),
        }
    }
}

/// One metric's value at a tick.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Reading {
    pub(crate) metric: &'static str,
    pub(crate) value: Value,
}

/// One simulated device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Device {
    seed: u64,
    kind: Kind,
}

impl Device {
    /// The `index`-th device of the fleet that `seed` names.
    pub(crate) fn new(seed: u64, index: usize) -> Self {
        let kind = match index % 8 {
            0 | 3 | 6 => Kind::Climate,
            1 | 5 => Kind::Meter,
            2 | 7 => Kind::Machine,
            _ => Kind::Door,
        };
        Self { seed: mix(seed ^ mix(index as u64)), kind }
    }

    /// How many readings a tick brings when nothing happens: what a rate is shared by.
    pub(crate) fn readings_per_tick(&self) -> usize {
        if self.kind == Kind::Door { 1 } else { 2 }
    }

    /// A fixed number in `[0, 1)` that belongs to this device alone.
    pub(crate) fn trait_of(&self, name: &str) -> f64 {
        unit(self.hash(name, 0))
    }

    /// Appends what the device reads at `time_us`, having last been asked at `last_us`.
    pub(crate) fn read(&self, last_us: Option<i64>, time_us: i64, readings: &mut Vec<Reading>) {
        if self.is_silent(time_us) {
            return;
        }
        match self.kind {
            Kind::Climate => self.read_climate(time_us, readings),
            Kind::Meter => self.read_meter(time_us, readings),
            Kind::Machine => self.read_machine(time_us, readings),
            Kind::Door => self.read_door(last_us, time_us, readings),
        }
    }

    fn read_climate(&self, time_us: i64, readings: &mut Vec<Reading>) {
        let at_us = self.unless_stuck("temperature", time_us);
        let temperature = self.room_temperature(at_us) + 0.04 * self.noise("temperature", at_us);
        readings.push(number("temperature", temperature, 2));

        // Warm air holds more water: relative humidity falls as the room warms.
        let at_us = self.unless_stuck("humidity", time_us);
        let warmer = self.room_temperature(at_us) - 20.0;
        let humidity = 46.0 + 14.0 * (self.trait_of("wet") - 0.5) - 2.1 * warmer
            + 3.0 * self.drift("humidity", at_us, 4 * HOUR_US)
            + 0.3 * self.noise("humidity", at_us);
        readings.push(number("humidity", humidity.clamp(5.0, 99.0), 1));
    }

    fn room_temperature(&self, time_us: i64) -> f64 {
        17.5 + 6.0 * self.trait_of("warm")
            + (1.0 + 2.5 * self.trait_of("swing")) * diurnal(time_us, 15.0)
            + 0.8 * self.drift("temperature", time_us, 6 * HOUR_US)
    }

    fn read_meter(&self, time_us: i64, readings: &mut Vec<Reading>) {
        let at_us = self.unless_stuck("power", time_us);
        let base_w = 60.0 + 240.0 * self.trait_of("base");
        let power =
            base_w * (1.0 + 0.25 * diurnal(at_us, 19.0)) + self.appliances_w(at_us) + 1.5 * self.noise("power", at_us);
        readings.push(number("power", power.max(0.0), 1));

        // The counter follows the daily swing of the base load; its rate stays positive, so it never falls.
        let days = time_us as f64 / DAY_US as f64;
        let kwh_per_day = 0.024 * base_w * 1.6;
        let swing_kwh = 0.3 * kwh_per_day / TAU * (TAU * days).sin();
        let energy = 1e4 * self.trait_of("counter") + kwh_per_day * days + swing_kwh;
        readings.push(number("energy", energy, 3));
    }

    /// Appliances switch on and off for whole slots, which makes the steps of a real load curve.
    fn appliances_w(&self, time_us: i64) -> f64 {
        const APPLIANCES: [(&str, i64, f64, f64); 4] = [
            ("fridge", 20 * MINUTE_US, 0.45, 95.0),
            ("kettle", 3 * MINUTE_US, 0.04, 2_050.0),
            ("oven", 45 * MINUTE_US, 0.05, 1_400.0),
            ("pump", 7 * MINUTE_US, 0.20, 320.0),
        ];
        let on = |(name, slot_us, share, _): &(&str, i64, f64, f64)| {
            unit(self.hash(name, time_us.div_euclid(*slot_us))) < *share
        };
        APPLIANCES.iter().filter(|appliance| on(appliance)).map(|(.., watt)| watt).sum()
    }

    fn read_machine(&self, time_us: i64, readings: &mut Vec<Reading>) {
        let at_us = self.unless_stuck("vibration", time_us);
        let level = 0.6 + 1.8 * self.trait_of("imbalance");
        let spike = match unit(self.hash("spike", at_us.div_euclid(SECOND_US))) {
            luck if luck < 0.01 => 4.0 + 800.0 * luck,
            _ => 0.0,
        };
        let vibration = level * (1.0 + 0.2 * self.drift("vibration", at_us, HOUR_US))
            + 0.08 * self.noise("vibration", at_us).abs()
            + spike;
        readings.push(number("vibration", vibration.max(0.0), 3));

        let at_us = self.unless_stuck("temperature", time_us);
        let bearing = 38.0
            + 12.0 * self.trait_of("bearing")
            + 2.0 * diurnal(at_us, 14.0)
            + 5.0 * self.drift("bearing", at_us, 2 * HOUR_US)
            + 0.1 * self.noise("bearing", at_us);
        readings.push(number("temperature", bearing, 2));
    }

    fn read_door(&self, last_us: Option<i64>, time_us: i64, readings: &mut Vec<Reading>) {
        let open = self.is_open(time_us);
        if last_us.is_none_or(|last_us| self.is_open(last_us) != open) {
            readings.push(Reading { metric: "contact", value: Value::Flag(open) });
        }
        // A coin cell loses a tenth of a volt in a season and starts again when it is changed.
        let season = (time_us as f64 / (90 * DAY_US) as f64 + self.trait_of("cell")).rem_euclid(1.0);
        let battery = 3.05 - 0.1 * season + 0.003 * self.noise("battery", time_us);
        readings.push(number("battery", battery, 3));
    }

    fn is_open(&self, time_us: i64) -> bool {
        let by_day = 0.12 + 0.10 * diurnal(time_us, 14.0);
        unit(self.hash("contact", time_us.div_euclid(10 * SECOND_US))) < by_day
    }

    fn is_silent(&self, time_us: i64) -> bool {
        let hour = time_us.div_euclid(HOUR_US);
        if unit(self.hash("gap", hour)) >= GAP_PROBABILITY {
            return false;
        }
        let length_us = 30.0 * SECOND_US as f64 * (1.0 + 9.0 * unit(self.hash("gap length", hour)));
        let start_us = (HOUR_US as f64 - length_us) * unit(self.hash("gap start", hour));
        let into_hour_us = time_us.rem_euclid(HOUR_US) as f64;
        (start_us..start_us + length_us).contains(&into_hour_us)
    }

    /// The time whose value the sensor shows: now, or the moment at which it got stuck.
    fn unless_stuck(&self, metric: &str, time_us: i64) -> i64 {
        let slot = time_us.div_euclid(30 * MINUTE_US);
        let stuck = unit(mix(!self.hash(metric, slot))) < STUCK_PROBABILITY;
        if stuck { slot * 30 * MINUTE_US } else { time_us }
    }

    /// Slow wandering in `[-1, 1]`: random values at the slots' edges, joined smoothly.
    fn drift(&self, name: &str, time_us: i64, slot_us: i64) -> f64 {
        let slot = time_us.div_euclid(slot_us);
        let along = time_us.rem_euclid(slot_us) as f64 / slot_us as f64;
        let smooth = along * along * (3.0 - 2.0 * along);
        let at_edge = |slot| 2.0 * unit(mix(self.hash(name, slot))) - 1.0;
        at_edge(slot) * (1.0 - smooth) + at_edge(slot + 1) * smooth
    }

    /// Measurement noise: bell-shaped (the sum of three uniform draws), mostly within `[-2, 2]`.
    fn noise(&self, name: &str, time_us: i64) -> f64 {
        let first = self.hash(name, time_us);
        let draws = [first, mix(first), mix(mix(first))];
        2.0 * draws.into_iter().map(unit).sum::<f64>() - 3.0
    }

    fn hash(&self, name: &str, slot: i64) -> u64 {
        // FNV-1a over the name: short, and folded at compile time where the name is a literal.
        let named = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        mix(self.seed ^ mix(named ^ mix(slot as u64)))
    }
}

fn number(metric: &'static str, value: f64, decimals: u8) -> Reading {
    let scale = 10f64.powi(i32::from(decimals));
    // Adding zero turns a rounded "-0.00" into "0.00", as a display would.
    let value = (value * scale).round() / scale + 0.0;
    Reading { metric, value: Value::Number { value, decimals } }
}

/// A day's swing in `[-1, 1]` that peaks at the given hour of the day (UTC).
fn diurnal(time_us: i64, peak_hour: f64) -> f64 {
    let days = time_us.rem_euclid(DAY_US) as f64 / DAY_US as f64;
    (TAU * (days - peak_hour / 24.0)).cos()
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a fast hash with full avalanche.
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The upper 53 bits of a hash as a number in `[0, 1)`.
fn unit(hash: u64) -> f64 {
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests;
