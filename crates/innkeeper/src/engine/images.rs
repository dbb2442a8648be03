//! Images as users name them.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use innkeeper_api::{ErrorKind, EventKind};
use innkeeper_image::{BuildInputs, Catalogue, Image, Progress as ImageProgress, Reference};

use super::Engine;
use crate::error::{Error, Result};
use crate::host::{CatalogueEntry, ImageInfo};
use crate::progress::{Progress, Unit, Update};
use crate::spec::{Arch, DiskFormat};

/// How an image is to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the store if it is there.
    Ensure,
    /// Asked for anew from where it comes.
    Pull,
    /// Built anew.
    Build,
}

/// Runs work on images and passes on what it tells.
pub(crate) async fn told<T, F>(
    progress: &dyn Progress,
    work: impl FnOnce(Arc<dyn ImageProgress>) -> F,
) -> innkeeper_image::Result<T>
where
    F: Future<Output = innkeeper_image::Result<T>>,
{
    let (events, mut news) = tokio::sync::mpsc::unbounded_channel();
    let sink: Arc<dyn ImageProgress> =
        Arc::new(move |event: innkeeper_image::Event| drop(events.send(event)));
    let work = work(sink);
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            Some(event) = news.recv() => progress.report(Update {
                step: step_name(event.step),
                detail: &event.message,
                done: event.done_bytes,
                total: event.total_bytes,
                unit: match event.total_bytes.is_some() || event.done_bytes > 0 {
                    true => Unit::Bytes,
                    false => Unit::None,
                },
            }),
        }
    }
}

impl Engine {
    /// Reads an image reference.
    pub(crate) fn reference(&self, text: &str) -> Result<Reference> {
        Ok(text.parse::<Reference>()?)
    }

