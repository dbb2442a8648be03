//! Frozen disks: layers made of the disks of VMs, for snapshots and clones.
//!
//! ```text
//!   layers/snap-ID              what a disk held at one moment, mode 0444: raw, or qcow2 over another layer
//!   layers/snap-ID.users/OWNER  one empty file for each VM that needs it
//! ```
//! They lie beside the layers of images and are leased in the same way, but their names are random: the digest of a large disk would take
//! longer than the snapshot. A lease is taken before the file is made, so a file without a lease is what a crash left, whenever one looks.
//! A frozen disk that is qcow2 reads through to what its header names; whoever needs it leases all that lies below as well. This module
//! does not know what lies below what.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result, Store, atomic, digest, disk};

const PREFIX: &str = "snap-";

/// The name of a frozen disk: `snap-` and 32 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FrozenId(String);

impl FrozenId {
    /// Makes the name of a frozen disk from 32 hexadecimal digits, which the caller draws at random.
    pub fn from_digits(digits: &str) -> Result<FrozenId> {
        format!("{PREFIX}{digits}").parse()
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FrozenId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for FrozenId {
    type Err = Error;

    fn from_str(text: &str) -> Result<FrozenId> {
        // Checked here so that no name can ever be a path.
        let digits = text.strip_prefix(PREFIX).unwrap_or_default();
        if digest::is_hex(digits, 32) && !digits.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Ok(FrozenId(text.to_owned()))
        } else {
            Err(Error::invalid(
                "frozen disk",
                text,
                "must be snap- and 32 lower-case hexadecimal digits",
            ))
        }
    }
}

impl TryFrom<String> for FrozenId {
    type Error = Error;

    fn try_from(text: String) -> Result<FrozenId> {
        text.parse()
    }
}

impl From<FrozenId> for String {
    fn from(id: FrozenId) -> String {
        id.0
    }
}

impl Store {
    /// Where a frozen disk lies.
    pub fn frozen_path(&self, id: &FrozenId) -> PathBuf {
        self.layers.named(id.as_str())
    }

    /// Freezes a disk that nobody writes to, by giving its file a second name: from now on it must never be written to again.
    ///
    /// The lease is taken first. Until [`Store::seal_frozen`] the file can still be written to, so that all of it can be undone by
    /// [`Store::release_frozen`]. Fails with `Unsupported` when disks and layers lie on different file systems.
    pub fn freeze_by_name(&self, disk: &Path, id: &FrozenId, owner: &str) -> Result<()> {
        self.layers.lease_named(id.as_str(), owner)?;
        match fs::hard_link(disk, self.frozen_path(id)) {
            Ok(()) => atomic::sync_directory(self.layers.root()),
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                Err(Error::Unsupported {
                    what: format!("freezing {}", disk.display()),
                    reason: format!(
                        "it is not on the file system of {}",
                        self.layers.root().display()
                    ),
                    fix: "keep vms and layers on one file system".to_owned(),
                })
            }
            Err(error) => Err(Error::io("freeze", disk)(error)),
        }
    }

    /// Freezes a disk that nobody writes to, by a copy that shares its blocks where the file system can; returns the bytes that had to be
    /// copied. The lease is taken first.
    pub fn freeze_by_copy(&self, disk: &Path, id: &FrozenId, owner: &str) -> Result<u64> {
        self.layers.lease_named(id.as_str(), owner)?;
        let path = self.frozen_path(id);
        let copied = disk::copy(disk, &path)?;
        self.seal_frozen(id)?;
        atomic::sync_directory(self.layers.root())?;
        Ok(copied)
    }

    /// Takes the right to write from a frozen disk's file; again is the same.
    pub fn seal_frozen(&self, id: &FrozenId) -> Result<()> {
        let path = self.frozen_path(id);
        fs::set_permissions(&path, Permissions::from_mode(0o444))
            .map_err(Error::io("set the mode of", path))
    }

    /// Puts another file, whose content a guest could not tell from the present one's, in the place of a frozen disk.
    pub fn replace_frozen(&self, id: &FrozenId, with: &Path) -> Result<()> {
        fs::set_permissions(with, Permissions::from_mode(0o444))
            .map_err(Error::io("set the mode of", with))?;
        let path = self.frozen_path(id);
        fs::rename(with, &path).map_err(Error::io("replace", &path))?;
        atomic::sync_directory(self.layers.root())
    }

    /// Notes that `owner` needs a frozen disk; again is the same. Fails with not found if it is gone.
    pub fn lease_frozen(&self, id: &FrozenId, owner: &str) -> Result<()> {
        self.layers.lease_named(id.as_str(), owner)?;
        let path = self.frozen_path(id);
        if path.is_file() {
            return Ok(());
        }
        self.release_frozen(id, owner)?;
        Err(Error::missing(&path, "lease the frozen disk"))
    }

