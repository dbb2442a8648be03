//! Trials of CPUs that stand still.

use std::time::{Duration, Instant};

use innkeeper_agent::message::ExecRequest;
use innkeeper_api::{Admission, ErrorKind, StoppedBy, VmState};
use tokio::io::AsyncReadExt;

use super::context::{Context, kill_process, refused};
use super::keepers::ready_or_running;
use super::{Failure, Verdict, require};
use crate::guest::{ExecSession, GuestChannel};
use crate::progress::Silent;

/// Counts in the guest's memory, a line a number, as fast as the guest can read what time it is.
pub(super) const COUNTER: &[&str] = &[
    "sh",
    "-c",
    "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done",
];

/// Begins a command whose session outlives its connection.
pub(super) async fn begin(channel: &GuestChannel, argv: &[&str]) -> Verdict<ExecSession> {
    let request = ExecRequest {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        orphan_grace_seconds: Some(300),
        ..ExecRequest::default()
    };
    Ok(channel.exec(request).await?)
}

/// Reads the counter's next numbers; each must be one more than the one before.
pub(super) async fn count(
    context: &Context,
    session: &mut ExecSession,
    last: &mut u64,
    numbers: u64,
) -> Verdict {
    let until = *last + numbers;
    let work = async {
        let mut line = Vec::new();
        while *last < until {
            let byte = session.stdout.read_u8().await?;
            if byte != b'\n' {
                line.push(byte);
                continue;
            }
            let number: Option<u64> = String::from_utf8_lossy(&line).trim().parse().ok();
            require!(
                number == Some(*last + 1),
                "after {last} the counter said {number:?}"
            );
            *last += 1;
            line.clear();
        }
        Verdict::Ok(())
    };
    context.within("the counter's next numbers", work).await?
}

/// Waits until a VM runs, ready or not.
pub(super) async fn until_running(context: &Context, name: &str) -> Verdict {
    let runs = |state| matches!(state, VmState::Running | VmState::Ready);
    context
        .until(name, "running", |info| runs(info.state))
        .await
        .map(drop)
}

pub(super) async fn pauses_and_resumes(context: &Context) -> Verdict {
    let before = ready_or_running(context, "still").await?;
    for _ in 0..2 {
        let admission = context.host.pause("still").await?;
        require!(
            admission == Admission::Enqueued,
            "the pause was {admission:?}"
        );
        let info = context.expect_state("still", VmState::Paused).await?;
        require!(
            info.vmm_pid == before.vmm_pid,
            "the pause changed the hypervisor"
        );
        context.host.resume("still").await?;
        let info = context
            .until("still", "as before", |info| info.state == before.state)
            .await?;
        require!(
            info.vmm_pid == before.vmm_pid,
            "the resume changed the hypervisor"
        );
    }
    context.host.kill("still").await?;
    Ok(())
}

pub(super) async fn a_second_pause_or_resume_is_already_so(context: &Context) -> Verdict {
    context.running("twice").await?;
    let resumed = context.host.resume("twice").await?;
    require!(
        resumed == Admission::AlreadySo,
        "a resume of what runs was {resumed:?}"
    );
    context.host.pause("twice").await?;
    let paused = context.host.pause("twice").await?;
    require!(
        paused == Admission::AlreadySo,
        "a second pause was {paused:?}"
    );
    let (one, other) = tokio::join!(context.host.resume("twice"), context.host.resume("twice"));
    require!(
        one.is_ok() && other.is_ok(),
        "two resumes at once gave {one:?} and {other:?}"
    );
    until_running(context, "twice").await?;
    context.host.kill("twice").await?;
    let stopped = context.host.pause("twice").await;
    refused(
        "a pause of what does not run",
        stopped,
        ErrorKind::Conflict,
        &["twice"],
    )
}

