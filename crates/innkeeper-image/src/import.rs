//! Takes disk images into the store: a user's file, or a verified download.
//!
//! The format is named by the caller and the header is checked: an image that names other files is refused (qcow2.rs).
//! A user's file is copied without its holes, and hashed on the way; a download is moved.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::disk::{self, DiskFormat};
use crate::image::{Image, ImageKind, RootDisk};
use crate::progress::{self, Context, Progress, Step};
use crate::reference::{Arch, Reference};
use crate::store::empty_image;
use crate::{Error, Result, Store, atomic, digest, sparse};

/// What is known of a file that is taken in.
pub(crate) struct Imported {
    pub(crate) source: String,
    pub(crate) kind: ImageKind,
    pub(crate) stamp: String,
    pub(crate) format: DiskFormat,
    pub(crate) take: Take,
}

/// Whether a file stays where it is.
pub(crate) enum Take {
    Copy,
    Move,
}

impl Store {
    /// Takes a disk image of the user as `name` (`NAME` or `NAME:VERSION`), whose format is named and whose header is checked.
    pub async fn import(
        &self,
        path: &Path,
        name: &str,
        format: DiskFormat,
        arch: Arch,
        progress: Arc<dyn Progress>,
    ) -> Result<Image> {
        let reference: Reference = name.parse()?;
        if !matches!(reference, Reference::Named { .. }) {
            return Err(Error::invalid(
                "image name",
                name,
                "must be a plain name with an optional version after a colon, and not tiny",
            ));
        }
        let (store, path) = (self.clone(), path.to_owned());
        progress::run(progress, move |context| {
            let lock_path = store.cache().join("locks").join(reference.file_stem(arch));
            let _lock = atomic::lock_patiently(&lock_path, context, &reference.to_string())?;
            let path = fs::canonicalize(&path).map_err(Error::io("find", &path))?;
            let imported = Imported {
                source: path.display().to_string(),
                kind: ImageKind::Imported,
                stamp: file_stamp(&path),
                format,
                take: Take::Copy,
            };
            store.import_file(&path, &reference, arch, imported, context)
        })
        .await
    }

    pub(crate) fn import_file(
        &self,
        path: &Path,
        reference: &Reference,
        arch: Arch,
        imported: Imported,
        context: &Context,
    ) -> Result<Image> {
        let checked = disk::check_foreign(path, imported.format);
        if checked.is_err() && matches!(imported.take, Take::Move) {
            // Its digest is right and its content is not usable: keeping it would only fail again.
            let _ = fs::remove_file(path);
        }
        let virtual_bytes = checked?;
        let work = self.work("import")?;
        let total = fs::metadata(path)
            .map_err(Error::io("look at", path))?
            .len();
        let watch = |step: Step, what: &'static str| {
            move |done: u64| {
                if done.is_multiple_of(64 << 20) {
                    context.bytes(step, done, Some(total), what);
                }
                context.check()
            }
        };
        let mut file = path.to_owned();
        let hex = match imported.take {
            Take::Move => {
                digest::sha256_file(&file, watch(Step::Verify, "computing the digest"))?.0
            }
            Take::Copy => {
                context.step(Step::Write, format!("copying {}", path.display()));
                file = work.path().join("disk");
                let hex = sparse::copy_hashed(path, &file, watch(Step::Write, "copying"))?;
                // What was checked might have been exchanged before it was copied.
                disk::check_foreign(&file, imported.format)?;
                hex
            }
        };
        let layer = self.layers.adopt(&file, &hex)?;
        self.publish(
            reference,
            Image {
                source: imported.source,
                kind: imported.kind,
                root: Some(RootDisk {
                    layer,
                    format: imported.format,
                    virtual_bytes,
                }),
                min_disk_bytes: virtual_bytes,
                cloud_init: true,
                contents: BTreeMap::from([("stamp".to_owned(), imported.stamp)]),
                ..empty_image(reference, arch)
            },
        )
    }
}

/// Size, time and inode: changes whenever a file was written or exchanged.
pub(crate) fn file_stamp(path: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).map_or_else(
        |_| "absent".to_owned(),
        |metadata| {
            format!(
                "{} {}.{:09} {}",
                metadata.len(),
                metadata.mtime(),
                metadata.mtime_nsec(),
                metadata.ino()
            )
        },
    )
}
