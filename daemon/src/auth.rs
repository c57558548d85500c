//! Who may come in.
//!
//! Arrives: the users file, names, passwords, tokens. Leaves: yes or no. Passwords are kept as
//! argon2id hashes, tokens as BLAKE2 hashes (a token has 256 random bits, so a fast hash is
//! enough). Always holds: argon2 runs on a thread of its own, few at a time, because it is
//! made to be slow; a password that was right is remembered as a keyed hash until the file is
//! read anew. Deliberately absent: who may speak for which device.

/// The command line.
pub mod verbs;

use argon2::Argon2;
use argon2::password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use blake2::{Blake2s256, Digest};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use tokio::sync::Semaphore;

/// How many passwords are checked at once; each takes 19 MiB and tens of milliseconds.
const CHECKS_AT_ONCE: usize = 2;
const REMEMBERED_MAX: usize = 10_000;

/// The users file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Users {
    /// By name.
    #[serde(default)]
    pub users: BTreeMap<String, User>,
}

/// One user.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// An argon2id hash in PHC form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// A BLAKE2s-256 hash of a bearer token, base64url.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// Why the users file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// It cannot be read or written.
    #[error("users file {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// It is not what `tidegate user add` writes.
    #[error("users file {path} cannot be understood: {what}; remove the user and add it again with tidegate user add")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Hashing failed.
    #[error("the password cannot be hashed: {0}")]
    Hash(String),
}