pub(super) async fn what_a_paused_vm_cannot_do_is_refused(context: &Context) -> Verdict {
    context.running("waits").await?;
    context.host.pause("waits").await?;
    let host = &context.host;
    refused(
        "a start of what is paused",
        host.start("waits").await,
        ErrorKind::Conflict,
        &["paused"],
    )?;
    refused(
        "a stop of what is paused",
        host.stop("waits", context.gently()).await,
        ErrorKind::Conflict,
        &["paused"],
    )?;
    refused(
        "a rename of what is paused",
        host.rename("waits", "other").await,
        ErrorKind::Conflict,
        &["waits"],
    )?;
    refused(
        "a removal of what is paused",
        host.remove("waits", false).await,
        ErrorKind::Conflict,
        &["waits"],
    )?;
    context.expect_state("waits", VmState::Paused).await?;
    let outcome = host.kill("waits").await?;
    require!(
        outcome.by == StoppedBy::Kill,
        "it was ended by {:?}",
        outcome.by
    );
    context
        .expect_state("waits", VmState::Stopped)
        .await
        .map(drop)
}

pub(super) async fn a_paused_guest_stands_still_and_goes_on(context: &Context) -> Verdict {
    context.ready("counts").await?;
    let channel = context.host.guest("counts").await?;
    let mut session = begin(&channel, COUNTER).await?;
    let mut last = 0;
    count(context, &mut session, &mut last, 5).await?;
    context.host.pause("counts").await?;
    // What was on its way when the CPUs stopped arrives; then there is silence for as long as ten numbers would take.
    let mut buffer = [0; 4096];
    let mut drained = Vec::new();
    let silence = Duration::from_millis(500);
    let started = Instant::now();
    while let Ok(read) = tokio::time::timeout(silence, session.stdout.read(&mut buffer)).await {
        drained.extend_from_slice(&buffer[..read?]);
        require!(
            started.elapsed() < context.setup.patience,
            "the counter goes on while its guest is paused"
        );
    }
    let text = String::from_utf8_lossy(&drained).into_owned();
    require!(
        text.is_empty() || text.ends_with('\n'),
        "the counter stopped within a line: {text:?}"
    );
    for line in text.lines() {
        require!(
            line == (last + 1).to_string(),
            "after {last} the counter said {line:?}"
        );
        last += 1;
    }
    context.host.resume("counts").await?;
    count(context, &mut session, &mut last, 5).await?;
    context.host.kill("counts").await?;
    Ok(())
}

pub(super) async fn a_command_in_a_paused_guest_is_refused_at_once(context: &Context) -> Verdict {
    context.ready("asleep").await?;
    context.host.pause("asleep").await?;
    let started = Instant::now();
    let channel = context.host.guest("asleep").await.map(drop);
    require!(
        started.elapsed() < Duration::from_secs(1),
        "it was refused after {:?} only",
        started.elapsed()
    );
    refused(
        "a way into a paused guest",
        channel,
        ErrorKind::Conflict,
        &["asleep", "paused"],
    )?;
    context.host.resume("asleep").await?;
    let channel = context.host.guest("asleep").await?;
    context.run(&channel, &["true"], b"").await?;
    context.host.kill("asleep").await?;
    Ok(())
}

pub(super) async fn a_paused_vm_is_adopted_paused(context: &Context) -> Verdict {
    let before = ready_or_running(context, "kept").await?;
    context.host.pause("kept").await?;
    kill_process(context, before.keeper_pid).await?;
    let info = context
        .until("kept", "paused", |info| info.state == VmState::Paused)
        .await?;
    require!(
        info.vmm_pid == before.vmm_pid && info.keeper_pid != before.keeper_pid,
        "it tells {info:?}"
    );
    context.host.resume("kept").await?;
    context
        .until("kept", "as before", |info| info.state == before.state)
        .await?;
    context.host.kill("kept").await?;
    Ok(())
}

pub(super) async fn the_clock_is_right_after_a_pause(context: &Context) -> Verdict {
    context.ready("timely").await?;
    context.host.pause("timely").await?;
    // poll: time passes that the guest does not see
    tokio::time::sleep(Duration::from_millis(1500)).await;
    context.host.resume("timely").await?;
    clock_is_right(context, "timely").await?;
    context.host.kill("timely").await?;
    Ok(())
}

