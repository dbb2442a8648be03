//! Finds out by trying whether hardware acceleration works here and is worth it.
//!
//! ```text
//!  /dev/kvm opens? ─► guest of 200 bytes says S ─► works through 2.4 million instructions ─► says E in time?
//!        │ no               │ never                                                              │ no
//!        └─ refused         └─ refused: it does not start                                        └─ slower than emulation: not chosen
//! ```
//!
//! A device that opens is not enough: inside some virtual machines KVM runs every instruction in software, and a kernel that boots in
//! two seconds by emulation takes minutes. The guest goes the way of a kernel: long mode, paging, CPUID, model-specific registers,
//! memory. On x86-64 it is a boot ROM, so that no firmware takes part; elsewhere only the start is tried, and the notes say so.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::QemuOptions;
use super::board::Board;
use super::host::{Acceleration, Refusal};
use super::qmp::Qmp;
use crate::spec::Arch;

/// How long QEMU may take until the guest's first instruction, on a busy host.
const START_DEADLINE: Duration = Duration::from_secs(3);

/// How long the guest's work may take. Hardware needs about 2 ms and emulation by translation about 20; software that decodes one
/// instruction after another needs seconds. The second try is for a host that was busy elsewhere.
const WORK_DEADLINES: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(400)];

/// Where a boot ROM of 64 KiB starts executing: its last 16 bytes.
#[cfg(target_os = "linux")]
const RESET_VECTOR: usize = 0xfff0;

/// The guest, at offset 0 of a ROM at F000:0000.
///
/// ```text
///  16 bit  out 0xe9,'S'; tables: [1000]=2003 [2000]=3003 [3000]=83 (2 MiB, identity); cr3=1000; cr4=PAE; EFER.LME; cr0=PG|PE; jmp
///  64 bit  400,000 times: imul, store, add from memory, xor, dec, jnz;  50 times: cpuid, rdmsr EFER;  out 0xe9,'E'; out 0xf4; hlt
/// ```
#[cfg(target_os = "linux")]
const GUEST: [u8; 182] = [
    0xfa, 0xb0, 0x53, 0xe6, 0xe9, 0x31, 0xc0, 0x8e, 0xd8, 0x66, 0xc7, 0x06, 0x00, 0x10, 0x03, 0x20,
    0x00, 0x00, 0x66, 0xc7, 0x06, 0x00, 0x20, 0x03, 0x30, 0x00, 0x00, 0x66, 0xc7, 0x06, 0x00, 0x30,
    0x83, 0x00, 0x00, 0x00, 0x66, 0xb8, 0x00, 0x10, 0x00, 0x00, 0x0f, 0x22, 0xd8, 0x66, 0xb8, 0x20,
    0x00, 0x00, 0x00, 0x0f, 0x22, 0xe0, 0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0, 0x66, 0x31, 0xd2, 0x66,
    0xb8, 0x00, 0x01, 0x00, 0x00, 0x0f, 0x30, 0x2e, 0x66, 0x0f, 0x01, 0x16, 0xb0, 0x00, 0x66, 0xb8,
    0x01, 0x00, 0x00, 0x80, 0x0f, 0x22, 0xc0, 0x66, 0xea, 0x5f, 0x00, 0x0f, 0x00, 0x08, 0x00, 0xbb,
    0x80, 0x1a, 0x06, 0x00, 0x89, 0xd8, 0x0f, 0xaf, 0xc0, 0x89, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00,
    0x03, 0x34, 0x25, 0x00, 0x80, 0x00, 0x00, 0x31, 0xde, 0xff, 0xcb, 0x75, 0xe7, 0xbf, 0x32, 0x00,
    0x00, 0x00, 0xb8, 0x00, 0x00, 0x00, 0x00, 0x0f, 0xa2, 0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32,
    0xff, 0xcf, 0x75, 0xee, 0xb0, 0x45, 0xe6, 0xe9, 0x31, 0xc0, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd, 0x90,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0x00, 0x00, 0x00, 0x9a, 0xaf, 0x00,
    0x0f, 0x00, 0xa0, 0x00, 0x0f, 0x00,
];

/// What a trial showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trial {
    /// The guest did its work in time.
    Fast,
    /// The guest started, and did not do its work in time.
    Slow,
    /// The guest never executed its first instruction.
    DoesNotStart,
}

