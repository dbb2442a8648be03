//! Trials of starting, stopping and ending.

use std::time::{Duration, Instant};

use innkeeper_api::{Admission, ErrorKind, EventKind, StoppedBy, VmState};
use rustix::process::Signal;

use super::context::{Context, refused, signal};
use super::{Act, Failure, Verdict, Word, require};
use crate::host::{StopOptions, WaitFor};
use crate::spec::ReadyWhen;

pub(super) async fn starts_stops_and_starts_again(context: &Context) -> Verdict {
    let name = "again";
    context.create(name, context.spec()).await?;
    for _ in 0..2 {
        let info = context.start_ready(name).await?;
        require!(info.state == VmState::Ready, "it is {}", info.state);
        require!(
            info.vmm_pid.is_some() && info.keeper_pid.is_some(),
            "a running VM without processes: {info:?}"
        );
        let outcome = context.host.stop(name, context.gently()).await?;
        require!(outcome.by != StoppedBy::Kill, "a gentle stop killed it");
        let info = context.expect_state(name, VmState::Stopped).await?;
        require!(
            info.vmm_pid.is_none() && info.reason.is_none(),
            "a stopped VM tells {info:?}"
        );
    }
    Ok(())
}

pub(super) async fn a_second_start_is_already_so(context: &Context) -> Verdict {
    let before = context.running("twice").await?;
    let admission = context.host.start("twice").await?;
    require!(
        admission == Admission::AlreadySo,
        "the second start was {admission:?}"
    );
    let after = context.host.info("twice").await?;
    require!(
        after.vmm_pid == before.vmm_pid,
        "the second start changed the hypervisor"
    );
    context.host.kill("twice").await?;
    Ok(())
}

pub(super) async fn of_two_starts_at_once_one_wins(context: &Context) -> Verdict {
    let name = "race";
    context.create(name, context.spec()).await?;
    for round in 0..3 {
        let (one, other, third) = tokio::join!(
            context.host.start(name),
            context.host.start(name),
            context.host.start(name)
        );
        let admissions = [one?, other?, third?];
        let won = admissions
            .iter()
            .filter(|admission| **admission == Admission::Enqueued)
            .count();
        require!(
            won == 1,
            "round {round}: {won} of three starts at once won: {admissions:?}"
        );
        let info = context.host.info(name).await?;
        require!(
            info.vmm_pid.is_some(),
            "round {round}: no hypervisor runs; it is {}",
            info.state
        );
        context.host.kill(name).await?;
    }
    Ok(())
}

pub(super) async fn a_stopped_vm_is_stopped_and_killed_already(context: &Context) -> Verdict {
    context.create("idle", context.spec()).await?;
    for outcome in [
        context.host.stop("idle", context.gently()).await?,
        context.host.kill("idle").await?,
    ] {
        require!(
            outcome.by == StoppedBy::AlreadyStopped,
            "it was stopped by {:?}",
            outcome.by
        );
    }
    context.expect_state("idle", VmState::Stopped).await?;
    refused(
        "a stop of nothing",
        context.host.stop("nobody", context.gently()).await,
        ErrorKind::NotFound,
        &["nobody"],
    )
}

pub(super) async fn two_kills_at_once_both_succeed(context: &Context) -> Verdict {
    context.running("doomed").await?;
    let (one, other) = tokio::join!(context.host.kill("doomed"), context.host.kill("doomed"));
    let by = [one?.by, other?.by];
    require!(by.contains(&StoppedBy::Kill), "it was ended by {by:?}");
    require!(
        by.iter()
            .all(|by| matches!(by, StoppedBy::Kill | StoppedBy::AlreadyStopped)),
        "it was ended by {by:?}"
    );
    context.expect_state("doomed", VmState::Stopped).await?;
    let again = context.host.kill("doomed").await?;
    require!(
        again.by == StoppedBy::AlreadyStopped,
        "a kill of a stopped VM: {:?}",
        again.by
    );
    Ok(())
}

