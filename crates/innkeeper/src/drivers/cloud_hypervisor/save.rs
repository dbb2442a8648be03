//! Saves a machine to files and brings it back.
//!
//! ```text
//!  paused ─ vm.snapshot ─► config.json, state.json, memory-ranges ─► synced
//!  start, ping: same version? ─► config.json with this run's paths ─ vm.restore ─► paused
//! ```
//!
//! What one version wrote another can't be trusted to read, so the version is compared before anything is read. The saved `config.json`
//! holds the paths of the run that wrote it; a copy with this run's paths is restored from, and the saved files are only read. Source:
//! Cloud Hypervisor `docs/snapshot_restore.md`.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use innkeeper_api::{ErrorKind, Unsupported};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::api::{ApiError, Client};
use super::host::CloudHypervisorHost;
use super::launch::{Launched, Started};
use super::machine::CloudHypervisorMachine;
use super::plan::{Plan, disk_id};
use super::wire::{self, MemoryRestoreMode};
use crate::driver::{MachineConfig, SavedMachine, Suspend};
use crate::error::{Error, Result};

/// How long writing or reading all of a machine's memory may take.
const MEMORY_DEADLINE: Duration = Duration::from_secs(900);

/// Longest `config.json` that is read, in bytes.
const CONFIG_LIMIT: u64 = 1 << 20;

/// The files of a saved machine, as Cloud Hypervisor names them.
const FILES: [&str; 3] = ["config.json", "state.json", "memory-ranges"];

/// The shape of a saved machine, which must be the same when it comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Shape {
    arch: String,
    max_cpus: u32,
    memory: u64,
    max_memory: u64,
    balloon: bool,
    watchdog: bool,
    vsock: Option<u32>,
    /// Identifiers of the disks, sorted.
    disks: Vec<String>,
}

impl Shape {
    fn of(config: &MachineConfig) -> Self {
        let mut disks: Vec<String> = config
            .disks
            .iter()
            .map(|disk| disk_id(&disk.name))
            .collect();
        disks.sort();
        Shape {
            arch: config.arch.to_string(),
            max_cpus: config.max_cpus,
            memory: config.memory.get(),
            max_memory: config.max_memory.get(),
            balloon: config.memory_target.is_some(),
            watchdog: config.watchdog.is_some(),
            vsock: config.vsock,
            disks,
        }
    }
}

/// Tells why a machine with these devices can't be saved.
fn obstacle(shares: bool, tpm: bool) -> Option<Unsupported> {
    let because = |field: &str, reason: &str, hint: &str| {
        Some(Unsupported {
            field: field.to_owned(),
            reason: reason.to_owned(),
            hint: Some(hint.to_owned()),
        })
    };
    if shares {
        return because(
            "shares",
            "Cloud Hypervisor writes states that can't be read while a folder is shared",
            "stop the VM, remove its shares, start it again",
        );
    }
    if tpm {
        return because(
            "tpm",
            "the TPM's state is kept by swtpm and is not saved with the machine",
            "stop the VM instead",
        );
    }
    None
}

#[async_trait]
impl Suspend for CloudHypervisorMachine {
    async fn save(&self, directory: &Path) -> Result<SavedMachine> {
        if let Some(why) = Suspend::obstacle(self).await? {
            return Err(Error::new(ErrorKind::Unsupported, why.reason)
                .with_hint(why.hint.unwrap_or_default()));
        }
        let info = self.shared.info().await?;
        if info.state != wire::VmState::Paused {
            return Err(Error::new(
                ErrorKind::Conflict,
                "the machine must be paused before it is saved",
            ));
        }
        let cannot = |error| {
            Error::io(
                format!("can't save the machine to {}", directory.display()),
                error,
            )
        };
        // A confined hypervisor writes into its own directory alone.
        let place = if self.shared.record.confined {
            let place = self.shared.record.workplace.join("saving");
            let _ = std::fs::remove_dir_all(&place);
            std::fs::create_dir(&place).map_err(cannot)?;
            place
        } else {
            directory.to_owned()
        };
        let body = wire::Snapshot {
            destination_url: url(&place)?,
        };
        self.shared
            .answered(
                "save the machine",
                self.shared
                    .client
                    .put_json("vm.snapshot", &body, MEMORY_DEADLINE),
            )
            .await?;
        let (from, to) = (place, directory.to_owned());
        tokio::task::spawn_blocking(move || settle(&from, &to))
            .await
            .map_err(|error| Error::new(ErrorKind::Failure, error.to_string()))?
            .map_err(cannot)?;
        let mut shape = Shape::of(&self.shared.config);
        // Disks came and went since the start.
        let disks = info.config.disks.unwrap_or_default();
        shape.disks = disks.into_iter().filter_map(|disk| disk.id).collect();
        shape.disks.sort();
        Ok(SavedMachine {
            directory: directory.to_owned(),
            version: self.shared.record.version.clone(),
            details: serde_json::to_value(shape).map_err(|error| {
                Error::new(ErrorKind::Failure, "the machine's shape can't be written")
                    .with_source(error)
            })?,
        })
    }

