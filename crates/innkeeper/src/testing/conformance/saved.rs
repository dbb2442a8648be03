//! Trials of a VM that is suspended: what it refuses, what it outlives, and what it goes on with.

use std::time::Duration;

use innkeeper_api::{ErrorKind, VmState};

use super::context::{Context, refused};
use super::saving::{is_suspended, remembering, saved};
use super::{Verdict, require};

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
