//! Decides, without looking at anything, what is started for a VM: QEMU's whole command line, its descriptors, its sidecars.
//!
//! ```text
//!  MachineConfig + QemuHost ── plan ──► Plan ── launch ──► processes
//! ```
//!
//! Sockets that clients connect to are bound by us and handed over listening, so that a client never has to wait for QEMU to make
//! them: descriptor numbers are part of the plan. Nothing here is a shell string, and every value is escaped in one place.

use std::path::PathBuf;

use innkeeper_api::ErrorKind;

use super::arguments::{Options, escape, path_text};
use super::block;
use super::board::Board;
use super::consoles::SERIAL_SOCKET;
use super::device::Device;
use super::fittings::{self, Fittings};
use super::host::{Emulator, QemuHost};
use super::network;
use super::ports::{Placement, Ports, port_of};
use super::served;
use super::shape::Shape;
use crate::driver::{BootConfig, DiskConfig, MachineConfig};
use crate::drivers::start::{Descriptor, DescriptorRole, FIRST_DESCRIPTOR, SelfMade, Sidecar};
use crate::drivers::uuid::uuid;
use crate::error::{Error, Result};
use crate::spec::{DiskBus, DiskFormat, MemoryKind};

/// Name of the port that the guest agent opens.
pub(super) const AGENT_PORT: &str = "org.innkeeper.agent.0";

/// What is started for a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// The emulator.
    pub(super) program: PathBuf,
    /// Its arguments; its environment is empty.
    pub(super) arguments: Vec<String>,
    /// The descriptors that it inherits beside the standard three.
    pub(super) descriptors: Vec<Descriptor>,
    /// Processes that are started before it and end with it.
    pub(super) sidecars: Vec<Sidecar>,
    /// The process that is the vsock device, if there is one; it is one of those too.
    pub(super) vsock_daemon: Option<SelfMade>,
    /// File that is copied before the start if its destination does not exist: template, destination.
    pub(super) variables: Option<(PathBuf, PathBuf)>,
    /// How CPUs are run: `kvm`, `hvf`, `tcg`.
    pub(super) accelerator: String,
    /// Whether the power button does anything.
    pub(super) power_button: bool,
    /// Control socket.
    pub(super) monitor: PathBuf,
    /// Agent's socket.
    pub(super) agent: PathBuf,
    /// What the machine is made of.
    pub(super) shape: Shape,
    /// What it has that is asked for while it runs.
    pub(super) fittings: Fittings,
    /// Directory of the TPM's state, which is made if it does not exist.
    pub(super) tpm_state: Option<PathBuf>,
}

/// Collects arguments in pairs and hands out descriptor numbers.
pub(super) struct Builder {
    arguments: Vec<String>,
    descriptors: Vec<Descriptor>,
    devices: Vec<Device>,
}

impl Builder {
    fn flag(&mut self, option: &str) {
        self.arguments.push(option.to_owned());
    }

    pub(super) fn option(&mut self, option: &str, value: impl Into<String>) {
        self.arguments.push(option.to_owned());
        self.arguments.push(value.into());
    }

    pub(super) fn device(&mut self, device: Device) {
        self.option("-device", device.option());
        self.devices.push(device);
    }

    fn descriptor(&mut self, role: DescriptorRole) -> i32 {
        let number =
            FIRST_DESCRIPTOR + i32::try_from(self.descriptors.len()).unwrap_or(i32::MAX / 2);
        self.descriptors.push(Descriptor { number, role });
        number
    }

    /// Adds a character device that listens at a path of ours.
    pub(super) fn listening(&mut self, id: &str, path: PathBuf) -> Options {
        let number = self.descriptor(DescriptorRole::Listener(path));
        Options::new("socket")
            .set("id", id)
            .set("fd", number.to_string())
            .set("server", "on")
            .set("wait", "off")
    }
}