impl Users {
    /// Reads the file; one that is not there holds nobody.
    pub fn read(path: &Path) -> Result<Self, UsersError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Users::default()),
            Err(source) => return Err(UsersError::File { path: path.into(), source }),
        };
        let content = |what| UsersError::Content { path: path.into(), what };
        let users: Users = toml::from_str(&text).map_err(|e| content(e.message().to_owned()))?;
        for (name, user) in &users.users {
            let password = user.password.as_deref().map(PasswordHash::new);
            if let Some(Err(e)) = password {
                return Err(content(format!("password of {name:?} is no PHC hash ({e})")));
            }
        }
        Ok(users)
    }

    /// Writes the file, readable by its owner only, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<(), UsersError> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let at = |source| UsersError::File { path: path.into(), source };
        let text = toml::to_string(self).map_err(|e| UsersError::Content { path: path.into(), what: e.to_string() })?;
        let beside = path.with_extension("toml.new");
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&beside)
            .map_err(at)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(at)?;
        std::fs::rename(&beside, path).map_err(at)
    }

    /// Sets the password of a user, who may be new.
    pub fn set_password(&mut self, name: &str, password: &[u8]) -> Result<(), UsersError> {
        let hash = Argon2::default().hash_password(password).map_err(|e| UsersError::Hash(e.to_string()))?;
        self.users.entry(name.to_owned()).or_default().password = Some(hash.to_string());
        Ok(())
    }

    /// Gives a user, who may be new, a fresh token; it is told once and kept only as a hash.
    pub fn new_token(&mut self, name: &str) -> Result<String, UsersError> {
        let mut bytes = [0_u8; 32];
        getrandom::fill(&mut bytes).map_err(|e| UsersError::Hash(e.to_string()))?;
        let token = URL_SAFE_NO_PAD.encode(bytes);
        self.users.entry(name.to_owned()).or_default().token = Some(token_hash(&token));
        Ok(token)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn token_hash(token: &str) -> String {
    URL_SAFE_NO_PAD.encode(Blake2s256::digest(token.as_bytes()))
}

/// The door.
pub struct Auth {
    users: RwLock<Arc<Users>>,
    right: Mutex<HashMap<String, [u8; 32]>>,
    key: [u8; 32],
    checks: Semaphore,
}

impl Auth {
    /// A door for these users.
    pub fn new(users: Users) -> Self {
        let mut key = [0; 32];
        // Without randomness nothing is remembered wrongly, only less secretly keyed.
        let _ = getrandom::fill(&mut key);
        Auth {
            users: RwLock::new(Arc::new(users)),
            right: Mutex::default(),
            key,
            checks: Semaphore::new(CHECKS_AT_ONCE),
        }
    }

    /// Replaces the users; connections stay, new ones are asked anew.
    pub fn set_users(&self, users: Users) {
        *self.users.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(users);
        lock(&self.right).clear();
    }

    fn users(&self) -> Arc<Users> {
        Arc::clone(&self.users.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// True if there is anybody.
    pub fn has_users(&self) -> bool {
        !self.users().users.is_empty()
    }

    /// Checks a name and password.
    pub async fn password(&self, name: &str, password: &[u8]) -> bool {
        let users = self.users();
        let stored = users.users.get(name).and_then(|user| user.password.clone());
        let print = self.print(name, password);
        if lock(&self.right).get(name) == Some(&print) {
            return true;
        }
        let Ok(_permit) = self.checks.acquire().await else { return false };
        // Meanwhile another connection of the same user may have been found right.
        if lock(&self.right).get(name) == Some(&print) {
            return true;
        }
        let password = password.to_vec();
        // A name that does not exist costs as much as one that does.
        let check = tokio::task::spawn_blocking(move || match stored.as_deref().map(PasswordHash::new) {
            Some(Ok(hash)) => Argon2::default().verify_password(&password, &hash).is_ok(),
            _ => {
                let _ = Argon2::default().hash_password(&password);
                false
            }
        });
        let right = check.await.unwrap_or(false);
        let mut remembered = lock(&self.right);
        // What the users file said before it was read anew is not remembered.
        if right && Arc::ptr_eq(&users, &self.users()) {
            if remembered.len() >= REMEMBERED_MAX {
                remembered.clear();
            }
            remembered.insert(name.to_owned(), print);
        }
        right
    }

    fn print(&self, name: &str, password: &[u8]) -> [u8; 32] {
        let mut hash = Blake2s256::new();
        hash.update(self.key);
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
        hash.update(password);
        hash.finalize().into()
    }

    /// Checks the value of an HTTP `Authorization` header, Basic or Bearer.
    pub async fn authorization(&self, header: &str) -> bool {
        self.who(header).await.is_some()
    }

    /// Whose the value of an HTTP `Authorization` header is, if it is right.
    pub async fn who(&self, header: &str) -> Option<String> {
        let (scheme, value) = header.split_once(' ')?;
        // "Token" is what InfluxDB clients write.
        if scheme.eq_ignore_ascii_case("bearer") || scheme.eq_ignore_ascii_case("token") {
            let hash = token_hash(value.trim());
            let users = self.users();
            let mut named = users.users.iter();
            return named.find(|(_, user)| user.token.as_deref() == Some(&hash)).map(|(name, _)| name.clone());
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let pair = STANDARD.decode(value.trim()).ok()?;
        let colon = pair.iter().position(|&b| b == b':')?;
        let name = std::str::from_utf8(&pair[..colon]).ok()?;
        self.password(name, &pair[colon + 1..]).await.then(|| name.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn right_passwords_and_tokens_open_and_others_do_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users.toml");
        let mut users = Users::read(&path).unwrap();
        users.set_password("ann", b"secret").unwrap();
        let token = users.new_token("ann").unwrap();
        users.write(&path).unwrap();
        assert_eq!(Users::read(&path).unwrap(), users);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("$argon2id$") && !text.contains("secret") && !text.contains(&token));

        let auth = Auth::new(users);
        for _ in 0..2 {
            assert!(auth.password("ann", b"secret").await);
            assert!(!auth.password("ann", b"Secret").await);
        }
        assert!(!auth.password("bob", b"secret").await);
        assert!(auth.authorization(&format!("Bearer {token}")).await);
        assert!(auth.authorization(&format!("Basic {}", STANDARD.encode("ann:secret"))).await);
        for header in ["", "Bearer x", "Basic x", "Digest x", "Basic YW5u"] {
            assert!(!auth.authorization(header).await, "{header}");
        }
    }
}
