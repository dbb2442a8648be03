//! `inn restart`: stops VMs and starts them again, so that a changed spec takes effect.

use innkeeper::Host;

use super::{DryRun, StopFlags, is_up};
use crate::failure::Result;
use crate::many;
use crate::output::Output;
use crate::reporter::Reporter;

/// Shut VMs down and start them again with their present spec
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn restart web
  inn restart web --force --timeout 20s
  inn restart web --no-wait")]
pub(crate) struct Args {
    /// VMs
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,

    #[command(flatten)]
    stop: StopFlags,

    /// Return as soon as the hypervisor runs again
    #[arg(long)]
    no_wait: bool,

    #[command(flatten)]
    dry_run: DryRun,
}

impl Args {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        if self.dry_run.dry_run {
            return super::dry_run_each(&self.names, "restart", host, output).await;
        }
        let reporter = match self.names.len() {
            1 => Reporter::new(output),
            _ => Reporter::silent(),
        };
        let ready = super::ReadyFlags::new(self.no_wait);
        let (restarted, code) = many::each(&self.names, output, async |name| {
            host.restart(name, self.stop.options()).await?;
            ready.wait(host, name, &reporter).await
        })
        .await?;
        super::show_each(&restarted, output, |info| &info.name, is_up)?;
        Ok(code)
    }
}