/// Decides what is started for a VM. `placement` is empty for one that boots.
///
/// Errors: `Unsupported` for what `check` would have named; `BadInput` for a path or an id that QEMU can't be told.
pub(super) fn plan(config: &MachineConfig, host: &QemuHost, placement: &Placement) -> Result<Plan> {
    let emulator = host.emulator(config.arch).ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            format!("no QEMU for {} guests was found on this host", config.arch),
        )
    })?;
    let board = Board::of(&config.machine, config.arch).ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            format!(
                "machine type {} is not one for {} guests",
                config.machine, config.arch
            ),
        )
    })?;
    let accelerator = host.accelerator(config.accel, config.arch).to_owned();
    let mut builder = Builder {
        arguments: Vec::new(),
        descriptors: Vec::new(),
        devices: Vec::new(),
    };

    basics(&mut builder, config, host, emulator)?;
    let shared = fittings::shares_memory(config, host, board);
    machine(&mut builder, config, board, &accelerator, shared);
    for cpu in &placement.added_cpus {
        builder.option("-device", cpu.arguments()?.to_string());
    }
    fittings::memory(&mut builder, config, host, board, placement.added_memory);
    let monitor = config.paths.sockets.join("qmp.sock");
    let agent = config.paths.sockets.join("agent.sock");
    channels(&mut builder, config, board, &monitor, &agent)?;
    let early_khz = early_khz(board, &accelerator, host);
    let variables = boot(&mut builder, config, board, emulator, early_khz)?;
    let ports = Ports::new(config, board, placement);
    for port in ports.devices() {
        builder.device(port);
    }
    disks(&mut builder, config, board, &ports)?;
    for nic in &config.nics {
        builder.option("-netdev", network::netdev_option(nic));
        let bus = ports.bus_of(&network::nic_id(nic.mac));
        builder.device(network::nic_device(nic, bus, board));
    }
    let mut fittings = fittings::add(&mut builder, config, board)?;
    fittings.ports = ports.count();
    fittings.virtiofsd = host.virtiofsd.clone().filter(|_| !config.shares.is_empty());
    let mut sidecars = Vec::new();
    // One that is brought back gets them when it is there: they are no part of what was saved.
    if !placement.is_of_a_saved_machine() {
        for served in served::of(config, board, host.virtiofsd.as_ref())? {
            let descriptor = builder.descriptor(DescriptorRole::Connection(served.socket.clone()));
            builder.option("-chardev", served.character_device(descriptor));
            let bus = ports.bus_of(&served.id);
            builder.device(served.device(bus));
            sidecars.push(served.sidecar);
        }
    }
    let swtpm = host.swtpm.as_ref();
    sidecars.extend(fittings::tpm(&mut builder, config, board, swtpm)?);
    let mut vsock_daemon = None;
    if let Some((daemon, vsock)) = fittings::vsock(&mut builder, config, host, board)? {
        vsock_daemon = Some(daemon);
        fittings.vsock = Some(vsock);
    }
    let lock = config.paths.vmm_lock.clone();
    builder.descriptor(DescriptorRole::Lock(lock));

    let shape = shape(config, board, &accelerator, &builder.devices);
    Ok(Plan {
        program: emulator.program.clone(),
        arguments: builder.arguments,
        descriptors: builder.descriptors,
        sidecars,
        vsock_daemon,
        variables,
        accelerator,
        power_button: board.has_power_button(),
        monitor,
        agent,
        shape,
        fittings,
        tpm_state: config.tpm.clone(),
    })
}

/// Says what the machine is made of.
fn shape(config: &MachineConfig, board: Board, accelerator: &str, devices: &[Device]) -> Shape {
    let disks = config.disks.iter().map(|disk| &disk.name);
    let drives = config.drives.iter().map(|drive| &drive.name);
    Shape {
        arch: config.arch.to_string(),
        machine: config.machine.clone(),
        accelerator: accelerator.to_owned(),
        cpu_model: cpu_model(config, board, accelerator),
        cpus: (config.cpus, config.max_cpus),
        memory: (config.memory.get(), config.max_memory.get()),
        disks: disks.chain(drives).cloned().collect(),
        nics: config.nics.iter().map(|nic| nic.mac.to_string()).collect(),
        devices: devices
            .iter()
            .filter(|device| device.bus().and_then(port_of).is_none())
            .map(Device::summary)
            .collect(),
        movable: devices
            .iter()
            .filter(|device| device.bus().and_then(port_of).is_some())
            .map(Device::summary)
            .collect(),
    }
}

/// Returns the CPU model as QEMU is told it.
fn cpu_model(config: &MachineConfig, board: Board, accelerator: &str) -> String {
    match &config.cpu_model {
        Some(model) => model.clone(),
        // The host's own processor would bring what it needs for virtual machines along.
        None if accelerator == "kvm"
            && matches!(board, Board::Q35 | Board::Microvm)
            && !config.nested =>
        {
            format!("{},vmx=off,svm=off", board.cpu_model(accelerator))
        }
        None => board.cpu_model(accelerator).to_owned(),
    }
}

