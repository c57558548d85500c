//! PostgreSQL: a database, version 15 or later.
//!
//! Every write is one transaction at READ COMMITTED that first takes a shared advisory lock,
//! in a statement of its own, and reads the fences in the next one; changing fences takes the
//! lock exclusively, so that no write that saw the old ones is still under way afterwards. Locks
//! are transaction-scoped, which is safe behind poolers. Everything lies in the schema
//! `tidegate`; `SELECT * FROM tidegate.summaries` shows plain rows.

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
/// What is left when windows are retired.
mod retire;
/// Hours and days.
mod rollup;
/// Rows to SQL and back.
mod rows;
/// Tables, their versions, partitions.
mod schema;
/// Which batches of a gateway are here, and who may send more.
mod senders;
/// Whole slots, as moves see them.
mod slots;

use super::deadline::{ANSWER, LONG, WRITE, within};
use super::{Beat, Fence, Identity, Known, Names, Part, Partial, Question, Sender, Shard, ShardError, Write};
use crate::row::{Key, Row};
use async_trait::async_trait;
use daemon::aggregates::Range;
use deadpool_postgres::{Manager, ManagerConfig, Pool, PoolError, RecyclingMethod, Timeouts};
use fences::Fences;
use model::Micros;
use placement::Epoch;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;
use uplink::Held;
use wire::HeldWindow;

/// Connections of one daemon to one shard.
const CONNECTIONS: usize = 16;
/// How long a connection may take to come.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A shard in a PostgreSQL database.
pub struct Postgres {
    pool: Pool,
    owner: Option<Identity>,
    /// The tables are there and of this version, and the owner's.
    ready: Mutex<Arc<OnceCell<()>>>,
    was_ready: AtomicBool,
    fences: Fences,
}

fn down(e: impl std::error::Error + Send + Sync + 'static) -> ShardError {
    ShardError::Down(format!("{:#}", anyhow::Error::from(e)))
}

/// Why there is no connection, as the server or the network says it.
pub(crate) fn why(e: PoolError) -> String {
    match e {
        PoolError::Backend(e) => format!("{:#}", anyhow::Error::from(e)),
        other => format!("{:#}", anyhow::Error::from(other)),
    }
}

impl From<tokio_postgres::Error> for ShardError {
    fn from(e: tokio_postgres::Error) -> Self {
        down(e)
    }
}

/// What a URL says, and the file of certificates that it names, which is a part that only we know.
pub(super) fn config(url: &str) -> anyhow::Result<(Config, Option<String>)> {
    let (url, root) = without_root(url);
    Ok((Config::from_str(&url)?, root))
}

/// A pool for a database. Beyond loopback and sockets the connection is encrypted and the server's certificate
/// checked, against the system's authorities or those of `sslrootcert=FILE` in the URL; `sslmode=disable` there
/// says that somebody wants it otherwise.
pub(crate) fn pool(url: &str) -> Result<Pool, ShardError> {
    let (mut config, root) = config(url).map_err(|e| ShardError::Down(format!("{e:#}")))?;
    config.connect_timeout(CONNECT_TIMEOUT).application_name("tidegate-cloud");
    // Who stops in the middle of a transaction must not hold its locks for ever.
    let options = config.get_options().unwrap_or_default().to_owned();
    config.options(format!(
        "{options} -c idle_in_transaction_session_timeout=5s -c statement_timeout=60s -c client_min_messages=warning"
    ));
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let is_plain = match config.get_ssl_mode() {
        SslMode::Disable => true,
        SslMode::Require => false,
        _ => config.get_hosts().iter().all(is_local),
    };
    let manager = if is_plain {
        config.ssl_mode(SslMode::Disable);
        Manager::from_config(config, NoTls, recycling)
    } else {
        config.ssl_mode(SslMode::Require);
        let mut roots = rustls::RootCertStore::empty();
        match root {
            Some(file) => {
                let read = CertificateDer::pem_file_iter(&file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
                let read =
                    read.map_err(|e| ShardError::Down(format!("sslrootcert {file}: no certificates in PEM: {e}")))?;
                roots.add_parsable_certificates(read);
            }
            None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        }
        let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Manager::from_config(config, MakeRustlsConnect::new(tls), recycling)
    };
    let wait = Some(CONNECT_TIMEOUT);
    Pool::builder(manager)
        .max_size(CONNECTIONS)
        .timeouts(Timeouts { wait, create: wait, recycle: wait })
        .runtime(deadpool_postgres::Runtime::Tokio1)
        .build()
        .map_err(down)
}

/// True for a socket of this machine, and for its loopback.
fn is_local(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()),
    }
}

