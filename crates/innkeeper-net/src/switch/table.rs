//! Which station is behind which port: learnt from source addresses, forgotten with age, bounded for each port.
//!
//! A port that names more stations than it may have loses the one that it named first. So a flood of made-up addresses costs its own port
//! what it knew, and no other port and no memory anything. Look-ups are by a hash with a seed, which a guest can't aim at.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use foldhash::quality::FixedState;

use super::port::VlanId;
use crate::frame::Station;
use crate::time::Time;

/// A station in one VLAN: 12 bits of VLAN above 48 of address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key(u64);

impl Key {
    fn new(vlan: Option<VlanId>, station: Station) -> Self {
        let vlan = vlan.map_or(0, VlanId::number);
        Key(u64::from(vlan) << 48 | station.number())
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    port: usize,
    seen: Time,
    /// Which of its port's notes is about it, so that an older note of the same station does no harm.
    note: u64,
}

#[derive(Debug, Default)]
struct Notes {
    /// Stations in the order in which the port named them first; some may have moved on.
    order: VecDeque<(Key, u64)>,
}

/// The table of one switch.
#[derive(Debug)]
pub(super) struct Table {
    entries: HashMap<Key, Entry, FixedState>,
    notes: Vec<Notes>,
    age: Duration,
    most: usize,
    next_note: u64,
}

impl Table {
    /// Makes an empty table that forgets what was silent for `age` and knows at most `most` stations of each port.
    pub(super) fn new(age: Duration, most: usize, seed: u64) -> Self {
        Table {
            entries: HashMap::with_hasher(FixedState::with_seed(seed)),
            notes: Vec::new(),
            age,
            most: most.max(1),
            next_note: 0,
        }
    }

    /// Notes that a station was heard at a port. Tells whether it was heard at another before.
    #[inline]
    pub(super) fn learn(
        &mut self,
        vlan: Option<VlanId>,
        station: Station,
        port: usize,
        now: Time,
    ) -> bool {
        let key = Key::new(vlan, station);
        match self.entries.get_mut(&key) {
            Some(entry) if entry.port == port => {
                entry.seen = now;
                false
            }
            other => {
                let moved = other.is_some();
                self.note(key, port, now);
                moved
            }
        }
    }

    #[cold]
    fn note(&mut self, key: Key, port: usize, now: Time) {
        if self.notes.len() <= port {
            self.notes.resize_with(port + 1, Notes::default);
        }
        let order = &mut self.notes[port].order;
        if order.len() >= self.most
            && let Some((oldest, note)) = order.pop_front()
        {
            // It may have moved to another port, or have been noted again, since.
            if self
                .entries
                .get(&oldest)
                .is_some_and(|entry| entry.note == note)
            {
                self.entries.remove(&oldest);
            }
        }
        self.next_note += 1;
        let note = self.next_note;
        order.push_back((key, note));
        let seen = now;
        self.entries.insert(key, Entry { port, seen, note });
    }

    /// Returns the port behind which a station was heard lately.
    #[inline]
    pub(super) fn find(&self, vlan: Option<VlanId>, station: Station, now: Time) -> Option<usize> {
        let entry = self.entries.get(&Key::new(vlan, station))?;
        (now.since(entry.seen) <= self.age).then_some(entry.port)
    }

    /// Forgets all that is behind a port.
    pub(super) fn forget_port(&mut self, port: usize) {
        let Some(notes) = self.notes.get_mut(port) else {
            return;
        };
        for (key, note) in notes.order.drain(..) {
            if self
                .entries
                .get(&key)
                .is_some_and(|entry| entry.note == note)
            {
                self.entries.remove(&key);
            }
        }
    }

    /// Returns how many stations are known, those too old included.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns the stations behind a port that were heard lately.
    pub(super) fn stations(&self, port: usize, now: Time) -> Vec<(Option<VlanId>, Station)> {
        let order = self.notes.get(port).map(|notes| &notes.order);
        let known = order.into_iter().flatten().filter_map(|(key, note)| {
            let entry = self.entries.get(key)?;
            (entry.note == *note && now.since(entry.seen) <= self.age).then_some(key.0)
        });
        known
            .map(|number| {
                let [v1, v0, rest @ ..] = number.to_be_bytes();
                let vlan = VlanId::new(u16::from_be_bytes([v1, v0]));
                (vlan, Station::new(rest))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn station(number: u64) -> Station {
        let [_, _, octets @ ..] = (number & 0xfeff_ffff_ffff).to_be_bytes();
        Station::new(octets)
    }

    #[test]
    fn a_flood_of_a_million_addresses_stays_bounded_and_at_home() {
        let mut table = Table::new(Duration::from_secs(300), 1024, 7);
        table.learn(None, station(1), 0, Time::ZERO);
        for number in 0..1_000_000 {
            table.learn(None, station(0x1000 + number), 1, Time::ZERO);
        }
        assert_eq!(table.len(), 1 + 1024);
        assert!(table.notes.iter().all(|notes| notes.order.len() <= 1024));
        assert_eq!(table.find(None, station(1), Time::ZERO), Some(0));
        table.forget_port(1);
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn a_station_that_jumps_for_ever_stays_bounded() {
        let mut table = Table::new(Duration::from_secs(300), 8, 7);
        for turn in 0..10_000 {
            table.learn(None, station(5), turn % 2, Time::ZERO);
        }
        assert_eq!(table.len(), 1);
        assert!(table.notes.iter().all(|notes| notes.order.len() <= 8));
    }

    proptest! {
        /// The model: what a map of the last port heard says, unless the port's bound was passed.
        #[test]
        fn finds_where_it_was_heard_last(steps in prop::collection::vec((0u64..12, 0usize..3, 0u64..50), 0..200)) {
            let age = Duration::from_secs(100);
            let mut table = Table::new(age, 1000, 1);
            let mut model: HashMap<u64, (usize, Time)> = HashMap::new();
            let mut now = Time::ZERO;
            for (number, port, wait) in steps {
                now = now.after(Duration::from_secs(wait));
                table.learn(None, station(number), port, now);
                model.insert(number, (port, now));
                for (number, (port, seen)) in &model {
                    let wanted = (now.since(*seen) <= age).then_some(*port);
                    prop_assert_eq!(table.find(None, station(*number), now), wanted);
                }
            }
        }

        #[test]
        fn bounds_hold_whatever_is_heard(steps in prop::collection::vec((0u64..60, 0usize..3), 0..400)) {
            let mut table = Table::new(Duration::from_secs(100), 5, 1);
            for (number, port) in steps {
                table.learn(VlanId::new(number as u16 % 4), station(number), port, Time::ZERO);
                prop_assert!(table.len() <= 15);
                prop_assert_eq!(table.find(VlanId::new(number as u16 % 4), station(number), Time::ZERO), Some(port));
                let listed: usize = (0..3).map(|port| table.stations(port, Time::ZERO).len()).sum();
                prop_assert_eq!(listed, table.len());
            }
        }
    }
}
