//! The ports of a running machine on networks of our own: held while it runs, whatever becomes of their netd.

use innkeeper_api::PortRequest;

use super::*;
use crate::engine::configure::switch_socket;
use crate::network::{Netd, NetworkDirectory, PortHolder};

impl Actor {
    /// Holds the ports that the spec which runs asks for, and lets go of all others.
    pub(super) fn hold_ports(&mut self) {
        let wanted = self.wanted_ports();
        self.ports
            .retain(|held| wanted.iter().any(|(_, request)| *request == held.request));
        for (network, request) in wanted {
            if self.ports.iter().any(|held| held.request == request) {
                continue;
            }
            let root = self.context.root.clone();
            match NetworkDirectory::find(&root, &network) {
                Ok(directory) => {
                    let netd = Netd::new(root, self.context.helper.clone(), directory);
                    let log = self.context.log.clone();
                    let say = move |text: &str| log.say(&format!("network {network}: {text}"));
                    self.ports.push(PortHolder::spawn(netd, request, say));
                }
                Err(error) => self.say(&error.chain().join(": ")),
            }
        }
    }

    fn wanted_ports(&self) -> Vec<(String, PortRequest)> {
        let Some(spec) = &self.applied else {
            return Vec::new();
        };
        let identity = &self.context.identity;
        let sockets = self.context.root.socket_directory(&identity.id);
        let interfaces = spec.networks.iter().zip(&identity.macs).enumerate();
        interfaces
            .filter_map(|(index, (network, mac))| {
                let request = PortRequest {
                    vm: self.context.bundle.name().to_owned(),
                    interface: u32::try_from(index).ok()?,
                    mac: mac.to_string(),
                    socket: switch_socket(&sockets, index).display().to_string(),
                };
                Some((network.name.as_ref()?.to_string(), request))
            })
            .collect()
    }
}

/// Refuses a spec whose networks do not exist.
pub(super) fn check_networks(root: &Root, spec: &VmSpec) -> Result<()> {
    for (index, network) in spec.networks.iter().enumerate() {
        if let Some(name) = &network.name {
            NetworkDirectory::find(root, name.as_str())
                .map_err(|error| error.while_doing(format!("networks[{index}].name")))?;
        }
    }
    Ok(())
}
