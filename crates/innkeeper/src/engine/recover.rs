//! What a dead keeper left: found, told truly, and settled.
//!
//! ```text
//!  run/ there? ──no──► Nothing
//!     │yes
//!     ├─ of an earlier boot ─────────────────────► Ended(stopped)     the computer restarted
//!     ├─ run/vmm.lock free ──────────────────────► Ended(failed)      it ended while nobody watched
//!     ├─ free, and nothing was recorded ─────────► Ended(stopped)     a power cut, or it had not begun
//!     ├─ locked, and there is a record ──────────► Running            to be adopted
//!     └─ locked, no record ──────────────────────► Orphan             killed between launch and record
//! ```

use std::time::{Duration, Instant};

use innkeeper_api::ErrorKind;

use crate::clock::timestamp;
use crate::error::{Error, Result};
use crate::keeper::tail;
use crate::store::{Bundle, Identity, RecordedPower, Root, Run};

/// How much of the hypervisor's log goes into a reason, in bytes.
const LAST_WORDS: u64 = 2048;
/// How long a killed process may take to be gone.
const GONE_TIMEOUT: Duration = Duration::from_secs(5);

/// What is left of a run.
#[derive(Debug)]
pub(crate) enum Found {
    /// None was begun, or it was ended properly.
    Nothing,
    /// The hypervisor is gone.
    Ended(RecordedPower),
    /// The hypervisor lives, and can be adopted.
    Running(Run),
    /// A hypervisor lives that nobody recorded.
    Orphan,
}

/// Finds what is left of a run. The caller holds the VM's lock.
pub(crate) fn find(bundle: &Bundle) -> Result<Found> {
    if !bundle.run_directory().exists() {
        return Ok(Found::Nothing);
    }
    // A file that a power cut left damaged is of an earlier boot, as one that was never written says nothing of this one.
    let run = bundle.run().unwrap_or(None);
    let lives = bundle.hypervisor_lives()?;
    Ok(match run {
        Some(_) if !bundle.run_is_of_this_boot()? => Found::Ended(RecordedPower {
            failed: None,
            since: timestamp(),
        }),
        Some(Run {
            record: Some(_), ..
        }) if !lives => Found::Ended(ended_unwatched(bundle)?),
        Some(run) if run.record.is_some() => Found::Running(run),
        _ if lives => Found::Orphan,
        None => Found::Ended(RecordedPower {
            failed: None,
            since: timestamp(),
        }),
        _ => Found::Ended(RecordedPower {
            failed: Some("its launch was interrupted when its keeper ended".to_owned()),
            since: timestamp(),
        }),
    })
}

/// Says how a hypervisor ended that nobody watched.
pub(crate) fn ended_unwatched(bundle: &Bundle) -> Result<RecordedPower> {
    let words = tail(&bundle.path("log/vmm.log"), LAST_WORDS);
    let mut reason = "the hypervisor ended while no keeper watched it".to_owned();
    if !words.is_empty() {
        reason = format!("{reason}; its last words: {words}");
    }
    Ok(RecordedPower {
        failed: Some(reason),
        since: timestamp(),
    })
}

/// Records how a run ended and removes what only a run has. The caller holds the VM's lock.
pub(crate) fn settle(
    root: &Root,
    bundle: &Bundle,
    identity: &Identity,
    recorded: &RecordedPower,
) -> Result<()> {
    bundle.end_run(recorded)?;
    root.remove_socket_directory(&identity.id);
    Ok(())
}

/// Ends a hypervisor that nobody recorded: whoever holds the run's lock file.
pub(crate) async fn end_orphan(bundle: &Bundle) -> Result<()> {
    let lock = bundle.path("run/vmm.lock");
    let started = Instant::now();
    while bundle.hypervisor_lives()? {
        for pid in holders(&lock) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        if started.elapsed() > GONE_TIMEOUT {
            return Err(Error::new(
                ErrorKind::Failure,
                format!(
                    "a hypervisor of {} lives that can't be ended",
                    bundle.name()
                ),
            )
            .with_hint(format!(
                "find the process that has {} open and end it",
                lock.display()
            )));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Returns the processes of this user that have the file open.
#[cfg(target_os = "linux")]
fn holders(path: &std::path::Path) -> Vec<rustix::process::Pid> {
    let own = std::process::id().cast_signed();
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| {
            std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|descriptors| {
                descriptors
                    .flatten()
                    .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| target == path))
            })
        })
        .filter_map(rustix::process::Pid::from_raw)
        .collect()
}

/// No way to ask is known here, so nobody is ended by guess.
#[cfg(not(target_os = "linux"))]
fn holders(_: &std::path::Path) -> Vec<rustix::process::Pid> {
    Vec::new()
}
