//! Bringing in machines of other products.
//!
//! ```text
//!  file or folder ─► what it is, by its name ─► descriptor ─► ForeignMachine ─► spec, and where each disk's bytes are
//!                                                                  └─ a plan is shown of that; then `create`, with those disks converted
//! ```
//! A descriptor's file names lead nowhere but beside it, into its archive, or below a directory that the user has allowed by name.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use innkeeper_api::{ErrorKind, VmInfo};
use innkeeper_image::{ForeignDisk, ForeignFormat, Package};
use serde::Serialize;

use super::Engine;
use super::images::told;
use crate::error::{Error, Result};
use crate::import::{
    DESCRIPTOR_LIMIT, DrivePlace, ForeignDrive, ForeignMachine, Unmapped, libvirt, lima, ovf, utm,
    vagrant, vbox,
};
use crate::progress::Progress;
use crate::spec::{self, Arch, Bytes, Firmware, VmName, VmSpec};

/// What a user says of a machine that is brought in. Of a bundle the name alone counts: it is brought back as it was.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Name; the machine's own, made into one, if none is given.
    pub name: Option<String>,
    /// Format of a disk that comes alone; what its name tells if none is given.
    pub format: Option<ForeignFormat>,
    /// What starts it; what it says itself if none is given.
    pub firmware: Option<Firmware>,
    /// Architecture; what it says itself if none is given.
    pub arch: Option<Arch>,
    /// Virtual CPUs; what it says itself if none is given.
    pub cpus: Option<u32>,
    /// Memory; what it says itself if none is given.
    pub memory: Option<Bytes>,
    /// Directories that disks may be in which are named by absolute paths.
    pub allow: Vec<PathBuf>,
}

/// What an import would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImportPlan {
    /// Name of the VM.
    pub name: String,
    /// What it comes from, for a person.
    pub source: String,
    /// Its spec, as YAML.
    pub spec: String,
    /// Its disks.
    pub disks: Vec<PlannedDisk>,
    /// What has no counterpart here, or another one, and why.
    pub unmapped: Vec<Unmapped>,
    /// Why it can't be done; empty if it can.
    pub problems: Vec<String>,
}

/// A disk that is brought in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedDisk {
    /// Name in the spec.
    pub name: String,
    /// Where its bytes are, for a person.
    pub from: String,
    /// Format there.
    pub format: String,
    /// Size that a guest sees, in bytes; 0 where only unpacking tells.
    pub virtual_bytes: u64,
    /// Bytes that it takes here at most; 0 where only unpacking tells.
    pub bytes: u64,
}

/// A disk's bytes for a disk of the spec.
#[derive(Debug, Clone)]
pub(crate) struct DiskSource {
    /// Name in the spec.
    pub name: String,
    /// Where they are.
    pub from: ForeignDisk,
}

/// Where what a descriptor names is.
enum Base {
    Directory(PathBuf),
    Package(Package),
}

/// A machine and where its disks are.
struct Source {
    machine: ForeignMachine,
    base: Base,
    digests: BTreeMap<String, String>,
}

/// A disk that was found.
enum Located {
    File(ForeignDisk),
    Packed {
        member: String,
        format: ForeignFormat,
        bytes: u64,
    },
    Empty(u64),
}

impl Engine {
    /// Tells what an import would do.
    pub(crate) async fn plan_import(
        &self,
        path: &Path,
        options: &ImportOptions,
    ) -> Result<ImportPlan> {
        if is_bundle(path, options) {
            return self.plan_restore(path, options).await;
        }
        let mut source = open(path, options).await?;
        let mut problems = Vec::new();
        let (mut sizes, mut disks) = (Vec::new(), Vec::new());
        let mut needed = 0u64;
        let drives = source.machine.drives.clone();
        for (index, drive) in drives.iter().enumerate() {
            let mut planned = PlannedDisk {
                name: match index {
                    0 => "root".to_owned(),
                    number => format!("disk{number}"),
                },
                from: shown(&drive.place),
                format: drive.format.to_string(),
                virtual_bytes: drive.size.unwrap_or(0),
                bytes: 0,
            };
            match source.look_at(drive, &options.allow).await {
                Ok((size, bytes)) => (planned.virtual_bytes, planned.bytes) = (size, bytes),
                Err(error) => problems.push(error.chain().join(": ")),
            }
            needed = needed.saturating_add(planned.bytes);
            // A size that only unpacking tells stands as the least one, so that the spec can be shown.
            sizes.push(planned.virtual_bytes.max(512));
            disks.push(planned);
        }
        if let Err(error) = self.check_room(needed) {
            problems.push(error.to_string());
        }
        let kind = source.machine.source.clone();
        let name = self.name_of_import(path, &source.machine, options)?;
        let (spec, unmapped) = spec_of(&mut source, &sizes, options)?;
        if drives.is_empty() && spec.image.is_none() {
            problems.push("it has no disk that could be taken, and no image".to_owned());
        } else if let Err(error) = self.plan_create(&name, &spec).await {
            problems.push(error.chain().join(": "));
        }
        Ok(ImportPlan {
            name,
            source: kind,
            spec: spec::write(&spec),
            disks,
            unmapped,
            problems,
        })
    }

