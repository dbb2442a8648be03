//! UTM's bundles: `config.plist` of version 4 (QEMU and Apple), and of versions 2 and 3. Disks lie in `Data/` or `Images/`.

use std::io::Cursor;

use innkeeper_image::{Arch, ForeignFormat};
use plist::{Dictionary, Value};

use super::{DrivePlace, ForeignDrive, ForeignMachine, damaged};
use crate::error::Result;
use crate::spec::{Firmware, ForwardSpec, Protocol};

/// Reads a bundle's `config.plist`, which is XML or binary.
pub fn parse(bytes: &[u8]) -> Result<ForeignMachine> {
    let value = Value::from_reader(Cursor::new(bytes))
        .map_err(|error| damaged(format!("config.plist is no property list: {error}")))?;
    let root = value
        .as_dictionary()
        .ok_or_else(|| damaged("config.plist is no dictionary"))?;
    match root.get("ConfigurationVersion").and_then(number) {
        Some(4) => version_4(root),
        Some(1..=3) => version_2(root),
        Some(other) => Err(damaged(format!(
            "version {other} of UTM's files is not known"
        ))),
        None => Err(damaged("config.plist has no ConfigurationVersion")),
    }
}

fn number(value: &Value) -> Option<u64> {
    value.as_unsigned_integer()
}

fn part<'a>(of: &'a Dictionary, name: &str) -> Option<&'a Dictionary> {
    of.get(name)?.as_dictionary()
}

fn text<'a>(of: &'a Dictionary, name: &str) -> Option<&'a str> {
    of.get(name)?.as_string().filter(|text| !text.is_empty())
}

fn flag(of: &Dictionary, name: &str) -> bool {
    of.get(name).and_then(Value::as_boolean) == Some(true)
}

fn list<'a>(of: &'a Dictionary, name: &str) -> impl Iterator<Item = &'a Dictionary> {
    let values = of.get(name).and_then(Value::as_array);
    values
        .into_iter()
        .flatten()
        .filter_map(Value::as_dictionary)
}

fn megabytes(of: &Dictionary, name: &str) -> Result<Option<u64>> {
    match of.get(name).and_then(number) {
        Some(size) => size
            .checked_mul(1 << 20)
            .map(Some)
            .ok_or_else(|| damaged("the memory is over all bounds")),
        None => Ok(None),
    }
}

/// Zero means that UTM chooses.
fn cpus(of: &Dictionary, name: &str) -> Option<u32> {
    let count = of.get(name).and_then(number)?;
    u32::try_from(count).ok().filter(|count| *count > 0)
}

fn version_4(root: &Dictionary) -> Result<ForeignMachine> {
    let apple = text(root, "Backend") == Some("Apple");
    let mut machine = ForeignMachine::of(if apple { "UTM (Apple)" } else { "UTM" });
    machine.name = part(root, "Information")
        .and_then(|information| text(information, "Name"))
        .map(str::to_owned);
    if let Some(system) = part(root, "System") {
        machine.arch = text(system, "Architecture")
            .map(|arch| arch.parse::<Arch>().map_err(damaged))
            .transpose()?;
        machine.cpus = cpus(system, "CPUCount");
        machine.memory = megabytes(system, "MemorySize")?;
        let boot = part(system, "Boot").and_then(|boot| text(boot, "OperatingSystem"));
        if boot == Some("macOS") {
            return Err(damaged(
                "it is a macOS guest, which only Apple's framework on a Mac runs",
            ));
        }
    }
    let machinery = part(root, "QEMU");
    let uefi = apple || machinery.is_some_and(|it| flag(it, "UEFIBoot"));
    machine.firmware = Some(if uefi { Firmware::Uefi } else { Firmware::Bios });
    machine.tpm = machinery.is_some_and(|it| flag(it, "TPMDevice"));
    for drive in list(root, "Drive") {
        let Some(name) = text(drive, "ImageName") else {
            machine.unmapped("an empty drive", "`inn disk attach` gives the VM one");
            continue;
        };
        match text(drive, "ImageType") {
            Some("Disk") | None => {}
            Some(kind) => {
                machine.unmapped(format!("{name} ({kind})"), "it is left out");
                continue;
            }
        }
        add(&mut machine, "Data", name, text(drive, "Interface"))?;
    }
    for network in list(root, "Network") {
        machine.network(text(network, "MacAddress"))?;
        let mode = text(network, "Mode").unwrap_or("Shared");
        if mode != "Emulated" {
            machine.unmapped(
                format!("network {mode}"),
                "the interface gets the user network: out by NAT, in by forwarded ports",
            );
        }
        for forward in list(network, "PortForward") {
            forwards(
                &mut machine,
                forward,
                ["HostAddress", "HostPort", "GuestPort", "Protocol"],
            );
        }
    }
    leave_out(root, &mut machine);
    Ok(machine)
}

