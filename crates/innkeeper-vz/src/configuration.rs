//! A machine before it is made: devices are added one by one, then VZ is asked whether it can run that. To be made on the machine's queue.

use objc2::rc::Retained;
use objc2::runtime::ProtocolObject;
use objc2_foundation::{NSArray, NSUUID};
use objc2_virtualization::{
    VZAudioDeviceConfiguration, VZConsoleDeviceConfiguration,
    VZDirectorySharingDeviceConfiguration, VZGraphicsDeviceConfiguration, VZKeyboardConfiguration,
    VZNetworkDeviceConfiguration, VZPointingDeviceConfiguration, VZSerialPortConfiguration,
    VZStorageDeviceConfiguration, VZUSBDeviceConfiguration, VZVirtioEntropyDeviceConfiguration,
    VZVirtioSocketDeviceConfiguration, VZVirtioTraditionalMemoryBalloonDeviceConfiguration,
    VZVirtualMachineConfiguration, VZXHCIControllerConfiguration,
};

use crate::boot::{BootLoader, Platform};
use crate::devices::{
    Console, DirectoryShare, Graphics, Keyboard, Pointer, SerialAttachment, SoundStream, sound,
};
use crate::error::VzError;
use crate::host;
use crate::network::{NetworkAttachment, interface};
use crate::storage::{StorageAttachment, StorageDevice, usb_stick_on_controller};

/// A machine before it is made. Devices of a kind appear in the guest in the order in which they were added.
pub struct Configuration {
    object: Retained<VZVirtualMachineConfiguration>,
    storage: Vec<Retained<VZStorageDeviceConfiguration>>,
    networks: Vec<Retained<VZNetworkDeviceConfiguration>>,
    shares: Vec<Retained<VZDirectorySharingDeviceConfiguration>>,
    graphics: Vec<Retained<VZGraphicsDeviceConfiguration>>,
    keyboards: Vec<Retained<VZKeyboardConfiguration>>,
    pointers: Vec<Retained<VZPointingDeviceConfiguration>>,
    sound: Vec<Retained<VZAudioDeviceConfiguration>>,
    serial: Vec<Retained<VZSerialPortConfiguration>>,
    consoles: Vec<Retained<VZConsoleDeviceConfiguration>>,
    controller: Option<Vec<Retained<ProtocolObject<dyn VZUSBDeviceConfiguration>>>>,
    macs: Vec<String>,
}

impl Configuration {
    /// Makes a configuration. CPUs and memory must be within [`host::cpu_limits`] and [`host::memory_limits`].
    pub fn new(cpus: usize, memory: u64, boot: &BootLoader, platform: Option<&Platform>) -> Self {
        // SAFETY: on the machine's queue.
        let object = unsafe {
            let object = VZVirtualMachineConfiguration::new();
            object.setCPUCount(cpus);
            object.setMemorySize(memory);
            object.setBootLoader(Some(&boot.0));
            if let Some(platform) = platform {
                object.setPlatform(&platform.0);
            }
            object
        };
        Configuration {
            object,
            storage: Vec::new(),
            networks: Vec::new(),
            shares: Vec::new(),
            graphics: Vec::new(),
            keyboards: Vec::new(),
            pointers: Vec::new(),
            sound: Vec::new(),
            serial: Vec::new(),
            consoles: Vec::new(),
            controller: None,
            macs: Vec::new(),
        }
    }

    /// Adds a disk.
    pub fn add_storage(&mut self, device: StorageDevice) {
        self.storage.push(device.0);
    }

    /// Adds an xHCI controller, to which USB sticks can be attached while the machine runs (macOS 15).
    pub fn add_usb_controller(&mut self) -> Result<(), VzError> {
        host::need((15, 0), "a USB controller")?;
        self.controller.get_or_insert_default();
        Ok(())
    }

    /// Adds a USB stick on the controller; it is known by its UUID.
    pub fn add_usb_stick(
        &mut self,
        attachment: &StorageAttachment,
        uuid: [u8; 16],
    ) -> Result<(), VzError> {
        self.add_usb_controller()?;
        let stick = usb_stick_on_controller(attachment, uuid)?;
        if let Some(sticks) = &mut self.controller {
            sticks.push(ProtocolObject::from_retained(stick));
        }
        Ok(())
    }

    /// Adds a virtio network interface.
    pub fn add_network(
        &mut self,
        mac: &str,
        attachment: &NetworkAttachment,
    ) -> Result<(), VzError> {
        self.networks.push(interface(mac, attachment)?);
        self.macs.push(mac.to_owned());
        Ok(())
    }

    /// Adds a virtiofs device.
    pub fn add_share(&mut self, tag: &str, share: &DirectoryShare) -> Result<(), VzError> {
        self.shares.push(share.device(tag)?);
        Ok(())
    }

