//! Trials of suspending to disk and coming back.

use std::path::PathBuf;
use std::time::Duration;

use innkeeper_agent::message::ExitStatus;
use innkeeper_api::{Admission, ErrorKind, StoppedBy, VmInfo, VmState};
use rustix::process::Signal;

use super::context::{Context, kill_process, refused, signal};
use super::keepers::ready_or_running;
use super::pausing::{COUNTER, begin, clock_is_right, count, until_running};
use super::{Failure, Verdict, Word, require};
use crate::spec::{Bytes, DiskSpec};

fn saved(info: &VmInfo) -> PathBuf {
    PathBuf::from(&info.directory).join("saved")
}

/// What is only half saved must never stay.
fn nothing_half_saved(info: &VmInfo) -> Verdict {
    let half = PathBuf::from(&info.directory).join("saved.new");
    require!(!half.exists(), "something half-saved is left");
    Ok(())
}

/// A VM with something in its memory; returns that.
async fn remembering(context: &Context, name: &str) -> Verdict<(VmInfo, String)> {
    let info = ready_or_running(context, name).await?;
    let memory = context.setup.guest.remember(&context.host, &info).await?;
    Ok((info, memory))
}

/// As `remembering`, of a guest with a misbehaviour.
async fn misbehaving(context: &Context, name: &str, word: Word) -> Verdict<(VmInfo, String)> {
    context.create(name, context.spec_that_is(word)?).await?;
    let info = context.start(name).await?;
    let memory = context.setup.guest.remember(&context.host, &info).await?;
    Ok((info, memory))
}

async fn is_suspended(context: &Context, name: &str) -> Verdict<VmInfo> {
    let info = context.expect_state(name, VmState::Suspended).await?;
    require!(
        info.vmm_pid.is_none() && info.keeper_pid.is_none(),
        "a suspended VM has processes: {info:?}"
    );
    require!(
        saved(&info).join("saved.json").exists(),
        "a suspended VM has nothing saved"
    );
    nothing_half_saved(&info)?;
    Ok(info)
}

pub(super) async fn comes_back_with_its_memory(context: &Context) -> Verdict {
    let (before, memory) = remembering(context, "dreams").await?;
    let admission = context.host.suspend("dreams").await?;
    require!(
        admission == Admission::Enqueued,
        "the suspend was {admission:?}"
    );
    let info = is_suspended(context, "dreams").await?;
    let again = context.host.suspend("dreams").await?;
    require!(
        again == Admission::AlreadySo,
        "a second suspend was {again:?}"
    );
    context.host.start("dreams").await?;
    let after = context
        .until("dreams", "as before", |info| info.state == before.state)
        .await?;
    require!(
        after.vmm_pid.is_some() && after.vmm_pid != before.vmm_pid,
        "no new hypervisor runs"
    );
    require!(
        !saved(&info).exists(),
        "what was saved is still there after it was used"
    );
    context.recalls("dreams", &memory).await?;
    context.host.kill("dreams").await?;
    context
        .expect_state("dreams", VmState::Stopped)
        .await
        .map(drop)
}

/// Host and agent have to greet each other anew, and whoever comes meanwhile must wait for that, not fail by it.
pub(super) async fn a_command_right_after_a_start_from_a_suspend(context: &Context) -> Verdict {
    let name = "prompt";
    context.ready(name).await?;
    for round in 0..3 {
        context.host.suspend(name).await?;
        context.host.start(name).await?;
        let channel = context.host.guest(name).await?;
        for command in 0..3 {
            let output = context
                .run(&channel, &["sh", "-c", "cat; exit 7"], b"words")
                .await
                .map_err(|failure| {
                    Failure::new(format!("round {round}, command {command}: {failure}"))
                })?;
            require!(
                output.status == ExitStatus::Code(7) && output.out == b"words",
                "round {round}, command {command}: {output:?}"
            );
        }
    }
    context.host.kill(name).await?;
    Ok(())
}

