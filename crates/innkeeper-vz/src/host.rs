//! What this Mac and its macOS can do. Nothing here belongs to a machine, so it may be asked on any thread.

use std::ffi::CStr;

use objc2::runtime::AnyClass;
use objc2_foundation::NSProcessInfo;
use objc2_virtualization::{
    VZBridgedNetworkInterface, VZGenericPlatformConfiguration, VZLinuxRosettaAvailability,
    VZLinuxRosettaDirectoryShare, VZVirtualMachine, VZVirtualMachineConfiguration,
};

use crate::error::VzError;

/// A version of macOS: major and minor.
pub type Version = (u32, u32);

/// Returns the version of macOS that runs (`NSProcessInfo.operatingSystemVersion`).
pub fn version() -> Version {
    let version = NSProcessInfo::processInfo().operatingSystemVersion();
    let number = |value: isize| u32::try_from(value).unwrap_or(0);
    (number(version.majorVersion), number(version.minorVersion))
}

/// Returns the version of macOS with its build, such as `Version 15.1 (Build 24B83)`: what a saved state belongs to.
pub fn version_and_build() -> String {
    NSProcessInfo::processInfo()
        .operatingSystemVersionString()
        .to_string()
}

/// Refuses what this macOS is too old for.
pub(crate) fn need(since: Version, what: &str) -> Result<(), VzError> {
    if version() >= since {
        return Ok(());
    }
    let (major, minor) = since;
    let needs = if minor == 0 {
        format!("macOS {major}")
    } else {
        format!("macOS {major}.{minor}")
    };
    Err(VzError::unavailable(what, &needs))
}

/// Refuses a class that this Mac does not have, such as those of macOS guests on an Intel Mac: a message to it would end the process.
pub(crate) fn need_class(name: &CStr, what: &str) -> Result<(), VzError> {
    match AnyClass::get(name) {
        Some(_) => Ok(()),
        None => Err(VzError::unavailable(
            what,
            "a newer macOS or a Mac with Apple silicon",
        )),
    }
}

/// Returns whether this Mac can run virtual machines at all (`VZVirtualMachine.isSupported`).
pub fn is_supported() -> bool {
    // SAFETY: a class property that VZ lets be read on any thread.
    unsafe { VZVirtualMachine::isSupported() }
}

/// Returns the fewest and the most CPUs that a machine may have here.
pub fn cpu_limits() -> (usize, usize) {
    // SAFETY: class properties that VZ lets be read on any thread.
    unsafe {
        (
            VZVirtualMachineConfiguration::minimumAllowedCPUCount(),
            VZVirtualMachineConfiguration::maximumAllowedCPUCount(),
        )
    }
}

/// Returns the least and the most memory that a machine may have here, in bytes.
pub fn memory_limits() -> (u64, u64) {
    // SAFETY: class properties that VZ lets be read on any thread.
    unsafe {
        (
            VZVirtualMachineConfiguration::minimumAllowedMemorySize(),
            VZVirtualMachineConfiguration::maximumAllowedMemorySize(),
        )
    }
}

/// Returns whether guests may run virtual machines themselves: macOS 15 on an M3 or later.
pub fn is_nested_supported() -> bool {
    // SAFETY: a class property that VZ lets be read on any thread; it exists since macOS 15, which was asked before.
    version() >= (15, 0)
        && unsafe { VZGenericPlatformConfiguration::isNestedVirtualizationSupported() }
}

/// Whether Linux guests can be given Rosetta.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rosetta {
    /// This Mac has none: an Intel Mac, or macOS before 13.
    NotSupported,
    /// It can be installed: `softwareupdate --install-rosetta`.
    NotInstalled,
    /// It is there.
    Installed,
}

/// Returns whether Linux guests can be given Rosetta.
pub fn rosetta() -> Rosetta {
    if need_class(c"VZLinuxRosettaDirectoryShare", "Rosetta").is_err() {
        return Rosetta::NotSupported;
    }
    // SAFETY: a class property that VZ lets be read on any thread, of a class that is there.
    match unsafe { VZLinuxRosettaDirectoryShare::availability() } {
        VZLinuxRosettaAvailability::Installed => Rosetta::Installed,
        VZLinuxRosettaAvailability::NotInstalled => Rosetta::NotInstalled,
        _ => Rosetta::NotSupported,
    }
}

/// Returns the interfaces that a machine could be bridged to, such as `en0`. Bridging itself needs an entitlement that Apple grants.
pub fn bridged_interfaces() -> Vec<String> {
    // SAFETY: a class property that VZ lets be read on any thread; its elements are not changed by anybody.
    unsafe {
        VZBridgedNetworkInterface::networkInterfaces()
            .iter()
            .map(|interface| interface.identifier().to_string())
            .collect()
    }
}
