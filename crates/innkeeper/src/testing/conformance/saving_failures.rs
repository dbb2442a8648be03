//! Trials of suspends and returns that fail, or are broken off: nothing is lost, and nothing half-saved stays.

use std::path::PathBuf;

use innkeeper_api::{Admission, ErrorKind, StoppedBy, VmInfo, VmState};
use rustix::process::Signal;

use super::context::{Context, kill_process, refused, signal};
use super::pausing::until_running;
use super::saving::{is_suspended, nothing_half_saved, saved};
use super::{Verdict, Word, require};

/// As `remembering`, of a guest with a misbehaviour.
async fn misbehaving(context: &Context, name: &str, word: Word) -> Verdict<(VmInfo, String)> {
    context.create(name, context.spec_that_is(word)?).await?;
    let info = context.start(name).await?;
    let memory = context.setup.guest.remember(&context.host, &info).await?;
    Ok((info, memory))
}

/// Takes the misbehaviour out of the spec that a suspended VM runs by.
fn mend(context: &Context, info: &VmInfo, word: Word) -> Verdict {
    let words = context.setup.guest.words(word).unwrap_or_default();
    let path = saved(info).join("applied.yaml");
    let text = std::fs::read_to_string(&path)?;
    require!(
        text.contains(words),
        "the saved spec does not hold {words:?}"
    );
    Ok(std::fs::write(&path, text.replace(words, "quiet"))?)
}

async fn fails_to_come_back(context: &Context, word: Word) -> Verdict {
    let (info, memory) = misbehaving(context, "stuck", word).await?;
    context.host.suspend("stuck").await?;
    for _ in 0..2 {
        refused(
            "the start",
            context.host.start("stuck").await,
            ErrorKind::Failure,
            &["stuck", "as told"],
        )?;
        is_suspended(context, "stuck").await?;
    }
    mend(context, &info, word)?;
    context.host.start("stuck").await?;
    context.recalls("stuck", &memory).await?;
    context.host.kill("stuck").await?;
    Ok(())
}

pub(super) async fn a_failed_restore_can_be_tried_again(context: &Context) -> Verdict {
    fails_to_come_back(context, Word::FailingRestore).await
}

pub(super) async fn a_refused_resume_after_a_restore_loses_nothing(context: &Context) -> Verdict {
    fails_to_come_back(context, Word::FailingResume).await
}

pub(super) async fn a_kill_ends_a_restore_and_it_stays_suspended(context: &Context) -> Verdict {
    let (info, memory) = misbehaving(context, "slow", Word::SlowRestore).await?;
    context.host.suspend("slow").await?;
    let kill = async {
        context
            .until("slow", "resuming", |info| info.state == VmState::Resuming)
            .await?;
        Verdict::Ok(context.host.kill("slow").await?)
    };
    let (start, kill) = tokio::join!(context.host.start("slow"), kill);
    kill?;
    refused(
        "the start that was killed",
        start,
        ErrorKind::Interrupted,
        &["slow"],
    )?;
    is_suspended(context, "slow").await?;
    mend(context, &info, Word::SlowRestore)?;
    context.host.start("slow").await?;
    context.recalls("slow", &memory).await?;
    context.host.kill("slow").await?;
    Ok(())
}

pub(super) async fn a_failed_suspend_lets_it_run_on(context: &Context) -> Verdict {
    let (before, memory) = misbehaving(context, "full", Word::FailingSave).await?;
    for paused in [false, true] {
        if paused {
            context.host.pause("full").await?;
        }
        refused(
            "the suspend",
            context.host.suspend("full").await,
            ErrorKind::NoSpace,
            &["full", "as told"],
        )?;
        if paused {
            context.expect_state("full", VmState::Paused).await?;
            context.host.resume("full").await?;
        }
        until_running(context, "full").await?;
        let info = context.host.info("full").await?;
        require!(
            info.vmm_pid == before.vmm_pid,
            "the hypervisor changed: {info:?}"
        );
        nothing_half_saved(&info)?;
        require!(
            !saved(&info).exists(),
            "something counts that was not saved"
        );
    }
    context.recalls("full", &memory).await?;
    context.host.kill("full").await?;
    Ok(())
}

