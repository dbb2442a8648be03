//! Disks: thin tops over layers, and `create`, `resize`, `convert`, `info` and `check` by qemu-img.
//!
//! A format is always named, never probed: a raw disk whose guest writes a qcow2 header into it must stay a raw disk
//! (CH GHSA-jmr4-g2hv-mjj6). A top copies no bytes: a reflink of a raw layer where the file system can, else a qcow2
//! overlay which names its backing file and that one's format.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::progress::{self, Progress, Silent, Step};
use crate::tool::{self, Tool};
use crate::{Error, Result, qcow2, sparse};

/// The format of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The guest's bytes as they are, sparse.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

impl DiskFormat {
    /// The name that QEMU and this program use.
    pub fn as_str(self) -> &'static str {
        match self {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        }
    }

    /// Takes the format from a file's name: `.qcow2`, `.raw` or `.img` (raw); the content is not looked at.
    pub fn from_extension(path: &Path) -> Option<DiskFormat> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "qcow2" => Some(DiskFormat::Qcow2),
            "raw" | "img" => Some(DiskFormat::Raw),
            _ => None,
        }
    }
}

impl fmt::Display for DiskFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for DiskFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<DiskFormat> {
        match text {
            "raw" => Ok(DiskFormat::Raw),
            "qcow2" => Ok(DiskFormat::Qcow2),
            _ => Err(Error::invalid("disk format", text, "must be raw or qcow2")),
        }
    }
}

/// What a file system can do for disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Files can share extents (FICLONE): a clone costs metadata only.
    pub reflink: bool,
}

/// Tells what the file system of a directory can do, by trying; the answer is kept per device while the process lives.
pub fn capabilities(directory: &Path) -> Result<Capabilities> {
    static KNOWN: Mutex<Option<HashMap<u64, Capabilities>>> = Mutex::new(None);
    let device = fs::metadata(directory)
        .map_err(Error::io("look at", directory))?
        .dev();
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_default();
    if let Some(capabilities) = known.get(&device) {
        return Ok(*capabilities);
    }
    let temporary =
        |_| tempfile::tempfile_in(directory).map_err(Error::io("create a file in", directory));
    let (mut from, to) = (temporary(())?, temporary(())?);
    from.write_all(&[1; 4096])
        .map_err(Error::io("write in", directory))?;
    let found = Capabilities {
        reflink: clone_extents(&from, &to).is_ok(),
    };
    known.insert(device, found);
    Ok(found)
}

#[cfg(target_os = "linux")]
fn clone_extents(from: &File, to: &File) -> std::io::Result<()> {
    rustix::fs::ioctl_ficlone(to, from).map_err(Into::into)
}

/// APFS clones by path (clonefile), which makes the target itself; that comes with the VZ driver.
#[cfg(not(target_os = "linux"))]
fn clone_extents(_from: &File, _to: &File) -> std::io::Result<()> {
    Err(std::io::Error::from(std::io::ErrorKind::Unsupported))
}

/// The layer below a top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// The layer's file.
    pub path: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// The size a guest sees in it, in bytes.
    pub virtual_bytes: u64,
}

/// A VM's own disk, thin over a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopDisk {
    /// Its file.
    pub path: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// The file it reads through to and that one's format; none for a reflink, which needs the layer no more.
    pub backing: Option<(PathBuf, DiskFormat)>,
    /// The size a guest sees, in bytes.
    pub virtual_bytes: u64,
}

