//! The contract between the engine and a hypervisor.
//!
//! The core is small; what not every hypervisor can do is an extension behind an accessor, so that what a driver claims and what it does
//! cannot disagree. Everything a driver is given is resolved: absolute paths, chosen addresses, pinned types. A driver looks nothing up.
//!
//! ```text
//!  engine ── check(config) ──► [] or every reason why not
//!         ── launch(config) ─► Running { machine, events, record }      record is kept in run/ by the engine
//!         ── adopt(config, record) ─► Running                            after the death of the process that launched it
//! ```
//!
//! Truth comes from the events alone. A method that returns `Ok` says that the request reached the hypervisor, never that the guest
//! followed it.

use std::path::PathBuf;

use async_trait::async_trait;
use innkeeper_api::{DriverReport, Unsupported};
use innkeeper_net::{MacAddr, UserNetwork};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::error::Result;
use crate::spec::{AccelChoice, Arch, Bytes, DiskFormat, Firmware, ForwardSpec};

/// A kind of hypervisor.
#[async_trait]
pub trait Driver: Send + Sync {
    /// Returns the name that specs and people use.
    fn name(&self) -> &'static str;

    /// Asks this host what the driver can do here.
    ///
    /// Guarantees: starts nothing that outlives the call, changes nothing. Takes the time of a few short processes; results may be
    /// remembered for this host's boot by the caller.
    async fn probe(&self) -> DriverReport;

    /// Tells every reason why this driver can't run `config`; empty if it can.
    ///
    /// Guarantees: pure; it looks at nothing but its arguments. Every unsupported field is named, not just the first.
    fn check(&self, config: &MachineConfig, report: &DriverReport) -> Vec<Unsupported>;

    /// Chooses the machine type to pin for a new VM: what `machine` in its config will say for its whole life.
    ///
    /// Errors: `Unsupported` if the asked one does not exist here.
    fn pin_machine(&self, asked: Option<&str>, arch: Arch, report: &DriverReport)
    -> Result<String>;

    /// Starts the hypervisor and lets the guest run.
    ///
    /// Requires: the files in `config` exist; nothing runs for this VM. Guarantees: on an error, or when the future is dropped before it
    /// ends, no process is left. `Ok` means the hypervisor answered on its control connection and the CPUs were told to run.
    async fn launch(&self, config: &MachineConfig) -> Result<Running>;

    /// Takes over a hypervisor that another process launched.
    ///
    /// Requires: `record` came from `launch` of the same VM in this boot of the host. Guarantees: the guest is not disturbed. Errors:
    /// `NotFound` if that hypervisor is gone (its process id may be somebody else's by now: the driver checks), `Unreachable`
    /// if it lives but does not answer; `kill_record` still works then.
    async fn adopt(&self, config: &MachineConfig, record: &serde_json::Value) -> Result<Running>;

    /// Kills a hypervisor by its record alone, for when it can't be adopted. Idempotent.
    async fn kill_record(&self, record: &serde_json::Value) -> Result<()>;
}

/// A launched or adopted hypervisor.
pub struct Running {
    /// To ask it for things.
    pub machine: Box<dyn Machine>,
    /// What happens to it; ends after `MachineEvent::Exited`.
    pub events: mpsc::UnboundedReceiver<MachineEvent>,
    /// What `adopt` needs, for the engine to keep. Its field `pid` is the hypervisor's process id.
    pub record: serde_json::Value,
}

/// A hypervisor that runs one VM. Dropping it does not end the hypervisor.
#[async_trait]
pub trait Machine: Send + Sync {
    /// Returns the process id of the hypervisor.
    fn pid(&self) -> u32;

    /// Returns how the CPUs are run: `kvm`, `hvf`, `tcg`.
    fn accel(&self) -> &str;

    /// Presses the power button.
    ///
    /// Does not guarantee that the guest does anything. Errors: `Unsupported` if the machine has no button.
    async fn power_button(&self) -> Result<()>;

    /// Ends the hypervisor in an orderly way: what the guest wrote is flushed to the disk files. For a guest that has powered off.
    async fn quit(&self) -> Result<()>;

    /// Ends the hypervisor at once, as by pulling the plug. Idempotent; never waits for the control connection.
    async fn kill(&self) -> Result<()>;

    /// Opens the channel to the guest agent. One at a time; a new one replaces the old.
    ///
    /// Errors: `Unsupported` if the machine has none, `Unreachable` if the hypervisor does not take the connection.
    async fn agent_channel(&self) -> Result<Box<dyn Channel>>;

    /// Counts disk traffic, if the driver can.
    fn block_statistics(&self) -> Option<&dyn BlockStatistics> {
        None
    }

    /// Pauses and resumes, if the driver can.
    fn pause(&self) -> Option<&dyn Pause> {
        None
    }
}

/// A byte stream to something in the guest.
pub trait Channel: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Channel for T {}

/// Counts disk traffic since the hypervisor started.
#[async_trait]
pub trait BlockStatistics: Send + Sync {
    /// Returns bytes read and bytes written, summed over all disks.
    async fn block_totals(&self) -> Result<BlockTotals>;
}

/// Disk traffic since the hypervisor started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockTotals {
    /// Bytes that the guest read.
    pub read_bytes: u64,
    /// Bytes that the guest wrote.
    pub written_bytes: u64,
}

