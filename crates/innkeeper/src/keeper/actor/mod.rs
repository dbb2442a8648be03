//! The one task that changes a running VM.
//!
//! It takes commands, the hypervisor's events and the agent's news one at a time, and never waits for any of them to have an effect: what
//! takes long runs beside it and comes back as news. So `kill` is taken at once whatever else is going on.
//!
//! ```text
//!  Start ─► launch beside ─► Launched ─► Running ──────────────┐
//!  Stop ──► ask beside ────► Asked(by) ─► deadline ─► kill, or give up
//!  Suspend ► save beside ──► Saved ─► rename into place ─► kill ─► Exited ─► finish as suspended
//!  hypervisor: GuestShutdown ─► quit beside ─► Exited ─► finish: record, let go of the lock, answer, end
//! ```

mod applying;
mod begin;
mod end;
mod networks;
mod news;
mod pausing;
mod plugging;
mod telling;

use std::sync::Arc;
use std::time::{Duration, Instant};

use innkeeper_agent::message::VsockDirection;
use innkeeper_api::{
    Accepted, Admission, ApplyOutcome, ApplyRequest, ErrorKind, EventKind, RestartRequest,
    StopOutcome, StopRequest, StoppedBy, VmInfo, VmState, VmStats,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle};

use self::end::Ending;
use super::agent::{AgentLink, AgentNews};
use super::live::{Live, SshKey, describe};
use super::log_files::{KeeperLog, turn_over};
use super::readiness::{Facts, Watcher, assess};
use super::unreachable::Unreachable;
use super::vsock::VsockPorts;
use crate::clock::{since_boot, timestamp};
use crate::companion::Helper;
use crate::driver::{Channel, Driver, ExitReport, Machine, MachineEvent, Running};
use crate::engine::configure::{configure, ready_when};
use crate::engine::parts::reconcile;
use crate::engine::ports::{check_forwards, choose_ssh_port};
use crate::engine::recover::{self, Found};
use crate::error::{Error, Result};
use crate::machine::{Decision, Operation, Power, PowerEvent, Readiness, Request, admit};
use crate::network::PortHolder;
use crate::spec::VmSpec;
use crate::store::{Bundle, FileLock, Identity, RecordedPower, Root, Run};

/// How long a hypervisor may take to quit after its guest has powered off, before it is killed.
const QUIT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long after the agent announced the power-off the machine may take to tell it, before the hypervisor is told to quit. Machines
/// without ACPI never tell it.
const ANNOUNCED_TIMEOUT: Duration = Duration::from_millis(1500);
/// A keeper that nobody asks to do anything ends after this: sooner than a command that needs the VM's lock gives up waiting for it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3);
/// No more of what an agent has to say is noted, in characters.
const LONGEST_PROBLEM: usize = 500;
/// Logs, sockets and silence are looked after this often.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// What a keeper is asked to do.
pub(crate) enum Command {
    /// Launch the VM.
    Start(oneshot::Sender<Result<Accepted>>),
    /// Let the guest power off.
    Stop(StopRequest, oneshot::Sender<Result<StopOutcome>>),
    /// End the hypervisor.
    Kill(oneshot::Sender<Result<StopOutcome>>),
    /// Stop the CPUs.
    Pause(oneshot::Sender<Result<Accepted>>),
    /// Continue the CPUs, or bring back what was saved.
    Resume(oneshot::Sender<Result<Accepted>>),
    /// Save memory and devices, and end the hypervisor.
    Suspend(oneshot::Sender<Result<Accepted>>),
    /// Stop and launch again.
    Restart(RestartRequest, oneshot::Sender<Result<StopOutcome>>),
    /// Count.
    Stats(oneshot::Sender<Result<VmStats>>),
    /// Replace the spec.
    Spec(SpecRequest, oneshot::Sender<Result<()>>),
    /// Give the machine what the spec asks for by now.
    Apply(ApplyRequest, oneshot::Sender<Result<ApplyOutcome>>),
    /// Look whether the spec was changed by hand, and publish what is so.
    Look(oneshot::Sender<Result<()>>),
    /// Open a stream to something in the guest.
    Open(Door, oneshot::Sender<Result<Box<dyn Channel>>>),
    /// End the keeper, not the VM.
    Leave,
}

/// Asks to replace the text of the spec.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SpecRequest {
    /// The text as the asker knows it; if it is another by now, nothing is changed.
    pub expected: String,
    /// The new text.
    pub text: String,
}

/// What a stream leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Door {
    /// A console, by its name.
    Console(String),
    /// A vsock port on which something in the guest listens.
    Vsock(u32),
    /// The next connection that the guest makes to a vsock port of the host.
    VsockListen(u32),
}

/// What a keeper works on and with.
pub(crate) struct Context {
    pub root: Root,
    pub bundle: Bundle,
    pub identity: Identity,
    pub driver: Arc<dyn Driver>,
    pub key: SshKey,
    pub log: KeeperLog,
    /// What starts the processes of networks.
    pub helper: Helper,
}

