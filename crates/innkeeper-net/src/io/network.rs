//! One switch with what is attached to it, moved by one thread.
//!
//! ```text
//!   wait ─► readable: read up to 64 KiB ─► forward ─► write once per port ─► settle
//!        ─► writable: write what waited
//!        ─► woken:    forward the rest of what was read before
//!        ─► due:      dial again, give up on who does not read
//! ```
//! A port whose batch waits for another is not read: its sender feels it as a full socket. Nothing is allocated for a frame.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::attachment::{Attachment, Framing};
use super::poller::{Interest, Poller, Ready};
use super::stream::StreamPort;
use crate::batch;
use crate::link::Shape;
use crate::switch::{Direction, End, Outbox, PortConfig, PortError, PortId, Switch};
use crate::time::Time;

/// Most bytes that are read at once.
const READ: usize = 64 * 1024;
/// Room for what is left of a batch, and the next read.
const INBOUND: usize = batch::PREFIX + batch::LONGEST + READ;
/// Pieces that one system call writes.
const PIECES: usize = 64;
/// How long after a failure a socket is dialled again.
const REDIAL: Duration = Duration::from_millis(200);

/// What a port is connected to.
pub enum Target {
    /// A listening unix socket that speaks QEMU's stream form. It is dialled until it answers, and again when it breaks.
    Dial(PathBuf),
    /// Something open. When it breaks the port stays down.
    Open(Box<dyn Attachment>),
}

struct Place {
    id: PortId,
    dial: Option<PathBuf>,
    dial_at: Option<Instant>,
    attachment: Option<Box<dyn Attachment>>,
    interest: Interest,
    inbound: Vec<u8>,
    /// Where in `inbound` the bytes begin and end that were not forwarded yet.
    start: usize,
    filled: usize,
    /// Whether they wait for another port.
    waits: bool,
    /// Frames that have come through the guest's link, and whether they wait for another port.
    arrived: Vec<u8>,
    arrived_wait: bool,
}

/// A switch and its attachments.
pub struct Network {
    switch: Switch,
    places: Vec<Option<Place>>,
    poller: Poller,
    outbox: Outbox,
    began: Instant,
    ready: Vec<Ready>,
    woken: Vec<PortId>,
    /// Places of the ports that are or were shaped.
    shaped: BTreeSet<usize>,
}

/// Tokens of ports are their places; this one is for the caller's own descriptor.
const CALLER: u64 = 1 << 40;

impl Network {
    /// Makes a network of a switch.
    ///
    /// # Errors
    /// When the kernel gives no descriptor to wait with.
    pub fn new(switch: Switch) -> io::Result<Self> {
        Ok(Network {
            switch,
            places: Vec::new(),
            poller: Poller::new()?,
            outbox: Outbox::new(),
            began: Instant::now(),
            ready: Vec::new(),
            woken: Vec::new(),
            shaped: BTreeSet::new(),
        })
    }

    /// Returns the switch, to look at and to set.
    pub fn switch(&mut self) -> &mut Switch {
        &mut self.switch
    }

    /// Returns now, as the switch counts it.
    pub fn now(&self) -> Time {
        Time::ZERO.after(self.began.elapsed())
    }

    /// Adds a port.
    ///
    /// # Errors
    /// When the switch refuses it.
    pub fn add(&mut self, config: PortConfig, target: Target) -> Result<PortId, PortError> {
        let id = self.switch.add_port(config, self.now())?;
        let index = id.index as usize;
        if self.places.len() <= index {
            self.places.resize_with(index + 1, || None);
        }
        let (dial, open) = match target {
            Target::Dial(path) => (Some(path), None),
            Target::Open(attachment) => (None, Some(attachment)),
        };
        self.places[index] = Some(Place {
            id,
            dial_at: dial.as_ref().map(|_| Instant::now()),
            dial,
            attachment: None,
            interest: Interest {
                readable: true,
                writable: false,
            },
            inbound: Vec::new(),
            start: 0,
            filled: 0,
            waits: false,
            arrived: Vec::new(),
            arrived_wait: false,
        });
        match open {
            Some(attachment) => self.connect(index, attachment),
            None => self.dial(index),
        }
        Ok(id)
    }