/// Runs something while a VM is being saved; returns what came of the suspend, and of that.
async fn while_saving<T>(
    context: &Context,
    name: &str,
    work: impl Future<Output = Verdict<T>>,
) -> Verdict<(crate::Result<Admission>, T)> {
    let beside = async {
        context
            .until(name, "suspending", |info| {
                let half = PathBuf::from(&info.directory).join("saved.new/machine/memory");
                info.state == VmState::Suspending && half.exists()
            })
            .await?;
        work.await
    };
    let (suspend, beside) = tokio::join!(context.host.suspend(name), beside);
    Ok((suspend, beside?))
}

pub(super) async fn a_kill_ends_a_suspend(context: &Context) -> Verdict {
    misbehaving(context, "slow", Word::SlowSave).await?;
    let kill = async { Ok(context.host.kill("slow").await?) };
    let (suspend, outcome) = while_saving(context, "slow", kill).await?;
    require!(
        suspend.is_err(),
        "a suspend that was killed gave {suspend:?}"
    );
    require!(
        outcome.by == StoppedBy::Kill,
        "it was ended by {:?}",
        outcome.by
    );
    let info = context.expect_state("slow", VmState::Stopped).await?;
    nothing_half_saved(&info)
}

pub(super) async fn a_resume_breaks_a_suspend_off(context: &Context) -> Verdict {
    let (before, memory) = misbehaving(context, "slow", Word::SlowSave).await?;
    for _ in 0..2 {
        let resume = async { Ok(context.host.resume("slow").await?) };
        let (suspend, _) = while_saving(context, "slow", resume).await?;
        refused(
            "the suspend that was broken off",
            suspend,
            ErrorKind::Interrupted,
            &["slow"],
        )?;
        until_running(context, "slow").await?;
        let info = context.host.info("slow").await?;
        require!(
            info.vmm_pid == before.vmm_pid,
            "the hypervisor changed: {info:?}"
        );
        nothing_half_saved(&info)?;
    }
    context.recalls("slow", &memory).await?;
    context.host.kill("slow").await?;
    Ok(())
}

pub(super) async fn a_hypervisor_killed_while_it_saves_is_failed(context: &Context) -> Verdict {
    let (info, _) = misbehaving(context, "slow", Word::SlowSave).await?;
    let kill = async { signal(info.vmm_pid, Signal::KILL) };
    let (suspend, ()) = while_saving(context, "slow", kill).await?;
    require!(
        suspend.is_err(),
        "a suspend whose hypervisor was killed gave {suspend:?}"
    );
    let info = context
        .until("slow", "failed", |info| info.state == VmState::Failed)
        .await?;
    let reason = info.reason.clone().unwrap_or_default();
    require!(reason.contains("signal 9"), "the reason is: {reason}");
    nothing_half_saved(&info)?;
    context.start("slow").await?;
    context.host.kill("slow").await?;
    Ok(())
}

pub(super) async fn a_keeper_killed_while_it_saves_leaves_it_paused(context: &Context) -> Verdict {
    let (info, memory) = misbehaving(context, "slow", Word::SlowSave).await?;
    let kill = async { kill_process(context, info.keeper_pid).await };
    let (suspend, ()) = while_saving(context, "slow", kill).await?;
    require!(
        suspend.is_err(),
        "a suspend whose keeper was killed gave {suspend:?}"
    );
    let after = context
        .until("slow", "paused", |info| info.state == VmState::Paused)
        .await?;
    require!(after.vmm_pid == info.vmm_pid, "the hypervisor changed");
    nothing_half_saved(&after)?;
    context.host.resume("slow").await?;
    context.recalls("slow", &memory).await?;
    context.host.kill("slow").await?;
    Ok(())
}