    /// Returns the architecture to use where none is named: the host's.
    pub(crate) fn default_arch(&self) -> Result<Arch> {
        Arch::host().ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "this host's architecture is none that Innkeeper knows",
            )
            .with_hint("name the guest's with --arch")
        })
    }

    /// Gets an image.
    pub(crate) async fn obtain(
        &self,
        way: Way,
        reference: &Reference,
        arch: Arch,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let inputs = self.build_inputs(reference, arch)?;
        let store = self.images.clone();
        let known = store.resolve(reference, arch)?.map(|image| image.digest);
        let image = told(progress, |sink| async {
            match way {
                Way::Ensure => store.ensure(reference, arch, &inputs, sink).await,
                Way::Pull => store.pull(reference, arch, &inputs, sink).await,
                Way::Build => store.build(reference, arch, &inputs, sink).await,
            }
        })
        .await
        .map_err(|error| {
            Error::from(error).while_doing(format!("can't get the image {reference}"))
        })?;
        if known.as_ref() != Some(&image.digest) {
            self.note(
                None,
                EventKind::ImageAdded {
                    image: image.reference.clone(),
                },
            );
        }
        Ok(image)
    }

    fn build_inputs(&self, reference: &Reference, arch: Arch) -> Result<BuildInputs> {
        // Only where the agent is init it is in the image; others get it by their seed.
        let agent = match reference {
            Reference::Tiny | Reference::Oci(_) => Some(self.agents.find(arch)?),
            _ => None,
        };
        Ok(BuildInputs {
            agent,
            catalogues: self.catalogues.clone(),
            registry_configurations: self.registry_configurations.clone(),
        })
    }

    /// Refuses a name that nobody knows, naming the nearest one.
    pub(crate) fn check_known(&self, reference: &Reference, arch: Arch) -> Result<()> {
        match reference {
            Reference::Named { name, version }
                if Catalogue::built_in().find(name, version, arch).is_none() =>
            {
                Ok(self.images.info(reference, arch).map(drop)?)
            }
            _ => Ok(()),
        }
    }

    /// Adds a disk image of the user's to the store.
    pub(crate) async fn import(
        &self,
        path: &Path,
        name: &str,
        format: DiskFormat,
        arch: Arch,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let image = told(progress, |sink| {
            self.images.import(path, name, format, arch, sink)
        })
        .await?;
        self.note(
            None,
            EventKind::ImageAdded {
                image: image.reference.clone(),
            },
        );
        Ok(image)
    }

    /// Removes an image; refused while a VM needs it.
    pub(crate) fn remove_image(
        &self,
        reference: &Reference,
        arch: Arch,
        dry_run: bool,
    ) -> Result<ImageInfo> {
        let info = self.image_info(&self.images.info(reference, arch)?)?;
        if !info.used_by.is_empty() {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "the image {reference} is in use by {}",
                    info.used_by.join(", ")
                ),
            )
            .with_hint("remove those VMs first"));
        }
        let run = if dry_run {
            innkeeper_image::Run::Dry
        } else {
            innkeeper_image::Run::Real
        };
        self.images.rm(reference, arch, run)?;
        if !dry_run {
            self.note(
                None,
                EventKind::ImageRemoved {
                    image: info.reference.clone(),
                },
            );
        }
        Ok(info)
    }

    /// Tells of every image in the store.
    pub(crate) fn image_infos(&self) -> Result<Vec<ImageInfo>> {
        self.images
            .ls()?
            .iter()
            .map(|image| self.image_info(image))
            .collect()
    }

    /// Tells of one image.
    pub(crate) fn image_info(&self, image: &Image) -> Result<ImageInfo> {
        use std::os::unix::fs::MetadataExt;
        let mut files = BTreeMap::new();
        if let Some(boot) = &image.boot {
            files.insert("kernel".to_owned(), self.images.layer_path(&boot.kernel));
            if let Some(vmlinux) = &boot.vmlinux {
                files.insert("vmlinux".to_owned(), self.images.layer_path(vmlinux));
            }
            if let Some(initrd) = &boot.initrd {
                files.insert("initrd".to_owned(), self.images.layer_path(initrd));
            }
        }
        if let Some(root) = &image.root {
            files.insert("root".to_owned(), self.images.layer_path(&root.layer));
        }
        let mut size_bytes = 0;
        for path in files.values() {
            let file = std::fs::metadata(path).map_err(|error| {
                Error::io(format!("can't read the layer {}", path.display()), error)
            })?;
            size_bytes += file.blocks() * 512;
        }
        let names = self.names_by_id()?;
        let mut used_by = Vec::new();
        for layer in image.layers() {
            for user in self.images.users(&layer)? {
                let name = names.get(&user).cloned().unwrap_or(user);
                if !used_by.contains(&name) {
                    used_by.push(name);
                }
            }
        }
        used_by.sort();
        let created = std::time::UNIX_EPOCH + std::time::Duration::from_secs(image.created);
        Ok(ImageInfo {
            reference: image.reference.clone(),
            arch: image.arch.to_string(),
            digest: format!("sha256:{}", image.digest),
            size_bytes,
            created: humantime::format_rfc3339_seconds(created).to_string(),
            source: image.source.clone(),
            used_by,
            files,
        })
    }

    fn names_by_id(&self) -> Result<HashMap<String, String>> {
        let mut names = HashMap::new();
        for name in self.root.names()? {
            if let Ok(identity) = self.root.bundle_at(&name).identity() {
                names.insert(identity.id, name);
            }
        }
        Ok(names)
    }

    /// Lists what can be had.
    pub(crate) fn catalogue(&self) -> Vec<CatalogueEntry> {
        let mut entries: BTreeMap<String, CatalogueEntry> = BTreeMap::new();
        entries.insert(
            "tiny".to_owned(),
            CatalogueEntry {
                reference: "tiny".to_owned(),
                arches: vec!["x86_64".to_owned(), "arm64".to_owned()],
                description:
                    "the distribution's cloud kernel, busybox and the agent; ready in seconds"
                        .to_owned(),
                how: "built".to_owned(),
                tried: true,
            },
        );
        let built = innkeeper_image::can_build_debian();
        for entry in Catalogue::built_in().entries() {
            let reference = format!("{}:{}", entry.name, entry.version);
            let is_built = built && entry.name == "debian" && Arch::host() == Some(entry.arch);
            let listed = entries
                .entry(reference.clone())
                .or_insert_with(|| CatalogueEntry {
                    reference,
                    arches: Vec::new(),
                    description: format!("{} {}", entry.name, entry.version),
                    how: "downloaded".to_owned(),
                    tried: false,
                });
            listed.arches.push(entry.arch.to_string());
            if is_built {
                "built from packages".clone_into(&mut listed.how);
            }
            listed.tried |= entry.tried || is_built;
        }
        entries.into_values().collect()
    }
}

fn step_name(step: innkeeper_image::Step) -> &'static str {
    use innkeeper_image::Step;
    match step {
        Step::Wait => "waiting",
        Step::Resolve => "looking up",
        Step::Download => "downloading",
        Step::Unpack => "unpacking",
        Step::Install => "installing",
        Step::Write => "writing",
        Step::Verify => "verifying",
        _ => "done",
    }
}
