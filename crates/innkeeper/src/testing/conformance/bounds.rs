//! Trials of bounds that hold: traffic of disks, what a network lets out, what the hypervisor's process may do.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use innkeeper_agent::message::ExecRequest;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::context::Context;
use super::devices::file_disk;
use super::inside::fetch;
use super::{Failure, Verdict, require};
use crate::spec::{ForwardSpec, Isolation, NetworkKind, NetworkSpec, Protocol};

pub(super) async fn a_limited_disk_is_held_to_its_requests(context: &Context) -> Verdict {
    /// Requests a second, and how many are made: four seconds' worth, less what is let through at once in the beginning. Few enough that
    /// a busy computer alone does not take so long.
    const LIMIT: u32 = 25;
    const REQUESTS: u32 = 100;
    let name = "held";
    let mut spec = context.spec();
    let mut slow = file_disk(context, "slow")?;
    slow.limits.requests = Some(LIMIT);
    spec.disks.extend([slow, file_disk(context, "free")?]);
    context.create(name, spec).await?;
    context.start_ready(name).await?;
    let read = async |disk: &str| {
        let find = format!("until grep -qsx {disk} /sys/block/*/serial; do sleep 0.05; done");
        context.sh(name, &find).await?;
        let script = format!(
            "for d in /sys/block/*; do if grep -qsx {disk} $d/serial; then \
             dd if=/dev/${{d##*/}} of=/dev/null bs=4096 count={REQUESTS} iflag=direct 2>&1 && echo read; fi; done"
        );
        let started = Instant::now();
        let said = context.sh(name, &script).await?;
        require!(said.ends_with("read"), "{disk} could not be read: {said}");
        Verdict::Ok(started.elapsed())
    };
    let (free, slow) = (read("free").await?, read("slow").await?);
    require!(
        slow >= Duration::from_secs(3),
        "{REQUESTS} reads at {LIMIT} a second took {slow:?}, and {free:?} without a limit"
    );
    context.host.kill(name).await?;
    Ok(())
}

/// A server on this computer's loopback, and how often somebody came to it.
async fn server() -> Verdict<(u16, Arc<AtomicUsize>, tokio::task::AbortHandle)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let visits = Arc::new(AtomicUsize::new(0));
    let count = visits.clone();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            // Fails if the guest went away.
            let _ = stream.write_all(b"hello").await;
        }
    });
    Ok((port, visits, task.abort_handle()))
}

pub(super) async fn only_what_is_not_for_an_agent_reaches_out(context: &Context) -> Verdict {
    let (port, visits, server) = server().await?;
    let gateway = innkeeper_net::UserNetwork::of_interface(0)
        .ok_or_else(|| Failure::new("there is no first network"))?
        .gateway();
    let reach = format!("busybox nc -w 5 {gateway} {port} < /dev/null; echo \" $?\"");
    context.ready("open").await?;
    let said = context.sh("open", &reach).await?;
    require!(
        said == "hello 0" && visits.load(Ordering::SeqCst) == 1,
        "an isolated guest reached out and got {said:?}"
    );
    context.host.kill("open").await?;

    let (argv, guest_port) = context.setup.guest.listener()?;
    let host_port = crate::engine::ports::free_port()?;
    let mut spec = context.spec();
    spec.isolation = Isolation::Agent;
    spec.time_to_live = Some(Duration::from_secs(3600));
    spec.networks = vec![NetworkSpec {
        kind: NetworkKind::User,
        name: None,
        mac: None,
        forwards: vec![ForwardSpec {
            protocol: Protocol::Tcp,
            host_address: std::net::Ipv4Addr::LOCALHOST.into(),
            host_port,
            guest_port,
        }],
    }];
    context.create("closed", spec).await?;
    context.start_ready("closed").await?;
    let said = context.sh("closed", &reach).await?;
    require!(
        !said.contains("hello") && !said.ends_with(" 0"),
        "a closed guest reached out and got {said:?}"
    );
    require!(
        visits.load(Ordering::SeqCst) == 1,
        "a closed guest reached a server of this computer"
    );
    // What was asked for still comes in, and its answers out: the network is closed, not dead.
    let channel = context.host.guest("closed").await?;
    let request = ExecRequest {
        argv,
        ..ExecRequest::default()
    };
    let _listens = channel.exec(request).await?;
    let answered = async {
        // poll: the guest's server has begun to listen
        while !fetch(host_port)
            .await
            .is_ok_and(|answer| answer.starts_with(b"HTTP/1"))
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    context
        .within("an answer through a forward", answered)
        .await?;
    context.host.kill("closed").await?;
    server.abort();
    Ok(())
}

/// Devices of this computer that a hypervisor may hold: nothing of them leads to anybody's data.
const HARMLESS: &[&str] = &["/dev/null", "/dev/kvm", "/dev/urandom", "/dev/net/tun"];

pub(super) async fn its_hypervisor_has_little_to_give(context: &Context) -> Verdict {
    let name = "fenced";
    let mut spec = context.spec();
    let disk = file_disk(context, "named")?;
    spec.disks.push(disk);
    context.create(name, spec).await?;
    context.start(name).await?;
    let told = context.host.confinement(name).await?;
    let hypervisor = told
        .iter()
        .find(|process| process.role == "hypervisor")
        .ok_or_else(|| Failure::new(format!("the hypervisor is not told of: {told:?}")))?;
    require!(
        hypervisor.no_new_privileges
            && hypervisor.seccomp
            && hypervisor.environment_empty
            && hypervisor.directory == "/",
        "it is confined less than its driver says: {hypervisor:?}"
    );
    require!(
        hypervisor.user == 0 || hypervisor.capabilities.chars().all(|digit| digit == '0'),
        "it has capabilities: {hypervisor:?}"
    );
    let ours = [
        context.host.home(),
        &context.setup.runtime,
        &context.setup.files,
    ];
    let is_ours = |path: &Path| ours.iter().any(|directory| path.starts_with(directory));
    let open = std::fs::read_dir(format!("/proc/{}/fd", hypervisor.pid))?;
    let foreign: Vec<String> = open
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|path| path.is_absolute() && !is_ours(path))
        .map(|path| path.display().to_string())
        .filter(|path| !path.starts_with("/memfd:") && !HARMLESS.contains(&path.as_str()))
        .collect();
    require!(foreign.is_empty(), "it holds {foreign:?}");
    require!(
        hypervisor.descriptors < 64,
        "it holds {} descriptors",
        hypervisor.descriptors
    );
    context.host.kill(name).await?;
    Ok(())
}
