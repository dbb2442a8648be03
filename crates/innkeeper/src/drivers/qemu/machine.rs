//! A running QEMU: what can be asked of it, and the task that watches it and tells what happens.
//!
//! ```text
//!  QEMU ── events, end of stream ──► supervise ──► MachineEvent ... Exited
//!  pidfd ─ readable ───────────────►     │ reaps the child, ends the sidecars, removes the sockets
//!  Machine (asks) ── quit, kill ──► QEMU └ connects anew when the control connection is lost
//! ```
//!
//! Killing goes by the process alone and works when the monitor does not. When both the machine and its events are dropped the control
//! connection closes and QEMU runs on, for another process to adopt.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use innkeeper_api::ErrorKind;
use serde_json::{Value, json};
use tokio::process::Child;
use tokio::sync::{broadcast, mpsc};

use super::consoles::ConsoleChannels;
use super::launch::{Launched, first_answer, qmp_error, query_status};
use super::process::Process;
use super::qmp::{Qmp, QmpError, QmpEvent};
use super::record::{Record, SidecarRecord, log_tail};
use super::served;
use super::tracker::{Outcome, Tracker};
use crate::driver::{
    Balloon, BlockStatistics, BlockTotals, Channel, Consoles, ExitReport, Hotplug, Machine,
    MachineEvent, Pause, Resize, Running, Suspend, Unsaved, Vsock,
};
use crate::drivers::channel::AgentChannels;
use crate::error::{Error, Result};

/// How long a command may take.
pub(super) const COMMAND_DEADLINE: Duration = Duration::from_secs(10);

/// How long an orderly end may take: the disks' caches are written.
const QUIT_DEADLINE: Duration = Duration::from_secs(60);

/// How long a killed process may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Waits between two attempts to reach a lost monitor: first, and longest.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// How long the end of the control connection may precede the end of the process before it counts as lost.
const END_GRACE: Duration = Duration::from_millis(250);

/// Events that whoever waits for one may be behind before it has to ask instead.
const SIGNALS: usize = 64;

/// What the machine and its supervisor share.
pub(super) struct Shared {
    pub(super) record: Record,
    process: Process,
    qmp: Mutex<Arc<Qmp>>,
    agent: AgentChannels,
    expected: AtomicBool,
    log_start: u64,
    /// What QEMU tells, for those who asked it for something that takes time.
    pub(super) signals: broadcast::Sender<QmpEvent>,
    /// Held while devices or sizes are changed, so that two changes do not choose the same place.
    pub(super) changing: tokio::sync::Mutex<()>,
    pub(super) consoles: ConsoleChannels,
    /// Devices that the guest was asked to let go of, and when.
    pub(super) asked: Mutex<HashMap<String, Instant>>,
    /// Whether the state was asked for and the CPUs did not go on since.
    pub(super) saving: AtomicBool,
    /// The processes beside QEMU as they are now; those of the record are those of the start.
    sidecars: Mutex<Vec<SidecarRecord>>,
    /// Takes the ids of devices whose processes have ended.
    pub(super) ended: mpsc::UnboundedSender<String>,
}

impl Shared {
    pub(super) fn qmp(&self) -> Arc<Qmp> {
        self.qmp
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) async fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        self.qmp()
            .execute(command, arguments, COMMAND_DEADLINE)
            .await
            .map_err(|error| qmp_error(error, format!("QEMU did not carry out {command}")))
    }

    /// Returns the record as it is to be kept now.
    pub(super) fn record_now(&self) -> Record {
        let sidecars = self
            .sidecars
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Record {
            sidecars,
            ..self.record.clone()
        }
    }

    /// Notes a process that serves a device, in the place of the one that did before.
    pub(super) fn add_sidecar(&self, sidecar: SidecarRecord) {
        let mut sidecars = self.sidecars.lock().unwrap_or_else(PoisonError::into_inner);
        sidecars.retain(|other| other.device != sidecar.device);
        sidecars.push(sidecar);
    }
}

/// A running QEMU.
pub(super) struct QemuMachine {
    pub(super) shared: Arc<Shared>,
}

