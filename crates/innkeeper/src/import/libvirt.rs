//! libvirt's domain XML (libvirt.org/formatdomain.html).

use innkeeper_image::{Arch, ForeignFormat};

use super::xml::Element;
use super::{ForeignDrive, ForeignMachine, damaged, place_of};
use crate::error::Result;
use crate::spec::Firmware;

/// Reads a domain.
pub fn parse(text: &str) -> Result<ForeignMachine> {
    let domain = Element::read(text, "domain")?;
    let mut machine = ForeignMachine::of("libvirt domain");
    machine.name = domain.child_text("name").map(str::to_owned);
    machine.memory = domain.child("memory").map(memory).transpose()?;
    if let Some(vcpu) = domain.child("vcpu") {
        let count = vcpu.attribute("current").unwrap_or(&vcpu.text);
        machine.cpus = Some(
            count
                .parse()
                .map_err(|_| damaged("the number of CPUs is no number"))?,
        );
    }
    if let Some(os) = domain.child("os") {
        system(os, &mut machine)?;
    }
    if let Some(devices) = domain.child("devices") {
        for disk in devices.all("disk") {
            drive(disk, &mut machine)?;
        }
        for interface in devices.all("interface") {
            let mac = interface
                .child("mac")
                .and_then(|mac| mac.attribute("address"));
            machine.network(mac)?;
            let kind = interface.attribute("type").unwrap_or_default();
            if kind != "user" {
                machine.unmapped(
                    format!("network of the type {kind}"),
                    "the interface gets the user network: out by NAT, in by forwarded ports",
                );
            }
        }
        others(devices, &mut machine);
    }
    for (element, why) in [
        ("cputune", "CPUs are not pinned"),
        ("numatune", "memory is not bound to nodes"),
        ("qemu:commandline", "own arguments of QEMU are not taken"),
        ("commandline", "own arguments of QEMU are not taken"),
    ] {
        if domain.child(element).is_some() {
            machine.unmapped(element, why);
        }
    }
    Ok(machine)
}

fn memory(element: &Element) -> Result<u64> {
    let number: u64 = element
        .text
        .parse()
        .map_err(|_| damaged("the memory is no number"))?;
    let unit = match element.attribute("unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1000,
        "k" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        other => return Err(damaged(format!("the unit {other:?} is not known"))),
    };
    number
        .checked_mul(unit)
        .ok_or_else(|| damaged("the memory is over all bounds"))
}

fn system(os: &Element, machine: &mut ForeignMachine) -> Result<()> {
    if let Some(kind) = os.child("type") {
        if kind.text != "hvm" {
            return Err(damaged(format!(
                "it is a machine of the type {:?}, and only whole machines (hvm) run here",
                kind.text
            )));
        }
        if let Some(arch) = kind.attribute("arch") {
            machine.arch = Some(arch.parse::<Arch>().map_err(damaged)?);
        }
        if let Some(board) = kind.attribute("machine") {
            machine.unmapped(
                format!("machine type {board}"),
                "the driver's own of today is taken; `inn set --machine` names another",
            );
        }
    }
    let loader = os.child("loader");
    let uefi = os.attribute("firmware") == Some("efi")
        || loader.is_some_and(|loader| loader.attribute("type") == Some("pflash"));
    machine.firmware = Some(if uefi { Firmware::Uefi } else { Firmware::Bios });
    machine.secure_boot =
        uefi && loader.is_some_and(|loader| loader.attribute("secure") == Some("yes"));
    if os.child("nvram").is_some() {
        machine.unmapped(
            "UEFI variables",
            "they are made anew; a loader at the removable media path is found without",
        );
    }
    if os.child("kernel").is_some() {
        machine.unmapped(
            "kernel on the host",
            "name it in the spec (boot.kernel) if it is to be loaded so here too",
        );
    }
    Ok(())
}

fn drive(disk: &Element, machine: &mut ForeignMachine) -> Result<()> {
    let target = disk.child("target");
    let label = target
        .and_then(|target| target.attribute("dev"))
        .unwrap_or("a disk");
    if let Some(device @ ("cdrom" | "floppy" | "lun")) = disk.attribute("device") {
        machine.unmapped(
            format!("{label} ({device})"),
            "it is left out; `inn disk attach` gives the VM a drive",
        );
        return Ok(());
    }
    let kind = disk.attribute("type").unwrap_or_default();
    let source = disk
        .child("source")
        .and_then(|source| source.attribute("file"));
    let (Some(file), "file") = (source, kind) else {
        machine.unmapped(
            format!("{label} of the type {kind}"),
            "only disks that are files are taken; copy it into one",
        );
        return Ok(());
    };
    if disk.child("encryption").is_some() || disk.at(&["source", "encryption"]).is_some() {
        return Err(damaged(format!("{label} is encrypted")));
    }
    // libvirt takes a driver without a type for raw, and never probes.
    let format = match disk
        .child("driver")
        .and_then(|driver| driver.attribute("type"))
    {
        None => ForeignFormat::Raw,
        Some("vpc") => ForeignFormat::Vhd,
        Some(word) => word.parse().map_err(damaged)?,
    };
    let bus = target.and_then(|target| target.attribute("bus"));
    machine.drive(ForeignDrive {
        place: place_of(file),
        format,
        bus: bus.unwrap_or_default().to_owned(),
        size: None,
    })
}

fn others(devices: &Element, machine: &mut ForeignMachine) {
    if let Some(tpm) = devices.child("tpm") {
        let backend = tpm.child("backend");
        if backend.is_some_and(|backend| backend.attribute("type") == Some("emulator")) {
            machine.tpm = true;
            machine.unmapped(
                "what is in the TPM",
                "it is new and empty: keys sealed to the old one are lost with it",
            );
        } else {
            machine.unmapped("TPM of the host", "it is not given away");
        }
    }
    for (element, what, why) in [
        ("graphics", "graphics", "the display is the driver's own"),
        ("sound", "sound", "there is no sound"),
        ("hostdev", "a device of the host", "it is not given away"),
        (
            "filesystem",
            "a shared folder",
            "`inn set` gives the VM a share",
        ),
        ("redirdev", "redirected USB", "it has no counterpart"),
        ("channel", "channels", "our agent has its own"),
        ("watchdog", "the watchdog", "`inn set` gives the VM one"),
    ] {
        if devices.child(element).is_some() {
            machine.unmapped(what, why);
        }
    }
}
