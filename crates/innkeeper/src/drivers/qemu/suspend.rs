//! Writes a machine's memory and devices into a file that QEMU is handed, and follows it until they are there.
//!
//! ```text
//!  obstacle? ─► file made ─► capabilities ─► descriptor passed ─► migrate ─► MIGRATION events ─► completed ─► fsync
//!                                                                   │ failed, or the future was dropped
//!                                                                   └─► migrate_cancel; `resume` goes on as if nothing had been asked
//! ```
//!
//! QEMU opens no file by itself and starts no program: the file is ours. Its form is `mapped-ram` where QEMU has it (9.0 and later):
//! every page has its place, so that it is written once and read back without seeking; else the stream that every version has. Pages
//! that the guest never touched are not written in either. Source: QEMU `docs/devel/migration`, QMP reference, "Migration".

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use innkeeper_api::{ErrorKind, Unsupported};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::machine::{COMMAND_DEADLINE, QemuMachine, Shared};
use super::ports::{Placement, port_of};
use super::qmp::{Qmp, QmpError, QmpEvent};
use super::served;
use super::shape::Shape;
use crate::driver::{SavedMachine, Suspend, Unsaved};
use crate::error::{Error, Result};

/// Name of the file with memory and devices.
const FILE: &str = "memory";

/// Number of the descriptor set in QEMU, and name of the single descriptor.
const SET: u32 = 1;
const NAME: &str = "saved";

/// Bytes a second that are as good as no limit; the default is 128 MiB/s.
const BANDWIDTH: u64 = 1 << 40;

/// Longest wait for an event before the state is asked for all the same: the control connection may have been made anew.
const EVENT_WAIT: Duration = Duration::from_secs(1);

/// How long a cancelled migration may take to be over.
const SETTLE_DEADLINE: Duration = Duration::from_secs(10);

/// How memory lies in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Form {
    /// One section after the other.
    Stream,
    /// Every page at its place.
    MappedRam,
}

impl Form {
    /// Returns what QEMU is told to write to or read from.
    pub(super) fn uri(self) -> String {
        match self {
            Form::Stream => format!("fd:{NAME}"),
            Form::MappedRam => format!("file:/dev/fdset/{SET}"),
        }
    }

    /// Hands the file over.
    pub(super) async fn hand_over(self, qmp: &Qmp, file: &File) -> Result<(), QmpError> {
        let (command, arguments) = match self {
            Form::Stream => ("getfd", json!({ "fdname": NAME })),
            Form::MappedRam => {
                // What an earlier attempt left; refused where there is no such set.
                let _ = qmp
                    .execute("remove-fd", json!({ "fdset-id": SET }), COMMAND_DEADLINE)
                    .await;
                ("add-fd", json!({ "fdset-id": SET }))
            }
        };
        qmp.pass(command, arguments, file.as_fd(), COMMAND_DEADLINE)
            .await
            .map(drop)
    }

    /// Tells QEMU how the file is to be written or read.
    pub(super) async fn prepare(self, qmp: &Qmp) -> Result<(), QmpError> {
        let mut capabilities = vec![json!({ "capability": "events", "state": true })];
        if self == Form::MappedRam {
            capabilities.push(json!({ "capability": "mapped-ram", "state": true }));
        }
        qmp.execute(
            "migrate-set-capabilities",
            json!({ "capabilities": capabilities }),
            COMMAND_DEADLINE,
        )
        .await?;
        qmp.execute(
            "migrate-set-parameters",
            json!({ "max-bandwidth": BANDWIDTH }),
            COMMAND_DEADLINE,
        )
        .await
        .map(drop)
    }
}

/// What [`SavedMachine::details`] holds for this driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Details {
    /// Name of the file in the directory.
    pub(super) file: String,
    /// How memory lies in it.
    pub(super) form: Form,
    /// What the machine was made of.
    pub(super) shape: Shape,
    /// Where its devices were.
    #[serde(default)]
    pub(super) placement: Placement,
}

/// How often a cancelled migration is looked at that nobody's events tell of.
const CANCELLED_LOOK: Duration = Duration::from_millis(5);

/// How far a migration is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    /// Not over.
    Going,
    /// Everything is written, or read.
    Done,
    /// It failed or was cancelled; QEMU's words for it, if any.
    Failed(String),
}

/// Asks how far a migration is.
pub(super) async fn progress(qmp: &Qmp) -> Result<Progress, QmpError> {
    let reply = qmp
        .execute("query-migrate", json!({}), COMMAND_DEADLINE)
        .await?;
    Ok(read_progress(&reply))
}

