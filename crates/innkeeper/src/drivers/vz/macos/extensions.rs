//! What can be asked of a running machine beyond its end: pausing, saving, memory, disks, sockets, consoles.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;

use async_trait::async_trait;
use innkeeper_api::{ErrorKind, Unsupported};
use innkeeper_net::MacAddr;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::super::objects::UsbStick;
use super::super::plan::{AGENT_PORT, disk_image, stick_uuid};
use super::super::saved::{Details, STATE_FILE, hexadecimal};
use super::machine::{VzMachine, locked};
use super::vz_error;
use super::walk::storage;
use crate::driver::{
    Balloon, Channel, Consoles, DiskConfig, Hotplug, MachineEvent, Medium, NicConfig, Pause,
    SavedMachine, Suspend, Vsock,
};
use crate::error::{Error, Result};
use crate::spec::{Bytes, DiskBus};

/// Memory targets go in steps of this many bytes.
const MEMORY_STEP: u64 = 1024 * 1024;

/// Connections of a guest to one port that wait to be taken.
const BACKLOG: usize = 16;

#[async_trait]
impl Pause for VzMachine {
    async fn pause(&self) -> Result<()> {
        let machine = self.shared.machine()?;
        let paused = machine.pause().await;
        paused.map_err(|error| vz_error(error, "macOS did not pause the machine"))
    }

    async fn resume(&self) -> Result<()> {
        let machine = self.shared.machine()?;
        let resumed = machine.resume().await;
        resumed.map_err(|error| vz_error(error, "macOS did not resume the machine"))
    }
}

#[async_trait]
impl Suspend for VzMachine {
    async fn save(&self, directory: &Path) -> Result<SavedMachine> {
        let file = directory.join(STATE_FILE);
        let machine = self.shared.machine()?;
        machine
            .save(&file)
            .await
            .map_err(|error| vz_error(error, "macOS did not save the machine"))?;
        let synced = tokio::task::spawn_blocking({
            let directory = directory.to_owned();
            move || {
                File::open(file)?
                    .sync_all()
                    .and_then(|()| File::open(directory)?.sync_all())
            }
        });
        match synced.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Error::io("can't keep the saved state", error)),
            Err(error) => {
                return Err(
                    Error::new(ErrorKind::Failure, "can't keep the saved state").with_source(error)
                );
            }
        }
        let details = Details {
            file: STATE_FILE.to_owned(),
            machine_identifier: hexadecimal(self.shared.identifier.as_bytes()),
            plan: locked(&self.shared.plan).clone(),
        };
        Ok(SavedMachine {
            directory: directory.to_owned(),
            version: self.shared.build.clone(),
            details: details.to_value()?,
        })
    }

    async fn obstacle(&self) -> Result<Option<Unsupported>> {
        Ok(self
            .shared
            .machine()?
            .unsaveable()
            .map(|error| Unsupported {
                field: String::new(),
                reason: format!("macOS can't save this machine: {error}"),
                hint: None,
            }))
    }
}

#[async_trait]
impl Balloon for VzMachine {
    async fn set_target(&self, memory: Bytes) -> Result<()> {
        let largest = locked(&self.shared.plan).memory;
        let target = memory.get() / MEMORY_STEP * MEMORY_STEP;
        if target == 0 || target > largest {
            return Err(Error::new(
                ErrorKind::BadInput,
                format!("a memory target is between 1 MiB and the machine's {largest} bytes"),
            ));
        }
        let machine = self.shared.machine()?;
        let set = machine.set_memory_target(target).await;
        set.map_err(|error| vz_error(error, "macOS did not take the memory target"))
    }

    async fn actual(&self) -> Result<Bytes> {
        Err(Error::new(
            ErrorKind::Unsupported,
            "Virtualization.framework does not tell how far a guest has followed its memory target",
        ))
    }
}

impl VzMachine {
    fn has_stick(&self, name: &str) -> bool {
        let plan = locked(&self.shared.plan);
        let sticks = plan.usb_controller.iter().flat_map(|it| &it.sticks);
        sticks.into_iter().any(|stick| stick.name == name)
    }

    fn only_usb<T>(what: &str) -> Result<T> {
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("Virtualization.framework can't {what} while the machine runs"),
        ))
    }
}

