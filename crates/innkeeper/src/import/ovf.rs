//! OVF, version 1 and 2 (DMTF DSP0243), as VirtualBox and VMware write it; and an OVA's manifest.
//!
//! Hardware is a list of CIM resource items: a type number, a parent, a host resource that names a disk.

use std::collections::BTreeMap;

use innkeeper_image::{Arch, ForeignFormat};

use super::xml::Element;
use super::{DrivePlace, ForeignDrive, ForeignMachine, damaged, place_of};
use crate::error::Result;
use crate::spec::Firmware;

/// Reads an envelope with one machine in it.
pub fn parse(text: &str) -> Result<ForeignMachine> {
    let envelope = Element::read(text, "Envelope")?;
    let mut systems = Vec::new();
    envelope.descendants("VirtualSystem", &mut systems);
    let system = match systems.as_slice() {
        [one] => *one,
        [] => return Err(damaged("there is no machine in it")),
        several => {
            return Err(damaged(format!(
                "there are {} machines in it; export them one by one",
                several.len()
            )));
        }
    };
    let hardware = system
        .child("VirtualHardwareSection")
        .ok_or_else(|| damaged("the machine has no hardware section"))?;
    let kind = hardware
        .at(&["System", "VirtualSystemType"])
        .map_or("", |element| element.text.as_str());
    let is_virtualbox = kind.starts_with("virtualbox");
    let mut machine = ForeignMachine::of(if is_virtualbox {
        "OVF of VirtualBox"
    } else if kind.starts_with("vmx-") {
        "OVF of VMware"
    } else {
        "OVF"
    });
    machine.name = system
        .child_text("Name")
        .or_else(|| system.attribute("id"))
        .map(str::to_owned);
    machine.arch = architecture(system);
    let disks = disks(&envelope)?;
    items(hardware, &disks, &mut machine)?;
    extras(hardware, system, &mut machine);
    if system.child("ProductSection").is_some() {
        machine.unmapped(
            "product properties",
            "they are for an agent of the other product; set what the guest needs in the guest",
        );
    }
    Ok(machine)
}

struct Disk {
    drive: ForeignDrive,
}

fn disks(envelope: &Element) -> Result<BTreeMap<String, Disk>> {
    let mut files = BTreeMap::new();
    if let Some(references) = envelope.child("References") {
        for file in references.all("File") {
            if let (Some(id), Some(href)) = (file.attribute("id"), file.attribute("href")) {
                let pieces = file.attribute("chunkSize").is_some();
                let packed = file
                    .attribute("compression")
                    .is_some_and(|how| how != "identity");
                files.insert(id, (href, pieces, packed));
            }
        }
    }
    let mut disks = BTreeMap::new();
    let Some(section) = envelope.child("DiskSection") else {
        return Ok(disks);
    };
    for disk in section.all("Disk") {
        let Some(id) = disk.attribute("diskId") else {
            continue;
        };
        let size = capacity(disk)?;
        let drive = match disk.attribute("fileRef") {
            None => ForeignDrive {
                place: DrivePlace::Empty,
                format: ForeignFormat::Raw,
                bus: String::new(),
                size,
            },
            Some(reference) => {
                let (href, pieces, packed) = files
                    .get(reference)
                    .ok_or_else(|| damaged(format!("disk {id} names a file that is not listed")))?;
                if *pieces || *packed {
                    return Err(damaged(format!(
                        "disk {id} is cut into pieces or compressed in a way of its own; export it whole"
                    )));
                }
                if href.contains("://") {
                    return Err(damaged(format!("disk {id} is on a server: {href}")));
                }
                ForeignDrive {
                    place: place_of(href),
                    format: format(disk.attribute("format").unwrap_or_default(), href)?,
                    bus: String::new(),
                    size,
                }
            }
        };
        if disk.attribute("parentRef").is_some() {
            return Err(damaged(format!("disk {id} is a snapshot over another one")));
        }
        disks.insert(id.to_owned(), Disk { drive });
    }
    Ok(disks)
}

