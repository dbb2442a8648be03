//! Merging: a layer that is no snapshot's, and that one other thing reads through, becomes part of that one.
//!
//! The upper one is copied, and what it read through to is copied into that copy (`qemu-img rebase`); neither of the two is changed in place.
//! A merged layer takes the place of the upper one by a rename: a guest could not tell them apart, so it does not matter to anybody which
//! of the two is there. A merged top is another top, and counts as any other does: by one write of the graph.

use innkeeper_image::{DiskFormat, FrozenId, disk};

use super::settle::{stamps, top_file};
use super::step;
use super::work::{Opened, Work, frozen_id, gone};
use crate::error::{Error, Result};
use crate::snapshot::{Graph, Into, Merge};
use crate::store::{Identity, IdentityDisk};

impl Work<'_> {
    /// Merges what can be merged; returns how many bytes were read to be written anew.
    pub(crate) async fn merge(&self) -> Result<u64> {
        let mut copied = 0;
        loop {
            let opened = self.open()?;
            let Some(merge) = self.next_merge(&opened)? else {
                return Ok(copied);
            };
            copied += self.cost_of(&opened, &merge)?;
            match &merge.into {
                Into::Layer(over) => self.merge_layers(opened, &merge, over).await?,
                Into::Top(name) => self.merge_top(opened, &merge, name).await?,
            }
        }
    }

    /// Returns how many bytes merging would have to copy after these snapshots were removed.
    pub(crate) fn merge_cost(&self, opened: &Opened, without: &[String]) -> Result<u64> {
        let mut after = Opened {
            identity: opened.identity.clone(),
            graph: opened.graph.clone(),
        };
        for id in without {
            after.graph.remove(id);
        }
        after.graph.forget_unneeded();
        let mut cost = 0;
        while let Some(merge) = self.next_merge(&after)? {
            cost += self.cost_of(&after, &merge)?;
            after.graph.merged(&merge);
            if let Into::Top(name) = &merge.into {
                put_top_on(&mut after.graph, name, &merge);
            }
            after.graph.forget_unneeded();
        }
        Ok(cost)
    }

    fn next_merge(&self, opened: &Opened) -> Result<Option<Merge>> {
        let mine = |id: &FrozenId| {
            let users = self.images.frozen_users(id);
            users.is_ok_and(|users| users == [opened.identity.id.as_str()])
        };
        Ok(opened.graph.next_merge(mine))
    }

    fn cost_of(&self, opened: &Opened, merge: &Merge) -> Result<u64> {
        let upper = match &merge.into {
            Into::Layer(over) => self.images.frozen_path(over),
            Into::Top(name) => self.bundle.path(&top(&opened.identity, name)?.file),
        };
        let lower = self.images.frozen_path(&merge.gone);
        Ok(disk::allocated(&upper)? + disk::allocated(&lower)?)
    }

    async fn merge_layers(&self, opened: Opened, merge: &Merge, over: &FrozenId) -> Result<()> {
        let Opened {
            identity,
            mut graph,
        } = opened;
        // Leased under a name of its own, so that it is swept if we die.
        let merged = frozen_id()?;
        let path = self.images.frozen_path(over);
        self.images.freeze_by_copy(&path, &merged, &identity.id)?;
        step();
        let new = self.images.frozen_path(&merged);
        self.rebase(&new, merge).await?;
        step();
        self.images.replace_frozen(over, &new)?;
        step();
        graph.merged(merge);
        graph.forget_unneeded();
        self.write(&graph, &identity).map(drop)
    }

    async fn merge_top(&self, opened: Opened, merge: &Merge, name: &str) -> Result<()> {
        self.must_be_as_saved(&opened.identity)?;
        let untouched = self.is_untouched(&opened)?;
        let Opened {
            identity,
            mut graph,
        } = opened;
        let generation = identity.generation + 1;
        let file = top_file(name, generation, DiskFormat::Qcow2);
        let path = self.bundle.path(&file);
        disk::copy(&self.bundle.path(&top(&identity, name)?.file), &path)?;
        step();
        self.rebase(&path, merge).await?;
        step();
        put_top_on(&mut graph, name, merge);
        if let Some(top) = graph.tops.iter_mut().find(|top| top.name == name) {
            top.file = file;
        }
        graph.generation = generation;
        graph.restore = None;
        graph.untouched = match untouched {
            true => stamps(self.bundle, &graph.tops)?,
            false => Vec::new(),
        };
        graph.forget_unneeded();
        self.write(&graph, &identity).map(drop)
    }

    /// Copies into a disk of this name what the layer that goes holds.
    async fn rebase(&self, path: &std::path::Path, merge: &Merge) -> Result<()> {
        let below = match &merge.below {
            None => None,
            Some(below) => {
                let path = match below.frozen() {
                    Some(id) => self.images.frozen_path(&id),
                    None => self.images.layer_path(&below.layer.parse()?),
                };
                Some((path, below.format))
            }
        };
        writable(path)?;
        let below = below
            .as_ref()
            .map(|(path, format)| (path.as_path(), *format));
        Ok(disk::rebase(path, below).await?)
    }
}

/// A copy of a layer is sealed as that one is.
fn writable(path: &std::path::Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(|error| Error::io(format!("can't change {}", path.display()), error))
}

fn put_top_on(graph: &mut Graph, name: &str, merge: &Merge) {
    if let Some(top) = graph.tops.iter_mut().find(|top| top.name == name) {
        top.layer = merge.below.as_ref().map(|below| below.layer.clone());
        top.backing_format = merge.below.as_ref().map(|below| below.format.to_string());
    }
}

fn top<'a>(identity: &'a Identity, name: &str) -> Result<&'a IdentityDisk> {
    identity
        .disks
        .iter()
        .find(|disk| disk.name == name)
        .ok_or_else(gone)
}
