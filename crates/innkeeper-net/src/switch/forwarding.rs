//! What becomes of a frame: admitted or dropped at its port, then given to one port, or to many.

use std::ops::Range;

use super::egress::Room;
use super::outbox::Outbox;
use super::port::{DropReason, PortConfig, PortId, VlanId, VlanMode};
use super::{Direction, End, Port, Switch, Taken};
use crate::batch::{self, Item};
use crate::frame::{Frame, Retag, Station, TAG};
use crate::time::Time;

/// A frame on its way, with what its port made of it.
#[derive(Clone, Copy)]
struct Arrival<'a> {
    frame: Frame<'a>,
    from: usize,
    /// Where it stands in the batch, its prefix included.
    start: usize,
    end: usize,
    /// Tag as it came, unless the port reads none.
    tag: Option<u16>,
    vlan: Option<VlanId>,
    now: Time,
}

impl Arrival<'_> {
    fn range(&self) -> Range<usize> {
        self.start..self.end
    }
}

/// Where the frame before went, for the many that look alike.
struct Last<'a> {
    /// Both addresses and what follows them, up to where a tag ends.
    header: &'a [u8],
    to: usize,
    /// How many bytes of payload pass.
    mtu: u16,
}

/// What became of a frame.
enum Fate {
    /// Given to this port alone, unchanged.
    Direct(usize),
    /// Given or dropped.
    Done,
    /// To be given again later.
    Later,
}

/// How much of the header decides where a frame goes.
const DECIDES: usize = 16;

impl Switch {
    /// Looks at the frames of a batch from a port and gives them to the outbox, in order, as far as the ports that they go to have room.
    /// If what the port's guest sends is shaped, its link takes them all.
    ///
    /// A batch from a port that is gone is taken whole, and nothing becomes of it.
    pub fn forward(&mut self, id: PortId, batch: &[u8], outbox: &mut Outbox, now: Time) -> Taken {
        match self.place(id) {
            Ok(from) if self.has_link(from, Direction::FromGuest) => {
                self.give_to_link(from, batch, now)
            }
            Ok(from) => self.forward_from(from, batch, outbox, now, true),
            Err(_) => Taken {
                bytes: batch.len(),
                end: End::Partial,
            },
        }
    }

    /// As [`Switch::forward`], of frames that have come through the port's link.
    pub fn forward_arrived(
        &mut self,
        id: PortId,
        batch: &[u8],
        outbox: &mut Outbox,
        now: Time,
    ) -> Taken {
        match self.place(id) {
            Ok(from) => self.forward_from(from, batch, outbox, now, false),
            Err(_) => Taken {
                bytes: batch.len(),
                end: End::Partial,
            },
        }
    }

    /// `counts`: whether they were not counted before.
    fn forward_from(
        &mut self,
        from: usize,
        batch: &[u8],
        outbox: &mut Outbox,
        now: Time,
        counts: bool,
    ) -> Taken {
        let mut at = 0;
        let mut last: Option<Last<'_>> = None;
        loop {
            let (bytes, end) = match batch::item(batch, at) {
                Item::Frame { frame, end } => (frame, end),
                Item::Partial => {
                    return Taken {
                        bytes: at,
                        end: End::Partial,
                    };
                }
                Item::Lost(length) => {
                    return Taken {
                        bytes: at,
                        end: End::Lost(length),
                    };
                }
            };
            let header = bytes.get(..DECIDES);
            let fate = match &last {
                Some(last) if header == Some(last.header) && passes_like(bytes, last.mtu) => {
                    self.give_alone(last.to, from, at..end, outbox, now)
                }
                _ => {
                    last = None;
                    let fate = self.take(from, bytes, at..end, outbox, now);
                    if let (Fate::Direct(to), Some(header)) = (&fate, header) {
                        let mtu = self.mtu(from).min(self.mtu(*to));
                        // Mirrored frames take the long way each time.
                        last = (!self.is_mirrored(from, *to)).then_some(Last {
                            header,
                            to: *to,
                            mtu,
                        });
                    }
                    fate
                }
            };
            if let Fate::Later = fate {
                return Taken {
                    bytes: at,
                    end: End::Full,
                };
            }
            if counts && let Some(port) = &mut self.ports[from] {
                port.counters.count_received(bytes);
            }
            at = end;
        }
    }

