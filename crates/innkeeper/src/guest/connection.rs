//! A mux over an asynchronous byte stream: one task reads, one writes, one keeps time.
//!
//! What happens on a stream goes to that stream's sink, anything else to the connection's handler; both run on the
//! reading task without the lock, so that they may send, and must not block. No two connections' locks are ever held
//! together, which is what lets the relay join two of them.

use bytes::{Bytes, BytesMut};
use innkeeper_agent::message::{Closing, ErrorKind, Failure};
use innkeeper_agent::mux::{Config, Event, Incoming, Mux, SendError};
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::io::IoSlice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

/// Takes what happens on one stream.
pub(crate) type Sink = Arc<dyn Fn(Incoming) + Send + Sync>;
/// Takes what happens to the connection; none is its end.
pub(crate) type Handler = Box<dyn Fn(&Arc<Connection>, Option<Event>) + Send + Sync>;

const READ_SIZE: usize = 128 * 1024;
const WRITE_SIZE: usize = 256 * 1024;
/// Payloads from this size on are written from where they are.
const LARGE: usize = 4096;

struct Inner {
    mux: Mux,
    sinks: HashMap<u32, Sink>,
    last_seen: Option<Instant>,
}

/// One end of a multiplexed connection.
pub(crate) struct Connection {
    inner: Mutex<Inner>,
    outgoing: Notify,
    handler: Handler,
}

