//! How a running machine is given what its spec asks for by now.
//!
//! ```text
//!  Apply ─► plan (pure) ─► one step after the other, beside the actor ─► News::Applied ─► run/applied.yaml says so ─► answer
//!                                └─ detach: ask the guest, wait for MachineEvent::Detached
//! ```

use innkeeper_api::{ApplyOutcome, ApplyRequest, Later};
use tokio::sync::broadcast;

use super::*;
use crate::driver::{Hotplug, Medium};
use crate::engine::live_change::{self, Change, Step};
use crate::engine::parts;
use crate::spec;

/// News of devices that nobody waits for may be forgotten beyond this.
const DETACHED_KEPT: usize = 64;

/// What came of giving a machine what was asked.
pub(super) struct Applied {
    outcome: ApplyOutcome,
    applied: VmSpec,
    identity: Identity,
    reply: oneshot::Sender<Result<ApplyOutcome>>,
}

pub(super) fn detached_channel() -> broadcast::Sender<String> {
    broadcast::Sender::new(DETACHED_KEPT)
}

impl Actor {
    pub(super) fn apply(
        &mut self,
        request: &ApplyRequest,
        reply: oneshot::Sender<Result<ApplyOutcome>>,
    ) {
        let refuse = |why: &str| Err(Error::new(ErrorKind::Conflict, why));
        let (Some(machine), Some(applied)) = (self.machine.clone(), self.applied.clone()) else {
            return drop(reply.send(refuse("it does not run")));
        };
        if self.live.power != Power::Running {
            return drop(reply.send(refuse("its CPUs do not run now")));
        }
        if std::mem::replace(&mut self.applying, true) {
            return drop(reply.send(refuse("another change is being made to it")));
        }
        let work = Work {
            machine,
            agent: self.agent.borrow().clone(),
            bundle: self.context.bundle.clone(),
            sockets: self
                .context
                .root
                .socket_directory(&self.context.identity.id),
            ssh_port: self.live.ssh_port,
            asked: self.asked.clone(),
            detached: self.detached.clone(),
            deadline: Instant::now() + Duration::from_millis(request.timeout_ms),
        };
        let identity = self.context.identity.clone();
        let news = self.news.clone();
        tokio::spawn(async move {
            let (outcome, applied, identity) = work.run(applied, identity).await;
            let _ = news.send(News::Applied(Box::new(Applied {
                outcome,
                applied,
                identity,
                reply,
            })));
        });
    }

    /// A device for which nobody waits any more is gone: what runs is told so.
    pub(super) fn detached_late(&mut self, device: &str) {
        let Some(applied) = self.applied.as_mut().filter(|_| !self.applying) else {
            return;
        };
        live_change::note_taken(applied, &self.asked, &Step::DetachDisk(device.to_owned()));
        let text = spec::write(applied);
        if let Err(error) = self.context.bundle.write_applied(&text) {
            self.say(&error.chain().join(": "));
        }
    }

    pub(super) fn applied(&mut self, done: Applied) {
        self.applying = false;
        self.context.identity = done.identity;
        if self.applied.is_some() {
            // The next keeper adopts the machine as it is now.
            let text = spec::write(&done.applied);
            if let Err(error) = self.context.bundle.write_applied(&text) {
                self.say(&error.chain().join(": "));
            }
            self.applied = Some(done.applied);
            self.hold_ports();
        }
        let _ = done.reply.send(Ok(done.outcome));
    }
}

/// What the steps are taken with.
struct Work {
    machine: Arc<dyn Machine>,
    agent: Option<AgentLink>,
    bundle: Bundle,
    sockets: std::path::PathBuf,
    ssh_port: Option<u16>,
    asked: VmSpec,
    detached: broadcast::Sender<String>,
    deadline: Instant,
}

impl Work {
    async fn run(
        self,
        mut applied: VmSpec,
        mut identity: Identity,
    ) -> (ApplyOutcome, VmSpec, Identity) {
        let mut outcome = ApplyOutcome::default();
        for Change { fields, step } in live_change::plan(&self.asked, &applied) {
            let done = match &step {
                Ok(step) => self.take(step, &mut identity).await,
                Err(why) => {
                    outcome.later.extend(fields.into_iter().map(|field| Later {
                        field,
                        reason: why.clone(),
                        problem: None,
                    }));
                    continue;
                }
            };
            match (done, step) {
                (Ok(()), Ok(step)) => {
                    live_change::note_taken(&mut applied, &self.asked, &step);
                    outcome.applied.extend(fields);
                }
                (Err(error), _) => outcome.later.extend(fields.into_iter().map(|field| Later {
                    field,
                    reason: error.chain().join(": "),
                    problem: Some(error.to_problem()),
                })),
                (Ok(()), Err(_)) => {}
            }
        }
        (outcome, applied, identity)
    }

