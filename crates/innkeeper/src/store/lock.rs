//! File locks that say who lives: held by an open file, so that they end with the process, however it ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Result};

/// How long a lock may be held without counting as held.
const INSTANT: Duration = Duration::from_millis(3);

/// An exclusive lock on a file; released when it is dropped.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
}

impl FileLock {
    /// Takes the lock, making the file if need be; none if somebody else holds it or the directory is gone.
    ///
    /// A lock file may be removed with its directory while somebody waits to open it: after locking, the path must still lead to
    /// the file that was locked, else it is tried again.
    pub fn try_take(path: &Path) -> Result<Option<FileLock>> {
        let failed = |error: io::Error| Error::io(format!("can't lock {}", path.display()), error);
        let started = Instant::now();
        loop {
            let opened = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path);
            let file = match opened {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(failed(error)),
            };
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                // A reader that asks `is_locked` holds it for an instant; only one that stays is a holder.
                Err(rustix::io::Errno::WOULDBLOCK) if started.elapsed() < INSTANT => {
                    std::thread::yield_now();
                    continue;
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(failed(error.into())),
            }
            let locked = file.metadata().map_err(failed)?;
            match std::fs::metadata(path) {
                Ok(there) if there.ino() == locked.ino() && there.dev() == locked.dev() => {
                    return Ok(Some(FileLock { _file: file }));
                }
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

/// Says whether somebody holds the lock on this file. A file that does not exist is not locked.
pub fn is_locked(path: &Path) -> Result<bool> {
    let failed =
        |error: io::Error| Error::io(format!("can't read the lock {}", path.display()), error);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed(error)),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(failed(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_it_and_dropping_lets_go() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        assert!(!is_locked(&path).unwrap());
        let held = FileLock::try_take(&path).unwrap().unwrap();
        assert!(is_locked(&path).unwrap());
        assert!(FileLock::try_take(&path).unwrap().is_none());
        drop(held);
        assert!(!is_locked(&path).unwrap());
        assert!(FileLock::try_take(&path).unwrap().is_some());
    }

    #[test]
    fn a_lock_on_a_removed_file_is_no_lock() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let _old = FileLock::try_take(&path).unwrap().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(FileLock::try_take(&path).unwrap().is_some());
        assert!(
            FileLock::try_take(&directory.path().join("gone/lock"))
                .unwrap()
                .is_none()
        );
    }
}
