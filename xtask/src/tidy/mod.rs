//! House rules that a machine can hold: who may import whom, what no file may contain, how files begin.
//!
//! ```text
//! tree (all files) ─► manifests (import laws between crates)
//!                  ─► sources   (laws of Rust files, on code without comments and strings)
//!                  ─► texts     (laws of every text file)
//! ```
//! It reads manifests itself instead of asking cargo, so that it also runs where there is none (the tests' user has
//! none). It does not look inside macros' expansions, nor at what a crate re-exports: reviewers do.

mod lexer;
mod manifests;
mod sources;
mod texts;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::process::say;
use crate::workspace;

/// Files that the repository must have.
const REQUIRED: &[&str] = &[
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    ".ci/run",
];

/// Directories that hold no source of ours.
const SKIPPED: &[&str] = &["target", "node_modules", ".git", "dist"];

/// Larger files are data, not text that somebody reads.
const LARGEST_TEXT: u64 = 1 << 20;

/// A rule that a place breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// File, and line if there is one.
    pub(crate) place: String,
    /// What the rule says.
    pub(crate) rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.rule)
    }
}

/// One text file of the repository.
#[derive(Debug, Clone)]
pub(crate) struct SourceFile {
    /// From the root, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
}

/// Checks the repository; an error lists everything that is broken.
pub(crate) fn run() -> Result<()> {
    let violations = check(workspace::root())?;
    if violations.is_empty() {
        say("house rules hold");
        return Ok(());
    }
    for violation in &violations {
        eprintln!("tidy: {violation}");
    }
    bail!("{} breaches of the house rules", violations.len());
}

fn check(root: &Path) -> Result<Vec<Violation>> {
    let files = read_tree(root)?;
    let mut violations = required(&files);
    violations.extend(manifests::check(&files));
    for file in &files {
        if file.path.ends_with(".rs") {
            violations.extend(sources::check(file));
        }
        violations.extend(texts::check(file));
    }
    Ok(violations)
}

fn required(files: &[SourceFile]) -> Vec<Violation> {
    REQUIRED
        .iter()
        .filter(|path| {
            !files
                .iter()
                .any(|file| file.path == **path && !file.text.trim().is_empty())
        })
        .map(|path| Violation {
            place: (*path).to_owned(),
            rule: "is missing or empty".to_owned(),
        })
        .collect()
}

fn read_tree(root: &Path) -> Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        let entries =
            fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))?;
        for entry in entries {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            let name = entry.file_name();
            if kind.is_dir() {
                if !SKIPPED.contains(&name.to_string_lossy().as_ref()) {
                    directories.push(path);
                }
            } else if name == ".git" {
                // In a second work tree it is a file, which names the first one's place.
            } else if kind.is_file() && entry.metadata()?.len() <= LARGEST_TEXT {
                let bytes =
                    fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
                if let Ok(text) = String::from_utf8(bytes) {
                    files.push(SourceFile {
                        path: relative(root, &path),
                        text,
                    });
                }
            }
        }
    }
    files.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(files)
}

fn relative(root: &Path, path: &Path) -> String {
    let rest: PathBuf = path.strip_prefix(root).unwrap_or(path).to_path_buf();
    rest.components()
        .map(|part| part.as_os_str().to_string_lossy())
        .collect::<Vec<_>>()
        .join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_tidy() {
        let violations = check(workspace::root()).expect("the tree");
        let text: Vec<String> = violations.iter().map(ToString::to_string).collect();
        assert!(violations.is_empty(), "{}", text.join("\n"));
    }

    #[test]
    fn the_tree_is_really_read() {
        let files = read_tree(workspace::root()).expect("the tree");
        for path in ["Cargo.toml", "xtask/src/tidy/mod.rs", ".ci/run"] {
            assert!(files.iter().any(|file| file.path == path), "{path}");
        }
        assert!(files.iter().all(|file| !file.path.starts_with("target/")));
    }

    #[test]
    fn missing_documents_are_told() {
        assert_eq!(required(&[]).len(), REQUIRED.len());
        let empty = SourceFile {
            path: "CHANGELOG.md".to_owned(),
            text: " \n".to_owned(),
        };
        assert!(
            required(&[empty])
                .iter()
                .any(|violation| violation.place == "CHANGELOG.md")
        );
    }
}
