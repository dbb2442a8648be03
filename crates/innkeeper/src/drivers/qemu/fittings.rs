//! What a machine has beside disks and interfaces: balloon, added memory, watchdog, TPM, consoles. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use innkeeper_api::ErrorKind;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::arguments::{Options, path_text};
use super::board::Board;
use super::device::Device;
use super::host::{QemuHost, TpmEmulator, Virtiofsd};
use super::plan::Builder;
use crate::driver::MachineConfig;
use crate::drivers::start::{Descriptor, DescriptorRole, FIRST_DESCRIPTOR, SelfMade, Sidecar};
use crate::drivers::vsock::SocketVsock;
use crate::error::{Error, Result};
use crate::spec::{MemoryKind, WatchdogAction};

/// Id of the device that adds memory.
pub(super) const ADDED_MEMORY: &str = "added-memory";

/// What the machine has that is asked for while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Fittings {
    /// Whether there is a balloon.
    pub(super) balloon: bool,
    /// Sockets of the consoles by name.
    pub(super) consoles: BTreeMap<String, PathBuf>,
    /// The vsock device, if there is one.
    #[serde(default)]
    pub(super) vsock: Option<SocketVsock>,
    /// Root ports.
    pub(super) ports: usize,
    /// Whether the watchdog is to power the guest off, which QEMU would do without flushing disks, so that it stops the CPUs instead.
    pub(super) watchdog_powers_off: bool,
    /// What serves its shared folders, for when that is started anew.
    #[serde(default)]
    pub(super) virtiofsd: Option<Virtiofsd>,
}

/// Tells QEMU of the memory, and of what can be added to it.
pub(super) fn memory(
    builder: &mut Builder,
    config: &MachineConfig,
    host: &QemuHost,
    board: Board,
    added: u64,
) {
    let shared = shares_memory(config, host, board);
    let huge = config.memory_kind == MemoryKind::Huge;
    let backend = |id: &str, size: u64| {
        let mut backend = if shared || huge {
            // A daemon beside QEMU maps the guest's memory, so it must be shareable; otherwise plain memory is cheaper.
            Options::new("memory-backend-memfd")
                .set("id", id)
                .set("size", format!("{size}B"))
                .set("share", if shared { "on" } else { "off" })
        } else {
            Options::new("memory-backend-ram")
                .set("id", id)
                .set("size", format!("{size}B"))
        };
        if huge {
            backend = backend.set("hugetlb", "on");
            if let Some(size) = host.huge_page {
                backend = backend.set("hugetlbsize", format!("{size}B"));
            }
        }
        backend
    };
    let size = config.memory.get();
    let most = config.max_memory.get();
    let mut option = format!("size={size}B");
    if most > size {
        option.push_str(&format!(",maxmem={most}B"));
    }
    builder.option("-m", option);
    if shared || huge {
        let mut base = backend("memory", size);
        if huge {
            // Too few pages end the start, rather than the guest when it touches the one that is not there.
            base = base.set("prealloc", "on");
        }
        builder.option("-object", base.build());
    }
    if most > size {
        let added_backend = backend("added", most - size).set("reserve", "off");
        builder.option("-object", added_backend.build());
        builder.device(
            Device::new(format!("virtio-mem-{}", board.bus()), ADDED_MEMORY)
                .set("memdev", "added")
                .set("requested-size", added),
        );
    }
}

/// Adds everything but the TPM.
pub(super) fn add(builder: &mut Builder, config: &MachineConfig, board: Board) -> Result<Fittings> {
    let bus = board.bus();
    if config.memory_target.is_some() {
        builder.device(
            Device::new(format!("virtio-balloon-{bus}"), "balloon")
                // What the guest frees goes back to the host without being asked for.
                .set("free-page-reporting", true)
                // A guest about to kill a program takes memory back first.
                .set("deflate-on-oom", true),
        );
    }
    if let Some(action) = config.watchdog {
        builder.device(Device::new("i6300esb", "watchdog"));
        builder.option(
            "-action",
            match action {
                WatchdogAction::Reset => "watchdog=reset",
                WatchdogAction::Poweroff | WatchdogAction::Pause => "watchdog=pause",
                WatchdogAction::Tell => "watchdog=none",
            },
        );
    }
    let mut consoles = BTreeMap::new();
    for (index, console) in config.consoles.iter().enumerate() {
        let id = format!("console{index}");
        let socket = config.paths.sockets.join(format!("{id}.sock"));
        let mut channel = builder.listening(&id, socket.clone());
        if let Some(log) = &console.log {
            channel = channel
                .set("logfile", path_text(log)?)
                .set("logappend", "on");
        }
        builder.option("-chardev", channel.build());
        builder.device(
            Device::new("virtserialport", format!("{id}-port"))
                .on(Some("ports.0"))
                .set("chardev", id)
                .set("name", console.name.as_str()),
        );
        consoles.insert(console.name.clone(), socket);
    }
    Ok(Fittings {
        balloon: config.memory_target.is_some(),
        consoles,
        vsock: None,
        ports: 0,
        watchdog_powers_off: config.watchdog == Some(WatchdogAction::Poweroff),
        virtiofsd: None,
    })
}

