//! How a person names an image: `debian:12`, `tiny`, a path, a URL with its digest, or `oci:` and an image of a registry.
//!
//! Parsing is pure: whether the named image exists is the store's and the catalogue's affair. A URL without a digest is
//! refused, since what it serves may change under us.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::oci::OciName;
use crate::{Error, Result};

/// A processor architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Arch {
    /// 64-bit x86, also called amd64.
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit ARM, also called aarch64.
    #[serde(rename = "arm64")]
    Arm64,
    /// 64-bit RISC-V.
    #[serde(rename = "riscv64")]
    Riscv64,
}

impl Arch {
    /// All architectures, in the order of their names in lists.
    pub const ALL: [Arch; 3] = [Arch::X86_64, Arch::Arm64, Arch::Riscv64];

    /// The architecture this program was built for, where it is one of ours.
    pub fn host() -> Option<Arch> {
        std::env::consts::ARCH.parse().ok()
    }

    /// The name in Debian's archive (`amd64`, `arm64`, `riscv64`).
    pub fn debian_name(self) -> &'static str {
        match self {
            Arch::X86_64 => "amd64",
            Arch::Arm64 => "arm64",
            Arch::Riscv64 => "riscv64",
        }
    }

    /// The name used throughout: `x86_64`, `arm64` or `riscv64`.
    pub fn as_str(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Arm64 => "arm64",
            Arch::Riscv64 => "riscv64",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for Arch {
    type Err = Error;

    fn from_str(text: &str) -> Result<Arch> {
        match text.to_ascii_lowercase().as_str() {
            "x86_64" | "x86-64" | "amd64" => Ok(Arch::X86_64),
            "arm64" | "aarch64" => Ok(Arch::Arm64),
            "riscv64" => Ok(Arch::Riscv64),
            _ => Err(Error::invalid(
                "architecture",
                text,
                "must be x86_64 (amd64), arm64 (aarch64) or riscv64",
            )),
        }
    }
}

/// The name of an image.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// The built-in minimal guest: a cloud kernel, busybox and the agent.
    Tiny,
    /// A name and version of a catalogue or an imported image, such as `debian:12`; the version may be empty.
    Named {
        /// Lower-case name.
        name: String,
        /// Version after the colon, or empty.
        version: String,
    },
    /// A disk image on this computer.
    Path(PathBuf),
    /// A disk image on a server, pinned by digest.
    Url {
        /// `http`, `https` or `file` address without the fragment.
        url: String,
        /// SHA-256 of the file, 64 hexadecimal digits in lower case.
        sha256: String,
    },
    /// An image of a registry.
    Oci(OciName),
}

impl Reference {
    /// A file name for this reference and architecture, the same on every call and different for different references.
    pub fn file_stem(&self, arch: Arch) -> String {
        match self {
            Reference::Tiny => format!("tiny-{arch}"),
            Reference::Named { name, version } if version.is_empty() => format!("{name}-{arch}"),
            // A colon can't stand in a name or version, and '_' not in a name's start, so that this is unambiguous.
            Reference::Named { name, version } => format!("{name}={version}-{arch}"),
            Reference::Path(path) => {
                format!(
                    "path={}-{arch}",
                    &crate::digest::sha256_hex(path.as_os_str().as_encoded_bytes())[..24]
                )
            }
            Reference::Url { sha256, .. } => format!("url={}-{arch}", &sha256[..24]),
            Reference::Oci(name) => {
                let hex = crate::digest::sha256_hex(name.to_string().as_bytes());
                format!("oci={}-{arch}", &hex[..24])
            }
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Tiny => formatter.write_str("tiny"),
            Reference::Named { name, version } if version.is_empty() => formatter.write_str(name),
            Reference::Named { name, version } => write!(formatter, "{name}:{version}"),
            Reference::Path(path) => write!(formatter, "{}", path.display()),
            Reference::Url { url, sha256 } => write!(formatter, "{url}#sha256={sha256}"),
            Reference::Oci(name) => name.fmt(formatter),
        }
    }
}

