//! Snapshots of a VM that does not run: making one, going back to one, removing one. The caller holds the VM's lock and settled it.
//!
//! ```text
//!                 create                                     revert
//!  overlay   top gets a second name as a layer;        a fresh overlay over the node's layer
//!            a fresh overlay over it is the new top
//!  share     top's blocks are shared with a layer      the layer's blocks are shared with a new top
//!  copy      as share, but the bytes are copied        as share, but the bytes are copied
//! ```
//! Each makes new files first, which nothing names, then writes the graph, which is the moment it counts, then finishes what follows.

use std::path::PathBuf;

use innkeeper_api::ErrorKind;
use innkeeper_image::{DiskFormat, FrozenId, Store, disk};

use super::kept;
use super::settle::{finish, stamps, sweep, top_file};
use super::step;
use crate::clock::timestamp;
use crate::error::{Error, Result};
use crate::snapshot::{FrozenDisk, Graph, Kept, Layer, Node, Origin, Restore, layer_below};
use crate::store::{Bundle, Identity, IdentityDisk, random_id};

/// How what a disk holds is kept apart from what comes after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Files share their blocks: the file system can.
    Share,
    /// A qcow2 over an immutable file: the hypervisor can.
    Overlay,
    /// Neither can: the bytes are copied.
    Copy,
}

/// Works on the snapshots of one VM.
pub(crate) struct Work<'a> {
    pub images: &'a Store,
    pub bundle: &'a Bundle,
    pub way: Way,
}

/// What is known of a snapshot to be made.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Name; none for one that is free.
    pub name: Option<String>,
    pub description: String,
    pub origin: Origin,
}

/// A VM's record and its snapshots, as they are on disk.
pub(crate) struct Opened {
    pub identity: Identity,
    pub graph: Graph,
}

