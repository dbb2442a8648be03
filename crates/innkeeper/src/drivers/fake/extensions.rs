//! What a running fake can do beside running: pause, save, change its size and its devices, open consoles.
//!
//! What the contract asks of the caller is checked on the way or by the hypervisor process; what it lists as errors is answered as such.

use std::path::Path;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use innkeeper_api::{ErrorKind, Unsupported};
use innkeeper_net::MacAddr;
use tokio::net::UnixStream;

use super::control::{ControlAnswer, ControlRequest};
use super::machine::{FakeMachine, Shared};
use super::plan::{PlanDisk, PlanNic};
use super::restore::{FILE, VERSION};
use super::violated;
use crate::driver::{
    Balloon, BlockStatistics, BlockTotals, Channel, Consoles, DiskConfig, Hotplug, MachineSize,
    Medium, NicConfig, Pause, Resize, SavedMachine, Suspend,
};
use crate::error::{Error, Result};
use crate::spec::Bytes;

fn strange(answer: &ControlAnswer) -> Error {
    Error::new(
        ErrorKind::Failure,
        format!("the fake hypervisor answered {answer:?}"),
    )
}

impl FakeMachine {
    async fn done(&self, request: ControlRequest) -> Result<()> {
        match self.shared.link.ask(request).await? {
            ControlAnswer::Done => Ok(()),
            other => Err(strange(&other)),
        }
    }
}

#[async_trait]
impl BlockStatistics for FakeMachine {
    async fn block_totals(&self) -> Result<BlockTotals> {
        match self.shared.link.ask(ControlRequest::Blocks).await? {
            ControlAnswer::Blocks(read_bytes, written_bytes) => Ok(BlockTotals {
                read_bytes,
                written_bytes,
            }),
            other => Err(strange(&other)),
        }
    }
}

#[async_trait]
impl Pause for FakeMachine {
    async fn pause(&self) -> Result<()> {
        self.done(ControlRequest::Pause).await
    }

    async fn resume(&self) -> Result<()> {
        if self.shared.saving.load(Ordering::SeqCst) {
            self.shared
                .violated("its CPUs were let go while somebody waited for it to be saved");
        }
        self.done(ControlRequest::Resume).await
    }
}

impl Shared {
    fn violated(&self, what: &str) {
        let name = &self.record.name;
        violated(&self.record.violations, &format!("{name}: {what}"));
    }
}

/// Somebody waits for a save, until this is dropped.
struct Waits<'a>(&'a Shared);

impl<'a> Waits<'a> {
    fn begin(shared: &'a Shared) -> Self {
        if shared.saving.swap(true, Ordering::SeqCst) {
            shared.violated("it was asked to save while it was being saved");
        }
        Waits(shared)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.saving.store(false, Ordering::SeqCst);
    }
}

#[async_trait]
impl Suspend for FakeMachine {
    async fn save(&self, directory: &Path) -> Result<SavedMachine> {
        let _waits = Waits::begin(&self.shared);
        let request = ControlRequest::Save(directory.to_owned());
        match self.shared.link.ask_patiently(request).await? {
            ControlAnswer::Done => {}
            other => return Err(strange(&other)),
        }
        let path = directory.join(FILE);
        let text = std::fs::read(&path)
            .map_err(|error| Error::io(format!("can't read {}", path.display()), error))?;
        let details = serde_json::from_slice(&text).map_err(|error| {
            Error::new(ErrorKind::Failure, "what was saved can't be read").with_source(error)
        })?;
        Ok(SavedMachine {
            directory: directory.to_owned(),
            version: VERSION.to_owned(),
            details,
        })
    }

    async fn obstacle(&self) -> Result<Option<Unsupported>> {
        Ok(self.shared.record.shares.then(|| Unsupported {
            field: "shares".to_owned(),
            reason: "a VM with a shared folder can't be saved".to_owned(),
            hint: Some("stop it instead, or remove the shares while it is off".to_owned()),
        }))
    }
}

#[async_trait]
impl Resize for FakeMachine {
    async fn set_cpus(&self, count: u32) -> Result<()> {
        self.done(ControlRequest::Cpus(count)).await
    }

    async fn set_memory(&self, size: Bytes) -> Result<()> {
        self.done(ControlRequest::Memory(size.get())).await
    }

    async fn size(&self) -> Result<MachineSize> {
        match self.shared.link.ask(ControlRequest::Size).await? {
            ControlAnswer::Size(cpus, memory) => Ok(MachineSize {
                cpus,
                memory: Bytes::new(memory),
            }),
            other => Err(strange(&other)),
        }
    }
}

#[async_trait]
impl Balloon for FakeMachine {
    async fn set_target(&self, memory: Bytes) -> Result<()> {
        self.done(ControlRequest::Target(memory.get())).await
    }

    async fn actual(&self) -> Result<Bytes> {
        match self.shared.link.ask(ControlRequest::Actual).await? {
            ControlAnswer::Bytes(bytes) => Ok(Bytes::new(bytes)),
            other => Err(strange(&other)),
        }
    }
}

#[async_trait]
impl Hotplug for FakeMachine {
    async fn attach_disk(&self, disk: &DiskConfig) -> Result<()> {
        self.done(ControlRequest::AttachDisk(PlanDisk::of(disk)))
            .await
    }

    async fn request_detach_disk(&self, name: &str) -> Result<()> {
        self.done(ControlRequest::DetachDisk(name.to_owned())).await
    }

    async fn change_medium(&self, name: &str, medium: Option<&Medium>) -> Result<()> {
        let path = medium.map(|medium| medium.path.clone());
        self.done(ControlRequest::Medium(name.to_owned(), path))
            .await
    }

    async fn attach_nic(&self, nic: &NicConfig) -> Result<()> {
        self.done(ControlRequest::AttachNic(PlanNic::of(nic))).await
    }

    async fn request_detach_nic(&self, mac: MacAddr) -> Result<()> {
        self.done(ControlRequest::DetachNic(mac.to_string())).await
    }
}

#[async_trait]
impl Consoles for FakeMachine {
    async fn open(&self, name: &str) -> Result<Box<dyn Channel>> {
        let consoles = &self.shared.record.consoles;
        let Some(console) = consoles.iter().find(|console| console.name == name) else {
            let names: Vec<&str> = consoles
                .iter()
                .map(|console| console.name.as_str())
                .collect();
            return Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "there is no console {name}; there are: {}",
                    names.join(", ")
                ),
            ));
        };
        let stream = UnixStream::connect(&console.socket)
            .await
            .map_err(|error| {
                Error::io(
                    format!("can't connect to {}", console.socket.display()),
                    error,
                )
            })?;
        Ok(Box::new(stream))
    }
}
