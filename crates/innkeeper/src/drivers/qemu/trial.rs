//! Decides how CPUs of guests of the host's own architecture are run, by trying.
//!
//! On Linux KVM is tried by `kvm_trial`; on macOS only the start of a machine with Hypervisor.framework is. The notes say what was tried.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::QemuOptions;
use super::board::Board;
use super::host::{Acceleration, Refusal};
#[cfg(target_os = "linux")]
use super::kvm_trial::Trial;
use super::qmp::Qmp;
pub(super) use crate::drivers::kvm::open_kvm;
use crate::spec::Arch;

/// How long QEMU may take until the guest's first instruction, on a busy host.
pub(super) const START_DEADLINE: Duration = Duration::from_secs(3);

/// Finds out how CPUs of guests of the host's architecture are run here.
pub(super) async fn acceleration(
    program: &Path,
    arch: Arch,
    options: &QemuOptions,
) -> Acceleration {
    let mut found = Acceleration::default();
    if cfg!(target_os = "linux") {
        found.kvm_refused = open_kvm().err();
    } else {
        found.kvm_refused = Some(Refusal {
            reason: "KVM exists on Linux alone".to_owned(),
            fix: None,
        });
    }
    if let Some(accel) = &options.accel_override {
        found.hardware = (accel != "tcg").then(|| accel.clone());
        found.notes.push(format!(
            "{accel} is used because it was asked for, without trying"
        ));
        return found;
    }
    if cfg!(target_os = "macos") {
        match starts(program, arch, "hvf", options).await {
            Ok(()) => {
                found.hardware = Some("hvf".to_owned());
                found.notes.push(
                    "a machine starts with Hypervisor.framework; its speed was not tried"
                        .to_owned(),
                );
            }
            Err(error) => found
                .notes
                .push(format!("Hypervisor.framework can't be used: {error}")),
        }
        return found;
    }
    if let Some(refusal) = &found.kvm_refused {
        found
            .notes
            .push(format!("KVM can't be used: {}", refusal.reason));
        return found;
    }
    #[cfg(target_os = "linux")]
    try_kvm(&mut found, program, arch, options).await;
    found
}

#[cfg(target_os = "linux")]
async fn try_kvm(found: &mut Acceleration, program: &Path, arch: Arch, options: &QemuOptions) {
    match super::kvm_trial::try_kvm(program, arch, options).await {
        Ok((Trial::Fast, how)) => {
            found.hardware = Some("kvm".to_owned());
            found.notes.push(format!("KVM works here ({how})"));
        }
        Ok((Trial::Slow, how)) => found.notes.push(format!(
            "KVM runs instructions in software here and is slower than emulation ({how}), so emulation is used"
        )),
        Ok((Trial::DoesNotStart, how)) => {
            found.notes.push(format!("KVM does not start a guest here ({how}), so emulation is used"));
            found.kvm_refused = Some(Refusal {
                reason: format!("KVM does not start a guest on this host ({how})"),
                fix: None,
            });
        }
        Err(error) => found.notes.push(format!("KVM could not be tried: {error}")),
    }
}

/// Starts a machine whose CPUs stand still, and asks it whether it is there.
pub(super) async fn starts(
    program: &Path,
    arch: Arch,
    accel: &str,
    options: &QemuOptions,
) -> io::Result<()> {
    let mut command = quiet(program, options);
    command
        .args([
            "-machine",
            Board::family(arch),
            "-accel",
            accel,
            "-cpu",
            "host",
            "-S",
        ])
        .args(["-m", "16", "-qmp", "stdio"])
        .stdin(Stdio::piped());
    let mut child = command.spawn()?;
    let (Some(output), Some(input)) = (child.stdout.take(), child.stdin.take()) else {
        return Err(io::Error::other("QEMU has no standard output"));
    };
    let answer = Qmp::over(output, input, START_DEADLINE).await.map(drop);
    let _ = child.kill().await;
    answer.map_err(io::Error::other)
}

pub(super) fn quiet(program: &Path, options: &QemuOptions) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    for directory in &options.data_directories {
        command.arg("-L").arg(directory);
    }
    command
}
