//! The objects of Virtualization.framework that make a machine, each with every property that is set: the plan. Pure data.
//!
//! Names are Apple's, shortened, and each type says which class it stands for. Which macOS an object needs is told by
//! [`MachinePlan::needs`], since neither the compiler nor the bindings know. More can be planned than a spec can ask for today: displays, sound, Rosetta,
//! macOS guests, networks other than one's own.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A machine (`VZVirtualMachineConfiguration`). Devices of a kind appear in the guest in the order in which they stand here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachinePlan {
    /// `CPUCount`.
    pub cpus: u32,
    /// `memorySize`, in bytes; a multiple of 1 MiB.
    pub memory: u64,
    /// What loads the guest's system.
    pub boot_loader: BootLoader,
    /// What the machine is.
    pub platform: Platform,
    /// `storageDevices`.
    pub storage: Vec<StorageDevice>,
    /// `usbControllers`: one xHCI controller, or none.
    pub usb_controller: Option<UsbController>,
    /// `networkDevices`.
    pub networks: Vec<NetworkDevice>,
    /// `directorySharingDevices`.
    pub shares: Vec<FileSystemDevice>,
    /// `graphicsDevices`.
    pub graphics: Vec<GraphicsDevice>,
    /// `keyboards`.
    pub keyboards: Vec<Keyboard>,
    /// `pointingDevices`.
    pub pointers: Vec<PointingDevice>,
    /// `audioDevices`: the streams of each.
    pub sound: Vec<Vec<SoundStream>>,
    /// `serialPorts`: what each is attached to.
    pub serial: Vec<SerialAttachment>,
    /// `consoleDevices`: the ports of each.
    pub consoles: Vec<Vec<ConsolePort>>,
    /// Whether there is a `VZVirtioEntropyDeviceConfiguration`.
    pub entropy: bool,
    /// A `VZVirtioTraditionalMemoryBalloonDeviceConfiguration`, if there is one.
    pub balloon: Option<Balloon>,
    /// Whether there is a `VZVirtioSocketDeviceConfiguration`.
    pub socket: bool,
}

/// A balloon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balloon {
    /// `targetVirtualMachineMemorySize` after the start, in bytes; a multiple of 1 MiB.
    pub target: u64,
}

/// What loads the guest's system (`VZBootLoader`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootLoader {
    /// `VZLinuxBootLoader`.
    Linux {
        /// `kernelURL`: on Apple silicon an uncompressed `Image`.
        kernel: PathBuf,
        /// `initialRamdiskURL`.
        initial_ramdisk: Option<PathBuf>,
        /// `commandLine`.
        command_line: String,
    },
    /// `VZEFIBootLoader`.
    Efi {
        /// `variableStore`: made if it does not exist.
        variables: PathBuf,
    },
    /// `VZMacOSBootLoader`.
    MacOs,
}

/// What a machine is (`VZPlatformConfiguration`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Platform {
    /// `VZGenericPlatformConfiguration`.
    Generic {
        /// File of the `machineIdentifier`: made if it does not exist.
        machine_identifier: PathBuf,
        /// `nestedVirtualizationEnabled`.
        nested_virtualization: bool,
    },
    /// `VZMacPlatformConfiguration`.
    Mac {
        /// File of the `machineIdentifier`: made if it does not exist.
        machine_identifier: PathBuf,
        /// File of the `hardwareModel`, as the restore image gave it.
        hardware_model: PathBuf,
        /// `auxiliaryStorage`: made if it does not exist.
        auxiliary_storage: PathBuf,
    },
}

/// What the guest sees a disk as (`VZStorageDeviceConfiguration`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StorageDevice {
    /// `VZVirtioBlockDeviceConfiguration`.
    VirtioBlock {
        /// `blockDeviceIdentifier`: the guest sees it as the serial.
        identifier: String,
        /// Where its blocks come from.
        attachment: StorageAttachment,
    },
    /// `VZNVMExpressControllerDeviceConfiguration`. It has no serial.
    Nvme {
        /// Where its blocks come from.
        attachment: StorageAttachment,
    },
    /// `VZUSBMassStorageDeviceConfiguration` without a controller of its own, for macOS before 15: it stays for the machine's life.
    UsbMassStorage {
        /// Where its blocks come from.
        attachment: StorageAttachment,
    },
}