pub(super) async fn suspends_twice_in_a_row(context: &Context) -> Verdict {
    let (_, memory) = remembering(context, "naps").await?;
    for round in 0..2 {
        context.host.suspend("naps").await?;
        is_suspended(context, "naps").await?;
        if round == 0 {
            context.host.start("naps").await?;
        } else {
            context.host.resume("naps").await?;
        }
        context.recalls("naps", &memory).await?;
    }
    context.host.kill("naps").await?;
    Ok(())
}

pub(super) async fn a_paused_vm_is_suspended(context: &Context) -> Verdict {
    let (_, memory) = remembering(context, "both").await?;
    context.host.pause("both").await?;
    context.host.suspend("both").await?;
    is_suspended(context, "both").await?;
    context.host.start("both").await?;
    context.recalls("both", &memory).await?;
    context.host.kill("both").await?;
    Ok(())
}

pub(super) async fn a_running_command_goes_on_after_a_suspend(context: &Context) -> Verdict {
    context.ready("counts").await?;
    let channel = context.host.guest("counts").await?;
    let mut session = begin(&channel, COUNTER).await?;
    let mut last = 0;
    count(context, &mut session, &mut last, 3).await?;
    let position = session.control.position();
    drop(session);
    drop(channel);
    context.host.suspend("counts").await?;
    context.host.start("counts").await?;
    context.wait_ready("counts").await?;
    let channel = context.host.guest("counts").await?;
    let mut session = context
        .within("attaching", channel.attach(position))
        .await??;
    count(context, &mut session, &mut last, 5).await?;
    context.host.kill("counts").await?;
    Ok(())
}

pub(super) async fn a_connection_in_the_guest_goes_on_after_a_suspend(
    context: &Context,
) -> Verdict {
    context.ready("linked").await?;
    let channel = context.host.guest("linked").await?;
    // The inputs of both ends stay open, else they would hang up.
    let script = "ip link set lo up; sleep 1000 | busybox nc -l -p 7001 > /tmp/got & sleep 0.3; \
                  (while :; do echo tick; sleep 0.05; done) | busybox nc 127.0.0.1 7001";
    let session = begin(&channel, &["sh", "-c", script]).await?;
    let size = "until [ $(wc -c < /tmp/got) -gt $0 ]; do sleep 0.05; done; wc -c < /tmp/got";
    let so_far = async |floor: &str| {
        let channel = context.host.guest("linked").await?;
        let output = context
            .run(&channel, &["sh", "-c", size, floor], b"")
            .await?;
        Verdict::Ok(String::from_utf8_lossy(&output.out).trim().to_owned())
    };
    let before = so_far("20").await?;
    drop(session);
    drop(channel);
    context.host.suspend("linked").await?;
    context.host.start("linked").await?;
    context.wait_ready("linked").await?;
    // More arrives than could have lain in a buffer: the same connection carries on.
    so_far(&before).await?;
    let channel = context.host.guest("linked").await?;
    let output = context
        .run(&channel, &["sh", "-c", "sort -u /tmp/got"], b"")
        .await?;
    require!(
        output.out.starts_with(b"tick\n"),
        "what arrived is {:?}",
        String::from_utf8_lossy(&output.out)
    );
    context.host.kill("linked").await?;
    Ok(())
}

