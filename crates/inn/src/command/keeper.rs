//! `inn keeper NAME`: the process beside one running VM. Hidden: the library starts it, people don't.

use innkeeper::Host;

use crate::failure::Result;
use crate::output::Output;

/// Keep one running VM (started by inn itself)
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(crate) struct Args {
    /// VM
    name: String,
}

impl Args {
    pub(crate) async fn run(self, host: &Host, _: &Output) -> Result<u8> {
        innkeeper::keeper::run(host, &self.name).await?;
        Ok(0)
    }
}