pub(super) async fn stops_by_the_agent_and_says_so(context: &Context) -> Verdict {
    context.ready("polite").await?;
    let outcome = context.host.stop("polite", context.gently()).await?;
    require!(
        outcome.by == StoppedBy::Agent,
        "it stopped by {:?}",
        outcome.by
    );
    // A guest that takes no time to power off shows what the manager adds.
    if context.setup.guest.can(Act::Exit).is_ok() {
        require!(
            outcome.elapsed_ms < 1000,
            "the stop took {} ms",
            outcome.elapsed_ms
        );
    }
    context
        .expect_state("polite", VmState::Stopped)
        .await
        .map(drop)
}

pub(super) async fn stops_by_the_power_button_and_says_so(context: &Context) -> Verdict {
    let mut spec = context.spec_that_is(Word::ButtonOnly)?;
    let heeds = context.setup.guest.heeds_the_button();
    spec.ready = Some(heeds.map_or(ReadyWhen::None, |said| ReadyWhen::Serial(said.to_owned())));
    context.create("button", spec).await?;
    context.start_ready("button").await?;
    let outcome = context.host.stop("button", context.gently()).await?;
    require!(
        outcome.by == StoppedBy::PowerButton,
        "it stopped by {:?}",
        outcome.by
    );
    context
        .expect_state("button", VmState::Stopped)
        .await
        .map(drop)
}

pub(super) async fn a_stop_waits_for_an_agent_that_is_still_coming(context: &Context) -> Verdict {
    context
        .create("early", context.spec_that_is(Word::NoButton)?)
        .await?;
    for _ in 0..3 {
        // Not waited for: the guest has just begun, and its agent has not said hello.
        context.host.start("early").await?;
        let outcome = context.host.stop("early", context.gently()).await?;
        require!(
            outcome.by == StoppedBy::Agent,
            "it stopped by {:?}",
            outcome.by
        );
        context.expect_state("early", VmState::Stopped).await?;
    }
    Ok(())
}

async fn deaf(context: &Context, name: &str) -> Verdict<innkeeper_api::VmInfo> {
    let mut spec = context.spec_that_is(Word::Deaf)?;
    spec.ready = Some(ReadyWhen::None);
    context.create(name, spec).await?;
    context.start_ready(name).await
}

pub(super) async fn a_stop_that_times_out_leaves_it_running(context: &Context) -> Verdict {
    let before = deaf(context, "deaf").await?;
    let options = StopOptions {
        timeout: Duration::from_millis(600),
        force: false,
    };
    refused(
        "the stop",
        context.host.stop("deaf", options).await,
        ErrorKind::TimedOut,
        &["deaf", "left running"],
    )?;
    let after = context.host.info("deaf").await?;
    require!(
        matches!(after.state, VmState::Running | VmState::Ready),
        "it is {}",
        after.state
    );
    require!(after.vmm_pid == before.vmm_pid, "its hypervisor changed");
    let outcome = context.host.kill("deaf").await?;
    require!(
        outcome.by == StoppedBy::Kill,
        "it was ended by {:?}",
        outcome.by
    );
    Ok(())
}

pub(super) async fn a_forced_stop_kills_after_its_timeout(context: &Context) -> Verdict {
    deaf(context, "deaf").await?;
    let timeout = Duration::from_millis(600);
    let outcome = context
        .host
        .stop(
            "deaf",
            StopOptions {
                timeout,
                force: true,
            },
        )
        .await?;
    require!(
        outcome.by == StoppedBy::Kill,
        "it was ended by {:?}",
        outcome.by
    );
    require!(
        outcome.elapsed_ms >= 600,
        "it was killed after {} ms already",
        outcome.elapsed_ms
    );
    context
        .expect_state("deaf", VmState::Stopped)
        .await
        .map(drop)
}

pub(super) async fn a_kill_ends_a_launch(context: &Context) -> Verdict {
    context
        .create("slow", context.spec_that_is(Word::SlowLaunch)?)
        .await?;
    let started = Instant::now();
    let kill = async {
        context
            .until("slow", "starting", |info| info.state == VmState::Starting)
            .await?;
        Verdict::Ok(context.host.kill("slow").await?)
    };
    let (start, kill) = tokio::join!(context.host.start("slow"), kill);
    let outcome = kill?;
    require!(
        outcome.by == StoppedBy::Kill,
        "it was ended by {:?}",
        outcome.by
    );
    require!(
        started.elapsed() < Duration::from_secs(5),
        "the kill waited for the launch: {:?}",
        started.elapsed()
    );
    refused(
        "the start that was killed",
        start,
        ErrorKind::Interrupted,
        &["slow"],
    )?;
    let info = context.expect_state("slow", VmState::Stopped).await?;
    require!(
        info.vmm_pid.is_none(),
        "a hypervisor is left: {:?}",
        info.vmm_pid
    );
    Ok(())
}

