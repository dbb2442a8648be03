//! A small client for the QEMU Machine Protocol: one JSON object per line, replies matched by id, events passed on.
//!
//! ```text
//!  connect ─► greeting ─► qmp_capabilities ─► execute(...)* ; events flow beside
//!                │               │                 └─ reader ends: every waiting and later call gets `Closed`
//!                └───────────────┴─ nothing within the deadline: `TimedOut`
//! ```
//!
//! It is tolerant: replies are [`serde_json::Value`]s, fields that are not known are ignored, and errors are told apart by their
//! `class`, never by their text (QEMU documentation, "QEMU Machine Protocol Specification"). It does not know what commands mean.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use innkeeper_api::ErrorKind;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, Interest,
};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot};

/// Longest line that is read; `query-qmp-schema`, the longest reply, is about 200 KiB.
const LINE_LIMIT: usize = 8 * 1024 * 1024;
/// What is the matter with a line that can't be read.
const NO_OBJECT: &str = "a line that is no JSON object";
/// Most lines that are passed over before a greeting.
const LEFTOVERS: usize = 1000;

/// Calls that may wait for a reply at once.
const PENDING_LIMIT: usize = 256;

/// What went wrong between us and QEMU's monitor.
#[derive(Debug, thiserror::Error)]
pub(super) enum QmpError {
    /// The connection could not be made, read or written.
    #[error("the connection to QEMU's monitor failed")]
    Io(#[from] std::io::Error),
    /// The connection ended.
    #[error("QEMU closed its monitor")]
    Closed,
    /// No answer in time.
    #[error("QEMU did not answer {command} within {} ms", .after.as_millis())]
    TimedOut {
        /// What was asked.
        command: String,
        /// How long was waited.
        after: Duration,
    },
    /// What came is not the protocol.
    #[error("QEMU's monitor sent something that is not its protocol: {0}")]
    Protocol(&'static str),
    /// QEMU refused the command.
    #[error("QEMU refused {command}: {description}")]
    Refused {
        /// What was asked.
        command: String,
        /// The error class, which programs may act on.
        class: String,
        /// The sentence, for people only.
        description: String,
    },
}

impl QmpError {
    /// Returns the kind that this is to a caller of the library.
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            QmpError::Io(_) | QmpError::Closed => ErrorKind::Unreachable,
            QmpError::TimedOut { .. } => ErrorKind::TimedOut,
            QmpError::Protocol(_) => ErrorKind::Failure,
            QmpError::Refused { class, .. } if class == "CommandNotFound" => ErrorKind::Unsupported,
            QmpError::Refused { .. } => ErrorKind::Failure,
        }
    }
}

/// Something that QEMU told without being asked.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct QmpEvent {
    /// Its name, such as `SHUTDOWN`.
    pub(super) name: String,
    /// What came with it; null if nothing did.
    pub(super) data: Value,
    /// When, on the host's wall clock; zero if that was not said.
    pub(super) at: Duration,
}

type Reply = Result<Value, (String, String)>;

#[derive(Default)]
struct Pending {
    closed: bool,
    waiting: HashMap<u64, oneshot::Sender<Reply>>,
}

/// Where commands are written: a descriptor can go along over a unix socket alone.
enum Writer {
    Socket(OwnedWriteHalf),
    Other(Box<dyn AsyncWrite + Send + Unpin>),
}

impl Writer {
    async fn write(&mut self, line: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        match (self, descriptor) {
            (Writer::Socket(half), None) => half.write_all(line).await,
            (Writer::Socket(half), Some(descriptor)) => {
                let stream: &UnixStream = half.as_ref();
                let sent = stream
                    .async_io(Interest::WRITABLE, || {
                        send_descriptor(stream, line, descriptor)
                    })
                    .await?;
                half.write_all(&line[sent..]).await
            }
            (Writer::Other(writer), None) => {
                writer.write_all(line).await?;
                writer.flush().await
            }
            (Writer::Other(_), Some(_)) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "descriptors are passed over unix sockets alone",
            )),
        }
    }
}

/// Writes bytes with which a descriptor goes along (unix(7), `SCM_RIGHTS`); returns how many were taken.
fn send_descriptor(
    stream: &UnixStream,
    bytes: &[u8],
    descriptor: BorrowedFd<'_>,
) -> io::Result<usize> {
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    let sent = sendmsg(
        stream,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::empty(),
    )?;
    Ok(sent)
}

