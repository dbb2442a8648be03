//! The one task that changes a running VM.
//!
//! It takes commands, the hypervisor's events and the agent's news one at a time, and never waits for any of them to have an effect: what
//! takes long runs beside it and comes back as news. So `kill` is taken at once whatever else is going on.
//!
//! ```text
//!  Start ─► launch beside ─► Launched ─► Running ──────────────┐
//!  Stop ──► ask beside ────► Asked(by) ─► deadline ─► kill, or give up
//!  hypervisor: GuestShutdown ─► quit beside ─► Exited ─► finish: record, let go of the lock, answer, end
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use innkeeper_api::{
    Accepted, Admission, ErrorKind, EventKind, RestartRequest, StopOutcome, StopRequest, StoppedBy,
    VmInfo, VmState, VmStats,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle};

use super::agent::{AgentLink, AgentNews};
use super::live::{Live, SshKey, describe};
use super::log_files::{KeeperLog, turn_over};
use super::readiness::{Facts, Watcher, assess};
use super::unreachable::Unreachable;
use crate::clock::timestamp;
use crate::driver::{Driver, ExitReport, Machine, MachineEvent, Running};
use crate::engine::configure::{configure, ready_when};
use crate::engine::parts::reconcile;
use crate::engine::ports::{check_forwards, choose_ssh_port};
use crate::engine::recover::{self, Found};
use crate::error::{Error, Result};
use crate::machine::{Decision, Operation, Power, PowerEvent, Readiness, Request, admit};
use crate::spec::VmSpec;
use crate::store::{Bundle, FileLock, Identity, RecordedPower, Root, Run};

/// How long a hypervisor may take to quit after its guest has powered off, before it is killed.
const QUIT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long after the agent announced the power-off the machine may take to tell it, before the hypervisor is told to quit. Machines
/// without ACPI never tell it.
const ANNOUNCED_TIMEOUT: Duration = Duration::from_millis(1500);
/// A keeper that nobody asks to do anything ends after this: sooner than a command that needs the VM's lock gives up waiting for it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3);
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
    /// Stop and launch again.
    Restart(RestartRequest, oneshot::Sender<Result<StopOutcome>>),
    /// Count.
    Stats(oneshot::Sender<Result<VmStats>>),
    /// Replace the spec.
    Spec(SpecRequest, oneshot::Sender<Result<()>>),
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

/// What a keeper works on and with.
pub(crate) struct Context {
    pub root: Root,
    pub bundle: Bundle,
    pub identity: Identity,
    pub driver: Arc<dyn Driver>,
    pub key: SshKey,
    pub log: KeeperLog,
}

