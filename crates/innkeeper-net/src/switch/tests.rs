//! The switch by its properties: what is kept apart stays apart, nothing is lost while everybody reads, nobody holds all others up.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::batch;

/// A switch with its ports' guests: what was written to each, whole.
struct Bench {
    switch: Switch,
    outbox: Outbox,
    ports: Vec<PortId>,
    got: BTreeMap<PortId, Vec<u8>>,
    /// Ports whose guests do not read.
    silent: BTreeSet<PortId>,
    now: Time,
}

impl Bench {
    fn new(configs: impl IntoIterator<Item = PortConfig>) -> Self {
        let mut bench = Bench {
            switch: Switch::new(&SwitchConfig::default()),
            outbox: Outbox::new(),
            ports: Vec::new(),
            got: BTreeMap::new(),
            silent: BTreeSet::new(),
            now: Time::ZERO,
        };
        for config in configs {
            bench.add(config);
        }
        bench
    }

    fn plain(count: usize) -> Self {
        Bench::new((0..count).map(|_| PortConfig::default()))
    }

    fn add(&mut self, config: PortConfig) -> PortId {
        let id = self.switch.add_port(config, self.now).expect("a port");
        self.switch.set_up(id, true).expect("it is there");
        self.ports.push(id);
        id
    }

    /// Gives bytes to a port, as the loop around a switch does.
    fn send_bytes(&mut self, from: usize, bytes: &[u8]) -> Taken {
        let taken = self
            .switch
            .forward(self.ports[from], bytes, &mut self.outbox, self.now);
        for number in 0..self.outbox.destination_count() {
            let to = self
                .switch
                .destination(&self.outbox, number)
                .expect("a port");
            let mut written = 0;
            if !self.silent.contains(&to)
                && let Some(parts) = self.switch.offer(to, &self.outbox, bytes)
            {
                let got = self.got.entry(to).or_default();
                for part in parts {
                    got.extend_from_slice(part);
                    written += part.len();
                }
            }
            self.switch
                .settle(to, &self.outbox, bytes, written, self.now);
        }
        self.switch.finish(&mut self.outbox);
        taken
    }

    fn send(&mut self, from: usize, frame: &[u8]) -> Taken {
        let mut bytes = Vec::new();
        batch::push(&mut bytes, frame);
        self.send_bytes(from, &bytes)
    }

    /// Lets a guest read at most so many bytes of what waits.
    fn read(&mut self, port: usize, most: usize) -> usize {
        let id = self.ports[port];
        let (first, second) = self.switch.queued(id);
        let bytes: Vec<u8> = first.iter().chain(second).copied().take(most).collect();
        self.got.entry(id).or_default().extend(&bytes);
        self.switch.drained(id, bytes.len());
        bytes.len()
    }

    fn woken(&mut self) -> Vec<PortId> {
        let mut woken = Vec::new();
        self.switch.woken(&mut woken);
        woken
    }

    /// Takes the frames that a guest has read.
    fn got(&mut self, port: usize) -> Vec<Vec<u8>> {
        let bytes = self.got.remove(&self.ports[port]).unwrap_or_default();
        batch::frames(&bytes).map(<[u8]>::to_vec).collect()
    }

    fn counters(&self, port: usize) -> Counters {
        *self.switch.counters(self.ports[port]).expect("it is there")
    }
}

const BROADCAST: u8 = 0xff;

fn mac(number: u8) -> [u8; 6] {
    if number == BROADCAST {
        [0xff; 6]
    } else {
        [0x52, 0x54, 0, 0, 0, number]
    }
}

fn frame(to: u8, from: u8, payload: &[u8]) -> Vec<u8> {
    [&mac(to)[..], &mac(from), &[0x08, 0x00], payload].concat()
}

fn tagged(to: u8, from: u8, vlan: u16, payload: &[u8]) -> Vec<u8> {
    let [high, low] = vlan.to_be_bytes();
    [
        &mac(to)[..],
        &mac(from),
        &[0x81, 0x00, high, low, 0x08, 0x00],
        payload,
    ]
    .concat()
}

fn vlan(number: u16) -> VlanId {
    VlanId::new(number).expect("a VLAN")
}

