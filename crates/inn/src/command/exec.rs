//! `inn exec`: runs a command in a guest.

use std::collections::BTreeMap;

use innkeeper::Host;
use innkeeper::guest::message::ExecRequest;

use crate::failure::{EXIT_OUR_FAILURE, Result};
use crate::output::Output;
use crate::session::{self, Input};
use crate::terminal;

/// Run a command in a running VM; its exit code is ours
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn exec web uname -a
  inn exec -it web bash
  inn exec -u www-data -w /var/www web ls -l
  inn exec -i web tar -xf - -C /srv    reads our standard input")]
pub(crate) struct Args {
    #[command(flatten)]
    how: HowFlags,

    /// User, or user:group, that it runs as; the agent's own (root) if none is given
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,

    /// Directory that it runs in
    #[arg(short, long, value_name = "DIRECTORY")]
    workdir: Option<String>,

    /// Variable of its environment (repeatable)
    #[arg(short, long = "env", value_name = "KEY=VALUE", value_parser = variable)]
    environment: Vec<(String, String)>,

    /// VM
    name: String,

    /// Command with its arguments; nothing after it is read as an option of inn
    #[arg(
        value_name = "COMMAND",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    command: Vec<String>,
}

/// What a command in a guest is joined to.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct HowFlags {
    /// Pass standard input on; without it the command finds its input at its end
    #[arg(short, long)]
    interactive: bool,

    /// Give the command a terminal: ours
    #[arg(short, long)]
    tty: bool,
}

impl HowFlags {
    /// Runs a command as the flags say, and returns its exit code.
    pub(crate) async fn run(self, host: &Host, name: &str, mut request: ExecRequest) -> Result<u8> {
        if self.tty {
            let terminal = terminal::on_standard_input();
            request.tty = Some(terminal.map_err(|failure| failure.with_code(EXIT_OUR_FAILURE))?);
        }
        let input = match self.interactive {
            true => Input::Passed,
            false => Input::Empty,
        };
        session::run(host, name, request, input).await
    }
}

impl Args {
    pub(crate) async fn run(self, host: &Host, _: &Output) -> Result<u8> {
        let request = ExecRequest {
            argv: self.command,
            env: self.environment.into_iter().collect::<BTreeMap<_, _>>(),
            cwd: self.workdir,
            user: self.user,
            ..ExecRequest::default()
        };
        self.how.run(host, &self.name, request).await
    }
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[arg(short, global = true)]
        quiet: bool,
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn what_follows_the_name_is_the_guests() {
        let read = |words: &[&str]| Command::try_parse_from(words).unwrap();
        let command = read(&["exec", "-it", "web", "ls", "-l", "-q", "--", "-t"]);
        assert!(command.args.how.interactive && command.args.how.tty && !command.quiet);
        assert_eq!(command.args.command, ["ls", "-l", "-q", "--", "-t"]);
        let command = read(&["exec", "web", "--", "ls", "-i"]);
        assert!(!command.args.how.interactive);
        assert_eq!(command.args.command, ["ls", "-i"]);
        assert!(Command::try_parse_from(["exec", "web"]).is_err());
        assert!(Command::try_parse_from(["exec", "-e", "x", "web", "ls"]).is_err());
    }
}
