//! Trials of what is done in a running guest.

use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::{Duration, Instant, SystemTime};

use innkeeper_agent::message::{CopyInRequest, CopyOutRequest, ExecRequest, ExitStatus};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::context::Context;
use super::{Failure, Verdict, require};
use crate::guest::{CopyProgress, GuestError};
use crate::spec::{Bytes, DiskSpec, ForwardSpec, NetworkKind, NetworkSpec, Protocol};

pub(super) async fn commands_give_their_codes(context: &Context) -> Verdict {
    context.ready("codes").await?;
    let channel = context.host.guest("codes").await?;
    for (argv, status) in [
        (&["true"][..], ExitStatus::Code(0)),
        (&["sh", "-c", "exit 7"], ExitStatus::Code(7)),
        (&["sh", "-c", "exit 255"], ExitStatus::Code(255)),
        (&["sh", "-c", "kill -TERM $$"], ExitStatus::Signal(15)),
    ] {
        let output = context.run(&channel, argv, b"").await?;
        require!(
            output.status == status,
            "{argv:?} ended as {:?}, not {status:?}",
            output.status
        );
    }
    let output = context
        .run(&channel, &["sh", "-c", "echo out; echo err >&2"], b"")
        .await?;
    require!(
        output.out == b"out\n" && output.err == "err\n",
        "the streams were {output:?}"
    );
    let missing = ExecRequest {
        argv: vec!["no-such-command".to_owned()],
        ..ExecRequest::default()
    };
    let missing = channel.exec(missing).await.err();
    require!(
        matches!(missing, Some(GuestError::CommandNotFound(_))),
        "a missing command gave {missing:?}"
    );
    let plain = ExecRequest {
        argv: vec!["/etc/passwd".to_owned()],
        ..ExecRequest::default()
    };
    let plain = channel.exec(plain).await.err();
    require!(
        matches!(plain, Some(GuestError::CannotExecute(_))),
        "a file that is no program gave {plain:?}"
    );
    context.host.kill("codes").await?;
    Ok(())
}

/// Bytes of every value, without a pattern that a lost or doubled block would keep.
pub(super) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub(super) async fn ten_megabytes_pass_through_a_command_whole(context: &Context) -> Verdict {
    context.ready("pipe").await?;
    let channel = context.host.guest("pipe").await?;
    let sent = noise(10 << 20);
    let output = context.run(&channel, &["cat"], &sent).await?;
    require!(
        output.out.len() == sent.len(),
        "{} bytes of {} came back",
        output.out.len(),
        sent.len()
    );
    require!(output.out == sent, "what came back is not what was sent");
    context.host.kill("pipe").await?;
    Ok(())
}

pub(super) async fn a_copy_does_not_starve_a_command(context: &Context) -> Verdict {
    context.ready("beside").await?;
    let channel = context.host.guest("beside").await?;
    let started = Instant::now();
    context.run(&channel, &["true"], b"").await?;
    let alone = started.elapsed();
    let directory = tempfile::tempdir()?;
    let big = directory.path().join("big");
    std::fs::write(&big, noise(48 << 20))?;
    let progress = CopyProgress::default();
    let to = context.setup.guest.scratch().join("big");
    let request = CopyInRequest {
        path: to.display().to_string(),
        ..CopyInRequest::default()
    };
    let began = Instant::now();
    let copy = channel.copy_in(&big, request, &progress);
    let beside = async {
        while progress.bytes() == 0 {
            tokio::task::yield_now().await;
        }
        let mut slowest = Duration::ZERO;
        let mut rounds = 0;
        for _ in 0..5 {
            let started = Instant::now();
            context.run(&channel, &["true"], b"").await?;
            if progress.bytes() < 48 << 20 {
                slowest = slowest.max(started.elapsed());
                rounds += 1;
            }
        }
        Verdict::Ok((slowest, rounds))
    };
    let (copied, beside) = context
        .within("the copy", async { tokio::join!(copy, beside) })
        .await?;
    let copied = copied?;
    let copying = began.elapsed();
    require!(
        copied.bytes == 48 << 20,
        "{} bytes were copied",
        copied.bytes
    );
    let (slowest, rounds) = beside?;
    require!(
        rounds > 0 || copying < Duration::from_millis(500),
        "no command ended before the copy did, which took {copying:?}"
    );
    // Measured against the same command without a copy, since a loaded computer that emulates makes both slow.
    let limit = Duration::from_secs(2).max(alone * 20);
    require!(
        slowest < limit,
        "a command beside a copy took {slowest:?} (the slowest of {rounds}), alone {alone:?}"
    );
    context
        .run(&channel, &["rm", &to.display().to_string()], b"")
        .await?;
    context.host.kill("beside").await?;
    Ok(())
}

