//! Makes what is handed out: `target/dist/innkeeper-VERSION-TARGET.tar.zst`, with `inn`, the guest agents and the licences.
//!
//! ```text
//!  innkeeper-VERSION-TARGET/ bin/inn
//!                            libexec/innkeeper/agent-linux-ARCH
//!                            LICENSE-APACHE LICENSE-MIT README.md THIRD-PARTY.txt
//! ```
//!
//! For this host it builds with what is installed. For a Mac it links without Apple's SDK and signs ad hoc (module [`apple`]); what it
//! can't do it says, and then there is no archive. It publishes nothing.

mod apple;
mod archive;
mod notices;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use self::archive::Entry;
use crate::agent::{self, Architectures};
use crate::process::{self, cargo, say};
use crate::workspace;

/// The arguments of `cargo xtask dist`.
#[derive(clap::Args)]
pub(crate) struct DistArguments {
    /// Target triple; this host's if none is given
    #[arg(long)]
    target: Option<String>,
}

/// Builds, signs where that is needed, and packs.
pub(crate) fn run(arguments: &DistArguments) -> Result<()> {
    let host = host_triple()?;
    let target = arguments.target.as_deref().unwrap_or(&host);
    let directory = workspace::target_directory()?.join("dist");
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let program = if apple::is_apple(target) && !cfg!(target_os = "macos") {
        apple::link(target, &directory)?
    } else if target == host {
        build()?
    } else {
        bail!("{target} can't be made on {host}: this host's own and Macs' can");
    };
    if apple::is_apple(target) {
        apple::sign(&program, &directory)?;
    }
    let agents = agent::build_files(Architectures::All)?;
    pack(target, &program, &agents, &directory)
}

/// Builds `inn` for this host.
fn build() -> Result<PathBuf> {
    process::run(&mut cargo([
        "build",
        "--locked",
        "--release",
        "--package",
        "inn",
    ]))?;
    Ok(workspace::target_directory()?.join("release/inn"))
}

fn host_triple() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = std::process::Command::new(rustc);
    command.args(["--print", "host-tuple"]);
    let text = String::from_utf8(process::stdout(&mut command)?).context("rustc's host")?;
    Ok(text.trim().to_owned())
}

fn pack(target: &str, program: &Path, agents: &[PathBuf], directory: &Path) -> Result<()> {
    let root = format!("innkeeper-{}-{target}", env!("CARGO_PKG_VERSION"));
    let mut entries = vec![Entry::file("bin/inn", program, 0o755)?];
    for agent in agents {
        let name = agent.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("libexec/innkeeper/{name}");
        entries.push(Entry::file(&name, agent, 0o755)?);
    }
    for name in ["LICENSE-APACHE", "LICENSE-MIT", "README.md"] {
        entries.push(Entry::file(name, &workspace::root().join(name), 0o644)?);
    }
    let notices = notices::collect(target)?;
    entries.push(Entry::bytes("THIRD-PARTY.txt", notices.into_bytes(), 0o644));
    let path = directory.join(format!("{root}.tar.zst"));
    archive::write(&path, &root, &entries)?;
    say(&format!("made {}", path.display()));
    Ok(())
}
