//! What is at the outer end of a port: something that frames are read from and written to.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

/// How an attachment wants what is written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// The batch form itself; a write may end anywhere.
    Stream,
    /// Frame by frame; every part that is written holds whole frames.
    Whole,
}

/// The outer end of a port. It never blocks: what can't be done now is an error of kind `WouldBlock`.
pub trait Attachment: Send {
    /// Returns what becomes readable and writable.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Returns how it wants what is written.
    fn framing(&self) -> Framing;

    /// Reads frames in batch form; returns how many bytes, 0 when the other end has closed. The buffer has room for the longest frame.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; anything else means that the attachment is of no more use.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes parts of batches in order; returns how many bytes of them went.
    ///
    /// # Errors
    /// `WouldBlock` when nothing went; anything else means that the attachment is of no more use.
    fn transmit(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize>;
}
