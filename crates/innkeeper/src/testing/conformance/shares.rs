//! Trials of shared folders: that they are what the host has, and that they and a suspend go together.

use std::path::{Path, PathBuf};
use std::time::Duration;

use innkeeper_agent::message::ExecRequest;
use innkeeper_api::{ErrorKind, EventKind, ShareState, VmInfo, VmState};

use super::context::{Context, kill_process, lives, refused};
use super::{Failure, Verdict, require};
use crate::spec::{ShareSpec, VmSpec};

/// A folder of this computer with a file in it.
fn folder(context: &Context, name: &str) -> Verdict<PathBuf> {
    let folder = context.setup.files.join(name);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("from-host"), format!("{name} of the host"))?;
    Ok(folder)
}

/// A VM with one folder that it writes to at `/work`, and one that it only reads at `/look/at it`.
fn spec(context: &Context) -> Verdict<VmSpec> {
    let mut spec = context.spec();
    spec.shares = vec![
        ShareSpec {
            host: folder(context, "work")?,
            guest: "/work".into(),
            read_only: false,
        },
        ShareSpec {
            host: folder(context, "look")?,
            guest: "/look/at it".into(),
            read_only: true,
        },
    ];
    Ok(spec)
}

/// Runs a script in the guest; what it says, and whether it did well.
async fn sh(context: &Context, name: &str, script: &str) -> Verdict<(String, bool)> {
    let channel = context.host.guest(name).await?;
    let output = context.run(&channel, &["sh", "-c", script], b"").await?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.out), output.err);
    Ok((text.trim().to_owned(), output.status.shell_code() == 0))
}

/// Both folders are what the host has, and the second refuses what is written.
async fn are_whole(context: &Context, name: &str, round: &str) -> Verdict {
    let files = &context.setup.files;
    // A name of its own for each round: what a guest has seen of a file it may believe for a second.
    std::fs::write(
        files.join(format!("work/host-{round}")),
        format!("host {round}"),
    )?;
    let script = format!(
        "until grep -q ' /work virtiofs ' /proc/mounts && grep -q ' /look/at.040it virtiofs ro' /proc/mounts; do sleep 0.05; done
         cat /work/host-{round} && echo guest {round} > /work/from-guest && cat '/look/at it/from-host'"
    );
    let (said, well) = sh(context, name, &script).await?;
    require!(
        well && said == format!("host {round}look of the host"),
        "{round}: the guest read {said:?}"
    );
    let back = std::fs::read_to_string(files.join("work/from-guest"))?;
    require!(
        back.trim() == format!("guest {round}"),
        "{round}: the guest wrote {back:?}"
    );
    let (said, well) = sh(context, name, "echo x > '/look/at it/new'").await?;
    require!(
        !well && said.contains("Read-only"),
        "{round}: writing to what is read-only gave {said:?}"
    );
    require!(
        !files.join("look/new").exists(),
        "{round}: the guest wrote to what is read-only"
    );
    Ok(())
}

/// Process ids of what serves the folders of a VM, as its keeper wrote them down.
fn servers(info: &VmInfo) -> Verdict<Vec<u32>> {
    let text = std::fs::read(Path::new(&info.directory).join("run/run.json"))?;
    let run: serde_json::Value = serde_json::from_slice(&text)
        .map_err(|error| Failure::new(format!("run.json can't be read: {error}")))?;
    let sidecars = run["record"]["sidecars"].as_array().cloned();
    Ok(sidecars
        .unwrap_or_default()
        .iter()
        .filter_map(|sidecar| u32::try_from(sidecar["pid"].as_u64()?).ok())
        .collect())
}

pub(super) async fn folders_are_read_and_written_and_outlive_a_restart(
    context: &Context,
) -> Verdict {
    let name = "sharing";
    context.create(name, spec(context)?).await?;
    context.start_ready(name).await?;
    are_whole(context, name, "first").await?;
    context.host.stop(name, context.gently()).await?;
    let info = context.start_ready(name).await?;
    are_whole(context, name, "second").await?;
    // Another keeper mounts nothing twice.
    kill_process(context, info.keeper_pid).await?;
    let info = context
        .until(name, "kept again", |info| info.state == VmState::Ready)
        .await?;
    are_whole(context, name, "third").await?;
    let (mounted, _) = sh(context, name, "grep -c virtiofs /proc/mounts").await?;
    require!(mounted == "2", "{mounted} shares are mounted");
    let problems: Vec<String> = notes(context, name)?
        .into_iter()
        .filter(|note| note.contains("share"))
        .collect();
    require!(problems.is_empty(), "it was told: {problems:?}");
    let servers = servers(&info)?;
    require!(servers.len() == 2, "{servers:?} serve two shares");
    context.host.kill(name).await?;
    context
        .eventually("the end of virtiofsd", || {
            !servers.iter().any(|pid| lives(*pid))
        })
        .await?;
    Ok(())
}

