//! Who may come in.
//!
//! Arrives: the users file, names, passwords, tokens. Leaves: yes or no. Passwords are kept as
//! argon2id hashes, tokens as BLAKE2 hashes (a token has 256 random bits, so a fast hash is
//! enough). Always holds: argon2 runs on a thread of its own, few at a time, because it is
//! made to be slow; who waits for it is bounded, wrong logins are slowed, counted and logged; a password that
//! was right is remembered as a keyed hash until the file is read anew; once somebody has been named, a file
//! without anybody lets nobody in. Deliberately absent: who may speak for which device.

/// The command line.
pub mod verbs;

use crate::files;
use crate::sparse::Sparse;
use argon2::Argon2;
use argon2::password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use blake2::{Blake2s256, Digest};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};
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
    /// The file is there, even if it holds nobody.
    #[serde(skip)]
    pub is_file: bool,
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
    /// What the user may do in the cloud; without any, a token may push and a password may read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<Role>,
}

/// What a user may do in the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Send summaries as the gateway that is called like the user, and ask for its own.
    Push,
    /// Ask for everything.
    Read,
    /// Change shards, slots and gateways, too.
    Admin,
}

impl User {
    /// True if the user may do what `role` may.
    pub fn may(&self, role: Role) -> bool {
        let has = |role| self.roles.contains(&role);
        let by_default = self.roles.is_empty();
        match role {
            Role::Push => has(Role::Push) || (by_default && self.token.is_some()),
            Role::Read => has(Role::Read) || has(Role::Admin) || (by_default && self.password.is_some()),
            Role::Admin => has(Role::Admin),
        }
    }
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
        let mut users: Users = toml::from_str(&text).map_err(|e| content(e.message().to_owned()))?;
        users.is_file = true;
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
        let text = toml::to_string(self).map_err(|e| UsersError::Content { path: path.into(), what: e.to_string() })?;
        files::replace(path, text.as_bytes()).map_err(|source| UsersError::File { path: path.into(), source })
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
    /// Somebody has been named once: from then on nobody comes in without credentials.
    asks: AtomicBool,
    right: Mutex<HashMap<String, [u8; 32]>>,
    key: [u8; 32],
    checks: Arc<Semaphore>,
    waiting: Mutex<HashMap<String, usize>>,
    failures: Mutex<Failures>,
    refused: AtomicU64,
    log: Sparse,
}

/// Why somebody is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// The name, the password or the token is wrong.
    Wrong,
    /// Too many wrong ones before, or too many at once: later.
    Later,
}

/// Checks that one client may have waiting, and all clients together.
const WAITING_OF_ONE: usize = 32;
const WAITING_MAX: usize = 256;
/// Wrong logins for a name, from one client, that are answered at once.
const FREE_FAILURES: u32 = 5;
/// Wrong logins of a client, whatever the names: many devices may be behind one address.
const FREE_OF_CLIENT: u32 = 50;
/// Failures are forgotten when there have been none for so long.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// The longest that a further one has to wait.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Clients and names whose failures are remembered.
const FAILURES_MAX: usize = 10_000;

/// Wrong logins by who made them, from where.
#[derive(Default)]
struct Failures {
    by_key: HashMap<String, (u32, Instant)>,
}

impl Failures {
    /// True if it is too early for another try.
    fn is_early(&self, key: &str, free: u32, now: Instant) -> bool {
        self.by_key.get(key).is_some_and(|(count, last)| now < *last + pause(*count, free))
    }

    fn note(&mut self, key: &str, now: Instant) {
        if self.by_key.len() >= FAILURES_MAX {
            self.by_key.retain(|_, (_, last)| now < *last + PAUSE_MAX);
        }
        if self.by_key.len() < FAILURES_MAX {
            let entry = self.by_key.entry(key.to_owned()).or_insert((0, now));
            let before = if now < entry.1 + FORGOTTEN { entry.0 } else { 0 };
            *entry = (before.saturating_add(1), now);
        }
    }

    /// Somebody there knows a password.
    fn forgive(&mut self, client: &str, by_name: &str) {
        self.by_key.remove(by_name);
        if let Some((count, _)) = self.by_key.get_mut(client) {
            *count /= 2;
        }
    }
}

fn pause(failures: u32, free: u32) -> Duration {
    match failures.checked_sub(free) {
        None => Duration::ZERO,
        Some(more) => Duration::from_millis(500).saturating_mul(1 << more.min(10)).min(PAUSE_MAX),
    }
}

