//! SQLite: one file.
//!
//! One thread writes; what queued while it committed shares the next commit. Readers have
//! connections of their own. Devices have numbers that begin with their slot, so that the rows
//! of a slot lie together. Arrays are JSON, so that people read them with any SQLite tool
//! (`SELECT * FROM summaries`).

/// Rows to answers.
mod answer;
/// Devices, their numbers and their labels.
mod devices;
/// What a shard may do with each slot.
mod fences;
/// What a push does.
mod push;
/// Devices and metrics that are no more.
mod removal;
/// Hours and days, from the windows in them; and what is left when those are retired.
mod rollup;
/// Rows to SQL and back.
mod rows;
/// Tables, settings and versions.
mod schema;
/// Which batches of a gateway are here, and who may send more.
mod senders;
/// Whole slots, as moves see them.
mod slots;

use super::deadline::{LONG, within};
use super::{Beat, Fence, Identity, Known, Names, Part, Partial, Question, Sender, Shard, ShardError, Write};
use crate::row::{Key, Row};
use async_trait::async_trait;
use daemon::aggregates::Range;
use fences::Fences;
use model::Micros;
use placement::Epoch;
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use uplink::Held;
use wire::HeldWindow;

/// Jobs that wait for the writing thread; one more is refused for now.
const QUEUE: usize = 256;
/// Jobs that share a commit, at most.
const SHARED: usize = 64;
/// Readers that are kept open.
const READERS_MAX: usize = 4;

type Settle = Box<dyn FnOnce(Result<(), ShardError>) + Send>;
type Job = Box<dyn FnOnce(&Connection) -> Settle + Send>;

/// A shard in an SQLite file.
pub struct Sqlite {
    path: PathBuf,
    jobs: SyncSender<Job>,
    readers: Arc<Mutex<Vec<Connection>>>,
    fences: Arc<Fences>,
    /// Which file it is, whatever comes to be called so later.
    file: FileId,
}

fn down(e: impl std::fmt::Display) -> ShardError {
    ShardError::Down(e.to_string())
}

impl From<rusqlite::Error> for ShardError {
    fn from(e: rusqlite::Error) -> Self {
        down(e)
    }
}

impl Sqlite {
    /// Opens the file, created if there is none; it becomes `owner`'s if it is nobody's.
    pub fn open(path: &Path, owner: Option<Identity>) -> Result<Self, ShardError> {
        let connection = schema::open(path)?;
        if let Some(owner) = owner {
            schema::own(&connection, &owner)?;
        }
        let file = file_id(path).map_err(down)?;
        let (jobs, waiting) = sync_channel(QUEUE);
        let name = path.file_stem().map_or("shard".into(), |stem| stem.to_string_lossy().into_owned());
        std::thread::Builder::new().name(name).spawn(move || write(connection, &waiting)).map_err(down)?;
        Ok(Sqlite { path: path.to_owned(), jobs, readers: Arc::default(), fences: Arc::default(), file })
    }

    /// Does something in a transaction of the writing thread; returns once it is on disk.
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Connection) -> Result<T, ShardError> + Send + 'static,
    ) -> Result<T, ShardError> {
        let (tell, told) = oneshot::channel();
        let job: Job = Box::new(move |db| {
            let done = within_savepoint(db, change);
            Box::new(move |committed| {
                let _ = tell.send(done.and_then(|done| committed.map(|()| done)));
            })
        });
        match self.jobs.try_send(job) {
            Ok(()) => {
                let failed = |_| down("the shard could not do it; see the log");
                within(LONG, async { told.await.map_err(failed)? }).await
            }
            Err(TrySendError::Full(_)) => Err(down("too much waits for the shard already")),
            Err(TrySendError::Disconnected(_)) => Err(down("the shard's thread has ended")),
        }
    }

    /// Reads in one snapshot, which owns the slots of `fences`.
    async fn read<T: Send + 'static>(
        &self,
        fences: Option<Arc<Vec<(u16, Epoch)>>>,
        read: impl FnOnce(&Connection) -> Result<T, ShardError> + Send + 'static,
    ) -> Result<T, ShardError> {
        let (path, readers, known) = (self.path.clone(), Arc::clone(&self.readers), Arc::clone(&self.fences));
        let reading = tokio::task::spawn_blocking(move || {
            let idle = readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let db = match idle {
                Some(db) => db,
                None => schema::open_reader(&path)?,
            };
            db.execute_batch("BEGIN")?;
            let checked = fences.map_or(Ok(()), |fences| known.check(&db, &fences));
            let answer = checked.and_then(|()| read(&db));
            db.execute_batch("COMMIT")?;
            let mut idle = readers.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < READERS_MAX {
                idle.push(db);
            }
            answer
        });
        within(LONG, async { reading.await.map_err(|_| down("the question ended in a panic; see the log"))? }).await
    }
}

