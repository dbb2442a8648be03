//! Trials of changing a machine while it runs.

use std::time::{Duration, Instant};

use innkeeper_api::{AgentState, ErrorKind, VmState};

use super::context::{Context, kill_process, refused};
use super::keepers::ready_or_running;
use super::pausing::until_running;
use super::{Act, Part, Verdict, Word, require};
use crate::host::{DetachOptions, SpecChange};
use crate::spec::{
    Bytes, DiskFormat, DiskSpec, MacAddr, NetworkKind, NetworkSpec, ReadyWhen, VmSpec,
};

/// A disk of a file that is there.
pub(super) fn file_disk(context: &Context, name: &str) -> Verdict<DiskSpec> {
    let path = context.setup.files.join(format!("{name}.raw"));
    std::fs::File::create(&path)?.set_len(16 << 20)?;
    Ok(DiskSpec {
        path: Some(path),
        format: Some(DiskFormat::Raw),
        ..DiskSpec::named(name)
    })
}

pub(super) fn another_network(_: &Context) -> NetworkSpec {
    NetworkSpec {
        kind: NetworkKind::User,
        name: None,
        mac: Some(MacAddr::from_random([0x52, 0x54, 0, 0xaa, 0xbb, 0xcc])),
        forwards: Vec::new(),
    }
}

pub(super) async fn set(
    context: &Context,
    name: &str,
    field: &str,
    value: &str,
) -> crate::Result<SpecChange> {
    let edit = [(field.to_owned(), Some(value.to_owned()))];
    context.host.set(name, &edit, false).await
}

pub(super) fn now(change: &SpecChange, field: &str) -> Verdict {
    require!(
        change.applied.iter().any(|applied| applied == field) && change.restart_required.is_empty(),
        "{field} was not given to the running machine: {change:?}"
    );
    Ok(())
}

/// Waits until the guest sees, or does not see, a disk whose serial is its name.
async fn guest_sees_disk(context: &Context, vm: &str, disk: &str, there: bool) -> Verdict {
    if context.setup.guest.has(Part::Processes).is_err() {
        return Ok(());
    }
    let channel = context.host.guest(vm).await?;
    let test = if there { "until" } else { "while" };
    let script = format!(
        "{test} grep -qsx {disk} /sys/block/*/serial /sys/block/*/device/serial; do sleep 0.05; done"
    );
    context.run(&channel, &["sh", "-c", &script], b"").await?;
    Ok(())
}

pub(super) async fn a_disk_is_attached_and_detached_twice(context: &Context) -> Verdict {
    let name = "grows";
    ready_or_running(context, name).await?;
    let disk = file_disk(context, "extra")?;
    for round in 0..2 {
        let change = context.host.attach_disk(name, &disk, false).await?;
        require!(
            change.restart_required.is_empty(),
            "round {round}: {change:?}"
        );
        let info = context.host.info(name).await?;
        require!(
            info.disks.iter().any(|disk| disk.name == "extra") && info.restart_required.is_empty(),
            "round {round}: it tells {:?}, {:?}",
            info.disks,
            info.restart_required
        );
        guest_sees_disk(context, name, "extra", true).await?;
        refused(
            "the same name again",
            context.host.attach_disk(name, &disk, false).await,
            ErrorKind::Conflict,
            &["extra"],
        )?;
        context
            .host
            .detach_disk(name, "extra", DetachOptions::default())
            .await?;
        guest_sees_disk(context, name, "extra", false).await?;
        let info = context.host.info(name).await?;
        require!(
            info.disks.iter().all(|disk| disk.name != "extra") && info.restart_required.is_empty(),
            "round {round}: it tells {:?}, {:?}",
            info.disks,
            info.restart_required
        );
    }
    refused(
        "a disk that is not there",
        context
            .host
            .detach_disk(name, "extra", DetachOptions::default())
            .await
            .map(drop),
        ErrorKind::NotFound,
        &["extra"],
    )?;
    context.host.kill(name).await?;
    Ok(())
}

