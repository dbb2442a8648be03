//! Tells every reason why QEMU can't run a VM here; pure.
//!
//! It looks at the config and at what the probe found, never at the host. What the plan would leave out is refused here.

use innkeeper_api::Unsupported;

use super::block;
use super::board::Board;
use super::consoles;
use super::host::{Emulator, QemuHost};
use super::ports;
use crate::driver::{BootConfig, DiskConfig, MachineConfig};
use crate::spec::{AccelChoice, DiskBus, MemoryKind};

/// Longest serial of a virtio disk, in bytes (virtio specification, `VIRTIO_BLK_ID_BYTES`).
pub(super) const SERIAL_LIMIT: usize = 20;

/// Longest tag of a shared folder, in bytes (virtio specification, `virtio_fs_config`).
const TAG_LIMIT: usize = 36;

/// The most consoles: the ports of a virtio-serial device are 31, one of which is the agent's.
const CONSOLE_LIMIT: usize = 30;

/// Step in which memory is added, in bytes: the block of a virtio-mem device where the host's huge pages have this size.
const ADDED_STEP: u64 = 2 << 20;

/// Devices that exist for PCI alone.
const PCI_ONLY: [&str; 6] = [
    "nvme",
    "qemu-xhci",
    "usb-storage",
    "usb-bot",
    "i6300esb",
    // Its place in memory is described by tables that microvm does not make.
    "tpm-crb",
];

/// Oldest version that is supported.
pub(super) const OLDEST: (u32, u32) = (7, 2);

struct Reasons(Vec<Unsupported>);

impl Reasons {
    fn add(&mut self, field: &str, reason: impl Into<String>, hint: Option<&str>) {
        self.0.push(Unsupported {
            field: field.to_owned(),
            reason: reason.into(),
            hint: hint.map(str::to_owned),
        });
    }
}

/// Tells every reason why QEMU can't run `config` here.
pub(super) fn check(config: &MachineConfig, host: &QemuHost) -> Vec<Unsupported> {
    let mut reasons = Reasons(Vec::new());
    accelerator(&mut reasons, config, host);
    let Some(emulator) = host.emulator(config.arch) else {
        reasons.add(
            "arch",
            format!("no QEMU for {} guests was found on this host", config.arch),
            Some(&install_hint(&config.arch.to_string())),
        );
        return reasons.0;
    };
    if !emulator.at_least(OLDEST.0, OLDEST.1) {
        let (major, minor, _) = emulator.version;
        reasons.add(
            "",
            format!(
                "QEMU {major}.{minor} is too old: {}.{} or later is needed",
                OLDEST.0, OLDEST.1
            ),
            Some("install a newer QEMU, on Debian 12 from bookworm-backports"),
        );
    }
    match Board::of(&config.machine, config.arch) {
        None => reasons.add(
            "machine",
            format!(
                "machine type {} is not one that Innkeeper runs {} guests on",
                config.machine, config.arch
            ),
            Some(match Board::family(config.arch) {
                "q35" => "use q35, microvm or auto",
                _ => "use virt or auto",
            }),
        ),
        Some(board) => {
            machine(&mut reasons, config, emulator);
            self::board(&mut reasons, config, board, emulator);
            size(&mut reasons, config, host, board, emulator);
            fittings(&mut reasons, config, host, board, emulator);
            if board == Board::Microvm
                && host.accelerator(config.accel, config.arch) != "kvm"
                && host.tsc_khz.is_none()
            {
                reasons.add(
                    "machine",
                    "a microvm without KVM hangs now and then at boot unless its kernel is told the rate of the host's time-stamp counter, which is not known here",
                    Some("use machine: q35"),
                );
            }
        }
    }
    devices(&mut reasons, config);
    shares(&mut reasons, config, host);
    reasons.0
}

/// Tells how the vsock ports of a guest are reached, where they are asked for.
pub(super) fn choices(config: &MachineConfig, host: &QemuHost) -> Vec<String> {
    let Some(board) = Board::of(&config.machine, config.arch).filter(|_| config.vsock.is_some())
    else {
        return Vec::new();
    };
    vec![match super::fittings::vsock_daemon(config, host, board) {
        Some((daemon, cid)) => format!(
            "vsock by {}, the guest is context id {cid} and the host 2; such a VM can't be suspended",
            daemon.display()
        ),
        None => {
            let lacks = match &host.vsock_daemon {
                Some(_) => "this QEMU was built without vhost-user-vsock",
                None => "vhost-device-vsock was not found on this host",
            };
            format!(
                "vsock by the agent in the guest, whose programs reach the host at context id 1, since {lacks}"
            )
        }
    }]
}