fn basics(
    builder: &mut Builder,
    config: &MachineConfig,
    host: &QemuHost,
    emulator: &Emulator,
) -> Result<()> {
    // A name with `=` would be read as a key.
    let name = if config.name.contains('=') {
        format!("guest={}", escape(&config.name))
    } else {
        escape(&config.name)
    };
    builder.option("-name", name);
    builder.option("-uuid", uuid(&config.id)?);
    for flag in ["-nodefaults", "-no-user-config"] {
        builder.flag(flag);
    }
    builder.option("-display", "none");
    if emulator.sandbox {
        builder.option(
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        );
    }
    for directory in &host.data_directories {
        builder.option("-L", path_text(directory)?);
    }
    builder.option("-msg", "timestamp=on");
    // The guest's power-off leaves QEMU waiting, so that it can be told from a crash even when nobody listened at that moment.
    builder.flag("-no-shutdown");
    builder.option("-action", "panic=pause");
    builder.option("-rtc", "base=utc");
    Ok(())
}

fn machine(
    builder: &mut Builder,
    config: &MachineConfig,
    board: Board,
    accelerator: &str,
    shared: bool,
) {
    let mut machine = Options::new(&config.machine);
    for (key, value) in board.properties(accelerator) {
        machine = machine.set(key, value);
    }
    if matches!(config.boot, BootConfig::Uefi { .. }) {
        machine = machine
            .set("pflash0", "uefi-code")
            .set("pflash1", "uefi-variables");
    }
    if shared || config.memory_kind == MemoryKind::Huge {
        machine = machine.set("memory-backend", "memory");
    }
    if secure_boot(config) {
        // Only firmware in system management mode may write the variables, or a guest could turn the enforcement off.
        machine = machine.set("smm", "on");
    }
    builder.option("-machine", machine.build());
    builder.option("-accel", accelerator);
    builder.option("-cpu", cpu_model(config, board, accelerator));
    let cpus = config.cpus.to_string();
    let most = config.max_cpus.max(config.cpus).to_string();
    let mut topology = Options::new(&cpus);
    if most != cpus {
        topology = topology.set("maxcpus", &most);
    }
    builder.option(
        "-smp",
        topology
            .set("sockets", "1")
            .set("cores", &most)
            .set("threads", "1")
            .build(),
    );
}

fn channels(
    builder: &mut Builder,
    config: &MachineConfig,
    board: Board,
    monitor: &std::path::Path,
    agent: &std::path::Path,
) -> Result<()> {
    let bus = board.bus();
    let qmp = builder.listening("qmp", monitor.to_owned()).build();
    builder.option("-chardev", qmp);
    builder.option("-mon", "chardev=qmp,mode=control");

    let serial = builder
        .listening("serial0", config.paths.sockets.join(SERIAL_SOCKET))
        .set("logfile", path_text(&config.paths.serial_log)?)
        .set("logappend", "on")
        .build();
    builder.option("-chardev", serial);
    builder.option("-serial", "chardev:serial0");

    builder.option("-object", "rng-builtin,id=entropy");
    builder
        .device(Device::new(format!("virtio-rng-{bus}"), "entropy-device").set("rng", "entropy"));

    let channel = builder.listening("agent", agent.to_owned()).build();
    builder.device(Device::new(format!("virtio-serial-{bus}"), "ports"));
    builder.option("-chardev", channel);
    builder.device(
        Device::new("virtserialport", "agent-port")
            .on(Some("ports.0"))
            .set("chardev", "agent")
            .set("name", AGENT_PORT),
    );
    if board == Board::Q35 {
        // Tells a panic once the guest has its driver loaded (`pvpanic-mmio`, a module in distributions, also drives this ISA device).
        builder.device(Device::new("pvpanic", "panic"));
    }
    Ok(())
}

/// Returns the counter rate that the kernel must be told.
///
/// Without KVM's own clock a microvm has none that a kernel can measure its counter against: it tries with a timer whose ticks come late on a busy
/// host, and when that fails it waits for ever. `check` refuses the machine where the rate is not known.
pub(super) fn early_khz(board: Board, accelerator: &str, host: &QemuHost) -> Option<u64> {
    if board == Board::Microvm && accelerator != "kvm" {
        host.tsc_khz
    } else {
        None
    }
}