    /// Brings a machine in: as a VM of its own, or not at all.
    pub(crate) async fn import_machine(
        &self,
        path: &Path,
        options: &ImportOptions,
        progress: &dyn Progress,
    ) -> Result<VmInfo> {
        self.clear_away(false)?;
        if is_bundle(path, options) {
            let name = match &options.name {
                Some(name) => name.clone(),
                None => self.look_into_bundle(path).await?.0,
            };
            return self.restore(path, &name, progress).await;
        }
        let mut source = open(path, options).await?;
        let name = self.name_of_import(path, &source.machine, options)?;
        let wrap = |error: Error| error.while_doing(format!("can't import {}", path.display()));
        source.verify(progress).await.map_err(wrap)?;
        // Held until the disks are converted, then removed.
        let work = self.images.work_directory("machine")?;
        let (mut sizes, mut found, mut needed) = (Vec::new(), Vec::new(), 0u64);
        for (index, drive) in source.machine.drives.clone().iter().enumerate() {
            let located = source.locate(drive, &options.allow).map_err(wrap)?;
            let disk = match located {
                Located::Empty(size) => {
                    sizes.push(size);
                    found.push(None);
                    continue;
                }
                Located::File(disk) => disk,
                Located::Packed {
                    member,
                    format,
                    bytes,
                } => {
                    self.check_room(bytes).map_err(wrap)?;
                    let to = work.path().join(format!("disk{index}"));
                    let Base::Package(package) = &source.base else {
                        continue;
                    };
                    told(progress, |sink| {
                        package.unpack([(member, to.clone())].into(), sink)
                    })
                    .await
                    .map_err(|error| wrap(error.into()))?;
                    ForeignDisk {
                        path: to,
                        format,
                        window: None,
                    }
                }
            };
            sizes.push(disk.check().await.map_err(|error| wrap(error.into()))?);
            let bytes = disk.measure().await.map_err(|error| wrap(error.into()))?;
            needed = needed.saturating_add(bytes);
            found.push(Some(disk));
        }
        self.check_room(needed).map_err(wrap)?;
        let (spec, _) = spec_of(&mut source, &sizes, options)?;
        let own = spec.disks.iter().skip(spec.disks.len() - found.len());
        let sources: Vec<DiskSource> = own
            .zip(found)
            .filter_map(|(disk, from)| {
                Some(DiskSource {
                    name: disk.name.clone(),
                    from: from?,
                })
            })
            .collect();
        self.create_from(&name, spec, &sources, progress).await
    }

    async fn plan_restore(&self, path: &Path, options: &ImportOptions) -> Result<ImportPlan> {
        let (own, text, disks) = self.look_into_bundle(path).await?;
        let name = options.name.clone().unwrap_or(own);
        let mut problems = Vec::new();
        let mut unmapped = Vec::new();
        if self.root.bundle_at(&name).directory().exists() {
            problems.push(format!(
                "a VM named {name} exists already; --name gives another name"
            ));
        }
        let spec = spec::read(&text, "the bundle")?;
        for disk in spec.disks.iter().filter(|disk| disk.path.is_some()) {
            unmapped.push(Unmapped {
                what: format!("disk {}", disk.name),
                why: "it is a file outside of the VM, and not in the bundle".to_owned(),
            });
        }
        for share in spec.shares.iter().filter(|share| !share.host.is_dir()) {
            unmapped.push(Unmapped {
                what: format!("share {}", share.host.display()),
                why: "there is no such folder here".to_owned(),
            });
        }
        Ok(ImportPlan {
            name,
            source: "a bundle".to_owned(),
            spec: text,
            disks: disks
                .into_iter()
                .map(|(name, size)| PlannedDisk {
                    from: format!("disks/{name}.raw"),
                    name,
                    format: "raw".to_owned(),
                    virtual_bytes: size,
                    bytes: 0,
                })
                .collect(),
            unmapped,
            problems,
        })
    }

