//! Where blocks come from, and what the guest sees them as. To be made on the machine's queue.

use std::ffi::c_int;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use objc2::AnyThread;
use objc2::rc::Retained;
use objc2::runtime::ProtocolObject;
use objc2_foundation::{NSFileHandle, NSString, NSURL, NSUUID};
use objc2_virtualization::{
    VZDiskBlockDeviceStorageDeviceAttachment, VZDiskImageCachingMode,
    VZDiskImageStorageDeviceAttachment, VZDiskImageSynchronizationMode, VZDiskSynchronizationMode,
    VZNVMExpressControllerDeviceConfiguration, VZNetworkBlockDeviceStorageDeviceAttachment,
    VZStorageDeviceAttachment, VZStorageDeviceConfiguration, VZUSBDeviceConfiguration,
    VZUSBMassStorageDeviceConfiguration, VZVirtioBlockDeviceConfiguration,
};

use crate::boot::file_url;
use crate::error::VzError;
use crate::host;

/// Hands a descriptor over to a file handle, which closes it when it is let go of.
pub(crate) fn file_handle(descriptor: OwnedFd) -> Retained<NSFileHandle> {
    let number: c_int = descriptor.into_raw_fd();
    NSFileHandle::initWithFileDescriptor_closeOnDealloc(NSFileHandle::alloc(), number, true)
}

/// How macOS caches a disk image (`VZDiskImageCachingMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caching {
    /// As VZ sees fit.
    Automatic,
    /// In the page cache.
    Cached,
    /// Not in the page cache.
    Uncached,
}

/// What a guest's flush does to a disk image (`VZDiskImageSynchronizationMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageSynchronization {
    /// Everything is on the medium itself (`F_FULLFSYNC`).
    Full,
    /// Everything has left for the drive (`fsync`), which may still hold it in its cache.
    Fsync,
    /// Nothing.
    None,
}

/// What a guest's flush does to a block device or a network block device (`VZDiskSynchronizationMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synchronization {
    /// Everything is on the medium.
    Full,
    /// Nothing.
    None,
}

impl Synchronization {
    fn mode(self) -> VZDiskSynchronizationMode {
        match self {
            Synchronization::Full => VZDiskSynchronizationMode::Full,
            Synchronization::None => VZDiskSynchronizationMode::None,
        }
    }
}

/// Where a disk's blocks come from.
pub struct StorageAttachment(Retained<VZStorageDeviceAttachment>);

impl StorageAttachment {
    /// A raw disk image (`VZDiskImageStorageDeviceAttachment`, macOS 12).
    pub fn disk_image(
        path: &Path,
        read_only: bool,
        caching: Caching,
        synchronization: ImageSynchronization,
    ) -> Result<Self, VzError> {
        host::need((12, 0), "a disk image's cache mode")?;
        let caching = match caching {
            Caching::Automatic => VZDiskImageCachingMode::Automatic,
            Caching::Cached => VZDiskImageCachingMode::Cached,
            Caching::Uncached => VZDiskImageCachingMode::Uncached,
        };
        let synchronization = match synchronization {
            ImageSynchronization::Full => VZDiskImageSynchronizationMode::Full,
            ImageSynchronization::Fsync => VZDiskImageSynchronizationMode::Fsync,
            ImageSynchronization::None => VZDiskImageSynchronizationMode::None,
        };
        let url = file_url(path)?;
        // SAFETY: on the machine's queue; the method is there since macOS 12, which was asked.
        let attachment = unsafe {
            VZDiskImageStorageDeviceAttachment::initWithURL_readOnly_cachingMode_synchronizationMode_error(
                VZDiskImageStorageDeviceAttachment::alloc(),
                &url,
                read_only,
                caching,
                synchronization,
            )
        }
        .map_err(|error| VzError::from_ns(&error))?;
        Ok(StorageAttachment(attachment.into_super()))
    }

    /// A block device that was opened, for which the caller needed the right (`VZDiskBlockDeviceStorageDeviceAttachment`, macOS 14).
    pub fn block_device(
        device: OwnedFd,
        read_only: bool,
        synchronization: Synchronization,
    ) -> Result<Self, VzError> {
        host::need((14, 0), "a block device as a disk")?;
        let handle = file_handle(device);
        // SAFETY: on the machine's queue; the class is there since macOS 14, which was asked.
        let attachment = unsafe {
            VZDiskBlockDeviceStorageDeviceAttachment::initWithFileHandle_readOnly_synchronizationMode_error(
                VZDiskBlockDeviceStorageDeviceAttachment::alloc(),
                &handle,
                read_only,
                synchronization.mode(),
            )
        }
        .map_err(|error| VzError::from_ns(&error))?;
        Ok(StorageAttachment(attachment.into_super()))
    }