/// A connection to QEMU's monitor. Closes when dropped.
pub(super) struct Qmp {
    writer: tokio::sync::Mutex<Writer>,
    pending: Arc<Mutex<Pending>>,
    next_id: AtomicU64,
    reader: tokio::task::JoinHandle<()>,
    greeting: Value,
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Qmp {
    /// Connects to a monitor's socket and agrees on capabilities.
    ///
    /// The receiver ends when the connection does. It carries only events that tell of the machine's state, so that it need not be
    /// bounded by dropping.
    pub(super) async fn connect(
        path: &Path,
        deadline: Duration,
    ) -> Result<(Self, mpsc::UnboundedReceiver<QmpEvent>), QmpError> {
        let (reader, writer) = UnixStream::connect(path).await?.into_split();
        Qmp::begin(reader, Writer::Socket(writer), deadline).await
    }

    /// Does the same over two ends that are already open; descriptors can't be passed over them.
    pub(super) async fn over(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
        deadline: Duration,
    ) -> Result<(Self, mpsc::UnboundedReceiver<QmpEvent>), QmpError> {
        Qmp::begin(reader, Writer::Other(Box::new(writer)), deadline).await
    }

    async fn begin(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: Writer,
        deadline: Duration,
    ) -> Result<(Self, mpsc::UnboundedReceiver<QmpEvent>), QmpError> {
        let mut reader = BufReader::new(reader);
        let greeting = match tokio::time::timeout(deadline, read_greeting(&mut reader)).await {
            Ok(greeting) => greeting?,
            Err(_) => {
                return Err(QmpError::TimedOut {
                    command: "the greeting".to_owned(),
                    after: deadline,
                });
            }
        };
        let pending = Arc::new(Mutex::new(Pending::default()));
        let (events, receiver) = mpsc::unbounded_channel();
        let reader = tokio::spawn(read_all(reader, pending.clone(), events));
        let qmp = Qmp {
            writer: tokio::sync::Mutex::new(writer),
            pending,
            next_id: AtomicU64::new(1),
            reader,
            greeting,
        };
        let out_of_band = qmp.greeting["capabilities"]
            .as_array()
            .is_some_and(|offered| offered.iter().any(|word| word == "oob"));
        let enable = if out_of_band {
            json!({ "enable": ["oob"] })
        } else {
            json!({})
        };
        qmp.execute("qmp_capabilities", enable, deadline).await?;
        Ok((qmp, receiver))
    }

    /// Returns QEMU's major, minor and micro version, if the greeting told it.
    pub(super) fn version(&self) -> Option<(u32, u32, u32)> {
        let version = &self.greeting["version"]["qemu"];
        let part = |name: &str| version[name].as_u64().and_then(|n| u32::try_from(n).ok());
        Some((part("major")?, part("minor")?, part("micro")?))
    }

    /// Executes a command and returns what it returned.
    ///
    /// When the future is dropped, the command may or may not be carried out; its reply is thrown away.
    pub(super) async fn execute(
        &self,
        command: &str,
        arguments: Value,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        self.exchange(command, arguments, None, deadline).await
    }

    /// Executes a command with which a descriptor goes along: `getfd` or `add-fd`. QEMU gets its own copy.
    ///
    /// QEMU forgets a descriptor that it has no use for when this connection ends.
    pub(super) async fn pass(
        &self,
        command: &str,
        arguments: Value,
        descriptor: BorrowedFd<'_>,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        self.exchange(command, arguments, Some(descriptor), deadline)
            .await
    }

    async fn exchange(
        &self,
        command: &str,
        arguments: Value,
        descriptor: Option<BorrowedFd<'_>>,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        {
            let mut pending = lock(&self.pending);
            if pending.closed {
                return Err(QmpError::Closed);
            }
            pending.waiting.retain(|_, sender| !sender.is_closed());
            if pending.waiting.len() >= PENDING_LIMIT {
                return Err(QmpError::Protocol("too many commands without an answer"));
            }
            pending.waiting.insert(id, sender);
        }
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        line.push('\n');
        let exchange = async {
            {
                // Once begun a line must be written whole, or the next command would continue it: a timeout here closes nothing, but
                // lines are short and a socket that takes none of them is lost anyway.
                let mut writer = self.writer.lock().await;
                writer.write(line.as_bytes(), descriptor).await?;
            }
            receiver.await.map_err(|_| QmpError::Closed)
        };
        match tokio::time::timeout(deadline, exchange).await {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err((class, description)))) => Err(QmpError::Refused {
                command: command.to_owned(),
                class,
                description,
            }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(QmpError::TimedOut {
                command: command.to_owned(),
                after: deadline,
            }),
        }
    }
}

