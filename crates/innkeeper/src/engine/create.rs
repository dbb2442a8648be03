//! Creating a VM.
//!
//! ```text
//!  name taken (hidden directory, locked) ─► image ─► driver chosen ─► identity written ─► layers leased ─► disks, seed ─► renamed: it exists
//! ```
//! Whatever goes wrong before the last step leaves nothing: the hidden directory goes with this call, or with the next one if this process
//! is killed, and the leases that its identity names with it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use innkeeper_api::{ErrorKind, EventKind, VmInfo};
use innkeeper_image::{Image, LayerId, disk};

use super::Engine;
use super::images::{Way, told};
use super::import::DiskSource;
use super::parts::{mac_address, make_empty_disk};
use super::ports::{check_forwards, free_port};
use super::select::Explanation;
use crate::clock::timestamp;
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit, Update};
use crate::spec::{self, Arch, Bytes, DiskFormat, Firmware, VmSpec};
use crate::store::{Bundle, HalfMade, Identity, IdentityDisk, PinnedBoot, PinnedImage, random_id};

/// Size of a root disk that the spec does not name, if its image is smaller.
const ROOT_SIZE: Bytes = Bytes::gib(20);

impl Engine {
    /// Creates a VM.
    pub(crate) async fn create(
        &self,
        name: &str,
        spec: VmSpec,
        progress: &dyn Progress,
    ) -> Result<VmInfo> {
        self.create_from(name, spec, &[], progress).await
    }

    /// Creates a VM, some of whose disks are filled from elsewhere.
    pub(super) async fn create_from(
        &self,
        name: &str,
        spec: VmSpec,
        sources: &[DiskSource],
        progress: &dyn Progress,
    ) -> Result<VmInfo> {
        let wrap = |error: Error| error.while_doing(format!("can't create {name}"));
        self.clear_away(false)?;
        let half = self.root.begin_creating(name)?;
        let bundle = self
            .fill(&half, spec, sources, progress)
            .await
            .map_err(wrap)?;
        match half.finish() {
            Ok(made) => {
                self.note(
                    Some(name),
                    EventKind::Created {
                        driver: bundle.driver,
                    },
                );
                self.look(&made).await
            }
            Err(error) => {
                self.release(&bundle)?;
                Err(wrap(error))
            }
        }
    }

    async fn fill(
        &self,
        half: &HalfMade,
        mut spec: VmSpec,
        sources: &[DiskSource],
        progress: &dyn Progress,
    ) -> Result<Identity> {
        spec::check(&spec)?;
        self.check_against_host(&spec)?;
        check_forwards(&spec)?;
        let arch = self.arch_of_spec(&spec)?;
        let image = match &spec.image {
            Some(text) => Some(
                self.obtain(Way::Ensure, &self.reference(text)?, arch, progress)
                    .await?,
            ),
            None => None,
        };
        if image.as_ref().is_some_and(|image| image.root.is_none()) {
            keep_root_as_data(&mut spec);
        }
        progress.report(Update {
            step: "creating",
            detail: half.destination().name(),
            done: 0,
            total: None,
            unit: Unit::None,
        });
        let mut identity = self.draft(&spec, arch, image.as_ref())?;
        let choice = self.choose(half.destination(), &identity, &spec).await?;
        identity.driver = choice.driver;
        identity.machine = choice.machine;
        identity.suit(&self.driver(&identity.driver)?.probe().await);
        let bundle = half.bundle();
        std::fs::create_dir(bundle.path("log"))
            .and_then(|()| std::fs::create_dir(bundle.path("disks")))
            .map_err(|error| {
                Error::io(
                    format!("can't make {}", bundle.directory().display()),
                    error,
                )
            })?;
        // First the identity, so that the leases it names can be found and given back if we die here.
        bundle.write_identity(&identity)?;
        let made = self
            .make_parts(
                half,
                &spec,
                image.as_ref(),
                sources,
                &mut identity,
                progress,
            )
            .await;
        if let Err(error) = made {
            self.release(&identity)?;
            return Err(error);
        }
        Ok(identity)
    }

