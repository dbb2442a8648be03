//! The parts of Cloud Hypervisor's interface that are used, as they stand on the wire.
//!
//! What is sent is written whole, with the fields whose defaults are traps; what is read tolerates fields and words that are new. Source:
//! `vmm/src/api/openapi/cloud-hypervisor.yaml` of Cloud Hypervisor.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `VmConfig`, the body of `vm.create`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct VmConfig {
    pub(super) cpus: Cpus,
    pub(super) memory: Memory,
    pub(super) payload: Payload,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) disks: Vec<Disk>,
    pub(super) rng: Rng,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) balloon: Option<Balloon>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) fs: Vec<Fs>,
    pub(super) serial: Console,
    pub(super) console: Console,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) vsock: Option<Vsock>,
    pub(super) watchdog: bool,
    pub(super) pvpanic: bool,
    pub(super) platform: Platform,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tpm: Option<Tpm>,
    pub(super) landlock_enable: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) landlock_rules: Vec<LandlockRule>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Cpus {
    pub(super) boot_vcpus: u32,
    pub(super) max_vcpus: u32,
    pub(super) nested: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Memory {
    pub(super) size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hotplug_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hotplug_method: Option<HotplugMethod>,
    pub(super) shared: bool,
    pub(super) hugepages: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) enum HotplugMethod {
    VirtioMem,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Payload {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) firmware: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kernel: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cmdline: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) initramfs: Option<PathBuf>,
}

/// `DiskConfig`, also the body of `vm.add-disk`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Disk {
    pub(super) id: String,
    pub(super) path: PathBuf,
    pub(super) readonly: bool,
    /// Whether the host's page cache is passed by.
    pub(super) direct: bool,
    pub(super) serial: String,
    /// Always sent: a raw image that it has to guess has its first sector write-protected.
    pub(super) image_type: ImageType,
    pub(super) backing_files: bool,
    /// Whether blocks that the guest discards are given back.
    pub(super) sparse: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rate_limiter_config: Option<RateLimiter>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) enum ImageType {
    Raw,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct RateLimiter {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bandwidth: Option<TokenBucket>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ops: Option<TokenBucket>,
}

/// So many tokens in so many milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct TokenBucket {
    pub(super) size: u64,
    pub(super) refill_time: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Rng {
    pub(super) src: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Balloon {
    pub(super) size: u64,
    pub(super) deflate_on_oom: bool,
    pub(super) free_page_reporting: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Fs {
    pub(super) id: String,
    pub(super) tag: String,
    pub(super) socket: PathBuf,
    pub(super) num_queues: u32,
    pub(super) queue_size: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Console {
    pub(super) mode: ConsoleMode,
}

/// `ConsoleMode`, but for the modes that are not used: a file is emptied at every boot, a socket that nobody reads holds output back.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) enum ConsoleMode {
    /// There is none.
    Off,
    /// Written to the standard output.
    Tty,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Vsock {
    pub(super) id: String,
    pub(super) cid: u32,
    pub(super) socket: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Platform {
    /// Old and new versions read it by this name (`system_uuid` is new in 53).
    pub(super) uuid: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Tpm {
    pub(super) socket: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct LandlockRule {
    pub(super) path: PathBuf,
    pub(super) access: String,
}

/// `VmResize`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Resize {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) desired_vcpus: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) desired_ram: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) desired_balloon: Option<u64>,
}

/// `VmRemoveDevice`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct RemoveDevice {
    pub(super) id: String,
}

/// `VmSnapshotConfig`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Snapshot {
    pub(super) destination_url: String,
}

/// `RestoreConfig`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct RestoreConfig {
    pub(super) source_url: String,
    pub(super) memory_restore_mode: MemoryRestoreMode,
    pub(super) resume: bool,
}

/// How a saved machine's memory comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum MemoryRestoreMode {
    /// All of it before the call returns.
    Copy,
    /// Page by page, when the guest touches it.
    OnDemand,
}

/// `VmmPingResponse`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Ping {
    /// Version, such as `53.0.0`.
    pub(super) version: String,
    #[serde(default)]
    pub(super) features: Vec<String>,
}

/// `VmInfo`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct VmInfo {
    pub(super) state: VmState,
    pub(super) config: InfoConfig,
    #[serde(default)]
    pub(super) memory_actual_size: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct InfoConfig {
    pub(super) cpus: InfoCpus,
    pub(super) memory: InfoMemory,
    #[serde(default)]
    pub(super) disks: Option<Vec<InfoDevice>>,
    #[serde(default)]
    pub(super) fs: Option<Vec<InfoDevice>>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct InfoCpus {
    pub(super) boot_vcpus: u32,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct InfoMemory {
    pub(super) size: u64,
    #[serde(default)]
    pub(super) hotplugged_size: Option<u64>,
}

/// A device of a machine: only its identifier, which stays the same when its place on the bus changes.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct InfoDevice {
    #[serde(default)]
    pub(super) id: Option<String>,
}

/// State of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum VmState {
    /// Not booted, or shut down.
    Created,
    Running,
    Shutdown,
    Paused,
    /// Stopped at a breakpoint, or a word that is new.
    #[serde(other)]
    Other,
}

/// Answer of `vm.counters`: for each device, its counters by name.
pub(super) type Counters = BTreeMap<String, BTreeMap<String, serde_json::Value>>;