/// The guest's clock must be within 100 ms of this computer's within a second.
pub(super) async fn clock_is_right(context: &Context, name: &str) -> Verdict {
    let now = || {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0.0, |since| since.as_secs_f64())
    };
    let started = Instant::now();
    let channel = context.host.guest(name).await?;
    loop {
        let before = now();
        let output = context.run(&channel, &["busybox", "adjtimex"], b"").await?;
        let after = now();
        let text = String::from_utf8_lossy(&output.out).into_owned();
        let told = read_time(&text)
            .ok_or_else(|| Failure::new(format!("adjtimex told no time: {text}")))?;
        if told > before - 0.1 && told < after + 0.1 {
            return Ok(());
        }
        require!(
            started.elapsed() < Duration::from_secs(1),
            "the guest's clock says {told:.3}, and here it was {before:.3} to {after:.3}"
        );
    }
}

/// Reads seconds and microseconds of busybox's adjtimex, which names them `time.tv_sec` and `time.tv_usec`.
fn read_time(text: &str) -> Option<f64> {
    let field = |name: &str| {
        text.lines()
            .find(|line| line.contains(name))?
            .split_whitespace()
            .find_map(|word| word.parse::<f64>().ok())
    };
    Some(field("time.tv_sec")? + field("time.tv_usec")? / 1e6)
}

pub(super) async fn what_a_driver_lacks_of_a_running_vm_is_refused(context: &Context) -> Verdict {
    use innkeeper_api::Capability as C;
    let report = context.report().await?;
    let info = context.running("runs").await?;
    let host = &context.host;
    let lacks = |capability| crate::driver::lacks(&report, capability).is_some();
    if lacks(C::Pause) {
        refused(
            "a pause",
            host.pause("runs").await,
            ErrorKind::Unsupported,
            &["runs"],
        )?;
    }
    if lacks(C::Suspend) {
        refused(
            "a suspend",
            host.suspend("runs").await,
            ErrorKind::Unsupported,
            &["runs"],
        )?;
    }
    if lacks(C::DiskHotplug) {
        let disk = super::devices::file_disk(context, "extra")?;
        refused(
            "attaching a disk",
            host.attach_disk("runs", &disk, false).await,
            ErrorKind::Unsupported,
            &[],
        )?;
        let text = host.spec_text("runs")?;
        require!(
            !text.contains("extra"),
            "the refused disk stands in the spec"
        );
    }
    if lacks(C::NetworkHotplug) {
        let network = super::devices::another_network(context);
        refused(
            "attaching an interface",
            host.attach_network("runs", &network, false).await,
            ErrorKind::Unsupported,
            &[],
        )?;
    }
    let after = host.info("runs").await?;
    require!(
        after.vmm_pid == info.vmm_pid && after.restart_required.is_empty(),
        "what was refused had an effect: {after:?}"
    );
    require!(
        matches!(after.state, VmState::Running | VmState::Ready),
        "it is {}",
        after.state
    );
    host.kill("runs").await?;
    // Several fields that it lacks are told at once, not one after the other.
    let mut spec = context.spec();
    let mut fields = Vec::new();
    for (capability, field) in [
        (C::CpuHotplug, "max_cpus"),
        (C::MemoryHotplug, "max_memory"),
        (C::Balloon, "memory_target"),
        (C::Tpm, "tpm"),
        (C::Watchdog, "watchdog"),
        (C::Vsock, "vsock"),
        (C::Nested, "nested"),
    ] {
        if lacks(capability) {
            super::absence::ask(&mut spec, capability, host.home());
            fields.push(field);
        }
    }
    if fields.len() > 1 {
        let created = host.create("wants", spec, &Silent).await;
        refused("what it lacks", created, ErrorKind::Unsupported, &fields)?;
    }
    Ok(())
}
