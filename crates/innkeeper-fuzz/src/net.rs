//! Frames of hostile guests, through the switch and through a simulated link.

use std::time::Duration;

use innkeeper_net::Time;
use innkeeper_net::batch;
use innkeeper_net::frame::HEADER;
use innkeeper_net::link::{Bandwidth, Link, Loss, Probability, Shape};
use innkeeper_net::switch::{
    FloodLimit, Outbox, PortConfig, PortId, Switch, SwitchConfig, VlanId, VlanMode,
};

/// Stations that a port may name in this switch.
const STATIONS: usize = 16;

/// The first byte is the port that sends, the rest a stream as of a hypervisor. Whatever it is: what goes out are whole frames, and what is
/// remembered stays bounded.
pub(crate) fn switch(data: &[u8]) {
    let Some((first, stream)) = data.split_first() else {
        return;
    };
    let mut switch = Switch::new(&SwitchConfig {
        stations_per_port: STATIONS,
        ..SwitchConfig::default()
    });
    let ports = ports(&mut switch);
    let from = ports[usize::from(*first) % ports.len()];
    let mut outbox = Outbox::new();
    // Twice: the second time stations are known.
    for round in 0..2 {
        let now = Time::ZERO.after(Duration::from_secs(round));
        let taken = switch.forward(from, stream, &mut outbox, now);
        assert!(taken.bytes <= stream.len());
        for number in 0..outbox.destination_count() {
            let to = switch.destination(&outbox, number).expect("a port");
            assert_ne!(to, from, "a frame came back");
            switch.settle(to, &outbox, stream, 0, now);
        }
        switch.finish(&mut outbox);
        for port in &ports {
            let queued = switch.queued_whole(*port).to_vec();
            let frames: Vec<&[u8]> = batch::frames(&queued).collect();
            let length: usize = frames.iter().map(|frame| frame.len() + batch::PREFIX).sum();
            assert_eq!(length, queued.len(), "what is queued are no whole frames");
            assert!(frames.iter().all(|frame| frame.len() >= HEADER));
            switch.drained(*port, queued.len());
        }
        assert!(switch.station_count() <= STATIONS * ports.len());
    }
}

fn ports(switch: &mut Switch) -> Vec<PortId> {
    let vlan = |number| VlanId::new(number).expect("a VLAN");
    let modes = [
        VlanMode::Transparent,
        VlanMode::Transparent,
        VlanMode::Access(vlan(5)),
        VlanMode::Trunk {
            native: Some(vlan(7)),
            allowed: [vlan(5)].into(),
        },
        VlanMode::Access(vlan(7)),
    ];
    let mut ports = Vec::new();
    for (number, vlan) in modes.into_iter().enumerate() {
        let config = PortConfig {
            vlan,
            mirrored: number == 0,
            isolated: number == 1,
            flood_limit: (number == 2).then_some(FloodLimit {
                per_second: 2,
                burst: 3,
            }),
            ..PortConfig::default()
        };
        let id = switch.add_port(config, Time::ZERO).expect("a port");
        switch.set_up(id, true).expect("it is there");
        ports.push(id);
    }
    let mirror = switch
        .add_port(PortConfig::default(), Time::ZERO)
        .expect("a port");
    switch.set_up(mirror, true).expect("it is there");
    switch.set_mirror(Some(mirror)).expect("it is there");
    ports.push(mirror);
    ports
}

/// Eight bytes of shape, then a stream: every frame is accounted for, and time ends with an empty link.
pub(crate) fn link(data: &[u8]) {
    let Some((shape, stream)) = data.split_first_chunk::<8>() else {
        return;
    };
    let chance = |byte: u8| Probability::from_billionths(u32::from(byte) * 3_900_000);
    let shape = Shape {
        bandwidth: (shape[0] > 0).then_some(Bandwidth {
            bits_per_second: u64::from(shape[0]) * 10_000,
            burst: u32::from(shape[1]) * 16,
        }),
        delay: Duration::from_millis(shape[2].into()),
        loss: chance(shape[3]).map_or(Loss::None, Loss::Random),
        duplicate: chance(shape[4]).unwrap_or_default(),
        reorder: chance(shape[5]).unwrap_or_default(),
        corrupt: chance(shape[6]).unwrap_or_default(),
        mtu: (shape[7] > 0).then_some(u16::from(shape[7])),
        ..Shape::default()
    };
    let mut link = Link::new(shape, 1, Time::ZERO);
    let (mut pushed, mut out) = (0, 0);
    for frame in batch::frames(stream).filter(|frame| frame.len() >= HEADER) {
        link.push(frame, Time::ZERO);
        pushed += 1;
    }
    while let Some(due) = link.next_due() {
        if due == Time::from_nanos(u64::MAX) {
            break;
        }
        link.poll(due, |_| out += 1);
    }
    let counted = *link.counters();
    assert_eq!(counted.passed, out);
    assert_eq!(
        pushed + counted.duplicated,
        counted.passed + counted.lost + counted.overflowed + counted.too_long
    );
    assert_eq!(link.held(), 0);
}