    fn name_of_import(
        &self,
        path: &Path,
        machine: &ForeignMachine,
        options: &ImportOptions,
    ) -> Result<String> {
        if let Some(name) = &options.name {
            return Ok(name.clone());
        }
        let names = self.root.names()?;
        let file = path.file_stem().unwrap_or_default().to_string_lossy();
        let own = machine.name.clone().unwrap_or_else(|| file.into_owned());
        let name = VmName::from_image(&own.replace(['/', ':', '@', '.'], "-"), |name| {
            names.iter().any(|known| known == name)
        });
        Ok(name.as_str().to_owned())
    }

    /// Refuses what there is no room for.
    pub(super) fn check_room(&self, bytes: u64) -> Result<()> {
        let home = self.root.home();
        let about = rustix::fs::statvfs(home).map_err(|error| {
            Error::io(format!("can't look at {}", home.display()), error.into())
        })?;
        let free = about.f_bavail.saturating_mul(about.f_frsize);
        if bytes > free {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "its disks take up to {} MiB, and {} MiB are free below {}",
                    bytes >> 20,
                    free >> 20,
                    home.display()
                ),
            ));
        }
        Ok(())
    }
}

fn is_bundle(path: &Path, options: &ImportOptions) -> bool {
    options.format.is_none()
        && path.file_name().is_some_and(|name| {
            name.to_string_lossy()
                .to_ascii_lowercase()
                .ends_with(".tar.zst")
        })
}

fn spec_of(
    source: &mut Source,
    sizes: &[u64],
    options: &ImportOptions,
) -> Result<(VmSpec, Vec<Unmapped>)> {
    let mut machine = std::mem::take(&mut source.machine);
    machine.firmware = options.firmware.or(machine.firmware);
    machine.arch = options.arch.or(machine.arch);
    machine.cpus = options.cpus.or(machine.cpus);
    machine.memory = options.memory.map(Bytes::get).or(machine.memory);
    machine.into_spec(sizes)
}

fn shown(place: &DrivePlace) -> String {
    match place {
        DrivePlace::Beside(name) => name.clone(),
        DrivePlace::At(path) => path.display().to_string(),
        DrivePlace::Empty => "an empty disk".to_owned(),
    }
}

impl Source {
    fn new(machine: ForeignMachine, base: Base) -> Self {
        Source {
            machine,
            base,
            digests: BTreeMap::new(),
        }
    }

    /// Tells the size that a guest sees of a disk and what it takes here, in bytes; 0 where only unpacking tells.
    async fn look_at(&self, drive: &ForeignDrive, allow: &[PathBuf]) -> Result<(u64, u64)> {
        match self.locate(drive, allow)? {
            Located::Empty(size) => Ok((size, 0)),
            Located::File(disk) => Ok((disk.check().await?, disk.measure().await?)),
            Located::Packed { bytes, .. } => Ok((drive.size.unwrap_or(0), bytes)),
        }
    }

    /// Finds a disk where the descriptor may lead.
    fn locate(&self, drive: &ForeignDrive, allow: &[PathBuf]) -> Result<Located> {
        let refuse = |message: String| Error::new(ErrorKind::BadInput, message);
        let format = drive.format;
        match (&drive.place, &self.base) {
            (DrivePlace::Empty, _) => match drive.size {
                Some(size) if size > 0 => Ok(Located::Empty(size.next_multiple_of(512))),
                _ => Err(refuse("an empty disk has no size".to_owned())),
            },
            (DrivePlace::Beside(name), Base::Package(package)) => {
                let member = package.members.get(name).ok_or_else(|| {
                    refuse(format!(
                        "the disk {name} is not in {}",
                        package.path.display()
                    ))
                })?;
                match package.window(name) {
                    Some(window) => Ok(Located::File(ForeignDisk {
                        path: package.path.clone(),
                        format,
                        window: Some(window),
                    })),
                    None => Ok(Located::Packed {
                        member: name.clone(),
                        format,
                        bytes: member.size,
                    }),
                }
            }
            (DrivePlace::Beside(name), Base::Directory(directory)) => {
                let relative = Path::new(name);
                let plain = relative
                    .components()
                    .all(|part| matches!(part, Component::Normal(_)));
                if !plain || name.is_empty() {
                    return Err(refuse(format!(
                        "the disk {name:?} is not beside the machine's description"
                    )));
                }
                let path = directory.join(relative);
                inside(&path, std::slice::from_ref(directory))?;
                Ok(Located::File(ForeignDisk {
                    path,
                    format,
                    window: None,
                }))
            }
            (DrivePlace::At(path), Base::Directory(directory)) => {
                let mut roots = allow.to_vec();
                roots.push(directory.clone());
                inside(path, &roots)?;
                Ok(Located::File(ForeignDisk {
                    path: path.clone(),
                    format,
                    window: None,
                }))
            }
            (DrivePlace::At(path), Base::Package(package)) => Err(refuse(format!(
                "{} names {} of this host, and an archive has no say there",
                package.path.display(),
                path.display()
            ))),
        }
    }

