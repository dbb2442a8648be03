//! The licences of everything that is linked into `inn` and the agents, in one text, as those licences ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

use crate::workspace;

/// What is handed out, and so whatever it is built of.
const ROOTS: &[&str] = &["inn", "innkeeper-agent"];

/// Beginnings of the names of files that hold a licence or a notice.
const NAMES: &[&str] = &["LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE"];

/// Collects the licences for a target.
pub(super) fn collect(target: &str) -> Result<String> {
    let metadata = MetadataCommand::new()
        .manifest_path(workspace::root().join("Cargo.toml"))
        .other_options(vec![
            "--locked".to_owned(),
            "--filter-platform".to_owned(),
            target.to_owned(),
        ])
        .exec()
        .context("reading cargo metadata")?;
    let linked = linked(&metadata);
    let mut text = String::from("What Innkeeper is built of, and under which licences.\n\n");
    // Most licences are word for word the same in many crates.
    let mut files: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in &metadata.packages {
        if !linked.contains(&package.id) || package.source.is_none() {
            continue;
        }
        let name = format!("{} {}", package.name, package.version);
        let licence = package.license.as_deref().unwrap_or("see below");
        writeln!(text, "{name}: {licence}")?;
        if let Some(directory) = package.manifest_path.as_std_path().parent() {
            for file in licence_files(directory)? {
                files.entry(file).or_default().push(name.clone());
            }
        }
    }
    for (file, names) in files {
        let line = "-".repeat(80);
        write!(text, "\n{line}\n{}\n{line}\n\n{file}", names.join(", "))?;
    }
    Ok(text)
}

/// Returns what the roots need to run, directly or not: nothing that only builds or tests.
fn linked(metadata: &Metadata) -> BTreeSet<PackageId> {
    let Some(resolve) = &metadata.resolve else {
        return BTreeSet::new();
    };
    let roots = metadata
        .packages
        .iter()
        .filter(|package| ROOTS.contains(&package.name.as_str()));
    let mut open: Vec<&PackageId> = roots.map(|package| &package.id).collect();
    let mut linked = BTreeSet::new();
    while let Some(id) = open.pop() {
        if !linked.insert(id.clone()) {
            continue;
        }
        let node = resolve.nodes.iter().find(|node| node.id == *id);
        for dependency in node.into_iter().flat_map(|node| &node.deps) {
            let normal = |kind: &cargo_metadata::DepKindInfo| kind.kind == DependencyKind::Normal;
            if dependency.dep_kinds.iter().any(normal) {
                open.push(&dependency.pkg);
            }
        }
    }
    linked
}

fn licence_files(directory: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    for entry in
        fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?
    {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = name.to_uppercase();
        if path.is_file() && NAMES.iter().any(|start| name.starts_with(start)) {
            paths.push(path);
        }
    }
    paths.sort();
    let mut texts = Vec::new();
    for path in paths {
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        texts.push(String::from_utf8_lossy(&bytes).into_owned());
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_linked_is_named_and_what_only_tests_is_not() {
        let text = collect("x86_64-unknown-linux-gnu").unwrap();
        assert!(text.contains("\nserde "), "{}", &text[..500]);
        assert!(!text.contains("\ninsta "));
        assert!(!text.contains("\nobjc2-virtualization "));
        assert!(text.contains("Permission is hereby granted"));
        let mac = collect("aarch64-apple-darwin").unwrap();
        assert!(mac.contains("\nobjc2-virtualization "));
    }
}
