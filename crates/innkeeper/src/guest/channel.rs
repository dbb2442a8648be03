//! The client of a guest agent.

use super::connection::Connection;
use super::stream::Stream;
use super::{ExecPosition, ExecSession, GuestError};
use bytes::Bytes;
use innkeeper_agent::message::{
    AgentEvent, Closing, ErrorKind, ExecRequest, Failure, GuestLog, Hello, Interface, Metrics,
    MountRequest, MountUsers, Readiness, Reply, Request, SessionInfo, ShutdownKind, UnmountRequest,
};
use innkeeper_agent::mux::{Config, Event, Side, WINDOW};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

/// How a channel behaves.
#[derive(Clone, Debug)]
pub struct ChannelOptions {
    /// Names this program to the agent.
    pub software: String,
    /// Pause between pings; none sends no pings and never tells of silence.
    pub ping_interval: Option<Duration>,
}

impl Default for ChannelOptions {
    fn default() -> ChannelOptions {
        let software = concat!("innkeeper ", env!("CARGO_PKG_VERSION")).to_owned();
        ChannelOptions {
            software,
            ping_interval: Some(Duration::from_secs(3)),
        }
    }
}

/// Where the handshake with an agent stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AgentPhase {
    /// No agent has answered yet (or it restarts).
    #[default]
    Waiting,
    /// The agent answers.
    Ready,
    /// The agent answered before, and nothing came for two ping intervals. It may be paused, busy or dead.
    Silent {
        /// When the last frame came.
        since: Instant,
    },
    /// The agent speaks another major version.
    Incompatible,
    /// The byte stream ended.
    Closed,
}

/// What is known of an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentStatus {
    /// Where the handshake stands.
    pub phase: AgentPhase,
    /// The agent's last hello.
    pub hello: Option<Hello>,
    /// How often the handshake was made: all that was asked before the last one may have been lost, even of the same agent.
    pub handshakes: u64,
    /// Interfaces as the agent last told.
    pub interfaces: Vec<Interface>,
    /// Set when the guest announced the end of its run.
    pub halting: Option<ShutdownKind>,
}

/// A connection to a guest agent, direct or by the keeper's relay. Clones share it; the last one dropped ends it.
#[derive(Clone)]
pub struct GuestChannel {
    handle: Arc<Handle>,
}

struct Handle {
    connection: Arc<Connection>,
    status: watch::Sender<AgentStatus>,
    events: broadcast::Sender<AgentEvent>,
    pongs: broadcast::Sender<Bytes>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl GuestChannel {
    /// Starts to speak over a byte stream, on the current tokio runtime.
    pub fn start<T>(io: T, options: ChannelOptions) -> GuestChannel
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let config = Config {
            side: Side::Host,
            software: options.software,
            features: Vec::new(),
            guest: None,
            max_streams: 256,
        };
        let status = watch::Sender::new(AgentStatus::default());
        let events = broadcast::Sender::new(64);
        let pongs = broadcast::Sender::new(64);
        let (told, pushed, ponged) = (status.clone(), events.clone(), pongs.clone());
        let handler =
            Box::new(move |_: &Arc<Connection>, event| handle(event, &told, &pushed, &ponged));
        let (connection, served) = Connection::new(io, config, handler);
        let mut tasks = vec![tokio::spawn(served)];
        if let Some(interval) = options.ping_interval {
            tasks.push(tokio::spawn(keep_pinging(
                Arc::clone(&connection),
                status.clone(),
                interval,
            )));
        }
        GuestChannel {
            handle: Arc::new(Handle {
                connection,
                status,
                events,
                pongs,
                tasks,
            }),
        }
    }

    pub(crate) fn connection(&self) -> &Arc<Connection> {
        &self.handle.connection
    }

    /// Follows what is known of the agent.
    pub fn status(&self) -> watch::Receiver<AgentStatus> {
        self.handle.status.subscribe()
    }

    /// Follows what the agent tells by itself; a receiver that is too slow misses events, never the status.
    pub fn events(&self) -> broadcast::Receiver<AgentEvent> {
        self.handle.events.subscribe()
    }

