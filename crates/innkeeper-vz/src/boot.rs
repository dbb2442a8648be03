//! What a machine boots with, and what it is: boot loaders, platforms, identifiers. To be made on the machine's queue.

use std::path::Path;

use objc2::AnyThread;
use objc2::rc::Retained;
use objc2_foundation::{NSData, NSString, NSURL};
use objc2_virtualization::{
    VZBootLoader, VZEFIBootLoader, VZEFIVariableStore, VZEFIVariableStoreInitializationOptions,
    VZGenericMachineIdentifier, VZGenericPlatformConfiguration, VZLinuxBootLoader,
    VZMacAuxiliaryStorage, VZMacAuxiliaryStorageInitializationOptions, VZMacHardwareModel,
    VZMacMachineIdentifier, VZMacOSBootLoader, VZMacPlatformConfiguration, VZPlatformConfiguration,
};

use crate::error::VzError;
use crate::host;

/// Returns the URL of a file on this Mac.
pub(crate) fn file_url(path: &Path) -> Result<Retained<NSURL>, VzError> {
    NSURL::from_file_path(path).ok_or_else(|| VzError::refused(format!("the path {path:?}")))
}

/// What loads the guest's system.
pub struct BootLoader(pub(crate) Retained<VZBootLoader>);

impl BootLoader {
    /// Loads a Linux kernel: on Apple silicon an uncompressed `Image`, on Intel a bzImage (`VZLinuxBootLoader`).
    pub fn linux(
        kernel: &Path,
        initial_ramdisk: Option<&Path>,
        command_line: &str,
    ) -> Result<Self, VzError> {
        let kernel = file_url(kernel)?;
        let ramdisk = initial_ramdisk.map(file_url).transpose()?;
        // SAFETY: on the machine's queue, with objects that are there.
        unsafe {
            let loader = VZLinuxBootLoader::initWithKernelURL(VZLinuxBootLoader::alloc(), &kernel);
            loader.setCommandLine(&NSString::from_str(command_line));
            loader.setInitialRamdiskURL(ramdisk.as_deref());
            Ok(BootLoader(loader.into_super()))
        }
    }

    /// Starts EFI firmware with variables of the machine's own; the file is made if it does not exist (`VZEFIBootLoader`, macOS 13).
    pub fn efi(variables: &Path) -> Result<Self, VzError> {
        host::need((13, 0), "UEFI")?;
        let url = file_url(variables)?;
        // SAFETY: on the machine's queue; the classes are there since macOS 13, which was asked.
        unsafe {
            let store = if variables.exists() {
                VZEFIVariableStore::initWithURL(VZEFIVariableStore::alloc(), &url)
            } else {
                VZEFIVariableStore::initCreatingVariableStoreAtURL_options_error(
                    VZEFIVariableStore::alloc(),
                    &url,
                    VZEFIVariableStoreInitializationOptions(0),
                )
                .map_err(|error| VzError::from_ns(&error))?
            };
            let loader = VZEFIBootLoader::new();
            loader.setVariableStore(Some(&store));
            Ok(BootLoader(loader.into_super()))
        }
    }

    /// Starts macOS, on Apple silicon (`VZMacOSBootLoader`, macOS 12).
    pub fn macos() -> Result<Self, VzError> {
        host::need_class(c"VZMacOSBootLoader", "a macOS guest")?;
        // SAFETY: on the machine's queue; the class is there, which was asked.
        Ok(BootLoader(unsafe { VZMacOSBootLoader::new() }.into_super()))
    }
}

/// What tells one machine from every other, for life. A saved state is restored only into the machine that has the same one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineIdentifier(Vec<u8>);

impl MachineIdentifier {
    /// Makes a new one for the generic platform (`VZGenericMachineIdentifier`, macOS 13).
    pub fn new_generic() -> Result<Self, VzError> {
        host::need((13, 0), "a machine identifier")?;
        // SAFETY: an object of its own, used on this thread alone; the class is there since macOS 13, which was asked.
        let data = unsafe { VZGenericMachineIdentifier::new().dataRepresentation() };
        Ok(MachineIdentifier(data.to_vec()))
    }

