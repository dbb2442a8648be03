//! `inn shell`: a login shell in a guest, on our terminal. Without a terminal it reads its commands from standard input.

use std::io::IsTerminal;

use innkeeper::Host;
use innkeeper::guest::message::ExecRequest;

use crate::failure::{EXIT_OUR_FAILURE, Failure, Result};
use crate::output::Output;
use crate::session::{self, Input};
use crate::terminal;

/// Shells that are tried, the best first.
const SHELLS: [&str; 2] = ["/bin/bash", "/bin/sh"];
/// Exit code for "no such command", of `session`.
const NO_SUCH_COMMAND: u8 = 127;

/// Open a shell in a running VM
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn shell web
  inn shell web -u debian
  inn shell web --shell /usr/bin/fish")]
pub(crate) struct Args {
    /// VM
    name: String,

    /// User; the agent's own (root) if none is given
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,

    /// Directory that it starts in
    #[arg(short, long, value_name = "DIRECTORY")]
    workdir: Option<String>,

    /// Program; bash if the guest has it, else sh
    #[arg(long, value_name = "PROGRAM")]
    shell: Option<String>,
}

impl Args {
    pub(crate) async fn run(self, host: &Host, _: &Output) -> Result<u8> {
        let ours = |failure: Failure| failure.with_code(EXIT_OUR_FAILURE);
        let tty = match std::io::stdin().is_terminal() {
            true => Some(terminal::on_standard_input().map_err(ours)?),
            false => None,
        };
        let guest = host
            .guest(&self.name)
            .await
            .map_err(|error| ours(error.into()))?;
        let shells: Vec<&str> = match &self.shell {
            Some(shell) => vec![shell],
            None => SHELLS.to_vec(),
        };
        for (index, shell) in shells.iter().enumerate() {
            let request = ExecRequest {
                argv: vec![(*shell).to_owned(), "-l".to_owned()],
                cwd: self.workdir.clone(),
                user: self.user.clone(),
                tty: tty.clone(),
                ..ExecRequest::default()
            };
            match session::run_on(host, &guest, &self.name, request, Input::Passed).await {
                Err(Failure::Told {
                    code: Some(NO_SUCH_COMMAND),
                    ..
                }) if index + 1 < shells.len() => {}
                other => return other,
            }
        }
        Err(Failure::usage("no shell to try was given"))
    }
}
