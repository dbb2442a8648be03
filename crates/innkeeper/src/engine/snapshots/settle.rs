//! What is left to do after a change of tops was written, and what commands that were interrupted left.
//!
//! ```text
//!  graph N+1 written ─► layers sealed ─► kept files moved into place ─► old tops removed ─► identity N+1 written
//!       │ killed in here: whoever takes the VM's lock next begins again at the first of these
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use innkeeper_image::Store;

use super::kept;
use super::step;
use crate::error::{Error, Result};
use crate::snapshot::{Graph, Stamp};
use crate::spec::DiskFormat;
use crate::store::{Bundle, Identity, IdentityDisk};

/// Finishes what an interrupted command left of a change, and removes what it left that does not count. The caller holds the VM's lock.
pub(crate) fn settle(images: &Store, bundle: &Bundle) -> Result<()> {
    let Some(graph) = bundle.snapshots()? else {
        return Ok(());
    };
    // A damaged identity is told by whoever needs it; a VM that can't be read can still be removed.
    let Ok(identity) = bundle.identity() else {
        return Ok(());
    };
    if graph.generation > identity.generation {
        finish(images, bundle, &graph, &identity)?;
    }
    Ok(())
}

/// Does what is left after the graph of a new generation was written; can be repeated. Returns the new identity.
pub(super) fn finish(
    images: &Store,
    bundle: &Bundle,
    graph: &Graph,
    before: &Identity,
) -> Result<Identity> {
    for id in graph.layers.keys() {
        images.seal_frozen(id)?;
    }
    step();
    let mut identity = Identity {
        disks: graph.tops.clone(),
        generation: graph.generation,
        ..before.clone()
    };
    if let Some(restore) = &graph.restore {
        identity.macs.clone_from(&restore.macs);
        kept::put_back(bundle, graph.generation, &restore.kept)?;
        step();
        bundle.write_spec_text(&restore.spec)?;
        step();
    }
    bundle.saved_on_new_tops(&identity)?;
    step();
    for old in &before.disks {
        if graph.tops.iter().all(|top| top.file != old.file) {
            remove_file(&bundle.path(&old.file))?;
            step();
        }
    }
    bundle.write_identity(&identity)?;
    step();
    Ok(identity)
}

/// Removes what nothing counts: tops and directories that no graph names, leases on layers that the VM does not read. The caller holds the
/// VM's lock, and the graph is finished. Returns what was found, a sentence each; with `dry_run` it stays.
pub(crate) fn sweep(
    images: &Store,
    bundle: &Bundle,
    identity: &Identity,
    graph: &Graph,
    dry_run: bool,
) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut left = |path: &Path| {
        found.push(format!(
            "left by a snapshot that was interrupted: {}",
            path.display()
        ));
    };
    for name in entries(&bundle.path("disks"))? {
        let file = Path::new("disks").join(&name);
        let counts = identity.disks.iter().any(|disk| disk.file == file);
        if !counts && is_top(&name) {
            left(&bundle.path(&file));
            if !dry_run {
                remove_file(&bundle.path(&file))?;
                step();
            }
        }
    }
    for name in entries(&bundle.snapshots_directory())? {
        if graph.node(&name).is_none() {
            let path = bundle.snapshots_directory().join(&name);
            left(&path);
            if !dry_run {
                kept::remove_tree(&path)?;
                step();
            }
        }
    }
    if !dry_run {
        images.release_all_frozen(&identity.id, &graph.needed())?;
        step();
    }
    Ok(found)
}

/// Says whether a file of this name in `disks/` is a top as snapshots make them: `NAME.GENERATION.FORMAT`.
fn is_top(name: &str) -> bool {
    let mut parts = name.rsplit('.');
    let format = parts.next().unwrap_or_default();
    let generation = parts.next().unwrap_or_default();
    matches!(format, "raw" | "qcow2")
        && !generation.is_empty()
        && generation.bytes().all(|byte| byte.is_ascii_digit())
        && parts.next().is_some_and(|stem| !stem.is_empty())
}

/// Returns the file of a top of this generation, relative to the bundle.
pub(crate) fn top_file(disk: &str, generation: u64, format: DiskFormat) -> std::path::PathBuf {
    format!("disks/{disk}.{generation}.{format}").into()
}

/// Tells what the files are like that say whether the present state is still what it began from.
pub(super) fn stamps(bundle: &Bundle, tops: &[IdentityDisk]) -> Result<Vec<Stamp>> {
    use std::os::unix::fs::MetadataExt;
    let mut files: BTreeSet<String> = tops
        .iter()
        .map(|top| top.file.display().to_string())
        .collect();
    files.insert(kept::FIRMWARE.to_owned());
    let mut stamps = Vec::new();
    for file in files {
        let path = bundle.path(&file);
        match fs::metadata(&path) {
            Ok(metadata) => stamps.push(Stamp {
                file,
                size: metadata.len(),
                modified: (
                    metadata.mtime(),
                    u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
                ),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(Error::io(
                    format!("can't look at {}", path.display()),
                    error,
                ));
            }
        }
    }
    Ok(stamps)
}

fn entries(directory: &Path) -> Result<Vec<String>> {
    let failed = |error| Error::io(format!("can't list {}", directory.display()), error);
    let listed = match fs::read_dir(directory) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in listed {
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("can't remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::is_top;

    #[test]
    fn only_what_snapshots_made_is_taken_for_a_leftover() {
        for ours in ["root.1.qcow2", "data.12.raw", "a.b.3.raw"] {
            assert!(is_top(ours), "{ours}");
        }
        for other in [
            "root.qcow2",
            "data.raw",
            "backup.tar",
            ".1.raw",
            "x.1.iso",
            "root.1",
        ] {
            assert!(!is_top(other), "{other}");
        }
    }
}