pub(super) async fn copies_keep_modes_times_and_links(context: &Context) -> Verdict {
    context.ready("copies").await?;
    let channel = context.host.guest("copies").await?;
    let directory = tempfile::tempdir()?;
    let tree = directory.path().join("tree");
    std::fs::create_dir_all(tree.join("inner/empty"))?;
    let content = noise(100_000);
    std::fs::write(tree.join("inner/script"), &content)?;
    std::fs::set_permissions(tree.join("inner/script"), PermissionsExt::from_mode(0o750))?;
    symlink("../nowhere", tree.join("link"))?;
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    std::fs::File::options()
        .write(true)
        .open(tree.join("inner/script"))?
        .set_modified(time)?;
    let progress = CopyProgress::default();
    let there = context.setup.guest.scratch().join("copied");
    let request = CopyInRequest {
        path: there.display().to_string(),
        ..CopyInRequest::default()
    };
    let summary = context
        .within("the copy in", channel.copy_in(&tree, request, &progress))
        .await??;
    require!(
        summary.entries == 5,
        "{} entries were copied",
        summary.entries
    );
    let listed = context
        .run(
            &channel,
            &[
                "stat",
                "-c",
                "%a %Y",
                &there.join("inner/script").display().to_string(),
            ],
            b"",
        )
        .await?;
    let listed = String::from_utf8_lossy(&listed.out).into_owned();
    require!(
        listed == "750 1000000000\n",
        "in the guest it has mode and time {listed:?}: {listed}"
    );
    let back = directory.path().join("back");
    let request = CopyOutRequest {
        path: there.display().to_string(),
    };
    context
        .within("the copy out", channel.copy_out(request, &back, &progress))
        .await??;
    let script = back.join("inner/script");
    let found = std::fs::metadata(&script)?;
    require!(
        found.permissions().mode() & 0o777 == 0o750,
        "the mode came back as {:o}",
        found.permissions().mode()
    );
    require!(
        found.modified()? == time,
        "the time came back as {:?}",
        found.modified()?
    );
    require!(
        std::fs::read(&script)? == content,
        "the content came back changed"
    );
    require!(
        std::fs::read_link(back.join("link"))?.as_os_str() == "../nowhere",
        "the link came back changed"
    );
    require!(
        back.join("inner/empty").is_dir(),
        "the empty directory was lost"
    );
    let request = CopyOutRequest {
        path: "/no/such/file".to_owned(),
    };
    let missing = channel
        .copy_out(request, &directory.path().join("none"), &progress)
        .await;
    require!(missing.is_err(), "a file that is not there was copied");
    context
        .run(&channel, &["rm", "-r", &there.display().to_string()], b"")
        .await?;
    context.host.kill("copies").await?;
    Ok(())
}

pub(super) async fn addresses_are_known(context: &Context) -> Verdict {
    let info = context.ready("located").await?;
    require!(!info.addresses.is_empty(), "it is ready and has no address");
    for address in &info.addresses {
        let parsed: Result<std::net::IpAddr, _> = address.parse();
        require!(
            parsed.is_ok_and(|address| !address.is_loopback()),
            "{address} leads nowhere"
        );
    }
    require!(
        info.agent.version.is_some() && info.agent.os.is_some(),
        "the agent tells nothing of itself: {:?}",
        info.agent
    );
    context.host.kill("located").await?;
    let info = context.host.info("located").await?;
    require!(
        info.addresses.is_empty(),
        "a stopped VM has addresses: {:?}",
        info.addresses
    );
    Ok(())
}

/// As on a driver whose network chooses the addresses.
pub(super) async fn a_guest_asks_its_network_for_addresses(context: &Context) -> Verdict {
    let name = "asks";
    context.create(name, context.spec()).await?;
    let bundle = context.host.root().bundle(name)?;
    let mut identity = bundle.identity()?;
    identity.dhcp = true;
    bundle.write_identity(&identity)?;
    context.start(name).await?;
    let info = context.wait_ready(name).await?;
    require!(!info.addresses.is_empty(), "it is ready and has no address");
    let channel = context.host.guest(name).await?;
    let words = context
        .run(&channel, &["cat", "/proc/cmdline"], b"")
        .await?;
    let words = String::from_utf8_lossy(&words.out).into_owned();
    require!(words.contains(",dhcp"), "it was told an address: {words}");
    context.host.kill(name).await?;
    Ok(())
}

pub(super) async fn the_console_is_in_the_serial_log(context: &Context) -> Verdict {
    let info = context.ready("speaks").await?;
    let channel = context.host.guest("speaks").await?;
    let nonce = format!("nonce-{}", info.id);
    let console = context
        .setup
        .guest
        .console(&context.host, &info)
        .display()
        .to_string();
    let output = context
        .run(
            &channel,
            &["sh", "-c", "echo \"$0\" > \"$1\"", &nonce, &console],
            b"",
        )
        .await?;
    require!(
        output.status == ExitStatus::Code(0),
        "writing to the console failed: {}",
        output.err
    );
    let log = context.host.log_path("speaks", crate::LogKind::Serial)?;
    let contains = |path: &std::path::Path| {
        std::fs::read(path).is_ok_and(|log| String::from_utf8_lossy(&log).contains(&nonce))
    };
    context
        .eventually(
            "what the guest wrote to its console in the serial log",
            || contains(&log),
        )
        .await?;
    context.host.kill("speaks").await?;
    context.start("speaks").await?;
    require!(
        !contains(&log),
        "the log of a new run holds words of the one before"
    );
    require!(
        contains(&log.with_extension("log.1")),
        "the log of the run before is lost"
    );
    context.host.kill("speaks").await?;
    Ok(())
}

