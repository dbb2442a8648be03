//! Starting, adopting and killing the fake hypervisor.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use innkeeper_api::{Capability, ErrorKind};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};

use super::FakeDriver;
use super::control::Control;
use super::machine::supervise;
use super::plan::{PlanConsole, plan};
use super::process::{Process, ProcessIdentity};
use crate::driver::{MachineConfig, Running};
use crate::error::{Error, Result};

/// How long it may take until it answers.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);
/// How long a running one may take to answer whoever adopts it.
const ADOPT_DEADLINE: Duration = Duration::from_secs(2);
/// How long a killed one may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(5);
/// How often a socket that does not listen yet is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(2);

/// A running fake hypervisor, for whoever adopts it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    #[serde(flatten)]
    pub(super) process: ProcessIdentity,
    pub(super) control: PathBuf,
    pub(super) agent: PathBuf,
    pub(super) log: PathBuf,
    pub(super) violations: PathBuf,
    pub(super) name: String,
    pub(super) consoles: Vec<PlanConsole>,
    pub(super) balloon: bool,
    pub(super) shares: bool,
    pub(super) lacking: Vec<Capability>,
}

impl Record {
    fn read(value: &serde_json::Value) -> Result<Record> {
        Record::deserialize(value).map_err(|error| {
            Error::new(
                ErrorKind::Failure,
                "the record of a fake hypervisor can't be read",
            )
            .with_source(error)
        })
    }
}

/// Kills the process unless it is taken out.
struct Undo(Option<Child>);

impl Drop for Undo {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // Fails only if it has ended; the runtime reaps what was dropped.
            let _ = child.start_kill();
        }
    }
}

pub(super) async fn launch(
    driver: &FakeDriver,
    config: &MachineConfig,
    saved: Option<&Path>,
) -> Result<Running> {
    let options = &driver.options;
    let mut plan =
        plan(config, options).map_err(|reason| Error::new(ErrorKind::Unsupported, reason))?;
    plan.restore = saved.map(Path::to_owned);
    let lock_path = &config.paths.vmm_lock;
    let failed =
        |what: &Path, error| Error::io(format!("the fake can't open {}", what.display()), error);
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(lock_path)
        .map_err(|error| failed(lock_path, error))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        driver.violated(&format!(
            "{}: launched while its hypervisor runs",
            config.name
        ));
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("a hypervisor of VM {} is still running", config.name),
        ));
    }
    let log_path = &config.paths.vmm_log;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log_path)
        .map_err(|error| failed(log_path, error))?;
    let text = serde_json::to_string(&plan).map_err(|error| {
        Error::new(ErrorKind::Failure, "the plan can't be written").with_source(error)
    })?;
    let child = Command::new(&options.program)
        .args(["-name", &config.name, "-plan", &text])
        .env_clear()
        // The lock travels as standard input, which it never reads and never hands on.
        .stdin(Stdio::from(lock))
        .stdout(Stdio::null())
        .stderr(Stdio::from(log))
        .current_dir("/")
        .process_group(0)
        .spawn()
        .map_err(|error| failed(&options.program, error))?;
    let mut undo = Undo(Some(child));
    let Some(child) = &mut undo.0 else {
        return Err(Error::new(ErrorKind::Failure, "it was not started"));
    };
    let control = tokio::select! {
        control = connect(&plan.control, ANSWER_DEADLINE) => control,
        status = child.wait() => {
            let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            let tail = tail(log_path);
            Err(Error::new(ErrorKind::Failure, format!("the fake hypervisor ended before it answered ({how}): {tail}")))
        }
    };
    let control =
        control.map_err(|error| error.while_doing(format!("can't launch {}", config.name)))?;
    let pid = child.id().unwrap_or_default();
    let process = ProcessIdentity::of(pid)
        .map_err(|error| Error::io(format!("process {pid} is gone"), error))?;
    let record = Record {
        process,
        control: plan.control,
        agent: plan.agent,
        log: log_path.clone(),
        violations: plan.violations,
        name: plan.name,
        consoles: plan.consoles,
        balloon: config.memory_target.is_some(),
        shares: !config.shares.is_empty(),
        lacking: options.lacking.clone(),
    };
    let opened = open(&record)?;
    supervise(record, opened, undo.0.take(), control).await
}

pub(super) async fn adopt(name: &str, value: &serde_json::Value) -> Result<Running> {
    let record = Record::read(value)?;
    let process = open(&record)?;
    let control = connect(&record.control, ADOPT_DEADLINE)
        .await
        .map_err(|error| {
            error.while_doing(format!("the fake hypervisor of {name} does not answer"))
        })?;
    supervise(record, process, None, control).await
}

pub(super) async fn kill_record(value: &serde_json::Value) -> Result<()> {
    match open(&Record::read(value)?) {
        Ok(process) => kill(&process).await,
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

pub(super) async fn kill(process: &Process) -> Result<()> {
    process
        .kill(KILL_DEADLINE)
        .await
        .map_err(|error| Error::io("can't kill the fake hypervisor", error))
}

fn open(record: &Record) -> Result<Process> {
    let pid = record.process.pid;
    Process::open(&record.process)
        .map_err(|error| Error::io(format!("can't open process {pid}"), error))?
        .ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("the fake hypervisor, process {pid}, is gone"),
            )
        })
}

/// Connects to a control socket that may not listen yet, and waits for the greeting.
async fn connect(path: &Path, limit: Duration) -> Result<Control> {
    let started = Instant::now();
    loop {
        match tokio::time::timeout(
            limit.saturating_sub(started.elapsed()),
            Control::connect(path),
        )
        .await
        {
            Ok(Ok(control)) => return Ok(control),
            Ok(Err(error)) if started.elapsed() >= limit => {
                return Err(Error::new(
                    ErrorKind::Unreachable,
                    format!("can't connect to {}", path.display()),
                )
                .with_source(error));
            }
            Ok(Err(_)) => tokio::time::sleep(TRY_AGAIN).await,
            Err(_) => {
                let seconds = limit.as_secs();
                return Err(Error::new(
                    ErrorKind::Unreachable,
                    format!("no answer on {} for {seconds} s", path.display()),
                ));
            }
        }
    }
}

/// Returns the last lines of a log, at most 2 KiB.
pub(super) fn tail(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&text[text.len().saturating_sub(2048)..])
        .trim()
        .to_owned()
}
