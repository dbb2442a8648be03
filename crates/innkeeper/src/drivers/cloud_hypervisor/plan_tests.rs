//! Plans as a whole: every argument, descriptor and field, for the plainest VM and for one with everything.

use std::path::PathBuf;

use super::host::CloudHypervisorHost;
use super::plan::{Plan, disk, plan};
use crate::driver::{BootConfig, DiskConfig, MachineConfig, MachinePaths, ShareConfig};
use crate::drivers::virtiofsd::{Virtiofsd, VirtiofsdDialect, VirtiofsdSandbox};
use crate::spec::{
    AccelChoice, Arch, Bytes, DiskCache, DiskFormat, DiskLimits, Isolation, MemoryKind,
    WatchdogAction,
};

fn host() -> CloudHypervisorHost {
    CloudHypervisorHost {
        host_arch: "x86_64".to_owned(),
        program: Some("/usr/bin/cloud-hypervisor".into()),
        version: Some("53.0.0".to_owned()),
        landlock: true,
        userfaultfd: true,
        virtiofsd: Some(Virtiofsd {
            program: "/usr/libexec/virtiofsd".into(),
            dialect: VirtiofsdDialect::Rust,
            unshare: None,
            read_only: true,
            sandbox: VirtiofsdSandbox::Namespace,
        }),
        swtpm: Some("/usr/bin/swtpm".into()),
        firmware: Some("/usr/share/cloud-hypervisor/CLOUDHV.fd".into()),
        ..CloudHypervisorHost::default()
    }
}

fn config() -> MachineConfig {
    MachineConfig {
        name: "guest".to_owned(),
        id: "0123456789abcdef0123456789abcdef".to_owned(),
        arch: Arch::X86_64,
        machine: "cloud-hypervisor".to_owned(),
        accel: AccelChoice::Auto,
        cpu_model: None,
        cpus: 1,
        max_cpus: 1,
        memory: Bytes::mib(512),
        max_memory: Bytes::mib(512),
        memory_target: None,
        memory_kind: MemoryKind::Normal,
        boot: BootConfig::Direct {
            kernel: "/images/kernel".into(),
            initrd: None,
            cmdline: String::new(),
        },
        disks: Vec::new(),
        drives: Vec::new(),
        nics: Vec::new(),
        shares: Vec::new(),
        consoles: Vec::new(),
        tpm: None,
        watchdog: None,
        vsock: None,
        nested: false,
        isolation: Isolation::Isolated,
        platform: PathBuf::from("/vms/web/platform"),
        paths: MachinePaths {
            sockets: "/s".into(),
            run: "/vm/run".into(),
            serial_log: "/vm/log/serial.log".into(),
            vmm_log: "/vm/log/vmm.log".into(),
            vmm_lock: "/vm/run/vmm.lock".into(),
        },
    }
}

fn shown(plan: &Plan) -> String {
    let mut text = format!("{} {}\n", plan.program.display(), plan.arguments.join(" "));
    for descriptor in &plan.descriptors {
        text.push_str(&format!("  {} {:?}\n", descriptor.number, descriptor.role));
    }
    for (_, sidecar) in &plan.sidecars {
        text.push_str(&format!(
            "{} {}\n",
            sidecar.program.display(),
            sidecar.arguments.join(" ")
        ));
        for descriptor in &sidecar.descriptors {
            text.push_str(&format!("  {} {:?}\n", descriptor.number, descriptor.role));
        }
    }
    text + &serde_json::to_string_pretty(&plan.config).unwrap()
}

#[test]
fn the_plainest_plan() {
    let host = CloudHypervisorHost {
        landlock: false,
        ..host()
    };
    insta::assert_snapshot!("plain", shown(&plan(&config(), &host).unwrap()));
}

#[test]
fn a_plan_with_everything() {
    let limited = DiskConfig {
        cache: DiskCache::None,
        discard: false,
        read_only: true,
        limits: DiskLimits {
            requests: Some(500),
            bandwidth: Some(Bytes::mib(10)),
        },
        ..DiskConfig::new("data", "/data, too.raw".into(), DiskFormat::Raw)
    };
    let config = MachineConfig {
        cpus: 2,
        max_cpus: 8,
        max_memory: Bytes::mib(1024),
        memory_target: Some(Bytes::mib(256)),
        memory_kind: MemoryKind::Huge,
        boot: BootConfig::Direct {
            kernel: "/images/kernel".into(),
            initrd: Some("/images/initrd".into()),
            cmdline: "root=/dev/vda \"quoted\"".to_owned(),
        },
        disks: vec![
            DiskConfig::new("root", "/vm/disks/root.raw".into(), DiskFormat::Raw),
            limited,
        ],
        shares: vec![ShareConfig {
            tag: "inn0".to_owned(),
            host: "/home/me".into(),
            read_only: true,
        }],
        tpm: Some("/vm/tpm".into()),
        watchdog: Some(WatchdogAction::Reset),
        vsock: Some(1234),
        nested: true,
        ..config()
    };
    insta::assert_snapshot!("everything", shown(&plan(&config, &host()).unwrap()));
}

#[test]
fn firmware_boots_by_its_file_and_unrestricted_is_not_confined() {
    let config = MachineConfig {
        boot: BootConfig::Uefi {
            variables: "/vm/efi".into(),
            secure_boot: false,
        },
        isolation: Isolation::Unrestricted,
        ..config()
    };
    let plan = plan(&config, &host()).unwrap();
    assert_eq!(
        plan.config.payload.firmware,
        Some(PathBuf::from("/usr/share/cloud-hypervisor/CLOUDHV.fd"))
    );
    assert_eq!(plan.config.payload.kernel, None);
    assert!(!plan.config.landlock_enable);
    assert!(!plan.arguments.contains(&"--landlock".to_owned()));
}

#[test]
fn what_can_t_be_planned_is_refused() {
    let secure = MachineConfig {
        boot: BootConfig::Uefi {
            variables: "/vm/efi".into(),
            secure_boot: true,
        },
        ..config()
    };
    assert!(plan(&secure, &host()).is_err());
    let comma = MachineConfig {
        tpm: Some("/a,b".into()),
        ..config()
    };
    assert!(plan(&comma, &host()).is_err());
    let raw = DiskConfig::new("d", "/d".into(), DiskFormat::Raw);
    for bad in [
        DiskConfig {
            format: DiskFormat::Qcow2,
            ..raw.clone()
        },
        DiskConfig {
            cache: DiskCache::Writethrough,
            ..raw.clone()
        },
    ] {
        assert!(disk(&bad).is_err(), "{bad:?}");
    }
}
