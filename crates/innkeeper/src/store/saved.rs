//! A suspended VM on disk: its memory, its devices, and what must be as it was when it comes back.
//!
//! ```text
//!  saved.new/ ──(whole, synced)──► saved/ ──(CPUs about to run)──► run/saved/ ──► gone
//!      │ killed in the middle: swept          └─(they did not)──── back
//! ```
//!
//! A VM is suspended exactly while `saved/saved.json` exists. Once a guest that was brought back runs, its disks move on and the saved
//! memory must never be used again: that is why it leaves `saved/` before the CPUs are let go, not after.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use innkeeper_api::ErrorKind;
use serde::{Deserialize, Serialize};

use super::files::{read_text, write_json, write_whole};
use super::{Bundle, Identity, IdentityDisk, read_json};
use crate::driver::{DiskConfig, SavedMachine};
use crate::error::{Error, Result};
use crate::spec::{self, VmSpec};

const DIRECTORY: &str = "saved";
const HALF_MADE: &str = "saved.new";
const USED: &str = "run/saved";
const MACHINE: &str = "machine";

/// A suspended VM (`saved/saved.json`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// Version of this file's form.
    pub version: u32,
    /// Since when it is suspended (RFC 3339, UTC).
    pub since: String,
    /// Driver that saved it.
    pub driver: String,
    /// What the driver needs; its directory is set anew when it is read, so that a bundle can be moved.
    pub machine: SavedMachine,
    /// Disks as they were.
    pub disks: Vec<SavedDisk>,
    /// Whether the guest was ready.
    pub ready: bool,
    /// Version of the agent in the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
}

/// A disk as it was when its VM was suspended: the guest's memory is worth nothing with any other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDisk {
    /// Name in the spec.
    pub name: String,
    /// Size of its file, in bytes.
    pub size: u64,
    /// When the file was last written (seconds and nanoseconds since 1970).
    pub modified: (i64, u32),
}

impl SavedDisk {
    /// Looks at a disk's file.
    pub fn of(disk: &DiskConfig) -> Result<Self> {
        SavedDisk::of_file(&disk.name, &disk.path)
    }

    fn of_file(name: &str, path: &Path) -> Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let metadata = fs::metadata(path)
            .map_err(|error| Error::io(format!("can't look at {}", path.display()), error))?;
        Ok(SavedDisk {
            name: name.to_owned(),
            size: metadata.len(),
            modified: (
                metadata.mtime(),
                u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
            ),
        })
    }
}

impl Bundle {
    /// Says whether the VM is suspended.
    pub fn is_suspended(&self) -> bool {
        self.path(DIRECTORY).join("saved.json").exists()
    }

    /// Says whether there is something of a save that does not count, of now or of before.
    pub fn is_half_saved(&self) -> bool {
        self.path(HALF_MADE).exists()
    }

    /// Begins to save: returns an empty directory for the driver. What an earlier attempt left is removed.
    pub fn begin_saving(&self) -> Result<PathBuf> {
        let half_made = self.path(HALF_MADE);
        remove_tree(&half_made)?;
        let directory = half_made.join(MACHINE);
        fs::create_dir_all(&directory)
            .map_err(|error| Error::io(format!("can't make {}", directory.display()), error))?;
        Ok(directory)
    }

    /// Writes what is known of a saved machine, beside the spec that it runs by. It counts only after [`Bundle::finish_saving`].
    pub fn describe_saving(&self, saved: &Saved) -> Result<()> {
        let half_made = self.path(HALF_MADE);
        if let Some(text) = read_text(&self.path("run/applied.yaml"))? {
            write_whole(&half_made.join("applied.yaml"), text.as_bytes())?;
        }
        write_json(&half_made.join("saved.json"), saved)
    }

    /// Makes what was saved count: from now on the VM is suspended.
    pub fn finish_saving(&self) -> Result<()> {
        move_tree(&self.path(HALF_MADE), &self.path(DIRECTORY))
    }