fn capacity(disk: &Element) -> Result<Option<u64>> {
    let Some(text) = disk.attribute("capacity") else {
        return Ok(None);
    };
    let unit = match disk.attribute("capacityAllocationUnits") {
        Some(unit) => units(unit)?,
        None => 1,
    };
    let number: u64 = text
        .parse()
        .map_err(|_| damaged(format!("the capacity {text:?} is no number")))?;
    number
        .checked_mul(unit)
        .filter(|bytes| *bytes <= 64 << 40)
        .map(Some)
        .ok_or_else(|| {
            damaged(format!(
                "a disk of {text} times {unit} bytes is over 64 TiB"
            ))
        })
}

/// Reads programmatic units (DSP0004, annex C): `byte * 2^20`, and the older words.
fn units(text: &str) -> Result<u64> {
    let plain: String = text.to_ascii_lowercase().split_whitespace().collect();
    let refuse = || damaged(format!("the unit {text:?} is not known"));
    match plain.as_str() {
        "byte" | "bytes" => return Ok(1),
        "kilobytes" | "kb" => return Ok(1 << 10),
        "megabytes" | "mb" => return Ok(1 << 20),
        "gigabytes" | "gb" => return Ok(1 << 30),
        _ => {}
    }
    let product = plain.strip_prefix("byte*").ok_or_else(refuse)?;
    let (base, power) = product.split_once('^').ok_or_else(refuse)?;
    let base: u64 = base.parse().map_err(|_| refuse())?;
    let power: u32 = power.parse().map_err(|_| refuse())?;
    if !matches!(base, 2 | 10) {
        return Err(refuse());
    }
    base.checked_pow(power).ok_or_else(refuse)
}

fn format(uri: &str, href: &str) -> Result<ForeignFormat> {
    let lower = uri.to_ascii_lowercase();
    for (word, format) in [
        ("vmdk", ForeignFormat::Vmdk),
        ("vhdx", ForeignFormat::Vhdx),
        ("vhd", ForeignFormat::Vhd),
        ("vdi", ForeignFormat::Vdi),
        ("qcow2", ForeignFormat::Qcow2),
        ("raw", ForeignFormat::Raw),
    ] {
        if lower.contains(word) {
            return Ok(format);
        }
    }
    super::format_by_name(href).ok_or_else(|| {
        damaged(format!(
            "the format {uri:?} of the disk {href:?} is not known"
        ))
    })
}

fn items(
    hardware: &Element,
    disks: &BTreeMap<String, Disk>,
    machine: &mut ForeignMachine,
) -> Result<()> {
    let mut controllers: BTreeMap<&str, String> = BTreeMap::new();
    let mut found: Vec<(&str, u32, u32, ForeignDrive)> = Vec::new();
    let all = || {
        hardware.children.iter().filter(|child| {
            ["Item", "StorageItem", "EthernetPortItem"].contains(&child.name.as_str())
        })
    };
    let number =
        |item: &Element, name: &str| item.child_text(name).and_then(|text| text.parse().ok());
    for item in all() {
        let kind: u32 = number(item, "ResourceType").unwrap_or(0);
        let subtype = item.child_text("ResourceSubType").unwrap_or_default();
        let bus = match kind {
            5 => "IDE",
            6 => "SCSI",
            20 if subtype.to_ascii_lowercase().contains("nvme") => "NVMe",
            20 if subtype.to_ascii_lowercase().contains("virtio") => "virtio",
            20 => "SATA",
            _ => continue,
        };
        if let Some(id) = item.child_text("InstanceID") {
            controllers.insert(id, bus.to_owned());
        }
    }
    for item in all() {
        let label = item.child_text("ElementName").unwrap_or("a device");
        match number(item, "ResourceType").unwrap_or(0) {
            3 => {
                let cpus = number(item, "VirtualQuantity");
                machine.cpus =
                    Some(cpus.ok_or_else(|| damaged("the number of CPUs is no number"))?);
            }
            4 => {
                let quantity: Option<u64> = item
                    .child_text("VirtualQuantity")
                    .and_then(|text| text.parse().ok());
                let unit = match item.child_text("AllocationUnits") {
                    Some(unit) => units(unit)?,
                    None => 1 << 20,
                };
                let memory = quantity.and_then(|quantity| quantity.checked_mul(unit));
                machine.memory = Some(memory.ok_or_else(|| damaged("the memory is no number"))?);
            }
            10 => {
                let mac = item.child_text("Address");
                machine.network(mac)?;
                if let Some(connection) = item.child_text("Connection")
                    && !connection.eq_ignore_ascii_case("nat")
                {
                    machine.unmapped(
                        format!("network {connection}"),
                        "the interface gets the user network: out by NAT, in by forwarded ports",
                    );
                }
            }
            17 => {
                let resource = item.child_text("HostResource").unwrap_or_default();
                let id = resource.rsplit('/').next().unwrap_or_default();
                let disk = disks.get(id).ok_or_else(|| {
                    damaged(format!(
                        "{label} names the disk {resource:?}, which is not listed"
                    ))
                })?;
                let parent = item.child_text("Parent").unwrap_or_default();
                let mut drive = disk.drive.clone();
                drive.bus = controllers.get(parent).cloned().unwrap_or_default();
                let place = number(item, "AddressOnParent").unwrap_or(0);
                found.push((parent, place, found.len() as u32, drive));
            }
            14 => machine.unmapped(label, "there are no floppy drives"),
            15 | 16 => machine.unmapped(
                label,
                "the CD drive is left out; `inn disk attach` gives the VM one",
            ),
            23 => machine.unmapped(label, "USB controllers come with the devices that need one"),
            24 => machine.unmapped(label, "the display is the driver's own"),
            35 => machine.unmapped(label, "there is no sound"),
            0..=6 | 20 => {}
            kind => machine.unmapped(label, format!("the device type {kind} has no counterpart")),
        }
    }
    // The one on the lowest place of its controller is what a BIOS boots.
    found.sort_by_key(|(_, place, order, _)| (*place, *order));
    for (_, _, _, drive) in found {
        machine.drive(drive)?;
    }
    Ok(())
}

