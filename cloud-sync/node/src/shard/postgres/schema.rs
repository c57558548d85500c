//! Tables, their versions, partitions.
//!
//! Windows lie in a partition for each day of their start, so that retention drops whole
//! tables; those of days for which there is none lie in the default one.

use super::super::merge::DAY_US;
use super::{Identity, ShardError};
use model::Micros;
use model::time::window_start;
use tokio_postgres::{Client, GenericClient, IsolationLevel, Transaction};

/// The lock that all transactions share which rely on fences, and that changing fences takes alone.
pub(super) const LOCK: i64 = 0x5449_4445_434c_4f55;
/// The lock of whoever changes tables.
const SCHEMA_LOCK: i64 = LOCK + 1;
/// Days for which there are partitions ahead of time.
const DAYS_AHEAD: i64 = 2;

const MIGRATIONS: &[&str] = &["
CREATE TABLE tidegate.meta (key text PRIMARY KEY, value bigint NOT NULL);
INSERT INTO tidegate.meta VALUES ('fences', 1), ('generation', 1);
-- What this shard may do with each slot that it has ever known: open, importing, arrived, fenced, closed.
CREATE TABLE tidegate.slot (slot int PRIMARY KEY, epoch bigint NOT NULL, state text NOT NULL);
CREATE SEQUENCE tidegate.device_number;
-- id is (slot << 40 | number).
CREATE TABLE tidegate.device (id bigint PRIMARY KEY, gateway text NOT NULL, name text NOT NULL,
    labels jsonb NOT NULL DEFAULT '{}', UNIQUE (name, gateway));
-- One row per window of a device; arrays have one entry for each metric. sketch holds all of them.
CREATE TABLE tidegate.summary (device bigint NOT NULL, length_us bigint NOT NULL, start_us bigint NOT NULL,
    incarnation bigint NOT NULL, revision bigint NOT NULL, received_us bigint NOT NULL,
    metric text[] NOT NULL, count bigint[] NOT NULL, texts bigint[] NOT NULL, sum float8[] NOT NULL,
    m2 float8[] NOT NULL, min float8[] NOT NULL, max float8[] NOT NULL,
    first_us bigint[] NOT NULL, first float8[] NOT NULL, first_text text[] NOT NULL,
    last_us bigint[] NOT NULL, last float8[] NOT NULL, last_text text[] NOT NULL, sketch bytea NOT NULL,
    PRIMARY KEY (device, length_us, start_us)) PARTITION BY RANGE (start_us);
CREATE INDEX summary_received ON tidegate.summary (received_us);
CREATE TABLE tidegate.summary_default PARTITION OF tidegate.summary DEFAULT;
-- The same by hour and by day, for all hours that are not stale.
CREATE TABLE tidegate.rollup (LIKE tidegate.summary, PRIMARY KEY (device, length_us, start_us));
-- Hours that have changed, by the generation of the write.
CREATE TABLE tidegate.stale (device bigint NOT NULL, hour_us bigint NOT NULL, generation bigint NOT NULL,
    PRIMARY KEY (device, hour_us, generation));
CREATE INDEX stale_hour ON tidegate.stale (generation, hour_us);
CREATE TABLE tidegate.length (length_us bigint PRIMARY KEY);
-- Which batches of a gateway are here, and who may send more.
CREATE TABLE tidegate.sender (gateway text PRIMARY KEY, incarnation bigint NOT NULL, starts bigint NOT NULL,
    session bigint NOT NULL, highest bigint NOT NULL, recent bigint NOT NULL);
CREATE TABLE tidegate.gateway (id text PRIMARY KEY, slot int NOT NULL, seen_us bigint NOT NULL, beat text NOT NULL);
CREATE VIEW tidegate.summaries AS
    SELECT d.gateway, d.name AS device, m.metric, to_timestamp(s.start_us / 1e6) AS start, s.length_us / 1000000 AS length_s,
        m.count, m.texts, m.sum, m.sum / nullif(m.count, 0) AS mean,
        CASE WHEN m.count > 1 THEN m.m2 / (m.count - 1) END AS variance, m.min, m.max,
        coalesce(m.first_text, m.first::text) AS first, coalesce(m.last_text, m.last::text) AS last,
        s.incarnation, s.revision
    FROM tidegate.summary s JOIN tidegate.device d ON d.id = s.device,
        unnest(s.metric, s.count, s.texts, s.sum, s.m2, s.min, s.max, s.first, s.first_text, s.last, s.last_text)
        AS m(metric, count, texts, sum, m2, min, max, first, first_text, last, last_text);
", "
ALTER TABLE tidegate.device ADD COLUMN labels_incarnation bigint NOT NULL DEFAULT 0,
    ADD COLUMN labels_batch bigint NOT NULL DEFAULT 0;
UPDATE tidegate.device SET labels_batch = 1 WHERE labels <> '{}';
CREATE INDEX rollup_received ON tidegate.rollup (length_us, revision, received_us);
-- Rollups with revision 1 are sealed: their windows have been retired.
UPDATE tidegate.rollup SET revision = 1 WHERE length_us = 3600000000
    AND received_us < (SELECT value FROM tidegate.meta WHERE key = 'retired_us');
", "
-- Devices that are no more, and metrics of devices: an empty metric stands for the whole device. What is of an
-- earlier version is not taken; swept says that nothing is left of it here.
CREATE TABLE tidegate.removed (device bigint NOT NULL, metric text NOT NULL, incarnation bigint NOT NULL,
    revision bigint NOT NULL, received_us bigint NOT NULL, swept boolean NOT NULL, PRIMARY KEY (device, metric));
CREATE INDEX removed_unswept ON tidegate.removed (device) WHERE NOT swept;
", "
-- Lists are read page by page, in byte order.
CREATE INDEX device_by_name ON tidegate.device (name COLLATE \"C\", gateway COLLATE \"C\");
CREATE INDEX device_by_gateway ON tidegate.device (gateway, name COLLATE \"C\");
-- Since when a sender has been this session, and whether two stores send at one time.
ALTER TABLE tidegate.sender ADD COLUMN since_us bigint NOT NULL DEFAULT 0,
    ADD COLUMN disputed boolean NOT NULL DEFAULT false;
-- Which shard of which cloud this is.
CREATE TABLE tidegate.identity (one boolean PRIMARY KEY DEFAULT true CHECK (one), cloud text NOT NULL, shard text NOT NULL);
"];

/// Makes the tables, or brings them up to date, in one transaction, and takes them for the owner if they are nobody's.
pub(super) async fn migrate(client: &mut Client, owner: Option<&Identity>) -> Result<(), ShardError> {
    let transaction = client.transaction().await?;
    // It may take long over many rows.
    transaction.batch_execute("SET LOCAL statement_timeout = 0").await?;
    // Several daemons may start at once.
    transaction.query("SELECT pg_advisory_xact_lock($1)", &[&SCHEMA_LOCK]).await?;
    transaction
        .batch_execute(
            "CREATE SCHEMA IF NOT EXISTS tidegate;
             CREATE TABLE IF NOT EXISTS tidegate.version (version int NOT NULL);",
        )
        .await?;
    let found = transaction.query_opt("SELECT version FROM tidegate.version", &[]).await?;
    let found: i32 = found.map_or(0, |row| row.get(0));
    let known = MIGRATIONS.len() as i32;
    if found > known {
        return Err(ShardError::Down(format!(
            "the schema tidegate has version {found}, this build knows up to {known}: run a newer tidegate-cloud"
        )));
    }
    for step in &MIGRATIONS[found as usize..] {
        transaction.batch_execute(step).await?;
    }
    if let Some(owner) = owner {
        match identity(&transaction).await? {
            Some(found) => owner.check(&found)?,
            None => {
                let take = "INSERT INTO tidegate.identity (cloud, shard) VALUES ($1, $2)";
                transaction.execute(take, &[&owner.cloud, &owner.shard]).await?;
            }
        }
    }
    if found == known {
        return Ok(transaction.commit().await?);
    }
    if found == 0 {
        transaction.execute("INSERT INTO tidegate.version VALUES ($1)", &[&known]).await?;
    } else {
        transaction.execute("UPDATE tidegate.version SET version = $1", &[&known]).await?;
    }
    Ok(transaction.commit().await?)
}

/// Whose the shard is.
pub(super) async fn identity(db: &impl GenericClient) -> Result<Option<Identity>, tokio_postgres::Error> {
    let row = db.query_opt("SELECT cloud, shard FROM tidegate.identity", &[]).await?;
    Ok(row.map(|row| Identity { cloud: row.get(0), shard: row.get(1) }))
}

fn name(day: i64) -> String {
    format!("summary_{day}")
}

/// Adds partitions for today and the days to come; a day of which something lies in the default
/// one already goes without.
pub(super) async fn add_partitions(client: &Client, now_us: Micros) -> Result<(), ShardError> {
    let today = window_start(now_us, DAY_US) / DAY_US;
    for day in today..=today + DAYS_AHEAD {
        let exists = client.query_opt("SELECT to_regclass($1)::text", &[&format!("tidegate.{}", name(day))]).await?;
        if exists.and_then(|row| row.get::<_, Option<String>>(0)).is_some() {
            continue;
        }
        let (from_us, to_us) = (day * DAY_US, (day + 1) * DAY_US);
        let taken = "SELECT 1 FROM tidegate.summary_default WHERE start_us >= $1 AND start_us < $2 LIMIT 1";
        if client.query_opt(taken, &[&from_us, &to_us]).await?.is_some() {
            continue;
        }
        let made = client
            .batch_execute(&format!(
                "CREATE TABLE IF NOT EXISTS tidegate.{} PARTITION OF tidegate.summary FOR VALUES FROM ({from_us}) TO ({to_us})",
                name(day)
            ))
            .await;
        if let Err(e) = made {
            // Another daemon, or a row for the default one, was quicker.
            tracing::debug!("no partition for day {day}: {e}");
        }
    }
    Ok(())
}

/// A snapshot that only reads.
pub(super) async fn snapshot(client: &mut Client) -> Result<Transaction<'_>, ShardError> {
    let snapshot = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
    let snapshot = snapshot.start().await?;
    // Before the snapshot is taken: a partition that is dropped must not vanish from under it.
    snapshot.batch_execute("LOCK TABLE tidegate.summary IN ACCESS SHARE MODE").await?;
    Ok(snapshot)
}

pub(super) async fn size(db: &impl GenericClient) -> Result<(u64, u64), ShardError> {
    let row = db
        .query_one(
            "SELECT (SELECT count(*) FROM tidegate.summary), (SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
                FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'tidegate' AND c.relkind = 'r')",
            &[],
        )
        .await?;
    Ok((row.get::<_, i64>(0) as u64, row.get::<_, i64>(1) as u64))
}
