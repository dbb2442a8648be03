//! `inn wait`: waits until a VM is in a state.

use std::time::Duration;

use innkeeper::api::{ErrorKind, VmInfo, VmState};
use innkeeper::progress::{Progress, Unit, Update};
use innkeeper::{Host, WaitFor};

use super::{duration, is_up, ls};
use crate::failure::Result;
use crate::output::Output;
use crate::reporter::Reporter;

/// Wait until a VM is in a state: 0 when it is, 7 when the time is over, 1 when it failed instead
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn wait web                         until it is ready
  inn wait web --for stopped --timeout 2min
  inn wait web --for gone              until it has been removed")]
pub(crate) struct Args {
    /// VM
    name: String,

    /// State to wait for: any of those that ls shows, or gone
    #[arg(long = "for", value_name = "STATE", default_value = "ready", value_parser = goal)]
    goal: WaitFor,

    /// How long to wait; for ever if it is not given
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
}

impl Args {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        let reporter = Reporter::new(output);
        let show = |info: &VmInfo| {
            reporter.report(Update {
                step: "waiting",
                detail: info.reason.as_deref().unwrap_or(info.state.as_str()),
                done: 0,
                total: None,
                unit: Unit::None,
            });
        };
        let gone = self.goal == WaitFor::Gone;
        let info = host.wait(&self.name, self.goal, self.timeout, &show).await;
        reporter.finish();
        let info = match info {
            Err(error) if gone && error.kind() == ErrorKind::NotFound => {
                output.note(&format!("{} is gone", self.name));
                return Ok(0);
            }
            other => other?,
        };
        output.outcome(&self.name, &info, || match gone {
            true => format!("{} is gone", self.name),
            false => is_up(&info),
        })?;
        Ok(0)
    }
}

fn goal(text: &str) -> Result<WaitFor, String> {
    match text {
        "gone" => Ok(WaitFor::Gone),
        _ => ls::state(text).map(|state| match state {
            VmState::Ready => WaitFor::Ready,
            other => WaitFor::State(other),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_states_or_gone() {
        assert_eq!(goal("gone"), Ok(WaitFor::Gone));
        assert_eq!(goal("ready"), Ok(WaitFor::Ready));
        assert_eq!(goal("stopped"), Ok(WaitFor::State(VmState::Stopped)));
        assert!(goal("done").is_err());
    }
}
