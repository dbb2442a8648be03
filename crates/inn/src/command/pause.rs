//! `inn pause`, `inn resume`, `inn suspend`: VMs stand still and go on.

use innkeeper::Host;
use innkeeper::api::{Admission, VmState};
use serde::Serialize;

use super::{DryRun, ReadyFlags, is_up};
use crate::failure::Result;
use crate::many;
use crate::output::Output;
use crate::reporter::Reporter;

/// Stop the CPUs of VMs; memory is kept, and the guest notices nothing but a gap
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn pause web
  inn resume web")]
pub(crate) struct Pause {
    /// VMs
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,

    #[command(flatten)]
    dry_run: DryRun,
}

/// Write the memory of VMs to disk and end their hypervisors; `inn start` brings them back as they were
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn suspend web
  inn start web
  inn start web --discard-saved        boots anew instead")]
pub(crate) struct Suspend {
    /// VMs
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,

    #[command(flatten)]
    dry_run: DryRun,
}

/// Continue paused VMs, or bring suspended ones back
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn resume web")]
pub(crate) struct Resume {
    /// VMs
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,

    #[command(flatten)]
    ready: ReadyFlags,

    #[command(flatten)]
    dry_run: DryRun,
}

/// What came of it for one VM, for programs.
#[derive(Debug, Serialize)]
struct Moved {
    name: String,
    state: VmState,
    #[serde(skip)]
    already: bool,
}

impl Moved {
    async fn of(host: &Host, name: &str, admission: Admission) -> Result<Self> {
        Ok(Moved {
            name: name.to_owned(),
            state: host.info(name).await?.state,
            already: admission == Admission::AlreadySo,
        })
    }

    fn sentence(&self) -> String {
        let before = if self.already { " already" } else { "" };
        format!("{} is {}{before}", self.name, self.state)
    }
}

impl Pause {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        if self.dry_run.dry_run {
            return super::dry_run_each(&self.names, "pause", host, output).await;
        }
        let (moved, code) = many::each(&self.names, output, async |name| {
            let admission = host.pause(name).await?;
            Moved::of(host, name, admission).await
        })
        .await?;
        super::show_each(&moved, output, |one| &one.name, Moved::sentence)?;
        Ok(code)
    }
}

impl Suspend {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        if self.dry_run.dry_run {
            return super::dry_run_each(&self.names, "suspend", host, output).await;
        }
        let (moved, code) = many::each(&self.names, output, async |name| {
            let admission = host.suspend(name).await?;
            Moved::of(host, name, admission).await
        })
        .await?;
        super::show_each(&moved, output, |one| &one.name, Moved::sentence)?;
        Ok(code)
    }
}

impl Resume {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        if self.dry_run.dry_run {
            return super::dry_run_each(&self.names, "resume", host, output).await;
        }
        let (resumed, code) = many::each(&self.names, output, async |name| {
            let already = host.resume(name).await? == Admission::AlreadySo;
            if already {
                output.note(&format!("{name} runs already"));
            }
            self.ready.wait(host, name, &Reporter::silent()).await
        })
        .await?;
        super::show_each(&resumed, output, |info| &info.name, is_up)?;
        Ok(code)
    }
}
