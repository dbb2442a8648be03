//! Adds CPUs, changes how much memory the guest is given, and asks it for memory back.
//!
//! ```text
//!  CPUs     device_add of what query-hotpluggable-cpus offers     added only: QEMU has been seen to end when one was taken away
//!  memory   requested-size of a virtio-mem device                  added and, as far as the guest lets go of it, taken away
//!  balloon  balloon
//! ```

use async_trait::async_trait;
use innkeeper_api::ErrorKind;
use serde_json::{Value, json};

use super::hotplug::PERIPHERAL;
use super::machine::{QemuMachine, Shared};
use super::ports::AddedCpu;
use crate::driver::{Balloon, MachineSize, Resize};
use crate::error::{Error, Result};
use crate::spec::Bytes;

/// Where QEMU keeps the device that adds memory.
pub(super) const ADDED_MEMORY_PATH: &str = "/machine/peripheral/added-memory";

/// A place for a CPU.
#[derive(Debug, PartialEq)]
struct Place {
    /// What is there, or could be.
    cpu: AddedCpu,
    /// Path of what is there.
    taken: Option<String>,
}

impl Place {
    fn order(&self) -> Vec<u64> {
        [
            "node-id",
            "socket-id",
            "die-id",
            "cluster-id",
            "core-id",
            "thread-id",
        ]
        .iter()
        .map(|key| self.cpu.place.get(*key).copied().unwrap_or(0))
        .collect()
    }
}

/// Reads a reply of `query-hotpluggable-cpus`, in the machine's order, by which the ids are numbered.
fn read_places(reply: &Value) -> Vec<Place> {
    let mut places: Vec<Place> = reply
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let place = entry["props"].as_object()?.iter();
            Some(Place {
                cpu: AddedCpu {
                    driver: entry["type"].as_str()?.to_owned(),
                    id: String::new(),
                    place: place
                        .filter_map(|(key, value)| Some((key.clone(), value.as_u64()?)))
                        .collect(),
                },
                taken: entry["qom-path"].as_str().map(str::to_owned),
            })
        })
        .collect();
    places.sort_by_key(Place::order);
    for (index, place) in places.iter_mut().enumerate() {
        place.cpu.id = format!("cpu-{index}");
    }
    places
}

impl Shared {
    /// Asks how many CPUs there are.
    pub(super) async fn cpus(&self) -> Result<u32> {
        let reply = self.execute("query-cpus-fast", json!({})).await?;
        let count = reply.as_array().map_or(0, Vec::len);
        u32::try_from(count).map_err(|_| Error::new(ErrorKind::Failure, "too many CPUs"))
    }

    /// Asks which CPUs were added since the start.
    pub(super) async fn added_cpus(&self) -> Result<Vec<AddedCpu>> {
        if self.record.shape.cpus.1 <= self.record.shape.cpus.0 {
            return Ok(Vec::new());
        }
        let reply = self.execute("query-hotpluggable-cpus", json!({})).await?;
        Ok(read_places(&reply)
            .into_iter()
            .filter(|place| {
                place.taken.as_deref() == Some(&format!("{PERIPHERAL}/{}", place.cpu.id))
            })
            .map(|place| place.cpu)
            .collect())
    }

    async fn added_memory(&self, property: &str) -> Result<u64> {
        let reply = self
            .execute(
                "qom-get",
                json!({ "path": ADDED_MEMORY_PATH, "property": property }),
            )
            .await?;
        reply
            .as_u64()
            .ok_or_else(|| Error::new(ErrorKind::Failure, "QEMU did not tell its added memory"))
    }

    fn can_add_memory(&self) -> bool {
        self.record.shape.memory.1 > self.record.shape.memory.0
    }
}

fn bad_input(message: String) -> Error {
    Error::new(ErrorKind::BadInput, message)
}

