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
use serde_json::json;

use super::arguments::{Options, escape, path_text};
use super::board::Board;
use super::host::{Emulator, QemuHost};
use crate::driver::{BootConfig, DiskConfig, MachineConfig, NicConfig};
use crate::drivers::start::{Descriptor, DescriptorRole, FIRST_DESCRIPTOR, Sidecar};
use crate::drivers::uuid::uuid;
use crate::error::{Error, Result};
use crate::spec::{DiskFormat, Protocol};

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
}

/// Collects arguments in pairs and hands out descriptor numbers.
struct Builder {
    arguments: Vec<String>,
    descriptors: Vec<Descriptor>,
}

impl Builder {
    fn flag(&mut self, option: &str) {
        self.arguments.push(option.to_owned());
    }

    fn option(&mut self, option: &str, value: impl Into<String>) {
        self.arguments.push(option.to_owned());
        self.arguments.push(value.into());
    }

    fn descriptor(&mut self, role: DescriptorRole) -> i32 {
        let number =
            FIRST_DESCRIPTOR + i32::try_from(self.descriptors.len()).unwrap_or(i32::MAX / 2);
        self.descriptors.push(Descriptor { number, role });
        number
    }

    /// Adds a character device that listens at a path of ours.
    fn listening(&mut self, id: &str, path: PathBuf) -> Options {
        let number = self.descriptor(DescriptorRole::Listener(path));
        Options::new("socket")
            .set("id", id)
            .set("fd", number.to_string())
            .set("server", "on")
            .set("wait", "off")
    }
}

/// Decides what is started for a VM.
///
/// Errors: `Unsupported` for what `check` would have named; `BadInput` for a path or an id that QEMU can't be told.
pub(super) fn plan(config: &MachineConfig, host: &QemuHost) -> Result<Plan> {
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
    };

    basics(&mut builder, config, host, emulator)?;
    machine(&mut builder, config, board, &accelerator);
    let monitor = config.paths.sockets.join("qmp.sock");
    let agent = config.paths.sockets.join("agent.sock");
    channels(&mut builder, config, board, &monitor, &agent)?;
    let early_khz = early_khz(board, &accelerator, host);
    let variables = boot(&mut builder, config, board, emulator, early_khz)?;
    // A kernel that QEMU loads takes the first place itself, and nothing is booted after it.
    let boots_disks = !matches!(config.boot, BootConfig::Direct { .. });
    for (index, disk) in config.disks.iter().enumerate() {
        let place = disk.boot_index.filter(|_| boots_disks);
        self::disk(&mut builder, index, disk, place, board)?;
    }
    for (index, nic) in config.nics.iter().enumerate() {
        self::nic(&mut builder, index, nic, board);
    }
    let sidecars = shares(&mut builder, config, board, host)?;
    let lock = config.paths.vmm_lock.clone();
    builder.descriptor(DescriptorRole::Lock(lock));

    Ok(Plan {
        program: emulator.program.clone(),
        arguments: builder.arguments,
        descriptors: builder.descriptors,
        sidecars,
        variables,
        accelerator,
        power_button: board.has_power_button(),
        monitor,
        agent,
    })
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

fn machine(builder: &mut Builder, config: &MachineConfig, board: Board, accelerator: &str) {
    let mut machine = Options::new(&config.machine);
    for (key, value) in board.properties(accelerator) {
        machine = machine.set(key, value);
    }
    if matches!(config.boot, BootConfig::Uefi { .. }) {
        machine = machine
            .set("pflash0", "uefi-code")
            .set("pflash1", "uefi-variables");
    }
    if !config.shares.is_empty() {
        machine = machine.set("memory-backend", "memory");
    }
    builder.option("-machine", machine.build());
    builder.option("-accel", accelerator);
    let model = config
        .cpu_model
        .as_deref()
        .unwrap_or(board.cpu_model(accelerator));
    builder.option("-cpu", model);
    let cpus = config.cpus.to_string();
    builder.option(
        "-smp",
        Options::new(&cpus)
            .set("sockets", "1")
            .set("cores", &cpus)
            .set("threads", "1")
            .build(),
    );
    let memory = format!("{}B", config.memory.get());
    builder.option("-m", Options::new("").build() + "size=" + &memory);
    if !config.shares.is_empty() {
        // virtiofsd maps the guest's memory, so it must be shareable; otherwise plain memory is cheaper.
        builder.option(
            "-object",
            Options::new("memory-backend-memfd")
                .set("id", "memory")
                .set("size", &memory)
                .set("share", "on")
                .build(),
        );
    }
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
        .listening("serial0", config.paths.sockets.join("serial.sock"))
        .set("logfile", path_text(&config.paths.serial_log)?)
        .set("logappend", "on")
        .build();
    builder.option("-chardev", serial);
    builder.option("-serial", "chardev:serial0");

    builder.option("-object", "rng-builtin,id=entropy");
    builder.option("-device", format!("virtio-rng-{bus},rng=entropy"));

    let channel = builder.listening("agent", agent.to_owned()).build();
    builder.option("-device", format!("virtio-serial-{bus},id=ports"));
    builder.option("-chardev", channel);
    builder.option(
        "-device",
        format!("virtserialport,bus=ports.0,chardev=agent,name={AGENT_PORT},id=agent-port"),
    );
    if board == Board::Q35 {
        // Tells a panic once the guest has its driver loaded (`pvpanic-mmio`, a module in distributions, also drives this ISA device).
        builder.option("-device", "pvpanic");
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
            builder.option("-append", format!("{line} {cmdline}").trim_end());
            Ok(None)
        }
        BootConfig::Uefi { variables, .. } => {
            let firmware = emulator.uefi.as_ref().ok_or_else(|| {
                Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "no UEFI firmware for {} guests was found on this host",
                        config.arch
                    ),
                )
            })?;
            for (node, file, read_only) in [
                ("uefi-code", &firmware.code, true),
                ("uefi-variables", variables, false),
            ] {
                builder.option(
                    "-blockdev",
                    json!({
                        "driver": firmware.format, "node-name": node, "read-only": read_only,
                        "file": { "driver": "file", "filename": path_text(file)? },
                    })
                    .to_string(),
                );
            }
            Ok(Some((firmware.variables.clone(), variables.clone())))
        }
        BootConfig::Bios => Ok(None),
    }
}

