//! What a network interface is attached to. To be made on the machine's queue.

use std::os::fd::OwnedFd;

use objc2::AnyThread;
use objc2::rc::Retained;
use objc2_foundation::NSString;
use objc2_virtualization::{
    VZBridgedNetworkDeviceAttachment, VZBridgedNetworkInterface,
    VZFileHandleNetworkDeviceAttachment, VZMACAddress, VZNATNetworkDeviceAttachment,
    VZNetworkDeviceAttachment, VZNetworkDeviceConfiguration, VZVirtioNetworkDeviceConfiguration,
};

use crate::error::VzError;
use crate::host;
use crate::storage::file_handle;
use crate::vmnet::VmnetNetwork;

/// What a network interface is attached to.
pub struct NetworkAttachment(Retained<VZNetworkDeviceAttachment>);

impl NetworkAttachment {
    /// The NAT that macOS makes for all machines of this Mac; it chooses the addresses (`VZNATNetworkDeviceAttachment`).
    pub fn nat() -> Self {
        // SAFETY: on the machine's queue.
        NetworkAttachment(unsafe { VZNATNetworkDeviceAttachment::new() }.into_super())
    }

    /// An interface of this Mac, such as `en0` (`VZBridgedNetworkDeviceAttachment`). Needs the entitlement `com.apple.vm.networking`, which
    /// Apple grants; without it the configuration is not valid.
    pub fn bridged(interface: &str) -> Result<Self, VzError> {
        // SAFETY: on the machine's queue; the list is not changed by anybody.
        unsafe {
            let found = VZBridgedNetworkInterface::networkInterfaces()
                .iter()
                .find(|found| found.identifier().to_string() == interface)
                .ok_or_else(|| {
                    VzError::missing(format!("interface {interface} that can be bridged"))
                })?;
            let attachment = VZBridgedNetworkDeviceAttachment::initWithInterface(
                VZBridgedNetworkDeviceAttachment::alloc(),
                &found,
            );
            Ok(NetworkAttachment(attachment.into_super()))
        }
    }

    /// A connected datagram socket of ours, a frame each (`VZFileHandleNetworkDeviceAttachment`). Another MTU than 1500 needs macOS 13.
    ///
    /// The socket must be a datagram socket: VZ ends the process for another one. A send buffer of at least a frame and a receive
    /// buffer of four times that are Apple's advice.
    pub fn file_handle(socket: OwnedFd, mtu: Option<u32>) -> Result<Self, VzError> {
        if mtu.is_some() {
            host::need((13, 0), "another MTU than 1500")?;
        }
        let handle = file_handle(socket);
        // SAFETY: on the machine's queue; what macOS 11 does not have was asked for.
        unsafe {
            let attachment = VZFileHandleNetworkDeviceAttachment::initWithFileHandle(
                VZFileHandleNetworkDeviceAttachment::alloc(),
                &handle,
            );
            if let Some(mtu) = mtu {
                attachment.setMaximumTransmissionUnit(isize::try_from(mtu).unwrap_or(1500));
            }
            Ok(NetworkAttachment(attachment.into_super()))
        }
    }

    /// A network that vmnet made (`VZVmnetNetworkDeviceAttachment`, macOS 26). Needs the entitlement `com.apple.vm.networking`.
    pub fn vmnet(network: &VmnetNetwork) -> Result<Self, VzError> {
        Ok(NetworkAttachment(network.attachment()?))
    }
}

/// Makes a virtio network interface with a MAC address such as `52:54:00:12:34:56` (`VZVirtioNetworkDeviceConfiguration`).
pub(crate) fn interface(
    mac: &str,
    attachment: &NetworkAttachment,
) -> Result<Retained<VZNetworkDeviceConfiguration>, VzError> {
    // SAFETY: on the machine's queue.
    unsafe {
        let address = VZMACAddress::initWithString(VZMACAddress::alloc(), &NSString::from_str(mac))
            .ok_or_else(|| VzError::refused(format!("the MAC address {mac:?}")))?;
        let device = VZVirtioNetworkDeviceConfiguration::new();
        device.setMACAddress(&address);
        device.setAttachment(Some(&attachment.0));
        Ok(device.into_super())
    }
}
