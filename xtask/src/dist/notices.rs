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
    use serde_json::{Value, json};

    use super::*;

    fn package(name: &str) -> Value {
        json!({
            "name": name, "version": "1.0.0", "id": name, "dependencies": [], "targets": [], "features": {},
            "manifest_path": format!("/{name}/Cargo.toml"),
        })
    }

    fn node(name: &str, needs: &[(&str, Option<&str>)]) -> Value {
        let deps: Vec<Value> = needs
            .iter()
            .map(|(pkg, kind)| json!({"name": pkg, "pkg": pkg, "dep_kinds": [{"kind": kind, "target": null}]}))
            .collect();
        json!({"id": name, "deps": deps, "dependencies": [], "features": []})
    }

    #[test]
    fn what_is_linked_is_named_and_what_only_builds_or_tests_is_not() {
        let names = ["inn", "serde", "itoa", "insta", "cc", "other"];
        let metadata = json!({
            "packages": names.map(package), "workspace_members": ["inn"], "target_directory": "/t",
            "workspace_root": "/", "version": 1,
            "resolve": {"root": null, "nodes": [
                node("inn", &[("serde", None), ("insta", Some("dev")), ("cc", Some("build"))]),
                node("serde", &[("itoa", None)]), node("itoa", &[]), node("insta", &[("other", None)]),
                node("cc", &[]), node("other", &[]),
            ]},
        });
        let metadata = MetadataCommand::parse(metadata.to_string()).unwrap();
        let linked: Vec<String> = linked(&metadata).into_iter().map(|id| id.repr).collect();
        assert_eq!(linked, ["inn", "itoa", "serde"]);
    }

    #[test]
    fn licences_are_found_by_their_files_names() {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("LICENSE-MIT", "mit"),
            ("license.txt", "other"),
            ("README", "no"),
        ] {
            fs::write(directory.path().join(name), text).unwrap();
        }
        assert_eq!(licence_files(directory.path()).unwrap(), ["mit", "other"]);
    }
}