/// Stops and continues the virtual CPUs.
#[async_trait]
pub trait Pause: Send + Sync {
    /// Stops the CPUs; `MachineEvent::Paused` follows.
    async fn pause(&self) -> Result<()>;
    /// Continues the CPUs; `MachineEvent::Resumed` follows.
    async fn resume(&self) -> Result<()>;
}

/// What happened to a hypervisor or its guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEvent {
    /// The CPUs run (first event after a launch; after an adoption the event that tells the state found).
    Running,
    /// The CPUs stand still.
    Paused,
    /// The CPUs run again.
    Resumed,
    /// The guest rebooted itself.
    GuestReset,
    /// The guest powered off; the hypervisor still lives and waits to be told to quit.
    GuestShutdown,
    /// The guest's kernel panicked, as it told the hypervisor.
    GuestPanicked,
    /// The hypervisor stopped the CPUs because it could not go on; it still lives. Says what happened.
    Faulted(String),
    /// The control connection is gone or does not answer, though the process lives.
    ControlLost(String),
    /// The control connection answers again.
    ControlBack,
    /// The hypervisor process is gone. The last event.
    Exited(ExitReport),
}

/// How a hypervisor process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitReport {
    /// Exit code, if it is known (an adopted process is nobody's child, so its code is not).
    pub code: Option<i32>,
    /// Signal that ended it, if that is known.
    pub signal: Option<i32>,
    /// Whether it had been told to quit or be killed by us.
    pub expected: bool,
    /// The last lines it wrote to its log, at most 2 KiB.
    pub log_tail: String,
}

/// Everything a driver is told of one VM. Resolved: absolute paths, chosen addresses, a pinned machine type.
#[derive(Debug, Clone, PartialEq)]
pub struct MachineConfig {
    /// The VM's name; it shows in the process list.
    pub name: String,
    /// The VM's identifier, 32 hexadecimal digits; the guest sees it as its machine's UUID where there is one.
    pub id: String,
    /// Architecture of the guest.
    pub arch: Arch,
    /// Machine type as the driver names it, pinned at creation.
    pub machine: String,
    /// How CPUs are run.
    pub accel: AccelChoice,
    /// CPU model as the driver names it.
    pub cpu_model: Option<String>,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: Bytes,
    /// How it boots.
    pub boot: BootConfig,
    /// Disks in the order in which the guest sees them; the seed, if any, is the last one.
    pub disks: Vec<DiskConfig>,
    /// Network interfaces in the order in which the guest sees them.
    pub nics: Vec<NicConfig>,
    /// Shared folders.
    pub shares: Vec<ShareConfig>,
    /// Files and sockets of this run.
    pub paths: MachinePaths,
}

/// How a machine boots, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootConfig {
    /// The hypervisor loads this kernel.
    Direct {
        /// Kernel file: an ELF with a PVH entry or a bzImage on x86-64, an Image on arm64 and riscv64.
        kernel: PathBuf,
        /// Initial RAM disk.
        initrd: Option<PathBuf>,
        /// Command line; the driver adds what its machine needs (console, timers) in front.
        cmdline: String,
    },
    /// UEFI firmware.
    Uefi {
        /// The VM's own variables; the driver makes the file from its template if it does not exist.
        variables: PathBuf,
    },
    /// BIOS firmware.
    Bios,
}

impl BootConfig {
    /// Returns the firmware that this is.
    pub fn firmware(&self) -> Firmware {
        match self {
            BootConfig::Direct { .. } => Firmware::Direct,
            BootConfig::Uefi { .. } => Firmware::Uefi,
            BootConfig::Bios => Firmware::Bios,
        }
    }
}

/// A disk of a machine, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// Name in the spec; the guest sees it as the disk's serial (at most 20 bytes).
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Its format: named, never probed.
    pub format: DiskFormat,
    /// Format of the layer below a qcow2 top, if there is one.
    pub backing_format: Option<DiskFormat>,
    /// Whether the guest can't write to it.
    pub read_only: bool,
    /// Place in the firmware's boot order, from 0; none if it is not booted from.
    pub boot_index: Option<u32>,
}

/// A network interface of a machine, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicConfig {
    /// Its MAC address.
    pub mac: MacAddr,
    /// Address plan of the user-mode network it is on.
    pub user_network: UserNetwork,
    /// Name that the network's DHCP tells the guest.
    pub hostname: String,
    /// Ports of this host that lead into the guest.
    pub forwards: Vec<ForwardSpec>,
}

/// A shared folder of a machine, resolved. The driver starts and ends the process that serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareConfig {
    /// Tag under which the guest mounts it.
    pub tag: String,
    /// Folder on this host.
    pub host: PathBuf,
    /// Whether the guest can't write to it.
    pub read_only: bool,
}

/// Files and sockets of one run of a machine. Socket paths are short enough for `sockaddr_un` (104 bytes on macOS).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachinePaths {
    /// Directory for sockets; private to the user. The driver names its sockets in it.
    pub sockets: PathBuf,
    /// Directory for files of this run, removed after it.
    pub run: PathBuf,
    /// Where the guest's first serial console is written: appended to, rotated by the engine.
    pub serial_log: PathBuf,
    /// Where the hypervisor's own messages go: appended to.
    pub vmm_log: PathBuf,
    /// A lock file; the driver locks it (flock, exclusive) and lets the hypervisor process inherit the locked descriptor, so that the
    /// lock is held for exactly as long as the hypervisor lives.
    pub vmm_lock: PathBuf,
}
