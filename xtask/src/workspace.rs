//! Where things are: the workspace, its target directory, the agents.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result};
use cargo_metadata::{Metadata, MetadataCommand};

/// The root directory of the workspace: where cargo found this package, one up.
pub(crate) fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        // At run time first: a copied binary must not point at the place where it was compiled.
        let package = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        package.parent().map_or(package.clone(), Path::to_path_buf)
    })
}

/// What cargo knows of the workspace, without the network.
pub(crate) fn metadata() -> Result<Metadata> {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .other_options(vec!["--locked".to_owned()])
        .exec()
        .context("reading cargo metadata; is Cargo.lock up to date?")
}

/// The target directory, wherever the user's configuration puts it.
pub(crate) fn target_directory() -> Result<PathBuf> {
    static TARGET: OnceLock<PathBuf> = OnceLock::new();
    if let Some(path) = TARGET.get() {
        return Ok(path.clone());
    }
    let path = metadata()?.target_directory.into_std_path_buf();
    Ok(TARGET.get_or_init(|| path).clone())
}

/// The directory of the guest agents, found from `target/release/inn` as `../libexec/innkeeper`.
pub(crate) fn libexec_directory() -> Result<PathBuf> {
    Ok(target_directory()?.join("libexec").join("innkeeper"))
}
