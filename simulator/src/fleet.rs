//! The share of a fleet that one connection carries, as a source of messages.
//!
//! Arrives: devices, a calendar of event times, a pace. Leaves: their readings as messages, device by
//! device, round after round. Always holds: the readings of one series have strictly rising times, so
//! that each is a reading of its own; a pace that could not be kept is caught up as fast as
//! acknowledgements allow, and nothing queues meanwhile but the rest of one tick. Deliberately absent:
//! faults, except a device's clock error, which is part of its time stamps.

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock;
use crate::device::{Device, Reading};
use crate::message::{Composer, Form, Message, Stamp};
use crate::send::{Next, Source};

/// How long to wait when every device happens to be silent.
const SILENCE_PAUSE: Duration = Duration::from_millis(50);

/// Which event times readings get.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Calendar {
    /// The wall clock's at the moment of sending.
    Real,
    /// Round after round from a start, whatever the wall clock says.
    Simulated { start_us: i64, step_us: i64 },
}

/// How many readings the whole fleet may still take; shared by all connections.
#[derive(Debug)]
pub(crate) struct Budget(AtomicU64);

impl Budget {
    pub(crate) fn new(readings: Option<u64>) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(readings.unwrap_or(u64::MAX))))
    }

    /// Takes up to `wanted` readings and answers how many were left to take.
    fn take(&self, wanted: u64) -> u64 {
        let left = self.0.fetch_update(Relaxed, Relaxed, |left| Some(left.saturating_sub(wanted)));
        left.expect("the update never declines").min(wanted)
    }

    fn is_spent(&self) -> bool {
        self.0.load(Relaxed) == 0
    }
}

/// A device at its place in the fleet.
#[derive(Debug)]
pub(crate) struct Sensor {
    device: Device,
    id: String,
    /// When in a round it takes its readings, 0 to 1: a fleet does not beat as one.
    phase: f64,
    stamp: Stamp,
    clock_error_us: i64,
    last_us: Option<i64>,
}

impl Sensor {
    pub(crate) fn new(device: Device, id: String, clock_error_us: i64) -> Self {
        let stamp = if device.trait_of("stamp") < 0.5 { Stamp::EpochMicros } else { Stamp::Rfc3339 };
        let phase = device.trait_of("phase");
        Self { device, id, phase, stamp, clock_error_us, last_us: None }
    }
}

/// What all connections of a fleet have in common.
#[derive(Debug, Clone)]
pub(crate) struct Habits {
    pub(crate) calendar: Calendar,
    /// Wall-clock time between two rounds; none means as fast as acknowledgements allow.
    pub(crate) period: Option<Duration>,
    pub(crate) form: Form,
    pub(crate) budget: Arc<Budget>,
}

/// One connection's share of the fleet.
pub(crate) struct Fleet {
    sensors: Vec<Sensor>,
    habits: Habits,
    composer: Composer,
    started: Option<Instant>,
    round: u64,
    place: usize,
    silent_ticks: usize,
    over: bool,
    queue: VecDeque<Message>,
    readings: Vec<Reading>,
    texts: Vec<String>,
}

impl Fleet {
    pub(crate) fn new(mut sensors: Vec<Sensor>, habits: Habits, composer: Composer) -> Self {
        assert!(!sensors.is_empty(), "a connection carries at least one device");
        sensors.sort_by(|one, other| one.phase.total_cmp(&other.phase));
        Self {
            sensors,
            habits,
            composer,
            started: None,
            round: 0,
            place: 0,
            silent_ticks: 0,
            over: false,
            queue: VecDeque::new(),
            readings: Vec::new(),
            texts: Vec::new(),
        }
    }

    /// The wall-clock time of the next tick.
    fn due(&self, started: Instant) -> Option<Instant> {
        let rounds = self.round as f64 + self.sensors[self.place].phase;
        Some(started + self.habits.period?.mul_f64(rounds))
    }

    /// Lets the next device take its readings.
    fn tick(&mut self) {
        let sensor = &mut self.sensors[self.place];
        let planned_us = match self.habits.calendar {
            Calendar::Real => clock::now_us(),
            Calendar::Simulated { start_us, step_us } => {
                let rounds = self.round as f64 + sensor.phase;
                start_us + (rounds * step_us as f64) as i64
            }
        };
        let time_us = sensor.last_us.map_or(planned_us, |last_us| planned_us.max(last_us + 1));
        self.readings.clear();
        sensor.device.read(sensor.last_us, time_us, &mut self.readings);
        self.silent_ticks = if self.readings.is_empty() { self.silent_ticks + 1 } else { 0 };
        if !self.readings.is_empty() {
            sensor.last_us = Some(time_us);
            let granted = self.habits.budget.take(self.readings.len() as u64);
            self.readings.truncate(granted as usize);
            self.compose(time_us);
        }
        self.place = (self.place + 1) % self.sensors.len();
        self.round += u64::from(self.place == 0);
    }

    fn compose(&mut self, time_us: i64) {
        let Self { sensors, place, composer, readings, texts, queue, habits, .. } = self;
        let sensor = &sensors[*place];
        let stamp_us = time_us + sensor.clock_error_us;
        texts.resize_with(readings.len().max(texts.len()), String::new);
        for (reading, text) in readings.iter().zip(texts.iter_mut()) {
            text.clear();
            write!(text, "{}", reading.value).expect("writing to a string cannot fail");
        }
        let values = readings.iter().map(|reading| reading.metric).zip(texts.iter().map(String::as_str));
        match habits.form {
            Form::Number => queue.extend(values.map(|(metric, value)| composer.number(&sensor.id, metric, value))),
            Form::Json => queue.extend(
                values.map(|(metric, value)| composer.stamped(&sensor.id, metric, value, stamp_us, sensor.stamp)),
            ),
            Form::Object if readings.is_empty() => {}
            Form::Object => {
                let values: Vec<(&str, &str)> = values.collect();
                queue.push_back(composer.object(&sensor.id, &values, stamp_us, sensor.stamp));
            }
        }
    }
}

impl Source for Fleet {
    fn next(&mut self, now: Instant) -> Next {
        let started = *self.started.get_or_insert(now);
        loop {
            if let Some(message) = self.queue.pop_front() {
                return Next::Message(message);
            }
            if self.over || self.habits.budget.is_spent() {
                return Next::Over;
            }
            if let Some(due) = self.due(started).filter(|due| *due > now) {
                return Next::NotBefore(due);
            }
            // Unpaced, only the wall clock can end a silence; imagined time passes by itself.
            let waits_for_clock = self.habits.period.is_none() && matches!(self.habits.calendar, Calendar::Real);
            if waits_for_clock && self.silent_ticks >= self.sensors.len() {
                self.silent_ticks = 0;
                return Next::NotBefore(now + SILENCE_PAUSE);
            }
            self.tick();
        }
    }

    fn finish(&mut self) {
        self.over = true;
    }
}

#[cfg(test)]
mod tests;
