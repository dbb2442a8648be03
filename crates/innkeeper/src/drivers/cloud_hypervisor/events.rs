//! What Cloud Hypervisor tells by itself (`--event-monitor`): JSON documents one after another, read from a pipe.
//!
//! The pipe is a FIFO of which the hypervisor holds both ends, so that it never sees its reader go: what happens while no keeper reads
//! stays in the pipe (64 KiB, some five hundred events; the hypervisor drops what does not fit) and the next keeper reads it there.
//! Since events can be lost, none is taken for the whole truth: [`super::tracker`] asks for the state where that matters.
//! Source: `event_monitor/src/lib.rs` of Cloud Hypervisor.

use std::io;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// No event is longer than this, in bytes; they have a hundred or two.
const LONGEST: usize = 16 << 10;

/// Something that the hypervisor tells.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct VmmEvent {
    /// Which part of it tells: `vmm`, `vm`, `guest`, `virtio-device`.
    pub(super) source: String,
    /// What happened.
    pub(super) event: String,
    /// To what.
    #[serde(default)]
    properties: Option<Map<String, Value>>,
}

impl VmmEvent {
    /// Returns a property, empty if there is none of this name.
    pub(super) fn property(&self, name: &str) -> &str {
        self.properties
            .as_ref()
            .and_then(|properties| properties.get(name))
            .and_then(Value::as_str)
            .unwrap_or_default()
    }
}

/// Cuts a stream of bytes into events. What is no event is skipped.
#[derive(Debug, Default)]
pub(super) struct EventParser {
    buffer: Vec<u8>,
}

impl EventParser {
    /// Takes bytes and returns the events that are complete with them.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<VmmEvent> {
        self.buffer.extend_from_slice(bytes);
        let mut events = Vec::new();
        let mut done = 0;
        loop {
            let rest = &self.buffer[done..];
            let Some(start) = rest.iter().position(|byte| *byte == b'{') else {
                done = self.buffer.len();
                break;
            };
            let rest = &rest[start..];
            let mut documents = serde_json::Deserializer::from_slice(rest).into_iter::<Value>();
            match documents.next() {
                Some(Ok(document)) => {
                    done += start + documents.byte_offset();
                    events.extend(VmmEvent::deserialize(document).ok());
                }
                Some(Err(error)) if error.is_eof() && rest.len() <= LONGEST => {
                    done += start;
                    break;
                }
                // Not JSON, or without an end: go on behind this brace.
                _ => done += start + 1,
            }
        }
        self.buffer.drain(..done);
        events
    }
}

/// The reading end of the hypervisor's pipe.
#[derive(Debug)]
pub(super) struct EventPipe {
    pipe: pipe::Receiver,
    parser: EventParser,
    /// Events that were cut from what was read and not given out yet, the last first.
    ready: Vec<VmmEvent>,
}

impl EventPipe {
    /// Opens the pipe at a path.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(EventPipe {
            pipe: pipe::OpenOptions::new().open_receiver(path)?,
            parser: EventParser::default(),
            ready: Vec::new(),
        })
    }

    /// Returns the next event; none when the hypervisor has closed the pipe. Safe to cancel.
    pub(super) async fn next(&mut self) -> Option<VmmEvent> {
        loop {
            if let Some(event) = self.ready.pop() {
                return Some(event);
            }
            let mut bytes = [0; 4096];
            match self.pipe.read(&mut bytes).await {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.take(&bytes[..count]),
            }
        }
    }

    /// Returns what lies in the pipe now, without waiting.
    pub(super) fn drain(&mut self) -> Vec<VmmEvent> {
        let mut bytes = [0; 4096];
        // Bounded by what a pipe holds, so that a hypervisor that never stops telling can't keep us here.
        for _ in 0..32 {
            match self.pipe.try_read(&mut bytes) {
                Ok(count) if count > 0 => self.take(&bytes[..count]),
                _ => break,
            }
        }
        let mut events = std::mem::take(&mut self.ready);
        events.reverse();
        events
    }

    fn take(&mut self, bytes: &[u8]) {
        let mut events = self.parser.push(bytes);
        events.reverse();
        events.append(&mut self.ready);
        self.ready = events;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TWO: &str = "{\n  \"timestamp\": {\n    \"secs\": 0,\n    \"nanos\": 1\n  },\n  \"source\": \"vm\",\n  \"event\": \"booted\",\n  \"properties\": null\n}\n\n{\n  \"timestamp\": {\"secs\": 0, \"nanos\": 2},\n  \"source\": \"vm\",\n  \"event\": \"device-removed\",\n  \"properties\": {\n    \"id\": \"disk-data\"\n  }\n}\n\n";

    fn names(events: &[VmmEvent]) -> Vec<&str> {
        events.iter().map(|event| event.event.as_str()).collect()
    }

    #[test]
    fn events_are_cut_wherever_the_stream_is_broken() {
        for at in 0..TWO.len() {
            let mut parser = EventParser::default();
            let mut events = parser.push(&TWO.as_bytes()[..at]);
            events.extend(parser.push(&TWO.as_bytes()[at..]));
            assert_eq!(
                names(&events),
                ["booted", "device-removed"],
                "broken at {at}"
            );
            assert_eq!(events[1].property("id"), "disk-data");
            assert_eq!(events[0].property("id"), "");
        }
    }

    #[test]
    fn what_is_no_event_is_skipped() {
        let mut parser = EventParser::default();
        let noise = format!("noise }} {{\"other\": 1}} {{ broken \n{TWO}");
        assert_eq!(
            names(&parser.push(noise.as_bytes())),
            ["booted", "device-removed"]
        );
    }

    #[test]
    fn a_document_without_end_does_not_grow_for_ever() {
        let mut parser = EventParser::default();
        for _ in 0..100 {
            parser.push(&[b'{'; 1000]);
            assert!(parser.buffer.len() <= LONGEST + 1000);
        }
        let mut parser = EventParser::default();
        parser.push(b"{\"source\": \"");
        for _ in 0..100 {
            parser.push(&[b'x'; 1000]);
        }
        assert!(parser.buffer.len() <= LONGEST);
        assert_eq!(
            names(&parser.push(TWO.as_bytes())),
            ["booted", "device-removed"]
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fail(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20)) {
            let mut parser = EventParser::default();
            for piece in &pieces {
                parser.push(piece);
            }
            prop_assert!(parser.buffer.len() <= LONGEST + 300);
        }
    }
}
