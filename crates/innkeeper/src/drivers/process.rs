//! Processes that may be nobody's child: told apart from a later one with the same id, waited for, killed.
//!
//! On Linux a process is held by a pidfd, opened before its identity is compared, so that no other process can slip in between. On
//! macOS there is no such handle: there a lock file that the process inherited says whether it lives, and its end is polled for. It
//! reaps nothing; that is for whoever spawned a process.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

/// Longest wait between two looks at a process that can't be waited for.
#[cfg(not(target_os = "linux"))]
const POLL: Duration = Duration::from_millis(10);

/// What tells one process from every other of this boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessIdentity {
    /// Process id.
    pub(super) pid: u32,
    /// When it started, in clock ticks since boot (Linux, proc(5), field 22 of `/proc/PID/stat`); none elsewhere.
    pub(super) start_time: Option<u64>,
    /// A lock file that it holds for as long as it lives, if it was given one.
    pub(super) lock: Option<PathBuf>,
}

impl ProcessIdentity {
    /// Reads the identity of a process that is known to be the one meant, such as a child not yet reaped.
    pub(super) fn of(pid: u32, lock: Option<&Path>) -> io::Result<Self> {
        Ok(ProcessIdentity {
            pid,
            start_time: start_time(pid)?,
            lock: lock.map(Path::to_owned),
        })
    }
}

/// A process that lived when it was opened.
#[derive(Debug)]
pub(super) struct Process {
    pid: Pid,
    #[cfg(target_os = "linux")]
    handle: tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>,
    #[cfg(not(target_os = "linux"))]
    identity: ProcessIdentity,
}

impl Process {
    /// Opens the process of this identity; none if it is gone, even if another one has its id now.
    pub(super) fn open(identity: &ProcessIdentity) -> io::Result<Option<Self>> {
        let pid = i32::try_from(identity.pid)
            .ok()
            .filter(|pid| *pid > 1)
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a process id"))?;
        Process::open_pid(pid, identity)
    }

    #[cfg(target_os = "linux")]
    fn open_pid(pid: Pid, identity: &ProcessIdentity) -> io::Result<Option<Self>> {
        use rustix::process::{PidfdFlags, pidfd_open};
        let handle = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match start_time(identity.pid) {
            Ok(found) if found == identity.start_time => {}
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
        // Its replacement is unsafe because a type could answer with another descriptor later or close it; an `OwnedFd` does neither.
        #[allow(deprecated)]
        let handle =
            tokio::io::unix::AsyncFd::with_interest(handle, tokio::io::Interest::READABLE)?;
        Ok(Some(Process { pid, handle }))
    }

    #[cfg(not(target_os = "linux"))]
    fn open_pid(pid: Pid, identity: &ProcessIdentity) -> io::Result<Option<Self>> {
        let process = Process {
            pid,
            identity: identity.clone(),
        };
        Ok(process.lives()?.then_some(process))
    }

    /// Waits until the process is gone (a zombie counts as gone).
    #[cfg(target_os = "linux")]
    pub(super) async fn gone(&self) -> io::Result<()> {
        // A pidfd becomes readable when the process ends and stays so (pidfd_open(2)); nothing is ever read from it.
        self.handle
            .readable()
            .await
            .map(|mut guard| guard.retain_ready())
    }

    /// Waits until the process is gone.
    #[cfg(not(target_os = "linux"))]
    pub(super) async fn gone(&self) -> io::Result<()> {
        while self.lives()? {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Sends SIGKILL; does nothing if the process is gone.
    #[cfg(target_os = "linux")]
    pub(super) fn kill(&self) -> io::Result<()> {
        use std::os::fd::AsFd;
        match rustix::process::pidfd_send_signal(self.handle.as_fd(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends SIGKILL; does nothing if the process is gone.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn kill(&self) -> io::Result<()> {
        if !self.lives()? {
            return Ok(());
        }
        match rustix::process::kill_process(self.pid, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Kills the process and waits until it is gone.
    ///
    /// Errors: `TimedOut` if it isn't by the deadline (it hangs in the kernel).
    pub(super) async fn kill_and_wait(&self, deadline: Duration) -> io::Result<()> {
        self.kill()?;
        match tokio::time::timeout(deadline, self.gone()).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("process {} does not end", self.pid.as_raw_nonzero()),
            )),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn lives(&self) -> io::Result<bool> {
        use rustix::fs::{FlockOperation, flock};
        match rustix::process::test_kill_process(self.pid) {
            Ok(()) | Err(rustix::io::Errno::PERM) => {}
            Err(rustix::io::Errno::SRCH) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let Some(lock) = &self.identity.lock else {
            return Ok(true);
        };
        let file = match std::fs::File::open(lock) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

/// Reads when a process started.
#[cfg(target_os = "linux")]
fn start_time(pid: u32) -> io::Result<Option<u64>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat)
        .map(Some)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unreadable /proc/PID/stat"))
}

#[cfg(not(target_os = "linux"))]
fn start_time(_pid: u32) -> io::Result<Option<u64>> {
    Ok(None)
}

/// Finds field 22; the second field, the name in brackets, may hold blanks and brackets itself.
#[cfg(target_os = "linux")]
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn start_time_survives_odd_names() {
        let stat = "7 (a) b ) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 0 0";
        assert_eq!(parse_start_time(stat), Some(4242));
        assert_eq!(parse_start_time("7 (a"), None);
        assert_eq!(parse_start_time("7 (a) S"), None);
    }

    #[tokio::test]
    async fn a_process_is_opened_killed_and_not_mistaken() {
        let mut child = tokio::process::Command::new("sleep")
            .arg("1000")
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let identity = ProcessIdentity::of(child.id().unwrap(), None).unwrap();
        let other = ProcessIdentity {
            start_time: Some(1),
            ..identity.clone()
        };
        assert!(Process::open(&other).unwrap().is_none());
        let process = Process::open(&identity).unwrap().unwrap();
        process
            .kill_and_wait(Duration::from_secs(10))
            .await
            .unwrap();
        process.kill().unwrap();
        child.wait().await.unwrap();
        assert!(Process::open(&identity).unwrap().is_none());
        assert!(Process::open(&ProcessIdentity { pid: 0, ..identity }).is_err());
    }
}
