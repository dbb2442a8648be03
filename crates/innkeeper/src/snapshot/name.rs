//! The names of snapshots.

use std::fmt;
use std::str::FromStr;

use innkeeper_api::ErrorKind;

use crate::error::Error;

/// Longest name, in bytes.
const LONGEST: usize = 64;

/// The name of a snapshot: 1 to 64 letters, digits, `.`, `_` and `-`, of which the first is a letter or a digit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotName(String);

impl fmt::Display for SnapshotName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for SnapshotName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let begins_well = text.starts_with(|first: char| first.is_ascii_alphanumeric());
        let rest = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if begins_well && text.len() <= LONGEST && text.bytes().all(rest) {
            return Ok(SnapshotName(text.to_owned()));
        }
        Err(Error::new(
            ErrorKind::BadInput,
            format!("{text:?} is no name for a snapshot"),
        )
        .with_hint(
            "use 1 to 64 letters, digits, `.`, `_` and `-`, beginning with a letter or a digit",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["s1", "before-upgrade", "2026-11-21", "a.b_c"] {
            assert!(good.parse::<SnapshotName>().is_ok(), "{good}");
        }
        for bad in ["", "-x", ".x", "a b", "a/b", "ä", &"x".repeat(65)] {
            assert!(bad.parse::<SnapshotName>().is_err(), "{bad}");
        }
    }
}
