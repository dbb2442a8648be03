//! What a driver can do here, and what it can't and why.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! capabilities {
    ($($(#[doc = $doc:literal])+ $name:ident = $word:literal,)+) => {
        /// Something that a hypervisor may or may not be able to do. The words are stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        pub enum Capability {
            $($(#[doc = $doc])+ #[serde(rename = $word)] $name,)+
        }

        impl Capability {
            /// Every capability, in the order of the printed matrix.
            pub const ALL: &[Capability] = &[$(Capability::$name,)+];

            /// The word as it stands on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Capability::$name => $word,)+ }
            }

            /// What it means, in a sentence.
            pub fn describe(self) -> &'static str {
                match self { $(Capability::$name => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

capabilities! {
    /// Boots a Linux kernel given as a file.
    BootDirect = "boot.direct",
    /// Boots by UEFI with variables of its own.
    BootUefi = "boot.uefi",
    /// Boots by BIOS.
    BootBios = "boot.bios",
    /// Runs guests of another architecture by emulation.
    ForeignArch = "arch.foreign",
    /// Pins a versioned machine type.
    PinnedMachine = "machine.pinned",
    /// Attaches disks.
    Disks = "disk",
    /// Attaches qcow2 disks over immutable layers.
    DiskQcow2 = "disk.qcow2",
    /// Gives the guest a network without root.
    NetworkUser = "network.user",
    /// Joins networks of our own, by their switch.
    NetworkSwitched = "network.switched",
    /// Gives the guest addresses that are known before it starts.
    NetworkAddresses = "network.addresses",
    /// Forwards ports of the host's loopback into the guest.
    PortForward = "network.forward",
    /// Shares folders by virtiofs.
    ShareVirtiofs = "share.virtiofs",
    /// Has a channel to the guest agent.
    AgentChannel = "agent",
    /// Writes the serial console to a file.
    SerialLog = "serial.log",
    /// Tells a power-off from a crash.
    ShutdownTold = "event.shutdown",
    /// Tells a reboot of the guest.
    RebootTold = "event.reboot",
    /// Presses the power button.
    PowerButton = "power.button",
    /// Goes on running when its keeper dies, and is adopted.
    Adoption = "adoption",
    /// Pauses and resumes.
    Pause = "pause",
    /// Suspends to disk and comes back.
    Suspend = "suspend",
    /// Refuses unsigned loaders (secure boot).
    SecureBoot = "boot.secure",
    /// Gives CPUs to a running guest.
    CpuHotplug = "cpu.hotplug",
    /// Lets the guest run virtual machines.
    Nested = "cpu.nested",
    /// Gives memory to a running guest.
    MemoryHotplug = "memory.hotplug",
    /// Asks the guest for memory back.
    Balloon = "memory.balloon",
    /// Makes memory of huge pages.
    HugePages = "memory.huge",
    /// Attaches disks as NVMe drives.
    DiskNvme = "disk.nvme",
    /// Attaches disks as USB sticks.
    DiskUsb = "disk.usb",
    /// Lets a disk's host cache be chosen.
    DiskCache = "disk.cache",
    /// Limits a disk's traffic.
    DiskLimits = "disk.limits",
    /// Attaches and detaches disks while the guest runs.
    DiskHotplug = "disk.hotplug",
    /// Has CD drives whose medium can be changed.
    Drive = "drive",
    /// Attaches and detaches network interfaces while the guest runs.
    NetworkHotplug = "network.hotplug",
    /// Keeps a guest from reaching anything beyond its network.
    NetworkClosed = "network.closed",
    /// Has consoles that can be typed at.
    Consoles = "console",
    /// Has a TPM 2.0.
    Tpm = "tpm",
    /// Has a watchdog.
    Watchdog = "watchdog",
    /// Reaches sockets of the guest by vsock.
    Vsock = "vsock",
    /// Counts disk traffic.
    BlockStatistics = "stats.block",
    /// Gives the guest random numbers.
    Entropy = "entropy",
    /// Confines the hypervisor process.
    Sandbox = "sandbox",
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One reason why a driver can't run a spec here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unsupported {
    /// Path of the spec field that asks for it, such as `boot.firmware`; empty if it is the host's lack.
    pub field: String,
    /// Why not, in one sentence.
    pub reason: String,
    /// What would fix it, if anything does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Something that this host lacks, with the command that fixes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Need {
    /// What is lacking, such as `qemu-system-x86_64`.
    pub what: String,
    /// What can't be done without it.
    pub without: String,
    /// The command, or the change, that fixes it.
    pub fix: String,
}

/// Whether a driver can do one thing here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CapabilityReport {
    /// What.
    pub capability: Capability,
    /// Why not; none if it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacking: Option<String>,
}

/// What a driver found when it asked this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DriverReport {
    /// The driver's name.
    pub driver: String,
    /// Whether it can run anything at all here.
    pub usable: bool,
    /// Version of the hypervisor, if it was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// How CPUs would be run for guests of the host's architecture: `kvm`, `hvf`, `tcg`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accel: Option<String>,
    /// Why that way of running was chosen, or why it can't run.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Guest architectures that it can run here.
    #[serde(default)]
    pub arches: Vec<String>,
    /// Every capability, with the reason where it is lacking.
    #[serde(default)]
    pub capabilities: Vec<CapabilityReport>,
    /// What this host lacks, with the fix.
    #[serde(default)]
    pub needs: Vec<Need>,
    /// What only the driver itself reads: what it found, for its `check`.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub details: serde_json::Value,
}

/// What this host can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostReport {
    /// Operating system and architecture, such as `linux x86_64`.
    pub host: String,
    /// Every driver that this build knows.
    pub drivers: Vec<DriverReport>,
    /// Whether new disks on the data directory's file system cost no copy (`reflink`) or are overlays (`overlay`).
    pub clones: String,
    /// What this host lacks apart from drivers, with the fix.
    pub needs: Vec<Need>,
}
