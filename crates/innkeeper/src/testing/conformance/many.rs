//! Trials of many VMs: one after the other, and at once.

use innkeeper_api::VmState;

use super::context::{Context, lives};
use super::{Verdict, require};

/// How often a VM is made, run and removed.
const ROUNDS: usize = 20;
/// How many run at once.
const AT_ONCE: usize = 10;

pub(super) async fn twenty_rounds_leave_nothing(context: &Context) -> Verdict {
    for round in 0..ROUNDS {
        let info = context.ready("round").await?;
        let channel = context.host.guest("round").await?;
        let output = context.run(&channel, &["true"], b"").await?;
        require!(
            output.status.shell_code() == 0,
            "round {round}: `true` ended as {:?}",
            output.status
        );
        context.host.remove("round", true).await?;
        require!(
            context.host.list().await?.is_empty(),
            "round {round}: it is still listed"
        );
        let sockets = context.host.root().socket_directory(&info.id);
        require!(!sockets.exists(), "round {round}: its sockets are left");
        for pid in [info.vmm_pid, info.keeper_pid].into_iter().flatten() {
            context
                .eventually("the processes to be gone", || !lives(pid))
                .await?;
        }
    }
    Ok(())
}

pub(super) async fn ten_at_once_start_and_stop(context: &Context) -> Verdict {
    let names: Vec<String> = (0..AT_ONCE).map(|number| format!("vm-{number}")).collect();
    for name in &names {
        context.create(name, context.spec()).await?;
    }
    let starts = names.iter().map(|name| context.start_ready(name));
    let mut pids = Vec::new();
    for info in futures_util::future::join_all(starts).await {
        pids.extend(info?.vmm_pid);
    }
    pids.sort_unstable();
    pids.dedup();
    require!(
        pids.len() == AT_ONCE,
        "{AT_ONCE} VMs have {} hypervisors",
        pids.len()
    );
    let gently = context.gently();
    let stops = names.iter().map(|name| context.host.stop(name, gently));
    for stop in futures_util::future::join_all(stops).await {
        stop?;
    }
    for info in context.host.list().await? {
        require!(
            info.state == VmState::Stopped,
            "{} is {}",
            info.name,
            info.state
        );
    }
    Ok(())
}
