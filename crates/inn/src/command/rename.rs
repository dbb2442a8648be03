//! `inn rename`: gives a stopped VM another name.

use innkeeper::Host;

use super::DryRun;
use crate::failure::Result;
use crate::output::Output;

/// Give a stopped VM another name
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn rename debian web")]
pub(crate) struct Args {
    /// Name now
    from: String,
    /// New name
    to: String,

    #[command(flatten)]
    dry_run: DryRun,
}

impl Args {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        let (from, to) = (&self.from, &self.to);
        if self.dry_run.dry_run {
            let info = host.info(from).await?;
            output.dry_run(&[format!("rename {from} (now {}) to {to}", info.state)])?;
            return Ok(0);
        }
        host.rename(from, to).await?;
        let info = host.info(to).await?;
        output.outcome(to, &info, || format!("{from} is now {to}"))?;
        Ok(0)
    }
}