/// Returns what installs QEMU for an architecture, as words for a person.
pub(super) fn install_hint(arch: &str) -> String {
    let package = match arch {
        "x86_64" => "qemu-system-x86",
        "arm64" => "qemu-system-arm",
        _ => "qemu-system-misc",
    };
    if cfg!(target_os = "macos") {
        "brew install qemu".to_owned()
    } else {
        format!("apt-get install {package}")
    }
}

fn accelerator(reasons: &mut Reasons, config: &MachineConfig, host: &QemuHost) {
    let foreign = config.arch.to_string() != host.host_arch;
    match config.accel {
        AccelChoice::Auto | AccelChoice::Tcg => {}
        AccelChoice::Kvm | AccelChoice::Hvf if foreign => reasons.add(
            "accel",
            format!(
                "this {} host can run {} guests only by emulation",
                host.host_arch, config.arch
            ),
            Some("use accel: auto or tcg"),
        ),
        AccelChoice::Kvm => {
            if let Some(refusal) = &host.acceleration.kvm_refused {
                reasons.add("accel", &refusal.reason, refusal.fix.as_deref());
            }
        }
        AccelChoice::Hvf if host.acceleration.hardware.as_deref() != Some("hvf") => reasons.add(
            "accel",
            "Hypervisor.framework (hvf) can't be used here: it exists on macOS alone",
            Some("use accel: auto or tcg"),
        ),
        AccelChoice::Hvf => {}
    }
}

fn machine(reasons: &mut Reasons, config: &MachineConfig, emulator: &Emulator) {
    let Some(machine) = emulator.machine(&config.machine) else {
        let newest = emulator
            .machine(Board::family(config.arch))
            .map_or("auto", |machine| machine.name.as_str());
        let (major, minor, _) = emulator.version;
        reasons.add(
            "machine",
            format!("QEMU {major}.{minor} here no longer has, or does not have yet, the machine type {} that the VM is pinned to", config.machine),
            Some(&format!("install a QEMU that has it, or move the VM by setting machine: {newest} (a saved state of the old type is lost by that, disks are not)")),
        );
        return;
    };
    if config.cpus == 0 {
        reasons.add("cpus", "a machine needs at least one CPU", None);
    } else if config.cpus > machine.cpu_max {
        reasons.add(
            "cpus",
            format!(
                "machine type {} takes at most {} CPUs",
                machine.name, machine.cpu_max
            ),
            None,
        );
    }
    if !config.memory.get().is_multiple_of(4096) || config.memory.get() < 1 << 20 {
        reasons.add(
            "memory",
            "memory must be a multiple of 4 KiB and at least 1 MiB",
            None,
        );
    }
}

