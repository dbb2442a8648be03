//! Disks of other products, brought into this one's own form.
//!
//! ```text
//!   format named by whoever asks ─► magic and references checked here ─► qemu-img with that driver, no backing file, no probing
//! ```
//! A disk inside an uncompressed archive is read in place, through a window, without unpacking it. Whatever a disk says of other files is
//! refused before QEMU sees it, and QEMU is told besides that there is no backing file.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::disk::{self, DiskFormat};
use crate::progress::{self, Context, Progress, Silent, Step};
use crate::{Error, Result, qcow2, vmdk};

/// The format of a disk that comes from elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForeignFormat {
    /// The guest's bytes as they are.
    Raw,
    /// QEMU's.
    Qcow2,
    /// VMware's, and OVF's.
    Vmdk,
    /// VirtualBox's.
    Vdi,
    /// Virtual PC's, and Hyper-V's older one.
    Vhd,
    /// Hyper-V's.
    Vhdx,
}

impl ForeignFormat {
    /// All of them.
    pub const ALL: [ForeignFormat; 6] = [
        ForeignFormat::Raw,
        ForeignFormat::Qcow2,
        ForeignFormat::Vmdk,
        ForeignFormat::Vdi,
        ForeignFormat::Vhd,
        ForeignFormat::Vhdx,
    ];

    /// The name that people use.
    pub fn as_str(self) -> &'static str {
        match self {
            ForeignFormat::Raw => "raw",
            ForeignFormat::Qcow2 => "qcow2",
            ForeignFormat::Vmdk => "vmdk",
            ForeignFormat::Vdi => "vdi",
            ForeignFormat::Vhd => "vhd",
            ForeignFormat::Vhdx => "vhdx",
        }
    }

    fn driver(self) -> &'static str {
        match self {
            ForeignFormat::Vhd => "vpc",
            other => other.as_str(),
        }
    }

    /// Takes the format from a file's name; the content is not looked at.
    pub fn from_extension(path: &Path) -> Option<ForeignFormat> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "img" => Some(ForeignFormat::Raw),
            word => word.parse().ok(),
        }
    }
}

impl fmt::Display for ForeignFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for ForeignFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<ForeignFormat> {
        ForeignFormat::ALL
            .into_iter()
            .find(|format| format.as_str() == text)
            .ok_or_else(|| {
                Error::invalid(
                    "disk format",
                    text,
                    "must be raw, qcow2, vmdk, vdi, vhd or vhdx",
                )
            })
    }
}

/// A disk of another product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignDisk {
    /// The file that holds it.
    pub path: PathBuf,
    /// Its format, as somebody has named it.
    pub format: ForeignFormat,
    /// Where in that file it is, as offset and length in bytes; all of it if none is given.
    pub window: Option<(u64, u64)>,
}

/// In a VDI, at byte 64.
const VDI_SIGNATURE: [u8; 4] = 0xbeda_107f_u32.to_le_bytes();
/// How much of a disk's beginning is looked at: a VMDK has its descriptor there.
const HEAD: u64 = 2 << 20;

#[derive(Deserialize)]
struct Measured {
    required: u64,
}

impl ForeignDisk {
    /// Checks a disk without changing anything, and tells the size that a guest sees, in bytes.
    ///
    /// Fails with [`Error::Malformed`] when it is not of the format named or names other files than pieces of it beside it.
    pub async fn check(&self) -> Result<u64> {
        let disk = self.clone();
        progress::run(Arc::new(Silent), move |context| {
            disk.check_blocking(context)
        })
        .await
    }

    fn check_blocking(&self, context: &Context) -> Result<u64> {
        self.check_header()?;
        let output = disk::qemu_img(format!("inspect {}", self.path.display()))?
            .args(["info", "--output=json"])
            .arg(self.node()?)
            .output(context)?;
        let info: disk::DiskInfo = serde_json::from_slice(&output)
            .map_err(|source| Error::malformed("qemu-img's answer", source.to_string()))?;
        if info.virtual_bytes == 0 || info.virtual_bytes > qcow2::SIZE_LIMIT {
            return Err(self.refuse("has a virtual size of zero or over 64 TiB"));
        }
        Ok(info.virtual_bytes.next_multiple_of(512))
    }

    fn refuse(&self, problem: &str) -> Error {
        Error::malformed(self.path.display().to_string(), problem)
    }

