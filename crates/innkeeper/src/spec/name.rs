//! Names of VMs. A name is also a folder and the guest's host name, so the rules are those of host names (RFC 1123, section 2.1).

use std::fmt;
use std::str::FromStr;

const MAX_LENGTH: usize = 63;

/// The name of a VM: 1 to 63 of `a` to `z`, `0` to `9` and `-`, with no `-` at either end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmName(String);

/// Says why a text is no name of a VM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VmNameError {
    /// It is empty.
    #[error("a VM's name must not be empty")]
    Empty,
    /// It is too long.
    #[error("a VM's name has at most {MAX_LENGTH} characters, this one has {0}")]
    TooLong(usize),
    /// It is a path.
    #[error("{0:?} is no name of a VM: it has a `/`, and a name is not a path")]
    Slash(String),
    /// It has capitals.
    #[error("{0:?} is no name of a VM: write it in lower case, {1:?}")]
    UpperCase(String, String),
    /// It begins or ends with a hyphen.
    #[error("{0:?} is no name of a VM: it must begin and end with a letter or a digit")]
    Hyphen(String),
    /// It has another character.
    #[error("{0:?} is no name of a VM: it has {1:?}, and only a-z, 0-9 and `-` are allowed")]
    Character(String, char),
}

impl VmName {
    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Makes a name from an image reference, such as `debian` from `debian:12`, with a number (`debian-2`) if it is taken.
    ///
    /// A path or URL gives its last part without the file's endings; a reference with nothing usable gives `vm`.
    pub fn from_image(image: &str, taken: impl Fn(&str) -> bool) -> VmName {
        let base = base_of(image);
        if !taken(&base) {
            return VmName(base);
        }
        let mut number = 2u64;
        loop {
            let suffix = format!("-{number}");
            let kept = base[..base.len().min(MAX_LENGTH - suffix.len())].trim_end_matches('-');
            let name = format!("{kept}{suffix}");
            if !taken(&name) {
                return VmName(name);
            }
            number += 1;
        }
    }
}

fn base_of(image: &str) -> String {
    let without_query = image.split(['#', '?']).next().unwrap_or_default();
    let last = without_query
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or_default();
    let stem = last.split([':', '@']).next().unwrap_or_default();
    let stem = stem
        .split('.')
        .find(|part| !part.is_empty())
        .unwrap_or_default();
    let mut name = String::new();
    for character in stem.chars().map(|c| c.to_ascii_lowercase()) {
        let fits = character.is_ascii_lowercase() || character.is_ascii_digit();
        if fits {
            name.push(character);
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
        if name.len() == MAX_LENGTH {
            break;
        }
    }
    let name = name.trim_end_matches('-');
    if name.is_empty() {
        "vm".to_owned()
    } else {
        name.to_owned()
    }
}

impl FromStr for VmName {
    type Err = VmNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let shown = || text.chars().take(80).collect::<String>();
        let length = text.chars().count();
        if text.is_empty() {
            return Err(VmNameError::Empty);
        }
        if text.contains('/') {
            return Err(VmNameError::Slash(shown()));
        }
        if length > MAX_LENGTH {
            return Err(VmNameError::TooLong(length));
        }
        let allowed = |c: &char| {
            c.is_ascii_lowercase() || c.is_ascii_uppercase() || c.is_ascii_digit() || *c == '-'
        };
        if let Some(character) = text.chars().find(|c| !allowed(c)) {
            return Err(VmNameError::Character(shown(), character));
        }
        if text.starts_with('-') || text.ends_with('-') {
            return Err(VmNameError::Hyphen(shown()));
        }
        if text.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(VmNameError::UpperCase(shown(), text.to_ascii_lowercase()));
        }
        Ok(VmName(text.to_owned()))
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<str> for VmName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_no_host_name() {
        let error = |text: &str| text.parse::<VmName>().unwrap_err();
        assert_eq!(error(""), VmNameError::Empty);
        assert!(matches!(error("../x"), VmNameError::Slash(_)));
        assert!(matches!(error("Web"), VmNameError::UpperCase(_, lower) if lower == "web"));
        assert!(matches!(error("-a"), VmNameError::Hyphen(_)));
        assert!(matches!(error("a-"), VmNameError::Hyphen(_)));
        assert!(matches!(error("a.b"), VmNameError::Character(_, '.')));
        assert!(matches!(error("é"), VmNameError::Character(_, 'é')));
        assert_eq!(error(&"a".repeat(64)), VmNameError::TooLong(64));
        assert!("a".repeat(63).parse::<VmName>().is_ok());
    }

    #[test]
    fn makes_names_from_images() {
        let free = |image: &str| VmName::from_image(image, |_| false).to_string();
        assert_eq!(free("debian:12"), "debian");
        assert_eq!(free("/srv/images/My Disk.qcow2"), "my-disk");
        assert_eq!(
            free("https://example.org/a/noble-server.img#sha256=00"),
            "noble-server"
        );
        assert_eq!(free("oci:alpine"), "oci");
        assert_eq!(free(":::"), "vm");
        let taken = |name: &str| name == "debian" || name == "debian-2";
        assert_eq!(VmName::from_image("debian:12", taken).as_str(), "debian-3");
    }

    proptest::proptest! {
        #[test]
        fn every_name_made_is_a_name(image: String, many in 0usize..4) {
            let count = std::cell::Cell::new(0);
            let name = VmName::from_image(&image, |_| { count.set(count.get() + 1); count.get() <= many });
            proptest::prop_assert_eq!(name.as_str().parse::<VmName>(), Ok(name.clone()));
        }
    }
}
