//! Decides, without looking at anything, which objects make a VM. What a spec can't ask for yet is added by methods of the plan.
//!
//! ```text
//!  MachineConfig + VzHost ── plan ──► MachinePlan ── launch (macOS) ──► VZVirtualMachine
//! ```

use std::path::{Path, PathBuf};

use innkeeper_api::ErrorKind;

use super::host::VzHost;
use super::objects::*;
use crate::driver::{BootConfig, DiskConfig, MachineConfig};
use crate::error::{Error, Result};
use crate::spec::{Bytes, DiskBus, DiskCache};

/// Name of the port that the guest agent opens.
pub const AGENT_PORT: &str = "org.innkeeper.agent.0";

/// Name of the first serial port among the consoles.
pub const SERIAL: &str = "serial";

/// File of a generic machine's identifier, in the VM's platform directory.
const GENERIC_IDENTIFIER: &str = "machine-identifier";

/// Words before a kernel's own command line: the serial port is the console.
const CONSOLE: &str = "console=hvc0";

/// Decides which objects make a VM.
///
/// Errors: `Unsupported` for what `check` would have named.
pub fn plan(config: &MachineConfig, host: &VzHost) -> Result<MachinePlan> {
    let boot_loader = match &config.boot {
        BootConfig::Direct {
            kernel,
            initrd,
            cmdline,
        } => BootLoader::Linux {
            kernel: kernel.clone(),
            initial_ramdisk: initrd.clone(),
            command_line: format!("{CONSOLE} {cmdline}").trim_end().to_owned(),
        },
        BootConfig::Uefi {
            variables,
            secure_boot: false,
        } => BootLoader::Efi {
            variables: variables.clone(),
        },
        BootConfig::Uefi { .. } | BootConfig::Bios => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("VM {} can't boot this way here", config.name),
            ));
        }
    };
    let hotplug = host.macos >= (15, 0);
    let mut plan = MachinePlan {
        cpus: config.cpus,
        memory: config.memory.get(),
        boot_loader,
        platform: Platform::Generic {
            machine_identifier: config.platform.join(GENERIC_IDENTIFIER),
            nested_virtualization: config.nested,
        },
        storage: Vec::new(),
        usb_controller: hotplug.then(|| UsbController { sticks: Vec::new() }),
        networks: Vec::new(),
        shares: config
            .shares
            .iter()
            .map(|share| FileSystemDevice {
                tag: share.tag.clone(),
                share: DirectoryShare::Single(SharedDirectory {
                    path: share.host.clone(),
                    read_only: share.read_only,
                }),
            })
            .collect(),
        graphics: Vec::new(),
        keyboards: Vec::new(),
        pointers: Vec::new(),
        sound: Vec::new(),
        serial: vec![handles(SERIAL)],
        consoles: vec![console_ports(config)],
        entropy: true,
        balloon: config.memory_target.map(|target| Balloon {
            target: target.get(),
        }),
        socket: config.vsock.is_some(),
    };
    for disk in &config.disks {
        plan.add_disk(disk, &config.id)?;
    }
    // What its NAT can't do, forwards and a network that is closed, is refused before.
    for nic in &config.nics {
        plan.add_network(nic.mac, NetworkAttachment::Nat);
    }
    Ok(plan)
}

fn handles(name: &str) -> SerialAttachment {
    SerialAttachment::Handles {
        name: name.to_owned(),
    }
}

/// The agent's port first, then the consoles: all on one device.
fn console_ports(config: &MachineConfig) -> Vec<ConsolePort> {
    let port = |name: &str, is_console| ConsolePort {
        name: Some(name.to_owned()),
        is_console,
        attachment: handles(name),
    };
    std::iter::once(port(AGENT_PORT, false))
        .chain(
            config
                .consoles
                .iter()
                .map(|console| port(&console.name, true)),
        )
        .collect()
}

/// Tells where a disk's blocks come from.
///
/// Errors: `Unsupported` for a cache mode that there is none of.
pub fn disk_image(disk: &DiskConfig) -> Result<StorageAttachment> {
    let (caching, synchronization) = match disk.cache {
        DiskCache::Writeback => (Caching::Cached, ImageSynchronization::Full),
        DiskCache::None => (Caching::Uncached, ImageSynchronization::Full),
        DiskCache::Unsafe => (Caching::Cached, ImageSynchronization::None),
        DiskCache::Writethrough => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("disk {}: {WRITETHROUGH}", disk.name),
            ));
        }
    };
    Ok(StorageAttachment::DiskImage {
        path: disk.path.clone(),
        read_only: disk.read_only,
        caching,
        synchronization,
    })
}

/// Why there is no such cache mode.
pub(super) const WRITETHROUGH: &str =
    "Virtualization.framework does not write through its cache at every write";

/// Makes the UUID of a USB stick from the VM's id and the disk's name, so that it is the same whenever it is asked for.
///
/// FNV-1a over both, 128 bits, with the version and the variant of a UUID made by a rule of one's own (RFC 9562, version 8).
pub fn stick_uuid(id: &str, name: &str) -> [u8; 16] {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let bytes = id.bytes().chain([0]).chain(name.bytes());
    let hash = bytes.fold(OFFSET, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(PRIME)
    });
    let mut uuid = hash.to_be_bytes();
    uuid[6] = (uuid[6] & 0x0f) | 0x80;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    uuid
}

