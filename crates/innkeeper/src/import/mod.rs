//! Machines of other products, read into one form: what they are, and what of them has no counterpart here.
//!
//! ```text
//!  descriptor (OVF, libvirt, .vbox, UTM, Lima, Vagrant) ──parse──► ForeignMachine ──into_spec──► VmSpec
//!                                                                        └─ drives: where their bytes are ──► the engine converts them
//! ```
//! Everything here is pure: text in, a machine or a sentence out. A descriptor may come from anywhere, so sizes and counts are bounded, and
//! a name of a file is only ever a name: where it may lead is decided by whoever opens it.

pub mod libvirt;
pub mod lima;
pub mod ovf;
#[cfg(test)]
mod tests;
pub mod utm;
pub mod vagrant;
pub mod vbox;
mod xml;

use std::path::PathBuf;

use innkeeper_api::ErrorKind;
pub use innkeeper_image::ForeignFormat;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::spec::{
    Arch, Bytes, DiskBus, DiskSpec, Firmware, ForwardSpec, MacAddr, NetworkKind, NetworkSpec,
    SeedSpec, ShareSpec, VmSpec,
};

/// Most of anything that a descriptor may list: drives, networks, forwards.
const LIST_LIMIT: usize = 64;
/// Largest descriptor that is read, in bytes.
pub const DESCRIPTOR_LIMIT: u64 = 4 << 20;

/// A machine of another product.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ForeignMachine {
    /// What it comes from, for a person.
    pub source: String,
    /// Its name there.
    pub name: Option<String>,
    /// Architecture.
    pub arch: Option<Arch>,
    /// Virtual CPUs.
    pub cpus: Option<u32>,
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// What starts it.
    pub firmware: Option<Firmware>,
    /// Whether its firmware refuses unsigned loaders.
    pub secure_boot: bool,
    /// Whether it has a TPM.
    pub tpm: bool,
    /// Image that its root disk is made of.
    pub image: Option<String>,
    /// Size of the root disk that is made of the image, in bytes.
    pub image_size: Option<u64>,
    /// Its disks, the one that it boots from first.
    pub drives: Vec<ForeignDrive>,
    /// MAC address of each interface, where one is given; none of the list if it has no network.
    pub networks: Vec<Option<MacAddr>>,
    /// Ports of the host that lead into it.
    pub forwards: Vec<ForwardSpec>,
    /// Folders of the host that it sees.
    pub shares: Vec<ShareSpec>,
    /// What it is told at its first boot.
    pub seed: SeedSpec,
    /// What it has that is given another way here, or not at all.
    pub unmapped: Vec<Unmapped>,
}

/// Something of a machine that has no counterpart here, or another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unmapped {
    /// What it is, as it is called there.
    pub what: String,
    /// Why not, or what stands for it.
    pub why: String,
}

/// A disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignDrive {
    /// Where its bytes are.
    pub place: DrivePlace,
    /// Its format, as the descriptor names it.
    pub format: ForeignFormat,
    /// What it was attached to, for a person.
    pub bus: String,
    /// Size that a guest sees, in bytes, if the descriptor says.
    pub size: Option<u64>,
}

/// Where the bytes of a disk are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DrivePlace {
    /// In the file of this name, beside the descriptor or in its archive; may have directories in it.
    Beside(String),
    /// In this file of the host.
    At(PathBuf),
    /// Nowhere: it is an empty disk.
    Empty,
}

impl ForeignMachine {
    /// Begins one.
    pub fn of(source: impl Into<String>) -> Self {
        ForeignMachine {
            source: source.into(),
            ..ForeignMachine::default()
        }
    }

    /// Notes what has no counterpart.
    pub fn unmapped(&mut self, what: impl Into<String>, why: impl Into<String>) {
        // A hostile descriptor must not fill a screen or memory.
        if self.unmapped.len() < 4 * LIST_LIMIT {
            self.unmapped.push(Unmapped {
                what: what.into(),
                why: why.into(),
            });
        }
    }

    /// Adds a drive.
    fn drive(&mut self, drive: ForeignDrive) -> Result<()> {
        if self.drives.len() == LIST_LIMIT {
            return Err(damaged(format!("it has more than {LIST_LIMIT} disks")));
        }
        self.drives.push(drive);
        Ok(())
    }

    /// Adds a network interface, with its MAC address if that is one.
    fn network(&mut self, mac: Option<&str>) -> Result<()> {
        if self.networks.len() == LIST_LIMIT {
            return Err(damaged(format!("it has more than {LIST_LIMIT} interfaces")));
        }
        let parsed = mac.and_then(read_mac);
        if let (Some(text), None) = (mac, parsed) {
            self.unmapped(
                format!("MAC address {text}"),
                "it is none that an interface can have; a new one is made",
            );
        }
        self.networks.push(parsed);
        Ok(())
    }