/// Checks a name or version: lower-case letters, digits, `.`, `_`, `-`, beginning with a letter or digit, at most 64 bytes.
pub(crate) fn valid_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte)
        })
        && text.as_bytes()[0].is_ascii_alphanumeric()
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reference> {
        let invalid = |problem: &str| Err(Error::invalid("image", text, problem));
        if text.is_empty() || text.len() > 4096 || text.chars().any(char::is_control) {
            return invalid(
                "a name such as debian:12, a path or a URL is needed, without control characters",
            );
        }
        if crate::oci::SCHEMES
            .iter()
            .any(|scheme| text.starts_with(scheme))
        {
            return Ok(Reference::Oci(text.parse()?));
        }
        if ["http://", "https://", "file://"]
            .iter()
            .any(|scheme| text.starts_with(scheme))
        {
            let Some((url, fragment)) = text.split_once('#') else {
                return invalid("a URL needs its digest: append #sha256=HEX");
            };
            let Some(sha256) = fragment.strip_prefix("sha256=") else {
                return invalid("a URL needs its digest: append #sha256=HEX");
            };
            if !crate::digest::is_hex(sha256, 64) {
                return invalid("the digest after #sha256= must be 64 hexadecimal digits");
            }
            return Ok(Reference::Url {
                url: url.to_owned(),
                sha256: sha256.to_ascii_lowercase(),
            });
        }
        if text.contains("://") {
            return invalid("only http, https and file URLs are known");
        }
        if text.contains('/') || text.starts_with('.') {
            return Ok(Reference::Path(PathBuf::from(text)));
        }
        if text == "tiny" {
            return Ok(Reference::Tiny);
        }
        let (name, version) = text.split_once(':').unwrap_or((text, ""));
        if !valid_name(name) || !(version.is_empty() || valid_name(version)) || text.ends_with(':')
        {
            return invalid(
                "a name is lower-case letters, digits, '.', '_' and '-', with a version after one colon",
            );
        }
        Ok(Reference::Named {
            name: name.to_owned(),
            version: version.to_owned(),
        })
    }
}

impl From<&Path> for Reference {
    fn from(path: &Path) -> Reference {
        Reference::Path(path.to_owned())
    }
}

/// Finds the candidate that is nearest to `wrong`, if one is near enough to be meant.
pub fn nearest<'a>(wrong: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (wrong.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .map(|candidate| (edit_distance(wrong, candidate), candidate))
        .filter(|(distance, candidate)| {
            *distance <= limit || (wrong.len() >= 3 && candidate.split(':').next() == Some(wrong))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance, in characters; both sides are cut at 64 to bound the work.
fn edit_distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().take(64).collect();
    let right: Vec<char> = right.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_paths_and_urls_are_told_apart() {
        assert_eq!("tiny".parse::<Reference>().unwrap(), Reference::Tiny);
        assert!(
            matches!("debian:12".parse().unwrap(), Reference::Named { name, version } if name == "debian" && version == "12")
        );
        assert!(matches!("./disk.img".parse().unwrap(), Reference::Path(_)));
        assert!(matches!("a/b".parse().unwrap(), Reference::Path(_)));
        let digest = "A".repeat(64);
        let url: Reference = format!("https://example.org/a.img#sha256={digest}")
            .parse()
            .unwrap();
        assert_eq!(
            url.to_string(),
            format!("https://example.org/a.img#sha256={}", "a".repeat(64))
        );
    }

    #[test]
    fn refusals_say_what_would_be_right() {
        for (text, part) in [
            ("https://example.org/a.img", "append #sha256="),
            ("https://example.org/a.img#sha256=12", "64 hexadecimal"),
            ("ftp://example.org/x", "only http"),
            ("Debian", "lower-case"),
            ("debian:", "lower-case"),
            ("", "a name such as"),
        ] {
            let message = text.parse::<Reference>().unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn near_names_are_suggested() {
        let known = ["debian:12", "debian:13", "tiny"];
        assert_eq!(nearest("debain:12", known), Some("debian:12"));
        assert_eq!(nearest("tinny", known), Some("tiny"));
        assert_eq!(nearest("windows", known), None);
        assert_eq!(nearest("debian", known), Some("debian:12"));
    }

    #[test]
    fn architectures_have_aliases() {
        assert_eq!("aarch64".parse::<Arch>().unwrap(), Arch::Arm64);
        assert_eq!("amd64".parse::<Arch>().unwrap().to_string(), "x86_64");
        assert!("sparc".parse::<Arch>().is_err());
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_display_parses_back(text in ".{0,80}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference.clone());
                prop_assert!(!reference.file_stem(Arch::X86_64).contains('/'));
            }
        }
    }
}
