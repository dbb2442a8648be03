//! The guest's network: what it is, told to the host when it changes; and, as init, setting it up.
//!
//! As init each `inn.net=MAC,ADDRESS/PREFIX[,GATEWAY[,DNS[,DNS...]]]` of the kernel's command line configures the
//! interface with that MAC; `dhcp` in the address's place asks the network (see `dhcp`). Empty parts are left out.

use crate::guest::link::Link;
use crate::guest::log::{lock, say};
use crate::guest::netlink::{LinkInfo, Netlink};
use innkeeper_agent::message::{AgentEvent, Interface};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Name servers that were written, so that several interfaces add up.
static NAME_SERVERS: Mutex<Vec<IpAddr>> = Mutex::new(Vec::new());

/// Lists the interfaces but loopback.
pub fn interfaces() -> std::io::Result<Vec<Interface>> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let addresses = netlink.addresses()?;
    Ok(links
        .into_iter()
        // IFF_LOOPBACK
        .filter(|link| link.flags & 0x8 == 0)
        .take(64)
        .map(|link| Interface {
            mac: mac_text(&link.mac),
            // IFF_UP and IFF_LOWER_UP
            up: link.flags & 0x1 != 0 && link.flags & 0x1_0000 != 0,
            addresses: addresses
                .iter()
                .filter(|address| address.index == link.index)
                .map(|address| format!("{}/{}", address.address, address.prefix))
                .take(32)
                .collect(),
            name: link.name,
        })
        .collect())
}

fn mac_text(mac: &[u8]) -> String {
    mac.iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .join(":")
}

/// Tells the host of each change, and of the state after each handshake.
pub fn watch(link: Arc<Link>) {
    let known: Arc<Mutex<Option<Vec<Interface>>>> = Arc::new(Mutex::new(None));
    let greeting = (Arc::downgrade(&link), Arc::clone(&known));
    link.on_established(move || {
        let (link, known) = (greeting.0.clone(), Arc::clone(&greeting.1));
        // The hook holds the link's lock.
        crate::guest::operations::spawn("addresses", move || {
            *lock(&known) = None;
            if let Some(link) = link.upgrade() {
                tell(&link, &known);
            }
        });
    });
    // Here and not on its thread: what changes from now on must be heard, however soon that is.
    let listener = Netlink::listener();
    crate::guest::operations::spawn("network", move || {
        let listener = match listener {
            Ok(listener) => listener,
            Err(error) => return say(&format!("changes of addresses are not told: {error}")),
        };
        while let Ok(()) = listener.wait() {
            tell(&link, &known);
        }
    });
}

fn tell(link: &Link, known: &Mutex<Option<Vec<Interface>>>) {
    // Held while looking, or an older look of another thread could be told last.
    let mut known = lock(known);
    match interfaces() {
        Ok(interfaces) => {
            if known.as_ref() != Some(&interfaces) {
                link.push(&AgentEvent::Addresses {
                    interfaces: interfaces.clone(),
                });
                *known = Some(interfaces);
            }
        }
        Err(error) => say(&format!("cannot list the interfaces: {error}")),
    }
}

/// What `inn.net=` asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    pub mac: String,
    /// None asks by DHCP.
    pub address: Option<(IpAddr, u8)>,
    pub gateway: Option<IpAddr>,
    pub name_servers: Vec<IpAddr>,
}

/// Reads the value of `inn.net=`.
pub fn parse(value: &str) -> Result<Configuration, String> {
    let wrong = |what: &str| format!("inn.net={value}: {what}");
    let mut parts = value.split(',');
    let mac = parts.next().unwrap_or_default().to_ascii_lowercase();
    if mac.split(':').count() != 6
        || !mac
            .split(':')
            .all(|byte| u8::from_str_radix(byte, 16).is_ok())
    {
        return Err(wrong("it must begin with a MAC address"));
    }
    let address = match parts.next() {
        Some("dhcp") => None,
        Some(text) => {
            let (address, prefix) = text
                .split_once('/')
                .ok_or_else(|| wrong("the address needs a prefix length"))?;
            let address: IpAddr = address.parse().map_err(|_| wrong("the address is none"))?;
            let prefix: u8 = prefix
                .parse()
                .map_err(|_| wrong("the prefix length is none"))?;
            if prefix > if address.is_ipv4() { 32 } else { 128 } {
                return Err(wrong("the prefix length is too long"));
            }
            Some((address, prefix))
        }
        None => return Err(wrong("it needs an address or dhcp")),
    };
    let mut addresses = parts.map(|part| {
        if part.is_empty() {
            Ok(None)
        } else {
            part.parse()
                .map(Some)
                .map_err(|_| wrong("an address is none"))
        }
    });
    let gateway = addresses.next().transpose()?.flatten();
    let name_servers = addresses
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .flatten()
        .collect();
    Ok(Configuration {
        mac,
        address,
        gateway,
        name_servers,
    })
}

