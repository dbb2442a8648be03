//! Properties of the multiplexer: two ends in memory, cut anywhere, with lost bytes and garbage between.

use bytes::Bytes;
use innkeeper_agent::frame::{HEADER_LEN, Header, Kind, MAX_PAYLOAD};
use innkeeper_agent::message::{Closing, ErrorKind};
use innkeeper_agent::mux::{Config, Event, Frame, Incoming, MAX_WINDOW, Mux, Side};
use proptest::prelude::*;
use std::collections::VecDeque;

fn mux(side: Side, nonce: u64) -> Mux {
    let config = Config {
        side,
        software: "test".to_owned(),
        features: Vec::new(),
        guest: None,
        max_streams: 8,
    };
    let mut mux = Mux::new(config, nonce);
    mux.connect();
    mux
}

fn bytes_of(frame: &Frame) -> Vec<u8> {
    [&frame.header[..], &frame.payload[..]].concat()
}

fn drain(mux: &mut Mux) -> Vec<u8> {
    std::iter::from_fn(|| mux.next_frame())
        .flat_map(|frame| bytes_of(&frame))
        .collect()
}

fn events(mux: &mut Mux) -> Vec<Event> {
    std::iter::from_fn(|| mux.next_event()).collect()
}

/// Carries bytes between the two until both are quiet.
fn settle(host: &mut Mux, agent: &mut Mux) {
    for _ in 0..100 {
        let (to_agent, to_host) = (drain(host), drain(agent));
        if to_agent.is_empty() && to_host.is_empty() {
            return;
        }
        agent.receive(&to_agent);
        host.receive(&to_host);
    }
    panic!("the two ends never fall quiet");
}

fn pair() -> (Mux, Mux) {
    let (mut host, mut agent) = (mux(Side::Host, 1), mux(Side::Agent, 2));
    settle(&mut host, &mut agent);
    assert!(host.is_established() && agent.is_established());
    events(&mut host);
    events(&mut agent);
    (host, agent)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn data_arrives_whole_however_the_pipe_is_cut(data in prop::collection::vec(any::<u8>(), 1..200_000), cuts in prop::collection::vec(1usize..9000, 1..40)) {
        let (mut host, mut agent) = pair();
        let stream = host.open(Bytes::from_static(b"{}")).unwrap();
        settle(&mut host, &mut agent);
        agent.grant(stream, 0, MAX_WINDOW).unwrap();
        settle(&mut host, &mut agent);
        host.data(stream, 0, Bytes::from(data.clone())).unwrap();
        let mut wire: VecDeque<u8> = drain(&mut host).into();
        let mut cuts = cuts.iter().cycle();
        let mut received = Vec::new();
        while !wire.is_empty() {
            let count = (*cuts.next().unwrap()).min(wire.len());
            let piece: Vec<u8> = wire.drain(..count).collect();
            agent.receive(&piece);
            for event in events(&mut agent) {
                if let Event::Stream { incoming: Incoming::Data { bytes, .. }, .. } = event {
                    received.extend_from_slice(&bytes);
                }
            }
        }
        prop_assert!(received == data);
    }

    #[test]
    fn garbage_is_survived_and_a_new_handshake_follows(garbage in prop::collection::vec(any::<u8>(), 1..5000), lost in 0usize..400) {
        let (mut host, mut agent) = pair();
        let stream = host.open(Bytes::from_static(b"{}")).unwrap();
        // The pipe loses the head of what the host wrote, and garbage stands in its place.
        let wire = drain(&mut host);
        agent.receive(&garbage);
        agent.receive(&wire[lost.min(wire.len())..]);
        settle(&mut host, &mut agent);
        // Where the garbage was the head of a frame, the padded hello of the retry gets both back into step.
        for _ in 0..4 {
            host.retry_hello();
            agent.retry_hello();
            settle(&mut host, &mut agent);
        }
        if !agent.is_established() || !host.is_established() {
            prop_assert!(false, "out of step for ever");
        }
        // A tail shorter than a header shows as garbage only with the next frame, which is then lost too.
        let mut opened = false;
        for _ in 0..3 {
            let _ = (stream, events(&mut host), events(&mut agent));
            let again = host.open(Bytes::from_static(b"{}")).unwrap();
            settle(&mut host, &mut agent);
            let told = events(&mut agent);
            opened |= told.iter().any(|event| matches!(event, Event::Opened { stream, .. } if *stream == again));
        }
        prop_assert!(opened);
    }

    #[test]
    fn a_new_peer_takes_over_from_one_that_died_in_the_middle_of_a_frame(kept in 1usize..70_000) {
        let (mut host, mut agent) = pair();
        let stream = host.open(Bytes::from_static(b"{}")).unwrap();
        settle(&mut host, &mut agent);
        agent.grant(stream, 0, MAX_WINDOW).unwrap();
        settle(&mut host, &mut agent);
        host.data(stream, 0, Bytes::from(vec![b'x'; 80_000])).unwrap();
        let wire = drain(&mut host);
        agent.receive(&wire[..kept]);
        let mut host = mux(Side::Host, 77);
        settle(&mut host, &mut agent);
        for _ in 0..4 {
            host.retry_hello();
            settle(&mut host, &mut agent);
        }
        prop_assert!(host.is_established() && agent.is_established());
        prop_assert!(events(&mut agent).contains(&Event::Lost));
    }

    #[test]
    fn no_bytes_make_a_receiver_panic(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
        let (_, mut agent) = pair();
        agent.receive(&bytes);
        let framed = Header { kind: Kind::Credit, channel: bytes.first().copied().unwrap_or(0), stream: 1, length: bytes.len() as u32 };
        agent.receive(&framed.encode());
        agent.receive(&bytes);
    }
}

