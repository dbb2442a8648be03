//! What is to be run: the test executables that cargo built and the environment they get, as a JSON file, so that
//! another user's process can run it without cargo.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use cargo_metadata::{Message, TargetKind};
use serde::{Deserialize, Serialize};

use crate::process::{self, cargo, say};
use crate::workspace;

/// One test executable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TestExecutable {
    /// `package::target`.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// The package's directory: tests start there, as under cargo.
    pub(crate) directory: PathBuf,
    /// Whether its tests must have the machine for themselves: integration tests named `alone_*`.
    pub(crate) alone: bool,
}

/// A whole run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) executables: Vec<TestExecutable>,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) filter: Option<String>,
    pub(crate) jobs: usize,
    /// A directory for the outputs of tests.
    pub(crate) scratch: PathBuf,
    /// Whether cargo's own part, the doctests, went wrong: it counts in the sum.
    pub(crate) doctests_failed: bool,
}

impl Plan {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("understanding {}", path.display()))
    }

    /// Directories that whoever runs the plan must be able to enter.
    pub(crate) fn needed_paths(&self, this: &Path, libexec: &Path) -> Vec<PathBuf> {
        let parents = self
            .executables
            .iter()
            .map(|executable| executable.path.as_path())
            .chain([this]);
        let mut paths: Vec<PathBuf> = parents
            .filter_map(Path::parent)
            .map(Path::to_path_buf)
            .collect();
        paths.push(workspace::root().to_path_buf());
        paths.push(libexec.to_path_buf());
        paths.sort();
        paths.dedup();
        paths
    }
}

/// Adds `--package` for each, or `--workspace`.
pub(crate) fn select(command: &mut Command, packages: &[String]) {
    if packages.is_empty() {
        command.arg("--workspace");
    }
    for package in packages {
        command.args(["--package", package]);
    }
}

/// Builds all tests (and the binaries they use) and lists their executables.
pub(crate) fn build(packages: &[String]) -> Result<Vec<TestExecutable>> {
    say("building the tests");
    // `--tests` is everything that has tests; cargo adds the plain binaries that integration tests start.
    let mut command = cargo([
        "test",
        "--locked",
        "--no-run",
        "--tests",
        "--message-format",
        "json-render-diagnostics",
    ]);
    select(&mut command, packages);
    list(&process::stdout(&mut command)?)
}

fn list(messages: &[u8]) -> Result<Vec<TestExecutable>> {
    let mut executables = Vec::new();
    for message in Message::parse_stream(messages) {
        let Message::CompilerArtifact(artifact) = message.context("reading cargo's messages")?
        else {
            continue;
        };
        let Some(path) = artifact.executable.filter(|_| artifact.profile.test) else {
            continue;
        };
        let manifest = artifact.manifest_path.into_std_path_buf();
        let directory = manifest
            .parent()
            .context("a manifest without a directory")?
            .to_path_buf();
        let package = directory
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let integration = artifact.target.kind.contains(&TargetKind::Test);
        executables.push(TestExecutable {
            alone: integration && artifact.target.name.starts_with("alone_"),
            name: format!("{package}::{}", artifact.target.name),
            path: path.into_std_path_buf(),
            directory,
        });
    }
    executables.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(executables)
}