pub(super) async fn a_failed_launch_is_told_and_can_be_mended(context: &Context) -> Verdict {
    let before = context.spec().boot.cmdline;
    context
        .create("broken", context.spec_that_is(Word::FailingLaunch)?)
        .await?;
    for _ in 0..2 {
        refused(
            "the start",
            context.host.start("broken").await,
            ErrorKind::Failure,
            &["broken", "as told"],
        )?;
        let info = context.expect_state("broken", VmState::Failed).await?;
        let reason = info.reason.unwrap_or_default();
        require!(
            reason.contains("as told"),
            "its reason lacks the hypervisor's words: {reason}"
        );
    }
    context
        .host
        .set("broken", &[("boot.cmdline".to_owned(), before)], false)
        .await?;
    context.start("broken").await?;
    context.host.kill("broken").await?;
    context
        .expect_state("broken", VmState::Stopped)
        .await
        .map(drop)
}

pub(super) async fn a_stop_that_races_a_start_leaves_order(context: &Context) -> Verdict {
    let name = "hasty";
    context.create(name, context.spec()).await?;
    for round in 0..3 {
        let options = StopOptions {
            timeout: Duration::from_millis(300),
            force: true,
        };
        let (start, stop) =
            tokio::join!(context.host.start(name), context.host.stop(name, options));
        for (what, error) in [("start", start.err()), ("stop", stop.err())] {
            if let Some(error) = error {
                let kind = error.kind();
                require!(
                    matches!(
                        kind,
                        ErrorKind::Conflict | ErrorKind::Interrupted | ErrorKind::Unreachable
                    ),
                    "round {round}: the {what} failed: {}",
                    Failure::from(error)
                );
            }
        }
        let info = context
            .until(name, "settled", |info| {
                !matches!(info.state, VmState::Starting | VmState::Stopping)
            })
            .await?;
        require!(
            matches!(
                info.state,
                VmState::Running | VmState::Ready | VmState::Stopped
            ),
            "round {round}: it is {} ({:?})",
            info.state,
            info.reason
        );
        context.host.kill(name).await?;
        context.expect_state(name, VmState::Stopped).await?;
    }
    Ok(())
}

pub(super) async fn restarts(context: &Context) -> Verdict {
    let before = context.ready("anew").await?;
    let outcome = context.host.restart("anew", context.gently()).await?;
    require!(
        outcome.by == StoppedBy::Agent,
        "it stopped by {:?}",
        outcome.by
    );
    let after = context.wait_ready("anew").await?;
    require!(
        after.vmm_pid.is_some() && after.vmm_pid != before.vmm_pid,
        "no new hypervisor runs"
    );
    context.host.kill("anew").await?;
    Ok(())
}

pub(super) async fn a_restart_starts_what_is_stopped(context: &Context) -> Verdict {
    context.create("cold", context.spec()).await?;
    let outcome = context.host.restart("cold", context.gently()).await?;
    require!(
        outcome.by == StoppedBy::AlreadyStopped,
        "it stopped by {:?}",
        outcome.by
    );
    let info = context.host.info("cold").await?;
    require!(
        info.vmm_pid.is_some(),
        "it does not run; it is {}",
        info.state
    );
    context.host.kill("cold").await?;
    Ok(())
}

pub(super) async fn a_restart_that_cannot_start_is_told(context: &Context) -> Verdict {
    let words = context.spec_that_is(Word::FailingLaunch)?.boot.cmdline;
    context.ready("halfway").await?;
    context
        .host
        .set("halfway", &[("boot.cmdline".to_owned(), words)], false)
        .await?;
    let restarted = context.host.restart("halfway", context.gently()).await;
    refused(
        "the restart",
        restarted,
        ErrorKind::Failure,
        &["halfway", "as told"],
    )?;
    context
        .expect_state("halfway", VmState::Failed)
        .await
        .map(drop)
}

