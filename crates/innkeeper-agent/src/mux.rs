//! The multiplexer: many streams with credit windows over one byte pipe, for both ends, without IO.
//!
//! The owner feeds received bytes to [`Mux::receive`], takes [`Event`]s from [`Mux::next_event`], and writes what
//! [`Mux::next_frame`] gives. It keeps time for itself: [`Mux::retry_hello`] is to be called when no answer came.
//!
//! ```text
//!                connect()                      hello with our echo
//!  Disconnected ───────────► Greeting (scans) ─────────────────────► Established
//!        ▲                      ▲   ▲ │ major differs                   │      │
//!        │ disconnect()         │   │ └────────► Incompatible           │      │ garbage, or a hello
//!        └──────────────────────┼───┘                                   │      │ with a new nonce:
//!                               └───────────────────────────────────────┴──────┘ all streams are lost
//! ```
//! The pipe may lose bytes without telling (a host that closes, a guest that resets). So a side that finds garbage
//! throws all streams away, takes a new nonce, says hello and scans for the peer's hello; a repeated hello follows
//! [`MAX_PAYLOAD`] zeros, so that a peer that waits for the rest of a lost frame has it filled and is out of step too. A peer that
//! waits for nothing passes over them.
//!
//! Limits: a peer can't send beyond the credit it was given (the stream is closed), open more streams than allowed, or
//! grant more than [`MAX_WINDOW`] at once; what is queued for sending is thereby bounded by the window per channel.

use crate::frame::{HEADER_LEN, Header, HeaderError, Kind, MAGIC, MAX_PAYLOAD};
use crate::message::{Closing, ErrorKind, Failure, GuestInfo, Hello, VERSION};
use bytes::{Buf, Bytes, BytesMut};
use std::collections::{BTreeMap, VecDeque};

/// Channels per stream (stdin, stdout, stderr).
pub const CHANNELS: usize = 3;
/// Usual window per channel in bytes.
pub const WINDOW: u32 = 256 * 1024;
/// Largest window per channel in bytes; what is granted beyond it does not count.
pub const MAX_WINDOW: u32 = 1024 * 1024;
/// Payloads below this size are copied out of the receive buffer, so that a few kept bytes do not keep all of it.
const SMALL: usize = 4096;
/// Requests and messages of one stream that may wait for sending.
const MAX_QUEUED_MESSAGES: usize = 1024;

/// Which end of the pipe this is. Only the host opens streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Opens streams.
    Host,
    /// Serves streams.
    Agent,
}

/// What a mux needs to know about itself.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which end this is.
    pub side: Side,
    /// Names the program.
    pub software: String,
    /// Features to tell.
    pub features: Vec<String>,
    /// Guest's facts to tell.
    pub guest: Option<GuestInfo>,
    /// Most streams at a time.
    pub max_streams: usize,
}

/// Something that happened to one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A JSON message.
    Message(Bytes),
    /// Bytes of a channel.
    Data {
        /// Channel.
        channel: u8,
        /// The bytes, never empty.
        bytes: Bytes,
    },
    /// The peer granted this many bytes more.
    Credit {
        /// Channel.
        channel: u8,
        /// Bytes.
        delta: u32,
    },
    /// The peer sends no more on the channel.
    End {
        /// Channel.
        channel: u8,
    },
    /// The stream is over; its id is forgotten.
    Closed(Closing),
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The handshake is done.
    Established(Hello),
    /// The peer speaks another major version.
    Incompatible(Hello),
    /// All streams are gone: the peer restarted, bytes were lost, or the pipe closed. Streams get no `Closed`.
    Lost,
    /// The peer opened a stream.
    Opened {
        /// Its id.
        stream: u32,
        /// JSON of the request.
        request: Bytes,
    },
    /// Something on a stream.
    Stream {
        /// Its id.
        stream: u32,
        /// What.
        incoming: Incoming,
    },
    /// JSON of an event of the agent.
    Pushed(Bytes),
    /// An answer to a ping.
    Pong(Bytes),
}

