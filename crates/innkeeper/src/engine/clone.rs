//! Cloning: another VM that begins as this one is, or was, with an identity of its own.
//!
//! ```text
//!  origin locked ─► its disks as layers ─► name taken (hidden directory) ─► identity, graph written ─► layers leased ─► tops ─► seed ─► it exists
//! ```
//! A linked clone reads through to layers of its origin, where disks are overlays; each leases them, so that they stay as long as either needs
//! them. Where files can share blocks nothing is read through. A full clone's disks are whole files of its own.
//!
//! New are the id, the MAC addresses, the SSH port, the host name and, by the seed, the guest's machine id and host keys. The TPM's state and
//! the machine identifier of a driver stay with the origin: two machines with one of them would each pass for the other.

use std::sync::Arc;

use innkeeper_api::{ErrorKind, EventKind, VmInfo};
use innkeeper_image::{DiskFormat, FrozenId, LayerId, disk};
use serde::Serialize;

use super::Engine;
use super::parts::mac_address;
use super::ports::free_port;
use super::snapshots::{Opened, Way, Work, top_file};
use crate::clock::timestamp;
use crate::error::{Error, Result};
use crate::machine::Request;
use crate::progress::{Progress, Unit, Update};
use crate::snapshot::{FrozenDisk, Graph, Kept, Layer};
use crate::spec::{self, VmSpec};
use crate::store::{Bundle, ClonedFrom, HalfMade, Identity, IdentityDisk, random_id};

/// How much of its origin a clone shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloneKind {
    /// All that it does not change.
    Linked,
    /// Nothing: its disks are copies.
    Full,
}

/// What cloning did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cloned {
    /// The clone.
    pub vm: VmInfo,
    /// Bytes that had to be copied.
    pub copied_bytes: u64,
}

/// What a clone begins as.
struct Beginning {
    spec: VmSpec,
    snapshot: Option<String>,
    kept: Kept,
    kept_in: std::path::PathBuf,
    disks: Vec<Source>,
}

/// What a disk of a clone begins as: a layer, or a file that nobody writes to while the origin is locked.
enum Source {
    Layer(FrozenDisk, Layer),
    File(IdentityDisk),
}

impl Engine {
    /// Makes another VM of one that does not run, or of a snapshot of it.
    pub(crate) async fn clone_vm(
        &self,
        origin: &str,
        name: &str,
        snapshot: Option<&str>,
        kind: CloneKind,
        progress: &dyn Progress,
    ) -> Result<Cloned> {
        let wrap = |error: Error| error.while_doing(format!("can't clone {origin}"));
        let bundle = self.root.bundle(origin)?;
        let _lock = self.still(&bundle).await?;
        let work = self.work(&bundle).await?;
        let half = self.root.begin_creating(name)?;
        progress.report(Update {
            step: "cloning",
            detail: origin,
            done: 0,
            total: None,
            unit: Unit::None,
        });
        let beginning = self.beginning(&work, snapshot, kind).map_err(wrap)?;
        let identity = self.other_identity(&bundle, &beginning)?;
        let made = self.fill_clone(&half, &work, &beginning, identity.clone(), kind);
        let copied_bytes = match made.await {
            Ok(copied) => copied,
            Err(error) => {
                self.release(&identity)?;
                return Err(wrap(error));
            }
        };
        match half.finish() {
            Ok(made) => {
                let message = match &beginning.snapshot {
                    Some(snapshot) => format!("cloned from snapshot {snapshot} of {origin}"),
                    None => format!("cloned from {origin}"),
                };
                self.note(Some(name), EventKind::Note { message });
                Ok(Cloned {
                    vm: self.look(&made).await?,
                    copied_bytes,
                })
            }
            Err(error) => {
                self.release(&identity)?;
                Err(wrap(error))
            }
        }
    }

    /// Tells about how many bytes a clone would copy.
    pub(crate) async fn plan_clone(
        &self,
        origin: &str,
        snapshot: Option<&str>,
        kind: CloneKind,
    ) -> Result<u64> {
        let bundle = self.root.bundle(origin)?;
        self.may(&bundle, Request::Snapshot).await?;
        let work = self.work(&bundle).await?;
        let Opened { identity, graph } = work.look()?;
        let node = snapshot.map(|wanted| graph.find(wanted)).transpose()?;
        if kind == CloneKind::Linked && work.way != Way::Copy
            || kind == CloneKind::Full && work.way == Way::Share && all_raw(&identity)
        {
            return Ok(0);
        }
        let mut bytes = 0;
        match node {
            None => {
                for top in &identity.disks {
                    bytes += disk::allocated(&bundle.path(&top.file))?;
                    let below = crate::snapshot::layer_below(top);
                    bytes += self.below_size(&graph, below.and_then(|below| below.frozen()))?;
                }
            }
            Some(node) => {
                for frozen in &node.disks {
                    bytes += self.below_size(&graph, Some(frozen.layer.clone()))?;
                }
            }
        }
        Ok(bytes)
    }