/// A place among those that wait for a check.
struct Waiting<'a> {
    auth: &'a Auth,
    client: String,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = lock(&self.auth.waiting);
        if let Some(of_client) = waiting.get_mut(&self.client) {
            *of_client -= 1;
            if *of_client == 0 {
                waiting.remove(&self.client);
            }
        }
    }
}

impl Auth {
    /// A door for these users.
    pub fn new(users: Users) -> Self {
        let mut key = [0; 32];
        // Without randomness nothing is remembered wrongly, only less secretly keyed.
        let _ = getrandom::fill(&mut key);
        Auth {
            asks: AtomicBool::new(users.is_file),
            users: RwLock::new(Arc::new(users)),
            right: Mutex::default(),
            key,
            checks: Arc::new(Semaphore::new(CHECKS_AT_ONCE)),
            waiting: Mutex::default(),
            failures: Mutex::default(),
            refused: AtomicU64::new(0),
            log: Sparse::default(),
        }
    }

    /// Replaces the users; new connections are asked anew. Without anybody left, nobody comes in.
    pub fn set_users(&self, users: Users) {
        if users.is_file {
            self.asks.store(true, Ordering::Release);
        }
        *self.users.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(users);
        lock(&self.right).clear();
    }

    fn users(&self) -> Arc<Users> {
        Arc::clone(&self.users.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// True if credentials are asked for: a users file is there, or has been since the start.
    pub fn asks(&self) -> bool {
        self.asks.load(Ordering::Acquire)
    }

    /// What a user's credentials are kept as; they are others if this changes.
    pub fn stored(&self, name: &str) -> Option<User> {
        self.users().users.get(name).cloned()
    }

    /// Logins refused since the start.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Checks a name and password that `client` shows. Wrong ones are counted, logged and slowed, by client
    /// and by name; one that is known to be right never waits.
    pub async fn password(&self, name: &str, password: &[u8], client: &str) -> Result<User, Denied> {
        let users = self.users();
        let user = users.users.get(name).cloned().unwrap_or_default();
        let stored = user.password.clone();
        let print = self.print(name, password);
        if lock(&self.right).get(name) == Some(&print) {
            return Ok(user);
        }
        // Names are as long as whoever guesses likes; what is remembered of them is not.
        let by_name = format!("{client} as {}", &name[..name.floor_char_boundary(64)]);
        let _waiting = self.wait(client, &by_name)?;
        let permit = Arc::clone(&self.checks).acquire_owned().await.map_err(|_| Denied::Later)?;
        // Meanwhile another connection of the same user may have been found right.
        if lock(&self.right).get(name) == Some(&print) {
            return Ok(user);
        }
        let password = password.to_vec();
        // A name that does not exist costs as much as one that does.
        let check = tokio::task::spawn_blocking(move || {
            // Held until the work is done, also if nobody waits for it any more.
            let _permit = permit;
            match stored.as_deref().map(PasswordHash::new) {
                Some(Ok(hash)) => Argon2::default().verify_password(&password, &hash).is_ok(),
                _ => {
                    let _ = Argon2::default().hash_password(&password);
                    false
                }
            }
        });
        if !check.await.unwrap_or(false) {
            self.failed(client, &by_name, name);
            return Err(Denied::Wrong);
        }
        lock(&self.failures).forgive(client, &by_name);
        let mut remembered = lock(&self.right);
        // What the users file said before it was read anew is not remembered.
        if Arc::ptr_eq(&users, &self.users()) {
            if remembered.len() >= REMEMBERED_MAX {
                remembered.clear();
            }
            remembered.insert(name.to_owned(), print);
        }
        Ok(user)
    }

    fn wait(&self, client: &str, by_name: &str) -> Result<Waiting<'_>, Denied> {
        let now = Instant::now();
        let failures = lock(&self.failures);
        let is_early = failures.is_early(by_name, FREE_FAILURES, now) || failures.is_early(client, FREE_OF_CLIENT, now);
        drop(failures);
        let mut waiting = lock(&self.waiting);
        let of_client = waiting.get(client).copied().unwrap_or_default();
        if is_early || of_client >= WAITING_OF_ONE || waiting.values().sum::<usize>() >= WAITING_MAX {
            drop(waiting);
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Denied::Later);
        }
        *waiting.entry(client.to_owned()).or_default() += 1;
        Ok(Waiting { auth: self, client: client.to_owned() })
    }

