//! Laws of every text file: no places of one machine, no hosts of mirrors.

use std::sync::LazyLock;

use regex::Regex;

use super::{SourceFile, Violation};

/// Where packages come from is the host's configuration, never ours.
static MIRROR: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"https?://(deb|security|static|index|files|registry)\.[a-z]+\.(org|io|com)")
        .expect("a pattern")
});

/// Directories of the machine where this was written.
static MACHINE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"/work/(shared|main|wt-|\.)|/tmp/bash_jobs").expect("a pattern"));

/// Checks one file.
pub(crate) fn check(file: &SourceFile) -> Vec<Violation> {
    // Lock files are written by tools, and this file must spell what it forbids.
    if file.path.ends_with(".lock")
        || file.path.ends_with("lock.json")
        || file.path == "xtask/src/tidy/texts.rs"
    {
        return Vec::new();
    }
    let mut violations = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        let mut broken = |rule: &str| {
            violations.push(Violation {
                place: format!("{}:{}", file.path, index + 1),
                rule: rule.to_owned(),
            });
        };
        if MIRROR.is_match(line) {
            broken("names a package mirror or registry; read it from the host's configuration");
        }
        if MACHINE.is_match(line) {
            broken("names a directory of one machine");
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        check(&SourceFile {
            path: path.to_owned(),
            text: text.to_owned(),
        })
        .len()
    }

    #[test]
    fn each_law_can_fail() {
        assert_eq!(
            count("a.md", concat!("see http://de", "b.debian.org/debian")),
            1
        );
        assert_eq!(
            count("a.rs", concat!("\n// https://stat", "ic.crates.io/x")),
            1
        );
        assert_eq!(count("a.sh", "cp /work/shared/x ."), 1);
    }

    #[test]
    fn good_text_passes() {
        assert_eq!(
            count("a.md", "https://cloud.debian.org/images, /work/of/art"),
            0
        );
        assert_eq!(
            count("Cargo.lock", concat!("https://ind", "ex.crates.io")),
            0
        );
    }
}