    /// Removes a port and closes what is attached to it.
    ///
    /// # Errors
    /// When it is gone.
    pub fn remove(&mut self, id: PortId) -> Result<(), PortError> {
        self.switch.remove_port(id)?;
        if let Some(place) = self
            .places
            .get_mut(id.index as usize)
            .and_then(Option::take)
            && let Some(attachment) = place.attachment
        {
            // A descriptor that can't be taken out is taken out by being closed.
            let _ = self.poller.remove(attachment.fd());
        }
        self.resume();
        Ok(())
    }

    /// Makes a direction of a port as bad as the shape says, from now on.
    ///
    /// # Errors
    /// When the port is gone.
    pub fn shape(
        &mut self,
        id: PortId,
        direction: Direction,
        shape: Shape,
        seed: u64,
    ) -> Result<(), PortError> {
        let now = self.now();
        self.switch.shape(id, direction, shape, seed, now)?;
        self.shaped.insert(id.index as usize);
        self.resume();
        Ok(())
    }

    /// Tells whether somebody is at a port's other end.
    pub fn is_connected(&self, id: PortId) -> bool {
        self.place(id)
            .is_some_and(|place| place.attachment.is_some())
    }

    fn place(&self, id: PortId) -> Option<&Place> {
        let place = self.places.get(id.index as usize)?.as_ref()?;
        (place.id == id).then_some(place)
    }

    /// Waits for the descriptor of the caller's too; `turn` tells when it is readable.
    pub(super) fn watch(&mut self, fd: std::os::fd::BorrowedFd<'_>) -> io::Result<()> {
        self.poller.add(
            fd,
            CALLER,
            Interest {
                readable: true,
                writable: false,
            },
        )
    }

    /// Waits for something to happen and does what it asks for. Tells whether the caller's own descriptor is readable.
    ///
    /// # Errors
    /// When the kernel refuses to wait.
    pub fn turn(&mut self, longest: Option<Duration>) -> io::Result<bool> {
        let timeout = [longest, self.until_due()].into_iter().flatten().min();
        let mut ready = std::mem::take(&mut self.ready);
        let waited = self.poller.wait(timeout, &mut ready);
        let mut called = false;
        for event in &ready {
            if event.token == CALLER {
                called = true;
                continue;
            }
            let index = usize::try_from(event.token).unwrap_or(usize::MAX);
            if event.writable {
                self.flush(index);
            }
            if event.readable {
                self.receive(index);
            }
        }
        self.ready = ready;
        waited?;
        self.do_due();
        self.resume();
        Ok(called)
    }

    fn until_due(&self) -> Option<Duration> {
        let now = Instant::now();
        let dials = self
            .places
            .iter()
            .flatten()
            .filter_map(|place| place.dial_at);
        let dial = dials.min().map(|at| at.saturating_duration_since(now));
        let links = self.shaped.iter().filter_map(|index| self.link_due(*index));
        let switch = self.switch.next_deadline().into_iter().chain(links).min();
        let switch = switch.map(|at| at.since(self.now()));
        [dial, switch].into_iter().flatten().min()
    }

    /// When a link of a port has something that can be taken.
    fn link_due(&self, index: usize) -> Option<Time> {
        let place = self.places.get(index)?.as_ref()?;
        let arriving = (!place.arrived_wait)
            .then(|| self.switch.link_due(place.id, Direction::FromGuest))
            .flatten();
        let leaving = self.switch.link_due(place.id, Direction::ToGuest);
        [arriving, leaving].into_iter().flatten().min()
    }

    fn do_due(&mut self) {
        let now = self.now();
        if self.switch.next_deadline().is_some_and(|at| at <= now) {
            self.switch.advance(now);
        }
        let mut shaped = std::mem::take(&mut self.shaped);
        shaped.retain(|index| self.empty_links(*index, now));
        self.shaped.append(&mut shaped);
        for index in 0..self.places.len() {
            let due = self.places[index].as_ref().and_then(|place| place.dial_at);
            if due.is_some_and(|at| at <= Instant::now()) {
                self.dial(index);
            }
        }
    }

