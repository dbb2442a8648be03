//! Trials of suspending to disk and coming back.

use std::path::PathBuf;
use std::time::Duration;

use innkeeper_agent::message::ExitStatus;
use innkeeper_api::{Admission, VmInfo, VmState};

use super::context::Context;
use super::keepers::ready_or_running;
use super::pausing::{COUNTER, begin, clock_is_right, count};
use super::{Failure, Verdict, require};
use crate::spec::{Bytes, DiskSpec};

pub(super) fn saved(info: &VmInfo) -> PathBuf {
    PathBuf::from(&info.directory).join("saved")
}

/// What is only half saved must never stay.
pub(super) fn nothing_half_saved(info: &VmInfo) -> Verdict {
    let half = PathBuf::from(&info.directory).join("saved.new");
    require!(!half.exists(), "something half-saved is left");
    Ok(())
}

/// A VM with something in its memory; returns that.
pub(super) async fn remembering(context: &Context, name: &str) -> Verdict<(VmInfo, String)> {
    let info = ready_or_running(context, name).await?;
    let memory = context.setup.guest.remember(&context.host, &info).await?;
    Ok((info, memory))
}

pub(super) async fn is_suspended(context: &Context, name: &str) -> Verdict<VmInfo> {
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
