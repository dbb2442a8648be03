//! `cargo xtask demo`: from a fresh computer to a command that runs in a VM.
//!
//! ```text
//! install what lacks ─► build inn and the agent ─► VM there? ─ no ─► inn run IMAGE ─┐
//!                                                     └─ yes ─► inn start (if need be) ┴─► inn exec uname -a ─► what next
//! ```
//! May be run again: a VM that it made before is used again, an image that was built is taken from the cache.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;

use crate::process::{self, cargo, say};
use crate::requirements::Purpose;
use crate::{agent, packages, workspace};

/// What the demo shows.
#[derive(Args)]
pub(crate) struct DemoArguments {
    /// Image of the VM; `tiny` is there in seconds.
    #[arg(long, default_value = "debian:12")]
    image: String,
    /// Name of the VM.
    #[arg(long, default_value = "demo")]
    name: String,
}

/// The part of `inn ls -o json` that matters here; the rest may grow.
#[derive(Deserialize)]
struct ListedVm {
    name: String,
    state: String,
}

/// Runs the demo.
pub(crate) fn run(arguments: &DemoArguments) -> Result<()> {
    packages::ensure(Purpose::Demo)?;
    say("building inn (release)");
    process::run(&mut cargo([
        "build",
        "--locked",
        "--release",
        "--package",
        "inn",
    ]))?;
    agent::build(agent::Architectures::Native)?;
    let inn = workspace::target_directory()?.join("release").join("inn");
    match state_of(&inn, &arguments.name)?.as_deref() {
        None => process::run(Command::new(&inn).args([
            "run",
            &arguments.image,
            "--name",
            &arguments.name,
        ]))?,
        Some("ready") => say(&format!(
            "VM {} is there and ready; using it",
            arguments.name
        )),
        Some("running" | "starting") => {
            process::run(Command::new(&inn).args(["wait", &arguments.name, "--for", "ready"]))?;
        }
        Some("stopped") => process::run(Command::new(&inn).args(["start", &arguments.name]))?,
        Some(state) => bail!(
            "VM {0} is {state}; look with `{1} info {0}`, or remove it with `{1} rm --force {0}` and run the demo again",
            arguments.name,
            inn.display()
        ),
    }
    process::run(Command::new(&inn).args(["exec", &arguments.name, "uname", "-a"]))?;
    let (inn, name) = (inn.display(), &arguments.name);
    println!(
        "\nThat was a command inside a VM. Next:\n\
         \x20 {inn} shell {name}          # a shell in it\n\
         \x20 {inn} info {name}           # what it is and what it uses\n\
         \x20 {inn} cp FILE {name}:/tmp/  # copy a file in\n\
         \x20 {inn} run tiny -- uname -a  # a throwaway VM for one command\n\
         \x20 {inn} stop {name}           # end it; `start` brings it back, `rm` removes it\n\
         \x20 {inn} --help"
    );
    Ok(())
}

fn state_of(inn: &Path, name: &str) -> Result<Option<String>> {
    let listed = process::stdout(Command::new(inn).args(["ls", "-o", "json"]))?;
    find_state(&listed, name)
}

fn find_state(listed: &[u8], name: &str) -> Result<Option<String>> {
    let vms: Vec<ListedVm> = serde_json::from_slice(listed).context("reading `inn ls -o json`")?;
    Ok(vms
        .into_iter()
        .find(|vm| vm.name == name)
        .map(|vm| vm.state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_found_by_exact_name() {
        let listed =
            br#"[{"name":"demo2","state":"ready","cpus":1},{"name":"demo","state":"stopped"}]"#;
        assert_eq!(
            find_state(listed, "demo").expect("a list").as_deref(),
            Some("stopped")
        );
        assert_eq!(find_state(listed, "dem").expect("a list"), None);
        assert!(find_state(b"NAME STATE", "demo").is_err());
    }
}
