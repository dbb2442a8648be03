//! The machine around the guest, as far as it can change while the guest runs: CPUs, memory, disks, drives, network interfaces.

use std::io;
use std::path::{Path, PathBuf};

use innkeeper::api::ErrorKind;
use innkeeper::drivers::fake::{DiskMark, Plan, PlanDisk, PlanDrive, PlanNic};

use crate::forwards::{self, Forwards};
use crate::run::broken;

/// Memory is added and taken away in steps of this size.
const STEP: u64 = 2 << 20;
/// Longest name of a disk: what a virtio disk can tell as its serial (virtio 1.2, 5.2.6.1).
const LONGEST_NAME: usize = 20;

type Refusal = (ErrorKind, String);

struct Disk {
    disk: PlanDisk,
    mark: Option<DiskMark>,
    leaving: bool,
}

struct Nic {
    mac: String,
    forwards: Forwards,
    leaving: bool,
}

/// What a machine has.
pub(crate) struct Devices {
    pub(crate) cpus: u32,
    pub(crate) memory: u64,
    target: Option<u64>,
    disks: Vec<Disk>,
    drives: Vec<PlanDrive>,
    nics: Vec<Nic>,
}

impl Devices {
    pub(crate) fn new(plan: &Plan) -> io::Result<Devices> {
        let disk = |disk: &PlanDisk| Disk {
            mark: DiskMark::of(disk),
            disk: disk.clone(),
            leaving: false,
        };
        let nic = |nic: &PlanNic| {
            Ok(Nic {
                mac: nic.mac.clone(),
                forwards: forwards::start(&nic.forwards)?,
                leaving: false,
            })
        };
        Ok(Devices {
            cpus: plan.cpus,
            memory: plan.memory,
            target: None,
            disks: plan.disks.iter().map(disk).collect(),
            drives: plan.drives.clone(),
            nics: plan.nics.iter().map(nic).collect::<io::Result<_>>()?,
        })
    }

    pub(crate) fn set_cpus(&mut self, plan: &Plan, count: u32) {
        if count == 0 || count > plan.max_cpus {
            broken(
                plan,
                &format!("told to have {count} CPUs, and may have {}", plan.max_cpus),
            );
        }
        self.cpus = count;
    }

    pub(crate) fn set_memory(&mut self, plan: &Plan, size: u64) -> Result<(), Refusal> {
        if size > plan.max_memory {
            broken(
                plan,
                &format!(
                    "told to have {size} bytes of memory, and may have {}",
                    plan.max_memory
                ),
            );
        }
        if size < plan.memory {
            return Err((
                ErrorKind::BadInput,
                format!(
                    "it was started with {} MiB, which can't be taken away",
                    plan.memory >> 20
                ),
            ));
        }
        if !(size - plan.memory).is_multiple_of(STEP) {
            return Err((
                ErrorKind::BadInput,
                format!("memory comes and goes in steps of {} MiB", STEP >> 20),
            ));
        }
        self.memory = size;
        Ok(())
    }

    pub(crate) fn set_target(&mut self, plan: &Plan, target: u64) {
        if target > plan.max_memory {
            broken(plan, "asked to keep within more memory than it may have");
        }
        self.target = Some(target);
    }

    /// Returns what the guest has: what was asked, if it follows.
    pub(crate) fn actual(&self, plan: &Plan) -> u64 {
        let target = self.target.filter(|_| !plan.script.ignore_balloon);
        target.map_or(self.memory, |target| target.min(self.memory))
    }

    pub(crate) fn attach_disk(&mut self, plan: &Plan, disk: PlanDisk) -> Result<(), Refusal> {
        if disk.name.is_empty() || disk.name.len() > LONGEST_NAME {
            broken(
                plan,
                &format!("told to attach a disk named {:?}", disk.name),
            );
        }
        let names = self.disks.iter().map(|other| &other.disk.name);
        if names
            .chain(self.drives.iter().map(|drive| &drive.name))
            .any(|name| *name == disk.name)
        {
            return Err((
                ErrorKind::Conflict,
                format!("a disk named {} is attached", disk.name),
            ));
        }
        if self.disks.iter().any(|other| other.disk.path == disk.path) {
            broken(
                plan,
                &format!("told to attach {} twice", disk.path.display()),
            );
        }
        let opened = std::fs::OpenOptions::new()
            .read(true)
            .write(!disk.read_only)
            .open(&disk.path);
        if !disk.path.is_absolute() || opened.is_err() {
            broken(
                plan,
                &format!(
                    "told to attach {}, which can't be opened",
                    disk.path.display()
                ),
            );
        }
        self.disks.push(Disk {
            mark: DiskMark::of(&disk),
            disk,
            leaving: false,
        });
        Ok(())
    }

