//! One VM's directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use innkeeper_api::ErrorKind;
use serde::{Deserialize, Serialize};

use super::files::{Lasting, json, read_text, write};
use super::{FileLock, Identity, is_locked, read_json, write_json};
use crate::error::{Error, Result};
use crate::spec::{self, VmSpec};

/// The directory of one VM. Only paths: opening it reads nothing.
#[derive(Debug, Clone)]
pub struct Bundle {
    name: String,
    directory: PathBuf,
    boot_id: String,
    /// Whether a power cut may undo what is written now: a half-made bundle is synced as a whole, at its end.
    written: Lasting,
}

/// How a VM ended last time (`state.json`). Missing: it never ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedPower {
    /// Why it failed; none if it is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// Since when (RFC 3339, UTC).
    pub since: String,
}

/// A run that began (`run/run.json`), for whoever has to take it over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Boot of the computer in which it began.
    pub boot_id: String,
    /// When the hypervisor was launched (RFC 3339, UTC).
    pub started: String,
    /// The same, in milliseconds since that boot.
    #[serde(default)]
    pub began_ms: u64,
    /// What the driver needs to adopt the hypervisor; none while it is being launched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<serde_json::Value>,
    /// Port that was chosen for SSH in this run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_port: Option<u16>,
}

impl Bundle {
    pub(super) fn new(name: String, directory: PathBuf, boot_id: String) -> Self {
        Bundle {
            name,
            directory,
            boot_id,
            written: Lasting::Durable,
        }
    }

    /// Returns a bundle whose writes are made durable by whoever finishes it.
    pub(super) fn half_made(self) -> Self {
        Bundle {
            written: Lasting::ThisBoot,
            ..self
        }
    }

    /// Returns the VM's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the path of something in it.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.directory.join(relative)
    }

    /// Returns the directory that exists only while it runs.
    pub fn run_directory(&self) -> PathBuf {
        self.path("run")
    }

    /// Takes the VM's lock; none if a keeper or another command has it.
    pub fn try_lock(&self) -> Result<Option<FileLock>> {
        FileLock::try_take(&self.path("lock"))
    }

    /// Says whether a hypervisor of this VM lives, whatever became of its keeper.
    pub fn hypervisor_lives(&self) -> Result<bool> {
        is_locked(&self.path("run/vmm.lock"))
    }

    /// Reads the identity.
    pub fn identity(&self) -> Result<Identity> {
        let path = self.path("identity.json");
        let identity: Identity = read_json(&path)?.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("{} is missing", path.display()),
            )
            .with_hint(format!(
                "{} is not a VM; move it elsewhere",
                self.directory.display()
            ))
        })?;
        if identity.version != 1 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{} was made by a newer Innkeeper (form {})",
                    self.name, identity.version
                ),
            )
            .with_hint("update Innkeeper"));
        }
        Ok(identity)
    }

    /// Writes the identity.
    pub fn write_identity(&self, identity: &Identity) -> Result<()> {
        let path = self.path("identity.json");
        write(&path, &json(&path, identity)?, self.written)
    }

    /// Reads the text of the spec.
    pub fn spec_text(&self) -> Result<String> {
        let path = self.path("vm.yaml");
        read_text(&path)?.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("{} is missing", path.display()),
            )
        })
    }

    /// Reads the spec that is asked for.
    pub fn spec(&self) -> Result<VmSpec> {
        let path = self.path("vm.yaml");
        Ok(spec::read(&self.spec_text()?, &path.to_string_lossy())?)
    }

    /// Writes the text of the spec.
    pub fn write_spec_text(&self, text: &str) -> Result<()> {
        write(&self.path("vm.yaml"), text.as_bytes(), self.written)
    }

    /// Writes the seed, only for the user: it may hold secrets.
    pub fn write_seed(&self, volume: &[u8]) -> Result<()> {
        write(&self.path("seed.img"), volume, self.written)
    }

    /// Reads the spec that runs, if it runs.
    pub fn applied_spec(&self) -> Result<Option<VmSpec>> {
        let path = self.path("run/applied.yaml");
        match read_text(&path)? {
            None => Ok(None),
            Some(text) => Ok(Some(spec::read(&text, &path.to_string_lossy())?)),
        }
    }

    /// Sets the logs of the last run aside, so that a log speaks of one run only.
    fn turn_logs(&self) -> Result<()> {
        for log in ["log/serial.log", "log/vmm.log"] {
            let path = self.path(log);
            match fs::rename(&path, self.path(format!("{log}.1"))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io(
                        format!("can't set {} aside", path.display()),
                        error,
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Begins a run: its directory, what is applied, and a mark that says in which boot it began.
    pub fn begin_run(&self, spec_text: &str, run: &Run) -> Result<()> {
        self.turn_logs()?;
        let directory = self.run_directory();
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::io(
                    format!("can't make {}", directory.display()),
                    error,
                ));
            }
            _ => {}
        }
        write(
            &self.path("run/applied.yaml"),
            spec_text.as_bytes(),
            Lasting::ThisBoot,
        )?;
        self.write_run(run)
    }

    /// Writes the spec that runs, after the running machine was changed.
    pub fn write_applied(&self, spec_text: &str) -> Result<()> {
        let path = self.path("run/applied.yaml");
        write(&path, spec_text.as_bytes(), Lasting::ThisBoot)
    }

    /// Writes what is known of the run.
    pub fn write_run(&self, run: &Run) -> Result<()> {
        let path = self.path("run/run.json");
        write(&path, &json(&path, run)?, Lasting::ThisBoot)
    }

    /// Reads what is known of the run, if there is one.
    pub fn run(&self) -> Result<Option<Run>> {
        read_json(&self.path("run/run.json"))
    }

    /// Says whether the run, if any, began in this boot of the computer.
    pub fn run_is_of_this_boot(&self) -> Result<bool> {
        Ok(self.run()?.is_some_and(|run| run.boot_id == self.boot_id))
    }

    /// Ends a run: records how, then removes its directory. After a crash between the two the record stands and the directory is
    /// removed by whoever looks next.
    pub fn end_run(&self, recorded: &RecordedPower) -> Result<()> {
        // However the last hypervisor ended: what was saved counts, and nothing failed.
        let recorded = &RecordedPower {
            failed: recorded.failed.clone().filter(|_| !self.is_suspended()),
            ..recorded.clone()
        };
        write_json(&self.path("state.json"), recorded)?;
        self.give_up_saving()?;
        match fs::remove_dir_all(self.run_directory()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(
                format!("can't remove {}", self.run_directory().display()),
                error,
            )),
            _ => Ok(()),
        }
    }

    /// Reads how it ended last time.
    pub fn recorded(&self) -> Result<Option<RecordedPower>> {
        read_json(&self.path("state.json"))
    }
}
