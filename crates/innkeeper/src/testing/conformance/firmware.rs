//! Trials of booting by firmware: boot sectors and programs that the trials write themselves, on disks of every kind.

use super::context::Context;
use super::{Verdict, require};
use crate::LogKind;
use crate::progress::Silent;
use crate::spec::{Bytes, DiskBus, DiskFormat, DiskSpec, Firmware, ReadyWhen, VmSpec};
use crate::testing::loaders;

/// A VM without an image that boots by firmware from what is on its disks.
pub(super) fn bare(context: &Context, firmware: Firmware) -> VmSpec {
    let mut spec = context.spec();
    spec.image = None;
    spec.boot.kernel = None;
    spec.boot.initrd = None;
    spec.boot.cmdline = None;
    spec.boot.firmware = Some(firmware);
    spec.networks = Vec::new();
    spec.memory = Bytes::mib(256);
    spec.ready_timeout = context.setup.patience;
    spec
}

/// A disk of a file that holds this.
fn disk_of(context: &Context, name: &str, content: &[u8]) -> Verdict<DiskSpec> {
    let path = context.setup.files.join(format!("{name}.raw"));
    std::fs::write(&path, content)?;
    Ok(DiskSpec {
        path: Some(path),
        format: Some(DiskFormat::Raw),
        ..DiskSpec::named(name)
    })
}

/// Boots a VM from a disk with the boot sector, which was booted `times` times before, and ends it.
async fn boots(context: &Context, name: &str, times: u8) -> Verdict {
    let ready = (
        "ready".to_owned(),
        Some(format!("serial:{}", loaders::boot_told(times))),
    );
    context.host.set(name, &[ready], false).await?;
    context.start_ready(name).await?;
    context.host.kill(name).await?;
    Ok(())
}

async fn bios_boots(context: &Context, bus: DiskBus) -> Verdict {
    let name = "sector";
    let mut spec = bare(context, Firmware::Bios);
    let mut disk = disk_of(context, "loader", &loaders::bios_disk())?;
    disk.bus = bus;
    spec.disks.push(disk);
    context.create(name, spec).await?;
    for times in 0..2 {
        boots(context, name, times).await?;
    }
    Ok(())
}

pub(super) async fn bios_boots_a_disk(context: &Context) -> Verdict {
    bios_boots(context, DiskBus::Virtio).await
}

pub(super) async fn bios_boots_an_nvme_disk(context: &Context) -> Verdict {
    bios_boots(context, DiskBus::Nvme).await
}

pub(super) async fn bios_boots_a_usb_disk(context: &Context) -> Verdict {
    bios_boots(context, DiskBus::Usb).await
}

/// Each of two VMs of one image counts its own boots: what they write lies over the image, and the image stays as it is.
pub(super) async fn vms_of_one_image_write_beside_it(context: &Context) -> Verdict {
    let source = context.setup.files.join("image.raw");
    std::fs::write(&source, loaders::bios_disk())?;
    context
        .host
        .import_image(&source, "counts", DiskFormat::Raw, None, &Silent)
        .await?;
    let mut spec = bare(context, Firmware::Bios);
    spec.image = Some("counts".to_owned());
    for name in ["one", "other"] {
        context.create(name, spec.clone()).await?;
    }
    for (name, times) in [
        ("one", 0),
        ("one", 1),
        ("other", 0),
        ("one", 2),
        ("other", 1),
    ] {
        boots(context, name, times).await?;
    }
    for name in ["one", "other"] {
        context.host.remove(name, false).await?;
    }
    context.host.remove_image("counts", None, false).await?;
    Ok(())
}

/// What the serial console has printed so far.
pub(super) fn serial(context: &Context, name: &str) -> Verdict<String> {
    let log = context.host.log_path(name, LogKind::Serial)?;
    Ok(String::from_utf8_lossy(&std::fs::read(log)?).into_owned())
}

pub(super) async fn uefi_boots_a_disk(context: &Context) -> Verdict {
    let name = "program";
    let mut spec = bare(context, Firmware::Uefi);
    spec.disks
        .push(disk_of(context, "loader", &loaders::uefi_disk()?)?);
    spec.ready = Some(ReadyWhen::Serial(loaders::PROGRAM_RUNS.to_owned()));
    context.create(name, spec).await?;
    // The second boot finds the variables that the first one left.
    for _ in 0..2 {
        context.start_ready(name).await?;
        context.host.kill(name).await?;
    }
    Ok(())
}

/// The disk is the one that plain UEFI boots: only its lacking signature can be what is refused.
pub(super) async fn secure_boot_refuses_an_unsigned_program(context: &Context) -> Verdict {
    /// What EDK 2's boot manager prints of a program that it may not load (the text of `EFI_ACCESS_DENIED`), and when nothing is left.
    const REFUSED: &str = "Access Denied";
    const NOTHING_LEFT: &str = "No bootable option or device was found";
    let name = "unsigned";
    let mut spec = bare(context, Firmware::Uefi);
    spec.boot.secure_boot = true;
    spec.disks
        .push(disk_of(context, "loader", &loaders::uefi_disk()?)?);
    spec.ready = Some(ReadyWhen::Serial(NOTHING_LEFT.to_owned()));
    context.create(name, spec).await?;
    context.start_ready(name).await?;
    let said = serial(context, name)?;
    require!(
        said.contains(REFUSED) && !said.contains(loaders::PROGRAM_RUNS),
        "a program without a signature was not refused: {said}"
    );
    context.host.kill(name).await?;
    Ok(())
}
