//! What was found of QEMU on this host: binaries, machine types, firmware, virtiofsd, and how CPUs can be run.
//!
//! Plain values, made by `probe` and read by the pure `plan` and `check`; they serialise, so that a probe can be remembered.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::drivers::kvm::Refusal;
pub use crate::drivers::virtiofsd::{Virtiofsd, VirtiofsdDialect, VirtiofsdSandbox};
use crate::spec::{AccelChoice, Arch};

/// What was found of QEMU on this host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QemuHost {
    /// Name of the host's own architecture, as [`Arch`] prints it.
    pub host_arch: String,
    /// The emulators, by the name of the guest architecture.
    pub emulators: BTreeMap<String, Emulator>,
    /// Hardware acceleration for guests of the host's architecture.
    pub acceleration: Acceleration,
    /// The daemon that serves shared folders.
    pub virtiofsd: Option<Virtiofsd>,
    /// The program that plays a TPM.
    #[serde(default)]
    pub swtpm: Option<TpmEmulator>,
    /// The daemon that is a guest's vsock device.
    #[serde(default)]
    pub vsock_daemon: Option<PathBuf>,
    /// Size in bytes of the huge pages that this host has set aside; none if it has none.
    #[serde(default)]
    pub huge_page: Option<u64>,
    /// Whether KVM lets guests run virtual machines themselves.
    #[serde(default)]
    pub nested: bool,
    /// Rate of the processor's time-stamp counter in kHz, on x86-64 where it is constant; an emulated guest's counter is the same.
    pub tsc_khz: Option<u64>,
    /// Directories given to QEMU as `-L`.
    pub data_directories: Vec<PathBuf>,
}

/// One `qemu-system-ARCH`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Emulator {
    /// The executable.
    pub program: PathBuf,
    /// Major, minor and micro version.
    pub version: (u32, u32, u32),
    /// Machine types that Innkeeper can use.
    pub machines: Vec<MachineType>,
    /// Whether it can confine itself by seccomp.
    pub sandbox: bool,
    /// UEFI firmware for it.
    pub uefi: Option<UefiFirmware>,
    /// UEFI firmware that refuses unsigned loaders, with variables that hold the usual keys.
    #[serde(default)]
    pub secure_uefi: Option<UefiFirmware>,
    /// Which of the devices that Innkeeper may use it has.
    #[serde(default)]
    pub devices: BTreeSet<String>,
}

/// A machine type of an emulator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineType {
    /// Its name, such as `pc-q35-10.0`.
    pub name: String,
    /// The unversioned name that stands for it, such as `q35`.
    pub alias: Option<String>,
    /// The most CPUs that it takes.
    pub cpu_max: u32,
    /// Whether CPUs can be added while it runs.
    #[serde(default)]
    pub cpu_hotplug: bool,
}

/// UEFI firmware: code, and the template of a VM's own variables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UefiFirmware {
    /// The code, read-only.
    pub code: PathBuf,
    /// The variables' template.
    pub variables: PathBuf,
    /// Format of both files: `raw` or `qcow2`.
    pub format: String,
}

/// How CPUs can be run here.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Acceleration {
    /// `kvm` or `hvf` if a trial showed that it works and is worth it; none for emulation.
    pub hardware: Option<String>,
    /// Why `kvm` can't be used even when asked for; none if it starts.
    pub kvm_refused: Option<Refusal>,
    /// What the trial showed, in sentences.
    pub notes: Vec<String>,
}

/// The program that plays a TPM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TpmEmulator {
    /// The executable.
    pub program: PathBuf,
    /// Whether it can confine itself by seccomp.
    pub seccomp: bool,
}

impl QemuHost {
    /// Returns the emulator for an architecture.
    pub fn emulator(&self, arch: Arch) -> Option<&Emulator> {
        self.emulators.get(&arch.to_string())
    }

    /// Resolves the way of running CPUs for a guest: `kvm`, `hvf` or `tcg`.
    pub fn accelerator(&self, asked: AccelChoice, arch: Arch) -> &str {
        match asked {
            AccelChoice::Kvm => "kvm",
            AccelChoice::Hvf => "hvf",
            AccelChoice::Tcg => "tcg",
            AccelChoice::Auto if arch.to_string() == self.host_arch => {
                self.acceleration.hardware.as_deref().unwrap_or("tcg")
            }
            AccelChoice::Auto => "tcg",
        }
    }
}

impl Emulator {
    /// Finds a machine type by its name or alias.
    pub fn machine(&self, name: &str) -> Option<&MachineType> {
        self.machines
            .iter()
            .find(|machine| machine.name == name || machine.alias.as_deref() == Some(name))
    }

    /// Returns whether it has a device.
    pub fn has(&self, device: &str) -> bool {
        self.devices.contains(device)
    }

    /// Returns whether this is at least a version.
    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        (self.version.0, self.version.1) >= (major, minor)
    }
}
