//! The switch: frames in batches from one port, looked up and given to others. No socket, no clock, no allocation for a frame.
//!
//! ```text
//!  port ──bytes──► forward ─► admit (length, VLAN, source) ─► learn ─► look up ─┬─► one port: waits while that is full
//!                                                                              └─► many: never waits
//!                     outbox: pieces per port ──► whoever does the IO writes them, and gives back what didn't go (settle)
//! ```
//! Where a port is shaped, a link stands between `port` and `admit`, or between the outbox and the guest ([`Switch::shape`]).
//!
//! A caller does for every batch: [`Switch::forward`], then for each of [`Switch::destination`] a write of what
//! [`Switch::offer`] gives, then [`Switch::settle`]; and lets those ports go on that [`Switch::woken`] names. Between batches it
//! calls [`Switch::advance`] at the time that [`Switch::next_deadline`] says.

mod egress;
mod forwarding;
mod outbox;
mod port;
mod shaping;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

pub use egress::PATIENCE;
pub use outbox::Outbox;
pub use port::{
    Counters, DropReason, FloodLimit, LARGEST_MTU, PortConfig, PortId, VlanId, VlanMode,
};

use crate::batch;
use crate::frame::Station;
use crate::link::Link;
use crate::rate::Bucket;
use crate::time::Time;
use egress::Egress;
use table::Table;

/// Most ports that a switch may have.
pub const MOST_PORTS: usize = 4096;

/// Settings of a switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchConfig {
    /// How long a silent station is remembered. IEEE 802.1Q, table 8-3, recommends 300 s.
    pub age: Duration,
    /// Most stations that are remembered behind one port.
    pub stations_per_port: usize,
    /// Seed of the table's hash; a guest must not know it.
    pub seed: u64,
}

impl Default for SwitchConfig {
    fn default() -> Self {
        SwitchConfig {
            age: Duration::from_secs(300),
            stations_per_port: 1024,
            seed: 0,
        }
    }
}

/// Says why a port could not be added or set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// There are too many.
    #[error("a switch has at most {MOST_PORTS} ports")]
    TooMany,
    /// The MTU is none that a port may have.
    #[error("an MTU of {0} bytes is not possible: give 68 to {LARGEST_MTU}")]
    Mtu(u16),
    /// The port is not there (any more).
    #[error("there is no such port")]
    Gone,
}

/// How far a batch was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Bytes that need not be given again.
    pub bytes: usize,
    /// Why no more were taken.
    pub end: End,
}

/// Why a batch was not taken any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// What is left is no whole frame.
    Partial,
    /// The next frame's port is full; give the rest again once the sender is named by [`Switch::woken`].
    Full,
    /// A frame of so many bytes is announced, which can't be: the port has lost its place and must be connected anew.
    Lost(u32),
}

#[derive(Debug)]
struct Port {
    generation: u32,
    config: PortConfig,
    up: bool,
    egress: Egress,
    flood: Option<Bucket>,
    counters: Counters,
    /// Simulated links, by direction.
    links: [Option<Box<Link>>; 2],
}

/// A direction of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Frames that the guest sends.
    FromGuest,
    /// Frames that it gets.
    ToGuest,
}

/// A switch.
#[derive(Debug)]
pub struct Switch {
    ports: Vec<Option<Port>>,
    table: Table,
    mirror: Option<usize>,
    generation: u32,
    woken: Vec<u32>,
    /// Places of the ports whose queue holds others up.
    full: BTreeSet<usize>,
}

impl Switch {
    /// Makes a switch without ports.
    pub fn new(config: &SwitchConfig) -> Self {
        Switch {
            ports: Vec::new(),
            table: Table::new(config.age, config.stations_per_port, config.seed),
            mirror: None,
            generation: 0,
            woken: Vec::new(),
            full: BTreeSet::new(),
        }
    }

    /// Adds a port, which is down until [`Switch::set_up`] says otherwise.
    ///
    /// # Errors
    /// When there are too many, or the MTU is not possible.
    pub fn add_port(&mut self, config: PortConfig, now: Time) -> Result<PortId, PortError> {
        check(&config)?;
        let index = match self.ports.iter().position(Option::is_none) {
            Some(free) => free,
            None if self.ports.len() < MOST_PORTS => {
                self.ports.push(None);
                self.ports.len() - 1
            }
            None => return Err(PortError::TooMany),
        };
        self.generation += 1;
        self.ports[index] = Some(Port {
            generation: self.generation,
            flood: flood_bucket(&config, now),
            config,
            up: false,
            egress: Egress::new(),
            counters: Counters::default(),
            links: [None, None],
        });
        Ok(PortId {
            // It fits: there are at most MOST_PORTS.
            index: index as u32,
            generation: self.generation,
        })
    }