impl Work<'_> {
    /// Reads what is there, and removes what earlier commands left.
    pub(crate) fn open(&self) -> Result<Opened> {
        let identity = self.bundle.identity()?;
        let graph = self.bundle.snapshots_or_new(&identity)?;
        sweep(self.images, self.bundle, &identity, &graph, false)?;
        Ok(Opened { identity, graph })
    }

    /// Makes a snapshot of the present state; returns its id and how many bytes were copied.
    pub(crate) fn create(&self, wanted: &Wanted) -> Result<(String, u64)> {
        let Opened {
            identity,
            mut graph,
        } = self.open()?;
        let name = match &wanted.name {
            Some(name) => name.clone(),
            None => graph.next_name(),
        };
        graph.check_name(&name)?;
        self.must_be_as_saved(&identity)?;
        let id = node_id()?;
        let kept = kept::present(self.bundle)?;
        let directory = self.bundle.snapshot_directory(&id);
        let mut copied = kept::copy(&kept, self.bundle.directory(), &directory)?;
        let (disks, more) = self.freeze(&identity, &mut graph)?;
        copied += more;
        let node = Node {
            id: id.clone(),
            name,
            description: wanted.description.clone(),
            created: timestamp(),
            parent: graph.now.clone(),
            origin: wanted.origin,
            disks,
            spec: self.bundle.spec_text()?,
            macs: identity.macs.clone(),
            kept,
        };
        graph.add(node);
        graph.untouched = stamps(self.bundle, &graph.tops)?;
        if self.way == Way::Overlay {
            graph.empty.clone_from(&graph.untouched);
        }
        self.write(&graph, &identity)?;
        Ok((id, copied))
    }

    /// Makes a layer of each of the VM's own disks, and another top where the way wants one. Nothing counts before the graph is written.
    pub(crate) fn freeze(
        &self,
        identity: &Identity,
        graph: &mut Graph,
    ) -> Result<(Vec<FrozenDisk>, u64)> {
        let (mut disks, mut copied) = (Vec::new(), 0);
        let mut tops = Vec::new();
        let generation = identity.generation + 1;
        for top in &identity.disks {
            let (path, id) = (self.bundle.path(&top.file), frozen_id()?);
            let layer = Layer::of_top(top)?;
            match self.way {
                Way::Share | Way::Copy => {
                    copied += self.images.freeze_by_copy(&path, &id, &identity.id)?;
                    tops.push(top.clone());
                }
                Way::Overlay => {
                    self.images.freeze_by_name(&path, &id, &identity.id)?;
                    step();
                    tops.push(self.overlay(&top.name, &id, &layer, generation)?);
                }
            }
            step();
            graph.layers.insert(id.clone(), layer);
            disks.push(FrozenDisk {
                name: top.name.clone(),
                layer: id,
                size: top.size,
            });
        }
        if tops != identity.disks {
            graph.generation = generation;
        }
        graph.tops = tops;
        graph.restore = None;
        Ok((disks, copied))
    }

    /// Makes an empty top over a layer.
    pub(crate) fn overlay(
        &self,
        name: &str,
        id: &FrozenId,
        layer: &Layer,
        generation: u64,
    ) -> Result<IdentityDisk> {
        let base = disk::Base {
            path: self.images.frozen_path(id),
            format: layer.format,
            virtual_bytes: layer.size,
        };
        let file = top_file(name, generation, DiskFormat::Qcow2);
        disk::create_overlay(&base, layer.size, &self.bundle.path(&file))?;
        Ok(IdentityDisk {
            name: name.to_owned(),
            file,
            format: DiskFormat::Qcow2.to_string(),
            backing_format: Some(layer.format.to_string()),
            layer: Some(id.to_string()),
            size: layer.size,
        })
    }

    /// Makes a top that holds what a layer holds; returns it and how many bytes were copied.
    fn top_of(
        &self,
        frozen: &FrozenDisk,
        layer: &Layer,
        generation: u64,
    ) -> Result<(IdentityDisk, u64)> {
        if self.way == Way::Overlay {
            let top = self.overlay(&frozen.name, &frozen.layer, layer, generation)?;
            return Ok((top, 0));
        }
        let file = top_file(&frozen.name, generation, layer.format);
        let copied = disk::copy(
            &self.images.frozen_path(&frozen.layer),
            &self.bundle.path(&file),
        )?;
        let top = layer.as_top(&frozen.name, file);
        Ok((top, copied))
    }

    /// Puts the VM where it was when a snapshot was made; the present state is lost. Returns how many bytes were copied.
    pub(crate) fn revert(&self, id: &str) -> Result<u64> {
        let Opened {
            identity,
            mut graph,
        } = self.open()?;
        let node = graph.node(id).ok_or_else(gone)?.clone();
        let generation = identity.generation + 1;
        let mut copied = kept::copy(
            &node.kept,
            &self.bundle.snapshot_directory(id),
            &self.bundle.restore_directory(generation),
        )?;
        let mut tops = Vec::new();
        for frozen in &node.disks {
            let layer = graph.layers.get(&frozen.layer).ok_or_else(gone)?;
            let (top, more) = self.top_of(frozen, layer, generation)?;
            copied += more;
            tops.push(top);
            step();
        }
        self.sync_disks()?;
        graph.generation = generation;
        graph.tops = tops;
        graph.now = Some(node.id);
        graph.untouched.clear();
        graph.restore = Some(Restore {
            spec: node.spec,
            macs: node.macs,
            kept: node.kept,
        });
        graph.forget_unneeded();
        self.write(&graph, &identity)?;
        // Only now are all files where they belong; without this the next revert would save a state that nobody changed.
        graph.untouched = stamps(self.bundle, &graph.tops)?;
        if self.way == Way::Overlay {
            graph.empty.clone_from(&graph.untouched);
        }
        self.bundle.write_snapshots(&graph)?;
        Ok(copied)
    }

    /// Makes layers of the present state that are no snapshot's, for a clone; where a top holds nothing of its own the layer below it will
    /// do.
    pub(crate) fn freeze_present(&self) -> Result<Vec<FrozenDisk>> {
        let Opened {
            identity,
            mut graph,
        } = self.open()?;
        let present = stamps(self.bundle, &identity.disks)?;
        let mut below = Vec::new();
        for top in &identity.disks {
            let file = top.file.display().to_string();
            let stamp = present.iter().find(|stamp| stamp.file == file);
            let layer = layer_below(top).and_then(|below| below.frozen());
            if let (Some(layer), Some(stamp)) = (layer, stamp)
                && graph.empty.contains(stamp)
                && graph
                    .layers
                    .get(&layer)
                    .is_some_and(|layer| layer.size == top.size)
            {
                below.push(FrozenDisk {
                    name: top.name.clone(),
                    layer,
                    size: top.size,
                });
            }
        }
        if below.len() == identity.disks.len() {
            return Ok(below);
        }
        let (disks, _) = self.freeze(&identity, &mut graph)?;
        graph.empty = stamps(self.bundle, &graph.tops)?;
        self.write(&graph, &identity)?;
        Ok(disks)
    }

    /// Says what there is of the VM beside its disks.
    pub(crate) fn present(&self) -> Result<Kept> {
        kept::present(self.bundle)
    }

    /// Copies the UEFI variables into another VM; returns how many bytes had to be copied.
    pub(crate) fn copy_firmware(
        &self,
        kept: &Kept,
        from: &std::path::Path,
        to: &Bundle,
    ) -> Result<u64> {
        if !kept.firmware {
            return Ok(0);
        }
        Ok(disk::copy(
            &from.join(kept::FIRMWARE),
            &to.path(kept::FIRMWARE),
        )?)
    }

    /// Says whether the present state is still what its snapshot holds.
    pub(crate) fn is_untouched(&self, opened: &Opened) -> Result<bool> {
        super::told::is_untouched(self.bundle, opened)
    }

    /// Takes a snapshot out of the graph. What only it held is removed; what others read through stays until it is merged.
    pub(crate) fn remove(&self, id: &str) -> Result<()> {
        let Opened {
            identity,
            mut graph,
        } = self.open()?;
        graph.remove(id);
        graph.forget_unneeded();
        self.bundle.write_snapshots(&graph)?;
        step();
        sweep(self.images, self.bundle, &identity, &graph, false).map(drop)
    }

    /// Changes what is written about a snapshot.
    pub(crate) fn edit(&self, id: &str, change: impl FnOnce(&mut Node)) -> Result<()> {
        let Opened { mut graph, .. } = self.open()?;
        let node = graph.nodes.iter_mut().find(|node| node.id == id);
        change(node.ok_or_else(gone)?);
        self.bundle.write_snapshots(&graph)
    }

    /// Makes a graph count, and finishes what follows.
    pub(super) fn write(&self, graph: &Graph, before: &Identity) -> Result<Identity> {
        self.sync_disks()?;
        step();
        self.bundle.write_snapshots(graph)?;
        step();
        let identity = if graph.generation > before.generation {
            finish(self.images, self.bundle, graph, before)?
        } else {
            before.clone()
        };
        sweep(self.images, self.bundle, &identity, graph, false)?;
        Ok(identity)
    }

    fn sync_disks(&self) -> Result<()> {
        let directory: PathBuf = self.bundle.path("disks");
        std::fs::File::open(&directory)
            .and_then(|directory| directory.sync_all())
            .map_err(|error| Error::io(format!("can't write {}", directory.display()), error))
    }

    /// The memory of a suspended VM is worth nothing with other disks than it had.
    pub(super) fn must_be_as_saved(&self, identity: &Identity) -> Result<()> {
        let changed = self.bundle.changed_since_saved(&identity.disks)?;
        if changed.is_empty() {
            return Ok(());
        }
        let message = format!("written to since it was suspended: {}", changed.join(", "));
        Err(Error::new(ErrorKind::Conflict, message).with_hint(
            "put the disk back as it was, or give up what was saved with `inn start --discard-saved`",
        ))
    }
}

/// Tells what is kept of the present state, for the cost of a snapshot.
pub(super) fn present(bundle: &Bundle) -> Result<(Kept, u64)> {
    let kept = kept::present(bundle)?;
    let size = kept::size(&kept, bundle.directory())?;
    Ok((kept, size))
}

pub(super) fn gone() -> Error {
    Error::new(
        ErrorKind::NotFound,
        "the snapshot, or a layer of it, is not there any more",
    )
}

fn node_id() -> Result<String> {
    let mut id = random_id()?;
    id.truncate(12);
    Ok(id)
}

pub(super) fn frozen_id() -> Result<FrozenId> {
    Ok(FrozenId::from_digits(&random_id()?)?)
}
