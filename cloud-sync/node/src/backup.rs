//! A backup of a whole cloud: the map, its shards and its users, and the way back.
//!
//! Arrives: a configuration, also of a daemon that runs. Leaves: a directory with the map as text, a copy of each
//! SQLite shard, and what `pg_dump` makes of the schema `tidegate` of each PostgreSQL database. Always holds: map and
//! shards are of one time, since a map that changed meanwhile is copied again; a directory without a map is no backup,
//! because the map is written last; nothing is restored over anything that is there.

use super::config::Config;
use super::coordinator;
use super::map::{Map, Member};
use super::shard::{place, postgres};
use anyhow::{Context, Result, bail, ensure};
use daemon::files;
use rusqlite::{Connection, OpenFlags};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

/// The map's name in a backup.
const MAP: &str = "map.json";
const USERS: &str = "users.toml";
/// How often a cloud whose map changes is copied again.
const TRIES: usize = 3;

/// Copies the cloud into a directory that is empty or not there; tells how it goes on.
///
/// # Errors
/// If a shard does not answer or slots keep moving; what is there of the backup then has no map.
pub async fn backup(config: &Config, to: &Path, tell: impl Fn(&str)) -> Result<()> {
    let is_empty = std::fs::read_dir(to).map_or(true, |mut entries| entries.next().is_none());
    ensure!(is_empty, "{} is not empty: choose another directory", to.display());
    files::directory(to).with_context(|| format!("{} cannot be made", to.display()))?;
    for _ in 0..TRIES {
        let (version, text) = coordinator::look(&config.cloud.coordinator, &config.cloud.data_dir)
            .await?
            .context("there is no map, so there is nothing to back up")?;
        let map = Map::of_text(&text)?;
        for (name, member) in &map.shards {
            let file = shard_file(to, name, member);
            if let Some(from) = place::file(&member.url, &config.cloud.data_dir) {
                copy_file(&from, &file).with_context(|| format!("shard {name}"))?;
            } else {
                let file = file.display().to_string();
                let schema = ["--format=custom", "--schema=tidegate", "--no-owner", "--no-privileges", "--file", &file];
                run("pg_dump", &schema, &member.url).with_context(|| format!("shard {name}"))?;
            }
            tell(&format!("shard {name}: {} bytes", file.metadata()?.len()));
        }
        let again = coordinator::look(&config.cloud.coordinator, &config.cloud.data_dir).await?;
        if again.is_some_and(|(now, _)| now == version) {
            if config.users_file().exists() {
                files::replace(&to.join(USERS), &std::fs::read(config.users_file())?)?;
            }
            files::replace(&to.join(MAP), text.as_bytes())?;
            return Ok(());
        }
        tell("the map has changed meanwhile: once more");
        map.shards.iter().for_each(|(name, member)| drop(std::fs::remove_file(shard_file(to, name, member))));
    }
    bail!("slots keep moving: back it up when `tidegate-cloud moves list` is empty, or after `moves cancel`")
}

/// Puts a backup back where there is nothing; `places` says where shards are from now on, if elsewhere.
///
/// # Errors
/// If something is there already, or a shard cannot be restored; there is no map then, and it may be tried again.
pub async fn restore(
    config: &Config,
    from: &Path,
    places: &BTreeMap<String, String>,
    tell: impl Fn(&str),
) -> Result<()> {
    let text = std::fs::read_to_string(from.join(MAP))
        .with_context(|| format!("{} holds no whole backup: there is no {MAP}", from.display()))?;
    let mut map = Map::of_text(&text)?;
    let unknown = places.keys().find(|name| !map.shards.contains_key(*name));
    ensure!(unknown.is_none(), "the backup has no shard {}: it has {}", unknown.map_or("", |name| name), names(&map));
    for (name, url) in places {
        if let Some(member) = map.shards.get_mut(name) {
            member.url.clone_from(url);
        }
    }
    files::directory(&config.cloud.data_dir)?;
    let coordinator = coordinator::open(&config.cloud.coordinator, &config.cloud.data_dir).await?;
    ensure!(
        coordinator.read().await?.is_none(),
        "there is a map already: a backup is put back where there is none (with cloud.coordinator = \"sqlite\" that is an \
         empty cloud.data_dir)"
    );
    let before = Map::of_text(&text)?;
    let file = |name: &String| shard_file(from, name, &before.shards[name]);
    // All of them first: what is refused has changed nothing.
    for (name, member) in &map.shards {
        check_place(config, &file(name), member).await.with_context(|| format!("shard {name}"))?;
    }
    for (name, member) in &map.shards {
        restore_shard(config, &file(name), member).with_context(|| format!("shard {name}"))?;
        tell(&format!("shard {name}: restored"));
    }
    if from.join(USERS).exists() && !config.users_file().exists() {
        files::replace(&config.users_file(), &std::fs::read(from.join(USERS))?)?;
    }
    ensure!(coordinator.swap(None, &map.to_text()).await?, "another daemon has made a map meanwhile");
    Ok(())
}

