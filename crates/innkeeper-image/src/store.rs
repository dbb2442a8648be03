//! The store of images: an index over layers, filled by building, downloading and importing.
//!
//! ```text
//!   ROOT/images/STEM.json     one image: reference, architecture, layers (image.rs)
//!   ROOT/layers/…             content and leases (layer.rs)
//!   ROOT/cache/               can be thrown away: package index and packages, tiny's base, parts of downloads,
//!   ROOT/cache/build/         half-made things, each with a lock that dies with its maker
//!   ROOT/cache/locks/STEM     held by the one process that makes an image; the others wait and then find it made
//! ```
//! An image appears by one rename of its JSON, after all of its layers; so a crash leaves at most layers that nothing
//! names and work directories that nothing holds, which [`Store::gc`] removes. The store does not decide what is old: it never
//! asks a server for an image that it has, unless told to pull or build.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::atomic::{self, WorkDirectory};
use crate::catalogue::Catalogue;
use crate::disk::{self, DiskFormat};
use crate::download::{self, Download};
use crate::image::{DirectBoot, INDEX_VERSION, Image, ImageKind, RootDisk};
use crate::layer::{LayerId, Layers};
use crate::progress::{self, Context, Progress, Silent, Step};
use crate::reference::{self, Arch, Reference};
use crate::{Error, Result, debian, digest, tiny};

/// What making images needs from its caller.
#[derive(Clone, Debug, Default)]
pub struct BuildInputs {
    /// The static guest agent for the image's architecture; `tiny` can't be made without.
    pub agent: Option<PathBuf>,
    /// Further catalogues, by path or by URL with `#sha256=`; the first that has a name wins, the built-in one comes last.
    pub catalogues: Vec<String>,
}

/// How an image is to be obtained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From the cache; else built where this host can, else downloaded.
    Ensure,
    /// Downloaded anew from its vendor.
    Pull,
    /// Built anew from packages.
    Build,
}

/// What a collection found, or would remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Layers that no image and no user needs, with the bytes they take.
    pub layers: Vec<(LayerId, u64)>,
    /// Work directories of processes that died.
    pub leftovers: Vec<PathBuf>,
}

/// Whether something is really done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// Only tell.
    Dry,
    /// Do it.
    Real,
}

/// The images and layers below one directory; cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    layers: Layers,
}

impl Store {
    /// Opens the store, making its directories where they lack.
    pub fn open(root: impl Into<PathBuf>) -> Result<Store> {
        let root =
            std::path::absolute(root.into()).map_err(Error::io("find", "the data directory"))?;
        for part in ["images", "cache/locks", "cache/build"] {
            atomic::create_directory(&root.join(part))?;
        }
        let layers = Layers::open(root.join("layers"))?;
        Ok(Store { root, layers })
    }

    fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    fn index_path(&self, reference: &Reference, arch: Arch) -> PathBuf {
        self.images()
            .join(format!("{}.json", reference.file_stem(arch)))
    }

