//! What adoption needs to know of a running Cloud Hypervisor, as it is kept by the engine.

use std::path::PathBuf;

use innkeeper_api::ErrorKind;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::process::ProcessIdentity;
use crate::drivers::vsock::SocketVsock;
use crate::error::{Error, Result};

/// A running Cloud Hypervisor, for whoever adopts it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Boot of the host in which it was launched.
    pub(super) boot_id: String,
    /// The hypervisor itself; its `pid` stands at the top, where the contract wants it.
    #[serde(flatten)]
    pub(super) process: ProcessIdentity,
    /// The processes that end with it.
    pub(super) sidecars: Vec<RunningSidecar>,
    /// Its version, as it said itself.
    pub(super) version: String,
    /// Control socket.
    pub(super) api: PathBuf,
    /// Pipe of events.
    pub(super) events: PathBuf,
    /// Socket of the vsock device.
    pub(super) vsock: SocketVsock,
    /// Everything in the socket directory that is removed when it is gone.
    pub(super) sockets: Vec<PathBuf>,
    /// Where it writes its messages.
    pub(super) log: PathBuf,
    /// Directory that it may write though it is confined.
    pub(super) workplace: PathBuf,
    /// Whether it may touch nothing but what it was told of at the start.
    pub(super) confined: bool,
}

/// A process beside the hypervisor, and how another one is started in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RunningSidecar {
    /// Who it is.
    #[serde(flatten)]
    pub(super) process: ProcessIdentity,
    /// The executable.
    pub(super) program: PathBuf,
    /// Its arguments.
    pub(super) arguments: Vec<String>,
    /// The socket on which it serves the hypervisor, handed over listening.
    pub(super) socket: PathBuf,
}

impl Record {
    /// Reads a record.
    ///
    /// Errors: `Failure` if it is none of this driver's.
    pub(super) fn read(value: &Value) -> Result<Self> {
        Record::deserialize(value).map_err(|error| {
            Error::new(
                ErrorKind::Failure,
                "the record of the running Cloud Hypervisor can't be read",
            )
            .with_source(error)
        })
    }

    /// Writes it for the engine to keep.
    pub(super) fn to_value(&self) -> Result<Value> {
        serde_json::to_value(self).map_err(|error| {
            Error::new(
                ErrorKind::Failure,
                "the record of the running Cloud Hypervisor can't be written",
            )
            .with_source(error)
        })
    }

    /// Removes what the launch made in the socket directory.
    pub(super) fn remove_sockets(&self) {
        for socket in &self.sockets {
            // Gone already is as good; anything else is found by the next launch, which reports it.
            let _ = std::fs::remove_file(socket);
        }
        self.vsock.remove();
        // A save that was broken off leaves what is worth nothing.
        let _ = std::fs::remove_dir_all(&self.workplace);
    }
}