pub(super) async fn an_attached_disk_outlives_the_keeper(context: &Context) -> Verdict {
    let name = "kept";
    let info = ready_or_running(context, name).await?;
    let disk = file_disk(context, "extra")?;
    context.host.attach_disk(name, &disk, false).await?;
    kill_process(context, info.keeper_pid).await?;
    let info = context
        .until(name, "kept again", |after| after.state == info.state)
        .await?;
    require!(
        info.disks.iter().any(|disk| disk.name == "extra") && info.restart_required.is_empty(),
        "it tells {:?}, {:?}",
        info.disks,
        info.restart_required
    );
    context
        .host
        .detach_disk(name, "extra", DetachOptions::default())
        .await?;
    context.host.kill(name).await?;
    context.start(name).await?;
    context.host.kill(name).await?;
    Ok(())
}

pub(super) async fn a_disk_that_the_guest_holds_goes_when_it_lets_go(context: &Context) -> Verdict {
    let name = "grips";
    context
        .create(name, context.spec_that_is(Word::Grips)?)
        .await?;
    let info = context.start(name).await?;
    let disk = file_disk(context, "held")?;
    context.host.attach_disk(name, &disk, false).await?;
    let detach = context
        .host
        .detach_disk(name, "held", DetachOptions::default());
    let beside = async {
        context
            .until(name, "asked to let go", |info| {
                !info.restart_required.is_empty()
            })
            .await?;
        until_running(context, name).await?;
        refused(
            "a change beside the one that waits",
            set(context, name, "cpus", "2").await.map(drop),
            ErrorKind::Conflict,
            &["another change"],
        )?;
        context
            .setup
            .guest
            .act(&context.host, &info, Act::LetGo)
            .await
    };
    let (detached, beside) = tokio::join!(detach, beside);
    beside?;
    detached?;
    context.host.kill(name).await?;
    Ok(())
}

pub(super) async fn a_guest_that_does_not_let_go_is_told_in_time(context: &Context) -> Verdict {
    let name = "clings";
    context
        .create(name, context.spec_that_is(Word::Grips)?)
        .await?;
    let info = context.start(name).await?;
    let disk = file_disk(context, "held")?;
    context.host.attach_disk(name, &disk, false).await?;
    let options = DetachOptions {
        timeout: Duration::from_millis(1200),
        ..DetachOptions::default()
    };
    let asked = Instant::now();
    refused(
        "a disk that the guest does not let go of",
        context.host.detach_disk(name, "held", options).await,
        ErrorKind::TimedOut,
        &["held", "let go"],
    )?;
    let waited = asked.elapsed();
    require!(
        waited >= options.timeout && waited < options.timeout + Duration::from_secs(10),
        "it was told after {waited:?}, asked to wait {:?}",
        options.timeout
    );
    let now = context.host.info(name).await?;
    require!(
        now.vmm_pid == info.vmm_pid && !now.restart_required.is_empty(),
        "the disk is not told as waiting: {now:?}"
    );
    // When the guest lets go after all, nobody needs to ask again.
    let guest = &context.setup.guest;
    guest.act(&context.host, &info, Act::LetGo).await?;
    context
        .until(name, "without the disk", |info| {
            info.restart_required.is_empty()
        })
        .await?;
    context.host.kill(name).await?;
    Ok(())
}

pub(super) fn with_drive(context: &Context) -> Verdict<(VmSpec, [DiskSpec; 2])> {
    let media = [file_disk(context, "one")?, file_disk(context, "two")?];
    let mut spec = context.spec();
    spec.disks.push(DiskSpec {
        removable: true,
        read_only: true,
        ..DiskSpec::named("cd")
    });
    Ok((spec, media))
}

pub(super) async fn a_medium_is_inserted_changed_and_ejected(context: &Context) -> Verdict {
    let (spec, media) = with_drive(context)?;
    let name = "reads";
    context.create(name, spec).await?;
    context.start(name).await?;
    for medium in &media {
        let path = medium.path.clone().unwrap_or_default();
        let change = context
            .host
            .insert_medium(name, "cd", &path, DiskFormat::Raw, false)
            .await?;
        require!(change.restart_required.is_empty(), "{change:?}");
    }
    context.host.eject_medium(name, "cd", false).await?;
    let info = context.host.info(name).await?;
    require!(
        info.restart_required.is_empty(),
        "it waits for {:?}",
        info.restart_required
    );
    // The names that there are stand in the message or in the hint.
    refused(
        "a drive that is not there",
        context
            .host
            .eject_medium(name, "dvd", false)
            .await
            .map(drop),
        ErrorKind::NotFound,
        &["dvd"],
    )?;
    context.host.kill(name).await?;
    Ok(())
}

