//! A simulated link: one direction of one port, made as bad as it is asked to be. No socket, no clock; the same seed and input repeat.
//!
//! ```text
//!  push ─► MTU, partition ─► queue ─► bandwidth ─► loss, corruption, duplication ─► delay, jitter, reordering ─► poll
//! ```
//! When a frame leaves the queue is computed, not observed: what comes out, and when it is due, does not depend on how often anybody polls.

mod codel;
mod dice;
mod shape;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

pub use shape::{
    Bandwidth, Discipline, Distribution, Jitter, Loss, PercentageError, Probability, QueueLimit,
    Shape,
};

use crate::frame::{Frame, HEADER};
use crate::rate::Bucket;
use crate::time::Time;
use codel::CoDel;
use dice::{Delaying, Dice, Losing};

/// Most bytes that are on the wire at once; what comes beyond is dropped as by a full queue.
pub const MOST_IN_FLIGHT: usize = 64 << 20;

/// What a link has done to frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkCounters {
    /// Frames that came out, copies included.
    pub passed: u64,
    /// Lost on the wire.
    pub lost: u64,
    /// Copies made.
    pub duplicated: u64,
    /// Frames with a bit turned.
    pub corrupted: u64,
    /// Frames that were not delayed so that they pass others.
    pub reordered: u64,
    /// Dropped because the queue or the wire was full.
    pub overflowed: u64,
    /// Dropped early by CoDel.
    pub dropped_early: u64,
    /// Dropped because they are longer than the MTU.
    pub too_long: u64,
    /// Dropped because nothing passes.
    pub partitioned: u64,
}

#[derive(Debug)]
struct Waiting {
    frame: Vec<u8>,
    since: Time,
}

/// A frame on the wire, ordered by when it is due, and among those due together by their order.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flying {
    due: Time,
    number: u64,
    frame: Vec<u8>,
}

/// One direction of a link.
#[derive(Debug)]
pub struct Link {
    shape: Shape,
    bucket: Option<Bucket>,
    /// When the frame before left the queue.
    left: Time,
    queue: VecDeque<Waiting>,
    queued: usize,
    codel: CoDel,
    flying: BinaryHeap<Reverse<Flying>>,
    in_flight: usize,
    number: u64,
    /// When the last frame that keeps the order is due.
    last_due: Time,
    losing: Losing,
    delaying: Delaying,
    duplicating: Dice,
    corrupting: Dice,
    reordering: Dice,
    counters: LinkCounters,
    /// Buffers to be used again, so that frames need no new ones.
    spare: Vec<Vec<u8>>,
}

impl Link {
    /// Makes an empty link.
    pub fn new(shape: Shape, seed: u64, now: Time) -> Self {
        Link {
            bucket: bucket(&shape, now),
            shape,
            left: now,
            queue: VecDeque::new(),
            queued: 0,
            codel: CoDel::default(),
            flying: BinaryHeap::new(),
            in_flight: 0,
            number: 0,
            last_due: now,
            losing: Losing::new(Dice::new(seed, 1)),
            delaying: Delaying::new(Dice::new(seed, 2)),
            duplicating: Dice::new(seed, 3),
            corrupting: Dice::new(seed, 4),
            reordering: Dice::new(seed, 5),
            counters: LinkCounters::default(),
            spare: Vec::new(),
        }
    }

    /// Returns what it does.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Returns what it has done.
    pub fn counters(&self) -> &LinkCounters {
        &self.counters
    }

    /// Changes what it does from now on. Frames on the wire arrive when they would have, those in the queue leave as is asked now.
    pub fn set_shape(&mut self, shape: Shape, now: Time) {
        self.leave(now);
        if shape.bandwidth != self.shape.bandwidth {
            self.bucket = bucket(&shape, now);
        }
        self.left = now;
        self.shape = shape;
    }

    /// Gives it a frame, of at least a header.
    pub fn push(&mut self, frame: &[u8], now: Time) {
        self.leave(now);
        if self.shape.partition {
            self.counters.partitioned += 1;
            return;
        }
        let payload = Frame::new(frame).map_or(0, Frame::payload_length);
        if self.shape.mtu.is_some_and(|mtu| payload > usize::from(mtu)) {
            self.counters.too_long += 1;
            return;
        }
        if self.queued + frame.len() > self.shape.queue.bytes as usize
            || self.queued + self.in_flight + frame.len() > MOST_IN_FLIGHT
        {
            self.counters.overflowed += 1;
            return;
        }
        let frame = self.copy(frame);
        self.queued += frame.len();
        self.queue.push_back(Waiting { frame, since: now });
        self.leave(now);
    }

