//! A running fake hypervisor: what can be asked of it, and the task that watches it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use innkeeper_api::{Capability, ErrorKind};
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::sync::mpsc;

use super::control::{
    Control, ControlLines, ControlMessage, ControlRequest, GuestState, Link, next,
};
use super::launch::{Record, kill, tail};
use super::process::Process;
use crate::driver::{
    Balloon, BlockStatistics, Channel, Consoles, ExitReport, Hotplug, Machine, MachineEvent, Pause,
    Resize, Running, Suspend,
};
use crate::error::{Error, Result};

/// How long an orderly end may take.
const QUIT_DEADLINE: Duration = Duration::from_secs(5);
/// How long the end of the connection may precede the end of the process before the connection counts as lost.
const END_GRACE: Duration = Duration::from_millis(250);
/// How often a lost connection is tried again.
const RECONNECT: Duration = Duration::from_millis(50);

pub(super) struct Shared {
    pub(super) record: Record,
    process: Process,
    pub(super) link: Link,
    expected: AtomicBool,
    /// Whether somebody waits for it to be saved.
    pub(super) saving: AtomicBool,
}

/// A fake hypervisor that runs.
pub(super) struct FakeMachine {
    pub(super) shared: Arc<Shared>,
}

impl FakeMachine {
    /// An extension is there exactly if the driver claims it.
    fn can(&self, capability: Capability) -> bool {
        !self.shared.record.lacking.contains(&capability)
    }
}

pub(super) async fn supervise(
    record: Record,
    process: Process,
    child: Option<Child>,
    control: Control,
) -> Result<Running> {
    let value = serde_json::to_value(&record).map_err(|error| {
        Error::new(ErrorKind::Failure, "the record can't be written").with_source(error)
    })?;
    let (sender, events) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared {
        record,
        process,
        link: Link::default(),
        expected: AtomicBool::new(false),
        saving: AtomicBool::new(false),
    });
    let state = control.state;
    // Whoever gets the machine can ask it at once.
    let lines = shared.link.open(control).await;
    let supervisor = Supervisor {
        shared: shared.clone(),
        child,
        sender,
    };
    tokio::spawn(supervisor.run(state, lines));
    Ok(Running {
        machine: Box::new(FakeMachine { shared }),
        events,
        record: value,
    })
}

struct Supervisor {
    shared: Arc<Shared>,
    child: Option<Child>,
    sender: mpsc::UnboundedSender<MachineEvent>,
}

impl Supervisor {
    async fn run(self, state: GuestState, lines: ControlLines) {
        let mut connected = Some((state, lines));
        loop {
            if let Some((state, lines)) = connected.take() {
                let lost = tokio::select! {
                    // What it said before it ended is told before its end.
                    biased;
                    lost = self.follow(state, lines) => lost,
                    () = self.shared.process.gone() => return self.finish().await,
                    () = self.sender.closed() => return,
                };
                self.shared.link.close().await;
                if tokio::time::timeout(END_GRACE, self.shared.process.gone())
                    .await
                    .is_ok()
                {
                    return self.finish().await;
                }
                self.tell(MachineEvent::ControlLost(lost));
            }
            tokio::select! {
                control = Control::connect(&self.shared.record.control) => if let Ok(control) = control {
                    let state = control.state;
                    connected = Some((state, self.shared.link.open(control).await));
                    self.tell(MachineEvent::ControlBack);
                    continue;
                },
                () = self.shared.process.gone() => return self.finish().await,
                () = self.sender.closed() => return,
            }
            tokio::time::sleep(RECONNECT).await;
        }
    }

    fn tell(&self, event: MachineEvent) {
        // A receiver that was dropped ends this task at its next turn.
        let _ = self.sender.send(event);
    }

    fn tell_state(&self, state: GuestState) {
        self.tell(match state {
            GuestState::Running => MachineEvent::Running,
            GuestState::Paused => MachineEvent::Paused,
            GuestState::Off => MachineEvent::GuestShutdown,
        });
    }

