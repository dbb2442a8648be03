//! Builds the guest agent as static executables, `target/libexec/innkeeper/agent-linux-ARCH`.
//!
//! `inn` finds them beside itself, in `../libexec/innkeeper`, or where `INNKEEPER_LIBEXEC` says. The host's own
//! architecture must succeed; a foreign one is made where a std and a linker for it are at hand, and otherwise the
//! reason is told: tests that need it say so themselves. Every result is checked to be a static ELF of the right machine.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::Message;

use crate::process::{self, find_program, say};
use crate::workspace;

/// One architecture that an agent can be built for.
struct AgentTarget {
    /// Name in the product, as in `agent-linux-NAME`.
    arch: &'static str,
    /// Rust's target triple.
    triple: &'static str,
    /// Linker of the cross toolchain.
    linker: &'static str,
    /// Debian's package of it.
    linker_package: &'static str,
    /// ELF's `e_machine` (System V ABI, processor supplements).
    machine: u16,
}

impl AgentTarget {
    fn is_native(&self) -> bool {
        cfg!(target_os = "linux") && self.triple.split('-').next() == Some(std::env::consts::ARCH)
    }
}

const TARGETS: &[AgentTarget] = &[
    AgentTarget {
        arch: "x86_64",
        triple: "x86_64-unknown-linux-gnu",
        linker: "x86_64-linux-gnu-gcc",
        linker_package: "gcc-x86-64-linux-gnu",
        machine: 62,
    },
    AgentTarget {
        arch: "arm64",
        triple: "aarch64-unknown-linux-gnu",
        linker: "aarch64-linux-gnu-gcc",
        linker_package: "gcc-aarch64-linux-gnu and libc6-dev-arm64-cross",
        machine: 183,
    },
];

/// What came of one architecture.
enum Outcome {
    /// The file stands there.
    Built(PathBuf),
    /// It could not be made here; the text says what lacks.
    Lacking(String),
}

/// For which architectures agents are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Architectures {
    /// This host's own.
    Native,
    /// Every one that a compiler and linker are at hand for.
    All,
}

/// Builds the agents; gives the directory of them.
pub(crate) fn build(wanted: Architectures) -> Result<PathBuf> {
    build_files(wanted)?;
    workspace::libexec_directory()
}

/// Builds the agents; gives those that were made now, and not what an earlier run left beside them.
pub(crate) fn build_files(wanted: Architectures) -> Result<Vec<PathBuf>> {
    let directory = workspace::libexec_directory()?;
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let mut built = Vec::new();
    for target in TARGETS {
        if wanted == Architectures::Native && !target.is_native() {
            continue;
        }
        match build_one(target, &directory)? {
            Outcome::Built(path) => {
                say(&format!("agent for {}: {}", target.arch, path.display()));
                built.push(path);
            }
            Outcome::Lacking(what) => say(&format!("SKIPPED: agent for {}: {what}", target.arch)),
        }
    }
    Ok(built)
}

fn build_one(target: &AgentTarget, directory: &Path) -> Result<Outcome> {
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    if !target.is_native() {
        if find_program(target.linker).is_none() {
            return Ok(Outcome::Lacking(format!(
                "no linker: install {}",
                target.linker_package
            )));
        }
        flags.push(format!("-Clinker={}", target.linker));
        match sysroot_of(target.triple)? {
            Sysroot::Installed => {}
            Sysroot::At(path) => flags.push(format!("--sysroot={path}")),
            Sysroot::Missing => {
                return Ok(Outcome::Lacking(format!(
                    "no Rust std: run `rustup target add {}`",
                    target.triple
                )));
            }
        }
    }
    let mut command = process::cargo([
        "build",
        "--locked",
        "--package",
        "innkeeper-agent",
        "--bin",
        "inn-agent",
        "--profile",
        "agent",
        "--target",
        target.triple,
        "--message-format",
        "json-render-diagnostics",
    ]);
    command
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env_remove("RUSTFLAGS");
    if !target.is_native() {
        // A std that was not made by rustup's people carries no bitcode to optimise across.
        command.env("CARGO_PROFILE_AGENT_LTO", "off");
    }
    say(&format!(
        "building the static guest agent for {}",
        target.arch
    ));
    let output = process::stdout(&mut command)?;
    let built = executable_named(&output, "inn-agent")?.context("cargo built no inn-agent")?;
    let image = fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    check_static(&image, target.machine)
        .with_context(|| format!("checking {}", built.display()))?;
    let path = directory.join(format!("agent-linux-{}", target.arch));
    // Renamed into place: a VM that starts meanwhile must not read half an agent.
    let fresh = directory.join(format!(".agent-linux-{}.new", target.arch));
    fs::copy(&built, &fresh).with_context(|| format!("writing {}", fresh.display()))?;
    fs::rename(&fresh, &path).with_context(|| format!("renaming to {}", path.display()))?;
    Ok(Outcome::Built(path))
}

