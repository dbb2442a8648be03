//! The connection to the guest agent's port, of which there is one at a time.
//!
//! QEMU serves one client per socket and lets the next one wait until the first is gone, and so does the agent where it listens itself. So
//! that a new channel replaces the old one, the old one's socket is shut down here, whoever still holds it. It does not know what is said
//! over it.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// Opens channels, the newest replacing the one before.
#[derive(Debug, Default)]
pub(super) struct AgentChannels {
    current: Mutex<Weak<UnixStream>>,
    /// A connection that was made before anybody asked for one.
    early: Mutex<Option<UnixStream>>,
}

impl AgentChannels {
    /// Keeps a connection for the first who opens a channel.
    pub(super) fn connected(early: Option<UnixStream>) -> Self {
        AgentChannels {
            early: Mutex::new(early),
            ..AgentChannels::default()
        }
    }

    /// Opens a channel and shuts the one before.
    pub(super) async fn open(&self, path: &Path) -> io::Result<AgentChannel> {
        let early = self
            .early
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        Ok(self.take(match early {
            Some(stream) => stream,
            None => UnixStream::connect(path).await?,
        }))
    }

    /// Makes a channel of a connection and shuts the one before.
    pub(super) fn take(&self, stream: UnixStream) -> AgentChannel {
        let stream = Arc::new(stream);
        let before = {
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *current, Arc::downgrade(&stream))
        };
        if let Some(before) = before.upgrade() {
            // Fails only if QEMU has closed it already.
            let _ = rustix::net::shutdown(&*before, rustix::net::Shutdown::Both);
        }
        AgentChannel { stream }
    }
}

/// A connection to the agent's port. Ends, reading as end of stream, when it is replaced.
#[derive(Debug)]
pub(super) struct AgentChannel {
    stream: Arc<UnixStream>,
}

impl AsyncRead for AgentChannel {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            match self.stream.try_read(buffer.initialize_unfilled()) {
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for AgentChannel {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(context))?;
            match self.stream.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = rustix::net::shutdown(&*self.stream, rustix::net::Shutdown::Write);
        Poll::Ready(done.map_err(io::Error::from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    #[tokio::test]
    async fn a_new_channel_ends_the_old_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent");
        let listener = UnixListener::bind(&path).unwrap();
        let channels = AgentChannels::default();
        let mut first = channels.open(&path).await.unwrap();
        let (mut first_peer, _) = listener.accept().await.unwrap();
        first.write_all(b"one").await.unwrap();
        let mut three = [0; 3];
        first_peer.read_exact(&mut three).await.unwrap();

        let mut second = channels.open(&path).await.unwrap();
        assert_eq!(first.read(&mut three).await.unwrap(), 0);
        assert_eq!(first_peer.read(&mut three).await.unwrap(), 0);
        let (mut second_peer, _) = listener.accept().await.unwrap();
        second_peer.write_all(b"two").await.unwrap();
        second.read_exact(&mut three).await.unwrap();
        assert_eq!(&three, b"two");
        drop(second);
        assert_eq!(second_peer.read(&mut three).await.unwrap(), 0);
    }
}
