//! Saving the guest's memory, and watching that nothing that was saved is used after its CPUs have run on.
//!
//! ```text
//!  Paused ── save ──► memory on disk ── resume ──► its id is spent: a restore of it from now on breaks the contract
//!  restored ──────────────────────────── resume ──► the same, and the directory must be gone from where it was restored from
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use innkeeper::api::ErrorKind;
use innkeeper::drivers::fake::{ControlAnswer, DiskMark, GuestState, Plan, SavedGuest};

use crate::guest::{Guest, random_word};
use crate::run::broken;

/// Name of the file with memory.
const FILE: &str = "memory";
/// How often a slow save looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(2);

/// What was saved of this guest, and what it was restored from.
pub(crate) struct Saving {
    /// Number of the present attempt; a change ends it.
    attempt: u64,
    busy: bool,
    /// Ids of what was saved since the CPUs ran last.
    saved: Vec<String>,
    /// Where it was restored from, until its CPUs run.
    restored_from: Option<PathBuf>,
}

impl Saving {
    pub(crate) fn new(plan: &Plan, restored: Option<&SavedGuest>) -> Saving {
        Saving {
            attempt: 0,
            busy: false,
            saved: restored.iter().map(|saved| saved.id.clone()).collect(),
            restored_from: plan.restore.clone(),
        }
    }

    pub(crate) fn is_restored(&self) -> bool {
        self.restored_from.is_some()
    }

    /// The CPUs are about to run; says whether they do so for the first time since a restore.
    pub(crate) fn let_go(&mut self, plan: &Plan) -> bool {
        self.attempt += 1;
        self.busy = false;
        let from = self.restored_from.take();
        if from.as_deref().is_some_and(Path::exists) {
            broken(
                plan,
                "its CPUs were let go while what was saved could be used again",
            );
        }
        for id in self.saved.drain(..) {
            if let Err(error) = spend(plan, &id) {
                broken(
                    plan,
                    &format!("what is spent can't be written down: {error}"),
                );
            }
        }
        from.is_some()
    }
}

/// Where ids are written down whose CPUs have run on.
fn spent(plan: &Plan) -> PathBuf {
    plan.violations.with_extension("spent")
}

fn spend(plan: &Plan, id: &str) -> io::Result<()> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(spent(plan))?
        .write_all(format!("{id}\n").as_bytes())
}

/// Reads what is to be restored, and checks that whoever asks for it may.
pub(crate) fn read(plan: &Plan, directory: &Path) -> SavedGuest {
    let path = directory.join(FILE);
    let read = std::fs::read(&path)
        .and_then(|text| serde_json::from_slice::<SavedGuest>(&text).map_err(io::Error::from));
    let saved = match read {
        Ok(saved) => saved,
        Err(error) => broken(
            plan,
            &format!(
                "restored from {}, which can't be read: {error}",
                path.display()
            ),
        ),
    };
    if std::fs::read_to_string(spent(plan))
        .is_ok_and(|spent| spent.lines().any(|id| id == saved.id))
    {
        broken(
            plan,
            "restored from what was saved before its CPUs had run on",
        );
    }
    if let Some((field, then, now)) = saved.differences(plan).first() {
        broken(
            plan,
            &format!("restored as another machine: {field} was {then}, and is {now}"),
        );
    }
    for disk in plan.disks.iter().filter(|disk| !disk.read_only) {
        if DiskMark::of(disk).is_none_or(|mark| !saved.disks.contains(&mark)) {
            broken(
                plan,
                &format!(
                    "restored though its disk {} was written to since",
                    disk.name
                ),
            );
        }
    }
    saved
}

/// Saves the guest beside everything else; `answer` is called when it is done or was broken off.
pub(crate) fn save(
    guest: &Arc<Guest>,
    directory: PathBuf,
    answer: impl FnOnce(ControlAnswer) + Send + 'static,
) {
    let plan = &guest.plan;
    let attempt = {
        let mut inside = guest.inside();
        if inside.state != GuestState::Paused {
            broken(plan, "told to save while its CPUs do not stand still");
        }
        if std::mem::replace(&mut inside.saving.busy, true) {
            broken(plan, "told to save while it saves");
        }
        inside.saving.attempt += 1;
        inside.saving.attempt
    };
    // A save that was given up before it was taken up finds its directory gone, and fails.
    let strange = match std::fs::read_dir(&directory) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    };
    if !directory.is_absolute() || strange {
        broken(
            plan,
            &format!(
                "told to save into {}, which is no empty directory",
                directory.display()
            ),
        );
    }
    let guest = guest.clone();
    std::thread::spawn(move || {
        let result = write(&guest, &directory, attempt);
        answer(match result {
            Ok(()) => ControlAnswer::Done,
            Err((kind, why)) => ControlAnswer::Refused(kind, why),
        });
    });
}

fn write(guest: &Guest, directory: &Path, attempt: u64) -> Result<(), (ErrorKind, String)> {
    let script = &guest.plan.script;
    let failed = |error: io::Error| (ErrorKind::Failure, format!("can't save: {error}"));
    let path = directory.join(FILE);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .map_err(failed)?;
    file.write_all(b"{").map_err(failed)?;
    let mut left = Duration::from_millis(script.save_delay_ms);
    while !left.is_zero() {
        // Held by nobody: it paces a save that a trial wants slow.
        std::thread::sleep(left.min(LOOK));
        left = left.saturating_sub(LOOK);
        if guest.inside().saving.attempt != attempt {
            return Err((ErrorKind::Interrupted, "it was broken off".to_owned()));
        }
    }
    let mut inside = guest.inside();
    if inside.saving.attempt != attempt {
        return Err((ErrorKind::Interrupted, "it was broken off".to_owned()));
    }
    inside.saving.busy = false;
    if script.save_fail {
        return Err((
            ErrorKind::NoSpace,
            "no space is left for what is saved, as told".to_owned(),
        ));
    }
    let id = random_word().map_err(failed)?;
    let saved = SavedGuest {
        id: id.clone(),
        memory: inside.memory.clone(),
        cpus: inside.devices.cpus,
        memory_size: inside.devices.memory,
        disks: inside.devices.marks(),
        drives: inside.devices.drive_names(),
        nics: inside.devices.nic_names(),
    };
    let text = serde_json::to_vec(&saved).map_err(|error| failed(error.into()))?;
    // What was begun is not what is meant: the whole file is.
    std::fs::write(&path, text)
        .and_then(|()| file.sync_all())
        .and_then(|()| File::open(directory)?.sync_all())
        .map_err(failed)?;
    inside.saving.saved.push(id);
    Ok(())
}
