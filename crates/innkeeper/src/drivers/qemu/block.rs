//! What a disk or a drive is made of in QEMU: nodes, limits, and the device that the guest sees. Pure.
//!
//! ```text
//!  file ◄─ format node disk-NAME ◄─ (limit-NAME, if its traffic is limited) ◄─ device disk-NAME
//!  file ◄─ format node medium-NAME ◄──────────────────────────────────────── device drive-NAME (a CD drive)
//! ```
//!
//! Every id follows from the disk's name, so that whoever adopts a machine, or restores it, finds each thing again.

use std::path::Path;

use serde_json::{Value, json};

use super::arguments::{Options, path_text};
use super::board::Board;
use super::device::Device;
use crate::driver::{DiskConfig, DriveConfig, Medium};
use crate::error::Result;
use crate::spec::{DiskBus, DiskCache, DiskFormat, DiskLimits};

/// Longest name of a node, in bytes (QEMU `block.h`, `BlockDriverState.node_name`).
const NODE_LIMIT: usize = 31;

/// Id of the USB controller.
pub(super) const USB: &str = "usb";

/// Id of the controller of CD drives.
pub(super) const SCSI: &str = "scsi";

/// Writes a name as part of an id: letters, digits and `-` stand for themselves.
fn encode(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!(".{byte:02x}"));
        }
    }
    text
}

/// Reads what [`encode`] wrote.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'.' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

/// Returns the id of a disk's device and node.
pub(super) fn disk_id(name: &str) -> String {
    format!("disk-{}", encode(name))
}

/// Returns the disk whose device has this id.
pub(super) fn disk_of(id: &str) -> Option<String> {
    decode(id.strip_prefix("disk-")?)
}

/// Returns the node of a disk's limits.
pub(super) fn limit_node(name: &str) -> String {
    format!("limit-{}", encode(name))
}

/// Returns the object of a disk's limits.
pub(super) fn limit_group(name: &str) -> String {
    format!("limits-{}", encode(name))
}

/// Returns the id of a drive's device.
pub(super) fn drive_id(name: &str) -> String {
    format!("drive-{}", encode(name))
}

/// Returns the node of what lies in a drive.
pub(super) fn medium_node(name: &str) -> String {
    format!("medium-{}", encode(name))
}

/// Returns whether ids can be made of a name.
pub(super) fn fits(name: &str) -> bool {
    medium_node(name).len() <= NODE_LIMIT
}

/// Returns QEMU's word for a format.
fn format_word(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    }
}

/// Returns `cache.direct` and `cache.no-flush`; `writethrough` is a property of the device.
fn cache(disk: &DiskConfig) -> (bool, bool) {
    match disk.cache {
        DiskCache::Writeback | DiskCache::Writethrough => (false, false),
        DiskCache::None => (true, false),
        DiskCache::Unsafe => (false, true),
    }
}

fn discard_word(disk: &DiskConfig) -> &'static str {
    if disk.discard { "unmap" } else { "ignore" }
}

/// Describes a disk's node; for a qcow2 over another file, that file is given.
pub(super) fn disk_node(disk: &DiskConfig, backing: Option<(&Path, DiskFormat)>) -> Result<Value> {
    let discard = discard_word(disk);
    let mut node = json!({
        "driver": format_word(disk.format), "node-name": disk_id(&disk.name), "read-only": disk.read_only, "discard": discard,
        "file": { "driver": "file", "filename": path_text(&disk.path)?, "discard": discard },
    });
    let (direct, no_flush) = cache(disk);
    if direct || no_flush {
        node["cache"] = json!({ "direct": direct, "no-flush": no_flush });
    }
    if disk.format == DiskFormat::Qcow2 {
        // Without a backing file of ours: whatever file the header names, it is not opened.
        node["backing"] = match backing {
            None => json!(null),
            Some((path, format)) => json!({
                "driver": format_word(format), "read-only": true,
                "file": { "driver": "file", "filename": path_text(path)?, "read-only": true },
            }),
        };
    }
    Ok(node)
}

/// Describes the limits of a disk: the object, and the node over the disk's own.
pub(super) fn limits(disk: &DiskConfig) -> Option<(Value, Value)> {
    if disk.limits == DiskLimits::default() {
        return None;
    }
    let mut limits = json!({});
    if let Some(requests) = disk.limits.requests {
        limits["iops-total"] = json!(requests);
    }
    if let Some(bandwidth) = disk.limits.bandwidth {
        limits["bps-total"] = json!(bandwidth.get());
    }
    let group = limit_group(&disk.name);
    Some((
        json!({ "qom-type": "throttle-group", "id": group, "limits": limits }),
        json!({
            "driver": "throttle", "node-name": limit_node(&disk.name), "throttle-group": group, "file": disk_id(&disk.name),
        }),
    ))
}