    /// Looks at the first and the last bytes: the magic, and what other files it names.
    fn check_header(&self) -> Result<()> {
        let file = open_plain(&self.path)?;
        let length = file
            .metadata()
            .map_err(Error::io("look at", &self.path))?
            .len();
        let (start, end) = match self.window {
            Some((offset, size)) => (offset, offset.saturating_add(size)),
            None => (0, length),
        };
        if end > length || start >= end {
            return Err(self.refuse("is cut off or empty"));
        }
        let read = |from: u64, to: u64| {
            let mut bytes = vec![0; usize::try_from(to - from).unwrap_or(0)];
            file.read_exact_at(&mut bytes, from)
                .map_err(Error::io("read", &self.path))?;
            Ok::<_, Error>(bytes)
        };
        let head = read(start, end.min(start + HEAD))?;
        let tail = read(end.saturating_sub(512).max(start), end)?;
        let extents = check_bytes(self.format, &head, &tail, end - start)?;
        if !extents.is_empty() && self.window.is_some() {
            return Err(self.refuse("is a descriptor of other files, which its archive can't hold"));
        }
        let directory = self.path.parent().unwrap_or(Path::new("."));
        for name in extents {
            let path = directory.join(&name);
            let piece = open_plain(&path)?;
            let mut first = [0; 512];
            let count = piece
                .read_at(&mut first, 0)
                .map_err(Error::io("read", &path))?;
            if first.starts_with(&vmdk::MAGIC) {
                vmdk::check_sparse_extent(&first[..count])?;
            }
        }
        Ok(())
    }

    /// Names the disk to qemu-img with every layer's driver, and without a backing file.
    fn node(&self) -> Result<String> {
        let path = disk::plain(&self.path)?;
        let path = path.to_str().ok_or_else(|| {
            Error::invalid(
                "disk",
                self.path.display().to_string(),
                "its path must be UTF-8; rename it",
            )
        })?;
        let mut file = json!({ "driver": "file", "filename": path });
        if let Some((offset, size)) = self.window {
            file = json!({ "driver": "raw", "offset": offset, "size": size, "file": file });
        }
        let mut node = json!({ "driver": self.format.driver(), "file": file });
        match self.format {
            ForeignFormat::Qcow2 | ForeignFormat::Vmdk => node["backing"] = Value::Null,
            // By the geometry, QEMU's default for some makers, the end of a disk would be lost.
            ForeignFormat::Vhd => node["force_size_calc"] = json!("current_size"),
            _ => {}
        }
        Ok(format!("json:{node}"))
    }

    /// Tells how many bytes its data take at most once they are converted; more than there is room for is a reason to refuse it.
    pub async fn measure(&self) -> Result<u64> {
        let disk = self.clone();
        progress::run(Arc::new(Silent), move |context| {
            disk.check_header()?;
            // For a raw target it would tell the whole size, holes included.
            let output = disk::qemu_img(format!("measure {}", disk.path.display()))?
                .args(["measure", "--output=json", "-O", "qcow2"])
                .arg(disk.node()?)
                .output(context)?;
            serde_json::from_slice::<Measured>(&output)
                .map(|measured| measured.required)
                .map_err(|source| Error::malformed("qemu-img's answer", source.to_string()))
        })
        .await
    }

    /// Writes it as the raw, sparse file `to`, which must not exist; returns the size that a guest sees, a multiple of 512 bytes.
    pub async fn convert(&self, to: &Path, progress: Arc<dyn Progress>) -> Result<u64> {
        let (disk, to) = (self.clone(), disk::plain(to)?);
        progress::run(progress, move |context| {
            disk.check_blocking(context)?;
            // Made here first, so that nothing existing is overwritten and nobody else may read it.
            drop(disk::create_file(&to)?);
            context.step(Step::Write, format!("{} as raw", disk.path.display()));
            let made = disk::qemu_img(format!("convert {}", disk.path.display()))?
                .args(["convert", "-q", "-O", "raw"])
                .arg(disk.node()?)
                .arg(&to)
                .output(context)
                .and_then(|_| finish_raw(&to));
            if made.is_err() {
                disk::remove_half_made(&to);
            }
            made
        })
        .await
    }
}

/// Brings a raw disk to whole sectors: some formats count in bytes.
fn finish_raw(path: &Path) -> Result<u64> {
    let file = File::options()
        .write(true)
        .open(path)
        .map_err(Error::io("open", path))?;
    let length = file.metadata().map_err(Error::io("look at", path))?.len();
    let whole = length.next_multiple_of(512);
    if whole != length {
        file.set_len(whole).map_err(Error::io("grow", path))?;
    }
    disk::check_foreign(path, DiskFormat::Raw)
}

/// Opens a file that must be one itself: no link that leads elsewhere, no device, no pipe.
pub(crate) fn open_plain(path: &Path) -> Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::LOOP) => {
            return Err(Error::malformed(
                path.display().to_string(),
                "is a symbolic link, which is not followed; name the file itself",
            ));
        }
        Err(error) => return Err(Error::io("open", path)(error.into())),
    };
    if !file
        .metadata()
        .map_err(Error::io("look at", path))?
        .is_file()
    {
        return Err(Error::malformed(
            path.display().to_string(),
            "is not a regular file",
        ));
    }
    Ok(file)
}