#[test]
fn learns_and_then_sends_to_one() {
    let mut bench = Bench::plain(3);
    bench.send(0, &frame(2, 1, b"who"));
    assert_eq!(bench.got(1), [frame(2, 1, b"who")]);
    assert_eq!(bench.got(2), [frame(2, 1, b"who")]);
    bench.send(1, &frame(1, 2, b"me"));
    assert_eq!(bench.got(0), [frame(1, 2, b"me")]);
    assert!(bench.got(2).is_empty());
    bench.now = bench.now.after(Duration::from_secs(301));
    bench.send(1, &frame(1, 2, b"old"));
    assert_eq!((bench.got(0).len(), bench.got(2).len()), (1, 1));
}

#[test]
fn vlans_are_tagged_and_untagged_and_apart() {
    let access = |number| PortConfig {
        vlan: VlanMode::Access(vlan(number)),
        ..PortConfig::default()
    };
    let trunk = PortConfig {
        vlan: VlanMode::Trunk {
            native: Some(vlan(7)),
            allowed: [vlan(5)].into(),
        },
        ..PortConfig::default()
    };
    let mut bench = Bench::new([
        access(5),
        access(6),
        trunk,
        access(7),
        access(5),
        PortConfig::default(),
    ]);
    bench.send(0, &frame(BROADCAST, 1, b"five"));
    assert_eq!(bench.got(2), [tagged(BROADCAST, 1, 5, b"five")]);
    assert_eq!(bench.got(4), [frame(BROADCAST, 1, b"five")]);
    bench.send(2, &tagged(1, 9, 5, b"back"));
    assert_eq!(bench.got(0), [frame(1, 9, b"back")]);
    bench.send(2, &frame(BROADCAST, 9, b"native"));
    assert_eq!(bench.got(3), [frame(BROADCAST, 9, b"native")]);
    bench.send(2, &tagged(BROADCAST, 9, 6, b"not allowed"));
    bench.send(0, &tagged(BROADCAST, 1, 5, b"tag on access"));
    assert_eq!(bench.counters(2).dropped_in(DropReason::Vlan), 1);
    assert_eq!(bench.counters(0).dropped_in(DropReason::Vlan), 1);
    for port in [1, 5] {
        assert!(bench.got(port).is_empty(), "port {port}");
    }
    // The many that follow each other take the short way; they are retagged all the same.
    let mut many = Vec::new();
    for _ in 0..3 {
        batch::push(&mut many, &frame(9, 1, b"again"));
    }
    bench.send_bytes(0, &many);
    assert_eq!(bench.got(2), vec![tagged(9, 1, 5, b"again"); 3]);
}

#[test]
fn isolated_ports_see_only_the_others() {
    let isolated = PortConfig {
        isolated: true,
        ..PortConfig::default()
    };
    let mut bench = Bench::new([isolated.clone(), isolated, PortConfig::default()]);
    bench.send(1, &frame(BROADCAST, 2, b"x"));
    bench.send(0, &frame(2, 1, b"x"));
    assert!(bench.got(0).is_empty() && bench.got(1).is_empty());
    assert_eq!(bench.got(2).len(), 1);
    assert_eq!(bench.counters(1).dropped_out(DropReason::Isolated), 1);
    bench.send(2, &frame(BROADCAST, 3, b"y"));
    assert_eq!((bench.got(0).len(), bench.got(1).len()), (1, 1));
}

