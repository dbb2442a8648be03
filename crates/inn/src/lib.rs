//! The `inn` command: a thin adapter over `innkeeper::Host`.
//!
//! It is a library so that tests can run whole commands on a host with test doubles ([`main`] takes the builder); nothing else here is public.
//!
//! `main` answers `--version` before anything else is set up, reads the arguments, opens the host and starts a single-threaded
//! runtime only for commands that need them, and turns what came of it into messages and an exit code. What a command does stands in
//! `command/`, a file each. Nothing here decides anything about virtual machines.

mod cli;
mod command;
mod confirm;
mod environment;
mod failure;
mod many;
mod output;
mod reference;
mod reporter;
mod session;
mod spec_flags;
mod suggest;
mod table;
mod terminal;
mod terminal_text;
mod units;

use std::io::Write;
use std::process::ExitCode;

use innkeeper::HostBuilder;

/// Runs the command that this process's arguments ask for, on the host that the builder makes with the environment.
pub fn main(builder: HostBuilder) -> ExitCode {
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if arguments.len() == 2 && (arguments[1] == "--version" || arguments[1] == "-V") {
        // A reader that has gone away, or a full disk, is all that can fail here.
        return match writeln!(std::io::stdout(), "inn {}", env!("CARGO_PKG_VERSION")) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    ExitCode::from(cli::main(arguments, builder))
}
