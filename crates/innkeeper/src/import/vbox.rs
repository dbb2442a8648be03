//! VirtualBox's own machine files (`.vbox`), settings version 1.12 to 1.20.

use std::collections::BTreeMap;

use innkeeper_image::{Arch, ForeignFormat};

use super::xml::Element;
use super::{ForeignDrive, ForeignMachine, damaged, place_of};
use crate::error::Result;
use crate::spec::{Firmware, ForwardSpec, Protocol};

/// Reads a machine file.
pub fn parse(text: &str) -> Result<ForeignMachine> {
    let root = Element::read(text, "VirtualBox")?;
    let own = root
        .child("Machine")
        .ok_or_else(|| damaged("there is no machine in it"))?;
    let mut machine = ForeignMachine::of("VirtualBox");
    machine.name = own.attribute("name").map(str::to_owned);
    if own
        .attribute("OSType")
        .is_some_and(|kind| kind.ends_with("_64"))
    {
        machine.arch = Some(Arch::X86_64);
    }
    if own
        .attribute("OSType")
        .is_some_and(|kind| kind.ends_with("_arm64"))
    {
        machine.arch = Some(Arch::Arm64);
    }
    hardware_extras(own, &mut machine);
    let hardware = own
        .child("Hardware")
        .ok_or_else(|| damaged("the machine has no hardware"))?;
    machine.cpus = Some(
        match hardware.at(&["CPU"]).and_then(|cpu| cpu.attribute("count")) {
            Some(count) => count
                .parse()
                .map_err(|_| damaged("the number of CPUs is no number"))?,
            None => 1,
        },
    );
    let megabytes: Option<u64> = hardware
        .child("Memory")
        .and_then(|memory| memory.attribute("RAMSize"))
        .and_then(|size| size.parse().ok());
    machine.memory = megabytes.and_then(|size| size.checked_mul(1 << 20));
    if own.attribute("currentSnapshot").is_some() || own.child("Snapshot").is_some() {
        machine.unmapped(
            "snapshots",
            "they are VirtualBox's; `VBoxManage clonevm` or an export gives the current state as whole disks",
        );
    }
    drives(own, hardware, &mut machine)?;
    networks(hardware, &mut machine)?;
    for (element, what, why) in [
        ("AudioAdapter", "sound", "there is no sound"),
        (
            "USB",
            "USB controllers",
            "they come with the devices that need one",
        ),
        ("Display", "the display", "it is the driver's own"),
        (
            "RemoteDisplay",
            "the remote display",
            "it has no counterpart",
        ),
    ] {
        let on = hardware.child(element).is_some_and(|child| {
            child.attribute("enabled") != Some("false") && element != "Display"
        });
        if on {
            machine.unmapped(what, why);
        }
    }
    if let Some(folders) = hardware.child("SharedFolders") {
        for folder in folders.all("SharedFolder").take(super::LIST_LIMIT) {
            machine.unmapped(
                format!(
                    "shared folder {}",
                    folder.attribute("name").unwrap_or_default()
                ),
                "its guest's driver is VirtualBox's; `inn set` gives the VM a share",
            );
        }
    }
    Ok(machine)
}

/// Reads firmware and TPM, in the form that a `.vbox` file and VirtualBox's OVF share.
pub(super) fn hardware_extras(own: &Element, machine: &mut ForeignMachine) {
    let Some(hardware) = own.child("Hardware") else {
        return;
    };
    let firmware = hardware
        .child("Firmware")
        .and_then(|firmware| firmware.attribute("type"));
    machine.firmware = Some(match firmware {
        Some(kind) if kind.starts_with("EFI") => Firmware::Uefi,
        _ => Firmware::Bios,
    });
    let on = |element: Option<&Element>| {
        element.is_some_and(|found| found.attribute("enabled") == Some("true"))
    };
    machine.secure_boot |= on(hardware.at(&["BIOS", "NVRAM", "SecureBoot"]))
        || on(hardware.at(&["BIOS", "SecureBoot"]));
    machine.tpm |= ["BIOS", ""].iter().any(|above| {
        let tpm = match *above {
            "" => hardware.child("TrustedPlatformModule"),
            above => hardware.at(&[above, "TrustedPlatformModule"]),
        };
        tpm.and_then(|tpm| tpm.attribute("type"))
            .is_some_and(|kind| kind.starts_with("v2"))
    });
    if machine.firmware == Some(Firmware::Uefi) {
        machine.unmapped(
            "UEFI variables",
            "they are in a file of VirtualBox's own form; a loader at the removable media path is found without",
        );
    }
}