#[test]
fn what_may_not_pass_is_dropped_and_counted() {
    let bound = PortConfig {
        source: Some(Station::new(mac(1))),
        mtu: 100,
        ..PortConfig::default()
    };
    let small = PortConfig {
        mtu: 68,
        ..PortConfig::default()
    };
    let mut bench = Bench::new([bound, small]);
    bench.send(0, &frame(2, 9, b"not mine"));
    bench.send(0, &[0; 13]);
    bench.send(0, &frame(2, 1, &[0; 101]));
    bench.send(0, &frame(2, 1, &[0; 69]));
    bench.send(
        0,
        &[&[1, 0x80, 0xc2, 0, 0, 0][..], &mac(1), &[0; 60]].concat(),
    );
    bench.send(1, &[&mac(1)[..], &[0xff; 6], &[0; 60]].concat());
    let counters = bench.counters(0);
    assert_eq!(counters.dropped_in(DropReason::Spoofed), 1);
    assert_eq!(counters.dropped_in(DropReason::Runt), 1);
    assert_eq!(counters.dropped_in(DropReason::TooLong), 1);
    assert_eq!(counters.dropped_in(DropReason::LinkLocal), 1);
    assert_eq!(bench.counters(1).dropped_out(DropReason::TooLong), 1);
    assert_eq!(bench.counters(1).dropped_in(DropReason::Spoofed), 1);
    assert!(bench.got(0).is_empty() && bench.got(1).is_empty());
    bench.send(0, &frame(2, 1, &[0; 68]));
    assert_eq!(bench.got(1).len(), 1);
}

#[test]
fn a_storm_is_held_to_its_limit() {
    let limited = PortConfig {
        flood_limit: Some(FloodLimit {
            per_second: 10,
            burst: 5,
        }),
        ..PortConfig::default()
    };
    for others in [1, 3] {
        let configs =
            std::iter::once(limited.clone()).chain((0..others).map(|_| PortConfig::default()));
        let mut bench = Bench::new(configs);
        for _ in 0..1000 {
            bench.now = bench.now.after(Duration::from_millis(1));
            let mut two = Vec::new();
            batch::push(&mut two, &frame(BROADCAST, 1, b"storm"));
            batch::push(&mut two, &frame(BROADCAST, 1, b"storm"));
            bench.send_bytes(0, &two);
        }
        let passed = bench.got(1).len();
        assert!((14..=15).contains(&passed), "{passed} with {others} others");
        assert_eq!(
            bench.counters(0).dropped_in(DropReason::Storm) as usize,
            2000 - passed
        );
        // What goes to one is no storm.
        bench.send(1, &frame(1, 2, b"here"));
        bench.got(1);
        for _ in 0..100 {
            bench.send(0, &frame(2, 1, b"to one"));
        }
        assert_eq!(bench.got(1).len(), 100);
    }
}

#[test]
fn the_mirror_sees_each_frame_once_and_says_nothing() {
    let mirrored = PortConfig {
        mirrored: true,
        ..PortConfig::default()
    };
    let mut bench = Bench::new([
        mirrored,
        PortConfig::default(),
        PortConfig::default(),
        PortConfig::default(),
    ]);
    bench
        .switch
        .set_mirror(Some(bench.ports[3]))
        .expect("it is there");
    bench.send(0, &frame(BROADCAST, 1, b"all"));
    bench.send(1, &frame(1, 2, b"in"));
    bench.send(2, &frame(2, 3, b"apart"));
    bench.send(3, &frame(BROADCAST, 4, b"mirror"));
    let seen = bench.got(3);
    assert_eq!(seen, [frame(BROADCAST, 1, b"all"), frame(1, 2, b"in")]);
    assert_eq!(bench.counters(3).dropped_in(DropReason::FromMirror), 1);
    assert_eq!(bench.got(1).len(), 2);
    // Once learnt, frames in a row still come to the mirror.
    let mut many = Vec::new();
    for _ in 0..4 {
        batch::push(&mut many, &frame(2, 1, b"row"));
    }
    bench.send_bytes(0, &many);
    assert_eq!(bench.got(3).len(), 4);
}

#[test]
fn ports_come_and_go_while_frames_flow() {
    let mut bench = Bench::plain(3);
    bench.send(1, &frame(BROADCAST, 2, b"here"));
    let gone = bench.ports[1];
    bench.switch.remove_port(gone).expect("it is there");
    assert_eq!(bench.switch.counters(gone), Err(PortError::Gone));
    assert_eq!(bench.switch.station_count(), 0);
    bench.send(0, &frame(2, 1, b"where"));
    assert_eq!(bench.got(2).len(), 2);
    let new = bench.add(PortConfig::default());
    assert_eq!((new.index, new != gone), (gone.index, true));
    assert_eq!(bench.send_bytes(1, &[1, 2, 3]).bytes, 3);
    bench.send(0, &frame(2, 1, b"again"));
    assert_eq!(bench.got(3), [frame(2, 1, b"again")]);
    bench.switch.set_up(new, false).expect("it is there");
    bench.send(3, &frame(1, 2, b"last words"));
    bench.send(0, &frame(2, 1, b"to nobody"));
    assert_eq!(bench.counters(3).dropped_out(DropReason::Down), 1);
}

