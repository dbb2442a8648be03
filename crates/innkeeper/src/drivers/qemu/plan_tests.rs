//! Whole plans as snapshots, and every reason that `check` gives.

use std::net::IpAddr;
use std::path::PathBuf;

use innkeeper_net::UserNetwork;

use super::check::check;
use super::host::*;
use super::plan::{self, Plan};
use super::ports::Placement;
use crate::driver::*;
use crate::spec::{
    AccelChoice, Arch, Bytes, DiskBus, DiskCache, DiskFormat, DiskLimits, ForwardSpec, Isolation,
    MemoryKind, Protocol, WatchdogAction,
};

fn plan(config: &MachineConfig, host: &QemuHost) -> crate::error::Result<Plan> {
    plan::plan(config, host, &Placement::default())
}

fn host() -> QemuHost {
    let machine = |name: &str, alias: Option<&str>| MachineType {
        name: name.to_owned(),
        alias: alias.map(str::to_owned),
        cpu_max: 8,
        cpu_hotplug: name.starts_with("pc-q35"),
    };
    let emulator = |name: &str, machines: Vec<MachineType>| Emulator {
        program: PathBuf::from(format!("/usr/bin/qemu-system-{name}")),
        version: (10, 0, 2),
        machines,
        sandbox: true,
        uefi: Some(UefiFirmware {
            code: PathBuf::from("/fw/CODE.fd"),
            variables: PathBuf::from("/fw/VARS.fd"),
            format: "raw".to_owned(),
        }),
        secure_uefi: Some(UefiFirmware {
            code: PathBuf::from("/fw/CODE.secure.fd"),
            variables: PathBuf::from("/fw/VARS.keys.fd"),
            format: "raw".to_owned(),
        }),
        devices: [
            "i6300esb",
            "nvme",
            "qemu-xhci",
            "scsi-cd",
            "tpm-crb",
            "tpm-tis-device",
            "usb-bot",
            "usb-storage",
            "virtio-mem-pci",
        ]
        .map(str::to_owned)
        .into(),
    };
    QemuHost {
        host_arch: "x86_64".to_owned(),
        emulators: [
            (
                "x86_64",
                emulator(
                    "x86_64",
                    vec![
                        machine("pc-q35-10.0", Some("q35")),
                        machine("microvm", None),
                    ],
                ),
            ),
            (
                "arm64",
                emulator("aarch64", vec![machine("virt-10.0", Some("virt"))]),
            ),
            ("riscv64", emulator("riscv64", vec![machine("virt", None)])),
        ]
        .map(|(arch, emulator)| (arch.to_owned(), emulator))
        .into(),
        acceleration: Acceleration {
            hardware: Some("kvm".to_owned()),
            ..Acceleration::default()
        },
        virtiofsd: Some(Virtiofsd {
            program: PathBuf::from("/usr/libexec/virtiofsd"),
            dialect: VirtiofsdDialect::Rust,
            unshare: None,
            read_only: true,
            sandbox: VirtiofsdSandbox::Namespace,
        }),
        swtpm: Some(TpmEmulator {
            program: PathBuf::from("/usr/bin/swtpm"),
            seccomp: true,
        }),
        vsock_daemon: None,
        huge_page: Some(2 << 20),
        nested: true,
        tsc_khz: Some(2_400_000),
        data_directories: Vec::new(),
    }
}

fn disk(name: &str, format: DiskFormat) -> DiskConfig {
    DiskConfig::new(
        name,
        PathBuf::from(format!("/vms/web/disks/{name},1")),
        format,
    )
}

