//! Trials of what the guest itself sees of what it was given: CPUs, memory, media, caches, a TPM, random numbers, its machine, a watchdog.

use std::path::Path;

use innkeeper_api::{ErrorKind, EventKind, VmState};

use super::context::{Context, refused};
use super::devices::{file_disk, now, set, with_drive};
use super::firmware::{bare, serial};
use super::{Failure, Verdict, require};
use crate::spec::{
    Bytes, DiskCache, DiskFormat, Firmware, MachineChoice, ReadyWhen, WatchdogAction,
};
use crate::testing::pvh;

/// Waits in the guest until a command gives `wanted`.
async fn until_it_says(context: &Context, name: &str, command: &str, wanted: &str) -> Verdict {
    let script = format!("until [ \"$({command})\" = '{wanted}' ]; do sleep 0.05; done");
    context
        .sh(name, &script)
        .await
        .map(drop)
        .map_err(|failure| Failure::new(format!("waiting for {wanted:?}: {failure}")))
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
        .map_err(|_| Failure::new(format!("the guest has {text:?} of memory")))
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

/// `TPM2_PCR_Extend` of register 16 by 32 bytes with an empty password, as `printf` writes it. Source: TCG TPM 2.0 Library, part 3,
/// section 22.2, and part 1, section 18 for the session.
const EXTEND: &str = concat!(
    r"\200\002\000\000\000\101\000\000\001\202\000\000\000\020",
    r"\000\000\000\011\100\000\000\011\000\000\000\000\000",
    r"\000\000\000\001\000\013a-digest-of-thirty-two-bytes-000"
);

pub(super) async fn a_tpm_keeps_its_registers_over_a_suspend(context: &Context) -> Verdict {
    const REGISTER: &str = "cat /sys/class/tpm/tpm0/pcr-sha256/16";
    let fresh = "0".repeat(64);
    let name = "sealed";
    let mut spec = context.spec();
    spec.tpm = true;
    context.create(name, spec).await?;
    context.start_ready(name).await?;
    context
        .sh(name, "until [ -c /dev/tpm0 ]; do sleep 0.05; done")
        .await?;
    until_it_says(context, name, REGISTER, &fresh).await?;
    let extend = format!(
        "exec 3<>/dev/tpm0; printf '{EXTEND}' >&3; dd bs=4096 count=1 <&3 2>/dev/null | tail -c +7 | head -c 4 | hexdump -v -e '1/1 \"%02x\"'"
    );
    let code = context.sh(name, &extend).await?;
    require!(code == "00000000", "the TPM answered {code}");
    let before = context.sh(name, REGISTER).await?;
    require!(
        before.len() == 64 && before != fresh,
        "the register holds {before:?}"
    );
    away_and_back(context, name).await?;
    let after = context.sh(name, REGISTER).await?;
    require!(
        after == before,
        "after a suspend the register holds {after}, not {before}"
    );
    context.host.kill(name).await?;
    context.start_ready(name).await?;
    context
        .sh(name, "until [ -c /dev/tpm0 ]; do sleep 0.05; done")
        .await?;
    // A new boot is a new measurement: only what was saved brings the old one back.
    until_it_says(context, name, REGISTER, &fresh).await?;
    context.host.kill(name).await?;
    Ok(())
}

/// Where a driver can't give a TPM to a VM that was made without one, it must say so: a guest that looks for it in vain is the worst answer.
pub(super) async fn a_tpm_asked_for_later_is_there_or_refused(context: &Context) -> Verdict {
    let name = "later";
    context.ready(name).await?;
    context.host.kill(name).await?;
    set(context, name, "tpm", "true").await?;
    match context.host.start(name).await {
        Ok(_) => {
            context.wait_ready(name).await?;
            let there = "until [ -c /dev/tpm0 ]; do sleep 0.05; done";
            context.sh(name, there).await?;
            context.host.kill(name).await?;
        }
        Err(error) => {
            let refusal: crate::Result<()> = Err(error);
            refused("a TPM", refusal, ErrorKind::Unsupported, &["tpm"])?;
        }
    }
    set(context, name, "tpm", "false").await?;
    context.start_ready(name).await?;
    context.host.kill(name).await?;
    Ok(())
}

/// The version of the machine that the guest's firmware tells (SMBIOS, system information).
const MACHINE: &str = "cat /sys/class/dmi/id/product_version";

pub(super) async fn a_machine_is_what_it_was_pinned_to(context: &Context) -> Verdict {
    let pinned = context
        .create("chosen", bare(context, Firmware::Bios))
        .await?
        .machine
        .filter(|machine| machine.contains(|letter: char| letter.is_ascii_digit()))
        .ok_or_else(|| Failure::new("no version of a machine was pinned"))?;
    let name = "asked";
    let mut spec = context.spec();
    spec.machine = MachineChoice::Named(pinned.clone());
    context.create(name, spec).await?;
    for _ in 0..2 {
        let info = context.start_ready(name).await?;
        require!(
            info.machine.as_ref() == Some(&pinned),
            "pinned is {pinned}, and told {:?}",
            info.machine
        );
        let seen = context.sh(name, MACHINE).await?;
        require!(
            seen == pinned,
            "pinned is {pinned}, and the guest has {seen}"
        );
        context.host.kill(name).await?;
    }
    Ok(())
}

pub(super) async fn a_starved_watchdog_powers_off(context: &Context) -> Verdict {
    let name = "starved";
    let kernel = context.setup.files.join("starving");
    std::fs::write(&kernel, pvh::starving_kernel())?;
    let mut spec = bare(context, Firmware::Direct);
    spec.boot.kernel = Some(kernel);
    spec.watchdog = Some(WatchdogAction::Poweroff);
    spec.ready = Some(ReadyWhen::None);
    context.create(name, spec).await?;
    context.host.start(name).await?;
    context
        .until(name, "stopped", |info| info.state == VmState::Stopped)
        .await?;
    require!(
        serial(context, name)?.contains(pvh::STARVING),
        "the guest did not come to starve its watchdog"
    );
    let told = context.host.events(Some(name))?.into_iter().any(|event| {
        matches!(event.kind, EventKind::Note { message } if message.contains("the watchdog ran out"))
    });
    require!(told, "nobody was told of the watchdog");
    Ok(())
}

/// Says whether a process has a file open past the host's page cache (open(2), `O_DIRECT`).
#[cfg(target_os = "linux")]
fn is_direct(pid: u32, file: &Path) -> Verdict<bool> {
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        if std::fs::read_link(&path).is_ok_and(|target| target == file) {
            let number = path.file_name().unwrap_or_default().to_string_lossy();
            let text = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"))?;
            let flags = text
                .lines()
                .find_map(|line| line.strip_prefix("flags:"))
                .and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok())
                .ok_or_else(|| Failure::new(format!("the kernel told no flags: {text:?}")))?;
            return Ok(flags & rustix::fs::OFlags::DIRECT.bits() != 0);
        }
    }
    Err(Failure::new(format!(
        "the hypervisor has not opened {}",
        file.display()
    )))
}

