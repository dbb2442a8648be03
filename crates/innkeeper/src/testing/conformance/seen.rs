//! Trials of what the guest itself sees of what it was given: CPUs, memory, media.

use super::context::Context;
use super::devices::{now, set, with_drive};
use super::{Verdict, require};
use crate::spec::{Bytes, DiskFormat};

/// Waits in the guest until a command gives `wanted`.
async fn until_it_says(context: &Context, name: &str, command: &str, wanted: &str) -> Verdict {
    let script = format!("until [ \"$({command})\" = '{wanted}' ]; do sleep 0.05; done");
    context
        .sh(name, &script)
        .await
        .map(drop)
        .map_err(|failure| super::Failure::new(format!("waiting for {wanted:?}: {failure}")))
}

/// Suspends a VM, brings it back, and waits until its agent answers.
async fn away_and_back(context: &Context, name: &str) -> Verdict {
    context.host.suspend(name).await?;
    context.host.start(name).await?;
    context.wait_ready(name).await.map(drop)
}

pub(super) async fn cpus_that_were_given_are_used_and_come_back(context: &Context) -> Verdict {
    const ONLINE: &str = "cat /sys/devices/system/cpu/online";
    let name = "wide";
    let mut spec = context.spec();
    (spec.cpus, spec.max_cpus) = (1, Some(3));
    context.create(name, spec).await?;
    context.start_ready(name).await?;
    until_it_says(context, name, ONLINE, "0").await?;
    now(&set(context, name, "cpus", "2").await?, "cpus")?;
    // What `set` returned from is in use: nothing is waited for.
    let online = context.sh(name, ONLINE).await?;
    require!(
        online == "0-1",
        "after it was given 2 CPUs it uses {online}"
    );
    now(&set(context, name, "cpus", "3").await?, "cpus")?;
    until_it_says(context, name, ONLINE, "0-2").await?;
    away_and_back(context, name).await?;
    let online = context.sh(name, ONLINE).await?;
    require!(online == "0-2", "after a suspend it uses the CPUs {online}");
    context.host.kill(name).await?;
    Ok(())
}

/// Returns the memory that the guest's kernel has, in bytes.
async fn memory(context: &Context, name: &str) -> Verdict<u64> {
    let text = context
        .sh(name, "awk '/^MemTotal:/ { print $2 }' /proc/meminfo")
        .await?;
    text.parse::<u64>()
        .map(|kibibytes| kibibytes << 10)
        .map_err(|_| super::Failure::new(format!("the guest has {text:?} of memory")))
}

pub(super) async fn memory_that_was_given_is_used_and_comes_back(context: &Context) -> Verdict {
    let name = "deep";
    let mut spec = context.spec();
    let start = spec.memory.get();
    spec.max_memory = Some(Bytes::new(start * 4));
    context.create(name, spec).await?;
    context.start_ready(name).await?;
    let before = memory(context, name).await?;
    let size = Bytes::new(start * 2).to_string();
    now(&set(context, name, "memory", &size).await?, "memory")?;
    // The kernel takes some of what comes for the tables that describe it.
    let wanted = before + start * 9 / 10;
    let grown = format!(
        "until [ $(awk '/^MemTotal:/ {{ print $2 }}' /proc/meminfo) -ge {} ]; do sleep 0.05; done",
        wanted >> 10
    );
    context.sh(name, &grown).await?;
    // More is put into it than it had before; zeros are soon written, and random bytes at the end show that they stay.
    let fill = format!(
        "mkdir /tmp/m && mount -t tmpfs -o size=100% none /tmp/m && head -c {start} /dev/zero > /tmp/m/f && \
         head -c 1000000 /dev/urandom > /tmp/m/g && sha256sum < /tmp/m/g"
    );
    let digest = context.sh(name, &fill).await?;
    away_and_back(context, name).await?;
    let after = memory(context, name).await?;
    require!(
        after >= wanted,
        "it had {before} bytes, was given {start} more, and has {after} after a suspend"
    );
    let kept = context.sh(name, "sha256sum < /tmp/m/g").await?;
    require!(kept == digest, "what lay in its memory changed");
    context.host.kill(name).await?;
    Ok(())
}

pub(super) async fn what_lies_in_a_drive_is_what_the_guest_reads(context: &Context) -> Verdict {
    const READ: &str = "dd if=/dev/sr0 bs=2048 count=1 2>/dev/null | head -c 3";
    let name = "reader";
    let (spec, media) = with_drive(context)?;
    context.create(name, spec).await?;
    context.start_ready(name).await?;
    context
        .sh(name, "until [ -b /dev/sr0 ]; do sleep 0.05; done")
        .await?;
    until_it_says(context, name, READ, "").await?;
    for (medium, text) in media.iter().zip(["one", "two"]) {
        let path = medium.path.clone().unwrap_or_default();
        let file = std::fs::File::options().write(true).open(&path)?;
        std::os::unix::fs::FileExt::write_all_at(&file, text.as_bytes(), 0)?;
        context
            .host
            .insert_medium(name, "cd", &path, DiskFormat::Raw, false)
            .await?;
        until_it_says(context, name, READ, text).await?;
    }
    let written = context
        .sh(name, "echo changed | dd of=/dev/sr0 2>/dev/null; echo $?")
        .await?;
    require!(written != "0", "the guest wrote to a medium");
    context.host.eject_medium(name, "cd", false).await?;
    until_it_says(context, name, READ, "").await?;
    context.host.kill(name).await?;
    Ok(())
}
