//! Holds the licences of all dependencies against one list, and the lock file against one registry.
//!
//! A licence is an SPDX expression; it passes when the licences below suffice for it, so `GPL-3.0 OR MIT` does and
//! `GPL-3.0 AND MIT` does not. A crate that states none fails: a file in it is not read and judged here.

use std::fs;

use anyhow::{Context, Result, ensure};
use cargo_metadata::Metadata;
use serde::Deserialize;

use crate::process::say;
use crate::workspace;

/// Licences that everything in the product may have. Adding one is a decision: say why beside it.
const ALLOWED: &[&str] = &[
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "0BSD",
    "CC0-1.0",
    "Unlicense",
    "BSL-1.0",
    // Tables of the Unicode consortium, permissive.
    "Unicode-3.0",
    // Data of certificate roots: permissive for data.
    "CDLA-Permissive-2.0",
    // Weak copyleft per file; unchanged crates from the registry satisfy it.
    "MPL-2.0",
];

/// Exceptions that may be added to an allowed licence.
const ALLOWED_EXCEPTIONS: &[&str] = &["LLVM-exception"];

/// The only registry that the lock file may name.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Checks all dependencies of the workspace and the lock file.
pub(crate) fn run() -> Result<()> {
    let metadata = workspace::metadata()?;
    let refused = refused(&metadata);
    ensure!(
        refused.is_empty(),
        "licences that are not allowed:\n  {}",
        refused.join("\n  ")
    );
    let path = workspace::root().join("Cargo.lock");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let strangers = foreign_sources(&text)?;
    ensure!(
        strangers.is_empty(),
        "Cargo.lock has sources other than crates.io:\n  {}",
        strangers.join("\n  ")
    );
    say(&format!(
        "licences of {} crates are allowed",
        metadata.packages.len()
    ));
    Ok(())
}

fn refused(metadata: &Metadata) -> Vec<String> {
    let mut refused = Vec::new();
    for package in &metadata.packages {
        let verdict = match package.license.as_deref() {
            None => Err("it states no licence".to_owned()),
            Some(expression) => judge(expression),
        };
        if let Err(reason) = verdict {
            refused.push(format!("{} {}: {reason}", package.name, package.version));
        }
    }
    refused
}

fn judge(expression: &str) -> Result<(), String> {
    // Lax: old crates write `MIT/Apache-2.0`.
    let parsed = spdx::Expression::parse_mode(expression, spdx::ParseMode::LAX)
        .map_err(|error| format!("{expression:?} is no SPDX expression: {}", error.reason))?;
    let allowed = parsed.evaluate(|requirement| {
        let licence = requirement
            .license
            .id()
            .is_some_and(|id| ALLOWED.contains(&id.name));
        let exception = match &requirement.addition {
            None => true,
            Some(item) => item
                .id()
                .is_some_and(|id| ALLOWED_EXCEPTIONS.contains(&id.name)),
        };
        licence && exception
    });
    if allowed {
        Ok(())
    } else {
        Err(format!(
            "{expression} is not allowed by the list in xtask/src/licences.rs"
        ))
    }
}

#[derive(Deserialize)]
struct LockFile {
    #[serde(default)]
    package: Vec<LockedPackage>,
}

#[derive(Deserialize)]
struct LockedPackage {
    name: String,
    source: Option<String>,
}

fn foreign_sources(text: &str) -> Result<Vec<String>> {
    let lock: LockFile = toml::from_str(text).context("reading Cargo.lock")?;
    Ok(lock
        .package
        .into_iter()
        .filter_map(|package| Some((package.name, package.source?)))
        .filter(|(_, source)| source != REGISTRY)
        .map(|(name, source)| format!("{name}: {source}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_evaluated() {
        for good in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0-only OR MIT",
            "Apache-2.0 WITH LLVM-exception",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
        ] {
            assert_eq!(judge(good), Ok(()), "{good}");
        }
        for bad in [
            "GPL-3.0-only",
            "GPL-3.0-only AND MIT",
            "AGPL-3.0-or-later",
            "what is this",
            "MIT WITH GCC-exception-3.1",
        ] {
            assert!(judge(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn other_registries_are_seen() {
        let text = format!(
            "version = 4\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\n\
             [[package]]\nname = \"b\"\nversion = \"1.0.0\"\nsource = \"{REGISTRY}\"\n\
             [[package]]\nname = \"c\"\nversion = \"1.0.0\"\nsource = \"git+https://example.org/c\"\n"
        );
        assert_eq!(
            foreign_sources(&text).expect("a lock file"),
            ["c: git+https://example.org/c"]
        );
    }
}
