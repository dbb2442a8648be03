//! The loop on real sockets: frames arrive whole, broken sockets are dialled again, a silent guest holds nobody up, and no frame allocates.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use super::*;
use crate::batch;
use crate::link::{Bandwidth, Shape};
use crate::switch::{Direction, DropReason, PortConfig, Switch, SwitchConfig};

const DEADLINE: Duration = Duration::from_secs(20);

fn network() -> Network {
    Network::new(Switch::new(&SwitchConfig::default())).expect("a network")
}

fn stream(network: &mut Network) -> (crate::switch::PortId, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let port = StreamPort::new(ours).expect("a port");
    let id = network
        .add(PortConfig::default(), Target::Open(Box::new(port)))
        .expect("a port");
    theirs.set_read_timeout(Some(DEADLINE)).expect("a socket");
    theirs.set_write_timeout(Some(DEADLINE)).expect("a socket");
    (id, theirs)
}

fn frame(to: u8, from: u8, length: usize) -> Vec<u8> {
    let mut frame = vec![0x52, 0x54, 0, 0, 0, to, 0x52, 0x54, 0, 0, 0, from, 8, 0];
    if to == 0xff {
        frame[..6].fill(0xff);
    }
    frame.resize(14 + length, from);
    frame
}

fn framed(frame: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    batch::push(&mut bytes, frame);
    bytes
}

fn read_frame(stream: &mut UnixStream) -> Vec<u8> {
    let mut prefix = [0; batch::PREFIX];
    stream.read_exact(&mut prefix).expect("a prefix in time");
    let mut frame = vec![0; u32::from_be_bytes(prefix) as usize];
    stream.read_exact(&mut frame).expect("a frame in time");
    frame
}

#[test]
fn a_stream_and_a_datagram_port_speak_with_each_other() {
    let mut network = network();
    let (_, mut left) = stream(&mut network);
    let (ours, right) = UnixDatagram::pair().expect("a pair");
    right.set_read_timeout(Some(DEADLINE)).expect("a socket");
    let port = DatagramPort::new(ours).expect("a port");
    network
        .add(PortConfig::default(), Target::Open(Box::new(port)))
        .expect("a port");
    let _handle = spawn("test", network).expect("a thread");
    let large = frame(2, 1, 9000);
    // Cut in the middle, as a stream may be.
    let bytes = framed(&large);
    left.write_all(&bytes[..5000]).expect("a write");
    left.write_all(&bytes[5000..]).expect("a write");
    let mut buffer = vec![0; 20_000];
    let length = right.recv(&mut buffer).expect("a frame in time");
    assert!(buffer[..length] == large);
    right.send(&frame(1, 2, 50)).expect("a write");
    assert_eq!(read_frame(&mut left), frame(1, 2, 50));
}

#[test]
fn a_socket_that_breaks_is_dialled_again_within_two_seconds() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("s");
    let mut network = network();
    let (_, mut other) = stream(&mut network);
    let config = PortConfig::default();
    network
        .add(config, Target::Dial(path.clone()))
        .expect("a port");
    let _handle = spawn("test", network).expect("a thread");
    for turn in 0..3_u8 {
        // As of a hypervisor that is started anew: the socket is made again.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("a socket");
        let began = Instant::now();
        let (mut guest, _) = listener.accept().expect("a connection");
        assert!(
            began.elapsed() < Duration::from_secs(2),
            "{:?}",
            began.elapsed()
        );
        guest.set_read_timeout(Some(DEADLINE)).expect("a socket");
        guest
            .write_all(&framed(&frame(0xff, 7, 40)))
            .expect("a write");
        assert_eq!(read_frame(&mut other), frame(0xff, 7, 40));
        other
            .write_all(&framed(&frame(7, 1, usize::from(turn))))
            .expect("a write");
        assert_eq!(read_frame(&mut guest), frame(7, 1, usize::from(turn)));
    }
}