/// Where the std of a target is.
pub(crate) enum Sysroot {
    /// In the toolchain itself.
    Installed,
    /// In a sysroot of its own.
    At(String),
    /// Nowhere.
    Missing,
}

/// Finds the std of a target.
pub(crate) fn sysroot_of(triple: &str) -> Result<Sysroot> {
    if std_is_installed(triple)? {
        return Ok(Sysroot::Installed);
    }
    let Some(checker) = std::env::var_os("INNKEEPER_APPLE_CHECK") else {
        return Ok(Sysroot::Missing);
    };
    let mut command = std::process::Command::new(&checker);
    command
        .args(["-t", triple, "-m", "setup"])
        .arg(workspace::root());
    let output = process::output(&mut command)?;
    if output.status.code() == Some(3) {
        return Ok(Sysroot::Missing);
    }
    ensure!(
        output.status.success(),
        "{} failed: {}",
        process::shown(&command),
        output.status
    );
    let path = String::from_utf8(output.stdout)
        .context("the checker printed no path")?
        .trim()
        .to_owned();
    Ok(if path.is_empty() {
        Sysroot::Installed
    } else {
        Sysroot::At(path)
    })
}

/// Whether the toolchain itself has the std of a target.
pub(crate) fn std_is_installed(triple: &str) -> Result<bool> {
    let mut command =
        std::process::Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    command
        .args(["--print", "sysroot"])
        .current_dir(workspace::root());
    let sysroot = String::from_utf8(process::stdout(&mut command)?).context("rustc's sysroot")?;
    Ok(Path::new(sysroot.trim())
        .join("lib/rustlib")
        .join(triple)
        .join("lib")
        .is_dir())
}

/// The executable that cargo's JSON messages name for a binary target.
fn executable_named(messages: &[u8], name: &str) -> Result<Option<PathBuf>> {
    for message in Message::parse_stream(messages) {
        if let Message::CompilerArtifact(artifact) = message.context("reading cargo's messages")?
            && artifact.target.name == name
            && let Some(path) = artifact.executable
        {
            return Ok(Some(path.into_std_path_buf()));
        }
    }
    Ok(None)
}

/// Checks that an ELF64 little-endian file is for the machine and asks for no dynamic loader.
///
/// Layout: System V ABI, "ELF Header" and "Program Header"; `PT_INTERP` is 3.
fn check_static(image: &[u8], machine: u16) -> Result<()> {
    let field = |offset: usize, length: usize| -> Result<u64> {
        let bytes = offset
            .checked_add(length)
            .and_then(|end| image.get(offset..end))
            .context("file too short")?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    ensure!(
        image.starts_with(b"\x7fELF\x02\x01"),
        "not a little-endian ELF64 file"
    );
    let found = field(18, 2)?;
    ensure!(
        found == u64::from(machine),
        "made for machine {found}, not {machine}"
    );
    let (table, size, count) = (field(32, 8)?, field(54, 2)?, field(56, 2)?);
    for index in 0..count {
        let entry = usize::try_from(table.saturating_add(index * size))
            .context("program header out of range")?;
        if field(entry, 4)? == 3 {
            bail!(
                "it asks for a dynamic loader, so it would not start in a guest without that libc"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(machine: u16, program_header_type: u32) -> Vec<u8> {
        let mut image = vec![0; 64 + 56];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[18..20].copy_from_slice(&machine.to_le_bytes());
        image[32..40].copy_from_slice(&64_u64.to_le_bytes());
        image[54..56].copy_from_slice(&56_u16.to_le_bytes());
        image[56..58].copy_from_slice(&1_u16.to_le_bytes());
        image[64..68].copy_from_slice(&program_header_type.to_le_bytes());
        image
    }

    #[test]
    fn static_executables_pass_and_dynamic_ones_do_not() {
        assert!(check_static(&elf(62, 1), 62).is_ok());
        assert!(check_static(&elf(62, 3), 62).is_err());
        assert!(check_static(&elf(183, 1), 62).is_err());
        assert!(check_static(b"#!/bin/true", 62).is_err());
        assert!(check_static(&elf(62, 1)[..80], 62).is_ok());
        assert!(check_static(&elf(62, 1)[..60], 62).is_err());
    }
}
