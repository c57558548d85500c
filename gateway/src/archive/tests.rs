//! Sentences about the archive: a fold, interrupted anywhere, against a plain map.

use super::fold::Folder;
use super::levels::Levels;
use super::read::{Raw, Wanted};
use super::retire::Retention;
use super::*;
use crate::clock::Clock;
use crate::journal::schema::{self, Store};
use crate::journal::steps::write_step;
use crate::journal::{Chore, Intake, Step, batch};
use crate::readings::{Points, Readings};
use model::Value;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

type Expected = BTreeMap<(u32, Micros), Value>;

const SERIES: [u32; 3] = [0, 1, 2];

#[test]
fn ids_say_where_a_chunk_belongs() {
    let last = SERIES_MAX as u32 - 1;
    for (day, series, part) in [(0, 0, 0), (20_400, 99_999, 65_535), (2_932_896, last, 1), (-5, 3, 7)] {
        for part in [part, PARTS_BY_SERIES + part / 2] {
            let id = chunk_id(day, series, part);
            assert_eq!((day_of(id), series_of(id), part_of(id)), (day, series, part));
            assert!((chunk_id(day, 0, 0)..chunk_id(day + 1, 0, 0)).contains(&id));
        }
    }
    assert_eq!((day(-1), day(0), day(DAY_US)), (-1, 0, 1));
}

fn commit(store: &Store, seq: i64, rows: &[(u32, Micros, Value)], expected: &mut Expected) {
    let mut readings = Readings::default();
    for (series, time_us, value) in rows {
        readings.push(*series, *time_us, value.clone(), 0);
        expected.insert((*series, *time_us), value.clone());
    }
    let (first, last) = (readings.time_us.iter().min(), readings.time_us.iter().max());
    let db = &store.connection;
    let row = rusqlite::params![seq, 0, readings.len() as i64, first, last, batch::encode(&readings)];
    db.execute("INSERT INTO batch VALUES (?1, ?2, ?3, ?4, ?5, ?6)", row).unwrap();
    schema::set_meta(db, "replay_from", seq + 1).unwrap();
    db.execute("INSERT OR REPLACE INTO snapshot VALUES (1, ?1, x'')", [seq]).unwrap();
}

/// Parts of days as versions before the fifth left them, all by series; nothing may be half folded.
fn lay_by_series(store: &Store) {
    let db = &store.connection;
    let ids: Vec<i64> = {
        let mut ids = db.prepare("SELECT id FROM chunk WHERE id & 1099511627776 <> 0 ORDER BY id").unwrap();
        ids.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    };
    for id in ids {
        let old = chunk_id(day_of(id), series_of(id), part_of(id) - PARTS_BY_SERIES + 1_000);
        db.execute("UPDATE chunk SET id = ?2, covers = 0 WHERE id = ?1", [id, old]).unwrap();
    }
}

/// What the store says now, by every way of reading it.
fn read_all(path: &Path) -> Expected {
    let db = schema::open_reader(path).unwrap();
    let raw = Raw::open(&db).unwrap();
    let (from_us, to_us) = (0, 10 * DAY_US);
    let tail = raw.tail(&Wanted::new(&SERIES), from_us, to_us, usize::MAX).unwrap().unwrap();
    let days = raw.days(from_us, to_us).unwrap();
    let mut all = Expected::new();
    for (place, series) in SERIES.into_iter().enumerate() {
        let mut last_us = Micros::MIN;
        raw.each_day::<crate::journal::ReadError>(
            series,
            &days,
            tail.points(place),
            from_us,
            to_us,
            |points: Points| {
                for row in 0..points.len() {
                    assert!(points.time_us[row] > last_us, "in order of time, each time once");
                    last_us = points.time_us[row];
                    all.insert((series, last_us), points.value(row));
                }
                Ok(ControlFlow::Continue(()))
            },
        )
        .unwrap();
    }
    all
}

fn folder(store: &Store) -> Folder {
    Folder {
        store: store.path.clone(),
        intake: Arc::new(Intake::new(1 << 20)),
        metrics: Arc::default(),
        levels: Levels::settle(&store.connection, 60 * SECOND_US, &[]).unwrap(),
        retention: Retention { raw_us: None, summaries_us: None, rollups_us: Vec::new(), budget_bytes: None },
        growth: Arc::default(),
        delay_us: 0,
        clock: Clock::system(),
        catalog: Arc::new(crate::catalog::Catalog::new(crate::config::Config::default().names(), 0)),
        disturbed: std::sync::mpsc::sync_channel(1).0,
        stop: CancellationToken::new(),
    }
}

/// Does the steps that wait, as the writer does, and looks after each.
fn do_steps(store: &Store, intake: &Intake, mut look: impl FnMut(&Step)) {
    let load = intake.take(Duration::ZERO, crate::journal::Parcel::default());
    for Chore { step, done } in load.chores {
        let db = store.connection.unchecked_transaction().unwrap();
        write_step(&db, &step).unwrap();
        db.commit().unwrap();
        look(&step);
        let _ = done.map(|done| done.send(0));
    }
}

/// Runs the folder and does its steps, `steps` at most, looking at the store after each.
fn fold(store: &Store, steps: usize, expected: &Expected) -> usize {
    let folder = folder(store);
    let (intake, stop) = (Arc::clone(&folder.intake), folder.stop.clone());
    let folding = std::thread::spawn(move || folder.run());
    let mut done_steps = 0;
    while done_steps < steps && !is_folded(store) {
        do_steps(store, &intake, |step| {
            done_steps += 1;
            assert_eq!(&read_all(&store.path), expected, "after {step:?}");
        });
    }
    stop.cancel();
    folding.join().unwrap().unwrap();
    done_steps
}