/// Brings loopback up.
pub fn bring_loopback_up() -> Result<(), String> {
    let act = || -> std::io::Result<()> {
        let mut netlink = Netlink::open()?;
        let links = netlink.links()?;
        if let Some(loopback) = links.iter().find(|link| link.flags & 0x8 != 0) {
            netlink.set_up(loopback.index)?;
        }
        Ok(())
    };
    act().map_err(|error| format!("cannot bring loopback up: {error}"))
}

/// Configures one interface, waiting a little for it to appear (drivers probe beside us).
pub fn configure(configuration: &Configuration) -> Result<(), String> {
    let link = find(&configuration.mac)?;
    let failed =
        |what: &str, error: std::io::Error| format!("cannot {what} on {}: {error}", link.name);
    let mut netlink = Netlink::open().map_err(|error| failed("open netlink", error))?;
    netlink
        .set_up(link.index)
        .map_err(|error| failed("bring the link up", error))?;
    match configuration.address {
        Some((address, prefix)) => apply(
            &link,
            address,
            prefix,
            configuration.gateway,
            &configuration.name_servers,
        ),
        None => {
            crate::guest::operations::spawn("dhcp", move || crate::guest::dhcp::run(&link));
            Ok(())
        }
    }
}

fn find(mac: &str) -> Result<LinkInfo, String> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let links = Netlink::open().and_then(|mut netlink| netlink.links());
        let links = links.map_err(|error| format!("cannot list the interfaces: {error}"))?;
        if let Some(link) = links.into_iter().find(|link| mac_text(&link.mac) == mac) {
            return Ok(link);
        }
        if Instant::now() >= deadline {
            return Err(format!("no interface has the MAC address {mac}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Gives an interface its address, route and name servers.
pub fn apply(
    link: &LinkInfo,
    address: IpAddr,
    prefix: u8,
    gateway: Option<IpAddr>,
    name_servers: &[IpAddr],
) -> Result<(), String> {
    let failed =
        |what: &str, error: std::io::Error| format!("cannot {what} on {}: {error}", link.name);
    let mut netlink = Netlink::open().map_err(|error| failed("open netlink", error))?;
    netlink
        .add_address(link.index, address, prefix)
        .map_err(|error| failed(&format!("set {address}/{prefix}"), error))?;
    if let Some(gateway) = gateway {
        netlink
            .add_default_route(link.index, gateway)
            .map_err(|error| failed(&format!("set the route by {gateway}"), error))?;
    }
    if !name_servers.is_empty() {
        let mut known = lock(&NAME_SERVERS);
        for server in name_servers {
            if !known.contains(server) {
                known.push(*server);
            }
        }
        let text: String = known
            .iter()
            .map(|server| format!("nameserver {server}\n"))
            .collect();
        std::fs::write("/etc/resolv.conf", text)
            .map_err(|error| format!("cannot write /etc/resolv.conf: {error}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn static_and_dhcp_configurations_are_read() {
        let configuration = parse("52:54:00:12:34:5F,10.0.2.15/24,10.0.2.2,10.0.2.3").unwrap();
        assert_eq!(configuration.mac, "52:54:00:12:34:5f");
        assert_eq!(
            configuration.address,
            Some(("10.0.2.15".parse().unwrap(), 24))
        );
        assert_eq!(configuration.gateway, Some("10.0.2.2".parse().unwrap()));
        assert_eq!(configuration.name_servers.len(), 1);
        assert_eq!(parse("52:54:00:12:34:5f,dhcp").unwrap().address, None);
        assert_eq!(
            parse("52:54:00:12:34:5f,fd00::2/64,,fd00::1")
                .unwrap()
                .gateway,
            None
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for wrong in [
            "",
            "52:54:00:12:34:5f",
            "eth0,dhcp",
            "52:54:00:12:34:5f,10.0.2.15",
            "52:54:00:12:34:5f,10.0.2.15/33",
        ] {
            assert!(parse(wrong).unwrap_err().contains("inn.net="), "{wrong}");
        }
    }
}
