//! Devices beside disks and networks: shares, displays, keyboards, sound, serial ports, consoles. To be made on the machine's queue.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use objc2::AnyThread;
use objc2::rc::Retained;
use objc2_foundation::{NSArray, NSDictionary, NSString};
use objc2_virtualization::{
    VZAudioDeviceConfiguration, VZConsoleDeviceConfiguration, VZDirectoryShare,
    VZDirectorySharingDeviceConfiguration, VZFileHandleSerialPortAttachment,
    VZFileSerialPortAttachment, VZGraphicsDeviceConfiguration, VZHostAudioInputStreamSource,
    VZHostAudioOutputStreamSink, VZKeyboardConfiguration,
    VZLinuxRosettaAbstractSocketCachingOptions, VZLinuxRosettaCachingOptions,
    VZLinuxRosettaDirectoryShare, VZLinuxRosettaUnixSocketCachingOptions,
    VZMacGraphicsDeviceConfiguration, VZMacGraphicsDisplayConfiguration,
    VZMacKeyboardConfiguration, VZMacTrackpadConfiguration, VZMultipleDirectoryShare,
    VZPointingDeviceConfiguration, VZSerialPortAttachment, VZSerialPortConfiguration,
    VZSharedDirectory, VZSingleDirectoryShare, VZSpiceAgentPortAttachment,
    VZUSBKeyboardConfiguration, VZUSBScreenCoordinatePointingDeviceConfiguration,
    VZVirtioConsoleDeviceConfiguration, VZVirtioConsoleDeviceSerialPortConfiguration,
    VZVirtioConsolePortConfiguration, VZVirtioFileSystemDeviceConfiguration,
    VZVirtioGraphicsDeviceConfiguration, VZVirtioGraphicsScanoutConfiguration,
    VZVirtioSoundDeviceConfiguration, VZVirtioSoundDeviceInputStreamConfiguration,
    VZVirtioSoundDeviceOutputStreamConfiguration, VZVirtioSoundDeviceStreamConfiguration,
};

use crate::boot::file_url;
use crate::error::VzError;
use crate::host;
use crate::storage::file_handle;

/// A folder of this Mac.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedDirectory {
    /// The folder.
    pub path: PathBuf,
    /// Whether the guest can't write to it.
    pub read_only: bool,
}

impl SharedDirectory {
    fn object(&self) -> Result<Retained<VZSharedDirectory>, VzError> {
        let url = file_url(&self.path)?;
        // SAFETY: on the machine's queue.
        Ok(unsafe {
            VZSharedDirectory::initWithURL_readOnly(
                VZSharedDirectory::alloc(),
                &url,
                self.read_only,
            )
        })
    }
}

/// Where Rosetta keeps what it translated (macOS 14).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RosettaCaching {
    /// By a daemon in the guest that listens at this path.
    UnixSocket(String),
    /// By a daemon in the guest that listens at this abstract name.
    AbstractSocket(String),
}

/// What a virtiofs device shows.
pub struct DirectoryShare(Retained<VZDirectoryShare>);

impl DirectoryShare {
    /// One folder, as the root of the file system (`VZSingleDirectoryShare`).
    pub fn single(directory: &SharedDirectory) -> Result<Self, VzError> {
        let directory = directory.object()?;
        // SAFETY: on the machine's queue.
        let share = unsafe {
            VZSingleDirectoryShare::initWithDirectory(VZSingleDirectoryShare::alloc(), &directory)
        };
        Ok(DirectoryShare(share.into_super()))
    }

    /// Several folders, each below its name (`VZMultipleDirectoryShare`).
    pub fn multiple(directories: &[(String, SharedDirectory)]) -> Result<Self, VzError> {
        let mut names = Vec::new();
        let mut objects = Vec::new();
        for (name, directory) in directories {
            let name = NSString::from_str(name);
            // SAFETY: a class method that looks at its argument alone.
            unsafe { VZMultipleDirectoryShare::validateName_error(&name) }
                .map_err(|error| VzError::from_ns(&error))?;
            names.push(name);
            objects.push(directory.object()?);
        }
        let names: Vec<&NSString> = names.iter().map(|name| &**name).collect();
        let directories = NSDictionary::from_retained_objects(&names, &objects);
        // SAFETY: on the machine's queue.
        let share = unsafe {
            VZMultipleDirectoryShare::initWithDirectories(
                VZMultipleDirectoryShare::alloc(),
                &directories,
            )
        };
        Ok(DirectoryShare(share.into_super()))
    }