/// Why something can't be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// No handshake yet, or the link was lost.
    #[error("the agent link is not established")]
    NotEstablished,
    /// The stream is closed or never was.
    #[error("the stream is closed")]
    NoStream,
    /// More than the peer's credit.
    #[error("the peer has not granted that many bytes")]
    NoCredit,
    /// A message above the size of a frame.
    #[error("the message exceeds {MAX_PAYLOAD} bytes")]
    TooLong,
    /// A limit of streams or queued messages is reached.
    #[error("too many streams or messages at once")]
    TooMany,
}

/// A frame to write: the header, then the payload.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Encoded header.
    pub header: [u8; HEADER_LEN],
    /// Payload.
    pub payload: Bytes,
}

impl Frame {
    fn new(kind: Kind, stream: u32, channel: u8, payload: Bytes) -> Frame {
        let header = Header {
            kind,
            channel,
            stream,
            length: payload.len() as u32,
        }
        .encode();
        Frame { header, payload }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Disconnected,
    Greeting,
    Established,
    Incompatible,
}

#[derive(Default)]
struct Stream {
    queue: VecDeque<(Kind, u8, Bytes)>,
    queued_messages: usize,
    scheduled: bool,
    closing: bool,
    /// Bytes that may still be queued, per channel.
    send_credit: [u32; CHANNELS],
    /// Bytes that the peer may still send, per channel.
    receive_credit: [u32; CHANNELS],
    /// Grants not yet told to the peer.
    grants: [u32; CHANNELS],
}

/// One end of a multiplexed pipe.
pub struct Mux {
    config: Config,
    state: State,
    nonce: u64,
    peer_nonce: Option<u64>,
    /// Whether the zeros of a repeated hello have just been passed over.
    padded: bool,
    next_stream: u32,
    streams: BTreeMap<u32, Stream>,
    ready: VecDeque<u32>,
    urgent: VecDeque<Frame>,
    input: BytesMut,
    skip: usize,
    scanning: bool,
    events: VecDeque<Event>,
}

impl Mux {
    /// Makes a mux that is not connected. The nonce must differ from run to run; it needs not be secret.
    pub fn new(config: Config, nonce: u64) -> Mux {
        Mux {
            config,
            state: State::Disconnected,
            nonce,
            peer_nonce: None,
            padded: false,
            next_stream: 1,
            streams: BTreeMap::new(),
            ready: VecDeque::new(),
            urgent: VecDeque::new(),
            input: BytesMut::new(),
            skip: 0,
            scanning: true,
            events: VecDeque::new(),
        }
    }

    /// Starts on a fresh pipe: says hello and waits for the peer's.
    pub fn connect(&mut self) {
        self.drop_streams();
        self.input.clear();
        self.skip = 0;
        self.restart();
    }

    /// Forgets the pipe and all streams.
    pub fn disconnect(&mut self) {
        self.drop_streams();
        self.input.clear();
        self.skip = 0;
        self.urgent.clear();
        self.peer_nonce = None;
        self.state = State::Disconnected;
    }

    /// True between the handshake and its loss.
    pub fn is_established(&self) -> bool {
        self.state == State::Established
    }

    /// Changes the guest's facts that later hellos tell.
    pub fn set_guest(&mut self, guest: GuestInfo) {
        self.config.guest = Some(guest);
    }

    /// Says hello again, after zeros that fill a frame which the peer may be waiting to complete. Does nothing when the
    /// handshake is done or the last hello is still unsent.
    pub fn retry_hello(&mut self) {
        if self.state == State::Greeting && self.urgent.is_empty() {
            let padding = Bytes::from(vec![0u8; MAX_PAYLOAD - HEADER_LEN]);
            self.urgent.push_back(Frame {
                header: [0; HEADER_LEN],
                payload: padding,
            });
            self.push_hello();
        }
    }