#[async_trait]
impl Hotplug for VzMachine {
    async fn attach_disk(&self, disk: &DiskConfig) -> Result<()> {
        if disk.bus != DiskBus::Usb {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "disk {}: Virtualization.framework attaches USB disks alone while the machine runs",
                    disk.name
                ),
            )
            .with_hint("set its bus to usb"));
        }
        if self.has_stick(&disk.name) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("a disk {} is attached already", disk.name),
            ));
        }
        let attachment = disk_image(disk)?;
        let uuid = stick_uuid(&self.shared.id, &disk.name);
        let planned = attachment.clone();
        self.shared
            .machine()?
            .attach_usb(uuid, move || storage(&planned))
            .await
            .map_err(|error| vz_error(error, format!("macOS did not attach disk {}", disk.name)))?;
        if let Some(controller) = &mut locked(&self.shared.plan).usb_controller {
            controller.sticks.push(UsbStick {
                name: disk.name.clone(),
                uuid,
                attachment,
            });
        }
        Ok(())
    }

    async fn request_detach_disk(&self, name: &str) -> Result<()> {
        if !self.has_stick(name) {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("no USB disk {name} is attached"),
            ));
        }
        self.shared
            .machine()?
            .detach_usb(stick_uuid(&self.shared.id, name))
            .await
            .map_err(|error| vz_error(error, format!("macOS did not detach disk {name}")))?;
        if let Some(controller) = &mut locked(&self.shared.plan).usb_controller {
            controller.sticks.retain(|stick| stick.name != name);
        }
        self.shared.tell(MachineEvent::Detached(name.to_owned()));
        Ok(())
    }

    async fn change_medium(&self, _name: &str, _medium: Option<&Medium>) -> Result<()> {
        Self::only_usb("change a medium")
    }

    async fn attach_nic(&self, _nic: &NicConfig) -> Result<()> {
        Self::only_usb("attach an interface")
    }

    async fn request_detach_nic(&self, _mac: MacAddr) -> Result<()> {
        Self::only_usb("detach an interface")
    }
}

/// Makes a channel of a connection's descriptor, which is a stream socket.
fn channel(descriptor: OwnedFd) -> std::io::Result<Box<dyn Channel>> {
    let stream = StdUnixStream::from(descriptor);
    stream.set_nonblocking(true)?;
    Ok(Box::new(UnixStream::from_std(stream)?))
}

#[async_trait]
impl Vsock for VzMachine {
    async fn connect(&self, port: u32) -> Result<Box<dyn Channel>> {
        let connected = self.shared.machine()?.connect(port).await;
        let descriptor = connected.map_err(|error| {
            Error::new(
                ErrorKind::Unreachable,
                format!("nothing in the guest answers on vsock port {port}"),
            )
            .with_source(error)
        })?;
        channel(descriptor)
            .map_err(|error| Error::io(format!("can't use vsock port {port}"), error))
    }

    async fn listen(&self, port: u32) -> Result<mpsc::Receiver<Box<dyn Channel>>> {
        let mut connections = self.shared.machine()?.listen(port).await.map_err(|error| {
            Error::new(
                ErrorKind::Conflict,
                format!("can't listen on vsock port {port}"),
            )
            .with_source(error)
        })?;
        let (sender, receiver) = mpsc::channel(BACKLOG);
        tokio::spawn(async move {
            loop {
                let descriptor = tokio::select! {
                    descriptor = connections.recv() => descriptor,
                    () = sender.closed() => None,
                };
                let Some(descriptor) = descriptor else {
                    return;
                };
                // One that can't be used is closed, which the guest sees.
                if let Ok(channel) = channel(descriptor)
                    && sender.send(channel).await.is_err()
                {
                    return;
                }
            }
        });
        Ok(receiver)
    }
}

#[async_trait]
impl Consoles for VzMachine {
    async fn open(&self, name: &str) -> Result<Box<dyn Channel>> {
        let consoles = |name: &&str| *name != AGENT_PORT;
        let found = Some(name).filter(consoles);
        let Some(port) = found.and_then(|name| self.shared.ports.get(name)) else {
            let mut names: Vec<&str> = self
                .shared
                .ports
                .keys()
                .map(String::as_str)
                .filter(consoles)
                .collect();
            names.sort_unstable();
            return Err(
                Error::new(ErrorKind::NotFound, format!("no console is named {name}"))
                    .with_hint(format!("there are: {}", names.join(", "))),
            );
        };
        port.open().await
    }
}
