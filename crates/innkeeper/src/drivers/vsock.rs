//! Sockets of the guest where its vsock device is a unix socket on the host: Cloud Hypervisor's own, and that of QEMU's daemon.
//!
//! ```text
//!  host to guest:  connect to SOCKET, say "CONNECT PORT\n", read "OK NUMBER\n"; then bytes
//!  guest to host:  the device connects to SOCKET_PORT, where we listen
//! ```
//!
//! Source: Cloud Hypervisor `docs/vsock.md`; rust-vmm `vhost-device-vsock/README.md`. Both are of Firecracker's making.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use innkeeper_api::ErrorKind;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

use crate::driver::{Channel, Vsock};
use crate::error::{Error, Result};

/// How long the guest may take to take a connection.
const DEADLINE: Duration = Duration::from_secs(5);

/// Longest answer to `CONNECT`, in bytes.
const LONGEST_ANSWER: usize = 32;

/// How long a guest may be silent, after our end was shut, before the connection is closed.
const SILENCE: Duration = Duration::from_secs(1);

/// Connections of the guest that wait to be taken.
const WAITING: usize = 16;

/// A vsock device by the socket of its host's side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct SocketVsock(pub(super) PathBuf);

impl SocketVsock {
    /// Connects to a port of the guest, for one of us: what it gives is the bare socket.
    #[cfg(target_os = "linux")]
    pub(super) async fn bare(&self, port: u32) -> io::Result<UnixStream> {
        match tokio::time::timeout(DEADLINE, connect(&self.0, port)).await {
            Ok(connected) => connected,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Removes what is left of a device that is gone.
    pub(super) fn remove(&self) {
        let _ = std::fs::remove_file(&self.0);
        remove_ports(&self.0);
    }
}

#[async_trait]
impl Vsock for SocketVsock {
    async fn connect(&self, port: u32) -> Result<Box<dyn Channel>> {
        let connected = tokio::time::timeout(DEADLINE, connect(&self.0, port)).await;
        let unreachable = |source: io::Error| {
            Error::new(
                ErrorKind::Unreachable,
                format!("nothing in the guest listens on vsock port {port}"),
            )
            .with_source(source)
        };
        let gone = |error: &io::Error| {
            matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
            )
        };
        match connected {
            // The guest can't refuse in this way: nobody listens at the device's own socket.
            Ok(Err(error)) if gone(&error) => Err(Error::new(
                ErrorKind::Unreachable,
                "the vsock device of this machine is gone: the process behind it has ended",
            )
            .with_source(error)
            .with_hint("start the VM anew")),
            Ok(Ok(stream)) => Ok(Box::new(Connection::new(stream))),
            Ok(Err(error)) => Err(unreachable(error)),
            Err(_) => Err(unreachable(io::ErrorKind::TimedOut.into())),
        }
    }

    async fn listen(&self, port: u32) -> Result<mpsc::Receiver<Box<dyn Channel>>> {
        let path = port_path(&self.0, port);
        if UnixStream::connect(&path).await.is_ok() {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("somebody listens on vsock port {port} of the host already"),
            ));
        }
        // Nobody answers there: it was left by a process that ended.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).map_err(|error| {
            Error::io(
                format!("can't listen on the socket {}", path.display()),
                error,
            )
        })?;
        let (sender, receiver) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            loop {
                let stream = tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((stream, _)) => stream,
                        Err(_) => break,
                    },
                    () = sender.closed() => break,
                };
                let channel: Box<dyn Channel> = Box::new(Connection::new(stream));
                if sender.send(channel).await.is_err() {
                    break;
                }
            }
            let _ = std::fs::remove_file(&path);
        });
        Ok(receiver)
    }
}

/// A connection by such a device, which knows no half-closed ones: when our end is shut, the device closes both directions, and what the guest
/// had yet to answer is lost. So a shut end is kept to ourselves until the guest has ended too, or has been silent for a while.
struct Connection {
    stream: UnixStream,
    /// Once our end is shut: when the silence is long enough.
    quiet_at: Option<Pin<Box<Sleep>>>,
}

impl Connection {
    fn new(stream: UnixStream) -> Self {
        Connection {
            stream,
            quiet_at: None,
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        match (
            Pin::new(&mut this.stream).poll_read(context, buffer),
            &mut this.quiet_at,
        ) {
            (Poll::Ready(read), Some(quiet_at)) => {
                quiet_at.as_mut().reset(Instant::now() + SILENCE);
                Poll::Ready(read)
            }
            // Nothing was read, which is the end for whoever reads.
            (Poll::Pending, Some(quiet_at)) => quiet_at.as_mut().poll(context).map(Ok),
            (read, None) => read,
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.quiet_at.is_none() {
            self.quiet_at = Some(Box::pin(tokio::time::sleep(SILENCE)));
        }
        Poll::Ready(Ok(()))
    }
}

/// The socket to which connections of the guest to a port of the host come.
fn port_path(socket: &Path, port: u32) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(format!("_{port}"));
    PathBuf::from(path)
}

/// Removes the sockets of ports that processes before us listened on.
fn remove_ports(socket: &Path) {
    let (Some(directory), Some(name)) = (socket.parent(), socket.file_name()) else {
        return;
    };
    let mut prefix = name.as_bytes().to_vec();
    prefix.push(b'_');
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().as_bytes().starts_with(&prefix) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

async fn connect(socket: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).await?;
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .await?;
    let mut answer = Vec::new();
    // Byte by byte, since what follows the line belongs to the guest.
    loop {
        match stream.read_u8().await? {
            b'\n' => break,
            byte if answer.len() < LONGEST_ANSWER => answer.push(byte),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
    if answer.starts_with(b"OK ") {
        Ok(stream)
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answered(answer: &'static [u8]) -> io::Result<(UnixStream, Vec<u8>)> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v");
        let listener = UnixListener::bind(&path).unwrap();
        let host = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 13];
            stream.read_exact(&mut asked).await.unwrap();
            stream.write_all(answer).await.unwrap();
            asked
        });
        let stream = connect(&path, 7007).await;
        let asked = host.await.unwrap();
        stream.map(|stream| (stream, asked))
    }

    #[tokio::test]
    async fn what_follows_the_answer_is_the_guests() {
        let (mut stream, asked) = answered(b"OK 1073741824\nhello").await.unwrap();
        assert_eq!(asked, b"CONNECT 7007\n");
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "hello");
    }

    #[tokio::test]
    async fn a_shut_end_is_told_only_when_the_guest_is_done() {
        let (ours, mut device) = UnixStream::pair().unwrap();
        let mut ours = Connection::new(ours);
        ours.write_all(b"question").await.unwrap();
        ours.shutdown().await.unwrap();
        let mut asked = vec![0; 8];
        device.read_exact(&mut asked).await.unwrap();
        let mut one = [0; 1];
        assert_eq!(
            device.try_read(&mut one).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        device.write_all(b"answer").await.unwrap();
        let mut answer = String::new();
        // The silence ends it: the device's end is open.
        ours.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
        drop(ours);
        assert_eq!(device.read(&mut one).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_refusal_is_no_connection() {
        for answer in [&b""[..], b"OK 1", b"NO\n", &[b'x'; 100]] {
            assert!(answered(answer).await.is_err(), "{answer:?}");
        }
    }

    #[test]
    fn the_ports_of_one_socket_are_removed_and_no_others() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["v.sock", "v.sock_1", "v.sock_22", "other.sock_1"] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        remove_ports(&directory.path().join("v.sock"));
        let mut left: Vec<String> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["other.sock_1", "v.sock"]);
    }
}
