//! `inn net`: the network interfaces of a VM, now if it runs, and in its spec.

use innkeeper::Host;
use innkeeper::spec::{ForwardSpec, MacAddr, NetworkKind, NetworkSpec};

use super::disk_of_vm::tell;
use super::{DetachFlags, DryRun};
use crate::failure::Result;
use crate::output::Output;

/// Network interfaces of VMs
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Net {
    /// Add a network interface to a VM; at once if it runs
    #[command(after_help = "Examples:
  inn net attach web
  inn net attach web -p 8443:443")]
    Attach {
        /// VM
        vm: String,
        /// Port of this computer that leads into the guest (repeatable)
        #[arg(short = 'p', long = "publish", value_name = "HOST_PORT:GUEST_PORT")]
        forwards: Vec<ForwardSpec>,
        /// MAC address; made once and kept if none is given
        #[arg(long)]
        mac: Option<MacAddr>,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Remove the last network interface of a VM; at once if it runs, when its guest lets go
    #[command(after_help = "Examples:
  inn net detach web")]
    Detach {
        /// VM
        vm: String,
        #[command(flatten)]
        how: DetachFlags,
    },
}

impl Net {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        match self {
            Net::Attach {
                vm,
                forwards,
                mac,
                dry_run,
            } => {
                let network = NetworkSpec {
                    kind: NetworkKind::User,
                    mac,
                    forwards,
                };
                let change = host.attach_network(&vm, &network, dry_run.dry_run).await?;
                let what = "a network interface";
                tell(&vm, &change, dry_run.dry_run, "attached", what, output)?;
            }
            Net::Detach { vm, how } => {
                let options = how.options();
                let change = host.detach_network(&vm, options).await?;
                let what = "the last network interface";
                tell(&vm, &change, options.dry_run, "detached", what, output)?;
            }
        }
        Ok(0)
    }
}