    fn below_size(&self, graph: &Graph, from: Option<FrozenId>) -> Result<u64> {
        let chain = from.map(|from| graph.chain(&from)).unwrap_or_default();
        let sizes = chain.iter().map(|id| {
            let image = graph.layers.get(id).and_then(|layer| layer.below.as_ref());
            let image = image.and_then(|below| below.layer.parse::<LayerId>().ok());
            let mut size = disk::allocated(&self.images.frozen_path(id))?;
            if let Some(image) = image {
                size += disk::allocated(&self.images.layer_path(&image))?;
            }
            Ok(size)
        });
        sizes.sum()
    }

    /// Finds what a clone begins as; of the present state of an origin with overlays this makes layers.
    fn beginning(
        &self,
        work: &Work<'_>,
        snapshot: Option<&str>,
        kind: CloneKind,
    ) -> Result<Beginning> {
        let Opened { graph, .. } = work.open()?;
        let Some(wanted) = snapshot else {
            if work.bundle.is_suspended() {
                return Err(with_memory("it is suspended"));
            }
            let disks = match (work.way, kind) {
                (Way::Overlay, CloneKind::Linked) => {
                    let frozen = work.freeze_present()?;
                    let graph = work.look()?.graph;
                    sources(&graph, frozen)?
                }
                _ => work
                    .look()?
                    .identity
                    .disks
                    .into_iter()
                    .map(Source::File)
                    .collect(),
            };
            return Ok(Beginning {
                spec: work.bundle.spec()?,
                snapshot: None,
                kept: work.present()?,
                kept_in: work.bundle.directory().to_owned(),
                disks,
            });
        };
        let node = graph.find(wanted)?;
        if node.kept.memory.is_some() {
            return Err(with_memory(&format!("snapshot {} holds memory", node.name)));
        }
        Ok(Beginning {
            spec: spec::read(&node.spec, &node.name)?,
            snapshot: Some(node.name.clone()),
            kept: node.kept.clone(),
            kept_in: work.bundle.snapshot_directory(&node.id),
            disks: sources(&graph, node.disks.clone())?,
        })
    }

    fn other_identity(&self, origin: &Bundle, beginning: &Beginning) -> Result<Identity> {
        let before = origin.identity()?;
        let macs: Result<Vec<_>> = spec_of_clone(&beginning.spec)
            .networks
            .iter()
            .map(mac_address)
            .collect();
        Ok(Identity {
            id: random_id()?,
            created: timestamp(),
            macs: macs?,
            ssh_port: before.ssh_port.map(|_| free_port()).transpose()?,
            disks: Vec::new(),
            seed: false,
            generation: 0,
            cloned: Some(ClonedFrom {
                id: before.id.clone(),
                name: origin.name().to_owned(),
                snapshot: beginning.snapshot.clone(),
                layers: Vec::new(),
            }),
            ..before
        })
    }

    async fn fill_clone(
        &self,
        half: &HalfMade,
        origin: &Work<'_>,
        beginning: &Beginning,
        mut identity: Identity,
        kind: CloneKind,
    ) -> Result<u64> {
        let bundle = half.bundle();
        for directory in ["log", "disks"] {
            std::fs::create_dir(bundle.path(directory)).map_err(|error| {
                Error::io(
                    format!("can't make {}", bundle.path(directory).display()),
                    error,
                )
            })?;
        }
        // First the identity, so that the leases of its owner can be found and given back if we die here.
        bundle.write_identity(&identity)?;
        for layer in identity.image.iter().flat_map(|image| &image.layers) {
            self.images
                .lease(&layer.parse::<LayerId>()?, &identity.id)?;
        }
        let graph = origin.look()?.graph;
        let mut own = Graph::new(0, Vec::new());
        let mut copied = 0;
        for source in &beginning.disks {
            copied += self
                .clone_disk(
                    bundle,
                    origin,
                    source,
                    kind,
                    &mut identity,
                    &graph,
                    &mut own,
                )
                .await?;
        }
        own.forget_unneeded();
        own.tops.clone_from(&identity.disks);
        if !own.layers.is_empty() {
            bundle.write_snapshots(&own)?;
        }
        if let Some(cloned) = &mut identity.cloned {
            cloned.layers = own.layers.keys().cloned().collect();
        }
        copied += origin.copy_firmware(&beginning.kept, &beginning.kept_in, bundle)?;
        let spec = spec_of_clone(&beginning.spec);
        if identity
            .image
            .as_ref()
            .is_some_and(|image| image.cloud_init)
        {
            self.write_seed(bundle, &identity, half.destination().name(), &spec)?;
            identity.seed = true;
        }
        bundle.write_identity(&identity)?;
        bundle.write_spec_text(&spec::write(&spec))?;
        Ok(copied)
    }

