//! One stream of a connection, as this program uses it: buffers for what came, and wakers for who waits.
//!
//! What the agent may have sent and we not consumed is bounded by the credit we gave; messages by [`MAX_MESSAGES`].
//! Credit goes back when bytes are taken out, which also acknowledges them (see `innkeeper_agent::message`).

use super::GuestError;
use super::connection::{Connection, Sink};
use bytes::{Buf, Bytes};
use innkeeper_agent::message::{Closing, ErrorKind, Failure, Reply, Request};
use innkeeper_agent::mux::{CHANNELS, Incoming};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

const MAX_MESSAGES: usize = 64;

#[derive(Default)]
struct Channel {
    queue: VecDeque<Bytes>,
    consumed: u64,
    ended: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Default)]
struct State {
    channels: [Channel; CHANNELS],
    messages: VecDeque<Bytes>,
    message_reader: Option<Waker>,
    closed: Option<Closing>,
    /// What to tell the agent when the stream is dropped.
    farewell: Option<Closing>,
}

impl State {
    fn wake_all(&mut self) {
        let readers = self
            .channels
            .iter_mut()
            .flat_map(|channel| [channel.reader.take(), channel.writer.take()]);
        for waker in readers.chain([self.message_reader.take()]).flatten() {
            waker.wake();
        }
    }
}

/// A stream; dropping the last handle closes it.
pub(crate) struct Stream {
    connection: Arc<Connection>,
    id: u32,
    state: Arc<Mutex<State>>,
}

