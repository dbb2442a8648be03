//! Whole processes of `inn`, from spawn to exit, each against a process that does nothing (`/bin/true`).
//!
//! The peer is the floor of the machine at that moment, not a rival: the goals are absolute. All state lives in a
//! home of the benchmark's own, which goes with it; VMs are killed and removed however the measurement ends, but not
//! when this process is itself ended by a signal.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::{Goal, Pair, measure};
use crate::workspace;

/// How many VMs `ls` lists, and how many of them run.
const LISTED: usize = 100;
const RUNNING: usize = 3;

/// Which `inn`, and how often.
#[derive(Args)]
pub(crate) struct CommandArguments {
    /// The command line to measure; by default target/release/inn.
    #[arg(long)]
    inn: Option<PathBuf>,
    /// Directory of the guest agents; by default target/libexec/innkeeper.
    #[arg(long)]
    libexec: Option<PathBuf>,
    /// How many pairs, at least 15.
    #[arg(long, default_value_t = 31)]
    pairs: usize,
}

/// An `inn` with a home of its own.
struct Installation {
    inn: PathBuf,
    libexec: PathBuf,
    root: PathBuf,
    vms: Vec<String>,
}

impl Installation {
    fn new(arguments: &CommandArguments) -> Result<Self> {
        let target = workspace::target_directory()?;
        let inn = match &arguments.inn {
            Some(inn) => inn.clone(),
            None => target.join("release/inn"),
        };
        ensure!(
            inn.is_file(),
            "{} is not there: run cargo build --release -p inn",
            inn.display()
        );
        let libexec = match &arguments.libexec {
            Some(libexec) => libexec.clone(),
            None => target.join("libexec/innkeeper"),
        };
        // Short, because the path of a unix socket is.
        let root = std::env::temp_dir().join(format!("inn-bench-{}", std::process::id()));
        std::fs::create_dir(&root).with_context(|| format!("making {}", root.display()))?;
        Ok(Self {
            inn,
            libexec,
            root,
            vms: Vec::new(),
        })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.inn);
        command
            .args(arguments)
            .env("INNKEEPER_HOME", self.root.join("home"))
            .env("INNKEEPER_RUNTIME", self.root.join("run"))
            .env("INNKEEPER_LIBEXEC", &self.libexec)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    /// Makes a VM of the tiny image; `verb` is `create`, or `run` to have it ready.
    fn add(&mut self, verb: &str, name: String) -> Result<()> {
        // Noted first, so that a half-made one is removed too.
        self.vms.push(name.clone());
        finish(self.command(&[verb, "tiny", "--name", &name])).map(|_| ())
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        for name in &self.vms {
            // One that was never made can't be removed.
            let _ = self
                .command(&["rm", "--force", "--yes", name])
                .stderr(Stdio::null())
                .status();
        }
        if let Err(error) = std::fs::remove_dir_all(&self.root) {
            eprintln!("xtask: removing {}: {error}", self.root.display());
        }
    }
}

/// Measures `inn --version`.
pub(crate) fn version(arguments: &CommandArguments) -> Result<()> {
    let installation = Installation::new(arguments)?;
    compare(
        "version",
        &installation,
        &["--version"],
        2.0,
        arguments.pairs,
    )
}

/// Measures `inn ls`.
pub(crate) fn ls(arguments: &CommandArguments) -> Result<()> {
    let mut installation = Installation::new(arguments)?;
    for index in 0..LISTED {
        let verb = if index < RUNNING { "run" } else { "create" };
        installation.add(verb, format!("bench-{index}"))?;
    }
    compare("ls", &installation, &["ls"], 5.0, arguments.pairs)
}

/// Measures `inn exec`.
pub(crate) fn exec(arguments: &CommandArguments) -> Result<()> {
    let mut installation = Installation::new(arguments)?;
    installation.add("run", "bench".to_owned())?;
    compare(
        "exec",
        &installation,
        &["exec", "bench", "true"],
        20.0,
        arguments.pairs,
    )
}

/// Measures `inn create` from a 10 GiB image, which `rm` undoes untimed, against `qemu-img create -b`.
pub(crate) fn create(arguments: &CommandArguments) -> Result<()> {
    let mut installation = Installation::new(arguments)?;
    let image = installation.root.join("image.raw");
    let overlay = installation.root.join("overlay.qcow2");
    std::fs::File::create(&image)
        .and_then(|file| file.set_len(10 << 30))
        .with_context(|| format!("making {}", image.display()))?;
    let mut import =
        installation.command(&["image", "import", "--name", "bench", "--format", "raw"]);
    import.arg(&image);
    finish(import)?;
    installation.vms.push("bench".to_owned());
    let installation = &installation;
    let pair = Pair {
        name: "inn create, 10 GiB image".to_owned(),
        ours: Box::new(|| {
            let taken = finish(installation.command(&["create", "bench", "--name", "bench"]))?;
            finish(installation.command(&["rm", "--yes", "bench"]))?;
            Ok(taken)
        }),
        theirs: Box::new(|| {
            let mut command = Command::new("qemu-img");
            command
                .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
                .args([&image, &overlay]);
            finish(command)
        }),
        goal: Some(Goal::OursAtMost(15.0)),
    };
    measure("create", vec![pair], arguments.pairs)
}

fn compare(
    name: &str,
    installation: &Installation,
    words: &[&str],
    goal_ms: f64,
    pairs: usize,
) -> Result<()> {
    let pair = Pair {
        name: format!("inn {}", words.join(" ")),
        ours: Box::new(|| finish(installation.command(words))),
        theirs: Box::new(|| finish(Command::new(Path::new("/bin/true")))),
        goal: Some(Goal::OursAtMost(goal_ms)),
    };
    measure(name, vec![pair], pairs)
}

/// Runs to the end; an error if it fails, since a failure is quick.
fn finish(mut command: Command) -> Result<Duration> {
    let start = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("starting {command:?}"))?;
    let taken = start.elapsed();
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(taken)
}