#[test]
fn what_exceeds_the_credit_closes_the_stream_and_is_not_delivered() {
    let (mut host, mut agent) = pair();
    let stream = host.open(Bytes::from_static(b"{}")).unwrap();
    settle(&mut host, &mut agent);
    agent.grant(stream, 0, 10).unwrap();
    settle(&mut host, &mut agent);
    events(&mut agent);
    assert!(host.data(stream, 0, Bytes::from(vec![0; 11])).is_err());
    let forged = Header {
        kind: Kind::Data,
        channel: 0,
        stream,
        length: 11,
    };
    agent.receive(&[&forged.encode()[..], &[0; 11]].concat());
    let told = events(&mut agent);
    assert!(matches!(
        &told[..],
        [Event::Stream { incoming: Incoming::Closed(Closing::Failed(failure)), .. }] if failure.kind == ErrorKind::Protocol
    ));
}

#[test]
fn a_full_stream_does_not_starve_another() {
    let (mut host, mut agent) = pair();
    let (big, small) = (
        host.open(Bytes::from_static(b"{}")).unwrap(),
        host.open(Bytes::from_static(b"{}")).unwrap(),
    );
    settle(&mut host, &mut agent);
    agent.grant(big, 0, MAX_WINDOW).unwrap();
    agent.grant(small, 0, MAX_WINDOW).unwrap();
    settle(&mut host, &mut agent);
    host.data(big, 0, Bytes::from(vec![1; MAX_WINDOW as usize]))
        .unwrap();
    host.data(small, 0, Bytes::from_static(b"now")).unwrap();
    let first: Vec<u32> = (0..2)
        .map(|_| {
            let frame = host.next_frame().unwrap();
            Header::decode(frame.header.first_chunk::<HEADER_LEN>().unwrap())
                .unwrap()
                .stream
        })
        .collect();
    assert!(first.contains(&small), "{first:?}");
}

