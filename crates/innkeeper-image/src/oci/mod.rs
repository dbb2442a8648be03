//! Images of registries: pulled, verified, and made into a root disk that boots with the agent as init.
//!
//! ```text
//!  oci:HOST/NAME:TAG ─► index ─► manifest ─► configuration ─► workload: what it runs, as whom, where
//!                                   └─► layers, several at a time, kept in the store by their digests (shared between images)
//!                                          └─ in order, each as soon as it is there ─► Tree + Blocks ─► ext4, a layer of the store
//! ```
//! The root disk is a function of the unpacked layers, so it is found again by a digest over theirs: two images of the same layers share it, and
//! a gigabyte of zeros is never hashed. Kernel, modules and the agent are those of `tiny`. This module runs nothing of an image.

mod blob;
mod credentials;
mod model;
mod name;
mod registry;
#[cfg(test)]
mod tests;
mod unpack;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use self::blob::Expected;
pub use self::model::Workload;
use self::model::{Configured, Found, LayerBlob, MANIFEST_LIMIT};
pub use self::name::OciName;
pub(crate) use self::name::SCHEMES;
use self::registry::Registry;
use crate::disk::DiskFormat;
use crate::image::{Image, ImageKind, OciSource, RootDisk};
use crate::layer::LayerId;
use crate::progress::{Context, Step};
use crate::reference::{Arch, Reference};
use crate::root_disk::{self, Blocks, Identity, Tree};
use crate::store::{BuildInputs, Way, empty_image};
use crate::{Error, Result, Store, atomic, digest};

/// Changes whenever the same layers make another disk.
const RECIPE: u32 = 1;
/// Layers that are received at a time.
const CONNECTIONS: usize = 4;
/// Most bytes of files in an image.
const CONTENT_LIMIT: u64 = 128 << 30;
/// Size of a root disk if its image needs less; a VM's own size makes it larger.
const LEAST_DISK: u64 = 20 << 30;
/// Indexes that lead to indexes are followed this far.
const DEEPEST_INDEX: usize = 2;
/// What the agent needs to be there, with permissions: mount points and a place for temporary files.
const DIRECTORIES: &[(&[u8], u16)] = &[
    (b"proc", 0o555),
    (b"sys", 0o555),
    (b"dev", 0o755),
    (b"run", 0o755),
    (b"etc", 0o755),
    (b"tmp", 0o1777),
];

/// An image as its registry describes it.
struct Described {
    /// SHA-256 of the manifest.
    manifest: String,
    layers: Vec<LayerBlob>,
    configured: Configured,
}

impl Store {
    /// Pulls an image unless what its name leads to is here already, and makes it bootable.
    pub(crate) fn make_oci(
        &self,
        name: &OciName,
        arch: Arch,
        inputs: &BuildInputs,
        way: Way,
        context: &Context,
    ) -> Result<Image> {
        let reference = Reference::Oci(name.clone());
        let here = self
            .resolve(&reference, arch)?
            .filter(|image| self.is_whole(image));
        if way == Way::Ensure
            && let Some(image) = here
            && let Some(root) = &image.root
        {
            // Only the agent is another one: no registry is asked.
            let boot = self.direct_boot(
                arch,
                inputs,
                Way::Ensure,
                &command_line(&root.layer),
                context,
            )?;
            let contents = with_boot(image.contents.clone(), boot.contents);
            return self.publish(
                &reference,
                Image {
                    boot: Some(boot.boot),
                    contents,
                    ..image
                },
            );
        }
        let registry = Registry::new(name, &inputs.registry_configurations, context);
        context.step(
            Step::Resolve,
            format!("asking {} for {}", name.host(), name.repository()),
        );
        let described = describe(&registry, name, arch)?;
        let root = self.root_disk(&registry, &described, context)?;
        let boot = self.direct_boot(
            arch,
            inputs,
            Way::Ensure,
            &command_line(&root.layer),
            context,
        )?;
        let kept = described
            .layers
            .iter()
            .filter_map(|layer| layer.blob.hex.parse::<LayerId>().ok());
        let mut kept: Vec<LayerId> = kept
            .filter(|layer| self.layer_path(layer).is_file())
            .collect();
        kept.sort();
        kept.dedup();
        let contents = BTreeMap::from([(
            "manifest".to_owned(),
            format!("sha256:{}", described.manifest),
        )]);
        self.publish(
            &reference,
            Image {
                source: format!(
                    "{}/{}@sha256:{}",
                    name.host(),
                    name.repository(),
                    described.manifest
                ),
                kind: ImageKind::Oci,
                min_disk_bytes: root.virtual_bytes,
                root: Some(root),
                boot: Some(boot.boot),
                oci: Some(OciSource {
                    manifest: described.manifest,
                    layers: kept,
                    workload: described.configured.workload,
                }),
                contents: with_boot(contents, boot.contents),
                ..empty_image(&reference, arch)
            },
        )
    }

