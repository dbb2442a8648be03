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

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use innkeeper_api::{Capability, DriverReport, ErrorKind, Unsupported};
use innkeeper_net::{MacAddr, UserNetwork};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::error::{Error, Result};
use crate::spec::{
    AccelChoice, Arch, Bytes, DiskBus, DiskCache, DiskFormat, DiskLimits, Firmware, ForwardSpec,
    Isolation, MemoryKind, WatchdogAction,
};

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

    /// Tells what this driver would choose for `config` among several ways, a sentence each, for `inn explain`. Pure.
    fn choices(&self, _config: &MachineConfig, _report: &DriverReport) -> Vec<String> {
        Vec::new()
    }

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

    /// Brings a saved machine back, if the driver can.
    fn restore(&self) -> Option<&dyn Restore> {
        None
    }
}

/// Brings back what [`Suspend::save`] wrote.
#[async_trait]
pub trait Restore: Send + Sync {
    /// Tells every reason why `saved` can't be continued as `config` here; empty if it can.
    ///
    /// Guarantees: pure; nothing is touched. What differs is named: the hypervisor's version, the machine type, CPUs, memory, devices.
    fn check_saved(
        &self,
        config: &MachineConfig,
        saved: &SavedMachine,
        report: &DriverReport,
    ) -> Vec<Unsupported>;

    /// Starts the hypervisor from a saved state, with the CPUs standing still: the first event is `Paused`, and [`Pause::resume`] lets the
    /// guest go on.
    ///
    /// Requires: as `launch`, and `check_saved` found nothing. Guarantees: as `launch`; the files of `saved` are only read, so that a
    /// restore which failed can be tried again. Does not guarantee that the guest's clock is right: it stands where it was saved.
    async fn restore(&self, config: &MachineConfig, saved: &SavedMachine) -> Result<Running>;
}

/// A launched or adopted hypervisor.
pub struct Running {
    /// To ask it for things.
    pub machine: Box<dyn Machine>,
    /// What happens to it; ends after `MachineEvent::Exited`.
    pub events: mpsc::UnboundedReceiver<MachineEvent>,
    /// What `adopt` needs, for the engine to keep. Its field `pid` is the hypervisor's process id; `sidecars`, if it is there, is a list
    /// of objects whose field `pid` is that of a process beside it.
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

    /// Writes memory and devices to disk, if the driver can.
    fn suspend(&self) -> Option<&dyn Suspend> {
        None
    }

    /// Takes out and puts back devices that can't be saved, if this machine may have such.
    fn unsaved(&self) -> Option<&dyn Unsaved> {
        None
    }

    /// Changes the number of CPUs and the size of memory while it runs, if the driver can.
    fn resize(&self) -> Option<&dyn Resize> {
        None
    }

    /// Asks the guest for memory back, if this machine has a balloon.
    fn balloon(&self) -> Option<&dyn Balloon> {
        None
    }

    /// Attaches and detaches devices while it runs, if the driver can.
    fn hotplug(&self) -> Option<&dyn Hotplug> {
        None
    }

    /// Talks to sockets in the guest by their vsock port, if this machine has them.
    fn vsock(&self) -> Option<&dyn Vsock> {
        None
    }

    /// Opens consoles, if this machine has any that can be typed at.
    fn consoles(&self) -> Option<&dyn Consoles> {
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

/// Writes a machine's memory and devices to files.
#[async_trait]
pub trait Suspend: Send + Sync {
    /// Writes memory and devices into `directory`, which exists and is empty, and returns what is needed to bring them back.
    ///
    /// Requires: the CPUs stand still; what [`Unsaved`] names is out. Guarantees: on success everything is on stable storage, the machine still lives and stands still,
    /// and the disks hold what the guest wrote up to that moment; the caller then ends it by `kill`. On an error, or when the future is
    /// dropped, the machine can be resumed as if nothing had been asked; what lies in `directory` is worth nothing.
    async fn save(&self, directory: &Path) -> Result<SavedMachine>;

    /// Tells why this machine can't be saved as it is now; none if it can, or can without the devices that [`Unsaved`] takes out.
    async fn obstacle(&self) -> Result<Option<Unsupported>>;
}

/// Devices that can't be saved, because what they know is in another process, such as a shared folder: they are taken out before the
/// machine is saved and put back after it, so that the guest sees them go and come. They are named as in the config.
#[async_trait]
pub trait Unsaved: Send + Sync {
    /// Names those that the machine has now.
    async fn present(&self) -> Result<Vec<String>>;

    /// Asks the guest to let go of every one of them, and returns when it has and the processes behind them are no longer needed.
    ///
    /// Requires: the CPUs run, and nothing in the guest uses them any more. Errors: `TimedOut` if the guest does not let go; it may do so
    /// later, which `MachineEvent::TakenOut` tells. On an error, or when the future is dropped, some may be out: `put_back` mends that.
    async fn take_out(&self) -> Result<()>;

    /// Puts in every one that the config has and the machine lacks, with a process of its own; those that are there are left alone.
    ///
    /// Returns the machine's record as it is now, for the engine to keep. The CPUs may stand still; the guest sees the devices when they
    /// go on. Errors: within 5 s for each device whose process does not answer; the machine is none the worse for it.
    async fn put_back(&self, config: &MachineConfig) -> Result<serde_json::Value>;
}

/// A machine's memory and devices in files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedMachine {
    /// Directory that holds the files.
    pub directory: PathBuf,
    /// Version of the hypervisor that wrote them.
    pub version: String,
    /// What else the driver needs: which file is what, and the shape of the machine (type, CPUs, memory, devices) for `check_saved`.
    pub details: serde_json::Value,
}

/// Changes the size of a running machine.
#[async_trait]
pub trait Resize: Send + Sync {
    /// Makes so many CPUs present, between 1 and the config's `max_cpus`.
    ///
    /// Does not guarantee that the guest brings them online, nor, when there are fewer, that it lets go of them at once. Errors:
    /// `Conflict` while an earlier change is pending, `Unsupported` where CPUs can only be added.
    async fn set_cpus(&self, count: u32) -> Result<()>;

