//! Whole processes of `inn`, from spawn to exit, each against a process that does nothing (`/bin/true`).
//!
//! The peer is the floor of the machine at that moment, not a rival: the goals are absolute.

use std::process::Command;

use anyhow::{Context, Result};

use super::installation::{IMAGE_LIMIT, Installation, finish_within};
use super::report::{Goal, Row};
use super::{Pair, measure};

/// How many VMs `ls` lists, and how many of them run.
const LISTED: usize = 100;
const RUNNING: usize = 3;

/// Measures `inn --version`.
pub(super) fn version(installation: &mut Installation, pairs: usize) -> Result<Vec<Row>> {
    compare(installation, &["--version"], 2.0, pairs)
}

/// Measures `inn ls`.
pub(super) fn ls(installation: &mut Installation, pairs: usize) -> Result<Vec<Row>> {
    let names: Vec<String> = (0..LISTED).map(|index| format!("ls-{index}")).collect();
    for (index, name) in names.iter().enumerate() {
        let verb = if index < RUNNING { "run" } else { "create" };
        installation.add(verb, name, &[])?;
    }
    let rows = compare(installation, &["ls"], 5.0, pairs)?;
    for name in &names {
        installation.remove(name)?;
    }
    Ok(rows)
}

/// Measures `inn exec`.
pub(super) fn exec(installation: &mut Installation, pairs: usize) -> Result<Vec<Row>> {
    installation.add("run", "exec", &[])?;
    let rows = compare(installation, &["exec", "exec", "true"], 20.0, pairs)?;
    installation.remove("exec")?;
    Ok(rows)
}

/// Measures `inn create` from a 10 GiB image, which `rm` undoes untimed, against `qemu-img create -b`.
pub(super) fn create(installation: &mut Installation, pairs: usize) -> Result<Vec<Row>> {
    let image = installation.root().join("image.raw");
    let overlay = installation.root().join("overlay.qcow2");
    std::fs::File::create(&image)
        .and_then(|file| file.set_len(10 << 30))
        .with_context(|| format!("making {}", image.display()))?;
    let mut import = installation.command(&[
        "image", "import", "-q", "--name", "bench", "--format", "raw",
    ]);
    import.arg(&image);
    finish_within(import, IMAGE_LIMIT)?;
    installation.note("create");
    let installation = &*installation;
    let pair = Pair {
        name: "inn create, 10 GiB image".to_owned(),
        ours: Box::new(|| {
            let taken = installation.run(&["create", "-q", "bench", "--name", "create"])?;
            installation.run(&["rm", "-q", "--yes", "create"])?;
            Ok(taken)
        }),
        theirs: Box::new(|| {
            let mut command = Command::new("qemu-img");
            command
                .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
                .args([&image, &overlay]);
            installation.finish(command)
        }),
        goal: Some(Goal::Ours(15.0)),
    };
    measure(vec![pair], pairs)
}

fn compare(
    installation: &Installation,
    words: &[&str],
    goal_ms: f64,
    pairs: usize,
) -> Result<Vec<Row>> {
    let pair = Pair {
        name: format!("inn {}", words.join(" ")),
        ours: Box::new(|| installation.run(words)),
        theirs: Box::new(|| installation.finish(Command::new("/bin/true"))),
        goal: Some(Goal::Ours(goal_ms)),
    };
    measure(vec![pair], pairs)
}