    /// Moves on what has come through a port's links. False if there are none any more.
    fn empty_links(&mut self, index: usize, now: Time) -> bool {
        let Some(Some(place)) = self.places.get_mut(index) else {
            return false;
        };
        let id = place.id;
        if !place.arrived_wait {
            self.switch.collect(id, &mut place.arrived, now);
            self.forward_arrived(index);
        }
        self.switch.release(id, now);
        if !self.switch.queued(id).0.is_empty() {
            self.flush(index);
        }
        let linked = |direction| matches!(self.switch.link(id, direction), Ok(Some(_)));
        linked(Direction::FromGuest) || linked(Direction::ToGuest)
    }

    fn forward_arrived(&mut self, index: usize) {
        let now = self.now();
        let Some(Some(place)) = self.places.get_mut(index) else {
            return;
        };
        let id = place.id;
        let mut arrived = std::mem::take(&mut place.arrived);
        let taken = self
            .switch
            .forward_arrived(id, &arrived, &mut self.outbox, now);
        let mut broken = Vec::new();
        self.deliver(&arrived, now, &mut broken);
        arrived.drain(..taken.bytes);
        if let Some(Some(place)) = self.places.get_mut(index) {
            place.arrived = arrived;
            place.arrived_wait = taken.end == End::Full;
        }
        for index in broken {
            self.disconnect(index);
        }
    }

    fn dial(&mut self, index: usize) {
        let Some(place) = &mut self.places[index] else {
            return;
        };
        let Some(path) = &place.dial else {
            return;
        };
        match StreamPort::dial(path) {
            Ok(port) => self.connect(index, Box::new(port)),
            // Nobody listens yet, or not any more.
            Err(_) => place.dial_at = Some(Instant::now() + REDIAL),
        }
    }

    fn connect(&mut self, index: usize, attachment: Box<dyn Attachment>) {
        let Some(place) = &mut self.places[index] else {
            return;
        };
        place.interest = Interest {
            readable: true,
            writable: false,
        };
        place.start = 0;
        place.filled = 0;
        place.waits = false;
        if self
            .poller
            .add(attachment.fd(), index as u64, place.interest)
            .is_err()
        {
            place.dial_at = place.dial.as_ref().map(|_| Instant::now() + REDIAL);
            return;
        }
        place.dial_at = None;
        place.attachment = Some(attachment);
        // The place is the port's, so the port is there.
        let _ = self.switch.set_up(place.id, true);
    }

    fn disconnect(&mut self, index: usize) {
        let Some(place) = &mut self.places[index] else {
            return;
        };
        if let Some(attachment) = place.attachment.take() {
            let _ = self.poller.remove(attachment.fd());
        }
        place.dial_at = place.dial.as_ref().map(|_| Instant::now() + REDIAL);
        place.waits = false;
        place.start = 0;
        place.filled = 0;
        let _ = self.switch.set_up(place.id, false);
    }

    fn receive(&mut self, index: usize) {
        let Some(Some(place)) = self.places.get_mut(index) else {
            return;
        };
        let Some(attachment) = &mut place.attachment else {
            return;
        };
        if place.waits {
            // A hang-up is told even where reading is not waited for; it keeps until the batch is through.
            return;
        }
        if place.inbound.is_empty() {
            place.inbound = vec![0; INBOUND];
        }
        let room = match attachment.framing() {
            Framing::Stream => &mut place.inbound[place.filled..place.filled + READ],
            Framing::Whole => &mut place.inbound[place.filled..],
        };
        match attachment.receive(room) {
            Ok(0) => self.disconnect(index),
            Ok(length) => {
                place.filled += length;
                self.forward(index);
            }
            Err(error) if is_passing(&error) => {}
            Err(_) => self.disconnect(index),
        }
    }

    /// Forwards what was read from a port, as far as it goes.
    fn forward(&mut self, index: usize) {
        let now = self.now();
        let Some(Some(place)) = self.places.get_mut(index) else {
            return;
        };
        let id = place.id;
        let mut inbound = std::mem::take(&mut place.inbound);
        let (start, filled) = (place.start, place.filled);
        let bytes = &inbound[start..filled];
        let taken = self.switch.forward(id, bytes, &mut self.outbox, now);
        let mut broken = Vec::new();
        self.deliver(bytes, now, &mut broken);
        let Some(Some(place)) = self.places.get_mut(index) else {
            return;
        };
        place.start += taken.bytes;
        if place.start == place.filled {
            place.start = 0;
            place.filled = 0;
        } else if taken.end == End::Partial {
            inbound.copy_within(place.start..place.filled, 0);
            place.filled -= place.start;
            place.start = 0;
        }
        place.inbound = inbound;
        place.waits = taken.end == End::Full;
        let readable = !place.waits;
        self.want(index, |interest| interest.readable = readable);
        if let End::Lost(_) = taken.end {
            self.disconnect(index);
        }
        for index in broken {
            self.disconnect(index);
        }
    }