    /// Lists the images that are here, by reference and architecture; an index file that can't be read is an error that names it.
    pub fn ls(&self) -> Result<Vec<Image>> {
        let directory = self.images();
        let mut images = Vec::new();
        for entry in fs::read_dir(&directory).map_err(Error::io("list", &directory))? {
            let path = entry.map_err(Error::io("list", &directory))?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                images.extend(read_index(&path)?);
            }
        }
        images.sort_by(|a, b| (&a.reference, a.arch).cmp(&(&b.reference, b.arch)));
        Ok(images)
    }

    /// Finds an image that is here; none if it would have to be built or downloaded.
    pub fn resolve(&self, reference: &Reference, arch: Arch) -> Result<Option<Image>> {
        read_index(&self.index_path(reference, arch))
    }

    /// Tells of an image that is here, or which name was probably meant.
    pub fn info(&self, reference: &Reference, arch: Arch) -> Result<Image> {
        self.resolve(reference, arch)?
            .ok_or_else(|| self.unknown(reference, &Catalogue::built_in()))
    }

    fn unknown(&self, reference: &Reference, catalogue: &Catalogue) -> Error {
        let mut known: BTreeSet<String> = catalogue.references();
        known.insert("tiny".into());
        known.extend(
            self.ls()
                .unwrap_or_default()
                .into_iter()
                .map(|image| image.reference),
        );
        let reference = reference.to_string();
        known.remove(&reference);
        let suggestion =
            reference::nearest(&reference, known.iter().map(String::as_str)).map(str::to_owned);
        Error::UnknownImage {
            reference,
            suggestion,
        }
    }

    /// The file of a layer.
    pub fn layer_path(&self, id: &LayerId) -> PathBuf {
        self.layers.path(id)
    }

    /// The image's root disk as the base of a VM's top disk; none for an image without a disk.
    pub fn base(&self, image: &Image) -> Option<disk::Base> {
        image.root.as_ref().map(|root| disk::Base {
            path: self.layer_path(&root.layer),
            format: root.format,
            virtual_bytes: root.virtual_bytes,
        })
    }

    /// Gives the image, building or downloading it where it isn't here; of two processes one works and the other waits.
    ///
    /// A tiny image is made anew when the agent changed. Dropping the future cancels; parts of downloads stay for the next time.
    pub async fn ensure(
        &self,
        reference: &Reference,
        arch: Arch,
        inputs: &BuildInputs,
        progress: Arc<dyn Progress>,
    ) -> Result<Image> {
        self.obtain(Way::Ensure, reference, arch, inputs, progress)
            .await
    }

    /// Downloads a catalogue's image from its vendor, also where it could be built here; `tiny` is refused.
    pub async fn pull(
        &self,
        reference: &Reference,
        arch: Arch,
        inputs: &BuildInputs,
        progress: Arc<dyn Progress>,
    ) -> Result<Image> {
        self.obtain(Way::Pull, reference, arch, inputs, progress)
            .await
    }

    /// Builds an image from the newest packages, also where it is here.
    pub async fn build(
        &self,
        reference: &Reference,
        arch: Arch,
        inputs: &BuildInputs,
        progress: Arc<dyn Progress>,
    ) -> Result<Image> {
        self.obtain(Way::Build, reference, arch, inputs, progress)
            .await
    }

    async fn obtain(
        &self,
        way: Way,
        reference: &Reference,
        arch: Arch,
        inputs: &BuildInputs,
        progress: Arc<dyn Progress>,
    ) -> Result<Image> {
        let (store, reference, inputs) = (self.clone(), reference.clone(), inputs.clone());
        progress::run(progress, move |context| {
            store.obtain_blocking(way, &reference, arch, &inputs, context)
        })
        .await
    }

    fn obtain_blocking(
        &self,
        way: Way,
        reference: &Reference,
        arch: Arch,
        inputs: &BuildInputs,
        context: &Context,
    ) -> Result<Image> {
        if way == Way::Ensure
            && let Some(image) = self.fresh(reference, arch, inputs)?
        {
            return Ok(image);
        }
        let lock_path = self.cache().join("locks").join(reference.file_stem(arch));
        let _lock = match atomic::try_lock(&lock_path)? {
            Some(lock) => lock,
            None => {
                let lock = atomic::lock_patiently(&lock_path, context, &reference.to_string())?;
                // Whoever held it has very likely made what we want.
                if let Some(image) = self.fresh(reference, arch, inputs)? {
                    return Ok(image);
                }
                lock
            }
        };
        let image = match (reference, way) {
            (Reference::Tiny, Way::Pull) => {
                return Err(Error::invalid(
                    "image",
                    "tiny",
                    "is made on this computer; use build instead of pull",
                ));
            }
            (Reference::Tiny, _) => self.make_tiny(arch, inputs, way, context)?,
            (Reference::Named { name, version }, _) => {
                self.make_named(name, version, reference, arch, inputs, way, context)?
            }
            (_, Way::Build) => {
                return Err(Error::invalid(
                    "image",
                    reference.to_string(),
                    "only tiny and debian can be built from packages",
                ));
            }
            (Reference::Path(path), _) => {
                let path = fs::canonicalize(path).map_err(Error::io("find", path))?;
                let format = DiskFormat::from_extension(&path).ok_or_else(|| {
                    Error::invalid(
                        "image",
                        path.display().to_string(),
                        "its name must end in .qcow2, .raw or .img; else use import with a format",
                    )
                })?;
                let imported = Imported {
                    source: path.display().to_string(),
                    kind: ImageKind::Imported,
                    stamp: file_stamp(&path),
                    format,
                    take: Take::Copy,
                };
                self.import_file(&path, reference, arch, imported, context)?
            }
            (Reference::Url { url, sha256 }, _) => {
                let end = url.rsplit('/').next().unwrap_or_default();
                let format = DiskFormat::from_extension(Path::new(end)).ok_or_else(|| {
                    Error::invalid("image", url, "its name must end in .qcow2, .raw or .img; else download it and use import with a format")
                })?;
                self.download_disk(url, sha256, format, reference, arch, context)?
            }
        };
        context.step(
            Step::Done,
            format!("{} for {} is ready", image.reference, image.arch),
        );
        Ok(image)
    }

    /// The image from the index if nothing about it changed.
    fn fresh(
        &self,
        reference: &Reference,
        arch: Arch,
        inputs: &BuildInputs,
    ) -> Result<Option<Image>> {
        let Some(image) = self.resolve(reference, arch)? else {
            return Ok(None);
        };
        let unchanged = match reference {
            Reference::Tiny => match &inputs.agent {
                Some(agent) => {
                    image.contents.get("recipe") == Some(&tiny::RECIPE.to_string())
                        && image.contents.get("agent") == Some(&self.agent_digest(agent)?)
                }
                None => true,
            },
            Reference::Path(path) => image.contents.get("stamp") == Some(&file_stamp(path)),
            Reference::Named { .. } | Reference::Url { .. } => true,
        };
        // A layer that someone removed by hand makes the image worthless, and it is made anew.
        Ok((unchanged
            && image
                .layers()
                .iter()
                .all(|layer| self.layer_path(layer).is_file()))
        .then_some(image))
    }

    /// SHA-256 of the agent, remembered by its size, time and inode: hashing it at every `run` would cost milliseconds.
    fn agent_digest(&self, agent: &Path) -> Result<String> {
        let stamp = format!("{} {}", agent.display(), file_stamp(agent));
        let memory = self.cache().join(format!(
            "agent-{}",
            &digest::sha256_hex(agent.as_os_str().as_encoded_bytes())[..16]
        ));
        if let Ok(text) = fs::read_to_string(&memory)
            && let Some((known, hex)) = text.split_once('\n')
            && known == stamp
            && digest::is_hex(hex, 64)
        {
            return Ok(hex.to_owned());
        }
        let (hex, _) = digest::sha256_file(agent, |_| Ok(()))?;
        atomic::write(&memory, format!("{stamp}\n{hex}").as_bytes(), 0o644)?;
        Ok(hex)
    }

    fn make_tiny(
        &self,
        arch: Arch,
        inputs: &BuildInputs,
        way: Way,
        context: &Context,
    ) -> Result<Image> {
        let agent = inputs.agent.as_ref().ok_or_else(|| Error::Unsupported {
            what: format!("tiny for {arch}"),
            reason: format!("there is no guest agent for linux-{arch}"),
            fix: format!("install libexec/innkeeper/agent-linux-{arch}, or build it from source"),
        })?;
        let agent_digest = self.agent_digest(agent)?;
        let cached = if way == Way::Ensure {
            tiny::cached_base(&self.cache(), arch)
        } else {
            None
        };
        let base = match cached {
            Some(base) => base,
            None => tiny::make_base(&self.cache(), arch, context)?,
        };
        let work = self.work("tiny")?;
        let initramfs = work.path().join("initramfs");
        let initramfs_digest = tiny::write_initramfs(&base, agent, &initramfs)?;
        let boot = DirectBoot {
            kernel: self.layer_of_copy(&base.directory.join("kernel"), &base.base.kernel, &work)?,
            vmlinux: base
                .base
                .vmlinux
                .as_ref()
                .map(|hex| self.layer_of_copy(&base.directory.join("vmlinux"), hex, &work))
                .transpose()?,
            initrd: Some(self.layers.adopt(&initramfs, &initramfs_digest)?),
            command_line: tiny::COMMAND_LINE.to_owned(),
        };
        let contents = BTreeMap::from([
            ("recipe".to_owned(), tiny::RECIPE.to_string()),
            ("agent".to_owned(), agent_digest),
            (
                base.base.kernel_package.clone(),
                base.base.kernel_version.clone(),
            ),
            (
                "busybox-static".to_owned(),
                base.base.busybox_version.clone(),
            ),
        ]);
        self.publish(
            &Reference::Tiny,
            Image {
                source: format!("{} {}", base.base.kernel_package, base.base.kernel_version),
                kind: ImageKind::Tiny,
                boot: Some(boot),
                contents,
                ..empty_image(&Reference::Tiny, arch)
            },
        )
    }

    /// Makes a layer from a file of the cache unless it is one.
    fn layer_of_copy(&self, file: &Path, hex: &str, work: &WorkDirectory) -> Result<LayerId> {
        let id: LayerId = hex.parse()?;
        if self.layer_path(&id).is_file() {
            return Ok(id);
        }
        let copy = work.path().join(hex);
        let bytes = fs::read(file).map_err(Error::io("read", file))?;
        if digest::sha256_hex(&bytes) != hex {
            return Err(Error::malformed(
                file.display().to_string(),
                "its content changed; remove the cache directory",
            ));
        }
        fs::write(&copy, bytes).map_err(Error::io("write", &copy))?;
        self.layers.adopt(&copy, hex)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one request, taken apart once"
    )]
    fn make_named(
        &self,
        name: &str,
        version: &str,
        reference: &Reference,
        arch: Arch,
        inputs: &BuildInputs,
        way: Way,
        context: &Context,
    ) -> Result<Image> {
        let release = (name == "debian")
            .then(|| debian::Release::find(version))
            .flatten();
        let builds = release
            .filter(|_| way == Way::Build || (way == Way::Ensure && debian::host_is_debian()));
        if let Some(release) = builds {
            let work = self.work("debian")?;
            let built = debian::build(release, arch, work.path(), &self.cache(), context)?;
            let boot = DirectBoot {
                kernel: self
                    .layers
                    .adopt(&built.kernel.path, &built.kernel.sha256)?,
                vmlinux: built
                    .vmlinux
                    .map(|file| self.layers.adopt(&file.path, &file.sha256))
                    .transpose()?,
                initrd: Some(
                    self.layers
                        .adopt(&built.initrd.path, &built.initrd.sha256)?,
                ),
                command_line: debian::COMMAND_LINE.to_owned(),
            };
            let root = RootDisk {
                layer: self.layers.adopt(&built.root.path, &built.root.sha256)?,
                format: DiskFormat::Raw,
                virtual_bytes: built.root_bytes,
            };
            return self.publish(
                reference,
                Image {
                    source: format!(
                        "built from Debian's packages on this host ({})",
                        release.codename
                    ),
                    kind: ImageKind::Packages,
                    min_disk_bytes: root.virtual_bytes,
                    root: Some(root),
                    boot: Some(boot),
                    cloud_init: true,
                    contents: built.packages,
                    ..empty_image(reference, arch)
                },
            );
        }
        if way == Way::Build {
            return Err(Error::invalid(
                "image",
                reference.to_string(),
                "only tiny and debian can be built from packages",
            ));
        }
        let catalogue = self.catalogue(inputs, context)?;
        let Some(entry) = catalogue.find(name, version, arch) else {
            return Err(match catalogue.architectures(name, version) {
                architectures if architectures.is_empty() => self.unknown(reference, &catalogue),
                architectures => Error::Unsupported {
                    what: format!("{reference} for {arch}"),
                    reason: "the catalogue does not have it".into(),
                    fix: format!(
                        "it has {}",
                        architectures
                            .iter()
                            .map(|arch| arch.as_str())
                            .collect::<Vec<_>>()
                            .join(", ")
                    ),
                },
            });
        };
        let expected = download::expected_digest(entry, context)?;
        let part = self.fetch(&entry.url, &expected, context)?;
        let imported = Imported {
            source: entry.url.clone(),
            kind: ImageKind::Vendor,
            stamp: expected,
            format: entry.format,
            take: Take::Move,
        };
        let image = self.import_file(&part, reference, arch, imported, context)?;
        self.publish(
            reference,
            Image {
                default_user: entry.default_user.clone(),
                cloud_init: entry.cloud_init,
                ..image
            },
        )
    }

    /// The built-in catalogue after the caller's.
    fn catalogue(&self, inputs: &BuildInputs, context: &Context) -> Result<Catalogue> {
        let mut catalogue = Catalogue::default();
        for place in &inputs.catalogues {
            let text = match place.parse::<Reference>()? {
                Reference::Url { url, sha256 } => {
                    let path = self.fetch(&url, &sha256, context)?;
                    let text = fs::read(&path).map_err(Error::io("read", &path))?;
                    fs::remove_file(&path).map_err(Error::io("remove", &path))?;
                    text
                }
                Reference::Path(path) => {
                    fs::read(&path).map_err(Error::io("read the catalogue", &path))?
                }
                _ => {
                    return Err(Error::invalid(
                        "catalogue",
                        place,
                        "must be a path with a slash, or a URL with #sha256=",
                    ));
                }
            };
            catalogue.extend(Catalogue::parse(place, &text)?);
        }
        catalogue.extend(Catalogue::built_in());
        Ok(catalogue)
    }

    fn fetch(&self, url: &str, expected: &str, context: &Context) -> Result<PathBuf> {
        let directory = self.cache().join("download");
        atomic::create_directory(&directory)?;
        download::fetch(
            &Download {
                url,
                expected,
                directory: &directory,
            },
            context,
        )
    }

    fn download_disk(
        &self,
        url: &str,
        sha256: &str,
        format: DiskFormat,
        reference: &Reference,
        arch: Arch,
        context: &Context,
    ) -> Result<Image> {
        let part = self.fetch(url, sha256, context)?;
        let imported = Imported {
            source: url.to_owned(),
            kind: ImageKind::Vendor,
            stamp: sha256.to_owned(),
            format,
            take: Take::Move,
        };
        self.import_file(&part, reference, arch, imported, context)
    }

    /// Takes a disk image of the user as `name` (`NAME` or `NAME:VERSION`), whose format is named and whose header is checked.
    pub async fn import(
        &self,
        path: &Path,
        name: &str,
        format: DiskFormat,
        arch: Arch,
        progress: Arc<dyn Progress>,
    ) -> Result<Image> {
        let reference: Reference = name.parse()?;
        if !matches!(reference, Reference::Named { .. }) {
            return Err(Error::invalid(
                "image name",
                name,
                "must be a plain name with an optional version after a colon, and not tiny",
            ));
        }
        let (store, path) = (self.clone(), path.to_owned());
        progress::run(progress, move |context| {
            let lock_path = store.cache().join("locks").join(reference.file_stem(arch));
            let _lock = atomic::lock_patiently(&lock_path, context, &reference.to_string())?;
            let path = fs::canonicalize(&path).map_err(Error::io("find", &path))?;
            let imported = Imported {
                source: path.display().to_string(),
                kind: ImageKind::Imported,
                stamp: file_stamp(&path),
                format,
                take: Take::Copy,
            };
            store.import_file(&path, &reference, arch, imported, context)
        })
        .await
    }

    fn import_file(
        &self,
        path: &Path,
        reference: &Reference,
        arch: Arch,
        imported: Imported,
        context: &Context,
    ) -> Result<Image> {
        let checked = disk::check_foreign(path, imported.format);
        if checked.is_err() && matches!(imported.take, Take::Move) {
            // Its digest is right and its content is not usable: keeping it would only fail again.
            let _ = fs::remove_file(path);
        }
        let virtual_bytes = checked?;
        let work = self.work("import")?;
        let mut file = path.to_owned();
        if matches!(imported.take, Take::Copy) {
            context.step(Step::Write, format!("copying {}", path.display()));
            file = work.path().join("disk");
            // std::fs::copy reflinks or copies in the kernel where it can.
            fs::copy(path, &file).map_err(Error::io("copy into the store", path))?;
            // What was checked might have been exchanged before it was copied.
            disk::check_foreign(&file, imported.format)?;
        }
        let total = fs::metadata(&file)
            .map_err(Error::io("look at", &file))?
            .len();
        let (hex, _) = digest::sha256_file(&file, |done| {
            if done % (64 << 20) == 0 {
                context.bytes(Step::Verify, done, Some(total), "computing the digest");
            }
            context.check()
        })?;
        let layer = self.layers.adopt(&file, &hex)?;
        self.publish(
            reference,
            Image {
                source: imported.source,
                kind: imported.kind,
                root: Some(RootDisk {
                    layer,
                    format: imported.format,
                    virtual_bytes,
                }),
                min_disk_bytes: virtual_bytes,
                cloud_init: true,
                contents: BTreeMap::from([("stamp".to_owned(), imported.stamp)]),
                ..empty_image(reference, arch)
            },
        )
    }

    /// Writes the index file, which makes the image visible.
    fn publish(&self, reference: &Reference, image: Image) -> Result<Image> {
        let image = image.sealed();
        let text = serde_json::to_vec_pretty(&image)
            .map_err(|source| Error::malformed("image", source.to_string()))?;
        atomic::write(&self.index_path(reference, image.arch), &text, 0o644)?;
        Ok(image)
    }

    fn work(&self, purpose: &str) -> Result<WorkDirectory> {
        WorkDirectory::create(&self.cache().join("build"), purpose)
    }

    /// Notes that `owner` needs a layer; again is the same. Fails with not found if the layer is gone: resolve the image again.
    pub fn lease(&self, layer: &LayerId, owner: &str) -> Result<()> {
        self.layers.lease(layer, owner)
    }

    /// Notes that `owner` needs a layer no more; again is the same.
    pub fn release(&self, layer: &LayerId, owner: &str) -> Result<()> {
        self.layers.release(layer, owner)
    }

    /// Lists who needs a layer.
    pub fn users(&self, layer: &LayerId) -> Result<Vec<String>> {
        self.layers.users(layer)
    }

    /// Removes an image and those of its layers that no other image needs; refused, naming the users, while one is leased.
    ///
    /// Gives the layers that were, or would be, removed.
    pub fn rm(&self, reference: &Reference, arch: Arch, run: Run) -> Result<Vec<LayerId>> {
        let image = self.info(reference, arch)?;
        self.layers.exclusively(|| {
            let mut users = BTreeSet::new();
            let path = self.index_path(reference, arch);
            let mut elsewhere = BTreeSet::new();
            for other in self.ls()? {
                if (&other.reference, other.arch) != (&image.reference, image.arch) {
                    elsewhere.extend(other.layers());
                }
            }
            let own: Vec<LayerId> = image
                .layers()
                .into_iter()
                .filter(|layer| !elsewhere.contains(layer))
                .collect();
            for layer in &own {
                users.extend(self.layers.users(layer)?);
            }
            if !users.is_empty() {
                return Err(Error::InUse {
                    what: image.reference.clone(),
                    users: users.into_iter().collect(),
                });
            }
            if run == Run::Real {
                fs::remove_file(&path).map_err(Error::io("remove", &path))?;
                for layer in &own {
                    match self.layers.remove(layer) {
                        Err(Error::Io { source, .. })
                            if source.kind() == std::io::ErrorKind::NotFound => {}
                        other => other?,
                    }
                }
            }
            Ok(own)
        })
    }

    /// Finds and removes what crashes left, and layers older than `age` that no image names and nobody leases.
    pub async fn gc(&self, age: Duration, run: Run) -> Result<Collected> {
        let store = self.clone();
        progress::run(Arc::new(Silent), move |context| {
            store.gc_blocking(age, run, context)
        })
        .await
    }

    fn gc_blocking(&self, age: Duration, run: Run, context: &Context) -> Result<Collected> {
        let mut collected = Collected::default();
        for base in ["build", "tiny/partial", "packages/partial"] {
            for leftover in WorkDirectory::leftovers(&self.cache().join(base))? {
                context.check()?;
                if run == Run::Real {
                    debian::remove_tree(&leftover, context)?;
                    let _ = fs::remove_file(leftover.with_extension("lock"));
                }
                collected.leftovers.push(leftover);
            }
        }
        self.layers.exclusively(|| {
            let named: BTreeSet<LayerId> = self.ls()?.iter().flat_map(Image::layers).collect();
            for (layer, bytes) in self.layers.list()? {
                if !named.contains(&layer)
                    && self.layers.older_than(&layer, age)
                    && self.layers.users(&layer)?.is_empty()
                {
                    if run == Run::Real {
                        self.layers.remove(&layer)?;
                    }
                    collected.layers.push((layer, bytes));
                }
            }
            Ok(())
        })?;
        Ok(collected)
    }
}