    fn failed(&self, client: &str, by_name: &str, name: &str) {
        let now = Instant::now();
        let mut failures = lock(&self.failures);
        failures.note(client, now);
        failures.note(by_name, now);
        drop(failures);
        self.refused.fetch_add(1, Ordering::Relaxed);
        if let Some(unsaid) = self.log.may_say() {
            tracing::warn!(client, name = name.escape_default().to_string(), unsaid, "a login was wrong");
        }
    }

    fn print(&self, name: &str, password: &[u8]) -> [u8; 32] {
        let mut hash = Blake2s256::new();
        hash.update(self.key);
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
        hash.update(password);
        hash.finalize().into()
    }

    /// Whose the value of an HTTP `Authorization` header is, if it is right.
    pub async fn who(&self, header: &str, client: &str) -> Result<String, Denied> {
        let (scheme, value) = header.split_once(' ').ok_or(Denied::Wrong)?;
        // "Token" is what InfluxDB clients write.
        if scheme.eq_ignore_ascii_case("bearer") || scheme.eq_ignore_ascii_case("token") {
            let hash = token_hash(value.trim());
            let users = self.users();
            let mut named = users.users.iter();
            let found = named.find(|(_, user)| user.token.as_deref() == Some(&hash)).map(|(name, _)| name.clone());
            return found.ok_or_else(|| {
                // 256 random bits are not guessed: nothing is slowed, but it is said.
                self.refused.fetch_add(1, Ordering::Relaxed);
                if let Some(unsaid) = self.log.may_say() {
                    tracing::warn!(client, unsaid, "a token was wrong");
                }
                Denied::Wrong
            });
        }
        let pair = scheme.eq_ignore_ascii_case("basic").then(|| STANDARD.decode(value.trim()).ok()).flatten();
        let pair = pair.ok_or(Denied::Wrong)?;
        let colon = pair.iter().position(|&b| b == b':').ok_or(Denied::Wrong)?;
        let name = std::str::from_utf8(&pair[..colon]).map_err(|_| Denied::Wrong)?;
        self.password(name, &pair[colon + 1..], client).await.map(|_| name.to_owned())
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
        users.is_file = true;
        assert_eq!(Users::read(&path).unwrap(), users);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("$argon2id$") && !text.contains("secret") && !text.contains(&token));

        let auth = Auth::new(users);
        for _ in 0..2 {
            assert!(auth.password("ann", b"secret", "c").await.is_ok());
            assert_eq!(auth.password("ann", b"Secret", "c").await, Err(Denied::Wrong));
        }
        assert_eq!(auth.password("bob", b"secret", "c").await, Err(Denied::Wrong));
        assert_eq!(auth.who(&format!("Bearer {token}"), "c").await.as_deref(), Ok("ann"));
        assert_eq!(auth.who(&format!("Basic {}", STANDARD.encode("ann:secret")), "c").await.as_deref(), Ok("ann"));
        for header in ["", "Bearer x", "Basic x", "Digest x", "Basic YW5u"] {
            assert_eq!(auth.who(header, "c").await, Err(Denied::Wrong), "{header}");
        }
        assert_eq!(auth.refused(), 4);
    }

    #[tokio::test]
    async fn whoever_guesses_is_slowed_and_the_others_are_not() {
        let mut users = Users::default();
        users.set_password("ann", b"secret").unwrap();
        let auth = Auth::new(users);
        let mut outcomes = Vec::new();
        for guess in 0..8 {
            outcomes.push(auth.password("ann", format!("guess {guess}").as_bytes(), "mallory").await.unwrap_err());
        }
        assert_eq!(outcomes.iter().filter(|denied| **denied == Denied::Wrong).count(), FREE_FAILURES as usize);
        assert_eq!(outcomes.last(), Some(&Denied::Later));
        assert!(auth.password("ann", b"secret", "ann's phone").await.is_ok());
        // What is known to be right is right from anywhere.
        assert!(auth.password("ann", b"secret", "mallory").await.is_ok());
    }

    #[test]
    fn a_door_that_has_asked_once_goes_on_asking() {
        let auth = Auth::new(Users::default());
        assert!(!auth.asks());
        auth.set_users(Users { is_file: true, ..Users::default() });
        assert!(auth.asks());
        auth.set_users(Users::default());
        assert!(auth.asks());
    }
}