    /// Finds the root disk of the layers, or gets them and makes it.
    fn root_disk(
        &self,
        registry: &Registry<'_>,
        described: &Described,
        context: &Context,
    ) -> Result<RootDisk> {
        let directory = &described.configured.workload.directory;
        let mut recipe = format!("innkeeper root disk {RECIPE}\n{directory:?}\n");
        for plain in &described.configured.plain {
            recipe.push_str(plain);
            recipe.push('\n');
        }
        let hex = digest::sha256_hex(recipe.as_bytes());
        let id: LayerId = hex.parse()?;
        let there = std::fs::metadata(self.layer_path(&id));
        let virtual_bytes = match there {
            Ok(metadata) => metadata.len(),
            Err(_) => {
                let work = self.work("oci")?;
                let path = work.path().join("root");
                let bytes = self.make_root_disk(registry, described, &path, &hex, context)?;
                self.layers.adopt(&path, &hex)?;
                bytes
            }
        };
        Ok(RootDisk {
            layer: id,
            format: DiskFormat::Raw,
            virtual_bytes,
        })
    }

    fn make_root_disk(
        &self,
        registry: &Registry<'_>,
        described: &Described,
        path: &Path,
        hex: &str,
        context: &Context,
    ) -> Result<u64> {
        let mut root = RootWriter::create(path)?;
        let layers = &described.layers;
        let next = AtomicUsize::new(0);
        let branch = context.branch();
        let (done, arrived) = mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..CONNECTIONS.min(layers.len()) {
                let (done, next, branch) = (done.clone(), &next, &branch);
                scope.spawn(move || {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(layer) = layers.get(index) else {
                            return;
                        };
                        let result = branch
                            .check()
                            .and_then(|()| self.layer_blob(registry, layer));
                        if done.send((index, result)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(done);
            let mut here: BTreeMap<usize, Result<PathBuf>> = BTreeMap::new();
            let mut lay_all = || {
                for (index, (layer, plain)) in
                    layers.iter().zip(&described.configured.plain).enumerate()
                {
                    while !here.contains_key(&index) {
                        let (arrived, result) = arrived.recv().map_err(|_| Error::Cancelled)?;
                        here.insert(arrived, result);
                    }
                    let path = here.remove(&index).unwrap_or(Err(Error::Cancelled))?;
                    context.step(
                        Step::Unpack,
                        format!("layer {} of {}", index + 1, layers.len()),
                    );
                    let expected = Expected {
                        packed: layer.blob.hex.clone(),
                        plain: plain.clone(),
                        packing: layer.packing,
                    };
                    root.layer(&path, expected, context)?;
                }
                Ok(())
            };
            let laid = lay_all();
            if laid.is_err() {
                branch.stop();
            }
            laid
        })?;
        context.step(Step::Write, "writing the root file system");
        root.finish(hex, &described.configured.workload.directory)
    }

    /// Gets a layer unless it is here; gives its file.
    fn layer_blob(&self, registry: &Registry<'_>, layer: &LayerBlob) -> Result<PathBuf> {
        let id: LayerId = layer.blob.hex.parse()?;
        let path = self.layer_path(&id);
        if !path.is_file() {
            let directory = self.cache().join("download");
            atomic::create_directory(&directory)?;
            match registry.blob(&layer.blob, &directory) {
                Ok(file) => drop(self.layers.adopt(&file, &layer.blob.hex)?),
                // The same layer twice in an image, or in two images at a time: the other one was faster.
                Err(_) if path.is_file() => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(path)
    }
}

fn describe(registry: &Registry<'_>, name: &OciName, arch: Arch) -> Result<Described> {
    let (mut text, mut manifest) = registry.manifest(&name.wanted(), MANIFEST_LIMIT)?;
    for _ in 0..=DEEPEST_INDEX {
        match model::read_manifest(&text, arch)? {
            Found::Index(blob) => {
                (text, manifest) = registry.manifest(&format!("sha256:{}", blob.hex), blob.size)?
            }
            Found::Manifest {
                configuration,
                layers,
            } => {
                let text = registry.small(&configuration)?;
                let configured = model::read_configuration(&text, arch, layers.len())?;
                return Ok(Described {
                    manifest,
                    layers,
                    configured,
                });
            }
        }
    }
    Err(Error::malformed(
        "the image's index",
        "it leads from index to index",
    ))
}

/// What the agent needs to know on the kernel's command line to find the root disk.
fn command_line(root: &LayerId) -> String {
    format!(
        "{} inn.root=UUID={}",
        crate::tiny::COMMAND_LINE,
        uuid_text(&uuid_of(root.as_str()))
    )
}

fn with_boot(
    mut contents: BTreeMap<String, String>,
    boot: BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    contents.extend(boot);
    contents
}

/// The file system's id, from the digest that names it: 16 bytes with the marks of version 8 (RFC 9562).
fn uuid_of(hex: &str) -> [u8; 16] {
    let mut uuid = [0; 16];
    for (byte, digits) in uuid.iter_mut().zip(hex.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).unwrap_or_default();
        *byte = u8::from_str_radix(digits, 16).unwrap_or_default();
    }
    uuid[6] = uuid[6] & 0x0F | 0x80;
    uuid[8] = uuid[8] & 0x3F | 0x80;
    uuid
}

fn uuid_text(uuid: &[u8; 16]) -> String {
    let hex = digest::to_hex(uuid);
    [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-")
}

/// Lays bytes, as two layers one after the other, over an empty root and writes the disk to `path`, which must not exist.
pub fn try_layer(bytes: &[u8], path: &Path) -> Result<()> {
    let context = Context::new(std::sync::Arc::new(crate::progress::Silent));
    let (mut tree, mut blocks) = (Tree::new(), Blocks::create(path, 16 << 20)?);
    let (first, second) = bytes.split_at(bytes.len() / 2 / 512 * 512);
    for mut layer in [first, second] {
        unpack::lay_over(&mut tree, &mut blocks, &mut layer, &context)?;
    }
    let identity = Identity {
        uuid: [0; 16],
        label: [0; 16],
        created: 0,
    };
    root_disk::finish(&tree, blocks, identity, 0).map(drop)
}

/// Makes a root disk of gzipped layers, verified against their digests (as stored, and unpacked; in hexadecimal).
pub fn make_disk(layers: &[PathBuf], digests: &[(String, String)], path: &Path) -> Result<u64> {
    let context = Context::new(std::sync::Arc::new(crate::progress::Silent));
    let mut root = RootWriter::create(path)?;
    for (layer, (packed, plain)) in layers.iter().zip(digests) {
        let expected = Expected {
            packed: packed.clone(),
            plain: plain.clone(),
            packing: blob::Packing::Gzip,
        };
        root.layer(layer, expected, &context)?;
    }
    root.finish(&digest::sha256_hex(b"measured"), "")
}

/// Reads bytes as each of the documents that a registry gives.
pub fn try_documents(bytes: &[u8]) {
    // Whether they are understood does not matter; only that none of it fails otherwise.
    let _ = model::read_manifest(bytes, Arch::X86_64);
    let _ = model::read_configuration(bytes, Arch::X86_64, 1);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = registry::challenge(text);
    }
}

/// A root disk while layers are laid over it.
pub(crate) struct RootWriter {
    tree: Tree,
    blocks: Blocks,
}

impl RootWriter {
    /// Begins a disk in a new file.
    pub(crate) fn create(path: &Path) -> Result<RootWriter> {
        Ok(RootWriter {
            tree: Tree::new(),
            blocks: Blocks::create(path, CONTENT_LIMIT)?,
        })
    }

    /// Lays the next layer over it, verified while it is read; after a failure the disk is worthless.
    pub(crate) fn layer(
        &mut self,
        path: &Path,
        expected: Expected,
        context: &Context,
    ) -> Result<()> {
        std::thread::scope(|scope| {
            let (mut plain, running) = blob::open(scope, path, expected)?;
            let laid = unpack::lay_over(&mut self.tree, &mut self.blocks, &mut plain, context);
            match (laid, running.finish(plain)) {
                // What was refused ended the reading, and is what matters.
                (Err(refused), blob::Ending::GivenUp) => Err(refused),
                (laid, blob::Ending::Right) => laid,
                (_, blob::Ending::GivenUp) => Err(Error::Cancelled),
                (_, blob::Ending::Wrong(failure)) => Err(failure),
            }
        })
    }

    /// Writes what says where everything is; `hex` is the digest that names the disk. Gives the disk's size.
    pub(crate) fn finish(mut self, hex: &str, workdir: &str) -> Result<u64> {
        for (path, mode) in DIRECTORIES {
            self.tree.ensure_directory(path, *mode)?;
        }
        self.tree.ensure_directory(workdir.as_bytes(), 0o755)?;
        let identity = Identity {
            uuid: uuid_of(hex),
            label: *b"inn-root\0\0\0\0\0\0\0\0",
            created: 0,
        };
        Ok(root_disk::finish(&self.tree, self.blocks, identity, LEAST_DISK)?.bytes)
    }
}