/// The sender of a full port waits and loses nothing; others go on at once.
#[test]
fn a_full_port_holds_its_sender_and_nobody_else() {
    let mut bench = Bench::plain(4);
    for port in 0..4_u8 {
        bench.send(usize::from(port), &frame(BROADCAST, port, b"here"));
    }
    (0..4).for_each(|port| drop(bench.got(port)));
    bench.silent.insert(bench.ports[1]);
    let full = frame(1, 0, &[7; 1000]);
    let mut sent = 0;
    while bench.send(0, &full).end != End::Full {
        sent += 1;
        assert!(
            sent < 1000,
            "a guest that does not read was given {sent} frames"
        );
    }
    bench.send(2, &frame(3, 2, b"others"));
    bench.send(3, &frame(BROADCAST, 3, b"others"));
    assert_eq!((bench.got(3).len(), bench.got(2).len()), (1, 1));
    assert!(bench.woken().is_empty());
    while bench.woken().is_empty() {
        assert_ne!(bench.read(1, 5000), 0, "nobody was woken");
    }
    assert_eq!(bench.send(0, &full).end, End::Partial);
    while bench.read(1, 5000) > 0 {}
    let got = bench.got(1);
    // All of it, and what went to all.
    assert_eq!(got.len(), sent + 2);
    assert_eq!(bench.counters(1).dropped_out(DropReason::Full), 0);
}

/// A guest that never reads costs its senders the patience once, and then nothing.
#[test]
fn a_guest_that_never_reads_is_given_up() {
    let mut bench = Bench::plain(3);
    bench.send(1, &frame(BROADCAST, 1, b"here"));
    bench.silent.insert(bench.ports[1]);
    let full = frame(1, 0, &[7; 1000]);
    while bench.send(0, &full).end != End::Full {}
    let deadline = bench.switch.next_deadline().expect("one waits");
    assert_eq!(deadline.since(bench.now), PATIENCE);
    bench.switch.advance(deadline);
    bench.now = deadline;
    assert_eq!(bench.woken(), [bench.ports[0]]);
    for _ in 0..10_000 {
        assert_eq!(bench.send(0, &full).end, End::Partial);
        assert_eq!(
            bench.send(2, &frame(BROADCAST, 2, &[0; 1000])).end,
            End::Partial
        );
    }
    assert_eq!(bench.counters(1).dropped_out(DropReason::Full), 20_000);
    assert!(bench.switch.is_deaf(bench.ports[1]).expect("it is there"));
    assert_eq!(bench.switch.next_deadline(), None);
    let (first, second) = bench.switch.queued(bench.ports[1]);
    assert!(first.len() + second.len() <= 320 * 1024);
    // Once it has read everything it is a guest like others.
    while bench.read(1, 50_000) > 0 {}
    bench.silent.clear();
    bench.got(1);
    bench.send(0, &full);
    assert_eq!(bench.got(1), [full]);
}

