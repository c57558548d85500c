//! The power is cut: what was acknowledged is on disk.
//!
//! One gateway takes readings in this process over a recording layer, folds, checkpoints and
//! closes windows all the while. Then its power is cut at every kind of moment, and each time
//! another gateway has to find a whole store with everything that clients had been told is kept.

use daemon::config::{Size, Span};
use gateway::app::App;
use gateway::config::Config;
use gateway::inside::Clock;
use gateway::inside::Stretch;
use gateway::inside::each_summary;
use gateway::inside::read_blob;
use gateway::inside::{Raw, Wanted};
use gateway::inside::{ReadError, schema};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;
use tests::powercut::{Event, disk, vfs};
use tests::{eventually, now_s, seed};
use tokio_util::sync::CancellationToken;

const FOREVER_US: i64 = i64::MAX / 4;
const LENGTH_US: i64 = 2_000_000;

/// The event time of a reading: some are of today, the others of a day that is old.
fn time_us(today_us: i64, number: u64) -> i64 {
    let from_us = if number.is_multiple_of(2) { today_us } else { 1_700_000_000_000_000 };
    from_us + number as i64 * 200_000
}

/// How many cuts; `cargo xtask soak` asks for more.
fn cuts() -> usize {
    std::env::var("TIDEGATE_TEST_CUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(400)
}

fn config(directory: &Path) -> Config {
    let mut config = Config::default();
    config.gateway.data_dir = directory.to_owned();
    config.mqtt.listen = String::new();
    config.coap.listen = String::new();
    config.http.listen = "127.0.0.1:0".into();
    config.journal.wal = Size::kib(256);
    config.archive.delay = Span::millis(100);
    config.window.length = Span(Duration::from_micros(LENGTH_US as u64));
    config.window.lateness = Span::seconds(1);
    config
}

/// Sends readings from a few clients at once, noting what each has been told is kept; returns
/// the number behind the last.
fn load(address: std::net::SocketAddr, today_us: i64, first: u64, random: &mut StdRng) -> u64 {
    let (clients, requests) = (4_u64, 500_u64);
    let sizes: Vec<u64> = (0..clients * requests).map(|_| random.random_range(1..60)).collect();
    let begins: Vec<u64> = sizes.iter().scan(first, |sum, size| Some(std::mem::replace(sum, *sum + size))).collect();
    std::thread::scope(|scope| {
        for client in 0..clients {
            let (sizes, begins) = (&sizes, &begins);
            scope.spawn(move || {
                for request in 0..requests {
                    let at = (request * clients + client) as usize;
                    let numbers = begins[at]..begins[at] + sizes[at];
                    let line = |n: u64| {
                        let time = time_us(today_us, n);
                        format!(r#"{{"device":"d{}","metric":"m","value":{n},"time":{time}}}"#, n % 7)
                    };
                    let body: Vec<String> = numbers.clone().map(line).collect();
                    let answer = ureq::post(format!("http://{address}/v1/readings"))
                        .content_type("application/x-ndjson")
                        .send(body.join("\n"))
                        .unwrap();
                    assert_eq!(answer.status().as_u16(), 200);
                    numbers.for_each(vfs::told);
                }
            });
        }
    });
    first + sizes.iter().sum::<u64>()
}

/// Waits until all that was sent is folded, readings and summaries.
fn until_folded(address: std::net::SocketAddr) {
    eventually("everything is folded", || {
        let mut answer = ureq::get(format!("http://{address}/v1/status")).call().ok()?;
        let status: serde_json::Value = answer.body_mut().read_json().ok()?;
        let archived = status["store"]["archived_seq"] == status["store"]["last_seq"];
        (archived && status["windows"]["dirty"] == 0).then_some(())
    });
}

/// Runs a gateway under load and returns what happened to its files, in order.
fn record(today_us: i64, random: &mut StdRng) -> (Vec<Event>, u64) {
    let directory = tempfile::tempdir().unwrap();
    vfs::record(true);
    vfs::take_recording();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let stop = CancellationToken::new();
    let app = runtime.block_on(App::build(config(directory.path()), Clock::system())).unwrap();
    let address = app.addresses().iter().find(|(name, _)| *name == "http").unwrap().1;
    let running = runtime.spawn(app.run(stop.clone()));
    let half = load(address, today_us, 0, random);
    until_folded(address);
    let sent = load(address, today_us, half, random);
    stop.cancel();
    runtime.block_on(running).unwrap().unwrap();
    drop(runtime);
    vfs::record(false);
    (vfs::take_recording(), sent)
}

/// What a store has after a cut.
#[derive(Default)]
struct Kept {
    /// Every reading, by its number.
    numbers: BTreeSet<u64>,
    has_chunks: bool,
    /// Summaries that were compared with their readings.
    summaries: usize,
    folded: bool,
}

fn kept(directory: &Path, today_us: i64) -> Result<Kept, String> {
    let store = schema::open(directory).map_err(|e| e.to_string())?;
    let db = &store.connection;
    let check: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).map_err(|e| e.to_string())?;
    if check != "ok" {
        return Err(check);
    }
    let mut series = db.prepare("SELECT id FROM series").map_err(|e| e.to_string())?;
    let ids: Result<Vec<u32>, _> = series.query_map([], |row| row.get(0)).and_then(Iterator::collect);
    let ids = ids.map_err(|e| e.to_string())?;
    let collect = || -> Result<Kept, ReadError> {
        let raw = Raw::open(db)?;
        let tail = raw.tail(&Wanted::new(&ids), 0, FOREVER_US, usize::MAX)?.expect("it fits");
        let days = raw.days(0, FOREVER_US)?;
        let mut kept = Kept { has_chunks: !days.is_empty(), ..Kept::default() };
        // How many readings each window has; windows that a restart looks at again are left out.
        let (mut windows, mut open) = (BTreeMap::<(u32, i64), u64>::new(), BTreeSet::new());
        let dirty: Vec<u8> = schema::meta(db, "dirty")?.unwrap_or_default();
        let dirty: Vec<Stretch> = read_blob(&dirty).collect();
        for (place, id) in ids.iter().enumerate() {
            raw.each_day::<ReadError>(*id, &days, tail.points(place), 0, FOREVER_US, |points| {
                for (us, number) in points.time_us.iter().zip(&points.number) {
                    assert_eq!(*us, time_us(today_us, *number as u64), "a reading as it was sent");
                    kept.numbers.insert(*number as u64);
                    let start_us = us.div_euclid(LENGTH_US) * LENGTH_US;
                    *windows.entry((*id, start_us)).or_default() += 1;
                    let is_dirty = |s: &Stretch| s.series == *id && (s.from_us..s.to_us).contains(us);
                    if tail.points(place).time_us.binary_search(us).is_ok() || dirty.iter().any(is_dirty) {
                        open.insert((*id, start_us));
                    }
                }
                Ok(ControlFlow::Continue(()))
            })?;
        }
        drop(raw);
        kept.folded = db.query_row("SELECT count(*) FROM rollup", [], |row| row.get::<_, i64>(0))? > 0;
        let mut seen = BTreeSet::new();
        each_summary(db, LENGTH_US, |series, window| {
            let key = (series, window.start_us);
            if seen.insert(key) && !open.contains(&key) {
                assert_eq!(Some(&window.summary.count), windows.get(&key), "the summary of {key:?}");
                kept.summaries += 1;
            }
        })?;
        let unseen = windows.keys().find(|key| !seen.contains(key) && !open.contains(key));
        assert_eq!(unseen, None, "archived readings without a summary");
        Ok(kept)
    };
    collect().map_err(|e| e.to_string())
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_at_any_moment() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let today_us = now_s() * 1_000_000 - 6 * 3_600_000_000;
    let (events, sent) = record(today_us, &mut random);
    let folds = events.iter().filter(|event| matches!(event, Event::Synced(name) if name == "tidegate.db")).count();
    println!("{} events, {sent} readings, the file itself synced {folds} times", events.len());
    assert!(folds > 5, "the log is folded back while it records");
    let told_in_all = events.iter().filter(|event| matches!(event, Event::Told(_))).count();
    assert_eq!(told_in_all as u64, sent);
    let mut moments: Vec<usize> = (0..cuts()).map(|_| random.random_range(0..=events.len())).collect();
    moments.sort_unstable();
    let (mut power, mut told, mut done) = (disk::Disk::default(), BTreeSet::new(), 0);
    let (mut in_chunks, mut folded, mut summaries) = (0, 0, 0);
    for (cut, at) in moments.into_iter().enumerate() {
        for event in &events[done..at] {
            power.take(event);
            if let Event::Told(number) = event {
                told.insert(*number);
            }
        }
        done = at;
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in &power.after_cut(random.random_range(0..u64::MAX)) {
            std::fs::write(directory.path().join(name), content).unwrap();
        }
        let kept = kept(directory.path(), today_us).unwrap_or_else(|e| panic!("cut {cut} at event {at}: {e}"));
        in_chunks += usize::from(kept.has_chunks);
        folded += usize::from(kept.folded);
        summaries += kept.summaries;
        let lost: Vec<&u64> = told.difference(&kept.numbers).take(5).collect();
        assert!(lost.is_empty(), "cut {cut} at event {at} lost acknowledged readings, among them {lost:?}");
        assert!(kept.numbers.iter().all(|&number| number < sent), "nothing that was never sent");
    }
    println!("{in_chunks} of {} cuts found chunks, {folded} folded summaries; {summaries} summaries compared", cuts());
    assert!(in_chunks * 4 > cuts() && folded * 8 > cuts(), "readings and summaries are folded while it records");
    assert!(summaries > cuts(), "windows are summarised while it records");
}
