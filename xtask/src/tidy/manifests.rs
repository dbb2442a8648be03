//! Import laws between crates, from their manifests.
//!
//! Dependencies for tests are free: a test may drive anything.

use toml::{Table, Value};

use super::{SourceFile, Violation};

/// Which crates of the house each crate may import. A crate that is not here is unknown to the design.
const LAWS: &[(&str, &[&str])] = &[
    ("innkeeper-api", &[]),
    ("innkeeper-image", &[]),
    ("innkeeper-net", &[]),
    ("innkeeper-agent", &[]),
    ("innkeeper-vz", &[]),
    (
        "innkeeper",
        &[
            "innkeeper-api",
            "innkeeper-image",
            "innkeeper-net",
            "innkeeper-agent",
            "innkeeper-vz",
        ],
    ),
    // Its hidden subcommand `netd` calls the network's own entry point.
    ("inn", &["innkeeper", "innkeeper-api", "innkeeper-net"]),
    ("inn-serve", &["innkeeper", "innkeeper-api"]),
    // Test doubles; nothing of the product imports it.
    (
        "innkeeper-testbed",
        &["inn", "innkeeper", "innkeeper-agent"],
    ),
    // What the fuzz targets do; nothing imports it but they, from a workspace of their own.
    (
        "innkeeper-fuzz",
        &[
            "innkeeper",
            "innkeeper-agent",
            "innkeeper-image",
            "innkeeper-net",
        ],
    ),
    ("xtask", &[]),
];

/// What the wire types may import: nothing that has logic.
const API_ONLY: &[&str] = &["serde", "serde_json", "schemars", "utoipa"];

/// Crates that are refused everywhere but in xtask, and why.
const REFUSED: &[(&str, &str)] = &[
    (
        "anyhow",
        "anyhow is for xtask only: errors of the product have types",
    ),
    ("eyre", "errors of the product have types"),
    ("openssl", "no OpenSSL: rustls with ring"),
    ("native-tls", "no OpenSSL: rustls with ring"),
    ("serde_yaml", "deprecated"),
    ("serde_yml", "deprecated"),
];

/// Checks every package's manifest.
pub(crate) fn check(files: &[SourceFile]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in files
        .iter()
        .filter(|file| file.path.ends_with("Cargo.toml"))
    {
        let broken = |rule: String| Violation {
            place: file.path.clone(),
            rule,
        };
        let Ok(table) = file.text.parse::<Table>() else {
            violations.push(broken("is no TOML".to_owned()));
            continue;
        };
        let name = table
            .get("package")
            .and_then(|package| package.get("name"))
            .and_then(Value::as_str);
        if let Some(name) = name
            && !file.path.starts_with("fuzz/")
        {
            violations.extend(check_package(name, &table).into_iter().map(broken));
        }
    }
    violations
}

fn check_package(name: &str, table: &Table) -> Vec<String> {
    let Some((_, allowed)) = LAWS.iter().find(|(law, _)| *law == name) else {
        return vec![format!(
            "crate {name} is not in the design; add it to the laws in xtask/src/tidy/manifests.rs"
        )];
    };
    let mut rules = Vec::new();
    let inherits = table
        .get("lints")
        .and_then(|lints| lints.get("workspace"))
        .and_then(Value::as_bool);
    if inherits != Some(true) {
        rules.push("must take the workspace's lints (`[lints] workspace = true`)".to_owned());
    }
    for dependency in dependencies(table) {
        let ours = LAWS.iter().any(|(law, _)| *law == dependency);
        if ours && !allowed.contains(&dependency.as_str()) {
            rules.push(format!("{name} must not import {dependency}"));
        }
        if name == "innkeeper-api" && !ours && !API_ONLY.contains(&dependency.as_str()) {
            rules.push(format!(
                "innkeeper-api has no logic, so it must not import {dependency}"
            ));
        }
        if name != "xtask"
            && let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == dependency)
        {
            rules.push(format!("{name} must not import {dependency}: {why}"));
        }
    }
    rules
}

/// Real names of all dependencies for building, of every platform.
fn dependencies(table: &Table) -> Vec<String> {
    let mut tables: Vec<&Table> = vec![table];
    if let Some(targets) = table.get("target").and_then(Value::as_table) {
        tables.extend(targets.values().filter_map(Value::as_table));
    }
    let mut names = Vec::new();
    for table in tables {
        for kind in ["dependencies", "build-dependencies"] {
            let Some(entries) = table.get(kind).and_then(Value::as_table) else {
                continue;
            };
            for (alias, value) in entries {
                let renamed = value.get("package").and_then(Value::as_str);
                names.push(renamed.unwrap_or(alias).to_owned());
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(name: &str, rest: &str) -> Vec<String> {
        let text = format!("[package]\nname = \"{name}\"\n[lints]\nworkspace = true\n{rest}");
        let file = SourceFile {
            path: format!("crates/{name}/Cargo.toml"),
            text,
        };
        check(&[file])
            .into_iter()
            .map(|violation| violation.rule)
            .collect()
    }

    #[test]
    fn good_manifests_pass() {
        assert!(rules("inn", "[dependencies]\ninnkeeper.workspace = true\n").is_empty());
        assert!(
            rules(
                "innkeeper-net",
                "[dev-dependencies]\nanyhow = \"1\"\ninnkeeper = \"1\"\n"
            )
            .is_empty()
        );
    }

    #[test]
    fn each_law_can_fail() {
        for (name, rest) in [
            ("inn", "[dependencies]\ninnkeeper-image = \"1\"\n"),
            ("innkeeper-net", "[dependencies]\ninnkeeper = \"1\"\n"),
            (
                "innkeeper-net",
                "[dependencies]\nhidden = { package = \"innkeeper\", version = \"1\" }\n",
            ),
            (
                "innkeeper-image",
                "[target.'cfg(unix)'.dependencies]\ninnkeeper-net = \"1\"\n",
            ),
            ("innkeeper", "[dependencies]\nanyhow = \"1\"\n"),
            ("innkeeper-api", "[dependencies]\ntokio = \"1\"\n"),
            ("innkeeper-common", ""),
        ] {
            assert_eq!(rules(name, rest).len(), 1, "{name}: {rest}");
        }
        let bare = SourceFile {
            path: "crates/inn/Cargo.toml".to_owned(),
            text: "[package]\nname = \"inn\"".to_owned(),
        };
        assert_eq!(check(&[bare]).len(), 1);
        let broken = SourceFile {
            path: "crates/inn/Cargo.toml".to_owned(),
            text: "[".to_owned(),
        };
        assert_eq!(check(&[broken]).len(), 1);
    }
}
