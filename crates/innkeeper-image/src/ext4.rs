//! Makes ext4 file systems without root, by mke2fs.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use crate::progress::{self, Context, Silent};
use crate::tool::{self, Tool};
use crate::{Error, Result};

/// Makes a sparse raw disk of `size` bytes with an empty ext4, owned by root, labelled `label` (at most 16 bytes).
///
/// Fails when the file exists, mke2fs is not installed, or the size is under 1 MiB.
pub async fn make_ext4(path: &Path, size: u64, label: &str) -> Result<()> {
    let (path, label) = (path.to_owned(), label.to_owned());
    progress::run(Arc::new(Silent), move |context| {
        let tool = mke2fs(&path, size, &label)?;
        let made = tool.output(context);
        if made.is_err() {
            // The first error is the one to tell.
            let _ = std::fs::remove_file(&path);
        }
        made.map(drop)
    })
    .await
}

/// Makes the same file system filled with a directory's content; `wrapper` runs it where the files' owners are right.
pub(crate) fn make_ext4_from(
    directory: &Path,
    path: &Path,
    size: u64,
    label: &str,
    wrapper: impl FnOnce(&Path, &str) -> Result<Tool>,
    context: &Context,
) -> Result<()> {
    prepare(path, size, label)?;
    let program = tool::require("mke2fs", "e2fsprogs", "e2fsprogs")?;
    wrapper(&program, "make the root file system")?
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-E",
            "root_owner=0:0",
            "-L",
            label,
            "-d",
        ])
        .arg(directory)
        .arg(path)
        .output(context)
        .map(drop)
}

fn mke2fs(path: &Path, size: u64, label: &str) -> Result<Tool> {
    let program = tool::require("mke2fs", "e2fsprogs", "e2fsprogs")?;
    prepare(path, size, label)?;
    Ok(Tool::new(
        &program,
        format!("make an ext4 file system in {}", path.display()),
    )
    .args([
        "-q",
        "-F",
        "-t",
        "ext4",
        "-E",
        "root_owner=0:0,lazy_itable_init=1",
        "-L",
        label,
    ])
    .arg(path))
}

fn prepare(path: &Path, size: u64, label: &str) -> Result<()> {
    if !(1 << 20..=crate::qcow2::SIZE_LIMIT).contains(&size) {
        return Err(Error::invalid(
            "disk size",
            size.to_string(),
            "must be from 1 MiB to 64 TiB for an ext4 disk",
        ));
    }
    if label.len() > 16 || label.starts_with('-') {
        return Err(Error::invalid(
            "file system label",
            label,
            "must be at most 16 bytes and not begin with '-'",
        ));
    }
    let file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(Error::io("create", path))?;
    file.set_len(size).map_err(Error::io("grow", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_disk_has_a_label_and_is_sparse() {
        use std::io::Read;
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data.raw");
        make_ext4(&path, 1 << 30, "data").await.unwrap();
        let mut bytes = [0; 2048];
        std::fs::File::open(&path)
            .unwrap()
            .read_exact(&mut bytes)
            .unwrap();
        // The superblock begins at 1024; magic at 0x38, volume name at 0x78 (kernel: Documentation/filesystems/ext4/super.rst).
        assert_eq!(bytes[1024 + 0x38..1024 + 0x3a], [0x53, 0xef]);
        assert_eq!(&bytes[1024 + 0x78..1024 + 0x7d], b"data\0");
        assert!(path.metadata().unwrap().blocks() * 512 < 64 << 20);
        assert!(make_ext4(&path, 1 << 30, "data").await.is_err());
        assert!(
            make_ext4(
                &directory.path().join("x"),
                1 << 30,
                "a label that is far too long"
            )
            .await
            .is_err()
        );
    }
}
