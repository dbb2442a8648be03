//! The snapshots of a VM as a graph. Pure: it looks at no file, and knows no time.
//!
//! ```text
//!  nodes (what users see)          layers (what the disks are made of)
//!
//!   s1 ──┬── s2 ── now              image ◄── snap-a ◄──┬── snap-b ◄── top
//!        └── before-s1                        = s1      │    = s2
//!                                                       └── snap-c = before-s1
//! ```
//! A node names one layer for each disk; a layer that is qcow2 reads through to the one below it. Both are told apart: a node can go while
//! others still read through its layer, which then stays without a name until it can be merged into the one over it.
//!
//! *Where the VM is now* is a node and its own disks on top, the *tops*. Which files those are changes with one write of this graph, whose
//! `generation` is then ahead of the identity's: what is left to do after such a write can be repeated until it is done
//! (`engine::snapshots::settle`).

mod layers;
mod name;
#[cfg(test)]
mod tests;
mod told;

use std::collections::BTreeMap;

use innkeeper_api::ErrorKind;
use innkeeper_image::{DiskFormat, FrozenId};
use innkeeper_net::MacAddr;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::store::IdentityDisk;

pub(crate) use layers::{Into, Merge, below as layer_below};
pub use name::SnapshotName;
pub use told::{
    SnapshotCost, SnapshotDifference, SnapshotDisk, SnapshotDone, SnapshotInfo, SnapshotTree,
};

/// Form of the file that this version writes.
const VERSION: u32 = 1;

/// The snapshots of one VM (`snapshots.json`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Graph {
    /// Version of this file's form.
    pub version: u32,
    /// Which choice of tops this is; the identity's is behind while the change to it is not finished.
    pub generation: u64,
    /// The node that the present state began from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<String>,
    /// What the tops were when the present state began; where they still are that, there is nothing to save of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub untouched: Vec<Stamp>,
    /// What the tops were when they were made and held nothing of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub empty: Vec<Stamp>,
    /// The nodes, in the order in which they were made.
    pub nodes: Vec<Node>,
    /// Every layer that a node or a top reads, however far below.
    pub layers: BTreeMap<FrozenId, Layer>,
    /// The tops of this generation.
    pub tops: Vec<IdentityDisk>,
    /// What else a change of tops brings, until it is finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<Restore>,
}

/// One moment of a VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Node {
    /// 12 hexadecimal digits.
    pub id: String,
    /// Name, unique among those of the VM.
    pub name: String,
    /// What its maker wrote about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// When it was made (RFC 3339, UTC).
    pub created: String,
    /// The node before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Who made it.
    pub origin: Origin,
    /// What the disks held.
    pub disks: Vec<FrozenDisk>,
    /// The text of the spec.
    pub spec: String,
    /// The addresses of the interfaces.
    pub macs: Vec<MacAddr>,
    /// What lies in the node's directory.
    pub kept: Kept,
}

/// Who made a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Somebody who asked for it.
    Asked,
    /// A revert, which saved the state that it left.
    Revert,
    /// A schedule.
    Schedule,
}

/// What one disk held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FrozenDisk {
    /// Name in the spec.
    pub name: String,
    /// The layer.
    pub layer: FrozenId,
    /// Size that the guest sees, in bytes.
    pub size: u64,
}

/// What is kept of a VM beside its disks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// UEFI variables.
    #[serde(default)]
    pub firmware: bool,
    /// The state of the TPM.
    #[serde(default)]
    pub tpm: bool,
    /// Memory and devices; since when that VM was suspended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
}

/// A layer made of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layer {
    /// Its format.
    pub format: DiskFormat,
    /// Size that a guest sees in it, in bytes.
    pub size: u64,
    /// What it reads through to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<Below>,
}

/// What a qcow2 disk reads through to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Below {
    /// The layer: `snap-` and digits, or the digest of an image's.
    pub layer: String,
    /// Its format.
    pub format: DiskFormat,
}

/// What a file was like at some time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    /// File, relative to the bundle.
    pub file: String,
    /// Its size, in bytes.
    pub size: u64,
    /// When it was last written (seconds and nanoseconds since 1970).
    pub modified: (i64, u32),
}

