//! Looking after disks that no VM uses now: checking and repairing, giving back unused space, cutting the end off, removing.
//!
//! ```text
//!   compact: written anew beside it ─► compared with it ─► flushed ─► renamed over it
//!   shrink:  what its beginning says of its content ─► refused if the new end would be inside ─► cut
//! ```
//! qemu-img takes a lock on every disk that it opens, as QEMU does, so a disk that a VM of QEMU uses is refused there. Whether a VM of
//! this installation uses it some other way is the caller's to know.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::contents::{self, Reach};
use crate::disk::{self, CheckReport, DiskFormat, Shrink};
use crate::progress::{self, Progress, Silent, Step};
use crate::{Error, Result, atomic};

/// Whether a check may change what it checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// It only looks.
    No,
    /// Leaks are given back, and errors mended as far as that goes.
    Yes,
}

/// Checks a disk, and repairs it if told to. A raw disk has no metadata: its size alone is checked, and nothing is repaired.
pub async fn check(path: &Path, format: DiskFormat, repair: Repair) -> Result<CheckReport> {
    match (format, repair) {
        (DiskFormat::Qcow2, Repair::No) => disk::check(path).await,
        (DiskFormat::Qcow2, Repair::Yes) => {
            let target = disk::plain(path)?;
            progress::run(Arc::new(Silent), move |context| {
                disk::qemu_img(format!("repair {}", target.display()))?
                    .args(["check", "-q", "-r", "all", "-f", "qcow2"])
                    .arg(&target)
                    .output(context)
                    .map(drop)
            })
            .await?;
            disk::check(path).await
        }
        (DiskFormat::Raw, _) => {
            disk::check_foreign(path, DiskFormat::Raw)?;
            Ok(CheckReport::default())
        }
    }
}

/// Tells how far the content of a disk reaches.
pub async fn reach(path: &Path, format: DiskFormat) -> Result<Reach> {
    let path = disk::plain(path)?;
    progress::run(Arc::new(Silent), move |context| {
        let directory = tempfile::tempdir().map_err(Error::io("create a directory in", "/tmp"))?;
        let head = directory.path().join("head");
        disk::qemu_img(format!("read {}", path.display()))?
            .args(["dd", "-f", format.as_str(), "-O", "raw", "bs=1M", "count=1"])
            .arg(option("if=", &path))
            .arg(option("of=", &head))
            .output(context)?;
        let bytes = fs::read(&head).map_err(Error::io("read", &head))?;
        Ok(contents::reach(&bytes))
    })
    .await
}

fn option(key: &str, path: &Path) -> std::ffi::OsString {
    let mut word = std::ffi::OsString::from(key);
    word.push(path);
    word
}

/// Makes a disk smaller, unless something on it reaches beyond the new end, or it can't be told what is on it.
pub async fn shrink(path: &Path, format: DiskFormat, size: u64) -> Result<()> {
    let refuse = |problem: String| Err(Error::invalid("disk size", size.to_string(), problem));
    match reach(path, format).await? {
        Reach::Known { end, what } if end > size => {
            return refuse(format!(
                "{} holds {what} that reaches to byte {end}; make that smaller in the guest first",
                path.display()
            ));
        }
        Reach::Known { .. } => {}
        Reach::Unknown if is_empty(path, format).await? => {}
        Reach::Unknown => {
            return refuse(format!(
                "it can't be told how far the content of {} reaches; add --unchecked to cut it all the same",
                path.display()
            ));
        }
    }
    disk::resize(path, format, size, Shrink::DiscardEnd).await
}

/// Says whether nothing was ever written to a disk.
async fn is_empty(path: &Path, format: DiskFormat) -> Result<bool> {
    #[derive(serde::Deserialize)]
    struct Extent {
        data: bool,
        #[serde(default)]
        zero: bool,
    }
    let path = disk::plain(path)?;
    progress::run(Arc::new(Silent), move |context| {
        let output = disk::qemu_img(format!("map {}", path.display()))?
            .args(["map", "--output=json", "-f", format.as_str()])
            .arg(&path)
            .output(context)?;
        let extents: Vec<Extent> = serde_json::from_slice(&output)
            .map_err(|source| Error::malformed("qemu-img's answer", source.to_string()))?;
        Ok(extents.iter().all(|extent| extent.zero || !extent.data))
    })
    .await
}

/// Writes a disk anew without what is unused or zero, and puts it in its place; returns the bytes it took before and takes now.
pub async fn compact(
    path: &Path,
    format: DiskFormat,
    progress: Arc<dyn Progress>,
) -> Result<(u64, u64)> {
    let before = disk::info(path, format).await?;
    let path = disk::plain(path)?;
    let at = path.clone();
    progress::run(progress, move |context| {
        let directory = path
            .parent()
            .ok_or_else(|| Error::missing(&path, "compact"))?;
        let about = fs::symlink_metadata(&path).map_err(Error::io("look at", &path))?;
        if !about.is_file() {
            // Renaming over a symbolic link would replace the link, over a device the device's name.
            return Err(Error::invalid(
                "disk",
                path.display().to_string(),
                "must be a file itself, neither a link nor a device",
            ));
        }
        let temporary = tempfile::Builder::new()
            .prefix(".tmp-")
            .permissions(about.permissions())
            .tempfile_in(directory)
            .map_err(Error::io("create a file in", directory))?;
        context.step(Step::Write, format!("{} anew", path.display()));
        let mut convert = disk::qemu_img(format!("compact {}", path.display()))?;
        convert = convert.args([
            "convert",
            "-q",
            "-f",
            format.as_str(),
            "-O",
            format.as_str(),
        ]);
        if let (Some(backing), Some(backing_format)) = (&before.backing, &before.backing_format) {
            convert = convert.arg("-B").arg(backing).args(["-F", backing_format]);
        }
        convert.arg(&path).arg(temporary.path()).output(context)?;
        context.step(
            Step::Verify,
            format!("{} against the old one", path.display()),
        );
        disk::qemu_img(format!(
            "compare {} with what was written anew",
            path.display()
        ))?
        .args([
            "compare",
            "-q",
            "-f",
            format.as_str(),
            "-F",
            format.as_str(),
        ])
        .arg(&path)
        .arg(temporary.path())
        .output(context)?;
        temporary
            .as_file()
            .sync_all()
            .map_err(Error::io("flush", &path))?;
        temporary
            .persist(&path)
            .map_err(|failure| failure.error)
            .map_err(Error::io("rename to", &path))?;
        atomic::sync_directory(directory)
    })
    .await?;
    Ok((
        before.actual_bytes,
        disk::info(&at, format).await?.actual_bytes,
    ))
}