fn drives(own: &Element, hardware: &Element, machine: &mut ForeignMachine) -> Result<()> {
    let mut known: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
    let mut disks = Vec::new();
    if let Some(registry) = own.at(&["MediaRegistry", "HardDisks"]) {
        for disk in registry.all("HardDisk") {
            if let (Some(id), Some(location)) = (disk.attribute("uuid"), disk.attribute("location"))
            {
                known.insert(id, (location, disk.attribute("format").unwrap_or_default()));
            }
            disks.extend(
                disk.all("HardDisk")
                    .filter_map(|child| child.attribute("uuid")),
            );
        }
    }
    // Older files have it beside the hardware, newer ones in it.
    let controllers = hardware
        .child("StorageControllers")
        .or_else(|| own.child("StorageControllers"));
    let Some(controllers) = controllers else {
        return Ok(());
    };
    let mut found = Vec::new();
    for controller in controllers.all("StorageController") {
        let bus = match controller.attribute("type").unwrap_or_default() {
            "AHCI" => "SATA",
            "PIIX3" | "PIIX4" | "ICH6" => "IDE",
            "VirtioSCSI" => "virtio",
            other => other,
        };
        for device in controller.all("AttachedDevice") {
            let image = device
                .child("Image")
                .and_then(|image| image.attribute("uuid"));
            match (device.attribute("type"), image) {
                (Some("HardDisk"), Some(id)) => {
                    if disks.contains(&id) {
                        return Err(damaged(
                            "a disk is a snapshot over another one; clone the machine in VirtualBox first",
                        ));
                    }
                    let (location, format) = known
                        .get(id)
                        .ok_or_else(|| damaged(format!("the disk {id} is not in its registry")))?;
                    let place: u32 = device
                        .attribute("port")
                        .and_then(|port| port.parse().ok())
                        .unwrap_or(0);
                    let drive = ForeignDrive {
                        place: place_of(location),
                        format: disk_format(format)?,
                        bus: bus.to_owned(),
                        size: None,
                    };
                    found.push((place, found.len(), drive));
                }
                (Some("DVD" | "Floppy"), Some(_)) => machine.unmapped(
                    "a medium in a drive",
                    "it is left out; `inn disk attach` gives the VM one",
                ),
                _ => {}
            }
        }
    }
    found.sort_by_key(|(place, order, _)| (*place, *order));
    for (_, _, drive) in found {
        machine.drive(drive)?;
    }
    Ok(())
}

fn disk_format(word: &str) -> Result<ForeignFormat> {
    match word {
        "VDI" => Ok(ForeignFormat::Vdi),
        "VMDK" => Ok(ForeignFormat::Vmdk),
        "VHD" => Ok(ForeignFormat::Vhd),
        "VHDX" => Ok(ForeignFormat::Vhdx),
        "QCOW" => Ok(ForeignFormat::Qcow2),
        _ => Err(damaged(format!("the disk format {word:?} is not known"))),
    }
}

fn networks(hardware: &Element, machine: &mut ForeignMachine) -> Result<()> {
    let Some(network) = hardware.child("Network") else {
        return Ok(());
    };
    for adapter in network.all("Adapter") {
        if adapter.attribute("enabled") != Some("true") {
            continue;
        }
        machine.network(adapter.attribute("MACAddress"))?;
        let Some(nat) = adapter.child("NAT") else {
            let kind = adapter
                .children
                .first()
                .map_or("none", |child| child.name.as_str());
            machine.unmapped(
                format!("network {kind}"),
                "the interface gets the user network: out by NAT, in by forwarded ports",
            );
            continue;
        };
        for forwarding in nat.all("Forwarding").take(super::LIST_LIMIT) {
            match forward(forwarding) {
                Some(forward) => machine.forwards.push(forward),
                None => machine.unmapped(
                    format!(
                        "forward {}",
                        forwarding.attribute("name").unwrap_or_default()
                    ),
                    "it listens elsewhere than on loopback, or its ports are none",
                ),
            }
        }
    }
    Ok(())
}

fn forward(element: &Element) -> Option<ForwardSpec> {
    let host_address = match element.attribute("hostip") {
        None | Some("") => std::net::IpAddr::from([127, 0, 0, 1]),
        Some(text) => text.parse().ok()?,
    };
    if !host_address.is_loopback() {
        return None;
    }
    let port = |name| {
        let text = element.attribute(name)?;
        text.parse::<u16>().ok().filter(|port| *port != 0)
    };
    Some(ForwardSpec {
        protocol: match element.attribute("proto")? {
            "0" => Protocol::Udp,
            "1" => Protocol::Tcp,
            _ => return None,
        },
        host_address,
        host_port: port("hostport")?,
        guest_port: port("guestport")?,
    })
}