/// Begins to supervise a QEMU that was just launched; a booted one runs first, a restored one stands still.
pub(super) fn supervise_launched(launched: Launched, boots: bool) -> Result<Running> {
    let Launched {
        child,
        sidecars,
        qmp,
        events,
        status,
        record,
        agent,
        log_start,
    } = launched;
    let mut children = Children {
        qemu: Some(child),
        sidecars,
    };
    let process = match Process::open(&record.process) {
        Ok(Some(process)) => process,
        other => {
            children.kill();
            record.remove_sockets();
            let tail = log_tail(&record.log, log_start);
            let error = Error::new(
                ErrorKind::Failure,
                format!("QEMU ended right after its start; its log ends with: {tail}"),
            );
            return Err(match other {
                Err(source) => error.with_source(source),
                Ok(_) => error,
            });
        }
    };
    let (tracker, first) = Tracker::start(record.meaning(&status), boots);
    let agent = AgentChannels::connected(agent);
    supervise(
        record, process, children, qmp, agent, events, tracker, first, log_start,
    )
}

/// How long a QEMU whose monitor has closed may take to be gone.
const ENDING: Duration = Duration::from_millis(500);

/// Takes over a QEMU that another process launched.
pub(super) async fn adopt(record: Record) -> Result<Running> {
    let process = match open(&record)? {
        Some(process) => process,
        None => return Err(gone(&record)),
    };
    let answer = tokio::select! {
        answer = first_answer(&record.monitor) => answer,
        _ = process.gone() => return Err(gone(&record)),
    };
    // A monitor that closes usually means a process that is just ending.
    if answer.is_err() && tokio::time::timeout(ENDING, process.gone()).await.is_ok() {
        return Err(gone(&record));
    }
    let (qmp, events, status) = answer.map_err(|error| {
        Error::new(
            ErrorKind::Unreachable,
            format!(
                "QEMU (process {}) lives but its monitor does not answer",
                record.process.pid
            ),
        )
        .with_source(error)
    })?;
    if let Err(error) = super::suspend::cancel_orphaned(&qmp).await {
        return Err(qmp_error(
            error,
            "QEMU does not end what a dead keeper had begun to save",
        ));
    }
    let (tracker, first) = Tracker::start(record.meaning(&status), false);
    let children = Children {
        qemu: None,
        sidecars: Vec::new(),
    };
    let agent = AgentChannels::default();
    supervise(
        record, process, children, qmp, agent, events, tracker, first, 0,
    )
}

/// Kills what a record names, if it is still that.
pub(super) async fn kill_record(record: &Record) -> Result<()> {
    let process = open(record)?;
    kill_all(record, process.as_ref()).await?;
    record.remove_sockets();
    Ok(())
}

fn open(record: &Record) -> Result<Option<Process>> {
    Process::open(&record.process).map_err(|error| {
        Error::io(
            format!("can't look at process {}", record.process.pid),
            error,
        )
    })
}

fn gone(record: &Record) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("QEMU (process {}) is gone", record.process.pid),
    )
}

/// Kills QEMU, if it is there, and the sidecars: all at once first, and then waits for each.
async fn kill_all(record: &Record, qemu: Option<&Process>) -> Result<()> {
    let cannot = |pid: u32| move |error| Error::io(format!("can't kill process {pid}"), error);
    if let Some(process) = qemu {
        process.kill().map_err(cannot(record.process.pid))?;
    }
    let mut sidecars = Vec::new();
    for SidecarRecord {
        process: identity, ..
    } in &record.sidecars
    {
        let opened = Process::open(identity).map_err(cannot(identity.pid))?;
        if let Some(process) = opened {
            process.kill().map_err(cannot(identity.pid))?;
            sidecars.push((process, identity.pid));
        }
    }
    if let Some(process) = qemu {
        let gone = process.kill_and_wait(KILL_DEADLINE).await;
        gone.map_err(cannot(record.process.pid))?;
    }
    for (process, pid) in sidecars {
        process
            .kill_and_wait(KILL_DEADLINE)
            .await
            .map_err(cannot(pid))?;
    }
    Ok(())
}