    fn mtu(&self, index: usize) -> u16 {
        self.ports[index].as_ref().map_or(0, |port| port.config.mtu)
    }

    fn is_mirrored(&self, from: usize, to: usize) -> bool {
        self.mirror.is_some() && [from, to].iter().any(|index| self.mirrors(*index))
    }

    fn mirrors(&self, index: usize) -> bool {
        self.ports[index]
            .as_ref()
            .is_some_and(|port| port.config.mirrored)
    }

    fn drop_in(&mut self, from: usize, reason: DropReason) -> Fate {
        if let Some(port) = &mut self.ports[from] {
            port.counters.drop_in(reason);
        }
        Fate::Done
    }

    /// The long way, of which `forward` goes the short one for a frame that looks like the one before.
    fn take(
        &mut self,
        from: usize,
        bytes: &[u8],
        range: Range<usize>,
        outbox: &mut Outbox,
        now: Time,
    ) -> Fate {
        if self.mirror == Some(from) {
            return self.drop_in(from, DropReason::FromMirror);
        }
        let Some(frame) = Frame::new(bytes) else {
            return self.drop_in(from, DropReason::Runt);
        };
        let Some(port) = &self.ports[from] else {
            return Fate::Done;
        };
        let arrival = match admit(&port.config, frame) {
            Ok((tag, vlan)) => Arrival {
                frame,
                from,
                start: range.start,
                end: range.end,
                tag,
                vlan,
                now,
            },
            Err(reason) => return self.drop_in(from, reason),
        };
        let destination = frame.destination();
        if destination.is_link_local() {
            return self.drop_in(from, DropReason::LinkLocal);
        }
        let known = if destination.is_group() {
            None
        } else {
            self.table.find(arrival.vlan, destination, now)
        };
        let fate = match known {
            Some(to) if to == from => self.drop_in(from, DropReason::SamePort),
            Some(to) => self.give_one(&arrival, to, outbox),
            None => self.give_many(&arrival, outbox),
        };
        if let Fate::Later = fate {
            // It comes again; till then it was not here.
            return fate;
        }
        if self.table.learn(arrival.vlan, frame.source(), from, now)
            && let Some(port) = &mut self.ports[from]
        {
            port.counters.moves += 1;
        }
        self.mirror_copy(&arrival, known, outbox);
        fate
    }

    fn give_one(&mut self, arrival: &Arrival<'_>, to: usize, outbox: &mut Outbox) -> Fate {
        let Some(sender) = &self.ports[arrival.from] else {
            return Fate::Done;
        };
        let isolated = sender.config.isolated;
        let Some(port) = &mut self.ports[to] else {
            return Fate::Done;
        };
        match passes(port, arrival, isolated) {
            Ok(Retag::Keep) => {
                self.give_alone(to, arrival.from, arrival.range(), outbox, arrival.now)
            }
            Ok(retag) => match ask(port, arrival, retag) {
                Room::Yes => {
                    outbox.give_retagged(to, arrival.frame, retag);
                    Fate::Done
                }
                Room::Later => {
                    self.full.insert(to);
                    Fate::Later
                }
                Room::No => {
                    port.counters.drop_out(DropReason::Full);
                    Fate::Done
                }
            },
            Err(reason) => {
                port.counters.drop_out(reason);
                Fate::Done
            }
        }
    }

