//! Waiting for a VM to get somewhere.

use std::time::{Duration, Instant};

use innkeeper_api::{ErrorKind, VmInfo, VmState};

use super::Engine;
use crate::error::{Error, Result};

/// How often a VM without a keeper is looked at: its files tell nobody when they change.
const LOOK: Duration = Duration::from_millis(50);

/// What is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitFor {
    /// Exactly this state; `running` is also reached by `ready`.
    State(VmState),
    /// That the guest is ready as its spec says.
    Ready,
    /// That there is no such VM any more.
    Gone,
}

enum Verdict {
    Reached,
    Hopeless,
    NotYet,
}

fn judge(goal: &WaitFor, info: &VmInfo) -> Verdict {
    match (goal, info.state) {
        (WaitFor::State(VmState::Running), VmState::Ready) | (WaitFor::Ready, VmState::Ready) => {
            Verdict::Reached
        }
        (WaitFor::State(goal), now) if *goal == now => Verdict::Reached,
        (
            WaitFor::Ready | WaitFor::State(VmState::Running | VmState::Ready),
            VmState::Failed | VmState::Stopped | VmState::Suspended,
        ) => Verdict::Hopeless,
        _ => Verdict::NotYet,
    }
}

impl Engine {
    /// Waits until a VM is where it should be; `on_change` sees every change on the way.
    ///
    /// Errors: `TimedOut` after `timeout`, saying what it still waits for; `Failure` if it failed or stopped instead of becoming ready;
    /// `NotFound` if it was removed.
    pub(crate) async fn wait(
        &self,
        name: &str,
        goal: &WaitFor,
        timeout: Option<Duration>,
        on_change: &(dyn Fn(&VmInfo) + Send + Sync),
    ) -> Result<VmInfo> {
        let started = Instant::now();
        let mut last = None;
        let wait = self.wait_for(name, goal, on_change, &mut last);
        let Some(timeout) = timeout else {
            return wait.await;
        };
        match tokio::time::timeout(timeout, wait).await {
            Ok(result) => result,
            Err(_) => {
                let seconds = started.elapsed().as_secs();
                let what = last.map_or_else(String::new, |info: VmInfo| match info.reason {
                    Some(reason) => format!(": it is {} ({reason})", info.state),
                    None => format!(": it is {}", info.state),
                });
                Err(Error::new(
                    ErrorKind::TimedOut,
                    format!("{name} did not get there within {seconds} s{what}"),
                )
                .with_hint(format!(
                    "it goes on; see `inn info {name}` and `inn logs --serial {name}`"
                )))
            }
        }
    }

    async fn wait_for(
        &self,
        name: &str,
        goal: &WaitFor,
        on_change: &(dyn Fn(&VmInfo) + Send + Sync),
        last: &mut Option<VmInfo>,
    ) -> Result<VmInfo> {
        loop {
            let bundle = match self.root.bundle(name) {
                Err(error) if error.kind() == ErrorKind::NotFound && *goal == WaitFor::Gone => {
                    return last.take().ok_or(error);
                }
                other => other?,
            };
            let info = self.look(&bundle).await?;
            let mut seen = |info: &VmInfo| {
                if last.as_ref() != Some(info) {
                    on_change(info);
                    *last = Some(info.clone());
                }
                judge(goal, info)
            };
            match seen(&info) {
                Verdict::Reached => return Ok(info),
                Verdict::Hopeless => return Err(hopeless(goal, &info)),
                Verdict::NotYet => {}
            }
            if info.keeper_pid.is_some()
                && let Ok(mut watch) = self.keeper(&bundle)?.watch().await
            {
                while let Some(info) = watch.next().await? {
                    match seen(&info) {
                        Verdict::Reached => return Ok(info),
                        Verdict::Hopeless => return Err(hopeless(goal, &info)),
                        Verdict::NotYet => {}
                    }
                }
            } else {
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

fn hopeless(goal: &WaitFor, info: &VmInfo) -> Error {
    let goal = match goal {
        WaitFor::State(state) => state.as_str(),
        WaitFor::Ready => "ready",
        WaitFor::Gone => "gone",
    };
    let why = info
        .reason
        .as_ref()
        .map_or_else(String::new, |reason| format!(": {reason}"));
    Error::new(
        ErrorKind::Failure,
        format!(
            "{} is {} and will not become {goal}{why}",
            info.name, info.state
        ),
    )
    .with_hint(format!("see `inn logs {}`", info.name))
}