fn architecture(system: &Element) -> Option<Arch> {
    let section = system.child("OperatingSystemSection")?;
    // CIM_OperatingSystem's numbers do not tell x86-64 apart from arm64, the products' own words do.
    let words = [
        section.attribute("osType"),
        section.child_text("OSType"),
        section.child_text("Description"),
    ];
    let text: String = words
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(" ")
        .to_ascii_lowercase();
    if text.contains("arm64") || text.contains("aarch64") {
        Some(Arch::Arm64)
    } else if text.contains("64") {
        Some(Arch::X86_64)
    } else {
        None
    }
}

/// Firmware and TPM are in the products' own elements.
fn extras(hardware: &Element, system: &Element, machine: &mut ForeignMachine) {
    // VMware: <vmw:Config vmw:key="firmware" vmw:value="efi"/>.
    for config in hardware.all("Config").chain(hardware.all("ExtraConfig")) {
        let value = config.attribute("value").unwrap_or_default();
        match config.attribute("key").unwrap_or_default() {
            "firmware" => {
                machine.firmware = Some(match value {
                    "efi" => Firmware::Uefi,
                    _ => Firmware::Bios,
                });
            }
            "bootOptions.efiSecureBootEnabled" | "uefi.secureBoot.enabled" => {
                machine.secure_boot |= value.eq_ignore_ascii_case("true");
            }
            _ => {}
        }
    }
    // VirtualBox: its own description of the machine, as in a .vbox file.
    if let Some(own) = system.child("Machine") {
        super::vbox::hardware_extras(own, machine);
    }
    if machine.secure_boot {
        machine.firmware = Some(Firmware::Uefi);
    }
}

/// Reads a manifest: digests of the files of a package by name. Those by SHA-1 are left out: they prove nothing.
pub fn manifest(text: &str) -> BTreeMap<String, String> {
    let mut digests = BTreeMap::new();
    for line in text.lines().take(4096) {
        let Some((left, hex)) = line.split_once('=') else {
            continue;
        };
        let name = left
            .trim()
            .strip_prefix("SHA256")
            .map(str::trim_start)
            .and_then(|rest| rest.strip_prefix('(')?.strip_suffix(')'));
        if let Some(name) = name {
            digests.insert(name.to_owned(), hex.trim().to_ascii_lowercase());
        }
    }
    digests
}
