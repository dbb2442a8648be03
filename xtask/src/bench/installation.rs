//! An `inn` with a home of its own, for one process of the benchmark: made with the tiny image, gone when it ends.
//!
//! Every command has a limit of time, so that one that hangs fails the benchmark with its name instead of holding it
//! for ever. VMs are killed and removed however a measurement ends, but not when this process is itself ended by a
//! signal.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use serde::Deserialize;

use crate::process::{output, shown};
use crate::workspace;

/// Getting the tiny image may download a kernel, and importing one reads all of it.
pub(super) const IMAGE_LIMIT: Duration = Duration::from_secs(900);

/// Which `inn`, and how often.
#[derive(Args)]
pub(crate) struct InnArguments {
    /// The command line to measure; by default target/release/inn.
    #[arg(long)]
    inn: Option<PathBuf>,
    /// Directory of the guest agents; by default target/libexec/innkeeper.
    #[arg(long)]
    libexec: Option<PathBuf>,
    /// How many pairs, at least 15; by default 31 where a pair is quick, else 15.
    #[arg(long)]
    pairs: Option<usize>,
    /// Seconds after which a command or a boot counts as hung, which ends the benchmark.
    #[arg(long, default_value_t = 30)]
    timeout: u64,
}

impl InnArguments {
    /// How many pairs, where a pair takes milliseconds.
    pub(super) fn quick_pairs(&self) -> usize {
        self.pairs.unwrap_or(31)
    }

    /// How many pairs, where a pair takes seconds.
    pub(super) fn slow_pairs(&self) -> usize {
        self.pairs.unwrap_or(15)
    }

    /// After what time something counts as hung.
    pub(super) fn limit(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

/// What is used of `inn info -o json`.
#[derive(Debug, Deserialize)]
pub(super) struct Info {
    pub(super) state: String,
    pub(super) keeper_pid: Option<i32>,
    pub(super) vmm_pid: Option<i32>,
    pub(super) accel: Option<String>,
}

/// The files of an image, from `inn image info -o json`.
#[derive(Debug, Deserialize)]
pub(super) struct Files {
    /// As a bzImage.
    pub(super) kernel: PathBuf,
}

/// An `inn` with a home of its own.
pub(super) struct Installation {
    inn: PathBuf,
    libexec: PathBuf,
    root: PathBuf,
    limit: Duration,
    vms: Vec<String>,
}

impl Installation {
    /// Makes the home and gets the tiny image.
    pub(super) fn new(arguments: &InnArguments) -> Result<Self> {
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
            None => workspace::libexec_directory()?,
        };
        // Short, because the path of a unix socket is.
        let root = std::env::temp_dir().join(format!("inn-bench-{}", std::process::id()));
        std::fs::create_dir(&root).with_context(|| format!("making {}", root.display()))?;
        let installation = Self {
            inn,
            libexec,
            root,
            limit: arguments.limit(),
            vms: Vec::new(),
        };
        finish_within(
            installation.command(&["image", "pull", "-q", "tiny"]),
            IMAGE_LIMIT,
        )?;
        Ok(installation)
    }

    /// The directory of this benchmark, which goes with it.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// After what time something counts as hung.
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// The file that all events are appended to.
    pub(super) fn events(&self) -> PathBuf {
        self.root.join("home/events.jsonl")
    }

    /// An `inn` that has not started yet.
    pub(super) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.inn);
        command
            .args(words)
            .env("INNKEEPER_HOME", self.root.join("home"))
            .env("INNKEEPER_RUNTIME", self.root.join("run"))
            .env("INNKEEPER_LIBEXEC", &self.libexec)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    /// Runs `inn` to its end, and says how long it took.
    pub(super) fn run(&self, words: &[&str]) -> Result<Duration> {
        self.finish(self.command(words))
    }

    /// Runs a command to its end within the limit, and says how long it took.
    pub(super) fn finish(&self, command: Command) -> Result<Duration> {
        finish_within(command, self.limit)
    }

