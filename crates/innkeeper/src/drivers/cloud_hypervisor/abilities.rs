//! What a running Cloud Hypervisor can be asked beyond its core: pause, size, balloon, disks, counters.

use std::path::PathBuf;
use std::sync::PoisonError;

use async_trait::async_trait;
use innkeeper_api::ErrorKind;
use innkeeper_net::MacAddr;

use super::check::MEMORY_STEP;
use super::machine::{CALL_DEADLINE, CloudHypervisorMachine};
use super::plan::{disk, disk_id};
use super::wire::{self, Counters, VmInfo};
use crate::driver::{
    Balloon, BlockStatistics, BlockTotals, DiskConfig, Hotplug, MachineSize, Medium, NicConfig,
    Pause, Resize,
};
use crate::error::{Error, Result};
use crate::spec::Bytes;

#[async_trait]
impl Pause for CloudHypervisorMachine {
    async fn pause(&self) -> Result<()> {
        self.shared.put("pause the machine", "vm.pause").await
    }

    async fn resume(&self) -> Result<()> {
        self.shared.put("resume the machine", "vm.resume").await
    }
}

#[async_trait]
impl BlockStatistics for CloudHypervisorMachine {
    async fn block_totals(&self) -> Result<BlockTotals> {
        let counters: Counters = self
            .shared
            .answered(
                "tell its counters",
                self.shared.client.get("vm.counters", CALL_DEADLINE),
            )
            .await?;
        Ok(sum_blocks(&counters))
    }
}

/// Sums the counters of disks; a field that is not there counts as nothing.
fn sum_blocks(counters: &Counters) -> BlockTotals {
    let mut totals = BlockTotals::default();
    for device in counters.values() {
        let count = |name: &str| {
            device
                .get(name)
                .and_then(serde_json::Value::as_u64)
                .unwrap_or(0)
        };
        totals.read_bytes = totals.read_bytes.saturating_add(count("read_bytes"));
        totals.written_bytes = totals.written_bytes.saturating_add(count("write_bytes"));
    }
    totals
}

/// Memory that a machine has, with what the balloon holds.
fn memory_of(info: &VmInfo) -> u64 {
    let memory = &info.config.memory;
    memory
        .size
        .saturating_add(memory.hotplugged_size.unwrap_or(0))
}

#[async_trait]
impl Resize for CloudHypervisorMachine {
    async fn set_cpus(&self, count: u32) -> Result<()> {
        let most = self.shared.config.max_cpus;
        if count == 0 || count > most {
            return Err(Error::new(
                ErrorKind::BadInput,
                format!("cpus: this machine can have 1 to {most} CPUs, not {count}"),
            )
            .with_hint("set max_cpus before the start to allow for more"));
        }
        let resize = wire::Resize {
            desired_vcpus: Some(count),
            ..wire::Resize::default()
        };
        self.resize("change the number of CPUs", &resize).await
    }

    async fn set_memory(&self, size: Bytes) -> Result<()> {
        let (least, most) = (
            self.shared.config.memory.get(),
            self.shared.config.max_memory.get(),
        );
        let size = size.get();
        if size < least || size > most || !(size - least).is_multiple_of(MEMORY_STEP) {
            return Err(Error::new(
                ErrorKind::BadInput,
                format!(
                    "memory: this machine can have {} to {} MiB in steps of {} MiB, not {} bytes",
                    least >> 20,
                    most >> 20,
                    MEMORY_STEP >> 20,
                    size
                ),
            )
            .with_hint("set max_memory before the start to allow for more"));
        }
        let resize = wire::Resize {
            desired_ram: Some(size),
            ..wire::Resize::default()
        };
        self.resize("change the size of memory", &resize).await
    }

    async fn size(&self) -> Result<MachineSize> {
        let info = self.shared.info().await?;
        Ok(MachineSize {
            cpus: info.config.cpus.boot_vcpus,
            memory: Bytes::new(memory_of(&info)),
        })
    }
}

impl CloudHypervisorMachine {
    async fn resize(&self, what: &str, resize: &wire::Resize) -> Result<()> {
        // Status 429, which stands for a CPU that the guest has not let go of yet, becomes a conflict.
        self.shared
            .answered(
                what,
                self.shared
                    .client
                    .put_json("vm.resize", resize, CALL_DEADLINE),
            )
            .await
    }
}

#[async_trait]
impl Balloon for CloudHypervisorMachine {
    async fn set_target(&self, memory: Bytes) -> Result<()> {
        let info = self.shared.info().await?;
        let resize = wire::Resize {
            desired_balloon: Some(memory_of(&info).saturating_sub(memory.get())),
            ..wire::Resize::default()
        };
        self.resize("change the balloon", &resize).await
    }

    async fn actual(&self) -> Result<Bytes> {
        Ok(Bytes::new(self.shared.info().await?.memory_actual_size))
    }
}

