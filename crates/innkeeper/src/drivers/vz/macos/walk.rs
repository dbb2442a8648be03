//! Makes the objects of a plan, in its order. Runs on the machine's queue.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::time::Duration;

use innkeeper_vz as vz;
use innkeeper_vz::VzError;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};

use super::super::objects::*;

/// What a plan names and the launch has opened.
pub(super) struct Opened {
    /// The guest's ends of the ports, by name.
    pub(super) ports: HashMap<String, UnixStream>,
    /// The machine's identifier.
    pub(super) identifier: vz::MachineIdentifier,
}

/// Makes a configuration of a plan.
pub(super) fn walk(plan: &MachinePlan, mut opened: Opened) -> Result<vz::Configuration, VzError> {
    let boot = match &plan.boot_loader {
        BootLoader::Linux {
            kernel,
            initial_ramdisk,
            command_line,
        } => vz::BootLoader::linux(kernel, initial_ramdisk.as_deref(), command_line)?,
        BootLoader::Efi { variables } => vz::BootLoader::efi(variables)?,
        BootLoader::MacOs => vz::BootLoader::macos()?,
    };
    let platform = match &plan.platform {
        Platform::Generic {
            nested_virtualization,
            ..
        } => vz::Platform::generic(Some(&opened.identifier), *nested_virtualization)?,
        Platform::Mac {
            hardware_model,
            auxiliary_storage,
            ..
        } => {
            let model = std::fs::read(hardware_model).map_err(|error| {
                VzError::missing(format!(
                    "hardware model at {}: {error}",
                    hardware_model.display()
                ))
            })?;
            vz::Platform::mac(&opened.identifier, &model, auxiliary_storage)?
        }
    };
    let cpus = usize::try_from(plan.cpus).unwrap_or(usize::MAX);
    let mut configuration = vz::Configuration::new(cpus, plan.memory, &boot, Some(&platform));
    for device in &plan.storage {
        configuration.add_storage(match device {
            StorageDevice::VirtioBlock {
                identifier,
                attachment,
            } => vz::StorageDevice::virtio(&storage(attachment)?, Some(identifier))?,
            StorageDevice::Nvme { attachment } => vz::StorageDevice::nvme(&storage(attachment)?)?,
            StorageDevice::UsbMassStorage { attachment } => {
                vz::StorageDevice::usb(&storage(attachment)?)?
            }
        });
    }
    if let Some(controller) = &plan.usb_controller {
        configuration.add_usb_controller()?;
        for stick in &controller.sticks {
            configuration.add_usb_stick(&storage(&stick.attachment)?, stick.uuid)?;
        }
    }
    for device in &plan.networks {
        configuration.add_network(&device.mac, &network(&device.attachment)?)?;
    }
    for device in &plan.shares {
        configuration.add_share(&device.tag, &share(&device.share)?)?;
    }
    for device in &plan.graphics {
        configuration.add_graphics(&graphics(device))?;
    }
    for keyboard in &plan.keyboards {
        configuration.add_keyboard(match keyboard {
            Keyboard::Usb => vz::Keyboard::Usb,
            Keyboard::Mac => vz::Keyboard::Mac,
        })?;
    }
    for pointer in &plan.pointers {
        configuration.add_pointer(match pointer {
            PointingDevice::UsbScreenCoordinate => vz::Pointer::UsbScreenCoordinate,
            PointingDevice::MacTrackpad => vz::Pointer::MacTrackpad,
        })?;
    }
    for streams in &plan.sound {
        let streams: Vec<vz::SoundStream> = streams
            .iter()
            .map(|stream| match stream {
                SoundStream::Output => vz::SoundStream::Output,
                SoundStream::Input => vz::SoundStream::Input,
            })
            .collect();
        configuration.add_sound(&streams)?;
    }
    for attachment in &plan.serial {
        configuration.add_serial(&serial(attachment, &mut opened)?);
    }
    for ports in &plan.consoles {
        let mut made = Vec::new();
        for port in ports {
            made.push(vz::ConsolePort {
                name: port.name.clone(),
                is_console: port.is_console,
                attachment: serial(&port.attachment, &mut opened)?,
                is_spice_agent: matches!(port.attachment, SerialAttachment::SpiceAgent { .. }),
            });
        }
        configuration.add_console(&vz::Console(made))?;
    }
    if plan.entropy {
        configuration.add_entropy();
    }
    if plan.balloon.is_some() {
        configuration.add_balloon();
    }
    if plan.socket {
        configuration.add_socket();
    }
    Ok(configuration)
}

