//! Streams into a guest that need no agent: consoles, and vsock ports.

use innkeeper_api::ErrorKind;

use crate::driver::Channel;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::keeper::Door;

impl Host {
    /// Opens a console of a running VM: `serial`, or one that its spec names. One client at a time; a new one replaces the old.
    ///
    /// Errors: `NotFound` naming those that there are, `Conflict` if the VM does not run.
    pub async fn console(&self, vm: &str, console: &str) -> Result<Box<dyn Channel>> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if console.is_empty() || !console.chars().all(plain) {
            return Err(Error::new(
                ErrorKind::BadInput,
                format!("{console:?} is not a console's name"),
            )
            .with_hint("use `serial`, or a name from `consoles` in its spec"));
        }
        self.open(vm, Door::Console(console.to_owned())).await
    }

    /// Connects to a vsock port on which something in a running VM listens.
    pub async fn vsock_connect(&self, vm: &str, port: u32) -> Result<Box<dyn Channel>> {
        self.open(vm, Door::Vsock(port)).await
    }

    /// Waits for the next connection that a running VM makes to a vsock port of the host (context id 2).
    pub async fn vsock_accept(&self, vm: &str, port: u32) -> Result<Box<dyn Channel>> {
        self.open(vm, Door::VsockListen(port)).await
    }

    async fn open(&self, vm: &str, door: Door) -> Result<Box<dyn Channel>> {
        let bundle = self.root().bundle(vm)?;
        let info = self.engine.look(&bundle).await?;
        if info.vmm_pid.is_none() {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("{vm} is {}, it does not run", info.state),
            )
            .with_hint(format!("start it with `inn start {vm}`")));
        }
        let keeper = self.engine.need_keeper(&bundle).await?;
        Ok(Box::new(keeper.open(&door).await?))
    }
}
