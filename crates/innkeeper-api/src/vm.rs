//! What a virtual machine looks like from outside.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One word that says where a VM is. The words and their order are stable.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// Its bundle is being made.
    Creating,
    /// No hypervisor runs for it.
    Stopped,
    /// A hypervisor is being started.
    Starting,
    /// The guest runs; it is not ready, or not yet.
    Running,
    /// The guest runs and is ready as its spec's `ready` says.
    Ready,
    /// The virtual CPUs are being stopped.
    Pausing,
    /// The virtual CPUs stand still; memory is kept.
    Paused,
    /// Memory and devices are being written to disk.
    Suspending,
    /// Memory and devices are on disk; no hypervisor runs.
    Suspended,
    /// A paused or suspended guest is being continued.
    Resuming,
    /// The guest was asked to stop.
    Stopping,
    /// The bundle is being removed.
    Deleting,
    /// It ended, or could not start, for the reason given beside this word.
    Failed,
}

impl VmState {
    /// Every state, in order.
    pub const ALL: [VmState; 13] = [
        VmState::Creating,
        VmState::Stopped,
        VmState::Starting,
        VmState::Running,
        VmState::Ready,
        VmState::Pausing,
        VmState::Paused,
        VmState::Suspending,
        VmState::Suspended,
        VmState::Resuming,
        VmState::Stopping,
        VmState::Deleting,
        VmState::Failed,
    ];

    /// The word as it stands on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            VmState::Creating => "creating",
            VmState::Stopped => "stopped",
            VmState::Starting => "starting",
            VmState::Running => "running",
            VmState::Ready => "ready",
            VmState::Pausing => "pausing",
            VmState::Paused => "paused",
            VmState::Suspending => "suspending",
            VmState::Suspended => "suspended",
            VmState::Resuming => "resuming",
            VmState::Stopping => "stopping",
            VmState::Deleting => "deleting",
            VmState::Failed => "failed",
        }
    }
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A virtual machine: what was asked of it and what is seen of it now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VmInfo {
    /// The name, unique on this host.
    pub name: String,
    /// The identifier that stays through renames (32 hexadecimal digits).
    pub id: String,
    /// Where it is.
    pub state: VmState,
    /// Why, when `state` is `failed`; what it waits for while it is `running`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The driver that was chosen when the VM was created.
    pub driver: String,
    /// The guest's architecture: `x86_64`, `arm64` or `riscv64`.
    pub arch: String,
    /// The image reference it was made from, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// The guest's addresses as its agent tells them, or as the network gave them.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// When it was created (RFC 3339, UTC).
    pub created: String,
    /// When the state was entered (RFC 3339, UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Since when nothing has been heard of it, if what is told here may be old (RFC 3339, UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_since: Option<String>,
    /// Why the spec can't be read, if its file was spoilt while the VM runs; what is told here is of the spec before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec_problem: Option<String>,
    /// Spec fields that differ from what runs and take effect at the next start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restart_required: Vec<String>,
    /// The guest agent.
    pub agent: AgentInfo,
    /// How to reach it by SSH, where it has a server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<SshInfo>,
    /// Its disks.
    #[serde(default)]
    pub disks: Vec<DiskInfo>,
    /// Its network interfaces.
    #[serde(default)]
    pub networks: Vec<NicInfo>,
    /// Ports of this host that lead into it.
    #[serde(default)]
    pub forwards: Vec<ForwardInfo>,
    /// Folders of this host that it sees.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<ShareInfo>,
    /// Labels of the spec.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// True if `rm` is refused.
    pub protected: bool,
    /// The machine type that was pinned, as the driver names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// How the CPUs are run: `kvm`, `hvf`, `tcg`; only while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accel: Option<String>,
    /// Process id of its keeper, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeper_pid: Option<u32>,
    /// Process id of its hypervisor, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm_pid: Option<u32>,
    /// The bundle's directory.
    pub directory: String,
}

/// What is known of the agent in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct AgentInfo {
    /// Whether it answers.
    pub state: AgentState,
    /// Its version, once it said hello.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// For how long it has said nothing, in seconds, when it is silent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_seconds: Option<u64>,
    /// The guest's own name, as the agent tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The guest's operating system, as the agent tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
}

/// Whether the agent answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AgentState {
    /// The VM does not run, or has no agent.
    #[default]
    None,
    /// It has not said hello yet.
    Waiting,
    /// It answers.
    Ready,
    /// It said hello once and has been silent since.
    Silent,
}

/// How to reach a guest by SSH.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SshInfo {
    /// Host to connect to.
    pub host: String,
    /// Port to connect to.
    pub port: u16,
    /// User to log in as.
    pub user: String,
    /// Private key file.
    pub identity_file: String,
}

/// A disk of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiskInfo {
    /// Name in the spec; the root disk is `root`.
    pub name: String,
    /// File that holds the top of it.
    pub path: String,
    /// `raw` or `qcow2`.
    pub format: String,
    /// Size that the guest sees, in bytes.
    pub size_bytes: u64,
    /// Layer below the top, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<String>,
    /// True if the guest can't write to it.
    pub read_only: bool,
}

/// A network interface of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NicInfo {
    /// Network it is on; `user` is the hypervisor's own.
    pub network: String,
    /// Its MAC address, kept for life.
    pub mac: String,
}

/// A port of this host that leads into a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ForwardInfo {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Address on this host.
    pub host_address: String,
    /// Port on this host.
    pub host_port: u16,
    /// Port in the guest.
    pub guest_port: u16,
}

/// A folder of this host that a guest sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ShareInfo {
    /// Folder on this host.
    pub host: String,
    /// Where the guest sees it.
    pub guest: String,
    /// True if the guest can't write to it.
    pub read_only: bool,
    /// Whether it is served.
    #[serde(default)]
    pub state: ShareState,
}

/// Whether a shared folder is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ShareState {
    /// The VM does not run.
    #[default]
    Idle,
    /// A process of this host serves it.
    Served,
    /// What served it has ended: what touches it in the guest waits until the VM is stopped and started.
    Lost,
}

/// Figures of a running VM. Counters count since the hypervisor started.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct VmStats {
    /// The VM's name.
    pub name: String,
    /// Its state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<VmState>,
    /// Seconds since the hypervisor started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uptime_seconds: Option<f64>,
    /// CPU time of the hypervisor process, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_seconds: Option<f64>,
    /// CPU use over the last sampling interval; 100 is one host CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<f64>,
    /// Resident memory of the hypervisor process, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_memory_bytes: Option<u64>,
    /// Memory that the guest has in all, in bytes, as its agent tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_memory_total_bytes: Option<u64>,
    /// Memory that the guest has available, in bytes, as its agent tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_memory_available_bytes: Option<u64>,
    /// The guest's load average over one minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_load: Option<f64>,
    /// Bytes read from its disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_read_bytes: Option<u64>,
    /// Bytes written to its disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_written_bytes: Option<u64>,
    /// Bytes received on its networks, as its agent tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_received_bytes: Option<u64>,
    /// Bytes sent on its networks, as its agent tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_sent_bytes: Option<u64>,
}