/// Adds the TPM, and describes the process that plays it.
pub(super) fn tpm(
    builder: &mut Builder,
    config: &MachineConfig,
    board: Board,
    emulator: Option<&TpmEmulator>,
) -> Result<Option<Sidecar>> {
    let Some(state) = &config.tpm else {
        return Ok(None);
    };
    let emulator = emulator.ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            "a TPM needs swtpm, which was not found on this host",
        )
    })?;
    let socket = config.paths.sockets.join("tpm.sock");
    builder.option(
        "-chardev",
        Options::new("socket")
            .set("id", "tpm-socket")
            .set("path", path_text(&socket)?)
            .build(),
    );
    builder.option("-tpmdev", "emulator,id=tpm,chardev=tpm-socket");
    let driver = match board {
        Board::Q35 | Board::Microvm => "tpm-crb",
        Board::VirtArm64 | Board::VirtRiscv64 => "tpm-tis-device",
    };
    builder.device(Device::new(driver, "tpm-device").set("tpmdev", "tpm"));
    let mut arguments = vec![
        "socket".to_owned(),
        "--tpm2".to_owned(),
        "--tpmstate".to_owned(),
        format!("dir={},mode=0600", state_text(state)?),
        "--ctrl".to_owned(),
        format!("type=unixio,fd={FIRST_DESCRIPTOR}"),
        "--terminate".to_owned(),
    ];
    if emulator.seccomp {
        arguments.extend(["--seccomp", "action=kill"].map(str::to_owned));
    }
    Ok(Some(Sidecar {
        program: emulator.program.clone(),
        arguments,
        descriptors: vec![Descriptor {
            number: FIRST_DESCRIPTOR,
            role: DescriptorRole::Listener(socket),
        }],
        serves: None,
    }))
}

/// Tells whether a daemon beside QEMU maps the guest's memory.
pub(super) fn shares_memory(config: &MachineConfig, host: &QemuHost, board: Board) -> bool {
    !config.shares.is_empty() || vsock_daemon(config, host, board).is_some()
}

/// Returns the daemon that is the vsock device, where one is asked for and can be had; else the guest's agent joins the ports.
pub(super) fn vsock_daemon<'a>(
    config: &MachineConfig,
    host: &'a QemuHost,
    board: Board,
) -> Option<(&'a Path, u32)> {
    let emulator = host.emulator(config.arch)?;
    let device = emulator.has(&vsock_device(board));
    let daemon = host.vsock_daemon.as_deref().filter(|_| device)?;
    Some((daemon, config.vsock?))
}

fn vsock_device(board: Board) -> String {
    format!("vhost-user-vsock-{}", board.bus())
}

/// Adds the vsock device, and describes the daemon behind it.
pub(super) fn vsock(
    builder: &mut Builder,
    config: &MachineConfig,
    host: &QemuHost,
    board: Board,
) -> Result<Option<(SelfMade, SocketVsock)>> {
    let Some((daemon, cid)) = vsock_daemon(config, host, board) else {
        return Ok(None);
    };
    let control = config.paths.sockets.join("vsock-device.sock");
    let socket = config.paths.sockets.join("vsock.sock");
    builder.option(
        "-chardev",
        Options::new("socket")
            .set("id", "vsock")
            .set("path", path_text(&control)?)
            .build(),
    );
    builder.device(Device::new(vsock_device(board), "vsock-device").set("chardev", "vsock"));
    let arguments = [
        ("--guest-cid", cid.to_string()),
        ("--socket", path_text(&control)?.to_owned()),
        ("--uds-path", path_text(&socket)?.to_owned()),
    ];
    let sidecar = Sidecar {
        program: daemon.to_owned(),
        arguments: arguments
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .collect(),
        descriptors: Vec::new(),
        serves: None,
    };
    let made = SelfMade {
        sidecar,
        awaited: control,
        others: vec![socket.clone()],
    };
    Ok(Some((made, SocketVsock(socket))))
}

/// Returns the path of the TPM's state; swtpm splits its options at commas and has no way to write one.
fn state_text(state: &Path) -> Result<&str> {
    let text = path_text(state)?;
    if text.contains(',') {
        return Err(Error::new(
            ErrorKind::BadInput,
            format!("the TPM's state can't be in {text}: its name holds a comma"),
        ));
    }
    Ok(text)
}

/// Describes the virtual flash that holds firmware or its variables.
pub(super) fn flash(node: &str, format: &str, file: &Path, read_only: bool) -> Result<String> {
    Ok(json!({
        "driver": format, "node-name": node, "read-only": read_only,
        "file": { "driver": "file", "filename": path_text(file)? },
    })
    .to_string())
}
