//! `inn create`: makes a VM without starting it.

use innkeeper::Host;

use super::{DryRun, explain, in_short};
use crate::failure::Result;
use crate::output::Output;
use crate::reporter::Reporter;
use crate::spec_flags::SpecFlags;

/// Make a VM from an image or a spec, without starting it
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn create debian:12
  inn create debian:12 --name web --cpus 4 --memory 2GiB --disk-size 20GiB -p 8080:80
  inn create -f vm.yaml --dry-run       which driver, which image, what would be copied")]
pub(crate) struct Args {
    #[command(flatten)]
    spec: SpecFlags,

    /// Name; made from the image if none is given
    #[arg(short, long)]
    name: Option<String>,

    #[command(flatten)]
    dry_run: DryRun,
}

impl Args {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        let spec = self.spec.spec()?;
        let name = match self.name {
            Some(name) => name,
            None => host.name_for(spec.image.as_deref())?,
        };
        if self.dry_run.dry_run {
            let plan = host.plan_create(&name, &spec).await?;
            return explain::show(&plan, &format!("would create {name}"), output);
        }
        let reporter = Reporter::new(output);
        let info = host.create(&name, spec, &reporter).await;
        reporter.finish();
        let info = info?;
        output.outcome(&name, &info, || {
            format!(
                "created {name} ({}); inn start {name} starts it",
                in_short(&info)
            )
        })?;
        Ok(0)
    }
}
