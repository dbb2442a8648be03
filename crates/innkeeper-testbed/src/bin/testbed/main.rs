//! The helper of installations under test, and commands that tests kill.
//!
//! `testbed keeper NAME` keeps a VM, with the fake drivers that its environment names. `testbed create|remove|start NAME` do what `inn`
//! does, for fault tests; `create` can kill itself at a step of its progress. `testbed listen PORT` answers HTTP until its input ends; `testbed matrix
//! DIRECTORY` prints `docs/drivers.md` from the records of trials.

#[cfg(target_os = "linux")]
mod commands;

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    commands::main()
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!("testbed runs on Linux only");
    ExitCode::FAILURE
}
