//! Where the guest agent is: as programs of an installation find it, or beside the tests.

use std::path::PathBuf;
use std::process::Command;

/// Returns the directory of static agents, if the environment names one.
pub fn libexec() -> Option<PathBuf> {
    std::env::var_os("INNKEEPER_LIBEXEC")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

fn static_agent() -> Option<PathBuf> {
    let arch = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        std::env::consts::ARCH
    };
    libexec()
        .map(|directory| directory.join(format!("agent-linux-{arch}")))
        .filter(|path| path.is_file())
}

/// Returns an agent that runs on this computer: the static one, or the one that cargo made, which is built if need be.
///
/// Errors: why there is none, in one sentence.
pub fn agent_program() -> Result<PathBuf, String> {
    if let Some(agent) = static_agent() {
        return Ok(agent);
    }
    let test = std::env::current_exe().map_err(|error| error.to_string())?;
    let directories = test.ancestors().skip(1).take(2);
    let beside: Vec<PathBuf> = directories
        .map(|directory| directory.join("inn-agent"))
        .collect();
    // Cargo keeps it fresh; without cargo, as in a test run by another user, what is there must do.
    if let Some(cargo) = std::env::var_os("CARGO") {
        let built = Command::new(cargo)
            .args([
                "build",
                "--quiet",
                "-p",
                "innkeeper-agent",
                "--bin",
                "inn-agent",
            ])
            .status();
        if !built.is_ok_and(|status| status.success()) {
            return Err("the agent does not build".to_owned());
        }
    }
    beside
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| "there is no agent: run `cargo xtask agent` and set INNKEEPER_LIBEXEC, or build innkeeper-agent".to_owned())
}