    /// Gives a port a frame that is for it alone and may pass.
    #[inline]
    fn give_alone(
        &mut self,
        to: usize,
        from: usize,
        range: Range<usize>,
        outbox: &mut Outbox,
        now: Time,
    ) -> Fate {
        let Some(port) = &mut self.ports[to] else {
            return Fate::Done;
        };
        // It fits: places are below MOST_PORTS.
        match port.egress.ask(range.len(), from as u32, now) {
            Room::Yes => {
                port.counters.sent_frames += 1;
                port.counters.sent_bytes += (range.len() - batch::PREFIX) as u64;
                outbox.give(to, range);
                Fate::Direct(to)
            }
            Room::Later => {
                self.full.insert(to);
                Fate::Later
            }
            Room::No => {
                port.counters.drop_out(DropReason::Full);
                Fate::Done
            }
        }
    }

    /// Gives a frame to all ports that it may pass to. Where that is one alone, the sender waits for it as for any other.
    fn give_many(&mut self, arrival: &Arrival<'_>, outbox: &mut Outbox) -> Fate {
        let Some(sender) = &self.ports[arrival.from] else {
            return Fate::Done;
        };
        let isolated = sender.config.isolated;
        if self.is_storm(arrival) {
            return self.drop_in(arrival.from, DropReason::Storm);
        }
        if let Some(only) = self.only_other(arrival.from) {
            let fate = self.give_one(arrival, only, outbox);
            if !matches!(fate, Fate::Later) {
                self.count_flooded(arrival);
            }
            return match fate {
                // The next one that looks like it is to be counted as well, so it takes the long way too.
                Fate::Direct(_) => Fate::Done,
                fate => fate,
            };
        }
        self.count_flooded(arrival);
        for to in 0..self.ports.len() {
            if to == arrival.from || self.mirror == Some(to) {
                continue;
            }
            let Some(port) = &mut self.ports[to] else {
                continue;
            };
            let retag = match passes(port, arrival, isolated) {
                Ok(retag) => retag,
                // The many that are of another VLAN lose nothing.
                Err(DropReason::Vlan | DropReason::Isolated | DropReason::Down) => continue,
                Err(reason) => {
                    port.counters.drop_out(reason);
                    continue;
                }
            };
            if port.egress.ask_reserve(arrival.range().len() + TAG) == Room::Yes {
                count_sent(port, arrival);
                match retag {
                    Retag::Keep => outbox.give(to, arrival.range()),
                    retag => outbox.give_retagged(to, arrival.frame, retag),
                }
            } else {
                port.counters.drop_out(DropReason::Full);
            }
        }
        Fate::Done
    }

    /// Returns the only port that is up besides a port and the mirror, if there is but one.
    fn only_other(&self, from: usize) -> Option<usize> {
        let mut others = self.ports.iter().enumerate().filter(|(index, port)| {
            *index != from
                && self.mirror != Some(*index)
                && port.as_ref().is_some_and(|port| port.up)
        });
        let (only, _) = others.next()?;
        others.next().is_none().then_some(only)
    }

    /// Tells whether a frame to many is beyond its port's limit.
    fn is_storm(&mut self, arrival: &Arrival<'_>) -> bool {
        let Some(port) = &mut self.ports[arrival.from] else {
            return true;
        };
        let bucket = port.flood.as_mut();
        bucket.is_some_and(|bucket| !bucket.has(1, arrival.now))
    }

    fn count_flooded(&mut self, arrival: &Arrival<'_>) {
        if let Some(port) = &mut self.ports[arrival.from] {
            port.counters.flooded += 1;
            if let Some(bucket) = &mut port.flood {
                bucket.take(1, arrival.now);
            }
        }
    }

    /// Gives the mirror port a copy if either end is mirrored.
    fn mirror_copy(&mut self, arrival: &Arrival<'_>, to: Option<usize>, outbox: &mut Outbox) {
        let Some(mirror) = self.mirror else {
            return;
        };
        // A frame to many goes to every mirrored port, so that one copy stands for all.
        let wanted = self.mirrors(arrival.from)
            || match to {
                Some(to) => self.mirrors(to),
                None => (0..self.ports.len()).any(|index| self.mirrors(index)),
            };
        if !wanted {
            return;
        }
        let Some(port) = &mut self.ports[mirror] else {
            return;
        };
        if port.up && port.egress.ask_reserve(arrival.range().len()) == Room::Yes {
            count_sent(port, arrival);
            outbox.give(mirror, arrival.range());
        } else {
            port.counters.drop_out(DropReason::Full);
        }
    }
}

