//! Files that are nobody else's business.
//!
//! Always holds: what is written here is readable by its owner only; a link that somebody has put in the way is
//! not followed; a file is there whole or not at all.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// From now on this process makes files and directories for its owner only.
pub fn keep_to_ourselves() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
}

/// Makes a directory for its owner only, if it is not there.
pub fn directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Takes from others what earlier versions let them read; says what cannot be changed.
pub fn close(path: &Path) -> io::Result<()> {
    let metadata = std::fs::symlink_metadata(path)?;
    if metadata.is_symlink() || metadata.mode() & 0o077 == 0 {
        return Ok(());
    }
    let mode = metadata.mode() & 0o700;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// The same for a directory and what lies in it. What is another user's stays as it is, and that is said.
pub fn close_all(directory: &Path) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    for path in entries.chain([directory.to_owned()]) {
        match close(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("others may be able to read {}: {e}", path.display());
            }
            _ => {}
        }
    }
}

/// Makes a new file; one that is there, or a link, is an error.
pub fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Writes a file whole, in place of the one that is there.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = path.with_file_name(name);
    match std::fs::remove_file(&beside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = create_new(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_ours_and_links_are_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (target, link) = (directory.path().join("target"), directory.path().join("link"));
        std::fs::write(&target, "theirs").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(create_new(&link).is_err());
        replace(&link, b"ours").unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"theirs");
        assert_eq!(std::fs::metadata(&link).unwrap().mode() & 0o777, 0o600);
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o644)).unwrap();
        close(&target).unwrap();
        assert_eq!(std::fs::metadata(&target).unwrap().mode() & 0o777, 0o600);
    }
}
