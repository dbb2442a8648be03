//! What is told of snapshots, to people and programs.

use innkeeper_api::VmState;
use serde::Serialize;

use super::Origin;

/// The snapshots of a VM, and where it is among them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotTree {
    /// Name of the VM.
    pub vm: String,
    /// State of the VM.
    pub state: VmState,
    /// Id of the snapshot that the present state began from; none if it began before them all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub now: Option<String>,
    /// Whether the present state is still what that snapshot holds; none while the VM runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub untouched: Option<bool>,
    /// The snapshots, in the order in which they were made.
    pub snapshots: Vec<SnapshotInfo>,
}

/// One snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotInfo {
    /// 12 hexadecimal digits.
    pub id: String,
    /// Name, unique among those of the VM.
    pub name: String,
    /// What its maker wrote about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// When it was made (RFC 3339, UTC).
    pub created: String,
    /// Id of the snapshot before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Who made it.
    pub origin: Origin,
    /// Whether it holds the memory of a guest that was at work.
    pub memory: bool,
    /// The disks that it holds.
    pub disks: Vec<SnapshotDisk>,
    /// Bytes that it takes by itself: its own layers, and what it keeps beside the disks. Blocks that layers share count for each.
    pub bytes: u64,
    /// Names of VMs that were cloned from it and still read its layers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clones: Vec<String>,
}

/// A disk in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotDisk {
    /// Name in the spec.
    pub name: String,
    /// Size that the guest sees, in bytes.
    pub size_bytes: u64,
    /// The layer.
    pub layer: String,
    /// Bytes that the layer takes.
    pub layer_bytes: u64,
}

/// What a change of snapshots did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotDone {
    /// The snapshot that was made, gone back to, removed or changed.
    pub snapshot: SnapshotInfo,
    /// The snapshot in which the state before was saved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saved: Option<SnapshotInfo>,
    /// Bytes that had to be copied.
    pub copied_bytes: u64,
    /// Disks of the VM that are files of their own elsewhere, and no part of any snapshot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
}

/// What a change of snapshots would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotCost {
    /// The steps, a sentence each.
    pub steps: Vec<String>,
    /// Bytes that would have to be copied; about, since a merge may find less to do.
    pub copies_bytes: u64,
}

/// How two states of a VM differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotDifference {
    /// Name of the first.
    pub from: String,
    /// Name of the second; `now` for the present state.
    pub to: String,
    /// Fields of the spec that differ.
    pub spec: Vec<String>,
    /// Disks that differ in size, or that only one has; a sentence each.
    pub disks: Vec<String>,
    /// Bytes of the layers that lie between the two, where one comes after the other: at most so much was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub written_bytes: Option<u64>,
}
