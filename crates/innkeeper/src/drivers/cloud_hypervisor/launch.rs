//! Carries out a plan: checks, locks, starts, and has the machine created and booted, or restored. Everything is undone when it fails or
//! is dropped.
//!
//! ```text
//!  files there? ─► lock ─► sidecars ─► sockets listen ─► spawn ─► ping: version ─┬─► vm.create ─► vm.boot
//!                   │                                                │           └─► vm.restore
//!                   └─ held by another: Conflict                     └─ too old: Unsupported
//! ```
//!
//! `vm.create` checks almost nothing, and one that fails leaves its config behind; as the process is killed then, nothing is left. A
//! sidecar that is dead makes `vm.boot` wait for a minute, with every other call behind it, so the sidecars are watched meanwhile.

use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use futures_util::future::{pending, select_all};
use innkeeper_api::ErrorKind;
use tokio::process::Child;

use super::api::{ApiError, Client};
use super::events::EventPipe;
use super::host::{OLDEST, major, too_old};
use super::plan::Plan;
use super::process::{Process, ProcessIdentity};
use super::record::{Record, RunningSidecar};
use super::wire::Ping;
use crate::driver::MachineConfig;
use crate::drivers::log::log_tail;
use crate::drivers::start::{Opened, Output, Undo, open_log, require_files, spawn, take_lock};
use crate::drivers::vsock::SocketVsock;
use crate::error::{Error, Result};

/// How long the hypervisor may take until its first answer, on a busy host.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// How long it may take to create or boot a machine: it reads the kernel's image.
const BOOT_DEADLINE: Duration = Duration::from_secs(30);

/// How long it may take where it waits for sidecars as well, which answer in milliseconds or never.
const BOOT_WITH_SIDECARS_DEADLINE: Duration = Duration::from_secs(4);

/// How long a child that closed its socket may take to end.
const END_DEADLINE: Duration = Duration::from_secs(2);

/// What a launch leaves behind for the machine to supervise.
pub(super) struct Launched {
    pub(super) child: Child,
    pub(super) sidecars: Vec<Child>,
    pub(super) client: Client,
    pub(super) pipe: EventPipe,
    pub(super) record: Record,
    /// Length of the log before this launch, in bytes.
    pub(super) log_start: u64,
}

/// A hypervisor that answers and has no machine yet. Dropped, it is killed and all that it had is removed.
pub(super) struct Started {
    name: String,
    undo: Undo,
    client: Client,
    pipe: EventPipe,
    sidecars: Vec<Process>,
    record: Record,
    log_start: u64,
}