fn disk(
    builder: &mut Builder,
    index: usize,
    disk: &DiskConfig,
    boot_index: Option<u32>,
    board: Board,
) -> Result<()> {
    let node = format!("disk{index}");
    let format = |format: DiskFormat| match format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    };
    let file = path_text(&disk.path)?;
    let drive = match (disk.format, disk.backing_format) {
        (DiskFormat::Qcow2, Some(backing)) => {
            // `-blockdev` would want the backing file's path as well; this form takes that from the header, which we wrote, and lets
            // the format be named, which must never be probed from what a guest may have written.
            let id = format!("{node}-drive");
            builder.option(
                "-drive",
                Options::new("if=none")
                    .set("id", &id)
                    .set("node-name", &node)
                    .set("driver", "qcow2")
                    .set("read-only", if disk.read_only { "on" } else { "off" })
                    .set("discard", "unmap")
                    .set("file.driver", "file")
                    .set("file.filename", file)
                    .set("file.discard", "unmap")
                    .set("backing.driver", format(backing))
                    .build(),
            );
            id
        }
        (own, _) => {
            let mut block = json!({
                "driver": format(own), "node-name": node, "read-only": disk.read_only, "discard": "unmap",
                "file": { "driver": "file", "filename": file, "discard": "unmap" },
            });
            if own == DiskFormat::Qcow2 {
                // Whatever file the header names as its backing file, it is not ours and is not opened.
                block["backing"] = json!(null);
            }
            builder.option("-blockdev", block.to_string());
            node.clone()
        }
    };
    let mut device = Options::new(&format!("virtio-blk-{}", board.bus()))
        .set("drive", drive)
        .set("id", format!("{node}-device"))
        .set("serial", &disk.name);
    if let Some(boot_index) = boot_index {
        device = device.set("bootindex", boot_index.to_string());
    }
    builder.option("-device", device.build());
    Ok(())
}

fn nic(builder: &mut Builder, index: usize, nic: &NicConfig, board: Board) {
    let id = format!("net{index}");
    let network = nic.user_network;
    let mut backend = Options::new("user")
        .set("id", &id)
        .set(
            "net",
            format!(
                "{}/{}",
                network.network(),
                innkeeper_net::UserNetwork::PREFIX
            ),
        )
        .set("host", network.gateway().to_string())
        .set("dns", network.dns().to_string())
        .set("dhcpstart", network.guest().to_string())
        // The address plan has no IPv6; a guest that is offered one would first try it in vain.
        .set("ipv6", "off")
        .set("hostname", &nic.hostname);
    for forward in &nic.forwards {
        let protocol = match forward.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        backend = backend.set(
            "hostfwd",
            format!(
                "{protocol}:{}:{}-{}:{}",
                forward.host_address,
                forward.host_port,
                network.guest(),
                forward.guest_port
            ),
        );
    }
    builder.option("-netdev", backend.build());
    let mut device = Options::new(&format!("virtio-net-{}", board.bus()))
        .set("netdev", &id)
        .set("id", format!("{id}-device"))
        .set("mac", nic.mac.to_string());
    if board != Board::Microvm {
        // No network boot: the option ROM costs time at every start.
        device = device.set("romfile", "");
    }
    builder.option("-device", device.build());
}

fn shares(
    builder: &mut Builder,
    config: &MachineConfig,
    board: Board,
    host: &QemuHost,
) -> Result<Vec<Sidecar>> {
    let mut sidecars = Vec::new();
    for (index, share) in config.shares.iter().enumerate() {
        let daemon = host.virtiofsd.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "shared folders need virtiofsd, which was not found on this host",
            )
        })?;
        let id = format!("share{index}");
        let socket = config.paths.sockets.join(format!("{id}.sock"));
        let (program, arguments) = daemon.serve(share, FIRST_DESCRIPTOR)?;
        sidecars.push(Sidecar {
            program,
            arguments,
            descriptors: vec![Descriptor {
                number: FIRST_DESCRIPTOR,
                role: DescriptorRole::Listener(socket.clone()),
            }],
        });
        builder.option(
            "-chardev",
            Options::new("socket")
                .set("id", &id)
                .set("path", path_text(&socket)?)
                .build(),
        );
        builder.option(
            "-device",
            Options::new(&format!("vhost-user-fs-{}", board.bus()))
                .set("chardev", &id)
                .set("id", format!("{id}-device"))
                .set("tag", &share.tag)
                .build(),
        );
    }
    Ok(sidecars)
}