/// Events that change what is known of the machine.
const STATE_EVENTS: [&str; 11] = [
    "STOP",
    "RESUME",
    "RESET",
    "SHUTDOWN",
    "GUEST_PANICKED",
    "GUEST_CRASHLOADED",
    "BLOCK_IO_ERROR",
    "WATCHDOG",
    "MIGRATION",
    "DEVICE_DELETED",
    "DEVICE_UNPLUG_GUEST_ERROR",
];

async fn read_all(
    mut reader: impl AsyncBufRead + Unpin,
    pending: Arc<Mutex<Pending>>,
    events: mpsc::UnboundedSender<QmpEvent>,
) {
    // Ends on the first line that is not the protocol as well: nothing after it can be trusted to be in step.
    while let Ok(Some(message)) = read_message(&mut reader).await {
        if let Some(name) = message["event"].as_str() {
            if STATE_EVENTS.contains(&name) {
                let event = QmpEvent {
                    name: name.to_owned(),
                    data: message["data"].clone(),
                    at: timestamp(&message["timestamp"]),
                };
                // Nobody listens any more when the receiver was dropped; replies are still wanted.
                let _ = events.send(event);
            }
            continue;
        }
        let Some(sender) = message["id"]
            .as_u64()
            .and_then(|id| lock(&pending).waiting.remove(&id))
        else {
            continue;
        };
        let reply = match message.get("error") {
            Some(error) => {
                let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
                Err((text("class"), text("desc")))
            }
            None => Ok(message["return"].clone()),
        };
        let _ = sender.send(reply);
    }
    let mut pending = lock(&pending);
    pending.closed = true;
    pending.waiting.clear();
}

fn timestamp(value: &Value) -> Duration {
    let part = |name: &str| value[name].as_u64().unwrap_or(0);
    Duration::from_secs(part("seconds")).saturating_add(Duration::from_micros(part("microseconds")))
}

/// Reads up to the greeting, and returns what it says.
///
/// What QEMU had not yet written to a client that went away, it writes to the next one, from the middle of a line on and before the greeting.
async fn read_greeting(reader: &mut (impl AsyncBufRead + Unpin)) -> Result<Value, QmpError> {
    for _ in 0..LEFTOVERS {
        match read_message(reader).await {
            Ok(Some(mut message)) => {
                if let Some(greeting) = message.get_mut("QMP") {
                    return Ok(greeting.take());
                }
            }
            Ok(None) => return Err(QmpError::Closed),
            Err(QmpError::Protocol(what)) if what == NO_OBJECT => {}
            Err(error) => return Err(error),
        }
    }
    Err(QmpError::Protocol("no greeting"))
}

/// Reads one line as JSON; none at the end of the stream.
async fn read_message(reader: &mut (impl AsyncBufRead + Unpin)) -> Result<Option<Value>, QmpError> {
    let mut line = Vec::new();
    loop {
        let available = reader.fill_buf().await?;
        if available.is_empty() {
            // Half a line is the end of a QEMU that was killed while it spoke.
            return Ok(None);
        }
        let (taken, whole) = match available.iter().position(|byte| *byte == b'\n') {
            Some(end) => (end + 1, true),
            None => (available.len(), false),
        };
        if line.len() + taken > LINE_LIMIT {
            return Err(QmpError::Protocol("a line over 8 MiB"));
        }
        line.extend_from_slice(&available[..taken]);
        reader.consume(taken);
        if whole && !line.trim_ascii().is_empty() {
            return match serde_json::from_slice::<Value>(&line) {
                Ok(message) if message.is_object() => Ok(Some(message)),
                _ => Err(QmpError::Protocol(NO_OBJECT)),
            };
        }
        if whole {
            line.clear();
        }
    }
}