    /// Passes on what it says until the connection ends; returns why it did.
    async fn follow(&self, state: GuestState, mut lines: ControlLines) -> String {
        self.tell_state(state);
        let mut before = state;
        loop {
            match next(&mut lines).await {
                Err(error) => return format!("the fake hypervisor closed the connection: {error}"),
                Ok(ControlMessage::State(GuestState::Running)) if before == GuestState::Paused => {
                    before = GuestState::Running;
                    self.tell(MachineEvent::Resumed);
                }
                Ok(ControlMessage::State(state)) => {
                    before = state;
                    self.tell_state(state);
                }
                Ok(ControlMessage::Reset) => self.tell(MachineEvent::GuestReset),
                Ok(ControlMessage::Panicked) => self.tell(MachineEvent::GuestPanicked),
                Ok(ControlMessage::Detached(device)) => self.tell(MachineEvent::Detached(device)),
                Ok(ControlMessage::Answer(id, answer)) => self.shared.link.answer(id, answer),
                Ok(ControlMessage::Greeting(_)) => {
                    return "the fake hypervisor greeted twice".to_owned();
                }
            }
        }
    }

    async fn finish(mut self) {
        use std::os::unix::process::ExitStatusExt;
        let status = match self.child.take() {
            Some(mut child) => child.wait().await.ok(),
            None => None,
        };
        self.tell(MachineEvent::Exited(ExitReport {
            code: status.and_then(|status| status.code()),
            signal: status.and_then(|status| status.signal()),
            expected: self.shared.expected.load(Ordering::SeqCst),
            log_tail: tail(&self.shared.record.log),
        }));
    }
}

#[async_trait]
impl Machine for FakeMachine {
    fn pid(&self) -> u32 {
        self.shared.record.process.pid
    }

    fn accel(&self) -> &str {
        "fake"
    }

    async fn power_button(&self) -> Result<()> {
        self.shared.link.ask(ControlRequest::Button).await.map(drop)
    }

    async fn quit(&self) -> Result<()> {
        let before = self.shared.expected.swap(true, Ordering::SeqCst);
        match self.shared.link.ask(ControlRequest::Quit).await {
            // It may end before its answer is read.
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Unreachable => {}
            Err(error) => {
                self.shared.expected.store(before, Ordering::SeqCst);
                return Err(error);
            }
        }
        tokio::time::timeout(QUIT_DEADLINE, self.shared.process.gone())
            .await
            .map_err(|_| {
                Error::new(
                    ErrorKind::TimedOut,
                    "the fake hypervisor did not end when it was told to quit",
                )
            })
    }

    async fn kill(&self) -> Result<()> {
        self.shared.expected.store(true, Ordering::SeqCst);
        kill(&self.shared.process).await
    }

    async fn agent_channel(&self) -> Result<Box<dyn Channel>> {
        let path = &self.shared.record.agent;
        let stream = UnixStream::connect(path).await.map_err(|error| {
            Error::new(
                ErrorKind::Unreachable,
                format!("can't connect to the agent's channel {}", path.display()),
            )
            .with_source(error)
        })?;
        Ok(Box::new(stream))
    }

    fn block_statistics(&self) -> Option<&dyn BlockStatistics> {
        Some(self)
    }

    fn pause(&self) -> Option<&dyn Pause> {
        self.can(Capability::Pause).then_some(self)
    }

    fn suspend(&self) -> Option<&dyn Suspend> {
        self.can(Capability::Suspend).then_some(self)
    }

    fn resize(&self) -> Option<&dyn Resize> {
        (self.can(Capability::CpuHotplug) || self.can(Capability::MemoryHotplug)).then_some(self)
    }

    fn balloon(&self) -> Option<&dyn Balloon> {
        self.shared.record.balloon.then_some(self)
    }

    fn hotplug(&self) -> Option<&dyn Hotplug> {
        let any = [
            Capability::DiskHotplug,
            Capability::Drive,
            Capability::NetworkHotplug,
        ];
        any.into_iter()
            .any(|capability| self.can(capability))
            .then_some(self)
    }

    fn consoles(&self) -> Option<&dyn Consoles> {
        self.can(Capability::Consoles).then_some(self)
    }
}