#[test]
fn a_port_that_loses_its_place_is_closed() {
    let mut network = network();
    let (id, mut bad) = stream(&mut network);
    let handle = spawn("test", network).expect("a thread");
    bad.write_all(&[0xff; 8]).expect("a write");
    assert_eq!(bad.read(&mut [0; 1]).expect("an end"), 0);
    assert!(
        !handle
            .ask(move |network| network.is_connected(id))
            .expect("an answer")
    );
}

/// Sends until the socket takes no more for a second.
fn stuff(stream: &mut UnixStream, bytes: &[u8], most: usize) -> usize {
    stream
        .set_write_timeout(Some(Duration::from_secs(1)))
        .expect("a socket");
    for count in 0..most {
        match stream.write_all(bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return count,
            Err(error) => panic!("{error}"),
        }
    }
    most
}

#[test]
fn a_guest_that_never_reads_does_not_stall_the_others() {
    let mut network = network();
    let (silent, mut deaf) = stream(&mut network);
    let (_, mut left) = stream(&mut network);
    let (_, mut right) = stream(&mut network);
    let handle = spawn("test", network).expect("a thread");
    deaf.write_all(&framed(&frame(0xff, 1, 40)))
        .expect("a write");
    right
        .write_all(&framed(&frame(0xff, 3, 40)))
        .expect("a write");
    for _ in 0..2 {
        read_frame(&mut left);
    }
    read_frame(&mut right);
    // Far more than any queue holds: were it waited for, this would end early.
    assert_eq!(stuff(&mut left, &framed(&frame(1, 2, 1500)), 5000), 5000);
    left.write_all(&framed(&frame(3, 2, 60))).expect("a write");
    assert_eq!(read_frame(&mut right), frame(3, 2, 60));
    let dropped = handle
        .ask(move |network| {
            network
                .switch()
                .counters(silent)
                .map(|c| c.dropped_out(DropReason::Full))
        })
        .expect("an answer")
        .expect("a port");
    assert!(dropped > 4000, "{dropped}");
}

/// A reader that is much slower than the sender gets every frame.
#[test]
fn nothing_is_lost_to_a_slow_reader() {
    let mut network = network();
    let (_, mut left) = stream(&mut network);
    let (_, mut right) = stream(&mut network);
    let (_, mut third) = stream(&mut network);
    let handle = spawn("test", network).expect("a thread");
    right
        .write_all(&framed(&frame(0xff, 3, 40)))
        .expect("a write");
    read_frame(&mut left);
    read_frame(&mut third);
    const COUNT: u32 = 20_000;
    let sender = std::thread::spawn(move || {
        for number in 0..COUNT {
            let mut frame = frame(3, 2, 1000);
            frame[14..18].copy_from_slice(&number.to_be_bytes());
            left.write_all(&framed(&frame)).expect("a write");
        }
        left
    });
    for number in 0..COUNT {
        let frame = read_frame(&mut right);
        assert_eq!(frame[14..18], number.to_be_bytes());
        if number % 64 == 0 {
            std::thread::yield_now();
        }
    }
    drop(sender.join().expect("a sender"));
    drop(handle);
}

#[test]
fn no_frame_allocates() {
    let mut network = network();
    let (_, mut left) = stream(&mut network);
    let (_, mut right) = stream(&mut network);
    let (_, mut third) = stream(&mut network);
    right
        .write_all(&framed(&frame(0xff, 3, 40)))
        .expect("a write");
    network.turn(Some(DEADLINE)).expect("a turn");
    read_frame(&mut left);
    read_frame(&mut third);
    let burst: Vec<u8> = (0..20)
        .flat_map(|number| framed(&frame(if number % 5 == 0 { 0xff } else { 3 }, 2, 100)))
        .collect();
    let answer = framed(&frame(2, 3, 40));
    let mut round = |network: &mut Network| {
        right.write_all(&answer).expect("a write");
        left.write_all(&burst).expect("a write");
        // Both writes are there before the first turn, so it serves both.
        network.turn(Some(DEADLINE)).expect("a turn");
        for (stream, count) in [(&mut left, 1), (&mut right, 20), (&mut third, 4)] {
            for _ in 0..count {
                let mut prefix = [0; batch::PREFIX];
                stream.read_exact(&mut prefix).expect("a prefix in time");
                let mut frame = [0; 200];
                let length = u32::from_be_bytes(prefix) as usize;
                stream
                    .read_exact(&mut frame[..length])
                    .expect("a frame in time");
            }
        }
    };
    // The first rounds make the buffers.
    round(&mut network);
    round(&mut network);
    let before = allocations::count();
    for _ in 0..1000 {
        round(&mut network);
    }
    assert_eq!(allocations::count() - before, 0);
}

