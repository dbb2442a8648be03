//! Files that appear whole or not at all, locks that end with their holder, and work directories that a crash can't keep.
//!
//! ```text
//!   WorkDirectory: BASE/NAME/ + held flock on BASE/NAME.lock ──drop──► removed
//!                        └─ crash: the lock is free ──► leftovers() finds it, gc removes it
//! ```
//! A lock is an `flock` on an open file: the kernel releases it when the process dies, so it is never stale.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::progress::{Context, Step};
use crate::{Error, Result};

/// Makes a directory and those above it.
pub(crate) fn create_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::io("create", path))
}

/// Writes a file by a temporary one beside it, fsync and rename; `mode` is its permission bits.
pub(crate) fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let directory = path.parent().ok_or_else(|| Error::missing(path, "write"))?;
    // Dropped unpersisted on every error, which removes it.
    let mut temporary = tempfile::Builder::new()
        .prefix(".tmp-")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(directory)
        .map_err(Error::io("create a file in", directory))?;
    temporary
        .write_all(bytes)
        .map_err(Error::io("write", path))?;
    temporary
        .as_file()
        .sync_all()
        .map_err(Error::io("flush", path))?;
    temporary
        .persist(path)
        .map_err(|failure| failure.error)
        .map_err(Error::io("rename to", path))?;
    sync_directory(directory)
}

/// Makes renames in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(Error::io("flush", path))
}

/// A held lock.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// How a lock is held.
#[derive(Clone, Copy)]
pub(crate) enum Sharing {
    /// Beside other shared holders.
    Shared,
    /// Alone.
    Exclusive,
}

fn open_lock(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .read(true)
        .mode(0o644)
        .open(path)
        .map_err(Error::io("open", path))
}

/// Takes a lock that is only ever held for moments.
pub(crate) fn lock_briefly(path: &Path, sharing: Sharing) -> Result<Lock> {
    let file = open_lock(path)?;
    let operation = match sharing {
        Sharing::Shared => FlockOperation::LockShared,
        Sharing::Exclusive => FlockOperation::LockExclusive,
    };
    loop {
        match flock(&file, operation) {
            Ok(()) => return Ok(Lock { _file: file }),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::io("lock", path)(errno.into())),
        }
    }
}

/// Takes a lock if it is free.
pub(crate) fn try_lock(path: &Path) -> Result<Option<Lock>> {
    let file = open_lock(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Lock { _file: file })),
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(None),
        Err(errno) => Err(Error::io("lock", path)(errno.into())),
    }
}

/// Waits for a lock that may be held for minutes, telling so once; ends when the caller cancels.
pub(crate) fn lock_patiently(path: &Path, context: &Context, what: &str) -> Result<Lock> {
    let mut told = false;
    loop {
        if let Some(lock) = try_lock(path)? {
            return Ok(lock);
        }
        if !told {
            context.step(
                Step::Wait,
                format!("another inn makes {what}; waiting for it"),
            );
            told = true;
        }
        context.check()?;
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A directory for half-made things, removed when dropped.
#[derive(Debug)]
pub struct WorkDirectory {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: Lock,
}

impl WorkDirectory {
    /// Makes a new one below `base`.
    pub(crate) fn create(base: &Path, purpose: &str) -> Result<WorkDirectory> {
        create_directory(base)?;
        // One at a time with `leftovers`, which would take a directory whose lock is not yet held for dead.
        let _making = lock_briefly(&base.join(".making"), Sharing::Exclusive)?;
        let path = tempfile::Builder::new()
            .prefix(&format!("{purpose}-"))
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in(base)
            .map_err(Error::io("create a directory in", base))?
            .keep();
        let lock_path = path.with_extension("lock");
        let lock =
            try_lock(&lock_path)?.ok_or_else(|| Error::missing(&lock_path, "lock the new"))?;
        Ok(WorkDirectory {
            path,
            lock_path,
            _lock: lock,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Directories below `base` whose makers are dead.
    pub(crate) fn leftovers(base: &Path) -> Result<Vec<PathBuf>> {
        if !base.exists() {
            return Ok(Vec::new());
        }
        let _making = lock_briefly(&base.join(".making"), Sharing::Exclusive)?;
        let mut dead = Vec::new();
        for entry in fs::read_dir(base).map_err(Error::io("list", base))? {
            let path = entry.map_err(Error::io("list", base))?.path();
            if path.is_dir() && try_lock(&path.with_extension("lock"))?.is_some() {
                dead.push(path);
            }
        }
        Ok(dead)
    }
}

impl Drop for WorkDirectory {
    fn drop(&mut self) {
        // What can't be removed now (foreign ids of an unshared build) is found by gc.
        let removed = fs::remove_dir_all(&self.path);
        // Not found: it was finished and renamed to where it belongs.
        if removed.map_or_else(
            |failure| failure.kind() == std::io::ErrorKind::NotFound,
            |()| true,
        ) {
            let _ = fs::remove_file(&self.lock_path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_work_directory_is_no_leftover_and_a_dead_one_is() {
        let base = tempfile::tempdir().unwrap();
        let live = WorkDirectory::create(base.path(), "x").unwrap();
        assert!(WorkDirectory::leftovers(base.path()).unwrap().is_empty());
        let dead = base.path().join("x-dead");
        fs::create_dir(&dead).unwrap();
        assert_eq!(WorkDirectory::leftovers(base.path()).unwrap(), [dead]);
        let path = live.path().to_owned();
        drop(live);
        assert!(!path.exists());
    }

    #[test]
    fn writing_replaces_whole_and_leaves_no_temporary_file() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("a");
        write(&path, b"one", 0o600).unwrap();
        write(&path, b"two", 0o444).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o444
        );
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1);
    }
}
