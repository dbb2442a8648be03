//! The fake hypervisor's process, held by a pidfd, so that an id that belongs to another process by now is never waited for or killed.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What tells one process from every other of this boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessIdentity {
    pub(super) pid: u32,
    /// When it started, in clock ticks since boot (proc_pid_stat(5), field 22).
    pub(super) started: u64,
}

impl ProcessIdentity {
    /// Reads the identity of a child that was not reaped yet.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        Ok(ProcessIdentity {
            pid,
            started: started(pid)?,
        })
    }
}

fn started(pid: u32) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    text.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19))
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no start time"))
}

/// A process that lived when it was opened.
#[derive(Debug)]
pub(super) struct Process {
    handle: AsyncFd<OwnedFd>,
}

impl Process {
    /// Opens a process; none if it is gone, even if another has its id now.
    pub(super) fn open(identity: &ProcessIdentity) -> io::Result<Option<Self>> {
        let Some(pid) = i32::try_from(identity.pid)
            .ok()
            .filter(|pid| *pid > 1)
            .and_then(Pid::from_raw)
        else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a process id",
            ));
        };
        let handle = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Looked at after it was opened: from here on the id can't change its owner unseen.
        match started(identity.pid) {
            Ok(found) if found == identity.started => {}
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
        // Its replacement is unsafe because a type could answer with another descriptor later or close it; an `OwnedFd` does neither.
        #[allow(deprecated)]
        let handle = AsyncFd::with_interest(handle, Interest::READABLE)?;
        Ok(Some(Process { handle }))
    }

    /// Waits until it is gone; a zombie counts as gone.
    pub(super) async fn gone(&self) {
        // A pidfd becomes readable when its process ends, and stays so. An error means that nothing will ever be told: as good as gone.
        if let Ok(mut guard) = self.handle.readable().await {
            guard.retain_ready();
        }
    }

    /// Kills it and waits until it is gone. Idempotent.
    pub(super) async fn kill(&self, limit: Duration) -> io::Result<()> {
        match pidfd_send_signal(self.handle.as_fd(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::timeout(limit, self.gone())
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))
    }
}
