//! Bringing a saved fake back, and what it must have in common with the one that was saved.

use std::collections::BTreeSet;
use std::time::SystemTime;

use async_trait::async_trait;
use innkeeper_api::{DriverReport, ErrorKind, Unsupported};
use serde::{Deserialize, Serialize};

use super::plan::{Plan, PlanDisk};
use super::{FakeDriver, launch};
use crate::driver::{Driver, MachineConfig, Restore, Running, SavedMachine};
use crate::error::{Error, Result};

/// Version of the fake, as its report and what it saves tell it.
pub(super) const VERSION: &str = "1";
/// Name of the file with memory.
pub(super) const FILE: &str = "memory";

/// What a fake saves: the guest's memory, and the machine that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedGuest {
    /// Tells this save from every other; once its CPUs have run on, it must never be restored again.
    pub id: String,
    /// The guest's memory: a random word that it chose when it booted.
    pub memory: String,
    /// CPUs that were present.
    pub cpus: u32,
    /// Bytes of memory that were present.
    pub memory_size: u64,
    /// Writable disks as they were.
    pub disks: Vec<DiskMark>,
    /// Names of drives.
    pub drives: Vec<String>,
    /// MAC addresses.
    pub nics: Vec<String>,
}

/// A disk as it was at some moment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskMark {
    /// Its name.
    pub name: String,
    /// Length of its file.
    pub length: u64,
    /// When the file was last written, in nanoseconds since 1970.
    pub modified: u128,
}

impl DiskMark {
    /// Looks at a disk's file; none if it is not there.
    pub fn of(disk: &PlanDisk) -> Option<DiskMark> {
        let file = std::fs::metadata(&disk.path).ok()?;
        let modified = file.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH);
        Some(DiskMark {
            name: disk.name.clone(),
            length: file.len(),
            modified: modified.map_or(0, |since| since.as_nanos()),
        })
    }
}

impl SavedGuest {
    /// Tells in what a machine that is about to be made differs from the one that was saved: the field, what it was, and what it is.
    pub fn differences(&self, plan: &Plan) -> Vec<(&'static str, String, String)> {
        let names = |names: &mut dyn Iterator<Item = &String>| {
            let names: BTreeSet<&str> = names.map(String::as_str).collect();
            names.into_iter().collect::<Vec<_>>().join(", ")
        };
        let writable = plan.disks.iter().filter(|disk| !disk.read_only);
        let pairs = [
            ("cpus", self.cpus.to_string(), plan.cpus.to_string()),
            (
                "memory",
                self.memory_size.to_string(),
                plan.memory.to_string(),
            ),
            (
                "disks",
                names(&mut self.disks.iter().map(|disk| &disk.name)),
                names(&mut writable.map(|disk| &disk.name)),
            ),
            (
                "disks",
                names(&mut self.drives.iter()),
                names(&mut plan.drives.iter().map(|drive| &drive.name)),
            ),
            (
                "networks",
                names(&mut self.nics.iter()),
                names(&mut plan.nics.iter().map(|nic| &nic.mac)),
            ),
        ];
        pairs
            .into_iter()
            .filter(|(_, then, now)| then != now)
            .collect()
    }
}

#[async_trait]
impl Restore for FakeDriver {
    fn check_saved(
        &self,
        config: &MachineConfig,
        saved: &SavedMachine,
        report: &DriverReport,
    ) -> Vec<Unsupported> {
        let mut reasons = self.check(config, report);
        let mut refuse = |field: &str, reason: String| {
            reasons.push(Unsupported {
                field: field.to_owned(),
                reason,
                hint: None,
            });
        };
        let number = |version: &str| version.split('.').next().and_then(|part| part.parse().ok());
        let newer = |now: u32| number(&saved.version).is_none_or(|then: u32| then > now);
        if number(VERSION).is_none_or(newer) {
            refuse(
                "",
                format!(
                    "it was saved by the fake {}, and this host has the older {VERSION}",
                    saved.version
                ),
            );
        }
        match (
            SavedGuest::deserialize(&saved.details),
            super::plan::plan(config, &self.options),
        ) {
            (Ok(guest), Ok(plan)) => {
                for (field, then, now) in guest.differences(&plan) {
                    refuse(field, format!("it was saved with {then}, not with {now}"));
                }
            }
            (Err(error), _) => refuse("", format!("what was saved can't be read: {error}")),
            (_, Err(error)) => refuse("", error),
        }
        reasons
    }

    async fn restore(&self, config: &MachineConfig, saved: &SavedMachine) -> Result<Running> {
        if !saved.directory.is_dir() {
            let what = format!("there is no {}", saved.directory.display());
            self.violated(&format!("{}: restored, and {what}", config.name));
            return Err(Error::new(ErrorKind::NotFound, what));
        }
        launch::launch(self, config, Some(&saved.directory)).await
    }
}
