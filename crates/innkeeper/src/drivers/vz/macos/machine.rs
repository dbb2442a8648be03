//! A running machine: what can be asked of it, and the task that watches it and tells what happens.
//!
//! ```text
//!  VZ ── states, delegate ──► supervise ──► MachineEvent ... Exited
//!  Machine (asks) ── quit, kill ──► end ──►    │ lets go of the machine and of the run's lock
//! ```
//!
//! The machine lives as long as the task does, whether or not anybody listens: dropping [`Running`] does not end it, the process's end does.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use innkeeper_api::ErrorKind;
use innkeeper_vz::{Event, MachineIdentifier, State, VirtualMachine, VzError};
use tokio::sync::{mpsc, watch};

use super::super::objects::MachinePlan;
use super::super::plan::AGENT_PORT;
use super::super::ports::Port;
use super::super::tracker::{Seen, Tracker};
use super::{Record, vz_error};
use crate::driver::{
    Balloon, Channel, Consoles, ExitReport, Hotplug, Machine, MachineEvent, Pause, Running,
    Suspend, Vsock,
};
use crate::error::{Error, Result};

/// How long an orderly end may take: the disks' caches are written.
const QUIT_DEADLINE: Duration = Duration::from_secs(60);

/// How long macOS may take to stop a machine before it is let go of all the same.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

/// What a launch leaves behind to be supervised.
pub(super) struct Launched {
    pub(super) machine: VirtualMachine,
    pub(super) events: mpsc::UnboundedReceiver<Event>,
    pub(super) ports: HashMap<String, Port>,
    pub(super) plan: MachinePlan,
    pub(super) identifier: MachineIdentifier,
    pub(super) id: String,
    pub(super) build: String,
    pub(super) lock: File,
    pub(super) log: File,
    pub(super) record: Record,
}

/// What the machine and its supervisor share.
pub(super) struct Shared {
    /// There until the machine has ended.
    machine: Mutex<Option<Arc<VirtualMachine>>>,
    pub(super) ports: HashMap<String, Port>,
    /// What the machine is made of now.
    pub(super) plan: Mutex<MachinePlan>,
    pub(super) identifier: MachineIdentifier,
    pub(super) id: String,
    pub(super) build: String,
    pid: u32,
    expected: AtomicBool,
    /// There until the end has been told.
    sender: Mutex<Option<mpsc::UnboundedSender<MachineEvent>>>,
    /// Set by who wants the machine to be let go of.
    end: watch::Sender<bool>,
    /// Set when that has been done.
    ended: watch::Sender<bool>,
}

/// Locks what no holder can leave broken.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn machine(&self) -> Result<Arc<VirtualMachine>> {
        locked(&self.machine)
            .clone()
            .ok_or_else(|| Error::new(ErrorKind::Unreachable, "the machine has ended"))
    }

    pub(super) fn tell(&self, event: MachineEvent) {
        if let Some(sender) = &*locked(&self.sender) {
            // Nobody listens: the machine goes on all the same.
            let _ = sender.send(event);
        }
    }

    /// Lets go of the machine and waits until that has been done.
    async fn end(&self) {
        self.end.send_replace(true);
        // It does not fail: the sender is ours. The supervisor ends in no other way than by setting it.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }
}

/// Begins to supervise a machine that was just started.
pub(super) fn supervise(launched: Launched) -> Result<Running> {
    let (sender, events) = mpsc::unbounded_channel();
    let record = serde_json::to_value(&launched.record).map_err(|error| {
        Error::new(ErrorKind::Failure, "the record can't be written down").with_source(error)
    })?;
    let shared = Arc::new(Shared {
        machine: Mutex::new(Some(Arc::new(launched.machine))),
        ports: launched.ports,
        plan: Mutex::new(launched.plan),
        identifier: launched.identifier,
        id: launched.id,
        build: launched.build,
        pid: launched.record.pid,
        expected: AtomicBool::new(false),
        sender: Mutex::new(Some(sender)),
        end: watch::Sender::new(false),
        ended: watch::Sender::new(false),
    });
    let supervisor = Supervisor {
        shared: shared.clone(),
        tracker: Tracker::default(),
        lock: launched.lock,
        log: launched.log,
    };
    tokio::spawn(supervisor.run(launched.events));
    Ok(Running {
        machine: Box::new(VzMachine { shared }),
        events,
        record,
    })
}

struct Supervisor {
    shared: Arc<Shared>,
    tracker: Tracker,
    lock: File,
    log: File,
}