/// A URL without `sslrootcert`, which the driver does not know, and that file.
fn without_root(url: &str) -> (String, Option<String>) {
    let Some((before, query)) = url.split_once('?') else { return (url.to_owned(), None) };
    let (mut kept, mut root) = (Vec::new(), None);
    for pair in query.split('&') {
        match pair.strip_prefix("sslrootcert=") {
            Some(file) => {
                root = form_urlencoded::parse(format!("f={file}").as_bytes()).next().map(|(_, file)| file.into_owned())
            }
            None => kept.push(pair),
        }
    }
    (format!("{before}?{}", kept.join("&")), root)
}

impl Postgres {
    /// A shard in a database. Its tables are made or brought up to date when it is first reached: a
    /// server that is down must not keep a daemon from serving the others.
    /// It becomes `owner`'s then if it is nobody's.
    pub fn new(url: &str, owner: Option<Identity>) -> Result<Self, ShardError> {
        Ok(Postgres {
            pool: pool(url)?,
            owner,
            ready: Mutex::default(),
            was_ready: AtomicBool::new(false),
            fences: Fences::default(),
        })
    }

    async fn connection(&self) -> Result<deadpool_postgres::Client, ShardError> {
        let mut pooled = self.pool.get().await.map_err(|e| ShardError::Down(why(e)))?;
        let ready = Arc::clone(&self.ready.lock().unwrap_or_else(PoisonError::into_inner));
        ready.get_or_try_init(|| schema::migrate(&mut pooled, self.owner.as_ref())).await?;
        self.was_ready.store(true, Ordering::Relaxed);
        Ok(pooled)
    }
}

#[async_trait]
impl Shard for Postgres {
    async fn write(&self, write: Write) -> Result<Held, ShardError> {
        within(WRITE, async {
            let mut pooled = self.connection().await?;
            let client: &mut Client = &mut pooled;
            let transaction = client.transaction().await?;
            let held = push::write(&transaction, &write).await?;
            transaction.commit().await?;
            Ok(held)
        })
        .await
    }

    async fn held(&self, gateway: &str, incarnation: u64) -> Result<Held, ShardError> {
        within(ANSWER, async {
            let client = self.connection().await?;
            let rows = client.query(senders::SENDER, &[&gateway]).await?;
            Ok(rows.first().map_or_else(Held::default, |row| senders::sender_of(gateway, row).held_in(incarnation)))
        })
        .await
    }

    async fn beat(&self, beat: Beat, sender: Sender, fence: (u16, Epoch)) -> Result<(), ShardError> {
        within(ANSWER, async {
            let mut pooled = self.connection().await?;
            let client: &mut Client = &mut pooled;
            let transaction = client.transaction().await?;
            senders::beat(&transaction, &beat, &sender, fence).await?;
            Ok(transaction.commit().await?)
        })
        .await
    }

    async fn dispute(&self, gateway: &str, incarnation: u64) -> Result<(), ShardError> {
        within(ANSWER, async { senders::dispute(&**self.connection().await?, gateway, incarnation).await }).await
    }

    async fn forget_sender(&self, gateway: &str, wholly: bool) -> Result<bool, ShardError> {
        within(ANSWER, async { senders::forget(&**self.connection().await?, gateway, wholly).await }).await
    }

