//! `inn network`: networks of our own, to which VMs are put by `kind: network` in their specs.

use innkeeper::Host;
use innkeeper::api::NetworkInfo;
use innkeeper::spec::VmName;

use super::{DryRun, Yes};
use crate::confirm::confirm;
use crate::failure::Result;
use crate::output::{Format, Output};
use crate::table::Table;
use crate::units;

/// Networks between VMs
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Network {
    /// Make a network
    #[command(after_help = "Examples:
  inn network create lan")]
    Create {
        /// Name of the network
        name: VmName,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// List networks
    #[command(after_help = "Examples:
  inn network ls
  inn network ls -o json")]
    Ls,
    /// Show a network, its ports, and what they have counted
    #[command(after_help = "Examples:
  inn network show lan
  inn network show lan -o json")]
    Show {
        /// Network
        name: String,
    },
    /// Remove a network that no VM is on
    #[command(after_help = "Examples:
  inn network rm lan")]
    Rm {
        /// Network
        name: String,
        #[command(flatten)]
        yes: Yes,
        #[command(flatten)]
        dry_run: DryRun,
    },
}

impl Network {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        match self {
            Network::Create { name, dry_run } => {
                if dry_run.dry_run {
                    output.dry_run(&[format!("make the network {name}")])?;
                    return Ok(0);
                }
                let network = host.create_network(&name)?;
                if output.format == Format::Table {
                    output.note(&format!("the network {name} is made"));
                } else {
                    output.data(&network, String::new)?;
                }
            }
            Network::Ls => {
                let networks = host.networks().await?;
                if output.quiet && output.format == Format::Table {
                    let names: String = networks
                        .iter()
                        .map(|one| format!("{}\n", one.name))
                        .collect();
                    output.text(&names)?;
                } else {
                    output.data(&networks, || list(&networks))?;
                }
            }
            Network::Show { name } => {
                let network = host.network(&name).await?;
                output.data(&network, || ports(&network))?;
            }
            Network::Rm { name, yes, dry_run } => {
                // A name that is none is told before anything is asked.
                host.network(&name).await?;
                if dry_run.dry_run {
                    output.dry_run(&[format!("remove the network {name}")])?;
                    return Ok(0);
                }
                confirm(&format!("remove the network {name}?"), yes.yes)?;
                host.remove_network(&name).await?;
                output.note(&format!("the network {name} is removed"));
            }
        }
        Ok(0)
    }
}

fn list(networks: &[NetworkInfo]) -> String {
    let mut table = Table::new(&["NAME", ">PORTS", "CREATED"]);
    for network in networks {
        table.row([
            network.name.clone(),
            network.ports.len().to_string(),
            network.created.clone(),
        ]);
    }
    if networks.is_empty() {
        return String::new();
    }
    table.render()
}

fn ports(network: &NetworkInfo) -> String {
    if network.ports.is_empty() {
        return format!("{}: no VM runs on it\n", network.name);
    }
    let mut table = Table::new(&[
        "VM",
        ">NIC",
        "MAC",
        "LINK",
        ">FRAMES IN",
        ">IN",
        ">FRAMES OUT",
        ">OUT",
        ">DROPPED",
    ]);
    for port in &network.ports {
        let dropped = port
            .dropped_from_guest
            .values()
            .chain(port.dropped_to_guest.values());
        let link = match (
            port.connected,
            port.from_guest.is_some() || port.to_guest.is_some(),
        ) {
            (false, _) => "down",
            (true, true) => "shaped",
            (true, false) => "up",
        };
        table.row([
            port.vm.clone(),
            port.interface.to_string(),
            port.mac.clone(),
            link.to_owned(),
            port.received_frames.to_string(),
            units::size(port.received_bytes),
            port.sent_frames.to_string(),
            units::size(port.sent_bytes),
            dropped.sum::<u64>().to_string(),
        ]);
    }
    table.render()
}
