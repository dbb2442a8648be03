//! Networks that vmnet makes, for machines to attach to (macOS 26).
//!
//! The functions are looked up at run time, since a program that names them would not start on an older macOS. Their declarations come from
//! `vmnet/vmnet.h` of the macOS 26 SDK; the bindings lack `initWithNetwork:` too, so that it is sent by hand.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::net::Ipv4Addr;

use objc2::encode::{Encoding, RefEncode};
use objc2::rc::{Allocated, Retained};
use objc2::{AnyThread, msg_send};
use objc2_virtualization::{VZNetworkDeviceAttachment, VZVmnetNetworkDeviceAttachment};

use crate::error::VzError;
use crate::host;

/// Who can be reached (`operating_modes_t` of vmnet.h: `VMNET_HOST_MODE` 1000, `VMNET_SHARED_MODE` 1001).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmnetMode {
    /// This Mac and the other machines of the network.
    Host,
    /// The world too, by NAT.
    Shared,
}

/// `VMNET_SUCCESS`.
const SUCCESS: u32 = 1000;

/// `struct vmnet_network`, which only vmnet knows.
#[repr(C)]
struct Opaque {
    _private: [u8; 0],
}

// SAFETY: the encoding of a pointer to a struct that is only declared; `vmnet_network_ref` is such a pointer.
unsafe impl RefEncode for Opaque {
    const ENCODING_REF: Encoding = Encoding::Pointer(&Encoding::Struct("vmnet_network", &[]));
}

/// `struct in_addr`: an address in network order.
#[repr(C)]
struct Address(u32);

impl From<Ipv4Addr> for Address {
    fn from(address: Ipv4Addr) -> Self {
        Address(u32::from_ne_bytes(address.octets()))
    }
}

type ConfigurationCreate = unsafe extern "C" fn(mode: u32, status: *mut u32) -> *mut c_void;
type SetSubnet = unsafe extern "C" fn(
    configuration: *mut c_void,
    net: *const Address,
    mask: *const Address,
) -> u32;
type NetworkCreate =
    unsafe extern "C" fn(configuration: *mut c_void, status: *mut u32) -> *mut Opaque;

// SAFETY: three functions of libSystem, declared as in `dlfcn.h` and `CoreFoundation/CFBase.h`.
unsafe extern "C" {
    fn dlopen(path: *const c_char, mode: c_int) -> *mut c_void;
    fn dlsym(handle: *mut c_void, symbol: *const c_char) -> *mut c_void;
    fn CFRelease(object: *const c_void);
}

/// `RTLD_NOW | RTLD_LOCAL`.
const NOW: c_int = 0x2 | 0x4;

fn library() -> Result<*mut c_void, VzError> {
    host::need((26, 0), "a network of vmnet")?;
    let path = c"/System/Library/Frameworks/vmnet.framework/vmnet";
    // SAFETY: a string that ends with a null. The library is Apple's own and is never unloaded.
    let library = unsafe { dlopen(path.as_ptr(), NOW) };
    if library.is_null() {
        return Err(VzError::missing("vmnet.framework"));
    }
    Ok(library)
}

fn function(library: *mut c_void, name: &CStr) -> Result<*mut c_void, VzError> {
    // SAFETY: a library that is open, and a string that ends with a null.
    let function = unsafe { dlsym(library, name.as_ptr()) };
    if function.is_null() {
        return Err(VzError::missing(format!(
            "function {name:?} in vmnet.framework"
        )));
    }
    Ok(function)
}

fn succeeded(status: u32, what: &str) -> Result<(), VzError> {
    match status {
        SUCCESS => Ok(()),
        status => Err(VzError::refused(format!(
            "{what} (vmnet_return_t {status})"
        ))),
    }
}

/// A network of vmnet's. Let go of when dropped; machines that are attached keep it.
pub struct VmnetNetwork(*mut Opaque);

impl VmnetNetwork {
    /// Makes a network; a subnet is given by its address and its mask.
    pub fn new(mode: VmnetMode, subnet: Option<(Ipv4Addr, Ipv4Addr)>) -> Result<Self, VzError> {
        let library = library()?;
        let create = function(library, c"vmnet_network_configuration_create")?;
        let set_subnet = function(library, c"vmnet_network_configuration_set_ipv4_subnet")?;
        let network = function(library, c"vmnet_network_create")?;
        // SAFETY: the functions of these names have these types (vmnet.h), and the pointers are not null. Configuration and network are
        // objects of CoreFoundation that the functions named `create` return owned: each is let go of once.
        unsafe {
            let create = std::mem::transmute::<*mut c_void, ConfigurationCreate>(create);
            let set_subnet = std::mem::transmute::<*mut c_void, SetSubnet>(set_subnet);
            let make = std::mem::transmute::<*mut c_void, NetworkCreate>(network);
            let mode = match mode {
                VmnetMode::Host => 1000,
                VmnetMode::Shared => 1001,
            };
            let mut status = 0;
            let configuration = create(mode, &raw mut status);
            if configuration.is_null() {
                succeeded(status, "this kind of network")?;
                return Err(VzError::refused("this kind of network"));
            }
            let mut made = Ok(());
            if let Some((net, mask)) = subnet {
                let (net, mask) = (Address::from(net), Address::from(mask));
                made = succeeded(
                    set_subnet(configuration, &raw const net, &raw const mask),
                    "this subnet",
                );
            }
            let mut network = std::ptr::null_mut();
            if made.is_ok() {
                network = make(configuration, &raw mut status);
            }
            CFRelease(configuration);
            made?;
            if network.is_null() {
                succeeded(status, "this network")?;
                return Err(VzError::refused("this network"));
            }
            Ok(VmnetNetwork(network))
        }
    }

    pub(crate) fn attachment(&self) -> Result<Retained<VZNetworkDeviceAttachment>, VzError> {
        host::need_class(c"VZVmnetNetworkDeviceAttachment", "a network of vmnet")?;
        let allocated: Allocated<VZVmnetNetworkDeviceAttachment> =
            VZVmnetNetworkDeviceAttachment::alloc();
        // SAFETY: on the machine's queue; `initWithNetwork:` takes a `vmnet_network_ref` (VZVmnetNetworkDeviceAttachment.h), which lives.
        let attachment: Retained<VZVmnetNetworkDeviceAttachment> =
            unsafe { msg_send![allocated, initWithNetwork: self.0] };
        Ok(attachment.into_super())
    }
}

impl Drop for VmnetNetwork {
    fn drop(&mut self) {
        // SAFETY: owned since it was made, and let go of here alone.
        unsafe { CFRelease(self.0.cast()) };
    }
}
