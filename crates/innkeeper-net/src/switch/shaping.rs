//! Links between a switch and its guests: set, fed and emptied. What they do is in [`crate::link`].

use super::egress::Room;
use super::port::{DropReason, PortId};
use super::{Direction, End, Port, PortError, Switch, Taken};
use crate::batch::{self, Item};
use crate::link::{Link, LinkCounters, Shape};
use crate::time::Time;

/// Most bytes that are taken out of a link at once.
const PORTION: usize = 64 * 1024;

impl Port {
    pub(super) fn has_link(&self, direction: Direction) -> bool {
        self.links[direction as usize].is_some()
    }

    pub(super) fn link_mut(&mut self, direction: Direction) -> Option<&mut Link> {
        self.links[direction as usize].as_deref_mut()
    }

    /// Lets go of a link that does nothing any more and holds nothing.
    fn prune(&mut self, direction: Direction, woken: &mut Vec<u32>) {
        let link = &mut self.links[direction as usize];
        if link
            .as_ref()
            .is_some_and(|link| link.held() == 0 && *link.shape() == Shape::default())
        {
            *link = None;
            if direction == Direction::ToGuest {
                self.egress.set_linked(false, woken);
            }
        }
    }
}

impl Switch {
    /// Makes a direction of a port as bad as the shape says; the default shape makes it good again. Frames that are on their way are kept.
    ///
    /// # Errors
    /// When the port is gone.
    pub fn shape(
        &mut self,
        id: PortId,
        direction: Direction,
        shape: Shape,
        seed: u64,
        now: Time,
    ) -> Result<(), PortError> {
        let index = self.place(id)?;
        let Some(port) = &mut self.ports[index] else {
            return Err(PortError::Gone);
        };
        match &mut port.links[direction as usize] {
            Some(link) => link.set_shape(shape, now),
            link @ None => *link = Some(Box::new(Link::new(shape, seed, now))),
        }
        if direction == Direction::ToGuest {
            port.egress.set_linked(true, &mut self.woken);
            self.full.remove(&index);
        }
        port.prune(direction, &mut self.woken);
        Ok(())
    }

    /// Returns what a direction of a port is shaped to, and what became of its frames; none if it is not shaped.
    ///
    /// # Errors
    /// When the port is gone.
    pub fn link(
        &self,
        id: PortId,
        direction: Direction,
    ) -> Result<Option<(&Shape, &LinkCounters)>, PortError> {
        let link = &self.port(id)?.links[direction as usize];
        Ok(link.as_ref().map(|link| (link.shape(), link.counters())))
    }

    /// Returns when frames of a direction may have come through its link.
    pub fn link_due(&self, id: PortId, direction: Direction) -> Option<Time> {
        self.port(id).ok()?.links[direction as usize]
            .as_ref()?
            .next_due()
    }

    /// Appends the frames of a guest that have come through its link by now to `batch`, for [`Switch::forward_arrived`].
    pub fn collect(&mut self, id: PortId, batch: &mut Vec<u8>, now: Time) {
        if let Ok(index) = self.place(id)
            && let Some(port) = &mut self.ports[index]
        {
            if let Some(link) = port.link_mut(Direction::FromGuest) {
                link.poll_some(now, PORTION, |frame| batch::push(batch, frame));
            }
            port.prune(Direction::FromGuest, &mut self.woken);
        }
    }

    /// Queues the frames to a guest that have come through its link by now. Those that the guest leaves no room for are dropped.
    pub fn release(&mut self, id: PortId, now: Time) {
        if let Ok(index) = self.place(id)
            && let Some(port) = &mut self.ports[index]
        {
            let Port {
                links,
                egress,
                counters,
                up,
                ..
            } = port;
            if let Some(link) = &mut links[Direction::ToGuest as usize] {
                link.poll_some(now, usize::MAX, |frame| {
                    if !*up {
                        counters.drop_out(DropReason::Down);
                    } else if egress.arrive(frame) == Room::No {
                        counters.drop_out(DropReason::Full);
                    }
                });
            }
            port.prune(Direction::ToGuest, &mut self.woken);
        }
    }

    pub(super) fn has_link(&self, index: usize, direction: Direction) -> bool {
        self.ports[index]
            .as_ref()
            .is_some_and(|port| port.has_link(direction))
    }

    /// Gives the whole frames of a batch to the link of the port's guest.
    pub(super) fn give_to_link(&mut self, from: usize, batch: &[u8], now: Time) -> Taken {
        let mut at = 0;
        loop {
            let end = match batch::item(batch, at) {
                Item::Frame { frame, end } => {
                    if let Some(port) = &mut self.ports[from] {
                        port.counters.count_received(frame);
                        if let Some(link) = port.link_mut(Direction::FromGuest) {
                            link.push(frame, now);
                        }
                    }
                    at = end;
                    continue;
                }
                Item::Partial => End::Partial,
                Item::Lost(length) => End::Lost(length),
            };
            return Taken { bytes: at, end };
        }
    }
}
