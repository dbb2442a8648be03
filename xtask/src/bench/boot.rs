//! Raw QEMU's boot: from spawn to the guest's marker on the serial console, each variant against q35 with a bzImage.
//!
//! No part of the product takes part: this says what the choice of machine and kernel form is worth, and is the floor
//! under which `inn run` cannot get. microvm runs with `acpi=off`: with its default ACPI it hangs now and then under
//! TCG, in the calibration of the TSC.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use super::installation::{Files, InnArguments, Installation};
use super::raw::{Killed, wait_for};
use super::report::{Goal, Row};
use super::{Pair, measure};

/// What to boot.
#[derive(Args)]
pub(crate) struct BootArguments {
    /// Whose tiny image is booted, and how often.
    #[command(flatten)]
    pub(super) inn: InnArguments,
    /// The kernel as bzImage; with --initrd instead of the tiny image.
    #[arg(long, requires = "initrd")]
    kernel: Option<PathBuf>,
    /// The same kernel as an ELF file with a PVH note; without it, only what needs none is measured.
    #[arg(long, requires = "kernel")]
    vmlinux: Option<PathBuf>,
    /// Initial RAM disk, whose init prints the marker on the console.
    #[arg(long, requires = "kernel")]
    initrd: Option<PathBuf>,
    /// What the guest prints when it is up.
    #[arg(long, default_value = "INNKEEPER-READY")]
    marker: String,
    /// The emulator.
    #[arg(long, default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// Accelerator, as for QEMU's -accel.
    #[arg(long, default_value = "tcg")]
    accel: String,
}

impl BootArguments {
    /// The kernel that was given, else the tiny image's.
    pub(super) fn kernel(&self) -> Option<Files> {
        Some(Files {
            kernel: self.kernel.clone()?,
            vmlinux: self.vmlinux.clone(),
            initrd: self.initrd.clone()?,
        })
    }

    /// What to measure with these files.
    pub(super) fn boot(&self, files: Files) -> Boot {
        Boot {
            files,
            marker: self.marker.clone(),
            qemu: self.qemu.clone(),
            accel: self.accel.clone(),
            limit: self.inn.limit(),
        }
    }
}

/// What every variant boots.
pub(super) struct Boot {
    pub(super) files: Files,
    pub(super) marker: String,
    pub(super) qemu: PathBuf,
    pub(super) accel: String,
    pub(super) limit: Duration,
}

impl Boot {
    /// The tiny image, on the accelerator that VMs here get.
    pub(super) fn tiny(installation: &Installation, accel: &str) -> Result<Self> {
        Ok(Self {
            files: installation.tiny()?,
            marker: "INNKEEPER-READY".to_owned(),
            qemu: "qemu-system-x86_64".into(),
            accel: accel.to_owned(),
            limit: installation.limit(),
        })
    }
}

/// Kernel parameters that every variant has.
const PLAIN: &str = "console=ttyS0 panic=-1";
/// The parameters that the QEMU driver gives, which save time; each is explained there, in `board.rs`.
const TUNED: &str = "console=ttyS0 loglevel=5 no_timer_check cryptomgr.notests 8250.nr_uarts=1 reboot=t quiet panic=-1";

/// How a variant boots.
#[derive(Debug, Clone, Copy)]
struct Variant {
    name: &'static str,
    machine: &'static str,
    pvh: bool,
    parameters: &'static str,
    goal: Option<f64>,
}

impl Variant {
    /// What follows a virtio device's name: microvm has no PCI.
    fn bus(self) -> &'static str {
        if self.machine == MICROVM {
            "device"
        } else {
            "pci"
        }
    }
}

const BASELINE: Variant = Variant {
    name: "q35 bzImage",
    machine: "q35",
    pvh: false,
    parameters: PLAIN,
    goal: None,
};

const VARIANTS: &[Variant] = &[
    Variant {
        name: "q35 PVH",
        machine: "q35",
        pvh: true,
        parameters: PLAIN,
        goal: None,
    },
    Variant {
        name: "q35 PVH tuned",
        machine: Q35,
        pvh: true,
        parameters: TUNED,
        goal: Some(0.85),
    },
    Variant {
        name: "microvm PVH",
        machine: MICROVM,
        pvh: true,
        parameters: PLAIN,
        goal: None,
    },
    Variant {
        name: "microvm PVH tuned",
        machine: MICROVM,
        pvh: true,
        parameters: TUNED,
        goal: Some(0.75),
    },
    Variant {
        name: "microvm bzImage",
        machine: MICROVM,
        pvh: false,
        parameters: PLAIN,
        goal: None,
    },
];

