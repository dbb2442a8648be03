//! What is done to VMs, whoever asks: creating, looking, changing, removing. It names no driver and knows none but by the contract.
//!
//! ```text
//!  a command ─► engine ─► is there a keeper? ──yes──► ask it (it holds the VM's lock)
//!                              │no
//!                              ├─ to read: the files; what a dead keeper left is settled first
//!                              ├─ to run it: spawn a keeper, then ask it
//!                              └─ to change it: take the VM's lock, do it, let go
//! ```

mod agents;
pub(crate) mod change;
mod clone;
pub(crate) mod configure;
mod create;
pub(crate) mod export;
mod guests;
mod images;
mod import;
mod keepers;
pub(crate) mod live_change;
mod look;
mod needs;
pub(crate) mod parts;
pub(crate) mod ports;
pub(crate) mod recover;
mod remove;
mod seed;
mod select;
pub(crate) mod snapshots;
mod ssh;
mod wait;

use std::path::PathBuf;
use std::sync::Arc;

use crate::driver::Driver;
use crate::keeper::SshKey;
use crate::store::Root;

pub(crate) use agents::Agents;
pub use clone::{CloneKind, Cloned};
pub use export::{ExportForm, Exported};
pub(crate) use images::{Way, told};
pub use import::{ImportOptions, ImportPlan, PlannedDisk};
pub use select::{DriverVerdict, Explanation};
pub use wait::WaitFor;

/// Everything that the operations work with.
pub(crate) struct Engine {
    /// Where the files are.
    pub root: Root,
    /// Every driver that this build knows, lightest first.
    pub drivers: Vec<Arc<dyn Driver>>,
    /// Executable that runs keepers.
    pub helper: PathBuf,
    /// Environment that keepers get: settings only.
    pub helper_environment: Vec<(String, std::ffi::OsString)>,
    /// Where the guest agents are.
    pub agents: Agents,
    /// Further catalogues of images.
    pub catalogues: Vec<String>,
    /// Files with credentials for registries.
    pub registry_configurations: Vec<PathBuf>,
    /// Directories in which programs are looked for.
    pub search_path: Vec<PathBuf>,
    /// Images and layers.
    pub images: innkeeper_image::Store,
}

impl Engine {
    /// Writes down what was done. It is done whether or not that can be told: an error here, as on a full disk, would be a lie.
    pub(super) fn note(&self, vm: Option<&str>, kind: innkeeper_api::EventKind) {
        let _ = self.root.event_log().append(vm, kind);
    }

    /// Returns the installation's SSH key.
    pub(crate) fn ssh_key(&self) -> SshKey {
        SshKey(self.root.home().join("ssh/id_ed25519"))
    }
}
