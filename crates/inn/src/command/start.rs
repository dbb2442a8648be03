//! `inn start`: starts VMs and waits until they are ready.

use innkeeper::Host;
use innkeeper::api::Admission;

use super::{DryRun, ReadyFlags, is_up};
use crate::failure::Result;
use crate::many;
use crate::output::Output;
use crate::reporter::Reporter;

/// Start VMs, and wait until they are ready
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn start web
  inn start web db --timeout 2min
  inn start web --no-wait
  inn start web --discard-saved        of a suspended VM: boots anew, what its guest was doing is lost")]
pub(crate) struct Args {
    /// VMs
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,

    #[command(flatten)]
    ready: ReadyFlags,

    /// Boot a suspended VM anew instead of bringing it back: what its guest was doing is lost
    #[arg(long)]
    discard_saved: bool,

    #[command(flatten)]
    dry_run: DryRun,
}

impl Args {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        if self.dry_run.dry_run {
            return super::dry_run_each(&self.names, "start", host, output).await;
        }
        // Several bars at once would draw over each other.
        let reporter = match self.names.len() {
            1 => Reporter::new(output),
            _ => Reporter::silent(),
        };
        let (started, code) = many::each(&self.names, output, async |name| {
            if self.discard_saved {
                host.discard_saved(name).await?;
            }
            let already = host.start(name).await? == Admission::AlreadySo;
            let info = self.ready.wait(host, name, &reporter).await?;
            if already {
                output.note(&format!("{name} was started before"));
            }
            Ok(info)
        })
        .await?;
        super::show_each(&started, output, |info| &info.name, is_up)?;
        Ok(code)
    }
}
