//! Layers: immutable files named by the SHA-256 of their content, and the leases that keep them. A root disk made from a registry's
//! layers is named by a SHA-256 over theirs, which determine it (oci/mod.rs).
//!
//! ```text
//!   layers/ID                 the content, mode 0444, never changed in place
//!   layers/ID.users/OWNER     one empty file per user: the count is the number of names
//!   layers/.lock              shared while leasing, exclusive while removing
//! ```
//! A lease is one atomic file creation, so a crash leaves it held or not held, never a wrong count; the owner is the name
//! of the VM (or whatever needs the layer), percent-encoded, and its absence elsewhere is for the engine to find. This module does not
//! know what an owner is.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::atomic::{self, Sharing};
use crate::{Error, Result, digest};

/// The name of a layer: the SHA-256 of its content in 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LayerId(String);

impl LayerId {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for LayerId {
    type Err = Error;

    fn from_str(text: &str) -> Result<LayerId> {
        // Checked here so that no layer's name can ever be a path.
        if digest::is_hex(text, 64) && !text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Ok(LayerId(text.to_owned()))
        } else {
            Err(Error::invalid(
                "layer",
                text,
                "must be 64 lower-case hexadecimal digits",
            ))
        }
    }
}

impl TryFrom<String> for LayerId {
    type Error = Error;

    fn try_from(text: String) -> Result<LayerId> {
        text.parse()
    }
}

impl From<LayerId> for String {
    fn from(id: LayerId) -> String {
        id.0
    }
}

/// The directory of layers.
#[derive(Clone, Debug)]
pub(crate) struct Layers {
    root: PathBuf,
}

impl Layers {
    pub(crate) fn open(root: PathBuf) -> Result<Layers> {
        atomic::create_directory(&root)?;
        Ok(Layers { root })
    }

    pub(crate) fn path(&self, id: &LayerId) -> PathBuf {
        self.root.join(&id.0)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where something of this name lies; the caller made sure that it is no path.
    pub(crate) fn named(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn users_directory(&self, name: &str) -> PathBuf {
        self.root.join(format!("{name}.users"))
    }

    fn lock(&self, sharing: Sharing) -> Result<atomic::Lock> {
        atomic::lock_briefly(&self.root.join(".lock"), sharing)
    }

    /// Takes a finished file on the same file system as a layer; its digest was computed while it was written.
    pub(crate) fn adopt(&self, file: &Path, digest_hex: &str) -> Result<LayerId> {
        let id: LayerId = digest_hex.parse()?;
        let opened = File::open(file).map_err(Error::io("open", file))?;
        opened.sync_all().map_err(Error::io("flush", file))?;
        fs::set_permissions(file, Permissions::from_mode(0o444))
            .map_err(Error::io("set the mode of", file))?;
        let _shared = self.lock(Sharing::Shared)?;
        let path = self.path(&id);
        if path.exists() {
            // The same content; touched so that gc takes it for new.
            File::open(&path)
                .and_then(|layer| layer.set_modified(SystemTime::now()))
                .map_err(Error::io("touch", &path))?;
            fs::remove_file(file).map_err(Error::io("remove", file))?;
        } else {
            fs::rename(file, &path).map_err(Error::io("rename to", &path))?;
            atomic::sync_directory(&self.root)?;
        }
        Ok(id)
    }

    pub(crate) fn lease(&self, id: &LayerId, owner: &str) -> Result<()> {
        let _shared = self.lock(Sharing::Shared)?;
        let path = self.path(id);
        if !path.is_file() {
            return Err(Error::missing(&path, "lease the layer"));
        }
        self.write_lease(id.as_str(), owner)
    }

    /// Leases what may not be there yet.
    pub(crate) fn lease_named(&self, name: &str, owner: &str) -> Result<()> {
        let _shared = self.lock(Sharing::Shared)?;
        self.write_lease(name, owner)
    }

    fn write_lease(&self, name: &str, owner: &str) -> Result<()> {
        let users = self.users_directory(name);
        let name = encode_owner(owner)?;
        atomic::create_directory(&users)?;
        let lease = users.join(name);
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lease)
            .map_err(Error::io("create", &lease))?;
        Ok(())
    }

    pub(crate) fn release(&self, id: &LayerId, owner: &str) -> Result<()> {
        self.release_named(id.as_str(), owner)
    }

    pub(crate) fn release_named(&self, name: &str, owner: &str) -> Result<()> {
        let lease = self.users_directory(name).join(encode_owner(owner)?);
        match fs::remove_file(&lease) {
            Err(failure) if failure.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", lease)(failure))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn users(&self, id: &LayerId) -> Result<Vec<String>> {
        self.users_of(id.as_str())
    }

    pub(crate) fn is_leased(&self, name: &str, owner: &str) -> Result<bool> {
        Ok(self
            .users_directory(name)
            .join(encode_owner(owner)?)
            .exists())
    }

    pub(crate) fn users_of(&self, name: &str) -> Result<Vec<String>> {
        let directory = self.users_directory(name);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(failure) if failure.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(failure) => return Err(Error::io("list", directory)(failure)),
        };
        let mut users = BTreeSet::new();
        for entry in entries {
            let entry = entry.map_err(Error::io("list", &directory))?;
            users.insert(decode_owner(&entry.file_name().to_string_lossy()));
        }
        Ok(users.into_iter().collect())
    }

    /// All layers with their size in bytes on disk.
    pub(crate) fn list(&self) -> Result<Vec<(LayerId, u64)>> {
        use std::os::unix::fs::MetadataExt;
        let mut layers = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(Error::io("list", &self.root))? {
            let entry = entry.map_err(Error::io("list", &self.root))?;
            if let Ok(id) = entry.file_name().to_string_lossy().parse::<LayerId>() {
                let metadata = entry
                    .metadata()
                    .map_err(Error::io("look at", entry.path()))?;
                layers.push((id, metadata.blocks() * 512));
            }
        }
        layers.sort();
        Ok(layers)
    }

    /// Runs `removal` while nobody can lease.
    pub(crate) fn exclusively<T>(&self, removal: impl FnOnce() -> Result<T>) -> Result<T> {
        let _exclusive = self.lock(Sharing::Exclusive)?;
        removal()
    }

    /// Removes a layer; only within [`Layers::exclusively`], after its users were looked at.
    pub(crate) fn remove(&self, id: &LayerId) -> Result<()> {
        let path = self.path(id);
        fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        // Empty, or it was not there: a lease would have kept the layer.
        let _ = fs::remove_dir(self.users_directory(id.as_str()));
        Ok(())
    }

    /// Whether a layer is older than `age`; what was just made may be about to be named by an image.
    pub(crate) fn older_than(&self, id: &LayerId, age: Duration) -> bool {
        let modified = fs::metadata(self.path(id)).and_then(|metadata| metadata.modified());
        modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|elapsed| elapsed >= age))
    }
}