/// Starts what the plan says, until the hypervisor answers.
pub(super) async fn start(plan: &Plan, config: &MachineConfig, boot_id: &str) -> Result<Started> {
    require_files(config)?;
    make_tpm_directory(config)?;
    let lock = take_lock(&config.paths.vmm_lock, &config.name)?;
    let log = open_log(&config.paths.vmm_log)?;
    let log_start = log
        .metadata()
        .map_err(|error| {
            Error::io(
                format!("can't read {}", config.paths.vmm_log.display()),
                error,
            )
        })?
        .len();
    let serial = open_log(&config.paths.serial_log)?;
    make_workplace(&plan.workplace)?;
    // The hypervisor makes this socket itself, and refuses to where one was left.
    let _ = std::fs::remove_file(&plan.vsock);

    let mut undo = Undo::default();
    undo.sockets.push(plan.vsock.clone());
    for (_, sidecar) in &plan.sidecars {
        let child = spawn(
            &sidecar.program,
            &sidecar.arguments,
            &sidecar.descriptors,
            Opened::default(),
            Output::both(&log),
            &mut undo,
        )?;
        undo.children.push(child);
    }
    let output = Output {
        stdout: &serial,
        stderr: &log,
    };
    let child = spawn(
        &plan.program,
        &plan.arguments,
        &plan.descriptors,
        Opened {
            lock: Some(lock),
            ..Opened::default()
        },
        output,
        &mut undo,
    )?;
    // Last, so that it is the one taken out in the end.
    undo.children.push(child);
    let Some(child) = undo.children.last_mut() else {
        return Err(not_started());
    };
    let pipe = EventPipe::open(&plan.events).map_err(|error| {
        Error::io(
            format!("can't open the pipe {}", plan.events.display()),
            error,
        )
    })?;
    let client = Client::new(&plan.api);
    let ended = |status| ended_early(&config.name, &config.paths.vmm_log, log_start, status);
    let answer = tokio::select! {
        answer = client.get::<Ping>("vmm.ping", ANSWER_DEADLINE) => answer,
        status = child.wait() => return Err(ended(status.ok())),
    };
    let ping = match answer {
        Ok(ping) => ping,
        Err(error) => {
            // A socket that closes usually means a child that is ending; its log says more than the connection.
            return Err(
                match tokio::time::timeout(END_DEADLINE, child.wait()).await {
                    Ok(status) => ended(status.ok()),
                    Err(_) => error.while_doing(format!(
                        "Cloud Hypervisor of VM {} does not answer",
                        config.name
                    )),
                },
            );
        }
    };
    if major(&ping.version).is_none_or(|major| major < OLDEST) {
        return Err(
            Error::new(ErrorKind::Unsupported, too_old(&ping.version)).with_hint(
                "put a newer release of Cloud Hypervisor on the PATH, then run `inn doctor`",
            ),
        );
    }

    let identity = |child: &Child, lock: Option<&Path>| {
        let pid = child.id().unwrap_or_default();
        ProcessIdentity::of(pid, lock).map_err(|error| {
            Error::io(
                format!("process {pid} of VM {} is gone", config.name),
                error,
            )
        })
    };
    let process = identity(child, Some(&config.paths.vmm_lock))?;
    let mut running = Vec::new();
    let mut sidecars = Vec::new();
    for (child, (socket, sidecar)) in undo.children.iter().zip(&plan.sidecars) {
        let process = identity(child, None)?;
        let name = sidecar.program.display();
        match Process::open(&process) {
            Ok(Some(process)) => sidecars.push(process),
            _ => return Err(sidecar_ended(&name, &config.paths.vmm_log, log_start)),
        }
        running.push(RunningSidecar {
            process,
            program: sidecar.program.clone(),
            arguments: sidecar.arguments.clone(),
            socket: socket.clone(),
        });
    }
    let record = Record {
        boot_id: boot_id.to_owned(),
        process,
        sidecars: running,
        version: ping.version,
        api: plan.api.clone(),
        events: plan.events.clone(),
        vsock: SocketVsock(plan.vsock.clone()),
        sockets: undo.sockets.clone(),
        log: config.paths.vmm_log.clone(),
        workplace: plan.workplace.clone(),
        confined: plan.config.landlock_enable,
    };
    Ok(Started {
        name: config.name.clone(),
        undo,
        client,
        pipe,
        sidecars,
        record,
        log_start,
    })
}

impl Started {
    /// Returns the version that answered.
    pub(super) fn version(&self) -> &str {
        &self.record.version
    }

    /// Has the machine created and booted.
    pub(super) async fn boot(mut self, plan: &Plan) -> Result<Launched> {
        let client = self.client.clone();
        self.carry_out(
            "create the machine",
            client.put_json("vm.create", &plan.config, BOOT_DEADLINE),
        )
        .await?
        .map_err(|error| self.refused("can't create the machine of", error))?;
        let deadline = if self.sidecars.is_empty() {
            BOOT_DEADLINE
        } else {
            BOOT_WITH_SIDECARS_DEADLINE
        };
        let booted = self
            .carry_out("boot the machine", client.put("vm.boot", deadline))
            .await?;
        match booted {
            Ok(()) => self.finish(),
            Err(ApiError::Deadline(after)) if !self.sidecars.is_empty() => {
                let programs: Vec<String> = plan
                    .sidecars
                    .iter()
                    .map(|(_, sidecar)| sidecar.program.display().to_string())
                    .collect();
                Err(Error::new(
                    ErrorKind::TimedOut,
                    format!(
                        "VM {} did not boot within {} s: {} does not answer Cloud Hypervisor",
                        self.name,
                        after.as_secs(),
                        programs.join(" or ")
                    ),
                )
                .with_hint("look at the VM's vmm.log for what it says"))
            }
            Err(error) => Err(self.refused("can't boot", error)),
        }
    }

