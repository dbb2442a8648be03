//! What happens to a run: events of the hypervisor, news of the agent, what was done beside the actor.

use super::*;

impl Actor {
    pub(super) fn machine_event(&mut self, event: MachineEvent) {
        match event {
            MachineEvent::Running => {
                self.power(PowerEvent::Launched);
                self.power(PowerEvent::Resumed);
            }
            MachineEvent::Paused => self.stands_still(),
            MachineEvent::Resumed => self.goes_on(),
            MachineEvent::GuestReset => {
                // A new boot of the guest: what its last agent said is of the past, and its silence means nothing.
                self.live.agent = innkeeper_api::AgentInfo {
                    state: innkeeper_api::AgentState::Waiting,
                    ..Default::default()
                };
                self.live.addresses.clear();
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
            MachineEvent::WatchdogFired => self.note(EventKind::Note {
                message: "the watchdog ran out: the guest had stopped feeding it".to_owned(),
            }),
            MachineEvent::Detached(device) => {
                self.note(EventKind::Note {
                    message: format!("the guest let go of {device}"),
                });
                // Nobody may wait for it: a guest can let go of a device long after it was asked.
                self.detached_late(&device);
                let _ = self.detached.send(device);
            }
            MachineEvent::TakenOut(device) => self.taken_out(&device),
            MachineEvent::Severed(device) => self.severed(&device),
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

    pub(super) fn take_news(&mut self, news: News) {
        match news {
            News::Launched(result) if self.launching.is_some() => self.launched(*result),
            // It was killed meanwhile: just before, if it is there after all. `News::Failed` of the kill follows and ends the run.
            News::Launched(result) => {
                if let Ok((running, _)) = *result {
                    self.machine = Some(Arc::from(running.machine));
                }
            }
            News::Adopted(result, run) => self.adopted_again(*result, &run),
            News::Asked(by) => {
                if let Some(ending) = &mut self.ending
                    && ending.by != StoppedBy::Kill
                    // An agent that took the word counts before a button that was pressed besides.
                    && !(ending.by == StoppedBy::Agent && by == StoppedBy::PowerButton)
                {
                    ending.by = by;
                }
            }
            News::Agent(run, news) if run == self.run => self.agent_news(news),
            News::Ready(run, sign) if run == self.run => self.facts.note_sign(sign),
            News::Agent(..) | News::Ready(..) => {}
            News::Unmoved(wish, error) => self.unmoved(wish, error),
            News::Saved(result, left) => self.saved(result, left),
            News::PutBack(run, result) if run == self.run => self.is_put_back(result),
            News::PutBack(..) => {}
            News::Applied(done) => self.applied(*done),
            News::Failed("launch", _)
                if self.machine_events.is_none() && self.machine.is_some() =>
            {
                self.end_what_came_late();
            }
            News::Failed("launch", _) => self.finish(PowerEvent::Gone),
            News::Failed(what, error) => {
                self.say(&format!("can't {what}: {}", error.chain().join(": ")))
            }
        }
    }

    /// Ends a hypervisor whose launch was done just when it was killed.
    fn end_what_came_late(&mut self) {
        let (Some(machine), news) = (self.machine.take(), self.news.clone()) else {
            return;
        };
        tokio::spawn(async move {
            let error = match machine.kill().await {
                Ok(()) => Error::new(ErrorKind::Interrupted, "killed"),
                Err(error) => error,
            };
            let _ = news.send(News::Failed("launch", error));
        });
    }

    pub(super) fn agent_news(&mut self, news: AgentNews) {
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
                self.set_late_clock();
            }
            AgentNews::Addresses(addresses) => self.live.addresses = addresses,
            AgentNews::CloudInit(status) => self.facts.cloud_init = Some(status),
            AgentNews::Busy(busy) => self.facts.settled = !busy,
            AgentNews::SharesDone => self.facts.shares_done = true,
            AgentNews::Heard if self.live.agent.state == AgentState::Silent => {
                self.live.agent.state = AgentState::Ready;
                self.live.agent.silent_seconds = None;
            }
            AgentNews::Heard => {}
            // CPUs that stand still say nothing.
            AgentNews::Silent(_) if self.live.power != Power::Running => {}
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
                if let Some(ending) = &mut self.ending
                    && ending.agent_asked
                    && ending.by != StoppedBy::Kill
                {
                    ending.by = StoppedBy::Agent;
                }
                self.announced = true;
                self.quit_at
                    .get_or_insert(Instant::now() + ANNOUNCED_TIMEOUT);
            }
            AgentNews::Halting { .. } => {}
            AgentNews::Problem(message) => {
                let message: String = message.chars().take(LONGEST_PROBLEM).collect();
                self.say(&message);
                self.note(EventKind::Note { message });
            }
        }
    }

    pub(super) fn housekeeping(&mut self) {
        self.look_after_the_unreachable();
        for log in ["log/serial.log", "log/vmm.log", "log/keeper.log"] {
            if let Err(error) = turn_over(&self.context.bundle.path(log)) {
                self.say(&format!("can't turn over {log}: {error}"));
            }
        }
    }

    /// A hypervisor that can't be talked to tells no end either; its lock does. As long as it lives it is asked again.
    pub(super) fn look_after_the_unreachable(&mut self) {
        let unwatched = self.machine.is_some() && self.machine_events.is_none();
        if !unwatched {
            return;
        }
        if matches!(self.context.bundle.hypervisor_lives(), Ok(false)) {
            let reason = "the hypervisor ended while it could not be reached".to_owned();
            let event = match &self.ending {
                Some(ending) if ending.by == StoppedBy::Kill => PowerEvent::Gone,
                _ => PowerEvent::Broke(reason),
            };
            return self.finish(event);
        }
        if let Err(error) = self.adopt_again() {
            self.say(&format!(
                "can't ask the hypervisor again: {}",
                error.chain().join(": ")
            ));
        }
    }
}