impl Connection {
    /// Makes the connection and the future that serves it until the stream ends.
    pub(crate) fn new<T>(
        io: T,
        config: Config,
        handler: Handler,
    ) -> (Arc<Connection>, impl Future<Output = ()> + Send)
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let mut mux = Mux::new(config, nonce());
        mux.connect();
        let inner = Mutex::new(Inner {
            mux,
            sinks: HashMap::new(),
            last_seen: None,
        });
        let connection = Arc::new(Connection {
            inner,
            outgoing: Notify::new(),
            handler,
        });
        let served = Arc::clone(&connection);
        let future = async move {
            let (reader, writer) = tokio::io::split(io);
            tokio::select! {
                () = served.read(reader) => {}
                () = served.write(writer) => {}
                () = served.retry_hello() => {}
            }
            served.lock().mux.disconnect();
            served.dispatch();
            (served.handler)(&served, None);
        };
        (connection, future)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The mux is whole between its calls, also after a panic elsewhere.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, act: impl FnOnce(&mut Mux) -> T) -> T {
        let result = act(&mut self.lock().mux);
        self.outgoing.notify_one();
        result
    }

    /// When the last bytes came.
    pub(crate) fn last_seen(&self) -> Option<Instant> {
        self.lock().last_seen
    }

    /// Opens a stream and sets who hears of it, before anything can come.
    pub(crate) fn open(
        &self,
        request: Bytes,
        sink: impl FnOnce(u32) -> Sink,
    ) -> Result<u32, SendError> {
        let mut inner = self.lock();
        let stream = inner.mux.open(request)?;
        let sink = sink(stream);
        inner.sinks.insert(stream, sink);
        drop(inner);
        self.outgoing.notify_one();
        Ok(stream)
    }

    pub(crate) fn set_sink(&self, stream: u32, sink: Sink) {
        self.lock().sinks.insert(stream, sink);
    }

    pub(crate) fn writable(&self, stream: u32, channel: u8) -> usize {
        self.lock().mux.writable(stream, channel)
    }

    pub(crate) fn data(&self, stream: u32, channel: u8, bytes: Bytes) -> Result<(), SendError> {
        self.with(|mux| mux.data(stream, channel, bytes))
    }

    pub(crate) fn message(&self, stream: u32, message: Bytes) -> Result<(), SendError> {
        self.with(|mux| mux.message(stream, message))
    }

    pub(crate) fn end(&self, stream: u32, channel: u8) -> Result<(), SendError> {
        self.with(|mux| mux.end(stream, channel))
    }

    pub(crate) fn grant(&self, stream: u32, channel: u8, bytes: u32) -> Result<(), SendError> {
        self.with(|mux| mux.grant(stream, channel, bytes))
    }

    pub(crate) fn close(&self, stream: u32, closing: &Closing) {
        let mut inner = self.lock();
        inner.sinks.remove(&stream);
        // A stream that is gone already needs no end.
        let _ = inner.mux.close(stream, closing);
        drop(inner);
        self.outgoing.notify_one();
    }

    pub(crate) fn ping(&self, payload: &[u8]) -> Result<(), SendError> {
        self.with(|mux| mux.ping(payload))
    }

    pub(crate) fn push_event(&self, event: Bytes) -> Result<(), SendError> {
        self.with(|mux| mux.push_event(event))
    }

    fn dispatch(self: &Arc<Self>) {
        loop {
            let mut inner = self.lock();
            let Some(event) = inner.mux.next_event() else {
                break;
            };
            match event {
                Event::Stream { stream, incoming } => {
                    let sink = match incoming {
                        Incoming::Closed(_) => inner.sinks.remove(&stream),
                        _ => inner.sinks.get(&stream).cloned(),
                    };
                    drop(inner);
                    if let Some(sink) = sink {
                        sink(incoming);
                    }
                }
                Event::Lost => {
                    let sinks: Vec<Sink> = inner.sinks.drain().map(|(_, sink)| sink).collect();
                    drop(inner);
                    let closing =
                        Closing::Failed(Failure::new(ErrorKind::LinkLost, "the link was lost"));
                    for sink in sinks {
                        sink(Incoming::Closed(closing.clone()));
                    }
                    (self.handler)(self, Some(Event::Lost));
                }
                other => {
                    drop(inner);
                    (self.handler)(self, Some(other));
                }
            }
        }
        self.outgoing.notify_one();
    }

    async fn read(self: &Arc<Self>, mut reader: impl AsyncRead + Unpin) {
        loop {
            // Only this task touches the buffer, so it is taken out of the lock while it waits.
            let mut buffer: BytesMut = std::mem::take(self.lock().mux.input());
            buffer.reserve(READ_SIZE);
            match reader.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            {
                let mut inner = self.lock();
                inner.last_seen = Some(Instant::now());
                *inner.mux.input() = buffer;
                inner.mux.process();
            }
            self.dispatch();
        }
    }

    async fn write(&self, mut writer: impl AsyncWrite + Unpin) {
        let mut pieces: Vec<Bytes> = Vec::new();
        let mut small = BytesMut::new();
        loop {
            pieces.clear();
            let mut size = 0;
            {
                let mut inner = self.lock();
                while size < WRITE_SIZE {
                    let Some(frame) = inner.mux.next_frame() else {
                        break;
                    };
                    size += frame.header.len() + frame.payload.len();
                    small.extend_from_slice(&frame.header);
                    if frame.payload.len() < LARGE {
                        small.extend_from_slice(&frame.payload);
                    } else {
                        pieces.push(small.split().freeze());
                        pieces.push(frame.payload);
                    }
                }
            }
            if !small.is_empty() {
                pieces.push(small.split().freeze());
            }
            if pieces.is_empty() {
                self.outgoing.notified().await;
            } else if write_pieces(&mut writer, &pieces).await.is_err() {
                return;
            }
        }
    }

    /// Repeats an unanswered hello: the agent may be stuck in a frame whose rest was lost. Never ends.
    async fn retry_hello(&self) {
        let mut pause = Duration::from_secs(1);
        loop {
            tokio::time::sleep(pause).await;
            if self.lock().mux.is_established() {
                pause = Duration::from_secs(1);
            } else {
                pause = (pause * 2).min(Duration::from_secs(10));
                self.with(Mux::retry_hello);
            }
        }
    }
}

async fn write_pieces(
    writer: &mut (impl AsyncWrite + Unpin),
    pieces: &[Bytes],
) -> std::io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        let count = writer.write_vectored(rest).await?;
        if count == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut rest, count);
    }
    writer.flush().await
}

/// A number that differs between runs; not a secret.
fn nonce() -> u64 {
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    if let Ok(now) = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
        hasher.write_u128(now.as_nanos());
    }
    hasher.finish()
}
