//! Carries out a plan: checks, locks, binds, spawns, and waits for QEMU's answer. Everything is undone when it fails or is dropped.
//!
//! ```text
//!  files there? ─► lock ─► ports free? ─► sidecars ─► sockets listen ─► spawn ─► connect ─► greeting ─► status
//!                   │                                                     │
//!                   └─ held by another: Conflict                          └─ ended early: the log's last lines
//! ```
//!
//! The sockets listen before QEMU exists, so connecting never has to be tried again.

use std::fs::OpenOptions;
use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use innkeeper_api::ErrorKind;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::sync::mpsc;

use super::plan::Plan;
use super::process::ProcessIdentity;
use super::qmp::{Qmp, QmpError, QmpEvent};
use super::record::{Record, SidecarRecord, log_tail};
use super::restore::Incoming;
use super::served;
use crate::driver::MachineConfig;
use crate::drivers::start::{
    Opened, Output, Undo, open_log, require_files, spawn, spawn_self_made, take_lock,
};
use crate::error::{Error, Result};
use crate::spec::{Bytes, ForwardSpec, Protocol};

/// How long QEMU may take until its first answer; on a busy host loading a kernel image takes seconds.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// How long a child that closed its monitor may take to end.
const END_DEADLINE: Duration = Duration::from_secs(2);

/// What a launch leaves behind for the machine to supervise.
pub(super) struct Launched {
    pub(super) child: Child,
    pub(super) sidecars: Vec<Child>,
    pub(super) qmp: Qmp,
    pub(super) events: mpsc::UnboundedReceiver<QmpEvent>,
    pub(super) status: String,
    pub(super) record: Record,
    /// The agent's channel, where the guest is to find it open as it was.
    pub(super) agent: Option<UnixStream>,
    /// Length of the log before this launch, in bytes.
    pub(super) log_start: u64,
}