/// A macOS guest: what its restore image asked for, and where its own things are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MacGuest {
    /// CPUs: at least what the restore image asks for.
    pub cpus: u32,
    /// Memory: at least what the restore image asks for.
    pub memory: Bytes,
    /// Directory of the machine's own things: `mac-machine-identifier`, `hardware-model`, `auxiliary-storage`.
    pub platform: PathBuf,
    /// Its disk.
    pub disk: DiskConfig,
    /// Its displays.
    pub displays: Vec<MacDisplay>,
}

/// Decides which objects make a macOS guest, with a display, a Mac's keyboard and trackpad, and sound; without a network.
///
/// Errors: as [`disk_image`].
pub fn mac_guest(guest: &MacGuest) -> Result<MachinePlan> {
    let file = |name: &str| guest.platform.join(name);
    Ok(MachinePlan {
        cpus: guest.cpus,
        memory: guest.memory.get(),
        boot_loader: BootLoader::MacOs,
        platform: Platform::Mac {
            machine_identifier: file("mac-machine-identifier"),
            hardware_model: file("hardware-model"),
            auxiliary_storage: file("auxiliary-storage"),
        },
        storage: vec![StorageDevice::VirtioBlock {
            identifier: guest.disk.name.clone(),
            attachment: disk_image(&guest.disk)?,
        }],
        usb_controller: None,
        networks: Vec::new(),
        shares: Vec::new(),
        graphics: vec![GraphicsDevice::Mac(guest.displays.clone())],
        // Guests before macOS 13 know the USB devices alone; later ones take the first that they know.
        keyboards: vec![Keyboard::Mac, Keyboard::Usb],
        pointers: vec![
            PointingDevice::MacTrackpad,
            PointingDevice::UsbScreenCoordinate,
        ],
        sound: vec![vec![SoundStream::Output, SoundStream::Input]],
        serial: Vec::new(),
        consoles: Vec::new(),
        entropy: true,
        balloon: None,
        socket: true,
    })
}

impl MachinePlan {
    fn add_disk(&mut self, disk: &DiskConfig, id: &str) -> Result<()> {
        let attachment = disk_image(disk)?;
        match (disk.bus, &mut self.usb_controller) {
            (DiskBus::Virtio, _) => self.storage.push(StorageDevice::VirtioBlock {
                identifier: disk.name.clone(),
                attachment,
            }),
            (DiskBus::Nvme, _) => self.storage.push(StorageDevice::Nvme { attachment }),
            (DiskBus::Usb, None) => self
                .storage
                .push(StorageDevice::UsbMassStorage { attachment }),
            (DiskBus::Usb, Some(controller)) => controller.sticks.push(UsbStick {
                name: disk.name.clone(),
                uuid: stick_uuid(id, &disk.name),
                attachment,
            }),
        }
        Ok(())
    }

    /// Adds a screen with scanouts, a keyboard and a tablet, for a guest that is no Mac.
    pub fn add_desktop(&mut self, scanouts: Vec<Scanout>) {
        self.graphics.push(GraphicsDevice::Virtio(scanouts));
        self.keyboards.push(Keyboard::Usb);
        self.pointers.push(PointingDevice::UsbScreenCoordinate);
    }

    /// Adds a sound device.
    pub fn add_sound(&mut self, streams: Vec<SoundStream>) {
        self.sound.push(streams);
    }

    /// Adds a port for the guest's SPICE agent, by which it shares the clipboard.
    pub fn add_spice_agent(&mut self, shares_clipboard: bool) {
        let port = ConsolePort {
            name: None,
            is_console: false,
            attachment: SerialAttachment::SpiceAgent { shares_clipboard },
        };
        match self.consoles.last_mut() {
            Some(ports) => ports.push(port),
            None => self.consoles.push(vec![port]),
        }
    }

    /// Adds Rosetta, which the guest mounts under a tag.
    pub fn add_rosetta(&mut self, tag: &str, caching: Option<RosettaCaching>) {
        self.shares.push(FileSystemDevice {
            tag: tag.to_owned(),
            share: DirectoryShare::Rosetta(caching),
        });
    }

    /// Adds several folders under one tag, each below its name.
    pub fn add_folders(&mut self, tag: &str, folders: Vec<(String, SharedDirectory)>) {
        self.shares.push(FileSystemDevice {
            tag: tag.to_owned(),
            share: DirectoryShare::Multiple(folders),
        });
    }

    /// Adds a network interface.
    pub fn add_network(&mut self, mac: innkeeper_net::MacAddr, attachment: NetworkAttachment) {
        self.networks.push(NetworkDevice {
            mac: mac.to_string(),
            attachment,
        });
    }

    /// Adds a block device of this Mac as a virtio disk.
    pub fn add_block_device(&mut self, name: &str, device: &Path, read_only: bool) {
        self.storage.push(StorageDevice::VirtioBlock {
            identifier: name.to_owned(),
            attachment: StorageAttachment::BlockDevice {
                device: device.to_owned(),
                read_only,
                synchronization: Synchronization::Full,
            },
        });
    }

    /// Adds a network block device as a virtio disk.
    pub fn add_network_disk(&mut self, name: &str, url: &str, timeout_ms: u64, read_only: bool) {
        self.storage.push(StorageDevice::VirtioBlock {
            identifier: name.to_owned(),
            attachment: StorageAttachment::Network {
                url: url.to_owned(),
                timeout_ms,
                read_only,
                synchronization: Synchronization::Full,
            },
        });
    }
}
