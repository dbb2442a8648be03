//! How a run stands still: paused, saved to disk, and brought back.
//!
//! ```text
//!  Suspend ─► what can't be saved is unmounted and taken out ─► pause ─► driver saves into saved.new/ ─► News::Saved ─► saved.new/ becomes saved/ ─► kill ─► Exited ─► suspended
//!      └─ could not ─► saved.new/ is removed ─► what was taken out is put back ─► resume, if it ran before ─► mounted again
//!  Start ──► check ─► driver restores from saved/ (CPUs stand still) ─► record ─► saved/ leaves ─► resume ─► Launched
//! ```
//!
//! The rename is the moment at which the VM is suspended: a keeper that dies before it leaves a paused machine that can be resumed, one
//! that dies after it leaves a saved VM whose hypervisor the next keeper ends.

use super::*;
use crate::driver::{MachineConfig, Pause, Suspend, refuse};
use crate::store::{Saved, SavedDisk};

/// How long a machine that was brought back may take until its CPUs run.
const GO_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the agent of a guest that comes back is asked to set its clock.
const CLOCK_TRIES: u32 = 3;

/// What the CPUs were asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Pause,
    Resume,
}

/// A machine that is being written to disk.
pub(super) struct Saving {
    pub task: JoinHandle<()>,
    /// Whether it ran before, and is to run again if it can't be saved.
    ran: bool,
    /// Breaks it off when it is dropped; none once that was done.
    cancel: Option<oneshot::Sender<()>>,
    /// What was saved counts: the hypervisor is being ended, and nothing of it may run again.
    counts: bool,
    waiter: oneshot::Sender<Result<Accepted>>,
}

impl Saving {
    /// Breaks it off, if it is not done; what comes of that is told as news.
    pub(super) fn break_off(&mut self) {
        if !self.counts {
            self.cancel = None;
        }
    }
}

/// In what state a machine was left that was to be saved.
#[derive(Default)]
pub(super) struct Left {
    /// Whether its CPUs stand still.
    stopped: bool,
    /// Whether shares are unmounted that are to be mounted again.
    unmounted: bool,
    /// Its record, if that has changed, or why something could not be put back.
    put_back: Option<Result<serde_json::Value>>,
}

type Reply = oneshot::Sender<Result<Accepted>>;

impl Actor {
    /// Answers what needs nothing to be done, or returns the way to answer later.
    fn admitted(&self, request: Request, reply: Reply) -> Option<Reply> {
        match self.admit(request) {
            Err(error) => drop(reply.send(Err(error))),
            Ok(Admission::AlreadySo) => drop(reply.send(Ok(self.accepted(Admission::AlreadySo)))),
            Ok(Admission::Enqueued) => return Some(reply),
        }
        None
    }

    fn accepted(&self, admission: Admission) -> Accepted {
        Accepted {
            admission,
            state: self.state(),
        }
    }

    fn unsupported(&self, what: &str) -> Error {
        let (name, driver) = (self.context.bundle.name(), self.context.driver.name());
        Error::new(
            ErrorKind::Unsupported,
            format!("{name} can't be {what}: its driver, {driver}, does not do that here"),
        )
        .with_hint("see `inn drivers`")
    }

    pub(super) fn pause(&mut self, reply: Reply) {
        let Some(reply) = self.admitted(Request::Pause, reply) else {
            return;
        };
        let Some(machine) = self
            .machine
            .clone()
            .filter(|machine| machine.pause().is_some())
        else {
            return drop(reply.send(Err(self.unsupported("paused"))));
        };
        self.pausers.push(reply);
        self.power(PowerEvent::PauseAsked);
        self.wish(machine, Wish::Pause);
    }

    pub(super) fn resume(&mut self, reply: Reply) {
        let Some(reply) = self.admitted(Request::Resume, reply) else {
            return;
        };
        if self.live.power == Power::Suspended {
            self.starters.push(reply);
            return self.launch();
        }
        if let Some(saving) = &mut self.saving {
            if saving.counts {
                let done = Error::new(ErrorKind::Conflict, "it has just been suspended");
                return drop(reply.send(Err(done.with_hint("try again: that brings it back"))));
            }
            // It goes on when the driver has let go of it.
            saving.break_off();
            return self.resumers.push(reply);
        }
        self.resumers.push(reply);
        self.let_go();
    }

