//! Trials of suspends, starts and resumes that meet each other.

use std::time::Duration;

use innkeeper_api::{Admission, ErrorKind, VmState};

use super::context::Context;
use super::pausing::until_running;
use super::saving::{is_suspended, nothing_half_saved, remembering};
use super::{Failure, Verdict, require};

/// Waits until nothing is being done to a VM, then makes it run, and looks whether its memory is what it was.
async fn settles_with(context: &Context, name: &str, memory: &str, round: &str) -> Verdict {
    let passing = |state| {
        matches!(
            state,
            VmState::Pausing | VmState::Resuming | VmState::Suspending | VmState::Starting
        )
    };
    let info = context
        .until(name, "settled", |info| !passing(info.state))
        .await?;
    match info.state {
        VmState::Suspended => drop(context.host.start(name).await?),
        VmState::Paused => drop(context.host.resume(name).await?),
        VmState::Running | VmState::Ready => {}
        other => {
            return Err(Failure::new(format!(
                "{round}: it is {other} ({:?})",
                info.reason
            )));
        }
    }
    nothing_half_saved(&info)?;
    context
        .recalls(name, memory)
        .await
        .map_err(|failure| Failure::new(format!("{round}: {failure}")))
}

pub(super) async fn a_resume_that_races_a_suspend_leaves_order(context: &Context) -> Verdict {
    let (_, memory) = remembering(context, "hasty").await?;
    for milliseconds in [0, 2, 10, 40, 150] {
        let round = format!("a resume after {milliseconds} ms");
        let resume = async {
            // poll: this round's moment for the resume
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            context.host.resume("hasty").await
        };
        let (suspend, resume) = tokio::join!(context.host.suspend("hasty"), resume);
        for error in [suspend.err(), resume.err()].into_iter().flatten() {
            require!(
                matches!(
                    error.kind(),
                    ErrorKind::Conflict | ErrorKind::Interrupted | ErrorKind::Unreachable
                ),
                "{round}: {}",
                Failure::from(error)
            );
        }
        settles_with(context, "hasty", &memory, &round).await?;
    }
    context.host.kill("hasty").await?;
    Ok(())
}

pub(super) async fn suspends_and_starts_dropped_midway_leave_order(context: &Context) -> Verdict {
    let (_, memory) = remembering(context, "dropped").await?;
    for milliseconds in [1, 15, 80] {
        let soon = Duration::from_millis(milliseconds);
        // Whatever comes of each: what counts is what is there afterwards.
        let _ = tokio::time::timeout(soon, context.host.suspend("dropped")).await;
        let _ = tokio::time::timeout(soon, context.host.start("dropped")).await;
        let _ = tokio::time::timeout(soon, context.host.pause("dropped")).await;
        let _ = tokio::time::timeout(soon, context.host.resume("dropped")).await;
        let round = format!("dropped after {milliseconds} ms");
        settles_with(context, "dropped", &memory, &round).await?;
    }
    context.host.kill("dropped").await?;
    Ok(())
}

pub(super) async fn of_two_suspends_at_once_both_tell_the_truth(context: &Context) -> Verdict {
    let (_, memory) = remembering(context, "pair").await?;
    let (one, other) = tokio::join!(context.host.suspend("pair"), context.host.suspend("pair"));
    require!(
        one.is_ok() || other.is_ok(),
        "neither succeeded: {one:?}, {other:?}"
    );
    for error in [one.err(), other.err()].into_iter().flatten() {
        require!(
            error.kind() == ErrorKind::Conflict,
            "{}",
            Failure::from(error)
        );
    }
    is_suspended(context, "pair").await?;
    let (one, other) = tokio::join!(context.host.start("pair"), context.host.start("pair"));
    let won = [one?, other?];
    require!(
        won.iter()
            .filter(|admission| **admission == Admission::Enqueued)
            .count()
            == 1,
        "of two starts at once {won:?} won"
    );
    context.recalls("pair", &memory).await?;
    context.host.kill("pair").await?;
    Ok(())
}

pub(super) async fn a_suspend_and_a_start_tell_every_change(context: &Context) -> Verdict {
    remembering(context, "told").await?;
    context.host.suspend("told").await?;
    context.host.start("told").await?;
    until_running(context, "told").await?;
    let mut at = VmState::Stopped;
    let mut path = Vec::new();
    for event in context.host.events(Some("told"))? {
        if let innkeeper_api::EventKind::State { from, to, .. } = event.kind {
            require!(from == at, "an event goes from {from}, but it was {at}");
            at = to;
            path.push(to.as_str());
        }
    }
    let words: Vec<&str> = path
        .iter()
        .copied()
        .filter(|word| *word != "ready")
        .collect();
    require!(
        words
            == [
                "starting",
                "running",
                "suspending",
                "suspended",
                "resuming",
                "running"
            ],
        "the states were told as {path:?}"
    );
    context.host.kill("told").await?;
    Ok(())
}