    /// Opens a stream with the JSON of a request.
    pub fn open(&mut self, request: Bytes) -> Result<u32, SendError> {
        if self.state != State::Established {
            return Err(SendError::NotEstablished);
        }
        if request.len() > MAX_PAYLOAD {
            return Err(SendError::TooLong);
        }
        if self.streams.len() >= self.config.max_streams {
            return Err(SendError::TooMany);
        }
        let id = self.next_stream;
        self.next_stream = self.next_stream.wrapping_add(1).max(1);
        let mut stream = Stream::default();
        stream.queue.push_back((Kind::Open, 0, request));
        self.streams.insert(id, stream);
        self.schedule(id);
        Ok(id)
    }

    /// Bytes that may be sent on a channel now.
    pub fn writable(&self, stream: u32, channel: u8) -> usize {
        self.streams
            .get(&stream)
            .filter(|stream| !stream.closing)
            .and_then(|stream| stream.send_credit.get(usize::from(channel)))
            .map_or(0, |credit| *credit as usize)
    }

    /// True while the stream exists.
    pub fn contains(&self, stream: u32) -> bool {
        self.streams.contains_key(&stream)
    }

    /// Queues bytes of a channel; at most [`Mux::writable`].
    pub fn data(&mut self, id: u32, channel: u8, mut bytes: Bytes) -> Result<(), SendError> {
        let stream = self.live(id)?;
        let credit = stream
            .send_credit
            .get_mut(usize::from(channel))
            .ok_or(SendError::NoStream)?;
        if bytes.len() > *credit as usize {
            return Err(SendError::NoCredit);
        }
        *credit -= bytes.len() as u32;
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(MAX_PAYLOAD));
            stream.queue.push_back((Kind::Data, channel, piece));
        }
        self.schedule(id);
        Ok(())
    }

    /// Queues a JSON message.
    pub fn message(&mut self, id: u32, message: Bytes) -> Result<(), SendError> {
        if message.len() > MAX_PAYLOAD {
            return Err(SendError::TooLong);
        }
        let stream = self.live(id)?;
        if stream.queued_messages >= MAX_QUEUED_MESSAGES {
            return Err(SendError::TooMany);
        }
        stream.queued_messages += 1;
        stream.queue.push_back((Kind::Message, 0, message));
        self.schedule(id);
        Ok(())
    }

    /// Says that no more bytes come on a channel.
    pub fn end(&mut self, id: u32, channel: u8) -> Result<(), SendError> {
        let stream = self.live(id)?;
        if stream.queued_messages >= MAX_QUEUED_MESSAGES {
            return Err(SendError::TooMany);
        }
        stream.queued_messages += 1;
        stream.queue.push_back((Kind::End, channel, Bytes::new()));
        self.schedule(id);
        Ok(())
    }

    /// Grants the peer bytes on a channel.
    pub fn grant(&mut self, id: u32, channel: u8, bytes: u32) -> Result<(), SendError> {
        let stream = self.live(id)?;
        let index = usize::from(channel);
        let held = stream
            .receive_credit
            .get(index)
            .ok_or(SendError::NoStream)?;
        let bytes = bytes.min(MAX_WINDOW.saturating_sub(*held));
        stream.receive_credit[index] += bytes;
        stream.grants[index] += bytes;
        self.schedule(id);
        Ok(())
    }

    /// Ends a stream after what is queued on it.
    pub fn close(&mut self, id: u32, closing: &Closing) -> Result<(), SendError> {
        let payload = json(closing);
        let stream = self.live(id)?;
        stream.closing = true;
        stream.queue.push_back((Kind::Close, 0, payload));
        self.schedule(id);
        Ok(())
    }

    /// Queues a ping; its payload (at most 64 bytes count) comes back.
    pub fn ping(&mut self, payload: &[u8]) -> Result<(), SendError> {
        self.connection_frame(
            Kind::Ping,
            Bytes::copy_from_slice(&payload[..payload.len().min(64)]),
        )
    }

    /// Queues the JSON of an event (agent).
    pub fn push_event(&mut self, event: Bytes) -> Result<(), SendError> {
        if event.len() > MAX_PAYLOAD {
            return Err(SendError::TooLong);
        }
        self.connection_frame(Kind::Event, event)
    }

    fn connection_frame(&mut self, kind: Kind, payload: Bytes) -> Result<(), SendError> {
        if self.state != State::Established {
            return Err(SendError::NotEstablished);
        }
        if self.urgent.len() >= 256 {
            return Err(SendError::TooMany);
        }
        self.urgent.push_back(Frame::new(kind, 0, 0, payload));
        Ok(())
    }

    /// True when [`Mux::next_frame`] has something.
    pub fn has_frames(&self) -> bool {
        !self.urgent.is_empty() || !self.ready.is_empty()
    }

    /// Takes the next frame to write: connection frames first, then the streams in turn.
    pub fn next_frame(&mut self) -> Option<Frame> {
        if let Some(frame) = self.urgent.pop_front() {
            return Some(frame);
        }
        while let Some(id) = self.ready.pop_front() {
            let Some(stream) = self.streams.get_mut(&id) else {
                continue;
            };
            let frame = next_of_stream(id, stream);
            let more = !stream.queue.is_empty() || stream.grants.iter().any(|grant| *grant > 0);
            stream.scheduled = more;
            let closed = stream.closing && stream.queue.is_empty();
            if closed {
                self.streams.remove(&id);
            } else if more {
                self.ready.push_back(id);
            }
            if frame.is_some() {
                return frame;
            }
        }
        None
    }

    /// Buffer to read into: the owner reserves space, appends what it reads, and calls [`Mux::process`].
    pub fn input(&mut self) -> &mut BytesMut {
        &mut self.input
    }

    /// Takes received bytes.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        self.process();
    }

    /// Takes the next event.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Cuts the received bytes into frames and events.
    pub fn process(&mut self) {
        if self.state == State::Disconnected {
            self.input.clear();
            return;
        }
        loop {
            if self.skip > 0 {
                let count = self.skip.min(self.input.len());
                self.input.advance(count);
                self.skip -= count;
                if self.skip > 0 {
                    return;
                }
            }
            if self.scanning && !self.scan() {
                return;
            }
            // Between frames, the zeros of a hello that was repeated while our answer was under way fill nothing.
            let zeros = self.input.iter().take_while(|byte| **byte == 0).count();
            self.input.advance(zeros);
            self.padded |= zeros > 0;
            let Some(header) = self.input.first_chunk::<HEADER_LEN>() else {
                return;
            };
            match Header::decode(header) {
                Ok(header) => {
                    let total = HEADER_LEN + header.length as usize;
                    if self.input.len() < total {
                        return;
                    }
                    if self.scanning && !self.accept_scanned(header) {
                        continue;
                    }
                    self.input.advance(HEADER_LEN);
                    let payload = self.input.split_to(header.length as usize);
                    let payload = if payload.len() < SMALL {
                        Bytes::copy_from_slice(&payload)
                    } else {
                        payload.freeze()
                    };
                    self.frame(header, payload);
                }
                Err(HeaderError::UnknownKind { length }) if !self.scanning => {
                    self.input.advance(HEADER_LEN);
                    self.skip = length as usize;
                }
                Err(_) if self.scanning => self.input.advance(1),
                Err(_) => self.resync(),
            }
        }
    }

    /// Moves to the next magic; false when there is none yet.
    fn scan(&mut self) -> bool {
        let mut at = 0;
        while at < self.input.len() {
            let Some(found) = self.input[at..].iter().position(|byte| *byte == MAGIC[0]) else {
                self.input.clear();
                return false;
            };
            at += found;
            let rest = &self.input[at..];
            let known = rest.len().min(MAGIC.len());
            if rest[..known] == MAGIC[..known] {
                self.input.advance(at);
                return self.input.len() >= HEADER_LEN;
            }
            at += 1;
        }
        self.input.clear();
        false
    }

    /// While scanning, takes only a hello that reads as one; anything else is stepped over by one byte.
    fn accept_scanned(&mut self, header: Header) -> bool {
        let end = HEADER_LEN + header.length as usize;
        let good = header.kind == Kind::Hello
            && serde_json::from_slice::<Hello>(&self.input[HEADER_LEN..end]).is_ok();
        if !good {
            self.input.advance(1);
        }
        good
    }

    fn frame(&mut self, header: Header, payload: Bytes) {
        self.padded &= header.kind == Kind::Hello;
        match header.kind {
            Kind::Hello => match serde_json::from_slice::<Hello>(&payload) {
                Ok(hello) => self.hello(hello),
                Err(_) => self.resync(),
            },
            _ if self.state != State::Established => {}
            Kind::Ping => {
                // A peer that pings faster than it reads gets no answer to some, instead of our memory.
                let payload = payload.slice(..payload.len().min(64));
                let _ = self.connection_frame(Kind::Pong, payload);
            }
            Kind::Pong => self.events.push_back(Event::Pong(payload)),
            Kind::Event => self.events.push_back(Event::Pushed(payload)),
            Kind::Open => self.opened(header.stream, payload),
            kind => self.stream_frame(kind, header, payload),
        }
    }

    fn hello(&mut self, hello: Hello) {
        self.scanning = false;
        if hello.version.major != VERSION.major {
            self.drop_streams();
            if self.state != State::Incompatible {
                self.state = State::Incompatible;
                self.push_hello();
                self.events.push_back(Event::Incompatible(hello));
            }
            return;
        }
        let known = self.peer_nonce == Some(hello.nonce);
        let answered = hello.echo == Some(self.nonce);
        let repeated = std::mem::take(&mut self.padded);
        if known && answered && self.state == State::Established {
            // It may be that the last of ours was lost; one more costs nothing.
            if repeated {
                self.push_hello();
            }
            return;
        }
        if self.state == State::Established {
            // The peer forgot our streams; ids and credit of before mean nothing to it.
            self.drop_streams();
        }
        self.peer_nonce = Some(hello.nonce);
        if !known || !answered {
            self.push_hello();
        }
        if answered {
            self.state = State::Established;
            self.events.push_back(Event::Established(hello));
        } else {
            self.state = State::Greeting;
        }
    }

    fn opened(&mut self, id: u32, request: Bytes) {
        if self.config.side != Side::Agent || id == 0 || self.streams.contains_key(&id) {
            return self.refuse(id, "the stream can't be opened");
        }
        if self.streams.len() >= self.config.max_streams {
            return self.refuse(id, "too many streams at once");
        }
        self.streams.insert(id, Stream::default());
        self.events.push_back(Event::Opened {
            stream: id,
            request,
        });
    }

    fn refuse(&mut self, id: u32, message: &str) {
        let closing = Closing::Failed(Failure::new(ErrorKind::Busy, message));
        if self.urgent.len() < 256 {
            self.urgent
                .push_back(Frame::new(Kind::Close, id, 0, json(&closing)));
        }
    }

    fn stream_frame(&mut self, kind: Kind, header: Header, payload: Bytes) {
        let id = header.stream;
        // A frame that was on its way when we closed the stream.
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let channel = header.channel;
        let index = usize::from(channel);
        let incoming = match kind {
            Kind::Close => {
                let closing = serde_json::from_slice(&payload).unwrap_or(Closing::Gone);
                let told = !stream.closing;
                self.streams.remove(&id);
                if told {
                    self.events.push_back(Event::Stream {
                        stream: id,
                        incoming: Incoming::Closed(closing),
                    });
                }
                return;
            }
            _ if stream.closing => return,
            Kind::Message => Incoming::Message(payload),
            _ if index >= CHANNELS => {
                return self.violation(id, "a frame names a channel that does not exist");
            }
            Kind::Data => {
                let length = payload.len() as u32;
                if length > stream.receive_credit[index] {
                    return self.violation(id, "the peer sent more than it was granted");
                }
                if length == 0 {
                    return;
                }
                stream.receive_credit[index] -= length;
                Incoming::Data {
                    channel,
                    bytes: payload,
                }
            }
            Kind::Credit => {
                let Some(delta) = payload
                    .first_chunk::<4>()
                    .map(|bytes| u32::from_le_bytes(*bytes))
                else {
                    return self.violation(id, "a credit frame has no amount");
                };
                let credit = &mut stream.send_credit[index];
                let delta = delta.min(MAX_WINDOW.saturating_sub(*credit));
                *credit += delta;
                Incoming::Credit { channel, delta }
            }
            _ => Incoming::End { channel },
        };
        self.events.push_back(Event::Stream {
            stream: id,
            incoming,
        });
    }

    fn violation(&mut self, id: u32, message: &str) {
        let closing = Closing::Failed(Failure::new(ErrorKind::Protocol, message));
        self.streams.remove(&id);
        if self.urgent.len() < 256 {
            self.urgent
                .push_back(Frame::new(Kind::Close, id, 0, json(&closing)));
        }
        self.events.push_back(Event::Stream {
            stream: id,
            incoming: Incoming::Closed(closing),
        });
    }

    /// Out of step: all streams are worthless; greet under a new nonce, so that the peer drops them too.
    fn resync(&mut self) {
        self.drop_streams();
        // SplitMix64's step: another number for certain, and no source of randomness is needed here.
        self.nonce = self.nonce.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.restart();
    }

    fn restart(&mut self) {
        self.state = State::Greeting;
        self.peer_nonce = None;
        self.scanning = true;
        self.urgent.clear();
        self.push_hello();
    }

    fn drop_streams(&mut self) {
        let lost = self.state == State::Established;
        self.streams.clear();
        self.ready.clear();
        self.urgent.clear();
        if lost {
            // Events of before the loss stay in order before it.
            self.events.push_back(Event::Lost);
        }
    }

    fn push_hello(&mut self) {
        let hello = Hello {
            version: VERSION,
            nonce: self.nonce,
            echo: self.peer_nonce,
            features: self.config.features.clone(),
            software: self.config.software.clone(),
            guest: self.config.guest.clone(),
        };
        self.urgent
            .push_back(Frame::new(Kind::Hello, 0, 0, json(&hello)));
    }

    fn live(&mut self, id: u32) -> Result<&mut Stream, SendError> {
        self.streams
            .get_mut(&id)
            .filter(|stream| !stream.closing)
            .ok_or(SendError::NoStream)
    }

    fn schedule(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.scheduled
        {
            stream.scheduled = true;
            self.ready.push_back(id);
        }
    }
}

fn next_of_stream(id: u32, stream: &mut Stream) -> Option<Frame> {
    // Grants go before data, or a full outgoing queue would hold the peer's data back; but never before the open.
    let opening = matches!(stream.queue.front(), Some((Kind::Open, ..)));
    if !opening && let Some(channel) = stream.grants.iter().position(|grant| *grant > 0) {
        let delta = std::mem::take(&mut stream.grants[channel]);
        return Some(Frame::new(
            Kind::Credit,
            id,
            channel as u8,
            Bytes::copy_from_slice(&delta.to_le_bytes()),
        ));
    }
    let (kind, channel, payload) = stream.queue.pop_front()?;
    if matches!(kind, Kind::Message | Kind::End) {
        stream.queued_messages -= 1;
    }
    Some(Frame::new(kind, id, channel, payload))
}

/// Encodes one of our own messages, which can't fail: they hold no maps with keys other than strings.
fn json<T: serde::Serialize>(value: &T) -> Bytes {
    serde_json::to_vec(value)
        .map(Bytes::from)
        .unwrap_or_default()
}
