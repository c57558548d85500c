//! Where a shard is, by its URL.

use super::postgres::{self, Postgres};
use super::sqlite::Sqlite;
use super::{Identity, Shard, ShardError};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Opens a shard by its URL; files are relative to `data_dir`, and only for daemons that share
/// their map with no other.
///
/// A shard that is nobody's becomes `owner`'s, one that is somebody else's is refused at every use; without an
/// owner it is taken as it is.
pub fn open(url: &str, data_dir: &Path, shared: bool, owner: Option<Identity>) -> Result<Arc<dyn Shard>, ShardError> {
    check(url).map_err(ShardError::Down)?;
    match file(url, data_dir) {
        Some(_) if shared => Err(ShardError::Down(FOR_ONE.into())),
        Some(file) => Ok(Arc::new(Sqlite::open(&file, owner)?)),
        None => Ok(Arc::new(Postgres::new(url, owner)?)),
    }
}

/// Why a file is no shard of several daemons.
pub(crate) const FOR_ONE: &str = "an SQLite shard has one daemon, and cloud.coordinator is for several: move it to \
                                  PostgreSQL first, with cloud.coordinator = \"sqlite\"";

/// What is wrong with the URL of a shard, or of a database, in words.
pub(crate) fn check(url: &str) -> Result<(), String> {
    match url.split_once(':') {
        Some(("sqlite", file)) => below(file).map(drop),
        Some(("postgres" | "postgresql", _)) => match postgres::config(url) {
            Ok(_) => Ok(()),
            Err(e) => Err(format!("{:?} is not the URL of a database: {e:#}", hidden(url))),
        },
        _ => Err(format!("{:?} is no shard: write sqlite:FILE or postgres://USER:PASSWORD@HOST/DATABASE", hidden(url))),
    }
}

/// False for a file that is not there yet, and would be made by being opened.
pub fn is_there(url: &str, data_dir: &Path) -> bool {
    file(url, data_dir).is_none_or(|file| file.exists())
}

/// The file of an SQLite shard.
pub fn file(url: &str, data_dir: &Path) -> Option<PathBuf> {
    let (_, file) = url.split_once(':').filter(|(scheme, _)| *scheme == "sqlite")?;
    below(file).ok().map(|file| data_dir.join(file))
}

/// A file's path, which leads nowhere but below the data directory.
fn below(file: &str) -> Result<&Path, String> {
    let path = Path::new(file);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    if file.is_empty() || file.contains('\0') || !plain {
        return Err(format!(
            "sqlite:{file} is not below cloud.data_dir: give a file's name, without \"..\" or a leading \"/\""
        ));
    }
    Ok(path)
}

/// A URL as it may be shown: without what lets others in. One that cannot be understood shows its scheme only.
pub fn hidden(url: &str) -> String {
    let Some((scheme, _)) = url.split_once(':').filter(|(scheme, _)| *scheme != "sqlite") else {
        return url.to_owned();
    };
    let Ok(mut shown) = reqwest::Url::parse(url) else { return format!("{scheme}://...") };
    let _ = shown.set_password(None);
    let pairs: Vec<(String, String)> =
        shown.query_pairs().into_owned().filter(|(key, _)| !key.contains("pass") && !key.contains("key")).collect();
    shown.set_query(None);
    if !pairs.is_empty() {
        shown.query_pairs_mut().extend_pairs(pairs);
    }
    shown.to_string()
}