pub(super) async fn disk_and_memory_are_of_one_moment(context: &Context) -> Verdict {
    let mut spec = context.spec();
    spec.disks.push(DiskSpec {
        size: Some(Bytes::mib(32)),
        mount: Some("/data".into()),
        ..DiskSpec::named("data")
    });
    context.create("moment", spec).await?;
    context.start_ready("moment").await?;
    let sh = async |script: &str| {
        let channel = context.host.guest("moment").await?;
        let output = context.run(&channel, &["sh", "-c", script], b"").await?;
        Verdict::Ok(String::from_utf8_lossy(&output.out).trim().to_owned())
    };
    sh("until grep -q ' /data ext4 ' /proc/mounts; do sleep 0.05; done").await?;
    // No sync: what is only in the page cache must come back as well.
    let digest =
        sh("head -c 3000000 /dev/urandom > /data/kept; busybox sha256sum < /data/kept").await?;
    context.host.suspend("moment").await?;
    context.host.start("moment").await?;
    context.wait_ready("moment").await?;
    let after = sh("busybox sha256sum < /data/kept").await?;
    require!(
        after == digest,
        "after the suspend the file is {after}, not {digest}"
    );
    // The second look goes to the disk itself, and so does the check of its journal.
    context.host.stop("moment", context.gently()).await?;
    context.start_ready("moment").await?;
    sh("until grep -q ' /data ext4 ' /proc/mounts; do sleep 0.05; done").await?;
    let cold = sh("busybox sha256sum < /data/kept").await?;
    require!(
        cold == digest,
        "after a stop the file is {cold}, not {digest}"
    );
    let errors = sh("dmesg | grep -i 'ext4-fs' | grep -iE 'error|warning|recovery'").await?;
    require!(errors.is_empty(), "the file system complains: {errors}");
    context.host.kill("moment").await?;
    Ok(())
}

pub(super) async fn the_clock_is_right_after_a_suspend(context: &Context) -> Verdict {
    context.ready("timely").await?;
    context.host.suspend("timely").await?;
    // poll: time passes that the guest does not see
    tokio::time::sleep(Duration::from_millis(1200)).await;
    context.host.start("timely").await?;
    context.wait_ready("timely").await?;
    clock_is_right(context, "timely").await?;
    context.host.kill("timely").await?;
    Ok(())
}

pub(super) async fn a_suspended_vm_refuses_what_would_lose_it(context: &Context) -> Verdict {
    let (_, memory) = remembering(context, "safe").await?;
    context.host.suspend("safe").await?;
    let host = &context.host;
    for (what, result) in [
        ("a removal", host.remove("safe", false).await),
        (
            "a stop",
            host.stop("safe", context.gently()).await.map(drop),
        ),
        ("a kill", host.kill("safe").await.map(drop)),
        (
            "a restart",
            host.restart("safe", context.gently()).await.map(drop),
        ),
        ("a rename", host.rename("safe", "other").await),
        ("a pause", host.pause("safe").await.map(drop)),
    ] {
        let hint = result
            .as_ref()
            .err()
            .and_then(|error| error.hint().map(str::to_owned));
        require!(
            what == "a pause" || hint.is_some(),
            "{what} was refused without a hint"
        );
        refused(what, result, ErrorKind::Conflict, &["safe"])?;
        is_suspended(context, "safe").await?;
    }
    host.start("safe").await?;
    context.recalls("safe", &memory).await?;
    host.suspend("safe").await?;
    host.remove("safe", true).await?;
    require!(host.list().await?.is_empty(), "a removed VM is listed");
    Ok(())
}

pub(super) async fn what_was_saved_is_discarded_on_request_only(context: &Context) -> Verdict {
    let (info, memory) = remembering(context, "fresh").await?;
    refused(
        "discarding what runs",
        context.host.discard_saved("fresh").await,
        ErrorKind::Conflict,
        &["fresh"],
    )?;
    context.host.suspend("fresh").await?;
    context.host.discard_saved("fresh").await?;
    let stopped = context.expect_state("fresh", VmState::Stopped).await?;
    require!(
        stopped.reason.is_none() && !saved(&info).exists(),
        "after it was discarded it tells {stopped:?}"
    );
    let info = context.start(&stopped.name).await?;
    if context.setup.guest.has(super::Part::Agent).is_ok() {
        context.wait_ready("fresh").await?;
    }
    let now = context.setup.guest.recall(&context.host, &info).await?;
    require!(now != memory, "a new boot has the memory of the old one");
    context.host.kill("fresh").await?;
    Ok(())
}