/// Makes a thin top over `base` as `directory/STEM.raw` or `.qcow2`; copies no bytes.
///
/// Fails with [`Error::DiskTooSmall`] when `size` bytes are less than the base has, and when the file exists.
pub fn create_top(base: &Base, size: u64, directory: &Path, stem: &str) -> Result<TopDisk> {
    if size < base.virtual_bytes {
        return Err(Error::DiskTooSmall {
            asked: size,
            needed: base.virtual_bytes,
        });
    }
    check_size(size)?;
    if base.format == DiskFormat::Raw && capabilities(directory)?.reflink {
        let path = directory.join(format!("{stem}.raw"));
        let made = create_file(&path).and_then(|file| {
            let layer = File::open(&base.path).map_err(Error::io("open", &base.path))?;
            match clone_extents(&layer, &file) {
                Ok(()) => file
                    .set_len(size)
                    .map_err(Error::io("grow", &path))
                    .map(|()| true),
                // The layers may lie on another file system than the VMs.
                Err(_) => Ok(false),
            }
        });
        match made {
            Ok(true) => {
                return Ok(TopDisk {
                    path,
                    format: DiskFormat::Raw,
                    backing: None,
                    virtual_bytes: size,
                });
            }
            Ok(false) => remove_half_made(&path),
            Err(failure) => {
                if !matches!(&failure, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists)
                {
                    remove_half_made(&path);
                }
                return Err(failure);
            }
        }
    }
    let base_path = std::path::absolute(&base.path).map_err(Error::io("find", &base.path))?;
    if !base_path.is_file() {
        return Err(Error::missing(&base_path, "make a disk over"));
    }
    let content = qcow2::empty_overlay(&base_path, base.format, size)?;
    let path = directory.join(format!("{stem}.qcow2"));
    let mut file = create_file(&path)?;
    if let Err(failure) = file.write_all(&content) {
        remove_half_made(&path);
        return Err(Error::io("write", &path)(failure));
    }
    Ok(TopDisk {
        path,
        format: DiskFormat::Qcow2,
        backing: Some((base_path, base.format)),
        virtual_bytes: size,
    })
}

/// Makes an empty qcow2 disk over `base`, durably; the file must not exist. Its format and that of the file below are named in it.
pub fn create_overlay(base: &Base, size: u64, path: &Path) -> Result<()> {
    let below = plain(&base.path)?;
    if !below.is_file() {
        return Err(Error::missing(&below, "make a disk over"));
    }
    let content = qcow2::empty_overlay(&below, base.format, size)?;
    let mut file = create_file(path)?;
    let written = file.write_all(&content).and_then(|()| file.sync_all());
    if written.is_err() {
        remove_half_made(path);
    }
    written.map_err(Error::io("write", path))
}

/// Copies a disk's file, durably, sharing its blocks where the file system can; holes stay holes. `to` must not exist. Returns how many
/// bytes had to be copied: none where the blocks are shared.
pub fn copy(from: &Path, to: &Path) -> Result<u64> {
    let source = File::open(from).map_err(Error::io("open", from))?;
    let target = create_file(to)?;
    let copied = match clone_extents(&source, &target) {
        Ok(()) => Ok(0),
        Err(_) => sparse::copy_data(&source, &target),
    };
    let copied = copied.and_then(|copied| target.sync_all().map(|()| copied));
    if copied.is_err() {
        remove_half_made(to);
    }
    copied.map_err(Error::io("copy to", to))
}

/// Makes a qcow2 disk that nothing else uses read through to another file than now, or to none, without a guest seeing a difference:
/// what differs is copied into it.
pub async fn rebase(path: &Path, base: Option<(&Path, DiskFormat)>) -> Result<()> {
    let path = plain(path)?;
    let base = base
        .map(|(path, format)| Ok::<_, Error>((plain(path)?, format)))
        .transpose()?;
    progress::run(Arc::new(Silent), move |context| {
        let tool =
            qemu_img(format!("rebase {}", path.display()))?.args(["rebase", "-q", "-f", "qcow2"]);
        let tool = match base {
            Some((base, format)) => tool.args(["-F", format.as_str(), "-b"]).arg(&base),
            None => tool.args(["-b", ""]),
        };
        tool.arg(&path).output(context)?;
        File::open(&path)
            .and_then(|file| file.sync_all())
            .map_err(Error::io("flush", &path))
    })
    .await
}

/// Returns the bytes that a file takes on its file system.
pub fn allocated(path: &Path) -> Result<u64> {
    let metadata = fs::metadata(path).map_err(Error::io("look at", path))?;
    Ok(metadata.blocks() * 512)
}

