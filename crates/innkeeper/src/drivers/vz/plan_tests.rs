//! Whole plans as snapshots, every reason that `check` gives, and what a saved state must agree with.

use std::path::PathBuf;

use innkeeper_api::{Capability, Unsupported};
use innkeeper_net::UserNetwork;

use super::host::VzHost;
use super::objects::*;
use super::plan::{MacGuest, mac_guest, plan, stick_uuid};
use super::saved::{Details, hexadecimal};
use super::{VzDriver, saved};
use crate::driver::*;
use crate::spec::{
    AccelChoice, Arch, Bytes, DiskBus, DiskCache, DiskFormat, DiskLimits, Isolation, MemoryKind,
    WatchdogAction,
};

fn mac(macos: (u32, u32)) -> VzHost {
    VzHost {
        macos,
        build: format!("Version {}.{} (Build 1)", macos.0, macos.1),
        arch: "arm64".to_owned(),
        cpus: (1, 12),
        memory: (4 << 20, 32 << 30),
        nested: macos >= (15, 0),
        unusable: None,
    }
}

fn disk(name: &str) -> DiskConfig {
    DiskConfig::new(
        name,
        PathBuf::from(format!("/vms/web/disks/{name}.raw")),
        DiskFormat::Raw,
    )
}

/// A VM with everything that this driver can do.
fn full(boot: BootConfig) -> MachineConfig {
    MachineConfig {
        name: "web".to_owned(),
        id: "0123456789abcdef0123456789abcdef".to_owned(),
        arch: Arch::Arm64,
        machine: "vz".to_owned(),
        accel: AccelChoice::Auto,
        cpu_model: None,
        cpus: 4,
        max_cpus: 4,
        memory: Bytes::gib(2),
        max_memory: Bytes::gib(2),
        memory_target: Some(Bytes::gib(1)),
        memory_kind: MemoryKind::Normal,
        boot,
        disks: vec![
            DiskConfig {
                boot_index: Some(0),
                ..disk("root")
            },
            DiskConfig {
                bus: DiskBus::Nvme,
                cache: DiskCache::None,
                ..disk("fast")
            },
            DiskConfig {
                bus: DiskBus::Usb,
                cache: DiskCache::Unsafe,
                ..disk("stick")
            },
            DiskConfig {
                read_only: true,
                ..disk("cidata")
            },
        ],
        drives: Vec::new(),
        nics: vec![NicConfig {
            mac: "52:54:00:12:34:55".parse().unwrap(),
            network: NicNetwork::User(UserNetwork::of_interface(0).unwrap()),
            hostname: "web".to_owned(),
            outbound: true,
            forwards: Vec::new(),
        }],
        shares: vec![ShareConfig {
            tag: "share0".to_owned(),
            host: PathBuf::from("/Users/me/src"),
            read_only: true,
        }],
        consoles: vec![ConsoleConfig {
            name: "debug".to_owned(),
            log: Some(PathBuf::from("/vms/web/log/console-debug.log")),
        }],
        tpm: None,
        watchdog: None,
        vsock: Some(7),
        nested: true,
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

fn direct() -> BootConfig {
    BootConfig::Direct {
        kernel: PathBuf::from("/layers/Image"),
        initrd: Some(PathBuf::from("/layers/initrd")),
        cmdline: "root=/dev/vda1 quiet".to_owned(),
    }
}

fn uefi() -> BootConfig {
    BootConfig::Uefi {
        variables: PathBuf::from("/vms/web/efi-variables.fd"),
        secure_boot: false,
    }
}

fn reasons(config: &MachineConfig, host: &VzHost) -> Vec<Unsupported> {
    VzDriver::default().check(config, &host.report("vz"))
}

#[test]
fn linux_by_direct_boot_on_macos_15() {
    let (config, host) = (full(direct()), mac((15, 1)));
    assert_eq!(reasons(&config, &host), []);
    insta::assert_debug_snapshot!(plan(&config, &host).unwrap());
}

#[test]
fn uefi_on_macos_13_without_a_usb_controller() {
    let mut config = full(uefi());
    config.nested = false;
    config.memory_target = None;
    config.vsock = None;
    config.disks.remove(1);
    let host = mac((13, 0));
    assert_eq!(reasons(&config, &host), []);
    insta::assert_debug_snapshot!(plan(&config, &host).unwrap());
}

#[test]
fn a_macos_guest_with_all_that_can_be_added() {
    let mut plan = mac_guest(&MacGuest {
        cpus: 4,
        memory: Bytes::gib(8),
        platform: PathBuf::from("/vms/mac/platform"),
        disk: disk("root"),
        displays: vec![MacDisplay {
            width: 2560,
            height: 1600,
            pixels_per_inch: 227,
        }],
    })
    .unwrap();
    plan.add_network("52:54:00:12:34:56".parse().unwrap(), NetworkAttachment::Nat);
    insta::assert_debug_snapshot!(plan);
    let newest = plan.needs().into_iter().map(|need| need.since).max();
    assert_eq!(newest, Some((14, 0)), "a Mac's keyboard is of macOS 14");
}

#[test]
fn everything_that_no_spec_asks_for_yet() {
    let mut plan = plan(&full(direct()), &mac((26, 0))).unwrap();
    plan.storage.clear();
    plan.add_desktop(vec![Scanout {
        width: 1920,
        height: 1080,
    }]);
    plan.add_sound(vec![SoundStream::Output]);
    plan.add_spice_agent(true);
    plan.add_rosetta(
        "rosetta",
        Some(RosettaCaching::AbstractSocket("rosettad".to_owned())),
    );
    let folder = |path: &str| SharedDirectory {
        path: PathBuf::from(path),
        read_only: false,
    };
    plan.add_folders(
        "folders",
        vec![
            ("one".to_owned(), folder("/Users/me/one")),
            ("two".to_owned(), folder("/Users/me/two")),
        ],
    );
    plan.add_block_device("whole", &PathBuf::from("/dev/rdisk4"), true);
    plan.add_network_disk("far", "nbd://nas.example:10809/far", 15_000, false);
    let mac = "52:54:00:12:34:56".parse().unwrap();
    for attachment in [
        NetworkAttachment::Nat,
        NetworkAttachment::Bridged {
            interface: "en0".to_owned(),
        },
        NetworkAttachment::FileHandle {
            local: PathBuf::from("/run/inn/web/net0.vz"),
            peer: PathBuf::from("/run/inn/web/net0.sock"),
            mtu: Some(9000),
        },
        NetworkAttachment::Vmnet {
            mode: VmnetMode::Host,
            subnet: Some(([10, 0, 2, 0].into(), [255, 255, 255, 0].into())),
        },
    ] {
        plan.add_network(mac, attachment);
    }
    insta::assert_debug_snapshot!(plan);
    insta::assert_debug_snapshot!("what_needs_which_macos", plan.needs());
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<MachinePlan>(&text).unwrap(), plan);
}

/// A VM that asks for what the driver can't do, or only otherwise.
fn impossible() -> MachineConfig {
    let boot = BootConfig::Uefi {
        variables: PathBuf::from("/vms/web/efi-variables.fd"),
        secure_boot: true,
    };
    MachineConfig {
        arch: Arch::X86_64,
        machine: "q35".to_owned(),
        accel: AccelChoice::Tcg,
        cpu_model: Some("host".to_owned()),
        cpus: 99,
        max_cpus: 100,
        memory: Bytes::new(1000),
        max_memory: Bytes::gib(1),
        memory_target: Some(Bytes::gib(64)),
        memory_kind: MemoryKind::Huge,
        disks: vec![
            DiskConfig {
                format: DiskFormat::Qcow2,
                cache: DiskCache::Writethrough,
                discard: false,
                boot_index: Some(1),
                limits: DiskLimits {
                    requests: Some(1),
                    bandwidth: None,
                },
                ..disk("a-name-that-is-too-long")
            },
            DiskConfig {
                boot_index: Some(0),
                ..disk("root")
            },
        ],
        drives: vec![DriveConfig {
            name: "cd".to_owned(),
            bus: DiskBus::Virtio,
            medium: None,
            boot_index: None,
        }],
        nics: vec![NicConfig {
            mac: "52:54:00:12:34:56".parse().unwrap(),
            network: NicNetwork::User(UserNetwork::of_interface(0).unwrap()),
            hostname: "web".to_owned(),
            outbound: false,
            forwards: Vec::new(),
        }],
        shares: vec![ShareConfig {
            tag: "a-tag-that-is-longer-than-a-tag-may-be".to_owned(),
            host: PathBuf::from("/Users/me/src"),
            read_only: false,
        }],
        consoles: vec![ConsoleConfig {
            name: "org.innkeeper.agent.0".to_owned(),
            log: None,
        }],
        tpm: Some(PathBuf::from("/vms/web/tpm")),
        watchdog: Some(WatchdogAction::Reset),
        ..full(boot)
    }
}

fn lines(reasons: &[Unsupported]) -> String {
    let line = |reason: &Unsupported| {
        let hint = reason
            .hint
            .as_ref()
            .map_or_else(String::new, |hint| format!(" [{hint}]"));
        format!("{}: {}{hint}\n", reason.field, reason.reason)
    };
    reasons.iter().map(line).collect()
}

#[test]
fn every_lack_is_named() {
    insta::assert_snapshot!(lines(&reasons(&impossible(), &mac((13, 0)))));
}

#[test]
fn bios_and_what_is_too_new_are_refused() {
    let mut config = full(BootConfig::Bios);
    config.disks.truncate(1);
    insta::assert_snapshot!(lines(&reasons(&config, &mac((14, 0)))));
}

#[test]
fn a_host_that_is_no_mac_or_an_old_one_says_so_once() {
    let config = impossible();
    for (host, expected) in [
        (
            VzHost::absent("linux"),
            "Virtualization.framework is macOS's, and this is linux",
        ),
        (
            mac((12, 6)),
            "macOS 13 or later is needed, and this is 12.6",
        ),
    ] {
        let report = host.report("vz");
        assert!(!report.usable);
        assert_eq!(report.notes, [expected]);
        assert_eq!(report.capabilities.len(), Capability::ALL.len());
        let lacking =
            |entry: &innkeeper_api::CapabilityReport| entry.lacking.as_deref() == Some(expected);
        assert!(report.capabilities.iter().all(lacking));
        let found = reasons(&config, &host);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].reason, expected);
    }
}