/// Reads a reply of `query-migrate`. Source: QMP reference, `MigrationStatus`.
fn read_progress(reply: &Value) -> Progress {
    match reply["status"].as_str() {
        Some("completed") => Progress::Done,
        Some(status @ ("failed" | "cancelled")) => {
            Progress::Failed(reply["error-desc"].as_str().unwrap_or(status).to_owned())
        }
        // Without a status none was begun.
        None => Progress::Failed("QEMU did not begin".to_owned()),
        Some(_) => Progress::Going,
    }
}

/// Cancels what was begun, unless it came to its end.
struct Cancel {
    shared: Arc<Shared>,
    armed: bool,
}

impl Drop for Cancel {
    fn drop(&mut self) {
        if self.armed {
            let shared = self.shared.clone();
            // Cannot be awaited here; `resume` waits until it is over.
            tokio::spawn(async move {
                let _ = shared.execute("migrate_cancel", json!({})).await;
            });
        }
    }
}

#[async_trait]
impl Suspend for QemuMachine {
    async fn save(&self, directory: &Path) -> Result<SavedMachine> {
        if let Some(obstacle) = self.obstacle().await? {
            return Err(Error::new(ErrorKind::Unsupported, obstacle.reason));
        }
        let shared = &self.shared;
        if !Unsaved::present(self).await?.is_empty() {
            return Err(Error::new(
                ErrorKind::Conflict,
                "a device that can't be saved is still in the machine",
            ));
        }
        let qmp = shared.qmp();
        let failed = |error: QmpError| {
            super::launch::qmp_error(error, "QEMU did not write the machine's state")
        };
        let status = super::launch::query_status(&qmp).await.map_err(failed)?;
        if status == "running" {
            return Err(Error::new(
                ErrorKind::Conflict,
                "the CPUs must stand still while the machine is saved",
            ));
        }
        let path = directory.join(FILE);
        let cannot = |error| Error::io(format!("can't write the state {}", path.display()), error);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(cannot)?;
        let form = if has_capability(&qmp, "mapped-ram").await.map_err(failed)? {
            Form::MappedRam
        } else {
            Form::Stream
        };
        let (shape, placement) = shared.now().await?;
        let mut events = shared.signals.subscribe();
        form.prepare(&qmp).await.map_err(failed)?;
        form.hand_over(&qmp, &file).await.map_err(failed)?;
        shared.saving.store(true, Ordering::SeqCst);
        let mut cancel = Cancel {
            shared: shared.clone(),
            armed: true,
        };
        qmp.execute("migrate", json!({ "uri": form.uri() }), COMMAND_DEADLINE)
            .await
            .map_err(failed)?;
        loop {
            match progress(&shared.qmp()).await.map_err(failed)? {
                Progress::Done => break,
                Progress::Failed(why) => {
                    cancel.armed = false;
                    return Err(Error::new(
                        ErrorKind::Failure,
                        format!("QEMU could not write the machine's state: {why}"),
                    ));
                }
                Progress::Going => next_event(&mut events, "MIGRATION").await,
            }
        }
        cancel.armed = false;
        if form == Form::MappedRam {
            // QEMU keeps its copy of the descriptor until then.
            let _ = shared
                .execute("remove-fd", json!({ "fdset-id": SET }))
                .await;
        }
        let directory_path = directory.to_owned();
        let synced = tokio::task::spawn_blocking(move || {
            file.sync_all()?;
            File::open(&directory_path)?.sync_all()
        });
        match synced.await {
            Ok(result) => result.map_err(cannot)?,
            Err(error) => {
                return Err(
                    Error::new(ErrorKind::Failure, "the state was not synced").with_source(error)
                );
            }
        }
        let details = Details {
            file: FILE.to_owned(),
            form,
            shape,
            placement,
        };
        Ok(SavedMachine {
            directory: directory.to_owned(),
            version: shared.record.version.clone(),
            details: serde_json::to_value(details).map_err(|error| {
                Error::new(ErrorKind::Failure, "the state's details can't be written")
                    .with_source(error)
            })?,
        })
    }