    /// Continues CPUs that stand still.
    fn let_go(&mut self) {
        let Some(machine) = self.machine.clone() else {
            return;
        };
        self.power(PowerEvent::ResumeAsked);
        self.wish(machine, Wish::Resume);
    }

    fn wish(&self, machine: Arc<dyn Machine>, wish: Wish) {
        let news = self.news.clone();
        let error = self.unsupported("paused");
        tokio::spawn(async move {
            let done = match (machine.pause(), wish) {
                (None, _) => Err(error),
                (Some(pause), Wish::Pause) => pause.pause().await,
                (Some(pause), Wish::Resume) => pause.resume().await,
            };
            // That it was done the machine's own events tell.
            if let Err(error) = done {
                let _ = news.send(News::Unmoved(wish, error));
            }
        });
    }

    pub(super) fn unmoved(&mut self, wish: Wish, error: Error) {
        let (event, waiters) = match wish {
            Wish::Pause => (PowerEvent::PauseGivenUp, std::mem::take(&mut self.pausers)),
            Wish::Resume => (
                PowerEvent::ResumeGivenUp,
                std::mem::take(&mut self.resumers),
            ),
        };
        self.say(&error.chain().join(": "));
        for waiter in waiters {
            let _ = waiter.send(Err(Error::from_problem(error.to_problem())));
        }
        self.power(event);
    }

    /// The CPUs stand still.
    pub(super) fn stands_still(&mut self) {
        self.power(PowerEvent::Paused);
        for waiter in std::mem::take(&mut self.pausers) {
            let _ = waiter.send(Ok(self.accepted(Admission::Enqueued)));
        }
    }

    /// The CPUs run again.
    pub(super) fn goes_on(&mut self) {
        self.power(PowerEvent::Resumed);
        self.clock_is_late = true;
        self.set_late_clock();
        // Left by a keeper that died before the CPUs ran; they do now.
        forget_used(self.context.bundle.clone(), self.news.clone());
        self.answer_resumers();
    }

    fn answer_resumers(&mut self) {
        for waiter in std::mem::take(&mut self.resumers) {
            let _ = waiter.send(Ok(self.accepted(Admission::Enqueued)));
        }
    }

    /// Tells the guest what time it is, after a while in which its clock stood still.
    pub(super) fn set_late_clock(&mut self) {
        let agent = self.agent.borrow().clone();
        let (true, Some(agent)) = (self.clock_is_late && self.facts.agent, agent) else {
            return;
        };
        self.clock_is_late = false;
        let log = self.context.log.clone();
        tokio::spawn(async move {
            for _ in 0..CLOCK_TRIES {
                match agent.set_time().await {
                    Ok(()) => return,
                    Err(error) => log.say(&format!("can't set the guest's clock: {error}")),
                }
                // A link that was saved in the middle of a frame falls out of step at first, and is made anew.
                agent.reached(GO_TIMEOUT).await;
            }
        });
    }

