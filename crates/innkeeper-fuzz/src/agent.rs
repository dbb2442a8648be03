//! The agent's protocol: what a guest can send to the host, and the host to a guest.

use bytes::Bytes;
use innkeeper_agent::copy::{Decoder, Receiver, ReceiverOptions, Record, encode};
use innkeeper_agent::frame::{HEADER_LEN, Header, Kind, MAX_PAYLOAD};
use innkeeper_agent::message::{AgentEvent, Closing, Hello, Input, Reply, Request};
use innkeeper_agent::mux::{Config, Event, Incoming, MAX_WINDOW, Mux, Side};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A header that is taken is told again as the same bytes.
pub(crate) fn frame(data: &[u8]) {
    let Some(bytes) = data.first_chunk::<HEADER_LEN>() else {
        return;
    };
    if let Ok(header) = Header::decode(bytes) {
        assert!(header.length as usize <= MAX_PAYLOAD);
        assert_eq!(header.encode(), *bytes);
    }
}

/// A request that is read is written and read again as the same.
pub(crate) fn message(data: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(data) {
        let again = serde_json::to_vec(&request).expect("a request is JSON");
        let read = serde_json::from_slice::<Request>(&again).expect("it is read again");
        assert_eq!(read, request);
    }
    if let Ok(hello) = serde_json::from_slice::<Hello>(data) {
        let again = serde_json::to_vec(&hello).expect("a hello is JSON");
        let read = serde_json::from_slice::<Hello>(&again).expect("it is read again");
        assert_eq!(read, hello);
    }
    let _ = serde_json::from_slice::<Reply>(data);
    let _ = serde_json::from_slice::<AgentEvent>(data);
    let _ = serde_json::from_slice::<Closing>(data);
    let _ = serde_json::from_slice::<Input>(data);
}

fn end(side: Side, nonce: u64) -> Mux {
    let config = Config {
        side,
        software: "fuzz".to_owned(),
        features: Vec::new(),
        guest: None,
        max_streams: 4,
    };
    let mut mux = Mux::new(config, nonce);
    mux.connect();
    mux
}

fn take_all(mux: &mut Mux) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(frame) = mux.next_frame() {
        bytes.extend_from_slice(&frame.header);
        bytes.extend_from_slice(&frame.payload);
    }
    bytes
}

/// One end with its handshake done, and the stream that it opened if it is the host.
fn established(side: Side) -> (Mux, Option<u32>) {
    let other = match side {
        Side::Host => Side::Agent,
        Side::Agent => Side::Host,
    };
    let (mut mux, mut peer) = (end(side, 1), end(other, 2));
    for _ in 0..4 {
        let bytes = take_all(&mut mux);
        peer.receive(&bytes);
        let bytes = take_all(&mut peer);
        mux.receive(&bytes);
        while mux.next_event().is_some() {}
        while peer.next_event().is_some() {}
    }
    assert!(mux.is_established());
    let stream =
        (side == Side::Host).then(|| mux.open(Bytes::from_static(b"{}")).expect("a stream"));
    if let Some(stream) = stream {
        mux.grant(stream, 1, MAX_WINDOW).expect("granted");
    }
    (mux, stream)
}

/// Bytes as they are, or as frames with a right header: kind, channel, stream, two bytes of length, then the payload.
fn wire(data: &[u8], framed: bool) -> Vec<u8> {
    if !framed {
        return data.to_vec();
    }
    let mut bytes = Vec::new();
    let mut rest = data;
    while let Some((&[kind, channel, stream, low, high], after)) = rest.split_first_chunk::<5>() {
        let length = usize::from(u16::from_le_bytes([low, high])).min(after.len());
        let (payload, after) = after.split_at(length);
        let kinds = [
            Kind::Hello,
            Kind::Ping,
            Kind::Pong,
            Kind::Event,
            Kind::Open,
            Kind::Message,
            Kind::Data,
            Kind::Credit,
            Kind::End,
            Kind::Close,
        ];
        let header = Header {
            kind: kinds[usize::from(kind) % kinds.len()],
            channel,
            stream: u32::from(stream),
            length: payload.len() as u32,
        };
        bytes.extend_from_slice(&header.encode());
        bytes.extend_from_slice(payload);
        rest = after;
    }
    bytes
}

/// Whatever a peer sends, no more data comes out than was granted, and what is answered stays within bounds.
pub(crate) fn mux(data: &[u8]) {
    let Some((&control, data)) = data.split_first() else {
        return;
    };
    let side = match control & 1 {
        0 => Side::Host,
        _ => Side::Agent,
    };
    let piece = usize::from(control >> 2).max(1) * 37;
    let (mut mux, stream) = established(side);
    let mut taken = 0;
    let mut answered = 0;
    let wire = wire(data, control & 2 != 0);
    for bytes in wire.chunks(piece) {
        mux.receive(bytes);
        while let Some(event) = mux.next_event() {
            if let Event::Stream {
                stream: from,
                incoming: Incoming::Data { bytes, channel },
            } = event
            {
                assert!(!bytes.is_empty());
                if Some(from) == stream && channel == 1 {
                    taken += bytes.len();
                }
            }
        }
        answered += take_all(&mut mux).len();
    }
    assert!(taken <= MAX_WINDOW as usize, "{taken} bytes without credit");
    // A frame brings at most one answer that is not longer than itself, but for refusals and a new hello.
    assert!(
        answered <= 1024 * (wire.len() / HEADER_LEN + 2) + wire.len(),
        "{answered} bytes were answered to {}",
        wire.len()
    );
}

/// An entry that is read is told again as one that reads the same; data is never gathered.
pub(crate) fn copy_entries(data: &[u8]) {
    let mut decoder = Decoder::default();
    for piece in data.chunks(23) {
        decoder.push(Bytes::copy_from_slice(piece));
        loop {
            match decoder.next_record() {
                Ok(Some(record)) => {
                    if let Record::Data(bytes) = &record {
                        assert!(bytes.len() <= piece.len());
                        continue;
                    }
                    let mut again = Decoder::default();
                    again.push(encode(&record));
                    let read = again.next_record().expect("it is well formed");
                    assert_eq!(read, Some(record));
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

/// Nothing but the destination changes.
pub(crate) fn copy_receive(data: &[u8]) {
    let place = tempfile::tempdir().expect("a directory");
    let destination = place.path().join("destination");
    std::fs::create_dir(&destination).expect("made");
    std::fs::write(place.path().join("canary"), "alive").expect("written");
    let options = ReceiverOptions {
        mode_mask: 0o777,
        owner: None,
        create_parents: false,
    };
    let mut receiver = Receiver::create(&destination, options).expect("a receiver");
    for piece in data.chunks(4096) {
        if receiver.push(Bytes::copy_from_slice(piece)).is_err() {
            break;
        }
    }
    drop(receiver);
    let canary = std::fs::read(place.path().join("canary")).expect("it is there");
    assert_eq!(canary, b"alive");
    let mut beside: Vec<_> = std::fs::read_dir(place.path())
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    beside.sort();
    assert_eq!(beside, ["canary", "destination"]);
    open_up(&destination);
}

/// Makes what was received removable: its modes are the sender's.
fn open_up(directory: &Path) {
    // Of a directory that can't be changed the removal tells.
    let _ = std::fs::set_permissions(directory, Permissions::from_mode(0o700));
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}
