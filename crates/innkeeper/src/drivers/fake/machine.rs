//! A running fake hypervisor: what can be asked of it, and the task that watches it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use innkeeper_api::ErrorKind;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Child;
use tokio::sync::{Mutex, mpsc};

use super::launch::{Record, kill, tail};
use super::process::Process;
use crate::driver::{
    BlockStatistics, BlockTotals, Channel, ExitReport, Machine, MachineEvent, Pause, Running,
};
use crate::error::{Error, Result};

/// How long a request may take.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// How long an orderly end may take.
const QUIT_DEADLINE: Duration = Duration::from_secs(5);
/// How long the end of the connection may precede the end of the process before the connection counts as lost.
const END_GRACE: Duration = Duration::from_millis(250);
/// How often a lost connection is tried again.
const RECONNECT: Duration = Duration::from_millis(50);

/// What the fake hypervisor is asked, one JSON line each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlRequest {
    /// Press the power button.
    Button,
    /// End; only for a guest that has powered off.
    Quit,
    /// Stop the CPUs.
    Pause,
    /// Continue the CPUs.
    Resume,
    /// Count.
    Blocks,
}

/// What the fake hypervisor says, one JSON line each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlMessage {
    /// The first line of a connection: the state.
    Greeting(GuestState),
    /// A request was carried out.
    Done,
    /// A request was refused.
    Refused(String),
    /// Bytes read and written.
    Blocks(u64, u64),
    /// The guest's state changed.
    State(GuestState),
    /// The guest rebooted.
    Reset,
    /// The guest's kernel panicked.
    Panicked,
}

/// What a fake guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestState {
    /// It runs.
    Running,
    /// It stands still.
    Paused,
    /// It has powered off.
    Off,
}

/// A connection to the control socket, greeted.
pub(super) struct Control {
    state: GuestState,
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl Control {
    pub(super) async fn connect(path: &Path) -> io::Result<Control> {
        let (reader, writer) = UnixStream::connect(path).await?.into_split();
        let mut lines = BufReader::new(reader).lines();
        match next(&mut lines).await? {
            ControlMessage::Greeting(state) => Ok(Control {
                state,
                lines,
                writer,
            }),
            other => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("greeted by {other:?}"),
            )),
        }
    }
}

async fn next(lines: &mut Lines<BufReader<OwnedReadHalf>>) -> io::Result<ControlMessage> {
    let line = lines
        .next_line()
        .await?
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    serde_json::from_str(&line).map_err(io::Error::from)
}

struct Link {
    writer: OwnedWriteHalf,
    replies: mpsc::UnboundedReceiver<ControlMessage>,
}

struct Shared {
    record: Record,
    process: Process,
    link: Mutex<Option<Link>>,
    expected: AtomicBool,
}

impl Shared {
    async fn ask(&self, request: ControlRequest) -> Result<ControlMessage> {
        let lost = || {
            Error::new(
                ErrorKind::Unreachable,
                "the fake hypervisor does not answer",
            )
        };
        let mut link = self.link.lock().await;
        let Some(open) = link.as_mut() else {
            return Err(lost());
        };
        let mut line = serde_json::to_vec(&request).map_err(|error| lost().with_source(error))?;
        line.push(b'\n');
        let asked = async {
            open.writer
                .write_all(&line)
                .await
                .map_err(|error| lost().with_source(error))?;
            open.replies.recv().await.ok_or_else(lost)
        };
        let answer = tokio::time::timeout(REQUEST_DEADLINE, asked).await;
        match answer {
            Ok(Ok(ControlMessage::Refused(why))) => Err(Error::new(
                ErrorKind::Failure,
                format!("the fake hypervisor refused: {why}"),
            )),
            Ok(answer) => answer,
            Err(_) => {
                // A late answer must not be taken for that of the next request.
                *link = None;
                Err(Error::new(
                    ErrorKind::TimedOut,
                    "the fake hypervisor did not answer in time",
                ))
            }
        }
    }
}

/// A fake hypervisor that runs.
struct FakeMachine {
    shared: Arc<Shared>,
}

pub(super) fn supervise(
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
        link: Mutex::new(None),
        expected: AtomicBool::new(false),
    });
    let supervisor = Supervisor {
        shared: shared.clone(),
        child,
        sender,
    };
    tokio::spawn(supervisor.run(control));
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
    async fn run(self, first: Control) {
        let mut connected = Some(first);
        loop {
            if let Some(control) = connected.take() {
                let lost = tokio::select! {
                    // What it said before it ended is told before its end.
                    biased;
                    lost = self.follow(control) => lost,
                    () = self.shared.process.gone() => return self.finish().await,
                    () = self.sender.closed() => return,
                };
                *self.shared.link.lock().await = None;
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
                    self.tell(MachineEvent::ControlBack);
                    connected = Some(control);
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
    async fn follow(&self, control: Control) -> String {
        let (answers, replies) = mpsc::unbounded_channel();
        *self.shared.link.lock().await = Some(Link {
            writer: control.writer,
            replies,
        });
        self.tell_state(control.state);
        let mut before = control.state;
        let mut lines = control.lines;
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
                Ok(answer) => drop(answers.send(answer)),
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
        self.shared.ask(ControlRequest::Button).await.map(drop)
    }

    async fn quit(&self) -> Result<()> {
        let before = self.shared.expected.swap(true, Ordering::SeqCst);
        match self.shared.ask(ControlRequest::Quit).await {
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
        Some(self)
    }
}

#[async_trait]
impl BlockStatistics for FakeMachine {
    async fn block_totals(&self) -> Result<BlockTotals> {
        match self.shared.ask(ControlRequest::Blocks).await? {
            ControlMessage::Blocks(read_bytes, written_bytes) => Ok(BlockTotals {
                read_bytes,
                written_bytes,
            }),
            other => Err(Error::new(
                ErrorKind::Failure,
                format!("the fake hypervisor answered {other:?}"),
            )),
        }
    }
}

#[async_trait]
impl Pause for FakeMachine {
    async fn pause(&self) -> Result<()> {
        self.shared.ask(ControlRequest::Pause).await.map(drop)
    }

    async fn resume(&self) -> Result<()> {
        self.shared.ask(ControlRequest::Resume).await.map(drop)
    }
}