/// Removes a disk file, which must be a file and, by its header, of the format that is named.
pub fn remove(path: &Path, format: DiskFormat) -> Result<()> {
    let about = fs::symlink_metadata(path).map_err(Error::io("look at", path))?;
    if !about.is_file() {
        return Err(Error::invalid(
            "disk",
            path.display().to_string(),
            "must be a file itself, neither a link nor a device",
        ));
    }
    let mut head = [0; 4];
    use std::io::Read;
    let read = fs::File::open(path)
        .and_then(|mut file| file.read(&mut head))
        .map_err(Error::io("read", path))?;
    if (head[..read] == crate::qcow2::MAGIC) != (format == DiskFormat::Qcow2) {
        return Err(Error::invalid(
            "disk",
            path.display().to_string(),
            format!("does not begin as a {format} disk does; name its format with --format"),
        ));
    }
    fs::remove_file(path).map_err(Error::io("remove", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    fn raw(directory: &Path, size: u64) -> std::path::PathBuf {
        let path = directory.join("a.raw");
        fs::File::create_new(&path).unwrap().set_len(size).unwrap();
        path
    }

    #[tokio::test]
    async fn compacting_gives_zeros_back_and_keeps_the_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let path = raw(directory.path(), 32 << 20);
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&vec![0; 8 << 20], 0).unwrap();
        file.write_all_at(b"kept", 9 << 20).unwrap();
        let wanted = fs::read(&path).unwrap();
        let (before, after) = compact(&path, DiskFormat::Raw, Arc::new(Silent))
            .await
            .unwrap();
        assert!(before >= 8 << 20 && after < 1 << 20, "{before} {after}");
        assert_eq!(fs::read(&path).unwrap(), wanted);
        assert!(fs::metadata(&path).unwrap().blocks() * 512 < 1 << 20);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn compacting_an_overlay_keeps_its_backing_file() {
        let directory = tempfile::tempdir().unwrap();
        let base = disk::Base {
            path: raw(directory.path(), 4 << 20),
            format: DiskFormat::Raw,
            virtual_bytes: 4 << 20,
        };
        let content = crate::qcow2::empty_overlay(&base.path, DiskFormat::Raw, 8 << 20).unwrap();
        let top = directory.path().join("top.qcow2");
        fs::write(&top, content).unwrap();
        compact(&top, DiskFormat::Qcow2, Arc::new(Silent))
            .await
            .unwrap();
        let info = disk::info(&top, DiskFormat::Qcow2).await.unwrap();
        assert_eq!(info.backing, Some(base.path));
        assert_eq!(info.backing_format.as_deref(), Some("raw"));
        assert_eq!(info.virtual_bytes, 8 << 20);
    }

    #[tokio::test]
    async fn shrinking_asks_the_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fs.raw");
        crate::make_ext4(&path, 16 << 20, "data").await.unwrap();
        disk::resize(&path, DiskFormat::Raw, 64 << 20, Shrink::Refuse)
            .await
            .unwrap();
        let error = shrink(&path, DiskFormat::Raw, 8 << 20).await.unwrap_err();
        assert!(error.to_string().contains("ext file system"), "{error}");
        shrink(&path, DiskFormat::Raw, 16 << 20).await.unwrap();
        let empty = raw(directory.path(), 4 << 20);
        shrink(&empty, DiskFormat::Raw, 1 << 20).await.unwrap();
        fs::write(&empty, vec![7; 1 << 20]).unwrap();
        let error = shrink(&empty, DiskFormat::Raw, 1 << 19).await.unwrap_err();
        assert!(error.to_string().contains("--unchecked"), "{error}");
    }

    #[tokio::test]
    async fn a_damaged_disk_is_found_and_repaired() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.qcow2");
        disk::create(&path, DiskFormat::Qcow2, 8 << 20)
            .await
            .unwrap();
        // The first entry of the refcount block: the header's cluster is said to be used twice.
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[0, 2], 2 << 16).unwrap();
        let found = check(&path, DiskFormat::Qcow2, Repair::No).await.unwrap();
        assert!(found.corruptions + found.leaks > 0, "{found:?}");
        let mended = check(&path, DiskFormat::Qcow2, Repair::Yes).await.unwrap();
        assert_eq!(mended, CheckReport::default());
    }

    #[tokio::test]
    async fn only_a_disk_of_the_format_named_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = raw(directory.path(), 1 << 20);
        let link = directory.path().join("link.raw");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(remove(&link, DiskFormat::Raw).is_err());
        assert!(remove(&path, DiskFormat::Qcow2).is_err());
        assert!(path.exists());
        remove(&path, DiskFormat::Raw).unwrap();
        assert!(!path.exists());
    }
}