#[async_trait]
impl Hotplug for CloudHypervisorMachine {
    async fn attach_disk(&self, config: &DiskConfig) -> Result<()> {
        let id = disk_id(&config.name);
        if self.is_detaching(&id) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("the guest has not let go of the disk {} yet", config.name),
            ));
        }
        if self.attached_disks().await?.contains(&id) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("a disk {} is attached already", config.name),
            ));
        }
        let mut wire = disk(config)?;
        let mut linked = None;
        if self.shared.record.confined {
            let link = self.within_reach(config, &id)?;
            wire.path.clone_from(&link);
            linked = Some(link);
        }
        let added = self
            .shared
            .client
            .put_json("vm.add-disk", &wire, CALL_DEADLINE)
            .await;
        if let (Err(_), Some(link)) = (&added, linked) {
            let _ = std::fs::remove_file(link);
        }
        match added {
            // The identifier is taken until the guest lets go, though the config no longer has it: a keeper before this one asked.
            Err(error) if error.says("not unique") || error.says("already exists") => {
                Err(Error::new(
                    ErrorKind::Conflict,
                    format!("the guest has not let go of the disk {} yet", config.name),
                )
                .with_source(error))
            }
            added => {
                let what = format!("attach the disk {}", config.name);
                self.shared.answered(&what, async { added }).await
            }
        }
    }

    async fn request_detach_disk(&self, name: &str) -> Result<()> {
        let id = disk_id(name);
        if self.is_detaching(&id) {
            return Ok(());
        }
        if !self.attached_disks().await?.contains(&id) {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("no disk {name} is attached"),
            ));
        }
        // Marked first, since the guest may be quicker than the answer.
        self.detaching(|detaching| detaching.insert(id.clone()));
        let body = wire::RemoveDevice { id: id.clone() };
        let asked = self
            .shared
            .answered(
                "ask the guest to let go of a disk",
                self.shared
                    .client
                    .put_json("vm.remove-device", &body, CALL_DEADLINE),
            )
            .await;
        if asked.is_err() {
            self.detaching(|detaching| detaching.remove(&id));
        }
        asked
    }

    async fn change_medium(&self, name: &str, _medium: Option<&Medium>) -> Result<()> {
        Err(Error::new(
            ErrorKind::NotFound,
            format!("no drive {name}: Cloud Hypervisor has no drive whose medium can be changed"),
        ))
    }

    async fn attach_nic(&self, _nic: &NicConfig) -> Result<()> {
        Err(no_network())
    }

    async fn request_detach_nic(&self, mac: MacAddr) -> Result<()> {
        Err(Error::new(
            ErrorKind::NotFound,
            format!("no network interface {mac} is attached"),
        ))
    }
}

fn no_network() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "Cloud Hypervisor has no network of its own",
    )
}

impl CloudHypervisorMachine {
    fn detaching<T>(&self, change: impl FnOnce(&mut std::collections::HashSet<String>) -> T) -> T {
        change(
            &mut self
                .shared
                .detaching
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    fn is_detaching(&self, id: &str) -> bool {
        self.detaching(|detaching| detaching.contains(id))
    }

    /// Identifiers of the disks that the machine's config has; one that is being detached is not among them.
    async fn attached_disks(&self) -> Result<Vec<String>> {
        let info = self.shared.info().await?;
        let disks = info.config.disks.unwrap_or_default();
        Ok(disks.into_iter().filter_map(|disk| disk.id).collect())
    }

    /// Makes a disk that came after the start reachable for a confined hypervisor: by a second name in its own directory.
    fn within_reach(&self, config: &DiskConfig, id: &str) -> Result<PathBuf> {
        let link = self.shared.record.workplace.join(id);
        let _ = std::fs::remove_file(&link);
        std::fs::hard_link(&config.path, &link).map_err(|error| {
            Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the disk {} can't be attached: the hypervisor is confined to files that it knew at its start, and {} can't be linked into its directory",
                    config.name,
                    config.path.display()
                ),
            )
            .with_source(error)
            .with_hint("name the disk in the spec and start the VM anew, or keep the file on the file system of the VM's directory")
        })?;
        Ok(link)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_tolerate_what_they_do_not_know() {
        let counters: Counters = serde_json::from_str(
            r#"{"disk-root":{"read_bytes":5,"write_bytes":7,"read_latency_avg":1.5},"disk-data":{"read_bytes":18446744073709551615},"_net1":{"rx_bytes":9}}"#,
        )
        .unwrap();
        assert_eq!(
            sum_blocks(&counters),
            BlockTotals {
                read_bytes: u64::MAX,
                written_bytes: 7
            }
        );
        assert_eq!(sum_blocks(&Counters::new()), BlockTotals::default());
    }
}
