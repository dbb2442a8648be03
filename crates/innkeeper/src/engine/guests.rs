//! Ways into guests: a channel to the agent, through the keeper.

use std::time::Duration;

use innkeeper_api::ErrorKind;

use super::Engine;
use crate::error::{Error, Result};
use crate::guest::{ChannelOptions, GuestChannel, GuestError};

/// How long a keeper may take to answer with the agent's hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

impl Engine {
    /// Opens a way to a running VM's agent.
    pub(crate) async fn guest(&self, name: &str) -> Result<GuestChannel> {
        let bundle = self.root.bundle(name)?;
        let keeper = self.keeper(&bundle)?;
        // The usual case in one exchange; only if there is no keeper the VM is looked at.
        let stream = match keeper.agent_stream().await {
            Err(error) if error.kind() == ErrorKind::Unreachable => {
                let info = self.look(&bundle).await?;
                if info.vmm_pid.is_none() {
                    return Err(Error::new(
                        ErrorKind::Conflict,
                        format!("{name} is {}, it does not run", info.state),
                    )
                    .with_hint(format!("start it with `inn start {name}`")));
                }
                keeper.agent_stream().await?
            }
            other => other?,
        };
        let options = ChannelOptions {
            ping_interval: None,
            ..ChannelOptions::default()
        };
        let channel = GuestChannel::start(stream, options);
        channel.ready(HELLO_TIMEOUT).await.map_err(|error| {
            Error::from(error).while_doing(format!("can't reach the agent of {name}"))
        })?;
        Ok(channel)
    }
}

impl From<GuestError> for Error {
    fn from(error: GuestError) -> Error {
        use innkeeper_agent::message::ErrorKind as Agent;
        let kind = match &error {
            GuestError::NotConnected | GuestError::LinkLost => ErrorKind::Unreachable,
            GuestError::Incompatible(_) => ErrorKind::Unsupported,
            GuestError::CommandNotFound(_) => ErrorKind::NotFound,
            GuestError::CannotExecute(_) => ErrorKind::NotPermitted,
            GuestError::TimedOut(_) => ErrorKind::TimedOut,
            GuestError::Agent(failure) => match failure.kind {
                Agent::NotFound => ErrorKind::NotFound,
                Agent::NotPermitted => ErrorKind::NotPermitted,
                Agent::Unsupported => ErrorKind::Unsupported,
                _ => ErrorKind::Failure,
            },
            _ => ErrorKind::Failure,
        };
        let message = error.to_string();
        let mut wrapped = Error::new(kind, message);
        if let Some(source) = std::error::Error::source(&error) {
            wrapped = wrapped.with_source(source.to_string());
        }
        wrapped
    }
}
