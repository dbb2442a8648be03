//! The spec as a value: what was asked of a VM, in typed sizes and words.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use innkeeper_image::Arch;
pub use innkeeper_image::DiskFormat;
use innkeeper_net::MacAddr;

use super::{Bytes, VmName};

/// What was asked of a VM: `vm.yaml`, read and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct VmSpec {
    /// Image reference that the root disk, or the kernel, comes from.
    pub image: Option<String>,
    /// Architecture of the guest; the host's if none is given.
    pub arch: Option<Arch>,
    /// Driver to use, or `auto`.
    pub driver: DriverChoice,
    /// Machine type, or `auto`.
    pub machine: MachineChoice,
    /// How CPUs are run.
    pub accel: AccelChoice,
    /// Virtual CPUs, 1 to 1024.
    pub cpus: u32,
    /// Virtual CPUs that it may be given while it runs; no more than `cpus` if none is given.
    pub max_cpus: Option<u32>,
    /// CPU model as the driver names it; the best safe one if none is given.
    pub cpu_model: Option<String>,
    /// Whether the guest may run virtual machines itself.
    pub nested: bool,
    /// Memory, at least 16 MiB.
    pub memory: Bytes,
    /// Memory that it may be given while it runs; no more than `memory` if none is given.
    pub max_memory: Option<Bytes>,
    /// Memory that the guest is asked to keep within, by a balloon; no balloon if none is given.
    pub memory_target: Option<Bytes>,
    /// What memory is made of.
    pub memory_kind: MemoryKind,
    /// How it boots.
    pub boot: BootSpec,
    /// Disks; the first, named `root`, comes from the image if that has one.
    pub disks: Vec<DiskSpec>,
    /// Network interfaces.
    pub networks: Vec<NetworkSpec>,
    /// Folders of this host that the guest sees.
    pub shares: Vec<ShareSpec>,
    /// Consoles beside the first serial port.
    pub consoles: Vec<ConsoleSpec>,
    /// Whether there is a TPM 2.0.
    pub tpm: bool,
    /// What happens when the guest stops feeding the watchdog; no watchdog if none is given.
    pub watchdog: Option<WatchdogAction>,
    /// Whether sockets of the guest can be reached by vsock.
    pub vsock: bool,
    /// How much of this host it may touch.
    pub isolation: Isolation,
    /// How long it may run before it is stopped, and killed if it does not follow; for ever if none is given.
    pub time_to_live: Option<Duration>,
    /// When the guest counts as ready; what fits the image if none is given.
    pub ready: Option<ReadyWhen>,
    /// How long it may take to become ready before `run` and `start` give up waiting.
    pub ready_timeout: Duration,
    /// What the guest is told at its first boot.
    pub seed: SeedSpec,
    /// Labels, for people and programs.
    pub labels: BTreeMap<String, String>,
    /// Whether `rm` is refused.
    pub protected: bool,
}

/// Which driver runs a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriverChoice {
    /// The lightest one that can do the spec.
    Auto,
    /// This one, by its name.
    Named(String),
}

/// Which machine type a VM has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineChoice {
    /// The driver's best for the architecture.
    Auto,
    /// This one, as the driver names it: `q35`, `microvm`, `virt` or a versioned one such as `pc-q35-7.2`.
    Named(String),
}

/// How a VM's CPUs are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccelChoice {
    /// By hardware where a trial shows that it works, else by emulation.
    Auto,
    /// Linux KVM.
    Kvm,
    /// macOS Hypervisor.framework.
    Hvf,
    /// Emulation by translation.
    Tcg,
}

/// How a VM boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootSpec {
    /// Firmware; what the image asks for if none is given.
    pub firmware: Option<Firmware>,
    /// Linux kernel on this host, for a direct boot; the image's if none is given.
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk on this host.
    pub initrd: Option<PathBuf>,
    /// Words added to the kernel's command line.
    pub cmdline: Option<String>,
    /// Whether the UEFI firmware refuses loaders that are not signed.
    pub secure_boot: bool,
}

/// What a VM's memory is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryKind {
    /// Pages of the usual size.
    Normal,
    /// Huge pages that the host has set aside.
    Huge,
}

/// What happens when a guest stops feeding its watchdog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchdogAction {
    /// It is reset.
    Reset,
    /// It is powered off.
    Poweroff,
    /// Its CPUs are stopped, so that it can be looked at.
    Pause,
    /// It is only told, as an event.
    Tell,
}

/// How much of this host a VM may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Virtual networks, disks and shares that were named, forwards on loopback; the hypervisor confined.
    Isolated,
    /// As `isolated`, for programs that nobody watches: nothing leaves its networks, and it lives no longer than `time_to_live`.
    Agent,
    /// Adds devices, raw disks and networks of this host.
    Unrestricted,
}

/// A console of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleSpec {
    /// Name, by which `inn console` and the guest find it.
    pub name: String,
    /// Whether what the guest writes is kept in a log.
    pub log: bool,
}

/// What a guest sees a disk as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskBus {
    /// A virtio block device.
    Virtio,
    /// An NVMe drive.
    Nvme,
    /// A USB stick.
    Usb,
}

/// How the host caches a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskCache {
    /// In the host's page cache; the guest's flushes are obeyed.
    Writeback,
    /// In the host's page cache for reading; every write goes to the disk before the guest is told that it is done.
    Writethrough,
    /// Not in the host's page cache.
    None,
    /// In the host's page cache, and the guest's flushes are ignored: a crash of the host may lose everything.
    Unsafe,
}