    /// Carries out a call while the processes are watched.
    ///
    /// Errors: that the hypervisor or a sidecar ended meanwhile; the call's own result is within.
    pub(super) async fn carry_out<T>(
        &mut self,
        what: &str,
        call: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<Result<T, ApiError>> {
        let Some(child) = self.undo.children.last_mut() else {
            return Err(not_started());
        };
        let sidecar = async {
            if self.sidecars.is_empty() {
                return pending().await;
            }
            let gone = self.sidecars.iter().map(|process| Box::pin(process.gone()));
            select_all(gone).await.1
        };
        let status = tokio::select! {
            biased;
            result = call => match result {
                Err(error @ (ApiError::Closed(_) | ApiError::Connect(_))) => {
                    match tokio::time::timeout(END_DEADLINE, child.wait()).await {
                        Ok(status) => status,
                        Err(_) => return Ok(Err(error)),
                    }
                }
                result => return Ok(result),
            },
            status = child.wait() => status,
            index = sidecar => {
                let name = self.record.sidecars.get(index).map(|sidecar| sidecar.program.display().to_string());
                return Err(sidecar_ended(
                    &name.unwrap_or_default(),
                    &self.record.log,
                    self.log_start,
                ));
            }
        };
        Err(
            ended_early(&self.name, &self.record.log, self.log_start, status.ok())
                .while_doing(format!("can't {what} of VM {}", self.name)),
        )
    }

    /// Says that a call was refused.
    pub(super) fn refused(&self, what: &str, error: ApiError) -> Error {
        let hint = "look at the VM's vmm.log, where Cloud Hypervisor may have said more";
        error
            .while_doing(format!("{what} VM {}", self.name))
            .with_hint(hint)
    }

    /// Hands over what runs.
    pub(super) fn finish(mut self) -> Result<Launched> {
        let mut children = std::mem::take(&mut self.undo.children);
        self.undo.sockets.clear();
        let Some(child) = children.pop() else {
            return Err(not_started());
        };
        Ok(Launched {
            child,
            sidecars: children,
            client: self.client,
            pipe: self.pipe,
            record: self.record,
            log_start: self.log_start,
        })
    }
}

fn not_started() -> Error {
    Error::new(ErrorKind::Failure, "Cloud Hypervisor was not started")
}

fn said(log: &Path, log_start: u64) -> String {
    let tail = log_tail(log, log_start);
    if tail.is_empty() {
        "it wrote nothing to its log".to_owned()
    } else {
        format!("its log ends with: {tail}")
    }
}

fn ended_early(name: &str, log: &Path, log_start: u64, status: Option<ExitStatus>) -> Error {
    let how = status.map_or_else(|| "unknown status".to_owned(), |status| status.to_string());
    Error::new(
        ErrorKind::Failure,
        format!(
            "Cloud Hypervisor of VM {name} ended ({how}); {}",
            said(log, log_start)
        ),
    )
}

fn sidecar_ended(program: &impl std::fmt::Display, log: &Path, log_start: u64) -> Error {
    Error::new(
        ErrorKind::Failure,
        format!(
            "{program} ended before the VM had booted; {}",
            said(log, log_start)
        ),
    )
}

/// The program that plays a TPM makes no directory for its state.
fn make_tpm_directory(config: &MachineConfig) -> Result<()> {
    if let Some(state) = &config.tpm {
        std::fs::create_dir_all(state).map_err(|error| {
            Error::io(
                format!("can't make the TPM's directory {}", state.display()),
                error,
            )
        })?;
    }
    Ok(())
}

fn make_workplace(path: &Path) -> Result<()> {
    let _ = std::fs::remove_dir_all(path);
    std::fs::create_dir_all(path).map_err(|error| {
        Error::io(
            format!("can't make the directory {}", path.display()),
            error,
        )
    })
}
