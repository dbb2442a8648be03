//! Attaches and detaches disks and interfaces while the machine runs.
//!
//! ```text
//!  attach: free port? ─► nodes or network added ─► device_add          undone if the next step is refused
//!  detach: device_del ─► (the guest lets go) ─► DEVICE_DELETED ─► nodes or network removed ─► MachineEvent::Detached
//! ```
//!
//! Nothing of it is remembered here: what is attached, and where, is asked of QEMU each time, so that a machine that was adopted is no
//! different from one that was launched.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use innkeeper_api::ErrorKind;
use innkeeper_net::MacAddr;
use serde_json::{Value, json};

use super::arguments::path_text;
use super::block;
use super::board::Board;
use super::device::summary;
use super::machine::{QemuMachine, Shared};
use super::network;
use super::ports::{self, Placement};
use super::resize::ADDED_MEMORY_PATH;
use super::served;
use super::shape::Shape;
use crate::driver::{DiskConfig, Hotplug, MachineEvent, Medium, NicConfig};
use crate::error::{Error, Result};
use crate::spec::{Arch, DiskBus, DiskFormat};

/// Path under which QEMU keeps the devices that were given an id.
pub(super) const PERIPHERAL: &str = "/machine/peripheral";

/// How long a guest may take to let go of a device before it may be asked again: it forgets what it was asked while it boots.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// A device that QEMU has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Present {
    /// Its id.
    pub(super) id: String,
    /// What it is.
    pub(super) driver: String,
}

impl Shared {
    /// Asks which devices with an id there are.
    pub(super) async fn present(&self) -> Result<Vec<Present>> {
        let reply = self
            .execute("qom-list", json!({ "path": PERIPHERAL }))
            .await?;
        Ok(read_present(&reply))
    }

    /// Asks on which bus a device is.
    pub(super) async fn bus_of(&self, id: &str) -> Result<Option<String>> {
        let reply = self
            .execute(
                "qom-get",
                json!({ "path": format!("{PERIPHERAL}/{id}"), "property": "parent_bus" }),
            )
            .await?;
        Ok(reply
            .as_str()
            .and_then(|path| path.rsplit('/').next())
            .filter(|name| !name.is_empty())
            .map(str::to_owned))
    }

    /// Returns the board that the machine is built on.
    pub(super) fn board(&self) -> Result<Board> {
        let shape = &self.record.shape;
        [Arch::X86_64, Arch::Arm64, Arch::Riscv64]
            .into_iter()
            .filter(|arch| arch.to_string() == shape.arch)
            .find_map(|arch| Board::of(&shape.machine, arch))
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Unsupported,
                    "this machine was started by a version that kept nothing of its devices; start it again first",
                )
            })
    }

    /// Finds a port with nothing behind it.
    pub(super) async fn free_port(&self, present: &[Present]) -> Result<String> {
        let count = self.record.fittings.ports;
        if count == 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "machine type {} takes no devices while it runs",
                    self.record.shape.machine
                ),
            )
            .with_hint("use machine: q35, or change the VM while it is off"));
        }
        let mut taken = Vec::new();
        let behind_ports = |id: &str| is_movable(id) || served::name_of(id).is_some();
        for device in present.iter().filter(|device| behind_ports(&device.id)) {
            taken.extend(self.bus_of(&device.id).await?);
        }
        (0..count)
            .map(ports::bus)
            .find(|bus| !taken.contains(bus))
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Unsupported,
                    "every place for devices that come and go is taken",
                )
                .with_hint("detach one, or restart the VM, which makes room for more")
            })
    }

    /// Removes what was under a disk; what is not there is as good.
    async fn remove_disk_nodes(&self, name: &str) {
        for (command, arguments) in [
            (
                "blockdev-del",
                json!({ "node-name": block::limit_node(name) }),
            ),
            ("object-del", json!({ "id": block::limit_group(name) })),
            ("blockdev-del", json!({ "node-name": block::disk_id(name) })),
        ] {
            let _ = self.execute(command, arguments).await;
        }
    }

    /// Forgets that the guest was asked to let go of a device: it has, or said that it can't.
    pub(super) fn forget_asked(&self, id: &str) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.remove(id);
    }

    /// Cleans up after a device that the guest has let go of, and says which it was; none if it is of another kind.
    pub(super) async fn detached(&self, id: &str) -> Option<MachineEvent> {
        self.forget_asked(id);
        if let Some(name) = served::name_of(id) {
            return Some(MachineEvent::TakenOut(name.to_owned()));
        }
        if let Some(name) = block::disk_of(id) {
            self.remove_disk_nodes(&name).await;
            return Some(MachineEvent::Detached(name));
        }
        let mac = network::nic_of(id)?;
        let _ = self.execute("netdev_del", json!({ "id": id })).await;
        Some(MachineEvent::Detached(mac.to_string()))
    }

    /// Says what the machine is made of now, and where everything is.
    pub(super) async fn now(&self) -> Result<(Shape, Placement)> {
        let present = self.present().await?;
        let there = |id: &str| present.iter().any(|device| device.id == id);
        let mut shape = self.record.shape.clone();
        shape.devices.retain(|device| {
            let id = device.split(' ').next().unwrap_or_default();
            !is_movable(id) || there(id)
        });
        shape.movable.clear();
        let mut placement = Placement {
            ports: Some(self.record.fittings.ports),
            ..Placement::default()
        };
        for device in present.iter().filter(|device| is_movable(&device.id)) {
            let Present { id, driver } = device;
            let bus = self.bus_of(id).await?;
            let text = summary(id, driver, bus.as_deref());
            if let Some(port) = bus.as_deref().and_then(ports::port_of) {
                placement.of.insert(id.clone(), port);
                shape.movable.insert(text);
            } else if !shape
                .devices
                .iter()
                .any(|known| known.split(' ').next() == Some(id))
            {
                shape.devices.push(text);
            }
        }
        shape
            .disks
            .retain(|name| there(&block::disk_id(name)) || there(&block::drive_id(name)));
        shape.nics.clear();
        for device in &present {
            if let Some(name) = block::disk_of(&device.id)
                && !shape.disks.contains(&name)
            {
                shape.disks.push(name);
            }
            shape
                .nics
                .extend(network::nic_of(&device.id).map(|mac| mac.to_string()));
        }
        placement.added_cpus = self.added_cpus().await?;
        if self.record.shape.memory.1 > self.record.shape.memory.0 {
            let added = self
                .execute(
                    "qom-get",
                    json!({ "path": ADDED_MEMORY_PATH, "property": "requested-size" }),
                )
                .await?;
            placement.added_memory = added.as_u64().unwrap_or(0);
        }
        Ok((shape, placement))
    }
}