/// Reads all messages of a recorded stream and gives their number, up to the first that is not the protocol. For fuzzing.
#[cfg(feature = "testing")]
pub fn count_messages(mut stream: &[u8]) -> usize {
    use futures_util::FutureExt;
    // Reading from memory is always ready.
    std::iter::from_fn(|| read_message(&mut stream).now_or_never()?.ok()?).count()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{DuplexStream, split};

    const DEADLINE: Duration = Duration::from_secs(5);
    const GREETING: &str = concat!(
        r#"{"QMP":{"version":{"qemu":{"micro":2,"minor":0,"major":10},"package":""},"capabilities":["oob"]}}"#,
        "\n"
    );

    /// Plays QEMU: says `script[n]` after having read n lines.
    fn play(script: Vec<String>) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move {
            let (reader, mut writer) = split(theirs);
            let mut lines = BufReader::new(reader).lines();
            for (index, text) in script.into_iter().enumerate() {
                if index > 0 && !matches!(lines.next_line().await, Ok(Some(_))) {
                    return;
                }
                if writer.write_all(text.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
        ours
    }

    async fn connect(
        script: &[&str],
    ) -> Result<(Qmp, mpsc::UnboundedReceiver<QmpEvent>), QmpError> {
        let (reader, writer) = split(play(script.iter().map(|text| (*text).to_owned()).collect()));
        Qmp::over(reader, writer, DEADLINE).await
    }

    #[tokio::test]
    async fn what_was_left_for_another_client_is_passed_over() {
        let late = format!("us\": \"active\"}}}}\r\n{{\"event\":\"STOP\"}}\n{GREETING}");
        let (qmp, _) = connect(&[&late, "{\"return\":{},\"id\":1}\n"])
            .await
            .unwrap();
        assert_eq!(qmp.version(), Some((10, 0, 2)));
        let endless = "{}\n".repeat(LEFTOVERS) + GREETING;
        assert!(matches!(
            connect(&[&endless]).await,
            Err(QmpError::Protocol("no greeting"))
        ));
    }

    #[tokio::test]
    async fn replies_and_events_are_told_apart() {
        let (qmp, mut events) = connect(&[
            GREETING,
            "{\"return\":{},\"id\":1}\n",
            "\r\n{\"event\":\"STOP\",\"timestamp\":{}}\n{\"event\":\"RTC_CHANGE\"}\n{\"return\":7,\"id\":99}\n{\"return\":{\"status\":\"running\",\"new\":1},\"id\":2}\n",
            "{\"error\":{\"class\":\"CommandNotFound\",\"desc\":\"x\"},\"id\":3}\n",
        ])
        .await
        .unwrap();
        assert_eq!(qmp.version(), Some((10, 0, 2)));
        let status = qmp
            .execute("query-status", json!({}), DEADLINE)
            .await
            .unwrap();
        assert_eq!(status["status"], "running");
        assert_eq!(events.recv().await.unwrap().name, "STOP");
        let error = qmp
            .execute("nonsense", json!({}), DEADLINE)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        // The script is over, so the stream has ended.
        assert!(matches!(
            qmp.execute("query-status", json!({}), DEADLINE).await,
            Err(QmpError::Closed | QmpError::Io(_))
        ));
        assert_eq!(events.recv().await, None);
    }

    #[tokio::test]
    async fn what_is_not_the_protocol_is_refused() {
        for script in ["[]\n", "{}\n", "nonsense\n", "{\"QMP\":"] {
            assert!(connect(&[script]).await.is_err(), "{script}");
        }
        let endless = "x".repeat(LINE_LIMIT + 1);
        let (reader, writer) = split(play(vec![endless]));
        assert!(matches!(
            Qmp::over(reader, writer, DEADLINE).await,
            Err(QmpError::Protocol(_))
        ));
    }

    #[tokio::test]
    async fn silence_times_out() {
        let (ours, _theirs) = tokio::io::duplex(64);
        let (reader, writer) = split(ours);
        assert!(matches!(
            Qmp::over(reader, writer, Duration::from_millis(10)).await,
            Err(QmpError::TimedOut { .. })
        ));
    }
}
