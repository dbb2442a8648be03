//! How a run ends: the guest is asked, the hypervisor told to quit or killed, and what came of it recorded.

use super::*;

/// How long a guest may take to power off when its time to live has passed.
const LAST_STOP: Duration = Duration::from_secs(30);

/// What is being done to end the hypervisor.
pub(super) struct Ending {
    pub by: StoppedBy,
    pub force: bool,
    /// Whether the agent was there to be asked; if not, it is asked when it says hello.
    pub agent_asked: bool,
    pub asked: Instant,
    pub deadline: Option<Instant>,
    pub waiters: Vec<oneshot::Sender<Result<StopOutcome>>>,
}

impl Actor {
    pub(super) fn stop(
        &mut self,
        request: &StopRequest,
        reply: oneshot::Sender<Result<StopOutcome>>,
    ) {
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

    pub(super) fn ask_to_stop(
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

    /// A stop that was asked for while the guest booted, or while nobody had its channel, is passed on to its agent now.
    pub(super) fn ask_late_agent(&mut self) {
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

    pub(super) fn kill(&mut self, reply: oneshot::Sender<Result<StopOutcome>>) {
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
    pub(super) fn end_hypervisor(&mut self) {
        if let Some(launching) = self.launching.take() {
            // A launch that is dropped leaves no process; one that brings back what was saved ends its own.
            match self.returning.take() {
                Some(returning) => drop(returning),
                None => launching.abort(),
            }
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
        if let Some(saving) = &mut self.saving {
            saving.break_off();
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

    pub(super) fn restart(
        &mut self,
        request: &RestartRequest,
        reply: oneshot::Sender<Result<StopOutcome>>,
    ) {
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

    /// The guest has powered off: the hypervisor is told to end.
    pub(super) fn quit(&mut self) {
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

    pub(super) fn exited(&mut self, report: &ExitReport) {
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

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        [
            self.ending.as_ref().and_then(|ending| ending.deadline),
            self.quit_at,
            self.end_of_life()
                .and_then(|left| Instant::now().checked_add(left)),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    pub(super) fn deadline_passed(&mut self) {
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
        if self.end_of_life().is_some_and(|left| left.is_zero()) {
            return self.end_life();
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

    /// Returns what is left of the time to live of this run; none if it has none, or is being ended already.
    fn end_of_life(&self) -> Option<Duration> {
        if self.machine.is_none() || self.ending.is_some() {
            return None;
        }
        let end = self.began? + self.asked.time_to_live?;
        Some(end.saturating_sub(since_boot()))
    }

    /// Its time to live has passed: it is stopped, and killed if it does not follow.
    fn end_life(&mut self) {
        self.note(EventKind::Note {
            message: "its time to live has passed".to_owned(),
        });
        let (reply, _) = oneshot::channel();
        if self.live.power == Power::Running {
            self.ask_to_stop(LAST_STOP, true, reply);
        } else {
            // A guest whose CPUs do not run can't follow.
            self.kill(reply);
        }
    }

    /// The hypervisor is gone: records how, and either launches again or lets go of the VM.
    pub(super) fn finish(&mut self, event: PowerEvent) {
        self.machine = None;
        self.vsock_ports.clear();
        self.machine_events = None;
        self.ports.clear();
        self.stop_pausing();
        self.quit_at = None;
        self.announced = false;
        self.watcher = None;
        self.agent.send_replace(None);
        // Nobody takes its news any more, so the link ends: it must not open the channel of the next run.
        if let Some(carrier) = self.agent_news.take() {
            carrier.abort();
        }
        self.run += 1;
        self.began = None;
        let before = self.state();
        // Whatever ended it: as long as what was saved counts, the VM is suspended.
        let event = if self.context.bundle.is_suspended() {
            PowerEvent::Saved
        } else {
            event
        };
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
        self.tell_suspended();
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
    pub(super) fn answer_when_started(&mut self, ending: Option<Ending>) {
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

    pub(super) fn how_it_is(&self) -> RecordedPower {
        RecordedPower {
            failed: match &self.live.power {
                Power::Failed(reason) => Some(reason.clone()),
                _ => None,
            },
            since: self.live.since.clone().unwrap_or_else(timestamp),
        }
    }

    pub(super) fn record_end(&mut self) -> Result<()> {
        recover::settle(
            &self.context.root,
            &self.context.bundle,
            &self.context.identity,
            &self.how_it_is(),
        )
    }
}

pub(super) fn already_stopped() -> StopOutcome {
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