fn board(reasons: &mut Reasons, config: &MachineConfig, board: Board, emulator: &Emulator) {
    match (&config.boot, board) {
        (BootConfig::Uefi { .. } | BootConfig::Bios, Board::Microvm) => reasons.add(
            "boot.firmware",
            "machine type microvm boots a kernel directly and has no firmware that reads disks",
            Some("use machine: q35"),
        ),
        (BootConfig::Bios, Board::VirtArm64 | Board::VirtRiscv64) => reasons.add(
            "boot.firmware",
            format!("{} machines have no BIOS", config.arch),
            Some("use firmware: uefi or direct"),
        ),
        (BootConfig::Uefi { .. }, _) if emulator.uefi.is_none() => reasons.add(
            "boot.firmware",
            format!(
                "no UEFI firmware for {} guests was found on this host",
                config.arch
            ),
            Some(match board {
                Board::VirtArm64 => "apt-get install qemu-efi-aarch64",
                Board::VirtRiscv64 => "install edk2 for riscv64 (qemu-efi-riscv64)",
                Board::Q35 | Board::Microvm => "apt-get install ovmf",
            }),
        ),
        (
            BootConfig::Uefi {
                secure_boot: true, ..
            },
            Board::VirtArm64 | Board::VirtRiscv64,
        ) => reasons.add(
            "boot.secure_boot",
            format!("on {} machines of QEMU nothing keeps a guest from changing the keys, so that secure boot would enforce nothing", config.arch),
            Some("leave secure_boot out"),
        ),
        (
            BootConfig::Uefi {
                secure_boot: true, ..
            },
            Board::Q35,
        ) if emulator.secure_uefi.is_none() => reasons.add(
            "boot.secure_boot",
            "no UEFI firmware with secure boot and enrolled keys was found on this host",
            Some("apt-get install ovmf"),
        ),
        (BootConfig::Bios | BootConfig::Uefi { .. } | BootConfig::Direct { .. }, _) => {}
    }
    if let Some((wanted, most)) = ports::excess(config, board) {
        reasons.add(
            "machine",
            format!("a machine takes {most} disks, interfaces and shares beside the first disk and interface, and this VM has {wanted}"),
            None,
        );
        return;
    }
    // The agent's port and the entropy device are always there. Behind ports there is room of its own.
    let movable = if ports::has_ports(board) {
        config.disks.len().min(1) + config.nics.len().min(1)
    } else {
        config.disks.len() + config.nics.len() + config.shares.len()
    };
    let others = [
        config.drives.iter().any(|drive| drive.bus != DiskBus::Usb),
        config.memory_target.is_some(),
        config.max_memory > config.memory,
    ];
    let devices = 2 + movable + others.iter().filter(|there| **there).count();
    if devices > board.device_limit() {
        reasons.add(
            "machine",
            format!(
                "machine type {} takes {} virtio devices, and this VM has {devices}",
                config.machine,
                board.device_limit()
            ),
            (board == Board::Microvm).then_some("use machine: q35"),
        );
    }
}

/// Whether CPUs and memory can be what they are to be, now and later.
fn size(
    reasons: &mut Reasons,
    config: &MachineConfig,
    host: &QemuHost,
    board: Board,
    emulator: &Emulator,
) {
    if let Some(machine) = emulator.machine(&config.machine) {
        if config.max_cpus > config.cpus && !machine.cpu_hotplug {
            reasons.add(
                "max_cpus",
                format!(
                    "machine type {} takes no CPUs while it runs",
                    config.machine
                ),
                Some("leave max_cpus out, or use machine: q35"),
            );
        } else if config.max_cpus > machine.cpu_max {
            reasons.add(
                "max_cpus",
                format!(
                    "machine type {} takes at most {} CPUs",
                    config.machine, machine.cpu_max
                ),
                None,
            );
        }
    }
    let step = host
        .huge_page
        .filter(|_| config.memory_kind == MemoryKind::Huge)
        .unwrap_or(ADDED_STEP);
    if config.max_memory > config.memory {
        let added = config.max_memory.get() - config.memory.get();
        if !matches!(board, Board::Q35 | Board::VirtArm64) || !emulator.has("virtio-mem-pci") {
            reasons.add(
                "max_memory",
                format!(
                    "machine type {} takes no memory while it runs",
                    config.machine
                ),
                Some("leave max_memory out, or use machine: q35"),
            );
        } else if !added.is_multiple_of(step.max(ADDED_STEP)) {
            reasons.add(
                "max_memory",
                format!(
                    "max_memory must be memory and a multiple of {}",
                    crate::spec::Bytes::new(step.max(ADDED_STEP))
                ),
                None,
            );
        }
    }
    if config.memory_kind == MemoryKind::Huge && !config.memory.get().is_multiple_of(step) {
        reasons.add(
            "memory",
            format!(
                "memory of huge pages must be a multiple of their size, {}",
                crate::spec::Bytes::new(step)
            ),
            None,
        );
    }
}

