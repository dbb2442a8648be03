//! `inn ssh-config`: what OpenSSH's client needs to know of the VMs.

use innkeeper::Host;

use crate::failure::Result;
use crate::output::Output;

/// Print an OpenSSH client configuration for the VMs, for Include
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn ssh-config > ~/.ssh/innkeeper.conf
  inn ssh-config web

With `Include innkeeper.conf` at the top of ~/.ssh/config, `ssh inn-web` works, and so do scp, rsync and editors.")]
pub(crate) struct Args {
    /// Only this VM
    name: Option<String>,
}

impl Args {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        output.text(&host.ssh_config(self.name.as_deref()).await?)?;
        Ok(0)
    }
}
