//! A running Cloud Hypervisor: the task that watches it and tells what happens, and the core of what can be asked of it.
//!
//! ```text
//!  pipe ── events, its end ───────────► supervise ──► MachineEvent ... Exited
//!  pidfd ─ readable ──────────────────►     │ reaps the child, ends the sidecars, removes the sockets
//!  a call without an answer ──────────►     │ control lost; asks anew until it answers: control back
//!  sidecar's pidfd ───────────────────►     └ starts another in its place
//!  Machine (asks) ── one connection a call ──► Cloud Hypervisor
//! ```
//!
//! Killing goes by the process alone and works when the control socket does not. When both the machine and its events are dropped the
//! hypervisor runs on, for another process to adopt; what it tells meanwhile waits in the pipe.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use innkeeper_agent::unit::VSOCK_PORT;
use innkeeper_api::ErrorKind;
use tokio::process::Child;
use tokio::sync::mpsc;

use super::api::{ApiError, Client};
use super::events::EventPipe;
use super::launch::Launched;
use super::plan::{disk_of, listening};
use super::process::{Process, ProcessIdentity};
use super::record::{Record, RunningSidecar};
use super::tracker::{Outcome, Tracker};
use super::wire::{VmInfo, VmState};
use crate::driver::{
    Balloon, BlockStatistics, Channel, ExitReport, Hotplug, Machine, MachineConfig, MachineEvent,
    Pause, Resize, Running, Suspend, Vsock,
};
use crate::drivers::channel::AgentChannels;
use crate::drivers::log::log_tail;
use crate::drivers::start::{Opened, Output, Undo, open_log, spawn};
use crate::error::{Error, Result};

/// How long a call may take.
pub(super) const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// How long an orderly end may take.
const QUIT_DEADLINE: Duration = Duration::from_secs(60);

/// How long a killed process may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// How long an adopted hypervisor may take to answer.
const ADOPT_DEADLINE: Duration = Duration::from_secs(4);

/// How often one that nobody asks anything is asked for its state, and how long its answer may take.
const HEARTBEAT: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(5));

/// Waits between two attempts to get an answer: first, and longest.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// How long the end of the pipe or of the control socket may precede the end of the process.
const END_GRACE: Duration = Duration::from_millis(500);

/// A sidecar that ended sooner than this after its start counts as one that can't serve.
const SIDECAR_GRACE: Duration = Duration::from_secs(1);

/// How often a sidecar that can't serve is started all the same while the guest boots anew: it ends with every connection.
const SIDECAR_STARTS: u32 = 3;

/// What calls let the supervisor know.
enum Notice {
    /// A call was not answered in time.
    Unanswered(String),
    /// The machine is powered off. Its event says so as well, unless it was lost.
    PoweredOff,
}

/// What the machine and its supervisor share.
pub(super) struct Shared {
    pub(super) config: MachineConfig,
    pub(super) record: Record,
    process: Process,
    pub(super) client: Client,
    expected: AtomicBool,
    log_start: u64,
    /// Calls that are under way. Each tells by its own deadline whether it is answered; a long one keeps others waiting.
    under_way: AtomicUsize,
    notices: mpsc::UnboundedSender<Notice>,
    /// Identifiers of devices that the guest was asked to let go of.
    pub(super) detaching: Mutex<HashSet<String>>,
    agent: AgentChannels,
}

impl Shared {
    /// Waits for a call's answer, and lets the supervisor know if there was none.
    pub(super) async fn answered<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T> {
        let answer = {
            let _under_way = UnderWay::begin(&self.under_way);
            call.await
        };
        answer.map_err(|error| {
            if matches!(error, ApiError::Deadline(_)) {
                let _ = self.notices.send(Notice::Unanswered(format!(
                    "Cloud Hypervisor did not answer when it was asked to {what}"
                )));
            }
            error.while_doing(format!("Cloud Hypervisor did not {what}"))
        })
    }

    pub(super) async fn put(&self, what: &str, endpoint: &str) -> Result<()> {
        self.answered(what, self.client.put(endpoint, CALL_DEADLINE))
            .await
    }