/// A host that died in the middle of its longest frame leaves a guest that waits for the rest: one repeated hello alone must get the next
/// host through, whatever is missing, since what comes before it fills that frame.
#[test]
fn one_repeated_hello_ends_the_longest_frame_that_was_begun() {
    let frame = Header {
        kind: Kind::Data,
        channel: 0,
        stream: 1,
        length: MAX_PAYLOAD as u32,
    };
    let whole = [&frame.encode()[..], &vec![b'x'; MAX_PAYLOAD]].concat();
    // What is in the pipe before the repeated hello is a hello of its own, which the frame swallows.
    for arrived in [
        1,
        HEADER_LEN - 1,
        HEADER_LEN,
        HEADER_LEN + 1,
        MAX_PAYLOAD / 2,
        MAX_PAYLOAD,
    ] {
        let (_, mut agent) = pair();
        agent.receive(&whole[..arrived]);
        let mut host = mux(Side::Host, 77);
        settle(&mut host, &mut agent);
        host.retry_hello();
        settle(&mut host, &mut agent);
        assert!(
            host.is_established() && agent.is_established(),
            "{arrived} bytes of the frame had come, and the guest still waits for the rest"
        );
    }
}

/// A slow guest repeats its hello while the host's answer is under way; nothing that is said meanwhile may be lost by that.
#[test]
fn a_hello_repeated_too_late_costs_nothing() {
    let (mut host, mut agent) = (mux(Side::Host, 1), mux(Side::Agent, 2));
    host.connect();
    agent.connect();
    let from_agent = drain(&mut agent);
    host.receive(&drain(&mut agent));
    host.receive(&from_agent);
    // Its patience is at an end before it looks at what came.
    agent.retry_hello();
    let repeated = drain(&mut agent);
    agent.receive(&drain(&mut host));
    // On the wire the repeated hello stands before the answer.
    host.receive(&repeated);
    settle(&mut host, &mut agent);
    assert!(host.is_established() && agent.is_established());
    let established = events(&mut host);
    let lost = |events: &[Event]| events.contains(&Event::Lost);
    assert!(!lost(&established), "{established:?}");
    // The same to a host that is through, and has begun to ask.
    host.open(Bytes::from_static(b"{}")).unwrap();
    host.receive(&repeated[..MAX_PAYLOAD]);
    settle(&mut host, &mut agent);
    let (asked, told) = (events(&mut host), events(&mut agent));
    assert!(!lost(&asked) && !lost(&told), "{asked:?} {told:?}");
    assert!(host.is_established() && agent.is_established());
}

/// Whichever hello of a handshake is lost, repeating them gets both sides there, and they stop greeting each other then.
#[test]
fn a_lost_hello_is_said_again() {
    /// Carries what one says to the other, but for the wire with this number; says how many there were.
    fn carry(from: &mut Mux, to: &mut Mux, count: &mut usize, lost: Option<usize>) -> bool {
        let wire = drain(from);
        if wire.is_empty() {
            return false;
        }
        if lost != Some(*count) {
            to.receive(&wire);
        }
        *count += 1;
        true
    }
    let handshake = |lost| {
        let (mut host, mut agent) = (mux(Side::Host, 1), mux(Side::Agent, 2));
        let mut count = 0;
        while carry(&mut host, &mut agent, &mut count, lost)
            | carry(&mut agent, &mut host, &mut count, lost)
        {}
        (host, agent, count)
    };
    let (_, _, hellos) = handshake(None);
    assert!(hellos >= 3, "{hellos}");
    for lost in 0..hellos {
        let (mut host, mut agent, mut count) = handshake(Some(lost));
        for _ in 0..3 {
            host.retry_hello();
            agent.retry_hello();
            while carry(&mut host, &mut agent, &mut count, None)
                | carry(&mut agent, &mut host, &mut count, None)
            {}
        }
        assert!(host.is_established(), "the host waits, hello {lost} lost");
        assert!(agent.is_established(), "the agent waits, hello {lost} lost");
        host.retry_hello();
        agent.retry_hello();
        assert!(!host.has_frames() && !agent.has_frames());
    }
}
