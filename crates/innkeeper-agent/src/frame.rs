//! Frames: how the agent protocol cuts one byte pipe into addressed, checked pieces.
//!
//! A frame is a header of 16 bytes and at most [`MAX_PAYLOAD`] bytes of payload. All integers are little-endian.
//!
//! ```text
//!  byte  0..4   magic "iNK\x01" (the last byte is the version of this layout)
//!  byte  4      kind, see [`Kind`]
//!  byte  5      channel (stdin 0, stdout 1, stderr 2), 0 where it means nothing
//!  byte  6..8   Fletcher-16 checksum of the other 14 bytes
//!  byte  8..12  stream id (0 is the connection itself)
//!  byte 12..16  payload length
//! ```
//!
//! The payload has no checksum: the pipe is local and keeps order; what happens is that bytes are *missing* (a side
//! that went away), which the header's checksum and the nonces of the hellos find. This module does no IO and keeps no
//! state; [`crate::mux`] does the scanning and everything that needs memory.

/// Length of a frame header in bytes.
pub const HEADER_LEN: usize = 16;
/// Largest payload of one frame in bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// First four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"iNK\x01";

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Names the sender: JSON [`crate::message::Hello`]; the only frame that a receiver out of step accepts.
    Hello,
    /// Asks for a [`Kind::Pong`] with the same payload (at most 64 bytes).
    Ping,
    /// Answers a ping.
    Pong,
    /// Opens a stream: JSON [`crate::message::Request`].
    Open,
    /// Carries raw bytes of one channel of a stream.
    Data,
    /// Allows the peer to send a number of bytes (u32) more on a channel.
    Credit,
    /// Says that the sender sends no more on this channel.
    End,
    /// Carries a JSON message of a stream.
    Message,
    /// Ends a stream: JSON [`crate::message::Closing`].
    Close,
    /// Carries a JSON [`crate::message::AgentEvent`] that nobody asked for.
    Event,
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Kind::Hello => 1,
            Kind::Ping => 2,
            Kind::Pong => 3,
            Kind::Open => 4,
            Kind::Data => 5,
            Kind::Credit => 6,
            Kind::End => 7,
            Kind::Message => 8,
            Kind::Close => 9,
            Kind::Event => 10,
        }
    }

    fn from_code(code: u8) -> Option<Kind> {
        Some(match code {
            1 => Kind::Hello,
            2 => Kind::Ping,
            3 => Kind::Pong,
            4 => Kind::Open,
            5 => Kind::Data,
            6 => Kind::Credit,
            7 => Kind::End,
            8 => Kind::Message,
            9 => Kind::Close,
            10 => Kind::Event,
            _ => return None,
        })
    }
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame says.
    pub kind: Kind,
    /// Channel within the stream.
    pub channel: u8,
    /// Stream, 0 for the connection.
    pub stream: u32,
    /// Payload length in bytes, at most [`MAX_PAYLOAD`].
    pub length: u32,
}

/// Why sixteen bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// The magic or the checksum is wrong: the receiver is out of step.
    Garbage,
    /// The header is whole but its kind is unknown: a newer peer; the frame can be skipped by its length.
    UnknownKind {
        /// Payload bytes to skip.
        length: u32,
    },
}

impl Header {
    /// Encodes the header.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4] = self.kind.code();
        bytes[5] = self.channel;
        bytes[8..12].copy_from_slice(&self.stream.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.length.to_le_bytes());
        let checksum = checksum(&bytes);
        bytes[6..8].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Decodes a header, checking magic, checksum and length.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Header, HeaderError> {
        if bytes[0..4] != MAGIC || checksum(bytes) != u16::from_le_bytes([bytes[6], bytes[7]]) {
            return Err(HeaderError::Garbage);
        }
        let stream = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        let length = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
        if length as usize > MAX_PAYLOAD {
            return Err(HeaderError::Garbage);
        }
        let Some(kind) = Kind::from_code(bytes[4]) else {
            return Err(HeaderError::UnknownKind { length });
        };
        Ok(Header {
            kind,
            channel: bytes[5],
            stream,
            length,
        })
    }
}

/// Fletcher-16 over the header without its checksum field (RFC 1146 names the algorithm).
fn checksum(bytes: &[u8; HEADER_LEN]) -> u16 {
    let (mut low, mut high) = (0x5au32, 0xa5u32);
    for (index, byte) in bytes.iter().enumerate() {
        if index != 6 && index != 7 {
            low = (low + u32::from(*byte)) % 255;
            high = (high + low) % 255;
        }
    }
    (high << 8 | low) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_round_trip_and_any_flipped_bit_is_found() {
        let header = Header {
            kind: Kind::Data,
            channel: 2,
            stream: 0x0102_0304,
            length: 65_536,
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Ok(header));
        for bit in 0..HEADER_LEN * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                Header::decode(&flipped),
                Err(HeaderError::Garbage),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_garbage() {
        let header = Header {
            kind: Kind::Data,
            channel: 0,
            stream: 1,
            length: MAX_PAYLOAD as u32 + 1,
        };
        assert_eq!(Header::decode(&header.encode()), Err(HeaderError::Garbage));
    }
}
