//! Whether the cloud holds what this store holds.
//!
//! Arrives: the store, also while a gateway writes to it, and the cloud's list of windows with
//! their versions. Leaves: every difference by name. Always holds: what has not been
//! acknowledged yet is counted apart; what differs is looked at again before it is called a
//! difference, because both sides go on.

use crate::archive::levels::each_summary;
use crate::journal::changes::{self, Change, revision_of};
use crate::journal::removal::Sweep;
use crate::journal::schema;
use crate::journal::steps::read_ledger;
use anyhow::{Context, Result, bail, ensure};
use model::Micros;
use model::time::{self, SECOND_US, window_start};
use rusqlite::Connection;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;
use wire::HeldWindow;

/// How often both sides are read until they agree.
const ROUNDS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(2);

/// What came of it.
#[derive(Debug, Default)]
pub struct Comparison {
    /// Windows that both hold in the same version.
    pub equal: u64,
    /// Readings in them.
    pub readings: u64,
    /// Windows that have changed and are not acknowledged yet.
    pub waiting: u64,
    /// Windows that are not forwarded, because the clock was not set when readings in them were received.
    pub held_back: u64,
    /// Windows that only the cloud still has.
    pub retired: u64,
    /// Windows that the cloud has retired; their hours are there.
    pub retired_there: u64,
    /// What differs, in words.
    pub differences: Vec<String>,
}

/// Length, device and start.
type Key = (Micros, String, Micros);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Version {
    revision: u64,
    readings: u64,
}

#[derive(Deserialize)]
struct Page {
    rows: Vec<HeldWindow>,
    next: Option<String>,
}

/// Compares a store with the cloud at `url`.
pub async fn compare(store: &Path, url: &str, token: Option<&str>) -> Result<Comparison> {
    let db = schema::open_reader(store)?;
    let gateway: String = schema::meta(&db, "id")?.context("the store has no id yet: start the gateway once")?;
    let mut comparison = Comparison::default();
    for round in 0..ROUNDS {
        if round > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        let here = Here::read(&db)?;
        let there = fetch(url, token, &gateway).await?;
        comparison = here.compare(&there);
        if comparison.differences.is_empty() {
            break;
        }
    }
    Ok(comparison)
}

/// What the cloud holds of a gateway.
#[derive(Debug, Default)]
struct There {
    windows: BTreeMap<Key, Version>,
    /// What stands for shorter windows that the cloud has retired, and the readings in it.
    sealed: BTreeMap<Key, u64>,
}

async fn fetch(url: &str, token: Option<&str>, gateway: &str) -> Result<There> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(60)).build()?;
    let (mut there, mut cursor) = (There::default(), None::<String>);
    loop {
        let mut query = vec![("gateway", gateway.to_owned())];
        query.extend(cursor.map(|cursor| ("cursor", cursor)));
        let url = reqwest::Url::parse_with_params(&format!("{}/v1/summaries", url.trim_end_matches('/')), &query)
            .with_context(|| format!("--cloud {url}: write for example http://127.0.0.1:8090"))?;
        let mut request = client.get(url.clone());
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.with_context(|| format!("{url} does not answer"))?;
        let (status, text) = (response.status(), response.text().await?);
        if !status.is_success() {
            bail!("{url}: {status}: {text}");
        }
        let page: Page = serde_json::from_str(&text).with_context(|| format!("{url} gives no list of windows"))?;
        for row in page.rows {
            let key = (row.length_us, row.device, row.start_us);
            if row.sealed {
                there.sealed.insert(key, row.readings);
            } else {
                there.windows.insert(key, Version { revision: row.revision, readings: row.readings });
            }
        }
        cursor = page.next;
        if cursor.is_none() {
            return Ok(there);
        }
    }
}