pub(super) async fn a_reboot_of_the_guest_keeps_it_running(context: &Context) -> Verdict {
    let before = context.ready("reboots").await?;
    context
        .setup
        .guest
        .act(&context.host, &before, Act::Reboot)
        .await?;
    let events = || context.host.events(Some("reboots"));
    let hellos = |events: &[innkeeper_api::Event]| {
        events
            .iter()
            .filter(|event| matches!(event.kind, EventKind::AgentHello { .. }))
            .count()
    };
    let mut seen = Vec::new();
    context
        .eventually(
            "the reboot and the agent's second hello in the event log",
            || {
                seen = events().unwrap_or_default();
                seen.iter()
                    .any(|event| event.kind == EventKind::GuestReboot)
                    && hellos(&seen) >= 2
            },
        )
        .await?;
    let after = context.wait_ready("reboots").await?;
    require!(
        after.vmm_pid == before.vmm_pid,
        "the reboot changed the hypervisor"
    );
    let reboots = seen
        .iter()
        .filter(|event| event.kind == EventKind::GuestReboot)
        .count();
    require!(reboots == 1, "one reboot was told {reboots} times");
    context.host.kill("reboots").await?;
    Ok(())
}

pub(super) async fn a_guest_that_powers_off_is_stopped(context: &Context) -> Verdict {
    let info = if context.setup.guest.has(super::Part::Agent).is_ok() {
        context.ready("leaves").await?
    } else {
        context.running("leaves").await?
    };
    context
        .setup
        .guest
        .act(&context.host, &info, Act::PowerOff)
        .await?;
    let info = context
        .within(
            "the wait",
            context
                .host
                .wait("leaves", WaitFor::State(VmState::Stopped), None, &|_| ()),
        )
        .await??;
    require!(
        info.reason.is_none() && info.vmm_pid.is_none(),
        "it tells {info:?}"
    );
    Ok(())
}

pub(super) async fn a_panic_is_told_and_nothing_is_killed(context: &Context) -> Verdict {
    let before = context.running("panics").await?;
    context
        .setup
        .guest
        .act(&context.host, &before, Act::Panic)
        .await?;
    let panicked = |kind: &EventKind| matches!(kind, EventKind::Note { message } if message.contains("panicked"));
    context
        .eventually("the panic in the event log", || {
            context
                .host
                .events(Some("panics"))
                .is_ok_and(|events| events.iter().any(|event| panicked(&event.kind)))
        })
        .await?;
    let after = context.host.info("panics").await?;
    require!(
        after.vmm_pid == before.vmm_pid,
        "the panic ended the hypervisor"
    );
    require!(
        after.state == VmState::Running,
        "a panicked guest is told {}",
        after.state
    );
    context.host.kill("panics").await?;
    Ok(())
}

pub(super) async fn a_hypervisor_that_ends_is_failed_with_its_last_words(
    context: &Context,
) -> Verdict {
    let info = context.running("quits").await?;
    context
        .setup
        .guest
        .act(&context.host, &info, Act::Exit)
        .await?;
    let info = context
        .until("quits", "failed", |info| info.state == VmState::Failed)
        .await?;
    let reason = info.reason.unwrap_or_default();
    require!(
        reason.contains("code 3") && reason.contains("ends by itself"),
        "the reason is: {reason}"
    );
    context.start("quits").await?;
    context.host.kill("quits").await?;
    Ok(())
}

pub(super) async fn a_killed_hypervisor_is_failed_with_the_signal(context: &Context) -> Verdict {
    let info = context.running("murdered").await?;
    signal(info.vmm_pid, Signal::KILL)?;
    let info = context
        .until("murdered", "failed", |info| info.state == VmState::Failed)
        .await?;
    let reason = info.reason.unwrap_or_default();
    require!(reason.contains("signal 9"), "the reason is: {reason}");
    require!(
        info.vmm_pid.is_none(),
        "it tells of a hypervisor: {:?}",
        info.vmm_pid
    );
    context.start("murdered").await?;
    context.host.kill("murdered").await?;
    context
        .expect_state("murdered", VmState::Stopped)
        .await
        .map(drop)
}

