//! Finds virtiofsd, and says how it is started for a shared folder: the two programs of that name differ.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use innkeeper_api::ErrorKind;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::process::Command;

use crate::driver::ShareConfig;
use crate::error::{Error, Result};

/// How long it may take to say what it can.
const DEADLINE: Duration = Duration::from_secs(10);

/// The daemon that serves shared folders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Virtiofsd {
    /// The executable.
    pub program: PathBuf,
    /// Which of the two programs of that name it is.
    pub dialect: VirtiofsdDialect,
    /// `unshare`, where the daemon needs a user namespace made for it.
    pub unshare: Option<PathBuf>,
    /// Whether it serves a folder read-only by itself.
    pub read_only: bool,
}

/// The two programs named virtiofsd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VirtiofsdDialect {
    /// The C program of QEMU up to 7.2.
    C,
    /// The Rust program that followed it.
    Rust,
}

impl Virtiofsd {
    /// Says how a folder is served on the listening socket that the process inherits under this number. Pure.
    ///
    /// Errors: `Unsupported` or `BadInput` naming the folder that this program can't serve.
    pub(super) fn serve(
        &self,
        share: &ShareConfig,
        descriptor: i32,
    ) -> Result<(PathBuf, Vec<String>)> {
        if share.read_only && !self.read_only {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "this virtiofsd can't serve {} read-only",
                    share.host.display()
                ),
            ));
        }
        let source = path_text(&share.host)?;
        let mut arguments = Vec::new();
        match self.dialect {
            VirtiofsdDialect::C => {
                // Its `-o` splits at commas and has no way to write one.
                if source.contains([',', '\\']) {
                    return Err(Error::new(
                        ErrorKind::BadInput,
                        format!(
                            "this virtiofsd can't serve {source}: its name holds a comma or a backslash"
                        ),
                    ));
                }
                arguments.extend([
                    "-f".to_owned(),
                    format!("--fd={descriptor}"),
                    "-o".to_owned(),
                    format!("source={source},sandbox=namespace,cache=auto,log_level=warn"),
                ]);
            }
            VirtiofsdDialect::Rust => {
                arguments.extend([
                    format!("--fd={descriptor}"),
                    "--shared-dir".to_owned(),
                    source.to_owned(),
                    "--sandbox=namespace".to_owned(),
                    "--log-level=warn".to_owned(),
                ]);
                if share.read_only {
                    arguments.push("--readonly".to_owned());
                }
            }
        }
        let program = match &self.unshare {
            Some(unshare) => {
                let mut wrapped = vec![
                    "--user".to_owned(),
                    "--map-root-user".to_owned(),
                    "--".to_owned(),
                ];
                wrapped.push(path_text(&self.program)?.to_owned());
                wrapped.append(&mut arguments);
                arguments = wrapped;
                unshare.clone()
            }
            None => self.program.clone(),
        };
        Ok((program, arguments))
    }
}

/// Finds virtiofsd and which of the two programs of that name it is: the newer one names its features.
pub(super) async fn find(candidates: &[PathBuf], path: &[PathBuf]) -> Option<Virtiofsd> {
    let program = candidates.iter().find(|path| path.is_file())?;
    let mut command = Command::new(program);
    command
        .env_clear()
        .arg("--print-capabilities")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output())
        .await
        .ok()?
        .ok()?;
    let reply: Value = serde_json::from_slice(&output.stdout).ok()?;
    if reply["type"] != "fs" {
        return None;
    }
    let features: Vec<&str> = reply["features"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let dialect = if reply["features"].is_array() {
        VirtiofsdDialect::Rust
    } else {
        VirtiofsdDialect::C
    };
    // The C program makes its namespaces as root only; a user namespace made around it serves as well.
    let unshare = (dialect == VirtiofsdDialect::C && !rustix::process::geteuid().is_root())
        .then(|| {
            path.iter()
                .map(|directory| directory.join("unshare"))
                .find(|path| path.is_file())
        })
        .flatten();
    Some(Virtiofsd {
        program: program.clone(),
        dialect,
        unshare,
        read_only: features.contains(&"read-only"),
    })
}

/// Returns a path as text. Errors: `BadInput` if it is not UTF-8.
fn path_text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        Error::new(
            ErrorKind::BadInput,
            format!("the path {} is not valid UTF-8: rename it", path.display()),
        )
    })
}
