//! Raw QEMU's boot: from spawn to the guest's marker on the serial console, our machines against a plain q35 with a bzImage.
//!
//! Every variant is the argv of a VM that the driver built, started by hand, so it has the same devices and the same agent. The peer
//! is our q35 with what the driver chose taken back: the plain machine, the bzImage, and no kernel words but those that the image's
//! own init needs. It says what the choice of machine, kernel form and command line is worth.

use anyhow::{Context, Result, ensure};

use super::installation::Installation;
use super::raw::RawVm;
use super::report::{Goal, Row};
use super::start::MARKER;
use super::{Pair, measure};

/// What a kernel prints on when nobody tunes it.
const PLAIN: &str = "console=ttyS0 panic=-1";
/// First word that is the guest's own, not the driver's.
const OWN: &str = "inn.hostname=";

/// Measures all variants.
pub(super) fn run(installation: &mut Installation, pairs: usize) -> Result<Vec<Row>> {
    let q35 = built(installation, "boot-q35", "q35")?;
    let microvm = built(installation, "boot-microvm", "microvm")?;
    let kernel = installation.tiny()?.kernel;
    ensure!(kernel.is_file(), "{} is not a file", kernel.display());
    let words = q35
        .option("-append")
        .context("the VM has no kernel command line")?;
    let own = words.find(OWN).context("its init is told nothing")?;
    let plain = q35.with(&[
        ("-machine", "q35"),
        ("-kernel", &kernel.to_string_lossy()),
        ("-append", &format!("{PLAIN} {}", &words[own..])),
    ])?;
    let limit = installation.limit();
    let pair = |name: &str, ours: RawVm, goal| {
        let (plain, ours) = (plain.clone(), ours);
        Pair {
            name: name.to_owned(),
            ours: Box::new(move || ours.until("serial0", MARKER, limit)),
            theirs: Box::new(move || plain.until("serial0", MARKER, limit)),
            goal: Some(Goal::Ratio(goal)),
        }
    };
    measure(
        vec![
            pair("boot of our q35", q35, 0.85),
            pair("boot of our microvm", microvm, 0.75),
        ],
        pairs,
    )
}

/// Lets the driver build a machine, and takes its argv.
fn built(installation: &mut Installation, name: &str, machine: &str) -> Result<RawVm> {
    let spec = installation.root().join(format!("{name}.yaml"));
    let text = format!("image: tiny\ncpus: 1\nmemory: 256MiB\nmachine: {machine}\n");
    std::fs::write(&spec, text).with_context(|| format!("writing {}", spec.display()))?;
    installation.add("create", name, &["-f", &spec.to_string_lossy()])?;
    installation.run(&["start", "-q", "--no-wait", name])?;
    let pid = installation
        .info(name)?
        .vmm_pid
        .context("inn info names no hypervisor process")?;
    let raw = RawVm::like(pid, &installation.root().join(name))?;
    installation.remove(name)?;
    Ok(raw)
}
