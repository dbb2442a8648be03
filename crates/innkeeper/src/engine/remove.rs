//! Removing and renaming VMs, and clearing away what crashes left.

use innkeeper_api::{ErrorKind, EventKind, VmState};

use super::Engine;
use crate::error::{Error, Result};
use crate::machine::{Decision, Operation, Power, Request, admit};
use crate::spec;
use crate::store::{Bundle, Identity};

impl Engine {
    /// Removes a VM; a running one only with `force`, by killing it first.
    pub(crate) async fn remove(&self, name: &str, force: bool) -> Result<()> {
        let bundle = self.root.bundle(name)?;
        self.may(&bundle, Request::Remove { force }).await?;
        self.must_have_no_clones(&bundle)?;
        // Without an identity there is no way to its keeper; the lock, taken below, says whether it has one.
        if force && !bundle.is_suspended() && bundle.identity().is_ok() {
            self.kill(name).await?;
        }
        let _lock = self.lock(&bundle).await?;
        self.may_now(&bundle, Request::Remove { force })?;
        self.must_have_no_clones(&bundle)?;
        // A VM whose identity can't be read can be removed all the same.
        let identity = bundle.identity().ok();
        let hidden = self.root.begin_deleting(&bundle)?;
        self.finish_removing(identity.as_ref(), &hidden)?;
        // Last: on a full disk there is space for it only now.
        self.note(Some(name), EventKind::Removed);
        Ok(())
    }

    fn finish_removing(&self, identity: Option<&Identity>, hidden: &std::path::Path) -> Result<()> {
        if let Some(identity) = identity {
            self.release(identity)?;
            self.root.remove_socket_directory(&identity.id);
        }
        std::fs::remove_dir_all(hidden)
            .map_err(|error| Error::io(format!("can't remove {}", hidden.display()), error))
    }

    /// Asks, before anything is done, whether a request would be admitted.
    pub(super) async fn may(&self, bundle: &Bundle, request: Request) -> Result<()> {
        let (power, protected) = match self.look(bundle).await {
            Ok(info) if info.vmm_pid.is_some() || info.keeper_pid.is_some() => {
                (Power::Running, info.protected)
            }
            Ok(info) if info.state == VmState::Suspended => (Power::Suspended, info.protected),
            Ok(info) => (Power::Stopped, info.protected),
            Err(_) => (Power::Stopped, false),
        };
        decide(bundle, admit(Operation::None, &power, protected, request))
    }

    /// Asks again with the lock held, when nothing can change any more.
    pub(super) fn may_now(&self, bundle: &Bundle, request: Request) -> Result<()> {
        let power = if bundle.hypervisor_lives()? {
            Power::Running
        } else if bundle.is_suspended() {
            Power::Suspended
        } else {
            Power::Stopped
        };
        let protected = bundle.spec().is_ok_and(|spec| spec.protected);
        if power == Power::Running {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("{} was started meanwhile", bundle.name()),
            ));
        }
        decide(bundle, admit(Operation::None, &power, protected, request))
    }

    /// Throws away what was saved of a suspended VM; it is stopped then.
    pub(crate) async fn discard_saved(&self, name: &str) -> Result<()> {
        let bundle = self.root.bundle(name)?;
        self.may(&bundle, Request::Discard).await?;
        let _lock = self.lock(&bundle).await?;
        self.may_now(&bundle, Request::Discard)?;
        if !bundle.is_suspended() {
            return Ok(());
        }
        bundle.discard_saved()?;
        self.note(
            Some(name),
            EventKind::State {
                from: VmState::Suspended,
                to: VmState::Stopped,
                reason: Some("what was saved was thrown away".to_owned()),
            },
        );
        Ok(())
    }

    /// Gives a stopped VM another name.
    pub(crate) async fn rename(&self, from: &str, to: &str) -> Result<()> {
        let bundle = self.root.bundle(from)?;
        self.may(&bundle, Request::Rename).await?;
        let _lock = self.lock(&bundle).await?;
        self.may_now(&bundle, Request::Rename)?;
        self.root.rename(&bundle, to)?;
        self.note(
            Some(to),
            EventKind::Renamed {
                from: from.to_owned(),
            },
        );
        Ok(())
    }

    /// Sets or lifts the protection of a VM.
    pub(crate) async fn protect(&self, name: &str, protect: bool) -> Result<()> {
        let bundle = self.root.bundle(name)?;
        let text = bundle.spec_text()?;
        let edit = spec::Edit {
            path: "protected".to_owned(),
            value: protect.then(|| "true".to_owned()),
        };
        let new = spec::edit(&text, &[edit])?;
        let timeout = std::time::Duration::ZERO;
        let change = self.replace_spec(name, &text, &new, false, timeout);
        change.await.map(drop)
    }

    /// Finds what crashes left half-made and, unless `dry_run`, removes it. Returns what was found, a sentence each.
    pub(crate) fn clear_away(&self, dry_run: bool) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for hidden in self.root.leftovers()? {
            found.push(format!(
                "left by a command that was interrupted: {}",
                hidden.display()
            ));
            if !dry_run {
                let identity = crate::store::read_json::<Identity>(&hidden.join("identity.json"))
                    .ok()
                    .flatten();
                self.finish_removing(identity.as_ref(), &hidden)?;
            }
        }
        for name in self.root.names()? {
            let bundle = self.root.bundle_at(&name);
            if !bundle.is_half_saved() {
                continue;
            }
            // Who is saving it holds its lock.
            let Some(_lock) = bundle.try_lock()? else {
                continue;
            };
            if bundle.hypervisor_lives()? {
                continue;
            }
            found.push(format!(
                "left by a suspend that was interrupted: {}",
                bundle.path("saved.new").display()
            ));
            if !dry_run {
                bundle.give_up_saving()?;
            }
        }
        Ok(found)
    }
}

fn decide(bundle: &Bundle, decision: Decision) -> Result<()> {
    match decision {
        Decision::Enqueue | Decision::AlreadySo => Ok(()),
        Decision::Denied(reason, hint) => {
            let error = Error::new(
                ErrorKind::Conflict,
                format!("can't do that to {}: {reason}", bundle.name()),
            );
            Err(hint.map_or(error, |hint| {
                Error::new(
                    ErrorKind::Conflict,
                    format!("can't do that to {}: {reason}", bundle.name()),
                )
                .with_hint(hint)
            }))
        }
    }
}