pub(super) async fn a_spec_changed_while_suspended_waits_for_a_new_boot(
    context: &Context,
) -> Verdict {
    let (before, memory) = remembering(context, "edited").await?;
    context.host.suspend("edited").await?;
    let edit = [("cpus".to_owned(), Some("2".to_owned()))];
    context.host.set("edited", &edit, false).await?;
    let info = is_suspended(context, "edited").await?;
    require!(
        info.restart_required == ["cpus"] && info.cpus == before.cpus,
        "suspended it tells {} CPUs, {:?}",
        info.cpus,
        info.restart_required
    );
    context.host.start("edited").await?;
    context.recalls("edited", &memory).await?;
    let info = context.host.info("edited").await?;
    require!(
        info.restart_required == ["cpus"] && info.cpus == before.cpus,
        "brought back it tells {} CPUs, {:?}",
        info.cpus,
        info.restart_required
    );
    context.host.kill("edited").await?;
    context.start("edited").await?;
    let info = context.host.info("edited").await?;
    require!(
        info.cpus == 2 && info.restart_required.is_empty(),
        "booted anew it tells {} CPUs, {:?}",
        info.cpus,
        info.restart_required
    );
    context.host.kill("edited").await?;
    Ok(())
}

pub(super) async fn a_disk_written_while_suspended_refuses_to_go_on(context: &Context) -> Verdict {
    let mut spec = context.spec();
    let disk = super::devices::file_disk(context, "data")?;
    let path = disk.path.clone().unwrap_or_default();
    spec.disks.push(disk);
    context.create("touched", spec).await?;
    let info = context.start("touched").await?;
    if context.setup.guest.has(super::Part::Agent).is_ok() {
        context.wait_ready("touched").await?;
    }
    let memory = context.setup.guest.remember(&context.host, &info).await?;
    context.host.suspend("touched").await?;
    let file = std::fs::File::options().write(true).open(&path)?;
    let before = file.metadata()?.modified()?;
    file.set_modified(before + Duration::from_secs(5))?;
    for _ in 0..2 {
        refused(
            "going on with a disk that was written to",
            context.host.start("touched").await,
            ErrorKind::Conflict,
            &["data", "written"],
        )?;
        is_suspended(context, "touched").await?;
    }
    // As it was: nothing was lost.
    file.set_modified(before)?;
    context.host.start("touched").await?;
    context.recalls("touched", &memory).await?;
    context.host.kill("touched").await?;
    Ok(())
}

pub(super) async fn what_a_newer_hypervisor_saved_is_refused(context: &Context) -> Verdict {
    let (info, memory) = remembering(context, "newer").await?;
    context.host.suspend("newer").await?;
    let path = saved(&info).join("saved.json");
    let text = std::fs::read_to_string(&path)?;
    let mut value: serde_json::Value = serde_json::from_str(&text).map_err(std::io::Error::from)?;
    let version = value["machine"]["version"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    value["machine"]["version"] = "99.7.0".into();
    std::fs::write(&path, value.to_string())?;
    let major = version.split('.').next().unwrap_or_default();
    refused(
        "what a newer hypervisor saved",
        context.host.start("newer").await,
        ErrorKind::Unsupported,
        &["99.7", major],
    )?;
    is_suspended(context, "newer").await?;
    std::fs::write(&path, text)?;
    context.host.start("newer").await?;
    context.recalls("newer", &memory).await?;
    context.host.kill("newer").await?;
    Ok(())
}

pub(super) async fn a_suspended_vm_outlives_a_restart_of_the_computer(
    context: &Context,
) -> Verdict {
    let (_, memory) = remembering(context, "deep").await?;
    context.host.suspend("deep").await?;
    let host = (context.setup.open)(Some("00000000-0000-4000-8000-000000000000"))?;
    let info = host.info("deep").await?;
    require!(info.state == VmState::Suspended, "it is {}", info.state);
    context.host.start("deep").await?;
    context.recalls("deep", &memory).await?;
    context.host.kill("deep").await?;
    Ok(())
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
