//! The spec as a value: what was asked of a VM, in typed sizes and words.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use innkeeper_image::Arch;
pub use innkeeper_image::DiskFormat;
use innkeeper_net::MacAddr;

use super::Bytes;

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
    /// CPU model as the driver names it; the best safe one if none is given.
    pub cpu_model: Option<String>,
    /// Memory, at least 16 MiB.
    pub memory: Bytes,
    /// How it boots.
    pub boot: BootSpec,
    /// Disks; the first, named `root`, comes from the image if that has one.
    pub disks: Vec<DiskSpec>,
    /// Network interfaces.
    pub networks: Vec<NetworkSpec>,
    /// Folders of this host that the guest sees.
    pub shares: Vec<ShareSpec>,
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
}

/// A network interface of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSpec {
    /// What it is connected to.
    pub kind: NetworkKind,
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
            cpu_model: None,
            memory: Bytes::gib(1),
            boot: BootSpec {
                firmware: None,
                kernel: None,
                initrd: None,
                cmdline: None,
            },
            disks: Vec::new(),
            networks: vec![NetworkSpec {
                kind: NetworkKind::User,
                mac: None,
                forwards: Vec::new(),
            }],
            shares: Vec::new(),
            ready: None,
            ready_timeout: Duration::from_secs(600),
            seed: SeedSpec::default(),
            labels: BTreeMap::new(),
            protected: false,
        }
    }
}
