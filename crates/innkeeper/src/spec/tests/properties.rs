//! Whatever a text or a spec holds: no panic, and what is written is read back the same.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::super::*;

fn word() -> impl Strategy<Value = String> {
    "[^\\p{C}]{1,12}"
}

fn path() -> impl Strategy<Value = PathBuf> {
    "/[a-z :#'\"é-]{0,6}x(/[a-z.~]{1,3}y){0,2}".prop_map(PathBuf::from)
}

fn boot() -> impl Strategy<Value = BootSpec> {
    let direct = (
        option::of(Just(Firmware::Direct)),
        option::of(path()),
        option::of(path()),
        option::of(word()),
    );
    let direct = direct.prop_map(|(firmware, kernel, initrd, cmdline)| BootSpec {
        firmware,
        kernel,
        initrd,
        cmdline,
        secure_boot: false,
    });
    let own = (
        prop_oneof![Just(Firmware::Uefi), Just(Firmware::Bios)],
        any::<bool>(),
    )
        .prop_map(|(firmware, secure)| BootSpec {
            firmware: Some(firmware),
            kernel: None,
            initrd: None,
            cmdline: None,
            secure_boot: secure && firmware == Firmware::Uefi,
        });
    prop_oneof![direct, own]
}

fn disks() -> impl Strategy<Value = Vec<DiskSpec>> {
    let size = (1u64 << 20..=1 << 50).prop_map(Bytes::new);
    let own = (size, option::of(0u8..9)).prop_map(|(size, mount)| (Some(size), None, None, mount));
    let format = prop_oneof![Just(DiskFormat::Raw), Just(DiskFormat::Qcow2)];
    let file = (path(), format).prop_map(|(path, format)| (None, Some(path), Some(format), None));
    let bus = prop_oneof![
        Just(DiskBus::Virtio),
        Just(DiskBus::Nvme),
        Just(DiskBus::Usb)
    ];
    let cache = prop_oneof![
        Just(DiskCache::Writeback),
        Just(DiskCache::Writethrough),
        Just(DiskCache::None),
        Just(DiskCache::Unsafe)
    ];
    let limits = (
        option::of(1u32..=100_000_000),
        option::of((4096u64..=1 << 40).prop_map(Bytes::new)),
    )
        .prop_map(|(requests, bandwidth)| DiskLimits {
            requests,
            bandwidth,
        });
    let how = (bus, cache, any::<bool>(), limits, any::<bool>());
    let disk = (prop_oneof![own, file], any::<bool>(), how);
    vec(disk, 0..4).prop_map(|disks| {
        let made = disks.into_iter().enumerate();
        made.map(|(index, ((size, path, format, mount), read_only, how))| {
            let (bus, cache, discard, limits, removable) = how;
            let removable = removable && path.is_some() && bus != DiskBus::Nvme;
            DiskSpec {
                size,
                path,
                format,
                read_only: read_only || removable,
                mount: mount.map(|_: u8| PathBuf::from(format!("/mnt/{index}"))),
                bus,
                removable,
                // A drive has no such settings.
                cache: if removable {
                    DiskCache::Writeback
                } else {
                    cache
                },
                discard: discard || removable,
                limits: if removable {
                    DiskLimits::default()
                } else {
                    limits
                },
                ..DiskSpec::named(format!("{index}-disk"))
            }
        })
        .collect()
    })
}

fn hardware() -> impl Strategy<Value = VmSpec> {
    let actions = [
        WatchdogAction::Reset,
        WatchdogAction::Poweroff,
        WatchdogAction::Pause,
        WatchdogAction::Tell,
    ];
    let kinds = [MemoryKind::Normal, MemoryKind::Huge];
    let modes = [
        Isolation::Isolated,
        Isolation::Agent,
        Isolation::Unrestricted,
    ];
    (
        option::of(0u32..8),
        option::of(0u64..1 << 30),
        option::of(1u64 << 24..1 << 28),
        proptest::sample::select(kinds.to_vec()),
        vec(any::<bool>(), 0..4),
        any::<[bool; 3]>(),
        option::of(proptest::sample::select(actions.to_vec())),
        proptest::sample::select(modes.to_vec()),
        option::of(1u64..86_400),
    )
        .prop_map(
            |(cpus, memory, target, kind, logs, flags, watchdog, isolation, life)| {
                let [tpm, vsock, nested] = flags;
                let mut spec = VmSpec::default();
                spec.max_cpus = cpus.map(|more| spec.cpus + more);
                spec.max_memory = memory.map(|more| Bytes::new(spec.memory.get() + more));
                spec.memory_target = target.map(Bytes::new);
                spec.memory_kind = kind;
                spec.consoles = logs
                    .into_iter()
                    .enumerate()
                    .map(|(index, log)| ConsoleSpec {
                        name: format!("console-{index}"),
                        log,
                    })
                    .collect();
                (spec.tpm, spec.vsock, spec.nested) = (tpm, vsock, nested);
                (spec.watchdog, spec.isolation) = (watchdog, isolation);
                let life = life.or((isolation == Isolation::Agent).then_some(60));
                spec.time_to_live = life.map(Duration::from_secs);
                spec
            },
        )
}

