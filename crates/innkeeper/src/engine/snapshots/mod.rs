//! Snapshots of VMs: made, told, gone back to, merged away.
//!
//! ```text
//!  the VM stands still (stopped, suspended) ─► its lock ─► settle ─► Work ─► new files ─► one write of the graph ─► the rest
//!  it runs ─► refused
//! ```
//! An interrupted command leaves the old or the new state: see `settle`.

mod kept;
mod merge;
mod settle;
#[cfg(all(test, feature = "testing"))]
mod tests;
mod told;
mod work;

use innkeeper_api::{Capability, ErrorKind, EventKind};
use innkeeper_image::{FrozenId, disk};

use super::Engine;
use crate::error::{Error, Result};
use crate::machine::Request;
use crate::snapshot::{Node, Origin, SnapshotCost, SnapshotDone};
use crate::store::{Bundle, FileLock};

pub(crate) use settle::{settle, top_file};
pub(crate) use work::{Opened, Wanted, Way, Work};

/// Where a fault-injection test may end this process.
fn step() {
    #[cfg(feature = "testing")]
    crate::testing::faults::step();
}

/// What a revert does with the state that it leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Present {
    /// Save it as a snapshot of its own first, unless nothing was changed.
    Save,
    /// Let it be lost.
    Discard,
}

impl Engine {
    /// Takes the lock of a VM that does not run.
    pub(super) async fn still(&self, bundle: &Bundle) -> Result<FileLock> {
        self.may(bundle, Request::Snapshot).await?;
        let lock = self.lock(bundle).await?;
        self.may_now(bundle, Request::Snapshot)?;
        Ok(lock)
    }

    /// Chooses how the disks of a VM are kept apart, by what its file system and its hypervisor can.
    async fn way(&self, bundle: &Bundle) -> Result<Way> {
        if disk::capabilities(&bundle.path("disks"))?.reflink {
            return Ok(Way::Share);
        }
        let report = self.driver(&bundle.identity()?.driver)?.probe().await;
        let overlays = report
            .capabilities
            .iter()
            .any(|entry| entry.capability == Capability::DiskQcow2 && entry.lacking.is_none());
        Ok(if overlays { Way::Overlay } else { Way::Copy })
    }

    pub(super) async fn work<'a>(&'a self, bundle: &'a Bundle) -> Result<Work<'a>> {
        Ok(Work {
            images: &self.images,
            bundle,
            way: self.way(bundle).await?,
        })
    }

    /// Makes a snapshot of a VM.
    pub(crate) async fn snapshot_create(
        &self,
        name: &str,
        snapshot: Option<&str>,
        description: &str,
        origin: Origin,
    ) -> Result<SnapshotDone> {
        let bundle = self.root.bundle(name)?;
        let _lock = self.still(&bundle).await?;
        let work = self.work(&bundle).await?;
        let wanted = Wanted {
            name: snapshot.map(str::to_owned),
            description: description.to_owned(),
            origin,
        };
        let (id, copied_bytes) = work
            .create(&wanted)
            .map_err(|error| error.while_doing(format!("can't make a snapshot of {name}")))?;
        let done = self.done(&work, &id, copied_bytes)?;
        self.note_snapshot(&bundle, format!("snapshot {} made", done.snapshot.name));
        Ok(done)
    }

    /// Puts a VM back to where it was when a snapshot was made.
    pub(crate) async fn snapshot_revert(
        &self,
        name: &str,
        snapshot: &str,
        present: Present,
    ) -> Result<SnapshotDone> {
        let bundle = self.root.bundle(name)?;
        let _lock = self.still(&bundle).await?;
        let work = self.work(&bundle).await?;
        let opened = work.open()?;
        let node = opened.graph.find(snapshot)?.clone();
        let (mut saved, mut copied) = (None, 0);
        let failed =
            |error: Error| error.while_doing(format!("can't put {name} back to {}", node.name));
        if present == Present::Save && !work.is_untouched(&opened)? {
            let wanted = Wanted {
                name: Some(opened.graph.free_name(&before(&node.name))),
                description: format!("what {name} was before it went back to {}", node.name),
                origin: Origin::Revert,
            };
            let (id, more) = work.create(&wanted).map_err(failed)?;
            saved = Some(id);
            copied += more;
        }
        copied += work.revert(&node.id).map_err(failed)?;
        work.merge().await.map_err(|error| {
            error.while_doing(format!(
                "{name} is back at {}; what it left was not tidied up",
                node.name
            ))
        })?;
        let mut done = self.done(&work, &node.id, copied)?;
        done.saved = match saved {
            Some(id) => Some(self.done(&work, &id, 0)?.snapshot),
            None => None,
        };
        self.note_snapshot(&bundle, format!("back at snapshot {}", node.name));
        Ok(done)
    }

