//! Ports of this host that lead into guests.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use innkeeper_api::ErrorKind;

use crate::error::{Error, Result};
use crate::spec::{Protocol, VmSpec};
use crate::store::Identity;

/// Checks that every port that is to be forwarded is free now.
pub(crate) fn check_forwards(spec: &VmSpec) -> Result<()> {
    for (index, network) in spec.networks.iter().enumerate() {
        for forward in &network.forwards {
            let address = SocketAddr::new(forward.host_address, forward.host_port);
            let bound = match forward.protocol {
                Protocol::Tcp => TcpListener::bind(address).map(drop),
                Protocol::Udp => UdpSocket::bind(address).map(drop),
            };
            bound.map_err(|error| {
                let error = Error::io(
                    format!(
                        "networks[{index}].forwards: port {address} of this host can't be used"
                    ),
                    error,
                );
                match error.kind() {
                    ErrorKind::Conflict => {
                        error.with_hint("another program listens there; choose another port")
                    }
                    ErrorKind::NotPermitted => {
                        error.with_hint("ports below 1024 need privileges; choose a higher one")
                    }
                    _ => error,
                }
            })?;
        }
    }
    Ok(())
}

/// Returns the port for SSH in this run: the VM's own if it is free, else another one. None if the guest has no SSH server that we know of.
pub(crate) fn choose_ssh_port(identity: &Identity) -> Result<Option<u16>> {
    let Some(port) = identity.ssh_port else {
        return Ok(None);
    };
    match TcpListener::bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)) {
        Ok(_) => Ok(Some(port)),
        Err(_) => free_port().map(Some),
    }
}

/// Finds a port on the loopback that is free now.
pub(crate) fn free_port() -> Result<u16> {
    TcpListener::bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| Error::io("can't find a free port on the loopback", error))
}
