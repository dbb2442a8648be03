//! The link: the mux behind a lock, the thread that reads the port and the thread that writes it.
//!
//! The reader delivers what happens on a stream to that stream's sink; a sink must not block. A host that goes away
//! (HUP on a virtio port, end of file on a socket) loses all streams but ends nothing: exec sessions wait to be attached.
//! A virtio port without a host polls as HUP at once, so that state is looked at in growing intervals, and all IO is
//! non-blocking, because a blocking write would wait for the host for ever.

use crate::guest::log::{lock, say};
use crate::guest::operations::Operations;
use crate::guest::port::Port;
use bytes::Bytes;
use innkeeper_agent::frame::HEADER_LEN;
use innkeeper_agent::message::{
    AgentEvent, Closing, ErrorKind, FEATURES, Failure, GuestInfo, Reply,
};
use innkeeper_agent::mux::{Config, Event, Incoming, Mux, SendError, Side};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Takes what happens on one stream.
pub type Sink = Arc<dyn Fn(Incoming) + Send + Sync>;

const READ_SIZE: usize = 64 * 1024;
const WRITE_SIZE: usize = 128 * 1024;

struct State {
    mux: Mux,
    sinks: HashMap<u32, Sink>,
    fd: Option<Arc<OwnedFd>>,
    generation: u64,
    writing: bool,
    on_established: Vec<Box<dyn Fn() + Send>>,
}

/// The connection to the host.
pub struct Link {
    state: Mutex<State>,
    outgoing: Condvar,
    flushed: Condvar,
}

impl Link {
    /// `offered` says which of the protocol's features this agent offers.
    pub fn new(guest: GuestInfo, offered: impl Fn(&str) -> bool) -> Arc<Link> {
        let config = Config {
            side: Side::Agent,
            software: crate::guest::serve::software(),
            features: FEATURES
                .iter()
                .filter(|feature| offered(feature))
                .map(|feature| (*feature).to_owned())
                .collect(),
            guest: Some(guest),
            max_streams: 256,
        };
        Arc::new(Link {
            state: Mutex::new(State {
                mux: Mux::new(config, nonce()),
                sinks: HashMap::new(),
                fd: None,
                generation: 0,
                writing: false,
                on_established: Vec::new(),
            }),
            outgoing: Condvar::new(),
            flushed: Condvar::new(),
        })
    }

    /// Calls `hook` after each handshake, from a thread that may not block.
    pub fn on_established(&self, hook: impl Fn() + Send + 'static) {
        lock(&self.state).on_established.push(Box::new(hook));
    }

    pub fn set_guest(&self, guest: GuestInfo) {
        lock(&self.state).mux.set_guest(guest);
    }

    fn with<T>(&self, act: impl FnOnce(&mut Mux) -> T) -> T {
        let result = act(&mut lock(&self.state).mux);
        self.outgoing.notify_one();
        result
    }

    /// Sets who hears of a stream.
    pub fn set_sink(&self, stream: u32, sink: Sink) {
        let mut state = lock(&self.state);
        if state.mux.contains(stream) {
            state.sinks.insert(stream, sink);
        } else {
            drop(state);
            sink(Incoming::Closed(Closing::Gone));
        }
    }

    pub fn writable(&self, stream: u32, channel: u8) -> usize {
        lock(&self.state).mux.writable(stream, channel)
    }

    pub fn data(&self, stream: u32, channel: u8, bytes: Bytes) -> Result<(), SendError> {
        self.with(|mux| mux.data(stream, channel, bytes))
    }

    pub fn end(&self, stream: u32, channel: u8) -> Result<(), SendError> {
        self.with(|mux| mux.end(stream, channel))
    }

    pub fn grant(&self, stream: u32, channel: u8, bytes: u32) -> Result<(), SendError> {
        self.with(|mux| mux.grant(stream, channel, bytes))
    }

    pub fn reply(&self, stream: u32, reply: &Reply) -> Result<(), SendError> {
        let json = serde_json::to_vec(reply).map_err(|_| SendError::TooLong)?;
        self.with(|mux| mux.message(stream, json.into()))
    }