/// Returns whether an id is that of a disk or an interface.
fn is_movable(id: &str) -> bool {
    block::disk_of(id).is_some() || network::nic_of(id).is_some()
}

/// Reads a reply of `qom-list`: children are typed `child<DRIVER>`.
fn read_present(reply: &Value) -> Vec<Present> {
    reply
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let driver = entry["type"]
                .as_str()?
                .strip_prefix("child<")?
                .strip_suffix('>')?;
            Some(Present {
                id: entry["name"].as_str()?.to_owned(),
                driver: driver.to_owned(),
            })
        })
        .collect()
}

/// Reads the path of the file below a qcow2 from its header, as seen from the file.
///
/// Source: QEMU `docs/interop/qcow2.rst`: offset at byte 8, length at byte 16, at most 1023 bytes.
fn backing_path(path: &Path) -> std::io::Result<PathBuf> {
    let bad = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned());
    let mut file = File::open(path)?;
    let mut header = [0; 20];
    file.read_exact(&mut header)?;
    if !header.starts_with(b"QFI\xfb") {
        return Err(bad("not a qcow2 file"));
    }
    let (offset, length) = header[8..].split_at(8);
    let offset = u64::from_be_bytes(offset.try_into().map_err(|_| bad("a short header"))?);
    let length = u32::from_be_bytes(length.try_into().map_err(|_| bad("a short header"))?);
    if offset == 0 || length == 0 || length > 1023 {
        return Err(bad("it names no file below it"));
    }
    let mut name = vec![0; length as usize];
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(&mut name)?;
    let name = String::from_utf8(name).map_err(|_| bad("the name below it is not UTF-8"))?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    Ok(directory.join(name))
}

impl QemuMachine {
    async fn add_disk(&self, disk: &DiskConfig, bus: Option<String>, board: Board) -> Result<()> {
        let backing = match (disk.format, disk.backing_format) {
            (DiskFormat::Qcow2, Some(format)) => {
                let path = backing_path(&disk.path).map_err(|error| {
                    Error::io(
                        format!("can't read what lies below {}", disk.path.display()),
                        error,
                    )
                })?;
                Some((path, format))
            }
            _ => None,
        };
        let below = backing
            .as_ref()
            .map(|(path, format)| (path.as_path(), *format));
        let shared = &self.shared;
        let mut drive = block::disk_id(&disk.name);
        shared
            .execute("blockdev-add", block::disk_node(disk, below)?)
            .await?;
        if let Some((group, node)) = block::limits(disk) {
            shared.execute("object-add", group).await?;
            shared.execute("blockdev-add", node).await?;
            drive = block::limit_node(&disk.name);
        }
        let device = block::disk_device(disk, &drive, bus, None, board);
        shared
            .execute("device_add", device.arguments())
            .await
            .map(drop)
    }

    async fn request_detach(&self, id: &str, what: &str) -> Result<()> {
        let shared = &self.shared;
        let present = shared.present().await?;
        if !present.iter().any(|device| device.id == id) {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("the VM has no {what}"),
            ));
        }
        let bus = shared.bus_of(id).await?.unwrap_or_default();
        if ports::port_of(&bus).is_none() && bus != format!("{}.0", block::USB) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the VM was started from the {what} or cannot do without it, so it stays while the VM runs"),
            )
            .with_hint("stop the VM, and take it out of its settings"));
        }
        let pending = || {
            Error::new(
                ErrorKind::Conflict,
                format!("the guest was asked already to let go of the {what}"),
            )
            .with_hint("wait, or ask again in a few seconds")
        };
        {
            let mut asked = shared.asked.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            if asked.get(id).is_some_and(|at| now - *at < ASK_AGAIN) {
                return Err(pending());
            }
            asked.insert(id.to_owned(), now);
        }
        let asked = shared.execute("device_del", json!({ "id": id })).await;
        if asked.is_err() {
            shared.forget_asked(id);
        }
        asked.map(drop).map_err(|error| match error.kind() {
            // The device is there and can be removed: what QEMU refuses, for some devices, is to ask again so soon.
            ErrorKind::Failure => pending().with_source(error),
            _ => error,
        })
    }
}