/// Whether the devices beside disks and interfaces can be had.
fn fittings(
    reasons: &mut Reasons,
    config: &MachineConfig,
    host: &QemuHost,
    board: Board,
    emulator: &Emulator,
) {
    let mut need = |asked: bool, field: &str, what: &str, drivers: &[&str]| {
        if !asked {
            return;
        }
        if board == Board::Microvm && drivers.iter().any(|driver| PCI_ONLY.contains(driver)) {
            let reason = format!("machine type microvm has no PCI, which {what} needs");
            reasons.add(field, reason, Some("use machine: q35"));
        } else if let Some(missing) = drivers.iter().find(|driver| !emulator.has(driver)) {
            let reason = format!("this QEMU was built without {missing}, which {what} needs");
            reasons.add(field, reason, None);
        }
    };
    for disk in &config.disks {
        let field = format!("disks.{}.bus", disk.name);
        let nvme = disk.bus == DiskBus::Nvme;
        need(nvme, &field, "an NVMe disk", &["nvme"]);
        let usb = disk.bus == DiskBus::Usb;
        need(usb, &field, "a USB disk", &["qemu-xhci", "usb-storage"]);
    }
    for drive in &config.drives {
        let field = format!("disks.{}.bus", drive.name);
        let usb = drive.bus == DiskBus::Usb;
        need(usb, &field, "a USB drive", &["qemu-xhci", "usb-bot"]);
        need(true, &field, "a drive", &["scsi-cd"]);
    }
    let watchdog = config.watchdog.is_some();
    need(watchdog, "watchdog", "the watchdog", &["i6300esb"]);
    if config.tpm.is_some() {
        let driver = match board {
            Board::Q35 | Board::Microvm => "tpm-crb",
            Board::VirtArm64 | Board::VirtRiscv64 => "tpm-tis-device",
        };
        need(true, "tpm", "the TPM", &[driver]);
        if host.swtpm.is_none() {
            let reason = "a TPM needs swtpm, which was not found on this host";
            reasons.add("tpm", reason, Some("apt-get install swtpm"));
        }
    }
    if config.consoles.len() > CONSOLE_LIMIT {
        reasons.add(
            "consoles",
            format!("a machine has at most {CONSOLE_LIMIT} consoles"),
            None,
        );
    }
    for (index, console) in config.consoles.iter().enumerate() {
        if console.name == consoles::SERIAL || console.name.is_empty() {
            reasons.add(
                &format!("consoles[{index}].name"),
                "the console serial is the first serial port, which is always there",
                Some("use another name"),
            );
        }
    }
}

fn devices(reasons: &mut Reasons, config: &MachineConfig) {
    let drives = config.drives.iter().map(|drive| &drive.name);
    let disks = config.disks.iter().map(|disk| &disk.name);
    for name in disks.chain(drives).filter(|name| !block::fits(name)) {
        reasons.add(
            &format!("disks.{name}.name"),
            format!("the name {name:?} is too long to name things in QEMU after"),
            Some("use a-z, 0-9 and -, at most 20 characters"),
        );
    }
    for (index, disk) in config.disks.iter().enumerate() {
        let DiskConfig { name, .. } = disk;
        if name.len() > SERIAL_LIMIT {
            reasons.add(
                &format!("disks[{index}].name"),
                format!("the disk's name {name:?} is longer than the {SERIAL_LIMIT} bytes that a guest can see"),
                Some("use a shorter name"),
            );
        }
    }
    for (index, nic) in config.nics.iter().enumerate() {
        for (place, forward) in nic.forwards.iter().enumerate() {
            if forward.host_address.is_ipv6() {
                reasons.add(
                    &format!("networks[{index}].forwards[{place}]"),
                    "QEMU's user network forwards from IPv4 addresses only",
                    Some("use 127.0.0.1"),
                );
            }
        }
    }
}

fn shares(reasons: &mut Reasons, config: &MachineConfig, host: &QemuHost) {
    if config.shares.is_empty() {
        return;
    }
    if !cfg!(target_os = "linux") {
        reasons.add(
            "shares",
            "QEMU shares folders by virtiofsd, which exists on Linux alone",
            None,
        );
        return;
    }
    let Some(daemon) = &host.virtiofsd else {
        reasons.add(
            "shares",
            "shared folders need virtiofsd, which was not found on this host",
            Some("apt-get install virtiofsd (on Debian 12 with QEMU 7.2 it is part of qemu-system-common)"),
        );
        return;
    };
    for (index, share) in config.shares.iter().enumerate() {
        let field = format!("shares[{index}]");
        if share.read_only && !daemon.read_only {
            reasons.add(
                &field,
                "the virtiofsd of this host can't serve a folder read-only",
                Some("install the newer virtiofsd (1.11 or later), or share it writable"),
            );
        }
        if share.tag.is_empty() || share.tag.len() > TAG_LIMIT {
            reasons.add(
                &field,
                format!("a share's tag has 1 to {TAG_LIMIT} bytes"),
                None,
            );
        }
    }
}