/// A VM with everything that a VM can have.
fn full(arch: Arch, machine: &str, boot: BootConfig) -> MachineConfig {
    let root = DiskConfig {
        backing_format: Some(DiskFormat::Raw),
        boot_index: Some(0),
        ..disk("root", DiskFormat::Qcow2)
    };
    let seed = DiskConfig {
        read_only: true,
        ..disk("seed", DiskFormat::Raw)
    };
    let forward = |protocol, host_port, guest_port| ForwardSpec {
        protocol,
        host_address: IpAddr::from([127, 0, 0, 1]),
        host_port,
        guest_port,
    };
    MachineConfig {
        name: "web".to_owned(),
        id: "0123456789abcdef0123456789abcdef".to_owned(),
        arch,
        machine: machine.to_owned(),
        accel: AccelChoice::Auto,
        cpu_model: None,
        cpus: 2,
        max_cpus: 2,
        memory: Bytes::gib(1),
        max_memory: Bytes::gib(1),
        memory_target: None,
        memory_kind: MemoryKind::Normal,
        boot,
        disks: vec![root, disk("data", DiskFormat::Qcow2), seed],
        drives: Vec::new(),
        nics: vec![NicConfig {
            mac: "52:54:00:12:34:56".parse().unwrap(),
            network: NicNetwork::User(UserNetwork::of_interface(0).unwrap()),
            hostname: "web".to_owned(),
            outbound: true,
            forwards: vec![
                forward(Protocol::Tcp, 8080, 80),
                forward(Protocol::Udp, 5353, 53),
            ],
        }],
        shares: vec![ShareConfig {
            tag: "src".to_owned(),
            host: PathBuf::from("/home/me/src"),
            read_only: true,
        }],
        consoles: Vec::new(),
        tpm: None,
        watchdog: None,
        vsock: None,
        nested: false,
        isolation: Isolation::Isolated,
        platform: PathBuf::from("/vms/web/platform"),
        paths: MachinePaths {
            sockets: PathBuf::from("/run/inn/web"),
            run: PathBuf::from("/vms/web/run"),
            serial_log: PathBuf::from("/vms/web/log/serial.log"),
            vmm_log: PathBuf::from("/vms/web/log/vmm.log"),
            vmm_lock: PathBuf::from("/vms/web/run/vmm.lock"),
        },
    }
}

fn bare(arch: Arch, machine: &str) -> MachineConfig {
    MachineConfig {
        disks: Vec::new(),
        nics: Vec::new(),
        shares: Vec::new(),
        accel: AccelChoice::Tcg,
        ..full(arch, machine, direct())
    }
}

fn direct() -> BootConfig {
    BootConfig::Direct {
        kernel: PathBuf::from("/images/vmlinux"),
        initrd: Some(PathBuf::from("/images/initrd")),
        cmdline: "quiet root=/dev/vda".to_owned(),
    }
}

fn uefi() -> BootConfig {
    BootConfig::Uefi {
        variables: PathBuf::from("/vms/web/uefi-variables.fd"),
        secure_boot: false,
    }
}

/// Writes a plan with an option and its value on one line.
fn show(plan: &Plan) -> String {
    let mut text = format!("{}\n", plan.program.display());
    for argument in &plan.arguments {
        let option = argument.starts_with('-');
        text.push_str(if option { "\n  " } else { " " });
        text.push_str(argument);
    }
    text.push_str(&format!(
        "\n\ndescriptors {:#?}\nsidecars {:#?}\nvariables {:?}\naccelerator {}, power button {}\n",
        plan.descriptors, plan.sidecars, plan.variables, plan.accelerator, plan.power_button
    ));
    text
}

fn planned(config: &MachineConfig) -> String {
    let host = host();
    assert_eq!(check(config, &host), []);
    show(&plan(config, &host).unwrap())
}

#[test]
fn q35_direct_on_kvm() {
    insta::assert_snapshot!(planned(&full(Arch::X86_64, "pc-q35-10.0", direct())));
}

#[test]
fn q35_uefi_on_kvm() {
    insta::assert_snapshot!(planned(&full(Arch::X86_64, "pc-q35-10.0", uefi())));
}

#[test]
fn q35_bios_with_nothing_else() {
    let config = MachineConfig {
        boot: BootConfig::Bios,
        ..bare(Arch::X86_64, "pc-q35-10.0")
    };
    insta::assert_snapshot!(planned(&config));
}

