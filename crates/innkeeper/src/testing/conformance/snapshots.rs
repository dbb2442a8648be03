//! Trials of snapshots and clones.

use innkeeper_api::{ErrorKind, VmState};

use super::context::{Context, refused};
use super::{Verdict, require};
use crate::progress::Silent;
use crate::spec::{Bytes, DiskSpec, VmSpec};
use crate::{CloneKind, Present};

fn spec_with_data(context: &Context) -> VmSpec {
    let mut spec = context.spec();
    spec.disks.push(DiskSpec {
        size: Some(Bytes::mib(32)),
        mount: Some("/data".into()),
        ..DiskSpec::named("data")
    });
    spec
}

async fn sh(context: &Context, name: &str, script: &str) -> Verdict<String> {
    let channel = context.host.guest(name).await?;
    let output = context.run(&channel, &["sh", "-c", script], b"").await?;
    Ok(String::from_utf8_lossy(&output.out).trim().to_owned())
}

/// Starts a VM, does something with its data disk, stops it, and returns what that said.
async fn with_data(context: &Context, name: &str, script: &str) -> Verdict<String> {
    context.start_ready(name).await?;
    let mounted = "until grep -q ' /data ext4 ' /proc/mounts; do sleep 0.05; done";
    let said = sh(context, name, &format!("{mounted}; {script}")).await?;
    context.host.stop(name, context.gently()).await?;
    Ok(said)
}

pub(super) async fn a_snapshot_is_gone_back_to_and_what_was_is_a_branch(
    context: &Context,
) -> Verdict {
    let (host, name) = (&context.host, "forks");
    context.create(name, spec_with_data(context)).await?;
    with_data(context, name, "echo one > /data/kept").await?;
    host.snapshot_create(name, Some("one"), "the first").await?;
    with_data(context, name, "echo two > /data/kept").await?;
    let done = host.snapshot_revert(name, "one", Present::Save).await?;
    let branch = done.saved.map(|saved| saved.name).unwrap_or_default();
    require!(branch == "before-one", "what was is {branch:?}");
    let said = with_data(context, name, "cat /data/kept").await?;
    require!(said == "one", "back at the first it says {said:?}");
    host.snapshot_revert(name, &branch, Present::Discard)
        .await?;
    let said = with_data(context, name, "cat /data/kept").await?;
    require!(said == "two", "in the branch it says {said:?}");
    host.snapshot_remove(name, "one").await?;
    let said = with_data(context, name, "cat /data/kept; echo three > /data/kept").await?;
    require!(said == "two", "without the first it says {said:?}");
    host.snapshot_remove(name, &branch).await?;
    let said = with_data(context, name, "cat /data/kept").await?;
    require!(said == "three", "without snapshots it says {said:?}");
    let tree = host.snapshots(name).await?;
    require!(tree.snapshots.is_empty(), "left: {:?}", tree.snapshots);
    let left = host.tidy_up(true).await?;
    require!(left.is_empty(), "left over: {left:?}");
    host.remove(name, false).await?;
    Ok(())
}

pub(super) async fn a_snapshot_holds_the_memory_of_a_suspended_vm(context: &Context) -> Verdict {
    let (host, name) = (&context.host, "deja-vu");
    let info = super::keepers::ready_or_running(context, name).await?;
    let memory = context.setup.guest.remember(host, &info).await?;
    host.suspend(name).await?;
    let done = host.snapshot_create(name, None, "").await?;
    require!(done.snapshot.memory, "it holds no memory: {done:?}");
    for round in 0..2 {
        host.start(name).await?;
        context.recalls(name, &memory).await?;
        host.kill(name).await?;
        context.expect_state(name, VmState::Stopped).await?;
        let present = if round == 0 {
            Present::Discard
        } else {
            Present::Save
        };
        host.snapshot_revert(name, "s1", present).await?;
        context.expect_state(name, VmState::Suspended).await?;
    }
    host.start(name).await?;
    context.recalls(name, &memory).await?;
    host.kill(name).await?;
    host.remove(name, true).await?;
    Ok(())
}

pub(super) async fn a_running_vm_is_not_changed_behind_its_back(context: &Context) -> Verdict {
    let (host, name) = (&context.host, "busy");
    context.create(name, context.spec()).await?;
    host.snapshot_create(name, Some("fresh"), "").await?;
    context.start(name).await?;
    let back = host.snapshot_revert(name, "fresh", Present::Discard).await;
    refused(
        "a revert of a running VM",
        back,
        ErrorKind::Conflict,
        &["runs"],
    )?;
    let clone = host.clone_vm(name, "double", None, CloneKind::Linked, &Silent);
    refused(
        "a clone of a running VM",
        clone.await,
        ErrorKind::Conflict,
        &["runs"],
    )?;
    host.kill(name).await?;
    Ok(())
}

pub(super) async fn a_clone_is_another_vm_and_keeps_its_origin(context: &Context) -> Verdict {
    let (host, name) = (&context.host, "origin");
    context.create(name, spec_with_data(context)).await?;
    with_data(context, name, "echo one > /data/kept").await?;
    let kinds = [("linked", CloneKind::Linked), ("full", CloneKind::Full)];
    for (clone, kind) in kinds {
        let cloned = host.clone_vm(name, clone, None, kind, &Silent).await?.vm;
        let origin = host.info(name).await?;
        require!(cloned.id != origin.id, "the clone has the id of its origin");
        let said = with_data(context, clone, "cat /data/kept; echo other > /data/kept").await?;
        require!(said == "one", "the {clone} clone says {said:?}");
    }
    let said = with_data(context, name, "cat /data/kept").await?;
    require!(said == "one", "the origin says {said:?}");
    host.remove("full", false).await?;
    let shares = host.clone_shares(name)?;
    if shares.is_empty() {
        // The file system shares blocks by itself, and the clone needs nothing.
        host.remove(name, false).await?;
    } else {
        require!(shares == ["linked"], "{shares:?} share its layers");
        let removed = host.remove(name, false).await;
        refused(
            "removing an origin",
            removed,
            ErrorKind::Conflict,
            &["linked"],
        )?;
    }
    let said = with_data(context, "linked", "cat /data/kept").await?;
    require!(said == "other", "the linked clone says {said:?}");
    host.remove("linked", false).await?;
    if !shares.is_empty() {
        host.remove(name, false).await?;
    }
    let left = host.tidy_up(true).await?;
    require!(left.is_empty(), "left over: {left:?}");
    Ok(())
}
