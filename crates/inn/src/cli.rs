//! The command line as a whole: its arguments, and the way from them to a command, to a message and to an exit code.
//!
//! ```text
//!  arguments ── clap ──► Command ── a host and a runtime, if it needs them ──► its `run` ──► exit code
//!      └─ wrong: usage on standard error, exit 2
//! ```

use std::ffi::OsString;
use std::io::Write;

use clap::error::{ContextKind, ContextValue, ErrorKind as ClapKind};
use clap::{CommandFactory, Parser, Subcommand};
use innkeeper::api::ErrorKind;
use innkeeper::{Error, Host, HostBuilder};

use crate::command::*;
use crate::failure::{self, Result};
use crate::output::{Format, Output};
use crate::suggest;

const AFTER_HELP: &str = "\
Start here:
  inn run debian:12                  a new VM, ready to use
  inn shell debian                   a shell in it
  inn stop debian                    shut it down; inn start debian brings it back
  inn doctor                         what this computer can run, and what it lacks

Exit codes: 0 done, 1 failed, 2 wrong usage or spec, 3 not found, 4 wrong state or conflict, 5 not supported here, 6 unreachable, 7 timed out, 8 not permitted, 9 no space, 130 interrupted.
exec, shell and run -- CMD give the guest command's own code; 125 is a failure of ours, 126 it can't be executed, 127 it was not found, 128+n a signal.";

/// Virtual machines on your own computer
#[derive(Debug, Parser)]
#[command(name = "inn", version, after_help = AFTER_HELP, max_term_width = 110)]
#[command(
    propagate_version = false,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    /// Form of the data on standard output; with json, errors are a line of JSON on standard error
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        value_name = "FORM",
        default_value_t
    )]
    output: Format,

    /// Say only what was asked for: names instead of tables, no notes, no progress
    #[arg(short, long, global = true)]
    quiet: bool,

    #[command(subcommand)]
    command: Command,
}

/// What can be done. A variant is a file in `command/`.
#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Host(Box<HostCommand>),
    #[command(flatten)]
    Plain(PlainCommand),
}

/// What needs a host and a runtime.
#[derive(Debug, Subcommand)]
enum HostCommand {
    #[command(visible_alias = "launch")]
    Run(run::Args),
    Create(create::Args),
    Clone(clone::Args),
    Start(start::Args),
    Stop(stop::Args),
    Kill(kill::Args),
    Restart(restart::Args),
    Pause(pause::Pause),
    Resume(pause::Resume),
    #[command(visible_alias = "save")]
    Suspend(pause::Suspend),
    #[command(visible_aliases = ["list", "ps"])]
    Ls(ls::Args),
    #[command(visible_alias = "inspect")]
    Info(info::Args),
    Stats(stats::Args),
    Shell(shell::Args),
    Exec(exec::Args),
    Console(console::Args),
    Cp(cp::Args),
    Vsock(vsock::Args),
    Ssh(ssh::Args),
    SshConfig(ssh_config::Args),
    Logs(logs::Args),
    Edit(edit::Args),
    Set(set::Args),
    #[command(visible_alias = "mv")]
    Rename(rename::Args),
    Protect(protect::Args),
    #[command(visible_aliases = ["delete", "remove"])]
    Rm(rm::Args),
    Wait(wait::Args),
    Events(events::Args),
    Explain(explain::Args),
    Drivers(drivers::Args),
    #[command(subcommand)]
    Image(image::Image),
    Import(import::Args),
    Export(export::Args),
    #[command(subcommand)]
    Disk(disk::Disk),
    #[command(subcommand)]
    Snapshot(snapshot::Snapshot),
    #[command(subcommand)]
    Net(net::Net),
    #[command(subcommand)]
    Network(network::Network),
    Doctor(doctor::Args),
    Keeper(keeper::Args),
    Netd(netd::Args),
}

/// What needs neither.
#[derive(Debug, Subcommand)]
enum PlainCommand {
    Schema(schema::Args),
    Completion(completion::Args),
    Man(man::Args),
}

