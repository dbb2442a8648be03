//! What a trial works with: a host of its own, the VM to make, the guest, and ways to wait and to look.

use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use innkeeper_agent::message::{ExecRequest, ExitStatus};
use innkeeper_api::{ErrorKind, VmInfo, VmState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Failure, Guest, Verdict};
use crate::guest::GuestChannel;
use crate::host::{Host, StopOptions, WaitFor};
use crate::progress::Silent;
use crate::spec::VmSpec;

/// How often a condition is looked at that nobody tells of.
const LOOK: Duration = Duration::from_millis(10);

/// Opens an installation; with a name, as if the computer had been restarted and its boot had that name.
pub type Open = dyn Fn(Option<&str>) -> crate::Result<Host> + Send + Sync;

/// What a harness hands over for one trial.
pub struct Setup {
    /// Opens the installation of this trial.
    pub open: Box<Open>,
    /// The runtime directory of the installation.
    pub runtime: PathBuf,
    /// Name of the driver.
    pub driver: String,
    /// The VM to make: image or kernel, memory, driver.
    pub spec: VmSpec,
    /// The guest that comes of it.
    pub guest: Box<dyn Guest>,
    /// A directory of this computer in which trials may make disks.
    pub files: PathBuf,
    /// How long a guest may take to become ready on this computer.
    pub patience: Duration,
}

/// What a trial works with.
pub struct Context {
    /// The host.
    pub host: Host,
    /// What was handed over.
    pub setup: Setup,
}

/// What a command in the guest gave.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) out: Vec<u8>,
    pub(super) err: String,
    pub(super) status: ExitStatus,
}

impl Context {
    /// Opens the installation.
    pub fn new(setup: Setup) -> crate::Result<Context> {
        Ok(Context {
            host: (setup.open)(None)?,
            setup,
        })
    }

    /// Removes every VM that is left, protected or not. Only for after a trial.
    pub async fn clear(&self) -> Verdict {
        for info in self.host.list().await? {
            if info.protected {
                self.host.protect(&info.name, false).await?;
            }
            self.host.remove(&info.name, true).await?;
        }
        self.host.tidy_up(false).await?;
        Ok(())
    }

    pub(super) fn spec(&self) -> VmSpec {
        self.setup.spec.clone()
    }

    /// The spec with words added to its kernel's command line.
    pub(super) fn spec_that_is(&self, word: super::Word) -> Verdict<VmSpec> {
        let words = self
            .setup
            .guest
            .words(word)
            .ok_or_else(|| Failure::new(format!("this guest can't be {word:?}")))?;
        let mut spec = self.spec();
        spec.boot.cmdline = Some(match spec.boot.cmdline {
            Some(before) => format!("{before} {words}"),
            None => words.to_owned(),
        });
        Ok(spec)
    }

    pub(super) async fn create(&self, name: &str, spec: VmSpec) -> Verdict<VmInfo> {
        let info = self.host.create(name, spec, &Silent).await?;
        super::require!(
            info.state == VmState::Stopped,
            "{name} was created and is {}",
            info.state
        );
        Ok(info)
    }

    /// Creates and starts a VM, which then runs but need not be ready.
    pub(super) async fn running(&self, name: &str) -> Verdict<VmInfo> {
        self.create(name, self.spec()).await?;
        self.start(name).await
    }

    /// Creates and starts a VM and waits until it is ready.
    pub(super) async fn ready(&self, name: &str) -> Verdict<VmInfo> {
        self.create(name, self.spec()).await?;
        self.start_ready(name).await
    }

    /// Starts a VM; it runs.
    pub(super) async fn start(&self, name: &str) -> Verdict<VmInfo> {
        self.host.start(name).await?;
        let info = self.host.info(name).await?;
        super::require!(
            matches!(info.state, VmState::Running | VmState::Ready),
            "{name} was started and is {}: {}",
            info.state,
            info.reason.unwrap_or_default()
        );
        Ok(info)
    }

    /// Starts a VM and waits until it is ready.
    pub(super) async fn start_ready(&self, name: &str) -> Verdict<VmInfo> {
        self.start(name).await?;
        self.wait_ready(name).await
    }

    pub(super) async fn wait_ready(&self, name: &str) -> Verdict<VmInfo> {
        Ok(self
            .host
            .wait(name, WaitFor::Ready, Some(self.setup.patience), &|_| ())
            .await?)
    }

    /// How a stop goes that must succeed.
    pub(super) fn gently(&self) -> StopOptions {
        StopOptions {
            timeout: self.setup.patience,
            force: false,
        }
    }

