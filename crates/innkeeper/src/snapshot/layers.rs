//! Which layers the nodes and tops of a graph need, and which of them can be merged into the one over it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use innkeeper_image::FrozenId;

use super::{Below, Graph, Layer};
use crate::error::Result;
use crate::store::IdentityDisk;

/// A layer that nobody needs by itself, and the only thing that reads through it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Merge {
    /// The layer that goes.
    pub gone: FrozenId,
    /// What lies below it.
    pub below: Option<Below>,
    /// What lies over it, and holds all of it afterwards.
    pub into: Into,
}

/// What a layer is merged into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Into {
    /// Another layer.
    Layer(FrozenId),
    /// The top of this disk.
    Top(String),
}

/// Returns what a VM's own disk reads through to.
pub(crate) fn below(disk: &IdentityDisk) -> Option<Below> {
    // A top that shares blocks with a layer names it too, but reads nothing through to it.
    let format = disk.backing_format.as_deref()?.parse().ok()?;
    Some(Below {
        layer: disk.layer.clone()?,
        format,
    })
}

impl Layer {
    /// Returns the layer that a VM's own disk would be.
    pub(crate) fn of_top(top: &IdentityDisk) -> Result<Layer> {
        Ok(Layer {
            format: top.format.parse()?,
            size: top.size,
            below: below(top),
        })
    }

    /// Returns a VM's own disk that holds what this layer does, in a file of its own.
    pub(crate) fn as_top(&self, name: &str, file: PathBuf) -> IdentityDisk {
        IdentityDisk {
            name: name.to_owned(),
            file,
            format: self.format.to_string(),
            backing_format: self.below.as_ref().map(|below| below.format.to_string()),
            layer: self.below.as_ref().map(|below| below.layer.clone()),
            size: self.size,
        }
    }
}

impl Below {
    /// Returns the layer, if it was made of a disk; none for an image's.
    pub(crate) fn frozen(&self) -> Option<FrozenId> {
        self.layer.parse().ok()
    }
}

impl Graph {
    fn add_chain(&self, from: Option<FrozenId>, needed: &mut BTreeSet<FrozenId>) {
        let mut next = from;
        while let Some(id) = next {
            next = self
                .layers
                .get(&id)
                .and_then(|layer| layer.below.as_ref())
                .and_then(Below::frozen);
            // A layer that is there has all that lies below it there as well; this ends a ring, too, which a damaged file might hold.
            if !needed.insert(id) {
                return;
            }
        }
    }

    /// Returns every layer that a node or a top reads.
    pub(crate) fn needed(&self) -> BTreeSet<FrozenId> {
        let mut needed = BTreeSet::new();
        for disk in self.nodes.iter().flat_map(|node| &node.disks) {
            self.add_chain(Some(disk.layer.clone()), &mut needed);
        }
        for top in &self.tops {
            self.add_chain(below(top).and_then(|below| below.frozen()), &mut needed);
        }
        needed
    }

    /// Returns every layer that a disk reads whose first layer is `from`, the first one first.
    pub(crate) fn chain(&self, from: &FrozenId) -> Vec<FrozenId> {
        let mut chain: Vec<FrozenId> = Vec::new();
        let mut next = Some(from.clone());
        while let Some(id) = next.filter(|id| !chain.contains(id)) {
            next = self
                .layers
                .get(&id)
                .and_then(|layer| layer.below.as_ref())
                .and_then(Below::frozen);
            chain.push(id);
        }
        chain
    }

    /// Forgets the layers that nothing reads.
    pub(crate) fn forget_unneeded(&mut self) {
        let needed = self.needed();
        self.layers.retain(|id, _| needed.contains(id));
    }

    /// Returns the next merge, if there is one: of a layer that is no node's, that one thing reads through, and that `is_mine` alone.
    pub(crate) fn next_merge(&self, is_mine: impl Fn(&FrozenId) -> bool) -> Option<Merge> {
        let mut over: BTreeMap<FrozenId, Vec<Into>> = BTreeMap::new();
        for (id, layer) in &self.layers {
            if let Some(below) = layer.below.as_ref().and_then(Below::frozen) {
                over.entry(below).or_default().push(Into::Layer(id.clone()));
            }
        }
        for top in &self.tops {
            if let Some(below) = below(top).and_then(|below| below.frozen()) {
                over.entry(below)
                    .or_default()
                    .push(Into::Top(top.name.clone()));
            }
        }
        let named = |id: &FrozenId| {
            let mut disks = self.nodes.iter().flat_map(|node| &node.disks);
            disks.any(|disk| disk.layer == *id)
        };
        over.into_iter().find_map(|(gone, mut over)| {
            let layer = self.layers.get(&gone)?;
            if over.len() != 1 || named(&gone) || !is_mine(&gone) {
                return None;
            }
            Some(Merge {
                gone,
                below: layer.below.clone(),
                into: over.pop()?,
            })
        })
    }

    /// Notes that a merge was done; for a top the caller puts another in its place.
    pub(crate) fn merged(&mut self, merge: &Merge) {
        if let Into::Layer(over) = &merge.into
            && let Some(layer) = self.layers.get_mut(over)
        {
            layer.below.clone_from(&merge.below);
        }
    }
}
