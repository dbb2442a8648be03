//! `inn netd NAME`: the switch of one network. Hidden: the library starts it, people don't.

use innkeeper::Host;

use crate::failure::Result;
use crate::output::Output;

/// Run the switch of one network (started by inn itself)
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(crate) struct Args {
    /// Network
    name: String,
}

impl Args {
    pub(crate) async fn run(self, host: &Host, _: &Output) -> Result<u8> {
        innkeeper::network::run(host, &self.name).await?;
        Ok(0)
    }
}
