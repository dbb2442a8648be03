//! `cargo xtask check`: everything that can be known without running the product.
//!
//! Formatting, house rules, lints on this host and for macOS, documentation, licences. Where macOS cannot be checked
//! it says so aloud; nothing else is ever skipped.

use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{self, cargo, say};
use crate::{agent, licences, tidy, workspace};

const MACS: &[&str] = &["aarch64-apple-darwin", "x86_64-apple-darwin"];

/// Runs all checks, the quick ones first; the first failure ends it.
pub(crate) fn run() -> Result<()> {
    process::run(&mut cargo(["fmt", "--all", "--check"]))?;
    tidy::run()?;
    licences::run()?;
    process::run(&mut cargo([
        "clippy",
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    for target in MACS {
        mac(target)?;
    }
    process::run(
        cargo([
            "doc",
            "--locked",
            "--workspace",
            "--no-deps",
            "--document-private-items",
        ])
        .env(
            "RUSTDOCFLAGS",
            "-Dwarnings -Arustdoc::private_intra_doc_links",
        ),
    )?;
    say("all checks passed");
    Ok(())
}

/// Lints for a kind of Mac, by rustup's std or by the checker that the environment names.
fn mac(target: &str) -> Result<()> {
    let rest = [
        "--workspace",
        "--exclude",
        "xtask",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    if agent::std_is_installed(target)? {
        return process::run(cargo(["clippy", "--locked", "--target", target]).args(rest));
    }
    let Some(checker) = std::env::var_os("INNKEEPER_APPLE_CHECK") else {
        say(&format!(
            "SKIPPED: lints for {target}: no std for it; run `rustup target add {target}`"
        ));
        return Ok(());
    };
    let mut command = Command::new(checker);
    command
        .args(["-t", target, "-m", "clippy", "."])
        .args(rest)
        .current_dir(workspace::root());
    eprintln!("+ {}", process::shown(&command));
    let status = command.stdin(std::process::Stdio::null()).status()?;
    match status.code() {
        Some(0) => Ok(()),
        // The checker's own word for "nothing was checked".
        Some(3) => {
            say(&format!(
                "SKIPPED: lints for {target}: the checker has no std for this rustc"
            ));
            Ok(())
        }
        _ => bail!("{} failed: {status}", process::shown(&command)),
    }
}
