//! Links `inn` for a Mac without Apple's SDK, and signs it ad hoc with the entitlement of virtualization.
//!
//! ```text
//!  cargo build ─► rust-lld ◄── stubs of Apple's libraries: their names, no symbols
//!                    │          (a symbol is looked up when the program is loaded)
//!                    ▼
//!                 Mach-O ─► codesign (on a Mac) or rcodesign (elsewhere) ─► signed
//! ```
//!
//! What this can't know: whether every symbol is in Apple's libraries, since the stubs have none. macOS says so when the program starts.
//! The one entitlement is `com.apple.security.virtualization`, which anybody may have. Those of bridged networks and vmnet are granted
//! by Apple, and macOS ends a program that has them without that grant.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::agent::{Sysroot, sysroot_of};
use crate::process::{self, cargo, find_program, say};
use crate::workspace;

/// Libraries in `/usr/lib` that a program may be linked to: the name that the linker is given, and the one that the program asks for.
const LIBRARIES: &[(&str, &str)] = &[
    ("libSystem", "libSystem.B.dylib"),
    ("libc", "libSystem.B.dylib"),
    ("libm", "libSystem.B.dylib"),
    ("libobjc", "libobjc.A.dylib"),
    ("libiconv", "libiconv.2.dylib"),
];

/// Frameworks that a program may be linked to, with the version that macOS has of them.
const FRAMEWORKS: &[(&str, &str)] = &[
    ("AppKit", "C"),
    ("CoreFoundation", "A"),
    ("CoreServices", "A"),
    ("Foundation", "C"),
    ("IOKit", "A"),
    ("Security", "A"),
    ("SystemConfiguration", "A"),
    ("Virtualization", "A"),
];

/// What the program may do: run virtual machines, and nothing that Apple would have to grant.
const ENTITLEMENTS: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
    <key>com.apple.security.virtualization</key>
    <true/>
</dict>
</plist>
"#;

/// Mach-O's `MH_MAGIC_64`, `MH_EXECUTE` and the CPU types (`mach-o/loader.h`, `mach/machine.h`).
const MAGIC: u32 = 0xfeed_facf;
const EXECUTE: u32 = 2;
const CPU_ARM64: u32 = 0x0100_000c;
const CPU_X86_64: u32 = 0x0100_0007;

/// Tells whether a target is a Mac.
pub(super) fn is_apple(target: &str) -> bool {
    target.ends_with("-apple-darwin")
}

/// Links `inn` for a Mac on another system.
pub(super) fn link(target: &str, directory: &Path) -> Result<PathBuf> {
    let linker = rust_lld()?;
    let sdk = directory.join("stubs");
    write_stubs(&sdk)?;
    let mut flags = vec![
        format!("-Clinker={}", linker.display()),
        "-Clinker-flavor=ld64.lld".to_owned(),
        "-Clink-arg=-undefined".to_owned(),
        "-Clink-arg=dynamic_lookup".to_owned(),
    ];
    let own_std = match sysroot_of(target)? {
        Sysroot::Installed => false,
        Sysroot::At(path) => {
            flags.push(format!("--sysroot={path}"));
            true
        }
        Sysroot::Missing => bail!("no Rust std: run `rustup target add {target}`"),
    };
    let built = workspace::target_directory()?.join("dist-build");
    let mut command = cargo([
        "build",
        "--locked",
        "--release",
        "--package",
        "inn",
        "--target",
        target,
        "--target-dir",
    ]);
    command
        .arg(&built)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("SDKROOT", &sdk)
        .env_remove("RUSTFLAGS");
    if own_std {
        // A std that was not made by rustup's people carries no bitcode to optimise across, and unwinds.
        command
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_PROFILE_RELEASE_PANIC", "unwind");
    }
    process::run(&mut command)?;
    let program = built.join(target).join("release/inn");
    let image = fs::read(&program).with_context(|| format!("reading {}", program.display()))?;
    check_executable(&image, target).with_context(|| format!("checking {}", program.display()))?;
    // Signing changes the file, and cargo's own must stay as cargo made it.
    let place = directory.join(target);
    fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
    let copy = place.join("inn");
    fs::copy(&program, &copy).with_context(|| format!("writing {}", copy.display()))?;
    say(&format!("linked {}, which nobody has run", copy.display()));
    Ok(copy)
}