    /// Makes so much memory present, between the config's `memory` and its `max_memory`.
    ///
    /// Errors: `BadInput` naming the step in which memory can be added, `Unsupported` where it can only be added.
    async fn set_memory(&self, size: Bytes) -> Result<()>;

    /// Returns how many CPUs and how much memory the machine has now.
    async fn size(&self) -> Result<MachineSize>;
}

/// CPUs and memory that a machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineSize {
    /// CPUs that are present.
    pub cpus: u32,
    /// Memory that is present, without what the balloon holds taken off.
    pub memory: Bytes,
}

/// Asks the guest to give memory back.
#[async_trait]
pub trait Balloon: Send + Sync {
    /// Asks that the guest keep at most so much memory; the balloon takes the rest.
    ///
    /// Does not guarantee that the guest follows; [`Balloon::actual`] tells how far it is.
    async fn set_target(&self, memory: Bytes) -> Result<()>;

    /// Returns how much memory the guest has now.
    async fn actual(&self) -> Result<Bytes>;
}

/// Attaches and detaches devices of a running machine. Devices are named as in the config.
#[async_trait]
pub trait Hotplug: Send + Sync {
    /// Attaches a disk. Errors: `Conflict` if one of that name is attached, or still being detached; `Unsupported` if no place is left.
    async fn attach_disk(&self, disk: &DiskConfig) -> Result<()>;

    /// Asks the guest to let go of a disk; `MachineEvent::Detached` follows when it has.
    ///
    /// Errors: `NotFound` if none of that name is attached.
    async fn request_detach_disk(&self, name: &str) -> Result<()>;

    /// Puts a medium into the drive of that name, or takes out what is in it.
    ///
    /// Errors: `NotFound` if there is no such drive, `Conflict` if the guest has locked the drive's tray.
    async fn change_medium(&self, name: &str, medium: Option<&Medium>) -> Result<()>;

    /// Attaches a network interface. Errors: as `attach_disk`.
    async fn attach_nic(&self, nic: &NicConfig) -> Result<()>;

    /// Asks the guest to let go of the interface with this address; `MachineEvent::Detached` follows when it has.
    async fn request_detach_nic(&self, mac: MacAddr) -> Result<()>;
}

/// What lies in a drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Medium {
    /// The file.
    pub path: PathBuf,
    /// Its format: named, never probed.
    pub format: DiskFormat,
}

/// Talks to sockets in the guest.
#[async_trait]
pub trait Vsock: Send + Sync {
    /// Connects to a port on which something in the guest listens. Errors: `Unreachable` if nothing does.
    async fn connect(&self, port: u32) -> Result<Box<dyn Channel>>;

    /// Takes connections that the guest makes to a port of the host (context id 2), until the receiver is dropped.
    ///
    /// Errors: `Conflict` if somebody listens there already.
    async fn listen(&self, port: u32) -> Result<mpsc::Receiver<Box<dyn Channel>>>;
}