/// Where a kernel does not tell how a file is open, there is nothing to look at.
#[cfg(not(target_os = "linux"))]
fn is_direct(_: u32, _: &Path) -> Verdict<bool> {
    Err(Failure::new(
        "this computer does not tell how files are open",
    ))
}

pub(super) async fn the_cache_of_a_disk_is_as_chosen(context: &Context) -> Verdict {
    let name = "cached";
    let modes = [
        ("back", DiskCache::Writeback, "write back", false),
        ("through", DiskCache::Writethrough, "write through", false),
        ("none", DiskCache::None, "write back", true),
        ("unsafe", DiskCache::Unsafe, "write back", false),
    ];
    let mut spec = context.spec();
    for (disk, cache, ..) in modes {
        let mut disk = file_disk(context, disk)?;
        disk.cache = cache;
        spec.disks.push(disk);
    }
    context.create(name, spec).await?;
    let info = context.start_ready(name).await?;
    for (disk, _, told, direct) in modes {
        let find = format!(
            "until grep -qsx {disk} /sys/block/*/serial; do sleep 0.05; done; \
             for d in /sys/block/*; do if grep -qsx {disk} $d/serial; then cat $d/queue/write_cache; fi; done"
        );
        let seen = context.sh(name, &find).await?;
        require!(seen == told, "the guest sees {disk} as {seen:?}");
        let file = context.setup.files.join(format!("{disk}.raw"));
        let is = is_direct(info.vmm_pid.unwrap_or_default(), &file)?;
        require!(
            is == direct,
            "{disk} passes by the page cache of this computer: {is}"
        );
    }
    context.host.kill(name).await?;
    Ok(())
}

pub(super) async fn random_numbers_come_from_the_host(context: &Context) -> Verdict {
    let name = "random";
    context.ready(name).await?;
    let source = "cat /sys/class/misc/hw_random/rng_current";
    let waits = format!("until {source} 2>/dev/null | grep -q virtio; do sleep 0.05; done");
    context.sh(name, &waits).await?;
    let take = "dd if=/dev/hwrng bs=32 count=1 2>/dev/null | sha256sum; dd if=/dev/hwrng bs=32 count=1 2>/dev/null | wc -c";
    let (one, other) = (context.sh(name, take).await?, context.sh(name, take).await?);
    require!(
        one != other && one.ends_with("32") && other.ends_with("32"),
        "the source of random numbers gave {one:?} and {other:?}"
    );
    context.host.kill(name).await?;
    Ok(())
}