    /// Removes a snapshot; what others read through is merged.
    pub(crate) async fn snapshot_remove(&self, name: &str, snapshot: &str) -> Result<SnapshotDone> {
        let bundle = self.root.bundle(name)?;
        let _lock = self.still(&bundle).await?;
        let work = self.work(&bundle).await?;
        let opened = work.open()?;
        let node = opened.graph.find(snapshot)?.clone();
        let clones = self.clones_of(&opened.identity.id, layers_of(&node))?;
        refuse_clones(&format!("snapshot {} of {name}", node.name), &clones)?;
        let mut done = self.done(&work, &node.id, 0)?;
        work.remove(&node.id)?;
        self.note_snapshot(&bundle, format!("snapshot {} removed", node.name));
        done.copied_bytes = work.merge().await.map_err(|error| {
            error.while_doing(format!(
                "{} is removed, but its space is not free yet",
                node.name
            ))
        })?;
        Ok(done)
    }

    /// Changes name or description of a snapshot.
    pub(crate) async fn snapshot_edit(
        &self,
        name: &str,
        snapshot: &str,
        new_name: Option<&str>,
        description: Option<&str>,
    ) -> Result<SnapshotDone> {
        let bundle = self.root.bundle(name)?;
        let _lock = self.still(&bundle).await?;
        let work = self.work(&bundle).await?;
        let opened = work.open()?;
        let node = opened.graph.find(snapshot)?.clone();
        if let Some(new) = new_name.filter(|new| *new != node.name) {
            opened.graph.check_name(new)?;
        }
        work.edit(&node.id, |node| {
            if let Some(new) = new_name {
                new.clone_into(&mut node.name);
            }
            if let Some(description) = description {
                description.clone_into(&mut node.description);
            }
        })?;
        self.done(&work, &node.id, 0)
    }

    /// Tells what making a snapshot would do.
    pub(crate) async fn plan_snapshot_create(&self, name: &str) -> Result<SnapshotCost> {
        let bundle = self.root.bundle(name)?;
        self.may(&bundle, Request::Snapshot).await?;
        let work = self.work(&bundle).await?;
        let (way, copies_bytes) = work.cost_of_freezing()?;
        Ok(SnapshotCost {
            steps: vec![format!("make a snapshot of {name}, {way}")],
            copies_bytes,
        })
    }

    /// Tells what going back to a snapshot would do.
    pub(crate) async fn plan_snapshot_revert(
        &self,
        name: &str,
        snapshot: &str,
        present: Present,
    ) -> Result<SnapshotCost> {
        let bundle = self.root.bundle(name)?;
        self.may(&bundle, Request::Snapshot).await?;
        let work = self.work(&bundle).await?;
        let opened = work.look()?;
        let node = opened.graph.find(snapshot)?;
        let mut steps = Vec::new();
        let mut copies_bytes = work.cost_of_revert(node)?;
        if work.is_untouched(&opened)? {
            steps.push("save nothing of the present state, which was not changed".to_owned());
        } else if present == Present::Save {
            let saved = opened.graph.free_name(&before(&node.name));
            steps.push(format!("save the present state as {saved}"));
            copies_bytes += work.cost_of_freezing()?.1;
        } else {
            steps.push("lose the present state".to_owned());
        }
        steps.push(format!("put {name} back to {}", node.name));
        Ok(SnapshotCost {
            steps,
            copies_bytes,
        })
    }

    /// Tells what removing a snapshot would do.
    pub(crate) async fn plan_snapshot_remove(
        &self,
        name: &str,
        snapshot: &str,
    ) -> Result<SnapshotCost> {
        let bundle = self.root.bundle(name)?;
        self.may(&bundle, Request::Snapshot).await?;
        let work = self.work(&bundle).await?;
        let opened = work.look()?;
        let node = opened.graph.find(snapshot)?;
        let clones = self.clones_of(&opened.identity.id, layers_of(node))?;
        refuse_clones(&format!("snapshot {} of {name}", node.name), &clones)?;
        Ok(SnapshotCost {
            steps: vec![format!("remove snapshot {} of {name}", node.name)],
            copies_bytes: work.merge_cost(&opened, std::slice::from_ref(&node.id))?,
        })
    }

