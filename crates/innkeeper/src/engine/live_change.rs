//! Which changes of a spec a running machine can be given now, and which wait for its next start. Pure.

use crate::spec::{self, Bytes, DiskSpec, VmSpec};

/// One change that a running machine is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Cpus(u32),
    Memory(Bytes),
    MemoryTarget(Bytes),
    AttachDisk(String),
    DetachDisk(String),
    ChangeMedium(String),
    AttachNic(usize),
    DetachNic(usize),
}

/// A field, and what is to be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// Path of the field.
    pub field: String,
    /// Paths of more fields that the same step takes care of.
    pub also: Vec<String>,
    /// What the machine is given, or why it waits.
    pub step: Result<Step, String>,
}

/// Compares what is asked with what runs.
pub(crate) fn plan(asked: &VmSpec, applied: &VmSpec) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    for field in spec::differences(asked, applied) {
        if spec::is_live(&field) {
            continue;
        }
        let step = step(&field, asked, applied);
        // Path and format of a medium are one change.
        let same = changes.iter_mut().find(|change| change.step == step);
        match same.filter(|_| step.is_ok()) {
            Some(change) => change.also.push(field),
            None => changes.push(Change {
                field,
                also: Vec::new(),
                step,
            }),
        }
    }
    // What goes makes room for what comes.
    changes.sort_by_key(|change| match change.step {
        Ok(Step::DetachDisk(_) | Step::DetachNic(_)) => 0,
        _ => 1,
    });
    changes
}

fn step(field: &str, asked: &VmSpec, applied: &VmSpec) -> Result<Step, String> {
    let parts: Vec<&str> = field.split('.').collect();
    match parts.as_slice() {
        ["cpus"] => {
            let most = applied.max_cpus.unwrap_or(applied.cpus);
            if asked.cpus > most {
                return Err(format!(
                    "it was started with room for {most}; set max_cpus for more"
                ));
            }
            Ok(Step::Cpus(asked.cpus))
        }
        ["memory"] => {
            let most = applied.max_memory.unwrap_or(applied.memory);
            if asked.memory > most {
                return Err(format!(
                    "it was started with room for {most}; set max_memory for more"
                ));
            }
            Ok(Step::Memory(asked.memory))
        }
        ["memory_target"] => match (asked.memory_target, applied.memory_target) {
            (Some(target), Some(_)) => Ok(Step::MemoryTarget(target)),
            (Some(_), None) => Err("it was started without a balloon".to_owned()),
            (None, _) => Err("a balloon goes with the next start".to_owned()),
        },
        ["disks", name] => match (find(asked, name), find(applied, name)) {
            (Some(disk), None) if disk.removable => {
                Err("a drive comes with the next start".to_owned())
            }
            (Some(_), None) => Ok(Step::AttachDisk((*name).to_owned())),
            (None, Some(disk)) if disk.removable => {
                Err("a drive goes with the next start".to_owned())
            }
            (None, Some(_)) => Ok(Step::DetachDisk((*name).to_owned())),
            _ => Err(NEXT_START.to_owned()),
        },
        ["disks", name, "path" | "format"] => match (find(asked, name), find(applied, name)) {
            (Some(disk), Some(before)) if disk.removable && before.removable => {
                Ok(Step::ChangeMedium((*name).to_owned()))
            }
            _ => Err(NEXT_START.to_owned()),
        },
        ["networks", index] => {
            let (now, before) = (asked.networks.len(), applied.networks.len());
            match index.parse::<usize>() {
                Ok(index) if index >= before && index < now => Ok(Step::AttachNic(index)),
                Ok(index) if index >= now && index < before => Ok(Step::DetachNic(index)),
                _ => Err(NEXT_START.to_owned()),
            }
        }
        _ => Err(NEXT_START.to_owned()),
    }
}

const NEXT_START: &str = "it is given to the hypervisor when that is started";

fn find<'a>(spec: &'a VmSpec, name: &str) -> Option<&'a DiskSpec> {
    spec.disks.iter().find(|disk| disk.name == name)
}

/// Makes what runs say that a step was taken.
pub(crate) fn note_taken(applied: &mut VmSpec, asked: &VmSpec, step: &Step) {
    match step {
        Step::Cpus(cpus) => applied.cpus = *cpus,
        Step::Memory(memory) => applied.memory = *memory,
        Step::MemoryTarget(target) => applied.memory_target = Some(*target),
        Step::AttachDisk(name) => applied.disks.extend(find(asked, name).cloned()),
        Step::DetachDisk(name) => applied.disks.retain(|disk| disk.name != *name),
        Step::ChangeMedium(name) => {
            let medium = find(asked, name).cloned();
            let drive = applied.disks.iter_mut().find(|disk| disk.name == *name);
            if let (Some(medium), Some(drive)) = (medium, drive) {
                (drive.path, drive.format) = (medium.path, medium.format);
            }
        }
        Step::AttachNic(index) => {
            applied.networks.extend(asked.networks.get(*index).cloned());
        }
        Step::DetachNic(index) => applied.networks.truncate(*index),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::read;

    fn between(asked: &str, applied: &str) -> Vec<(String, Result<Step, String>)> {
        let (asked, applied) = (read(asked, "asked").unwrap(), read(applied, "ran").unwrap());
        plan(&asked, &applied)
            .into_iter()
            .map(|change| (change.field, change.step))
            .collect()
    }

    #[test]
    fn what_a_machine_can_be_given_now() {
        let applied = "cpus: 1\nmax_cpus: 4\nmemory: 1GiB\nmax_memory: 2GiB\nmemory_target: 1GiB\n\
            disks: [{name: a, path: /a, format: raw}, {name: cd, removable: true}]\nnetworks: [{}]\n";
        let asked = "cpus: 3\nmax_cpus: 4\nmemory: 2GiB\nmax_memory: 2GiB\nmemory_target: 512MiB\n\
            disks: [{name: cd, removable: true, path: /i.iso, format: raw}, {name: b, path: /b, format: raw}]\nnetworks: [{}, {}]\n";
        let steps: Vec<Step> = between(asked, applied)
            .into_iter()
            .map(|(field, step)| step.unwrap_or_else(|why| panic!("{field}: {why}")))
            .collect();
        assert_eq!(
            steps,
            [
                Step::DetachDisk("a".to_owned()),
                Step::Cpus(3),
                Step::Memory(Bytes::gib(2)),
                Step::MemoryTarget(Bytes::mib(512)),
                Step::ChangeMedium("cd".to_owned()),
                Step::AttachDisk("b".to_owned()),
                Step::AttachNic(1),
            ]
        );
        let (asked, mut applied) = (read(asked, "").unwrap(), read(applied, "").unwrap());
        for step in &steps {
            note_taken(&mut applied, &asked, step);
        }
        assert_eq!(plan(&asked, &applied), []);
    }

    #[test]
    fn what_waits_says_why() {
        let waits = |asked: &str, applied: &str| {
            let changes = between(asked, applied);
            assert_eq!(changes.len(), 1, "{changes:?}");
            changes[0].1.clone().unwrap_err()
        };
        assert!(waits("cpus: 4", "cpus: 2").contains("room for 2"));
        assert!(waits("memory: 4GiB", "memory: 2GiB").contains("room for 2GiB"));
        assert!(waits("memory_target: 512MiB", "{}").contains("balloon"));
        assert!(waits("tpm: true", "{}").contains("started"));
        assert!(waits("disks: [{name: cd, removable: true}]", "{}").contains("drive"));
        assert_eq!(between("labels: {a: b}", "{}"), []);
    }
}