    pub fn close(&self, stream: u32, closing: &Closing) {
        let mut state = lock(&self.state);
        state.sinks.remove(&stream);
        // A stream that is gone already needs no end.
        let _ = state.mux.close(stream, closing);
        drop(state);
        self.outgoing.notify_one();
    }

    pub fn fail(&self, stream: u32, kind: ErrorKind, message: impl Into<String>) {
        self.close(stream, &Closing::Failed(Failure::new(kind, message)));
    }

    /// Pushes an event, if a host listens.
    pub fn push(&self, event: &AgentEvent) {
        if let Ok(json) = serde_json::to_vec(event) {
            let _ = self.with(|mux| mux.push_event(json.into()));
        }
    }

    /// Waits until all that is queued was written, at most this long.
    pub fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut state = lock(&self.state);
        while state.mux.is_established() && (state.writing || state.mux.has_frames()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = match self.flushed.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    fn connected(&self, fd: &Arc<OwnedFd>) {
        let mut state = lock(&self.state);
        state.fd = Some(Arc::clone(fd));
        state.generation += 1;
        state.mux.connect();
        drop(state);
        self.outgoing.notify_one();
    }

    fn disconnected(&self, operations: &Arc<Operations>) {
        let mut state = lock(&self.state);
        state.fd = None;
        state.generation += 1;
        state.mux.disconnect();
        drop(state);
        self.flushed.notify_all();
        self.dispatch(operations);
    }

    /// Hands out the events; sinks run without the lock, as they send.
    fn dispatch(&self, operations: &Arc<Operations>) {
        loop {
            let mut state = lock(&self.state);
            let Some(event) = state.mux.next_event() else {
                break;
            };
            match event {
                Event::Established(hello) => {
                    say(&format!("serving {}", hello.software));
                    for hook in &state.on_established {
                        hook();
                    }
                }
                Event::Incompatible(hello) => say(&format!(
                    "the host speaks protocol {}.{}, which this agent does not",
                    hello.version.major, hello.version.minor
                )),
                Event::Lost => {
                    let sinks: Vec<Sink> = state.sinks.drain().map(|(_, sink)| sink).collect();
                    drop(state);
                    let closing =
                        Closing::Failed(Failure::new(ErrorKind::LinkLost, "the link was lost"));
                    for sink in sinks {
                        sink(Incoming::Closed(closing.clone()));
                    }
                }
                Event::Opened { stream, request } => {
                    drop(state);
                    operations.open(stream, &request);
                }
                Event::Stream { stream, incoming } => {
                    let sink = match incoming {
                        Incoming::Closed(_) => state.sinks.remove(&stream),
                        _ => state.sinks.get(&stream).cloned(),
                    };
                    drop(state);
                    if let Some(sink) = sink {
                        sink(incoming);
                    }
                }
                Event::Pushed(_) | Event::Pong(_) => {}
            }
        }
        self.outgoing.notify_one();
    }
}

/// Serves the port for ever. `opened` is called once, when the port is open.
pub fn run(link: &Arc<Link>, port: Port, operations: &Arc<Operations>, opened: impl FnOnce()) -> ! {
    let writer = Arc::clone(link);
    crate::guest::operations::spawn("writer", move || {
        loop {
            let writer = Arc::clone(&writer);
            // The writer must live as long as the agent, whatever happens to one frame.
            if std::panic::catch_unwind(move || write(&writer)).is_err() {
                say("the writer failed; going on");
            }
        }
    });
    let mut opened = Some(opened);
    let mut fd = Arc::new(port.open());
    if let Some(opened) = opened.take() {
        opened();
    }
    let mut pause = Duration::from_millis(5);
    loop {
        if has_host(&fd) {
            pause = Duration::from_millis(5);
            link.connected(&fd);
            read(link, &fd, operations);
            link.disconnected(operations);
        }
        if Port::is_used_up(&fd) {
            fd = Arc::new(port.open());
        } else {
            // Poll on a port without a host returns at once for ever: this paces the looking.
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }
}

fn has_host(fd: &OwnedFd) -> bool {
    let mut set = [PollFd::new(fd, PollFlags::OUT)];
    let zero = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut set, Some(&zero)).is_ok() && !set[0].revents().contains(PollFlags::HUP)
}

/// Reads until the host is gone.
fn read(link: &Arc<Link>, fd: &OwnedFd, operations: &Arc<Operations>) {
    let mut buffer = vec![0; READ_SIZE];
    let mut retry_pause = Duration::from_millis(500);
    let mut retry_at = Instant::now() + retry_pause;
    let mut was_established = false;
    loop {
        let mut set = [PollFd::new(fd, PollFlags::IN)];
        let established = lock(&link.state).mux.is_established();
        if was_established && !established {
            // Greeted anew, as by a host whose guest came back from disk: its answer is awaited from now on. A repeated hello at once would
            // throw that host out of step.
            retry_pause = Duration::from_millis(500);
            retry_at = Instant::now() + retry_pause;
        }
        was_established = established;
        let timeout = (!established).then(|| retry_at.saturating_duration_since(Instant::now()));
        let timeout = timeout.map(|left| Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        match poll(&mut set, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                say(&format!("cannot wait for the port: {error}"));
                return;
            }
        }
        if !established && Instant::now() >= retry_at {
            retry_pause = (retry_pause * 2).min(Duration::from_secs(10));
            retry_at = Instant::now() + retry_pause;
            link.with(Mux::retry_hello);
        }
        let happened = set[0].revents();
        if happened.contains(PollFlags::IN) || happened.contains(PollFlags::ERR) {
            // A virtio port gives at most a page per read: gather several before the lock is taken.
            let mut filled = 0;
            let mut ended = false;
            while filled < buffer.len() {
                match rustix::io::read(fd, &mut buffer[filled..]) {
                    Ok(0) => {
                        ended = true;
                        break;
                    }
                    Ok(count) => filled += count,
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => break,
                    Err(_) => {
                        ended = true;
                        break;
                    }
                }
            }
            if filled > 0 {
                lock(&link.state).mux.receive(&buffer[..filled]);
                link.dispatch(operations);
            }
            if ended {
                return;
            }
        } else if happened.contains(PollFlags::HUP) {
            return;
        }
    }
}

/// Writes for ever.
fn write(link: &Link) {
    let mut buffer = Vec::with_capacity(WRITE_SIZE + 2 * READ_SIZE);
    loop {
        buffer.clear();
        let mut state = lock(&link.state);
        state.writing = false;
        if !state.mux.has_frames() {
            link.flushed.notify_all();
        }
        let (fd, generation) = loop {
            if let (Some(fd), true) = (&state.fd, state.mux.has_frames()) {
                break (Arc::clone(fd), state.generation);
            }
            state = link
                .outgoing
                .wait(state)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        };
        // Frames are gathered, since each write to a virtio port leaves the guest.
        while buffer.len() < WRITE_SIZE {
            let Some(frame) = state.mux.next_frame() else {
                break;
            };
            buffer.reserve(HEADER_LEN + frame.payload.len());
            buffer.extend_from_slice(&frame.header);
            buffer.extend_from_slice(&frame.payload);
        }
        state.writing = true;
        drop(state);
        write_all(link, &fd, generation, &buffer);
    }
}

fn write_all(link: &Link, fd: &OwnedFd, generation: u64, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut set = [PollFd::new(fd, PollFlags::OUT)];
                let second = Timespec {
                    tv_sec: 1,
                    tv_nsec: 0,
                };
                let _ = poll(&mut set, Some(&second));
                if lock(&link.state).generation != generation {
                    return;
                }
                if set[0].revents().contains(PollFlags::HUP) {
                    // The reader sees the same and starts a new generation; until then there is nothing to wait on.
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            // The reader learns of the same end.
            Err(_) => return,
        }
    }
}

/// A number that differs between runs; not a secret.
fn nonce() -> u64 {
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    for part in [now.tv_sec, now.tv_nsec, boot.tv_nsec] {
        hasher.write_i64(part);
    }
    hasher.finish()
}