    /// Waits for the handshake.
    pub async fn ready(&self, limit: Duration) -> Result<Hello, GuestError> {
        let mut status = self.status();
        let decided = status.wait_for(|status| !matches!(status.phase, AgentPhase::Waiting));
        let status = match tokio::time::timeout(limit, decided).await {
            Err(_) => return Err(GuestError::TimedOut(limit)),
            Ok(Err(_)) => return Err(GuestError::NotConnected),
            Ok(Ok(status)) => status.clone(),
        };
        match (status.phase, status.hello) {
            (AgentPhase::Incompatible, Some(hello)) => {
                Err(GuestError::Incompatible(hello.version.major))
            }
            (AgentPhase::Ready | AgentPhase::Silent { .. }, Some(hello)) => Ok(hello),
            _ => Err(GuestError::NotConnected),
        }
    }

    /// Measures one round trip to the agent.
    pub async fn ping(&self, limit: Duration) -> Result<Duration, GuestError> {
        let mut pongs = self.handle.pongs.subscribe();
        let started = Instant::now();
        let payload = Bytes::from(format!(
            "{:x}-{started:?}",
            Arc::as_ptr(&self.handle) as usize
        ));
        let payload = payload.slice(..payload.len().min(64));
        self.handle.connection.ping(&payload)?;
        let answered = async {
            loop {
                match pongs.recv().await {
                    Ok(pong) if pong == payload => return Ok(started.elapsed()),
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return Err(GuestError::LinkLost),
                }
            }
        };
        tokio::time::timeout(limit, answered)
            .await
            .unwrap_or(Err(GuestError::TimedOut(limit)))
    }

    /// Runs a command.
    pub async fn exec(&self, request: ExecRequest) -> Result<ExecSession, GuestError> {
        ExecSession::start(self, &Request::Exec(request)).await
    }

    /// Takes an exec session over, from the position that was received.
    pub async fn attach(&self, position: ExecPosition) -> Result<ExecSession, GuestError> {
        ExecSession::start(self, &Request::Attach(position.request())).await
    }

