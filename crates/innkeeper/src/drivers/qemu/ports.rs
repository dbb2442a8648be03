//! The root ports of a machine: where devices are that can come and go. Pure.
//!
//! ```text
//!  pcie.0 ─┬─ what is always there, the first disk, the first interface
//!          ├─ port0 ── second disk          every further disk and interface of the config, every share: can be detached
//!          ├─ port1 ── ...
//!          └─ portN ── (empty)              SPARE of them: something can be attached
//! ```
//!
//! PCI Express takes devices in and out behind a root port alone. Each port costs a boot about 30 ms under emulation (measured, cloud
//! kernel), which is why there are few spare ones. A restored machine must have the same ports with the same devices behind them.

use std::collections::{BTreeMap, BTreeSet};

use innkeeper_api::ErrorKind;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::block::disk_id;
use super::board::Board;
use super::device::Device;
use super::network::nic_id;
use super::served;
use crate::driver::MachineConfig;
use crate::error::{Error, Result};
use crate::spec::DiskBus;

/// Empty ports that a machine is started with.
const SPARE: usize = 4;

/// The most ports: three slots with eight functions each.
const MOST: usize = 24;

/// First slot of the ports; QEMU fills slots from the low end by itself.
const FIRST_SLOT: usize = 0x18;

/// Where devices were, and what had been added, in a machine that is brought back; nothing for one that boots.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Placement {
    /// How many ports there were.
    pub(super) ports: Option<usize>,
    /// Port by device id.
    pub(super) of: BTreeMap<String, usize>,
    /// Bytes of added memory that the guest had been given.
    pub(super) added_memory: u64,
    /// CPUs that had been added. They are no part of the number at the start, by which QEMU chooses the number of queues of devices.
    #[serde(default)]
    pub(super) added_cpus: Vec<AddedCpu>,
}

/// A CPU that was added to a running machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AddedCpu {
    /// Name of the CPU's type.
    pub(super) driver: String,
    /// Id of its device.
    pub(super) id: String,
    /// Where it is in the machine, such as `core-id`.
    pub(super) place: BTreeMap<String, u64>,
}

impl Placement {
    /// Returns whether this is of a machine that is brought back, rather than of one that boots.
    pub(super) fn is_of_a_saved_machine(&self) -> bool {
        self.ports.is_some()
    }
}

impl AddedCpu {
    /// Returns the arguments of `device_add`, or the value of `-device`.
    ///
    /// Errors: `BadInput` if a file that was tampered with would make it anything else than a CPU.
    pub(super) fn arguments(&self) -> Result<Value> {
        let plain = |text: &str| {
            text.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        let is_cpu = self.driver.ends_with("-cpu")
            && plain(&self.driver)
            && self.id.starts_with("cpu-")
            && plain(&self.id)
            && self.place.keys().all(|key| key.ends_with("-id"));
        if !is_cpu {
            return Err(Error::new(
                ErrorKind::BadInput,
                format!("{:?} is no CPU that was added", self.driver),
            ));
        }
        let mut arguments = json!(self.place);
        arguments["driver"] = json!(self.driver);
        arguments["id"] = json!(self.id);
        Ok(arguments)
    }
}

/// Returns the bus of a port.
pub(super) fn bus(port: usize) -> String {
    format!("port{port}")
}

/// Reads the number of a port from its bus.
pub(super) fn port_of(bus: &str) -> Option<usize> {
    let port = bus.strip_prefix("port")?.parse().ok()?;
    (port < MOST).then_some(port)
}

/// Returns whether there are ports on a board.
pub(super) fn has_ports(board: Board) -> bool {
    board != Board::Microvm
}

/// Returns the ids of the devices that are behind ports in a machine that boots, in order.
fn movable(config: &MachineConfig) -> Vec<String> {
    let disks = config
        .disks
        .iter()
        .enumerate()
        .filter(|(index, disk)| *index > 0 && disk.bus != DiskBus::Usb)
        .map(|(_, disk)| disk_id(&disk.name));
    let nics = config.nics.iter().skip(1).map(|nic| nic_id(nic.mac));
    let shares = (0..config.shares.len()).map(served::share_id);
    disks.chain(nics).chain(shares).collect()
}

/// Returns how many devices too many there are for the ports; none if all fit.
pub(super) fn excess(config: &MachineConfig, board: Board) -> Option<(usize, usize)> {
    let wanted = movable(config).len();
    (has_ports(board) && wanted > MOST).then_some((wanted, MOST))
}

/// Hands out the ports of one machine.
pub(super) struct Ports {
    count: usize,
    of: BTreeMap<String, usize>,
}

impl Ports {
    /// Decides which device is behind which port.
    pub(super) fn new(config: &MachineConfig, board: Board, placement: &Placement) -> Self {
        if !has_ports(board) {
            return Ports {
                count: 0,
                of: BTreeMap::new(),
            };
        }
        let movable = movable(config);
        let count = placement.ports.unwrap_or(movable.len() + SPARE).min(MOST);
        let mut of = placement.of.clone();
        let mut taken: BTreeSet<usize> = of.values().copied().collect();
        for id in movable {
            if of.contains_key(&id) {
                continue;
            }
            // With more devices than ports the last ones are left to QEMU, and `check` has refused the machine.
            if let Some(free) = (0..count).find(|port| !taken.contains(port)) {
                taken.insert(free);
                of.insert(id, free);
            }
        }
        Ports { count, of }
    }

    /// Returns how many there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Returns the bus on which a device is, if it is behind a port.
    pub(super) fn bus_of(&self, id: &str) -> Option<String> {
        self.of.get(id).map(|port| bus(*port))
    }

    /// Describes the ports.
    pub(super) fn devices(&self) -> Vec<Device> {
        (0..self.count)
            .map(|port| {
                Device::new("pcie-root-port", bus(port))
                    .on(Some("pcie.0"))
                    .set("addr", format!("{:x}.{}", FIRST_SLOT + port / 8, port % 8))
                    .set("multifunction", true)
                    .set("chassis", port + 1)
                    // No device of ours needs I/O ports, of which a machine has few.
                    .set("io-reserve", 0)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cpu_is_added_as_a_cpu() {
        let cpu = |driver: &str, id: &str, key: &str| AddedCpu {
            driver: driver.to_owned(),
            id: id.to_owned(),
            place: [(key.to_owned(), 1)].into(),
        };
        let good = cpu("max-x86_64-cpu", "cpu-1", "core-id").arguments();
        let expected = json!({ "driver": "max-x86_64-cpu", "id": "cpu-1", "core-id": 1 });
        assert_eq!(good.unwrap(), expected);
        for bad in [
            cpu("vfio-pci", "cpu-1", "core-id"),
            cpu("max-x86_64-cpu", "disk-root", "core-id"),
            cpu("max-x86_64-cpu", "cpu-1", "host"),
            cpu("x,y-cpu", "cpu-1", "core-id"),
        ] {
            assert!(bad.arguments().is_err(), "{bad:?}");
        }
    }
}