    /// Makes a VM of the tiny image; `verb` is `create`, or `run` to have it ready.
    pub(super) fn add(&mut self, verb: &str, name: &str, more: &[&str]) -> Result<()> {
        self.note(name);
        let words = [&[verb, "-q", "tiny", "--name", name], more].concat();
        self.run(&words).map(|_| ())
    }

    /// Notes a VM that is going to be made, so that a half-made one is removed too.
    pub(super) fn note(&mut self, name: &str) {
        self.vms.push(name.to_owned());
    }

    /// Kills and removes a VM.
    pub(super) fn remove(&mut self, name: &str) -> Result<()> {
        self.run(&["rm", "-q", "--force", "--yes", name])?;
        self.vms.retain(|other| other != name);
        Ok(())
    }

    /// Kills and removes all VMs that there may be; one that was never made can't be removed.
    pub(super) fn remove_all(&mut self) {
        for name in std::mem::take(&mut self.vms) {
            let mut command = self.command(&["rm", "-q", "--force", "--yes", &name]);
            command.stderr(Stdio::null());
            let _ = finish_within(command, self.limit);
        }
    }

    /// What `inn info` says of a VM.
    pub(super) fn info(&self, name: &str) -> Result<Info> {
        self.json(&["info", name, "-o", "json"])
    }

    /// The files of the tiny image.
    pub(super) fn tiny(&self) -> Result<Files> {
        #[derive(Deserialize)]
        struct Image {
            files: Files,
        }
        let image: Image = self.json(&["image", "info", "tiny", "-o", "json"])?;
        Ok(image.files)
    }

    fn json<T: for<'de> Deserialize<'de>>(&self, words: &[&str]) -> Result<T> {
        let mut command = self.command(words);
        let output = output(command.stdout(Stdio::piped()))?;
        let text = shown(&command);
        ensure!(
            output.status.success(),
            "{text} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        serde_json::from_slice(&output.stdout).with_context(|| format!("reading what {text} said"))
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        self.remove_all();
        if let Err(error) = std::fs::remove_dir_all(&self.root) {
            eprintln!("xtask: removing {}: {error}", self.root.display());
        }
    }
}

/// Runs to the end; an error if it fails, since a failure is quick, or if it takes longer than the limit.
pub(super) fn finish_within(mut command: Command, limit: Duration) -> Result<Duration> {
    let text = shown(&command);
    let start = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("starting {text}"))?;
    let (status, taken) = wait_within(&mut child, start, limit).with_context(|| text.clone())?;
    ensure!(status.success(), "{text} ended with {status}");
    Ok(taken)
}

/// Waits for a child's end and says when it came; kills it after the limit.
pub(super) fn wait_within(
    child: &mut Child,
    start: Instant,
    limit: Duration,
) -> Result<(ExitStatus, Duration)> {
    let pid = Pid::from_child(child);
    let (sender, receiver) = mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let hung = receiver.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
        if hung {
            // The child is not waited for before this thread has ended, so the number is still its own.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        hung
    });
    let ended = loop {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        match rustix::process::waitid(WaitId::Pid(pid), options) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other,
        }
    };
    let taken = start.elapsed();
    drop(sender);
    let hung = watchdog.join().unwrap_or(false);
    let status = child.wait().context("waiting for its end")?;
    ended.context("waiting for its end")?;
    if hung {
        bail!("it hung and was killed after {} s", limit.as_secs());
    }
    Ok((status, taken))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_is_killed_and_named() {
        let mut command = Command::new("sleep");
        command.arg("60");
        let error = finish_within(command, Duration::from_millis(30)).expect_err("a limit");
        let text = format!("{error:#}");
        assert!(text.contains("sleep 60") && text.contains("hung"), "{text}");
    }

    #[test]
    fn a_failure_is_no_timing() {
        assert!(finish_within(Command::new("false"), Duration::from_secs(30)).is_err());
        assert!(finish_within(Command::new("true"), Duration::from_secs(30)).is_ok());
    }
}
