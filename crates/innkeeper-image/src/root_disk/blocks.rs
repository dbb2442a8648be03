//! Where bytes lie on the disk: numbers are given out one after the other, pass over the places of copies, and are written in that order.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::tree::Run;
use crate::{Error, Result};

/// Size of a block.
pub(super) const BLOCK: u64 = 4096;
pub(super) const BLOCKS_PER_GROUP: u64 = 32_768;
/// Blocks for group descriptors: enough for 2 TiB.
pub(super) const DESCRIPTOR_BLOCKS: u64 = 128;
/// Where content begins.
pub(super) const FIRST: u64 = 1 + DESCRIPTOR_BLOCKS;
const BUFFER: usize = 1 << 20;

/// Groups that begin with copies: 1 and the powers of 3, 5 and 7, as `sparse_super` has it.
pub(super) const COPIES: [u64; 22] = [
    1, 3, 5, 7, 9, 25, 27, 49, 81, 125, 243, 343, 625, 729, 2187, 2401, 3125, 6561, 15_625, 16_807,
    19_683, 59_049,
];

/// Where a block that was given out lies, behind the places of copies before it.
pub(super) fn physical(block: u64) -> u64 {
    let mut at = block;
    for group in COPIES {
        if at < group * BLOCKS_PER_GROUP {
            break;
        }
        at += FIRST;
    }
    at
}

/// How many blocks from this one on lie one after the other.
pub(super) fn contiguous(block: u64) -> u64 {
    let at = physical(block);
    let next = COPIES
        .iter()
        .map(|group| group * BLOCKS_PER_GROUP)
        .find(|start| *start > at);
    next.map_or(u64::MAX, |start| start - at)
}

/// The blocks of a range as they lie: first, and the one behind the last.
pub(super) fn pieces(from: u64, to: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut at = from;
    std::iter::from_fn(move || {
        let count = contiguous(at).min(to.checked_sub(at).filter(|left| *left > 0)?);
        let start = physical(at);
        at += count;
        Some((start, start + count))
    })
}

/// The disk while its content comes: bytes go to where they stay, in the order in which they come.
pub(crate) struct Blocks {
    pub(super) file: File,
    pub(super) path: PathBuf,
    /// The next free block behind everything, the buffer's bytes not yet counted.
    pub(super) next: u64,
    buffer: Vec<u8>,
    /// Blocks that may be used for content at most.
    pub(super) limit: u64,
}

impl Blocks {
    /// Makes the disk's file; at most `limit` bytes of content are taken.
    pub(crate) fn create(path: &Path, limit: u64) -> Result<Blocks> {
        let file = OpenOptions::new()
            .create_new(true)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(Error::io("create", path))?;
        Ok(Blocks {
            file,
            path: path.to_owned(),
            next: FIRST,
            buffer: Vec::with_capacity(BUFFER),
            limit: limit / BLOCK,
        })
    }

    /// Takes a file of `bytes` bytes, which `read` gives piece by piece.
    pub(crate) fn content(
        &mut self,
        bytes: u64,
        mut read: impl FnMut(&mut [u8]) -> Result<usize>,
    ) -> Result<Run> {
        let run = Run {
            start: self.here(),
            blocks: bytes.div_ceil(BLOCK),
        };
        if run.start + run.blocks > FIRST + self.limit {
            return Err(Error::malformed(
                "the image",
                format!(
                    "its files take more than {} GiB",
                    (self.limit * BLOCK) >> 30
                ),
            ));
        }
        let mut left = bytes;
        while left > 0 {
            if self.buffer.len() == BUFFER {
                self.flush()?;
            }
            let old = self.buffer.len();
            let want = (BUFFER - old).min(usize::try_from(left).unwrap_or(BUFFER));
            self.buffer.resize(old + want, 0);
            let count = read(&mut self.buffer[old..])?.min(want);
            self.buffer.truncate(old + count);
            if count == 0 {
                return Err(Error::malformed("a file of the layer", "ends too early"));
            }
            left -= count as u64;
        }
        self.buffer
            .resize(self.buffer.len().next_multiple_of(BLOCK as usize), 0);
        Ok(run)
    }

    /// Takes bytes that are there already.
    pub(super) fn bytes(&mut self, mut bytes: &[u8]) -> Result<Run> {
        self.content(bytes.len() as u64, |buffer| {
            let (now, later) = bytes.split_at(buffer.len().min(bytes.len()));
            buffer[..now.len()].copy_from_slice(now);
            bytes = later;
            Ok(now.len())
        })
    }

    fn here(&self) -> u64 {
        self.next + self.buffer.len() as u64 / BLOCK
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        let full = self.buffer.len() / BLOCK as usize * BLOCK as usize;
        let buffer = std::mem::take(&mut self.buffer);
        self.write(self.next, &buffer[..full])?;
        self.next += full as u64 / BLOCK;
        self.buffer = buffer;
        self.buffer.drain(..full);
        Ok(())
    }

    /// Writes whole blocks, leaving holes for those that are zero.
    pub(super) fn write(&self, mut block: u64, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let blocks = contiguous(block).min(bytes.len() as u64 / BLOCK);
            let (now, later) = bytes.split_at((blocks * BLOCK) as usize);
            self.write_physical(physical(block), now)?;
            block += blocks;
            bytes = later;
        }
        Ok(())
    }

    pub(super) fn write_physical(&self, block: u64, bytes: &[u8]) -> Result<()> {
        const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];
        let is_zero = |piece: &[u8]| piece == &ZEROS[..piece.len()];
        let mut from = 0;
        for (index, piece) in bytes.chunks(BLOCK as usize).enumerate() {
            if is_zero(piece) {
                let at = index * BLOCK as usize;
                self.write_at(block * BLOCK + from as u64, &bytes[from..at])?;
                from = at + piece.len();
            }
        }
        self.write_at(block * BLOCK + from as u64, &bytes[from..])
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.file
            .write_all_at(bytes, offset)
            .map_err(Error::io("write", &self.path))
    }
}
