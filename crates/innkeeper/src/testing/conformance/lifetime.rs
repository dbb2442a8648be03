//! Trials of VMs that live no longer than they were given.

use std::time::{Duration, Instant};

use innkeeper_api::{EventKind, VmInfo, VmState};

use super::context::{Context, kill_process, lives};
use super::{Verdict, require};

/// Time to live of the trials' VMs: longer than it takes to kill a keeper, on a slow computer too.
const LIFE: Duration = Duration::from_secs(4);

/// A VM that was started with a time to live, and when.
async fn mortal(context: &Context, name: &str) -> Verdict<(VmInfo, Instant)> {
    let mut spec = context.spec();
    spec.time_to_live = Some(LIFE);
    context.create(name, spec).await?;
    let started = Instant::now();
    Ok((context.start(name).await?, started))
}

/// It must end, not before its time, and for that reason.
async fn ends(context: &Context, name: &str, started: Instant) -> Verdict {
    context
        .until(name, "stopped", |info| info.state == VmState::Stopped)
        .await?;
    // Its time began after `started`, so it can't have ended sooner after that.
    let lived = started.elapsed();
    require!(lived >= LIFE, "it lived only {lived:?}, not {LIFE:?}");
    told(context, name)
}

/// How often its end was told.
fn told_times(context: &Context, name: &str) -> Verdict<usize> {
    let events = context.host.events(Some(name))?;
    let why = |kind: &EventKind| matches!(kind, EventKind::Note { message } if message.contains("time to live"));
    Ok(events.iter().filter(|event| why(&event.kind)).count())
}

fn told(context: &Context, name: &str) -> Verdict {
    let count = told_times(context, name)?;
    require!(count == 1, "its end was told {count} times");
    Ok(())
}

pub(super) async fn a_vm_ends_after_its_time_to_live(context: &Context) -> Verdict {
    let (_, started) = mortal(context, "mayfly").await?;
    ends(context, "mayfly", started).await?;
    // The next run has a time of its own.
    let started = Instant::now();
    context.start("mayfly").await?;
    context
        .until("mayfly", "stopped", |info| info.state == VmState::Stopped)
        .await?;
    require!(started.elapsed() >= LIFE, "its second life was shorter");
    Ok(())
}

pub(super) async fn a_paused_vm_ends_after_its_time_to_live(context: &Context) -> Verdict {
    let (_, started) = mortal(context, "asleep").await?;
    context.host.pause("asleep").await?;
    ends(context, "asleep", started).await?;
    // It can't follow a request, so none waits for that.
    let lived = started.elapsed();
    require!(
        lived < LIFE + Duration::from_secs(15),
        "it was asked to stop while its CPUs stood still, and lived {lived:?}"
    );
    Ok(())
}

pub(super) async fn a_time_to_live_that_was_added_holds_at_once(context: &Context) -> Verdict {
    let name = "condemned";
    context.running(name).await?;
    let edit = [("time_to_live".to_owned(), Some("1s".to_owned()))];
    let change = context.host.set(name, &edit, false).await?;
    require!(
        change.restart_required.is_empty(),
        "it waits for the next start: {change:?}"
    );
    context
        .until(name, "stopped", |info| info.state == VmState::Stopped)
        .await?;
    told(context, name)
}

pub(super) async fn an_adopted_vm_ends_after_its_time_to_live(context: &Context) -> Verdict {
    let (info, started) = mortal(context, "orphan").await?;
    kill_process(context, info.keeper_pid).await?;
    let after = context
        .until("orphan", "kept again", |after| {
            after.keeper_pid.is_some() && after.keeper_pid != info.keeper_pid
        })
        .await?;
    require!(after.vmm_pid == info.vmm_pid, "the hypervisor changed");
    ends(context, "orphan", started).await
}

pub(super) async fn a_vm_whose_time_passed_without_a_keeper_ends_when_one_comes(
    context: &Context,
) -> Verdict {
    let (info, started) = mortal(context, "forgotten").await?;
    kill_process(context, info.keeper_pid).await?;
    let over = LIFE + Duration::from_millis(500);
    context
        .eventually("the time to pass", || started.elapsed() > over)
        .await?;
    let hypervisor = info.vmm_pid.unwrap_or_default();
    require!(lives(hypervisor), "it ended, though nobody kept its time");
    // Looking at it brings a keeper, which finds that the time is over, and gives it no other.
    let looked = Instant::now();
    context.host.info("forgotten").await?;
    context
        .eventually("its end to be told", || {
            told_times(context, "forgotten").is_ok_and(|count| count > 0)
        })
        .await?;
    let late = looked.elapsed();
    require!(late < LIFE, "it was given {late:?} more");
    ends(context, "forgotten", started).await
}
