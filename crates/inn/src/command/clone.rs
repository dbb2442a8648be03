//! `inn clone`: another VM that begins as this one is, or was.

use innkeeper::{CloneKind, Host};

use super::{DryRun, in_short};
use crate::failure::Result;
use crate::output::Output;
use crate::reporter::Reporter;
use crate::units;

/// Make another VM of one that does not run, with an identity of its own
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn clone web web2
  inn clone web old --snapshot before-upgrade
  inn clone web web3 --full                    its disks are whole copies")]
pub(crate) struct Args {
    /// VM that it is made of
    vm: String,
    /// Name of the clone
    name: String,

    /// Begin as this snapshot, instead of as the VM is now
    #[arg(short, long)]
    snapshot: Option<String>,

    /// Copy the disks, so that nothing is shared with the other VM
    #[arg(long)]
    full: bool,

    #[command(flatten)]
    dry_run: DryRun,
}

impl Args {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        let (vm, name, snapshot) = (&self.vm, &self.name, self.snapshot.as_deref());
        let kind = match self.full {
            true => CloneKind::Full,
            false => CloneKind::Linked,
        };
        let of = match snapshot {
            Some(snapshot) => format!("snapshot {snapshot} of {vm}"),
            None => vm.clone(),
        };
        let copies = host.plan_clone(vm, snapshot, kind).await?;
        if self.dry_run.dry_run {
            let mut steps = vec![format!("make {name} of {of}")];
            if copies > 0 {
                steps.push(format!("copy about {}", units::size(copies)));
            }
            output.dry_run(&steps)?;
            return Ok(0);
        }
        if copies > 0 {
            output.note(&format!("about {} must be copied", units::size(copies)));
        }
        let reporter = Reporter::new(output);
        let cloned = host.clone_vm(vm, name, snapshot, kind, &reporter).await;
        reporter.finish();
        let cloned = cloned?;
        output.outcome(name, &cloned, || {
            let copied = match cloned.copied_bytes {
                0 => String::new(),
                bytes => format!(", {} copied", units::size(bytes)),
            };
            format!("cloned {of} as {name} ({}{copied})", in_short(&cloned.vm))
        })?;
        Ok(0)
    }
}