/// Opens the accelerator's device, as QEMU will.
pub(super) fn open_kvm() -> Result<(), Refusal> {
    let device = Path::new("/dev/kvm");
    let refusal = |reason: String, fix: Option<&str>| Refusal {
        reason,
        fix: fix.map(str::to_owned),
    };
    match std::fs::OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(refusal(
            "/dev/kvm may not be opened by this user".to_owned(),
            Some("sudo usermod -aG kvm $USER, then log in again"),
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(refusal(
            "this host has no /dev/kvm: its processor or its own hypervisor offers no virtualization, or it is off in the firmware".to_owned(),
            None,
        )),
        Err(error) => Err(refusal(format!("/dev/kvm can't be opened: {error}"), None)),
    }
}

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
    match try_kvm(program, arch, options).await {
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
    found
}

#[cfg(target_os = "linux")]
async fn try_kvm(program: &Path, arch: Arch, options: &QemuOptions) -> io::Result<(Trial, String)> {
    if arch != Arch::X86_64 {
        return Ok(match starts(program, arch, "kvm", options).await {
            Ok(()) => (
                Trial::Fast,
                "a machine starts; its speed was not tried".to_owned(),
            ),
            Err(error) => (Trial::DoesNotStart, error.to_string()),
        });
    }
    let mut slow = (Trial::Slow, String::new());
    for deadline in WORK_DEADLINES {
        slow = run_guest(program, "kvm", deadline, options).await?;
        if slow.0 != Trial::Slow {
            break;
        }
    }
    Ok(slow)
}

#[cfg(not(target_os = "linux"))]
async fn try_kvm(_: &Path, _: Arch, _: &QemuOptions) -> io::Result<(Trial, String)> {
    Ok((Trial::DoesNotStart, "KVM exists on Linux alone".to_owned()))
}

/// Starts a machine whose CPUs stand still, and asks it whether it is there.
async fn starts(program: &Path, arch: Arch, accel: &str, options: &QemuOptions) -> io::Result<()> {
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

/// Runs the guest and tells what became of it.
#[cfg(target_os = "linux")]
async fn run_guest(
    program: &Path,
    accel: &str,
    deadline: Duration,
    options: &QemuOptions,
) -> io::Result<(Trial, String)> {
    use command_fds::{CommandFdExt, FdMapping};
    use rustix::fs::{MemfdFlags, memfd_create};
    use std::io::Write;

    let rom = memfd_create("innkeeper-trial", MemfdFlags::CLOEXEC)?;
    let mut rom = std::fs::File::from(rom);
    rom.write_all(&trial_rom())?;

    let model = if accel == "tcg" { "max" } else { "host" };
    let mut command = quiet(program, options);
    command
        .args([
            "-machine", "q35", "-accel", accel, "-cpu", model, "-m", "16",
        ])
        .args(["-bios", "/proc/self/fd/100", "-chardev", "stdio,id=marks"])
        .args(["-device", "isa-debugcon,iobase=0xe9,chardev=marks"])
        .args(["-device", "isa-debug-exit,iobase=0xf4"])
        .stdin(Stdio::null())
        .fd_mappings(vec![FdMapping {
            parent_fd: rom.into(),
            child_fd: 100,
        }])
        .map_err(io::Error::other)?;
    let mut child = command.spawn()?;
    drop(command);
    let Some(mut marks) = child.stdout.take() else {
        return Err(io::Error::other("QEMU has no standard output"));
    };
    let started = tokio::time::timeout(START_DEADLINE, mark(&mut marks, b'S')).await;
    let outcome = match started {
        Ok(true) => {
            let begun = std::time::Instant::now();
            let done = tokio::time::timeout(deadline, mark(&mut marks, b'E')).await;
            let took = begun.elapsed();
            match done {
                Ok(true) => (
                    Trial::Fast,
                    format!(
                        "2.4 million instructions took {:.1} ms",
                        took.as_secs_f64() * 1e3
                    ),
                ),
                Ok(false) => (
                    Trial::DoesNotStart,
                    "QEMU ended in the middle of the trial".to_owned(),
                ),
                Err(_) => (
                    Trial::Slow,
                    format!(
                        "2.4 million instructions take more than {} ms",
                        deadline.as_millis()
                    ),
                ),
            }
        }
        Ok(false) => (
            Trial::DoesNotStart,
            "QEMU ended before the guest's first instruction".to_owned(),
        ),
        Err(_) => (
            Trial::DoesNotStart,
            format!(
                "the guest executed nothing within {} s",
                START_DEADLINE.as_secs()
            ),
        ),
    };
    let _ = child.kill().await;
    Ok(outcome)
}

/// Makes the boot ROM: the guest, and a jump to it at the reset vector.
#[cfg(target_os = "linux")]
fn trial_rom() -> Vec<u8> {
    let mut rom = vec![0; 0x1_0000];
    rom[..GUEST.len()].copy_from_slice(&GUEST);
    // jmp F000:0000
    rom[RESET_VECTOR..RESET_VECTOR + 5].copy_from_slice(&[0xea, 0x00, 0x00, 0x00, 0xf0]);
    rom
}

fn quiet(program: &Path, options: &QemuOptions) -> Command {
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

/// Reads until a mark; false if the stream ends or is something else before.
#[cfg(target_os = "linux")]
async fn mark(reader: &mut (impl AsyncRead + Unpin), wanted: u8) -> bool {
    let mut byte = [0];
    matches!(reader.read(&mut byte).await, Ok(1)) && byte[0] == wanted
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// The guest must be right wherever it is run: emulation runs it too, where QEMU is installed.
    #[tokio::test]
    async fn the_guest_finishes_under_emulation() {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let program = std::env::split_paths(&path)
            .map(|directory| directory.join("qemu-system-x86_64"))
            .find(|path| path.is_file());
        let Some(program) = program else {
            let required = std::env::var("INNKEEPER_REQUIRE_DRIVERS").unwrap_or_default();
            assert!(
                !required.contains("qemu"),
                "qemu is required and was not found"
            );
            println!("skipped: qemu-system-x86_64 was not found");
            return;
        };
        let options = QemuOptions::default();
        let (trial, how) = run_guest(&program, "tcg", Duration::from_secs(60), &options)
            .await
            .unwrap();
        assert_eq!(trial, Trial::Fast, "{how}");
        println!("emulation: {how}");
    }
}
