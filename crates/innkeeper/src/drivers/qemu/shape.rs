//! What a machine is made of, as far as its memory and devices depend on it: kept with every saved state, and compared before one is
//! brought back.
//!
//! It holds no paths and no names of files: a VM that was moved or renamed is still the same machine. Pure.

use std::collections::BTreeSet;

use innkeeper_api::Unsupported;
use serde::{Deserialize, Serialize};

/// What a machine is made of.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Shape {
    /// Architecture of the guest.
    pub(super) arch: String,
    /// Pinned machine type.
    pub(super) machine: String,
    /// How CPUs are run.
    pub(super) accelerator: String,
    /// CPU model as QEMU was told it.
    pub(super) cpu_model: String,
    /// CPUs at the start, and the most that there can be.
    pub(super) cpus: (u32, u32),
    /// Memory in bytes at the start, and the most that there can be.
    pub(super) memory: (u64, u64),
    /// Names of disks and drives.
    pub(super) disks: Vec<String>,
    /// MAC addresses of network interfaces.
    pub(super) nics: Vec<String>,
    /// Every device that stays, in order: the place of each in the machine follows from that.
    pub(super) devices: Vec<String>,
    /// Every device behind a port, which says where it is.
    pub(super) movable: BTreeSet<String>,
}

impl Shape {
    /// Tells in what `self`, which is about to be made, differs from `saved`.
    pub(super) fn differences(&self, saved: &Shape) -> Vec<Unsupported> {
        let mut found = Vec::new();
        let mut compare = |field: &str, what: &str, now: &dyn ToString, then: &dyn ToString| {
            let (now, then) = (now.to_string(), then.to_string());
            if now != then {
                found.push(Unsupported {
                    field: field.to_owned(),
                    reason: format!(
                        "the saved state is of a machine with {what} {then}, and this one has {now}"
                    ),
                    hint: Some(format!(
                        "set it back to {then}, or discard the saved state and boot"
                    )),
                });
            }
        };
        let size = |bytes: u64| crate::spec::Bytes::new(bytes).to_string();
        let list = |names: &[String]| {
            // Where each one is follows from the devices, below.
            let mut names = names.to_vec();
            names.sort();
            if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            }
        };
        compare("arch", "the architecture", &self.arch, &saved.arch);
        compare("machine", "the type", &self.machine, &saved.machine);
        compare(
            "accel",
            "the accelerator",
            &self.accelerator,
            &saved.accelerator,
        );
        compare(
            "cpu_model",
            "the CPU model",
            &self.cpu_model,
            &saved.cpu_model,
        );
        compare("cpus", "CPUs:", &self.cpus.0, &saved.cpus.0);
        compare("max_cpus", "at most CPUs:", &self.cpus.1, &saved.cpus.1);
        compare(
            "memory",
            "memory:",
            &size(self.memory.0),
            &size(saved.memory.0),
        );
        compare(
            "max_memory",
            "at most memory:",
            &size(self.memory.1),
            &size(saved.memory.1),
        );
        compare("disks", "disks:", &list(&self.disks), &list(&saved.disks));
        compare(
            "networks",
            "network interfaces:",
            &list(&self.nics),
            &list(&saved.nics),
        );
        let differ = self.devices != saved.devices || self.movable != saved.movable;
        if found.is_empty() && differ {
            let all = |shape: &Shape| -> Vec<String> {
                shape
                    .devices
                    .iter()
                    .chain(&shape.movable)
                    .cloned()
                    .collect()
            };
            let (now, then) = (all(self), all(saved));
            let missing = then.iter().find(|device| !now.contains(device));
            let added = now.iter().find(|device| !then.contains(device));
            let name = |device: Option<&String>| {
                device.map_or_else(|| "the same in another order".to_owned(), String::clone)
            };
            found.push(Unsupported {
                field: String::new(),
                reason: format!(
                    "the saved state is of a machine with other devices (then: {}; now: {})",
                    name(missing),
                    name(added)
                ),
                hint: Some(
                    "undo what was changed in the VM, or discard the saved state and boot"
                        .to_owned(),
                ),
            });
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_is_named_by_its_field() {
        let saved = Shape {
            machine: "pc-q35-10.0".to_owned(),
            cpus: (2, 4),
            memory: (1 << 30, 1 << 30),
            disks: vec!["root".to_owned()],
            devices: vec!["a".to_owned(), "b".to_owned()],
            ..Shape::default()
        };
        assert_eq!(saved.differences(&saved), []);
        let other = Shape {
            machine: "pc-q35-11.0".to_owned(),
            cpus: (3, 4),
            memory: (1 << 29, 1 << 30),
            disks: vec![],
            nics: vec!["52:54:00:00:00:01".to_owned()],
            ..saved.clone()
        };
        let fields: Vec<String> = other
            .differences(&saved)
            .into_iter()
            .map(|difference| difference.field)
            .collect();
        assert_eq!(fields, ["machine", "cpus", "memory", "disks", "networks"]);
        let swapped = Shape {
            devices: vec!["b".to_owned(), "a".to_owned()],
            ..saved.clone()
        };
        assert_eq!(swapped.differences(&saved).len(), 1);
    }
}