/// Returns the value of `-drive` for a qcow2 over another file whose path stands in its header, and the id by which a device finds it.
///
/// `-blockdev` would want the other file's path as well; this form takes that from the header, which we wrote, and lets the format be
/// named, which must never be probed from what a guest may have written.
pub(super) fn drive_option(disk: &DiskConfig, backing: DiskFormat) -> Result<(String, String)> {
    let id = format!("{}-drive", disk_id(&disk.name));
    let discard = discard_word(disk);
    let mut option = Options::new("if=none")
        .set("id", &id)
        .set("node-name", disk_id(&disk.name))
        .set("driver", "qcow2")
        .set("read-only", if disk.read_only { "on" } else { "off" })
        .set("discard", discard)
        .set("file.driver", "file")
        .set("file.filename", path_text(&disk.path)?)
        .set("file.discard", discard)
        .set("backing.driver", format_word(backing));
    let (direct, no_flush) = cache(disk);
    if direct {
        option = option.set("cache.direct", "on");
    }
    if no_flush {
        option = option.set("cache.no-flush", "on");
    }
    if let Some(requests) = disk.limits.requests {
        option = option.set("throttling.iops-total", requests.to_string());
    }
    if let Some(bandwidth) = disk.limits.bandwidth {
        option = option.set("throttling.bps-total", bandwidth.get().to_string());
    }
    Ok((option.build(), id))
}

/// Describes the device of a disk. `drive` is the node that it shows; `bus` is where it is put, if that is not left to QEMU.
pub(super) fn disk_device(
    disk: &DiskConfig,
    drive: &str,
    bus: Option<String>,
    boot_index: Option<u32>,
    board: Board,
) -> Device {
    let id = disk_id(&disk.name);
    let mut device = match disk.bus {
        DiskBus::Virtio => Device::new(format!("virtio-blk-{}", board.bus()), id).on(bus),
        DiskBus::Nvme => Device::new("nvme", id).on(bus),
        DiskBus::Usb => Device::new("usb-storage", id).on(Some(format!("{USB}.0"))),
    }
    .set("drive", drive)
    .set("serial", disk.name.as_str());
    if disk.cache == DiskCache::Writethrough {
        device = device.set("write-cache", "off");
    }
    if !disk.discard && disk.bus == DiskBus::Virtio {
        device = device.set("discard", false);
    }
    match boot_index {
        Some(index) => device.set("bootindex", index),
        None => device,
    }
}

/// Describes the node of what lies in a drive.
pub(super) fn medium(name: &str, medium: &Medium) -> Result<Value> {
    let mut node = json!({
        "driver": format_word(medium.format), "node-name": medium_node(name), "read-only": true,
        "file": { "driver": "file", "filename": path_text(&medium.path)?, "read-only": true },
    });
    if medium.format == DiskFormat::Qcow2 {
        node["backing"] = json!(null);
    }
    Ok(node)
}

/// Describes the devices of a drive; the last one is the drive.
///
/// A SCSI drive in either case, since that is what kernels, installers and firmware all know (`sr_mod` with `virtio_scsi` or `usb-storage`):
/// an IDE drive would need a controller that the cloud kernels of distributions leave out.
pub(super) fn drive_devices(drive: &DriveConfig, boot_index: Option<u32>) -> Vec<Device> {
    let id = drive_id(&drive.name);
    let mut devices = Vec::new();
    let bus = match drive.bus {
        DiskBus::Usb => {
            let bot = format!("bot-{}", encode(&drive.name));
            devices.push(Device::new("usb-bot", bot.as_str()).on(Some(format!("{USB}.0"))));
            format!("{bot}.0")
        }
        DiskBus::Virtio | DiskBus::Nvme => format!("{SCSI}.0"),
    };
    let mut device = Device::new("scsi-cd", id).on(Some(bus));
    if drive.medium.is_some() {
        device = device.set("drive", medium_node(&drive.name));
    }
    if let Some(index) = boot_index {
        device = device.set("bootindex", index);
    }
    devices.push(device);
    devices
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn names_come_back_from_ids(name in ".{0,12}") {
            let id = disk_id(&name);
            prop_assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte)));
            prop_assert_eq!(disk_of(&id), Some(name));
        }

        #[test]
        fn any_id_is_read_without_harm(id in ".*") {
            let _ = disk_of(&format!("disk-{id}"));
        }
    }

    #[test]
    fn every_name_of_a_spec_fits() {
        assert!(fits("a-name-of-20-bytes-x"));
        assert!(!fits("ä,ö,ü,ß,é"));
    }
}