/// What comes back from work that was done beside the actor.
enum News {
    Launched(Box<Result<(Running, Identity)>>),
    Asked(StoppedBy),
    /// Of the agent of a run: what is left of an earlier run must not be taken for news of this one.
    Agent(u64, AgentNews),
    Ready(u64, super::readiness::Sign),
    Failed(&'static str, Error),
}

/// What is being done to end the hypervisor.
struct Ending {
    by: StoppedBy,
    force: bool,
    /// Whether the agent was there to be asked; if not, it is asked when it says hello.
    agent_asked: bool,
    asked: Instant,
    deadline: Option<Instant>,
    waiters: Vec<oneshot::Sender<Result<StopOutcome>>>,
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
    starters: Vec<oneshot::Sender<Result<Accepted>>>,
    ending: Option<Ending>,
    quit_at: Option<Instant>,
    restart: bool,
    announced: bool,
    agent: watch::Sender<Option<AgentLink>>,
    watcher: Option<Watcher>,
    /// Number of the present run, and what carries the news of its agent.
    run: u64,
    agent_news: Option<AbortHandle>,
    info: watch::Sender<Arc<VmInfo>>,
    news: mpsc::UnboundedSender<News>,
    incoming: mpsc::UnboundedReceiver<News>,
    started: Option<Instant>,
}

impl Actor {
    pub(crate) fn new(context: Context, lock: FileLock) -> Result<Self> {
        let asked = context.bundle.spec()?;
        let recorded = context.bundle.recorded()?;
        let power = match recorded
            .as_ref()
            .and_then(|recorded| recorded.failed.clone())
        {
            Some(reason) => Power::Failed(reason),
            None => Power::Stopped,
        };
        let live = Live::off(power, recorded.map(|recorded| recorded.since));
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
            starters: Vec::new(),
            ending: None,
            quit_at: None,
            restart: false,
            announced: false,
            agent: watch::Sender::new(None),
            watcher: None,
            run: 0,
            agent_news: None,
            info: watch::Sender::new(Arc::new(told)),
            news,
            incoming,
            started: None,
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

    /// Finds what an earlier keeper left: takes its hypervisor over, or records how it ended.
    pub(crate) async fn take_over(&mut self) -> Result<()> {
        let context = &self.context;
        match recover::find(&context.bundle)? {
            Found::Nothing => {}
            Found::Ended(recorded) => {
                recover::settle(&context.root, &context.bundle, &context.identity, &recorded)?;
                self.live = Live::off(
                    recorded.failed.map_or(Power::Stopped, Power::Failed),
                    Some(recorded.since),
                );
            }
            Found::Orphan => {
                recover::end_orphan(&context.bundle).await?;
                let reason = "its launch was interrupted when its keeper ended".to_owned();
                self.live.power = Power::Failed(reason);
                self.record_end()?;
            }
            Found::Running(run) => self.adopt(run).await?,
        }
        self.publish();
        Ok(())
    }

    async fn adopt(&mut self, run: Run) -> Result<()> {
        let spec = self
            .context
            .bundle
            .applied_spec()?
            .unwrap_or_else(|| self.asked.clone());
        let config = configure(
            &self.context.bundle,
            &self.context.identity,
            &spec,
            self.context
                .root
                .socket_directory(&self.context.identity.id),
            run.ssh_port,
        )?;
        let record = run.record.clone().unwrap_or_default();
        self.applied = Some(spec);
        self.live.ssh_port = run.ssh_port;
        match self.context.driver.adopt(&config, &record).await {
            Ok(running) => {
                let vmm_pid = running.machine.pid();
                self.live.power = Power::Running;
                self.live.since = Some(timestamp());
                self.run_machine(running);
                self.note(EventKind::Adopted { vmm_pid });
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let recorded = recover::ended_unwatched(&self.context.bundle)?;
                recover::settle(
                    &self.context.root,
                    &self.context.bundle,
                    &self.context.identity,
                    &recorded,
                )?;
                self.live = Live::off(
                    recorded.failed.map_or(Power::Stopped, Power::Failed),
                    Some(recorded.since),
                );
                Ok(())
            }
            // It lives but can't be talked to: that is what is told, and `kill` still works by its record.
            Err(error) => {
                let machine = Unreachable {
                    driver: self.context.driver.clone(),
                    record,
                };
                self.live.power = Power::Running;
                self.live.stale_since = Some(timestamp());
                self.live.waiting_for = Some(format!(
                    "the hypervisor can't be reached: {}",
                    error.chain().join(": ")
                ));
                self.live.vmm_pid = Some(machine.pid()).filter(|pid| *pid > 0);
                self.machine = Some(Arc::new(machine));
                Ok(())
            }
        }
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

    // --- commands

    fn command(&mut self, command: Command) {
        match command {
            Command::Start(reply) => self.start(reply),
            Command::Stop(request, reply) => self.stop(&request, reply),
            Command::Kill(reply) => self.kill(reply),
            Command::Restart(request, reply) => self.restart(&request, reply),
            Command::Stats(reply) => self.stats(reply),
            Command::Spec(request, reply) => {
                let _ = reply.send(self.replace_spec(&request));
            }
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

    fn start(&mut self, reply: oneshot::Sender<Result<Accepted>>) {
        match self.admit(Request::Start) {
            Err(error) => drop(reply.send(Err(error))),
            Ok(admission @ Admission::AlreadySo) => {
                drop(reply.send(Ok(Accepted {
                    admission,
                    state: self.state(),
                })));
            }
            Ok(Admission::Enqueued) => {
                self.starters.push(reply);
                self.launch();
            }
        }
    }

    fn launch(&mut self) {
        self.power(PowerEvent::Launch);
        self.facts = Facts::default();
        self.announced = false;
        match self.prepare() {
            Err(error) => self.launched(Err(error)),
            Ok(spec) => {
                let (driver, news) = (self.context.driver.clone(), self.news.clone());
                let (bundle, identity) =
                    (self.context.bundle.clone(), self.context.identity.clone());
                let sockets = self.context.root.socket_directory(&identity.id);
                let ssh_port = self.live.ssh_port;
                self.launching = Some(tokio::spawn(async move {
                    let launch = async {
                        let identity = reconcile(&bundle, &identity, &spec).await?;
                        let config = configure(&bundle, &identity, &spec, sockets, ssh_port)?;
                        Ok((driver.launch(&config).await?, identity))
                    };
                    let _ = news.send(News::Launched(Box::new(launch.await)));
                }));
            }
        }
    }

    /// Reads the spec anew and makes the run's directory and sockets.
    fn prepare(&mut self) -> Result<VmSpec> {
        let context = &self.context;
        let text = context.bundle.spec_text()?;
        let spec = context.bundle.spec()?;
        let ssh_port = choose_ssh_port(&context.identity)?;
        check_forwards(&spec)?;
        context.root.make_socket_directory(&context.identity.id)?;
        let run = Run {
            boot_id: context.root.boot_id().to_owned(),
            started: timestamp(),
            record: None,
            ssh_port,
        };
        context.bundle.begin_run(&text, &run)?;
        self.live.ssh_port = ssh_port;
        self.asked = spec.clone();
        self.applied = Some(spec.clone());
        Ok(spec)
    }

    fn launched(&mut self, result: Result<(Running, Identity)>) {
        self.launching = None;
        let running = match result {
            Ok((running, identity)) => {
                self.context.identity = identity;
                running
            }
            Err(error) => {
                let reason = error.chain().join(": ");
                for starter in self.starters.drain(..) {
                    let _ = starter.send(Err(Error::from_problem(error.to_problem())));
                }
                return self.finish(PowerEvent::Broke(reason));
            }
        };
        let run = Run {
            boot_id: self.context.root.boot_id().to_owned(),
            started: timestamp(),
            record: Some(running.record.clone()),
            ssh_port: self.live.ssh_port,
        };
        if let Err(error) = self.context.bundle.write_run(&run) {
            // It runs all the same; only an adoption would fail, and then says why.
            self.say(&format!(
                "can't record the run: {}",
                error.chain().join(": ")
            ));
        }
        self.power(PowerEvent::Launched);
        self.run_machine(running);
        let accepted = Accepted {
            admission: Admission::Enqueued,
            state: self.state(),
        };
        for starter in self.starters.drain(..) {
            let _ = starter.send(Ok(accepted.clone()));
        }
    }

    /// Begins to watch a hypervisor, its agent and its signs of readiness.
    fn run_machine(&mut self, running: Running) {
        let machine: Arc<dyn Machine> = Arc::from(running.machine);
        self.live.vmm_pid = Some(machine.pid());
        self.live.accel = Some(machine.accel().to_owned());
        self.started = Some(Instant::now());
        self.run += 1;
        let run = self.run;
        self.machine_events = Some(running.events);
        self.machine = Some(machine.clone());
        let spec = self.applied.as_ref().unwrap_or(&self.asked);
        let ready = ready_when(&self.context.identity, spec);
        let (sign, mut signs) = mpsc::unbounded_channel();
        self.watcher = Some(Watcher::spawn(
            &ready,
            self.context.bundle.path("log/serial.log"),
            self.live.ssh_port,
            sign,
        ));
        let news = self.news.clone();
        tokio::spawn(async move {
            while let Some(sign) = signs.recv().await {
                if news.send(News::Ready(run, sign)).is_err() {
                    return;
                }
            }
        });
        self.live.agent.state = innkeeper_api::AgentState::Waiting;
        let (link, mut agent_news) = AgentLink::open(machine, &spec.shares);
        self.agent.send_replace(Some(link));
        let news = self.news.clone();
        let carrier = tokio::spawn(async move {
            while let Some(item) = agent_news.recv().await {
                if news.send(News::Agent(run, item)).is_err() {
                    return;
                }
            }
        });
        self.agent_news = Some(carrier.abort_handle());
    }

    fn stop(&mut self, request: &StopRequest, reply: oneshot::Sender<Result<StopOutcome>>) {
        match self.admit(Request::Stop) {
            Err(error) => drop(reply.send(Err(error))),
            Ok(Admission::AlreadySo) => drop(reply.send(Ok(already_stopped()))),
            Ok(Admission::Enqueued) => {
                self.note(EventKind::StopRequested {
                    force: request.force,
                });
                self.ask_to_stop(
                    Duration::from_millis(request.timeout_ms),
                    request.force,
                    reply,
                );
            }
        }
    }

    fn ask_to_stop(
        &mut self,
        timeout: Duration,
        force: bool,
        reply: oneshot::Sender<Result<StopOutcome>>,
    ) {
        let deadline = Instant::now().checked_add(timeout);
        if let Some(ending) = &mut self.ending {
            ending.force |= force;
            ending.deadline = match (ending.deadline, deadline) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
            ending.waiters.push(reply);
            return;
        }
        self.ending = Some(Ending {
            by: StoppedBy::Guest,
            force,
            agent_asked: false,
            asked: Instant::now(),
            deadline,
            waiters: vec![reply],
        });
        self.power(PowerEvent::StopAsked);
        let (Some(machine), agent) = (self.machine.clone(), self.agent.borrow().clone()) else {
            return;
        };
        let agent = agent.filter(|_| self.live.agent.state == innkeeper_api::AgentState::Ready);
        if let Some(ending) = &mut self.ending {
            ending.agent_asked = agent.is_some();
        }
        let news = self.news.clone();
        let patience = timeout / 3;
        tokio::spawn(async move {
            if let Some(agent) = agent
                && agent.shutdown().await.is_ok()
            {
                let _ = news.send(News::Asked(StoppedBy::Agent));
                // A guest whose agent took the word but which hangs may still follow its power button.
                tokio::time::sleep(patience).await;
            }
            match machine.power_button().await {
                Ok(()) => drop(news.send(News::Asked(StoppedBy::PowerButton))),
                Err(error) => drop(news.send(News::Failed("press the power button", error))),
            }
        });
    }

    fn kill(&mut self, reply: oneshot::Sender<Result<StopOutcome>>) {
        match self.admit(Request::Kill) {
            Err(error) => drop(reply.send(Err(error))),
            Ok(Admission::AlreadySo) => drop(reply.send(Ok(already_stopped()))),
            Ok(Admission::Enqueued) => {
                let ending = self.ending.get_or_insert_with(|| Ending {
                    by: StoppedBy::Kill,
                    force: true,
                    agent_asked: true,
                    asked: Instant::now(),
                    deadline: None,
                    waiters: Vec::new(),
                });
                ending.by = StoppedBy::Kill;
                ending.deadline = None;
                ending.waiters.push(reply);
                self.restart = false;
                self.end_hypervisor();
            }
        }
    }

    /// Kills the hypervisor, or the launch of one; `Exited` follows, or what stands for it.
    fn end_hypervisor(&mut self) {
        if let Some(launching) = self.launching.take() {
            // A launch that is dropped leaves no process.
            launching.abort();
            for starter in self.starters.drain(..) {
                let _ = starter.send(Err(Error::new(
                    ErrorKind::Interrupted,
                    "it was killed while it started",
                )));
            }
            let news = self.news.clone();
            tokio::spawn(async move {
                let _ = launching.await;
                let _ = news.send(News::Failed(
                    "launch",
                    Error::new(ErrorKind::Interrupted, "killed"),
                ));
            });
            return;
        }
        let Some(machine) = self.machine.clone() else {
            return;
        };
        let news = self.news.clone();
        let watched = self.machine_events.is_some();
        tokio::spawn(async move {
            match machine.kill().await {
                Err(error) => drop(news.send(News::Failed("kill the hypervisor", error))),
                Ok(()) if !watched => drop(news.send(News::Failed(
                    "launch",
                    Error::new(ErrorKind::Interrupted, "killed"),
                ))),
                Ok(()) => {}
            }
        });
    }

    fn restart(&mut self, request: &RestartRequest, reply: oneshot::Sender<Result<StopOutcome>>) {
        match self.admit(Request::Restart) {
            Err(error) => drop(reply.send(Err(error))),
            Ok(_) if !self.live.power.is_live() => {
                let (started, answer) = oneshot::channel();
                self.start(started);
                tokio::spawn(async move {
                    let result = match answer.await {
                        Ok(started) => started.map(|_| already_stopped()),
                        Err(_) => Err(Error::new(ErrorKind::Unreachable, "the keeper is ending")),
                    };
                    let _ = reply.send(result);
                });
            }
            Ok(_) => {
                self.restart = true;
                self.note(EventKind::StopRequested {
                    force: request.force,
                });
                self.ask_to_stop(
                    Duration::from_millis(request.timeout_ms),
                    request.force,
                    reply,
                );
            }
        }
    }

    fn stats(&self, reply: oneshot::Sender<Result<VmStats>>) {
        let stats = VmStats {
            name: self.context.bundle.name().to_owned(),
            state: Some(self.state()),
            uptime_seconds: self.started.map(|started| started.elapsed().as_secs_f64()),
            ..VmStats::default()
        };
        let machine = self.machine.clone();
        let agent = self.agent.borrow().clone();
        let agent = agent.filter(|_| self.live.agent.state == innkeeper_api::AgentState::Ready);
        tokio::spawn(async move {
            let _ = reply.send(Ok(super::stats::collect(stats, machine, agent).await));
        });
    }

    fn replace_spec(&mut self, request: &SpecRequest) -> Result<()> {
        let changed =
            crate::engine::change::replace(&self.context.bundle, &request.expected, &request.text)?;
        self.asked = changed.spec;
        self.note(EventKind::SpecChanged {
            fields: changed.fields,
        });
        Ok(())
    }

    // --- what happens

    fn machine_event(&mut self, event: MachineEvent) {
        match event {
            MachineEvent::Running => {
                self.power(PowerEvent::Launched);
                self.power(PowerEvent::Resumed);
            }
            MachineEvent::Paused => self.power(PowerEvent::Paused),
            MachineEvent::Resumed => self.power(PowerEvent::Resumed),
            MachineEvent::GuestReset => {
                self.facts = Facts {
                    network: self.facts.network,
                    ..Facts::default()
                };
                self.announced = false;
                if let Some(watcher) = &self.watcher {
                    watcher.again();
                }
                self.note(EventKind::GuestReboot);
            }
            MachineEvent::GuestShutdown => self.quit(),
            MachineEvent::GuestPanicked => {
                self.facts.panicked = true;
                self.note(EventKind::Note {
                    message: "the guest's kernel panicked".to_owned(),
                });
            }
            MachineEvent::Faulted(why) => {
                self.power(PowerEvent::Paused);
                self.note(EventKind::Note {
                    message: format!("the hypervisor stopped the CPUs: {why}"),
                });
            }
            MachineEvent::ControlLost(why) => {
                self.live.stale_since.get_or_insert_with(timestamp);
                self.say(&format!("the hypervisor does not answer: {why}"));
            }
            MachineEvent::ControlBack => self.live.stale_since = None,
            MachineEvent::Exited(report) => self.exited(&report),
        }
    }

    /// The guest has powered off: the hypervisor is told to end.
    fn quit(&mut self) {
        let Some(machine) = self.machine.clone() else {
            return;
        };
        // An announcement alone only set the time after which it is told; now the machine itself says that the guest is off.
        if self.quit_at.is_some() && !self.announced {
            return;
        }
        self.announced = false;
        self.quit_at = Instant::now().checked_add(QUIT_TIMEOUT);
        if let Some(ending) = &mut self.ending {
            ending.deadline = None;
        }
        let news = self.news.clone();
        tokio::spawn(async move {
            if let Err(error) = machine.quit().await {
                let _ = news.send(News::Failed("tell the hypervisor to quit", error));
            }
        });
    }

    fn exited(&mut self, report: &ExitReport) {
        let asked = report.expected
            || self.quit_at.is_some()
            || matches!(&self.ending, Some(ending) if ending.by == StoppedBy::Kill);
        let event = if asked {
            PowerEvent::Gone
        } else {
            PowerEvent::Broke(how_it_ended(report))
        };
        self.finish(event);
    }

    fn take_news(&mut self, news: News) {
        match news {
            News::Launched(result) if self.launching.is_some() => self.launched(*result),
            // It was killed meanwhile.
            News::Launched(_) => {}
            News::Asked(by) => {
                if let Some(ending) = &mut self.ending
                    && ending.by != StoppedBy::Kill
                {
                    ending.by = by;
                }
            }
            News::Agent(run, news) if run == self.run => self.agent_news(news),
            News::Ready(run, sign) if run == self.run => self.facts.note_sign(sign),
            News::Agent(..) | News::Ready(..) => {}
            News::Failed("launch", _) => self.finish(PowerEvent::Gone),
            News::Failed(what, error) => {
                self.say(&format!("can't {what}: {}", error.chain().join(": ")))
            }
        }
    }

    fn agent_news(&mut self, news: AgentNews) {
        use innkeeper_api::AgentState;
        match news {
            AgentNews::Hello {
                version,
                hostname,
                os,
            } => {
                self.live.agent.state = AgentState::Ready;
                self.live.agent.version = Some(version.clone());
                self.live.agent.hostname = hostname;
                self.live.agent.os = os;
                self.live.agent.silent_seconds = None;
                self.facts.agent = true;
                self.note(EventKind::AgentHello { version });
                self.ask_late_agent();
            }
            AgentNews::Addresses(addresses) => self.live.addresses = addresses,
            AgentNews::CloudInit(status) => self.facts.cloud_init = Some(status),
            AgentNews::Heard if self.live.agent.state == AgentState::Silent => {
                self.live.agent.state = AgentState::Ready;
                self.live.agent.silent_seconds = None;
            }
            AgentNews::Heard => {}
            AgentNews::Silent(for_) => {
                if self.live.agent.state == AgentState::Ready {
                    self.note(EventKind::AgentSilent {
                        seconds: for_.as_secs(),
                    });
                    self.live.agent.state = AgentState::Silent;
                }
                if self.live.agent.state == AgentState::Silent {
                    self.live.agent.silent_seconds = Some(for_.as_secs());
                }
            }
            AgentNews::Halting { for_good: true } if !self.announced => {
                self.announced = true;
                self.quit_at
                    .get_or_insert(Instant::now() + ANNOUNCED_TIMEOUT);
            }
            AgentNews::Halting { .. } => {}
            AgentNews::Problem(message) => self.say(&message),
        }
    }

    /// A stop that was asked for while the guest booted, or while nobody had its channel, is passed on to its agent now.
    fn ask_late_agent(&mut self) {
        let (Some(ending), Some(agent)) = (&mut self.ending, self.agent.borrow().clone()) else {
            return;
        };
        if std::mem::replace(&mut ending.agent_asked, true) {
            return;
        }
        let news = self.news.clone();
        tokio::spawn(async move {
            if agent.shutdown().await.is_ok() {
                // The actor outlives everything that is done beside it.
                let _ = news.send(News::Asked(StoppedBy::Agent));
            }
        });
    }

    fn next_deadline(&self) -> Option<Instant> {
        [
            self.ending.as_ref().and_then(|ending| ending.deadline),
            self.quit_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn deadline_passed(&mut self) {
        let now = Instant::now();
        if self.quit_at.is_some_and(|at| at <= now) {
            self.quit_at = None;
            if self.announced {
                self.announced = false;
                self.quit();
            } else {
                self.quit_at = now.checked_add(QUIT_TIMEOUT);
                self.end_hypervisor();
            }
            return;
        }
        let Some(ending) = &mut self.ending else {
            return;
        };
        if ending.deadline.is_none_or(|deadline| deadline > now) {
            return;
        }
        if ending.force {
            ending.by = StoppedBy::Kill;
            ending.deadline = None;
            return self.end_hypervisor();
        }
        let waited = ending.asked.elapsed().as_secs_f64();
        let asked = match ending.by {
            StoppedBy::Agent => "its agent took the request",
            StoppedBy::PowerButton => "the power button was pressed",
            _ => "nothing in the guest took the request",
        };
        let message = format!(
            "{} did not power off within {waited:.0} s ({asked}); it is left running",
            self.context.bundle.name()
        );
        for waiter in self
            .ending
            .take()
            .map(|ending| ending.waiters)
            .unwrap_or_default()
        {
            let _ = waiter.send(Err(Error::new(ErrorKind::TimedOut, message.clone())
                .with_hint(
                    "use `inn stop --force` to kill it after the timeout, or `inn kill`",
                )));
        }
        self.restart = false;
        self.power(PowerEvent::StopGivenUp);
    }

    fn housekeeping(&mut self) {
        self.look_after_the_unreachable();
        for log in ["log/serial.log", "log/vmm.log", "log/keeper.log"] {
            if let Err(error) = turn_over(&self.context.bundle.path(log)) {
                self.say(&format!("can't turn over {log}: {error}"));
            }
        }
    }

    /// A hypervisor that can't be talked to tells no end either; its lock does.
    fn look_after_the_unreachable(&mut self) {
        let unwatched = self.machine.is_some() && self.machine_events.is_none();
        if unwatched && matches!(self.context.bundle.hypervisor_lives(), Ok(false)) {
            let reason = "the hypervisor ended while it could not be reached".to_owned();
            let event = match &self.ending {
                Some(ending) if ending.by == StoppedBy::Kill => PowerEvent::Gone,
                _ => PowerEvent::Broke(reason),
            };
            self.finish(event);
        }
    }

    // --- the end

    /// The hypervisor is gone: records how, and either launches again or lets go of the VM.
    fn finish(&mut self, event: PowerEvent) {
        self.machine = None;
        self.machine_events = None;
        self.quit_at = None;
        self.announced = false;
        self.watcher = None;
        self.agent.send_replace(None);
        // Nobody takes its news any more, so the link ends: it must not open the channel of the next run.
        if let Some(carrier) = self.agent_news.take() {
            carrier.abort();
        }
        self.run += 1;
        self.started = None;
        let before = self.state();
        let power = self.live.power.next(event).unwrap_or(Power::Stopped);
        self.live = Live::off(power, Some(timestamp()));
        self.facts = Facts::default();
        self.applied = None;
        let again = std::mem::take(&mut self.restart) && matches!(self.live.power, Power::Stopped);
        // A keeper that goes on keeps the directory of its own socket.
        let recorded = if again {
            self.context.bundle.end_run(&self.how_it_is())
        } else {
            self.record_end()
        };
        if let Err(error) = recorded {
            self.say(&format!(
                "can't record the end of the run: {}",
                error.chain().join(": ")
            ));
        }
        self.note_state(before);
        let ending = self.ending.take();
        if again {
            self.answer_when_started(ending);
            self.launch();
            return self.publish();
        }
        // From here on the VM is anybody's: nothing of it may be touched any more.
        self.lock = None;
        self.publish();
        if let Some(ending) = ending {
            let outcome = StopOutcome {
                by: ending.by,
                elapsed_ms: u64::try_from(ending.asked.elapsed().as_millis()).unwrap_or(u64::MAX),
            };
            for waiter in ending.waiters {
                let _ = waiter.send(match &self.live.power {
                    Power::Failed(reason) => Err(Error::new(
                        ErrorKind::Failure,
                        format!("{} failed: {reason}", self.context.bundle.name()),
                    )),
                    _ => Ok(outcome.clone()),
                });
            }
        }
    }

    /// Whoever asked for a restart is answered when the new run has begun, or could not.
    fn answer_when_started(&mut self, ending: Option<Ending>) {
        let Some(ending) = ending else { return };
        let outcome = StopOutcome {
            by: ending.by,
            elapsed_ms: u64::try_from(ending.asked.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        for waiter in ending.waiters {
            let outcome = outcome.clone();
            let (started, answer) = oneshot::channel();
            self.starters.push(started);
            tokio::spawn(async move {
                let result = match answer.await {
                    Ok(started) => started.map(|_| outcome),
                    Err(_) => Err(Error::new(ErrorKind::Unreachable, "the keeper is ending")),
                };
                // The asker may have gone away.
                let _ = waiter.send(result);
            });
        }
    }

    fn how_it_is(&self) -> RecordedPower {
        RecordedPower {
            failed: match &self.live.power {
                Power::Failed(reason) => Some(reason.clone()),
                _ => None,
            },
            since: self.live.since.clone().unwrap_or_else(timestamp),
        }
    }

    fn record_end(&mut self) -> Result<()> {
        recover::settle(
            &self.context.root,
            &self.context.bundle,
            &self.context.identity,
            &self.how_it_is(),
        )
    }

    // --- telling

    fn state(&self) -> VmState {
        crate::machine::word(Operation::None, &self.live.power, self.live.readiness)
    }

    fn power(&mut self, event: PowerEvent) {
        let before = self.state();
        if let Some(next) = self.live.power.next(event) {
            self.live.power = next;
            self.live.since = Some(timestamp());
            self.note_state(before);
        }
    }

    fn publish(&mut self) {
        let before = self.state();
        let spec = self.applied.as_ref().unwrap_or(&self.asked);
        if self.live.power == Power::Running && self.live.stale_since.is_none() {
            let ready = ready_when(&self.context.identity, spec);
            self.facts.network = !spec.networks.is_empty();
            self.facts.addresses = self.live.addresses.len();
            (self.live.readiness, self.live.waiting_for) = assess(&ready, &self.facts);
        } else if self.live.power != Power::Running {
            self.live.readiness = Readiness::NotReady;
            self.live.waiting_for = None;
        }
        if self.state() != before {
            self.live.since = Some(timestamp());
            self.note_state(before);
        }
        // A VM that is launched, or can't be reached, has a keeper as well: commands must find it there.
        self.live.keeper_pid = self.live.power.is_live().then(std::process::id);
        let context = &self.context;
        let told = describe(
            &context.bundle,
            &context.identity,
            &self.asked,
            self.applied.as_ref(),
            &self.live,
            &context.key,
        );
        self.info.send_if_modified(|info| {
            let changed = **info != told;
            if changed {
                *info = Arc::new(told);
            }
            changed
        });
    }

    fn note_state(&self, from: VmState) {
        let to = self.state();
        if from != to {
            let reason = match &self.live.power {
                Power::Failed(reason) => Some(reason.clone()),
                _ => None,
            };
            self.note(EventKind::State { from, to, reason });
        }
    }

    fn note(&self, kind: EventKind) {
        if let Err(error) = self
            .context
            .root
            .event_log()
            .append(Some(self.context.bundle.name()), kind)
        {
            self.say(&format!(
                "can't write the event log: {}",
                error.chain().join(": ")
            ));
        }
    }

    fn say(&self, message: &str) {
        self.context.log.say(message);
    }
}

fn already_stopped() -> StopOutcome {
    StopOutcome {
        by: StoppedBy::AlreadyStopped,
        elapsed_ms: 0,
    }
}

fn how_it_ended(report: &ExitReport) -> String {
    let how = match (report.signal, report.code) {
        (Some(signal), _) => format!("the hypervisor was ended by signal {signal}"),
        (None, Some(code)) => format!("the hypervisor ended with code {code}"),
        (None, None) => "the hypervisor ended".to_owned(),
    };
    if report.log_tail.is_empty() {
        how
    } else {
        format!("{how}; its last words: {}", report.log_tail)
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
