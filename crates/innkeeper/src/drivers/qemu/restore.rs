//! Brings a saved machine back: the same machine is started waiting, handed the file, and left with its CPUs standing still.
//!
//! ```text
//!  check_saved ─► plan + -S -incoming defer ─► launch ─► descriptor passed ─► migrate-incoming ─► completed ─► paused
//!                                                                                 └ refused: QEMU ends, its log says why
//! ```
//!
//! The file is opened for reading alone, so a restore that fails can be tried again.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use innkeeper_api::{DriverReport, ErrorKind, Unsupported};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;

use super::qmp::{Qmp, QmpError, QmpEvent};
use super::suspend::{Details, Form, Progress, progress};
use super::{QemuDriver, check, details, launch, machine, plan};
use crate::driver::{MachineConfig, Restore, Running, SavedMachine};
use crate::error::{Error, Result};
use crate::spec::Bytes;

/// How long a command may take.
const COMMAND_DEADLINE: Duration = Duration::from_secs(10);

/// Longest wait for an event before the state is asked for all the same.
const EVENT_WAIT: Duration = Duration::from_millis(500);

/// A saved state that QEMU is to read.
pub(super) struct Incoming {
    file: File,
    form: Form,
}

impl Incoming {
    fn open(saved: &SavedMachine, details: &Details) -> Result<Self> {
        // A name, never a path: what was saved is in its own directory.
        let name = Path::new(&details.file);
        if name.components().count() != 1 || name.file_name().is_none() {
            return Err(Error::new(
                ErrorKind::BadInput,
                format!(
                    "the saved state names the file {:?}, which is not a plain name",
                    details.file
                ),
            ));
        }
        let path = saved.directory.join(name);
        let file = File::open(&path).map_err(|error| {
            Error::io(
                format!("the saved state {} can't be opened", path.display()),
                error,
            )
        })?;
        Ok(Incoming {
            file,
            form: details.form,
        })
    }

    /// Lets QEMU read the state, and returns when it has.
    pub(super) async fn read(
        &self,
        qmp: &Qmp,
        events: &mut mpsc::UnboundedReceiver<QmpEvent>,
    ) -> Result<(), QmpError> {
        self.form.prepare(qmp).await?;
        self.form.hand_over(qmp, &self.file).await?;
        qmp.execute(
            "migrate-incoming",
            json!({ "uri": self.form.uri() }),
            COMMAND_DEADLINE,
        )
        .await?;
        // poll: the state that query-migrate tells, after every event
        loop {
            match progress(qmp).await? {
                Progress::Done => break,
                Progress::Going => {}
                Progress::Failed(why) => {
                    return Err(QmpError::Refused {
                        command: "migrate-incoming".to_owned(),
                        class: "GenericError".to_owned(),
                        description: why,
                    });
                }
            }
            if let Ok(None) = tokio::time::timeout(EVENT_WAIT, events.recv()).await {
                return Err(QmpError::Closed);
            }
        }
        if self.form == Form::MappedRam {
            // QEMU keeps its copy of the descriptor until then.
            let _ = qmp
                .execute("remove-fd", json!({ "fdset-id": 1 }), COMMAND_DEADLINE)
                .await;
        }
        Ok(())
    }
}

fn read_details(saved: &SavedMachine) -> Result<Details> {
    Details::deserialize(&saved.details).map_err(|error| {
        Error::new(
            ErrorKind::Failure,
            "the saved state's details are not from this version of the QEMU driver",
        )
        .with_source(error)
        .with_hint("discard the saved state and boot")
    })
}

/// Returns the config with the CPUs and the memory that the machine was started with, where the config says that, or what it had grown
/// to: both are the same VM.
fn as_saved(config: &MachineConfig, saved: &Details) -> MachineConfig {
    let mut config = config.clone();
    let (cpus, max_cpus) = saved.shape.cpus;
    let added = u32::try_from(saved.placement.added_cpus.len()).unwrap_or(u32::MAX);
    if config.max_cpus == max_cpus && config.cpus == cpus.saturating_add(added) {
        config.cpus = cpus;
    }
    let (memory, max_memory) = saved.shape.memory;
    let grown = memory.saturating_add(saved.placement.added_memory);
    if config.max_memory.get() == max_memory && config.memory.get() == grown {
        config.memory = Bytes::new(memory);
    }
    config
}