    async fn obstacle(&self) -> Result<Option<Unsupported>> {
        let info = self.shared.info().await?;
        let shares = info.config.fs.is_some_and(|fs| !fs.is_empty());
        Ok(obstacle(shares, self.shared.config.tpm.is_some()))
    }
}

/// Moves the files to where they are wanted, if they are not there, and puts them on stable storage.
fn settle(from: &Path, to: &Path) -> std::io::Result<()> {
    for name in FILES {
        let file = to.join(name);
        if from != to {
            std::fs::rename(from.join(name), &file)?;
        }
        File::open(&file)?.sync_all()?;
    }
    File::open(to)?.sync_all()
}

/// Writes a path as Cloud Hypervisor takes it: it cuts off `file://` and decodes nothing.
fn url(path: &Path) -> Result<String> {
    path.to_str()
        .map(|path| format!("file://{path}"))
        .ok_or_else(|| {
            Error::new(
                ErrorKind::BadInput,
                format!("the path {} is not valid UTF-8: rename it", path.display()),
            )
        })
}

/// Tells every reason why `saved` can't be continued as `config` here. Pure.
pub(super) fn check_saved(
    config: &MachineConfig,
    saved: &SavedMachine,
    host: &CloudHypervisorHost,
) -> Vec<Unsupported> {
    let mut reasons = Vec::new();
    let mut add = |field: &str, reason: String| {
        reasons.push(Unsupported {
            field: field.to_owned(),
            reason,
            hint: Some(
                "put back what it was saved with, or give up the saved state and start the VM anew"
                    .to_owned(),
            ),
        });
    };
    if let Some(refusal) = host.unusable() {
        add("", refusal.reason);
    }
    if host.version.as_ref() != Some(&saved.version) {
        add("", other_version(&saved.version, host.version.as_deref()));
    }
    let Ok(was) = Shape::deserialize(&saved.details) else {
        add(
            "",
            "the saved state is not one of Cloud Hypervisor's".to_owned(),
        );
        return reasons;
    };
    let is = Shape::of(config);
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let mut compare = |field: &str, what: &str, was: String, is: String| {
        if was != is {
            add(
                field,
                format!("the saved machine has {what} {was}, and this one {is}"),
            );
        }
    };
    compare("arch", "architecture", was.arch, is.arch);
    compare(
        "max_cpus",
        "at most CPUs:",
        was.max_cpus.to_string(),
        is.max_cpus.to_string(),
    );
    compare("memory", "memory of", mib(was.memory), mib(is.memory));
    compare(
        "max_memory",
        "at most memory of",
        mib(was.max_memory),
        mib(is.max_memory),
    );
    compare(
        "memory_target",
        "a balloon:",
        was.balloon.to_string(),
        is.balloon.to_string(),
    );
    compare(
        "watchdog",
        "a watchdog:",
        was.watchdog.to_string(),
        is.watchdog.to_string(),
    );
    compare(
        "vsock",
        "the context id",
        format!("{:?}", was.vsock),
        format!("{:?}", is.vsock),
    );
    compare(
        "disks",
        "the disks",
        was.disks.join(", "),
        is.disks.join(", "),
    );
    if let Some(why) = obstacle(!config.shares.is_empty(), config.tpm.is_some()) {
        add(&why.field, why.reason);
    }
    reasons
}

fn other_version(saved: &str, here: Option<&str>) -> String {
    format!(
        "the machine was saved by Cloud Hypervisor {saved}, and this host has {}: one version does not read what another wrote",
        here.unwrap_or("none")
    )
}

/// Has a hypervisor that was just started restore a machine; its CPUs stand still.
pub(super) async fn restore(
    mut started: Started,
    plan: &Plan,
    saved: &SavedMachine,
    on_demand: bool,
) -> Result<Launched> {
    if started.version() != saved.version {
        return Err(Error::new(
            ErrorKind::Unsupported,
            other_version(&saved.version, Some(started.version())),
        )
        .with_hint("put that version on the PATH, or start the VM anew without its saved state"));
    }
    let source = plan.workplace.join("restoring");
    prepare(&source, plan, &saved.directory)?;
    let client = Client::new(&plan.api);
    let first = if on_demand {
        MemoryRestoreMode::OnDemand
    } else {
        MemoryRestoreMode::Copy
    };
    let mut answer = ask(&mut started, &client, &source, first).await?;
    if matches!(answer, Err(ApiError::Refused { .. })) && first == MemoryRestoreMode::OnDemand {
        // It is strict about memory that it can't fault in; all of it at once works as well. A failed restore leaves no machine.
        answer = ask(&mut started, &client, &source, MemoryRestoreMode::Copy).await?;
    }
    answer.map_err(|error| started.refused("can't bring back the saved state of", error))?;
    started.finish()
}

