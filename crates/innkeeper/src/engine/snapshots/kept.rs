//! What a snapshot keeps of a VM beside its disks: UEFI variables, the TPM's state, and the memory of a suspended one.
//!
//! Files are copied, sharing their blocks where the file system can. What is brought back lies ready as a copy first, so that bringing it
//! back is renames alone.

use std::fs;
use std::io;
use std::path::Path;

use innkeeper_image::disk;

use super::step;
use crate::error::{Error, Result};
use crate::snapshot::Kept;
use crate::store::Bundle;

/// The UEFI variables, in a bundle and in what is kept.
pub(super) const FIRMWARE: &str = "efi-variables.fd";
const TPM: &str = "tpm";
const MEMORY: &str = "saved";

/// Says what there is to keep of a VM as it is on disk.
pub(super) fn present(bundle: &Bundle) -> Result<Kept> {
    Ok(Kept {
        firmware: bundle.path(FIRMWARE).exists(),
        tpm: bundle.path(TPM).exists(),
        memory: bundle.saved()?.map(|saved| saved.since),
    })
}

fn names(kept: &Kept) -> impl Iterator<Item = &'static str> {
    [
        (kept.firmware, FIRMWARE),
        (kept.tpm, TPM),
        (kept.memory.is_some(), MEMORY),
    ]
    .into_iter()
    .filter_map(|(there, name)| there.then_some(name))
}

/// Copies what is kept from one directory into another, which is made anew; returns how many bytes had to be copied.
pub(super) fn copy(kept: &Kept, from: &Path, to: &Path) -> Result<u64> {
    remove_tree(to)?;
    let mut copied = 0;
    if names(kept).next().is_none() {
        return Ok(copied);
    }
    fs::create_dir_all(to)
        .map_err(|error| Error::io(format!("can't make {}", to.display()), error))?;
    for name in names(kept) {
        copied += copy_tree(&from.join(name), &to.join(name))?;
        step();
    }
    Ok(copied)
}

/// Returns the bytes that what is kept takes.
pub(super) fn size(kept: &Kept, directory: &Path) -> Result<u64> {
    names(kept)
        .map(|name| tree_size(&directory.join(name)))
        .sum()
}

/// Moves what lies ready for a generation into place, and takes away what that state did not have; can be repeated.
pub(super) fn put_back(bundle: &Bundle, generation: u64, kept: &Kept) -> Result<()> {
    let ready = bundle.restore_directory(generation);
    for name in [FIRMWARE, TPM, MEMORY] {
        let (from, to) = (ready.join(name), bundle.path(name));
        let belongs = names(kept).any(|kept| kept == name);
        if from.exists() {
            remove_tree(&to)?;
            fs::rename(&from, &to)
                .map_err(|error| Error::io(format!("can't move {}", from.display()), error))?;
        } else if !belongs {
            remove_tree(&to)?;
        }
        step();
    }
    remove_tree(&ready)?;
    sync(bundle.directory())
}

fn sync(directory: &Path) -> Result<()> {
    fs::File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| Error::io(format!("can't write {}", directory.display()), error))
}

fn copy_tree(from: &Path, to: &Path) -> Result<u64> {
    let failed = |error| Error::io(format!("can't copy {}", from.display()), error);
    let kind = fs::symlink_metadata(from).map_err(failed)?.file_type();
    if kind.is_file() {
        return Ok(disk::copy(from, to)?);
    }
    if !kind.is_dir() {
        // A lock or a socket that a helper left: nothing to keep.
        return Ok(0);
    }
    fs::create_dir(to).map_err(|error| Error::io(format!("can't make {}", to.display()), error))?;
    let mut copied = 0;
    for entry in fs::read_dir(from).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        copied += copy_tree(&from.join(&name), &to.join(&name))?;
    }
    sync(to)?;
    Ok(copied)
}

fn tree_size(path: &Path) -> Result<u64> {
    let failed = |error| Error::io(format!("can't look at {}", path.display()), error);
    let kind = fs::symlink_metadata(path).map_err(failed)?.file_type();
    if kind.is_file() {
        return Ok(disk::allocated(path)?);
    }
    let mut size = 0;
    if kind.is_dir() {
        for entry in fs::read_dir(path).map_err(failed)? {
            size += tree_size(&entry.map_err(failed)?.path())?;
        }
    }
    Ok(size)
}

/// Removes a file or a directory with all that is in it, if it is there.
pub(super) fn remove_tree(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("can't remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}
