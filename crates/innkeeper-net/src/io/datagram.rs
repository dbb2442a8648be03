//! A unix datagram socket, a frame each: an end of a socketpair, as Virtualization.framework takes the other of.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;

use super::attachment::{Attachment, Framing};
use crate::batch;

/// A connected datagram socket.
#[derive(Debug)]
pub struct DatagramPort {
    socket: UnixDatagram,
}

impl DatagramPort {
    /// Takes a connected socket.
    ///
    /// # Errors
    /// When it can't be made non-blocking.
    pub fn new(socket: UnixDatagram) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(DatagramPort { socket })
    }
}

/// Fills a buffer with frames that `next` reads one at a time, as long as the longest still fits.
pub(super) fn receive_each(
    buffer: &mut [u8],
    mut next: impl FnMut(&mut [u8]) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(room) =
        buffer.get_mut(filled + batch::PREFIX..filled + batch::PREFIX + batch::LONGEST)
    {
        match next(room) {
            Ok(length) => {
                let prefix = batch::prefix(length.min(batch::LONGEST));
                buffer[filled..filled + batch::PREFIX].copy_from_slice(&prefix);
                filled += batch::PREFIX + length;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && filled > 0 => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Gives the frames of parts to `send` one at a time, until it would block; returns the bytes of those that went.
pub(super) fn transmit_each(
    parts: &[IoSlice<'_>],
    mut send: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<usize> {
    let mut went = 0;
    for frame in parts.iter().flat_map(|part| batch::frames(part)) {
        match send(frame) {
            Ok(()) => went += batch::PREFIX + frame.len(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && went > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(went)
}

impl Attachment for DatagramPort {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn framing(&self) -> Framing {
        Framing::Whole
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        receive_each(buffer, |room| self.socket.recv(room))
    }

    fn transmit(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        transmit_each(parts, |frame| match self.socket.send(frame) {
            Ok(_) => Ok(()),
            // A frame that the socket will never take is lost, not in the way of those behind it. So is one for which macOS has no
            // buffer: it calls the socket writable all the same, so there is nothing to wait for.
            Err(error) if is_loss(&error) => Ok(()),
            Err(error) => Err(error),
        })
    }
}

fn is_loss(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let losses = [Errno::MSGSIZE, Errno::NOBUFS];
    losses
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
