//! A fleet on an imagined calendar.

use std::collections::HashSet;

use super::*;

const START_US: i64 = 1_700_000_000_000_000;

fn fleet(devices: usize, readings: Option<u64>, form: Form, period: Option<Duration>) -> Fleet {
    let sensors = (0..devices).map(|index| Sensor::new(Device::new(42, index), format!("d{index}"), 0)).collect();
    let calendar = Calendar::Simulated { start_us: START_US, step_us: 10_000_000 };
    let habits = Habits { calendar, period, form, budget: Budget::new(readings) };
    Fleet::new(sensors, habits, Composer::new(Arc::new(AtomicU64::new(1)), "mqtt/1", true))
}

/// Everything the fleet says, and after what time, if every message is taken at once.
fn said(mut fleet: Fleet) -> (Vec<Message>, Duration) {
    let started = Instant::now();
    let (mut now, mut messages) = (started, Vec::new());
    loop {
        match fleet.next(now) {
            Next::Message(message) => messages.push(message),
            Next::NotBefore(wake) => now = wake,
            Next::Over => return (messages, now - started),
        }
    }
}

#[test]
fn the_same_seed_says_the_same() {
    let one = said(fleet(20, Some(1_000), Form::Json, None)).0;
    assert_eq!(one, said(fleet(20, Some(1_000), Form::Json, None)).0);
}

#[test]
fn a_budget_is_spent_to_the_last_reading() {
    for form in [Form::Number, Form::Json, Form::Object] {
        let (messages, _) = said(fleet(7, Some(999), form, None));
        assert_eq!(messages.iter().map(Message::reading_count).sum::<u64>(), 999, "{form:?}");
    }
}

#[test]
fn every_reading_has_an_identity_of_its_own() {
    let (messages, _) = said(fleet(9, Some(5_000), Form::Object, None));
    let lines = messages.iter().flat_map(|message| message.record.lines());
    let identities: HashSet<String> =
        lines.map(|line| line.split('\t').skip(2).take(3).collect::<Vec<_>>().join("/")).collect();
    assert_eq!(identities.len(), 5_000);
}

#[test]
fn a_pace_is_kept() {
    let fleet = fleet(20, Some(2_000), Form::Json, Some(Duration::from_secs(1)));
    let per_round: usize = fleet.sensors.iter().map(|sensor| sensor.device.readings_per_tick()).sum();
    let (_, took) = said(fleet);
    let expected_s = 2_000.0 / per_round as f64;
    let took_s = took.as_secs_f64();
    assert!((took_s / expected_s - 1.0).abs() < 0.1, "{took_s} s instead of {expected_s} s");
}

#[test]
fn a_finished_fleet_says_nothing_new() {
    let mut fleet = fleet(3, None, Form::Object, None);
    assert!(matches!(fleet.next(Instant::now()), Next::Message(_)));
    fleet.finish();
    assert!(matches!(fleet.next(Instant::now()), Next::Over));
}
