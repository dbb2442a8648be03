//! Telling of snapshots: the tree, one of them, how two differ, what a change would copy.

use innkeeper_image::disk;

use super::work::{gone, present};
use super::{Engine, Opened, Way, Work, kept, layers_of};
use crate::error::Result;
use crate::snapshot::{
    Graph, Node, SnapshotDifference, SnapshotDisk, SnapshotDone, SnapshotInfo, SnapshotTree,
};
use crate::spec::{self, VmSpec};
use crate::store::{Bundle, Identity};

impl Engine {
    /// Tells of all snapshots of a VM.
    pub(crate) async fn snapshots(&self, name: &str) -> Result<SnapshotTree> {
        let bundle = self.root.bundle(name)?;
        let state = self.look(&bundle).await?;
        let opened = look(&bundle)?;
        let untouched = match state.vmm_pid {
            Some(_) => None,
            None => Some(is_untouched(&bundle, &opened)?),
        };
        let snapshots: Result<Vec<SnapshotInfo>> = opened
            .graph
            .nodes
            .iter()
            .map(|node| self.tell(&bundle, &opened.identity, node))
            .collect();
        Ok(SnapshotTree {
            vm: name.to_owned(),
            state: state.state,
            untouched: untouched.filter(|_| opened.graph.now.is_some()),
            now: opened.graph.now,
            snapshots: snapshots?,
        })
    }

    /// Tells of one snapshot.
    pub(crate) fn snapshot(&self, name: &str, snapshot: &str) -> Result<SnapshotInfo> {
        let bundle = self.root.bundle(name)?;
        let opened = look(&bundle)?;
        self.tell(&bundle, &opened.identity, opened.graph.find(snapshot)?)
    }

    pub(super) fn done(
        &self,
        work: &Work<'_>,
        id: &str,
        copied_bytes: u64,
    ) -> Result<SnapshotDone> {
        let opened = work.look()?;
        let node = opened.graph.node(id).ok_or_else(gone)?;
        let spec = work.bundle.spec()?;
        let elsewhere = spec
            .disks
            .iter()
            .filter(|disk| !disk.is_own() && !disk.read_only && !disk.removable);
        Ok(SnapshotDone {
            snapshot: self.tell(work.bundle, &opened.identity, node)?,
            saved: None,
            copied_bytes,
            left_out: elsewhere.map(|disk| disk.name.clone()).collect(),
        })
    }

    fn tell(&self, bundle: &Bundle, identity: &Identity, node: &Node) -> Result<SnapshotInfo> {
        let mut disks = Vec::new();
        for frozen in &node.disks {
            disks.push(SnapshotDisk {
                name: frozen.name.clone(),
                size_bytes: frozen.size,
                layer: frozen.layer.to_string(),
                layer_bytes: disk::allocated(&self.images.frozen_path(&frozen.layer))?,
            });
        }
        let beside = kept::size(&node.kept, &bundle.snapshot_directory(&node.id))?;
        Ok(SnapshotInfo {
            id: node.id.clone(),
            name: node.name.clone(),
            description: node.description.clone(),
            created: node.created.clone(),
            parent: node.parent.clone(),
            origin: node.origin,
            memory: node.kept.memory.is_some(),
            bytes: beside + disks.iter().map(|disk| disk.layer_bytes).sum::<u64>(),
            disks,
            clones: self.clones_of(&identity.id, layers_of(node))?,
        })
    }

    /// Tells how a snapshot differs from another one, or from the present state.
    pub(crate) fn snapshot_diff(
        &self,
        name: &str,
        from: &str,
        to: Option<&str>,
    ) -> Result<SnapshotDifference> {
        let bundle = self.root.bundle(name)?;
        let Opened { identity, graph } = look(&bundle)?;
        let one = graph.find(from)?;
        let other = to.map(|to| graph.find(to)).transpose()?;
        let read = |text: &str, what: &str| spec::read(text, what);
        let spec_one: VmSpec = read(&one.spec, &one.name)?;
        let spec_other = match other {
            Some(node) => read(&node.spec, &node.name)?,
            None => bundle.spec()?,
        };
        let sizes_one: Vec<(&str, u64)> = sizes(one);
        let sizes_other: Vec<(&str, u64)> = match other {
            Some(node) => sizes(node),
            None => identity
                .disks
                .iter()
                .map(|disk| (disk.name.as_str(), disk.size))
                .collect(),
        };
        Ok(SnapshotDifference {
            from: one.name.clone(),
            to: other.map_or("now", |node| &node.name).to_owned(),
            spec: spec::differences(&spec_other, &spec_one),
            disks: compare_disks(&sizes_one, &sizes_other),
            written_bytes: self.written(&bundle, &graph, &identity, one, other)?,
        })
    }

