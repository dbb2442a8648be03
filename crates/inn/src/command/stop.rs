//! `inn stop`: asks guests to shut down, by the agent, then by the power button.

use innkeeper::Host;

use super::{DryRun, StopFlags, Stopped};
use crate::failure::Result;
use crate::many;
use crate::output::Output;

/// Shut VMs down: the guest is asked, and says which way it listened to
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn stop web
  inn stop web db --timeout 30s
  inn stop web --force                 kill it if it has not stopped in time")]
pub(crate) struct Args {
    /// VMs
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,

    #[command(flatten)]
    stop: StopFlags,

    #[command(flatten)]
    dry_run: DryRun,
}

impl Args {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        if self.dry_run.dry_run {
            return super::dry_run_each(&self.names, "stop", host, output).await;
        }
        let (stopped, code) = many::each(&self.names, output, async |name| {
            Ok(Stopped {
                name: name.to_owned(),
                outcome: host.stop(name, self.stop.options()).await?,
            })
        })
        .await?;
        super::show_each(&stopped, output, |one| &one.name, Stopped::sentence)?;
        Ok(code)
    }
}