fn is_folded(store: &Store) -> bool {
    let batches: i64 = store.connection.query_row("SELECT count(*) FROM batch", [], |row| row.get(0)).unwrap();
    batches == 0 && schema::meta::<i64>(&store.connection, "folding_seq").unwrap().is_none()
}

fn rows() -> impl Strategy<Value = Vec<(u32, Micros, Value)>> {
    let value = prop_oneof![
        4 => (0..1_000_i32).prop_map(|n| Value::Number(f64::from(n) / 10.0)),
        1 => Just(Value::Text("offline".into())),
        1 => any::<bool>().prop_map(Value::Bool),
    ];
    prop::collection::vec((0..3_u32, (0..3_i64, 0..40_i64).prop_map(|(d, s)| d * DAY_US + s * SECOND_US), value), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// Whatever is committed in whatever order, and wherever a fold is interrupted, the store
    /// says the same after every single step.
    #[test]
    fn folding_changes_no_answer_and_may_be_interrupted_anywhere(
        rounds in prop::collection::vec((prop::collection::vec(rows(), 1..4), 0..8_usize), 1..4),
        was_of_an_earlier_version in any::<bool>(),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let mut store = schema::open(directory.path()).unwrap();
        let (mut expected, mut seq) = (Expected::new(), 0);
        for (round, (batches, steps)) in rounds.into_iter().enumerate() {
            if round == 1 && was_of_an_earlier_version {
                fold(&store, usize::MAX, &expected);
                lay_by_series(&store);
                prop_assert_eq!(&read_all(&store.path), &expected);
            }
            for rows in batches {
                seq += 1;
                commit(&store, seq, &rows, &mut expected);
            }
            fold(&store, steps, &expected);
            // A restart.
            drop(store);
            store = schema::open(directory.path()).unwrap();
            prop_assert_eq!(&read_all(&store.path), &expected);
        }
        fold(&store, usize::MAX, &expected);
        prop_assert_eq!(&read_all(&store.path), &expected);
        let most = "SELECT coalesce(max(n), 0) FROM (SELECT count(*) n FROM chunks GROUP BY device, metric, day)";
        let parts: i64 = store.connection.query_row(most, [], |row| row.get(0)).unwrap();
        prop_assert!(parts < 30, "{} parts", parts);
    }
}

#[test]
fn a_day_with_too_many_parts_begins_anew() {
    let directory = tempfile::tempdir().unwrap();
    let store = schema::open(directory.path()).unwrap();
    let mut expected = Expected::new();
    commit(&store, 1, &[(1, 5, Value::Number(1.0)), (1, 6, Value::Number(2.0))], &mut expected);
    fold(&store, usize::MAX, &expected);
    store.connection.execute("UPDATE chunk SET id = id + (30000 << 25)", []).unwrap();
    commit(&store, 2, &[(1, 6, Value::Number(3.0)), (1, 9, Value::Number(4.0))], &mut expected);
    fold(&store, usize::MAX, &expected);
    let mut ids = store.connection.prepare("SELECT id FROM chunk ORDER BY id").unwrap();
    let ids: Vec<i64> = ids.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(ids, [chunk_id(0, 1, 0), chunk_id(0, 1, PARTS_BY_SERIES)]);
}

#[test]
fn a_part_that_cannot_be_read_does_not_keep_numbers_from_beginning_anew() {
    let directory = tempfile::tempdir().unwrap();
    let store = schema::open(directory.path()).unwrap();
    let mut expected = Expected::new();
    let rows = |n: f64| [(1, 5, Value::Number(n)), (2, 5, Value::Number(n)), (2, 6, Value::Number(n))];
    commit(&store, 1, &rows(1.0), &mut expected);
    fold(&store, usize::MAX, &expected);
    let db = &store.connection;
    db.execute("UPDATE chunk SET id = id + (30000 << 25)", []).unwrap();
    let number = 30_000 + PARTS_BY_SERIES;
    let body: Vec<u8> =
        db.query_row("SELECT body FROM chunk WHERE id = ?1", [chunk_id(0, 1, number)], |row| row.get(0)).unwrap();
    db.execute("UPDATE chunk SET body = x'00' WHERE id = ?1", [chunk_id(0, 1, number)]).unwrap();
    let folder = folder(&store);
    let intake = Arc::clone(&folder.intake);
    let renumbering = std::thread::spawn(move || {
        let db = schema::open_reader(&folder.store).unwrap();
        let done = folder.renumber(&db, [0].into_iter()).is_ok();
        folder.intake.close();
        done
    });
    while !renumbering.is_finished() {
        do_steps(&store, &intake, |_| {});
    }
    assert!(renumbering.join().unwrap());
    db.execute("UPDATE chunk SET body = ?2 WHERE id = ?1", rusqlite::params![chunk_id(0, 1, 0), body]).unwrap();
    assert_eq!(read_all(&store.path), expected);
    assert_eq!(Raw::open(db).unwrap().next_part(0).unwrap(), PARTS_BY_SERIES);
}

#[test]
fn what_an_interrupted_fold_left_behind_goes_with_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let store = schema::open(directory.path()).unwrap();
    let mut expected = Expected::new();
    let add = |seq: i64, expected: &mut Expected| commit(&store, seq, &[(1, seq, Value::Number(1.0))], expected);
    for seq in 1..8 {
        add(seq, &mut expected);
        fold(&store, usize::MAX, &expected);
    }
    add(8, &mut expected);
    // Begin, chunks, count: the parts that were replaced are still there.
    assert_eq!(fold(&store, 3, &expected), 3);
    let rows = || store.connection.query_row("SELECT count(*) FROM chunk", [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(rows(), 8);
    add(9, &mut expected);
    fold(&store, usize::MAX, &expected);
    assert_eq!(rows(), 2);
    assert_eq!(read_all(&store.path), expected);
}