impl Stream {
    /// Opens a stream with a window on stdout's and stderr's channel.
    pub(crate) fn open(
        connection: &Arc<Connection>,
        request: &Request,
        windows: [u32; 2],
    ) -> Result<Stream, GuestError> {
        let json =
            serde_json::to_vec(request).map_err(|error| GuestError::Protocol(error.to_string()))?;
        let state = Arc::new(Mutex::new(State::default()));
        let sink_state = Arc::clone(&state);
        let sink: Sink = Arc::new(move |incoming| take(&sink_state, incoming));
        let id = connection.open(json.into(), |_| sink)?;
        let stream = Stream {
            connection: Arc::clone(connection),
            id,
            state,
        };
        for (channel, window) in [1u8, 2].into_iter().zip(windows) {
            if window > 0 {
                stream.connection.grant(id, channel, window)?;
            }
        }
        Ok(stream)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Sets what dropping the stream tells the agent; by default that the consumer is gone.
    pub(crate) fn set_farewell(&self, closing: Closing) {
        self.lock().farewell = Some(closing);
    }

    /// Bytes of a channel that were taken out.
    pub(crate) fn consumed(&self, channel: u8) -> u64 {
        self.lock().channels[usize::from(channel)].consumed
    }

    /// Waits for the next reply.
    pub(crate) async fn reply(&self) -> Result<Reply, GuestError> {
        std::future::poll_fn(|context| self.poll_reply(context)).await
    }

    fn poll_reply(&self, context: &mut Context<'_>) -> Poll<Result<Reply, GuestError>> {
        let mut state = self.lock();
        if let Some(message) = state.messages.pop_front() {
            let reply = serde_json::from_slice(&message)
                .map_err(|error| GuestError::Protocol(error.to_string()));
            return Poll::Ready(reply);
        }
        if let Some(closing) = &state.closed {
            return Poll::Ready(Err(GuestError::closed(closing.clone())));
        }
        state.message_reader = Some(context.waker().clone());
        Poll::Pending
    }

    /// Takes the next bytes of a channel, at most `limit`; none at its end.
    pub(crate) fn poll_bytes(
        &self,
        channel: u8,
        limit: usize,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, GuestError>> {
        let mut state = self.lock();
        let closed = state.closed.clone();
        let slot = &mut state.channels[usize::from(channel)];
        if let Some(front) = slot.queue.front_mut() {
            let bytes = if front.len() <= limit {
                std::mem::take(front)
            } else {
                front.split_to(limit)
            };
            if !front.has_remaining() {
                slot.queue.pop_front();
            }
            slot.consumed += bytes.len() as u64;
            drop(state);
            // A closed stream takes no more credit and needs none.
            let _ = self.connection.grant(self.id, channel, bytes.len() as u32);
            return Poll::Ready(Ok(Some(bytes)));
        }
        if slot.ended {
            return Poll::Ready(Ok(None));
        }
        if let Some(closing) = closed {
            return Poll::Ready(Err(GuestError::closed(closing)));
        }
        slot.reader = Some(context.waker().clone());
        Poll::Pending
    }

    pub(crate) async fn next_bytes(&self, channel: u8) -> Result<Option<Bytes>, GuestError> {
        std::future::poll_fn(|context| self.poll_bytes(channel, usize::MAX, context)).await
    }

    /// Waits for credit on a channel.
    pub(crate) fn poll_writable(
        &self,
        channel: u8,
        context: &mut Context<'_>,
    ) -> Poll<Result<usize, GuestError>> {
        let mut state = self.lock();
        if let Some(closing) = &state.closed {
            return Poll::Ready(Err(GuestError::closed(closing.clone())));
        }
        // Registered first: credit that comes between is seen by the question after it.
        state.channels[usize::from(channel)].writer = Some(context.waker().clone());
        drop(state);
        match self.connection.writable(self.id, channel) {
            0 => Poll::Pending,
            credit => Poll::Ready(Ok(credit)),
        }
    }

    pub(crate) fn poll_write(
        &self,
        channel: u8,
        bytes: &[u8],
        context: &mut Context<'_>,
    ) -> Poll<Result<usize, GuestError>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let credit = ready!(self.poll_writable(channel, context))?;
        let count = credit
            .min(bytes.len())
            .min(innkeeper_agent::frame::MAX_PAYLOAD);
        self.connection
            .data(self.id, channel, Bytes::copy_from_slice(&bytes[..count]))?;
        Poll::Ready(Ok(count))
    }

    /// Sends bytes without copying them, as credit comes.
    pub(crate) async fn send(&self, channel: u8, mut bytes: Bytes) -> Result<(), GuestError> {
        while !bytes.is_empty() {
            let credit =
                std::future::poll_fn(|context| self.poll_writable(channel, context)).await?;
            self.connection
                .data(self.id, channel, bytes.split_to(credit.min(bytes.len())))?;
        }
        Ok(())
    }

    pub(crate) fn message(&self, message: Vec<u8>) -> Result<(), GuestError> {
        Ok(self.connection.message(self.id, message.into())?)
    }

    pub(crate) fn end(&self, channel: u8) -> Result<(), GuestError> {
        Ok(self.connection.end(self.id, channel)?)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let farewell = self.lock().farewell.take().unwrap_or(Closing::Gone);
        self.connection.close(self.id, &farewell);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take(state: &Mutex<State>, incoming: Incoming) {
    let mut state = lock(state);
    match incoming {
        Incoming::Message(message) => {
            if state.messages.len() >= MAX_MESSAGES {
                let failure = Failure::new(
                    ErrorKind::Protocol,
                    "it sent more messages than anybody asked for",
                );
                state.closed = Some(Closing::Failed(failure));
                state.wake_all();
                return;
            }
            state.messages.push_back(message);
            if let Some(waker) = state.message_reader.take() {
                waker.wake();
            }
        }
        Incoming::Data { channel, bytes } => {
            let slot = &mut state.channels[usize::from(channel)];
            slot.queue.push_back(bytes);
            if let Some(waker) = slot.reader.take() {
                waker.wake();
            }
        }
        Incoming::Credit { channel, .. } => {
            if let Some(waker) = state.channels[usize::from(channel)].writer.take() {
                waker.wake();
            }
        }
        Incoming::End { channel } => {
            let slot = &mut state.channels[usize::from(channel)];
            slot.ended = true;
            if let Some(waker) = slot.reader.take() {
                waker.wake();
            }
        }
        Incoming::Closed(closing) => {
            state.closed.get_or_insert(closing);
            state.wake_all();
        }
    }
}
