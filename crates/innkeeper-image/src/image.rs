//! What the index knows of an image: one JSON file per reference and architecture below `images/`.
//!
//! The types here are the file format (version 1); unknown fields of a newer version are ignored, an unknown version is refused.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::disk::DiskFormat;
use crate::layer::LayerId;
use crate::oci::Workload;
use crate::reference::Arch;

/// The version of the index files that this program writes.
pub const INDEX_VERSION: u32 = 1;

/// Where an image came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageKind {
    /// The minimal guest: kernel and initramfs, no disk.
    Tiny,
    /// Built on this host from the distribution's packages.
    Packages,
    /// A disk image of a vendor or a URL.
    Vendor,
    /// A disk image of the user.
    Imported,
    /// An image of a registry, with the kernel and agent of the minimal guest.
    Oci,
}

/// What is kept of a registry's image beside its root disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OciSource {
    /// SHA-256 of the manifest in hexadecimal.
    pub manifest: String,
    /// Its layers as they came, for other images that have them too; no VM needs them.
    pub layers: Vec<LayerId>,
    /// What it runs.
    pub workload: Workload,
}

/// The root disk of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootDisk {
    /// The layer that holds it.
    pub layer: LayerId,
    /// Its format, which is never probed.
    pub format: DiskFormat,
    /// The size a guest sees, in bytes.
    pub virtual_bytes: u64,
}

/// What a hypervisor loads itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectBoot {
    /// The kernel as packaged: bzImage on x86-64, raw `Image` elsewhere.
    pub kernel: LayerId,
    /// The uncompressed ELF with a PVH entry, on x86-64: starts sooner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmlinux: Option<LayerId>,
    /// The initial RAM file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<LayerId>,
    /// What this image needs on the kernel's command line; consoles and the like are the driver's to add.
    pub command_line: String,
}

/// An image that is in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Version of this format.
    pub version: u32,
    /// The reference as a user writes it.
    pub reference: String,
    /// The guest's architecture.
    pub arch: Arch,
    /// SHA-256 over the layers and the command line: the same digest is the same image.
    pub digest: String,
    /// When it was made, in seconds since 1970 UTC.
    pub created: u64,
    /// Where it came from, for a person.
    pub source: String,
    /// Where it came from.
    pub kind: ImageKind,
    /// Root disk; the tiny guest has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<RootDisk>,
    /// Direct boot; without it the disk boots by firmware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<DirectBoot>,
    /// The vendor's user, where it has one; the seed's user is made besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_user: Option<String>,
    /// Smallest root disk in bytes; 0 without one.
    pub min_disk_bytes: u64,
    /// Whether cloud-init is in it, so that a seed is understood.
    pub cloud_init: bool,
    /// What an image of a registry brought besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oci: Option<OciSource>,
    /// What is in it: package or part to version or digest.
    #[serde(default)]
    pub contents: BTreeMap<String, String>,
}

impl Image {
    /// Every layer that is kept for this image: those it is made of, and those it was made from.
    pub fn kept_layers(&self) -> Vec<LayerId> {
        let mut layers = self.layers();
        layers.extend(
            self.oci
                .iter()
                .flat_map(|source| source.layers.iter().cloned()),
        );
        layers.sort();
        layers.dedup();
        layers
    }

    /// Every layer this image is made of, without repetition.
    pub fn layers(&self) -> Vec<LayerId> {
        let mut layers = Vec::new();
        layers.extend(self.root.iter().map(|root| root.layer.clone()));
        if let Some(boot) = &self.boot {
            layers.push(boot.kernel.clone());
            layers.extend(boot.vmlinux.clone());
            layers.extend(boot.initrd.clone());
        }
        layers.sort();
        layers.dedup();
        layers
    }

    /// Computes the digest from the layers and the command line.
    pub(crate) fn sealed(mut self) -> Image {
        let mut text = String::new();
        for part in [
            self.root
                .as_ref()
                .map(|root| format!("root {} {:?}\n", root.layer, root.format)),
            self.boot.as_ref().map(|boot| {
                format!(
                    "kernel {}\nvmlinux {:?}\ninitrd {:?}\ncommand line {}\n",
                    boot.kernel, boot.vmlinux, boot.initrd, boot.command_line
                )
            }),
        ] {
            text.push_str(part.as_deref().unwrap_or("none\n"));
        }
        self.digest = crate::digest::sha256_hex(text.as_bytes());
        self
    }
}