pub(super) async fn every_change_of_state_is_told_in_order(context: &Context) -> Verdict {
    context.ready("told").await?;
    context.host.stop("told", context.gently()).await?;
    context.host.remove("told", false).await?;
    let events = context.host.events(Some("told"))?;
    let first = events.first().map(|event| &event.kind);
    require!(
        matches!(first, Some(EventKind::Created { .. })),
        "the first event is {first:?}"
    );
    let last = events.last().map(|event| &event.kind);
    require!(
        matches!(last, Some(EventKind::Removed)),
        "the last event is {last:?}"
    );
    let mut at = VmState::Stopped;
    let mut path = Vec::new();
    for event in &events {
        if let EventKind::State { from, to, .. } = &event.kind {
            require!(
                *from == at,
                "an event goes from {from} to {to}, but it was {at}: {path:?}"
            );
            at = *to;
            path.push(to.as_str());
        }
    }
    require!(
        path == ["starting", "running", "ready", "stopping", "stopped"],
        "the states were told as {path:?}"
    );
    let times: Vec<&String> = events.iter().map(|event| &event.time).collect();
    require!(
        times.is_sorted(),
        "the times of the events go back: {times:?}"
    );
    Ok(())
}

pub(super) async fn ready_none_is_ready_at_once(context: &Context) -> Verdict {
    let mut spec = context.spec();
    spec.ready = Some(ReadyWhen::None);
    context.create("bare", spec).await?;
    context.host.start("bare").await?;
    context.expect_state("bare", VmState::Ready).await?;
    context.host.kill("bare").await?;
    Ok(())
}

pub(super) async fn ready_by_a_serial_marker(context: &Context) -> Verdict {
    let mut spec = context.spec();
    // Both guests at hand say so; the second one only with its kernel's messages on.
    spec.ready = Some(ReadyWhen::Serial("Linux version".to_owned()));
    let words = spec.boot.cmdline.unwrap_or_default();
    spec.boot.cmdline = Some(format!("{words} loglevel=7").trim().to_owned());
    context.create("marked", spec.clone()).await?;
    context.start_ready("marked").await?;
    context.host.kill("marked").await?;
    spec.ready = Some(ReadyWhen::Serial("no guest ever says this".to_owned()));
    context.create("unmarked", spec).await?;
    context.host.start("unmarked").await?;
    let soon = Some(Duration::from_millis(500));
    let waited = context
        .host
        .wait("unmarked", WaitFor::Ready, soon, &|_| ())
        .await;
    refused(
        "a wait for a marker that never comes",
        waited,
        ErrorKind::TimedOut,
        &["no guest ever says this"],
    )?;
    context.host.kill("unmarked").await?;
    Ok(())
}

pub(super) async fn futures_dropped_midway_leave_order(context: &Context) -> Verdict {
    let name = "dropped";
    context.create(name, context.spec()).await?;
    let host = &context.host;
    for milliseconds in [0, 1, 3, 8, 20, 60] {
        let soon = Duration::from_millis(milliseconds);
        // Whatever comes of each: what counts is what is there afterwards.
        let _ = tokio::time::timeout(soon, host.start(name)).await;
        let _ = tokio::time::timeout(soon, host.info(name)).await;
        let _ = tokio::time::timeout(soon, host.wait(name, WaitFor::Ready, None, &|_| ())).await;
        let _ = tokio::time::timeout(soon, host.guest(name)).await;
        let _ = tokio::time::timeout(soon, host.stats(name)).await;
        let _ = tokio::time::timeout(soon, host.stop(name, context.gently())).await;
        let _ = tokio::time::timeout(soon, host.kill(name)).await;
        let settled = |state| {
            matches!(
                state,
                VmState::Running | VmState::Ready | VmState::Stopped | VmState::Stopping
            )
        };
        context
            .until(name, "settled", |info| {
                settled(info.state) && info.stale_since.is_none()
            })
            .await?;
        host.kill(name).await?;
        context.expect_state(name, VmState::Stopped).await?;
    }
    context.start(name).await?;
    host.kill(name).await?;
    Ok(())
}