    pub(super) fn suspend(&mut self, reply: Reply) {
        let Some(reply) = self.admitted(Request::Suspend, reply) else {
            return;
        };
        let machine = self
            .machine
            .clone()
            .filter(|machine| machine.suspend().is_some() && machine.pause().is_some());
        let Some(machine) = machine else {
            return drop(reply.send(Err(self.unsupported("suspended"))));
        };
        let ran = self.live.power == Power::Running;
        let known = Known {
            driver: self.context.identity.driver.clone(),
            ready: self.live.readiness == Readiness::Ready,
            agent: self.live.agent.version.clone(),
        };
        let config = match self.config_of_run() {
            Ok(config) => config,
            Err(error) => return drop(reply.send(Err(error))),
        };
        if !self.live.severed.is_empty() {
            let error = Error::new(
                ErrorKind::Conflict,
                "shares: virtiofsd of one of them has ended, so that the guest can't unmount it",
            )
            .with_hint("stop it and start it, which starts virtiofsd anew");
            return drop(reply.send(Err(error)));
        }
        let agent = self.agent.borrow().clone();
        self.power(PowerEvent::SuspendAsked);
        let (bundle, news) = (self.context.bundle.clone(), self.news.clone());
        let (cancel, cancelled) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut left = Left {
                stopped: !ran,
                ..Left::default()
            };
            let parts = Parts {
                machine: machine.as_ref(),
                agent: agent.as_ref(),
                bundle: &bundle,
                config: &config,
            };
            let result = save(&parts, &mut left, known, cancelled).await;
            if result.is_err() {
                parts.undo(&mut left).await;
            }
            let _ = news.send(News::Saved(result, left));
        });
        self.saving = Some(Saving {
            task,
            ran,
            cancel: Some(cancel),
            counts: false,
            waiter: reply,
        });
    }

    pub(super) fn config_of_run(&self) -> Result<MachineConfig> {
        let context = &self.context;
        configure(
            &context.bundle,
            &context.identity,
            self.applied.as_ref().unwrap_or(&self.asked),
            context.root.socket_directory(&context.identity.id),
            self.live.ssh_port,
        )
    }

    /// It was saved or could not be.
    pub(super) fn saved(&mut self, result: Result<()>, left: Left) {
        let stopped = left.stopped;
        let Some(mut saving) = self.saving.take() else {
            return;
        };
        let wanted = match saving.cancel {
            Some(_) => Ok(()),
            None => Err(broken_off()),
        };
        let counted = result
            .and(wanted)
            .and_then(|()| self.context.bundle.finish_saving());
        match counted {
            Ok(()) => {
                // Whoever asked is answered when the hypervisor is gone.
                saving.counts = true;
                self.saving = Some(saving);
                let (machine, news) = (self.machine.clone(), self.news.clone());
                tokio::spawn(async move {
                    if let Some(machine) = machine
                        && let Err(error) = machine.kill().await
                    {
                        let _ = news.send(News::Failed("end the saved hypervisor", error));
                    }
                });
            }
            Err(error) => {
                if let Err(error) = self.context.bundle.give_up_saving() {
                    self.say(&error.chain().join(": "));
                }
                self.has_back(left);
                self.power(if stopped {
                    PowerEvent::SuspendGivenUp
                } else {
                    PowerEvent::SuspendRefused
                });
                let name = self.context.bundle.name();
                let error = error.while_doing(format!("can't suspend {name}"));
                let _ = saving.waiter.send(Err(error));
                let wanted = saving.ran || !self.resumers.is_empty();
                if !stopped {
                    self.answer_resumers();
                } else if wanted && self.ending.is_none() {
                    self.let_go();
                }
            }
        }
    }

    /// Keeps the record of a machine that got back what was taken out; what was unmounted is mounted when the CPUs run.
    fn has_back(&mut self, left: Left) {
        match left.put_back {
            Some(Ok(record)) => self.keep_record(record),
            Some(Err(error)) => self.tell_lost_shares(&error),
            // It was all written, and then given up.
            None if left.unmounted => {
                self.mount_again = true;
                return self.put_back();
            }
            None => {}
        }
        let agent = self.agent.borrow().clone();
        if let Some(agent) = agent.filter(|_| left.unmounted) {
            tokio::spawn(async move { agent.mount_shares_again().await });
        }
    }

    /// The run has ended: nobody pauses, resumes or saves any more.
    pub(super) fn stop_pausing(&mut self) {
        let waiters = self.pausers.drain(..).chain(self.resumers.drain(..));
        for waiter in waiters.collect::<Vec<_>>() {
            let _ = waiter.send(Err(Error::new(ErrorKind::Conflict, "it ended meanwhile")));
        }
        self.clock_is_late = false;
    }

    /// Answers whoever asked for a suspend, now that it is done, or that the hypervisor ended before it was.
    pub(super) fn tell_suspended(&mut self) {
        let Some(saving) = self.saving.take() else {
            return;
        };
        saving.task.abort();
        if self.live.power == Power::Suspended {
            let _ = saving.waiter.send(Ok(self.accepted(Admission::Enqueued)));
            return;
        }
        let error = Error::new(
            ErrorKind::Failure,
            "the hypervisor ended while it was saved",
        );
        let _ = saving.waiter.send(Err(error));
        if let Err(error) = self.context.bundle.give_up_saving() {
            self.say(&error.chain().join(": "));
        }
    }

    /// Launches a hypervisor from what was saved.
    pub(super) fn bring_back(&mut self) {
        self.power(PowerEvent::Launch);
        match self.prepare_return() {
            Err(error) => self.launched(Err(error)),
            Ok((saved, config)) => {
                self.facts.serial = saved.ready;
                self.facts.ssh = saved.ready;
                self.clock_is_late = true;
                let (driver, news) = (self.context.driver.clone(), self.news.clone());
                let (bundle, identity) =
                    (self.context.bundle.clone(), self.context.identity.clone());
                self.began = Some(since_boot());
                let run = self.run_begun();
                let (cancel, cancelled) = oneshot::channel();
                self.returning = Some(cancel);
                self.launching = Some(tokio::spawn(async move {
                    let result = bring_back(driver, &bundle, &config, &saved, run, cancelled).await;
                    let goes = result.is_ok();
                    let _ = news.send(News::Launched(Box::new(
                        result.map(|running| (running, identity)),
                    )));
                    if goes {
                        forget_used(bundle, news);
                    }
                }));
            }
        }
    }

    /// Checks that what was saved can go on here, and makes the run's directory. Nothing of what was saved is touched.
    fn prepare_return(&mut self) -> Result<(Saved, MachineConfig)> {
        let bundle = &self.context.bundle;
        let gone = || Error::new(ErrorKind::NotFound, "what was saved is not there any more");
        let saved = bundle.saved()?.ok_or_else(gone)?;
        let (text, spec) = (bundle.saved_spec_text()?, bundle.saved_spec()?);
        if saved.driver != self.context.identity.driver {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "it was saved by the driver {} and can't go on with {}",
                    saved.driver, self.context.identity.driver
                ),
            ));
        }
        let spec = self.prepare_as(&text, spec)?;
        self.applied = Some(spec);
        let config = self.config_of_run()?;
        let mut changed = Vec::new();
        for disk in config.disks.iter().filter(|disk| !disk.read_only) {
            let before = saved.disks.iter().find(|saved| saved.name == disk.name);
            if before != Some(&SavedDisk::of(disk)?) {
                changed.push(disk.name.clone());
            }
        }
        if !changed.is_empty() {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "it can't go on: written to since it was suspended: {}",
                    changed.join(", ")
                ),
            )
            .with_hint("put the disk back as it was, or give up what was saved with `inn start --discard-saved`"));
        }
        Ok((saved, config))
    }
}