#[async_trait]
impl Resize for QemuMachine {
    async fn set_cpus(&self, count: u32) -> Result<()> {
        let shared = &self.shared;
        let _one_at_a_time = shared.changing.lock().await;
        let most = shared.record.shape.cpus.1;
        if count == 0 || count > most {
            return Err(bad_input(format!(
                "cpus must be between 1 and {most} (max_cpus) while the VM runs"
            )));
        }
        let present = shared.cpus().await?;
        if count == present {
            return Ok(());
        }
        if count < present {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("CPUs can only be added while the VM runs, and it has {present}"),
            )
            .with_hint("set cpus and restart the VM"));
        }
        let reply = shared.execute("query-hotpluggable-cpus", json!({})).await?;
        let places = read_places(&reply);
        let missing = (count - present) as usize;
        let free: Vec<&AddedCpu> = places
            .iter()
            .filter(|place| place.taken.is_none())
            .map(|place| &place.cpu)
            .take(missing)
            .collect();
        if free.len() < missing {
            return Err(Error::new(
                ErrorKind::Failure,
                format!("QEMU offers places for {} more CPUs only", free.len()),
            ));
        }
        for cpu in free {
            shared.execute("device_add", cpu.arguments()?).await?;
        }
        Ok(())
    }

    async fn set_memory(&self, size: Bytes) -> Result<()> {
        let shared = &self.shared;
        let _one_at_a_time = shared.changing.lock().await;
        let (base, most) = shared.record.shape.memory;
        if size.get() < base || size.get() > most {
            return Err(bad_input(format!(
                "memory must be between {} (memory at the start) and {} (max_memory) while the VM runs",
                Bytes::new(base),
                Bytes::new(most)
            )));
        }
        if !shared.can_add_memory() {
            return Ok(());
        }
        let step = shared.added_memory("block-size").await?.max(1);
        let added = size.get() - base;
        if !added.is_multiple_of(step) {
            return Err(bad_input(format!(
                "memory can be changed in steps of {} from {} on",
                Bytes::new(step),
                Bytes::new(base)
            )));
        }
        shared
            .execute(
                "qom-set",
                json!({ "path": ADDED_MEMORY_PATH, "property": "requested-size", "value": added }),
            )
            .await
            .map(drop)
    }

    async fn size(&self) -> Result<MachineSize> {
        let shared = &self.shared;
        let added = if shared.can_add_memory() {
            shared.added_memory("size").await?
        } else {
            0
        };
        Ok(MachineSize {
            cpus: shared.cpus().await?,
            memory: Bytes::new(shared.record.shape.memory.0.saturating_add(added)),
        })
    }
}

#[async_trait]
impl Balloon for QemuMachine {
    async fn set_target(&self, memory: Bytes) -> Result<()> {
        if memory.get() == 0 {
            return Err(bad_input(
                "a guest needs memory: the target is 0".to_owned(),
            ));
        }
        self.shared
            .execute("balloon", json!({ "value": memory.get() }))
            .await
            .map(drop)
    }

    async fn actual(&self) -> Result<Bytes> {
        let reply = self.shared.execute("query-balloon", json!({})).await?;
        reply["actual"]
            .as_u64()
            .map(Bytes::new)
            .ok_or_else(|| Error::new(ErrorKind::Failure, "QEMU did not tell the balloon's size"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_in_the_machines_order() {
        let reply = json!([
            { "type": "max-x86_64-cpu", "vcpus-count": 1, "props": { "core-id": 10, "socket-id": 0 } },
            { "type": "max-x86_64-cpu", "vcpus-count": 1, "props": { "core-id": 2, "socket-id": 0 } },
            { "type": "max-x86_64-cpu", "qom-path": "/x", "props": { "core-id": 0, "socket-id": 0 } },
            { "props": {} },
        ]);
        let places = read_places(&reply);
        let cores: Vec<_> = places
            .iter()
            .map(|place| (place.cpu.place["core-id"], place.taken.is_some()))
            .collect();
        assert_eq!(cores, [(0, true), (2, false), (10, false)]);
        assert!(read_places(&json!("x")).is_empty());
    }
}
