//! What a network interface is made of in QEMU: the user-mode network that is its other end, and the device. Pure.

use innkeeper_net::{MacAddr, UserNetwork};
use serde_json::{Value, json};

use super::arguments::Options;
use super::board::Board;
use super::device::Device;
use crate::driver::{NicConfig, NicNetwork};
use crate::spec::Protocol;

/// Returns the id of an interface's device and of its network.
pub(super) fn nic_id(mac: MacAddr) -> String {
    format!("nic-{}", mac.to_string().replace(':', ""))
}

/// Returns the address of the interface whose device has this id.
pub(super) fn nic_of(id: &str) -> Option<MacAddr> {
    let digits = id.strip_prefix("nic-")?;
    if digits.len() != 12 || !digits.is_ascii() {
        return None;
    }
    let parts: Vec<&str> = (0..6).map(|at| &digits[2 * at..2 * at + 2]).collect();
    parts.join(":").parse().ok()
}

/// Returns what the network is told; a key may come more than once.
fn settings(nic: &NicConfig, network: UserNetwork) -> Vec<(&'static str, String)> {
    let mut settings = vec![
        (
            "net",
            format!("{}/{}", network.network(), UserNetwork::PREFIX),
        ),
        ("host", network.gateway().to_string()),
        ("dns", network.dns().to_string()),
        ("dhcpstart", network.guest().to_string()),
        ("hostname", nic.hostname.clone()),
    ];
    for forward in &nic.forwards {
        let protocol = match forward.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        settings.push((
            "hostfwd",
            format!(
                "{protocol}:{}:{}-{}:{}",
                forward.host_address,
                forward.host_port,
                network.guest(),
                forward.guest_port
            ),
        ));
    }
    settings
}

/// Returns the value of `-netdev`.
pub(super) fn netdev_option(nic: &NicConfig) -> String {
    let network = match &nic.network {
        NicNetwork::User(network) => *network,
        // QEMU listens, since as a client it does not connect again before version 8.
        NicNetwork::Switched { socket } => {
            return Options::new("stream")
                .set("id", nic_id(nic.mac))
                .set("server", "on")
                .set("addr.type", "unix")
                .set("addr.path", socket.display().to_string())
                .build();
        }
    };
    // The address plan has no IPv6; a guest that is offered one would first try it in vain.
    let mut option = Options::new("user")
        .set("id", nic_id(nic.mac))
        .set("ipv6", "off");
    if !nic.outbound {
        // Nothing leaves but answers to what comes in by a forward.
        option = option.set("restrict", "on");
    }
    for (key, value) in settings(nic, network) {
        option = option.set(key, value);
    }
    option.build()
}

/// Returns the arguments of `netdev_add`.
pub(super) fn netdev_arguments(nic: &NicConfig) -> Value {
    let network = match &nic.network {
        NicNetwork::User(network) => *network,
        NicNetwork::Switched { socket } => {
            return json!({
                "type": "stream", "id": nic_id(nic.mac), "server": true,
                "addr": { "type": "unix", "path": socket.display().to_string() },
            });
        }
    };
    let mut arguments = json!({
        "type": "user", "id": nic_id(nic.mac), "ipv6": false, "restrict": !nic.outbound,
    });
    let mut forwards = Vec::new();
    for (key, value) in settings(nic, network) {
        if key == "hostfwd" {
            forwards.push(json!({ "str": value }));
        } else {
            arguments[key] = json!(value);
        }
    }
    arguments["hostfwd"] = json!(forwards);
    arguments
}

/// Describes the device of an interface.
pub(super) fn nic_device(nic: &NicConfig, bus: Option<String>, board: Board) -> Device {
    let id = nic_id(nic.mac);
    let device = Device::new(format!("virtio-net-{}", board.bus()), id.as_str())
        .on(bus)
        .set("netdev", id)
        .set("mac", nic.mac.to_string());
    match board {
        Board::Microvm => device,
        // No network boot: the option ROM costs time at every start.
        Board::Q35 | Board::VirtArm64 | Board::VirtRiscv64 => device.set("romfile", ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switched_interface_listens_for_its_switch() {
        let nic = NicConfig {
            mac: "52:54:00:12:34:56".parse().unwrap(),
            network: NicNetwork::Switched {
                socket: "/run/a,b/nic0.sock".into(),
            },
            hostname: "web".to_owned(),
            outbound: false,
            forwards: Vec::new(),
        };
        assert_eq!(
            netdev_option(&nic),
            "stream,id=nic-525400123456,server=on,addr.type=unix,addr.path=/run/a,,b/nic0.sock"
        );
        assert_eq!(
            netdev_arguments(&nic),
            json!({
                "type": "stream", "id": "nic-525400123456", "server": true,
                "addr": { "type": "unix", "path": "/run/a,b/nic0.sock" },
            })
        );
    }

    #[test]
    fn addresses_come_back_from_ids() {
        let mac: MacAddr = "52:54:00:12:34:56".parse().unwrap();
        assert_eq!(nic_of(&nic_id(mac)), Some(mac));
        for id in [
            "nic-",
            "nic-52540012345",
            "nic-zz5400123456",
            "disk-a",
            "nic-ßßßßßß",
        ] {
            assert_eq!(nic_of(id), None, "{id}");
        }
    }
}