fn networks() -> impl Strategy<Value = Vec<NetworkSpec>> {
    let address = prop_oneof![
        any::<u8>().prop_map(|last| IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))),
        Just(IpAddr::V6(Ipv6Addr::LOCALHOST)),
    ];
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    let forward = (protocol, address, 1u16.., 1u16..);
    vec((any::<bool>(), vec(forward, 0..3)), 0..3).prop_map(|networks| {
        let made = networks.into_iter().enumerate();
        made.map(|(index, (mac, forwards))| NetworkSpec {
            // A network of our own forwards nothing.
            kind: if forwards.is_empty() {
                NetworkKind::Network
            } else {
                NetworkKind::User
            },
            name: forwards.is_empty().then(|| "lan".parse().unwrap()),
            mac: mac.then(|| MacAddr::from_random([2, 0, 0, 0, 0, index as u8])),
            forwards: forwards
                .into_iter()
                .enumerate()
                .map(
                    |(number, (protocol, host_address, _, guest_port))| ForwardSpec {
                        protocol,
                        host_address,
                        host_port: (index * 10 + number + 1) as u16,
                        guest_port,
                    },
                )
                .collect(),
        })
        .collect()
    })
}

fn seed() -> impl Strategy<Value = SeedSpec> {
    let file = (
        path(),
        any::<String>(),
        0u32..=0o7777,
        option::of(Just("me:root".to_owned())),
    );
    let file = file.prop_map(|(path, content, mode, owner)| SeedFile {
        path: path.to_str().unwrap_or_default().to_owned(),
        content,
        mode,
        owner,
    });
    let argument = any::<String>().prop_map(|text| text.replace('\0', ""));
    let command = (word(), vec(argument, 0..3)).prop_map(|(program, mut words)| {
        words.insert(0, program);
        words
    });
    let text = prop_oneof![any::<String>(), "([ -~éü]{0,9}\n){1,5}", "[ \t\n#|>-]{0,9}"];
    (
        option::of("[a-z]{1,5}(\\.[a-z0-9]{1,5})?"),
        option::of("[a-z_][a-z0-9_-]{0,8}"),
        vec("ssh-ed25519 [A-Za-z0-9+/=]{1,20} [!-~]{0,5}", 0..2),
        vec("[a-z0-9][a-z0-9.+:-]{0,8}", 0..3),
        vec(file, 0..3),
        vec(command, 0..3),
        vec(vec(word(), 2..=6), 0..2),
        option::of(text),
    )
        .prop_map(
            |(hostname, user, ssh_keys, packages, files, commands, mounts, user_data)| SeedSpec {
                hostname,
                user,
                ssh_keys,
                packages,
                files,
                commands,
                mounts,
                user_data,
            },
        )
}

fn ready() -> impl Strategy<Value = ReadyWhen> {
    prop_oneof![
        Just(ReadyWhen::Agent),
        Just(ReadyWhen::CloudInit),
        Just(ReadyWhen::Ssh),
        Just(ReadyWhen::None),
        word().prop_map(ReadyWhen::Serial),
    ]
}