    /// Makes the spec of it. The sizes of its disks are given in bytes, one for each drive.
    pub fn into_spec(mut self, sizes: &[u64]) -> Result<(VmSpec, Vec<Unmapped>)> {
        let mut spec = VmSpec {
            image: self.image.clone(),
            arch: self.arch,
            ..VmSpec::default()
        };
        if let Some(cpus) = self.cpus {
            spec.cpus = cpus;
            if !(1..=1024).contains(&cpus) {
                return Err(damaged(format!(
                    "it has {cpus} CPUs; 1 to 1024 is possible"
                )));
            }
        }
        if let Some(memory) = self.memory {
            // The form of a spec counts whole MiB.
            spec.memory = Bytes::new(memory.div_ceil(1 << 20).clamp(16, 1 << 24) << 20);
            if spec.memory.get() != memory {
                self.unmapped(
                    format!("memory of {memory} bytes"),
                    format!("{} is given", spec.memory),
                );
            }
        }
        spec.boot.firmware = self.firmware;
        spec.boot.secure_boot = self.secure_boot;
        spec.tpm = self.tpm;
        if self.image.is_none() && spec.boot.firmware.is_none() {
            let arm = self.arch.or_else(Arch::host) == Some(Arch::Arm64);
            spec.boot.firmware = Some(if arm { Firmware::Uefi } else { Firmware::Bios });
            let (given, other) = if arm {
                ("uefi", "bios")
            } else {
                ("bios", "uefi")
            };
            self.unmapped(
                "firmware",
                format!(
                    "it is not named; {given} is taken, and --firmware {other} takes the other"
                ),
            );
        }
        if let Some(size) = self.image_size {
            let mut root = DiskSpec::named("root");
            root.size = Some(Bytes::new(size));
            spec.disks.push(root);
        }
        for (drive, size) in self.drives.iter().zip(sizes) {
            let name = match spec.disks.len() {
                0 => "root".to_owned(),
                number => format!("disk{number}"),
            };
            let mut disk = DiskSpec::named(name);
            disk.size = Some(Bytes::new(*size));
            if drive.bus.eq_ignore_ascii_case("nvme") {
                disk.bus = DiskBus::Nvme;
            }
            spec.disks.push(disk);
        }
        let buses: Vec<String> = self
            .drives
            .iter()
            .filter(|drive| {
                !["", "virtio", "nvme"].contains(&drive.bus.to_ascii_lowercase().as_str())
            })
            .map(|drive| drive.bus.clone())
            .collect();
        if let Some(bus) = buses.first() {
            self.unmapped(
                format!("disks on {bus}"),
                "they become virtio disks, which Linux drives; a Windows guest needs the virtio drivers installed before it is moved",
            );
        }
        spec.networks = self
            .networks
            .iter()
            .map(|mac| NetworkSpec {
                kind: NetworkKind::User,
                name: None,
                mac: *mac,
                forwards: Vec::new(),
            })
            .collect();
        match spec.networks.first_mut() {
            Some(network) => network.forwards = self.forwards,
            None if self.forwards.is_empty() => {}
            None => self.unmapped.push(Unmapped {
                what: "forwarded ports".to_owned(),
                why: "there is no network interface that they could lead to".to_owned(),
            }),
        }
        spec.shares = self.shares;
        spec.seed = self.seed;
        Ok((spec, self.unmapped))
    }
}

/// Reads a MAC address, with or without colons; none if it is not one of a single interface.
fn read_mac(text: &str) -> Option<MacAddr> {
    if text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let pairs: Vec<&str> = (0..12).step_by(2).map(|at| &text[at..at + 2]).collect();
        return pairs.join(":").parse().ok();
    }
    text.replace('-', ":").parse().ok()
}

/// Makes a file name that another product wrote into a drive's place: absolute ones stay apart from those beside the descriptor.
fn place_of(name: &str) -> DrivePlace {
    if name.starts_with('/') {
        DrivePlace::At(PathBuf::from(name))
    } else {
        DrivePlace::Beside(name.strip_prefix("./").unwrap_or(name).to_owned())
    }
}

/// Takes a disk's format from its file's name.
fn format_by_name(name: &str) -> Option<ForeignFormat> {
    ForeignFormat::from_extension(std::path::Path::new(name))
}

/// Makes the error of a descriptor that is not as it should be.
fn damaged(problem: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::BadInput,
        format!("the machine's description can't be used: {problem}"),
    )
}