    /// Rosetta, which runs x86-64 programs in a Linux guest (`VZLinuxRosettaDirectoryShare`, macOS 13 on Apple silicon).
    pub fn rosetta(caching: Option<&RosettaCaching>) -> Result<Self, VzError> {
        match host::rosetta() {
            host::Rosetta::Installed => {}
            host::Rosetta::NotInstalled => {
                return Err(VzError::unavailable(
                    "Rosetta in a guest",
                    "Rosetta installed on this Mac: softwareupdate --install-rosetta",
                ));
            }
            host::Rosetta::NotSupported => {
                return Err(VzError::unavailable(
                    "Rosetta in a guest",
                    "macOS 13 on Apple silicon",
                ));
            }
        }
        // SAFETY: on the machine's queue; the class is there, which was asked.
        unsafe {
            let share =
                VZLinuxRosettaDirectoryShare::initWithError(VZLinuxRosettaDirectoryShare::alloc())
                    .map_err(|error| VzError::from_ns(&error))?;
            if let Some(caching) = caching {
                host::need((14, 0), "a cache for Rosetta")?;
                let options: Retained<VZLinuxRosettaCachingOptions> = match caching {
                    RosettaCaching::UnixSocket(path) => {
                        VZLinuxRosettaUnixSocketCachingOptions::initWithPath_error(
                            VZLinuxRosettaUnixSocketCachingOptions::alloc(),
                            &NSString::from_str(path),
                        )
                        .map(Retained::into_super)
                    }
                    RosettaCaching::AbstractSocket(name) => {
                        VZLinuxRosettaAbstractSocketCachingOptions::initWithName_error(
                            VZLinuxRosettaAbstractSocketCachingOptions::alloc(),
                            &NSString::from_str(name),
                        )
                        .map(Retained::into_super)
                    }
                }
                .map_err(|error| VzError::from_ns(&error))?;
                share.setOptions(Some(&options));
            }
            Ok(DirectoryShare(share.into_super()))
        }
    }

    /// Makes the virtiofs device that shows it under a tag (`VZVirtioFileSystemDeviceConfiguration`, macOS 12).
    pub(crate) fn device(
        &self,
        tag: &str,
    ) -> Result<Retained<VZDirectorySharingDeviceConfiguration>, VzError> {
        host::need((12, 0), "a shared folder")?;
        let tag = NSString::from_str(tag);
        // SAFETY: on the machine's queue; the class is there since macOS 12, which was asked.
        unsafe {
            VZVirtioFileSystemDeviceConfiguration::validateTag_error(&tag)
                .map_err(|error| VzError::from_ns(&error))?;
            let device = VZVirtioFileSystemDeviceConfiguration::initWithTag(
                VZVirtioFileSystemDeviceConfiguration::alloc(),
                &tag,
            );
            device.setShare(Some(&self.0));
            Ok(device.into_super())
        }
    }
}

/// Size of a display, in pixels, and for a Mac how dense they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Display {
    /// Width.
    pub width: u32,
    /// Height.
    pub height: u32,
    /// Pixels per inch; a Mac's display alone has them.
    pub pixels_per_inch: u32,
}

/// A graphics device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Graphics {
    /// virtio-gpu, with a scanout for each display (`VZVirtioGraphicsDeviceConfiguration`, macOS 13).
    Virtio(Vec<Display>),
    /// A Mac's paravirtual GPU (`VZMacGraphicsDeviceConfiguration`, Apple silicon).
    Mac(Vec<Display>),
}

fn length(value: u32) -> isize {
    isize::try_from(value).unwrap_or(isize::MAX)
}