/// `VZXHCIControllerConfiguration`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsbController {
    /// `usbDevices`: the sticks that are there from the start.
    pub sticks: Vec<UsbStick>,
}

/// `VZUSBMassStorageDeviceConfiguration` on a controller: it can be detached while the machine runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsbStick {
    /// The disk's name.
    pub name: String,
    /// `uuid`, by which it is found again.
    pub uuid: [u8; 16],
    /// Where its blocks come from.
    pub attachment: StorageAttachment,
}

/// Where a disk's blocks come from (`VZStorageDeviceAttachment`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StorageAttachment {
    /// `VZDiskImageStorageDeviceAttachment`: a raw image.
    DiskImage {
        /// `URL`.
        path: PathBuf,
        /// `readOnly`.
        read_only: bool,
        /// `cachingMode`.
        caching: Caching,
        /// `synchronizationMode`.
        synchronization: ImageSynchronization,
    },
    /// `VZDiskBlockDeviceStorageDeviceAttachment`: a block device of this Mac.
    BlockDevice {
        /// The device, such as `/dev/rdisk4`; opened by the launch.
        device: PathBuf,
        /// `readOnly`.
        read_only: bool,
        /// `synchronizationMode`.
        synchronization: Synchronization,
    },
    /// `VZNetworkBlockDeviceStorageDeviceAttachment`.
    Network {
        /// `URL`: `nbd://HOST/EXPORT`, `nbd+unix:///EXPORT?socket=PATH`.
        url: String,
        /// `timeout`, in milliseconds; 0 waits for ever.
        timeout_ms: u64,
        /// `forcedReadOnly`.
        read_only: bool,
        /// `synchronizationMode`.
        synchronization: Synchronization,
    },
}

/// `VZDiskImageCachingMode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Caching {
    /// As Virtualization.framework sees fit.
    Automatic,
    /// In the page cache.
    Cached,
    /// Not in the page cache.
    Uncached,
}

/// `VZDiskImageSynchronizationMode`: what a guest's flush does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageSynchronization {
    /// Everything is on the medium itself.
    Full,
    /// Everything has left for the drive, which may still hold it in its cache.
    Fsync,
    /// Nothing.
    None,
}

/// `VZDiskSynchronizationMode`: what a guest's flush does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Synchronization {
    /// Everything is on the medium.
    Full,
    /// Nothing.
    None,
}

/// `VZVirtioNetworkDeviceConfiguration`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkDevice {
    /// `MACAddress`, such as `52:54:00:12:34:56`.
    pub mac: String,
    /// What it is attached to.
    pub attachment: NetworkAttachment,
}

/// What a network interface is attached to (`VZNetworkDeviceAttachment`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkAttachment {
    /// `VZNATNetworkDeviceAttachment`: the NAT of all machines of this Mac, with addresses that macOS chooses.
    Nat,
    /// `VZBridgedNetworkDeviceAttachment`. Needs the entitlement `com.apple.vm.networking`.
    Bridged {
        /// `interface`, such as `en0`.
        interface: String,
    },
    /// `VZFileHandleNetworkDeviceAttachment`: a datagram socket, a frame each.
    FileHandle {
        /// Where our end is bound; it must be a path that is free.
        local: PathBuf,
        /// Where the network listens.
        peer: PathBuf,
        /// `maximumTransmissionUnit`, if another than 1500.
        mtu: Option<u32>,
    },
    /// `VZVmnetNetworkDeviceAttachment`. Needs the entitlement `com.apple.vm.networking`.
    Vmnet {
        /// Who can be reached.
        mode: VmnetMode,
        /// The network's address and mask, if macOS does not choose them.
        subnet: Option<(Ipv4Addr, Ipv4Addr)>,
    },
}