    /// Returns when [`Link::poll`] may have something to give.
    pub fn next_due(&self) -> Option<Time> {
        let arrival = self.flying.peek().map(|Reverse(flying)| flying.due);
        let departure = self.queue.front().map(|waiting| self.departure(waiting));
        [arrival, departure].into_iter().flatten().min()
    }

    /// Gives the frames that have arrived by now to `take`, in their order.
    pub fn poll(&mut self, now: Time, take: impl FnMut(&[u8])) {
        self.poll_some(now, usize::MAX, take);
    }

    /// As [`Link::poll`], but ends after the frame with which `most` bytes are reached.
    pub fn poll_some(&mut self, now: Time, most: usize, mut take: impl FnMut(&[u8])) {
        self.leave(now);
        let mut taken = 0;
        while taken < most
            && self
                .flying
                .peek()
                .is_some_and(|Reverse(flying)| flying.due <= now)
            && let Some(Reverse(flying)) = self.flying.pop()
        {
            taken += flying.frame.len();
            self.in_flight -= flying.frame.len();
            if self.shape.partition {
                self.counters.partitioned += 1;
            } else {
                self.counters.passed += 1;
                take(&flying.frame);
            }
            self.keep(flying.frame);
        }
    }

    /// Returns how many bytes wait or are on the wire.
    pub fn held(&self) -> usize {
        self.queued + self.in_flight
    }

    fn departure(&self, waiting: &Waiting) -> Time {
        let free = waiting.since.max(self.left);
        match &self.bucket {
            Some(bucket) => bucket.ready(waiting.frame.len() as u64, free),
            None => free,
        }
    }

    /// Lets frames leave the queue, up to now, each at its own time.
    fn leave(&mut self, now: Time) {
        while let Some(waiting) = self.queue.front() {
            let at = self.departure(waiting);
            if at > now {
                return;
            }
            let Some(Waiting { frame, since }) = self.queue.pop_front() else {
                return;
            };
            self.queued -= frame.len();
            self.left = at;
            if let Discipline::CoDel { target, interval } = self.shape.queue.discipline
                && self
                    .codel
                    .drops(at.since(since), self.queued, at, target, interval)
            {
                self.counters.dropped_early += 1;
                self.keep(frame);
                continue;
            }
            if let Some(bucket) = &mut self.bucket {
                bucket.charge(frame.len() as u64, at);
            }
            self.fly(frame, at);
        }
    }

    /// Puts a frame on the wire at a time.
    fn fly(&mut self, mut frame: Vec<u8>, at: Time) {
        // Every frame throws for everything, so that what befalls it does not depend on the rest of the shape.
        let lost = self.losing.loses(self.shape.loss);
        let twice = self.duplicating.happens(self.shape.duplicate);
        let corrupted = self.corrupting.happens(self.shape.corrupt);
        let turned = self.corrupting.next();
        let delay = self.delaying.delay(self.shape.delay, self.shape.jitter);
        let reordered = self.reordering.happens(self.shape.reorder);
        if lost {
            self.counters.lost += 1;
            self.keep(frame);
            return;
        }
        if corrupted && corrupt(&mut frame, turned) {
            self.counters.corrupted += 1;
        }
        let due = if reordered {
            self.counters.reordered += 1;
            at
        } else {
            self.last_due = self.last_due.max(at.after(delay));
            self.last_due
        };
        if twice {
            self.counters.duplicated += 1;
            let copy = self.copy(&frame);
            self.launch(copy, due);
        }
        self.launch(frame, due);
    }

    fn launch(&mut self, frame: Vec<u8>, due: Time) {
        self.in_flight += frame.len();
        self.number += 1;
        let number = self.number;
        self.flying.push(Reverse(Flying { due, number, frame }));
    }

    fn copy(&mut self, frame: &[u8]) -> Vec<u8> {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(frame);
        buffer
    }

    fn keep(&mut self, buffer: Vec<u8>) {
        // More than a few would be memory that a burst once needed.
        if self.spare.len() < 256 {
            self.spare.push(buffer);
        }
    }
}

fn bucket(shape: &Shape, now: Time) -> Option<Bucket> {
    let Bandwidth {
        bits_per_second,
        burst,
    } = shape.bandwidth?;
    Some(Bucket::of_bits(bits_per_second, burst, now))
}

/// Turns a bit behind the addresses, so that the frame still goes where it was sent. False if there is none.
fn corrupt(frame: &mut [u8], turned: u64) -> bool {
    let Some(behind) = frame
        .get_mut(HEADER - 2..)
        .filter(|behind| !behind.is_empty())
    else {
        return false;
    };
    let bit = (turned % (behind.len() as u64 * 8)) as usize;
    behind[bit / 8] ^= 1 << (bit % 8);
    true
}
