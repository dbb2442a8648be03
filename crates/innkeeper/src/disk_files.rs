//! Disk files apart from any VM: made, resized, converted, checked, compacted, removed. What a VM uses is left alone.

use std::path::{Path, PathBuf};

use innkeeper_api::{ErrorKind, VmState};
use innkeeper_image::{disk, upkeep};
use serde::Serialize;

use crate::engine::{Engine, told};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::progress::Progress;
use crate::spec::{Bytes, DiskFormat};

/// What happens when a disk is to get smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shrinking {
    /// It is refused.
    Refuse,
    /// Its end is cut off if what is on it ends before.
    Checked,
    /// Its end is cut off, whatever is there.
    Unchecked,
}

/// Which use by a VM stands in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// It has the disk.
    Any,
    /// It has the disk, and is not stopped.
    Running,
}

impl Host {
    /// Makes an empty disk file.
    pub async fn disk_create(
        &self,
        path: &Path,
        size: Bytes,
        format: DiskFormat,
    ) -> Result<DiskFile> {
        disk::create(path, format, size.get()).await?;
        self.disk_info(path, format).await
    }

    /// Changes the size of a disk file; `shrink` says what happens when it gets smaller.
    pub async fn disk_resize(
        &self,
        path: &Path,
        format: DiskFormat,
        size: Bytes,
        shrink: Shrinking,
    ) -> Result<DiskFile> {
        let now = self.disk_info(path, format).await?.virtual_bytes;
        self.engine.check_unused(path, Use::Running).await?;
        match shrink {
            Shrinking::Checked if size.get() < now => {
                upkeep::shrink(path, format, size.get()).await?;
            }
            Shrinking::Unchecked => {
                disk::resize(path, format, size.get(), disk::Shrink::DiscardEnd).await?;
            }
            _ => disk::resize(path, format, size.get(), disk::Shrink::Refuse).await?,
        }
        self.disk_info(path, format).await
    }

    /// Checks a disk file that no VM uses, and repairs it if told to.
    pub async fn disk_check(
        &self,
        path: &Path,
        format: DiskFormat,
        repair: bool,
    ) -> Result<DiskCheck> {
        let way = if repair {
            self.engine.check_unused(path, Use::Running).await?;
            upkeep::Repair::Yes
        } else {
            upkeep::Repair::No
        };
        let report = upkeep::check(path, format, way).await?;
        Ok(DiskCheck {
            path: path.to_owned(),
            format: format.to_string(),
            corruptions: report.corruptions,
            leaks: report.leaks,
            check_errors: report.check_errors,
        })
    }

    /// Gives back the space in a disk file that is unused or zero; returns what it took before, in bytes, and what it is now.
    pub async fn disk_compact(
        &self,
        path: &Path,
        format: DiskFormat,
        progress: &dyn Progress,
    ) -> Result<(u64, DiskFile)> {
        self.engine.check_unused(path, Use::Running).await?;
        let (before, _) = told(progress, |sink| upkeep::compact(path, format, sink)).await?;
        Ok((before, self.disk_info(path, format).await?))
    }

    /// Removes a disk file that no VM has. With `dry_run` it is only checked.
    pub async fn disk_remove(
        &self,
        path: &Path,
        format: DiskFormat,
        dry_run: bool,
    ) -> Result<DiskFile> {
        self.engine.check_unused(path, Use::Any).await?;
        let file = self.disk_info(path, format).await?;
        if !dry_run {
            upkeep::remove(path, format)?;
        }
        Ok(file)
    }

    /// Writes a disk file anew in another format.
    pub async fn disk_convert(
        &self,
        from: &Path,
        from_format: DiskFormat,
        to: &Path,
        to_format: DiskFormat,
        progress: &dyn Progress,
    ) -> Result<DiskFile> {
        told(progress, |sink| {
            disk::convert(from, from_format, to, to_format, sink)
        })
        .await?;
        self.disk_info(to, to_format).await
    }

    /// Tells of a disk file.
    pub async fn disk_info(&self, path: &Path, format: DiskFormat) -> Result<DiskFile> {
        let info = disk::info(path, format).await?;
        Ok(DiskFile {
            path: path.to_owned(),
            format: info.format,
            virtual_bytes: info.virtual_bytes,
            actual_bytes: info.actual_bytes,
            backing: info.backing,
        })
    }
}

impl Engine {
    /// Refuses a disk file that is a VM's.
    async fn check_unused(&self, path: &Path, use_: Use) -> Result<()> {
        let Ok(path) = std::fs::canonicalize(path) else {
            // What does not exist is told of by whoever opens it.
            return Ok(());
        };
        if path.starts_with(self.root.home()) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("{} belongs to this installation", path.display()),
            )
            .with_hint(
                "`inn set` changes the disks of a VM, `inn rm` removes a VM with its disks",
            ));
        }
        for name in self.root.names()? {
            let bundle = self.root.bundle_at(&name);
            // A VM whose spec can't be read now (it is being removed) can't be asked.
            let Ok(spec) = bundle.spec() else { continue };
            let files = spec.disks.iter().filter_map(|disk| disk.path.as_deref());
            let has_it = files
                .filter_map(|file| std::fs::canonicalize(file).ok())
                .any(|file| file == path);
            if !has_it {
                continue;
            }
            let state = self.look(&bundle).await?.state;
            if use_ == Use::Any || !matches!(state, VmState::Stopped | VmState::Failed) {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("{} is a disk of {name}, which is {state}", path.display()),
                )
                .with_hint(match use_ {
                    Use::Any => format!("inn disk detach {name} takes it away from the VM"),
                    Use::Running => format!("inn stop {name}"),
                }));
            }
        }
        Ok(())
    }
}

/// What a check of a disk file found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskCheck {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: String,
    /// Errors in its metadata.
    pub corruptions: u64,
    /// Clusters that nothing uses; harmless but for the space.
    pub leaks: u64,
    /// Errors that kept the check from looking.
    pub check_errors: u64,
}

impl DiskCheck {
    /// Says whether nothing is wrong with it.
    pub fn is_sound(&self) -> bool {
        self.corruptions == 0 && self.leaks == 0 && self.check_errors == 0
    }
}

/// A disk file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskFile {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: String,
    /// Size that a guest sees, in bytes.
    pub virtual_bytes: u64,
    /// Bytes that it takes.
    pub actual_bytes: u64,
    /// File below it, if any.
    pub backing: Option<PathBuf>,
}
