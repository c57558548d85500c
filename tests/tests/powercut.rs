//! The power is cut: what was acknowledged is on disk.
//!
//! One gateway takes readings in this process over a recording layer, folds, checkpoints and
//! closes windows all the while. Then its power is cut at every kind of moment, and each time
//! another gateway has to find a whole store with everything that clients had been told is kept.

use gateway::app::App;
use gateway::archive::read::{Raw, Wanted};
use gateway::clock::Clock;
use gateway::config::{Config, Size, Span};
use gateway::journal::{ReadError, schema};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;
use tests::powercut::{Event, disk, vfs};
use tests::seed;
use tokio_util::sync::CancellationToken;

const FOREVER_US: i64 = i64::MAX / 4;
/// Event times: a second apart, from some day on.
const FIRST_US: i64 = 1_700_000_000_000_000;

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
    config.window.length = Span::seconds(2);
    config.window.lateness = Span::seconds(1);
    config
}

/// Sends readings from a few clients at once, noting what each has been told is kept.
fn load(address: std::net::SocketAddr, random: &mut StdRng) -> u64 {
    let (clients, requests) = (4_u64, 1_000_u64);
    let sizes: Vec<u64> = (0..clients * requests).map(|_| random.random_range(1..60)).collect();
    let begins: Vec<u64> = sizes.iter().scan(0, |sum, size| Some(std::mem::replace(sum, *sum + size))).collect();
    std::thread::scope(|scope| {
        for client in 0..clients {
            let (sizes, begins) = (&sizes, &begins);
            scope.spawn(move || {
                for request in 0..requests {
                    let at = (request * clients + client) as usize;
                    let numbers = begins[at]..begins[at] + sizes[at];
                    let line = |n: u64| {
                        let time = FIRST_US + n as i64 * 200_000;
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
    sizes.iter().sum()
}

/// Runs a gateway under load and returns what happened to its files, in order.
fn record(random: &mut StdRng) -> (Vec<Event>, u64) {
    let directory = tempfile::tempdir().unwrap();
    vfs::record(true);
    vfs::take_recording();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let stop = CancellationToken::new();
    let app = runtime.block_on(App::build(config(directory.path()), Clock::System)).unwrap();
    let address = app.addresses().iter().find(|(name, _)| *name == "http").unwrap().1;
    let running = runtime.spawn(app.run(stop.clone()));
    let sent = load(address, random);
    stop.cancel();
    runtime.block_on(running).unwrap().unwrap();
    drop(runtime);
    vfs::record(false);
    (vfs::take_recording(), sent)
}

/// Every reading in the store, by its number, and whether any is in a chunk.
fn readings(directory: &Path) -> Result<(BTreeSet<u64>, bool), String> {
    let store = schema::open(directory).map_err(|e| e.to_string())?;
    let db = &store.connection;
    let check: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).map_err(|e| e.to_string())?;
    if check != "ok" {
        return Err(check);
    }
    let mut series = db.prepare("SELECT id FROM series").map_err(|e| e.to_string())?;
    let ids: Result<Vec<u32>, _> = series.query_map([], |row| row.get(0)).and_then(Iterator::collect);
    let ids = ids.map_err(|e| e.to_string())?;
    let collect = || -> Result<(BTreeSet<u64>, bool), ReadError> {
        let raw = Raw::open(db)?;
        let tail = raw.tail(&Wanted::new(&ids), 0, FOREVER_US, usize::MAX)?.expect("it fits");
        let days = raw.days(0, FOREVER_US)?;
        let mut numbers = BTreeSet::new();
        for (place, id) in ids.iter().enumerate() {
            raw.each_day::<ReadError>(*id, &days, tail.points(place), 0, FOREVER_US, |points| {
                for (time_us, number) in points.time_us.iter().zip(&points.number) {
                    assert_eq!(*time_us, FIRST_US + *number as i64 * 200_000, "a reading as it was sent");
                    numbers.insert(*number as u64);
                }
                Ok(ControlFlow::Continue(()))
            })?;
        }
        Ok((numbers, !days.is_empty()))
    };
    collect().map_err(|e| e.to_string())
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_at_any_moment() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let (events, sent) = record(&mut random);
    let folds = events.iter().filter(|event| matches!(event, Event::Synced(name) if name == "tidegate.db")).count();
    println!("{} events, {sent} readings, the file itself synced {folds} times", events.len());
    assert!(folds > 5, "the log is folded back while it records");
    let told_in_all = events.iter().filter(|event| matches!(event, Event::Told(_))).count();
    assert_eq!(told_in_all as u64, sent);
    let mut moments: Vec<usize> = (0..cuts()).map(|_| random.random_range(0..=events.len())).collect();
    moments.sort_unstable();
    let (mut power, mut told, mut done, mut in_chunks) = (disk::Disk::default(), BTreeSet::new(), 0, 0);
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
        let (kept, has_chunks) = readings(directory.path()).unwrap_or_else(|e| panic!("cut {cut} at event {at}: {e}"));
        in_chunks += usize::from(has_chunks);
        let lost: Vec<&u64> = told.difference(&kept).take(5).collect();
        assert!(lost.is_empty(), "cut {cut} at event {at} lost acknowledged readings, among them {lost:?}");
        assert!(kept.iter().all(|&number| number < sent), "nothing that was never sent");
    }
    println!("{in_chunks} of {} cuts found chunks", cuts());
    assert!(in_chunks * 4 > cuts(), "readings are folded while it records");
}
