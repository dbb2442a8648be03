//! Tells every reason why Cloud Hypervisor can't run a VM here; pure.
//!
//! What a capability stands for is refused by [`crate::driver::lacking`]; here is what no capability says.

use innkeeper_api::Unsupported;

use super::MACHINE;
use super::host::CloudHypervisorHost;
use crate::driver::MachineConfig;
use crate::spec::{AccelChoice, DiskCache, WatchdogAction};

/// Longest serial of a virtio disk, in bytes (virtio specification, `VIRTIO_BLK_ID_BYTES`).
const SERIAL_LIMIT: usize = 20;

/// Longest tag of a shared folder, in bytes (virtio specification, `virtio_fs_config`).
const TAG_LIMIT: usize = 36;

/// Step in which memory is added and taken (Cloud Hypervisor `docs/hotplug.md`: virtio-mem, 128 MiB).
pub(super) const MEMORY_STEP: u64 = 128 << 20;

/// Tells every reason why Cloud Hypervisor can't run `config` here.
pub(super) fn check(config: &MachineConfig, host: &CloudHypervisorHost) -> Vec<Unsupported> {
    let mut reasons = Vec::new();
    let mut add = |field: &str, reason: String, hint: Option<&str>| {
        reasons.push(Unsupported {
            field: field.to_owned(),
            reason,
            hint: hint.map(str::to_owned),
        });
    };
    if let Some(refusal) = host.unusable() {
        add("", refusal.reason, refusal.fix.as_deref());
    }
    if config.arch.to_string() != host.host_arch {
        add(
            "arch",
            format!(
                "Cloud Hypervisor on this {} host can't run {} guests",
                host.host_arch, config.arch
            ),
            Some("use driver: qemu"),
        );
    }
    match config.accel {
        AccelChoice::Auto | AccelChoice::Kvm => {}
        AccelChoice::Tcg | AccelChoice::Hvf => add(
            "accel",
            "Cloud Hypervisor runs CPUs by KVM only".to_owned(),
            Some("use accel: auto, or driver: qemu"),
        ),
    }
    if config.machine != MACHINE {
        add(
            "machine",
            format!(
                "Cloud Hypervisor has no machine type {}, only {MACHINE}",
                config.machine
            ),
            Some("use machine: auto"),
        );
    }
    if let Some(model) = config.cpu_model.as_deref().filter(|model| *model != "host") {
        add(
            "cpu_model",
            format!("Cloud Hypervisor gives guests the host's CPU, not {model}"),
            Some("use cpu_model: host, or driver: qemu"),
        );
    }
    if config.cpus == 0 {
        add("cpus", "a machine needs at least one CPU".to_owned(), None);
    }
    if !config.memory.get().is_multiple_of(2 << 20) {
        add(
            "memory",
            "memory must be a multiple of 2 MiB".to_owned(),
            None,
        );
    }
    let more = config.max_memory.get().saturating_sub(config.memory.get());
    if !more.is_multiple_of(MEMORY_STEP) {
        add(
            "max_memory",
            "memory is added in steps of 128 MiB, so max_memory must be memory and a multiple of that"
                .to_owned(),
            None,
        );
    }
    for disk in &config.disks {
        if disk.name.len() > SERIAL_LIMIT {
            add(
                &format!("disks.{}.name", disk.name),
                format!(
                    "the disk's name is longer than the {SERIAL_LIMIT} bytes that a guest can see"
                ),
                Some("use a shorter name"),
            );
        }
        if !matches!(disk.cache, DiskCache::Writeback | DiskCache::None) {
            add(
                &format!("disks.{}.cache", disk.name),
                "Cloud Hypervisor caches a disk as writeback or none only".to_owned(),
                Some("use cache: writeback or none"),
            );
        }
    }
    for (index, share) in config.shares.iter().enumerate() {
        let field = format!("shares[{index}]");
        if share.tag.is_empty() || share.tag.len() > TAG_LIMIT {
            add(
                &field,
                format!("a share's tag has 1 to {TAG_LIMIT} bytes"),
                None,
            );
        }
        if share.read_only
            && host
                .virtiofsd
                .as_ref()
                .is_some_and(|daemon| !daemon.read_only)
        {
            add(
                &field,
                "the virtiofsd of this host can't serve a folder read-only".to_owned(),
                Some("install the newer virtiofsd (1.11 or later), or share it writable"),
            );
        }
    }
    if config
        .watchdog
        .is_some_and(|action| action != WatchdogAction::Reset)
    {
        add(
            "watchdog",
            "Cloud Hypervisor's watchdog can only reset the machine".to_owned(),
            Some("use watchdog: reset"),
        );
    }
    if config.vsock.is_some_and(|cid| cid < 3) {
        add(
            "vsock",
            "a guest's context id is 3 or more".to_owned(),
            None,
        );
    }
    reasons
}
