//! A command in the guest, without any notion of a terminal on this side.

use super::GuestError;
use super::channel::{GuestChannel, unexpected};
use super::stream::Stream;
use innkeeper_agent::message::{AttachRequest, Closing, ExitStatus, Input, Reply, Request};
use innkeeper_agent::mux::WINDOW;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How much of a session has been received, to attach again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecPosition {
    /// The session.
    pub session: u64,
    /// Bytes of stdout that were read; none for "from the oldest that the agent keeps".
    pub stdout: Option<u64>,
    /// Bytes of stderr that were read.
    pub stderr: Option<u64>,
}

impl ExecPosition {
    /// Gives the position of somebody who has read nothing of a session yet.
    pub fn unknown(session: u64) -> ExecPosition {
        ExecPosition {
            session,
            stdout: None,
            stderr: None,
        }
    }

    pub(crate) fn request(self) -> AttachRequest {
        AttachRequest {
            session: self.session,
            stdout_offset: self.stdout,
            stderr_offset: self.stderr,
        }
    }
}

/// A running command. Its parts can be moved out and used apart; the command is let go when the last is dropped: it
/// then gets SIGHUP after its grace, unless it was started detached, [`ExecControl::detach`] was called, or it ended.
pub struct ExecSession {
    /// Standard input; shutting it down sends end of file.
    pub stdin: ExecInput,
    /// Standard output (with a terminal, all output).
    pub stdout: ExecOutput,
    /// Standard error.
    pub stderr: ExecOutput,
    /// Signals, sizes and the result.
    pub control: ExecControl,
}

impl ExecSession {
    pub(crate) async fn start(
        channel: &GuestChannel,
        request: &Request,
    ) -> Result<ExecSession, GuestError> {
        let stream = Arc::new(Stream::open(
            channel.connection(),
            request,
            [WINDOW, WINDOW],
        )?);
        let (session, pid, stdin_offset, stdout_offset, stderr_offset) =
            match stream.reply().await? {
                Reply::Started {
                    session,
                    pid,
                    stdin_offset,
                    stdout_offset,
                    stderr_offset,
                } => (session, pid, stdin_offset, stdout_offset, stderr_offset),
                other => return Err(unexpected(&other)),
            };
        let output = |channel| ExecOutput {
            stream: Arc::clone(&stream),
            channel,
        };
        Ok(ExecSession {
            stdin: ExecInput {
                stream: Arc::clone(&stream),
            },
            stdout: output(1),
            stderr: output(2),
            control: ExecControl {
                session,
                pid,
                stdin_offset,
                base: [stdout_offset, stderr_offset],
                status: None,
                stream,
                _channel: channel.clone(),
            },
        })
    }

    /// Waits for the command's end. Output that nobody reads holds the end back once it fills its window.
    pub async fn wait(&mut self) -> Result<ExitStatus, GuestError> {
        self.control.wait().await
    }

    /// Sends a signal of the guest's numbering to the command's process group.
    pub fn signal(&self, number: i32) -> Result<(), GuestError> {
        self.control.signal(number)
    }

    /// Changes the terminal's size.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<(), GuestError> {
        self.control.resize(rows, columns)
    }
}

/// Control of a running command.
pub struct ExecControl {
    session: u64,
    pid: u32,
    stdin_offset: u64,
    base: [u64; 2],
    status: Option<ExitStatus>,
    stream: Arc<Stream>,
    _channel: GuestChannel,
}

impl ExecControl {
    /// The id to attach by.
    pub fn session(&self) -> u64 {
        self.session
    }

    /// Process id in the guest.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Bytes of stdin that the agent had taken over when this session was attached: what was written beyond is to be
    /// written again.
    pub fn stdin_offset(&self) -> u64 {
        self.stdin_offset
    }

    /// Offsets of the first byte of stdout and stderr that this attachment gives.
    pub fn first_offsets(&self) -> [u64; 2] {
        self.base
    }

    /// How much was read, to attach again after the link was lost.
    pub fn position(&self) -> ExecPosition {
        ExecPosition {
            session: self.session,
            stdout: Some(self.base[0] + self.stream.consumed(1)),
            stderr: Some(self.base[1] + self.stream.consumed(2)),
        }
    }

    /// Waits for the command's end.
    pub async fn wait(&mut self) -> Result<ExitStatus, GuestError> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        match self.stream.reply().await? {
            Reply::Exited(status) => {
                self.status = Some(status);
                self.stream.set_farewell(Closing::Collected);
                Ok(status)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Sends a signal of the guest's numbering to the command's process group.
    pub fn signal(&self, number: i32) -> Result<(), GuestError> {
        self.input(&Input::Signal { number })
    }

    /// Changes the terminal's size.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<(), GuestError> {
        self.input(&Input::Resize { rows, columns })
    }

    /// Lets the command run on by itself when the session is dropped.
    pub fn detach(&self) {
        self.stream.set_farewell(Closing::Detached);
    }

    fn input(&self, input: &Input) -> Result<(), GuestError> {
        let json =
            serde_json::to_vec(input).map_err(|error| GuestError::Protocol(error.to_string()))?;
        self.stream.message(json)
    }
}

/// Standard input of a command.
pub struct ExecInput {
    stream: Arc<Stream>,
}

impl AsyncWrite for ExecInput {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream.poll_write(0, bytes, context).map_err(io_error)
    }

    /// Flushing is at once: bytes are queued for the guest, whose agent acknowledges by credit.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.end(0).map_err(io_error))
    }
}

/// Standard output or error of a command.
pub struct ExecOutput {
    stream: Arc<Stream>,
    channel: u8,
}

impl AsyncRead for ExecOutput {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        match ready!(
            self.stream
                .poll_bytes(self.channel, buffer.remaining(), context)
        ) {
            Ok(Some(bytes)) => {
                buffer.put_slice(&bytes);
                Poll::Ready(Ok(()))
            }
            Ok(None) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(io_error(error))),
        }
    }
}

fn io_error(error: GuestError) -> io::Error {
    let kind = match error {
        GuestError::LinkLost | GuestError::NotConnected => io::ErrorKind::ConnectionAborted,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
