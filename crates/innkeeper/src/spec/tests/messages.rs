//! What people are told about their mistakes, as snapshots; and that what is right is read as meant.

use std::time::Duration;

use super::super::*;

fn told(text: &str) -> String {
    read(text, "vm.yaml").map_or_else(|problems| problems.to_string(), |spec| format!("{spec:?}"))
}

const MISTAKES: &str = "\
image: 12
arch: sparc
driver: ../qemu
cpus: 0
memory: 4MiB
cpu_model: \"host,\\n\"
boot:
  firmware: uefi
  kernel: vmlinuz
disks:
  - name: root
    size: 0
  - {name: root, size: 10GiB}
  - {name: Data, size: 10GiB}
  - {name: iso, path: ~/a.iso, read_only: yes}
  - {name: empty}
  - {size: 1GiB, mount: /}
networks:
  - mac: 01:00:00:00:00:01
  - mac: 52:54:00:12:34:56
    forwards: [\"8080:80\", \"127.0.0.1:8080:81\", \"0.0.0.0:1:2\", \"99999:1\"]
  - {mac: \"52:54:00:12:34:56\", kind: bridged}
shares: [\"/x:/same\", {host: /y, guest: /same/}, \"./src:/src\", \"/a:/b:rx\", {host: /a}]
ready: login
ready_timeout: 10
seed:
  hostname: -x
  user: Root
  ssh_keys: [hello]
  packages: [\"--force\"]
  files: [{path: etc/motd, mode: 644, owner: \"a b\"}]
  commands: [echo hi, []]
  mounts: [[/dev/vdb]]
labels: {env: 1, \"a b\": c}
protected:
";

#[test]
fn a_file_with_dozens_of_mistakes() {
    insta::assert_snapshot!(told(MISTAKES));
}

#[test]
fn networks_of_our_own() {
    for (network, wrong) in [
        (
            "{kind: network}",
            "networks.0: a network of our own needs its name",
        ),
        ("{name: lan}", "networks.0: the user network has no name"),
        (
            "{kind: network, name: lan, forwards: ['1:2']}",
            "networks.0: a network of our own forwards no ports",
        ),
        ("{kind: network, name: ../x}", "networks.0.name: "),
    ] {
        let text = told(&format!("networks: [{network}]"));
        assert!(text.contains(wrong), "{network}: {text}");
    }
    let spec = read("networks: [{kind: network, name: lan}]", "vm.yaml").unwrap();
    assert_eq!(spec.networks[0].kind, NetworkKind::Network);
    assert_eq!(read(&write(&spec), "again"), Ok(spec));
}

#[test]
fn unknown_fields() {
    insta::assert_snapshot!(told(
        "cpu: 2\nCPUS: 2\nboot: {kernle: /k}\nfoo: 1\ndisks: [{name: a, size: 1GiB, readonly: true}]\n"
    ));
}

/// Fields that are each right, and together are not; and isolation modes that do not go with what they stand beside.
#[test]
fn what_does_not_go_together() {
    let texts = [
        "cpus: 4\nmax_cpus: 2\n",
        "memory: 4GiB\nmax_memory: 2GiB\n",
        "memory: 1GiB\nmemory_target: 2GiB\n",
        "memory: 1GiB\nmax_memory: 4GiB\nmemory_target: 5GiB\n",
        "isolation: fenced\n",
        "isolation: agent\n",
        "isolation: agent\ntime_to_live: 8d\n",
        "disks: [{name: raw, path: /dev/sdb, format: raw}]\n",
        "isolation: agent\ntime_to_live: 1h\ndisks: [{name: raw, path: /dev/sdb, format: raw}]\n",
        "boot: {secure_boot: true}\n",
        "boot: {firmware: bios, secure_boot: true}\n",
        "boot: {firmware: uefi, secure_boot: maybe}\n",
        "disks: [{name: cd, removable: true, size: 1GiB}]\n",
        "disks: [{name: cd, removable: true, mount: /cd}]\n",
        "disks: [{name: root, removable: true}]\n",
        "disks: [{name: cd, removable: true, path: /a.iso}]\n",
        "disks: [{name: cd, removable: true, read_only: false}]\n",
        "disks: [{name: cd, removable: true, bus: nvme}]\n",
        "disks: [{name: cd, removable: true, cache: none}]\n",
        "disks: [{name: cd, removable: true, limits: {requests: 10}}]\n",
        "disks: [{name: a, size: 1GiB, limits: {requests: 0}}]\n",
        "disks: [{name: a, size: 1GiB, limits: {}}]\n",
        "disks: [{name: a, size: 1GiB, bus: scsi, cache: sometimes}]\n",
        "consoles: [{name: serial}, {name: a}, {name: a}, {name: ../b}]\n",
        "watchdog: bark\n",
        "time_to_live: 0s\n",
    ];
    let told: Vec<String> = texts
        .iter()
        .map(|text| format!("{text}{}", told(text)))
        .collect();
    insta::assert_snapshot!(told.join("\n\n"));
}

#[test]
fn tabs() {
    insta::assert_snapshot!(told("boot:\n\tkernel: /k\n\tinitrd: /i\n  \tcmdline: x\n"));
}

#[test]
fn what_is_not_our_yaml() {
    let texts = [
        "cpus: [1",
        "a: &x [1]\nb: *x\n",
        "a: *x\n",
        "cpus: !!int 2\n",
        "cpus: 0\ncpus: 2\nmemory: 1GiB\nmemory: 2GiB\n",
        "cpus: 1\n---\ncpus: 2\n",
        "[1, 2]",
        "hello",
        "? [a]\n: b\n",
        "cpus: \"2\"\n",
        "cpus: 2.0\n",
        "memory: 17TiB\n",
        "memory: {}\n",
        "disks: root\n",
    ];
    let deep = format!("a: {}", "[".repeat(200_000));
    let long = "#".repeat((1 << 20) + 1);
    let told: Vec<String> = texts
        .into_iter()
        .chain([deep.as_str(), long.as_str()])
        .map(|text| {
            format!(
                "{:?}\n{}",
                text.chars().take(60).collect::<String>(),
                told(text)
            )
        })
        .collect();
    insta::assert_snapshot!(told.join("\n\n"));
}

#[test]
fn the_error_of_the_library_carries_all() {
    let error = crate::Error::from(read("cpus: 0\nmemory: 0\n", "vm.yaml").unwrap_err());
    assert_eq!(error.kind(), innkeeper_api::ErrorKind::BadInput);
    assert_eq!(error.chain()[0], "the spec vm.yaml has 2 problems");
    assert!(error.chain()[1].starts_with("vm.yaml:1:7: cpus: "));
}

#[test]
fn nothing_gives_the_defaults() {
    for text in ["", "# only a comment\n", "{}", "---\n", "\u{feff}"] {
        assert_eq!(read(text, "vm.yaml"), Ok(VmSpec::default()), "{text:?}");
    }
}

#[test]
fn everything_is_read_as_meant() {
    let text = include_str!("everything.yaml");
    let spec = read(text, "vm.yaml").unwrap();
    assert_eq!(spec.cpus, 4);
    assert_eq!(spec.memory, Bytes::gib(4));
    assert_eq!(spec.arch, Some(Arch::Arm64));
    assert_eq!(spec.ready, Some(ReadyWhen::Serial("login:".to_owned())));
    assert_eq!(spec.ready_timeout, Duration::from_secs(5400));
    assert_eq!(spec.networks[0].forwards.len(), 3);
    assert_eq!(
        spec.networks[0].forwards[0],
        "127.0.0.1:8080:80".parse().unwrap()
    );
    assert_eq!(
        spec.networks[0].forwards[2],
        "[::1]:5353:53/udp".parse().unwrap()
    );
    assert_eq!(spec.shares[1].host.to_str(), Some("/srv/a:b"));
    assert_eq!(spec.seed.files[0].mode, 0o600);
    assert_eq!(spec.labels["env"], "test");
    assert!(spec.protected);
    assert_eq!(read(&write(&spec), "again"), Ok(spec));
}

#[test]
fn canonical_form() {
    let spec = read(include_str!("everything.yaml"), "vm.yaml").unwrap();
    insta::assert_snapshot!(format!("{}\n{}", write(&VmSpec::default()), write(&spec)));
}

#[test]
fn a_program_s_spec_is_checked_too() {
    assert_eq!(check(&VmSpec::default()), Ok(()));
    let too_many = VmSpec {
        cpus: 5000,
        ..VmSpec::default()
    };
    assert_eq!(check(&too_many).unwrap_err().problems()[0].path, "cpus");
    let fine = VmSpec {
        ready_timeout: Duration::from_nanos(1_000_000_001),
        ..VmSpec::default()
    };
    assert_eq!(check(&fine).unwrap_err().problems().len(), 1);
}
