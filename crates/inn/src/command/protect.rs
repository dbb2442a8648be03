//! `inn protect`: makes `rm` refuse a VM, or allows it again.

use innkeeper::Host;

use super::DryRun;
use crate::failure::Result;
use crate::many;
use crate::output::Output;

/// Protect VMs from rm, or lift the protection
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn protect web
  inn protect --off web")]
pub(crate) struct Args {
    /// VMs
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,

    /// Lift the protection
    #[arg(long)]
    off: bool,

    #[command(flatten)]
    dry_run: DryRun,
}

impl Args {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        if self.dry_run.dry_run {
            let verb = if self.off {
                "stop protecting"
            } else {
                "protect"
            };
            return super::dry_run_each(&self.names, verb, host, output).await;
        }
        let (done, code) = many::each(&self.names, output, async |name| {
            host.protect(name, !self.off).await?;
            Ok(host.info(name).await?)
        })
        .await?;
        super::show_each(
            &done,
            output,
            |info| &info.name,
            |info| {
                let protected = if info.protected {
                    "protected"
                } else {
                    "not protected any more"
                };
                format!("{} is {protected}", info.name)
            },
        )?;
        Ok(code)
    }
}
