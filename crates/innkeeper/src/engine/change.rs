//! Changing the spec of a VM.

use innkeeper_api::ErrorKind;

use super::Engine;
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
            None if disk.path.is_none() => {
                return fixed(
                    &format!("disks.{}", disk.name),
                    "its data would be lost; remove the VM, or keep the disk",
                );
            }
            Some(other) if other.path.is_none() && (other.size < disk.size) => {
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
    ) -> Result<SpecChange> {
        let bundle = self.root.bundle(name)?;
        let Replaced { spec, fields } = compare(&bundle, text)?;
        self.check_against_host(&spec)?;
        if !dry_run {
            self.write_spec(&bundle, expected, text).await?;
        }
        let running = self.look(&bundle).await?.vmm_pid.is_some();
        let restart_required = fields
            .iter()
            .filter(|field| running && !spec::is_live(field))
            .cloned()
            .collect();
        Ok(SpecChange {
            changed: fields,
            restart_required,
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