/// Reads the arguments, does what they ask, and returns the exit code.
pub(crate) fn main(arguments: Vec<OsString>, builder: HostBuilder) -> u8 {
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return tell_usage(error, asks_for_json(&arguments)),
    };
    let output = Output::new(cli.output, cli.quiet);
    match dispatch(cli.command, builder, &output) {
        Ok(code) => code,
        Err(failure) => failure.tell(output.is_json()),
    }
}

fn dispatch(command: Command, builder: HostBuilder, output: &Output) -> Result<u8> {
    match command {
        #[cfg(target_os = "macos")]
        Command::Host(command) if matches!(*command, HostCommand::Keeper(_)) => {
            // A window with a machine's display could be shown by the main thread alone, so that has a loop of its own.
            let output = *output;
            match innkeeper::drivers::vz::main_loop::run(move || {
                run_to_end(*command, builder, &output)
            }) {
                Ok(result) => result,
                Err(work) => work(),
            }
        }
        Command::Host(command) => run_to_end(*command, builder, output),
        Command::Plain(PlainCommand::Schema(args)) => args.run(output),
        Command::Plain(PlainCommand::Completion(args)) => args.run(output),
        Command::Plain(PlainCommand::Man(args)) => args.run(output),
    }
}

fn run_to_end(command: HostCommand, builder: HostBuilder, output: &Output) -> Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::io("starting the runtime", source))?;
    let host = open_host(builder)?;
    let code = runtime.block_on(with_host(command, &host, output));
    // A thread that still reads standard input (a session that ended first) must not hold up the end.
    runtime.shutdown_background();
    code
}

async fn with_host(command: HostCommand, host: &Host, output: &Output) -> Result<u8> {
    match command {
        HostCommand::Run(args) => args.run(host, output).await,
        HostCommand::Create(args) => args.run(host, output).await,
        HostCommand::Clone(args) => args.run(host, output).await,
        HostCommand::Start(args) => args.run(host, output).await,
        HostCommand::Stop(args) => args.run(host, output).await,
        HostCommand::Kill(args) => args.run(host, output).await,
        HostCommand::Restart(args) => args.run(host, output).await,
        HostCommand::Pause(args) => args.run(host, output).await,
        HostCommand::Resume(args) => args.run(host, output).await,
        HostCommand::Suspend(args) => args.run(host, output).await,
        HostCommand::Ls(args) => args.run(host, output).await,
        HostCommand::Info(args) => args.run(host, output).await,
        HostCommand::Stats(args) => args.run(host, output).await,
        HostCommand::Shell(args) => args.run(host, output).await,
        HostCommand::Exec(args) => args.run(host, output).await,
        HostCommand::Console(args) => args.run(host, output).await,
        HostCommand::Cp(args) => args.run(host, output).await,
        HostCommand::Vsock(args) => args.run(host, output).await,
        HostCommand::Ssh(args) => args.run(host, output).await,
        HostCommand::SshConfig(args) => args.run(host, output).await,
        HostCommand::Logs(args) => args.run(host, output).await,
        HostCommand::Edit(args) => args.run(host, output).await,
        HostCommand::Set(args) => args.run(host, output).await,
        HostCommand::Rename(args) => args.run(host, output).await,
        HostCommand::Protect(args) => args.run(host, output).await,
        HostCommand::Rm(args) => args.run(host, output).await,
        HostCommand::Wait(args) => args.run(host, output).await,
        HostCommand::Events(args) => args.run(host, output).await,
        HostCommand::Explain(args) => args.run(host, output).await,
        HostCommand::Drivers(args) => args.run(host, output).await,
        HostCommand::Image(image) => image.run(host, output).await,
        HostCommand::Import(args) => args.run(host, output).await,
        HostCommand::Export(args) => args.run(host, output).await,
        HostCommand::Disk(disk) => disk.run(host, output).await,
        HostCommand::Snapshot(snapshot) => snapshot.run(host, output).await,
        HostCommand::Net(net) => net.run(host, output).await,
        HostCommand::Network(network) => network.run(host, output).await,
        HostCommand::Doctor(args) => args.run(host, output).await,
        HostCommand::Keeper(args) => args.run(host, output).await,
        HostCommand::Netd(args) => args.run(host, output).await,
    }
}