    /// Makes a new one for a Mac (`VZMacMachineIdentifier`).
    pub fn new_mac() -> Result<Self, VzError> {
        host::need_class(c"VZMacMachineIdentifier", "a macOS guest")?;
        // SAFETY: an object of its own, used on this thread alone; the class is there, which was asked.
        let data = unsafe { VZMacMachineIdentifier::new().dataRepresentation() };
        Ok(MachineIdentifier(data.to_vec()))
    }

    /// Takes one that was written down. It is looked at when a platform is made of it.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        MachineIdentifier(bytes)
    }

    /// Returns it for writing down.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What the machine is.
pub struct Platform(pub(crate) Retained<VZPlatformConfiguration>);

impl Platform {
    /// A generic machine, for Linux and for EFI (`VZGenericPlatformConfiguration`). Nested virtualization needs macOS 15 and an M3.
    pub fn generic(identifier: Option<&MachineIdentifier>, nested: bool) -> Result<Self, VzError> {
        if nested && !host::is_nested_supported() {
            return Err(VzError::unavailable(
                "nested virtualization",
                "macOS 15 and an M3 or later",
            ));
        }
        if identifier.is_some() {
            host::need((13, 0), "a machine identifier")?;
        }
        // SAFETY: on the machine's queue; what macOS 11 does not have was asked for.
        unsafe {
            let platform = VZGenericPlatformConfiguration::new();
            if let Some(identifier) = identifier {
                let identifier = VZGenericMachineIdentifier::initWithDataRepresentation(
                    VZGenericMachineIdentifier::alloc(),
                    &NSData::with_bytes(&identifier.0),
                )
                .ok_or_else(|| VzError::refused("the machine identifier"))?;
                platform.setMachineIdentifier(&identifier);
            }
            if nested {
                platform.setNestedVirtualizationEnabled(true);
            }
            Ok(Platform(platform.into_super()))
        }
    }

    /// A Mac, for macOS guests (`VZMacPlatformConfiguration`): its identifier, the hardware model that a restore image asked for, and the
    /// file of its auxiliary storage, which is made if it does not exist.
    pub fn mac(
        identifier: &MachineIdentifier,
        hardware_model: &[u8],
        auxiliary_storage: &Path,
    ) -> Result<Self, VzError> {
        host::need_class(c"VZMacPlatformConfiguration", "a macOS guest")?;
        let url = file_url(auxiliary_storage)?;
        // SAFETY: on the machine's queue; the classes came with the one that was asked for.
        unsafe {
            let model = VZMacHardwareModel::initWithDataRepresentation(
                VZMacHardwareModel::alloc(),
                &NSData::with_bytes(hardware_model),
            )
            .ok_or_else(|| VzError::refused("the hardware model"))?;
            if !model.isSupported() {
                return Err(VzError::unavailable(
                    "this hardware model",
                    "a newer macOS on this Mac",
                ));
            }
            let identifier = VZMacMachineIdentifier::initWithDataRepresentation(
                VZMacMachineIdentifier::alloc(),
                &NSData::with_bytes(&identifier.0),
            )
            .ok_or_else(|| VzError::refused("the machine identifier"))?;
            let storage = if auxiliary_storage.exists() {
                #[allow(deprecated)] // `initWithURL:` is there only since macOS 13.
                VZMacAuxiliaryStorage::initWithContentsOfURL(VZMacAuxiliaryStorage::alloc(), &url)
            } else {
                VZMacAuxiliaryStorage::initCreatingStorageAtURL_hardwareModel_options_error(
                    VZMacAuxiliaryStorage::alloc(),
                    &url,
                    &model,
                    VZMacAuxiliaryStorageInitializationOptions(0),
                )
                .map_err(|error| VzError::from_ns(&error))?
            };
            let platform = VZMacPlatformConfiguration::new();
            platform.setHardwareModel(&model);
            platform.setMachineIdentifier(&identifier);
            platform.setAuxiliaryStorage(Some(&storage));
            Ok(Platform(platform.into_super()))
        }
    }
}