    /// Looks at a VM until it is as wanted.
    pub(super) async fn until(
        &self,
        name: &str,
        what: &str,
        mut is_so: impl FnMut(&VmInfo) -> bool,
    ) -> Verdict<VmInfo> {
        let started = Instant::now();
        loop {
            let info = self.host.info(name).await?;
            if is_so(&info) {
                return Ok(info);
            }
            super::require!(
                started.elapsed() < self.setup.patience,
                "{name} did not become {what}; it is {} ({:?}), agent {:?}, keeper {:?}, hypervisor {:?}",
                info.state,
                info.reason,
                info.agent.state,
                info.keeper_pid,
                info.vmm_pid
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until a condition outside of any VM holds.
    pub(super) async fn eventually(&self, what: &str, mut is_so: impl FnMut() -> bool) -> Verdict {
        let started = Instant::now();
        while !is_so() {
            super::require!(
                started.elapsed() < self.setup.patience,
                "in vain waited for: {what}"
            );
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// What is in a VM's memory must be this, once it runs.
    pub(super) async fn recalls(&self, name: &str, memory: &str) -> Verdict {
        let runs = |state| matches!(state, VmState::Running | VmState::Ready);
        let info = self.until(name, "running", |info| runs(info.state)).await?;
        if self.setup.guest.has(super::Part::Agent).is_ok() {
            self.wait_ready(name).await?;
        }
        let now = self.setup.guest.recall(&self.host, &info).await?;
        super::require!(
            now == memory,
            "{name} has {now:?} in its memory, not {memory:?}"
        );
        Ok(())
    }

    /// What the driver says of itself here.
    pub(super) async fn report(&self) -> Verdict<innkeeper_api::DriverReport> {
        let report = self.host.report().await?;
        report
            .drivers
            .into_iter()
            .find(|report| report.driver == self.setup.driver)
            .ok_or_else(|| {
                Failure::new(format!(
                    "the host does not tell of the driver {}",
                    self.setup.driver
                ))
            })
    }

    /// Gives a future a deadline.
    pub(super) async fn within<T>(
        &self,
        what: &str,
        future: impl Future<Output = T>,
    ) -> Verdict<T> {
        tokio::time::timeout(self.setup.patience, future)
            .await
            .map_err(|_| {
                Failure::new(format!(
                    "{what} took longer than {} s",
                    self.setup.patience.as_secs()
                ))
            })
    }

    /// The state must be this one.
    pub(super) async fn expect_state(&self, name: &str, state: VmState) -> Verdict<VmInfo> {
        let info = self.host.info(name).await?;
        super::require!(
            info.state == state,
            "{name} is {} ({:?}), not {state}",
            info.state,
            info.reason
        );
        Ok(info)
    }

    /// Runs a shell's script in a ready guest and returns what it printed, without the last line's end.
    pub(super) async fn sh(&self, name: &str, script: &str) -> Verdict<String> {
        let channel = self.host.guest(name).await?;
        let output = self.run(&channel, &["sh", "-c", script], b"").await?;
        super::require!(
            output.status == ExitStatus::Code(0),
            "the script {script:?} ended as {:?}: {}",
            output.status,
            output.err
        );
        Ok(String::from_utf8_lossy(&output.out).trim_end().to_owned())
    }

    /// Runs a command in the guest to its end.
    pub(super) async fn run(
        &self,
        channel: &GuestChannel,
        argv: &[&str],
        input: &[u8],
    ) -> Verdict<Output> {
        let request = ExecRequest {
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            ..ExecRequest::default()
        };
        let work = async {
            let session = channel.exec(request).await?;
            let (mut stdin, mut stdout, mut stderr, mut control) = (
                session.stdin,
                session.stdout,
                session.stderr,
                session.control,
            );
            let (mut out, mut err) = (Vec::new(), String::new());
            let write = async {
                stdin.write_all(input).await?;
                stdin.shutdown().await
            };
            let (written, read_out, read_err) = tokio::join!(
                write,
                stdout.read_to_end(&mut out),
                stderr.read_to_string(&mut err)
            );
            written?;
            read_out?;
            read_err?;
            let status = control.wait().await?;
            Verdict::Ok(Output { out, err, status })
        };
        self.within(&format!("the command {argv:?}"), work).await?
    }
}

/// The result must be an error of this kind whose words contain all of `words`.
pub(super) fn refused<T>(
    what: &str,
    result: crate::Result<T>,
    kind: ErrorKind,
    words: &[&str],
) -> Verdict {
    let Err(error) = result else {
        return Err(Failure::new(format!("{what} was not refused")));
    };
    let said = error.chain().join(": ");
    super::require!(
        error.kind() == kind,
        "{what} was refused as {:?}, not {kind:?}: {said}",
        error.kind()
    );
    for word in words {
        super::require!(
            said.contains(word),
            "{what} was refused without naming {word:?}: {said}"
        );
    }
    Ok(())
}

/// Sends a signal to a process that a VM's information names.
pub(super) fn signal(pid: Option<u32>, signal: rustix::process::Signal) -> Verdict {
    let pid = pid
        .and_then(|pid| i32::try_from(pid).ok())
        .filter(|pid| *pid > 1)
        .and_then(rustix::process::Pid::from_raw)
        .ok_or_else(|| Failure::new("there is no process to send a signal to"))?;
    rustix::process::kill_process(pid, signal)
        .map_err(|error| Failure::new(format!("can't send a signal: {error}")))
}

/// Kills a process and waits until it is gone, or only its parent's wait is outstanding.
pub(super) async fn kill_process(context: &Context, pid: Option<u32>) -> Verdict {
    signal(pid, rustix::process::Signal::KILL)?;
    let pid = pid.unwrap_or_default();
    context
        .eventually(&format!("the end of process {pid}"), || !lives(pid))
        .await
}

/// Says whether a process lives; one that was not reaped yet does not.
#[cfg(target_os = "linux")]
pub(super) fn lives(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|text| {
            text.rsplit_once(") ")
                .map(|(_, rest)| !rest.starts_with(['Z', 'X']))
        })
        .unwrap_or(false)
}

/// Says whether a process lives.
#[cfg(not(target_os = "linux"))]
pub(super) fn lives(pid: u32) -> bool {
    i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
}