fn count_sent(port: &mut Port, arrival: &Arrival<'_>) {
    port.counters.sent_frames += 1;
    port.counters.sent_bytes += arrival.frame.bytes().len() as u64;
}

fn ask(port: &mut Port, arrival: &Arrival<'_>, retag: Retag) -> Room {
    let tag = if let Retag::Set(_) = retag { TAG } else { 0 };
    let room = port.egress.ask(
        arrival.range().len() + tag,
        arrival.from as u32,
        arrival.now,
    );
    if room == Room::Yes {
        count_sent(port, arrival);
    }
    room
}

/// Tells whether a frame that looks like one that passed is short enough to pass as well. A tag may take four bytes more; so short a check
/// errs towards the long way.
#[inline]
fn passes_like(bytes: &[u8], mtu: u16) -> bool {
    bytes.len() <= crate::frame::HEADER + usize::from(mtu)
}

/// Decides whether a port lets a frame of its guest in: its tag and VLAN, or why not.
fn admit(
    config: &PortConfig,
    frame: Frame<'_>,
) -> Result<(Option<u16>, Option<VlanId>), DropReason> {
    let source: Station = frame.source();
    if source.is_group() || config.source.is_some_and(|only| only != source) {
        return Err(DropReason::Spoofed);
    }
    if frame.payload_length() > usize::from(config.mtu) {
        return Err(DropReason::TooLong);
    }
    let tag = frame.tag();
    // A tag of VLAN 0 carries a priority alone (IEEE 802.1Q, table 9-2).
    let named = tag
        .map(|control| control & 0x0fff)
        .filter(|number| *number != 0);
    match &config.vlan {
        VlanMode::Transparent => Ok((None, None)),
        VlanMode::Access(vlan) => match named {
            None => Ok((tag, Some(*vlan))),
            Some(_) => Err(DropReason::Vlan),
        },
        VlanMode::Trunk { native, allowed } => {
            let vlan = match named {
                None => *native,
                Some(number) => VlanId::new(number).filter(|vlan| allowed.contains(vlan)),
            };
            vlan.map(|vlan| (tag, Some(vlan))).ok_or(DropReason::Vlan)
        }
    }
}

/// Decides whether a frame may pass to a port, and what becomes of its tag, or why not.
fn passes(port: &Port, arrival: &Arrival<'_>, from_isolated: bool) -> Result<Retag, DropReason> {
    if !port.up {
        return Err(DropReason::Down);
    }
    if from_isolated && port.config.isolated {
        return Err(DropReason::Isolated);
    }
    let retag = match (&port.config.vlan, arrival.vlan) {
        (VlanMode::Transparent, None) => Retag::Keep,
        (VlanMode::Access(vlan), Some(of_frame)) if *vlan == of_frame => untagged(arrival.tag),
        (VlanMode::Trunk { native, .. }, Some(of_frame)) if *native == Some(of_frame) => {
            untagged(arrival.tag)
        }
        (VlanMode::Trunk { allowed, .. }, Some(of_frame)) if allowed.contains(&of_frame) => {
            tagged(arrival.tag, of_frame)
        }
        _ => return Err(DropReason::Vlan),
    };
    if arrival.frame.payload_length() > usize::from(port.config.mtu) {
        return Err(DropReason::TooLong);
    }
    Ok(retag)
}

fn untagged(tag: Option<u16>) -> Retag {
    tag.map_or(Retag::Keep, |_| Retag::Strip)
}

fn tagged(tag: Option<u16>, vlan: VlanId) -> Retag {
    let priority = tag.unwrap_or(0) & 0xf000;
    let control = priority | vlan.number();
    if tag == Some(control) {
        Retag::Keep
    } else {
        Retag::Set(control)
    }
}