    /// Adds up what lies between two states of which one comes after the other.
    fn written(
        &self,
        bundle: &Bundle,
        graph: &Graph,
        identity: &Identity,
        one: &Node,
        other: Option<&Node>,
    ) -> Result<Option<u64>> {
        let mut written = 0;
        for frozen in &one.disks {
            let (first, mut bytes) = match other {
                Some(node) => {
                    let disk = node.disks.iter().find(|disk| disk.name == frozen.name);
                    (disk.map(|disk| disk.layer.clone()), 0)
                }
                None => {
                    let top = identity.disks.iter().find(|disk| disk.name == frozen.name);
                    let Some(top) = top else { continue };
                    let below = crate::snapshot::layer_below(top);
                    let bytes = disk::allocated(&bundle.path(&top.file))?;
                    (below.and_then(|below| below.frozen()), bytes)
                }
            };
            let Some(first) = first else { return Ok(None) };
            let chain = graph.chain(&first);
            let Some(at) = chain.iter().position(|id| *id == frozen.layer) else {
                return Ok(None);
            };
            for layer in &chain[..at] {
                bytes += disk::allocated(&self.images.frozen_path(layer))?;
            }
            written += bytes;
        }
        Ok(Some(written))
    }
}

fn sizes(node: &Node) -> Vec<(&str, u64)> {
    node.disks
        .iter()
        .map(|disk| (disk.name.as_str(), disk.size))
        .collect()
}

fn compare_disks(one: &[(&str, u64)], other: &[(&str, u64)]) -> Vec<String> {
    let mut differences = Vec::new();
    let size = |list: &[(&str, u64)], name: &str| {
        let found = list.iter().find(|(other, _)| *other == name);
        found.map(|(_, size)| *size)
    };
    for (name, before) in one {
        match size(other, name) {
            None => differences.push(format!("{name}: only in the first")),
            Some(after) if after != *before => {
                differences.push(format!("{name}: {before} bytes, then {after}"));
            }
            Some(_) => {}
        }
    }
    let new = other.iter().filter(|(name, _)| size(one, name).is_none());
    differences.extend(new.map(|(name, _)| format!("{name}: only in the second")));
    differences
}

/// Reads what is there, and touches nothing: the VM may be in somebody else's hands.
fn look(bundle: &Bundle) -> Result<Opened> {
    let identity = bundle.identity()?;
    let graph = bundle.snapshots_or_new(&identity)?;
    Ok(Opened { identity, graph })
}

/// Says whether the present state is still what its snapshot holds.
pub(super) fn is_untouched(bundle: &Bundle, opened: &Opened) -> Result<bool> {
    let graph = &opened.graph;
    let Some(node) = graph.now.as_ref().and_then(|now| graph.node(now)) else {
        return Ok(false);
    };
    let there = kept::present(bundle)?;
    // Without disks there is nothing to have a stamp; otherwise none means that it is not known.
    let known = opened.identity.disks.is_empty() || !graph.untouched.is_empty();
    Ok(known
        && graph.untouched == super::settle::stamps(bundle, &opened.identity.disks)?
        // Its files are the TPM's own, and it may write them whenever it runs.
        && !there.tpm
        && there == node.kept
        && bundle.spec_text()? == node.spec)
}

impl Work<'_> {
    /// Reads what is there, and touches nothing.
    pub(crate) fn look(&self) -> Result<Opened> {
        look(self.bundle)
    }

    /// Says how the present state would be frozen, and how many bytes that copies.
    pub(super) fn cost_of_freezing(&self) -> Result<(&'static str, u64)> {
        let Opened { identity, .. } = self.look()?;
        let (_, beside) = present(self.bundle)?;
        Ok(match self.way {
            Way::Share => ("sharing the blocks of its disks", 0),
            Way::Overlay => ("with overlays over its disks", beside),
            Way::Copy => {
                let mut bytes = beside;
                for top in &identity.disks {
                    bytes += disk::allocated(&self.bundle.path(&top.file))?;
                }
                ("copying its disks", bytes)
            }
        })
    }

    /// Returns how many bytes going back to a node copies.
    pub(super) fn cost_of_revert(&self, node: &Node) -> Result<u64> {
        let beside = kept::size(&node.kept, &self.bundle.snapshot_directory(&node.id))?;
        Ok(match self.way {
            Way::Share => 0,
            Way::Overlay => beside,
            Way::Copy => {
                let mut bytes = beside;
                for frozen in &node.disks {
                    bytes += disk::allocated(&self.images.frozen_path(&frozen.layer))?;
                }
                bytes
            }
        })
    }
}