    pub(crate) fn request_detach_disk(&mut self, name: &str) -> Result<(), Refusal> {
        match self.disks.iter_mut().find(|disk| disk.disk.name == name) {
            Some(disk) => {
                disk.leaving = true;
                Ok(())
            }
            None => Err((
                ErrorKind::NotFound,
                format!("no disk named {name} is attached"),
            )),
        }
    }

    pub(crate) fn change_medium(
        &mut self,
        plan: &Plan,
        name: &str,
        medium: Option<PathBuf>,
    ) -> Result<(), Refusal> {
        let Some(drive) = self.drives.iter_mut().find(|drive| drive.name == name) else {
            return Err((ErrorKind::NotFound, format!("there is no drive {name}")));
        };
        if let Some(path) = &medium
            && (!path.is_absolute() || std::fs::File::open(path).is_err())
        {
            broken(
                plan,
                &format!("told to insert {}, which can't be opened", path.display()),
            );
        }
        if plan.script.tray_locked {
            return Err((
                ErrorKind::Conflict,
                format!("the guest has locked the tray of {name}"),
            ));
        }
        drive.medium = medium;
        Ok(())
    }

    pub(crate) fn attach_nic(&mut self, plan: &Plan, nic: &PlanNic) -> Result<(), Refusal> {
        if self.nics.iter().any(|other| other.mac == nic.mac) {
            return Err((
                ErrorKind::Conflict,
                format!("an interface {} is attached", nic.mac),
            ));
        }
        let forwards = forwards::start(&nic.forwards).unwrap_or_else(|error| {
            broken(plan, &format!("told to forward a port in use: {error}"))
        });
        self.nics.push(Nic {
            mac: nic.mac.clone(),
            forwards,
            leaving: false,
        });
        Ok(())
    }

    pub(crate) fn request_detach_nic(&mut self, mac: &str) -> Result<(), Refusal> {
        match self.nics.iter_mut().find(|nic| nic.mac == mac) {
            Some(nic) => {
                nic.leaving = true;
                Ok(())
            }
            None => Err((
                ErrorKind::NotFound,
                format!("no interface {mac} is attached"),
            )),
        }
    }

    /// A guest that follows lets go of what it was asked to; returns the devices.
    pub(crate) fn let_go_of_what_was_asked(&mut self, plan: &Plan) -> Vec<String> {
        if plan.script.ignore_detach {
            return Vec::new();
        }
        self.let_go()
    }

    /// The guest lets go of every device that it was asked to let go of; returns them.
    pub(crate) fn let_go(&mut self) -> Vec<String> {
        let mut gone = Vec::new();
        self.disks.retain(|disk| {
            if disk.leaving {
                gone.push(disk.disk.name.clone());
            }
            !disk.leaving
        });
        self.nics.retain_mut(|nic| {
            if nic.leaving {
                gone.push(nic.mac.clone());
                nic.forwards.end();
            }
            !nic.leaving
        });
        gone
    }

    /// Returns the name of a writable disk that is not as it was when it was attached.
    pub(crate) fn changed_disk(&self) -> Option<String> {
        self.disks
            .iter()
            .filter(|disk| !disk.disk.read_only)
            .find(|disk| DiskMark::of(&disk.disk) != disk.mark)
            .map(|disk| disk.disk.name.clone())
    }

    /// Returns the writable disks as they are.
    pub(crate) fn marks(&self) -> Vec<DiskMark> {
        self.disks
            .iter()
            .filter(|disk| !disk.disk.read_only)
            .filter_map(|disk| DiskMark::of(&disk.disk))
            .collect()
    }

    pub(crate) fn drive_names(&self) -> Vec<String> {
        self.drives.iter().map(|drive| drive.name.clone()).collect()
    }

    pub(crate) fn nic_names(&self) -> Vec<String> {
        self.nics.iter().map(|nic| nic.mac.clone()).collect()
    }

    /// Tells what the guest would see, for its console.
    pub(crate) fn describe(&self) -> String {
        let medium = |drive: &PlanDrive| match &drive.medium {
            Some(path) => format!("{}={}", drive.name, file_name(path)),
            None => format!("{}=empty", drive.name),
        };
        let words: Vec<String> = self
            .disks
            .iter()
            .map(|disk| disk.disk.name.clone())
            .chain(self.drives.iter().map(medium))
            .chain(self.nic_names())
            .collect();
        format!(
            "fake: {} CPUs, {} MiB, devices: {}\n",
            self.cpus,
            self.memory >> 20,
            words.join(" ")
        )
    }
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