    /// Lists exec sessions, those too whose result nobody collected.
    pub async fn exec_sessions(&self) -> Result<Vec<SessionInfo>, GuestError> {
        match self.ask(&Request::ListExec).await? {
            Reply::Sessions { sessions } => Ok(sessions),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks for interfaces and addresses.
    pub async fn addresses(&self) -> Result<Vec<Interface>, GuestError> {
        match self.ask(&Request::Addresses).await? {
            Reply::Addresses { interfaces } => Ok(interfaces),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks for the guest's counters.
    pub async fn metrics(&self) -> Result<Metrics, GuestError> {
        match self.ask(&Request::Metrics).await? {
            Reply::Metrics(metrics) => Ok(metrics),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks for readiness details: cloud-init, host keys, problems of the agent as init.
    pub async fn readiness(&self) -> Result<Readiness, GuestError> {
        match self.ask(&Request::Readiness).await? {
            Reply::Readiness(readiness) => Ok(readiness),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks the guest to end its run; returns when the agent has accepted, not when the guest is down.
    pub async fn shutdown(&self, how: ShutdownKind) -> Result<(), GuestError> {
        self.done(&Request::Shutdown { how }).await
    }

    /// Sets the guest's wall clock to the host's, as after a resume.
    pub async fn set_time(&self, time: std::time::SystemTime) -> Result<(), GuestError> {
        let since = time
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let unix_nanoseconds = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        self.done(&Request::SetTime { unix_nanoseconds }).await
    }

    /// Brings CPUs and memory into use that were added while the guest runs; `cpus` is how many CPUs there should be.
    pub async fn bring_online(&self, cpus: u32) -> Result<(), GuestError> {
        self.done(&Request::BringOnline { cpus }).await
    }

    /// Mounts a share or device in the guest.
    pub async fn mount(&self, request: MountRequest) -> Result<(), GuestError> {
        self.done(&Request::Mount(request)).await
    }

    /// Unmounts a share in the guest; what uses it is told, and then it stays mounted.
    pub async fn unmount(&self, request: UnmountRequest) -> Result<MountUsers, GuestError> {
        match self.ask(&Request::Unmount(request)).await? {
            Reply::Unmounted(users) => Ok(users),
            other => Err(unexpected(&other)),
        }
    }

    /// Sets the guest's host name until its next boot.
    pub async fn set_hostname(&self, hostname: &str) -> Result<(), GuestError> {
        self.done(&Request::SetHostname {
            hostname: hostname.to_owned(),
        })
        .await
    }

    /// Reads a log of the guest, at most its last MiB.
    pub async fn read_log(&self, log: GuestLog) -> Result<Vec<u8>, GuestError> {
        let stream = Stream::open(self.connection(), &Request::ReadLog { log }, [WINDOW, 0])?;
        let mut all = Vec::new();
        while let Some(bytes) = stream.next_bytes(1).await? {
            if all.len() + bytes.len() > 2 * 1024 * 1024 {
                return Err(GuestError::Protocol(
                    "a log is longer than it may be".to_owned(),
                ));
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }

    async fn ask(&self, request: &Request) -> Result<Reply, GuestError> {
        Stream::open(self.connection(), request, [0, 0])?
            .reply()
            .await
    }

    async fn done(&self, request: &Request) -> Result<(), GuestError> {
        match self.ask(request).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }
}

pub(crate) fn unexpected(reply: &Reply) -> GuestError {
    let text: String = format!("{reply:?}").chars().take(80).collect();
    GuestError::Protocol(format!("an answer to another question: {text}"))
}

fn handle(
    event: Option<Event>,
    status: &watch::Sender<AgentStatus>,
    events: &broadcast::Sender<AgentEvent>,
    pongs: &broadcast::Sender<Bytes>,
) {
    match event {
        None => status.send_modify(|status| status.phase = AgentPhase::Closed),
        Some(Event::Established(hello)) => status.send_modify(|status| {
            *status = AgentStatus {
                phase: AgentPhase::Ready,
                hello: Some(hello),
                handshakes: status.handshakes + 1,
                ..AgentStatus::default()
            };
        }),
        Some(Event::Incompatible(hello)) => status.send_modify(|status| {
            status.phase = AgentPhase::Incompatible;
            status.hello = Some(hello);
        }),
        Some(Event::Lost) => status.send_modify(|status| status.phase = AgentPhase::Waiting),
        Some(Event::Pushed(json)) => {
            // An event of a newer agent is skipped.
            let Ok(event) = serde_json::from_slice::<AgentEvent>(&json) else {
                return;
            };
            match &event {
                AgentEvent::Addresses { interfaces } => {
                    status.send_modify(|status| status.interfaces.clone_from(interfaces));
                }
                AgentEvent::Halting { how } => {
                    status.send_modify(|status| status.halting = Some(*how))
                }
                _ => {}
            }
            // Nobody may be listening.
            let _ = events.send(event);
        }
        Some(Event::Pong(payload)) => {
            let _ = pongs.send(payload);
        }
        Some(Event::Opened { .. } | Event::Stream { .. }) => {}
    }
}

/// Pings, and tells of silence and its end. Acts on nothing.
async fn keep_pinging(
    connection: Arc<Connection>,
    status: watch::Sender<AgentStatus>,
    interval: Duration,
) {
    let mut sent = None;
    loop {
        tokio::time::sleep(interval).await;
        let seen = connection.last_seen();
        status.send_if_modified(|status| {
            let silent = match (seen, sent) {
                // Only silence after a ping counts: before it nobody had to say anything.
                (Some(seen), Some(sent)) if seen < sent && seen.elapsed() >= interval * 2 => {
                    Some(seen)
                }
                _ => None,
            };
            let phase = match (&status.phase, silent) {
                (AgentPhase::Ready, Some(since)) => AgentPhase::Silent { since },
                (AgentPhase::Silent { .. }, None) => AgentPhase::Ready,
                _ => return false,
            };
            status.phase = phase;
            true
        });
        // One ping at a time: a queue of them would tell nothing more.
        let answered = match (seen, sent) {
            (Some(seen), Some(sent)) => seen >= sent,
            _ => true,
        };
        if answered && connection.ping(b"keeper").is_ok() {
            sent = Some(Instant::now());
        }
    }
}

/// The failure that a relay gives when it has no agent.
pub(crate) fn not_connected() -> Closing {
    Closing::Failed(Failure::new(
        ErrorKind::LinkLost,
        "the guest's agent is not connected",
    ))
}