    async fn beats(&self) -> Result<Vec<Beat>, ShardError> {
        within(ANSWER, async { senders::beats(&**self.connection().await?).await }).await
    }

    async fn aggregate(&self, question: Question) -> Result<Partial, ShardError> {
        within(LONG, async {
            let mut pooled = self.connection().await?;
            let client: &mut Client = &mut pooled;
            let snapshot = schema::snapshot(client).await?;
            self.fences.check(&snapshot, &question.fences).await?;
            answer::aggregate(&snapshot, &question).await
        })
        .await
    }

    async fn devices(
        &self,
        patterns: Vec<String>,
        after: Option<(String, String)>,
        limit: usize,
        fences: Arc<Vec<(u16, Epoch)>>,
    ) -> Result<Vec<Known>, ShardError> {
        within(LONG, async {
            let mut pooled = self.connection().await?;
            let client: &mut Client = &mut pooled;
            let snapshot = schema::snapshot(client).await?;
            self.fences.check(&snapshot, &fences).await?;
            answer::devices(&snapshot, &patterns, after, limit, &fences).await
        })
        .await
    }

    async fn windows(
        &self,
        gateway: String,
        after: Option<(String, Micros, Micros)>,
        limit: usize,
        fences: Arc<Vec<(u16, Epoch)>>,
    ) -> Result<Vec<HeldWindow>, ShardError> {
        within(LONG, async {
            let mut pooled = self.connection().await?;
            let client: &mut Client = &mut pooled;
            let snapshot = schema::snapshot(client).await?;
            self.fences.check(&snapshot, &fences).await?;
            answer::windows(&snapshot, &gateway, after, limit, &fences).await
        })
        .await
    }

    async fn identity(&self) -> Result<Option<Identity>, ShardError> {
        within(ANSWER, async { Ok(schema::identity(&**self.connection().await?).await?) }).await
    }

    async fn attend(&self) -> Result<bool, ShardError> {
        // Whoever comes until it is known waits for it.
        *self.ready.lock().unwrap_or_else(PoisonError::into_inner) = Arc::default();
        let attended = async { self.connection().await.map(|_| true) };
        // Bringing tables up to date may take long; finding them so does not.
        if self.was_ready.load(Ordering::Relaxed) { within(ANSWER, attended).await } else { attended.await }
    }

    async fn fences(&self) -> Result<Vec<Fence>, ShardError> {
        within(ANSWER, async { Ok(fences::fences(&**self.connection().await?).await?.into_values().collect()) }).await
    }

    async fn set_fences(&self, fences: Vec<Fence>) -> Result<(), ShardError> {
        within(WRITE, async {
            let mut pooled = self.connection().await?;
            let client: &mut Client = &mut pooled;
            let transaction = client.transaction().await?;
            fences::set_fences(&transaction, &fences).await?;
            Ok(transaction.commit().await?)
        })
        .await
    }

    async fn export(
        &self,
        slot: u16,
        part: Part,
        range: Range,
        after: Option<Key>,
        limit: usize,
    ) -> Result<Vec<Row>, ShardError> {
        within(LONG, async {
            slots::export(&*self.connection().await?, slot, part, range, after.as_ref(), limit).await
        })
        .await
    }

    async fn changed(&self, slots: Vec<u16>, since_us: Micros) -> Result<BTreeMap<u16, Range>, ShardError> {
        within(LONG, async { slots::changed(&**self.connection().await?, &slots, since_us).await }).await
    }

    async fn inhabited(&self, slots: Vec<u16>) -> Result<Vec<u16>, ShardError> {
        within(LONG, async { devices::inhabited(&**self.connection().await?, &slots).await }).await
    }

    async fn export_names(&self, slot: u16) -> Result<Names, ShardError> {
        within(LONG, async { devices::export_names(&*self.connection().await?, slot).await }).await
    }