    /// Writes every port its part of a batch, once.
    fn deliver(&mut self, bytes: &[u8], now: Time, broken: &mut Vec<usize>) {
        let mut outbox = std::mem::take(&mut self.outbox);
        for at in 0..outbox.destination_count() {
            let Some(id) = self.switch.destination(&outbox, at) else {
                continue;
            };
            let index = id.index as usize;
            let mut written = 0;
            if let Some(parts) = self.switch.offer(id, &outbox, bytes)
                && let Some(Some(place)) = self.places.get_mut(index)
                && let Some(attachment) = &mut place.attachment
            {
                match transmit(attachment.as_mut(), parts) {
                    Ok(bytes) => written = bytes,
                    Err(_) => broken.push(index),
                }
            }
            self.switch.settle(id, &outbox, bytes, written, now);
            if !self.switch.queued(id).0.is_empty() {
                self.want(index, |interest| interest.writable = true);
            }
        }
        self.switch.finish(&mut outbox);
        self.outbox = outbox;
    }

    /// Writes a port what waited for it.
    fn flush(&mut self, index: usize) {
        let Some(Some(place)) = self.places.get_mut(index) else {
            return;
        };
        let Some(attachment) = &mut place.attachment else {
            return;
        };
        let id = place.id;
        let sent = match attachment.framing() {
            Framing::Stream => {
                let (first, second) = self.switch.queued(id);
                transmit(attachment.as_mut(), [first, second].into_iter())
            }
            Framing::Whole => {
                let whole = self.switch.queued_whole(id);
                transmit(attachment.as_mut(), std::iter::once(whole))
            }
        };
        match sent {
            Ok(bytes) => {
                self.switch.drained(id, bytes);
                let writable = !self.switch.queued(id).0.is_empty();
                self.want(index, |interest| interest.writable = writable);
            }
            Err(_) => self.disconnect(index),
        }
    }

    /// Lets those go on that waited for room.
    fn resume(&mut self) {
        loop {
            let mut woken = std::mem::take(&mut self.woken);
            self.switch.woken(&mut woken);
            let none = woken.is_empty();
            for id in woken.drain(..) {
                if self.place(id).is_some_and(|place| place.waits) {
                    self.forward(id.index as usize);
                }
                if self.place(id).is_some_and(|place| place.arrived_wait) {
                    self.forward_arrived(id.index as usize);
                }
            }
            self.woken = woken;
            if none {
                return;
            }
        }
    }

    fn want(&mut self, index: usize, change: impl FnOnce(&mut Interest)) {
        let Some(Some(place)) = self.places.get_mut(index) else {
            return;
        };
        let mut interest = place.interest;
        change(&mut interest);
        if interest == place.interest {
            return;
        }
        place.interest = interest;
        if let Some(attachment) = &place.attachment
            && self
                .poller
                .modify(attachment.fd(), index as u64, interest)
                .is_err()
        {
            self.disconnect(index);
        }
    }
}

/// Writes parts as far as they go.
fn transmit<'a>(
    attachment: &mut dyn Attachment,
    mut parts: impl Iterator<Item = &'a [u8]>,
) -> io::Result<usize> {
    let mut went = 0;
    loop {
        let mut slices = [IoSlice::new(&[]); PIECES];
        let (mut count, mut length) = (0, 0);
        while count < PIECES
            && let Some(part) = parts.next()
        {
            if !part.is_empty() {
                slices[count] = IoSlice::new(part);
                length += part.len();
                count += 1;
            }
        }
        if count == 0 {
            return Ok(went);
        }
        match attachment.transmit(&slices[..count]) {
            Ok(bytes) => {
                went += bytes;
                if bytes < length {
                    return Ok(went);
                }
            }
            Err(error) if is_passing(&error) => return Ok(went),
            Err(error) => return Err(error),
        }
    }
}

/// Tells whether a failure is one of the moment.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