/// Who can be reached in a network of vmnet's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmnetMode {
    /// This Mac and the other machines of the network.
    Host,
    /// The world too, by NAT.
    Shared,
}

/// `VZVirtioFileSystemDeviceConfiguration`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystemDevice {
    /// `tag`, under which the guest mounts it.
    pub tag: String,
    /// What it shows.
    pub share: DirectoryShare,
}

/// What a virtiofs device shows (`VZDirectoryShare`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DirectoryShare {
    /// `VZSingleDirectoryShare`.
    Single(SharedDirectory),
    /// `VZMultipleDirectoryShare`: each folder below its name.
    Multiple(Vec<(String, SharedDirectory)>),
    /// `VZLinuxRosettaDirectoryShare`, with `options`.
    Rosetta(Option<RosettaCaching>),
}

/// `VZSharedDirectory`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedDirectory {
    /// `URL`.
    pub path: PathBuf,
    /// `readOnly`.
    pub read_only: bool,
}

/// Where Rosetta keeps what it translated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RosettaCaching {
    /// `VZLinuxRosettaUnixSocketCachingOptions`: by a daemon in the guest that listens at this path.
    UnixSocket(String),
    /// `VZLinuxRosettaAbstractSocketCachingOptions`.
    AbstractSocket(String),
}

/// A graphics device (`VZGraphicsDeviceConfiguration`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GraphicsDevice {
    /// `VZVirtioGraphicsDeviceConfiguration`, with `scanouts`.
    Virtio(Vec<Scanout>),
    /// `VZMacGraphicsDeviceConfiguration`, with `displays`.
    Mac(Vec<MacDisplay>),
}

/// `VZVirtioGraphicsScanoutConfiguration`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scanout {
    /// `widthInPixels`.
    pub width: u32,
    /// `heightInPixels`.
    pub height: u32,
}

/// `VZMacGraphicsDisplayConfiguration`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MacDisplay {
    /// `widthInPixels`.
    pub width: u32,
    /// `heightInPixels`.
    pub height: u32,
    /// `pixelsPerInch`.
    pub pixels_per_inch: u32,
}

/// `VZKeyboardConfiguration`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keyboard {
    /// `VZUSBKeyboardConfiguration`.
    Usb,
    /// `VZMacKeyboardConfiguration`.
    Mac,
}

/// `VZPointingDeviceConfiguration`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PointingDevice {
    /// `VZUSBScreenCoordinatePointingDeviceConfiguration`.
    UsbScreenCoordinate,
    /// `VZMacTrackpadConfiguration`.
    MacTrackpad,
}

/// A stream of a `VZVirtioSoundDeviceConfiguration`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SoundStream {
    /// `VZVirtioSoundDeviceOutputStreamConfiguration` to this Mac's loudspeaker.
    Output,
    /// `VZVirtioSoundDeviceInputStreamConfiguration` from this Mac's microphone.
    Input,
}

/// What a serial port or a console port is attached to (`VZSerialPortAttachment`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SerialAttachment {
    /// `VZFileSerialPortAttachment`.
    File {
        /// `URL`.
        path: PathBuf,
        /// `append`.
        append: bool,
    },
    /// `VZFileHandleSerialPortAttachment`, with one end of a stream socket for both directions; the keeper holds the other.
    Handles {
        /// Name by which the keeper knows it.
        name: String,
    },
    /// `VZSpiceAgentPortAttachment`.
    SpiceAgent {
        /// `sharesClipboard`.
        shares_clipboard: bool,
    },
}

/// `VZVirtioConsolePortConfiguration`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsolePort {
    /// `name`, by which the guest finds it; none for the SPICE agent's, whose name Virtualization.framework gives.
    pub name: Option<String>,
    /// `isConsole`.
    pub is_console: bool,
    /// What it is attached to.
    pub attachment: SerialAttachment,
}
