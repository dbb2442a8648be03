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
//! names and work directories that nothing holds, which [`Store::gc`] (collect.rs) removes. The store does not decide what is old: it never
//! asks a server for an image that it has, unless told to pull or build.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::atomic::{self, WorkDirectory};
use crate::catalogue::Catalogue;
use crate::disk::{self, DiskFormat};
use crate::download::{self, Download};
use crate::image::{DirectBoot, INDEX_VERSION, Image, ImageKind, RootDisk};
use crate::import::{Imported, Take, file_stamp};
use crate::layer::{LayerId, Layers};
use crate::progress::{self, Context, Progress, Step};
use crate::reference::{self, Arch, Reference};
use crate::{Error, Result, debian, digest, tiny};

/// What making images needs from its caller.
#[derive(Clone, Debug, Default)]
pub struct BuildInputs {
    /// The static guest agent for the image's architecture; `tiny` can't be made without.
    pub agent: Option<PathBuf>,
    /// Further catalogues, by path or by URL with `#sha256=`; the first that has a name wins, the built-in one comes last.
    pub catalogues: Vec<String>,
    /// Files with credentials for registries, in the form of Docker's `config.json`; the first that knows a registry wins.
    pub registry_configurations: Vec<PathBuf>,
}

/// How an image is to be obtained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the cache; else built where this host can, else downloaded.
    Ensure,
    /// Downloaded anew from its vendor.
    Pull,
    /// Built anew from packages.
    Build,
}

/// The images and layers below one directory; cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    pub(crate) layers: Layers,
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

    pub(crate) fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    pub(crate) fn index_path(&self, reference: &Reference, arch: Arch) -> PathBuf {
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
            (Reference::Oci(name), Way::Ensure | Way::Pull) => {
                self.make_oci(name, arch, inputs, way, context)?
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
            Reference::Tiny | Reference::Oci(_) => match &inputs.agent {
                Some(agent) => {
                    image.contents.get("recipe") == Some(&tiny::RECIPE.to_string())
                        && image.contents.get("agent") == Some(&self.agent_digest(agent)?)
                }
                None => true,
            },
            Reference::Path(path) => image.contents.get("stamp") == Some(&file_stamp(path)),
            Reference::Named { .. } | Reference::Url { .. } => true,
        };
        Ok((unchanged && self.is_whole(&image)).then_some(image))
    }

    /// Whether all that a VM needs is there: a layer that someone removed by hand makes the image worthless, and it is made anew.
    pub(crate) fn is_whole(&self, image: &Image) -> bool {
        image
            .layers()
            .iter()
            .all(|layer| self.layer_path(layer).is_file())
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
        let made = self.direct_boot(arch, inputs, way, tiny::COMMAND_LINE, context)?;
        self.publish(
            &Reference::Tiny,
            Image {
                source: made.source,
                kind: ImageKind::Tiny,
                boot: Some(made.boot),
                contents: made.contents,
                ..empty_image(&Reference::Tiny, arch)
            },
        )
    }

    /// Makes, or finds, the kernel and the initramfs with the agent as init.
    pub(crate) fn direct_boot(
        &self,
        arch: Arch,
        inputs: &BuildInputs,
        way: Way,
        command_line: &str,
        context: &Context,
    ) -> Result<AgentBoot> {
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
            command_line: command_line.to_owned(),
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
        Ok(AgentBoot {
            boot,
            contents,
            source: format!("{} {}", base.base.kernel_package, base.base.kernel_version),
        })
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
            let built = debian::build(release, arch, work.path(), context)?;
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
                size: None,
                source: None,
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

    /// Writes the index file, which makes the image visible.
    pub(crate) fn publish(&self, reference: &Reference, image: Image) -> Result<Image> {
        let image = image.sealed();
        let text = serde_json::to_vec_pretty(&image)
            .map_err(|source| Error::malformed("image", source.to_string()))?;
        atomic::write(&self.index_path(reference, image.arch), &text, 0o644)?;
        Ok(image)
    }

    pub(crate) fn work(&self, purpose: &str) -> Result<WorkDirectory> {
        WorkDirectory::create(&self.cache().join("build"), purpose)
    }

    /// Makes a directory for half-made things on the store's file system; it goes when it is dropped, or with [`Store::gc`] if this process dies.
    pub fn work_directory(&self, purpose: &str) -> Result<WorkDirectory> {
        self.work(purpose)
    }

    /// Takes a file on the store's file system as the layer that it must be: its digest is compared with the layer's name.
    pub fn adopt_layer(&self, file: &Path, layer: &LayerId) -> Result<()> {
        let (actual, _) = digest::sha256_file(file, |_| Ok(()))?;
        if actual != layer.as_str() {
            return Err(Error::malformed(
                file.display().to_string(),
                format!("is not the layer {layer}: its digest differs"),
            ));
        }
        self.layers.adopt(file, &actual).map(drop)
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
}

/// A kernel with the agent as init, and what it is made of.
pub(crate) struct AgentBoot {
    pub(crate) boot: DirectBoot,
    pub(crate) contents: BTreeMap<String, String>,
    pub(crate) source: String,
}

pub(crate) fn empty_image(reference: &Reference, arch: Arch) -> Image {
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
        oci: None,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::progress::Silent;

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

    #[tokio::test]
    async fn of_two_at_once_one_works_and_both_get_the_image() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("d.raw");
        fs::write(&path, vec![1; 1 << 20]).unwrap();
        let reference = Reference::Path(path);
        let inputs = BuildInputs::default();
        // Two stores, as two processes would have: locks belong to the open file.
        let (one, two) = (
            Store::open(home.path().join("home")).unwrap(),
            Store::open(home.path().join("home")).unwrap(),
        );
        let (first, second) = tokio::join!(
            one.ensure(&reference, Arch::X86_64, &inputs, Arc::new(Silent)),
            two.ensure(&reference, Arch::X86_64, &inputs, Arc::new(Silent)),
        );
        assert_eq!(first.unwrap().digest, second.unwrap().digest);
        assert_eq!(one.ls().unwrap().len(), 1);
        assert_eq!(
            one.gc(std::time::Duration::ZERO, crate::Run::Dry)
                .await
                .unwrap(),
            crate::Collected::default()
        );
    }
}
