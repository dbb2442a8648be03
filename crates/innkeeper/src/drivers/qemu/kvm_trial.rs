//! Finds out by trying whether KVM works here and is worth it. Linux only.
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

use std::io::{self, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use rustix::fs::{MemfdFlags, memfd_create};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::QemuOptions;
use super::trial::{START_DEADLINE, quiet, starts};
use crate::spec::Arch;

/// How long the guest's work may take. Hardware needs about 2 ms and emulation by translation about 20; software that decodes one
/// instruction after another needs seconds. The second try is for a host that was busy elsewhere.
const WORK_DEADLINES: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(400)];

/// Where a boot ROM of 64 KiB starts executing: its last 16 bytes.
const RESET_VECTOR: usize = 0xfff0;

/// The guest, at offset 0 of a ROM at F000:0000.
///
/// ```text
///  16 bit  out 0xe9,'S'; tables: [1000]=2003 [2000]=3003 [3000]=83 (2 MiB, identity); cr3=1000; cr4=PAE; EFER.LME; cr0=PG|PE; jmp
///  64 bit  400,000 times: imul, store, add from memory, xor, dec, jnz;  50 times: cpuid, rdmsr EFER;  out 0xe9,'E'; out 0xf4; hlt
/// ```
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
pub(super) enum Trial {
    /// The guest did its work in time.
    Fast,
    /// The guest started, and did not do its work in time.
    Slow,
    /// The guest never executed its first instruction.
    DoesNotStart,
}

/// Tries KVM, and tells what it showed and how.
pub(super) async fn try_kvm(
    program: &Path,
    arch: Arch,
    options: &QemuOptions,
) -> io::Result<(Trial, String)> {
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

/// Runs the guest and tells what became of it.
async fn run_guest(
    program: &Path,
    accel: &str,
    deadline: Duration,
    options: &QemuOptions,
) -> io::Result<(Trial, String)> {
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
fn trial_rom() -> Vec<u8> {
    let mut rom = vec![0; 0x1_0000];
    rom[..GUEST.len()].copy_from_slice(&GUEST);
    // jmp F000:0000
    rom[RESET_VECTOR..RESET_VECTOR + 5].copy_from_slice(&[0xea, 0x00, 0x00, 0x00, 0xf0]);
    rom
}

/// Reads until a mark; false if the stream ends or is something else before.
async fn mark(reader: &mut (impl AsyncRead + Unpin), wanted: u8) -> bool {
    let mut byte = [0];
    matches!(reader.read(&mut byte).await, Ok(1)) && byte[0] == wanted
}

#[cfg(test)]
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