pub(crate) fn create_file(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create_new(true)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(Error::io("create", path))
}

pub(crate) fn remove_half_made(path: &Path) {
    // The first error is the one to tell.
    let _ = fs::remove_file(path);
}

fn check_size(size: u64) -> Result<()> {
    if size == 0 || size > qcow2::SIZE_LIMIT || !size.is_multiple_of(512) {
        return Err(Error::invalid(
            "disk size",
            size.to_string(),
            "must be a multiple of 512 bytes, above 0 and up to 64 TiB",
        ));
    }
    Ok(())
}

/// What qemu-img tells of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskInfo {
    /// The format it was asked to read.
    pub format: String,
    /// The size a guest sees, in bytes.
    #[serde(rename = "virtual-size")]
    pub virtual_bytes: u64,
    /// The space it takes, in bytes.
    #[serde(rename = "actual-size", default)]
    pub actual_bytes: u64,
    /// The file it reads through to.
    #[serde(rename = "full-backing-filename", default)]
    pub backing: Option<PathBuf>,
    /// That file's format as the header names it.
    #[serde(rename = "backing-filename-format", default)]
    pub backing_format: Option<String>,
}

/// What a check of a disk's metadata found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckReport {
    /// Errors in the metadata.
    pub corruptions: u64,
    /// Clusters that nothing uses.
    pub leaks: u64,
    /// Errors that kept the check from looking.
    #[serde(rename = "check-errors")]
    pub check_errors: u64,
}

/// Whether a disk may lose its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shrink {
    /// Refuse to make it smaller.
    Refuse,
    /// The caller knows that the guest's file systems end before the new size.
    DiscardEnd,
}

pub(crate) fn qemu_img(operation: String) -> Result<Tool> {
    Ok(Tool::new(
        &tool::require("qemu-img", "qemu-utils", "qemu")?,
        operation,
    ))
}

/// Names a file to qemu-img so that no part of the name is taken for an option or a protocol.
pub(crate) fn plain(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(Error::io("find", path))
}

/// Makes an empty disk of `size` bytes; the file must not exist.
pub async fn create(path: &Path, format: DiskFormat, size: u64) -> Result<()> {
    check_size(size)?;
    let path = plain(path)?;
    progress::run(Arc::new(Silent), move |context| {
        // Made here first, so that two creators can't both win, and nothing existing is overwritten.
        let file = create_file(&path)?;
        let made = match format {
            DiskFormat::Raw => file.set_len(size).map_err(Error::io("grow", &path)),
            DiskFormat::Qcow2 => qemu_img(format!("create {}", path.display()))?
                .args(["create", "-q", "-f", "qcow2"])
                .arg(&path)
                .arg(size.to_string())
                .output(context)
                .map(drop),
        };
        if made.is_err() {
            remove_half_made(&path);
        }
        made
    })
    .await
}

/// Tells size, space and backing file of a disk.
pub async fn info(path: &Path, format: DiskFormat) -> Result<DiskInfo> {
    let path = plain(path)?;
    progress::run(Arc::new(Silent), move |context| {
        info_blocking(&path, format, context)
    })
    .await
}

fn info_blocking(path: &Path, format: DiskFormat, context: &progress::Context) -> Result<DiskInfo> {
    // -U: a running VM holds the lock on its disk; reading the header beside it is what is asked.
    let output = qemu_img(format!("inspect {}", path.display()))?
        .args(["info", "-U", "--output=json", "-f", format.as_str()])
        .arg(path)
        .output(context)?;
    serde_json::from_slice(&output)
        .map_err(|source| Error::malformed("qemu-img's answer", source.to_string()))
}

