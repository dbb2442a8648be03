//! What is said on the control socket of the fake hypervisor, and the link over which a driver says it.
//!
//! Every request has a number and its answer has the same one, so that a request whose asker went away (a future that was dropped) can't
//! be answered in the name of the next.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use innkeeper_api::ErrorKind;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;

use super::plan::{PlanDisk, PlanNic};
use crate::error::{Error, Result};

/// How long a request may take that does not write to disk.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);

/// A request with its number, one JSON line each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbered {
    /// The number.
    pub id: u64,
    /// The request.
    pub request: ControlRequest,
}

/// What the fake hypervisor is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Write memory into this directory; answered when it is there.
    Save(PathBuf),
    /// Make so many CPUs present.
    Cpus(u32),
    /// Make so many bytes of memory present.
    Memory(u64),
    /// Tell CPUs and memory.
    Size,
    /// Ask the guest to keep within so many bytes.
    Target(u64),
    /// Tell how many bytes the guest has.
    Actual,
    /// Attach a disk.
    AttachDisk(PlanDisk),
    /// Ask the guest to let go of a disk.
    DetachDisk(String),
    /// Put a medium into a drive, or take it out.
    Medium(String, Option<PathBuf>),
    /// Attach a network interface.
    AttachNic(PlanNic),
    /// Ask the guest to let go of an interface.
    DetachNic(String),
}

/// What the fake hypervisor says, one JSON line each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlMessage {
    /// The first line of a connection: the state.
    Greeting(GuestState),
    /// The answer to the request of this number.
    Answer(u64, ControlAnswer),
    /// The guest's state changed.
    State(GuestState),
    /// The guest rebooted.
    Reset,
    /// The guest's kernel panicked.
    Panicked,
    /// The guest let go of a device.
    Detached(String),
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlAnswer {
    /// It was carried out.
    Done,
    /// It was refused.
    Refused(ErrorKind, String),
    /// Bytes read and written.
    Blocks(u64, u64),
    /// CPUs, and bytes of memory.
    Size(u32, u64),
    /// Bytes.
    Bytes(u64),
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

/// What is read from a control connection.
pub(super) type ControlLines = Lines<BufReader<OwnedReadHalf>>;

/// A connection to the control socket, greeted.
pub(super) struct Control {
    pub(super) state: GuestState,
    pub(super) lines: ControlLines,
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

/// Reads the next line.
pub(super) async fn next(lines: &mut ControlLines) -> io::Result<ControlMessage> {
    let line = lines
        .next_line()
        .await?
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    serde_json::from_str(&line).map_err(io::Error::from)
}

/// The way to a fake hypervisor, while there is one.
#[derive(Default)]
pub(super) struct Link {
    writer: tokio::sync::Mutex<Option<OwnedWriteHalf>>,
    waiting: Mutex<HashMap<u64, oneshot::Sender<ControlAnswer>>>,
    last: AtomicU64,
}

impl Link {
    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<ControlAnswer>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to use a connection; returns what is to be read from it.
    pub(super) async fn open(&self, control: Control) -> ControlLines {
        *self.writer.lock().await = Some(control.writer);
        control.lines
    }

    /// The connection is gone: nobody who waits is answered any more.
    pub(super) async fn close(&self) {
        *self.writer.lock().await = None;
        self.waiting().clear();
    }

    /// Hands an answer to whoever waits for it, if somebody still does.
    pub(super) fn answer(&self, id: u64, answer: ControlAnswer) {
        if let Some(waiter) = self.waiting().remove(&id) {
            // The asker may have gone away just now.
            let _ = waiter.send(answer);
        }
    }

    /// Asks, and waits for the answer for a few seconds.
    pub(super) async fn ask(&self, request: ControlRequest) -> Result<ControlAnswer> {
        tokio::time::timeout(REQUEST_DEADLINE, self.ask_patiently(request))
            .await
            .unwrap_or_else(|_| {
                Err(Error::new(
                    ErrorKind::TimedOut,
                    "the fake hypervisor did not answer in time",
                ))
            })
    }

    /// Asks, and waits for the answer for as long as it takes.
    pub(super) async fn ask_patiently(&self, request: ControlRequest) -> Result<ControlAnswer> {
        let lost = || {
            Error::new(
                ErrorKind::Unreachable,
                "the fake hypervisor does not answer",
            )
        };
        let id = self.last.fetch_add(1, Ordering::SeqCst);
        let mut line = serde_json::to_vec(&Numbered { id, request })
            .map_err(|error| lost().with_source(error))?;
        line.push(b'\n');
        let (waiter, answer) = oneshot::channel();
        {
            let mut writer = self.writer.lock().await;
            let writer = writer.as_mut().ok_or_else(lost)?;
            self.waiting().insert(id, waiter);
            if let Err(error) = writer.write_all(&line).await {
                self.waiting().remove(&id);
                return Err(lost().with_source(error));
            }
        }
        match answer.await.map_err(|_| lost())? {
            ControlAnswer::Refused(kind, why) => Err(Error::new(
                kind,
                format!("the fake hypervisor refused: {why}"),
            )),
            answer => Ok(answer),
        }
    }
}