    /// Refuses to remove a VM whose layers other VMs read.
    pub(super) fn must_have_no_clones(&self, bundle: &Bundle) -> Result<()> {
        refuse_clones(bundle.name(), &self.clones(bundle)?)
    }

    /// Names the VMs that read layers of this one.
    pub(crate) fn clones(&self, bundle: &Bundle) -> Result<Vec<String>> {
        // One that is damaged can be removed all the same: its layers stay while others need them.
        let (Ok(identity), Ok(Some(graph))) = (bundle.identity(), bundle.snapshots()) else {
            return Ok(Vec::new());
        };
        // What it reads itself as a clone is not its own: its siblings are no children of it.
        let inherited = identity.cloned.map(|from| from.layers).unwrap_or_default();
        let own = graph.layers.into_keys();
        let own = own.filter(|id| !inherited.contains(id)).collect();
        self.clones_of(&identity.id, own)
    }

    /// Names the other VMs that need one of these layers.
    fn clones_of(&self, owner: &str, layers: Vec<FrozenId>) -> Result<Vec<String>> {
        let mut users = std::collections::BTreeSet::new();
        for layer in layers {
            users.extend(self.images.frozen_users(&layer)?);
        }
        users.remove(owner);
        if users.is_empty() {
            return Ok(Vec::new());
        }
        let mut names = Vec::new();
        for name in self.root.names()? {
            let identity = self.root.bundle_at(&name).identity();
            if identity.is_ok_and(|identity| users.contains(&identity.id)) {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Finds what interrupted snapshots and clones left and, unless `dry_run`, removes it; a sentence each.
    pub(crate) fn clear_away_snapshots(&self, dry_run: bool) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for name in self.root.names()? {
            let bundle = self.root.bundle_at(&name);
            let Ok(Some(_)) = bundle.snapshots() else {
                continue;
            };
            // Who is at work on it holds its lock, and removes what it leaves.
            let Some(_lock) = bundle.try_lock()? else {
                continue;
            };
            let Ok(identity) = bundle.identity() else {
                continue;
            };
            if bundle.snapshots_or_new(&identity)?.generation > identity.generation {
                found.push(format!(
                    "a change of snapshots of {name} that was interrupted"
                ));
                if dry_run {
                    continue;
                }
                settle(&self.images, &bundle)?;
            }
            let identity = bundle.identity()?;
            let graph = bundle.snapshots_or_new(&identity)?;
            found.extend(settle::sweep(
                &self.images,
                &bundle,
                &identity,
                &graph,
                dry_run,
            )?);
        }
        let run = match dry_run {
            true => innkeeper_image::Run::Dry,
            false => innkeeper_image::Run::Real,
        };
        // Read only now: a clone in the making wrote its identity before it leased anything.
        let owners = std::cell::OnceCell::new();
        let swept = self.images.sweep_frozen(run, |user| {
            owners
                .get_or_init(|| self.root.owners())
                .iter()
                .any(|owner| owner == user)
        })?;
        found.extend(swept.iter().map(|id| {
            let path = self.images.frozen_path(id);
            format!("a layer that nobody needs: {}", path.display())
        }));
        Ok(found)
    }

    fn note_snapshot(&self, bundle: &Bundle, message: String) {
        self.note(Some(bundle.name()), EventKind::Note { message });
    }
}

fn layers_of(node: &Node) -> Vec<FrozenId> {
    node.disks.iter().map(|disk| disk.layer.clone()).collect()
}

fn refuse_clones(what: &str, clones: &[String]) -> Result<()> {
    if clones.is_empty() {
        return Ok(());
    }
    let message = format!("{what} is needed by its clones: {}", clones.join(", "));
    Err(Error::new(ErrorKind::Conflict, message)
        .with_hint("remove those first; a clone made with --full needs nothing of its origin"))
}

/// Returns the name of what a revert saves.
fn before(name: &str) -> String {
    let stem = name.trim_start_matches("before-");
    // A name has at most 64 bytes, and may still get a number.
    format!("before-{}", stem.get(..48).unwrap_or(stem))
}