/// What comes back from work that was done beside the actor.
enum News {
    Launched(Box<Result<(Running, Identity)>>),
    /// A hypervisor that could not be reached was asked again.
    Adopted(Box<Result<Running>>, Run),
    Asked(StoppedBy),
    /// Of the agent of a run: what is left of an earlier run must not be taken for news of this one.
    Agent(u64, AgentNews),
    Ready(u64, super::readiness::Sign),
    /// The hypervisor would not stop the CPUs, or not continue them.
    Unmoved(pausing::Wish, Error),
    /// Memory and devices are written, or could not be; in what state that left the machine.
    Saved(Result<()>, pausing::Left),
    /// Devices that can't be saved were put in where they lacked, of this run; the record as it is then.
    PutBack(u64, Result<serde_json::Value>),
    /// The machine was given what it could be given.
    Applied(Box<applying::Applied>),
    Failed(&'static str, Error),
}

pub(crate) struct Actor {
    context: Context,
    lock: Option<FileLock>,
    asked: VmSpec,
    applied: Option<VmSpec>,
    live: Live,
    facts: Facts,
    machine: Option<Arc<dyn Machine>>,
    machine_events: Option<mpsc::UnboundedReceiver<MachineEvent>>,
    launching: Option<JoinHandle<()>>,
    /// While a hypervisor that can't be reached is asked again.
    adopting: Option<JoinHandle<()>>,
    /// Breaks off a launch that brings back what was saved, when it is dropped.
    returning: Option<oneshot::Sender<()>>,
    starters: Vec<oneshot::Sender<Result<Accepted>>>,
    /// Who waits until the CPUs stand still, until they run, until it is suspended.
    pausers: Vec<oneshot::Sender<Result<Accepted>>>,
    resumers: Vec<oneshot::Sender<Result<Accepted>>>,
    saving: Option<pausing::Saving>,
    /// Whether the machine is just being given what was asked, and who waits until the guest lets go of a device.
    applying: bool,
    detached: tokio::sync::broadcast::Sender<String>,
    /// Whether shares are to be mounted once more when their devices are there.
    mount_again: bool,
    /// Which file the spec was read from: inode, size, and when it was written.
    spec_seen: Option<(u64, u64, i64, i64)>,
    /// The guest's clock stood still for a while and is to be set when its agent can be asked.
    clock_is_late: bool,
    ending: Option<Ending>,
    quit_at: Option<Instant>,
    restart: bool,
    announced: bool,
    agent: watch::Sender<Option<AgentLink>>,
    watcher: Option<Watcher>,
    vsock_ports: VsockPorts,
    /// Number of the present run, and what carries the news of its agent.
    run: u64,
    agent_news: Option<AbortHandle>,
    /// Ports on networks of our own.
    ports: Vec<PortHolder>,
    info: watch::Sender<Arc<VmInfo>>,
    news: mpsc::UnboundedSender<News>,
    incoming: mpsc::UnboundedReceiver<News>,
    /// When the run began, since the computer was started.
    began: Option<Duration>,
}
impl Actor {
    pub(super) fn driver(&self) -> Arc<dyn Driver> {
        self.context.driver.clone()
    }

    pub(crate) fn new(context: Context, lock: FileLock) -> Result<Self> {
        let asked = context.bundle.spec()?;
        let recorded = context.bundle.recorded()?;
        let live = Live::of_files(&context.bundle, recorded);
        let told = describe(
            &context.bundle,
            &context.identity,
            &asked,
            None,
            &live,
            &context.key,
        );
        let (news, incoming) = mpsc::unbounded_channel();
        Ok(Actor {
            context,
            lock: Some(lock),
            asked,
            applied: None,
            live,
            facts: Facts::default(),
            machine: None,
            machine_events: None,
            launching: None,
            adopting: None,
            returning: None,
            starters: Vec::new(),
            pausers: Vec::new(),
            resumers: Vec::new(),
            saving: None,
            mount_again: false,
            spec_seen: None,
            clock_is_late: false,
            applying: false,
            detached: applying::detached_channel(),
            ending: None,
            quit_at: None,
            restart: false,
            announced: false,
            agent: watch::Sender::new(None),
            watcher: None,
            vsock_ports: VsockPorts::default(),
            run: 0,
            agent_news: None,
            ports: Vec::new(),
            info: watch::Sender::new(Arc::new(told)),
            news,
            incoming,
            began: None,
        })
    }

    /// Returns what the socket tells from.
    pub(crate) fn told(
        &self,
    ) -> (
        watch::Receiver<Arc<VmInfo>>,
        watch::Receiver<Option<AgentLink>>,
    ) {
        (self.info.subscribe(), self.agent.subscribe())
    }

