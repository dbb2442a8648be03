//! What is told of a VM, made from its files and, while it runs, from what its keeper sees.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use innkeeper_api::{
    AgentInfo, AgentState, DiskInfo, ForwardInfo, NicInfo, ShareInfo, ShareState, SshInfo, VmInfo,
};

use crate::engine::configure;
use crate::machine::{Operation, Power, Readiness, word};
use crate::spec::{self, Protocol, VmSpec};
use crate::store::{Bundle, Identity, RecordedPower};

/// What a keeper sees of its VM.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Live {
    /// What the hypervisor does.
    pub power: Power,
    /// Whether the guest is ready.
    pub readiness: Readiness,
    /// Why it is not ready yet, or not any more.
    pub waiting_for: Option<String>,
    /// When the state was entered.
    pub since: Option<String>,
    /// Since when nothing has been heard of the hypervisor.
    pub stale_since: Option<String>,
    /// The guest's addresses.
    pub addresses: Vec<String>,
    /// The agent.
    pub agent: AgentInfo,
    /// How CPUs are run.
    pub accel: Option<String>,
    /// The keeper's process.
    pub keeper_pid: Option<u32>,
    /// The hypervisor's process.
    pub vmm_pid: Option<u32>,
    /// Port that leads to the guest's SSH server in this run.
    pub ssh_port: Option<u16>,
    /// Devices whose process on this host has ended.
    pub severed: BTreeSet<String>,
    /// Why the spec, changed by hand, can't be read.
    pub spec_problem: Option<String>,
}

impl Live {
    /// Returns what the files tell of a VM without a hypervisor.
    pub(crate) fn of_files(bundle: &Bundle, recorded: Option<RecordedPower>) -> Self {
        let (failed, since) = recorded.map_or((None, None), |recorded| {
            (recorded.failed, Some(recorded.since))
        });
        let power = match failed {
            _ if bundle.is_suspended() => Power::Suspended,
            Some(reason) => Power::Failed(reason),
            None => Power::Stopped,
        };
        Live::off(power, since)
    }

    /// Returns what is seen of a VM without a hypervisor.
    pub(crate) fn off(power: Power, since: Option<String>) -> Self {
        Live {
            power,
            readiness: Readiness::NotReady,
            waiting_for: None,
            since,
            stale_since: None,
            addresses: Vec::new(),
            agent: AgentInfo {
                state: AgentState::None,
                ..AgentInfo::default()
            },
            accel: None,
            keeper_pid: None,
            vmm_pid: None,
            ssh_port: None,
            severed: BTreeSet::new(),
            spec_problem: None,
        }
    }
}

/// Where a VM's owner keeps the private key that its guests know.
#[derive(Debug, Clone)]
pub(crate) struct SshKey(pub std::path::PathBuf);

/// Makes what is told of a VM.
pub(crate) fn describe(
    bundle: &Bundle,
    identity: &Identity,
    asked: &VmSpec,
    applied: Option<&VmSpec>,
    live: &Live,
    key: &SshKey,
) -> VmInfo {
    let runs = applied.filter(|_| live.power.is_live() || live.power == Power::Suspended);
    let now = runs.unwrap_or(asked);
    let reason = match &live.power {
        Power::Failed(reason) => Some(reason.clone()),
        _ => live.waiting_for.clone(),
    };
    let restart_required = runs.map_or_else(Vec::new, |applied| {
        spec::differences(asked, applied)
            .into_iter()
            .filter(|path| !spec::is_live(path))
            .collect()
    });
    VmInfo {
        name: bundle.name().to_owned(),
        id: identity.id.clone(),
        state: word(Operation::None, &live.power, live.readiness),
        reason,
        driver: identity.driver.clone(),
        arch: identity.arch.clone(),
        image: identity.image.as_ref().map(|image| image.reference.clone()),
        cpus: now.cpus,
        memory_bytes: now.memory.get(),
        addresses: live.addresses.clone(),
        created: identity.created.clone(),
        since: live.since.clone(),
        stale_since: live.stale_since.clone(),
        spec_problem: live.spec_problem.clone(),
        restart_required,
        agent: live.agent.clone(),
        ssh: ssh(identity, now, live, key),
        disks: disks(bundle, identity, now),
        networks: identity
            .macs
            .iter()
            .enumerate()
            .map(|(index, mac)| NicInfo {
                network: now
                    .networks
                    .get(index)
                    .and_then(|network| network.name.as_ref())
                    .map_or("user", |name| name.as_str())
                    .to_owned(),
                mac: mac.to_string(),
            })
            .collect(),
        forwards: forwards(now),
        shares: shares(now, live),
        labels: asked.labels.clone(),
        protected: asked.protected,
        machine: Some(identity.machine.clone()),
        accel: live.accel.clone(),
        keeper_pid: live.keeper_pid,
        vmm_pid: live.vmm_pid,
        directory: bundle.directory().display().to_string(),
    }
}