fn version_2(root: &Dictionary) -> Result<ForeignMachine> {
    let mut machine = ForeignMachine::of("UTM (an old bundle)");
    machine.name = part(root, "Info")
        .and_then(|information| text(information, "Name"))
        .map(str::to_owned);
    if let Some(system) = part(root, "System") {
        machine.arch = text(system, "Architecture")
            .map(|arch| arch.parse::<Arch>().map_err(damaged))
            .transpose()?;
        machine.cpus = cpus(system, "CPUCount");
        machine.memory = megabytes(system, "Memory")?;
        machine.firmware = Some(if flag(system, "UEFIBoot") {
            Firmware::Uefi
        } else {
            Firmware::Bios
        });
    }
    for drive in list(root, "Drives") {
        let Some(name) = text(drive, "ImagePath") else {
            continue;
        };
        if let Some(kind @ ("cd" | "floppy" | "kernel" | "initrd" | "dtb" | "bios")) =
            text(drive, "ImageType")
        {
            machine.unmapped(format!("{name} ({kind})"), "it is left out");
            continue;
        }
        add(&mut machine, "Images", name, text(drive, "InterfaceType"))?;
    }
    if let Some(network) = part(root, "Networking")
        && text(network, "NetworkMode") != Some("none")
    {
        machine.network(text(network, "NetworkCardMac"))?;
    }
    leave_out(root, &mut machine);
    Ok(machine)
}

fn add(machine: &mut ForeignMachine, folder: &str, name: &str, bus: Option<&str>) -> Result<()> {
    // A disk that UTM made itself has the format as its ending; Apple's are raw, and called .img.
    let format = super::format_by_name(name).ok_or_else(|| {
        damaged(format!(
            "the format of the disk {name:?} is not told by its name"
        ))
    })?;
    if format == ForeignFormat::Raw && name.ends_with(".iso") {
        machine.unmapped(name, "it is left out");
        return Ok(());
    }
    machine.drive(ForeignDrive {
        place: DrivePlace::Beside(format!("{folder}/{name}")),
        format,
        bus: bus.unwrap_or("virtio").to_owned(),
        size: None,
    })
}

fn forwards(machine: &mut ForeignMachine, forward: &Dictionary, names: [&str; 4]) {
    let port = |name: &str| {
        let number = forward.get(name).and_then(number)?;
        u16::try_from(number).ok().filter(|port| *port != 0)
    };
    let address = text(forward, names[0])
        .unwrap_or("127.0.0.1")
        .parse::<std::net::IpAddr>();
    let protocol = match text(forward, names[3]).unwrap_or("TCP") {
        "UDP" => Protocol::Udp,
        _ => Protocol::Tcp,
    };
    match (address, port(names[1]), port(names[2])) {
        (Ok(host_address), Some(host_port), Some(guest_port))
            if host_address.is_loopback() && machine.forwards.len() < super::LIST_LIMIT =>
        {
            machine.forwards.push(ForwardSpec {
                protocol,
                host_address,
                host_port,
                guest_port,
            });
        }
        _ => machine.unmapped(
            "a forwarded port",
            "it listens elsewhere than on loopback, or its ports are none",
        ),
    }
}

fn leave_out(root: &Dictionary, machine: &mut ForeignMachine) {
    for (name, what, why) in [
        ("Sound", "sound", "there is no sound"),
        ("Display", "displays", "the display is the driver's own"),
        ("Sharing", "sharing", "`inn set` gives the VM a share"),
        ("Input", "input devices", "they come with the display"),
    ] {
        let there = root.get(name).is_some_and(|value| match value {
            Value::Array(values) => !values.is_empty(),
            Value::Dictionary(values) => !values.is_empty(),
            _ => false,
        });
        if there {
            machine.unmapped(what, why);
        }
    }
    let own = part(root, "QEMU").and_then(|it| it.get("AdditionalArguments"));
    if own
        .and_then(Value::as_array)
        .is_some_and(|arguments| !arguments.is_empty())
    {
        machine.unmapped("own arguments of QEMU", "they are not taken");
    }
}
