//! Catalogues: names of images to vendors' files with checksums.
//!
//! A catalogue is a JSON document. `url` is a disk image; its digest is either pinned (`sha256` or `sha512`) or looked up in
//! the vendor's list of checksums (`checksums`, in the format of sha256sum or sha512sum, also the BSD style) at the time of the
//! pull. `tried` says whether somebody booted it with this program.
//!
//! ```json
//! {"version": 1, "images": [{
//!   "name": "debian", "version": "12", "aliases": ["bookworm"], "arch": "x86_64",
//!   "url": "https://vendor.example/debian-12.qcow2", "format": "qcow2",
//!   "checksums": "https://vendor.example/SHA512SUMS",
//!   "default_user": "debian", "cloud_init": true, "tried": false }]}
//! ```
//! This module does not download; it only reads what is given.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::disk::DiskFormat;
use crate::reference::{Arch, valid_name};
use crate::{Error, Result, digest};

/// Largest catalogue in bytes.
const SIZE_LIMIT: usize = 16 << 20;

/// One image of a catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The name before the colon.
    pub name: String,
    /// The version after it; the first entry of a name is what the bare name means.
    pub version: String,
    /// Other versions by which it is known, such as a codename.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// The guest's architecture.
    pub arch: Arch,
    /// Where the disk image is.
    pub url: String,
    /// The disk image's format.
    pub format: DiskFormat,
    /// Address of the vendor's list of checksums.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksums: Option<String>,
    /// Pinned digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Pinned digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha512: Option<String>,
    /// The vendor's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_user: Option<String>,
    /// Whether cloud-init is in it.
    #[serde(default)]
    pub cloud_init: bool,
    /// Whether somebody booted it with this program.
    #[serde(default)]
    pub tried: bool,
}

impl Entry {
    fn is(&self, name: &str, version: &str) -> bool {
        self.name == name
            && (version.is_empty()
                || self.version == version
                || self.aliases.iter().any(|alias| alias == version))
    }
}

#[derive(Deserialize)]
struct Document {
    version: u32,
    images: Vec<Entry>,
}

/// A list of images, first match wins.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    entries: Vec<Entry>,
}

impl Catalogue {
    /// The catalogue that comes with this program.
    pub fn built_in() -> Catalogue {
        // The document is part of the program and parsed by a test; an empty catalogue can't happen.
        Catalogue::parse("the built-in catalogue", include_bytes!("catalogue.json"))
            .unwrap_or_default()
    }

    /// Reads a catalogue; `place` is for messages.
    pub fn parse(place: &str, text: &[u8]) -> Result<Catalogue> {
        let malformed = |problem: String| Error::malformed(format!("catalogue {place}"), problem);
        if text.len() > SIZE_LIMIT {
            return Err(malformed("is over 16 MiB".into()));
        }
        let document: Document =
            serde_json::from_slice(text).map_err(|source| malformed(source.to_string()))?;
        if document.version != 1 {
            return Err(malformed(format!(
                "has version {}; this program knows 1",
                document.version
            )));
        }
        for entry in &document.images {
            let name = format!("{}:{}", entry.name, entry.version);
            if ![&entry.name, &entry.version]
                .into_iter()
                .chain(&entry.aliases)
                .all(|part| valid_name(part))
                || entry.name == "tiny"
            {
                return Err(malformed(format!(
                    "has the name {name:?}; names are lower-case letters, digits, '.', '_' and '-', and not tiny"
                )));
            }
            if ![Some(&entry.url), entry.checksums.as_ref()]
                .into_iter()
                .flatten()
                .all(|url| {
                    ["https://", "http://", "file://"]
                        .iter()
                        .any(|scheme| url.starts_with(scheme))
                })
            {
                return Err(malformed(format!(
                    "{name}: an address must begin with https://, http:// or file://"
                )));
            }
            let pinned = entry
                .sha256
                .as_ref()
                .is_some_and(|hex| digest::is_hex(hex, 64))
                || entry
                    .sha512
                    .as_ref()
                    .is_some_and(|hex| digest::is_hex(hex, 128));
            // A list of checksums over plain http could be exchanged together with the image.
            let listed = entry
                .checksums
                .as_ref()
                .is_some_and(|url| !url.starts_with("http://"));
            if !pinned && !listed {
                return Err(malformed(format!(
                    "{name}: needs sha256, sha512, or checksums by https"
                )));
            }
        }
        Ok(Catalogue {
            entries: document.images,
        })
    }