/// Refuses what is attached already.
fn require_absent(present: &[Present], id: &str, what: &str) -> Result<()> {
    if present.iter().any(|device| device.id == id) {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("the VM has a {what} already, or the guest has not let go of it yet"),
        ));
    }
    Ok(())
}

#[async_trait]
impl Hotplug for QemuMachine {
    async fn attach_disk(&self, disk: &DiskConfig) -> Result<()> {
        let shared = &self.shared;
        let _one_at_a_time = shared.changing.lock().await;
        let name = &disk.name;
        if !block::fits(name) || name.len() > super::check::SERIAL_LIMIT {
            return Err(Error::new(
                ErrorKind::BadInput,
                format!("the disk's name {name:?} is too long: a guest sees 20 bytes"),
            ));
        }
        path_text(&disk.path)?;
        File::open(&disk.path).map_err(|error| {
            Error::io(
                format!("the disk {} can't be opened", disk.path.display()),
                error,
            )
        })?;
        let board = shared.board()?;
        let present = shared.present().await?;
        require_absent(&present, &block::disk_id(name), &format!("disk {name}"))?;
        let bus = match disk.bus {
            DiskBus::Usb if present.iter().any(|device| device.id == block::USB) => None,
            DiskBus::Usb => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "this VM was started without a USB controller",
                )
                .with_hint("use bus: virtio, or restart the VM with the disk in its settings"));
            }
            DiskBus::Virtio | DiskBus::Nvme => Some(shared.free_port(&present).await?),
        };
        // What a detachment left that nobody was there to see.
        shared.remove_disk_nodes(name).await;
        let added = self.add_disk(disk, bus, board).await;
        if added.is_err() {
            shared.remove_disk_nodes(name).await;
        }
        added
    }

    async fn request_detach_disk(&self, name: &str) -> Result<()> {
        self.request_detach(&block::disk_id(name), &format!("disk {name}"))
            .await
    }

    async fn change_medium(&self, name: &str, medium: Option<&Medium>) -> Result<()> {
        let _one_at_a_time = self.shared.changing.lock().await;
        self.shared.change_medium(name, medium).await
    }

    async fn attach_nic(&self, nic: &NicConfig) -> Result<()> {
        let shared = &self.shared;
        let _one_at_a_time = shared.changing.lock().await;
        let id = network::nic_id(nic.mac);
        let board = shared.board()?;
        let present = shared.present().await?;
        require_absent(&present, &id, &format!("network interface {}", nic.mac))?;
        let port = shared.free_port(&present).await?;
        let _ = shared.execute("netdev_del", json!({ "id": id })).await;
        super::launch::require_free_ports(&nic.forwards)?;
        shared
            .execute("netdev_add", network::netdev_arguments(nic))
            .await?;
        let device = network::nic_device(nic, Some(port), board);
        let added = shared.execute("device_add", device.arguments()).await;
        if added.is_err() {
            let _ = shared.execute("netdev_del", json!({ "id": id })).await;
        }
        added.map(drop)
    }

    async fn request_detach_nic(&self, mac: MacAddr) -> Result<()> {
        self.request_detach(&network::nic_id(mac), &format!("network interface {mac}"))
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_tolerantly() {
        let reply = json!([
            { "name": "type", "type": "string" },
            { "name": "disk-a", "type": "child<virtio-blk-pci>", "new": 1 },
            { "name": 7, "type": "child<x>" },
        ]);
        let expected = Present {
            id: "disk-a".to_owned(),
            driver: "virtio-blk-pci".to_owned(),
        };
        assert_eq!(read_present(&reply), [expected]);
        assert_eq!(read_present(&json!(null)), []);
    }

    #[test]
    fn a_hostile_header_names_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let mut good = b"QFI\xfb\0\0\0\x03".to_vec();
        good.extend(20u64.to_be_bytes());
        good.extend(4u32.to_be_bytes());
        good.extend(b"base");
        std::fs::write(&path, &good).unwrap();
        assert_eq!(backing_path(&path).unwrap(), directory.path().join("base"));
        for (at, byte) in [(0, b'X'), (8, 0xff), (16, 0xff), (19, 0), (20, 0xff)] {
            let mut bad = good.clone();
            bad[at] = byte;
            std::fs::write(&path, &bad).unwrap();
            assert!(backing_path(&path).is_err(), "byte {at}");
        }
        std::fs::write(&path, &good[..10]).unwrap();
        assert!(backing_path(&path).is_err());
    }
}
