//! A unix stream that carries frames behind their lengths, as QEMU's `-netdev stream` does. QEMU listens, since as a client it does not
//! connect again before version 8; so this end dials.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

use super::attachment::{Attachment, Framing};

/// A connected stream.
#[derive(Debug)]
pub struct StreamPort {
    stream: UnixStream,
}

impl StreamPort {
    /// Takes a connected stream.
    ///
    /// # Errors
    /// When it can't be made non-blocking.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(StreamPort { stream })
    }

    /// Connects to a listening socket, without waiting for room in its backlog.
    ///
    /// # Errors
    /// When nobody listens, or the path is longer than a socket's may be.
    pub fn dial(path: &Path) -> io::Result<Self> {
        let address = SocketAddrUnix::new(path)?;
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
        let stream = UnixStream::from(socket);
        rustix::io::fcntl_setfd(&stream, rustix::io::FdFlags::CLOEXEC)?;
        stream.set_nonblocking(true)?;
        rustix::net::connect(&stream, &address)?;
        Ok(StreamPort { stream })
    }
}

impl Attachment for StreamPort {
    fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn framing(&self) -> Framing {
        Framing::Stream
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }

    fn transmit(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        if let [part] = parts {
            self.stream.write(part)
        } else {
            self.stream.write_vectored(parts)
        }
    }
}
