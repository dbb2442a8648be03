//! Tells every reason why Virtualization.framework can't run a VM here; pure.
//!
//! What is a capability is refused by the report ([`crate::driver::lacking`]); here stands what is a matter of degree.

use std::collections::HashSet;

use innkeeper_api::Unsupported;

use super::MACHINE;
use super::host::VzHost;
use super::plan::{AGENT_PORT, SERIAL, WRITETHROUGH, plan};
use crate::driver::MachineConfig;
use crate::spec::{AccelChoice, DiskBus, DiskCache};

/// Longest `blockDeviceIdentifier`, in bytes (`VZVirtioBlockDeviceConfiguration.h`).
const IDENTIFIER_LIMIT: usize = 20;

/// Longest tag of a shared folder, in bytes (virtio specification, `virtio_fs_config`).
const TAG_LIMIT: usize = 36;

/// Memory goes in steps of this many bytes (`VZVirtualMachineConfiguration.h`, `memorySize`).
const MEMORY_STEP: u64 = 1024 * 1024;

struct Reasons(Vec<Unsupported>);

impl Reasons {
    fn add(&mut self, field: impl Into<String>, reason: impl Into<String>, hint: Option<&str>) {
        self.0.push(Unsupported {
            field: field.into(),
            reason: reason.into(),
            hint: hint.map(str::to_owned),
        });
    }
}

/// Tells every reason why `config` can't be run here, apart from capabilities that lack.
pub(super) fn check(config: &MachineConfig, host: &VzHost) -> Vec<Unsupported> {
    let mut reasons = Reasons(Vec::new());
    if let Some(reason) = host.unusable() {
        reasons.add("", reason, None);
        return reasons.0;
    }
    if config.arch.to_string() != host.arch {
        reasons.add(
            "arch",
            format!(
                "Virtualization.framework emulates nothing: this {} Mac runs no {} guests",
                host.arch, config.arch
            ),
            Some("use driver: qemu"),
        );
    }
    if config.machine != MACHINE {
        reasons.add(
            "machine",
            format!(
                "Virtualization.framework has one machine, {MACHINE}, and not {}",
                config.machine
            ),
            Some("use machine: auto"),
        );
    }
    if let AccelChoice::Kvm | AccelChoice::Tcg = config.accel {
        reasons.add(
            "accel",
            "Virtualization.framework runs CPUs by Hypervisor.framework (hvf) alone",
            Some("use accel: auto"),
        );
    }
    if config.cpu_model.is_some() {
        reasons.add(
            "cpu_model",
            "Virtualization.framework shows the guest this Mac's own CPU",
            Some("leave cpu_model out"),
        );
    }
    size(&mut reasons, config, host);
    disks(&mut reasons, config);
    devices(&mut reasons, config);
    versions(&mut reasons, config, host);
    reasons.0
}

fn size(reasons: &mut Reasons, config: &MachineConfig, host: &VzHost) {
    let (fewest, most) = host.cpus;
    if !(fewest..=most).contains(&config.cpus) {
        reasons.add(
            "cpus",
            format!(
                "{} CPUs: Virtualization.framework allows {fewest} to {most} on this Mac",
                config.cpus
            ),
            None,
        );
    }
    let (least, largest) = host.memory;
    let within = |bytes: u64| (least..=largest).contains(&bytes);
    if !within(config.memory.get()) {
        reasons.add(
            "memory",
            format!(
                "{} bytes: Virtualization.framework allows {least} to {largest} on this Mac",
                config.memory.get()
            ),
            None,
        );
    }
    let mut step = |field: &str, bytes: u64| {
        if !bytes.is_multiple_of(MEMORY_STEP) {
            reasons.add(
                field,
                format!("{bytes} bytes are no multiple of 1 MiB"),
                Some("give it in MiB or GiB"),
            );
        }
    };
    step("memory", config.memory.get());
    if let Some(target) = config.memory_target {
        step("memory_target", target.get());
        if target.get() < least || target > config.memory {
            reasons.add(
                "memory_target",
                format!("it must be between {least} bytes and the machine's memory"),
                None,
            );
        }
    }
}

fn disks(reasons: &mut Reasons, config: &MachineConfig) {
    let mut last = None;
    for disk in &config.disks {
        let field = |name: &str| format!("disks.{}.{name}", disk.name);
        if disk.bus == DiskBus::Virtio
            && (disk.name.len() > IDENTIFIER_LIMIT || !disk.name.is_ascii())
        {
            reasons.add(
                field("name"),
                format!("a disk's name has at most {IDENTIFIER_LIMIT} ASCII characters"),
                None,
            );
        }
        if disk.cache == DiskCache::Writethrough {
            reasons.add(field("cache"), WRITETHROUGH, Some("use writeback, or none"));
        }
        if !disk.discard && !disk.read_only {
            reasons.add(
                field("discard"),
                "Virtualization.framework can't be told to keep what a guest discards",
                Some("leave discard out"),
            );
        }
        // The firmware tries disks in the order in which they stand.
        if let Some(index) = disk.boot_index {
            if last.is_some_and(|last| index < last) {
                reasons.add(
                    field("boot_index"),
                    "the firmware of Virtualization.framework boots from disks in their order",
                    Some("put the disk before the others"),
                );
            }
            last = Some(index);
        }
    }
}

fn devices(reasons: &mut Reasons, config: &MachineConfig) {
    for (index, share) in config.shares.iter().enumerate() {
        if share.tag.is_empty() || share.tag.len() > TAG_LIMIT {
            reasons.add(
                format!("shares[{index}]"),
                format!("a share's tag has 1 to {TAG_LIMIT} bytes"),
                None,
            );
        }
    }
    let mut names: HashSet<&str> = HashSet::from([AGENT_PORT, SERIAL]);
    for console in &config.consoles {
        if !names.insert(&console.name) {
            reasons.add(
                format!("consoles.{}", console.name),
                "another port of the machine has this name",
                Some("give it another name"),
            );
        }
    }
}

/// What this macOS is too old for and no capability says.
fn versions(reasons: &mut Reasons, config: &MachineConfig, host: &VzHost) {
    // A boot that can't be planned is a capability that lacks, and told as that.
    let Ok(plan) = plan(config, host) else {
        return;
    };
    for need in plan.needs() {
        // What is a capability too, nested virtualization and NVMe, is told as that.
        let told = need.field == "nested"
            || need.field == "disks"
            || reasons.0.iter().any(|reason| reason.field == need.field);
        if host.macos < need.since && !told {
            let (major, minor) = need.since;
            reasons.add(
                need.field,
                format!(
                    "{} needs macOS {major}.{minor}, and this is {}.{}",
                    need.what, host.macos.0, host.macos.1
                ),
                Some("update macOS"),
            );
        }
    }
}