    /// Removes a port, and what is known of stations behind it. Whoever waits for it may go on.
    ///
    /// # Errors
    /// When it is gone.
    pub fn remove_port(&mut self, id: PortId) -> Result<(), PortError> {
        let index = self.place(id)?;
        if let Some(mut port) = self.ports[index].take() {
            port.egress.clear(&mut self.woken);
        }
        self.full.remove(&index);
        self.table.forget_port(index);
        if self.mirror == Some(index) {
            self.mirror = None;
        }
        Ok(())
    }

    /// Changes a port's settings. What it has queued is kept; stations behind it are learnt anew when its VLANs change.
    ///
    /// # Errors
    /// When it is gone, or the MTU is not possible.
    pub fn configure_port(
        &mut self,
        id: PortId,
        config: PortConfig,
        now: Time,
    ) -> Result<(), PortError> {
        check(&config)?;
        let index = self.place(id)?;
        if let Some(port) = &mut self.ports[index] {
            if port.config.vlan != config.vlan || port.config.source != config.source {
                self.table.forget_port(index);
            }
            port.flood = flood_bucket(&config, now);
            port.config = config;
        }
        Ok(())
    }

    /// Says whether somebody is at a port's other end. A port that goes down loses what it had queued, and stays known: it will be back.
    ///
    /// # Errors
    /// When it is gone.
    pub fn set_up(&mut self, id: PortId, up: bool) -> Result<(), PortError> {
        let index = self.place(id)?;
        if let Some(port) = &mut self.ports[index] {
            port.up = up;
            port.egress.clear(&mut self.woken);
        }
        self.full.remove(&index);
        Ok(())
    }

    /// Chooses the port that gets a copy of what mirrored ports send and get, or none. It sends nothing itself.
    ///
    /// # Errors
    /// When it is gone.
    pub fn set_mirror(&mut self, id: Option<PortId>) -> Result<(), PortError> {
        self.mirror = id.map(|id| self.place(id)).transpose()?;
        Ok(())
    }

    /// Returns a port's settings.
    ///
    /// # Errors
    /// When it is gone.
    pub fn config(&self, id: PortId) -> Result<&PortConfig, PortError> {
        self.port(id).map(|port| &port.config)
    }

    /// Returns what a port has counted.
    ///
    /// # Errors
    /// When it is gone.
    pub fn counters(&self, id: PortId) -> Result<&Counters, PortError> {
        self.port(id).map(|port| &port.counters)
    }

    /// Tells whether frames to a port are dropped because its guest does not read.
    ///
    /// # Errors
    /// When it is gone.
    pub fn is_deaf(&self, id: PortId) -> Result<bool, PortError> {
        self.port(id).map(|port| port.egress.is_deaf())
    }

    /// Returns the stations that were lately heard behind a port, by VLAN.
    ///
    /// # Errors
    /// When it is gone.
    pub fn stations(
        &self,
        id: PortId,
        now: Time,
    ) -> Result<Vec<(Option<VlanId>, Station)>, PortError> {
        Ok(self.table.stations(self.place(id)?, now))
    }

    /// Returns how many stations are remembered in all.
    pub fn station_count(&self) -> usize {
        self.table.len()
    }

    /// Returns the destination of a number below [`Outbox::destination_count`], if it is still there.
    pub fn destination(&self, outbox: &Outbox, number: usize) -> Option<PortId> {
        let index = *outbox.touched().get(number)?;
        let port = self.ports.get(index)?.as_ref()?;
        Some(PortId {
            index: index as u32,
            generation: port.generation,
        })
    }

