//! How a run begins: an earlier one is taken over, or a new one launched.

use super::*;

impl Actor {
    /// Finds what an earlier keeper left: takes its hypervisor over, or records how it ended.
    pub(crate) async fn take_over(&mut self) -> Result<()> {
        let context = &self.context;
        match recover::find(&context.bundle)? {
            Found::Nothing => {}
            Found::Ended(recorded) => {
                recover::settle(&context.root, &context.bundle, &context.identity, &recorded)?;
                self.live = Live::of_files(&context.bundle, Some(recorded));
            }
            // What was saved counts, and its CPUs have not run since: the hypervisor was about to be ended, or had just been launched.
            found @ (Found::Orphan | Found::Running(_)) if context.bundle.is_suspended() => {
                if let Found::Running(Run {
                    record: Some(record),
                    ..
                }) = &found
                {
                    context.driver.kill_record(record).await?;
                }
                recover::end_orphan(&context.bundle).await?;
                self.live = Live::off(Power::Suspended, Some(timestamp()));
                self.record_end()?;
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

    pub(super) async fn adopt(&mut self, run: Run) -> Result<()> {
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
        // What an earlier keeper had begun to save is worth nothing.
        self.context.bundle.give_up_saving()?;
        self.applied = Some(spec);
        self.live.ssh_port = run.ssh_port;
        match self.context.driver.adopt(&config, &record).await {
            Ok(running) => {
                self.adopted(running, &run);
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
                self.live = Live::of_files(&self.context.bundle, Some(recorded));
                Ok(())
            }
            // It lives but can't be talked to: that is what is told, it is asked again and again, and `kill` still works by its record.
            Err(error) => {
                let machine = Unreachable {
                    driver: self.context.driver.clone(),
                    record,
                };
                self.live.power = Power::Running;
                self.live.stale_since = Some(timestamp());
                self.live.waiting_for = Some(out_of_reach(&error));
                self.live.vmm_pid = Some(machine.pid()).filter(|pid| *pid > 0);
                self.machine = Some(Arc::new(machine));
                Ok(())
            }
        }
    }

    fn adopted(&mut self, running: Running, run: &Run) {
        let vmm_pid = running.machine.pid();
        self.live.power = Power::Running;
        self.live.since = Some(timestamp());
        self.began = Some(Duration::from_millis(run.began_ms));
        self.run_machine(running);
        self.note(EventKind::Adopted { vmm_pid });
    }

    /// Asks a hypervisor that could not be reached whether it can be by now, unless it is being asked or ended.
    pub(super) fn adopt_again(&mut self) -> Result<()> {
        let asked = self.adopting.as_ref().is_some_and(|it| !it.is_finished());
        let Some(run) = self.context.bundle.run()? else {
            return Ok(());
        };
        if asked || self.ending.is_some() {
            return Ok(());
        }
        let config = self.config_of_run()?;
        let record = run.record.clone().unwrap_or_default();
        let (driver, news) = (self.context.driver.clone(), self.news.clone());
        self.adopting = Some(tokio::spawn(async move {
            let result = driver.adopt(&config, &record).await;
            let _ = news.send(News::Adopted(Box::new(result), run));
        }));
        Ok(())
    }

    /// A hypervisor that could not be reached answered, or did not again.
    pub(super) fn adopted_again(&mut self, result: Result<Running>, run: &Run) {
        let unwatched = self.machine.is_some() && self.machine_events.is_none();
        match result {
            _ if !unwatched || self.ending.is_some() => {}
            Ok(running) => {
                self.live.stale_since = None;
                self.live.waiting_for = None;
                self.adopted(running, run);
            }
            // Of its end its lock tells.
            Err(error) => self.live.waiting_for = Some(out_of_reach(&error)),
        }
    }

    pub(super) fn start(&mut self, reply: oneshot::Sender<Result<Accepted>>) {
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

    pub(super) fn launch(&mut self) {
        self.facts = Facts::default();
        self.announced = false;
        if self.live.power == Power::Suspended {
            return self.bring_back();
        }
        self.power(PowerEvent::Launch);
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
    pub(super) fn prepare(&mut self) -> Result<VmSpec> {
        self.asked = self.context.bundle.spec()?;
        self.live.spec_problem = None;
        let text = self.context.bundle.spec_text()?;
        self.prepare_as(&text, self.asked.clone())
    }

    /// Makes the run's directory and sockets for a run by this spec.
    pub(super) fn prepare_as(&mut self, text: &str, spec: VmSpec) -> Result<VmSpec> {
        let context = &self.context;
        let ssh_port = choose_ssh_port(&context.identity)?;
        check_forwards(&spec)?;
        networks::check_networks(&context.root, &spec)?;
        context.root.make_socket_directory(&context.identity.id)?;
        let run = Run {
            boot_id: context.root.boot_id().to_owned(),
            started: timestamp(),
            began_ms: milliseconds(since_boot()),
            record: None,
            ssh_port,
        };
        context.bundle.begin_run(text, &run)?;
        self.live.ssh_port = ssh_port;
        self.applied = Some(spec.clone());
        Ok(spec)
    }

    pub(super) fn launched(&mut self, result: Result<(Running, Identity)>) {
        self.launching = None;
        self.returning = None;
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
        self.began = Some(since_boot());
        let run = self.run_of(&running);
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

    /// Returns what is recorded of a run.
    pub(super) fn run_of(&self, running: &Running) -> Run {
        Run {
            record: Some(running.record.clone()),
            ..self.run_begun()
        }
    }

    /// Returns what is recorded of a run whose hypervisor is not there yet.
    pub(super) fn run_begun(&self) -> Run {
        Run {
            boot_id: self.context.root.boot_id().to_owned(),
            started: timestamp(),
            began_ms: milliseconds(self.began.unwrap_or_else(since_boot)),
            record: None,
            ssh_port: self.live.ssh_port,
        }
    }

    /// Begins to watch a hypervisor, its agent and its signs of readiness.
    pub(super) fn run_machine(&mut self, running: Running) {
        let machine: Arc<dyn Machine> = Arc::from(running.machine);
        self.live.vmm_pid = Some(machine.pid());
        self.live.accel = Some(machine.accel().to_owned());
        self.live.severed.clear();
        self.mount_again = false;
        self.run += 1;
        let run = self.run;
        self.machine_events = Some(running.events);
        self.machine = Some(machine.clone());
        self.hold_ports();
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
        self.put_back();
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
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn out_of_reach(error: &Error) -> String {
    format!(
        "the hypervisor can't be reached: {}",
        error.chain().join(": ")
    )
}
