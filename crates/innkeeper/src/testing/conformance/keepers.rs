//! Trials of keepers that die, and of what happens while none is there.

use std::time::Duration;

use innkeeper_agent::message::{ExecRequest, ExitStatus};
use innkeeper_api::{AgentState, EventKind, StoppedBy, VmInfo, VmState};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::context::{Context, kill_process, lives};
use super::{Act, Verdict, require};

/// A VM that is as ready as its guest lets it be.
pub(super) async fn ready_or_running(context: &Context, name: &str) -> Verdict<VmInfo> {
    if context.setup.guest.has(super::Part::Agent).is_ok() {
        context.ready(name).await
    } else {
        context.running(name).await
    }
}

pub(super) async fn a_killed_keeper_is_replaced_and_nothing_stops(context: &Context) -> Verdict {
    let mut before = ready_or_running(context, "kept").await?;
    for round in 1..=2 {
        kill_process(context, before.keeper_pid).await?;
        let after = context
            .until("kept", "kept again", |info| info.state == before.state)
            .await?;
        require!(after.vmm_pid == before.vmm_pid, "the hypervisor changed");
        require!(
            after.keeper_pid != before.keeper_pid,
            "the dead keeper is told of"
        );
        let adopted = context
            .host
            .events(Some("kept"))?
            .iter()
            .filter(|event| matches!(event.kind, EventKind::Adopted { vmm_pid } if Some(vmm_pid) == before.vmm_pid))
            .count();
        require!(
            adopted == round,
            "{round} adoptions were told {adopted} times"
        );
        before = after;
    }
    context.host.kill("kept").await?;
    context
        .expect_state("kept", VmState::Stopped)
        .await
        .map(drop)
}

pub(super) async fn a_terminated_keeper_leaves_its_vm_running(context: &Context) -> Verdict {
    let before = ready_or_running(context, "left").await?;
    super::context::signal(before.keeper_pid, Signal::TERM)?;
    let pid = before.keeper_pid.unwrap_or_default();
    context
        .eventually("the keeper's end", || !lives(pid))
        .await?;
    require!(
        before.vmm_pid.is_some_and(lives),
        "the hypervisor ended with its keeper"
    );
    let after = context
        .until("left", "kept again", |info| info.state == before.state)
        .await?;
    require!(after.vmm_pid == before.vmm_pid, "the hypervisor changed");
    context.host.kill("left").await?;
    Ok(())
}

/// A machine that lives in its keeper is not torn from under its guest.
pub(super) async fn a_terminated_keeper_stops_a_vm_that_lacks_adoption(
    context: &Context,
) -> Verdict {
    let before = ready_or_running(context, "joined").await?;
    super::context::signal(before.keeper_pid, Signal::TERM)?;
    let pid = before.keeper_pid.unwrap_or_default();
    context
        .eventually("the keeper's end", || !lives(pid))
        .await?;
    require!(
        !before.vmm_pid.is_some_and(lives),
        "the hypervisor runs on without a keeper"
    );
    context.expect_state("joined", VmState::Stopped).await?;
    Ok(())
}

pub(super) async fn a_command_outlives_the_keeper(context: &Context) -> Verdict {
    let info = context.ready("works").await?;
    let channel = context.host.guest("works").await?;
    let argv = ["sh", "-c", "echo one; read word; echo two $word; exit 5"];
    let request = ExecRequest {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        orphan_grace_seconds: Some(120),
        ..ExecRequest::default()
    };
    let mut session = channel.exec(request).await?;
    let mut four = [0; 4];
    context
        .within("the first line", session.stdout.read_exact(&mut four))
        .await??;
    require!(&four == b"one\n", "the command said {four:?}");
    let position = session.control.position();
    kill_process(context, info.keeper_pid).await?;
    drop(session);
    drop(channel);
    context
        .until("works", "kept again", |info| {
            info.agent.state == AgentState::Ready
        })
        .await?;
    let channel = context.host.guest("works").await?;
    let mut session = context
        .within("attaching", channel.attach(position))
        .await??;
    session.stdin.write_all(b"more\n").await?;
    let mut rest = String::new();
    context
        .within("the rest", session.stdout.read_to_string(&mut rest))
        .await??;
    require!(
        rest == "two more\n",
        "after the keeper's death the command said {rest:?}"
    );
    let status = context.within("its end", session.wait()).await??;
    require!(status == ExitStatus::Code(5), "it ended as {status:?}");
    context.host.kill("works").await?;
    Ok(())
}