/// What this store holds; what waits is read last, so that what changes meanwhile is among it.
struct Here {
    windows: BTreeMap<Key, Version>,
    waiting: BTreeSet<Key>,
    /// Windows of a time when the clock was not set.
    held_back: BTreeSet<Key>,
    waiting_stretches: Vec<(String, Micros, Micros)>,
    base_us: Micros,
    /// Windows that end before may have been retired.
    kept_from_us: Micros,
}

impl Here {
    fn read(db: &Connection) -> Result<Self> {
        let mut names = db.prepare(
            "SELECT s.id, d.name, d.id, d.era FROM series s JOIN device d ON d.id = s.device WHERE unicode(s.metric) > 1",
        )?;
        let names = names.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?, row.get(3)?))))?;
        let names: BTreeMap<u32, (String, u32, u32)> = names.collect::<rusqlite::Result<_>>()?;
        let base_us: Micros = schema::meta(db, "window_length_us")?.context("the store has no windows yet")?;
        let mut lengths = db.prepare("SELECT length_us FROM level")?;
        let lengths = lengths.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<Micros>>>()?;
        let clock = read_ledger(db)?;
        let mut here = Here {
            windows: BTreeMap::new(),
            waiting: BTreeSet::new(),
            held_back: BTreeSet::new(),
            waiting_stretches: Vec::new(),
            base_us,
            kept_from_us: Micros::MAX,
        };
        for length_us in lengths {
            let mut seen: BTreeSet<(u32, Micros)> = BTreeSet::new();
            each_summary(db, length_us, |series, window| {
                // A window may come twice while its day is being folded.
                let (Some((device, _, era)), true) = (names.get(&series), seen.insert((series, window.start_us)))
                else {
                    return;
                };
                if clock.holds_back(window.start_us, window.start_us + length_us) {
                    here.held_back.insert((length_us, device.clone(), window.start_us));
                    return;
                }
                if length_us == base_us {
                    here.kept_from_us = here.kept_from_us.min(window.start_us);
                }
                let version = here.windows.entry((length_us, device.clone(), window.start_us)).or_default();
                if version.revision == 0 {
                    version.revision = revision_of(*era);
                }
                version.revision += u64::from(window.revision);
                version.readings += window.summary.count + window.summary.texts;
            })?;
        }
        let devices: BTreeMap<u32, &String> = names.values().map(|(name, id, _)| (*id, name)).collect();
        let saved: Vec<u8> = schema::meta(db, "uplink")?.unwrap_or_default();
        for range in uplink::waiting(&saved, changes::latest(db)? + 1) {
            changes::read(db, range, |_, change| {
                match change {
                    Some(Change::Windows(length_us, keys)) => {
                        let named = |(series, start_us)| Some((length_us, names.get(&series)?.0.clone(), start_us));
                        here.waiting.extend(keys.into_iter().filter_map(named));
                    }
                    Some(Change::Stretch { device, from_us, to_us }) => {
                        here.waiting_stretches
                            .extend(devices.get(&device).map(|name| ((*name).clone(), from_us, to_us)));
                    }
                    Some(Change::Removed(removed)) => {
                        here.waiting_stretches.push((removed.device.to_string(), Micros::MIN, Micros::MAX));
                    }
                    Some(Change::Labels(_)) | None => {}
                }
                true
            })?;
        }
        let untold = Sweep::read(db)?.devices.into_iter().filter_map(|device| devices.get(&device));
        here.waiting_stretches.extend(untold.map(|name| ((*name).clone(), Micros::MIN, Micros::MAX)));
        Ok(here)
    }

    fn waits(&self, key: &Key) -> bool {
        let (_, device, start_us) = key;
        let within =
            |(name, from_us, to_us): &(String, Micros, Micros)| name == device && (*from_us..*to_us).contains(start_us);
        self.waiting.contains(key) || self.waiting_stretches.iter().any(within)
    }

    fn compare(&self, there: &There) -> Comparison {
        let There { windows: there, sealed } = there;
        let held_back = self.held_back.len() as u64;
        let mut found = Comparison { held_back, ..Comparison::default() };
        let longer: BTreeSet<Micros> =
            there.keys().map(|(length_us, ..)| *length_us).filter(|us| *us > self.base_us).collect();
        // Where windows had been retired before they were sent, longer ones stand for them.
        let is_covered = |device: &String, start_us: Micros| {
            longer
                .iter()
                .any(|&length_us| there.contains_key(&(length_us, device.clone(), window_start(start_us, length_us))))
        };
        let lengths: BTreeSet<Micros> = sealed.keys().map(|(length_us, ..)| *length_us).collect();
        let sealed_at = |device: &String, start_us: Micros| {
            let at = |&us: &Micros| (us, device.clone(), window_start(start_us, us));
            lengths.iter().map(at).find(|key| sealed.contains_key(key))
        };
        // What is here of hours that are sealed there; of those that are here whole, all must be there.
        let mut within: BTreeMap<Key, (u64, bool)> = BTreeMap::new();
        for (key, here) in self.windows.iter().filter(|((length_us, ..), _)| *length_us == self.base_us) {
            let name = || format!("{} {}", key.1, time::format(key.2));
            match there.get(key) {
                Some(there) if there == here => {
                    found.equal += 1;
                    found.readings += here.readings;
                }
                _ if self.waits(key) => {
                    found.waiting += 1;
                    if let Some(hour) = sealed_at(&key.1, key.2) {
                        within.entry(hour).or_default().1 = true;
                    }
                }
                Some(there) => found.differences.push(format!(
                    "{}: revision {} with {} readings here, {} with {} in the cloud",
                    name(),
                    here.revision,
                    here.readings,
                    there.revision,
                    there.readings
                )),
                None if is_covered(&key.1, key.2) => {}
                None => match sealed_at(&key.1, key.2) {
                    Some(hour) => {
                        found.retired_there += 1;
                        within.entry(hour).or_default().0 += here.readings;
                    }
                    None => found.differences.push(format!("{}: not in the cloud", name())),
                },
            }
        }
        for (hour, (here, waits)) in within {
            let (length_us, device, start_us) = &hour;
            let there = sealed[&hour];
            // Fewer are here where some of the hour has been retired here too.
            if here > there && !waits {
                found.differences.push(format!(
                    "{device} {} for {} s: {here} readings here, {there} in the cloud, which has retired its shorter windows",
                    time::format(*start_us),
                    length_us / SECOND_US
                ));
            }
        }
        for (key, there) in there {
            let (length_us, device, start_us) = key;
            match self.windows.get(key) {
                Some(_) if *length_us == self.base_us => {}
                Some(here) if here == there => {
                    found.equal += 1;
                    found.readings += here.readings;
                }
                _ if self.waits(key) || self.held_back.contains(key) => found.waiting += 1,
                Some(here) => found.differences.push(format!(
                    "{device} {} for {} s: revision {} here, {} in the cloud",
                    time::format(*start_us),
                    length_us / SECOND_US,
                    here.revision,
                    there.revision
                )),
                None if *length_us != self.base_us || *start_us < self.kept_from_us => found.retired += 1,
                None => found.differences.push(format!("{device} {}: only in the cloud", time::format(*start_us))),
            }
        }
        found
    }
}

/// Prints what came of it; an error if both differ.
pub fn report(comparison: &Comparison) -> Result<()> {
    comparison.differences.iter().for_each(|difference| println!("DIFFERENCE {difference}"));
    println!(
        "{} windows with {} readings equal, {} not acknowledged yet, {} held back until the clock is set, {} only in the cloud because they are retired here, \
         {} only here because they are retired there, {} differences",
        comparison.equal,
        comparison.readings,
        comparison.waiting,
        comparison.held_back,
        comparison.retired,
        comparison.retired_there,
        comparison.differences.len()
    );
    ensure!(comparison.differences.is_empty(), "store and cloud differ");
    Ok(())
}
