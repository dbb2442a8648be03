//! Removing from the store: images that a person names, and what crashes and newer images left over.
//!
//! A layer goes only while nobody can lease (layer.rs), when no other image names it and nobody leases it. Collecting takes only what
//! is older than the caller says, since a layer is there for a moment before the image that names it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::atomic::WorkDirectory;
use crate::image::Image;
use crate::layer::LayerId;
use crate::progress::{self, Context, Silent};
use crate::reference::{Arch, Reference};
use crate::{Error, Result, Store, debian};

/// What a collection found, or would remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Layers that no image and no user needs, with the bytes they take.
    pub layers: Vec<(LayerId, u64)>,
    /// Work directories of processes that died.
    pub leftovers: Vec<PathBuf>,
}

/// Whether something is really done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// Only tell.
    Dry,
    /// Do it.
    Real,
}

impl Store {
    /// Removes an image and those of its layers that no other image needs; refused, naming the users, while one is leased.
    ///
    /// Gives the layers that were, or would be, removed.
    pub fn rm(&self, reference: &Reference, arch: Arch, run: Run) -> Result<Vec<LayerId>> {
        let image = self.info(reference, arch)?;
        self.layers.exclusively(|| {
            let mut users = BTreeSet::new();
            let path = self.index_path(reference, arch);
            let mut elsewhere = BTreeSet::new();
            for other in self.ls()? {
                if (&other.reference, other.arch) != (&image.reference, image.arch) {
                    elsewhere.extend(other.kept_layers());
                }
            }
            let own: Vec<LayerId> = image
                .kept_layers()
                .into_iter()
                .filter(|layer| !elsewhere.contains(layer))
                .collect();
            for layer in &own {
                users.extend(self.layers.users(layer)?);
            }
            if !users.is_empty() {
                return Err(Error::InUse {
                    what: image.reference.clone(),
                    users: users.into_iter().collect(),
                });
            }
            if run == Run::Real {
                fs::remove_file(&path).map_err(Error::io("remove", &path))?;
                for layer in &own {
                    match self.layers.remove(layer) {
                        Err(Error::Io { source, .. })
                            if source.kind() == std::io::ErrorKind::NotFound => {}
                        other => other?,
                    }
                }
            }
            Ok(own)
        })
    }

    /// Finds and removes what crashes left, and layers older than `age` that no image names and nobody leases.
    pub async fn gc(&self, age: Duration, run: Run) -> Result<Collected> {
        let store = self.clone();
        progress::run(Arc::new(Silent), move |context| {
            store.gc_blocking(age, run, context)
        })
        .await
    }

    fn gc_blocking(&self, age: Duration, run: Run, context: &Context) -> Result<Collected> {
        let mut collected = Collected::default();
        for base in ["build", "tiny/partial", "packages/partial"] {
            for leftover in WorkDirectory::leftovers(&self.cache().join(base))? {
                context.check()?;
                if run == Run::Real {
                    debian::remove_tree(&leftover, context)?;
                    let _ = fs::remove_file(leftover.with_extension("lock"));
                }
                collected.leftovers.push(leftover);
            }
        }
        self.layers.exclusively(|| {
            let named: BTreeSet<LayerId> = self.ls()?.iter().flat_map(Image::kept_layers).collect();
            for (layer, bytes) in self.layers.list()? {
                if !named.contains(&layer)
                    && self.layers.older_than(&layer, age)
                    && self.layers.users(&layer)?.is_empty()
                {
                    if run == Run::Real {
                        self.layers.remove(&layer)?;
                    }
                    collected.layers.push((layer, bytes));
                }
            }
            Ok(())
        })?;
        Ok(collected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest;
    use crate::disk::DiskFormat;
    use crate::error::ErrorKind;
    use std::path::Path;

    async fn imported(store: &Store, directory: &Path, name: &str, byte: u8) -> Image {
        let path = directory.join("disk.raw");
        fs::write(&path, vec![byte; 4096]).unwrap();
        store
            .import(&path, name, DiskFormat::Raw, Arch::X86_64, Arc::new(Silent))
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn import_list_lease_remove() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path().join("home")).unwrap();
        let image = imported(&store, home.path(), "mine:1", 7).await;
        assert_eq!(store.ls().unwrap(), std::slice::from_ref(&image));
        let reference: Reference = "mine:1".parse().unwrap();
        let layer = image.root.as_ref().unwrap().layer.clone();
        store.lease(&layer, "web").unwrap();
        let refused = store.rm(&reference, Arch::X86_64, Run::Real).unwrap_err();
        assert_eq!(refused.to_string(), "mine:1 is in use by web");
        assert_eq!(refused.kind(), ErrorKind::Conflict);
        store.release(&layer, "web").unwrap();
        assert_eq!(
            store.rm(&reference, Arch::X86_64, Run::Dry).unwrap(),
            std::slice::from_ref(&layer)
        );
        assert!(store.layer_path(&layer).exists());
        store.rm(&reference, Arch::X86_64, Run::Real).unwrap();
        assert!(!store.layer_path(&layer).exists());
        assert!(store.ls().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_layer_of_two_images_stays_until_the_second_goes() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path().join("home")).unwrap();
        let image = imported(&store, home.path(), "a", 1).await;
        imported(&store, home.path(), "b", 1).await;
        assert!(
            store
                .rm(&"a".parse().unwrap(), Arch::X86_64, Run::Real)
                .unwrap()
                .is_empty()
        );
        assert_eq!(
            store
                .rm(&"b".parse().unwrap(), Arch::X86_64, Run::Real)
                .unwrap(),
            image.layers()
        );
    }

    #[tokio::test]
    async fn gc_finds_orphans_and_leftovers_and_dry_run_keeps_them() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path().join("home")).unwrap();
        let image = imported(&store, home.path(), "a", 1).await;
        let orphan = home.path().join("orphan");
        fs::write(&orphan, b"x").unwrap();
        let orphan = store
            .layers
            .adopt(&orphan, &digest::sha256_hex(b"x"))
            .unwrap();
        let leftover = store.cache().join("build/debian-dead");
        fs::create_dir(&leftover).unwrap();
        let found = store.gc(Duration::ZERO, Run::Dry).await.unwrap();
        assert_eq!(
            found
                .layers
                .iter()
                .map(|(layer, _)| layer.clone())
                .collect::<Vec<_>>(),
            std::slice::from_ref(&orphan)
        );
        assert_eq!(found.leftovers, std::slice::from_ref(&leftover));
        assert!(leftover.exists() && store.layer_path(&orphan).exists());
        assert!(
            store
                .gc(Duration::from_secs(3600), Run::Dry)
                .await
                .unwrap()
                .layers
                .is_empty()
        );
        assert_eq!(store.gc(Duration::ZERO, Run::Real).await.unwrap(), found);
        assert!(!leftover.exists() && !store.layer_path(&orphan).exists());
        assert!(store.layer_path(&image.layers()[0]).exists());
    }
}