/// The processes that are ours to reap; none after an adoption.
struct Children {
    qemu: Option<Child>,
    sidecars: Vec<Child>,
}

impl Children {
    fn kill(&mut self) {
        for child in self.qemu.iter_mut().chain(&mut self.sidecars) {
            // Fails only if it has ended; the runtime reaps what was dropped.
            let _ = child.start_kill();
        }
    }
}

#[allow(clippy::too_many_arguments)] // The parts of one thing, put together here and nowhere else.
fn supervise(
    record: Record,
    process: Process,
    children: Children,
    qmp: Qmp,
    agent: AgentChannels,
    qmp_events: mpsc::UnboundedReceiver<QmpEvent>,
    tracker: Tracker,
    first: Vec<MachineEvent>,
    log_start: u64,
) -> Result<Running> {
    let (sender, events) = mpsc::unbounded_channel();
    for event in first {
        let _ = sender.send(event);
    }
    let value = record.to_value()?;
    let (ended, sidecars_ended) = mpsc::unbounded_channel();
    for sidecar in &record.sidecars {
        served::watch(sidecar, &ended);
    }
    let shared = Arc::new(Shared {
        sidecars: Mutex::new(record.sidecars.clone()),
        ended,
        record,
        process,
        qmp: Mutex::new(Arc::new(qmp)),
        agent,
        expected: AtomicBool::new(false),
        log_start,
        signals: broadcast::channel(SIGNALS).0,
        changing: tokio::sync::Mutex::new(()),
        consoles: ConsoleChannels::default(),
        asked: Mutex::default(),
        saving: AtomicBool::new(false),
    });
    let supervisor = Supervisor {
        shared: shared.clone(),
        children,
        tracker,
        sender,
        sidecars_ended,
    };
    tokio::spawn(supervisor.run(qmp_events));
    Ok(Running {
        machine: Box::new(QemuMachine { shared }),
        events,
        record: value,
    })
}

struct Supervisor {
    shared: Arc<Shared>,
    children: Children,
    tracker: Tracker,
    sender: mpsc::UnboundedSender<MachineEvent>,
    sidecars_ended: served::Ended,
}

/// Why the supervisor stopped following the monitor.
enum Followed {
    ProcessGone,
    Lost(String),
    NobodyListens,
}

impl Supervisor {
    async fn run(mut self, mut events: mpsc::UnboundedReceiver<QmpEvent>) {
        let shared = self.shared.clone();
        let listener = self.sender.clone();
        loop {
            let followed = tokio::select! {
                // What QEMU said before it ended is told before its end.
                biased;
                lost = self.follow(&mut events) => Followed::Lost(lost),
                _ = shared.process.gone() => Followed::ProcessGone,
                () = listener.closed() => Followed::NobodyListens,
            };
            match followed {
                Followed::NobodyListens => return,
                Followed::ProcessGone => return self.finish(&mut events).await,
                Followed::Lost(reason) => {
                    let ended = tokio::time::timeout(END_GRACE, shared.process.gone()).await;
                    if ended.is_ok() {
                        return self.finish(&mut events).await;
                    }
                    self.tell(MachineEvent::ControlLost(reason));
                    tokio::select! {
                        receiver = self.reconnect() => events = receiver,
                        _ = shared.process.gone() => return self.finish(&mut events).await,
                        () = listener.closed() => return,
                    }
                }
            }
        }
    }

    fn tell(&self, event: MachineEvent) {
        // A receiver that was dropped ends the supervisor at its next turn.
        let _ = self.sender.send(event);
    }

