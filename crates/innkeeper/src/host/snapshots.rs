//! Snapshots of VMs, for programs.

use super::{CloneKind, Cloned, Host};
pub use crate::engine::snapshots::Present;
use crate::error::Result;
use crate::progress::Progress;
use crate::snapshot::{
    Origin, SnapshotCost, SnapshotDifference, SnapshotDone, SnapshotInfo, SnapshotTree,
};

impl Host {
    /// Makes a snapshot of a VM that does not run; a suspended one's with its memory. Without a name it gets a free one (`s1`, `s2`).
    ///
    /// Errors: `Conflict` if the VM runs, or a snapshot of that name exists; `NoSpace` leaves everything as it was.
    pub async fn snapshot_create(
        &self,
        name: &str,
        snapshot: Option<&str>,
        description: &str,
    ) -> Result<SnapshotDone> {
        self.engine
            .snapshot_create(name, snapshot, description, Origin::Asked)
            .await
    }

    /// Tells of all snapshots of a VM, and where it is among them.
    pub async fn snapshots(&self, name: &str) -> Result<SnapshotTree> {
        self.engine.snapshots(name).await
    }

    /// Tells of one snapshot, given by its name or the beginning of its id. Errors: `NotFound` with the nearest name.
    pub async fn snapshot(&self, name: &str, snapshot: &str) -> Result<SnapshotInfo> {
        self.engine.snapshot(name, snapshot)
    }

    /// Tells how a snapshot differs from another one; without one, from the present state.
    pub async fn snapshot_diff(
        &self,
        name: &str,
        from: &str,
        to: Option<&str>,
    ) -> Result<SnapshotDifference> {
        self.engine.snapshot_diff(name, from, to)
    }

    /// Puts a VM that does not run back to where it was when a snapshot was made: disks, spec, UEFI variables, TPM, and memory if it was
    /// suspended then. The present state is saved as a snapshot first, unless nothing was changed or `present` says otherwise.
    pub async fn snapshot_revert(
        &self,
        name: &str,
        snapshot: &str,
        present: Present,
    ) -> Result<SnapshotDone> {
        self.engine.snapshot_revert(name, snapshot, present).await
    }

    /// Removes a snapshot; what others need of it is merged into them.
    ///
    /// Errors: `Conflict` naming the clones that were made of it.
    pub async fn snapshot_remove(&self, name: &str, snapshot: &str) -> Result<SnapshotDone> {
        self.engine.snapshot_remove(name, snapshot).await
    }

    /// Gives a snapshot another name or description.
    pub async fn snapshot_edit(
        &self,
        name: &str,
        snapshot: &str,
        new_name: Option<&str>,
        description: Option<&str>,
    ) -> Result<SnapshotDone> {
        self.engine
            .snapshot_edit(name, snapshot, new_name, description)
            .await
    }

    /// Makes another VM of one that does not run, or of a snapshot of it: a new id, new addresses, a new host name. A linked clone shares
    /// what it does not change with its origin, which can't be removed before it.
    ///
    /// Errors: `Conflict` if the origin runs or is suspended, the snapshot holds memory, or a VM named `clone` exists.
    pub async fn clone_vm(
        &self,
        name: &str,
        clone: &str,
        snapshot: Option<&str>,
        kind: CloneKind,
        progress: &dyn Progress,
    ) -> Result<Cloned> {
        self.engine
            .clone_vm(name, clone, snapshot, kind, progress)
            .await
    }

    /// Names the clones that read layers of a VM, which can't be removed before them.
    pub fn clone_shares(&self, name: &str) -> Result<Vec<String>> {
        self.engine.clones(&self.root().bundle(name)?)
    }

    /// Tells about how many bytes [`Host::clone_vm`] would have to copy.
    pub async fn plan_clone(
        &self,
        name: &str,
        snapshot: Option<&str>,
        kind: CloneKind,
    ) -> Result<u64> {
        self.engine.plan_clone(name, snapshot, kind).await
    }

    /// Tells what [`Host::snapshot_create`] would do.
    pub async fn plan_snapshot_create(&self, name: &str) -> Result<SnapshotCost> {
        self.engine.plan_snapshot_create(name).await
    }

    /// Tells what [`Host::snapshot_revert`] would do.
    pub async fn plan_snapshot_revert(
        &self,
        name: &str,
        snapshot: &str,
        present: Present,
    ) -> Result<SnapshotCost> {
        self.engine
            .plan_snapshot_revert(name, snapshot, present)
            .await
    }

    /// Tells what [`Host::snapshot_remove`] would do.
    pub async fn plan_snapshot_remove(&self, name: &str, snapshot: &str) -> Result<SnapshotCost> {
        self.engine.plan_snapshot_remove(name, snapshot).await
    }
}
