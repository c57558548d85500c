//! The recording layer: an SQLite VFS over the operating system's own.
//!
//! Everything is passed on; what changes files is written down first come, first served, under
//! one lock, so that the recording has one order. The shared memory of the log's index is not
//! recorded: it does not survive a cut.

#![expect(unsafe_code, reason = "an SQLite VFS is a table of C functions")]

use super::Event;
use rusqlite::ffi::{
    SQLITE_IOERR_FSYNC, SQLITE_OK, SQLITE_OPEN_CREATE, sqlite3_file, sqlite3_int64, sqlite3_io_methods, sqlite3_vfs,
    sqlite3_vfs_find, sqlite3_vfs_register,
};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

static DEAD: AtomicBool = AtomicBool::new(false);

static RECORDING: Mutex<Vec<Event>> = Mutex::new(Vec::new());

fn recording() -> MutexGuard<'static, Vec<Event>> {
    RECORDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes all that has been recorded since this was last asked.
pub fn take_recording() -> Vec<Event> {
    std::mem::take(&mut *recording())
}

/// From now on no file can be synced, as on a card that has died, or it can again.
pub fn fail_syncs(on: bool) {
    DEAD.store(on, Ordering::Release);
}

/// Writes down that a client was told of something.
pub fn told(what: u64) {
    recording().push(Event::Told(what));
}

/// From now on, what SQLite opens in this process is recorded, or not.
pub fn record(on: bool) {
    static MADE: Once = Once::new();
    // SAFETY: the default VFS is static; ours is leaked, so it lives as long.
    unsafe {
        MADE.call_once(|| {
            let base = sqlite3_vfs_find(std::ptr::null());
            assert!(!base.is_null(), "SQLite has a default VFS");
            let ours = Box::leak(Box::new(*base));
            ours.zName = c"recorder".as_ptr();
            ours.szOsFile = size_of::<Recorded>() as c_int + (*base).szOsFile;
            ours.pNext = std::ptr::null_mut();
            ours.xOpen = Some(open);
            ours.xDelete = Some(delete);
            assert_eq!(sqlite3_vfs_register(ours, 0), SQLITE_OK);
        });
        let name = if on { c"recorder" } else { c"unix" };
        assert_eq!(sqlite3_vfs_register(sqlite3_vfs_find(name.as_ptr()), 1), SQLITE_OK);
    }
}

/// An open file; the operating system layer's own follows it in memory.
#[repr(C)]
struct Recorded {
    base: sqlite3_file,
    /// Leaked with the file: a handful.
    name: *const String,
}

unsafe fn below(file: *mut sqlite3_file) -> *mut sqlite3_file {
    // SAFETY: SQLite allocates szOsFile bytes, which is room for both.
    unsafe { file.cast::<Recorded>().add(1).cast() }
}

unsafe fn name(file: *mut sqlite3_file) -> String {
    // SAFETY: set by `open`, never freed.
    unsafe { (*(*file.cast::<Recorded>()).name).clone() }
}

unsafe fn unix() -> *mut sqlite3_vfs {
    // SAFETY: the name is a C string.
    unsafe { sqlite3_vfs_find(c"unix".as_ptr()) }
}

unsafe extern "C" fn open(
    _: *mut sqlite3_vfs,
    path: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: SQLite hands over a file of szOsFile bytes and a path that may be null.
    unsafe {
        let path_text = if path.is_null() { None } else { CStr::from_ptr(path).to_str().ok().map(str::to_owned) };
        let existed = path_text.as_deref().is_some_and(|path| std::path::Path::new(path).exists());
        let rc = (*unix()).xOpen.expect("unix has it")(unix(), path, below(file), flags, out);
        (*file).pMethods =
            if rc == SQLITE_OK && !(*below(file)).pMethods.is_null() { &METHODS } else { std::ptr::null() };
        let name = path_text.and_then(|path| Some(path.rsplit('/').next()?.to_owned())).unwrap_or_default();
        if rc == SQLITE_OK && !existed && flags & SQLITE_OPEN_CREATE != 0 {
            recording().push(Event::Created(name.clone()));
        }
        (*file.cast::<Recorded>()).name = Box::leak(Box::new(name));
        rc
    }
}

unsafe extern "C" fn delete(_: *mut sqlite3_vfs, path: *const c_char, sync: c_int) -> c_int {
    // SAFETY: SQLite hands over a path.
    unsafe {
        let name = CStr::from_ptr(path).to_str().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned();
        let rc = (*unix()).xDelete.expect("unix has it")(unix(), path, sync);
        if rc == SQLITE_OK {
            recording().push(Event::Deleted(name));
        }
        rc
    }
}

unsafe extern "C" fn write(file: *mut sqlite3_file, bytes: *const c_void, length: c_int, at: sqlite3_int64) -> c_int {
    // SAFETY: SQLite hands over `length` bytes.
    unsafe {
        let content = std::slice::from_raw_parts(bytes.cast::<u8>(), length as usize).to_vec();
        let mut recording = recording();
        recording.push(Event::Written(name(file), at as u64, content));
        let rc = (*(*below(file)).pMethods).xWrite.expect("unix has it")(below(file), bytes, length, at);
        drop(recording);
        rc
    }
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, length: sqlite3_int64) -> c_int {
    // SAFETY: passed on.
    unsafe {
        recording().push(Event::Truncated(name(file), length as u64));
        (*(*below(file)).pMethods).xTruncate.expect("unix has it")(below(file), length)
    }
}

/// What was written before the call is on disk after it: the moment is that of the return.
/// What others write meanwhile may or may not be, so they wait.
unsafe extern "C" fn sync(file: *mut sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: passed on.
    unsafe {
        if DEAD.load(Ordering::Acquire) {
            return SQLITE_IOERR_FSYNC;
        }
        let mut recording = recording();
        let rc = (*(*below(file)).pMethods).xSync.expect("unix has it")(below(file), flags);
        if rc == SQLITE_OK {
            recording.push(Event::Synced(name(file)));
        }
        rc
    }
}

/// Functions that only pass their arguments on.
macro_rules! pass_on {
    ($($function:ident = $method:ident($($argument:ident: $kind:ty),*)$( -> $result:ty)?;)*) => {
        $(unsafe extern "C" fn $function(file: *mut sqlite3_file, $($argument: $kind),*)$( -> $result)? {
            // SAFETY: passed on to the layer that opened the file.
            unsafe { (*(*below(file)).pMethods).$method.expect("unix has it")(below(file), $($argument),*) }
        })*
    };
}

pass_on! {
    close = xClose() -> c_int;
    read = xRead(to: *mut c_void, length: c_int, at: sqlite3_int64) -> c_int;
    file_size = xFileSize(size: *mut sqlite3_int64) -> c_int;
    lock = xLock(kind: c_int) -> c_int;
    unlock = xUnlock(kind: c_int) -> c_int;
    check_reserved_lock = xCheckReservedLock(out: *mut c_int) -> c_int;
    file_control = xFileControl(op: c_int, argument: *mut c_void) -> c_int;
    sector_size = xSectorSize() -> c_int;
    device_characteristics = xDeviceCharacteristics() -> c_int;
    shm_map = xShmMap(page: c_int, size: c_int, extend: c_int, out: *mut *mut c_void) -> c_int;
    shm_lock = xShmLock(offset: c_int, count: c_int, flags: c_int) -> c_int;
    shm_barrier = xShmBarrier();
    shm_unmap = xShmUnmap(delete: c_int) -> c_int;
}

static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    // Version 2: without memory-mapped files, whose writes would go unseen.
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};