#[test]
fn microvm_on_tcg() {
    let config = MachineConfig {
        accel: AccelChoice::Tcg,
        ..full(Arch::X86_64, "microvm", direct())
    };
    insta::assert_snapshot!(planned(&config));
}

#[test]
fn virt_on_arm64() {
    insta::assert_snapshot!(planned(&full(Arch::Arm64, "virt-10.0", direct())));
}

#[test]
fn virt_on_arm64_by_uefi() {
    insta::assert_snapshot!(planned(&full(Arch::Arm64, "virt-10.0", uefi())));
}

#[test]
fn virt_on_riscv64() {
    insta::assert_snapshot!(planned(&bare(Arch::Riscv64, "virt")));
}

/// A VM with everything that is beyond disks, interfaces and shares.
fn fitted() -> MachineConfig {
    let boot = BootConfig::Uefi {
        variables: PathBuf::from("/vms/web/uefi-variables.fd"),
        secure_boot: true,
    };
    let mut config = full(Arch::X86_64, "pc-q35-10.0", boot);
    config.max_cpus = 4;
    config.max_memory = Bytes::gib(4);
    config.memory_target = Some(Bytes::mib(512));
    config.memory_kind = MemoryKind::Huge;
    config.nested = true;
    config.shares.clear();
    let limits = DiskLimits {
        requests: Some(100),
        bandwidth: Some(Bytes::mib(10)),
    };
    config.disks[0].limits = limits;
    config.disks[0].cache = DiskCache::None;
    config.disks[1] = DiskConfig {
        bus: DiskBus::Nvme,
        cache: DiskCache::Unsafe,
        limits,
        ..disk("fast", DiskFormat::Raw)
    };
    config.disks[2] = DiskConfig {
        bus: DiskBus::Usb,
        discard: false,
        ..disk("stick", DiskFormat::Raw)
    };
    config.disks.push(DiskConfig {
        cache: DiskCache::Writethrough,
        discard: false,
        ..disk("safe", DiskFormat::Raw)
    });
    let medium = Medium {
        path: PathBuf::from("/images/installer.iso"),
        format: DiskFormat::Raw,
    };
    config.drives = vec![
        DriveConfig {
            name: "cd".to_owned(),
            bus: DiskBus::Virtio,
            medium: Some(medium),
            boot_index: Some(1),
        },
        DriveConfig {
            name: "usb-cd".to_owned(),
            bus: DiskBus::Usb,
            medium: None,
            boot_index: None,
        },
    ];
    config.nics[0].outbound = false;
    config.nics.push(NicConfig {
        mac: "52:54:00:12:34:57".parse().unwrap(),
        network: NicNetwork::User(UserNetwork::of_interface(1).unwrap()),
        forwards: Vec::new(),
        ..config.nics[0].clone()
    });
    config.consoles = vec![ConsoleConfig {
        name: "debug".to_owned(),
        log: Some(PathBuf::from("/vms/web/log/debug.log")),
    }];
    config.tpm = Some(PathBuf::from("/vms/web/tpm"));
    config.watchdog = Some(WatchdogAction::Poweroff);
    config
}

#[test]
fn everything_that_can_be_fitted() {
    insta::assert_snapshot!(planned(&fitted()));
}

#[test]
fn a_restored_machine_has_everything_where_it_was() {
    let config = full(Arch::X86_64, "pc-q35-10.0", direct());
    let placement = Placement {
        ports: Some(7),
        of: [("disk-seed".to_owned(), 5), ("disk-data".to_owned(), 2)].into(),
        ..Placement::default()
    };
    let plan = plan::plan(&config, &host(), &placement).unwrap();
    assert_eq!(plan.fittings.ports, 7);
    let movable: Vec<&str> = plan.shape.movable.iter().map(String::as_str).collect();
    assert_eq!(
        movable,
        [
            "disk-data virtio-blk-pci port2",
            "disk-seed virtio-blk-pci port5"
        ]
    );
}