/// Checks the first and the last bytes of a disk of `length` bytes; returns the names of the files beside it that it is made of.
pub fn check_bytes(
    format: ForeignFormat,
    head: &[u8],
    tail: &[u8],
    length: u64,
) -> Result<Vec<String>> {
    let refuse = |problem: String| Err(Error::malformed(format!("{format} image"), problem));
    match format {
        ForeignFormat::Raw => {
            // The text that a VDI begins with is its maker's own.
            if head.get(0x40..0x44) == Some(&VDI_SIGNATURE) {
                return refuse("begins as vdi does; name that format if it is one".to_owned());
            }
            for (magic, name) in [
                (&qcow2::MAGIC[..], "qcow2"),
                (&vmdk::MAGIC[..], "vmdk"),
                (b"vhdxfile", "vhdx"),
                (b"conectix", "vhd"),
            ] {
                if head.starts_with(magic) {
                    return refuse(format!(
                        "begins as {name} does; name that format if it is one"
                    ));
                }
            }
        }
        ForeignFormat::Qcow2 => drop(qcow2::check_foreign_header(head)?),
        ForeignFormat::Vmdk => {
            let end = if head.starts_with(&vmdk::MAGIC) {
                head.len()
            } else {
                if length > vmdk::DESCRIPTOR_LIMIT as u64 {
                    return refuse("is neither a sparse disk nor a text descriptor".to_owned());
                }
                head.len().min(vmdk::DESCRIPTOR_LIMIT)
            };
            return Ok(vmdk::read(&head[..end])?.extents);
        }
        ForeignFormat::Vdi => {
            if head.get(0x40..0x44) != Some(&VDI_SIGNATURE) {
                return refuse("has not the signature of one".to_owned());
            }
            match head.get(0x4c..0x50) {
                Some([1 | 2, 0, 0, 0]) => {}
                _ => {
                    return refuse(
                        "is a snapshot over another disk, or of a kind that is not known; clone it in VirtualBox first".to_owned(),
                    );
                }
            }
        }
        ForeignFormat::Vhd => {
            let footer = [head, tail]
                .into_iter()
                .find(|bytes| bytes.starts_with(b"conectix"));
            match footer.and_then(|footer| footer.get(60..64)) {
                Some([0, 0, 0, 2 | 3]) => {}
                Some([0, 0, 0, 4]) => {
                    return refuse("is a snapshot over another disk; merge it first".to_owned());
                }
                _ => return refuse("has not the footer of one".to_owned()),
            }
        }
        ForeignFormat::Vhdx => {
            if !head.starts_with(b"vhdxfile") {
                return refuse("has not the signature of one".to_owned());
            }
        }
    }
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn qemu_img(arguments: &[&str], directory: &Path) {
        let output = Command::new("qemu-img")
            .args(arguments)
            .current_dir(directory)
            .output()
            .expect("qemu-img is installed");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }

    fn source(directory: &Path) -> Vec<u8> {
        let mut bytes = vec![0u8; (3 << 20) + 1024];
        for (at, byte) in bytes.iter_mut().enumerate().skip(1 << 20).take(300_000) {
            *byte = (at % 251) as u8;
        }
        let end = bytes.len();
        bytes[end - 512..].fill(0xaa);
        std::fs::write(directory.join("source.raw"), &bytes).unwrap();
        bytes
    }

    #[tokio::test]
    async fn every_format_becomes_the_same_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let bytes = source(directory.path());
        for (name, format, options) in [
            ("a.raw", ForeignFormat::Raw, ""),
            ("a.qcow2", ForeignFormat::Qcow2, ""),
            ("a.vmdk", ForeignFormat::Vmdk, ""),
            ("flat.vmdk", ForeignFormat::Vmdk, "subformat=monolithicFlat"),
            (
                "split.vmdk",
                ForeignFormat::Vmdk,
                "subformat=twoGbMaxExtentSparse",
            ),
            (
                "stream.vmdk",
                ForeignFormat::Vmdk,
                "subformat=streamOptimized",
            ),
            ("a.vdi", ForeignFormat::Vdi, ""),
            ("a.vhd", ForeignFormat::Vhd, "force_size=on"),
            (
                "fixed.vhd",
                ForeignFormat::Vhd,
                "subformat=fixed,force_size=on",
            ),
            ("a.vhdx", ForeignFormat::Vhdx, ""),
        ] {
            let mut words = vec!["convert", "-f", "raw", "-O", format.driver()];
            if !options.is_empty() {
                words.extend(["-o", options]);
            }
            words.extend(["source.raw", name]);
            qemu_img(&words, directory.path());
            let disk = ForeignDisk {
                path: directory.path().join(name),
                format,
                window: None,
            };
            let to = directory.path().join(format!("{name}.out"));
            let size = disk.convert(&to, Arc::new(Silent)).await.unwrap();
            let made = std::fs::read(&to).unwrap();
            assert_eq!(size, made.len() as u64);
            assert!(made.starts_with(&bytes), "{name}");
            assert!(made[bytes.len()..].iter().all(|byte| *byte == 0), "{name}");
            assert!(disk.measure().await.unwrap() < 4 << 20);
            // Any other name for it is refused, before qemu-img is asked.
            for other in ForeignFormat::ALL
                .into_iter()
                .filter(|other| *other != format)
            {
                let wrong = ForeignDisk {
                    format: other,
                    ..disk.clone()
                };
                let flat_descriptor = format == ForeignFormat::Vmdk && other == ForeignFormat::Raw;
                let footer_only = format == ForeignFormat::Vhd && other == ForeignFormat::Raw;
                if !flat_descriptor && !footer_only {
                    assert!(wrong.check_header().is_err(), "{name} as {other}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_window_into_an_archive_is_read_in_place() {
        let directory = tempfile::tempdir().unwrap();
        let bytes = source(directory.path());
        let words = [
            "convert",
            "-f",
            "raw",
            "-O",
            "vmdk",
            "-o",
            "subformat=streamOptimized",
        ];
        qemu_img(
            &[&words[..], &["source.raw", "a.vmdk"]].concat(),
            directory.path(),
        );
        let disk = std::fs::read(directory.path().join("a.vmdk")).unwrap();
        let mut archive = vec![1; 777];
        archive.extend_from_slice(&disk);
        archive.extend_from_slice(&[2; 999]);
        let path = directory.path().join("archive");
        std::fs::write(&path, archive).unwrap();
        let inside = ForeignDisk {
            path,
            format: ForeignFormat::Vmdk,
            window: Some((777, disk.len() as u64)),
        };
        let to = directory.path().join("out");
        inside.convert(&to, Arc::new(Silent)).await.unwrap();
        assert!(std::fs::read(&to).unwrap().starts_with(&bytes));
        let beyond = ForeignDisk {
            window: Some((777, u64::MAX)),
            ..inside
        };
        assert!(beyond.check().await.is_err());
    }

    #[tokio::test]
    async fn disks_that_lead_to_other_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        source(directory.path());
        let at = |name: &str| directory.path().join(name);
        let refused = async |name: &str, format, why: &str| {
            let disk = ForeignDisk {
                path: at(name),
                format,
                window: None,
            };
            let to = at("out");
            let error = disk.convert(&to, Arc::new(Silent)).await.unwrap_err();
            assert!(error.to_string().contains(why), "{name}: {error}");
            assert!(!to.exists());
        };
        qemu_img(
            &["create", "-f", "vmdk", "base.vmdk", "4M"],
            directory.path(),
        );
        qemu_img(
            &[
                "create",
                "-f",
                "vmdk",
                "-b",
                "base.vmdk",
                "-F",
                "vmdk",
                "top.vmdk",
            ],
            directory.path(),
        );
        refused("top.vmdk", ForeignFormat::Vmdk, "snapshot over").await;
        qemu_img(
            &[
                "create",
                "-f",
                "qcow2",
                "-b",
                "source.raw",
                "-F",
                "raw",
                "top.qcow2",
            ],
            directory.path(),
        );
        refused("top.qcow2", ForeignFormat::Qcow2, "backing file").await;
        qemu_img(
            &[
                "create",
                "-f",
                "vmdk",
                "-o",
                "subformat=monolithicFlat",
                "flat.vmdk",
                "1M",
            ],
            directory.path(),
        );
        std::fs::remove_file(at("flat-flat.vmdk")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", at("flat-flat.vmdk")).unwrap();
        refused("flat.vmdk", ForeignFormat::Vmdk, "symbolic link").await;
        std::os::unix::fs::symlink(at("source.raw"), at("link.raw")).unwrap();
        refused("link.raw", ForeignFormat::Raw, "symbolic link").await;
        let text = std::fs::read_to_string(at("flat.vmdk")).unwrap();
        std::fs::write(
            at("evil.vmdk"),
            text.replace("flat-flat.vmdk", "/etc/passwd"),
        )
        .unwrap();
        refused("evil.vmdk", ForeignFormat::Vmdk, "not beside it").await;
    }
}