fn boot(
    builder: &mut Builder,
    config: &MachineConfig,
    board: Board,
    emulator: &Emulator,
    early_khz: Option<u64>,
) -> Result<Option<(PathBuf, PathBuf)>> {
    match &config.boot {
        BootConfig::Direct {
            kernel,
            initrd,
            cmdline,
        } => {
            builder.option("-kernel", path_text(kernel)?);
            if let Some(initrd) = initrd {
                builder.option("-initrd", path_text(initrd)?);
            }
            let mut line = board.kernel_words().join(" ");
            if let Some(khz) = early_khz {
                line.push_str(&format!(" tsc_early_khz={khz}"));
            }
            if config.max_memory > config.memory {
                // Added memory is used at once, and only for what can be moved away when it is to be given back.
                line.push_str(" memhp_default_state=online_movable");
            }
            builder.option("-append", format!("{line} {cmdline}").trim_end());
            Ok(None)
        }
        BootConfig::Uefi { variables, .. } => {
            let secure = secure_boot(config);
            let found = if secure {
                &emulator.secure_uefi
            } else {
                &emulator.uefi
            };
            let firmware = found.as_ref().ok_or_else(|| {
                let kind = if secure {
                    "UEFI firmware with secure boot"
                } else {
                    "UEFI firmware"
                };
                Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "no {kind} for {} guests was found on this host",
                        config.arch
                    ),
                )
            })?;
            let format = &firmware.format;
            let code = fittings::flash("uefi-code", format, &firmware.code, true)?;
            let own = fittings::flash("uefi-variables", format, variables, false)?;
            builder.option("-blockdev", code);
            builder.option("-blockdev", own);
            if secure {
                builder.option("-global", "driver=cfi.pflash01,property=secure,value=on");
            }
            Ok(Some((firmware.variables.clone(), variables.clone())))
        }
        BootConfig::Bios => Ok(None),
    }
}

fn disks(builder: &mut Builder, config: &MachineConfig, board: Board, ports: &Ports) -> Result<()> {
    // A kernel that QEMU loads takes the first place itself, and nothing is booted after it.
    let boots = !matches!(config.boot, BootConfig::Direct { .. });
    let uses_usb = config.disks.iter().any(|disk| disk.bus == DiskBus::Usb)
        || config.drives.iter().any(|drive| drive.bus == DiskBus::Usb);
    if uses_usb {
        builder.device(Device::new("qemu-xhci", block::USB));
    }
    for disk in &config.disks {
        let drive = disk_nodes(builder, disk)?;
        let bus = ports.bus_of(&block::disk_id(&disk.name));
        let place = disk.boot_index.filter(|_| boots);
        builder.device(block::disk_device(disk, &drive, bus, place, board));
    }
    if config.drives.iter().any(|drive| drive.bus != DiskBus::Usb) {
        builder.device(Device::new(
            format!("virtio-scsi-{}", board.bus()),
            block::SCSI,
        ));
    }
    for drive in &config.drives {
        if let Some(medium) = &drive.medium {
            let node = block::medium(&drive.name, medium)?;
            builder.option("-blockdev", node.to_string());
        }
        for device in block::drive_devices(drive, drive.boot_index.filter(|_| boots)) {
            builder.device(device);
        }
    }
    Ok(())
}

/// Adds what a disk's device shows, and returns its id.
fn disk_nodes(builder: &mut Builder, disk: &DiskConfig) -> Result<String> {
    if let (DiskFormat::Qcow2, Some(backing)) = (disk.format, disk.backing_format) {
        let (option, id) = block::drive_option(disk, backing)?;
        builder.option("-drive", option);
        return Ok(id);
    }
    builder.option("-blockdev", block::disk_node(disk, None)?.to_string());
    let Some((group, node)) = block::limits(disk) else {
        return Ok(block::disk_id(&disk.name));
    };
    builder.option("-object", group.to_string());
    builder.option("-blockdev", node.to_string());
    Ok(block::limit_node(&disk.name))
}

/// Returns whether the firmware is to refuse unsigned loaders.
fn secure_boot(config: &MachineConfig) -> bool {
    matches!(
        config.boot,
        BootConfig::Uefi {
            secure_boot: true,
            ..
        }
    )
}