/// Signs a program ad hoc with the entitlement of virtualization.
pub(super) fn sign(program: &Path, directory: &Path) -> Result<()> {
    let entitlements = directory.join("entitlements.plist");
    fs::write(&entitlements, ENTITLEMENTS)
        .with_context(|| format!("writing {}", entitlements.display()))?;
    let mut command = if let Some(codesign) = find_program("codesign") {
        let mut command = Command::new(codesign);
        command
            .args(["--force", "--sign", "-", "--entitlements"])
            .arg(&entitlements);
        command
    } else if let Some(rcodesign) = find_program("rcodesign") {
        let mut command = Command::new(rcodesign);
        command
            .args(["sign", "--entitlements-xml-file"])
            .arg(&entitlements);
        command
    } else {
        bail!(
            "{} is linked but not signed with the entitlement of virtualization, without which macOS lets it run no VM by \
             Virtualization.framework; there is no archive. Either install rcodesign (`cargo install apple-codesign \
             --no-default-features`) and run this again, or sign it on a Mac: codesign --force --sign - --entitlements {} PROGRAM",
            program.display(),
            entitlements.display()
        );
    };
    command.arg(program);
    process::run(&mut command)?;
    let image = fs::read(program).with_context(|| format!("reading {}", program.display()))?;
    let key: &[u8] = b"com.apple.security.virtualization";
    ensure!(
        image.windows(key.len()).any(|window| window == key),
        "{} was signed without the entitlement",
        program.display()
    );
    Ok(())
}

/// The linker that comes with Rust.
fn rust_lld() -> Result<PathBuf> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command
        .args(["--print", "target-libdir"])
        .current_dir(workspace::root());
    let text = String::from_utf8(process::stdout(&mut command)?).context("rustc's directory")?;
    let linker = Path::new(text.trim())
        .parent()
        .map(|above| above.join("bin/rust-lld"))
        .filter(|linker| linker.is_file());
    linker.context("this Rust has no rust-lld")
}

/// Writes the stubs, as far as they are not there.
fn write_stubs(sdk: &Path) -> Result<()> {
    for (name, install) in LIBRARIES {
        let path = sdk.join("usr/lib").join(format!("{name}.tbd"));
        write_stub(&path, &format!("/usr/lib/{install}"))?;
    }
    for (name, version) in FRAMEWORKS {
        let place = format!("System/Library/Frameworks/{name}.framework");
        let path = sdk.join(&place).join(format!("{name}.tbd"));
        write_stub(&path, &format!("/{place}/Versions/{version}/{name}"))?;
    }
    Ok(())
}

fn write_stub(path: &Path, install_name: &str) -> Result<()> {
    let writing = || format!("writing {}", path.display());
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(writing)?;
    }
    fs::write(path, stub(install_name)).with_context(writing)
}

/// A library's stub without symbols, in the text form of Apple's linkers, version 4 (LLVM, `TextStub.cpp`).
fn stub(install_name: &str) -> String {
    let targets = "[ x86_64-macos, arm64-macos ]";
    format!(
        "--- !tapi-tbd\ntbd-version: 4\ntargets: {targets}\ninstall-name: '{install_name}'\n\
         exports:\n  - targets: {targets}\n    symbols: [ ]\n...\n"
    )
}

/// Checks that a file is a program for a kind of Mac.
fn check_executable(image: &[u8], target: &str) -> Result<()> {
    let word = |offset: usize| {
        let bytes = image.get(offset..offset + 4).context("file too short")?;
        Ok::<u32, anyhow::Error>(u32::from_le_bytes(bytes.try_into()?))
    };
    ensure!(word(0)? == MAGIC, "not a 64-bit Mach-O file");
    let wanted = if target.starts_with("aarch64-") {
        CPU_ARM64
    } else {
        CPU_X86_64
    };
    let found = word(4)?;
    ensure!(found == wanted, "made for CPU type {found:#x}");
    ensure!(word(12)? == EXECUTE, "not a program");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_for_the_right_mac_pass() {
        let image = |cpu: u32, kind: u32| {
            let mut image = Vec::new();
            for word in [MAGIC, cpu, 0, kind] {
                image.extend(word.to_le_bytes());
            }
            image
        };
        let (arm, intel) = ("aarch64-apple-darwin", "x86_64-apple-darwin");
        assert!(check_executable(&image(CPU_ARM64, EXECUTE), arm).is_ok());
        assert!(check_executable(&image(CPU_X86_64, EXECUTE), intel).is_ok());
        assert!(check_executable(&image(CPU_X86_64, EXECUTE), arm).is_err());
        assert!(check_executable(&image(CPU_ARM64, 6), arm).is_err());
        assert!(check_executable(&image(CPU_ARM64, EXECUTE)[..12], arm).is_err());
        assert!(check_executable(b"\x7fELF", arm).is_err());
        assert!(is_apple(arm) && !is_apple("x86_64-unknown-linux-gnu"));
    }

    #[test]
    fn every_framework_that_the_wrapper_asks_for_has_a_stub() {
        let manifest = workspace::root().join("crates/innkeeper-vz/Cargo.toml");
        let text = fs::read_to_string(manifest).unwrap();
        for (dependency, framework) in [
            ("objc2-app-kit", "AppKit"),
            ("objc2-core-foundation", "CoreFoundation"),
            ("objc2-foundation", "Foundation"),
            ("objc2-virtualization", "Virtualization"),
        ] {
            assert!(text.contains(dependency));
            assert!(FRAMEWORKS.iter().any(|(name, _)| *name == framework));
        }
    }
}
