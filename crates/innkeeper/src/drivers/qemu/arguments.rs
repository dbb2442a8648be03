//! Builds QEMU's `-option driver,key=value` arguments; the only place where a value meets QEMU's option syntax.
//!
//! QEMU splits such an argument at commas and takes two commas for one (`docs/system/qemu-manpage`, "QemuOpts"). Every name and path
//! goes through [`Options::set`], which doubles them. It does not know which options exist.

use std::path::Path;

use innkeeper_api::ErrorKind;

use crate::error::{Error, Result};

/// One `head,key=value,...` argument under construction.
pub(super) struct Options {
    text: String,
}

impl Options {
    /// Starts with the part that has no key; it comes from this program, never from a user.
    pub(super) fn new(head: &str) -> Self {
        Options { text: escape(head) }
    }

    /// Adds `key=value`, the value escaped.
    pub(super) fn set(mut self, key: &str, value: impl AsRef<str>) -> Self {
        self.text.push(',');
        self.text.push_str(key);
        self.text.push('=');
        self.text.push_str(&escape(value.as_ref()));
        self
    }

    /// Returns the finished argument.
    pub(super) fn build(self) -> String {
        self.text
    }
}

/// Doubles the commas of a value.
pub(super) fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

/// Returns a path as text; QEMU's JSON options have no way to say other bytes.
///
/// Errors: `BadInput` if it is not UTF-8 or holds a NUL.
pub(super) fn path_text(path: &Path) -> Result<&str> {
    path.to_str()
        .filter(|text| !text.contains('\0'))
        .ok_or_else(|| {
            Error::new(
                ErrorKind::BadInput,
                format!(
                    "the path {} is not valid UTF-8, which QEMU needs: rename it",
                    path.display()
                ),
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Splits as QEMU's `get_opt_value` does: at single commas, two standing for one.
    fn split(text: &str) -> Vec<String> {
        let mut parts = vec![String::new()];
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            if character != ',' {
                parts.last_mut().unwrap().push(character);
            } else if characters.peek() == Some(&',') {
                characters.next();
                parts.last_mut().unwrap().push(',');
            } else {
                parts.push(String::new());
            }
        }
        parts
    }

    proptest! {
        #[test]
        fn any_value_comes_back_whole(first in ".*", second in "[,=a]*") {
            let text = Options::new("socket").set("path", &first).set("id", &second).build();
            prop_assert_eq!(split(&text), ["socket".to_owned(), format!("path={first}"), format!("id={second}")]);
        }
    }
}
