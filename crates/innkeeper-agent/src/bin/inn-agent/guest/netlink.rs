//! A route netlink client: just links, addresses and routes (rtnetlink(7)).
//!
//! Requests are answered by the kernel, which is trusted; lengths are checked all the same.

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};
use std::io::{Error, ErrorKind};
use std::net::IpAddr;
use std::os::fd::OwnedFd;

const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const DUMP: u16 = 0x300;
const CREATE_REPLACE: u16 = 0x500;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
/// Multicast groups of link, IPv4 address and IPv6 address changes (RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR).
const CHANGES: u32 = 0x1 | 0x10 | 0x100;

/// An interface.
#[derive(Clone, Debug, Default)]
pub struct LinkInfo {
    pub index: u32,
    pub name: String,
    pub mac: Vec<u8>,
    pub flags: u32,
}

/// An address of an interface.
#[derive(Clone, Debug)]
pub struct AddressInfo {
    pub index: u32,
    pub address: IpAddr,
    pub prefix: u8,
}

/// A netlink socket.
pub struct Netlink {
    fd: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket for requests.
    pub fn open() -> std::io::Result<Netlink> {
        Netlink::bound(0)
    }

    /// Opens a socket that hears of changes.
    pub fn listener() -> std::io::Result<Netlink> {
        Netlink::bound(CHANGES)
    }

    fn bound(groups: u32) -> std::io::Result<Netlink> {
        // Protocol none is number 0, which is NETLINK_ROUTE.
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, groups))?;
        Ok(Netlink { fd, sequence: 0 })
    }

    /// Waits for a change.
    pub fn wait(&self) -> std::io::Result<()> {
        let mut buffer = [0u8; 8192];
        match recv(&self.fd, &mut buffer[..], RecvFlags::empty()) {
            // ENOBUFS says that changes were missed, which is a change as well.
            Ok(_) | Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Lists the interfaces.
    pub fn links(&mut self) -> std::io::Result<Vec<LinkInfo>> {
        let mut links = Vec::new();
        self.request(GET_LINK, DUMP, &[0; 16], |kind, body| {
            if kind != NEW_LINK || body.len() < 16 {
                return;
            }
            let mut link = LinkInfo {
                index: number(&body[4..8]),
                flags: number(&body[8..12]),
                ..LinkInfo::default()
            };
            for (attribute, value) in attributes(&body[16..]) {
                match attribute {
                    1 => link.mac = value.to_vec(),
                    3 => {
                        link.name = String::from_utf8_lossy(value)
                            .trim_end_matches('\0')
                            .to_owned()
                    }
                    _ => {}
                }
            }
            links.push(link);
        })?;
        Ok(links)
    }

    /// Lists the addresses.
    pub fn addresses(&mut self) -> std::io::Result<Vec<AddressInfo>> {
        let mut found = Vec::new();
        self.request(GET_ADDRESS, DUMP, &[0; 8], |kind, body| {
            if kind != NEW_ADDRESS || body.len() < 8 {
                return;
            }
            let (mut local, mut address) = (None, None);
            for (attribute, value) in attributes(&body[8..]) {
                match attribute {
                    1 => address = ip(value),
                    2 => local = ip(value),
                    _ => {}
                }
            }
            // On a point-to-point link IFA_ADDRESS is the peer's (rtnetlink(7)): the local one goes first.
            if let Some(address) = local.or(address) {
                found.push(AddressInfo {
                    index: number(&body[4..8]),
                    address,
                    prefix: body[1],
                });
            }
        })?;
        Ok(found)
    }

    /// Brings an interface up.
    pub fn set_up(&mut self, index: u32) -> std::io::Result<()> {
        let mut body = [0; 16];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        body[8..12].copy_from_slice(&1u32.to_ne_bytes());
        body[12..16].copy_from_slice(&1u32.to_ne_bytes());
        self.request(NEW_LINK, ACKNOWLEDGE, &body, |_, _| {})
    }

    /// Gives an interface an address.
    pub fn add_address(&mut self, index: u32, address: IpAddr, prefix: u8) -> std::io::Result<()> {
        let (family, bytes) = family(address);
        let mut body = vec![family, prefix, 0, 0];
        body.extend_from_slice(&index.to_ne_bytes());
        push_attribute(&mut body, 2, &bytes);
        push_attribute(&mut body, 1, &bytes);
        if let IpAddr::V4(v4) = address
            && prefix < 31
        {
            let broadcast = u32::from(v4) | u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
            push_attribute(&mut body, 4, &broadcast.to_be_bytes());
        }
        if matches!(address, IpAddr::V6(_)) {
            // IFA_F_NODAD: nobody else is asked, so the address can be used at once.
            body[2] = 2;
        }
        self.request(NEW_ADDRESS, ACKNOWLEDGE | CREATE_REPLACE, &body, |_, _| {})
    }

    /// Sets the default route.
    pub fn add_default_route(&mut self, index: u32, gateway: IpAddr) -> std::io::Result<()> {
        let (family, bytes) = family(gateway);
        // table main, protocol boot, scope universe, type unicast
        let mut body = vec![family, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
        push_attribute(&mut body, 5, &bytes);
        push_attribute(&mut body, 4, &index.to_ne_bytes());
        self.request(NEW_ROUTE, ACKNOWLEDGE | CREATE_REPLACE, &body, |_, _| {})
    }

    fn request(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut each: impl FnMut(u16, &[u8]),
    ) -> std::io::Result<()> {
        self.sequence += 1;
        let mut message = Vec::with_capacity(16 + body.len());
        message.extend_from_slice(&((16 + body.len()) as u32).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&(REQUEST | flags).to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(body);
        sendto(
            &self.fd,
            &message,
            SendFlags::empty(),
            &SocketAddrNetlink::new(0, 0),
        )?;
        let mut buffer = vec![0u8; 64 * 1024];
        loop {
            let (count, _) = recv(&self.fd, &mut buffer[..], RecvFlags::empty())?;
            let mut rest = &buffer[..count];
            while rest.len() >= 16 {
                let length = number(&rest[0..4]) as usize;
                if length < 16 || length > rest.len() {
                    return Err(Error::new(
                        ErrorKind::InvalidData,
                        "the kernel's netlink answer is malformed",
                    ));
                }
                let kind = u16::from_ne_bytes([rest[4], rest[5]]);
                let body = &rest[16..length];
                if number(&rest[8..12]) == self.sequence {
                    match kind {
                        DONE => return Ok(()),
                        ERROR => {
                            let code = body
                                .first_chunk::<4>()
                                .map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                            return if code == 0 {
                                Ok(())
                            } else {
                                Err(Error::from_raw_os_error(-code))
                            };
                        }
                        _ => each(kind, body),
                    }
                }
                rest = &rest[length.next_multiple_of(4).min(rest.len())..];
            }
        }
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes
        .first_chunk::<4>()
        .map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(value)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from))
        .ok()
}

fn family(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(v4) => (2, v4.octets().to_vec()),
        IpAddr::V6(v6) => (10, v6.octets().to_vec()),
    }
}

fn push_attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = rest.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]);
        if length < 4 || length > rest.len() {
            return None;
        }
        let value = &rest[4..length];
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        Some((kind & 0x3fff, value))
    })
}
