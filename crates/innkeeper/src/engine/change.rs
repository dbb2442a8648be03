//! Changing the spec of a VM.

use std::time::Duration;

use innkeeper_api::{ApplyOutcome, ApplyRequest, ErrorKind};

use super::{Engine, live_change};
use crate::error::{Error, Result};
use crate::host::SpecChange;
use crate::keeper::KeeperClient;
use crate::spec::{self, VmSpec};
use crate::store::Bundle;

/// A spec that was replaced.
pub(crate) struct Replaced {
    /// What is asked now.
    pub spec: VmSpec,
    /// Fields that changed.
    pub fields: Vec<String>,
}

/// Replaces the text of the spec. The caller holds the VM's lock.
///
/// Errors: `Conflict` if the text is not `expected` any more, `BadInput` if the new one is wrong or changes what is fixed for life.
pub(crate) fn replace(bundle: &Bundle, expected: &str, text: &str) -> Result<Replaced> {
    if bundle.spec_text()? != expected {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "the spec of {} was changed by somebody else meanwhile",
                bundle.name()
            ),
        )
        .with_hint("look at it again, then repeat the change"));
    }
    let replaced = compare(bundle, text)?;
    bundle.write_spec_text(text)?;
    Ok(replaced)
}

/// Checks a new text against the present one.
fn compare(bundle: &Bundle, text: &str) -> Result<Replaced> {
    let new = spec::read(text, &bundle.path("vm.yaml").to_string_lossy())?;
    // The present text may be broken by a hand edit; then the new one is judged alone.
    let Ok(old) = bundle.spec() else {
        return Ok(Replaced {
            spec: new,
            fields: Vec::new(),
        });
    };
    let fixed = |field: &str, hint: &str| {
        Err(Error::new(
            ErrorKind::BadInput,
            format!("{field} can't be changed after a VM was created"),
        )
        .with_hint(hint))
    };
    if new.image != old.image {
        return fixed("image", "create another VM from the other image");
    }
    if new.arch != old.arch {
        return fixed("arch", "create another VM of the other architecture");
    }
    if new.machine != old.machine {
        return fixed("machine", "create another VM with the other machine type");
    }
    if new.driver != old.driver {
        return fixed("driver", "create another VM with the other driver");
    }
    for disk in &old.disks {
        match new.disks.iter().find(|other| other.name == disk.name) {
            None if disk.is_own() => {
                return fixed(
                    &format!("disks.{}", disk.name),
                    "its data would be lost; remove the VM, or keep the disk",
                );
            }
            Some(other) if other.is_own() && (other.size < disk.size) => {
                return fixed(
                    &format!("disks.{}.size to a smaller one", disk.name),
                    "a disk can only grow",
                );
            }
            _ => {}
        }
    }
    let fields = spec::differences(&new, &old);
    Ok(Replaced { spec: new, fields })
}

impl Engine {
    /// Replaces the spec of a VM, through its keeper if it has one.
    pub(crate) async fn replace_spec(
        &self,
        name: &str,
        expected: &str,
        text: &str,
        dry_run: bool,
        timeout: Duration,
    ) -> Result<SpecChange> {
        let bundle = self.root.bundle(name)?;
        let Replaced { spec, fields } = compare(&bundle, text)?;
        self.check_against_host(&spec)?;
        if !dry_run {
            self.write_spec(&bundle, expected, text).await?;
        }
        let running = self.look(&bundle).await?.vmm_pid.is_some();
        let not_ours = fields
            .iter()
            .filter(|field| running && !spec::is_live(field))
            .cloned();
        let mut change = SpecChange {
            restart_required: not_ours.collect(),
            changed: fields,
            applied: Vec::new(),
            later: Vec::new(),
        };
        if change.restart_required.is_empty() {
            return Ok(change);
        }
        if dry_run {
            let applied = bundle.applied_spec()?.unwrap_or_else(|| spec.clone());
            let now = |field: &String| {
                live_change::plan(&spec, &applied).iter().any(|step| {
                    step.step.is_ok() && (step.field == *field || step.also.contains(field))
                })
            };
            change.applied = change
                .restart_required
                .iter()
                .filter(|field| now(field))
                .cloned()
                .collect();
        } else {
            let outcome = self.apply(&bundle, timeout).await?;
            change.applied = outcome.applied;
            change.later = outcome.later;
        }
        let applied = &change.applied;
        change
            .restart_required
            .retain(|field| !applied.contains(field));
        Ok(change)
    }

    /// Gives a running VM what its spec asks for by now.
    async fn apply(&self, bundle: &Bundle, timeout: Duration) -> Result<ApplyOutcome> {
        let request = ApplyRequest {
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        };
        self.need_keeper(bundle)
            .await?
            .ask("/v1/vm/apply", &request)
            .await
            .map_err(|error| {
                error.while_doing(format!(
                    "{} has the new spec, and runs on as it was",
                    bundle.name()
                ))
            })
    }

    async fn write_spec(&self, bundle: &Bundle, expected: &str, text: &str) -> Result<()> {
        let identity = bundle.identity()?;
        let keeper = KeeperClient::new(bundle.name(), self.keeper_socket(&identity));
        let request = crate::keeper::SpecRequest {
            expected: expected.to_owned(),
            text: text.to_owned(),
        };
        match keeper.ask::<()>("/v1/vm/spec", &request).await {
            Err(error) if error.kind() == ErrorKind::Unreachable => {}
            other => return other,
        }
        let _lock = self.lock(bundle).await?;
        let replaced = replace(bundle, expected, text)?;
        self.note(
            Some(bundle.name()),
            innkeeper_api::EventKind::SpecChanged {
                fields: replaced.fields,
            },
        );
        Ok(())
    }
}