    /// Adds a graphics device.
    pub fn add_graphics(&mut self, graphics: &Graphics) -> Result<(), VzError> {
        self.graphics.push(graphics.object()?);
        Ok(())
    }

    /// Adds a keyboard.
    pub fn add_keyboard(&mut self, keyboard: Keyboard) -> Result<(), VzError> {
        self.keyboards.push(keyboard.object()?);
        Ok(())
    }

    /// Adds a pointing device.
    pub fn add_pointer(&mut self, pointer: Pointer) -> Result<(), VzError> {
        self.pointers.push(pointer.object()?);
        Ok(())
    }

    /// Adds a virtio sound device.
    pub fn add_sound(&mut self, streams: &[SoundStream]) -> Result<(), VzError> {
        self.sound.push(sound(streams)?);
        Ok(())
    }

    /// Adds a virtio serial port.
    pub fn add_serial(&mut self, attachment: &SerialAttachment) {
        self.serial.push(attachment.serial_port());
    }

    /// Adds a console device with its ports.
    pub fn add_console(&mut self, console: &Console) -> Result<(), VzError> {
        self.consoles.push(console.object()?);
        Ok(())
    }

    /// Adds a virtio source of random numbers.
    pub fn add_entropy(&mut self) {
        // SAFETY: on the machine's queue.
        unsafe {
            let device = VZVirtioEntropyDeviceConfiguration::new().into_super();
            self.object
                .setEntropyDevices(&NSArray::from_retained_slice(&[device]));
        }
    }

    /// Adds a virtio balloon.
    pub fn add_balloon(&mut self) {
        // SAFETY: on the machine's queue.
        unsafe {
            let device = VZVirtioTraditionalMemoryBalloonDeviceConfiguration::new().into_super();
            self.object
                .setMemoryBalloonDevices(&NSArray::from_retained_slice(&[device]));
        }
    }

    /// Adds a virtio socket device (vsock); VZ chooses the guest's context id.
    pub fn add_socket(&mut self) {
        // SAFETY: on the machine's queue.
        unsafe {
            let device = VZVirtioSocketDeviceConfiguration::new().into_super();
            self.object
                .setSocketDevices(&NSArray::from_retained_slice(&[device]));
        }
    }

    /// Hands all devices over to VZ and asks it whether it can run that.
    pub(crate) fn finish(&self) -> Result<Finished, VzError> {
        // SAFETY: on the machine's queue. A list whose setter macOS 11 does not have is set only if something is in it, and that was
        // asked for when it was made.
        unsafe {
            let object = &self.object;
            object.setStorageDevices(&NSArray::from_retained_slice(&self.storage));
            object.setNetworkDevices(&NSArray::from_retained_slice(&self.networks));
            object.setSerialPorts(&NSArray::from_retained_slice(&self.serial));
            if !self.shares.is_empty() {
                object.setDirectorySharingDevices(&NSArray::from_retained_slice(&self.shares));
            }
            if !self.graphics.is_empty() {
                object.setGraphicsDevices(&NSArray::from_retained_slice(&self.graphics));
            }
            if !self.keyboards.is_empty() {
                object.setKeyboards(&NSArray::from_retained_slice(&self.keyboards));
            }
            if !self.pointers.is_empty() {
                object.setPointingDevices(&NSArray::from_retained_slice(&self.pointers));
            }
            if !self.sound.is_empty() {
                object.setAudioDevices(&NSArray::from_retained_slice(&self.sound));
            }
            if !self.consoles.is_empty() {
                object.setConsoleDevices(&NSArray::from_retained_slice(&self.consoles));
            }
            if let Some(sticks) = &self.controller {
                let controller = VZXHCIControllerConfiguration::new();
                controller.setUsbDevices(&NSArray::from_retained_slice(sticks));
                object.setUsbControllers(&NSArray::from_retained_slice(&[controller.into_super()]));
            }
            object
                .validateWithError()
                .map_err(|error| VzError::from_ns(&error))?;
            let saving = host::need((14, 0), "saving a machine's state").and_then(|()| {
                object
                    .validateSaveRestoreSupportWithError()
                    .map_err(|error| VzError::from_ns(&error))
            });
            Ok(Finished {
                object: object.clone(),
                unsaveable: saving.err(),
                macs: self.macs.clone(),
            })
        }
    }
}

/// A configuration that VZ can run.
pub(crate) struct Finished {
    pub(crate) object: Retained<VZVirtualMachineConfiguration>,
    /// Why a machine made of it can't be saved, if it can't.
    pub(crate) unsaveable: Option<VzError>,
    /// Addresses of its interfaces, in their order.
    pub(crate) macs: Vec<String>,
}

/// Reads a UUID as bytes.
pub(crate) fn uuid_bytes(uuid: &NSUUID) -> [u8; 16] {
    uuid.as_bytes()
}