/// Both directions of a port are shaped while frames flow; no frame comes early, all come, and in the end the port is as before.
#[test]
fn a_shaped_port_delays_and_loses_nothing_that_it_should_not() {
    let delay = Duration::from_millis(40);
    let mut network = network();
    let (id, mut left) = stream(&mut network);
    let (_, mut right) = stream(&mut network);
    let handle = spawn("test", network).expect("a thread");
    for direction in [Direction::FromGuest, Direction::ToGuest] {
        let shape = Shape {
            delay,
            ..Shape::default()
        };
        handle
            .ask(move |network| network.shape(id, direction, shape, 7))
            .expect("an answer")
            .expect("a port");
    }
    let began = Instant::now();
    left.write_all(&framed(&frame(3, 2, 60))).expect("a write");
    assert_eq!(read_frame(&mut right), frame(3, 2, 60));
    assert!(began.elapsed() >= delay, "{:?}", began.elapsed());
    right.write_all(&framed(&frame(2, 3, 60))).expect("a write");
    assert_eq!(read_frame(&mut left), frame(2, 3, 60));
    assert!(began.elapsed() >= delay * 2, "{:?}", began.elapsed());
    // 40 frames of 1014 bytes at 4 Mbit/s take 81 ms, 2 ms of which are the burst.
    let shape = Shape {
        bandwidth: Some(Bandwidth {
            bits_per_second: 4_000_000,
            burst: 1014,
        }),
        ..Shape::default()
    };
    handle
        .ask(move |network| network.shape(id, Direction::FromGuest, shape, 7))
        .expect("an answer")
        .expect("a port");
    let began = Instant::now();
    for _ in 0..40 {
        left.write_all(&framed(&frame(3, 2, 1000)))
            .expect("a write");
    }
    for _ in 0..40 {
        assert_eq!(read_frame(&mut right).len(), 1014);
    }
    assert!(
        began.elapsed() >= Duration::from_millis(79),
        "{:?}",
        began.elapsed()
    );
    let linked = handle
        .ask(move |network| {
            for direction in [Direction::FromGuest, Direction::ToGuest] {
                network
                    .shape(id, direction, Shape::default(), 7)
                    .expect("a port");
            }
            network
                .switch()
                .link(id, Direction::ToGuest)
                .map(|link| link.is_some())
        })
        .expect("an answer");
    assert_eq!(linked, Ok(false));
    left.write_all(&framed(&frame(3, 2, 61))).expect("a write");
    assert_eq!(read_frame(&mut right), frame(3, 2, 61));
}

/// What is shaped on its way in waits for a full port too.
#[test]
fn shaped_frames_wait_for_a_slow_reader() {
    let mut network = network();
    let (id, mut left) = stream(&mut network);
    let (_, mut right) = stream(&mut network);
    let (_, mut third) = stream(&mut network);
    let handle = spawn("test", network).expect("a thread");
    right
        .write_all(&framed(&frame(0xff, 3, 40)))
        .expect("a write");
    read_frame(&mut left);
    read_frame(&mut third);
    let shape = Shape {
        delay: Duration::from_millis(1),
        ..Shape::default()
    };
    handle
        .ask(move |network| network.shape(id, Direction::FromGuest, shape, 7))
        .expect("an answer")
        .expect("a port");
    const COUNT: usize = 900;
    for _ in 0..COUNT {
        left.write_all(&framed(&frame(3, 2, 1000)))
            .expect("a write");
    }
    for _ in 0..COUNT {
        assert_eq!(read_frame(&mut right).len(), 1014);
    }
}