/// What is known of a run that is being saved.
struct Known {
    driver: String,
    ready: bool,
    agent: Option<String>,
}

fn broken_off() -> Error {
    Error::new(ErrorKind::Interrupted, "it was broken off")
}

/// What a machine is saved with.
struct Parts<'a> {
    machine: &'a dyn Machine,
    agent: Option<&'a AgentLink>,
    bundle: &'a Bundle,
    config: &'a MachineConfig,
}

impl Parts<'_> {
    /// Lets the guest unmount and let go of what can't be saved.
    async fn take_out(&self, left: &mut Left) -> Result<()> {
        let Some(unsaved) = self.machine.unsaved() else {
            return Ok(());
        };
        if let Some(agent) = self.agent {
            agent.until_shares_are_there().await;
        }
        if unsaved.present().await?.is_empty() {
            return Ok(());
        }
        if left.stopped {
            return Err(Error::new(
                ErrorKind::Conflict,
                "shares: the guest must let go of them first, and its CPUs stand still",
            )
            .with_hint("resume it, and suspend it then"));
        }
        let nobody = || Error::new(ErrorKind::Unsupported, "shares: the guest has no agent");
        let agent = self.agent.ok_or_else(nobody)?;
        left.unmounted = true;
        if let Err(error) = agent.unmount_shares().await {
            // All of them are mounted again, or will be.
            left.unmounted = false;
            return Err(error);
        }
        unsaved.take_out().await
    }

    /// Puts back what was taken out, after a failure.
    async fn undo(&self, left: &mut Left) {
        let Some(unsaved) = self.machine.unsaved().filter(|_| left.unmounted) else {
            return;
        };
        left.put_back = Some(unsaved.put_back(self.config).await);
        if let (Some(agent), false) = (self.agent, left.stopped) {
            agent.mount_shares_again().await;
            left.unmounted = false;
        }
    }
}

