//! A VM for the tests of what commands show.

use innkeeper::api::{
    AgentInfo, AgentState, DiskInfo, ForwardInfo, NicInfo, ShareInfo, ShareState, SshInfo, VmInfo,
    VmState,
};

/// Makes a running VM that has one of everything.
pub(crate) fn vm(name: &str) -> VmInfo {
    VmInfo {
        name: name.into(),
        id: "0123456789abcdef0123456789abcdef".into(),
        state: VmState::Ready,
        reason: None,
        driver: "qemu".into(),
        arch: "x86_64".into(),
        image: Some("debian:12".into()),
        cpus: 2,
        memory_bytes: 2 << 30,
        addresses: vec!["10.0.2.15".into()],
        created: "2026-11-21T07:00:00Z".into(),
        since: Some("2026-11-21T07:01:00Z".into()),
        stale_since: None,
        spec_problem: None,
        restart_required: Vec::new(),
        agent: AgentInfo {
            state: AgentState::Ready,
            version: Some("0.1.0".into()),
            silent_seconds: None,
            hostname: Some(name.into()),
            os: Some("Debian GNU/Linux 12".into()),
        },
        ssh: Some(SshInfo {
            host: "127.0.0.1".into(),
            port: 40022,
            user: "debian".into(),
            identity_file: "/home/me/.local/share/innkeeper/ssh/id_ed25519".into(),
        }),
        disks: vec![DiskInfo {
            name: "root".into(),
            path: "/home/me/.local/share/innkeeper/vms/web/disks/root.qcow2".into(),
            format: "qcow2".into(),
            size_bytes: 20 << 30,
            layer: Some("3f5a".into()),
            read_only: false,
        }],
        networks: vec![NicInfo {
            network: "user".into(),
            mac: "52:54:00:12:34:56".into(),
        }],
        forwards: vec![ForwardInfo {
            protocol: "tcp".into(),
            host_address: "127.0.0.1".into(),
            host_port: 8080,
            guest_port: 80,
        }],
        shares: vec![ShareInfo {
            host: "/home/me/src".into(),
            guest: "/work".into(),
            read_only: true,
            state: ShareState::Served,
        }],
        labels: [("env".to_owned(), "dev".to_owned())].into(),
        protected: false,
        machine: Some("pc-q35-7.2".into()),
        accel: Some("kvm".into()),
        keeper_pid: Some(4711),
        vmm_pid: Some(4712),
        directory: "/home/me/.local/share/innkeeper/vms/web".into(),
    }
}
