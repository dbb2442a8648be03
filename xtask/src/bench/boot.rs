//! Raw QEMU's boot: from spawn to the guest's marker on the serial console, each variant against q35 with a bzImage.
//!
//! No part of the product takes part: this says what the choice of machine and kernel form is worth, and is the floor
//! under which `inn run` cannot get. microvm runs with `acpi=off`: with its default ACPI it hangs now and then under
//! TCG, in the calibration of the TSC.

use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use super::{Goal, Pair, measure};

/// What to boot.
#[derive(Args)]
pub(crate) struct BootArguments {
    /// The kernel as bzImage.
    #[arg(long)]
    kernel: PathBuf,
    /// The same kernel as an ELF file with a PVH note; without it, only what needs none is measured.
    #[arg(long)]
    vmlinux: Option<PathBuf>,
    /// Initial RAM disk, whose init prints the marker on the console.
    #[arg(long)]
    initrd: PathBuf,
    /// What the guest prints when it is up.
    #[arg(long, default_value = "INNKEEPER-READY")]
    marker: String,
    /// The emulator.
    #[arg(long, default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// Accelerator, as for QEMU's -accel.
    #[arg(long, default_value = "tcg")]
    accel: String,
    /// How many pairs, at least 15.
    #[arg(long, default_value_t = 15)]
    pairs: usize,
    /// Seconds after which a boot counts as hung, which ends the benchmark.
    #[arg(long, default_value_t = 60)]
    timeout: u64,
}

/// Kernel parameters that every variant has.
const PLAIN: &str = "console=ttyS0 panic=-1";
/// Parameters that save time in a VM; see docs of the kernel's parameters.
const TUNED: &str = "console=ttyS0 panic=-1 quiet loglevel=1 tsc=reliable no_timer_check i8042.noaux i8042.nokbd \
                     i8042.nopnp i8042.dumbkbd mitigations=off cryptomgr.notests random.trust_cpu=on";

/// How a variant boots.
#[derive(Debug, Clone, Copy)]
struct Variant {
    name: &'static str,
    machine: &'static str,
    pvh: bool,
    parameters: &'static str,
    goal: Option<f64>,
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
        machine: "q35",
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

const MICROVM: &str = "microvm,acpi=off,pcie=off";

/// Measures all variants that the arguments allow.
pub(crate) fn run(arguments: &BootArguments) -> Result<()> {
    for file in [
        Some(&arguments.kernel),
        arguments.vmlinux.as_ref(),
        Some(&arguments.initrd),
    ]
    .into_iter()
    .flatten()
    {
        ensure!(file.is_file(), "{} is not a file", file.display());
    }
    ensure!(!arguments.marker.is_empty(), "the marker is empty");
    let pairs = VARIANTS
        .iter()
        .filter(|variant| !variant.pvh || arguments.vmlinux.is_some())
        .map(|variant| Pair {
            name: variant.name.to_owned(),
            ours: Box::new(|| boot(arguments, *variant)),
            theirs: Box::new(|| boot(arguments, BASELINE)),
            goal: variant.goal.map(Goal::RatioAtMost),
        })
        .collect();
    measure("boot", pairs, arguments.pairs)
}

fn argv(arguments: &BootArguments, variant: Variant) -> Vec<OsString> {
    let kernel = match &arguments.vmlinux {
        Some(vmlinux) if variant.pvh => vmlinux,
        _ => &arguments.kernel,
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
    add("-accel", arguments.accel.clone().into());
    add("-m", "256".into());
    add("-smp", "1".into());
    add("-kernel", kernel.into());
    add("-initrd", arguments.initrd.clone().into());
    add("-append", variant.parameters.into());
    add("-serial", "stdio".into());
    argv.push("-no-reboot".into());
    argv
}

/// Kills the emulator however the measurement ends.
struct Emulator(Child);

impl Drop for Emulator {
    fn drop(&mut self) {
        // Both fail only when it has ended and been waited for, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn boot(arguments: &BootArguments, variant: Variant) -> Result<Duration> {
    let mut command = Command::new(&arguments.qemu);
    command
        .args(argv(arguments, variant))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let start = Instant::now();
    let mut emulator = Emulator(
        command
            .spawn()
            .with_context(|| format!("starting {}", arguments.qemu.display()))?,
    );
    let output = emulator.0.stdout.take().context("no pipe to the console")?;
    let (sender, receiver) = mpsc::channel();
    let marker = arguments.marker.clone().into_bytes();
    let reader = std::thread::spawn(move || {
        // The receiver is gone only when the time is up.
        let _ = sender.send(wait_for(output, &marker).map(|found| (found, Instant::now())));
    });
    let answer = receiver.recv_timeout(Duration::from_secs(arguments.timeout));
    drop(emulator);
    // The pipe is closed now, so the reader ends.
    let _ = reader.join();
    match answer {
        Ok(Ok((true, seen))) => Ok(seen - start),
        Ok(Ok((false, _))) => bail!(
            "{}: QEMU ended before the marker {:?}",
            variant.name,
            arguments.marker
        ),
        Ok(Err(error)) => Err(error).context("reading the console"),
        Err(_) => bail!(
            "{}: no marker {:?} within {} s",
            variant.name,
            arguments.marker,
            arguments.timeout
        ),
    }
}

/// Reads until the marker; false at the end of the stream. Keeps no more than the marker's length of what was read.
fn wait_for(mut stream: impl Read, marker: &[u8]) -> std::io::Result<bool> {
    let mut window = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(false);
        }
        window.extend_from_slice(&buffer[..count]);
        if window.windows(marker.len()).any(|part| part == marker) {
            return Ok(true);
        }
        let keep = window.len().min(marker.len().saturating_sub(1));
        window.drain(..window.len() - keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte at a time, the worst way to cut a marker.
    struct Dribble<'a>(&'a [u8]);

    impl Read for Dribble<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let count = self.0.len().min(1);
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    #[test]
    fn markers_are_found_across_reads() {
        assert!(wait_for(Dribble(b"boot REREADY\n"), b"READY").expect("read"));
        assert!(!wait_for(Dribble(b"boot READ Y"), b"READY").expect("read"));
    }

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
