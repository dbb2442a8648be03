//! What one batch of frames becomes: for each port the pieces of the batch that it gets, joined where they adjoin.
//!
//! Kept and used again from batch to batch, so that nothing is allocated for a frame.

use std::ops::Range;

use crate::frame::{Frame, Retag};

/// A piece of bytes in batch form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// A part of the batch that was looked at.
    Batch(Range<usize>),
    /// A part of what was written anew because its tag changed.
    Rewritten(Range<usize>),
}

/// The pieces of one batch for all ports.
#[derive(Debug, Default)]
pub struct Outbox {
    pieces: Vec<Vec<Piece>>,
    touched: Vec<usize>,
    rewritten: Vec<u8>,
}

impl Outbox {
    /// Makes an empty one.
    pub fn new() -> Self {
        Outbox::default()
    }

    /// Returns how many ports get something.
    pub fn destination_count(&self) -> usize {
        self.touched.len()
    }

    /// Returns the places of the ports that get something.
    pub(super) fn touched(&self) -> &[usize] {
        &self.touched
    }

    /// Returns the pieces for a port, in order, as bytes. `batch` is what was looked at.
    pub(super) fn parts<'a>(
        &'a self,
        port: usize,
        batch: &'a [u8],
    ) -> impl Iterator<Item = &'a [u8]> {
        self.pieces[port].iter().map(move |piece| match piece {
            Piece::Batch(range) => &batch[range.clone()],
            Piece::Rewritten(range) => &self.rewritten[range.clone()],
        })
    }

    #[inline]
    fn pieces_of(&mut self, port: usize) -> &mut Vec<Piece> {
        if self.pieces.len() <= port {
            self.pieces.resize_with(port + 1, Vec::new);
        }
        let pieces = &mut self.pieces[port];
        if pieces.is_empty() {
            self.touched.push(port);
        }
        pieces
    }

    /// Gives a port a part of the batch.
    #[inline]
    pub(super) fn give(&mut self, port: usize, part: Range<usize>) {
        let pieces = self.pieces_of(port);
        match pieces.last_mut() {
            Some(Piece::Batch(last)) if last.end == part.start => last.end = part.end,
            _ => pieces.push(Piece::Batch(part)),
        }
    }

    /// Gives a port a frame with its tag changed.
    pub(super) fn give_retagged(&mut self, port: usize, frame: Frame<'_>, retag: Retag) {
        let start = self.rewritten.len();
        retag.push(frame, &mut self.rewritten);
        let part = start..self.rewritten.len();
        let pieces = self.pieces_of(port);
        match pieces.last_mut() {
            Some(Piece::Rewritten(last)) if last.end == part.start => last.end = part.end,
            _ => pieces.push(Piece::Rewritten(part)),
        }
    }

    /// Empties it, keeping its room.
    pub(super) fn clear(&mut self) {
        for port in self.touched.drain(..) {
            self.pieces[port].clear();
        }
        self.rewritten.clear();
    }
}