pub(super) async fn forwards_reach_the_guest(context: &Context) -> Verdict {
    let (argv, guest_port) = context.setup.guest.listener()?;
    let host_port = crate::engine::ports::free_port()?;
    let mut spec = context.spec();
    let forward = ForwardSpec {
        protocol: Protocol::Tcp,
        host_address: std::net::Ipv4Addr::LOCALHOST.into(),
        host_port,
        guest_port,
    };
    spec.networks = vec![NetworkSpec {
        kind: NetworkKind::User,
        name: None,
        mac: None,
        forwards: vec![forward],
    }];
    context.create("serves", spec).await?;
    let info = context.start_ready("serves").await?;
    require!(
        info.forwards
            .iter()
            .any(|forward| forward.host_port == host_port && forward.guest_port == guest_port),
        "it tells the forwards {:?}",
        info.forwards
    );
    let channel = context.host.guest("serves").await?;
    // It lives as long as its input is open, or as its guest.
    let _server = channel
        .exec(ExecRequest {
            argv,
            ..ExecRequest::default()
        })
        .await?;
    let fetch = async {
        loop {
            match fetch(host_port).await {
                Ok(answer) if answer.starts_with(b"HTTP/1") => return,
                // The listener is just beginning.
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    context
        .within("an answer through the forward", fetch)
        .await?;
    context.host.kill("serves").await?;
    let refused = TcpStream::connect(("127.0.0.1", host_port)).await;
    require!(
        refused.is_err(),
        "the port still answers after the VM was killed"
    );
    Ok(())
}

pub(super) async fn fetch(port: u16) -> io::Result<Vec<u8>> {
    let work = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"GET /hostname HTTP/1.0\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.take(4096).read_to_end(&mut answer).await?;
        Ok(answer)
    };
    tokio::time::timeout(Duration::from_secs(3), work)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

pub(super) async fn figures_are_sane(context: &Context) -> Verdict {
    let info = context.ready("counts").await?;
    let stats = context.host.stats("counts").await?;
    require!(
        stats.name == "counts" && stats.state == Some(info.state),
        "the figures are of {:?}",
        (&stats.name, stats.state)
    );
    require!(
        stats
            .uptime_seconds
            .is_some_and(|seconds| seconds > 0.0 && seconds < 3600.0),
        "uptime {:?}",
        stats.uptime_seconds
    );
    if cfg!(target_os = "linux") {
        require!(
            stats.cpu_seconds.is_some_and(|seconds| seconds >= 0.0),
            "CPU time {:?}",
            stats.cpu_seconds
        );
        require!(
            stats
                .cpu_percent
                .is_some_and(|percent| (0.0..10_000.0).contains(&percent)),
            "CPU use {:?}",
            stats.cpu_percent
        );
        require!(
            stats.host_memory_bytes.is_some_and(|bytes| bytes > 100_000),
            "host memory {:?}",
            stats.host_memory_bytes
        );
    }
    let total = stats
        .guest_memory_total_bytes
        .ok_or_else(|| Failure::new("the guest's memory is not told"))?;
    let available = stats.guest_memory_available_bytes.unwrap_or(u64::MAX);
    require!(
        available <= total,
        "{available} of {total} bytes of the guest's memory are available"
    );
    context.host.kill("counts").await?;
    let stats = context.host.stats("counts").await?;
    require!(
        stats.cpu_seconds.is_none() && stats.uptime_seconds.is_none(),
        "a stopped VM has figures: {stats:?}"
    );
    Ok(())
}

pub(super) async fn a_data_disk_is_mounted_and_kept(context: &Context) -> Verdict {
    let mut spec = context.spec();
    spec.disks.push(DiskSpec {
        size: Some(Bytes::mib(64)),
        mount: Some("/data".into()),
        ..DiskSpec::named("data")
    });
    context.create("stores", spec).await?;
    let nonce = noise(300_000);
    for round in 0..2 {
        context.start_ready("stores").await?;
        let channel = context.host.guest("stores").await?;
        // The agent mounts disks beside being ready.
        let mounted = [
            "sh",
            "-c",
            "until grep -q ' /data ext4 ' /proc/mounts; do sleep 0.1; done",
        ];
        context.run(&channel, &mounted, b"").await?;
        if round == 0 {
            let output = context
                .run(&channel, &["sh", "-c", "cat > /data/kept"], &nonce)
                .await?;
            require!(
                output.status == ExitStatus::Code(0),
                "writing failed: {}",
                output.err
            );
            // No sync: an orderly stop must be enough.
            context.host.stop("stores", context.gently()).await?;
        } else {
            let output = context.run(&channel, &["cat", "/data/kept"], b"").await?;
            require!(
                output.out == nonce,
                "after a restart the disk holds {} bytes, other ones: {}",
                output.out.len(),
                output.err
            );
            context.host.kill("stores").await?;
        }
    }
    Ok(())
}