fn ssh(identity: &Identity, spec: &VmSpec, live: &Live, key: &SshKey) -> Option<SshInfo> {
    let image = identity.image.as_ref()?;
    let user = spec.seed.user.clone().or_else(|| image.user.clone())?;
    let (host, port) = match live.ssh_port.or(identity.ssh_port) {
        Some(port) => ("127.0.0.1".to_owned(), port),
        // Where nothing is forwarded, the guest is reached by its own address, once the agent has told it.
        None => (guest_address(identity, live)?, configure::SSH),
    };
    Some(SshInfo {
        host,
        port,
        user,
        identity_file: key.0.display().to_string(),
    })
}

/// The address at which the guest's SSH server is reached, if this computer is on its network.
fn guest_address(identity: &Identity, live: &Live) -> Option<String> {
    let reachable = identity.dhcp && identity.image.as_ref()?.cloud_init;
    live.addresses
        .iter()
        .find(|address| reachable && address.parse::<Ipv4Addr>().is_ok())
        .cloned()
}

fn disks(bundle: &Bundle, identity: &Identity, spec: &VmSpec) -> Vec<DiskInfo> {
    let read_only = |name: &str| {
        spec.disks
            .iter()
            .any(|disk| disk.name == name && disk.read_only)
    };
    let own = identity.disks.iter().map(|disk| DiskInfo {
        name: disk.name.clone(),
        path: bundle.path(&disk.file).display().to_string(),
        format: disk.format.clone(),
        size_bytes: disk.size,
        layer: disk.layer.clone(),
        read_only: read_only(&disk.name),
    });
    let attached = spec.disks.iter().filter_map(|disk| {
        let path = disk.path.as_ref()?;
        Some(DiskInfo {
            name: disk.name.clone(),
            path: path.display().to_string(),
            format: disk.format?.to_string(),
            size_bytes: disk.size.map_or(0, |size| size.get()),
            layer: None,
            read_only: disk.read_only,
        })
    });
    own.chain(attached).collect()
}

fn forwards(spec: &VmSpec) -> Vec<ForwardInfo> {
    spec.networks
        .iter()
        .flat_map(|network| &network.forwards)
        .map(|forward| ForwardInfo {
            protocol: match forward.protocol {
                Protocol::Tcp => "tcp".to_owned(),
                Protocol::Udp => "udp".to_owned(),
            },
            host_address: forward.host_address.to_string(),
            host_port: forward.host_port,
            guest_port: forward.guest_port,
        })
        .collect()
}

fn shares(spec: &VmSpec, live: &Live) -> Vec<ShareInfo> {
    let state = |index| match &live.power {
        power if !power.is_live() => ShareState::Idle,
        _ if live.severed.contains(&configure::share_tag(index)) => ShareState::Lost,
        _ => ShareState::Served,
    };
    spec.shares
        .iter()
        .enumerate()
        .map(|(index, share)| ShareInfo {
            state: state(index),
            host: share.host.display().to_string(),
            guest: share.guest.display().to_string(),
            read_only: share.read_only,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::ShareSpec;

    #[test]
    fn a_share_is_served_lost_or_idle() {
        let share = |host: &str| ShareSpec {
            host: host.into(),
            guest: "/mnt".into(),
            read_only: false,
        };
        let spec = VmSpec {
            shares: vec![share("/one"), share("/two")],
            ..VmSpec::default()
        };
        let states = |live: &Live| {
            let told = shares(&spec, live).into_iter();
            told.map(|share| share.state).collect::<Vec<_>>()
        };
        let mut live = Live::off(Power::Running, None);
        assert_eq!(states(&live), [ShareState::Served, ShareState::Served]);
        live.severed.insert(configure::share_tag(1));
        assert_eq!(states(&live), [ShareState::Served, ShareState::Lost]);
        live.power = Power::Stopped;
        assert_eq!(states(&live), [ShareState::Idle, ShareState::Idle]);
    }
}
