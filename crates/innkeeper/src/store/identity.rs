//! What a VM is for life: ids, addresses and choices that were made when it was created.

use std::path::PathBuf;

use innkeeper_api::{Capability, DriverReport};
use innkeeper_image::FrozenId;
use innkeeper_net::MacAddr;
use serde::{Deserialize, Serialize};

use crate::driver::lacks;

/// The identity of a VM (`identity.json`). Written at creation; only a rename, `set --driver` or a newly chosen SSH port changes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Version of this file's form.
    pub version: u32,
    /// 32 hexadecimal digits.
    pub id: String,
    /// When it was created (RFC 3339, UTC).
    pub created: String,
    /// Driver that was chosen.
    pub driver: String,
    /// Machine type that was pinned.
    pub machine: String,
    /// Architecture.
    pub arch: String,
    /// Image that it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<PinnedImage>,
    /// MAC address of each interface, in the order of the spec.
    pub macs: Vec<MacAddr>,
    /// Port on this host's loopback that leads to the guest's SSH server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_port: Option<u16>,
    /// Whether the guest asks its network for addresses, because its driver does not know them before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dhcp: bool,
    /// Kernel of the image, for a direct boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<PinnedBoot>,
    /// Disks that live in the bundle.
    pub disks: Vec<IdentityDisk>,
    /// Whether `seed.img` is attached.
    pub seed: bool,
    /// What it was cloned from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloned: Option<ClonedFrom>,
    /// Which choice of tops `disks` is, as snapshots count them; see `snapshots.json`.
    #[serde(default, skip_serializing_if = "is_first")]
    pub generation: u64,
}

/// What a VM was cloned from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClonedFrom {
    /// Identifier of the other VM.
    pub id: String,
    /// Its name then.
    pub name: String,
    /// Name of the snapshot, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Layers of the other VM that this one began on; none for a full clone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<FrozenId>,
}

fn is_first(generation: &u64) -> bool {
    *generation == 0
}

impl Identity {
    /// Makes it as a driver needs it: what the driver's network can't do is done another way.
    pub fn suit(&mut self, report: &DriverReport) {
        self.dhcp = lacks(report, Capability::NetworkAddresses).is_some();
        if lacks(report, Capability::PortForward).is_some() {
            self.ssh_port = None;
        }
    }
}

/// An image as it was when a VM was made from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedImage {
    /// Reference that was asked for.
    pub reference: String,
    /// Digest of the image's record.
    pub digest: String,
    /// User that the image makes by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Whether the guest takes a cloud-init seed.
    pub cloud_init: bool,
    /// Whether the agent is the guest's init.
    pub agent_is_init: bool,
    /// What an image of a registry runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<innkeeper_image::Workload>,
    /// Layers that it needs.
    pub layers: Vec<String>,
}

/// Kernel, initial RAM disk and command line of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedBoot {
    /// Kernel, a layer.
    pub kernel: PathBuf,
    /// Initial RAM disk, a layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// Command line that the image asks for.
    pub cmdline: String,
}

/// A disk that lives in the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityDisk {
    /// Name in the spec.
    pub name: String,
    /// File, relative to the bundle.
    pub file: PathBuf,
    /// `raw` or `qcow2`.
    pub format: String,
    /// Format of the layer below a qcow2 top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backing_format: Option<String>,
    /// Layer below the top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<String>,
    /// Size that the guest sees, in bytes.
    pub size: u64,
}