/// Starts what the plan says; with a saved state, lets QEMU read that before it is asked anything.
pub(super) async fn launch(
    plan: &Plan,
    config: &MachineConfig,
    boot_id: &str,
    incoming: Option<&Incoming>,
) -> Result<Launched> {
    require_files(config)?;
    let lock = take_lock(&config.paths.vmm_lock, &config.name)?;
    for nic in &config.nics {
        require_free_ports(&nic.forwards)?;
    }
    if let Some(state) = &plan.tpm_state {
        make_private_directory(state)?;
    }
    if let Some((template, variables)) = &plan.variables {
        make_variables(template, variables)?;
    }
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

    let mut undo = Undo::default();
    for sidecar in &plan.sidecars {
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
    let told = (config.paths.vmm_log.as_path(), log_start);
    let connections = served::connect_all(&plan.sidecars, &mut undo.children, told).await?;
    if let Some(daemon) = &plan.vsock_daemon {
        let child = spawn_self_made(daemon, Output::both(&log), &mut undo).await?;
        undo.children.push(child);
    }
    let child = spawn(
        &plan.program,
        &plan.arguments,
        &plan.descriptors,
        Opened {
            lock: Some(lock),
            connections,
        },
        Output::both(&log),
        &mut undo,
    )?;
    // Last, so that it is the one taken out below; dropped in the middle, all of them are killed.
    undo.children.push(child);
    let Some(child) = undo.children.last_mut() else {
        return Err(Error::new(ErrorKind::Failure, "QEMU was not started"));
    };

    let answer = tokio::select! {
        answer = begin(plan, incoming, config.memory_target) => answer,
        status = child.wait() => return Err(ended_early(config, log_start, status.ok())),
    };
    let (agent, (qmp, events, status)) = match answer {
        Ok(answer) => answer,
        Err(error) => {
            // A monitor that closes usually means a child that is ending; its log says more than the connection.
            let ended = tokio::time::timeout(END_DEADLINE, child.wait()).await;
            return Err(match ended {
                Ok(status) => ended_early(config, log_start, status.ok()),
                Err(_) => qmp_error(error, format!("QEMU of VM {} does not answer", config.name)),
            });
        }
    };

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
    let mut sidecars = Vec::new();
    // Those that serve a device stand first, in their order.
    if let Some((_, beside)) = undo.children.split_last() {
        for (index, child) in beside.iter().enumerate() {
            let serves = plan.sidecars.get(index).and_then(|it| it.serves.as_ref());
            sidecars.push(SidecarRecord {
                process: identity(child, None)?,
                device: serves.map(|serves| serves.device.clone()),
            });
        }
    }
    let (major, minor, micro) = qmp.version().unwrap_or_default();
    let record = Record {
        boot_id: boot_id.to_owned(),
        process,
        sidecars,
        version: format!("{major}.{minor}.{micro}"),
        accelerator: plan.accelerator.clone(),
        power_button: plan.power_button,
        monitor: plan.monitor.clone(),
        agent: plan.agent.clone(),
        sockets: std::mem::take(&mut undo.sockets),
        log: config.paths.vmm_log.clone(),
        shape: plan.shape.clone(),
        fittings: plan.fittings.clone(),
    };
    let mut children = std::mem::take(&mut undo.children);
    let Some(child) = children.pop() else {
        return Err(Error::new(ErrorKind::Failure, "QEMU was not started"));
    };
    Ok(Launched {
        child,
        sidecars: children,
        qmp,
        events,
        status,
        record,
        agent,
        log_start,
    })
}

type Answer = (Qmp, mpsc::UnboundedReceiver<QmpEvent>, String);

async fn begin(
    plan: &Plan,
    incoming: Option<&Incoming>,
    memory_target: Option<Bytes>,
) -> Result<(Option<UnixStream>, Answer), QmpError> {
    let monitor = &plan.monitor;
    let Some(incoming) = incoming else {
        let (qmp, events, status) = first_answer(monitor).await?;
        if let Some(target) = memory_target {
            // The guest finds it when it loads its driver.
            let value = json!({ "value": target.get() });
            qmp.execute("balloon", value, ANSWER_DEADLINE).await?;
        }
        return Ok((None, (qmp, events, status)));
    };
    let (qmp, mut events) = Qmp::connect(monitor, ANSWER_DEADLINE).await?;
    // Before the state is read: a guest that was saved with its port open and finds it closed is told so, and of the opening after it, on
    // another queue than the port's own; its agent would then drop a link that has just been made. Without it all goes that way.
    let agent = UnixStream::connect(&plan.agent).await.ok();
    incoming.read(&qmp, &mut events).await?;
    let status = query_status(&qmp).await?;
    Ok((agent, (qmp, events, status)))
}

/// Connects to a monitor and asks for the machine's status.
pub(super) async fn first_answer(
    monitor: &Path,
) -> Result<(Qmp, mpsc::UnboundedReceiver<QmpEvent>, String), QmpError> {
    let (qmp, events) = Qmp::connect(monitor, ANSWER_DEADLINE).await?;
    let status = query_status(&qmp).await?;
    Ok((qmp, events, status))
}

/// Asks for the machine's status, as one word of QEMU's `RunState`.
pub(super) async fn query_status(qmp: &Qmp) -> Result<String, QmpError> {
    let reply = qmp
        .execute("query-status", json!({}), ANSWER_DEADLINE)
        .await?;
    match reply["status"].as_str() {
        Some(status) => Ok(status.to_owned()),
        None => Err(QmpError::Protocol("query-status without a status")),
    }
}

/// Makes an error of the library from one of the monitor.
pub(super) fn qmp_error(error: QmpError, message: impl Into<String>) -> Error {
    Error::new(error.kind(), message).with_source(error)
}

fn ended_early(config: &MachineConfig, log_start: u64, status: Option<ExitStatus>) -> Error {
    let how = status.map_or_else(|| "unknown status".to_owned(), |status| status.to_string());
    let tail = log_tail(&config.paths.vmm_log, log_start);
    let said = if tail.is_empty() {
        "it wrote nothing to its log".to_owned()
    } else {
        format!("its log ends with: {tail}")
    };
    Error::new(
        ErrorKind::Failure,
        format!(
            "QEMU of VM {} ended before it answered ({how}); {said}",
            config.name
        ),
    )
}

/// Binds every forwarded port once, so that one in use is told by its number rather than by a log.
pub(super) fn require_free_ports(forwards: &[ForwardSpec]) -> Result<()> {
    for forward in forwards {
        let address = (forward.host_address, forward.host_port);
        let bound = match forward.protocol {
            Protocol::Tcp => TcpListener::bind(address).map(drop),
            Protocol::Udp => UdpSocket::bind(address).map(drop),
        };
        bound.map_err(|error| port_error(forward.host_address, forward.host_port, error))?;
    }
    Ok(())
}

fn port_error(address: IpAddr, port: u16, error: io::Error) -> Error {
    let socket = std::net::SocketAddr::new(address, port);
    match error.kind() {
        io::ErrorKind::AddrInUse => Error::new(
            ErrorKind::Conflict,
            format!("port {socket} of this host is in use by another program"),
        )
        .with_hint("forward another host port, or end the program that has this one"),
        io::ErrorKind::PermissionDenied => Error::new(
            ErrorKind::NotPermitted,
            format!("port {socket} of this host may only be opened by root"),
        )
        .with_hint("forward a host port of 1024 or more"),
        _ => Error::io(
            format!("port {socket} of this host can't be forwarded"),
            error,
        ),
    }
}

/// Copies the template of UEFI variables, whole or not at all.
fn make_variables(template: &Path, variables: &Path) -> Result<()> {
    if variables.exists() {
        return Ok(());
    }
    let partial = variables.with_extension("partial");
    let copy = || -> io::Result<()> {
        std::fs::copy(template, &partial)?;
        let file = OpenOptions::new().write(true).open(&partial)?;
        // A template belongs to the system and may be read-only; the copy is the VM's own.
        rustix::fs::fchmod(&file, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
        file.sync_all()?;
        std::fs::rename(&partial, variables)
    };
    copy().map_err(|error| {
        let _ = std::fs::remove_file(&partial);
        Error::io(
            format!(
                "can't make the UEFI variables {} from {}",
                variables.display(),
                template.display()
            ),
            error,
        )
    })
}

/// Makes a directory that only this user can look into, if it does not exist.
fn make_private_directory(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(Error::io(
            format!("can't make the directory {}", path.display()),
            error,
        )),
        _ => Ok(()),
    }
}