    /// Passes events on until the connection ends; returns why it did.
    async fn follow(&mut self, events: &mut mpsc::UnboundedReceiver<QmpEvent>) -> String {
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.take(&event).await,
                    None => break,
                },
                Some(device) = self.sidecars_ended.recv() => {
                    if !self.shared.expected.load(Ordering::SeqCst)
                        && let Some(name) = self.shared.severed(&device).await
                    {
                        self.tell(MachineEvent::Severed(name));
                    }
                }
            }
        }
        "QEMU's monitor closed the connection".to_owned()
    }

    async fn take(&mut self, event: &QmpEvent) {
        // Nobody may be waiting.
        let _ = self.shared.signals.send(event.clone());
        if event.name == "WATCHDOG" {
            self.tell(MachineEvent::WatchdogFired);
            if self.shared.record.fittings.watchdog_powers_off
                && let Some(event) = self.tracker.powered_off()
            {
                self.tell(event);
            }
            return;
        }
        // A part of a device has no id.
        let id = event.data["device"].as_str().unwrap_or_default();
        if event.name == "DEVICE_UNPLUG_GUEST_ERROR" {
            self.shared.forget_asked(id);
        }
        if event.name == "DEVICE_DELETED" {
            if let Some(event) = self.shared.detached(id).await {
                self.tell(event);
            }
            return;
        }
        let told = match self.tracker.observe(event) {
            Outcome::Nothing => None,
            Outcome::Tell(event) => Some(event),
            Outcome::AskStatus => match query_status(&self.shared.qmp()).await {
                // Continued already: the pause was real all the same, and its RESUME comes next.
                Ok(status) if status == "running" => self.tracker.paused(),
                Ok(status) => self
                    .tracker
                    .observe_status(self.shared.record.meaning(&status)),
                Err(_) => self.tracker.paused(),
            },
        };
        if let Some(event) = told {
            self.tell(event);
        }
    }

    async fn reconnect(&mut self) -> mpsc::UnboundedReceiver<QmpEvent> {
        let mut wait = RECONNECT.0;
        loop {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RECONNECT.1);
            let Ok((qmp, events, status)) = first_answer(&self.shared.record.monitor).await else {
                continue;
            };
            *self
                .shared
                .qmp
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Arc::new(qmp);
            self.tell(MachineEvent::ControlBack);
            if let Some(event) = self
                .tracker
                .observe_status(self.shared.record.meaning(&status))
            {
                self.tell(event);
            }
            return events;
        }
    }

    /// The process is gone: reaps, cleans up, tells.
    async fn finish(mut self, events: &mut mpsc::UnboundedReceiver<QmpEvent>) {
        // The reader may still hold what QEMU said last; its end of the socket is closed, so this ends.
        let _ = tokio::time::timeout(END_GRACE, async {
            while let Some(event) = events.recv().await {
                if let Outcome::Tell(event) = self.tracker.observe(&event) {
                    let _ = self.sender.send(event);
                }
            }
        })
        .await;
        let status = match self.children.qemu.take() {
            Some(mut child) => child.wait().await.ok(),
            None => None,
        };
        for sidecar in &mut self.children.sidecars {
            // Fails only if it ended by itself, as virtiofsd does when QEMU is gone.
            let _ = sidecar.kill().await;
        }
        // After an adoption the sidecars are known by the record alone. What can't be killed now is left to `kill_record`.
        let _ = kill_all(&self.shared.record_now(), None).await;
        self.shared.record.remove_sockets();
        let (code, signal) = status.map_or((None, None), |status| {
            use std::os::unix::process::ExitStatusExt;
            (status.code(), status.signal())
        });
        self.tell(MachineEvent::Exited(ExitReport {
            code,
            signal,
            expected: self.shared.expected.load(Ordering::SeqCst),
            log_tail: log_tail(&self.shared.record.log, self.shared.log_start),
        }));
    }
}

#[async_trait]
impl Machine for QemuMachine {
    fn pid(&self) -> u32 {
        self.shared.record.process.pid
    }

    fn accel(&self) -> &str {
        &self.shared.record.accelerator
    }

