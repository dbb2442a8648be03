//! `inn keeper NAME`: the process beside one running VM. Hidden: the library starts it, people don't.

use innkeeper::Host;

use crate::failure::Result;

/// Keep one running VM (started by inn itself)
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(crate) struct Args {
    /// VM
    name: String,
}

impl Args {
    pub(crate) fn run(self, host: Host) -> Result<u8> {
        innkeeper::keeper::run(host, &self.name)?;
        Ok(0)
    }
}