struct Imported {
    source: String,
    kind: ImageKind,
    stamp: String,
    format: DiskFormat,
    take: Take,
}

/// Whether a file stays where it is.
enum Take {
    Copy,
    Move,
}

fn empty_image(reference: &Reference, arch: Arch) -> Image {
    Image {
        version: INDEX_VERSION,
        reference: reference.to_string(),
        arch,
        digest: String::new(),
        created: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs(),
        source: String::new(),
        kind: ImageKind::Imported,
        root: None,
        boot: None,
        default_user: None,
        min_disk_bytes: 0,
        cloud_init: false,
        contents: BTreeMap::new(),
    }
}

fn read_index(path: &Path) -> Result<Option<Image>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(failure) if failure.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(failure) => return Err(Error::io("read", path)(failure)),
    };
    let image: Image = serde_json::from_slice(&bytes)
        .map_err(|source| Error::malformed(path.display().to_string(), source.to_string()))?;
    if image.version > INDEX_VERSION {
        return Err(Error::Unsupported {
            what: path.display().to_string(),
            reason: format!(
                "it has format version {} and this program knows {INDEX_VERSION}",
                image.version
            ),
            fix: "use a newer inn".into(),
        });
    }
    Ok(Some(image))
}

/// Size, time and inode: changes whenever a file was written or exchanged.
fn file_stamp(path: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).map_or_else(
        |_| "absent".to_owned(),
        |metadata| {
            format!(
                "{} {}.{:09} {}",
                metadata.len(),
                metadata.mtime(),
                metadata.mtime_nsec(),
                metadata.ino()
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    async fn imported(store: &Store, directory: &Path, name: &str, byte: u8) -> Image {
        let path = directory.join("disk.raw");
        fs::write(&path, vec![byte; 4096]).unwrap();
        store
            .import(&path, name, DiskFormat::Raw, Arch::X86_64, Arc::new(Silent))
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn import_list_lease_remove() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path().join("home")).unwrap();
        let image = imported(&store, home.path(), "mine:1", 7).await;
        assert_eq!(store.ls().unwrap(), [image.clone()]);
        let reference: Reference = "mine:1".parse().unwrap();
        let layer = image.root.as_ref().unwrap().layer.clone();
        store.lease(&layer, "web").unwrap();
        let refused = store.rm(&reference, Arch::X86_64, Run::Real).unwrap_err();
        assert_eq!(refused.to_string(), "mine:1 is in use by web");
        assert_eq!(refused.kind(), ErrorKind::Conflict);
        store.release(&layer, "web").unwrap();
        assert_eq!(
            store.rm(&reference, Arch::X86_64, Run::Dry).unwrap(),
            [layer.clone()]
        );
        assert!(store.layer_path(&layer).exists());
        store.rm(&reference, Arch::X86_64, Run::Real).unwrap();
        assert!(!store.layer_path(&layer).exists());
        assert!(store.ls().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_layer_of_two_images_stays_until_the_second_goes() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path().join("home")).unwrap();
        let image = imported(&store, home.path(), "a", 1).await;
        imported(&store, home.path(), "b", 1).await;
        assert!(
            store
                .rm(&"a".parse().unwrap(), Arch::X86_64, Run::Real)
                .unwrap()
                .is_empty()
        );
        assert_eq!(
            store
                .rm(&"b".parse().unwrap(), Arch::X86_64, Run::Real)
                .unwrap(),
            image.layers()
        );
    }

    #[tokio::test]
    async fn unknown_images_are_not_found_and_suggest() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        let inputs = BuildInputs::default();
        let failure = store
            .ensure(
                &"debain:12".parse().unwrap(),
                Arch::X86_64,
                &inputs,
                Arc::new(Silent),
            )
            .await
            .unwrap_err();
        assert_eq!(
            failure.to_string(),
            "unknown image \"debain:12\"; did you mean \"debian:12\"?"
        );
        assert_eq!(failure.kind(), ErrorKind::NotFound);
        let failure = store
            .ensure(&Reference::Tiny, Arch::Arm64, &inputs, Arc::new(Silent))
            .await
            .unwrap_err();
        assert!(
            failure.to_string().contains("agent-linux-arm64"),
            "{failure}"
        );
    }

    #[tokio::test]
    async fn gc_finds_orphans_and_leftovers_and_dry_run_keeps_them() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path().join("home")).unwrap();
        let image = imported(&store, home.path(), "a", 1).await;
        let orphan = home.path().join("orphan");
        fs::write(&orphan, b"x").unwrap();
        let orphan = store
            .layers
            .adopt(&orphan, &digest::sha256_hex(b"x"))
            .unwrap();
        let leftover = store.cache().join("build/debian-dead");
        fs::create_dir(&leftover).unwrap();
        let found = store.gc(Duration::ZERO, Run::Dry).await.unwrap();
        assert_eq!(
            found
                .layers
                .iter()
                .map(|(layer, _)| layer.clone())
                .collect::<Vec<_>>(),
            [orphan.clone()]
        );
        assert_eq!(found.leftovers, [leftover.clone()]);
        assert!(leftover.exists() && store.layer_path(&orphan).exists());
        assert!(
            store
                .gc(Duration::from_secs(3600), Run::Dry)
                .await
                .unwrap()
                .layers
                .is_empty()
        );
        assert_eq!(store.gc(Duration::ZERO, Run::Real).await.unwrap(), found);
        assert!(!leftover.exists() && !store.layer_path(&orphan).exists());
        assert!(store.layer_path(&image.layers()[0]).exists());
    }

    #[tokio::test]
    async fn a_path_is_imported_once_and_again_when_it_changed() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path().join("home")).unwrap();
        let path = home.path().join("d.raw");
        fs::write(&path, [1; 512]).unwrap();
        let reference = Reference::Path(path.clone());
        let inputs = BuildInputs::default();
        let first = store
            .ensure(&reference, Arch::X86_64, &inputs, Arc::new(Silent))
            .await
            .unwrap();
        assert_eq!(
            store
                .ensure(&reference, Arch::X86_64, &inputs, Arc::new(Silent))
                .await
                .unwrap(),
            first
        );
        fs::write(&path, [2; 1024]).unwrap();
        let second = store
            .ensure(&reference, Arch::X86_64, &inputs, Arc::new(Silent))
            .await
            .unwrap();
        assert_ne!(first.digest, second.digest);
    }
}