fn notes(context: &Context, name: &str) -> Verdict<Vec<String>> {
    let events = context.host.events(Some(name))?;
    Ok(events
        .into_iter()
        .filter_map(|event| match event.kind {
            EventKind::Note { message } => Some(message),
            _ => None,
        })
        .collect())
}

/// Whether the folders are served must be told so.
fn are_told(info: &VmInfo, states: [ShareState; 2]) -> Verdict {
    let told: Vec<ShareState> = info.shares.iter().map(|share| share.state).collect();
    require!(
        told == states,
        "the folders are told as {told:?}, not {states:?}"
    );
    Ok(())
}

pub(super) async fn a_dead_virtiofsd_is_told_and_the_vm_lives(context: &Context) -> Verdict {
    let name = "severed";
    context.create(name, spec(context)?).await?;
    let info = context.start_ready(name).await?;
    are_whole(context, name, "before").await?;
    let servers = servers(&info)?;
    kill_process(context, servers.first().copied()).await?;
    context
        .eventually("an event that tells of the dead virtiofsd", || {
            notes(context, name).is_ok_and(|notes| {
                notes
                    .iter()
                    .any(|note| note.contains("virtiofsd") && note.contains("/work"))
            })
        })
        .await?;
    let (said, _) = sh(context, name, "cat '/look/at it/from-host'").await?;
    require!(
        said == "look of the host",
        "the other folder gives {said:?}"
    );
    let after = context.expect_state(name, VmState::Ready).await?;
    require!(after.vmm_pid == info.vmm_pid, "the hypervisor changed");
    are_told(&info, [ShareState::Served, ShareState::Served])?;
    are_told(&after, [ShareState::Lost, ShareState::Served])?;
    refused(
        "a suspend with a dead virtiofsd",
        context.host.suspend(name).await,
        ErrorKind::Conflict,
        &["shares", "virtiofsd"],
    )?;
    context.expect_state(name, VmState::Ready).await?;
    context.host.kill(name).await?;
    let idle = context.expect_state(name, VmState::Stopped).await?;
    are_told(&idle, [ShareState::Idle, ShareState::Idle])?;
    let again = context.start_ready(name).await?;
    are_told(&again, [ShareState::Served, ShareState::Served])?;
    are_whole(context, name, "after").await?;
    context.host.kill(name).await?;
    Ok(())
}

pub(super) async fn folders_leave_for_a_suspend_and_come_back(context: &Context) -> Verdict {
    let name = "folded";
    context.create(name, spec(context)?).await?;
    let mut info = context.start_ready(name).await?;
    for round in ["first", "second"] {
        are_whole(context, name, round).await?;
        let (_, well) = sh(context, name, &format!("echo {round} > /tmp/kept")).await?;
        require!(well, "the guest could not write to its own memory");
        let before = servers(&info)?;
        context.host.suspend(name).await?;
        context.expect_state(name, VmState::Suspended).await?;
        require!(
            !before.iter().any(|pid| lives(*pid)),
            "virtiofsd outlived the suspend: {before:?}"
        );
        std::fs::write(
            context.setup.files.join("work/meanwhile"),
            format!("while it was away: {round}"),
        )?;
        context.host.start(name).await?;
        info = context.wait_ready(name).await?;
        let (said, _) = sh(context, name, "cat /tmp/kept /work/meanwhile").await?;
        require!(
            said == format!("{round}\nwhile it was away: {round}"),
            "after the suspend the guest reads {said:?}"
        );
        require!(
            servers(&info)?.len() == 2,
            "the run is not told of the new virtiofsd"
        );
    }
    are_whole(context, name, "last").await?;
    // Adopted after it came back, too.
    kill_process(context, info.keeper_pid).await?;
    context
        .until(name, "kept again", |info| info.state == VmState::Ready)
        .await?;
    are_whole(context, name, "adopted").await?;
    let left = servers(&info)?;
    context.host.kill(name).await?;
    context
        .eventually("the end of virtiofsd", || {
            !left.iter().any(|pid| lives(*pid))
        })
        .await
}

