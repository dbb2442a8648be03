//! zstd frames (RFC 8878), each of one piece and with a checksum: what a bundle's stream is cut into.
//!
//! ```text
//!   skippable frame: the stamp     what is being written, so that a part is gone on with only if that is unchanged
//!   skippable frame: two lengths   of the data frame behind it: as stored, and of what it holds
//!   data frame                     ─┐ repeated
//! ```
//! To any zstd it is one file; skippable frames are passed over. The lengths let a part be walked without inflating it.

use std::io::Read;

use crate::{Error, Result};

/// Bytes of the stream in a frame.
pub(crate) const PIECE: usize = 4 << 20;
/// How hard it is tried: the program's own default.
#[cfg(not(target_os = "macos"))]
const LEVEL: i32 = 3;
const STAMP_MAGIC: u32 = 0x184d_2a50;
const LENGTHS_MAGIC: u32 = 0x184d_2a51;
/// Longest stamp, in bytes.
const STAMP_LIMIT: usize = 4096;

fn refuse(problem: &str) -> Error {
    Error::malformed("bundle", problem)
}

/// Compresses a piece into one frame with its checksum and length, and puts the lengths in front.
#[cfg(not(target_os = "macos"))]
pub(crate) fn pack(piece: &[u8]) -> Result<Vec<u8>> {
    let failed = |error| Error::io("compress", "a piece of the bundle")(error);
    let mut compressor = zstd::bulk::Compressor::new(LEVEL).map_err(failed)?;
    compressor.include_checksum(true).map_err(failed)?;
    let frame = compressor.compress(piece).map_err(failed)?;
    Ok(with_lengths(&frame, piece.len()))
}

/// Compresses a piece into one frame, and puts the lengths in front.
#[cfg(target_os = "macos")]
pub(crate) fn pack(piece: &[u8]) -> Result<Vec<u8>> {
    let frame =
        ruzstd::encoding::compress_to_vec(piece, ruzstd::encoding::CompressionLevel::Fastest);
    Ok(with_lengths(&frame, piece.len()))
}

fn with_lengths(frame: &[u8], length: usize) -> Vec<u8> {
    let mut packed = Vec::with_capacity(frame.len() + 16);
    packed.extend(LENGTHS_MAGIC.to_le_bytes());
    packed.extend(8u32.to_le_bytes());
    // A piece and its frame are a few MiB.
    packed.extend((frame.len() as u32).to_le_bytes());
    packed.extend((length as u32).to_le_bytes());
    packed.extend(frame);
    packed
}

#[cfg(not(target_os = "macos"))]
fn inflate(frame: &[u8], length: usize) -> Result<Vec<u8>> {
    zstd::bulk::decompress(frame, length)
        .map_err(|error| refuse(&format!("has a damaged piece: {error}")))
}

#[cfg(target_os = "macos")]
fn inflate(frame: &[u8], length: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    ruzstd::decoding::StreamingDecoder::new(frame)
        .map_err(|error| refuse(&format!("has a damaged piece: {error}")))?
        .take(length as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| refuse(&format!("has a damaged piece: {error}")))?;
    Ok(bytes)
}

/// Makes the frame that a bundle begins with.
pub(crate) fn stamp(text: &str) -> Vec<u8> {
    let mut frame = Vec::from(STAMP_MAGIC.to_le_bytes());
    frame.extend((text.len() as u32).to_le_bytes());
    frame.extend(text.as_bytes());
    frame
}

/// Reads a bundle's frames.
pub(crate) struct Frames<R> {
    inner: R,
    /// What the first frame says.
    pub stamp: String,
    piece: Vec<u8>,
    at: usize,
    /// Bytes of the file that whole frames so far take.
    pub stored: u64,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|word| word.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

/// Reads until the buffer is full or the input ends; returns how much there was.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match from.read(&mut buffer[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

impl<R: Read> Frames<R> {
    /// Begins to read.
    pub(crate) fn new(mut inner: R) -> Result<Frames<R>> {
        let read = |error| Error::io("read", "the bundle")(error);
        let mut head = [0; 8];
        let count = fill(&mut inner, &mut head).map_err(read)?;
        let length = word(&head, 4) as usize;
        if count < 8 || word(&head, 0) != STAMP_MAGIC || length > STAMP_LIMIT {
            return Err(refuse("is none that inn export has written"));
        }
        let mut text = vec![0; length];
        if fill(&mut inner, &mut text).map_err(read)? < length {
            return Err(refuse("is cut off in its first frame"));
        }
        Ok(Frames {
            inner,
            stamp: String::from_utf8(text)
                .map_err(|_| refuse("is none that inn export has written"))?,
            piece: Vec::new(),
            at: 0,
            stored: 8 + length as u64,
        })
    }

    /// Returns the next piece; none at the end.
    pub(crate) fn next_piece(&mut self) -> Result<Option<Vec<u8>>> {
        let read = |error| Error::io("read", "the bundle")(error);
        let mut head = [0; 16];
        let count = fill(&mut self.inner, &mut head).map_err(read)?;
        if count == 0 {
            return Ok(None);
        }
        let (stored, length) = (word(&head, 8) as usize, word(&head, 12) as usize);
        if count < 16
            || word(&head, 0) != LENGTHS_MAGIC
            || word(&head, 4) != 8
            || length == 0
            || length > PIECE
            || stored > PIECE + (PIECE >> 4)
        {
            return Err(refuse("is cut off, or has a piece that is out of bounds"));
        }
        let mut frame = vec![0; stored];
        if fill(&mut self.inner, &mut frame).map_err(read)? < stored {
            return Err(refuse("is cut off"));
        }
        let piece = inflate(&frame, length)?;
        if piece.len() != length {
            return Err(refuse("has a piece of another length than it says"));
        }
        self.stored += 16 + stored as u64;
        Ok(Some(piece))
    }
}

impl<R: Read> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.piece.len() {
            self.piece = self
                .next_piece()
                .map_err(std::io::Error::other)?
                .unwrap_or_default();
            self.at = 0;
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
