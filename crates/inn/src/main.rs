//! The `inn` command: a thin adapter over `innkeeper::Host`.
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

fn main() -> ExitCode {
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if arguments.len() == 2 && (arguments[1] == "--version" || arguments[1] == "-V") {
        // A reader that has gone away, or a full disk, is all that can fail here.
        return match writeln!(std::io::stdout(), "inn {}", env!("CARGO_PKG_VERSION")) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    ExitCode::from(cli::main(arguments))
}