impl Graphics {
    pub(crate) fn object(&self) -> Result<Retained<VZGraphicsDeviceConfiguration>, VzError> {
        match self {
            Graphics::Virtio(displays) => {
                host::need((13, 0), "a virtio display")?;
                // SAFETY: on the machine's queue; the classes are there since macOS 13, which was asked.
                unsafe {
                    let scanouts: Vec<_> = displays
                        .iter()
                        .map(|display| {
                            VZVirtioGraphicsScanoutConfiguration::initWithWidthInPixels_heightInPixels(
                                VZVirtioGraphicsScanoutConfiguration::alloc(),
                                length(display.width),
                                length(display.height),
                            )
                        })
                        .collect();
                    let device = VZVirtioGraphicsDeviceConfiguration::new();
                    device.setScanouts(&NSArray::from_retained_slice(&scanouts));
                    Ok(device.into_super())
                }
            }
            Graphics::Mac(displays) => {
                host::need_class(c"VZMacGraphicsDeviceConfiguration", "a Mac's display")?;
                // SAFETY: on the machine's queue; the classes are there, which was asked.
                unsafe {
                    let displays: Vec<_> = displays
                        .iter()
                        .map(|display| {
                            VZMacGraphicsDisplayConfiguration::initWithWidthInPixels_heightInPixels_pixelsPerInch(
                                VZMacGraphicsDisplayConfiguration::alloc(),
                                length(display.width),
                                length(display.height),
                                length(display.pixels_per_inch),
                            )
                        })
                        .collect();
                    let device = VZMacGraphicsDeviceConfiguration::new();
                    device.setDisplays(&NSArray::from_retained_slice(&displays));
                    Ok(device.into_super())
                }
            }
        }
    }
}

/// A keyboard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keyboard {
    /// A USB keyboard (macOS 12).
    Usb,
    /// A Mac's keyboard, for macOS 13 guests and later (macOS 14).
    Mac,
}

impl Keyboard {
    pub(crate) fn object(self) -> Result<Retained<VZKeyboardConfiguration>, VzError> {
        match self {
            Keyboard::Usb => {
                host::need((12, 0), "a USB keyboard")?;
                // SAFETY: on the machine's queue; the class is there since macOS 12, which was asked.
                Ok(unsafe { VZUSBKeyboardConfiguration::new() }.into_super())
            }
            Keyboard::Mac => {
                host::need_class(c"VZMacKeyboardConfiguration", "a Mac's keyboard")?;
                // SAFETY: on the machine's queue; the class is there, which was asked.
                Ok(unsafe { VZMacKeyboardConfiguration::new() }.into_super())
            }
        }
    }
}

/// A pointing device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pointer {
    /// A USB tablet: it says where on the screen it is (macOS 12).
    UsbScreenCoordinate,
    /// A trackpad, for macOS 13 guests and later (macOS 13).
    MacTrackpad,
}

impl Pointer {
    pub(crate) fn object(self) -> Result<Retained<VZPointingDeviceConfiguration>, VzError> {
        match self {
            Pointer::UsbScreenCoordinate => {
                host::need((12, 0), "a USB tablet")?;
                // SAFETY: on the machine's queue; the class is there since macOS 12, which was asked.
                Ok(unsafe { VZUSBScreenCoordinatePointingDeviceConfiguration::new() }.into_super())
            }
            Pointer::MacTrackpad => {
                host::need_class(c"VZMacTrackpadConfiguration", "a trackpad")?;
                // SAFETY: on the machine's queue; the class is there, which was asked.
                Ok(unsafe { VZMacTrackpadConfiguration::new() }.into_super())
            }
        }
    }
}

/// A stream of a sound device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SoundStream {
    /// What the guest plays goes to this Mac's loudspeaker.
    Output,
    /// What this Mac's microphone hears goes to the guest; macOS asks the user.
    Input,
}

/// Makes a virtio sound device (`VZVirtioSoundDeviceConfiguration`, macOS 12).
pub(crate) fn sound(
    streams: &[SoundStream],
) -> Result<Retained<VZAudioDeviceConfiguration>, VzError> {
    host::need((12, 0), "sound")?;
    // SAFETY: on the machine's queue; the classes are there since macOS 12, which was asked.
    unsafe {
        let streams: Vec<Retained<VZVirtioSoundDeviceStreamConfiguration>> = streams
            .iter()
            .map(|stream| match stream {
                SoundStream::Output => {
                    let stream = VZVirtioSoundDeviceOutputStreamConfiguration::new();
                    let sink = VZHostAudioOutputStreamSink::new().into_super();
                    stream.setSink(Some(&sink));
                    stream.into_super()
                }
                SoundStream::Input => {
                    let stream = VZVirtioSoundDeviceInputStreamConfiguration::new();
                    let source = VZHostAudioInputStreamSource::new().into_super();
                    stream.setSource(Some(&source));
                    stream.into_super()
                }
            })
            .collect();
        let device = VZVirtioSoundDeviceConfiguration::new();
        device.setStreams(&NSArray::from_retained_slice(&streams));
        Ok(device.into_super())
    }
}

