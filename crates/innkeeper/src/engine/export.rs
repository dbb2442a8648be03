//! Taking machines out: as a disk, as an OVA, or as a bundle that brings all of it back.
//!
//! A bundle is a tar archive: `bundle.json` (what the VM was), `vm.yaml`, `disks/NAME.raw`, the layers that it boots from,
//! and what its firmware and TPM remember. What is over a
//! layer is flattened. The VM must be stopped, and is held by its lock meanwhile.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use innkeeper_api::{ErrorKind, EventKind, VmInfo, VmState};
use innkeeper_image::bundle::{self, BundleContent, BundleMember};
use innkeeper_image::{LayerId, disk, package};
use serde::{Deserialize, Serialize};

use super::Engine;
use super::images::told;
use crate::clock::timestamp;
use crate::error::{Error, Result};
use crate::export;
use crate::progress::Progress;
use crate::spec::{self, DiskFormat};
use crate::store::{Bundle, HalfMade, Identity, IdentityDisk, random_id};

/// Name of a bundle's first member.
const DESCRIPTION: &str = "bundle.json";
const VERSION: u32 = 1;
/// Small files of a VM that a bundle has as they are.
const KEPT: &[&str] = &["efi-variables.fd", "ssh_known_hosts"];
/// Largest of them, in bytes.
const KEPT_LIMIT: u64 = 64 << 20;

/// In what form a machine is taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportForm {
    /// An OVF with stream-optimised VMDK disks, in a tar archive.
    Ova,
    /// One disk as qcow2.
    Qcow2,
    /// One disk as its bytes.
    Raw,
    /// All of it, to be brought back here or elsewhere.
    Bundle,
}

impl ExportForm {
    /// Takes the form from a file's name.
    pub fn from_name(path: &Path) -> Option<ExportForm> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        [
            (".tar.zst", ExportForm::Bundle),
            (".ova", ExportForm::Ova),
            (".qcow2", ExportForm::Qcow2),
            (".raw", ExportForm::Raw),
            (".img", ExportForm::Raw),
        ]
        .into_iter()
        .find(|(ending, _)| name.ends_with(ending))
        .map(|(_, form)| form)
    }
}

/// What came of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// The file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// Bytes of the uncompressed bundle that an interrupted export had left, and that were not written again.
    pub resumed_bytes: u64,
    /// What the VM has that is not in the file, and why.
    pub left_out: Vec<String>,
}

/// What a bundle says of itself.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    version: u32,
    name: String,
    spec: String,
    identity: Identity,
    /// Sizes in bytes of the disks and layers by their names in the archive.
    members: BTreeMap<String, u64>,
}