    async fn obstacle(&self) -> Result<Option<Unsupported>> {
        let present = self.shared.present().await?;
        let mut fixed = false;
        let mut served = false;
        for device in &present {
            if served::name_of(&device.id).is_some() {
                let bus = self.shared.bus_of(&device.id).await?;
                let movable = bus.as_deref().and_then(port_of).is_some();
                served |= movable;
                fixed |= !movable;
            }
        }
        let reply = self.shared.execute("query-migrate", json!({})).await?;
        let reasons: Vec<&str> = reply["blocked-reasons"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let has = |driver: &str| {
            present
                .iter()
                .any(|device| device.driver.starts_with(driver))
        };
        let (nvme, vsock) = (has("nvme"), has("vhost-user-vsock"));
        // What remains when those that can be taken out are out is asked again before anything is written.
        if !fixed && (reasons.is_empty() || (served && !nvme && !vsock)) {
            return Ok(None);
        }
        Ok(Some(if fixed {
            Unsupported {
                field: "shares".to_owned(),
                reason: "a VM with a shared folder that can't be taken out while it runs can't be saved: what its virtiofsd knows of open files is in no file".to_owned(),
                hint: Some("stop it instead; with machine: q35 its shares can be taken out".to_owned()),
            }
        } else if vsock {
            Unsupported {
                field: "vsock".to_owned(),
                reason: "a VM with a vsock device can't be saved: what its vhost-device-vsock knows of open connections is in no file".to_owned(),
                hint: Some("stop it instead, or set `vsock=false` while it is off: then its agent joins the ports".to_owned()),
            }
        } else if nvme {
            Unsupported {
                field: "disks".to_owned(),
                reason: "a VM with an NVMe disk can't be saved: QEMU does not save NVMe drives"
                    .to_owned(),
                hint: Some("use bus: virtio".to_owned()),
            }
        } else {
            Unsupported {
                field: String::new(),
                reason: format!("QEMU can't save this machine: {}", reasons.join("; ")),
                hint: None,
            }
        }))
    }
}

impl Shared {
    /// Waits until a save that was cancelled or failed is over, so that the CPUs can go on.
    pub(super) async fn settle(&self) -> Result<()> {
        if !self.saving.load(Ordering::SeqCst) {
            return Ok(());
        }
        let mut events = self.signals.subscribe();
        let settled = async {
            while progress(&self.qmp()).await? == Progress::Going {
                next_event(&mut events, "MIGRATION").await;
            }
            Ok::<(), QmpError>(())
        };
        match tokio::time::timeout(SETTLE_DEADLINE, settled).await {
            Ok(Ok(())) => {
                self.saving.store(false, Ordering::SeqCst);
                Ok(())
            }
            Ok(Err(error)) => Err(super::launch::qmp_error(
                error,
                "QEMU does not tell whether saving is over",
            )),
            Err(_) => Err(Error::new(
                ErrorKind::TimedOut,
                "QEMU is still saving the machine's state",
            )),
        }
    }
}

/// Cancels a save that nobody waits for any more, because whoever began it is dead: at its end QEMU would stop the CPUs, though they may
/// have been let go by then.
pub(super) async fn cancel_orphaned(qmp: &Qmp) -> Result<(), QmpError> {
    if progress(qmp).await? != Progress::Going {
        return Ok(());
    }
    qmp.execute("migrate_cancel", json!({}), COMMAND_DEADLINE)
        .await?;
    let over = async {
        while progress(qmp).await? == Progress::Going {
            // poll: query-migrate tells that it is over
            tokio::time::sleep(CANCELLED_LOOK).await;
        }
        Ok(())
    };
    // Whoever resumes it is told if it is not over by then.
    tokio::time::timeout(SETTLE_DEADLINE, over)
        .await
        .unwrap_or(Ok(()))
}

/// Waits for an event of a name; returns as well when some were lost or none came for a while, so that the caller asks anew.
pub(super) async fn next_event(events: &mut broadcast::Receiver<QmpEvent>, name: &str) {
    let wanted = async {
        loop {
            match events.recv().await {
                Ok(event) if event.name == name => return,
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(_)) => return,
                // Nobody follows the monitor; only the time limit is left.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    };
    // poll: what the caller asks QEMU for next
    let _ = tokio::time::timeout(EVENT_WAIT, wanted).await;
}

/// Asks whether QEMU has a migration capability.
async fn has_capability(qmp: &Qmp, name: &str) -> Result<bool, QmpError> {
    let reply = qmp
        .execute("query-migrate-capabilities", json!({}), COMMAND_DEADLINE)
        .await?;
    Ok(reply
        .as_array()
        .into_iter()
        .flatten()
        .any(|entry| entry["capability"] == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_is_over_only_when_qemu_says_so() {
        for (reply, expected) in [
            (json!({ "status": "setup" }), Progress::Going),
            (json!({ "status": "cancelling" }), Progress::Going),
            (json!({ "status": "a-new-word" }), Progress::Going),
            (json!({ "status": "completed" }), Progress::Done),
            (
                json!({ "status": "failed", "error-desc": "No space" }),
                Progress::Failed("No space".to_owned()),
            ),
            (
                json!({ "status": "cancelled" }),
                Progress::Failed("cancelled".to_owned()),
            ),
            (json!({}), Progress::Failed("QEMU did not begin".to_owned())),
        ] {
            assert_eq!(read_progress(&reply), expected, "{reply}");
        }
    }
}
