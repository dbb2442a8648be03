//! `inn console`: a console of a VM, to be typed at.

use innkeeper::{Error, Host};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::failure::Result;
use crate::output::Output;
use crate::terminal::RawMode;

/// Ctrl-], as telnet and virsh have it: leaves the console.
const LEAVE: u8 = 0x1d;

/// Open a console of a VM: its first serial port, or one that its spec names. Ctrl-] leaves it
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn console web
  inn console web shell")]
pub(crate) struct Args {
    /// VM
    name: String,

    /// Console: serial, or a name from `consoles` in the spec
    #[arg(default_value = "serial")]
    console: String,
}

impl Args {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        let console = host.console(&self.name, &self.console).await?;
        let typed = std::io::IsTerminal::is_terminal(&std::io::stdin());
        if typed {
            output.note("connected; Ctrl-] leaves");
        }
        let _raw = if typed { Some(RawMode::enter()?) } else { None };
        let (mut from_guest, mut to_guest) = tokio::io::split(console);
        let typing = async {
            let mut keys = [0; 4096];
            let mut stdin = tokio::io::stdin();
            loop {
                let count = stdin.read(&mut keys).await?;
                let (keys, leaves) = match keys[..count].iter().position(|key| *key == LEAVE) {
                    Some(at) if typed => (&keys[..at], true),
                    _ => (&keys[..count], count == 0),
                };
                to_guest.write_all(keys).await?;
                if leaves && typed {
                    return Ok::<(), std::io::Error>(());
                }
                // The end of a pipe says that nothing more is typed; what the guest says is still wanted.
                if leaves {
                    to_guest.flush().await?;
                    std::future::pending::<()>().await;
                }
            }
        };
        let mut stdout = tokio::io::stdout();
        let ended = tokio::select! {
            ended = typing => ended,
            ended = tokio::io::copy(&mut from_guest, &mut stdout) => ended.map(drop),
        };
        stdout.flush().await.or(Ok::<(), std::io::Error>(())).ok();
        ended.map_err(|source| Error::io("passing the console's bytes on", source))?;
        Ok(0)
    }
}