    #[allow(clippy::too_many_arguments)]
    async fn clone_disk(
        &self,
        bundle: &Bundle,
        origin: &Work<'_>,
        source: &Source,
        kind: CloneKind,
        identity: &mut Identity,
        graph: &Graph,
        own: &mut Graph,
    ) -> Result<u64> {
        let (name, path, layer) = match source {
            Source::Layer(frozen, layer) => (
                &frozen.name,
                self.images.frozen_path(&frozen.layer),
                layer.clone(),
            ),
            Source::File(top) => (
                &top.name,
                origin.bundle.path(&top.file),
                Layer::of_top(top)?,
            ),
        };
        let work = Work {
            images: &self.images,
            bundle,
            way: origin.way,
        };
        let lease = |own: &mut Graph, chain: Vec<FrozenId>| -> Result<()> {
            for id in chain {
                self.images.lease_frozen(&id, &identity.id)?;
                if let Some(layer) = graph.layers.get(&id) {
                    own.layers.insert(id, layer.clone());
                }
            }
            Ok(())
        };
        match (kind, source, origin.way) {
            (CloneKind::Linked, Source::Layer(frozen, layer), Way::Overlay) => {
                lease(own, graph.chain(&frozen.layer))?;
                let top = work.overlay(name, &frozen.layer, layer, 0)?;
                identity.disks.push(top);
                own.tops.clone_from(&identity.disks);
                Ok(0)
            }
            // What a copy reads through to is shared, as it was by its origin.
            (CloneKind::Linked, ..) => {
                if let Some(below) = layer.below.as_ref().and_then(|below| below.frozen()) {
                    lease(own, graph.chain(&below))?;
                }
                let file = top_file(name, 0, layer.format);
                let copied = disk::copy(&path, &bundle.path(&file))?;
                identity.disks.push(layer.as_top(name, file));
                own.tops.clone_from(&identity.disks);
                Ok(copied)
            }
            (CloneKind::Full, ..) => {
                let file = top_file(name, 0, DiskFormat::Raw);
                let to = bundle.path(&file);
                let copied = match layer.format {
                    DiskFormat::Raw => disk::copy(&path, &to)?,
                    DiskFormat::Qcow2 => {
                        let silent = Arc::new(innkeeper_image::Silent);
                        disk::convert(&path, layer.format, &to, DiskFormat::Raw, silent).await?;
                        disk::allocated(&to)?
                    }
                };
                identity.disks.push(IdentityDisk {
                    name: name.clone(),
                    file,
                    format: DiskFormat::Raw.to_string(),
                    backing_format: None,
                    layer: None,
                    size: layer.size,
                });
                Ok(copied)
            }
        }
    }
}

/// Returns what a clone asks for: what its origin did, but for addresses, which must not be there twice.
fn spec_of_clone(spec: &VmSpec) -> VmSpec {
    let mut spec = spec.clone();
    for network in &mut spec.networks {
        network.mac = None;
    }
    spec.protected = false;
    spec
}

fn all_raw(identity: &Identity) -> bool {
    let raw = DiskFormat::Raw.as_str();
    identity.disks.iter().all(|disk| disk.format == raw)
}

fn sources(graph: &Graph, disks: Vec<FrozenDisk>) -> Result<Vec<Source>> {
    disks
        .into_iter()
        .map(|frozen| {
            let layer = graph.layers.get(&frozen.layer).cloned();
            let gone = || Error::new(ErrorKind::NotFound, "a layer of it is not there any more");
            Ok(Source::Layer(frozen, layer.ok_or_else(gone)?))
        })
        .collect()
}

fn with_memory(why: &str) -> Error {
    let message = format!(
        "{why}, and two machines can't go on with one memory: its disks alone are as after a power cut"
    );
    Error::new(ErrorKind::Conflict, message)
        .with_hint("stop it first, or clone a snapshot that holds disks alone")
}
