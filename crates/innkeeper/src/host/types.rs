//! What the operations of a host are given and give, where it is no wire type.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use innkeeper_api::Later;
use serde::Serialize;

use super::LET_GO;

/// How a stop goes.
#[derive(Debug, Clone, Copy)]
pub struct StopOptions {
    /// How long the guest may take.
    pub timeout: Duration,
    /// Kill it after that time instead of leaving it running.
    pub force: bool,
}

impl StopOptions {
    pub(super) fn millis(self) -> u64 {
        u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX)
    }
}

/// How a device is detached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DetachOptions {
    /// How long the guest may take to let go of it before the call says that it has not.
    pub timeout: Duration,
    /// Only check what would be done.
    pub dry_run: bool,
}

impl Default for DetachOptions {
    fn default() -> Self {
        DetachOptions {
            timeout: LET_GO,
            dry_run: false,
        }
    }
}

/// Which of a VM's logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogKind {
    /// What the guest wrote to its first serial console.
    Serial,
    /// What the keeper had to say.
    Keeper,
    /// What the hypervisor had to say.
    Vmm,
}

/// What a change of the spec did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SpecChange {
    /// Fields that changed.
    pub changed: Vec<String>,
    /// Fields that the running machine was given, these changes or earlier ones.
    pub applied: Vec<String>,
    /// Those of the changes that take effect at the next start.
    pub restart_required: Vec<String>,
    /// Why the running machine was not given what waits, these changes or earlier ones.
    pub later: Vec<Later>,
}

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageInfo {
    /// Reference, such as `debian:12`.
    pub reference: String,
    /// Architecture.
    pub arch: String,
    /// Digest of its content, as `sha256:...`.
    pub digest: String,
    /// Bytes that it takes on this host's disk.
    pub size_bytes: u64,
    /// When it was made (RFC 3339).
    pub created: String,
    /// Where it came from.
    pub source: String,
    /// Names of the VMs that need it.
    pub used_by: Vec<String>,
    /// Its files by what they are for: `kernel`, `vmlinux`, `initrd`, `root`.
    pub files: BTreeMap<String, PathBuf>,
}

/// An image that can be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CatalogueEntry {
    /// Reference.
    pub reference: String,
    /// Architectures.
    pub arches: Vec<String>,
    /// What it is.
    pub description: String,
    /// How it is had.
    pub how: String,
    /// Whether it was tried by those who wrote the entry.
    pub tried: bool,
}