    async fn make_parts(
        &self,
        half: &HalfMade,
        spec: &VmSpec,
        image: Option<&Image>,
        sources: &[DiskSource],
        identity: &mut Identity,
        progress: &dyn Progress,
    ) -> Result<()> {
        let (bundle, name) = (half.bundle(), half.destination().name());
        for layer in identity.image.iter().flat_map(|image| &image.layers) {
            self.images
                .lease(&layer.parse::<LayerId>()?, &identity.id)?;
        }
        if let Some(base) = image.and_then(|image| self.images.base(image)) {
            let asked = spec
                .disks
                .iter()
                .find(|disk| disk.name == "root")
                .and_then(|disk| disk.size);
            let size = asked.map_or(base.virtual_bytes.max(ROOT_SIZE.get()), Bytes::get);
            let top = disk::create_top(&base, size, &bundle.path("disks"), "root")?;
            identity.disks.push(IdentityDisk {
                name: "root".to_owned(),
                file: relative(bundle, &top.path),
                format: top.format.to_string(),
                backing_format: top.backing.as_ref().map(|(_, format)| format.to_string()),
                layer: image
                    .and_then(|image| image.root.as_ref())
                    .map(|root| root.layer.to_string()),
                size: top.virtual_bytes,
            });
        }
        for disk in spec.disks.iter().filter(|disk| disk.is_own()) {
            if identity.disks.iter().all(|own| own.name != disk.name) {
                let source = sources.iter().find(|source| source.name == disk.name);
                let made = match source {
                    Some(source) => convert_disk(bundle, source, progress).await?,
                    None => make_empty_disk(bundle, disk).await?,
                };
                identity.disks.push(made);
            }
        }
        if identity
            .image
            .as_ref()
            .is_some_and(|image| image.cloud_init)
        {
            self.write_seed(bundle, identity, name, spec)?;
            identity.seed = true;
        }
        bundle.write_identity(identity)?;
        bundle.write_spec_text(&spec::write(spec))
    }

    /// Gives back the layers that a VM needed. Idempotent.
    pub(super) fn release(&self, identity: &Identity) -> Result<()> {
        for layer in identity.image.iter().flat_map(|image| &image.layers) {
            self.images
                .release(&layer.parse::<LayerId>()?, &identity.id)?;
        }
        self.images
            .release_all_frozen(&identity.id, &BTreeSet::new())?;
        Ok(())
    }