    /// Compares what has a digest in the package's manifest with it.
    async fn verify(&self, progress: &dyn Progress) -> Result<()> {
        let Base::Package(package) = &self.base else {
            return Ok(());
        };
        for (name, expected) in &self.digests {
            let actual = told(progress, |sink| package.sha256(name, sink)).await?;
            if actual.as_ref().is_some_and(|actual| actual != expected) {
                return Err(Error::new(
                    ErrorKind::BadInput,
                    format!(
                        "{name} in {} is not what its manifest says: its digest differs",
                        package.path.display()
                    ),
                )
                .with_hint("get the file anew"));
            }
        }
        Ok(())
    }
}

/// Refuses a path that, with its links followed, is in none of the directories.
fn inside(path: &Path, directories: &[PathBuf]) -> Result<()> {
    let real = std::fs::canonicalize(path)
        .map_err(|error| Error::io(format!("can't find the disk {}", path.display()), error))?;
    for directory in directories {
        let root = std::fs::canonicalize(directory)
            .map_err(|error| Error::io(format!("can't find {}", directory.display()), error))?;
        if real.starts_with(&root) {
            return Ok(());
        }
    }
    let above = real.parent().unwrap_or(Path::new("/")).display();
    Err(Error::new(
        ErrorKind::NotPermitted,
        format!(
            "the disk {} is outside of where the machine's description is",
            path.display()
        ),
    )
    .with_hint(format!("if you trust that description: --allow {above}")))
}

/// Finds out, by names alone, what a file or folder is, and reads its descriptor.
async fn open(path: &Path, options: &ImportOptions) -> Result<Source> {
    let about = std::fs::metadata(path)
        .map_err(|error| Error::io(format!("can't find {}", path.display()), error))?;
    if about.is_dir() {
        return open_folder(path);
    }
    let ending = path
        .extension()
        .unwrap_or_default()
        .to_string_lossy()
        .to_ascii_lowercase();
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    if options.format.is_none() {
        match ending.as_str() {
            "ova" => return open_ova(path).await,
            "box" => return open_box(path).await,
            "ovf" => {
                return Ok(Source::new(
                    ovf::parse(&text(path)?)?,
                    Base::Directory(directory),
                ));
            }
            "xml" => {
                return Ok(Source::new(
                    libvirt::parse(&text(path)?)?,
                    Base::Directory(directory),
                ));
            }
            "vbox" => {
                return Ok(Source::new(
                    vbox::parse(&text(path)?)?,
                    Base::Directory(directory),
                ));
            }
            "yaml" | "yml" => return open_lima(path, directory),
            _ => {}
        }
    }
    let Some(format) = options
        .format
        .or_else(|| ForeignFormat::from_extension(path))
    else {
        return Err(Error::new(
            ErrorKind::BadInput,
            format!("it is not told by its name what {} is", path.display()),
        )
        .with_hint("names end in .ova, .ovf, .vbox, .utm, .box, .xml (libvirt), .yaml (Lima), .tar.zst (a bundle of inn export), or as a disk's format; --format names that of a disk"));
    };
    let mut machine = ForeignMachine::of(format!("a {format} disk"));
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    machine.drives.push(ForeignDrive {
        place: DrivePlace::Beside(file.into_owned()),
        format,
        bus: String::new(),
        size: None,
    });
    machine.networks.push(None);
    Ok(Source::new(machine, Base::Directory(directory)))
}

async fn open_ova(path: &Path) -> Result<Source> {
    let package =
        Package::open(path, |name| name.ends_with(".ovf") || name.ends_with(".mf")).await?;
    let mut machine = ovf::parse(package.text(package.only(".ovf")?)?)?;
    let mut digests = BTreeMap::new();
    match package.only(".mf") {
        Ok(manifest) => {
            digests = ovf::manifest(package.text(manifest)?);
            if digests.is_empty() {
                machine.unmapped(
                    "manifest",
                    "its digests are by SHA-1, which prove nothing; nothing is compared with them",
                );
            }
        }
        Err(_) => machine.unmapped(
            "manifest",
            "there is none: nothing tells whether the file is whole",
        ),
    }
    Ok(Source {
        machine,
        base: Base::Package(package),
        digests,
    })
}