async fn ask(
    started: &mut Started,
    client: &Client,
    source: &Path,
    mode: MemoryRestoreMode,
) -> Result<Result<(), ApiError>> {
    let body = wire::RestoreConfig {
        source_url: url(source)?,
        memory_restore_mode: mode,
        resume: false,
    };
    let call = client.put_json("vm.restore", &body, MEMORY_DEADLINE);
    started.carry_out("bring back the saved state", call).await
}

/// Makes a directory to restore from: the saved files by link, and their config with the paths of this run.
fn prepare(source: &Path, plan: &Plan, saved: &Path) -> Result<()> {
    use std::io::Read;
    let broken = |what: String| {
        Error::new(
            ErrorKind::BadInput,
            format!(
                "the saved state in {} can't be read: {what}",
                saved.display()
            ),
        )
    };
    for name in FILES {
        let file = saved.join(name);
        std::fs::metadata(&file)
            .ok()
            .filter(std::fs::Metadata::is_file)
            .ok_or_else(|| broken(format!("{name} is missing")))?;
    }
    let mut text = Vec::new();
    File::open(saved.join("config.json"))
        .and_then(|file| file.take(CONFIG_LIMIT).read_to_end(&mut text))
        .map_err(|error| broken(error.to_string()))?;
    let config: Value =
        serde_json::from_slice(&text).map_err(|error| broken(format!("config.json: {error}")))?;
    let config = with_paths(config, plan, saved).map_err(broken)?;
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(source)?;
        std::fs::write(source.join("config.json"), serde_json::to_vec(&config)?)?;
        for name in ["state.json", "memory-ranges"] {
            std::os::unix::fs::symlink(saved.join(name), source.join(name))?;
        }
        Ok(())
    };
    write().map_err(|error| {
        Error::io(
            format!("can't prepare to restore in {}", source.display()),
            error,
        )
    })
}

/// Puts the paths of this run into a saved config. What was saved may come from anywhere, so no path of it stays. Pure.
///
/// Errors: what does not fit.
fn with_paths(
    mut config: Value,
    plan: &Plan,
    saved_in: &Path,
) -> std::result::Result<Value, String> {
    let now = serde_json::to_value(&plan.config).map_err(|error| error.to_string())?;
    let empty = Vec::new();
    let saved = config["disks"].as_array().unwrap_or(&empty);
    let named = now["disks"].as_array().unwrap_or(&empty);
    let mut disks = Vec::new();
    for disk in saved {
        let current = named
            .iter()
            .find(|current| current["id"] == disk["id"])
            .ok_or_else(|| format!("config.json has a disk {} that this VM has not", disk["id"]))?;
        let mut disk = disk.clone();
        disk["path"] = current["path"].clone();
        disks.push(disk);
    }
    if !config.is_object() {
        return Err("config.json holds no machine".to_owned());
    }
    if !disks.is_empty() {
        config["disks"] = Value::Array(disks);
    }
    for field in ["payload", "serial", "console", "rng"] {
        config[field] = now[field].clone();
    }
    if config["vsock"].is_object() {
        config["vsock"]["socket"] = now["vsock"]["socket"].clone();
    }
    config["landlock_enable"] = now["landlock_enable"].clone();
    let mut rules = plan.config.landlock_rules.clone();
    if plan.config.landlock_enable {
        // Memory may be read page by page later.
        rules.push(wire::LandlockRule {
            path: saved_in.to_owned(),
            access: "r".to_owned(),
        });
    }
    config["landlock_rules"] = serde_json::to_value(rules).map_err(|error| error.to_string())?;
    for device in [
        "fs",
        "net",
        "pmem",
        "devices",
        "user_devices",
        "vdpa",
        "generic_vhost_user",
        "tpm",
        "ivshmem",
    ] {
        let there = match &config[device] {
            Value::Null => false,
            Value::Array(list) => !list.is_empty(),
            _ => true,
        };
        if there {
            return Err(format!(
                "config.json has devices ({device}) that this driver makes none of"
            ));
        }
    }
    Ok(config)
}
