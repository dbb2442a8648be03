//! `inn ssh`: OpenSSH's client, led into a VM. It takes this process's place, so that terminal, signals and exit code are its own.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;

use innkeeper::api::ErrorKind;
use innkeeper::{Error, Host};

use crate::failure::Result;
use crate::output::Output;

/// Log in to a VM by ssh, or run a command there
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn ssh web
  inn ssh web uptime
  inn ssh web -- -L 9000:localhost:9000   options of ssh itself come after --")]
pub(crate) struct Args {
    /// VM
    name: String,

    /// Command, or more arguments of ssh
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    arguments: Vec<OsString>,
}

impl Args {
    pub(crate) async fn run(self, host: &Host, _: &Output) -> Result<u8> {
        let arguments = host.ssh_arguments(&self.name).await?;
        let source = std::process::Command::new("ssh")
            .args(arguments)
            .args(self.arguments)
            .exec();
        // Only a failure returns.
        if source.kind() == std::io::ErrorKind::NotFound {
            return Err(
                Error::new(ErrorKind::NotFound, "there is no ssh on this computer")
                    .with_hint("apt-get install openssh-client, or use inn shell NAME")
                    .into(),
            );
        }
        Err(Error::io("running ssh", source).into())
    }
}