/// Opens consoles.
#[async_trait]
pub trait Consoles: Send + Sync {
    /// Opens a console by its name in the config; `serial` is the first serial port. One client at a time; a new one replaces the old.
    ///
    /// Errors: `NotFound` naming those that there are.
    async fn open(&self, name: &str) -> Result<Box<dyn Channel>>;
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
    /// The watchdog ran out, and did what the config says.
    WatchdogFired,
    /// The guest let go of a device that it was asked to: a disk's name, or an interface's MAC address.
    Detached(String),
    /// The guest let go of a device that can't be saved ([`Unsaved`]), asked or not: its name.
    TakenOut(String),
    /// The process that serves a device has ended, and the device does nothing any more: its name. The guest runs on.
    Severed(String),
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
    /// Virtual CPUs that it starts with.
    pub cpus: u32,
    /// Virtual CPUs that it can have while it runs; `cpus` if none can be added.
    pub max_cpus: u32,
    /// Memory that it starts with.
    pub memory: Bytes,
    /// Memory that it can have while it runs; `memory` if none can be added.
    pub max_memory: Bytes,
    /// Memory that the guest is asked to keep within from the start; there is a balloon exactly if this is given.
    pub memory_target: Option<Bytes>,
    /// What memory is made of.
    pub memory_kind: MemoryKind,
    /// How it boots.
    pub boot: BootConfig,
    /// Disks in the order in which the guest sees them; the seed, if any, is the last one.
    pub disks: Vec<DiskConfig>,
    /// CD drives in the order in which the guest sees them.
    pub drives: Vec<DriveConfig>,
    /// Network interfaces in the order in which the guest sees them.
    pub nics: Vec<NicConfig>,
    /// Shared folders.
    pub shares: Vec<ShareConfig>,
    /// Consoles beside the first serial port, in the order in which the guest sees them.
    pub consoles: Vec<ConsoleConfig>,
    /// Directory of the TPM's state, if there is a TPM 2.0. The driver starts and ends the process that plays it.
    pub tpm: Option<PathBuf>,
    /// What happens when the guest stops feeding the watchdog, if there is one.
    pub watchdog: Option<WatchdogAction>,
    /// Context id of the guest's vsock device, if there is one.
    pub vsock: Option<u32>,
    /// Whether the guest may run virtual machines itself.
    pub nested: bool,
    /// How much of this host it may touch.
    pub isolation: Isolation,
    /// Directory of what the driver itself keeps of the machine for life, such as its identifier; made by the driver if it needs it.
    pub platform: PathBuf,
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
        /// Whether the firmware refuses loaders that are not signed.
        secure_boot: bool,
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
    /// What the guest sees it as.
    pub bus: DiskBus,
    /// How the host caches it.
    pub cache: DiskCache,
    /// Whether blocks that the guest discards are given back to the host's file system.
    pub discard: bool,
    /// How much traffic it may have.
    pub limits: DiskLimits,
}

impl DiskConfig {
    /// Makes a writable virtio disk of this name, not booted from, of which nothing else is asked.
    pub fn new(name: impl Into<String>, path: PathBuf, format: DiskFormat) -> Self {
        DiskConfig {
            name: name.into(),
            path,
            format,
            backing_format: None,
            read_only: false,
            boot_index: None,
            bus: DiskBus::Virtio,
            cache: DiskCache::Writeback,
            discard: true,
            limits: DiskLimits::default(),
        }
    }
}

/// A CD drive of a machine, resolved. Its medium can be changed while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveConfig {
    /// Name in the spec.
    pub name: String,
    /// What the guest sees it as: virtio-attached or USB.
    pub bus: DiskBus,
    /// What lies in it at first.
    pub medium: Option<Medium>,
    /// Place in the firmware's boot order, from 0; none if it is not booted from.
    pub boot_index: Option<u32>,
}

/// A console beside the first serial port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleConfig {
    /// Name, unique in the machine; the guest finds the port by it.
    pub name: String,
    /// Where what the guest writes is kept, if anywhere: appended to, rotated by the engine.
    pub log: Option<PathBuf>,
}

/// A network interface of a machine, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicConfig {
    /// Its MAC address.
    pub mac: MacAddr,
    /// What it is connected to.
    pub network: NicNetwork,
    /// Name that the network's DHCP tells the guest.
    pub hostname: String,
    /// Whether the guest reaches anything beyond its own network.
    pub outbound: bool,
    /// Ports of this host that lead into the guest.
    pub forwards: Vec<ForwardSpec>,
}

/// What an interface is connected to, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NicNetwork {
    /// The hypervisor's own user-mode network, with this address plan.
    User(UserNetwork),
    /// A network of our own.
    Switched {
        /// Where the hypervisor listens for the switch: a stream of frames behind their lengths (see `innkeeper_net::batch`).
        socket: PathBuf,
    },
}