/// Takes out what can't be saved, stops the CPUs, saves, and describes what was saved; `left` says what of that was done, or may be.
async fn save(
    parts: &Parts<'_>,
    left: &mut Left,
    known: Known,
    mut cancelled: oneshot::Receiver<()>,
) -> Result<()> {
    let (machine, bundle) = (parts.machine, parts.bundle);
    let cannot = || Error::new(ErrorKind::Unsupported, "its driver does not do that");
    let suspend: &dyn Suspend = machine.suspend().ok_or_else(cannot)?;
    let pause: &dyn Pause = machine.pause().ok_or_else(cannot)?;
    if let Some(obstacle) = suspend.obstacle().await? {
        refuse(&[obstacle])?;
    }
    tokio::select! {
        taken = parts.take_out(left) => taken?,
        // The sender is never used: it is dropped.
        _ = &mut cancelled => return Err(broken_off()),
    }
    if let Some(obstacle) = suspend.obstacle().await? {
        refuse(&[obstacle])?;
    }
    if !left.stopped {
        // Whatever comes of it: a request whose answer is lost may have been followed.
        left.stopped = true;
        pause.pause().await?;
    }
    let directory = bundle.begin_saving()?;
    let saved = tokio::select! {
        saved = suspend.save(&directory) => saved?,
        _ = cancelled => return Err(broken_off()),
    };
    let disks: Result<Vec<SavedDisk>> = parts
        .config
        .disks
        .iter()
        .filter(|disk| !disk.read_only)
        .map(SavedDisk::of)
        .collect();
    bundle.describe_saving(&Saved {
        version: 1,
        since: timestamp(),
        driver: known.driver,
        machine: saved,
        disks: disks?,
        ready: known.ready,
        agent: known.agent,
    })
}

/// Makes a machine of what was saved and lets its CPUs go. An error, or `cancelled`, leaves no hypervisor; what was saved can be used
/// again unless its CPUs may have run.
async fn bring_back(
    driver: Arc<dyn Driver>,
    bundle: &Bundle,
    config: &MachineConfig,
    saved: &Saved,
    run: Run,
    mut cancelled: oneshot::Receiver<()>,
) -> Result<Running> {
    let cannot = || {
        Error::new(
            ErrorKind::Unsupported,
            "its driver can't bring back what was saved, here and now",
        )
    };
    let killed = || Error::new(ErrorKind::Interrupted, "it was killed while it came back");
    let restore = driver.restore().ok_or_else(cannot)?;
    let reasons = restore.check_saved(config, &saved.machine, &driver.probe().await);
    refuse(&reasons)?;
    let mut running = tokio::select! {
        running = restore.restore(config, &saved.machine) => running?,
        _ = &mut cancelled => return Err(killed()),
    };
    let mut may_have_run = false;
    let goes = async {
        // From here on the next keeper finds it.
        bundle.write_run(&Run {
            record: Some(running.record.clone()),
            ..run
        })?;
        bundle.use_saved()?;
        let pause = running.machine.pause().ok_or_else(cannot)?;
        may_have_run = true;
        if let Err(error) = pause.resume().await {
            // A refusal was not followed; a request without an answer may have been.
            may_have_run = matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::Unreachable);
            return Err(error);
        }
        until_it_goes(&mut running.events).await
    };
    let gone = tokio::select! {
        gone = goes => gone,
        _ = &mut cancelled => Err(killed()),
    };
    if let Err(error) = gone {
        running.machine.kill().await?;
        if !bundle.is_suspended() && !may_have_run {
            bundle.give_back_saved()?;
        }
        return Err(error);
    }
    Ok(running)
}

/// Removes what the running machine was brought back from. Nobody waits for it: a file system may take most of a second to free that many blocks,
/// and what a keeper that ends before leaves there counts for nothing and goes with the run's directory.
fn forget_used(bundle: Bundle, news: mpsc::UnboundedSender<News>) {
    tokio::task::spawn_blocking(move || {
        if let Err(error) = bundle.forget_used() {
            let _ = news.send(News::Failed("remove what was saved", error));
        }
    });
}

async fn until_it_goes(events: &mut mpsc::UnboundedReceiver<MachineEvent>) -> Result<()> {
    let goes = async {
        loop {
            match events.recv().await {
                Some(MachineEvent::Resumed) => return Ok(()),
                Some(MachineEvent::Exited(report)) => {
                    return Err(Error::new(
                        ErrorKind::Failure,
                        format!("the hypervisor ended: {}", report.log_tail),
                    ));
                }
                Some(_) => {}
                None => return Err(Error::new(ErrorKind::Failure, "the hypervisor ended")),
            }
        }
    };
    tokio::time::timeout(GO_TIMEOUT, goes)
        .await
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::TimedOut, "its CPUs do not go on")))
}