/// How much traffic a disk may have; no limit where none is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskLimits {
    /// Requests (reads, writes, flushes) a second.
    pub requests: Option<u32>,
    /// Bytes a second.
    pub bandwidth: Option<Bytes>,
}

/// What starts the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// The hypervisor loads a Linux kernel by itself.
    Direct,
    /// UEFI, with variables of the VM's own.
    Uefi,
    /// BIOS.
    Bios,
}

/// A disk of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    /// Name; `root` is the one from the image.
    pub name: String,
    /// Size that the guest sees; the image's if none is given.
    pub size: Option<Bytes>,
    /// Existing file on this host to attach, instead of one in the bundle.
    pub path: Option<PathBuf>,
    /// Format of `path`; must be given with it.
    pub format: Option<DiskFormat>,
    /// Whether the guest can't write to it.
    pub read_only: bool,
    /// Where the guest mounts it, for disks that were made empty (formatted as ext4).
    pub mount: Option<PathBuf>,
    /// What the guest sees it as.
    pub bus: DiskBus,
    /// Whether it is a drive whose medium can be changed: a CD drive, read-only. It may be empty.
    pub removable: bool,
    /// How the host caches it.
    pub cache: DiskCache,
    /// Whether blocks that the guest discards are given back to the host's file system.
    pub discard: bool,
    /// How much traffic it may have.
    pub limits: DiskLimits,
}

impl DiskSpec {
    /// Says whether it lives in the VM's bundle: neither a file of the user's nor a drive.
    pub fn is_own(&self) -> bool {
        self.path.is_none() && !self.removable
    }

    /// Makes a disk of this name of which nothing else is asked.
    pub fn named(name: impl Into<String>) -> Self {
        DiskSpec {
            name: name.into(),
            size: None,
            path: None,
            format: None,
            read_only: false,
            mount: None,
            bus: DiskBus::Virtio,
            removable: false,
            cache: DiskCache::Writeback,
            discard: true,
            limits: DiskLimits::default(),
        }
    }
}

/// A network interface of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSpec {
    /// What it is connected to.
    pub kind: NetworkKind,
    /// Name of the network, if the kind is `network`.
    pub name: Option<VmName>,
    /// MAC address; made once and kept if none is given.
    pub mac: Option<MacAddr>,
    /// Ports of this host that lead into the guest.
    pub forwards: Vec<ForwardSpec>,
}

/// What a network interface is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkKind {
    /// The hypervisor's own user-mode network: outbound by NAT, inbound by forwards.
    User,
    /// A network of our own, which has a name.
    Network,
}

/// A port of this host that leads into the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardSpec {
    /// Protocol.
    pub protocol: Protocol,
    /// Loopback address on this host.
    pub host_address: IpAddr,
    /// Port on this host.
    pub host_port: u16,
    /// Port in the guest.
    pub guest_port: u16,
}

/// Protocol of a forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A folder of this host that the guest sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareSpec {
    /// Folder on this host, absolute.
    pub host: PathBuf,
    /// Where the guest sees it, absolute.
    pub guest: PathBuf,
    /// Whether the guest can't write to it.
    pub read_only: bool,
}

/// When a guest counts as ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadyWhen {
    /// The agent said hello and, if there is a network, an address is known.
    Agent,
    /// As `agent`, and cloud-init has finished without error.
    CloudInit,
    /// An SSH server answers on the forwarded port.
    Ssh,
    /// The serial console printed this text.
    Serial(String),
    /// As soon as it runs.
    None,
}

/// What the guest is told at its first boot, by cloud-init where the image has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SeedSpec {
    /// Name of the guest; the VM's name if none is given.
    pub hostname: Option<String>,
    /// User that is made, with sudo; the image's default user if none is given.
    pub user: Option<String>,
    /// Public SSH keys beside the installation's own.
    pub ssh_keys: Vec<String>,
    /// Packages that are installed.
    pub packages: Vec<String>,
    /// Files that are written.
    pub files: Vec<SeedFile>,
    /// Commands that are run once at the end, as argument lists.
    pub commands: Vec<Vec<String>>,
    /// Mounts: device, path, type, options.
    pub mounts: Vec<Vec<String>>,
    /// Own cloud-init user data, merged with ours.
    pub user_data: Option<String>,
}

/// A file that cloud-init writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedFile {
    /// Where, absolute.
    pub path: String,
    /// What.
    pub content: String,
    /// Permission bits, such as 0o644.
    pub mode: u32,
    /// Owner as `user:group`; root if none is given.
    pub owner: Option<String>,
}

impl Default for VmSpec {
    fn default() -> Self {
        VmSpec {
            image: None,
            arch: None,
            driver: DriverChoice::Auto,
            machine: MachineChoice::Auto,
            accel: AccelChoice::Auto,
            cpus: 2,
            max_cpus: None,
            cpu_model: None,
            nested: false,
            memory: Bytes::gib(1),
            max_memory: None,
            memory_target: None,
            memory_kind: MemoryKind::Normal,
            boot: BootSpec {
                firmware: None,
                kernel: None,
                initrd: None,
                cmdline: None,
                secure_boot: false,
            },
            disks: Vec::new(),
            networks: vec![NetworkSpec {
                kind: NetworkKind::User,
                name: None,
                mac: None,
                forwards: Vec::new(),
            }],
            shares: Vec::new(),
            consoles: Vec::new(),
            tpm: false,
            watchdog: None,
            vsock: false,
            isolation: Isolation::Isolated,
            time_to_live: None,
            ready: None,
            ready_timeout: Duration::from_secs(600),
            seed: SeedSpec::default(),
            labels: BTreeMap::new(),
            protected: false,
        }
    }
}