    /// Works until there is nothing left to keep.
    pub(crate) async fn run(
        mut self,
        mut commands: mpsc::UnboundedReceiver<Command>,
    ) -> Result<()> {
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut idle_since = Instant::now();
        loop {
            let deadline = self.next_deadline();
            tokio::select! {
                command = commands.recv() => match command {
                    None | Some(Command::Leave) => return Ok(()),
                    Some(command) => {
                        idle_since = Instant::now();
                        self.command(command);
                    }
                },
                event = next_event(&mut self.machine_events) => match event {
                    Some(event) => self.machine_event(event),
                    None => self.machine_events = None,
                },
                Some(news) = self.incoming.recv() => self.take_news(news),
                () = sleep_until(deadline) => self.deadline_passed(),
                _ = housekeeping.tick() => self.housekeeping(),
            }
            self.publish();
            if self.lock.is_none() {
                return Ok(());
            }
            if self.live.power.is_live() {
                idle_since = Instant::now();
            } else if idle_since.elapsed() > IDLE_TIMEOUT {
                self.context
                    .root
                    .remove_socket_directory(&self.context.identity.id);
                return Ok(());
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Start(reply) => self.start(reply),
            Command::Stop(request, reply) => self.stop(&request, reply),
            Command::Kill(reply) => self.kill(reply),
            Command::Pause(reply) => self.pause(reply),
            Command::Resume(reply) => self.resume(reply),
            Command::Suspend(reply) => self.suspend(reply),
            Command::Restart(request, reply) => self.restart(&request, reply),
            Command::Stats(reply) => self.stats(reply),
            Command::Spec(request, reply) => {
                let _ = reply.send(self.replace_spec(&request));
            }
            Command::Apply(request, reply) => self.apply(&request, reply),
            Command::Look(reply) => {
                self.look_at_spec();
                self.publish();
                let _ = reply.send(Ok(()));
            }
            Command::Open(door, reply) => self.open(door, reply),
            Command::Leave => {}
        }
    }

    fn admit(&self, request: Request) -> Result<Admission> {
        match admit(
            Operation::None,
            &self.live.power,
            self.asked.protected,
            request,
        ) {
            Decision::Enqueue => Ok(Admission::Enqueued),
            Decision::AlreadySo => Ok(Admission::AlreadySo),
            Decision::Denied(reason, hint) => {
                let name = self.context.bundle.name();
                let error = Error::new(
                    ErrorKind::Conflict,
                    format!("{name} can't do that now: {reason}"),
                );
                Err(match hint {
                    Some(hint) => error.with_hint(hint),
                    None => error,
                })
            }
        }
    }

    fn stats(&self, reply: oneshot::Sender<Result<VmStats>>) {
        let stats = VmStats {
            name: self.context.bundle.name().to_owned(),
            state: Some(self.state()),
            uptime_seconds: self
                .began
                .map(|began| since_boot().saturating_sub(began).as_secs_f64()),
            ..VmStats::default()
        };
        let machine = self.machine.clone();
        let agent = self.agent.borrow().clone();
        let agent = agent.filter(|_| self.live.agent.state == innkeeper_api::AgentState::Ready);
        tokio::spawn(async move {
            let _ = reply.send(Ok(super::stats::collect(stats, machine, agent).await));
        });
    }

    fn open(&self, door: Door, reply: oneshot::Sender<Result<Box<dyn Channel>>>) {
        let Some(machine) = self.machine.clone() else {
            let name = self.context.bundle.name();
            let error = Error::new(ErrorKind::Conflict, format!("{name} does not run"));
            return drop(reply.send(Err(error)));
        };
        let lacking = |what: &str| {
            Error::new(
                ErrorKind::Unsupported,
                format!("{} has no {what}", self.context.bundle.name()),
            )
        };
        let no_console = lacking("consoles that can be opened")
            .with_hint("see `inn drivers`; what its first serial port wrote is in `inn logs`");
        let agent = self.agent.borrow().clone();
        let ports = self.vsock_ports.clone();
        tokio::spawn(async move {
            let opened = async {
                match door {
                    Door::Console(name) => {
                        let consoles = machine.consoles().ok_or(no_console)?;
                        consoles.open(&name).await
                    }
                    Door::Vsock(port) => match (machine.vsock(), agent) {
                        (Some(vsock), _) => vsock.connect(port).await,
                        (None, Some(agent)) => {
                            let opening = agent.vsock(VsockDirection::Connect, port).await?;
                            Ok(Box::new(opening.connected().await?) as Box<dyn Channel>)
                        }
                        (None, None) => Err(super::vsock::no_way(port)),
                    },
                    Door::VsockListen(port) => ports.accept(port, &machine, agent).await,
                }
            };
            // Whoever asked may have gone away; a port is let go of then.
            let mut reply = reply;
            tokio::select! {
                opened = opened => drop(reply.send(opened)),
                () = reply.closed() => {}
            }
        });
    }

    fn replace_spec(&mut self, request: &SpecRequest) -> Result<()> {
        let changed =
            crate::engine::change::replace(&self.context.bundle, &request.expected, &request.text)?;
        self.asked = changed.spec;
        self.live.spec_problem = None;
        self.note(EventKind::SpecChanged {
            fields: changed.fields,
        });
        Ok(())
    }
}

async fn next_event(
    events: &mut Option<mpsc::UnboundedReceiver<MachineEvent>>,
) -> Option<MachineEvent> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