    async fn import(&self, rows: Vec<Row>, part: Part, fences: Vec<(u16, Epoch)>) -> Result<(), ShardError> {
        within(LONG, async {
            let mut pooled = self.connection().await?;
            let client: &mut Client = &mut pooled;
            let transaction = client.transaction().await?;
            fences::lock_and_check(&transaction, &fences, true).await?;
            match part {
                Part::Windows => rows::put_rows(&transaction, &rows).await?,
                Part::Sealed => retire::import_sealed(&transaction, &rows).await?,
            }
            Ok(transaction.commit().await?)
        })
        .await
    }

    async fn import_names(&self, names: Vec<Names>, fences: Vec<(u16, Epoch)>) -> Result<(), ShardError> {
        within(LONG, async {
            let mut pooled = self.connection().await?;
            let client: &mut Client = &mut pooled;
            let transaction = client.transaction().await?;
            fences::lock_and_check(&transaction, &fences, true).await?;
            devices::import_names(&transaction, &names).await?;
            Ok(transaction.commit().await?)
        })
        .await
    }

    async fn digests(&self, slot: u16, range: Range) -> Result<BTreeMap<i64, (u64, u64)>, ShardError> {
        within(LONG, async { slots::digests(&*self.connection().await?, slot, range).await }).await
    }

    async fn delete(&self, fence: Fence, limit: usize) -> Result<usize, ShardError> {
        within(LONG, async {
            let mut pooled = self.connection().await?;
            let client: &mut Client = &mut pooled;
            let transaction = client.transaction().await?;
            let rows = slots::delete(&transaction, fence, limit).await?;
            transaction.commit().await?;
            Ok(rows)
        })
        .await
    }

    async fn forget_batches(&self) -> Result<(), ShardError> {
        within(WRITE, async {
            self.connection().await?.execute("UPDATE tidegate.sender SET highest = 0, recent = 0", &[]).await?;
            Ok(())
        })
        .await
    }

    async fn check(&self) -> Result<Vec<String>, ShardError> {
        within(LONG, async {
            // Looking after pages is the server's business; rows without a device are ours.
            let orphans = "SELECT count(*) FROM tidegate.summary s
            WHERE NOT EXISTS (SELECT 1 FROM tidegate.device d WHERE d.id = s.device)";
            let orphans: i64 = self.connection().await?.query_one(orphans, &[]).await?.get(0);
            let what = format!("{orphans} rows belong to no device; restore it from a backup");
            Ok((orphans > 0).then_some(what).into_iter().collect())
        })
        .await
    }

    async fn size(&self) -> Result<(u64, u64), ShardError> {
        within(LONG, async { schema::size(&**self.connection().await?).await }).await
    }

    async fn clock_us(&self) -> Result<Option<Micros>, ShardError> {
        within(ANSWER, async {
            let now = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
            Ok(Some(self.connection().await?.query_one(now, &[]).await?.get(0)))
        })
        .await
    }

    async fn retire(&self, until_us: Micros, limit: usize) -> Result<usize, ShardError> {
        within(LONG, async {
            let mut pooled = self.connection().await?;
            let client: &mut Client = &mut pooled;
            let transaction = client.transaction().await?;
            let rows = retire::retire(&transaction, until_us, limit).await?;
            transaction.commit().await?;
            Ok(rows)
        })
        .await
    }

    async fn sweep(&self, limit: usize) -> Result<usize, ShardError> {
        within(LONG, async {
            let mut pooled = self.connection().await?;
            let client: &mut Client = &mut pooled;
            let transaction = client.transaction().await?;
            let rows = removal::sweep(&transaction, limit).await?;
            transaction.commit().await?;
            Ok(rows)
        })
        .await
    }

    async fn roll_up(&self, until_us: Micros, limit: usize) -> Result<usize, ShardError> {
        within(LONG, async {
            let mut pooled = self.connection().await?;
            let client: &mut Client = &mut pooled;
            schema::add_partitions(client, until_us).await?;
            let transaction = client.transaction().await?;
            let hours = rollup::roll_up(&transaction, until_us, limit).await?;
            transaction.commit().await?;
            Ok(hours)
        })
        .await
    }
}