    /// Removes what was saved and does not count.
    pub fn give_up_saving(&self) -> Result<()> {
        remove_tree(&self.path(HALF_MADE))
    }

    /// Reads what was saved; none if the VM is not suspended.
    pub fn saved(&self) -> Result<Option<Saved>> {
        let directory = self.path(DIRECTORY);
        let Some(mut saved) = read_json::<Saved>(&directory.join("saved.json"))? else {
            return Ok(None);
        };
        if saved.version != 1 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "what was saved of {} was written by a newer Innkeeper (form {})",
                    self.name(),
                    saved.version
                ),
            )
            .with_hint("update Innkeeper"));
        }
        saved.machine.directory = directory.join(MACHINE);
        Ok(Some(saved))
    }

    /// Reads the text of the spec that a suspended VM runs by.
    pub fn saved_spec_text(&self) -> Result<String> {
        let path = self.path(DIRECTORY).join("applied.yaml");
        read_text(&path)?.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("{} is missing", path.display()),
            )
        })
    }

    /// Reads the spec that a suspended VM runs by.
    pub fn saved_spec(&self) -> Result<VmSpec> {
        let path = self.path(DIRECTORY).join("applied.yaml");
        Ok(spec::read(
            &self.saved_spec_text()?,
            &path.to_string_lossy(),
        )?)
    }

    /// Names the disks of a suspended VM whose files are not as they were when it was suspended.
    pub(crate) fn changed_since_saved(&self, own: &[IdentityDisk]) -> Result<Vec<String>> {
        let Some(saved) = self.saved()? else {
            return Ok(Vec::new());
        };
        let mut changed = Vec::new();
        for before in &saved.disks {
            let Some(disk) = own.iter().find(|disk| disk.name == before.name) else {
                continue;
            };
            if SavedDisk::of_file(&disk.name, &self.path(&disk.file))? != *before {
                changed.push(disk.name.clone());
            }
        }
        Ok(changed)
    }

    /// Notes that a suspended VM's own disks have other files by now, which hold what the ones before held. Can be repeated.
    pub(crate) fn saved_on_new_tops(&self, identity: &Identity) -> Result<()> {
        let Some(mut saved) = self.saved()? else {
            return Ok(());
        };
        for before in &mut saved.disks {
            if let Some(disk) = identity.disks.iter().find(|disk| disk.name == before.name) {
                *before = SavedDisk::of_file(&disk.name, &self.path(&disk.file))?;
            }
        }
        write_json(&self.path(DIRECTORY).join("saved.json"), &saved)
    }

    /// Takes what was saved out of use, before the CPUs of the machine that was made of it are let go.
    pub fn use_saved(&self) -> Result<()> {
        move_tree(&self.path(DIRECTORY), &self.path(USED))
    }

    /// Puts it back into use, if the CPUs were not let go after all.
    pub fn give_back_saved(&self) -> Result<()> {
        move_tree(&self.path(USED), &self.path(DIRECTORY))
    }

    /// Removes what was taken out of use.
    pub fn forget_used(&self) -> Result<()> {
        remove_tree(&self.path(USED))
    }

    /// Throws away what was saved. The caller holds the VM's lock.
    pub fn discard_saved(&self) -> Result<()> {
        let gone = self.path(HALF_MADE);
        remove_tree(&gone)?;
        if self.is_suspended() {
            move_tree(&self.path(DIRECTORY), &gone)?;
        }
        remove_tree(&gone)
    }
}

/// Renames a directory of the bundle so that the new name is on disk when this returns.
fn move_tree(from: &Path, to: &Path) -> Result<()> {
    let moved = fs::rename(from, to).and_then(|()| {
        for parent in [from.parent(), to.parent()].into_iter().flatten() {
            File::open(parent)?.sync_all()?;
        }
        Ok(())
    });
    moved.map_err(|error| Error::io(format!("can't move {}", from.display()), error))
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("can't remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}
