//! What adoption needs to know of a running QEMU, as it is kept by the engine.

use std::path::PathBuf;

use innkeeper_api::ErrorKind;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fittings::Fittings;
use super::process::ProcessIdentity;
use super::shape::Shape;
pub(super) use crate::drivers::log::log_tail;
use crate::error::{Error, Result};

/// A running QEMU, for whoever adopts it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Boot of the host in which it was launched.
    pub(super) boot_id: String,
    /// QEMU itself; its `pid` stands at the top, where the contract wants it.
    #[serde(flatten)]
    pub(super) process: ProcessIdentity,
    /// The processes that end with it.
    pub(super) sidecars: Vec<SidecarRecord>,
    /// Version of QEMU.
    pub(super) version: String,
    /// How CPUs are run.
    pub(super) accelerator: String,
    /// Whether the power button does anything.
    pub(super) power_button: bool,
    /// Control socket.
    pub(super) monitor: PathBuf,
    /// Agent's socket.
    pub(super) agent: PathBuf,
    /// Every socket that is removed when it is gone.
    pub(super) sockets: Vec<PathBuf>,
    /// Where it writes its messages.
    pub(super) log: PathBuf,
    /// What the machine is made of.
    #[serde(default)]
    pub(super) shape: Shape,
    /// What it has that is asked for while it runs.
    #[serde(default)]
    pub(super) fittings: Fittings,
}

/// A process beside QEMU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SidecarRecord {
    /// The process; its `pid` stands at the top, as for QEMU.
    #[serde(flatten)]
    pub(super) process: ProcessIdentity,
    /// Id of the device that is of no use without it, if that is known.
    #[serde(default)]
    pub(super) device: Option<String>,
}

impl Record {
    /// Reads a record.
    ///
    /// Errors: `Failure` if it is none of this driver's.
    pub(super) fn read(value: &Value) -> Result<Self> {
        Record::deserialize(value).map_err(|error| {
            Error::new(
                ErrorKind::Failure,
                "the record of the running QEMU can't be read",
            )
            .with_source(error)
        })
    }

    /// Writes it for the engine to keep.
    pub(super) fn to_value(&self) -> Result<Value> {
        serde_json::to_value(self).map_err(|error| {
            Error::new(
                ErrorKind::Failure,
                "the record of the running QEMU can't be written",
            )
            .with_source(error)
        })
    }

    /// Returns what a status word means for this machine: where the watchdog is to power it off, a machine that it stopped is off.
    pub(super) fn meaning<'a>(&self, status: &'a str) -> &'a str {
        if status == "watchdog" && self.fittings.watchdog_powers_off {
            "shutdown"
        } else {
            status
        }
    }

    /// Removes the sockets that the launch made.
    pub(super) fn remove_sockets(&self) {
        for socket in &self.sockets {
            // Gone already is as good; anything else is found by the next launch, which reports it.
            let _ = std::fs::remove_file(socket);
        }
        if let Some(vsock) = &self.fittings.vsock {
            vsock.remove();
        }
    }
}