impl Supervisor {
    async fn run(mut self, mut events: mpsc::UnboundedReceiver<Event>) {
        let mut end = self.shared.end.subscribe();
        let error = loop {
            tokio::select! {
                // What happened before it was let go of is told before.
                biased;
                event = events.recv() => match event {
                    Some(Event::StoppedWithError(error)) => break Some(error),
                    Some(event) => self.take(event),
                    None => break Some(VzError::gone()),
                },
                _ = end.wait_for(|end| *end) => break None,
            }
        };
        self.finish(error);
    }

    fn say(&mut self, line: &str) {
        // A full disk is not a reason to end a machine.
        let _ = writeln!(self.log, "{line}");
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::State(state) => {
                let seen = match state {
                    State::Running => Seen::Running,
                    State::Paused => Seen::Paused,
                    State::Error => Seen::Error,
                    _ => Seen::Else,
                };
                if let Some(event) = self.tracker.observe(seen) {
                    self.shared.tell(event);
                }
            }
            Event::GuestStopped => self.shared.tell(MachineEvent::GuestShutdown),
            Event::NetworkLost(mac, error) => {
                let mac = mac.unwrap_or_else(|| "of unknown address".to_owned());
                self.say(&format!("the network of interface {mac} is gone: {error}"));
            }
            Event::StoppedWithError(_) => {}
        }
    }

    /// Lets go of the machine, cleans up, tells.
    fn finish(mut self, error: Option<VzError>) {
        drop(locked(&self.shared.machine).take());
        let log_tail = error.map_or_else(String::new, |error| {
            let mut said = format!("Virtualization.framework ended the machine: {error}");
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                said.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            self.say(&said);
            said
        });
        let Supervisor { shared, lock, .. } = self;
        // Free before the end is told: who hears of it may launch again.
        drop(lock);
        shared.tell(MachineEvent::Exited(ExitReport {
            code: None,
            signal: None,
            expected: shared.expected.load(Ordering::SeqCst),
            log_tail,
        }));
        locked(&shared.sender).take();
        shared.ended.send_replace(true);
    }
}

/// A running machine of Virtualization.framework.
pub(super) struct VzMachine {
    pub(super) shared: Arc<Shared>,
}

#[async_trait]
impl Machine for VzMachine {
    fn pid(&self) -> u32 {
        self.shared.pid
    }

    fn accel(&self) -> &str {
        "hvf"
    }

    async fn power_button(&self) -> Result<()> {
        self.shared
            .machine()?
            .request_stop()
            .await
            .map_err(|error| vz_error(error, "macOS did not press the power button"))
    }

    async fn quit(&self) -> Result<()> {
        let Ok(machine) = self.shared.machine() else {
            return Ok(());
        };
        let before = self.shared.expected.swap(true, Ordering::SeqCst);
        let stopped = match tokio::time::timeout(QUIT_DEADLINE, machine.stop()).await {
            Ok(result) => result.map_err(|error| vz_error(error, "macOS did not stop the machine")),
            Err(_) => Err(Error::new(
                ErrorKind::TimedOut,
                format!(
                    "macOS did not stop the machine within {} s",
                    QUIT_DEADLINE.as_secs()
                ),
            )),
        };
        if stopped.is_err() {
            self.shared.expected.store(before, Ordering::SeqCst);
            return stopped;
        }
        drop(machine);
        self.shared.end().await;
        Ok(())
    }

    async fn kill(&self) -> Result<()> {
        self.shared.expected.store(true, Ordering::SeqCst);
        if let Ok(machine) = self.shared.machine() {
            // Whether it worked or not: letting go of the machine ends it.
            let _ = tokio::time::timeout(KILL_DEADLINE, machine.stop()).await;
        }
        self.shared.end().await;
        Ok(())
    }

    async fn agent_channel(&self) -> Result<Box<dyn Channel>> {
        self.open(AGENT_PORT).await
    }

    fn pause(&self) -> Option<&dyn Pause> {
        Some(self)
    }

    fn suspend(&self) -> Option<&dyn Suspend> {
        Some(self)
    }

    fn balloon(&self) -> Option<&dyn Balloon> {
        let has_one = locked(&self.shared.plan).balloon.is_some();
        has_one.then_some(self)
    }

    fn hotplug(&self) -> Option<&dyn Hotplug> {
        let has_controller = locked(&self.shared.plan).usb_controller.is_some();
        has_controller.then_some(self)
    }

    fn vsock(&self) -> Option<&dyn Vsock> {
        let has_device = locked(&self.shared.plan).socket;
        has_device.then_some(self)
    }

    fn consoles(&self) -> Option<&dyn Consoles> {
        Some(self)
    }
}