    pub(super) async fn info(&self) -> Result<VmInfo> {
        self.answered(
            "tell the machine's state",
            self.client.get("vm.info", CALL_DEADLINE),
        )
        .await
    }
}

/// Counts a call for as long as it is under way, even if its future is dropped.
struct UnderWay<'a>(&'a AtomicUsize);

impl<'a> UnderWay<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        UnderWay(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A running Cloud Hypervisor.
pub(super) struct CloudHypervisorMachine {
    pub(super) shared: Arc<Shared>,
}

/// Begins to supervise what was just launched or restored.
pub(super) fn supervise_launched(
    launched: Launched,
    config: &MachineConfig,
    start: (Tracker, Vec<MachineEvent>),
) -> Result<Running> {
    let Launched {
        child,
        sidecars,
        client,
        pipe,
        record,
        log_start,
    } = launched;
    let mut children = Children {
        hypervisor: Some(child),
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
                format!("Cloud Hypervisor ended right after its start; its log ends with: {tail}"),
            );
            return Err(match other {
                Err(source) => error.with_source(source),
                Ok(_) => error,
            });
        }
    };
    supervise(
        config, record, process, children, client, pipe, start, log_start,
    )
}

/// Takes over a hypervisor that another process launched.
pub(super) async fn adopt(record: Record, config: &MachineConfig) -> Result<Running> {
    let process = match open(&record.process)? {
        Some(process) => process,
        None => return Err(gone(&record)),
    };
    let mut pipe = EventPipe::open(&record.events).map_err(|error| {
        Error::io(
            format!("can't open the pipe {}", record.events.display()),
            error,
        )
    })?;
    // Read before the state is asked for: what happens after that is told by the pipe.
    let missed = pipe.drain();
    let client = Client::new(&record.api);
    let answer = tokio::select! {
        answer = client.get::<VmInfo>("vm.info", ADOPT_DEADLINE) => answer,
        _ = process.gone() => return Err(gone(&record)),
    };
    if answer.is_err()
        && tokio::time::timeout(END_GRACE, process.gone())
            .await
            .is_ok()
    {
        return Err(gone(&record));
    }
    let info = answer.map_err(|error| {
        Error::new(
            ErrorKind::Unreachable,
            format!(
                "Cloud Hypervisor (process {}) lives but its control socket does not answer",
                record.process.pid
            ),
        )
        .with_source(error)
    })?;
    let start = Tracker::adopted(info.state, &missed);
    let children = Children {
        hypervisor: None,
        sidecars: Vec::new(),
    };
    supervise(config, record, process, children, client, pipe, start, 0)
}

/// Kills what a record names, if it is still that.
pub(super) async fn kill_record(record: &Record) -> Result<()> {
    let process = open(&record.process)?;
    kill_all(record, process.as_ref()).await?;
    record.remove_sockets();
    Ok(())
}

fn open(identity: &ProcessIdentity) -> Result<Option<Process>> {
    Process::open(identity)
        .map_err(|error| Error::io(format!("can't look at process {}", identity.pid), error))
}

fn gone(record: &Record) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("Cloud Hypervisor (process {}) is gone", record.process.pid),
    )
}