pub(super) async fn stops_after_the_keeper_was_killed(context: &Context) -> Verdict {
    let info = context.ready("orphan").await?;
    kill_process(context, info.keeper_pid).await?;
    // No look in between: the stop itself must find a keeper.
    let outcome = context.host.stop("orphan", context.gently()).await?;
    require!(
        matches!(outcome.by, StoppedBy::Agent | StoppedBy::PowerButton),
        "it stopped by {:?}",
        outcome.by
    );
    context
        .expect_state("orphan", VmState::Stopped)
        .await
        .map(drop)
}

pub(super) async fn a_hypervisor_killed_without_a_keeper_is_failed(context: &Context) -> Verdict {
    let info = context.running("both").await?;
    kill_process(context, info.keeper_pid).await?;
    kill_process(context, info.vmm_pid).await?;
    let info = context.expect_state("both", VmState::Failed).await?;
    let reason = info.reason.unwrap_or_default();
    require!(
        reason.contains("the hypervisor ended while"),
        "the reason is: {reason}"
    );
    let listed = context.host.list().await?;
    require!(
        listed.iter().any(|info| info.state == VmState::Failed),
        "the list tells otherwise: {listed:?}"
    );
    context.start("both").await?;
    context.host.kill("both").await?;
    context
        .expect_state("both", VmState::Stopped)
        .await
        .map(drop)
}

pub(super) async fn starts_at_once_after_all_was_killed(context: &Context) -> Verdict {
    let info = context.running("phoenix").await?;
    kill_process(context, info.keeper_pid).await?;
    kill_process(context, info.vmm_pid).await?;
    // No look in between: the start itself must find out what happened, and go on.
    context.start("phoenix").await?;
    context.host.kill("phoenix").await?;
    context
        .expect_state("phoenix", VmState::Stopped)
        .await
        .map(drop)
}

pub(super) async fn a_power_off_without_a_keeper_is_stopped(context: &Context) -> Verdict {
    let info = ready_or_running(context, "alone").await?;
    let guest = &context.setup.guest;
    guest.power_off_soon(&context.host, &info).await?;
    kill_process(context, info.keeper_pid).await?;
    if guest.can(Act::Exit).is_ok() {
        guest.act(&context.host, &info, Act::PowerOff).await?;
    }
    let log = context.host.log_path("alone", crate::LogKind::Serial)?;
    let said = || {
        std::fs::read(&log).is_ok_and(|log| String::from_utf8_lossy(&log).contains("Power down"))
    };
    context
        .eventually("the guest's power-off in its serial log", said)
        .await?;
    let info = context
        .until("alone", "stopped", |info| {
            !matches!(info.state, VmState::Running | VmState::Ready)
        })
        .await?;
    require!(
        matches!(info.state, VmState::Stopped | VmState::Stopping),
        "after the guest powered off it is {} ({:?})",
        info.state,
        info.reason
    );
    let info = context
        .until("alone", "stopped", |info| info.state == VmState::Stopped)
        .await?;
    require!(
        info.reason.is_none(),
        "it tells a reason: {:?}",
        info.reason
    );
    Ok(())
}

pub(super) async fn a_restart_of_the_computer_is_stopped(context: &Context) -> Verdict {
    let info = context.running("rebooted").await?;
    kill_process(context, info.keeper_pid).await?;
    kill_process(context, info.vmm_pid).await?;
    let host = (context.setup.open)(Some("00000000-0000-4000-8000-000000000000"))?;
    let info = host.info("rebooted").await?;
    require!(
        info.state == VmState::Stopped,
        "after a restart of the computer it is {} ({:?})",
        info.state,
        info.reason
    );
    require!(
        info.reason.is_none() && info.vmm_pid.is_none(),
        "it tells {info:?}"
    );
    context.start("rebooted").await?;
    context.host.kill("rebooted").await?;
    Ok(())
}

