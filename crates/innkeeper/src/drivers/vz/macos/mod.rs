//! The part of the driver that has effects: asks this Mac, makes the objects of a plan, and watches the machine.
//!
//! Nothing is decided here that a plan could say.

mod extensions;
mod launch;
mod machine;
mod walk;

use std::fs::File;
use std::path::PathBuf;

use innkeeper_api::ErrorKind;
use innkeeper_vz::{VzError, VzErrorKind, host};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::host::VzHost;
use crate::error::{Error, Result};

pub(super) use launch::launch;

/// Asks this Mac what it can do.
pub(super) fn probe() -> VzHost {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let (fewest, most) = host::cpu_limits();
    VzHost {
        macos: host::version(),
        build: host::version_and_build(),
        arch: if cfg!(target_arch = "aarch64") {
            "arm64".to_owned()
        } else {
            std::env::consts::ARCH.to_owned()
        },
        cpus: (number(fewest), number(most)),
        memory: host::memory_limits(),
        nested: host::is_nested_supported(),
        unusable: (!host::is_supported()).then(|| {
            "this Mac can't run virtual machines (VZVirtualMachine.isSupported is false)".to_owned()
        }),
    }
}

/// Makes an error of the library from one of Virtualization.framework.
fn vz_error(error: VzError, message: impl Into<String>) -> Error {
    let kind = match error.kind() {
        VzErrorKind::NotSupported | VzErrorKind::InvalidConfiguration => ErrorKind::Unsupported,
        VzErrorKind::InvalidState | VzErrorKind::LimitExceeded => ErrorKind::Conflict,
        VzErrorKind::NoSpace => ErrorKind::NoSpace,
        VzErrorKind::Cancelled => ErrorKind::Interrupted,
        VzErrorKind::Gone | VzErrorKind::NetworkBlockDevice => ErrorKind::Unreachable,
        _ => ErrorKind::Failure,
    };
    let hint = match error.kind() {
        VzErrorKind::LimitExceeded => {
            Some("stop another VM: macOS allows two macOS guests at a time")
        }
        // The reason is in prose alone, and the commonest one is that every machine is refused.
        VzErrorKind::InvalidConfiguration => Some(
            "a program that is not signed with the entitlement com.apple.security.virtualization may run no machine",
        ),
        _ => None,
    };
    let error = Error::new(kind, message).with_source(error);
    match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

/// A running machine, for whoever ends it without its keeper.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// The keeper, in which the machine lives.
    pid: u32,
    /// Boot of the computer in which it was launched.
    boot_id: String,
    /// The run's lock, held for as long as the machine lives.
    lock: PathBuf,
}

/// Ends the keeper that a record names, and with it the machine, if it still holds the run's lock.
pub(super) async fn kill_record(record: &Value, boot_id: &str) -> Result<()> {
    let record = Record::deserialize(record).map_err(|error| {
        Error::new(
            ErrorKind::Failure,
            "the record of the running machine can't be read",
        )
        .with_source(error)
    })?;
    // Nothing outlives a boot, and without the lock's file there is no run.
    let Ok(lock) = File::open(&record.lock) else {
        return Ok(());
    };
    if record.boot_id != boot_id || flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
        return Ok(());
    }
    // The lock is held, and a launch alone takes it: the recorded process is the one that lives, and its number nobody else's.
    let pid = i32::try_from(record.pid).ok().and_then(Pid::from_raw);
    let Some(pid) = pid.filter(|pid| *pid != rustix::process::getpid()) else {
        return Err(Error::new(
            ErrorKind::Conflict,
            "the machine lives in this very process",
        ));
    };
    match kill_process(pid, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(Error::io(
            format!("can't kill process {}", record.pid),
            error.into(),
        )),
    }
}