/// Device and inode.
type FileId = (u64, u64);

fn file_id(path: &Path) -> std::io::Result<FileId> {
    std::fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

fn within_savepoint<T>(
    db: &Connection,
    change: impl FnOnce(&Connection) -> Result<T, ShardError>,
) -> Result<T, ShardError> {
    db.execute_batch("SAVEPOINT job")?;
    let done = change(db);
    db.execute_batch(if done.is_ok() { "RELEASE job" } else { "ROLLBACK TO job; RELEASE job" })?;
    done
}

/// The writing thread: jobs that wait share a commit, and are told after it.
fn write(connection: Connection, waiting: &Receiver<Job>) {
    while let Ok(first) = waiting.recv() {
        let jobs = std::iter::once(first).chain(waiting.try_iter().take(SHARED - 1));
        let begun = connection.execute_batch("BEGIN IMMEDIATE");
        // A panic ends what one job wanted, and the commit that it shared; the others are told to try again.
        let did = catch_unwind(AssertUnwindSafe(|| jobs.map(|job| job(&connection)).collect::<Vec<Settle>>()));
        let Ok(settles) = did else {
            tracing::error!("a shard's job ended in a panic");
            if !connection.is_autocommit() {
                let _ = connection.execute_batch("ROLLBACK");
            }
            continue;
        };
        let committed = begun.and_then(|()| connection.execute_batch("COMMIT")).map_err(down);
        if committed.is_err() && !connection.is_autocommit() {
            let _ = connection.execute_batch("ROLLBACK");
        }
        if let Err(e) = &committed {
            tracing::error!("a shard cannot be written: {e}");
        }
        settles.into_iter().for_each(|settle| settle(committed.clone()));
    }
}

#[async_trait]
impl Shard for Sqlite {
    async fn write(&self, write: Write) -> Result<Held, ShardError> {
        self.change(move |db| push::write(db, &write)).await
    }

    async fn held(&self, gateway: &str, incarnation: u64) -> Result<Held, ShardError> {
        let gateway = gateway.to_owned();
        self.read(None, move |db| {
            let known = senders::sender(db, &gateway)?;
            Ok(known.map_or_else(Held::default, |known| known.held_in(incarnation)))
        })
        .await
    }

    async fn beat(&self, beat: Beat, sender: Sender, fence: (u16, Epoch)) -> Result<(), ShardError> {
        self.change(move |db| senders::beat(db, &beat, &sender, fence)).await
    }

    async fn dispute(&self, gateway: &str, incarnation: u64) -> Result<(), ShardError> {
        let gateway = gateway.to_owned();
        self.change(move |db| Ok(senders::dispute(db, &gateway, incarnation)?)).await
    }

    async fn forget_sender(&self, gateway: &str, wholly: bool) -> Result<bool, ShardError> {
        let gateway = gateway.to_owned();
        self.change(move |db| Ok(senders::forget(db, &gateway, wholly)?)).await
    }

    async fn beats(&self) -> Result<Vec<Beat>, ShardError> {
        self.read(None, senders::beats).await
    }

    async fn aggregate(&self, question: Question) -> Result<Partial, ShardError> {
        let fences = Arc::clone(&question.fences);
        self.read(Some(fences), move |db| answer::aggregate(db, &question)).await
    }

    async fn devices(
        &self,
        patterns: Vec<String>,
        after: Option<(String, String)>,
        limit: usize,
        fences: Arc<Vec<(u16, Epoch)>>,
    ) -> Result<Vec<Known>, ShardError> {
        let own = Arc::clone(&fences);
        self.read(Some(fences), move |db| answer::devices(db, &patterns, after, limit, &own)).await
    }

    async fn windows(
        &self,
        gateway: String,
        after: Option<(String, Micros, Micros)>,
        limit: usize,
        fences: Arc<Vec<(u16, Epoch)>>,
    ) -> Result<Vec<HeldWindow>, ShardError> {
        let own = Arc::clone(&fences);
        self.read(Some(fences), move |db| answer::windows(db, &gateway, after, limit, &own)).await
    }

    async fn identity(&self) -> Result<Option<Identity>, ShardError> {
        self.read(None, |db| Ok(schema::identity(db)?)).await
    }

    async fn attend(&self) -> Result<bool, ShardError> {
        Ok(file_id(&self.path).is_ok_and(|file| file == self.file))
    }

    async fn fences(&self) -> Result<Vec<Fence>, ShardError> {
        self.read(None, |db| Ok(fences::fences(db)?.into_values().collect())).await
    }

    async fn set_fences(&self, fences: Vec<Fence>) -> Result<(), ShardError> {
        self.change(move |db| fences::set_fences(db, &fences)).await
    }

    async fn export(
        &self,
        slot: u16,
        part: Part,
        range: Range,
        after: Option<Key>,
        limit: usize,
    ) -> Result<Vec<Row>, ShardError> {
        self.read(None, move |db| slots::export(db, slot, part, range, after.as_ref(), limit)).await
    }

    async fn changed(&self, slots: Vec<u16>, since_us: Micros) -> Result<BTreeMap<u16, Range>, ShardError> {
        self.read(None, move |db| Ok(slots::changed(db, &slots, since_us)?)).await
    }

    async fn inhabited(&self, slots: Vec<u16>) -> Result<Vec<u16>, ShardError> {
        self.read(None, move |db| devices::inhabited(db, &slots)).await
    }

    async fn export_names(&self, slot: u16) -> Result<Names, ShardError> {
        self.read(None, move |db| devices::export_names(db, slot)).await
    }

    async fn import(&self, rows: Vec<Row>, part: Part, fences: Vec<(u16, Epoch)>) -> Result<(), ShardError> {
        self.change(move |db| slots::import(db, &rows, part, &fences)).await
    }

    async fn import_names(&self, names: Vec<Names>, fences: Vec<(u16, Epoch)>) -> Result<(), ShardError> {
        self.change(move |db| devices::import_names(db, &names, &fences)).await
    }

    async fn digests(&self, slot: u16, range: Range) -> Result<BTreeMap<i64, (u64, u64)>, ShardError> {
        self.read(None, move |db| slots::digests(db, slot, range)).await
    }

    async fn delete(&self, fence: Fence, limit: usize) -> Result<usize, ShardError> {
        self.change(move |db| slots::delete(db, fence, limit)).await
    }

    async fn forget_batches(&self) -> Result<(), ShardError> {
        self.change(|db| {
            db.execute("UPDATE sender SET highest = 0, recent = 0", [])?;
            Ok(())
        })
        .await
    }

    async fn check(&self) -> Result<Vec<String>, ShardError> {
        self.read(None, |db| {
            let mut check = db.prepare("PRAGMA integrity_check")?;
            let said = check.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
            Ok(said
                .into_iter()
                .filter(|line| line != "ok")
                .map(|line| format!("{line}; restore it from a backup"))
                .collect())
        })
        .await
    }

    async fn size(&self) -> Result<(u64, u64), ShardError> {
        let path = self.path.clone();
        self.read(None, move |db| {
            let rows: i64 = db.query_row("SELECT count(*) FROM summary", [], |row| row.get(0))?;
            Ok((rows as u64, std::fs::metadata(&path).map_or(0, |file| file.len())))
        })
        .await
    }

    async fn clock_us(&self) -> Result<Option<Micros>, ShardError> {
        Ok(None)
    }

    async fn retire(&self, until_us: Micros, limit: usize) -> Result<usize, ShardError> {
        self.change(move |db| rollup::retire(db, until_us, limit)).await
    }

    async fn sweep(&self, limit: usize) -> Result<usize, ShardError> {
        self.change(move |db| removal::sweep(db, limit)).await
    }

    async fn roll_up(&self, until_us: Micros, limit: usize) -> Result<usize, ShardError> {
        self.change(move |db| rollup::roll_up(db, until_us, limit)).await
    }
}

impl Sqlite {
    /// How long a connection waits for another.
    const BUSY: Duration = Duration::from_secs(5);
}