pub(super) async fn a_silent_agent_is_told_and_nothing_is_killed(context: &Context) -> Verdict {
    let before = context.ready("silent").await?;
    context
        .setup
        .guest
        .act(&context.host, &before, Act::Mute)
        .await?;
    let info = context
        .until("silent", "told silent", |info| {
            info.agent.state == AgentState::Silent
                && info
                    .agent
                    .silent_seconds
                    .is_some_and(|seconds| seconds >= 1)
        })
        .await?;
    require!(
        info.vmm_pid == before.vmm_pid,
        "a silent agent cost the hypervisor"
    );
    require!(
        matches!(info.state, VmState::Running | VmState::Ready),
        "a VM with a silent agent is {}",
        info.state
    );
    context
        .setup
        .guest
        .act(&context.host, &before, Act::Unmute)
        .await?;
    let info = context
        .until("silent", "heard again", |info| {
            info.agent.state == AgentState::Ready
        })
        .await?;
    require!(
        info.agent.silent_seconds.is_none() && info.vmm_pid == before.vmm_pid,
        "it tells {info:?}"
    );
    let told = context.host.events(Some("silent"))?;
    require!(
        told.iter()
            .any(|event| matches!(event.kind, EventKind::AgentSilent { .. })),
        "no event tells of the silence"
    );
    let outcome = context.host.stop("silent", context.gently()).await?;
    require!(
        outcome.by == StoppedBy::Agent,
        "it stopped by {:?}",
        outcome.by
    );
    Ok(())
}

pub(super) async fn a_hypervisor_that_hangs_is_told_stale_and_can_be_killed(
    context: &Context,
) -> Verdict {
    let name = "hangs";
    context.create(name, context.spec()).await?;
    for keeper_dies in [false, true] {
        let info = context.start(name).await?;
        context
            .setup
            .guest
            .act(&context.host, &info, Act::Hang)
            .await?;
        if keeper_dies {
            kill_process(context, info.keeper_pid).await?;
        }
        let stale = context
            .until(name, "told stale", |info| info.stale_since.is_some())
            .await?;
        require!(
            matches!(stale.state, VmState::Running | VmState::Ready),
            "a hypervisor that hangs is told {} ({:?})",
            stale.state,
            stale.reason
        );
        require!(
            stale.keeper_pid.is_some() && stale.vmm_pid == info.vmm_pid,
            "it tells {stale:?}"
        );
        let outcome = context.host.kill(name).await?;
        require!(
            outcome.by == StoppedBy::Kill,
            "it was ended by {:?}",
            outcome.by
        );
        let pid = info.vmm_pid.unwrap_or_default();
        context
            .eventually("the hypervisor's end", || !lives(pid))
            .await?;
        context.expect_state(name, VmState::Stopped).await?;
    }
    // Ended by somebody else while nobody can talk to it: its end must be noticed all the same.
    let info = context.start(name).await?;
    context
        .setup
        .guest
        .act(&context.host, &info, Act::Hang)
        .await?;
    kill_process(context, info.keeper_pid).await?;
    context
        .until(name, "told stale", |info| info.stale_since.is_some())
        .await?;
    kill_process(context, info.vmm_pid).await?;
    context
        .until(name, "failed", |info| info.state == VmState::Failed)
        .await
        .map(drop)
}

pub(super) async fn a_vm_is_removed_after_its_keeper_was_killed(context: &Context) -> Verdict {
    let info = context.running("gone").await?;
    kill_process(context, info.keeper_pid).await?;
    let removed = context.host.remove("gone", false).await;
    super::context::refused(
        "removing a VM whose hypervisor runs",
        removed,
        innkeeper_api::ErrorKind::Conflict,
        &["gone", "running"],
    )?;
    let again = context.host.info("gone").await?;
    kill_process(context, again.keeper_pid).await?;
    context
        .within("the removal", context.host.remove("gone", true))
        .await??;
    let pid = info.vmm_pid.unwrap_or_default();
    tokio::time::timeout(
        Duration::from_secs(2),
        context.eventually("the hypervisor's end", || !lives(pid)),
    )
    .await
    .map_err(|_| super::Failure::new("the hypervisor outlived its VM"))?
}