pub(super) async fn a_locked_tray_is_told_and_the_spec_is_as_before(context: &Context) -> Verdict {
    let (mut spec, media) = with_drive(context)?;
    spec.boot.cmdline = context.spec_that_is(Word::LockedTray)?.boot.cmdline;
    let name = "locked";
    context.create(name, spec).await?;
    context.start(name).await?;
    let before = context.host.spec_text(name)?;
    let path = media[0].path.clone().unwrap_or_default();
    refused(
        "a medium for a locked tray",
        context
            .host
            .insert_medium(name, "cd", &path, DiskFormat::Raw, false)
            .await
            .map(drop),
        ErrorKind::Conflict,
        &["tray"],
    )?;
    require!(
        context.host.spec_text(name)? == before,
        "the refused medium stands in the spec"
    );
    context.host.kill(name).await?;
    Ok(())
}

pub(super) async fn an_interface_is_attached_and_detached(context: &Context) -> Verdict {
    let name = "wired";
    ready_or_running(context, name).await?;
    let network = another_network(context);
    let before = context.host.info(name).await?.networks.len();
    for _ in 0..2 {
        context.host.attach_network(name, &network, false).await?;
        let info = context.host.info(name).await?;
        require!(
            info.networks.len() == before + 1 && info.restart_required.is_empty(),
            "it tells {:?}, {:?}",
            info.networks,
            info.restart_required
        );
        context
            .host
            .detach_network(name, DetachOptions::default())
            .await?;
        let info = context.host.info(name).await?;
        require!(
            info.networks.len() == before && info.restart_required.is_empty(),
            "it tells {:?}, {:?}",
            info.networks,
            info.restart_required
        );
    }
    context.host.kill(name).await?;
    Ok(())
}

pub(super) async fn cpus_are_given_while_it_runs(context: &Context) -> Verdict {
    let name = "widens";
    let mut spec = context.spec();
    (spec.cpus, spec.max_cpus) = (1, Some(3));
    context.create(name, spec).await?;
    context.start(name).await?;
    if context.setup.guest.has(Part::Agent).is_ok() {
        context.wait_ready(name).await?;
    }
    let change = set(context, name, "cpus", "2").await?;
    now(&change, "cpus")?;
    let info = context.host.info(name).await?;
    require!(
        info.cpus == 2 && info.restart_required.is_empty(),
        "it tells {} CPUs, {:?}",
        info.cpus,
        info.restart_required
    );
    let edits = [
        ("max_cpus".to_owned(), Some("6".to_owned())),
        ("cpus".to_owned(), Some("6".to_owned())),
    ];
    let change = context.host.set(name, &edits, false).await?;
    require!(
        change.restart_required.contains(&"cpus".to_owned())
            && change
                .later
                .iter()
                .any(|later| later.field == "cpus" && later.reason.contains("room for 3")),
        "more than there is room for gave {change:?}"
    );
    let info = context.host.info(name).await?;
    require!(info.cpus == 2, "it tells {} CPUs", info.cpus);
    context.host.kill(name).await?;
    context.start(name).await?;
    let info = context.host.info(name).await?;
    require!(info.cpus == 6, "after a start it has {} CPUs", info.cpus);
    context.host.kill(name).await?;
    Ok(())
}

pub(super) async fn memory_is_given_while_it_runs(context: &Context) -> Verdict {
    /// Every hypervisor adds memory in steps of this many bytes, or in smaller ones.
    const STEP: u64 = 128 << 20;
    let name = "swells";
    let mut spec = context.spec();
    let start = spec.memory.get();
    let mib = |bytes: u64| format!("{}MiB", bytes >> 20);
    spec.max_memory = Some(Bytes::new(start + 2 * STEP));
    context.create(name, spec).await?;
    context.start(name).await?;
    if context.setup.guest.has(Part::Agent).is_ok() {
        context.wait_ready(name).await?;
    }
    let change = set(context, name, "memory", &mib(start + STEP)).await?;
    now(&change, "memory")?;
    let info = context.host.info(name).await?;
    require!(
        info.memory_bytes == start + STEP && info.restart_required.is_empty(),
        "it tells {} bytes, {:?}",
        info.memory_bytes,
        info.restart_required
    );
    let edits = [
        ("max_memory".to_owned(), Some(mib(start + 4 * STEP))),
        ("memory".to_owned(), Some(mib(start + 4 * STEP))),
    ];
    let change = context.host.set(name, &edits, false).await?;
    require!(
        change
            .later
            .iter()
            .any(|later| later.field == "memory" && later.reason.contains("room for")),
        "more than there is room for gave {change:?}"
    );
    context.host.kill(name).await?;
    Ok(())
}

