//! Rows in a PostgreSQL database.

use super::{Coordinator, CoordinatorError};
use crate::shard::postgres::why;
use async_trait::async_trait;
use deadpool_postgres::Pool;
use std::time::Duration;

/// How often it is looked whether the map has changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const SCHEMA: &str = "
CREATE SCHEMA IF NOT EXISTS tidegate;
CREATE TABLE IF NOT EXISTS tidegate.map (id int PRIMARY KEY CHECK (id = 1), version bigint NOT NULL, document text NOT NULL);
CREATE TABLE IF NOT EXISTS tidegate.lease (id int PRIMARY KEY CHECK (id = 1), holder text NOT NULL, until timestamptz NOT NULL);
";

/// The map in a PostgreSQL database.
pub(crate) struct Postgres {
    pool: Pool,
}

fn failed(e: impl std::error::Error + Send + Sync + 'static) -> CoordinatorError {
    CoordinatorError(format!("{:#}", anyhow::Error::from(e)))
}

impl Postgres {
    /// The map in the database of a pool; its tables are made if they are not there.
    pub(crate) async fn open(pool: Pool) -> Result<Self, CoordinatorError> {
        let client = pool.get().await.map_err(|e| CoordinatorError(why(e)))?;
        // Daemons that start at once would both make it.
        for attempt in 0.. {
            match client.batch_execute(SCHEMA).await {
                Ok(()) => break,
                Err(_) if attempt < 3 => tokio::time::sleep(Duration::from_millis(100)).await,
                Err(e) => return Err(failed(e)),
            }
        }
        drop(client);
        Ok(Postgres { pool })
    }
}

#[async_trait]
impl Coordinator for Postgres {
    async fn read(&self) -> Result<Option<(u64, String)>, CoordinatorError> {
        let client = self.pool.get().await.map_err(|e| CoordinatorError(why(e)))?;
        let row = client.query_opt("SELECT version, document FROM tidegate.map", &[]).await.map_err(failed)?;
        Ok(row.map(|row| (row.get::<_, i64>(0) as u64, row.get(1))))
    }

    async fn swap(&self, version: Option<u64>, document: &str) -> Result<bool, CoordinatorError> {
        let client = self.pool.get().await.map_err(|e| CoordinatorError(why(e)))?;
        let changed = match version {
            None => {
                let sql = "INSERT INTO tidegate.map VALUES (1, 1, $1) ON CONFLICT DO NOTHING";
                client.execute(sql, &[&document]).await
            }
            Some(version) => {
                let sql = "UPDATE tidegate.map SET version = version + 1, document = $2 WHERE version = $1";
                client.execute(sql, &[&(version as i64), &document]).await
            }
        };
        Ok(changed.map_err(failed)? > 0)
    }

    async fn lead(&self, who: &str, ttl: Duration) -> Result<bool, CoordinatorError> {
        let client = self.pool.get().await.map_err(|e| CoordinatorError(why(e)))?;
        // The database's clock alone decides.
        let sql = "INSERT INTO tidegate.lease AS l VALUES (1, $1, now() + make_interval(secs => $2))
                   ON CONFLICT (id) DO UPDATE SET holder = excluded.holder, until = excluded.until
                   WHERE l.holder = excluded.holder OR l.until < now()";
        Ok(client.execute(sql, &[&who, &ttl.as_secs_f64()]).await.map_err(failed)? > 0)
    }

    async fn resign(&self, who: &str) -> Result<(), CoordinatorError> {
        let client = self.pool.get().await.map_err(|e| CoordinatorError(why(e)))?;
        client.execute("DELETE FROM tidegate.lease WHERE holder = $1", &[&who]).await.map_err(failed)?;
        Ok(())
    }

    async fn changed(&self, _version: u64) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
