//! Our own processes beside VMs and networks: started in one way, by `HELPER ROLE NAME`, and heard until they listen.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use innkeeper_api::{ErrorKind, Problem};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::error::{Error, Result};
use crate::keeper::READY;

/// How long a process may take until it listens (a keeper may have to adopt a hypervisor first).
const LISTENS_TIMEOUT: Duration = Duration::from_secs(15);

/// The executable that is run as keeper and as netd.
#[derive(Debug, Clone)]
pub(crate) struct Helper {
    pub(crate) executable: PathBuf,
    pub(crate) environment: Vec<(String, OsString)>,
    /// Directory in which it runs.
    pub(crate) home: PathBuf,
}

impl Helper {
    /// Starts `HELPER ROLE NAME` and waits until it listens. `what` names it in messages, `hint` says where its log is read.
    ///
    /// Errors: what the process itself says, such as `Conflict` if there is one already.
    pub(crate) async fn start(
        &self,
        role: &str,
        name: &str,
        what: &str,
        log: &Path,
        hint: &str,
    ) -> Result<()> {
        let failed = |error| Error::io(format!("can't start {what}"), error);
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(log)
            .map_err(failed)?;
        let mut child = Command::new(&self.executable)
            .arg0("inn")
            .args([role, name])
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.home)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(|error| {
                failed(error).with_hint(format!(
                    "{} must be the `inn` executable",
                    self.executable.display()
                ))
            })?;
        let Some(out) = child.stdout.take() else {
            return Ok(());
        };
        // Whoever embeds the library has children reaped by the runtime; the command line is gone before its keeper is.
        tokio::spawn(async move { child.wait().await });
        let mut line = String::new();
        let heard =
            tokio::time::timeout(LISTENS_TIMEOUT, BufReader::new(out).read_line(&mut line)).await;
        match heard {
            Err(_) => Err(Error::new(
                ErrorKind::TimedOut,
                format!("{what} does not begin to listen"),
            )
            .with_hint(hint)),
            Ok(Err(error)) => Err(failed(error)),
            Ok(Ok(_)) if line.trim_end() == READY => Ok(()),
            Ok(Ok(_)) => Err(match serde_json::from_str::<Problem>(&line) {
                Ok(problem) => Error::from_problem(problem),
                Err(_) => {
                    Error::new(ErrorKind::Failure, format!("{what} ended at once")).with_hint(hint)
                }
            }),
        }
    }
}