    async fn power_button(&self) -> Result<()> {
        if !self.shared.record.power_button {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "this machine type has no power button",
            ));
        }
        self.shared
            .execute("system_powerdown", json!({}))
            .await
            .map(drop)
    }

    async fn quit(&self) -> Result<()> {
        let before = self.shared.expected.swap(true, Ordering::SeqCst);
        let asked = self
            .shared
            .qmp()
            .execute("quit", json!({}), COMMAND_DEADLINE)
            .await;
        match asked {
            // It may end before its answer is read.
            Ok(_) | Err(QmpError::Closed | QmpError::Io(_)) => {}
            Err(error) => {
                self.shared.expected.store(before, Ordering::SeqCst);
                return Err(qmp_error(error, "QEMU did not take the request to quit"));
            }
        }
        match tokio::time::timeout(QUIT_DEADLINE, self.shared.process.gone()).await {
            Ok(result) => result.map_err(|error| Error::io("can't wait for QEMU to end", error)),
            Err(_) => Err(Error::new(
                ErrorKind::TimedOut,
                format!(
                    "QEMU did not end within {} s of being told to quit",
                    QUIT_DEADLINE.as_secs()
                ),
            )),
        }
    }

    async fn kill(&self) -> Result<()> {
        self.shared.expected.store(true, Ordering::SeqCst);
        kill_all(&self.shared.record_now(), Some(&self.shared.process)).await
    }

    async fn agent_channel(&self) -> Result<Box<dyn Channel>> {
        let path = &self.shared.record.agent;
        let channel = self.shared.agent.open(path).await.map_err(|error| {
            Error::new(
                ErrorKind::Unreachable,
                format!("can't connect to the agent's channel {}", path.display()),
            )
            .with_source(error)
        })?;
        Ok(Box::new(channel))
    }

    fn block_statistics(&self) -> Option<&dyn BlockStatistics> {
        Some(self)
    }

    fn pause(&self) -> Option<&dyn Pause> {
        Some(self)
    }

    fn suspend(&self) -> Option<&dyn Suspend> {
        Some(self)
    }

    fn unsaved(&self) -> Option<&dyn Unsaved> {
        Some(self)
    }

    fn resize(&self) -> Option<&dyn Resize> {
        Some(self)
    }

    fn balloon(&self) -> Option<&dyn Balloon> {
        if self.shared.record.fittings.balloon {
            Some(self)
        } else {
            None
        }
    }

    fn hotplug(&self) -> Option<&dyn Hotplug> {
        Some(self)
    }

    fn consoles(&self) -> Option<&dyn Consoles> {
        Some(self)
    }

    fn vsock(&self) -> Option<&dyn Vsock> {
        let vsock = self.shared.record.fittings.vsock.as_ref();
        vsock.map(|vsock| vsock as &dyn Vsock)
    }
}

#[async_trait]
impl BlockStatistics for QemuMachine {
    async fn block_totals(&self) -> Result<BlockTotals> {
        let reply = self.shared.execute("query-blockstats", json!({})).await?;
        Ok(sum_blocks(&reply))
    }
}

#[async_trait]
impl Pause for QemuMachine {
    async fn pause(&self) -> Result<()> {
        self.shared.execute("stop", json!({})).await.map(drop)
    }

    async fn resume(&self) -> Result<()> {
        self.shared.settle().await?;
        self.shared.execute("cont", json!({})).await.map(drop)
    }
}

/// Sums a reply of `query-blockstats`; a field that is not there counts as nothing.
fn sum_blocks(reply: &Value) -> BlockTotals {
    let mut totals = BlockTotals::default();
    for device in reply.as_array().into_iter().flatten() {
        let count = |name: &str| device["stats"][name].as_u64().unwrap_or(0);
        totals.read_bytes = totals.read_bytes.saturating_add(count("rd_bytes"));
        totals.written_bytes = totals.written_bytes.saturating_add(count("wr_bytes"));
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_statistics_tolerate_what_they_do_not_know() {
        let reply = json!([
            { "stats": { "rd_bytes": 5, "wr_bytes": 7, "new": true } },
            { "stats": { "rd_bytes": u64::MAX } },
            { "other": 1 },
        ]);
        assert_eq!(
            sum_blocks(&reply),
            BlockTotals {
                read_bytes: u64::MAX,
                written_bytes: 7
            }
        );
        assert_eq!(sum_blocks(&json!(null)), BlockTotals::default());
    }
}