impl NicConfig {
    /// Returns the address plan of the user-mode network, if it is on one.
    pub fn user_network(&self) -> Option<UserNetwork> {
        match self.network {
            NicNetwork::User(plan) => Some(plan),
            NicNetwork::Switched { .. } => None,
        }
    }
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

/// Names every capability that `config` asks for, with the spec field that asks. Pure.
///
/// A driver's `check` refuses what its report lacks by [`lacking`], so that what it claims and what it refuses can't differ.
pub fn asked(config: &MachineConfig) -> Vec<(Capability, String)> {
    use Capability as C;
    let mut asked = Vec::new();
    let mut ask = |when: bool, capability, field: &str| {
        if when {
            asked.push((capability, field.to_owned()));
        }
    };
    let secure = matches!(
        config.boot,
        BootConfig::Uefi {
            secure_boot: true,
            ..
        }
    );
    match config.boot {
        BootConfig::Direct { .. } => ask(true, C::BootDirect, "boot.firmware"),
        BootConfig::Uefi { .. } => ask(true, C::BootUefi, "boot.firmware"),
        BootConfig::Bios => ask(true, C::BootBios, "boot.firmware"),
    }
    ask(secure, C::SecureBoot, "boot.secure_boot");
    ask(config.max_cpus > config.cpus, C::CpuHotplug, "max_cpus");
    ask(config.nested, C::Nested, "nested");
    ask(
        config.max_memory > config.memory,
        C::MemoryHotplug,
        "max_memory",
    );
    ask(config.memory_target.is_some(), C::Balloon, "memory_target");
    ask(
        config.memory_kind == MemoryKind::Huge,
        C::HugePages,
        "memory_kind",
    );
    ask(!config.disks.is_empty(), C::Disks, "disks");
    for disk in &config.disks {
        let field = |name: &str| format!("disks.{}.{name}", disk.name);
        ask(
            disk.format == DiskFormat::Qcow2,
            C::DiskQcow2,
            &field("format"),
        );
        ask(disk.bus == DiskBus::Nvme, C::DiskNvme, &field("bus"));
        ask(disk.bus == DiskBus::Usb, C::DiskUsb, &field("bus"));
        ask(
            disk.cache != DiskCache::Writeback,
            C::DiskCache,
            &field("cache"),
        );
        ask(
            disk.limits != DiskLimits::default(),
            C::DiskLimits,
            &field("limits"),
        );
    }
    for drive in &config.drives {
        let field = |name: &str| format!("disks.{}.{name}", drive.name);
        ask(true, C::Drive, &field("removable"));
        ask(drive.bus == DiskBus::Usb, C::DiskUsb, &field("bus"));
    }
    let on_user = config.nics.iter().any(|nic| nic.user_network().is_some());
    ask(on_user, C::NetworkUser, "networks");
    for (index, nic) in config.nics.iter().enumerate() {
        let forwards = format!("networks[{index}].forwards");
        ask(!nic.forwards.is_empty(), C::PortForward, &forwards);
        let switched = nic.user_network().is_none();
        let kind = format!("networks[{index}].kind");
        ask(switched, C::NetworkSwitched, &kind);
        // Nothing leads out of a network of our own.
        ask(!nic.outbound && !switched, C::NetworkClosed, "isolation");
    }
    ask(!config.shares.is_empty(), C::ShareVirtiofs, "shares");
    ask(!config.consoles.is_empty(), C::Consoles, "consoles");
    ask(config.tpm.is_some(), C::Tpm, "tpm");
    ask(config.watchdog.is_some(), C::Watchdog, "watchdog");
    ask(config.vsock.is_some(), C::Vsock, "vsock");
    asked
}

/// Tells every field of `config` that asks for what `report` lacks; nothing if the driver can't be used here at all, which it says itself.
/// Pure.
pub fn lacking(config: &MachineConfig, report: &DriverReport) -> Vec<Unsupported> {
    if !report.usable {
        return Vec::new();
    }
    asked(config)
        .into_iter()
        .filter_map(|(capability, field)| {
            let reason = lacks(report, capability)?;
            Some(Unsupported {
                field,
                reason,
                hint: None,
            })
        })
        .collect()
}

/// Tells why a driver can't do something; none if it can. Pure.
pub fn lacks(report: &DriverReport, capability: Capability) -> Option<String> {
    match report
        .capabilities
        .iter()
        .find(|entry| entry.capability == capability)
    {
        Some(entry) => entry.lacking.clone(),
        None => Some("it does not speak of it".to_owned()),
    }
}

/// Makes one error of every reason; the hint is the first one's that has any.
///
/// Errors: `Unsupported`, if there is a reason.
pub fn refuse(reasons: &[Unsupported]) -> Result<()> {
    if reasons.is_empty() {
        return Ok(());
    }
    let told: Vec<String> = reasons
        .iter()
        .map(|reason| match reason.field.as_str() {
            "" => reason.reason.clone(),
            field => format!("{field}: {}", reason.reason),
        })
        .collect();
    let error = Error::new(ErrorKind::Unsupported, told.join("; "));
    Err(
        match reasons.iter().find_map(|reason| reason.hint.as_ref()) {
            Some(hint) => error.with_hint(hint),
            None => error,
        },
    )
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