    /// A network block device by its `nbd:` URL (`VZNetworkBlockDeviceStorageDeviceAttachment`, macOS 14).
    pub fn network(
        url: &str,
        timeout: Duration,
        read_only: bool,
        synchronization: Synchronization,
    ) -> Result<Self, VzError> {
        host::need((14, 0), "a network block device")?;
        let url = NSURL::URLWithString(&NSString::from_str(url))
            .ok_or_else(|| VzError::refused(format!("the URL {url:?}")))?;
        // SAFETY: on the machine's queue; the class is there since macOS 14, which was asked.
        let attachment = unsafe {
            VZNetworkBlockDeviceStorageDeviceAttachment::validateURL_error(&url)
                .map_err(|error| VzError::from_ns(&error))?;
            VZNetworkBlockDeviceStorageDeviceAttachment::initWithURL_timeout_forcedReadOnly_synchronizationMode_error(
                VZNetworkBlockDeviceStorageDeviceAttachment::alloc(),
                &url,
                timeout.as_secs_f64(),
                read_only,
                synchronization.mode(),
            )
        }
        .map_err(|error| VzError::from_ns(&error))?;
        Ok(StorageAttachment(attachment.into_super()))
    }
}

/// What the guest sees a disk as.
pub struct StorageDevice(pub(crate) Retained<VZStorageDeviceConfiguration>);

impl StorageDevice {
    /// A virtio block device; the guest sees `identifier` as its serial (`VZVirtioBlockDeviceConfiguration`, identifier macOS 12.3).
    pub fn virtio(
        attachment: &StorageAttachment,
        identifier: Option<&str>,
    ) -> Result<Self, VzError> {
        // SAFETY: on the machine's queue; what macOS 11 does not have is asked for.
        unsafe {
            let device = VZVirtioBlockDeviceConfiguration::initWithAttachment(
                VZVirtioBlockDeviceConfiguration::alloc(),
                &attachment.0,
            );
            if let Some(identifier) = identifier {
                host::need((12, 3), "a disk's identifier")?;
                let identifier = NSString::from_str(identifier);
                VZVirtioBlockDeviceConfiguration::validateBlockDeviceIdentifier_error(&identifier)
                    .map_err(|error| VzError::from_ns(&error))?;
                device.setBlockDeviceIdentifier(&identifier);
            }
            Ok(StorageDevice(device.into_super()))
        }
    }

    /// An NVMe drive (`VZNVMExpressControllerDeviceConfiguration`, macOS 14; Linux guests only).
    pub fn nvme(attachment: &StorageAttachment) -> Result<Self, VzError> {
        host::need((14, 0), "an NVMe drive")?;
        // SAFETY: on the machine's queue; the class is there since macOS 14, which was asked.
        let device = unsafe {
            VZNVMExpressControllerDeviceConfiguration::initWithAttachment(
                VZNVMExpressControllerDeviceConfiguration::alloc(),
                &attachment.0,
            )
        };
        Ok(StorageDevice(device.into_super()))
    }

    /// A USB stick that stays for the machine's life (`VZUSBMassStorageDeviceConfiguration`, macOS 13).
    pub fn usb(attachment: &StorageAttachment) -> Result<Self, VzError> {
        Ok(StorageDevice(usb_stick(attachment)?.into_super()))
    }
}

fn usb_stick(
    attachment: &StorageAttachment,
) -> Result<Retained<VZUSBMassStorageDeviceConfiguration>, VzError> {
    host::need((13, 0), "a USB disk")?;
    // SAFETY: on the machine's queue; the class is there since macOS 13, which was asked.
    Ok(unsafe {
        VZUSBMassStorageDeviceConfiguration::initWithAttachment(
            VZUSBMassStorageDeviceConfiguration::alloc(),
            &attachment.0,
        )
    })
}

/// Makes a USB stick for a controller, by which it can be detached while the machine runs; it is found by its UUID (macOS 15).
pub(crate) fn usb_stick_on_controller(
    attachment: &StorageAttachment,
    uuid: [u8; 16],
) -> Result<Retained<VZUSBMassStorageDeviceConfiguration>, VzError> {
    host::need((15, 0), "a USB controller")?;
    let stick = usb_stick(attachment)?;
    let device: &ProtocolObject<dyn VZUSBDeviceConfiguration> = ProtocolObject::from_ref(&*stick);
    // SAFETY: on the machine's queue; the property is there since macOS 15, which was asked.
    unsafe { device.setUuid(&NSUUID::from_bytes(uuid)) };
    Ok(stick)
}