    /// Notes that `owner` needs a frozen disk no more, and removes it if nobody does; again is the same.
    pub fn release_frozen(&self, id: &FrozenId, owner: &str) -> Result<()> {
        self.layers.release_named(id.as_str(), owner)?;
        self.layers.exclusively(|| {
            if self.layers.users_of(id.as_str())?.is_empty() {
                self.remove_frozen(id)?;
            }
            Ok(())
        })
    }

    fn remove_frozen(&self, id: &FrozenId) -> Result<()> {
        let path = self.frozen_path(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &path)(error));
            }
            _ => {}
        }
        // Empty, since it has no users.
        let _ = fs::remove_dir(self.layers.users_directory(id.as_str()));
        Ok(())
    }

    /// Lists who needs a frozen disk.
    pub fn frozen_users(&self, id: &FrozenId) -> Result<Vec<String>> {
        self.layers.users_of(id.as_str())
    }

    /// Lists every frozen disk, and every name for which there is only a lease.
    pub fn frozen(&self) -> Result<BTreeSet<FrozenId>> {
        let root = self.layers.root();
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(root).map_err(Error::io("list", root))? {
            let name = entry.map_err(Error::io("list", root))?.file_name();
            let name = name.to_string_lossy();
            if let Ok(id) = name.strip_suffix(".users").unwrap_or(&name).parse() {
                found.insert(id);
            }
        }
        Ok(found)
    }

    /// Gives back every frozen disk that `owner` has a lease on and that is not in `needed`; returns how many.
    pub fn release_all_frozen(&self, owner: &str, needed: &BTreeSet<FrozenId>) -> Result<usize> {
        let mut released = 0;
        for id in self.frozen()? {
            if !needed.contains(&id) && self.layers.is_leased(id.as_str(), owner)? {
                self.release_frozen(&id, owner)?;
                released += 1;
            }
        }
        Ok(released)
    }

    /// Finds frozen disks that nobody needs, and leases of owners that `is_known` does not know, and with [`crate::Run::Real`] removes
    /// them. Returns their names.
    pub fn sweep_frozen(
        &self,
        run: crate::Run,
        is_known: impl Fn(&str) -> bool,
    ) -> Result<Vec<FrozenId>> {
        let mut swept = Vec::new();
        for id in self.frozen()? {
            let users = self.frozen_users(&id)?;
            let (known, unknown): (Vec<String>, Vec<String>) =
                users.into_iter().partition(|user| is_known(user));
            if known.is_empty() || !unknown.is_empty() {
                swept.push(id.clone());
            }
            if run == crate::Run::Dry {
                continue;
            }
            for user in &unknown {
                self.layers.release_named(id.as_str(), user)?;
            }
            self.layers.exclusively(|| {
                if self.frozen_users(&id)?.is_empty() {
                    self.remove_frozen(&id)?;
                }
                Ok(())
            })?;
        }
        Ok(swept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: char) -> FrozenId {
        FrozenId::from_digits(&digit.to_string().repeat(32)).unwrap()
    }

    #[test]
    fn a_frozen_disk_stays_while_somebody_needs_it() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path().join("home")).unwrap();
        let top = home.path().join("home/top");
        fs::write(&top, b"content").unwrap();
        let one = id('1');
        store.freeze_by_name(&top, &one, "vm").unwrap();
        store.seal_frozen(&one).unwrap();
        store.lease_frozen(&one, "clone").unwrap();
        store.release_frozen(&one, "vm").unwrap();
        assert_eq!(fs::read(store.frozen_path(&one)).unwrap(), b"content");
        assert_eq!(store.frozen_users(&one).unwrap(), ["clone"]);
        store.release_frozen(&one, "clone").unwrap();
        assert!(!store.frozen_path(&one).exists());
        assert!(store.frozen().unwrap().is_empty());
        assert!(store.lease_frozen(&one, "late").is_err());
        assert!(store.frozen().unwrap().is_empty(), "no lease is left");
    }

    #[test]
    fn what_nobody_needs_is_swept_and_what_somebody_needs_is_not() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path().join("home")).unwrap();
        let top = home.path().join("home/top");
        fs::write(&top, b"content").unwrap();
        for (digit, owner) in [('1', "known"), ('2', "gone")] {
            store.freeze_by_copy(&top, &id(digit), owner).unwrap();
        }
        let known = |user: &str| user == "known";
        assert_eq!(
            store.sweep_frozen(crate::Run::Dry, known).unwrap(),
            [id('2')]
        );
        assert!(store.frozen_path(&id('2')).exists());
        assert_eq!(
            store.sweep_frozen(crate::Run::Real, known).unwrap(),
            [id('2')]
        );
        assert_eq!(store.frozen().unwrap(), BTreeSet::from([id('1')]));
        assert_eq!(
            store.release_all_frozen("known", &BTreeSet::new()).unwrap(),
            1
        );
        assert!(store.frozen().unwrap().is_empty());
    }

    #[test]
    fn a_name_is_never_a_path() {
        for bad in ["snap-../../x", "snap-", "x", "snap-ABCDEF"] {
            assert!(bad.parse::<FrozenId>().is_err(), "{bad}");
        }
    }
}