pub(super) async fn a_balloon_takes_a_new_target(context: &Context) -> Verdict {
    let name = "breathes";
    let mut spec = context.spec();
    let memory = spec.memory.get();
    let mib = |bytes: u64| format!("{}MiB", bytes >> 20);
    spec.memory_target = Some(spec.memory);
    context.create(name, spec).await?;
    context.start(name).await?;
    if context.setup.guest.has(Part::Agent).is_ok() {
        context.wait_ready(name).await?;
    }
    for target in [memory * 3 / 4, memory] {
        let change = set(context, name, "memory_target", &mib(target)).await?;
        now(&change, "memory_target")?;
    }
    context.host.kill(name).await?;
    // Without a balloon from the start there is none to ask.
    context.create("solid", context.spec()).await?;
    context.start("solid").await?;
    let change = set(context, "solid", "memory_target", &mib(memory / 2)).await?;
    require!(
        change
            .later
            .iter()
            .any(|later| later.field == "memory_target" && later.reason.contains("balloon")),
        "a target without a balloon gave {change:?}"
    );
    context.host.kill("solid").await?;
    Ok(())
}

pub(super) async fn what_was_given_comes_back_after_a_suspend(context: &Context) -> Verdict {
    let name = "grown";
    let mut spec = context.spec();
    (spec.cpus, spec.max_cpus) = (1, Some(2));
    context.create(name, spec).await?;
    context.start(name).await?;
    if context.setup.guest.has(Part::Agent).is_ok() {
        context.wait_ready(name).await?;
    }
    now(&set(context, name, "cpus", "2").await?, "cpus")?;
    let info = context.host.info(name).await?;
    let memory = context.setup.guest.remember(&context.host, &info).await?;
    context.host.suspend(name).await?;
    let info = context.expect_state(name, VmState::Suspended).await?;
    require!(
        info.cpus == 2 && info.restart_required.is_empty(),
        "suspended it tells {} CPUs, {:?}",
        info.cpus,
        info.restart_required
    );
    context.host.start(name).await?;
    context.recalls(name, &memory).await?;
    context.host.kill(name).await?;
    Ok(())
}

pub(super) async fn a_change_of_what_stands_still_is_refused(context: &Context) -> Verdict {
    let name = "frozen";
    context.running(name).await?;
    context.host.pause(name).await?;
    let disk = file_disk(context, "extra")?;
    refused(
        "attaching a disk to what is paused",
        context.host.attach_disk(name, &disk, false).await.map(drop),
        ErrorKind::Conflict,
        &["CPUs"],
    )?;
    let text = context.host.spec_text(name)?;
    require!(
        !text.contains("extra"),
        "the refused disk stands in the spec"
    );
    context.host.kill(name).await?;
    Ok(())
}

pub(super) async fn an_obstacle_to_a_suspend_is_named_and_it_runs_on(context: &Context) -> Verdict {
    let name = "shares";
    let mut spec = context.spec_that_is(Word::ButtonOnly)?;
    spec.ready = Some(ReadyWhen::None);
    spec.shares = vec![crate::spec::ShareSpec {
        host: context.setup.files.clone(),
        guest: "/mnt".into(),
        read_only: true,
    }];
    context.create(name, spec).await?;
    let before = context.start(name).await?;
    refused(
        "a suspend with a shared folder",
        context.host.suspend(name).await,
        ErrorKind::Unsupported,
        &["shares"],
    )?;
    let after = context.host.info(name).await?;
    require!(
        after.state == VmState::Ready && after.vmm_pid == before.vmm_pid,
        "after the refusal it is {} ({:?})",
        after.state,
        after.agent.state == AgentState::None
    );
    let path = after.directory;
    require!(
        !std::path::Path::new(&path).join("saved.new").exists(),
        "something half-saved is left"
    );
    context.host.kill(name).await?;
    Ok(())
}
