//! Sentences about windows, in manual time.

use super::*;
use proptest::prelude::*;
use std::sync::Arc;

const SECOND: Micros = 1_000_000;
const MINUTE: Micros = 60 * SECOND;

fn windows(rows_max: usize) -> Windows {
    let mut windows = Windows::new(MINUTE, 10 * SECOND, 0);
    windows.rows_max = rows_max;
    windows.learn([0, 0, 1]); // series 0 and 1 of device 0, series 2 of device 1
    windows
}

fn commit(windows: &mut Windows, seq: u64, received_us: Micros, rows: &[(u32, Micros, f64)]) {
    let mut readings = Readings::default();
    rows.iter().for_each(|&(series, time_us, number)| readings.push_number(series, time_us, number, 0));
    let committed = Committed { seq, received_us, readings: Arc::new(readings) };
    windows.take(&committed, |_| true).unwrap();
}

#[test]
fn a_window_closes_when_its_devices_watermark_passes_its_end_and_the_lateness() {
    let mut w = windows(1_000);
    commit(&mut w, 1, 0, &[(0, 5 * SECOND, 1.0), (1, 6 * SECOND, 2.0), (2, 7 * SECOND, 3.0)]);
    commit(&mut w, 2, 0, &[(0, 69 * SECOND, 4.0)]);
    assert!(!w.is_due(0));
    commit(&mut w, 3, 0, &[(1, 70 * SECOND, 5.0)]);
    assert!(w.is_due(0));
    let closed = w.close(0).unwrap();
    let seen: Vec<_> = closed.iter().map(|row| (row.series, row.start_us, row.summary.sum, row.through_seq)).collect();
    assert_eq!(seen, [(0, 0, 1.0, 3), (1, 0, 2.0, 3)], "device 1 is not done");
    assert_eq!(w.replay_from(), 1, "device 1 still needs the first commit");
}

#[test]
fn the_gateways_clock_closes_windows_of_silent_devices() {
    let mut w = windows(1_000);
    commit(&mut w, 1, 5 * SECOND, &[(2, 5 * SECOND, 3.0)]);
    assert!(!w.is_due(69 * SECOND));
    assert!(w.is_due(70 * SECOND));
    assert_eq!(w.close(70 * SECOND).unwrap().len(), 1);
    assert_eq!(w.replay_from(), 2);
}

#[test]
fn a_time_in_the_future_closes_nobodys_window() {
    let mut w = windows(1_000);
    let mut readings = Readings::default();
    readings.push_number(0, 5 * SECOND, 1.0, 0);
    readings.push_number(0, 1_000 * MINUTE, 1.0, flag::FUTURE);
    let committed = Committed { seq: 1, received_us: 5 * SECOND, readings: Arc::new(readings) };
    w.take(&committed, |_| true).unwrap();
    assert!(!w.is_due(6 * SECOND));
    assert!(w.take_dirty(10, 900 * MINUTE).is_empty(), "it is computed when its time has come");
    w.close(900 * MINUTE).unwrap();
    assert_eq!(w.replay_from(), 2, "and holds nothing up until then");
    assert_eq!(w.take_dirty(10, 1_002 * MINUTE).len(), 1);
}

#[test]
fn a_device_whose_clock_stands_still_holds_nothing_up() {
    let mut w = windows(1_000);
    for seq in 1..100 {
        commit(&mut w, seq, seq as Micros * SECOND, &[(0, 5 * SECOND, 1.0)]);
    }
    assert_eq!(w.close(99 * SECOND).unwrap().len(), 1, "it talks, but its time has stopped");
    assert_eq!(w.replay_from(), 100);
}

