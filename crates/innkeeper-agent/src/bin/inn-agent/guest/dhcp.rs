//! A DHCPv4 client for guests whose init is the agent: gets a lease and renews it (RFC 2131).
//!
//! ```text
//!  discover ─offer─► request ─ack─► bound ─half the lease─► request ─ack─► bound
//!     ▲                 │ nak, or no answer                    │ nak, or the lease is over
//!     └─────────────────┴──────────────────────────────────────┘
//! ```
//! It broadcasts always, also to renew: every server must answer that, and the socket needs no address of its own.
//! Answers come from the network: the crate decodes them within bounds, what contradicts itself is dropped.

use crate::guest::log::say;
use crate::guest::netlink::LinkInfo;
use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, OptionCode};
use dhcproto::{Decodable, Encodable};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

struct Lease {
    address: Ipv4Addr,
    prefix: u8,
    gateway: Option<Ipv4Addr>,
    name_servers: Vec<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    seconds: u32,
}

/// Keeps a lease on an interface for ever.
pub fn run(link: &LinkInfo) {
    let mut pause = Duration::from_secs(1);
    let mut said = false;
    loop {
        match acquire(link, None) {
            Ok(lease) => {
                pause = Duration::from_secs(1);
                said = false;
                hold(link, lease);
            }
            Err(error) => {
                if !said {
                    say(&format!("no DHCP lease on {} yet: {error}", link.name));
                    said = true;
                }
                // RFC 2131 section 4.1: back off, so that a network without a server is not flooded.
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_secs(64));
            }
        }
    }
}

fn hold(link: &LinkInfo, mut lease: Lease) {
    loop {
        let name_servers: Vec<IpAddr> =
            lease.name_servers.iter().copied().map(IpAddr::V4).collect();
        let gateway = lease.gateway.map(IpAddr::V4);
        if let Err(message) = crate::guest::network::apply(
            link,
            lease.address.into(),
            lease.prefix,
            gateway,
            &name_servers,
        ) {
            say(&message);
        }
        let seconds = u64::from(lease.seconds.max(60));
        let over = Instant::now() + Duration::from_secs(seconds);
        std::thread::sleep(Duration::from_secs(seconds / 2));
        lease = loop {
            match acquire(link, Some(&lease)) {
                Ok(lease) => break lease,
                Err(error) if Instant::now() >= over => {
                    say(&format!(
                        "the DHCP lease of {} on {} is over: {error}",
                        lease.address, link.name
                    ));
                    return;
                }
                Err(_) => std::thread::sleep(Duration::from_secs(seconds / 16 + 1)),
            }
        };
    }
}

fn acquire(link: &LinkInfo, previous: Option<&Lease>) -> std::io::Result<Lease> {
    let invalid = |error| std::io::Error::new(std::io::ErrorKind::InvalidData, error);
    let socket = open(link)?;
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write(&link.mac);
    let transaction = hasher.finish() as u32;
    let offer = match previous {
        Some(lease) => (lease.address, lease.server),
        None => {
            let offer = exchange(
                &socket,
                &message(link, transaction, MessageType::Discover, None).map_err(invalid)?,
                MessageType::Offer,
            )?;
            (offer.yiaddr(), server(&offer))
        }
    };
    let request = message(link, transaction, MessageType::Request, Some(offer)).map_err(invalid)?;
    let answer = exchange(&socket, &request, MessageType::Ack)?;
    let options = answer.opts();
    let prefix = match options.get(OptionCode::SubnetMask) {
        Some(DhcpOption::SubnetMask(mask)) => u32::from(*mask).leading_ones() as u8,
        _ => 24,
    };
    let gateway = match options.get(OptionCode::Router) {
        Some(DhcpOption::Router(routers)) => routers.first().copied(),
        _ => None,
    };
    let name_servers = match options.get(OptionCode::DomainNameServer) {
        Some(DhcpOption::DomainNameServer(servers)) => servers.iter().take(3).copied().collect(),
        _ => Vec::new(),
    };
    let seconds = match options.get(OptionCode::AddressLeaseTime) {
        Some(DhcpOption::AddressLeaseTime(seconds)) => *seconds,
        _ => 3600,
    };
    if answer.yiaddr().is_unspecified()
        || answer.yiaddr().is_multicast()
        || answer.yiaddr().is_broadcast()
    {
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            "the server gave an address that is none",
        ));
    }
    Ok(Lease {
        address: answer.yiaddr(),
        prefix,
        gateway,
        name_servers,
        server: server(&answer),
        seconds,
    })
}

