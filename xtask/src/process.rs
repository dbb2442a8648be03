//! Runs other programs: argv arrays only, standard input closed, every failure names the whole command.
//!
//! There is no way here to run a shell string, and no output is parsed but JSON and bare values.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Shows a command as a person would type it, for messages only.
pub(crate) fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(
        command
            .get_args()
            .map(|argument| argument.to_string_lossy().into_owned()),
    );
    words.join(" ")
}

/// Says a line about what is being done, on standard error.
pub(crate) fn say(text: &str) {
    eprintln!("xtask: {text}");
}

/// Shows and runs a command to its end; an exit code other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let text = shown(command);
    eprintln!("+ {text}");
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("starting {text}"))?;
    if !status.success() {
        bail!("{text} failed: {status}");
    }
    Ok(())
}

/// Runs a command quietly and gives its whole output, whatever its exit code.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {}", shown(command)))
}

/// Runs a command and gives its standard output; standard error passes through.
pub(crate) fn stdout(command: &mut Command) -> Result<Vec<u8>> {
    let text = shown(command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("starting {text}"))?;
    if !output.status.success() {
        bail!("{text} failed: {}", output.status);
    }
    Ok(output.stdout)
}

/// The path of a program in `PATH` or in the directories of administrators' tools.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// The cargo that started us, so that one toolchain does all.
pub(crate) fn cargo<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(arguments)
        .current_dir(crate::workspace::root());
    command
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
