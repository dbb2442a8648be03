//! Which macOS a plan needs, object by object. Pure.
//!
//! Sources: the availability marks of Apple's headers.

use super::host::Version;
use super::objects::*;

/// Something in a plan that not every macOS has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// First version of macOS that has it.
    pub since: Version,
    /// The spec's field that asks for it; empty if none does.
    pub field: String,
    /// What it is, for a sentence.
    pub what: &'static str,
}

impl StorageAttachment {
    fn since(&self) -> (Version, &'static str) {
        match self {
            StorageAttachment::DiskImage { .. } => ((12, 0), "a disk image's cache mode"),
            StorageAttachment::BlockDevice { .. } => ((14, 0), "a block device as a disk"),
            StorageAttachment::Network { .. } => ((14, 0), "a network block device"),
        }
    }
}

impl MachinePlan {
    /// Tells what in this plan needs which macOS, in the order of the plan.
    pub fn needs(&self) -> Vec<Requirement> {
        let mut needs = Vec::new();
        let mut need = |(since, what): (Version, &'static str), field: &str| {
            needs.push(Requirement {
                since,
                field: field.to_owned(),
                what,
            });
        };
        match &self.boot_loader {
            BootLoader::Linux { .. } => need(((11, 0), "a Linux kernel"), "boot.firmware"),
            BootLoader::Efi { .. } => need(((13, 0), "UEFI"), "boot.firmware"),
            BootLoader::MacOs => need(((12, 0), "a macOS guest"), ""),
        }
        match &self.platform {
            Platform::Generic {
                nested_virtualization,
                ..
            } => {
                need(((13, 0), "a machine identifier"), "");
                if *nested_virtualization {
                    need(((15, 0), "nested virtualization"), "nested");
                }
            }
            Platform::Mac { .. } => need(((12, 0), "a macOS guest"), ""),
        }
        for device in &self.storage {
            match device {
                StorageDevice::VirtioBlock {
                    identifier,
                    attachment,
                } => {
                    need(((12, 3), "a disk's serial"), &disk(identifier));
                    need(attachment.since(), &disk(identifier));
                }
                StorageDevice::Nvme { attachment } => {
                    need(((14, 0), "an NVMe drive"), "disks");
                    need(attachment.since(), "disks");
                }
                StorageDevice::UsbMassStorage { attachment } => {
                    need(((13, 0), "a USB disk"), "disks");
                    need(attachment.since(), "disks");
                }
            }
        }
        if let Some(controller) = &self.usb_controller {
            need(((15, 0), "a USB controller"), "");
            for stick in &controller.sticks {
                need(stick.attachment.since(), &disk(&stick.name));
            }
        }
        for network in &self.networks {
            match &network.attachment {
                NetworkAttachment::Nat | NetworkAttachment::Bridged { .. } => {}
                NetworkAttachment::FileHandle { mtu, .. } => {
                    if mtu.is_some() {
                        need(((13, 0), "another MTU than 1500"), "networks");
                    }
                }
                NetworkAttachment::Vmnet { .. } => {
                    need(((26, 0), "a network of vmnet"), "networks");
                }
            }
        }
        for device in &self.shares {
            match &device.share {
                DirectoryShare::Rosetta(caching) => {
                    need(((13, 0), "Rosetta in a guest"), "shares");
                    if caching.is_some() {
                        need(((14, 0), "a cache for Rosetta"), "shares");
                    }
                }
                _ => need(((12, 0), "a shared folder"), "shares"),
            }
        }
        for graphics in &self.graphics {
            match graphics {
                GraphicsDevice::Virtio(_) => need(((13, 0), "a virtio display"), ""),
                GraphicsDevice::Mac(_) => need(((12, 0), "a Mac's display"), ""),
            }
        }
        for keyboard in &self.keyboards {
            match keyboard {
                Keyboard::Usb => need(((12, 0), "a USB keyboard"), ""),
                Keyboard::Mac => need(((14, 0), "a Mac's keyboard"), ""),
            }
        }
        for pointer in &self.pointers {
            match pointer {
                PointingDevice::UsbScreenCoordinate => need(((12, 0), "a USB tablet"), ""),
                PointingDevice::MacTrackpad => need(((13, 0), "a trackpad"), ""),
            }
        }
        if !self.sound.is_empty() {
            need(((12, 0), "sound"), "");
        }
        if !self.consoles.is_empty() {
            need(((13, 0), "a console device with ports"), "consoles");
        }
        needs
    }
}

fn disk(name: &str) -> String {
    format!("disks.{name}")
}
