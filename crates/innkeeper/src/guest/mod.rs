//! The host's side of the guest agent: commands, copies and facts over one byte pipe, and the keeper's relay.
//!
//! ```text
//!  program ─ GuestChannel ─► keeper: relay ─ GuestChannel ─► virtio-serial ─► inn-agent
//! ```
//! A [`GuestChannel`] works over any byte stream: the keeper's over the hypervisor's socket, a client's over a
//! connection to the keeper, which [`relay()`] serves with the same frames. Streams have end-to-end credit, so the keeper
//! holds at most a window per stream. What the agent says is hostile input: all lengths are bounded by
//! [`innkeeper_agent::mux`], and copied trees by [`innkeeper_agent::copy`].
//!
//! A silent agent is told ([`AgentPhase::Silent`]) and never acted upon: nothing here ends a VM or a command for it.

mod channel;
mod connection;
mod copy;
mod exec;
mod relay;
mod replay;
mod stream;
mod vsock;

pub use channel::{AgentPhase, AgentStatus, ChannelOptions, GuestChannel};
pub use copy::CopyProgress;
pub use exec::{ExecControl, ExecInput, ExecOutput, ExecPosition, ExecSession};
pub use innkeeper_agent::message;
pub use relay::relay;
pub use replay::InputReplay;
pub(crate) use vsock::VsockOpening;

use innkeeper_agent::message::{Closing, ErrorKind, Failure};
use std::path::PathBuf;

/// Why something with the guest failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// The agent is not (or no longer) reachable.
    #[error("the guest's agent cannot be reached: the link is not established")]
    NotConnected,
    /// The link was lost in the middle; an exec session can be attached again.
    #[error("the link to the guest's agent was lost")]
    LinkLost,
    /// The agent speaks another major version of the protocol.
    #[error(
        "the guest's agent speaks protocol version {0}, which this program does not: update the agent"
    )]
    Incompatible(u16),
    /// The command does not exist in the guest (exit code 127).
    #[error("{0}")]
    CommandNotFound(String),
    /// The command can't be executed in the guest (exit code 126).
    #[error("{0}")]
    CannotExecute(String),
    /// The agent refused or failed.
    #[error("{}", .0.message)]
    Agent(Failure),
    /// The agent answered what it should not.
    #[error("the guest's agent broke the protocol: {0}")]
    Protocol(String),
    /// A copy failed on this side.
    #[error("cannot copy {}", path.display())]
    Copy {
        /// Path on the host.
        path: PathBuf,
        /// Why.
        source: innkeeper_agent::copy::CopyError,
    },
    /// A limit was reached.
    #[error("cannot ask the guest's agent")]
    Send(#[source] innkeeper_agent::mux::SendError),
    /// The deadline passed.
    #[error("the guest's agent did not answer in {0:?}")]
    TimedOut(std::time::Duration),
}

impl GuestError {
    fn closed(closing: Closing) -> GuestError {
        match closing {
            Closing::Failed(failure) => {
                let message = one_sentence(&failure.message);
                match failure.kind {
                    ErrorKind::LinkLost => GuestError::LinkLost,
                    ErrorKind::CommandNotFound => GuestError::CommandNotFound(message),
                    ErrorKind::CannotExecute => GuestError::CannotExecute(message),
                    ErrorKind::Protocol => GuestError::Protocol(message),
                    kind => GuestError::Agent(Failure { kind, message }),
                }
            }
            Closing::Gone => GuestError::LinkLost,
            _ => GuestError::Protocol("it ended the stream before it answered".to_owned()),
        }
    }
}

/// Longest sentence that is taken from a guest, in characters.
const LONGEST_SENTENCE: usize = 2000;

/// Returns a guest's sentence as it may be shown: it can't begin a line of its own, move a cursor, or fill a screen.
fn one_sentence(message: &str) -> String {
    let mut shown = String::new();
    for character in message.chars().take(LONGEST_SENTENCE) {
        match character.is_control() {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    shown
}

impl From<innkeeper_agent::mux::SendError> for GuestError {
    fn from(error: innkeeper_agent::mux::SendError) -> GuestError {
        use innkeeper_agent::mux::SendError;
        match error {
            SendError::NotEstablished => GuestError::NotConnected,
            SendError::NoStream => GuestError::LinkLost,
            other => GuestError::Send(other),
        }
    }
}