/// As the QEMU driver builds it, without devices that a VM does not need.
const Q35: &str = "q35,i8042=off,vmport=off,usb=off";
const MICROVM: &str = "microvm,acpi=off,pcie=off";

/// Measures all variants that the files allow.
pub(super) fn run(boot: &Boot, pairs: usize) -> Result<Vec<Row>> {
    let files = &boot.files;
    for file in [
        Some(&files.kernel),
        files.vmlinux.as_ref(),
        Some(&files.initrd),
    ]
    .into_iter()
    .flatten()
    {
        ensure!(file.is_file(), "{} is not a file", file.display());
    }
    ensure!(!boot.marker.is_empty(), "the marker is empty");
    let variants = VARIANTS
        .iter()
        .filter(|variant| !variant.pvh || files.vmlinux.is_some())
        .map(|variant| Pair {
            name: variant.name.to_owned(),
            ours: Box::new(|| once(boot, *variant)),
            theirs: Box::new(|| once(boot, BASELINE)),
            goal: variant.goal.map(Goal::Ratio),
        })
        .collect();
    measure(variants, pairs)
}

fn argv(boot: &Boot, variant: Variant) -> Vec<OsString> {
    let kernel = match &boot.files.vmlinux {
        Some(vmlinux) if variant.pvh => vmlinux,
        _ => &boot.files.kernel,
    };
    let mut argv: Vec<OsString> = [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-monitor",
        "none",
    ]
    .map(OsString::from)
    .into();
    let mut add = |name: &str, value: OsString| argv.extend([OsString::from(name), value]);
    add("-machine", variant.machine.into());
    add("-accel", boot.accel.clone().into());
    add("-m", "256".into());
    add("-smp", "1".into());
    add("-kernel", kernel.into());
    add("-initrd", boot.files.initrd.clone().into());
    add("-append", variant.parameters.into());
    add("-serial", "stdio".into());
    // The tiny guest's init is up when it finds its agent's channel, on which nobody talks here.
    add("-chardev", "null,id=agent".into());
    add(
        "-device",
        format!("virtio-serial-{},id=ports", variant.bus()).into(),
    );
    add(
        "-device",
        "virtserialport,bus=ports.0,chardev=agent,name=org.innkeeper.agent.0".into(),
    );
    argv.push("-no-reboot".into());
    argv
}

fn once(boot: &Boot, variant: Variant) -> Result<Duration> {
    let mut command = Command::new(&boot.qemu);
    command
        .args(argv(boot, variant))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let start = Instant::now();
    let mut emulator = Killed(
        command
            .spawn()
            .with_context(|| format!("starting {}", boot.qemu.display()))?,
    );
    let output = emulator.0.stdout.take().context("no pipe to the console")?;
    let (sender, receiver) = mpsc::channel();
    let marker = boot.marker.clone().into_bytes();
    let reader = std::thread::spawn(move || {
        // The receiver is gone only when the time is up.
        let _ = sender.send(wait_for(output, &marker).map(|found| (found, Instant::now())));
    });
    let answer = receiver.recv_timeout(boot.limit);
    drop(emulator);
    // The pipe is closed now, so the reader ends.
    let _ = reader.join();
    match answer {
        Ok(Ok((true, seen))) => Ok(seen - start),
        Ok(Ok((false, _))) => bail!(
            "{}: QEMU ended before the marker {:?}",
            variant.name,
            boot.marker
        ),
        Ok(Err(error)) => Err(error).context("reading the console"),
        Err(_) => bail!(
            "{}: no marker {:?} within {} s",
            variant.name,
            boot.marker,
            boot.limit.as_secs()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn microvm_never_runs_with_acpi() {
        for variant in VARIANTS
            .iter()
            .filter(|variant| variant.machine.starts_with("microvm"))
        {
            assert!(variant.machine.contains("acpi=off"), "{}", variant.name);
        }
    }
}