#[test]
fn windows_opened_by_a_clock_that_was_ahead_hold_nothing_up_when_it_is_put_back() {
    let mut w = windows(1_000);
    let ahead = 10_000 * 24 * 60 * MINUTE;
    commit(&mut w, 1, ahead, &[(0, ahead, 1.0)]);
    assert!(w.is_due(0));
    assert!(w.close(0).unwrap().is_empty());
    assert_eq!(w.replay_from(), 2);
    commit(&mut w, 2, 0, &[(0, SECOND, 1.0)]);
    assert_eq!(w.close(70 * SECOND).unwrap().len(), 1, "and its windows close again");
    assert!(w.take_dirty(10, MINUTE).is_empty());
    assert_eq!(w.take_dirty(10, ahead + 2 * MINUTE).len(), 1, "it is computed when its time has come");
}

#[test]
fn what_comes_for_a_window_that_is_being_computed_is_late() {
    let mut w = windows(1_000);
    let mut readings = Readings::default();
    readings.push_number(0, 5 * SECOND, 1.0, flag::FUTURE);
    w.take(&Committed { seq: 1, received_us: 0, readings: Arc::new(readings) }, |_| true).unwrap();
    assert_eq!(w.take_dirty(10, 100 * SECOND).len(), 1);
    commit(&mut w, 2, 100 * SECOND, &[(0, 6 * SECOND, 1.0)]);
    w.revised([]);
    assert!(w.close(1_000 * SECOND).unwrap().is_empty(), "it is not summarised from a part of its readings");
    assert_eq!(w.take_dirty(10, 1_000 * SECOND).len(), 1);
}

#[test]
fn a_late_reading_makes_its_window_dirty_once() {
    let mut w = windows(1_000);
    commit(&mut w, 1, 0, &[(0, 5 * SECOND, 1.0), (0, 100 * SECOND, 1.0)]);
    w.close(0).unwrap();
    commit(&mut w, 2, 0, &[(0, 6 * SECOND, 1.0)]);
    commit(&mut w, 3, 0, &[(0, 7 * SECOND, 1.0)]);
    assert_eq!((w.take_late(), w.replay_from()), ((2, 0), 1));
    assert_eq!(w.take_dirty(10, 0), [Stretch { series: 0, from_us: 0, to_us: MINUTE }]);
    w.revised([]);
    assert_eq!(w.dirty_counts(), (0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever the order, and however little memory there is: what closes clean equals a
    /// computation over the distinct readings, and everything else is dirty.
    #[test]
    fn clean_summaries_are_exact_and_the_rest_is_dirty(
        rows in prop::collection::vec((0..3_u32, 0..240_i64, 0..100_i32), 1..80),
        rows_max in 1..20_usize,
        batch in 1..10_usize,
    ) {
        let mut w = windows(rows_max);
        let mut want: BTreeMap<Key, BTreeMap<Micros, f64>> = BTreeMap::new();
        let mut clean: BTreeMap<Key, Summary> = BTreeMap::new();
        for (i, rows) in rows.chunks(batch).enumerate() {
            let rows: Vec<_> = rows.iter().map(|&(s, t, n)| (s, t * SECOND, f64::from(n))).collect();
            for &(series, time_us, n) in &rows {
                want.entry((window_start(time_us, MINUTE), series)).or_default().insert(time_us, n);
            }
            commit(&mut w, i as u64 + 1, 0, &rows);
            if w.is_due(0) {
                clean.extend(w.close(0).unwrap().into_iter().map(|row| ((row.start_us, row.series), row.summary)));
            }
        }
        let end = 1_000 * SECOND;
        clean.extend(w.close(end).unwrap().into_iter().map(|row| ((row.start_us, row.series), row.summary)));
        for (key, readings) in want {
            if w.dirty.holds(key) {
                continue;
            }
            let summary = clean.get(&key);
            prop_assert!(summary.is_some(), "window {:?} is neither clean nor dirty", key);
            let summary = summary.unwrap();
            prop_assert_eq!(summary.count, readings.len() as u64);
            prop_assert!((summary.sum - readings.values().sum::<f64>()).abs() < 1e-6);
            prop_assert_eq!(&summary.last.1, &model::Value::Number(*readings.values().next_back().unwrap()));
        }
    }
}