/// Percent-encodes what is not a letter, digit, `-`, `_` or `.`, and a leading dot.
fn encode_owner(owner: &str) -> Result<String> {
    let mut name = String::new();
    for (at, byte) in owner.bytes().enumerate() {
        if byte.is_ascii_alphanumeric() || b"-_".contains(&byte) || (byte == b'.' && at > 0) {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02X}"));
        }
    }
    if name.is_empty() || name.len() > 255 {
        return Err(Error::invalid(
            "layer's user",
            owner,
            "must have 1 to 255 bytes when encoded",
        ));
    }
    Ok(name)
}

fn decode_owner(name: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = name.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = (first == b'%')
            .then(|| after.get(..2))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn leases_count_names_and_survive_repetition() {
        let root = tempfile::tempdir().unwrap();
        let layers = Layers::open(root.path().join("layers")).unwrap();
        let file = root.path().join("file");
        fs::write(&file, b"abc").unwrap();
        let id = layers.adopt(&file, &digest::sha256_hex(b"abc")).unwrap();
        layers.lease(&id, "vm/one").unwrap();
        layers.lease(&id, "vm/one").unwrap();
        layers.lease(&id, "two").unwrap();
        assert_eq!(layers.users(&id).unwrap(), ["two", "vm/one"]);
        layers.release(&id, "vm/one").unwrap();
        layers.release(&id, "vm/one").unwrap();
        assert_eq!(layers.users(&id).unwrap(), ["two"]);
        assert_eq!(
            fs::metadata(layers.path(&id)).unwrap().permissions().mode() & 0o777,
            0o444
        );
        let absent: LayerId = digest::sha256_hex(b"other").parse().unwrap();
        assert!(layers.lease(&absent, "x").is_err());
    }

    #[test]
    fn a_layer_name_is_never_a_path() {
        assert!("../../etc/passwd".parse::<LayerId>().is_err());
        assert!(serde_json::from_str::<LayerId>("\"../x\"").is_err());
    }

    proptest! {
        #[test]
        fn owners_round_trip_and_stay_in_the_directory(owner in ".{1,60}") {
            if let Ok(name) = encode_owner(&owner) {
                prop_assert!(!name.contains('/') && !name.starts_with('.'));
                prop_assert_eq!(decode_owner(&name), owner);
            }
        }
    }
}