    /// Tells what `create` would do, without doing it.
    pub(crate) async fn plan_create(&self, name: &str, spec: &VmSpec) -> Result<Explanation> {
        let bundle = self.root.bundle_at(name);
        name.parse::<spec::VmName>()
            .map_err(|error| Error::new(ErrorKind::BadInput, error.to_string()))?;
        if bundle.directory().exists() {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("a VM named {name} exists already"),
            )
            .with_hint(format!(
                "choose another name with `--name`, or start it with `inn start {name}`"
            )));
        }
        spec::check(spec)?;
        self.check_against_host(spec)?;
        check_forwards(spec)?;
        let arch = self.arch_of_spec(spec)?;
        let mut steps = Vec::new();
        let image = match &spec.image {
            Some(text) => {
                let reference = self.reference(text)?;
                let image = self.images.resolve(&reference, arch)?;
                match &image {
                    Some(image) => {
                        steps.push(format!("use the image {reference} ({})", image.digest))
                    }
                    None => {
                        self.check_known(&reference, arch)?;
                        steps.push(format!(
                            "get the image {reference} for {arch}, which is not in the store yet"
                        ));
                    }
                }
                image
            }
            None => None,
        };
        let identity = self.draft(spec, arch, image.as_ref())?;
        let (_, mut explanation) = self.weigh(&bundle, &identity, spec).await?;
        steps.push(format!("create {}", bundle.directory().display()));
        if image.as_ref().is_some_and(|image| image.root.is_some()) {
            steps.push(
                "make the root disk as a thin top over the image: no bytes are copied".to_owned(),
            );
        }
        explanation.steps = steps;
        Ok(explanation)
    }

    fn arch_of_spec(&self, spec: &VmSpec) -> Result<Arch> {
        spec.arch.map_or_else(|| self.default_arch(), Ok)
    }

    /// Makes the identity of a VM to be, but for its driver, machine and disks.
    fn draft(&self, spec: &VmSpec, arch: Arch, image: Option<&Image>) -> Result<Identity> {
        let macs = spec
            .networks
            .iter()
            .map(mac_address)
            .collect::<Result<Vec<_>>>()?;
        let has_ssh = image.is_some_and(|image| image.cloud_init) && !macs.is_empty();
        Ok(Identity {
            version: 1,
            id: random_id()?,
            created: timestamp(),
            driver: String::new(),
            machine: String::new(),
            arch: arch.to_string(),
            image: image.map(|image| pinned_image(image, spec)),
            macs,
            ssh_port: if has_ssh { Some(free_port()?) } else { None },
            dhcp: false,
            boot: image.and_then(|image| self.pinned_boot(image, spec)),
            disks: Vec::new(),
            seed: false,
            cloned: None,
            generation: 0,
        })
    }

    fn pinned_boot(&self, image: &Image, spec: &VmSpec) -> Option<PinnedBoot> {
        if matches!(spec.boot.firmware, Some(Firmware::Uefi | Firmware::Bios)) {
            return None;
        }
        let boot = image.boot.as_ref()?;
        // The uncompressed kernel starts sooner, but beside a TPM its initial RAM disk may come to lie on the firmware's tables.
        let uncompressed = boot.vmlinux.as_ref().filter(|_| !spec.tpm);
        let kernel = uncompressed.unwrap_or(&boot.kernel);
        Some(PinnedBoot {
            kernel: self.images.layer_path(kernel),
            initrd: boot
                .initrd
                .as_ref()
                .map(|initrd| self.images.layer_path(initrd)),
            cmdline: boot.command_line.clone(),
        })
    }

    /// Refuses what this host can't give, whatever the driver.
    pub(super) fn check_against_host(&self, spec: &VmSpec) -> Result<()> {
        if let Some(total) = host_memory()
            && spec.memory.get() > total
        {
            return Err(Error::new(
                ErrorKind::BadInput,
                format!(
                    "memory: {} is more than this host has ({} MiB)",
                    spec.memory,
                    total >> 20
                ),
            )
            .with_hint("ask for less"));
        }
        for (index, share) in spec.shares.iter().enumerate() {
            if !share.host.is_dir() {
                return Err(Error::new(
                    ErrorKind::BadInput,
                    format!(
                        "shares[{index}]: {} is not a folder of this host",
                        share.host.display()
                    ),
                ));
            }
        }
        for (what, path) in [
            ("boot.kernel", &spec.boot.kernel),
            ("boot.initrd", &spec.boot.initrd),
        ] {
            if let Some(path) = path
                && !path.is_file()
            {
                return Err(Error::new(
                    ErrorKind::BadInput,
                    format!("{what}: there is no file {}", path.display()),
                ));
            }
        }
        for disk in &spec.disks {
            if let Some(path) = &disk.path
                && !path.exists()
            {
                return Err(Error::new(
                    ErrorKind::BadInput,
                    format!(
                        "disks.{}.path: there is no file {}",
                        disk.name,
                        path.display()
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// The image has no root disk of its own, its root is in memory: a disk that was asked for as `root` is for data.
fn keep_root_as_data(spec: &mut VmSpec) {
    if spec.disks.iter().any(|disk| disk.name == "data") {
        return;
    }
    if let Some(disk) = spec
        .disks
        .iter_mut()
        .find(|disk| disk.name == "root" && disk.path.is_none())
    {
        "data".clone_into(&mut disk.name);
        disk.mount.get_or_insert_with(|| PathBuf::from("/data"));
    }
}

/// Brings a disk of another product into the bundle.
async fn convert_disk(
    bundle: &Bundle,
    source: &DiskSource,
    progress: &dyn Progress,
) -> Result<IdentityDisk> {
    let file = PathBuf::from(format!("disks/{}.raw", source.name));
    let path = bundle.path(&file);
    let size = told(progress, |sink| source.from.convert(&path, sink)).await?;
    Ok(IdentityDisk {
        name: source.name.clone(),
        file,
        format: DiskFormat::Raw.to_string(),
        backing_format: None,
        layer: None,
        size,
    })
}

fn pinned_image(image: &Image, spec: &VmSpec) -> PinnedImage {
    PinnedImage {
        reference: image.reference.clone(),
        digest: image.digest.clone(),
        user: image.cloud_init.then(|| {
            spec.seed
                .user
                .clone()
                .or_else(|| image.default_user.clone())
                .unwrap_or_else(|| "inn".to_owned())
        }),
        cloud_init: image.cloud_init,
        agent_is_init: matches!(
            image.kind,
            innkeeper_image::ImageKind::Tiny | innkeeper_image::ImageKind::Oci
        ),
        workload: image.oci.as_ref().map(|source| source.workload.clone()),
        layers: image.layers().iter().map(ToString::to_string).collect(),
    }
}

fn relative(bundle: &Bundle, path: &std::path::Path) -> PathBuf {
    path.strip_prefix(bundle.directory())
        .unwrap_or(path)
        .to_owned()
}

/// Returns the memory of this host, in bytes.
#[cfg(target_os = "linux")]
fn host_memory() -> Option<u64> {
    let info = rustix::system::sysinfo();
    Some(info.totalram as u64 * u64::from(info.mem_unit))
}

/// Not known here; the hypervisor refuses what it can't give.
#[cfg(not(target_os = "linux"))]
fn host_memory() -> Option<u64> {
    None
}
