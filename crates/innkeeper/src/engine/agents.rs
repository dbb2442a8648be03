//! Where the guest agents are.

use std::path::PathBuf;

use innkeeper_api::ErrorKind;

use crate::error::{Error, Result};
use crate::spec::Arch;

/// Directories in which the static agents (`agent-linux-ARCH`) are looked for.
#[derive(Debug, Clone)]
pub(crate) struct Agents {
    directories: Vec<PathBuf>,
}

impl Agents {
    pub(crate) fn new(directories: Vec<PathBuf>) -> Self {
        Agents { directories }
    }

    /// Finds the agent for Linux guests of an architecture.
    pub(crate) fn find(&self, arch: Arch) -> Result<PathBuf> {
        let file = format!("agent-linux-{arch}");
        self.directories
            .iter()
            .map(|directory| directory.join(&file))
            .find(|path| path.is_file())
            .ok_or_else(|| {
                let places: Vec<String> =
                    self.directories.iter().map(|directory| directory.display().to_string()).collect();
                Error::new(
                    ErrorKind::Unsupported,
                    format!("the guest agent for {arch} is not here: no {file} in {}", places.join(", ")),
                )
                .with_hint("from a source tree: cargo xtask agent; else set INNKEEPER_LIBEXEC to where the agents are")
            })
    }
}
