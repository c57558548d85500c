//! What can be believed of a simulated sensor.

use proptest::prelude::*;

use super::*;

fn read(device: Device, time_us: i64) -> Vec<Reading> {
    let mut readings = Vec::new();
    device.read(None, time_us, &mut readings);
    readings
}

fn value_of(readings: &[Reading], metric: &str) -> Option<f64> {
    readings.iter().find(|reading| reading.metric == metric).map(|reading| match reading.value {
        Value::Number { value, .. } => value,
        Value::Flag(on) => f64::from(u8::from(on)),
    })
}

/// What each metric may show on a bad day, between 2000 and 2040.
fn believable(metric: &str) -> std::ops::RangeInclusive<f64> {
    match metric {
        "temperature" => -10.0..=90.0,
        "humidity" => 5.0..=99.0,
        "power" => 0.0..=5_000.0,
        "energy" => 0.0..=1_000_000.0,
        "vibration" => 0.0..=20.0,
        "battery" => 2.5..=3.3,
        "contact" => 0.0..=1.0,
        other => panic!("unexpected metric {other}"),
    }
}

proptest! {
    #[test]
    fn readings_depend_on_seed_index_and_time_alone(
        seed: u64, index in 0usize..5_000, time_us in 946_684_800_000_000i64..2_208_988_800_000_000,
    ) {
        let device = Device::new(seed, index);
        prop_assert_eq!(read(device, time_us), read(Device::new(seed, index), time_us));
    }

    #[test]
    fn readings_stay_in_believable_ranges(
        seed: u64, index in 0usize..64, time_us in 946_684_800_000_000i64..2_208_988_800_000_000,
    ) {
        for reading in read(Device::new(seed, index), time_us) {
            let value = value_of(&[reading], reading.metric).unwrap();
            prop_assert!(believable(reading.metric).contains(&value), "{reading:?}");
        }
    }

    #[test]
    fn the_text_form_is_a_json_literal_with_the_same_value(
        seed: u64, index in 0usize..64, time_us in 946_684_800_000_000i64..2_208_988_800_000_000,
    ) {
        for Reading { value, .. } in read(Device::new(seed, index), time_us) {
            let parsed: serde_json::Value = serde_json::from_str(&value.to_string()).unwrap();
            match value {
                Value::Number { value, .. } => prop_assert_eq!(parsed.as_f64(), Some(value)),
                Value::Flag(on) => prop_assert_eq!(parsed.as_bool(), Some(on)),
            }
        }
    }
}

#[test]
fn another_seed_gives_other_readings() {
    let time_us = 1_700_000_000_000_000;
    assert_ne!(read(Device::new(1, 0), time_us), read(Device::new(2, 0), time_us));
}

#[test]
fn an_energy_counter_never_falls() {
    let meter = Device::new(7, 1);
    let mut last = f64::MIN;
    for minute in 0..3 * 24 * 60 {
        let readings = read(meter, 1_700_000_000_000_000 + minute * MINUTE_US);
        let Some(energy) = value_of(&readings, "energy") else { continue };
        assert!(energy >= last, "fell from {last} to {energy}");
        last = energy;
    }
}

#[test]
fn humidity_falls_when_a_room_warms() {
    let room = Device::new(11, 0);
    let day: Vec<(f64, f64)> = (0..24 * 60)
        .map(|minute| read(room, 1_700_000_000_000_000 + minute * MINUTE_US))
        .filter_map(|all| Some((value_of(&all, "temperature")?, value_of(&all, "humidity")?)))
        .collect();
    let mean = |pick: fn(&(f64, f64)) -> f64| day.iter().map(pick).sum::<f64>() / day.len() as f64;
    let (warm, wet) = (mean(|pair| pair.0), mean(|pair| pair.1));
    let covariance: f64 = day.iter().map(|(t, h)| (t - warm) * (h - wet)).sum();
    assert!(covariance < 0.0, "covariance {covariance}");
}

#[test]
fn a_door_reports_its_contact_only_on_change() {
    let door = Device::new(3, 4);
    let (mut last_us, mut contacts) = (None, Vec::new());
    for second in 0..4 * 3_600 {
        let time_us = 1_700_000_000_000_000 + second * SECOND_US;
        let mut readings = Vec::new();
        door.read(last_us, time_us, &mut readings);
        contacts.extend(value_of(&readings, "contact"));
        if !readings.is_empty() {
            last_us = Some(time_us);
        }
    }
    assert!(contacts.len() > 10, "{} changes in four hours", contacts.len());
    assert!(contacts.windows(2).all(|pair| pair[0] != pair[1]));
}

#[test]
fn devices_fall_silent_and_sensors_get_stuck_now_and_then() {
    let (mut silent, mut repeated, mut last) = (0, 0, None);
    for index in (0..64).filter(|index| index % 8 == 0) {
        let device = Device::new(5, index);
        for step in 0..24 * 60 * 6 {
            let readings = read(device, 1_700_000_000_000_000 + step * 10 * SECOND_US);
            silent += usize::from(readings.is_empty());
            let temperature = value_of(&readings, "temperature");
            repeated += usize::from(temperature.is_some() && temperature == last);
            last = temperature;
        }
    }
    assert!(silent > 0 && silent < 8 * 24 * 60 * 6 / 20, "{silent} silent ticks");
    assert!(repeated > 500, "{repeated} repeated values");
}