/// There is a backup for a place, and nothing else is there.
async fn check_place(config: &Config, backup: &Path, member: &Member) -> Result<()> {
    ensure!(backup.exists(), "{} is not there", backup.display());
    if let Some(to) = place::file(&member.url, &config.cloud.data_dir) {
        ensure!(backup.extension().is_some_and(|end| end == "db"), "a PostgreSQL shard does not fit into a file");
        ensure!(!to.exists(), "{} is there already: move it away", to.display());
        return Ok(());
    }
    ensure!(backup.extension().is_some_and(|end| end == "dump"), "a file does not fit into a PostgreSQL database");
    let pool = postgres::pool(&member.url)?;
    let taken = "SELECT 1 FROM pg_namespace WHERE nspname = 'tidegate'";
    let taken =
        pool.get().await.map_err(|e| anyhow::Error::msg(postgres::why(e)))?.query_opt(taken, &[]).await?.is_some();
    ensure!(!taken, "the database has a schema tidegate already: give an empty database with --place");
    Ok(())
}

fn restore_shard(config: &Config, backup: &Path, member: &Member) -> Result<()> {
    if let Some(to) = place::file(&member.url, &config.cloud.data_dir) {
        return copy_file(backup, &to).inspect_err(|_| drop(std::fs::remove_file(&to)));
    }
    let file = backup.display().to_string();
    run("pg_restore", &["--single-transaction", "--no-owner", "--no-privileges", &file], &member.url)
}

fn names(map: &Map) -> String {
    map.shards.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn shard_file(directory: &Path, name: &str, member: &Member) -> PathBuf {
    let end = if member.url.starts_with("sqlite:") { "db" } else { "dump" };
    // A name may have characters that mean something in paths.
    let plain: String = form_urlencoded::byte_serialize(name.as_bytes()).collect();
    directory.join(format!("shard-{plain}.{end}"))
}

/// A copy of an SQLite file as of one moment, on disk.
fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let db = Connection::open_with_flags(from, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .with_context(|| format!("{} cannot be read", from.display()))?;
    db.busy_timeout(Duration::from_secs(5))?;
    // Made here, for its owner only: SQLite would take any mode.
    drop(files::create_new(to).with_context(|| format!("{} cannot be made", to.display()))?);
    db.execute("VACUUM INTO ?1", [to.to_string_lossy()])?;
    Ok(File::open(to)?.sync_all()?)
}

/// One of PostgreSQL's own programs; the password does not stand among its arguments, where everybody reads it.
fn run(program: &str, arguments: &[&str], url: &str) -> Result<()> {
    let config = tokio_postgres::Config::from_str(url).ok();
    let password = config.as_ref().and_then(|config| config.get_password()).map(String::from_utf8_lossy);
    let mut command = Command::new(program);
    command.args(arguments).arg("--dbname").arg(without_password(url));
    if let Some(password) = password {
        command.env("PGPASSWORD", &*password);
    }
    let output = command.output().with_context(|| {
        format!("{program} cannot be started: install PostgreSQL's client programs (Debian: postgresql-client)")
    })?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {}", said.trim());
    Ok(())
}

fn without_password(url: &str) -> String {
    let Ok(mut plain) = reqwest::Url::parse(url) else { return url.to_owned() };
    let _ = plain.set_password(None);
    plain.to_string()
}