/// Makes a disk's attachment.
pub(super) fn storage(attachment: &StorageAttachment) -> Result<vz::StorageAttachment, VzError> {
    let mode = |synchronization: &Synchronization| match synchronization {
        Synchronization::Full => vz::Synchronization::Full,
        Synchronization::None => vz::Synchronization::None,
    };
    match attachment {
        StorageAttachment::DiskImage {
            path,
            read_only,
            caching,
            synchronization,
        } => vz::StorageAttachment::disk_image(
            path,
            *read_only,
            match caching {
                Caching::Automatic => vz::Caching::Automatic,
                Caching::Cached => vz::Caching::Cached,
                Caching::Uncached => vz::Caching::Uncached,
            },
            match synchronization {
                ImageSynchronization::Full => vz::ImageSynchronization::Full,
                ImageSynchronization::Fsync => vz::ImageSynchronization::Fsync,
                ImageSynchronization::None => vz::ImageSynchronization::None,
            },
        ),
        StorageAttachment::BlockDevice {
            device,
            read_only,
            synchronization,
        } => {
            let file = OpenOptions::new()
                .read(true)
                .write(!read_only)
                .open(device)
                .map_err(|error| {
                    VzError::missing(format!("block device {}: {error}", device.display()))
                })?;
            vz::StorageAttachment::block_device(file.into(), *read_only, mode(synchronization))
        }
        StorageAttachment::Network {
            url,
            timeout_ms,
            read_only,
            synchronization,
        } => vz::StorageAttachment::network(
            url,
            Duration::from_millis(*timeout_ms),
            *read_only,
            mode(synchronization),
        ),
    }
}

fn network(attachment: &NetworkAttachment) -> Result<vz::NetworkAttachment, VzError> {
    match attachment {
        NetworkAttachment::Nat => Ok(vz::NetworkAttachment::nat()),
        NetworkAttachment::Bridged { interface } => vz::NetworkAttachment::bridged(interface),
        NetworkAttachment::FileHandle { local, peer, mtu } => {
            let socket = datagram_socket(local, peer, mtu.unwrap_or(1500)).map_err(|error| {
                VzError::missing(format!("network at {}: {error}", peer.display()))
            })?;
            vz::NetworkAttachment::file_handle(socket, *mtu)
        }
        NetworkAttachment::Vmnet { mode, subnet } => {
            let mode = match mode {
                VmnetMode::Host => vz::VmnetMode::Host,
                VmnetMode::Shared => vz::VmnetMode::Shared,
            };
            vz::NetworkAttachment::vmnet(&vz::VmnetNetwork::new(mode, *subnet)?)
        }
    }
}

/// Frames that wait in a socket: so many to be sent, four times as many to be received (VZFileHandleNetworkDeviceAttachment.h).
const FRAMES: usize = 256;

fn datagram_socket(local: &Path, peer: &Path, mtu: u32) -> std::io::Result<OwnedFd> {
    let frame = usize::try_from(mtu).unwrap_or(usize::MAX / 8) + 18;
    let socket = UnixDatagram::bind(local)?;
    socket.connect(peer)?;
    set_socket_send_buffer_size(&socket, frame * FRAMES)?;
    set_socket_recv_buffer_size(&socket, frame * FRAMES * 4)?;
    Ok(socket.into())
}

fn share(share: &DirectoryShare) -> Result<vz::DirectoryShare, VzError> {
    let directory = |directory: &SharedDirectory| vz::SharedDirectory {
        path: directory.path.clone(),
        read_only: directory.read_only,
    };
    match share {
        DirectoryShare::Single(single) => vz::DirectoryShare::single(&directory(single)),
        DirectoryShare::Multiple(folders) => {
            let folders: Vec<(String, vz::SharedDirectory)> = folders
                .iter()
                .map(|(name, folder)| (name.clone(), directory(folder)))
                .collect();
            vz::DirectoryShare::multiple(&folders)
        }
        DirectoryShare::Rosetta(caching) => {
            let caching = caching.as_ref().map(|caching| match caching {
                RosettaCaching::UnixSocket(path) => vz::RosettaCaching::UnixSocket(path.clone()),
                RosettaCaching::AbstractSocket(name) => {
                    vz::RosettaCaching::AbstractSocket(name.clone())
                }
            });
            vz::DirectoryShare::rosetta(caching.as_ref())
        }
    }
}

fn graphics(device: &GraphicsDevice) -> vz::Graphics {
    match device {
        GraphicsDevice::Virtio(scanouts) => vz::Graphics::Virtio(
            scanouts
                .iter()
                .map(|scanout| vz::Display {
                    width: scanout.width,
                    height: scanout.height,
                    pixels_per_inch: 0,
                })
                .collect(),
        ),
        GraphicsDevice::Mac(displays) => vz::Graphics::Mac(
            displays
                .iter()
                .map(|display| vz::Display {
                    width: display.width,
                    height: display.height,
                    pixels_per_inch: display.pixels_per_inch,
                })
                .collect(),
        ),
    }
}

fn serial(
    attachment: &SerialAttachment,
    opened: &mut Opened,
) -> Result<vz::SerialAttachment, VzError> {
    match attachment {
        SerialAttachment::File { path, append } => vz::SerialAttachment::file(path, *append),
        SerialAttachment::Handles { name } => {
            let missing = || VzError::missing(format!("socket for the port {name}"));
            let end = opened.ports.remove(name).ok_or_else(missing)?;
            let other = end.try_clone().map_err(|_| missing())?;
            Ok(vz::SerialAttachment::handles(
                Some(end.into()),
                Some(other.into()),
            ))
        }
        SerialAttachment::SpiceAgent { shares_clipboard } => {
            vz::SerialAttachment::spice_agent(*shares_clipboard)
        }
    }
}