async fn open_box(path: &Path) -> Result<Source> {
    let package = Package::open(path, |name| {
        name.ends_with(".ovf") || name == "metadata.json"
    })
    .await?;
    let mut machine = match vagrant::parse(package.text("metadata.json")?)? {
        vagrant::VagrantBox::Libvirt(machine) => *machine,
        vagrant::VagrantBox::VirtualBox => {
            let mut machine = ovf::parse(package.text(package.only(".ovf")?)?)?;
            machine.source = "Vagrant box for VirtualBox".to_owned();
            machine
        }
    };
    vagrant::leave_out(&mut machine);
    Ok(Source::new(machine, Base::Package(package)))
}

fn open_lima(path: &Path, directory: PathBuf) -> Result<Source> {
    let roots = [directory.clone()];
    let base = |name: &str| {
        // `template:NAME` is the file NAME.yaml beside this one; an address on a server is not fetched.
        let name = name.strip_prefix("template:").unwrap_or(name);
        let name = name.trim_start_matches("//").trim_start_matches("./");
        let name = name.strip_suffix(".yaml").unwrap_or(name);
        let plain = !name.is_empty()
            && Path::new(name)
                .components()
                .all(|part| matches!(part, Component::Normal(_)));
        let file = directory.join(format!("{name}.yaml"));
        (plain && inside(&file, &roots).is_ok())
            .then(|| text(&file).ok())
            .flatten()
    };
    let mut machine = lima::parse(&text(path)?, &base)?;
    if path.file_name().is_some_and(|name| name == "lima.yaml") {
        machine.unmapped(
            "the instance's disk",
            "the VM is made anew of its template; `inn cp` and `limactl copy` move files",
        );
    }
    Ok(Source::new(machine, Base::Directory(directory)))
}

fn open_folder(path: &Path) -> Result<Source> {
    let directory = path.to_owned();
    let has = |name: &str| path.join(name).is_file();
    if has("config.plist") {
        let machine = utm::parse(&bytes(&path.join("config.plist"))?)?;
        return Ok(Source::new(machine, Base::Directory(directory)));
    }
    if has("lima.yaml") {
        return open_lima(&path.join("lima.yaml"), directory);
    }
    if has("metadata.json")
        && let vagrant::VagrantBox::Libvirt(mut machine) =
            vagrant::parse(&text(&path.join("metadata.json"))?)?
    {
        vagrant::leave_out(&mut machine);
        return Ok(Source::new(*machine, Base::Directory(directory)));
    }
    let failed = |error| Error::io(format!("can't list {}", path.display()), error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        if file
            .extension()
            .is_some_and(|ending| ending == "ovf" || ending == "vbox")
        {
            found.push(file);
        }
    }
    let [file] = found.as_slice() else {
        return Err(Error::new(
            ErrorKind::BadInput,
            format!(
                "{} has neither one .ovf or .vbox file in it, nor a config.plist (UTM), lima.yaml or metadata.json (Vagrant)",
                path.display()
            ),
        ));
    };
    let machine = match file.extension() {
        Some(ending) if ending == "ovf" => ovf::parse(&text(file)?)?,
        _ => vbox::parse(&text(file)?)?,
    };
    Ok(Source::new(machine, Base::Directory(directory)))
}

fn bytes(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read;
    let failed = |error| Error::io(format!("can't read {}", path.display()), error);
    let file = std::fs::File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(Error::new(
            ErrorKind::BadInput,
            format!("{} is no regular file", path.display()),
        ));
    }
    let mut bytes = Vec::new();
    file.take(DESCRIPTOR_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > DESCRIPTOR_LIMIT {
        return Err(Error::new(
            ErrorKind::BadInput,
            format!(
                "{} is over 4 MiB, too large for a description",
                path.display()
            ),
        ));
    }
    Ok(bytes)
}

fn text(path: &Path) -> Result<String> {
    let mut bytes = bytes(path)?;
    // VirtualBox and VMware write UTF-8, some with the mark at the beginning.
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    String::from_utf8(bytes).map_err(|_| {
        Error::new(
            ErrorKind::BadInput,
            format!("{} is not text (UTF-8)", path.display()),
        )
    })
}
