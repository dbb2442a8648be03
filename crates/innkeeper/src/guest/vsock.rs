//! Connections to vsock ports of a guest that has no vsock device: by its agent, and the loopback of its kernel.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use innkeeper_agent::message::{Request, VsockDirection, VsockProblem, VsockStatus};
use innkeeper_api::ErrorKind;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::channel::GuestChannel;
use super::exec::{ExecControl, ExecInput, ExecOutput, ExecSession};
use super::one_sentence;
use crate::error::{Error, Result};

/// Longest line in which the agent's program says what came of it, in bytes.
const LONGEST_STATUS: usize = 4096;

/// A connection that the agent is making, or waits for. Dropped, it is given up.
pub(crate) struct VsockOpening {
    session: ExecSession,
    direction: VsockDirection,
    port: u32,
}

/// A connection to a vsock port of the guest; the agent's program in the guest ends with it.
pub(crate) struct AgentVsock {
    input: ExecInput,
    output: ExecOutput,
    _rest: (ExecOutput, ExecControl),
}

impl GuestChannel {
    /// Begins to connect to a vsock port on which a program of the guest listens, or to wait for one that connects to it: the agent listens
    /// when this returns.
    ///
    /// Errors: `Unsupported` if the agent or the guest's kernel can't, `Conflict` if a program of the guest has the port that is to be
    /// waited at.
    pub(crate) async fn vsock(&self, direction: VsockDirection, port: u32) -> Result<VsockOpening> {
        let hello = self.status().borrow().hello.clone();
        if !hello.is_some_and(|hello| hello.features.iter().any(|known| known == "vsock")) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the agent in the guest is too old to join vsock ports",
            )
            .with_hint("update the agent in the guest"));
        }
        let request = Request::Vsock { direction, port };
        let mut opening = VsockOpening {
            session: ExecSession::start(self, &request).await?,
            direction,
            port,
        };
        if direction == VsockDirection::Accept {
            opening.expect(VsockStatus::Listening).await?;
        }
        Ok(opening)
    }
}

impl VsockOpening {
    /// Waits for the connection. Errors: `Unreachable` if nothing listens, `Unsupported` if the guest's kernel can't.
    pub(crate) async fn connected(mut self) -> Result<AgentVsock> {
        self.expect(VsockStatus::Connected).await?;
        let ExecSession {
            stdin,
            stdout,
            stderr,
            control,
        } = self.session;
        Ok(AgentVsock {
            input: stdin,
            output: stdout,
            _rest: (stderr, control),
        })
    }

    async fn expect(&mut self, wanted: VsockStatus) -> Result<()> {
        let silent = || {
            Error::new(
                ErrorKind::Unreachable,
                "the agent in the guest did not say what came of the connection",
            )
        };
        let line = first_line(&mut self.session.stderr)
            .await
            .map_err(|source| silent().with_source(source))?;
        match serde_json::from_slice(&line) {
            Ok(VsockStatus::Failed { problem, message }) => Err(failed(
                self.direction,
                self.port,
                problem,
                &one_sentence(&message),
            )),
            Ok(status) if status == wanted => Ok(()),
            Ok(_) => Err(silent()),
            Err(source) => Err(silent().with_source(source)),
        }
    }
}

fn failed(direction: VsockDirection, port: u32, problem: VsockProblem, said: &str) -> Error {
    match (problem, direction) {
        (VsockProblem::NoVsock, _) => Error::new(
            ErrorKind::Unsupported,
            format!("the guest's kernel has no vsock loopback: {said}"),
        )
        .with_hint("load vsock_loopback in the guest"),
        (VsockProblem::InUse, _) => Error::new(
            ErrorKind::Conflict,
            format!("a program in the guest, or another `inn vsock`, listens on vsock port {port}"),
        ),
        (VsockProblem::Unreachable, VsockDirection::Connect) => Error::new(
            ErrorKind::Unreachable,
            format!("nothing in the guest listens on vsock port {port}: {said}"),
        ),
        (VsockProblem::Unreachable, VsockDirection::Accept) => Error::new(
            ErrorKind::Unreachable,
            format!("the agent in the guest can't listen on vsock port {port}: {said}"),
        ),
    }
}

/// Reads up to a newline, or to the end; an end before any is what was read.
async fn first_line(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        if from.read(&mut byte).await? == 0 || byte[0] == b'\n' {
            return Ok(line);
        }
        if line.len() == LONGEST_STATUS {
            return Err(io::ErrorKind::InvalidData.into());
        }
        line.push(byte[0]);
    }
}

impl AsyncRead for AgentVsock {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.output).poll_read(context, buffer)
    }
}

impl AsyncWrite for AgentVsock {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.input).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_is_bounded_and_what_follows_it_stays() {
        let mut said = &b"{\"vsock\":\"connected\"}\nrest"[..];
        let line = first_line(&mut said).await.unwrap();
        assert_eq!(
            serde_json::from_slice::<VsockStatus>(&line).unwrap(),
            VsockStatus::Connected
        );
        assert_eq!(said, b"rest");
        let endless = vec![b'x'; LONGEST_STATUS + 1];
        assert!(first_line(&mut &endless[..]).await.is_err());
    }

    #[test]
    fn an_unknown_problem_is_no_connection_all_the_same() {
        let status: VsockStatus =
            serde_json::from_str(r#"{"vsock":"failed","problem":"new","message":"m"}"#).unwrap();
        let VsockStatus::Failed { problem, message } = status else {
            panic!("{status:?}");
        };
        let error = failed(VsockDirection::Connect, 5, problem, &message);
        assert_eq!(error.kind(), ErrorKind::Unreachable);
    }
}