    /// Appends another catalogue, whose entries come after these.
    pub fn extend(&mut self, other: Catalogue) {
        self.entries.extend(other.entries);
    }

    /// All entries.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Finds an image; an empty version means the first of that name.
    pub fn find(&self, name: &str, version: &str, arch: Arch) -> Option<&Entry> {
        self.entries
            .iter()
            .find(|entry| entry.is(name, version) && entry.arch == arch)
    }

    pub(crate) fn architectures(&self, name: &str, version: &str) -> BTreeSet<Arch> {
        self.entries
            .iter()
            .filter(|entry| entry.is(name, version))
            .map(|entry| entry.arch)
            .collect()
    }

    /// All names as a user writes them.
    pub fn references(&self) -> BTreeSet<String> {
        self.entries
            .iter()
            .map(|entry| format!("{}:{}", entry.name, entry.version))
            .collect()
    }
}

/// Finds a file's digest in a list of checksums; none if the file is not in it or the digest is malformed.
pub fn find_checksum(list: &str, file_name: &str) -> Option<String> {
    list.lines().take(100_000).find_map(|line| {
        let line = line.trim();
        // BSD style: `SHA256 (name) = hex`; GNU style: `hex  name` or `hex *name`.
        let (name, hex) = match line
            .split_once(" (")
            .and_then(|(_, rest)| rest.split_once(") = "))
        {
            Some(found) => found,
            None => {
                let (hex, name) = line.split_once([' ', '\t'])?;
                (
                    name.trim_start()
                        .trim_start_matches('*')
                        .trim_start_matches("./"),
                    hex,
                )
            }
        };
        (name == file_name && (digest::is_hex(hex, 64) || digest::is_hex(hex, 128)))
            .then(|| hex.to_ascii_lowercase())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_built_in_catalogue_is_valid_and_has_debian() {
        let catalogue = Catalogue::parse("built-in", include_bytes!("catalogue.json")).unwrap();
        assert_eq!(
            catalogue.entries().len(),
            Catalogue::built_in().entries().len()
        );
        for arch in [Arch::X86_64, Arch::Arm64] {
            for version in ["12", "13", "bookworm", "trixie", ""] {
                assert!(
                    catalogue.find("debian", version, arch).is_some(),
                    "debian:{version} {arch}"
                );
            }
        }
    }

    #[test]
    fn both_styles_of_checksum_lists() {
        let hex = "ab".repeat(32);
        assert_eq!(
            find_checksum(&format!("# c\n{hex}  a.img\n"), "a.img"),
            Some(hex.clone())
        );
        assert_eq!(
            find_checksum(&format!("{hex} *a.img"), "a.img"),
            Some(hex.clone())
        );
        assert_eq!(
            find_checksum(&format!("SHA256 (a.img) = {hex}"), "a.img"),
            Some(hex.clone())
        );
        assert_eq!(find_checksum(&format!("{hex}  xa.img"), "a.img"), None);
        assert_eq!(find_checksum("12  a.img", "a.img"), None);
    }

    #[test]
    fn an_entry_without_a_trustworthy_digest_is_refused() {
        let text = r#"{"version":1,"images":[{"name":"x","version":"1","arch":"x86_64","url":"https://a.example/x.raw","format":"raw"}]}"#;
        assert!(
            Catalogue::parse("here", text.as_bytes())
                .unwrap_err()
                .to_string()
                .contains("needs sha256")
        );
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "(?s).{0,200}") {
            let _ = Catalogue::parse("x", text.as_bytes());
            find_checksum(&text, "a");
        }
    }
}