/// Who sends what, in which order, is what each reads: compared with a switch that is a few lines.
#[derive(Debug, Clone)]
enum Step {
    Send { from: usize, to: u8, length: usize },
    Read { port: usize, most: usize },
    Silent { port: usize, silent: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0usize..4, 0u8..4, 0usize..3000).prop_map(|(from, to, length)| Step::Send { from, to, length }),
        2 => (0usize..4, 1usize..100_000).prop_map(|(port, most)| Step::Read { port, most }),
        1 => (0usize..4, any::<bool>()).prop_map(|(port, silent)| Step::Silent { port, silent }),
    ];
    prop::collection::vec(step, 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Nothing is lost, doubled or reordered between two, however the guests read, and whoever waits is woken.
    #[test]
    fn unicast_comes_whole_and_in_order(steps in steps()) {
        let mut bench = Bench::plain(4);
        for port in 0..4_u8 {
            bench.send(usize::from(port), &frame(BROADCAST, port, b""));
        }
        (0..4).for_each(|port| drop(bench.got(port)));
        let mut pending: Vec<VecDeque<Vec<u8>>> = vec![VecDeque::new(); 4];
        let mut waits = [false; 4];
        let mut sent: BTreeMap<(u8, u8), Vec<u32>> = BTreeMap::new();
        let mut received: BTreeMap<(u8, u8), Vec<u32>> = BTreeMap::new();
        let mut number = 0u32;
        let all_read = (0..4).map(|port| Step::Silent { port, silent: false });
        let drains = (0..4).cycle().take(400).map(|port| Step::Read { port, most: usize::MAX });
        for step in steps.into_iter().chain(all_read).chain(drains) {
            match step {
                Step::Send { from, to, .. } if usize::from(to) == from => {}
                Step::Send { from, to, length } => {
                    number += 1;
                    let payload = [&number.to_be_bytes()[..], &vec![0; length]].concat();
                    pending[from].push_back(frame(to, from as u8, &payload));
                    sent.entry((from as u8, to)).or_default().push(number);
                }
                Step::Read { port, most } => drop(bench.read(port, most)),
                Step::Silent { port, silent: true } => drop(bench.silent.insert(bench.ports[port])),
                Step::Silent { port, silent: false } => drop(bench.silent.remove(&bench.ports[port])),
            }
            for id in bench.woken() {
                waits[id.index as usize] = false;
            }
            for from in 0..4 {
                while !waits[from] && let Some(next) = pending[from].pop_front() {
                    if bench.send(from, &next).end == End::Full {
                        pending[from].push_front(next);
                        waits[from] = true;
                    }
                }
            }
        }
        prop_assert!(pending.iter().all(VecDeque::is_empty), "somebody still waits");
        for port in 0..4_u8 {
            for got in bench.got(usize::from(port)) {
                let number = u32::from_be_bytes(got[14..18].try_into().unwrap());
                received.entry((got[11], port)).or_default().push(number);
            }
        }
        prop_assert_eq!(sent, received);
    }

    /// A batch taken in any pieces gives what it gives whole.
    #[test]
    fn pieces_of_a_batch_are_as_good_as_the_whole(
        frames in prop::collection::vec((0u8..5, 0usize..200), 1..40),
        cuts in prop::collection::vec(1usize..300, 1..60),
    ) {
        let mut whole = Bench::plain(3);
        let mut pieces = Bench::plain(3);
        for bench in [&mut whole, &mut pieces] {
            bench.send(1, &frame(BROADCAST, 1, b""));
            bench.send(2, &frame(BROADCAST, 2, b""));
        }
        let mut bytes = Vec::new();
        for (to, length) in frames {
            batch::push(&mut bytes, &frame(if to == 4 { BROADCAST } else { to }, 0, &vec![to; length]));
        }
        prop_assert_eq!(whole.send_bytes(0, &bytes).bytes, bytes.len());
        let (mut start, mut end) = (0, 0usize);
        for cut in cuts.into_iter().chain([usize::MAX]) {
            end = bytes.len().min(end.saturating_add(cut));
            start += pieces.send_bytes(0, &bytes[start..end]).bytes;
        }
        prop_assert_eq!(start, bytes.len());
        for port in 0..3 {
            prop_assert_eq!(whole.got(port), pieces.got(port));
            prop_assert_eq!(whole.counters(port), pieces.counters(port));
        }
    }

    /// Whatever a guest sends, every length stays bounded and nobody gets what is not a frame.
    #[test]
    fn any_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..300), small in prop::collection::vec(0u8..40, 0..100)) {
        let mut bench = Bench::plain(3);
        bench.send_bytes(0, &bytes);
        let mut framed = Vec::new();
        for piece in small.chunks(17) {
            batch::push(&mut framed, piece);
        }
        bench.send_bytes(0, &framed);
        for port in 1..3 {
            prop_assert!(bench.got(port).iter().all(|frame| frame.len() >= crate::frame::HEADER));
        }
    }
}