/// Kills the hypervisor, if it is there, and the sidecars: all at once first, and then waits for each.
async fn kill_all(record: &Record, hypervisor: Option<&Process>) -> Result<()> {
    let cannot = |pid: u32| move |error| Error::io(format!("can't kill process {pid}"), error);
    if let Some(process) = hypervisor {
        process.kill().map_err(cannot(record.process.pid))?;
    }
    let mut sidecars = Vec::new();
    for sidecar in &record.sidecars {
        let pid = sidecar.process.pid;
        if let Some(process) = Process::open(&sidecar.process).map_err(cannot(pid))? {
            process.kill().map_err(cannot(pid))?;
            sidecars.push((process, pid));
        }
    }
    if let Some(process) = hypervisor {
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
    hypervisor: Option<Child>,
    sidecars: Vec<Child>,
}

impl Children {
    fn kill(&mut self) {
        for child in self.hypervisor.iter_mut().chain(&mut self.sidecars) {
            // Fails only if it has ended; the runtime reaps what was dropped.
            let _ = child.start_kill();
        }
    }
}

#[allow(clippy::too_many_arguments)] // The parts of one thing, put together here and nowhere else.
fn supervise(
    config: &MachineConfig,
    record: Record,
    process: Process,
    children: Children,
    client: Client,
    pipe: EventPipe,
    (tracker, first): (Tracker, Vec<MachineEvent>),
    log_start: u64,
) -> Result<Running> {
    let (sender, events) = mpsc::unbounded_channel();
    for event in first {
        let _ = sender.send(event);
    }
    let value = record.to_value()?;
    let (notices, noticed) = mpsc::unbounded_channel();
    let sidecars = record
        .sidecars
        .iter()
        .map(|sidecar| Sidecar {
            process: Process::open(&sidecar.process).ok().flatten(),
            started: Instant::now(),
            starts: 0,
            how: sidecar.clone(),
        })
        .collect();
    let shared = Arc::new(Shared {
        config: config.clone(),
        record,
        process,
        client,
        expected: AtomicBool::new(false),
        log_start,
        under_way: AtomicUsize::new(0),
        notices,
        detaching: Mutex::default(),
        agent: AgentChannels::default(),
    });
    let supervisor = Supervisor {
        shared: shared.clone(),
        children,
        tracker,
        sidecars,
        sender,
    };
    tokio::spawn(supervisor.run(pipe, noticed));
    Ok(Running {
        machine: Box::new(CloudHypervisorMachine { shared }),
        events,
        record: value,
    })
}

/// A process beside the hypervisor; none while there is none.
struct Sidecar {
    process: Option<Process>,
    started: Instant,
    /// How often it may be started though it ended too soon.
    starts: u32,
    how: RunningSidecar,
}

/// Waits until one of the sidecars that live has ended; for ever if none lives.
async fn sidecar_gone(sidecars: &[Sidecar]) -> usize {
    let gone: Vec<_> = sidecars
        .iter()
        .enumerate()
        .filter_map(|(index, sidecar)| {
            let process = sidecar.process.as_ref()?;
            Some(Box::pin(async move {
                let _ = process.gone().await;
                index
            }))
        })
        .collect();
    if gone.is_empty() {
        return std::future::pending().await;
    }
    futures_util::future::select_all(gone).await.0
}

/// Asks whether it is there, and for a power-off whose event was lost. Any other state may be old by the time it is read.
async fn look(shared: Arc<Shared>) {
    let call = shared.client.get::<VmInfo>("vm.info", HEARTBEAT.1);
    let answer = tokio::select! {
        answer = shared.answered("tell the machine's state", call) => answer,
        _ = shared.process.gone() => return,
    };
    // Why there was none was told by the way.
    if answer.is_ok_and(|info| info.state == VmState::Created) {
        let _ = shared.notices.send(Notice::PoweredOff);
    }
}

struct Supervisor {
    shared: Arc<Shared>,
    children: Children,
    tracker: Tracker,
    sidecars: Vec<Sidecar>,
    sender: mpsc::UnboundedSender<MachineEvent>,
}

impl Supervisor {
    async fn run(mut self, mut pipe: EventPipe, mut noticed: mpsc::UnboundedReceiver<Notice>) {
        let shared = self.shared.clone();
        let listener = self.sender.clone();
        let mut pipe_open = true;
        let mut heartbeat = tokio::time::interval(HEARTBEAT.0);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        heartbeat.reset();
        loop {
            tokio::select! {
                // What the hypervisor said before it ended is told before its end.
                biased;
                event = pipe.next(), if pipe_open => match event {
                    Some(event) => {
                        if (event.source.as_str(), event.event.as_str()) == ("vm", "rebooting") {
                            self.replace_sidecars();
                        }
                        let outcome = self.tracker.observe(&event);
                        self.take(outcome).await;
                    }
                    None => pipe_open = false,
                },
                _ = shared.process.gone() => return self.finish(&mut pipe).await,
                () = listener.closed() => return,
                Some(notice) = noticed.recv() => {
                    let Notice::Unanswered(reason) = notice else {
                        if let Some(event) = self.tracker.observe_state(VmState::Created) {
                            self.tell(event);
                        }
                        continue;
                    };
                    self.tell(MachineEvent::ControlLost(reason));
                    tokio::select! {
                        state = self.ask_again() => {
                            // Complaints of the same silence.
                            while noticed.try_recv().is_ok() {}
                            self.tell(MachineEvent::ControlBack);
                            if let Some(event) = self.tracker.observe_state(state) {
                                self.tell(event);
                            }
                        }
                        _ = shared.process.gone() => return self.finish(&mut pipe).await,
                        () = listener.closed() => return,
                    }
                }
                index = sidecar_gone(&self.sidecars) => self.replace_sidecar(index),
                // poll: it answers. There is no connection whose end would tell that it hangs.
                _ = heartbeat.tick() => {
                    if shared.under_way.load(Ordering::SeqCst) == 0 {
                        tokio::spawn(look(shared.clone()));
                    }
                }
            }
        }
    }

    fn tell(&self, event: MachineEvent) {
        // A receiver that was dropped ends the supervisor at its next turn.
        let _ = self.sender.send(event);
    }

    async fn take(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Nothing => {}
            Outcome::Tell(event) => self.tell(event),
            Outcome::Removed(id) => {
                self.shared
                    .detaching
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&id);
                // Were it left, it would only take room until the machine ends.
                let _ = std::fs::remove_file(self.shared.record.workplace.join(&id));
                if let Some(name) = disk_of(&id) {
                    self.tell(MachineEvent::Detached(name.to_owned()));
                }
            }
            Outcome::AskState => {
                let answer = tokio::select! {
                    answer = self.shared.client.get::<VmInfo>("vm.info", CALL_DEADLINE) => answer,
                    _ = self.shared.process.gone() => return,
                };
                match answer {
                    Ok(info) => {
                        if let Some(event) = self.tracker.observe_state(info.state) {
                            self.tell(event);
                        }
                    }
                    // It is ending by itself, and its end will be told; or it hangs, and is asked again.
                    Err(error) => {
                        let ended =
                            tokio::time::timeout(END_GRACE, self.shared.process.gone()).await;
                        if ended.is_err() {
                            let _ = self
                                .shared
                                .notices
                                .send(Notice::Unanswered(error.to_string()));
                        }
                    }
                }
            }
        }
    }

    /// Asks for the state until there is an answer.
    async fn ask_again(&self) -> VmState {
        let mut wait = ASK_AGAIN.0;
        loop {
            // poll: it answers
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(ASK_AGAIN.1);
            if let Ok(info) = self
                .shared
                .client
                .get::<VmInfo>("vm.info", CALL_DEADLINE)
                .await
            {
                return info.state;
            }
        }
    }

    /// The guest boots anew: the hypervisor connects once more, and virtiofsd ends when it is disconnected.
    fn replace_sidecars(&mut self) {
        for index in 0..self.sidecars.len() {
            self.sidecars[index].starts = SIDECAR_STARTS;
            if self.sidecars[index].process.is_none() {
                self.start_sidecar(index);
            }
        }
    }

    fn replace_sidecar(&mut self, index: usize) {
        let sidecar = &mut self.sidecars[index];
        sidecar.process = None;
        if sidecar.started.elapsed() >= SIDECAR_GRACE {
            self.start_sidecar(index);
        } else if sidecar.starts > 0 {
            sidecar.starts -= 1;
            self.start_sidecar(index);
        }
    }

    /// Starts a sidecar in the place of one that ended. One that can't be started is tried again when the guest boots anew.
    fn start_sidecar(&mut self, index: usize) {
        let how = self.sidecars[index].how.clone();
        let mut undo = Undo::default();
        let started = open_log(&self.shared.record.log).and_then(|log| {
            spawn(
                &how.program,
                &how.arguments,
                &listening(&how.socket),
                Opened::default(),
                Output::both(&log),
                &mut undo,
            )
        });
        // The socket belongs to the run and is removed with it.
        undo.sockets.clear();
        let Ok(child) = started else {
            return;
        };
        let identity = ProcessIdentity::of(child.id().unwrap_or_default(), None).ok();
        self.children.sidecars.push(child);
        let sidecar = &mut self.sidecars[index];
        sidecar.started = Instant::now();
        sidecar.process = identity.and_then(|identity| Process::open(&identity).ok().flatten());
    }

    /// The process is gone: reaps, cleans up, tells.
    async fn finish(mut self, pipe: &mut EventPipe) {
        for event in pipe.drain() {
            match self.tracker.observe(&event) {
                Outcome::Tell(event) => self.tell(event),
                // There is nobody left to ask, and a hypervisor that a power-off left alive has told it before.
                Outcome::AskState | Outcome::Removed(_) | Outcome::Nothing => {}
            }
        }
        let status = match self.children.hypervisor.take() {
            Some(mut child) => child.wait().await.ok(),
            None => None,
        };
        for sidecar in &mut self.children.sidecars {
            // Fails only if it ended by itself, as virtiofsd does when the hypervisor is gone.
            let _ = sidecar.kill().await;
        }
        // After an adoption the sidecars are known by the record alone. What can't be killed now is left to `kill_record`.
        let _ = kill_all(&self.shared.record, None).await;
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
impl Machine for CloudHypervisorMachine {
    fn pid(&self) -> u32 {
        self.shared.record.process.pid
    }

    fn accel(&self) -> &str {
        "kvm"
    }

    async fn power_button(&self) -> Result<()> {
        let pressed = self
            .shared
            .put("press the power button", "vm.power-button")
            .await;
        match pressed {
            // The guest may have powered off just before: its event is on the way.
            Err(error) => match self.shared.info().await {
                Ok(info) if info.state == VmState::Created => Ok(()),
                _ => Err(error),
            },
            Ok(()) => Ok(()),
        }
    }

    async fn quit(&self) -> Result<()> {
        let before = self.shared.expected.swap(true, Ordering::SeqCst);
        let asked = self.shared.client.put("vmm.shutdown", CALL_DEADLINE).await;
        match asked {
            // It may end before its answer is read.
            Ok(()) | Err(ApiError::Closed(_) | ApiError::Connect(_)) => {}
            Err(error) => {
                self.shared.expected.store(before, Ordering::SeqCst);
                return Err(error.while_doing("Cloud Hypervisor did not take the request to quit"));
            }
        }
        match tokio::time::timeout(QUIT_DEADLINE, self.shared.process.gone()).await {
            Ok(result) => {
                result.map_err(|error| Error::io("can't wait for Cloud Hypervisor to end", error))
            }
            Err(_) => Err(Error::new(
                ErrorKind::TimedOut,
                format!(
                    "Cloud Hypervisor did not end within {} s of being told to quit",
                    QUIT_DEADLINE.as_secs()
                ),
            )),
        }
    }

    async fn kill(&self) -> Result<()> {
        self.shared.expected.store(true, Ordering::SeqCst);
        kill_all(&self.shared.record, Some(&self.shared.process)).await
    }

    async fn agent_channel(&self) -> Result<Box<dyn Channel>> {
        let connected = self.shared.record.vsock.bare(VSOCK_PORT).await;
        let stream = connected.map_err(|source| {
            Error::new(
                ErrorKind::Unreachable,
                format!("no agent in the guest listens on vsock port {VSOCK_PORT} yet"),
            )
            .with_source(source)
        })?;
        Ok(Box::new(self.shared.agent.take(stream)))
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

    fn resize(&self) -> Option<&dyn Resize> {
        Some(self)
    }

    fn balloon(&self) -> Option<&dyn Balloon> {
        self.shared
            .config
            .memory_target
            .map(|_| self as &dyn Balloon)
    }

    fn hotplug(&self) -> Option<&dyn Hotplug> {
        Some(self)
    }

    fn vsock(&self) -> Option<&dyn Vsock> {
        let vsock = &self.shared.record.vsock;
        self.shared.config.vsock.map(|_| vsock as &dyn Vsock)
    }
}