prop_compose! {
    fn spec()(
        image in option::of(word()),
        arch in option::of(prop_oneof![Just(Arch::X86_64), Just(Arch::Arm64), Just(Arch::Riscv64)]),
        driver in option::of("[b-z][a-z0-9-]{0,8}"),
        machine in option::of("[b-z][a-z0-9._-]{0,8}"),
        accel in prop_oneof![Just(AccelChoice::Auto), Just(AccelChoice::Kvm), Just(AccelChoice::Hvf), Just(AccelChoice::Tcg)],
        (cpus, cpu_model) in (1u32..=1024, option::of("[a-zA-Z0-9][a-zA-Z0-9._,+=-]{0,8}")),
        memory in (1u64 << 24)..=(1 << 44),
        boot in boot(),
        disks in disks(),
        networks in networks(),
        shares in vec((path(), any::<bool>()), 0..3),
        (ready, wait) in (option::of(ready()), 1u64..=7 * 86_400_000),
        (seed, protected) in (seed(), any::<bool>()),
        labels in proptest::collection::btree_map("[a-zA-Z0-9][a-zA-Z0-9._/-]{0,8}", "[^\\p{C}]{0,12}", 0..4),
        hardware in hardware(),
    ) -> VmSpec {
        let labels: BTreeMap<String, String> = labels;
        VmSpec {
            image,
            arch,
            driver: driver.map_or(DriverChoice::Auto, DriverChoice::Named),
            machine: machine.map_or(MachineChoice::Auto, MachineChoice::Named),
            accel,
            cpus,
            max_cpus: hardware.max_cpus.map(|most| (cpus + most).min(1024)),
            cpu_model,
            memory: Bytes::new(memory),
            max_memory: hardware.max_memory.map(|more| Bytes::new((memory + more.get()).min(1 << 44))),
            memory_target: hardware.memory_target.filter(|target| target.get() <= memory),
            boot,
            disks,
            networks,
            shares: shares.into_iter().enumerate().map(|(index, (host, read_only))| ShareSpec {
                host,
                guest: PathBuf::from(format!("/shares/{index}")),
                read_only,
            }).collect(),
            ready,
            ready_timeout: Duration::from_millis(wait),
            seed,
            labels,
            protected,
            ..hardware
        }
    }
}

/// Text that looks like a spec often enough to get past the parser.
fn yaml_like() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("cpus: 4\n".to_owned()),
        Just("boot:\n".to_owned()),
        Just("  cmdline: x # y\n".to_owned()),
        Just("disks:\n- name: root\n".to_owned()),
        Just("  size: 1GiB\n".to_owned()),
        Just("labels: {a: b}\n".to_owned()),
        Just("labels:\n  # c\n  a: |\n   x\n".to_owned()),
        Just("# comment\n\n".to_owned()),
        "[ \t\n:#{}\\[\\],&*!|>'\"%@`?a-c0-9-]{0,8}",
    ];
    vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_back(spec in spec()) {
        let text = write(&spec);
        prop_assert_eq!(read(&text, "written"), Ok(spec.clone()), "{}", text);
        prop_assert_eq!(check(&spec), Ok(()));
        prop_assert_eq!(differences(&spec, &spec), Vec::<String>::new());
    }

    #[test]
    fn any_text_is_read_without_panic(text in prop_oneof![any::<String>(), yaml_like()]) {
        if let Ok(spec) = read(&text, "any") {
            prop_assert_eq!(read(&write(&spec), "again"), Ok(spec));
        }
    }

    #[test]
    fn any_text_is_edited_without_panic(
        text in prop_oneof![any::<String>(), yaml_like()],
        path in prop_oneof![Just("cpus".to_owned()), Just("labels.a".to_owned()), Just("boot.cmdline".to_owned()), Just("disks.root.size".to_owned()), any::<String>()],
        value in option::of(any::<String>()),
    ) {
        let edited = edit(&text, &[Edit { path, value }]);
        if let Ok(edited) = edited {
            prop_assert!(read(&edited, "edited").is_ok());
        }
    }

    #[test]
    fn an_edited_text_says_what_was_asked(spec in spec(), value in "[^\\p{C}]{1,30}") {
        let text = write(&spec);
        let edited = edit(&text, &[Edit { path: "labels.env".to_owned(), value: Some(value.clone()) }]);
        let edited = edited.map_err(|error| TestCaseError::fail(format!("{error:?}\n{text}")))?;
        let mut expected = spec;
        expected.labels.insert("env".to_owned(), value);
        prop_assert_eq!(read(&edited, "edited"), Ok(expected), "{}", edited);
    }
}