#[test]
fn a_usable_report_names_every_lack_and_says_that_it_was_not_run() {
    let report = mac((15, 1)).report("vz");
    assert!(report.usable);
    assert!(report.notes[0].starts_with("type-checked, not run"));
    let lacking: String = report
        .capabilities
        .iter()
        .map(|entry| {
            let lacking = entry.lacking.as_deref().unwrap_or("-");
            format!("{}: {lacking}\n", entry.capability.as_str())
        })
        .collect();
    insta::assert_snapshot!(lacking);
}

#[cfg(not(target_os = "macos"))]
#[tokio::test]
async fn off_macos_nothing_is_done_and_nothing_pretended() {
    use innkeeper_api::ErrorKind;
    let driver = VzDriver::new("boot");
    let report = driver.probe().await;
    assert!(!report.usable);
    assert!(Driver::restore(&driver).is_none());
    let config = full(direct());
    for error in [
        driver.launch(&config).await.err(),
        driver.kill_record(&serde_json::json!({})).await.err(),
    ] {
        let error = error.expect("an error");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("macOS"), "{error}");
    }
    let error = driver.adopt(&config, &serde_json::Value::Null).await.err();
    assert_eq!(error.expect("an error").kind(), ErrorKind::NotFound);
    let pinned = driver.pin_machine(Some("q35"), Arch::Arm64, &report);
    assert_eq!(pinned.unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn sticks_have_uuids_of_their_own_that_stay() {
    let uuid = stick_uuid("0123", "stick");
    assert_eq!(uuid, stick_uuid("0123", "stick"));
    assert_ne!(uuid, stick_uuid("0123", "other"));
    assert_ne!(uuid, stick_uuid("4567", "stick"));
    assert_ne!(stick_uuid("1", "2x"), stick_uuid("12", "x"));
    assert_eq!((uuid[6] >> 4, uuid[8] >> 6), (8, 2));
}

#[test]
fn a_saved_state_is_continued_by_the_same_machine_alone() {
    let (config, host) = (full(direct()), mac((15, 1)));
    let details = Details {
        file: saved::STATE_FILE.to_owned(),
        machine_identifier: hexadecimal(&[0, 255]),
        plan: plan(&config, &host).unwrap(),
    };
    let saved = SavedMachine {
        directory: PathBuf::from("/vms/web/saved"),
        version: host.build.clone(),
        details: details.to_value().unwrap(),
    };
    let check = |config: &MachineConfig, host: &VzHost| {
        VzDriver::default().check_saved(config, &saved, &host.report("vz"))
    };
    assert_eq!(check(&config, &host), []);
    // What lies in the saved memory already may differ.
    let mut other = full(BootConfig::Direct {
        kernel: PathBuf::from("/layers/newer"),
        initrd: None,
        cmdline: String::new(),
    });
    other.memory_target = Some(Bytes::mib(512));
    assert_eq!(check(&other, &host), []);
    other.boot = uefi();
    other.cpus = 2;
    other.disks.pop();
    other.vsock = None;
    insta::assert_snapshot!(lines(&check(&other, &mac((15, 2)))));
    let broken = SavedMachine {
        details: serde_json::json!({}),
        ..saved.clone()
    };
    let found = VzDriver::default().check_saved(&config, &broken, &host.report("vz"));
    assert_eq!(found.len(), 1);
}