impl Engine {
    /// Takes a stopped VM out as the new file `to`; of a single disk's forms, `which` names the disk.
    pub(crate) async fn export(
        &self,
        name: &str,
        to: &Path,
        form: ExportForm,
        which: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<Exported> {
        let bundle = self.root.bundle(name)?;
        let wrap = |error: Error| error.while_doing(format!("can't export {name}"));
        let _lock = self.hold_stopped(&bundle).await.map_err(wrap)?;
        let identity = bundle.identity()?;
        if std::fs::symlink_metadata(to).is_ok() {
            return Err(wrap(Error::new(
                ErrorKind::Conflict,
                format!("{} exists already", to.display()),
            )));
        }
        let mut done = Exported {
            path: to.to_owned(),
            bytes: 0,
            resumed_bytes: 0,
            left_out: Vec::new(),
        };
        let spec = bundle.spec()?;
        for disk in spec.disks.iter().filter(|disk| disk.path.is_some()) {
            done.left_out.push(format!(
                "disk {}: it is the file {}, not the VM's own",
                disk.name,
                disk.path.as_deref().unwrap_or(Path::new("")).display()
            ));
        }
        let outcome = match form {
            ExportForm::Bundle => {
                self.export_bundle(&bundle, &identity, to, &mut done, progress)
                    .await
            }
            ExportForm::Ova => {
                self.export_ova(&bundle, &identity, to, &mut done, progress)
                    .await
            }
            ExportForm::Qcow2 | ExportForm::Raw => {
                let format = match form {
                    ExportForm::Qcow2 => DiskFormat::Qcow2,
                    _ => DiskFormat::Raw,
                };
                self.export_disk(&bundle, &identity, to, format, which, &mut done, progress)
                    .await
            }
        };
        outcome.map_err(wrap)?;
        let about = std::fs::metadata(to)
            .map_err(|error| Error::io(format!("can't look at {}", to.display()), error))?;
        done.bytes = about.len();
        Ok(done)
    }

    async fn hold_stopped(&self, bundle: &Bundle) -> Result<crate::store::FileLock> {
        let name = bundle.name();
        let state = self.look(bundle).await?.state;
        if !matches!(state, VmState::Stopped | VmState::Failed) {
            return Err(
                Error::new(ErrorKind::Conflict, format!("{name} is {state}"))
                    .with_hint(format!("inn stop {name}")),
            );
        }
        bundle.try_lock()?.ok_or_else(|| {
            Error::new(
                ErrorKind::Conflict,
                format!("{name} is in use by another command"),
            )
        })
    }

    #[allow(clippy::too_many_arguments)]
    async fn export_disk(
        &self,
        bundle: &Bundle,
        identity: &Identity,
        to: &Path,
        format: DiskFormat,
        which: Option<&str>,
        done: &mut Exported,
        progress: &dyn Progress,
    ) -> Result<()> {
        let own = match which {
            Some(name) => identity.disks.iter().find(|disk| disk.name == name),
            None => identity.disks.first(),
        };
        let names: Vec<&str> = identity
            .disks
            .iter()
            .map(|disk| disk.name.as_str())
            .collect();
        let own = own.ok_or_else(|| {
            let message = match which {
                Some(name) => format!("it has no disk {name} of its own"),
                None => "it has no disk of its own".to_owned(),
            };
            Error::new(ErrorKind::NotFound, message)
                .with_hint(format!("its own disks: {}", names.join(", ")))
        })?;
        for other in names.iter().filter(|name| **name != own.name) {
            done.left_out.push(format!(
                "disk {other}: a file holds one disk; --disk names another"
            ));
        }
        let from = bundle.path(&own.file);
        let from_format: DiskFormat = own.format.parse()?;
        told(progress, |sink| {
            disk::convert(&from, from_format, to, format, sink)
        })
        .await?;
        Ok(())
    }

    async fn export_ova(
        &self,
        bundle: &Bundle,
        identity: &Identity,
        to: &Path,
        done: &mut Exported,
        progress: &dyn Progress,
    ) -> Result<()> {
        if identity.disks.is_empty() {
            return Err(Error::new(
                ErrorKind::BadInput,
                "an OVA needs a disk, and this VM has none of its own",
            ));
        }
        if identity.boot.is_some() {
            done.left_out.push(
                "the kernel that the hypervisor loads: the other product boots what is on the disk"
                    .to_owned(),
            );
        }
        let spec = bundle.spec()?;
        let work = self.images.work_directory("export")?;
        let mut disks = Vec::new();
        for own in &identity.disks {
            let file = format!("{}-{}.vmdk", bundle.name(), own.name);
            let path = work.path().join(&file);
            let from = bundle.path(&own.file);
            let format: DiskFormat = own.format.parse()?;
            told(progress, |sink| {
                disk::convert_to_vmdk(&from, format, &path, sink)
            })
            .await?;
            let about = std::fs::metadata(&path)
                .map_err(|error| Error::io(format!("can't look at {}", path.display()), error))?;
            disks.push(export::OvfDisk {
                file,
                capacity: own.size,
                stored: about.len(),
            });
        }
        let machine = export::OvfMachine {
            name: bundle.name(),
            arch: identity.arch.parse()?,
            spec: &spec,
            uefi: spec.boot.firmware == Some(spec::Firmware::Uefi),
            macs: &identity.macs,
        };
        let descriptor = export::ovf(&machine, &disks);
        let name = bundle.name().to_owned();
        let files: Vec<(String, PathBuf)> = disks
            .iter()
            .map(|disk| (disk.file.clone(), work.path().join(&disk.file)))
            .collect();
        told(progress, |sink| {
            package::write_ova(to, &name, descriptor.into_bytes(), files, sink)
        })
        .await?;
        Ok(())
    }

    async fn export_bundle(
        &self,
        bundle: &Bundle,
        identity: &Identity,
        to: &Path,
        done: &mut Exported,
        progress: &dyn Progress,
    ) -> Result<()> {
        let mut flat = identity.clone();
        let mut members = Vec::new();
        let mut sizes = BTreeMap::new();
        let work = self.images.work_directory("export")?;
        for own in &mut flat.disks {
            let mut path = bundle.path(&own.file);
            let format: DiskFormat = own.format.parse()?;
            if format != DiskFormat::Raw {
                // An overlay is nothing without what is below it.
                let from = path;
                path = work.path().join(format!("{}.raw", own.name));
                told(progress, |sink| {
                    disk::convert(&from, format, &path, DiskFormat::Raw, sink)
                })
                .await?;
            }
            own.file = PathBuf::from(format!("disks/{}.raw", own.name));
            own.format = DiskFormat::Raw.to_string();
            own.backing_format = None;
            own.layer = None;
            sizes.insert(format!("disks/{}.raw", own.name), own.size);
            members.push(BundleMember {
                name: format!("disks/{}.raw", own.name),
                content: BundleContent::File(path),
            });
        }
        for (name, path) in kept_files(bundle)? {
            let about = std::fs::metadata(&path)
                .map_err(|error| Error::io(format!("can't look at {}", path.display()), error))?;
            sizes.insert(name.clone(), about.len());
            members.push(BundleMember {
                name,
                content: BundleContent::File(path),
            });
        }
        let boot = flat.boot.iter();
        let files = boot.flat_map(|boot| std::iter::once(&boot.kernel).chain(boot.initrd.iter()));
        let mut layers = Vec::new();
        for path in files {
            let id = layer_of(path)?;
            let about = std::fs::metadata(path)
                .map_err(|error| Error::io(format!("can't look at {}", path.display()), error))?;
            let name = format!("layers/{id}");
            if sizes.insert(name.clone(), about.len()).is_none() {
                layers.push(id.to_string());
                members.push(BundleMember {
                    name,
                    content: BundleContent::File(path.clone()),
                });
            }
        }
        if let Some(image) = &mut flat.image {
            image.layers = layers;
        }
        let description = Description {
            version: VERSION,
            name: bundle.name().to_owned(),
            spec: bundle.spec_text()?,
            identity: flat,
            members: sizes,
        };
        let text = serde_json::to_vec_pretty(&description).map_err(|error| {
            Error::new(ErrorKind::Failure, "can't write the bundle's description")
                .with_source(error)
        })?;
        members.insert(
            0,
            BundleMember {
                name: DESCRIPTION.to_owned(),
                content: BundleContent::Bytes(text),
            },
        );
        let written = told(progress, |sink| bundle::write_bundle(to, members, sink)).await?;
        done.resumed_bytes = written.resumed_bytes;
        Ok(())
    }

    /// Tells what a bundle holds: the name that the VM had, its spec, and the disks with their sizes in bytes.
    pub(super) async fn look_into_bundle(
        &self,
        path: &Path,
    ) -> Result<(String, String, Vec<(String, u64)>)> {
        let description = read_description(path).await?;
        let disks = description
            .identity
            .disks
            .iter()
            .map(|disk| (disk.name.clone(), disk.size))
            .collect();
        Ok((description.name, description.spec, disks))
    }

    /// Makes a VM of a bundle. It is the one that was exported, unless that still exists here: then it is another one of the same content.
    pub(super) async fn restore(
        &self,
        path: &Path,
        name: &str,
        progress: &dyn Progress,
    ) -> Result<VmInfo> {
        let wrap = |error: Error| error.while_doing(format!("can't restore {name}"));
        let description = read_description(path).await.map_err(wrap)?;
        let half = self.root.begin_creating(name)?;
        let made = self
            .fill_restored(&half, path, description, progress)
            .await
            .map_err(wrap)?;
        match half.finish() {
            Ok(bundle) => {
                self.note(
                    Some(name),
                    EventKind::Created {
                        driver: made.driver,
                    },
                );
                self.look(&bundle).await
            }
            Err(error) => {
                self.release(&made)?;
                Err(wrap(error))
            }
        }
    }

    async fn fill_restored(
        &self,
        half: &HalfMade,
        path: &Path,
        description: Description,
        progress: &dyn Progress,
    ) -> Result<Identity> {
        let bundle = half.bundle();
        let mut spec = spec::read(&description.spec, DESCRIPTION)?;
        let mut identity = description.identity;
        for (kind, count) in [
            ("disks", identity.disks.len()),
            ("MAC addresses", identity.macs.len()),
        ] {
            if count > 256 {
                return Err(damaged(format!("it has {count} {kind}")));
            }
        }
        // What lies outside of the VM is this host's affair.
        spec.disks.retain(|disk| disk.path.is_none());
        spec.shares.retain(|share| share.host.is_dir());
        self.check_against_host(&spec)?;
        if self.id_is_taken(&identity.id)? {
            identity.id = random_id()?;
            // Two machines with one address would be one to every network.
            for mac in &mut identity.macs {
                *mac = super::parts::random_mac()?;
            }
            for network in &mut spec.networks {
                network.mac = None;
            }
        }
        identity.created = timestamp();
        if identity.ssh_port.is_some() {
            identity.ssh_port = Some(super::ports::free_port()?);
        }
        std::fs::create_dir(bundle.path("log"))
            .and_then(|()| std::fs::create_dir(bundle.path("disks")))
            .map_err(|error| {
                Error::io(
                    format!("can't make {}", bundle.directory().display()),
                    error,
                )
            })?;
        let work = self.images.work_directory("restore")?;
        let mut wanted = BTreeMap::new();
        for own in &identity.disks {
            let member = format!("disks/{}.raw", own.name);
            let expected = IdentityDisk {
                name: own.name.clone(),
                file: PathBuf::from(&member),
                format: DiskFormat::Raw.to_string(),
                backing_format: None,
                layer: None,
                size: own.size,
            };
            let plain = innkeeper_image::parse::is_plain_name(&own.name);
            if *own != expected || !plain || own.size == 0 || own.size > 64 << 40 {
                return Err(damaged(format!(
                    "its disk {:?} is not as a bundle has it",
                    own.name
                )));
            }
            wanted.insert(member, (bundle.path(&own.file), own.size));
        }
        for (member, size) in &description.members {
            if is_kept(member) {
                if *size > KEPT_LIMIT {
                    return Err(damaged(format!("its {member} has {size} bytes")));
                }
                wanted.insert(member.clone(), (bundle.path(member), *size));
            }
        }
        if wanted.keys().any(|member| member.starts_with("tpm/")) {
            std::fs::create_dir(bundle.path("tpm"))
                .map_err(|error| Error::io("can't make the TPM's directory", error))?;
        }
        let mut layers = Vec::new();
        if let Some(image) = &identity.image {
            for text in &image.layers {
                let id: LayerId = text.parse()?;
                let member = format!("layers/{id}");
                let size = *description
                    .members
                    .get(&member)
                    .ok_or_else(|| damaged(format!("it does not tell the size of {member}")))?;
                let to = work.path().join(id.as_str());
                wanted.insert(member, (to.clone(), size));
                layers.push((id, to));
            }
        }
        let total = wanted
            .values()
            .map(|(_, size)| *size)
            .fold(0, u64::saturating_add);
        if total > 256 << 40 {
            return Err(damaged("its disks are over all bounds"));
        }
        told(progress, |sink| bundle::read_bundle(path, wanted, sink)).await?;
        for (id, file) in &layers {
            self.images.adopt_layer(file, id)?;
        }
        if let Some(boot) = &mut identity.boot {
            // By their names, which are their digests: a path of another host means nothing here.
            boot.kernel = self.images.layer_path(&layer_of(&boot.kernel)?);
            if let Some(initrd) = &mut boot.initrd {
                *initrd = self.images.layer_path(&layer_of(initrd)?);
            }
            let has = |path: &Path| layers.iter().any(|(id, _)| path.ends_with(id.as_str()));
            if !has(&boot.kernel) || boot.initrd.as_deref().is_some_and(|initrd| !has(initrd)) {
                return Err(damaged("it lacks the kernel that it boots"));
            }
        }
        let choice = self.choose(half.destination(), &identity, &spec).await?;
        identity.driver = choice.driver;
        identity.machine = choice.machine;
        identity.suit(&self.driver(&identity.driver)?.probe().await);
        bundle.write_identity(&identity)?;
        for (id, _) in &layers {
            self.images.lease(id, &identity.id)?;
        }
        let name = half.destination().name();
        let finish = || {
            if identity.seed {
                self.write_seed(bundle, &identity, name, &spec)?;
            }
            bundle.write_spec_text(&spec::write(&spec))
        };
        if let Err(error) = finish() {
            self.release(&identity)?;
            return Err(error);
        }
        Ok(identity)
    }

    fn id_is_taken(&self, id: &str) -> Result<bool> {
        if id.len() != 32 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(damaged("its id is none"));
        }
        for name in self.root.names()? {
            if self
                .root
                .bundle_at(&name)
                .identity()
                .is_ok_and(|identity| identity.id == id)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Files of a VM that are neither disks nor made anew: what its firmware and its TPM remember, and its host keys.
fn kept_files(bundle: &Bundle) -> Result<Vec<(String, PathBuf)>> {
    let mut found: Vec<(String, PathBuf)> = KEPT
        .iter()
        .map(|name| ((*name).to_owned(), bundle.path(name)))
        .filter(|(_, path)| path.is_file())
        .collect();
    if let Ok(entries) = std::fs::read_dir(bundle.path("tpm")) {
        for entry in entries {
            let entry =
                entry.map_err(|error| Error::io("can't list the TPM's directory", error))?;
            let name = format!("tpm/{}", entry.file_name().to_string_lossy());
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            if is_file && is_kept(&name) {
                found.push((name, entry.path()));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Says whether a member of a bundle is such a file.
fn is_kept(member: &str) -> bool {
    KEPT.contains(&member)
        || member.strip_prefix("tpm/").is_some_and(|name| {
            innkeeper_image::parse::is_plain_name(name) && !name.ends_with(".lock")
        })
}

async fn read_description(path: &Path) -> Result<Description> {
    let bytes = bundle::read_bundle_head(path, DESCRIPTION).await?;
    let description: Description = serde_json::from_slice(&bytes)
        .map_err(|error| damaged(format!("{DESCRIPTION}: {error}")))?;
    if description.version != VERSION {
        return Err(damaged(format!(
            "it is of version {}, and this program reads version {VERSION}",
            description.version
        )));
    }
    Ok(description)
}

fn damaged(problem: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::BadInput,
        format!("the bundle can't be used: {problem}"),
    )
}

/// Returns the layer that a file of the store is.
fn layer_of(path: &Path) -> Result<LayerId> {
    let name = path.file_name().and_then(|name| name.to_str());
    Ok(name.unwrap_or_default().parse::<LayerId>()?)
}