/// Changes a stopped VM's disk to `size` bytes.
pub async fn resize(path: &Path, format: DiskFormat, size: u64, shrink: Shrink) -> Result<()> {
    check_size(size)?;
    let path = plain(path)?;
    progress::run(Arc::new(Silent), move |context| {
        let before = info_blocking(&path, format, context)?.virtual_bytes;
        let mut tool = qemu_img(format!("resize {}", path.display()))?.args(["resize", "-q", "-f", format.as_str()]);
        if size < before {
            if shrink == Shrink::Refuse {
                return Err(Error::invalid(
                    "disk size",
                    size.to_string(),
                    format!("{} has {before} bytes; shrinking loses what is behind the new end and must be forced", path.display()),
                ));
            }
            tool = tool.arg("--shrink");
        }
        tool.arg(&path).arg(size.to_string()).output(context)?;
        let after = info_blocking(&path, format, context)?.virtual_bytes;
        if after == size {
            Ok(())
        } else {
            Err(Error::malformed(path.display().to_string(), format!("has {after} bytes after it was resized to {size}")))
        }
    })
    .await
}

/// Writes the content of a disk, with all it reads through to, as a new file; `to` must not exist.
pub async fn convert(
    from: &Path,
    from_format: DiskFormat,
    to: &Path,
    to_format: DiskFormat,
    progress: Arc<dyn Progress>,
) -> Result<()> {
    let (from, to) = (plain(from)?, plain(to)?);
    progress::run(progress, move |context| {
        let directory = to.parent().ok_or_else(|| Error::missing(&to, "write"))?;
        if to.exists() {
            return Err(Error::io("create", &to)(
                std::io::ErrorKind::AlreadyExists.into(),
            ));
        }
        let temporary = tempfile::Builder::new()
            .prefix(".tmp-")
            .tempfile_in(directory)
            .map_err(Error::io("create a file in", directory))?;
        context.step(Step::Write, format!("{} as {to_format}", from.display()));
        qemu_img(format!("convert {}", from.display()))?
            .args([
                "convert",
                "-q",
                "-f",
                from_format.as_str(),
                "-O",
                to_format.as_str(),
            ])
            .arg(&from)
            .arg(temporary.path())
            .output(context)?;
        temporary
            .as_file()
            .sync_all()
            .map_err(Error::io("flush", &to))?;
        temporary
            .persist_noclobber(&to)
            .map_err(|failure| failure.error)
            .map_err(Error::io("create", &to))?;
        Ok(())
    })
    .await
}

/// Writes the content of a disk, with all it reads through to, as a stream-optimised VMDK, the form that OVF packages have.
pub async fn convert_to_vmdk(
    from: &Path,
    from_format: DiskFormat,
    to: &Path,
    progress: Arc<dyn Progress>,
) -> Result<()> {
    let (from, to) = (plain(from)?, plain(to)?);
    progress::run(progress, move |context| {
        drop(create_file(&to)?);
        context.step(Step::Write, format!("{} as VMDK", from.display()));
        qemu_img(format!("convert {}", from.display()))?
            .args(["convert", "-q", "-f", from_format.as_str(), "-O", "vmdk"])
            .args(["-o", "subformat=streamOptimized,adapter_type=lsilogic"])
            .arg(&from)
            .arg(&to)
            .output(context)
            .map(drop)
    })
    .await
}

/// Checks the metadata of a qcow2 disk that no VM uses.
pub async fn check(path: &Path) -> Result<CheckReport> {
    let path = plain(path)?;
    progress::run(Arc::new(Silent), move |context| {
        let tool = qemu_img(format!("check {}", path.display()))?
            .args(["check", "--output=json", "-f", "qcow2"])
            .arg(&path);
        let mut report = Vec::new();
        let outcome = tool.stream(
            context,
            |_| {},
            |stdout| {
                stdout
                    .take(1 << 20)
                    .read_to_end(&mut report)
                    .map(drop)
                    .map_err(Error::io("read the report on", &path))
            },
        );
        // Codes 2 and 3 mean corruption and leaks; the report says which, so an error counts only when there is no report.
        match serde_json::from_slice(&report) {
            Ok(report) => Ok(report),
            Err(source) => outcome
                .and_then(|()| Err(Error::malformed("qemu-img's answer", source.to_string()))),
        }
    })
    .await
}

