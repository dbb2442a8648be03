//! `inn kill`: pulls the plug.

use innkeeper::Host;

use super::{DryRun, Stopped};
use crate::failure::Result;
use crate::many;
use crate::output::Output;

/// Pull the plug of VMs: what the guest had not written is lost
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn kill web")]
pub(crate) struct Args {
    /// VMs
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,

    #[command(flatten)]
    dry_run: DryRun,
}

impl Args {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        if self.dry_run.dry_run {
            return super::dry_run_each(&self.names, "kill", host, output).await;
        }
        let (killed, code) = many::each(&self.names, output, async |name| {
            Ok(Stopped {
                name: name.to_owned(),
                outcome: host.kill(name).await?,
            })
        })
        .await?;
        super::show_each(&killed, output, |one| &one.name, Stopped::sentence)?;
        Ok(code)
    }
}