#[test]
fn what_can_not_be_fitted_is_named() {
    let mut config = fitted();
    config.machine = "microvm".to_owned();
    config.accel = AccelChoice::Tcg;
    config.boot = direct();
    config.memory = Bytes::mib(1025);
    config.disks[1].name = "ä,ö,ü,ß,é".to_owned();
    config.consoles[0].name = "serial".to_owned();
    let mut host = host();
    host.swtpm = None;
    let mut reasons: Vec<String> = check(&config, &host)
        .iter()
        .map(|lack| format!("{}: {}", lack.field, lack.reason))
        .collect();
    let mut arm64 = full(Arch::Arm64, "virt-10.0", fitted().boot);
    arm64.max_cpus = 4;
    reasons.extend(
        check(&arm64, &host)
            .iter()
            .map(|lack| format!("arm64 {}: {}", lack.field, lack.reason)),
    );
    insta::assert_snapshot!(reasons.join("\n"));
}

#[test]
fn the_older_virtiofsd_is_told_in_its_own_words() {
    let mut host = host();
    host.virtiofsd = Some(Virtiofsd {
        program: PathBuf::from("/usr/lib/qemu/virtiofsd"),
        dialect: VirtiofsdDialect::C,
        unshare: Some(PathBuf::from("/usr/bin/unshare")),
        read_only: false,
        sandbox: VirtiofsdSandbox::Namespace,
    });
    let mut config = full(Arch::X86_64, "pc-q35-10.0", direct());
    assert!(plan(&config, &host).is_err(), "read-only would be ignored");
    config.shares[0].read_only = false;
    insta::assert_debug_snapshot!(plan(&config, &host).unwrap().sidecars);
    config.shares[0].host = PathBuf::from("/home/me/a,modcaps=+sys_admin");
    assert!(
        plan(&config, &host).is_err(),
        "a comma would begin another option"
    );
}

#[test]
fn a_vsock_device_is_a_daemon_and_memory_that_it_can_map() {
    let mut host = host();
    let mut config = full(Arch::X86_64, "pc-q35-10.0", direct());
    config.shares.clear();
    config.memory_kind = MemoryKind::Normal;
    config.vsock = Some(77);
    let by_agent = plan(&config, &host).unwrap();
    assert_eq!(by_agent.vsock_daemon, None);
    assert!(!by_agent.arguments.join(" ").contains("share=on"));
    let told = super::check::choices(&config, &host).join("\n");
    assert!(told.contains("vhost-device-vsock was not found"), "{told}");
    // A daemon without the device in QEMU is no use.
    host.vsock_daemon = Some(PathBuf::from("/usr/bin/vhost-device-vsock"));
    assert_eq!(plan(&config, &host).unwrap().vsock_daemon, None);
    let told = super::check::choices(&config, &host).join("\n");
    assert!(told.contains("built without vhost-user-vsock"), "{told}");
    let emulator = host.emulators.get_mut("x86_64").unwrap();
    emulator.devices.insert("vhost-user-vsock-pci".to_owned());
    let planned = plan(&config, &host).unwrap();
    let daemon = planned.vsock_daemon.unwrap().sidecar;
    assert_eq!(daemon.program, PathBuf::from("/usr/bin/vhost-device-vsock"));
    assert_eq!(daemon.arguments[..2], ["--guest-cid", "77"]);
    let arguments = planned.arguments.join(" ");
    for part in [
        "share=on",
        "memory-backend=memory",
        "vhost-user-vsock-pci,id=vsock-device,chardev=vsock",
    ] {
        assert!(arguments.contains(part), "{part}: {arguments}");
    }
    let told = super::check::choices(&config, &host).join("\n");
    assert!(told.contains("context id 77"), "{told}");
    config.vsock = None;
    assert_eq!(plan(&config, &host).unwrap().vsock_daemon, None);
    assert!(super::check::choices(&config, &host).is_empty());
}