/// Reads `major.minor` of a version.
fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

/// Returns whether a machine type stays what it is in later versions of QEMU, which its name then ends with.
fn is_versioned(machine: &str) -> bool {
    machine
        .rsplit('-')
        .next()
        .is_some_and(|last| last.starts_with(|c: char| c.is_ascii_digit()))
}

#[async_trait]
impl Restore for QemuDriver {
    fn check_saved(
        &self,
        config: &MachineConfig,
        saved: &SavedMachine,
        report: &DriverReport,
    ) -> Vec<Unsupported> {
        let own = |error: Error| {
            vec![Unsupported {
                field: String::new(),
                reason: error.to_string(),
                hint: error.hint().map(str::to_owned),
            }]
        };
        let (host, then) = match (details(report), read_details(saved)) {
            (Ok(host), Ok(then)) => (host, then),
            (Err(error), _) | (_, Err(error)) => return own(error),
        };
        let mut reasons = check::check(config, &host);
        reasons.extend(crate::driver::lacking(config, report));
        if !reasons.is_empty() {
            return reasons;
        }
        let config = &as_saved(config, &then);
        let planned = match plan::plan(config, &host, &then.placement) {
            Ok(planned) => planned,
            Err(error) => return own(error),
        };
        if let Some(emulator) = host.emulator(config.arch)
            && let Some((major, minor)) = major_minor(&saved.version)
            && !emulator.at_least(major, minor)
        {
            let (now, of_now, _) = emulator.version;
            reasons.push(Unsupported {
                field: String::new(),
                reason: format!(
                    "the state was saved by QEMU {}, and this host has the older {now}.{of_now}",
                    saved.version
                ),
                hint: Some(format!(
                    "install QEMU {major}.{minor} or later, or discard the saved state and boot"
                )),
            });
        }
        if let Some(emulator) = host.emulator(config.arch)
            && !is_versioned(&config.machine)
            && let now = (emulator.version.0, emulator.version.1)
            && major_minor(&saved.version) != Some(now)
        {
            reasons.push(Unsupported {
                field: "machine".to_owned(),
                reason: format!(
                    "machine type {} changes from version to version, and the state was saved by QEMU {}, which is not the {}.{} of this host",
                    config.machine, saved.version, now.0, now.1
                ),
                hint: Some("discard the saved state and boot; machine: q35 keeps from version to version".to_owned()),
            });
        }
        reasons.extend(planned.shape.differences(&then.shape));
        reasons
    }

    async fn restore(&self, config: &MachineConfig, saved: &SavedMachine) -> Result<Running> {
        let host = self.host().await;
        self.require_supported(config, &host)?;
        let then = read_details(saved)?;
        let config = &as_saved(config, &then);
        let mut plan = plan::plan(config, &host, &then.placement)?;
        if let Some(difference) = plan.shape.differences(&then.shape).first() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                difference.reason.clone(),
            ));
        }
        let incoming = Incoming::open(saved, &then)?;
        plan.arguments
            .extend(["-S", "-incoming", "defer"].map(str::to_owned));
        let launched =
            launch::launch(&plan, config, &self.options.boot_id, Some(&incoming)).await?;
        machine::supervise_launched(launched, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_first_two_numbers() {
        assert_eq!(major_minor("10.0.2"), Some((10, 0)));
        assert_eq!(major_minor("7.2.22 (Debian)"), Some((7, 2)));
        assert_eq!(major_minor("ten"), None);
        assert!(is_versioned("pc-q35-10.0") && is_versioned("virt-7.2"));
        assert!(!is_versioned("microvm") && !is_versioned("virt"));
    }
}
