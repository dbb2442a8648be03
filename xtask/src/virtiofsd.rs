//! Has virtiofsd, which serves shared folders: the distribution's, or one built from the registry into `target/tools`.
//!
//! Debian 12 has no virtiofsd that goes with a QEMU from its backports. It is built once, kept, and laid beside the agents
//! (`target/libexec/innkeeper/virtiofsd`), where the drivers look for it. Where it can't be had, what needs it is skipped and says so.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::process::{self, cargo, find_program, say};
use crate::workspace;

/// Version that is built: the newest that was tried.
const VERSION: &str = "1.14.0";

/// Where distributions put theirs.
const OF_THE_SYSTEM: &[&str] = &["/usr/libexec/virtiofsd", "/usr/lib/virtiofsd"];

/// Makes sure that there is one, if that can be; says why if not.
pub(crate) fn ensure() -> Result<()> {
    if !cfg!(target_os = "linux")
        || OF_THE_SYSTEM.iter().any(|path| Path::new(path).is_file())
        || find_program("virtiofsd").is_some()
    {
        return Ok(());
    }
    match build() {
        Ok(built) => lay(&built, &workspace::libexec_directory()?.join("virtiofsd")),
        Err(error) => {
            say(&format!(
                "SKIPPED: virtiofsd, so that no shared folder is tested: {error:#}"
            ));
            Ok(())
        }
    }
}

/// Builds it, unless that was done before; gives the program.
fn build() -> Result<PathBuf> {
    let root = workspace::target_directory()?
        .join("tools")
        .join(format!("virtiofsd-{VERSION}"));
    let program = root.join("bin").join("virtiofsd");
    if program.is_file() {
        return Ok(program);
    }
    say(&format!(
        "building virtiofsd {VERSION} from the registry, once"
    ));
    let mut command = cargo(["install", "virtiofsd", "--locked", "--version", VERSION]);
    command.arg("--root").arg(&root);
    process::run(&mut command)?;
    Ok(program)
}

/// Puts a program at its place, whole or not at all; one that is the same is left alone.
fn lay(program: &Path, place: &Path) -> Result<()> {
    let wanted = fs::read(program).with_context(|| format!("reading {}", program.display()))?;
    if fs::read(place).is_ok_and(|there| there == wanted) {
        return Ok(());
    }
    let directory = place.parent().context("a place without a directory")?;
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let partial = place.with_extension("partial");
    fs::copy(program, &partial)
        .and_then(|_| fs::rename(&partial, place))
        .with_context(|| format!("laying {} to {}", program.display(), place.display()))
}