/// Looks at a disk image from outside: gives its virtual size, or says why it can't be used.
pub fn check_foreign(path: &Path, format: DiskFormat) -> Result<u64> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let length = file.metadata().map_err(Error::io("look at", path))?.len();
    let mut head = Vec::new();
    file.take(64 << 10)
        .read_to_end(&mut head)
        .map_err(Error::io("read", path))?;
    match format {
        DiskFormat::Qcow2 => Ok(qcow2::check_foreign_header(&head)?.virtual_bytes),
        DiskFormat::Raw if head.starts_with(&qcow2::MAGIC) => Err(Error::invalid(
            "raw image",
            path.display().to_string(),
            "begins like a qcow2 image; say format qcow2 if it is one",
        )),
        DiskFormat::Raw if length == 0 || length % 512 != 0 => Err(Error::invalid(
            "raw image",
            path.display().to_string(),
            "its size is not a multiple of 512 bytes above 0",
        )),
        DiskFormat::Raw => Ok(length),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(directory: &Path) -> Base {
        let path = directory.join("layer");
        File::create(&path).unwrap().set_len(10 << 30).unwrap();
        Base {
            path,
            format: DiskFormat::Raw,
            virtual_bytes: 10 << 30,
        }
    }

    #[tokio::test]
    async fn a_top_is_thin_and_qemu_img_agrees() {
        let directory = tempfile::tempdir().unwrap();
        let base = base(directory.path());
        let top = create_top(&base, 20 << 30, directory.path(), "root").unwrap();
        assert!(fs::metadata(&top.path).unwrap().blocks() * 512 < 1 << 20);
        let told = info(&top.path, top.format).await.unwrap();
        assert_eq!(told.virtual_bytes, 20 << 30);
        assert_eq!(
            told.backing,
            top.backing.as_ref().map(|(path, _)| path.clone())
        );
        if top.format == DiskFormat::Qcow2 {
            assert_eq!(told.backing_format.as_deref(), Some("raw"));
            assert_eq!(check(&top.path).await.unwrap(), CheckReport::default());
        }
        assert!(
            create_top(&base, 20 << 30, directory.path(), "root").is_err(),
            "never overwrites"
        );
    }

    #[test]
    fn a_disk_smaller_than_its_image_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let message = create_top(&base(directory.path()), 1 << 30, directory.path(), "root")
            .unwrap_err()
            .to_string();
        assert!(message.contains("smaller than its image"), "{message}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn create_resize_convert() {
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("a.qcow2");
        create(&disk, DiskFormat::Qcow2, 64 << 20).await.unwrap();
        assert!(create(&disk, DiskFormat::Qcow2, 64 << 20).await.is_err());
        resize(&disk, DiskFormat::Qcow2, 128 << 20, Shrink::Refuse)
            .await
            .unwrap();
        let message = resize(&disk, DiskFormat::Qcow2, 64 << 20, Shrink::Refuse)
            .await
            .unwrap_err()
            .to_string();
        assert!(message.contains("must be forced"), "{message}");
        resize(&disk, DiskFormat::Qcow2, 64 << 20, Shrink::DiscardEnd)
            .await
            .unwrap();
        let raw = directory.path().join("a.raw");
        convert(
            &disk,
            DiskFormat::Qcow2,
            &raw,
            DiskFormat::Raw,
            Arc::new(Silent),
        )
        .await
        .unwrap();
        assert_eq!(fs::metadata(&raw).unwrap().len(), 64 << 20);
        assert!(
            create(&directory.path().join("x"), DiskFormat::Raw, 0)
                .await
                .is_err()
        );
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_raw_file_with_a_qcow2_header_is_not_taken_as_raw() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("evil.raw");
        fs::write(
            &path,
            qcow2::empty_overlay(Path::new("/etc/passwd"), DiskFormat::Raw, 1 << 20).unwrap(),
        )
        .unwrap();
        assert!(check_foreign(&path, DiskFormat::Raw).is_err());
        assert!(
            check_foreign(&path, DiskFormat::Qcow2)
                .unwrap_err()
                .to_string()
                .contains("backing file")
        );
    }
}