/// Runs a check of a changed VM on a changed host and returns `field: reason (hint)` lines.
fn reasons(change: impl FnOnce(&mut MachineConfig, &mut QemuHost)) -> String {
    let mut host = host();
    let mut config = full(Arch::X86_64, "pc-q35-10.0", direct());
    change(&mut config, &mut host);
    check(&config, &host)
        .iter()
        .map(|lack| {
            format!(
                "{}: {} ({})\n",
                lack.field,
                lack.reason,
                lack.hint.as_deref().unwrap_or("-")
            )
        })
        .collect()
}

#[test]
fn every_lack_is_named() {
    let mut all = String::new();
    let mut add = |title: &str, text: String| {
        assert!(!text.is_empty(), "{title}");
        all.push_str(&format!("{title}\n{text}\n"));
    };
    add(
        "pinned type gone",
        reasons(|config, _| config.machine = "pc-q35-6.0".to_owned()),
    );
    add(
        "foreign type",
        reasons(|config, _| config.machine = "pc-i440fx-10.0".to_owned()),
    );
    add("no emulator", reasons(|_, host| host.emulators.clear()));
    add(
        "too old",
        reasons(|_, host| host.emulators.get_mut("x86_64").unwrap().version = (6, 2, 0)),
    );
    add("too many CPUs", reasons(|config, _| config.cpus = 9));
    add(
        "no CPU and odd memory",
        reasons(|config, _| {
            config.cpus = 0;
            config.memory = Bytes::new(5_000_001);
        }),
    );
    add(
        "no firmware",
        reasons(|config, host| {
            config.boot = uefi();
            host.emulators.get_mut("x86_64").unwrap().uefi = None;
        }),
    );
    add("no virtiofsd", reasons(|_, host| host.virtiofsd = None));
    add(
        "virtiofsd that writes",
        reasons(|_, host| host.virtiofsd.as_mut().unwrap().read_only = false),
    );
    add(
        "KVM refused",
        reasons(|config, host| {
            config.accel = AccelChoice::Kvm;
            host.acceleration.kvm_refused = Some(Refusal {
                reason: "/dev/kvm may not be opened by this user".to_owned(),
                fix: Some("sudo usermod -aG kvm $USER".to_owned()),
            });
        }),
    );
    add(
        "HVF on Linux",
        reasons(|config, _| config.accel = AccelChoice::Hvf),
    );
    add(
        "KVM for another architecture",
        reasons(|config, _| {
            config.accel = AccelChoice::Kvm;
            config.arch = Arch::Arm64;
            config.machine = "virt-10.0".to_owned();
        }),
    );
    add(
        "microvm by UEFI, emulated, without the counter's rate",
        reasons(|config, host| {
            config.machine = "microvm".to_owned();
            config.boot = uefi();
            config.accel = AccelChoice::Tcg;
            host.tsc_khz = None;
        }),
    );
    add(
        "BIOS on arm64",
        reasons(|config, _| {
            config.arch = Arch::Arm64;
            config.machine = "virt-10.0".to_owned();
            config.boot = BootConfig::Bios;
        }),
    );
    add(
        "too many disks",
        reasons(|config, _| {
            config.disks = (0..40)
                .map(|index| disk(&format!("d{index}"), DiskFormat::Raw))
                .collect();
        }),
    );
    add(
        "names and addresses",
        reasons(|config, _| {
            config.disks[0].name = "a-name-over-twenty-bytes".to_owned();
            config.nics[0].forwards[0].host_address = IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]);
            config.shares[0].tag = String::new();
        }),
    );
    insta::assert_snapshot!(all);
}

#[test]
fn ids_that_are_none_are_refused() {
    let mut config = bare(Arch::X86_64, "pc-q35-10.0");
    for id in [
        "",
        "0123",
        "0123456789abcdef0123456789abcdeg",
        "0123456789abcdef0123456789abcdé",
    ] {
        config.id = id.to_owned();
        assert!(plan(&config, &host()).is_err(), "{id}");
    }
}