fn open_host(builder: HostBuilder) -> Result<Host> {
    let program = std::env::current_exe()
        .map_err(|source| Error::io("finding the path of this program", source))?;
    Ok(builder.helper(program).from_environment().open()?)
}

/// Tells what is wrong with the arguments (or gives the help that they ask for), and returns the exit code.
fn tell_usage(mut error: clap::Error, json: bool) -> u8 {
    if !error.use_stderr() {
        // Help and version, on standard output; a reader that went away has read enough.
        let _ = error.print();
        return 0;
    }
    let hint = match (error.kind(), error.get(ContextKind::InvalidSubcommand)) {
        (ClapKind::InvalidSubcommand, Some(ContextValue::String(word))) => suggest::for_word(word),
        _ => None,
    };
    if hint.is_some() {
        // Our own answer is better than the nearest spelling.
        error.remove(ContextKind::SuggestedSubcommand);
    }
    if json {
        let text = error.render().to_string();
        let message = text.lines().next().unwrap_or("wrong usage");
        let message = message.strip_prefix("error: ").unwrap_or(message);
        let mut told = Error::new(ErrorKind::BadInput, message);
        if let Some(hint) = hint {
            told = told.with_hint(hint);
        }
        failure::tell_error(&told, true);
    } else {
        let _ = error.print();
        if let Some(hint) = hint {
            let _ = writeln!(std::io::stderr(), "hint: {hint}");
        }
    }
    2
}

/// Returns whether arguments that could not be read asked for JSON.
fn asks_for_json(arguments: &[OsString]) -> bool {
    arguments.iter().any(|argument| {
        argument == "-ojson" || argument == "-o=json" || argument == "--output=json"
    }) || arguments
        .windows(2)
        .any(|pair| (pair[0] == "-o" || pair[0] == "--output") && pair[1] == "json")
}

/// Returns the whole command line, for the reference, the man pages and the completions.
pub(crate) fn whole() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_finds_no_fault() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        fn check(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
                let path = format!("{path} {}", sub.get_name());
                assert!(sub.get_about().is_some(), "{path} has no description");
                if sub.has_subcommands() {
                    check(sub, &path);
                } else {
                    let after = sub.get_after_help().map(ToString::to_string);
                    let after = after.unwrap_or_default();
                    assert!(after.starts_with("Examples:\n"), "{path} has no examples");
                    assert!(
                        after.contains(&format!("\n  {}", path.trim())),
                        "{path}: {after}"
                    );
                }
            }
        }
        check(&Cli::command(), "inn");
    }

    /// Splits the examples of every command as a shell would, and reads them.
    #[test]
    fn every_example_is_read() {
        fn examples(command: &clap::Command, found: &mut Vec<String>) {
            for sub in command.get_subcommands() {
                examples(sub, found);
                let after = sub.get_after_help().map(ToString::to_string);
                for line in after.unwrap_or_default().lines() {
                    // Two or more spaces set a remark apart.
                    if let Some(line) = line.strip_prefix("  inn ") {
                        let line = line.split("  ").next().unwrap_or_default();
                        let line = line.split(" > ").next().unwrap_or_default();
                        found.push(format!(
                            "inn {}",
                            line.split(" | ").next().unwrap_or_default()
                        ));
                    }
                }
            }
        }
        let mut found = Vec::new();
        examples(&Cli::command(), &mut found);
        assert!(found.len() > 40, "{found:?}");
        for example in found {
            let words = shlex::split(&example).unwrap();
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{example}: {error}");
            }
        }
    }

    #[test]
    fn json_is_asked_for_in_every_way() {
        for words in [["-o", "json"], ["--output", "json"], ["x", "--output=json"]] {
            assert!(asks_for_json(&words.map(OsString::from)));
        }
        assert!(!asks_for_json(&["-o", "yaml"].map(OsString::from)));
    }

    #[test]
    fn wrong_usage_is_2_and_help_is_0() {
        let code =
            |words: &[&str]| main(words.iter().map(OsString::from).collect(), Host::builder());
        assert_eq!(code(&["inn", "ls", "--no-such-flag"]), 2);
        assert_eq!(code(&["inn", "up"]), 2);
        assert_eq!(code(&["inn", "ls", "--help"]), 0);
    }
}