/// What a revert brings back beside the disks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Restore {
    /// The text of the spec.
    pub spec: String,
    /// The addresses of the interfaces.
    pub macs: Vec<MacAddr>,
    /// What lies ready in `snapshots/.restore-GENERATION`; what is not there is taken away.
    pub kept: Kept,
}

impl Graph {
    /// Makes the graph of a VM without snapshots.
    pub(crate) fn new(generation: u64, tops: Vec<IdentityDisk>) -> Self {
        Graph {
            version: VERSION,
            generation,
            now: None,
            untouched: Vec::new(),
            empty: Vec::new(),
            nodes: Vec::new(),
            layers: BTreeMap::new(),
            tops,
            restore: None,
        }
    }

    /// Refuses what a newer version wrote.
    pub(crate) fn check_version(&self) -> Result<()> {
        if self.version == VERSION {
            return Ok(());
        }
        let message = format!(
            "the snapshots were written by a newer Innkeeper (form {})",
            self.version
        );
        Err(Error::new(ErrorKind::Unsupported, message).with_hint("update Innkeeper"))
    }

    /// Finds a node by its name, its id or the beginning of its id (4 digits or more).
    ///
    /// Errors: `NotFound` naming the nearest name.
    pub(crate) fn find(&self, wanted: &str) -> Result<&Node> {
        let named = self.nodes.iter().find(|node| node.name == wanted);
        if let Some(node) = named {
            return Ok(node);
        }
        let mut begun = self
            .nodes
            .iter()
            .filter(|node| wanted.len() >= 4 && node.id.starts_with(wanted));
        if let (Some(node), None) = (begun.next(), begun.next()) {
            return Ok(node);
        }
        let error = Error::new(
            ErrorKind::NotFound,
            format!("there is no snapshot named {wanted}"),
        );
        let near = self
            .nodes
            .iter()
            .map(|node| (strsim::damerau_levenshtein(&node.name, wanted), &node.name))
            .filter(|(distance, _)| *distance <= 2)
            .min();
        Err(match near {
            Some((_, name)) => error.with_hint(format!("did you mean {name}?")),
            None => error.with_hint("`inn snapshot ls VM` lists those that there are"),
        })
    }

    /// Returns a node by its id.
    pub(crate) fn node(&self, id: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// Returns a name that is free: `stem` itself if it may be alone, else `stem-2`, `stem-3`.
    pub(crate) fn free_name(&self, stem: &str) -> String {
        let taken = |name: &str| self.nodes.iter().any(|node| node.name == name);
        let mut name = stem.to_owned();
        let mut number = 2;
        while taken(&name) {
            name = format!("{stem}-{number}");
            number += 1;
        }
        name
    }

    /// Returns the next name for a snapshot that was given none: `s1`, `s2`. A number is not used twice while a later one is there.
    pub(crate) fn next_name(&self) -> String {
        let last = self
            .nodes
            .iter()
            .filter_map(|node| node.name.strip_prefix('s')?.parse::<u32>().ok())
            .max()
            .unwrap_or(0);
        self.free_name(&format!("s{}", last.saturating_add(1)))
    }

    /// Checks that a name may be given to a node.
    ///
    /// Errors: `BadInput` if it is none, `Conflict` if another node has it.
    pub(crate) fn check_name(&self, name: &str) -> Result<()> {
        name.parse::<SnapshotName>()?;
        if self.nodes.iter().any(|node| node.name == name) {
            let message = format!("a snapshot named {name} exists already");
            return Err(Error::new(ErrorKind::Conflict, message)
                .with_hint("choose another name, or remove that one with `inn snapshot rm`"));
        }
        Ok(())
    }

    /// Adds a node after the one where the VM is now, and puts the VM there.
    pub(crate) fn add(&mut self, node: Node) {
        self.now = Some(node.id.clone());
        self.nodes.push(node);
    }

    /// Takes a node out; those after it, and the VM if it is there, come after the one before it.
    pub(crate) fn remove(&mut self, id: &str) {
        let Some(at) = self.nodes.iter().position(|node| node.id == id) else {
            return;
        };
        let gone = self.nodes.remove(at);
        for node in &mut self.nodes {
            if node.parent.as_ref() == Some(&gone.id) {
                node.parent.clone_from(&gone.parent);
            }
        }
        if self.now.as_ref() == Some(&gone.id) {
            self.now = gone.parent;
            // The present state is no longer what its node holds.
            self.untouched.clear();
        }
    }
}
