//! What waits for a guest to read it, and how long others wait for that guest.
//!
//! ```text
//!           a frame doesn't fit: its sender waits
//!   open ──────────────────────────────────────────► full, since t
//!    ▲  ▲        drained to the low mark                │ │
//!    │  └───────────────────────────────────────────────┘ │ PATIENCE over
//!    └────────────────── drained to nothing ── deaf ◄─────┘
//! ```
//! While a queue is full, senders of single-destination frames wait (nothing is lost). A guest that has not made room within
//! [`PATIENCE`] is deaf: frames to it are dropped, and nobody waits for it again until it has read everything. Frames that go to
//! many never wait; they have a reserve of room, beyond which the slow port alone misses them.

use std::collections::VecDeque;
use std::time::Duration;

use crate::batch;
use crate::time::Time;

/// Bytes that wait for one port before senders do.
pub(super) const LIMIT: usize = 256 * 1024;
/// Further bytes that only flooded and mirrored frames may take.
const RESERVE: usize = 64 * 1024;
/// Bytes at which a full queue is open again.
const LOW: usize = LIMIT / 2;
/// How long a full queue holds its senders up.
pub const PATIENCE: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Full { since: Time },
    Deaf,
}

/// Whether a frame may be given to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// It may.
    Yes,
    /// Not yet: the sender waits.
    Later,
    /// No: it is dropped.
    No,
}

/// The queue of one port, in the form of a batch. Its front may be the middle of a frame.
#[derive(Debug)]
pub(super) struct Egress {
    queue: VecDeque<u8>,
    /// Bytes that are in a plan and not yet written or queued.
    planned: usize,
    state: State,
    /// Ports that wait for room here.
    waiting: Vec<u32>,
    /// Whether a link stands before it, which takes everything and drops what is too much.
    linked: bool,
}

impl Egress {
    pub(super) fn new() -> Self {
        Egress {
            queue: VecDeque::new(),
            planned: 0,
            state: State::Open,
            waiting: Vec::new(),
            linked: false,
        }
    }

    pub(super) fn set_linked(&mut self, linked: bool, woken: &mut Vec<u32>) {
        self.linked = linked;
        woken.append(&mut self.waiting);
    }

    fn pending(&self) -> usize {
        self.queue.len() + self.planned
    }

    /// Asks for room of `bytes` for a frame to this port alone, on behalf of the port `sender`.
    #[inline]
    pub(super) fn ask(&mut self, bytes: usize, sender: u32, now: Time) -> Room {
        if self.linked {
            return Room::Yes;
        }
        if self.state != State::Deaf && self.pending() + bytes <= LIMIT {
            self.planned += bytes;
            return Room::Yes;
        }
        match self.state {
            State::Deaf => return Room::No,
            State::Open => self.state = State::Full { since: now },
            State::Full { .. } => {}
        }
        if !self.waiting.contains(&sender) {
            self.waiting.push(sender);
        }
        Room::Later
    }

    /// Asks for room of `bytes` for a frame that nobody waits with.
    pub(super) fn ask_reserve(&mut self, bytes: usize) -> Room {
        if self.linked {
            return Room::Yes;
        }
        if self.state == State::Deaf || self.pending() + bytes > LIMIT + RESERVE {
            return Room::No;
        }
        self.planned += bytes;
        Room::Yes
    }

    /// Takes what was planned: `written` of it went out directly, `rest` is kept.
    pub(super) fn settle<'a>(&mut self, rest: impl Iterator<Item = &'a [u8]>) {
        self.planned = 0;
        for part in rest {
            self.queue.extend(part);
        }
    }

    /// Queues a frame that has come through the port's link, or drops it if there is no room.
    pub(super) fn arrive(&mut self, frame: &[u8]) -> Room {
        if self.queue.len() + batch::PREFIX + frame.len() > LIMIT {
            return Room::No;
        }
        self.queue.extend(batch::prefix(frame.len()));
        self.queue.extend(frame);
        Room::Yes
    }

    /// Returns what waits, in two parts.
    pub(super) fn waiting_bytes(&self) -> (&[u8], &[u8]) {
        self.queue.as_slices()
    }

    /// Returns what waits in one part.
    pub(super) fn contiguous(&mut self) -> &[u8] {
        self.queue.make_contiguous()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Notes that the guest has taken `bytes` of the queue. Gives the ports that need not wait any more.
    pub(super) fn drained(&mut self, bytes: usize, woken: &mut Vec<u32>) {
        self.queue.drain(..bytes.min(self.queue.len()));
        let open = match self.state {
            State::Open => false,
            State::Full { .. } => self.queue.len() <= LOW,
            State::Deaf => self.queue.is_empty(),
        };
        if open {
            self.state = State::Open;
            woken.append(&mut self.waiting);
        }
    }

    /// Throws away what waits, and lets everybody go.
    pub(super) fn clear(&mut self, woken: &mut Vec<u32>) {
        self.queue = VecDeque::new();
        self.planned = 0;
        self.state = State::Open;
        woken.append(&mut self.waiting);
    }

    /// Returns when the patience with this port ends.
    pub(super) fn patience_ends(&self) -> Option<Time> {
        match self.state {
            State::Full { since } => Some(since.after(PATIENCE)),
            State::Open | State::Deaf => None,
        }
    }

    /// Gives up waiting if it is time to.
    pub(super) fn advance(&mut self, now: Time, woken: &mut Vec<u32>) {
        if self.patience_ends().is_some_and(|end| end <= now) {
            self.state = State::Deaf;
            woken.append(&mut self.waiting);
        }
    }

    /// Tells whether frames to it are dropped because its guest does not read.
    pub(super) fn is_deaf(&self) -> bool {
        self.state == State::Deaf
    }
}
