//! Where and when figures were taken: what a reader needs to judge them, and nothing that names the computer's owner.

use std::process::Command;

use anyhow::{Context, Result};

use super::installation::Installation;
use super::report::Circumstances;
use crate::process::stdout;

const NAME: &str = "circumstances";

impl Circumstances {
    /// Asks this computer, and a VM for the accelerator that it gets.
    pub(super) fn ask(installation: &mut Installation) -> Result<Self> {
        installation.add("create", NAME, &[])?;
        installation.run(&["start", "-q", "--no-wait", NAME])?;
        let accel = installation.info(NAME)?.accel;
        installation.remove(NAME)?;
        Ok(Self {
            date: line(Command::new("date").args(["-u", "+%Y-%m-%d"]))?,
            cpu: cpu()?,
            cpus: std::thread::available_parallelism()?.get(),
            qemu: line(Command::new("qemu-system-x86_64").arg("--version"))?,
            accel: accel.context("inn info names no accelerator")?,
        })
    }
}

/// The first line that a command says, as it stands.
fn line(command: &mut Command) -> Result<String> {
    let text = String::from_utf8(stdout(command)?)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(target_os = "macos")]
fn cpu() -> Result<String> {
    line(Command::new("sysctl").args(["-n", "machdep.cpu.brand_string"]))
}

#[cfg(not(target_os = "macos"))]
fn cpu() -> Result<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
    Ok(model(&text)
        .unwrap_or("a CPU that tells no model")
        .to_owned())
}

#[cfg(not(target_os = "macos"))]
fn model(cpuinfo: &str) -> Option<&str> {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim() == "model name")
        .map(|(_, value)| value.trim())
}

#[cfg(all(test, not(target_os = "macos")))]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_found() {
        let text = "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Some CPU @ 2.0 GHz: a\n";
        assert_eq!(model(text), Some("Some CPU @ 2.0 GHz: a"));
        assert_eq!(model("processor : 0\n"), None);
    }
}