/// What a serial port or a console port is attached to.
pub struct SerialAttachment(Retained<VZSerialPortAttachment>);

impl SerialAttachment {
    /// A file to which the guest writes (`VZFileSerialPortAttachment`).
    pub fn file(path: &Path, append: bool) -> Result<Self, VzError> {
        let url = file_url(path)?;
        // SAFETY: on the machine's queue.
        let attachment = unsafe {
            VZFileSerialPortAttachment::initWithURL_append_error(
                VZFileSerialPortAttachment::alloc(),
                &url,
                append,
            )
        }
        .map_err(|error| VzError::from_ns(&error))?;
        Ok(SerialAttachment(attachment.into_super()))
    }

    /// Descriptors from which the guest reads and to which it writes (`VZFileHandleSerialPortAttachment`).
    pub fn handles(read: Option<OwnedFd>, write: Option<OwnedFd>) -> Self {
        let (read, write) = (read.map(file_handle), write.map(file_handle));
        // SAFETY: on the machine's queue; the handles own their descriptors.
        let attachment = unsafe {
            VZFileHandleSerialPortAttachment::initWithFileHandleForReading_fileHandleForWriting(
                VZFileHandleSerialPortAttachment::alloc(),
                read.as_deref(),
                write.as_deref(),
            )
        };
        SerialAttachment(attachment.into_super())
    }

    /// The SPICE agent of the guest, by which it shares the clipboard (`VZSpiceAgentPortAttachment`, macOS 13).
    pub fn spice_agent(shares_clipboard: bool) -> Result<Self, VzError> {
        host::need((13, 0), "a port for the SPICE agent")?;
        // SAFETY: on the machine's queue; the class is there since macOS 13, which was asked.
        let attachment = unsafe {
            let attachment = VZSpiceAgentPortAttachment::new();
            attachment.setSharesClipboard(shares_clipboard);
            attachment
        };
        Ok(SerialAttachment(attachment.into_super()))
    }

    /// Makes a virtio serial port, which a Linux guest sees as `hvc0` and on (`VZVirtioConsoleDeviceSerialPortConfiguration`).
    pub(crate) fn serial_port(&self) -> Retained<VZSerialPortConfiguration> {
        // SAFETY: on the machine's queue.
        unsafe {
            let port = VZVirtioConsoleDeviceSerialPortConfiguration::new();
            port.setAttachment(Some(&self.0));
            port.into_super()
        }
    }
}

/// Returns the name that the port of the SPICE agent must have: `com.redhat.spice.0`.
pub(crate) fn spice_port_name() -> Retained<NSString> {
    // SAFETY: a class property; it is asked for after an attachment was made, so the class is there.
    unsafe { VZSpiceAgentPortAttachment::spiceAgentPortName() }
}

/// A port of a console device.
pub struct ConsolePort {
    /// Name by which the guest finds it; the SPICE agent's port has the name that VZ gives it.
    pub name: Option<String>,
    /// Whether it is a console (`hvc1` and on in Linux) and not a plain port.
    pub is_console: bool,
    /// What it is attached to.
    pub attachment: SerialAttachment,
    /// Whether it is the port of the SPICE agent.
    pub is_spice_agent: bool,
}

/// A console device with several ports (`VZVirtioConsoleDeviceConfiguration`, macOS 13).
pub struct Console(pub Vec<ConsolePort>);

impl Console {
    pub(crate) fn object(&self) -> Result<Retained<VZConsoleDeviceConfiguration>, VzError> {
        host::need((13, 0), "a console device with ports")?;
        // SAFETY: on the machine's queue; the classes are there since macOS 13, which was asked. The indexes are below the maximum
        // that is set.
        unsafe {
            let device = VZVirtioConsoleDeviceConfiguration::new();
            let ports = device.ports();
            ports.setMaximumPortCount(u32::try_from(self.0.len()).unwrap_or(u32::MAX));
            for (index, port) in self.0.iter().enumerate() {
                let configuration = VZVirtioConsolePortConfiguration::new();
                let name = if port.is_spice_agent {
                    Some(spice_port_name())
                } else {
                    port.name.as_deref().map(NSString::from_str)
                };
                configuration.setName(name.as_deref());
                configuration.setIsConsole(port.is_console);
                configuration.setAttachment(Some(&port.attachment.0));
                ports.setObject_atIndexedSubscript(Some(&configuration), index);
            }
            Ok(device.into_super())
        }
    }
}