pub(super) async fn a_suspend_names_what_uses_a_folder(context: &Context) -> Verdict {
    let name = "busy";
    context.create(name, spec(context)?).await?;
    let before = context.start_ready(name).await?;
    are_whole(context, name, "before").await?;
    let channel = context.host.guest(name).await?;
    let script = "cd /work && exec 7> held && echo here && exec sleep 1000";
    let mut session = channel
        .exec(ExecRequest {
            argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
            ..ExecRequest::default()
        })
        .await?;
    let mut line = [0; 5];
    use tokio::io::AsyncReadExt;
    context
        .within("the script's word", session.stdout.read_exact(&mut line))
        .await??;
    refused(
        "a suspend while a folder is in use",
        context.host.suspend(name).await,
        ErrorKind::Conflict,
        &["shares", "sleep", "has /work/held open", "works in /work"],
    )?;
    let after = context.expect_state(name, VmState::Ready).await?;
    require!(after.vmm_pid == before.vmm_pid, "the hypervisor changed");
    are_whole(context, name, "refused").await?;
    session.control.signal(9)?;
    context
        .within("the end of what used it", session.control.wait())
        .await??;
    context.host.suspend(name).await?;
    context.host.start(name).await?;
    context.wait_ready(name).await?;
    are_whole(context, name, "at-last").await?;
    context.host.kill(name).await?;
    Ok(())
}

pub(super) async fn a_paused_vm_with_folders_is_not_suspended(context: &Context) -> Verdict {
    let name = "still";
    context.create(name, spec(context)?).await?;
    context.start_ready(name).await?;
    context.host.pause(name).await?;
    refused(
        "a suspend of a paused VM with shares",
        context.host.suspend(name).await,
        ErrorKind::Conflict,
        &["shares", "CPUs"],
    )?;
    context.expect_state(name, VmState::Paused).await?;
    context.host.resume(name).await?;
    are_whole(context, name, "resumed").await?;
    context.host.kill(name).await?;
    Ok(())
}

pub(super) async fn folders_come_back_whenever_the_keeper_dies(context: &Context) -> Verdict {
    let name = "orphan";
    context.create(name, spec(context)?).await?;
    context.start_ready(name).await?;
    for milliseconds in [0, 20, 80, 200, 400] {
        let round = format!("killed-after-{milliseconds}-ms");
        are_whole(context, name, &round).await?;
        let info = context.host.info(name).await?;
        let kill = async {
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            kill_process(context, info.keeper_pid).await
        };
        // Either may win; what counts is what is left.
        let (_, killed) = tokio::join!(context.host.suspend(name), kill);
        if killed.is_err() && info.keeper_pid.is_some_and(lives) {
            killed?;
        }
        let info = context
            .until(name, "settled", |info| {
                matches!(
                    info.state,
                    VmState::Suspended | VmState::Paused | VmState::Running | VmState::Ready
                )
            })
            .await?;
        match info.state {
            VmState::Suspended => drop(context.host.start(name).await?),
            VmState::Paused => drop(context.host.resume(name).await?),
            _ => {}
        }
        context.wait_ready(name).await?;
        are_whole(context, name, &format!("after-{round}")).await?;
    }
    context.host.kill(name).await?;
    Ok(())
}

pub(super) async fn a_suspend_that_fails_gives_folders_back(context: &Context) -> Verdict {
    let name = "broken-off";
    context.create(name, spec(context)?).await?;
    let before = context.start_ready(name).await?;
    are_whole(context, name, "before").await?;
    // A file stands where what is saved is put together; by then the folders are out.
    let wall = Path::new(&before.directory).join("saved.new");
    std::fs::write(&wall, "")?;
    let suspended = context.host.suspend(name).await;
    std::fs::remove_file(&wall)?;
    refused(
        "a suspend that can't be written",
        suspended,
        ErrorKind::Failure,
        &["saved.new"],
    )?;
    are_whole(context, name, "after").await?;
    let after = context.expect_state(name, VmState::Ready).await?;
    require!(after.vmm_pid == before.vmm_pid, "the hypervisor changed");
    require!(
        servers(&after)?.iter().all(|pid| lives(*pid)),
        "the run is told of a virtiofsd that is gone"
    );
    context.host.suspend(name).await?;
    context.host.start(name).await?;
    context.wait_ready(name).await?;
    are_whole(context, name, "at-last").await?;
    context.host.kill(name).await?;
    Ok(())
}