    async fn take(&self, step: &Step, identity: &mut Identity) -> Result<()> {
        match step {
            Step::Cpus(cpus) => match self.machine.resize() {
                Some(resize) => {
                    resize.set_cpus(*cpus).await?;
                    self.bring_online(*cpus).await
                }
                None => Err(cannot("give it CPUs")),
            },
            Step::Memory(memory) => match self.machine.resize() {
                Some(resize) => resize.set_memory(*memory).await,
                None => Err(cannot("give it memory")),
            },
            Step::MemoryTarget(target) => match self.machine.balloon() {
                Some(balloon) => balloon.set_target(*target).await,
                None => Err(cannot("ask it for memory")),
            },
            Step::AttachDisk(name) => {
                let hotplug = self.hotplug("attach disks")?;
                let asked = self.asked.disks.iter().find(|disk| disk.name == *name);
                if let Some(asked) = asked.filter(|disk| disk.is_own()) {
                    let made = parts::make_empty_disk(&self.bundle, asked).await?;
                    identity.disks.push(made);
                    self.bundle.write_identity(identity)?;
                }
                let config = self.config(identity)?;
                let disk = config.disks.iter().find(|disk| disk.name == *name);
                let disk = disk.ok_or_else(|| missing(name))?;
                hotplug.attach_disk(disk).await
            }
            Step::DetachDisk(name) => {
                let hotplug = self.hotplug("detach disks")?;
                let gone = self.detached.subscribe();
                match hotplug.request_detach_disk(name).await {
                    // The guest let go of it while no keeper listened.
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                    Err(error) => Err(error),
                    Ok(()) => self.until_detached(gone, name).await,
                }
            }
            Step::ChangeMedium(name) => {
                let hotplug = self.hotplug("change media")?;
                let disk = self.asked.disks.iter().find(|disk| disk.name == *name);
                let medium = disk.and_then(|disk| {
                    Some(Medium {
                        path: disk.path.clone()?,
                        format: disk.format?,
                    })
                });
                hotplug.change_medium(name, medium.as_ref()).await
            }
            Step::AttachNic(index) => {
                let hotplug = self.hotplug("attach network interfaces")?;
                if let (Some(network), true) = (
                    self.asked.networks.get(*index),
                    identity.macs.len() <= *index,
                ) {
                    identity.macs.push(parts::mac_address(network)?);
                    self.bundle.write_identity(identity)?;
                }
                let config = self.config(identity)?;
                let nic = config.nics.get(*index);
                let nic = nic.ok_or_else(|| missing(&format!("interface {index}")))?;
                hotplug.attach_nic(nic).await
            }
            Step::DetachNic(index) => {
                let hotplug = self.hotplug("detach network interfaces")?;
                let mac = identity.macs.get(*index).copied();
                let mac = mac.ok_or_else(|| missing(&format!("interface {index}")))?;
                let gone = self.detached.subscribe();
                hotplug.request_detach_nic(mac).await?;
                self.until_detached(gone, &mac.to_string()).await?;
                identity.macs.truncate(*index);
                self.bundle.write_identity(identity)
            }
        }
    }

    /// Linux leaves it to user space to use CPUs that were added.
    async fn bring_online(&self, cpus: u32) -> Result<()> {
        let Some(agent) = &self.agent else {
            return Ok(());
        };
        agent.bring_online(cpus).await.map_err(|why| {
            Error::new(
                ErrorKind::Failure,
                format!("the machine has {cpus} CPUs, and the guest does not use all: {why}"),
            )
        })
    }

    fn hotplug(&self, what: &str) -> Result<&dyn Hotplug> {
        self.machine.hotplug().ok_or_else(|| cannot(what))
    }

    fn config(&self, identity: &Identity) -> Result<crate::driver::MachineConfig> {
        let sockets = self.sockets.clone();
        configure(&self.bundle, identity, &self.asked, sockets, self.ssh_port)
    }

    /// Waits until the guest has let go of a device.
    async fn until_detached(
        &self,
        mut gone: broadcast::Receiver<String>,
        device: &str,
    ) -> Result<()> {
        let wait = async {
            loop {
                match gone.recv().await {
                    Ok(name) if name == device => return Ok(()),
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => {
                        return Err(Error::new(ErrorKind::Conflict, "it ended meanwhile"));
                    }
                }
            }
        };
        match tokio::time::timeout_at(self.deadline.into(), wait).await {
            Ok(result) => result,
            Err(_) => Err(Error::new(
                ErrorKind::TimedOut,
                format!("the guest was asked to let go of {device}, and has not done so yet"),
            )
            .with_hint("unmount it in the guest; it goes with the next start at the latest")),
        }
    }
}

fn cannot(what: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("its driver can't {what} while it runs"),
    )
    .with_hint("see `inn drivers`; it is given to it at its next start")
}

fn missing(what: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("its spec has no {what}"))
}