    /// Returns what a port gets of the batch, if it may be written now: nothing while older bytes wait, or a link takes it.
    pub fn offer<'a>(
        &self,
        id: PortId,
        outbox: &'a Outbox,
        batch: &'a [u8],
    ) -> Option<impl Iterator<Item = &'a [u8]>> {
        let port = self.port(id).ok()?;
        let direct = port.up && port.egress.is_empty() && !port.has_link(Direction::ToGuest);
        direct.then(|| outbox.parts(id.index as usize, batch))
    }

    /// Takes note of what of a port's part of the batch was written directly, in bytes, and queues the rest, or gives it to the port's link.
    pub fn settle(&mut self, id: PortId, outbox: &Outbox, batch: &[u8], written: usize, now: Time) {
        let Ok(index) = self.place(id) else {
            return;
        };
        let Some(port) = &mut self.ports[index] else {
            return;
        };
        let parts = outbox.parts(index, batch);
        if let Some(link) = port.link_mut(Direction::ToGuest) {
            for frame in parts.flat_map(batch::frames) {
                link.push(frame, now);
            }
            return;
        }
        let mut skip = written;
        let rest = parts.filter_map(|part| {
            let skipped = skip.min(part.len());
            skip -= skipped;
            (skipped < part.len()).then(|| &part[skipped..])
        });
        port.egress.settle(rest);
        port.egress.drained(0, &mut self.woken);
    }

    /// Ends a batch: every port's part of it is settled.
    pub fn finish(&mut self, outbox: &mut Outbox) {
        outbox.clear();
    }

    /// Returns what waits to be written to a port, in two parts, the first of them to be written first.
    pub fn queued(&self, id: PortId) -> (&[u8], &[u8]) {
        match self.port(id) {
            Ok(port) => port.egress.waiting_bytes(),
            Err(_) => (&[], &[]),
        }
    }

    /// Returns what waits to be written to a port, in one part.
    pub fn queued_whole(&mut self, id: PortId) -> &[u8] {
        match self.place(id).map(|index| self.ports[index].as_mut()) {
            Ok(Some(port)) => port.egress.contiguous(),
            _ => &[],
        }
    }

    /// Takes note that `bytes` of what waited were written.
    pub fn drained(&mut self, id: PortId, bytes: usize) {
        if let Ok(index) = self.place(id)
            && let Some(port) = &mut self.ports[index]
        {
            port.egress.drained(bytes, &mut self.woken);
            if port.egress.patience_ends().is_none() {
                self.full.remove(&index);
            }
        }
    }

    /// Moves the ports that may give the rest of their batches to `ports`.
    pub fn woken(&mut self, ports: &mut Vec<PortId>) {
        for index in self.woken.drain(..) {
            let port = self.ports.get(index as usize).and_then(Option::as_ref);
            ports.extend(port.map(|port| PortId {
                index,
                generation: port.generation,
            }));
        }
    }

    /// Returns when [`Switch::advance`] has something to do.
    pub fn next_deadline(&self) -> Option<Time> {
        let ports = self
            .full
            .iter()
            .filter_map(|index| self.ports[*index].as_ref());
        ports.filter_map(|port| port.egress.patience_ends()).min()
    }

    /// Does what is due: gives up waiting for guests that do not read.
    pub fn advance(&mut self, now: Time) {
        if self.full.is_empty() {
            return;
        }
        let (ports, woken) = (&mut self.ports, &mut self.woken);
        self.full.retain(|index| {
            let Some(port) = &mut ports[*index] else {
                return false;
            };
            port.egress.advance(now, woken);
            port.egress.patience_ends().is_some()
        });
    }

    fn place(&self, id: PortId) -> Result<usize, PortError> {
        let index = id.index as usize;
        match self.ports.get(index) {
            Some(Some(port)) if port.generation == id.generation => Ok(index),
            _ => Err(PortError::Gone),
        }
    }

    fn port(&self, id: PortId) -> Result<&Port, PortError> {
        let index = self.place(id)?;
        self.ports[index].as_ref().ok_or(PortError::Gone)
    }
}

fn check(config: &PortConfig) -> Result<(), PortError> {
    // 68: the least that IPv4 lets a link have (RFC 791, section 3.2).
    if (68..=LARGEST_MTU).contains(&config.mtu) {
        Ok(())
    } else {
        Err(PortError::Mtu(config.mtu))
    }
}

fn flood_bucket(config: &PortConfig, now: Time) -> Option<Bucket> {
    let limit = config.flood_limit?;
    Some(Bucket::new(limit.per_second, limit.burst, now))
}