fn server(answer: &Message) -> Option<Ipv4Addr> {
    match answer.opts().get(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(server)) => Some(*server),
        _ => None,
    }
}

fn message(
    link: &LinkInfo,
    transaction: u32,
    kind: MessageType,
    offer: Option<(Ipv4Addr, Option<Ipv4Addr>)>,
) -> Result<Message, dhcproto::error::DecodeError> {
    // Decoded from an empty one (RFC 2131 section 2: request, Ethernet, magic cookie, end) because the crate's
    // constructors draw an id from getrandom(2), which blocks for long in a guest without a random device.
    let mut empty = [0u8; 241];
    empty[..3].copy_from_slice(&[1, 1, 6]);
    empty[236..].copy_from_slice(&[99, 130, 83, 99, 255]);
    let mut message = Message::from_bytes(&empty)?;
    message
        .set_xid(transaction)
        .set_chaddr(&link.mac)
        .set_flags(Flags::default().set_broadcast());
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ParameterRequestList(vec![
        OptionCode::SubnetMask,
        OptionCode::Router,
        OptionCode::DomainNameServer,
        OptionCode::AddressLeaseTime,
    ]));
    if let Some((address, server)) = offer {
        options.insert(DhcpOption::RequestedIpAddress(address));
        if let Some(server) = server {
            options.insert(DhcpOption::ServerIdentifier(server));
        }
    }
    let hostname = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    if !hostname.is_empty() && hostname != "(none)" {
        options.insert(DhcpOption::Hostname(hostname));
    }
    Ok(message)
}

fn open(link: &LinkInfo) -> std::io::Result<UdpSocket> {
    let fd = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    sockopt::set_socket_broadcast(&fd, true)?;
    bind_to_device(&fd, &link.name)?;
    bind(&fd, &SocketAddr::from((Ipv4Addr::UNSPECIFIED, 68)))?;
    Ok(UdpSocket::from(fd))
}

#[allow(unsafe_code)]
fn bind_to_device(fd: &std::os::fd::OwnedFd, name: &str) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: the pointer and length are those of `name`, which outlives the call; the kernel only reads.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            name.as_ptr().cast(),
            name.len() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Sends until the wanted answer comes, four times at most.
fn exchange(
    socket: &UdpSocket,
    message: &Message,
    wanted: MessageType,
) -> std::io::Result<Message> {
    let invalid = |error: &dyn std::fmt::Display| {
        std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string())
    };
    let bytes = message.to_vec().map_err(|error| invalid(&error))?;
    let mut buffer = [0u8; 2048];
    for attempt in 0..4 {
        socket.send_to(&bytes, (Ipv4Addr::BROADCAST, 67))?;
        let deadline = Instant::now() + Duration::from_secs(1 << attempt);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left))?;
            let count = match socket.recv(&mut buffer) {
                Ok(count) => count,
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) =>
                {
                    break;
                }
                Err(error) => return Err(error),
            };
            let Ok(answer) = Message::from_bytes(&buffer[..count]) else {
                continue;
            };
            if answer.xid() != message.xid() {
                continue;
            }
            match answer.opts().msg_type() {
                Some(kind) if kind == wanted => return Ok(answer),
                Some(MessageType::Nak) => return Err(invalid(&"the server refused the address")),
                _ => {}
            }
        }
    }
    Err(std::io::Error::new(
        std::io::ErrorKind::TimedOut,
        "no server answered",
    ))
}
