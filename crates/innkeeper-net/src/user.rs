//! The address plan of a hypervisor's user-mode network: one small IPv4 network per interface, with fixed places in it.

use std::net::Ipv4Addr;

/// Addresses of one user-mode network, as QEMU's `-netdev user` lays them out when `net=` is given: the gateway is `.2`, the
/// name server `.3`, the first guest `.15` (QEMU documentation, "Network emulation").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserNetwork {
    third: u8,
}

impl UserNetwork {
    /// Length of the network prefix, in bits.
    pub const PREFIX: u8 = 24;

    /// Returns the network of the VM's interface number `index` (from 0), or none past the 32nd.
    pub fn of_interface(index: usize) -> Option<Self> {
        let index = u8::try_from(index).ok().filter(|index| *index < 32)?;
        Some(UserNetwork { third: 2 + index })
    }

    /// Returns the network's own address.
    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, self.third, 0)
    }

    /// Returns the gateway, which is also this host as the guest sees it.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, self.third, 2)
    }

    /// Returns the name server.
    pub fn dns(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, self.third, 3)
    }

    /// Returns the guest's address.
    pub fn guest(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, self.third, 15)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_do_not_overlap() {
        let first = UserNetwork::of_interface(0).unwrap();
        assert_eq!(first.guest(), Ipv4Addr::new(10, 0, 2, 15));
        assert_ne!(
            first.network(),
            UserNetwork::of_interface(1).unwrap().network()
        );
        assert_eq!(UserNetwork::of_interface(32), None);
    }
}
