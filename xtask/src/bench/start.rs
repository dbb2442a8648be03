//! What starting a VM costs over raw QEMU with the same kernel, initramfs and devices.
//!
//! Ours is the whole command `inn start`, with the keeper that it starts. The VM exists already: what `inn run` does
//! before, `create` measures. QMP is ready when QEMU has answered its first command, on both sides: it greets as soon as its monitor's
//! thread runs, and takes no command before the machine is built.

use anyhow::{Context, Result};

use super::installation::Installation;
use super::raw::RawVm;
use super::report::{Goal, Row};
use super::{Pair, measure};

const NAME: &str = "start";
/// What the tiny guest's init writes to its serial console when it is up.
pub(super) const MARKER: &[u8] = b"INNKEEPER-READY";

/// Measures spawn to QMP ready, and run to ready.
pub(super) fn run(installation: &mut Installation, pairs: usize) -> Result<Vec<Row>> {
    installation.add("create", NAME, &[])?;
    installation.run(&["start", "-q", "--no-wait", NAME])?;
    let vmm_pid = installation
        .info(NAME)?
        .vmm_pid
        .context("inn info names no hypervisor process")?;
    let raw = RawVm::like(vmm_pid, &installation.root().join("raw"))?;
    installation.run(&["kill", "-q", NAME])?;
    let rows = {
        let installation = &*installation;
        let limit = installation.limit();
        let start = |words: &[&str]| {
            let taken = installation.run(words)?;
            installation.run(&["kill", "-q", NAME])?;
            Ok(taken)
        };
        measure(
            vec![
                Pair {
                    name: "spawn to QMP ready".to_owned(),
                    ours: Box::new(|| start(&["start", "-q", "--no-wait", NAME])),
                    theirs: Box::new(|| raw.until_it_answers(limit)),
                    goal: Some(Goal::Difference(20.0)),
                },
                Pair {
                    name: "run to ready".to_owned(),
                    ours: Box::new(|| start(&["start", "-q", NAME])),
                    theirs: Box::new(|| raw.until("serial0", MARKER, limit)),
                    goal: Some(Goal::Difference(50.0)),
                },
            ],
            pairs,
        )?
    };
    installation.remove(NAME)?;
    Ok(rows)
}
