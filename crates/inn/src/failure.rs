//! How a command ends when it does not end well: the library's error, with the exit code it leads to.
//!
//! In table and YAML mode an error is `error: chain: of: sentences` and `hint: ...`; with `-o json` it is one line of JSON on
//! standard error, an `innkeeper::api::Problem`, so that a program that asked for JSON need not read prose.

use std::io::{self, IsTerminal, Write};

use innkeeper::Error;
use innkeeper::api::ErrorKind;

use crate::{environment, terminal_text};

/// Exit code of `exec` and `run -- CMD` when the command in the guest has no code because we failed.
pub(crate) const EXIT_OUR_FAILURE: u8 = 125;

/// Why a command did not end well.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something failed, and the user must be told.
    Told {
        /// What.
        error: Error,
        /// Exit code, where it is not the one of the error's kind.
        code: Option<u8>,
    },
    /// Whoever read our standard output has gone away: `inn ls | head -1`. Nothing to tell.
    ReaderGone,
    /// The user was told already.
    AlreadyTold(u8),
}

/// Shorthand for what commands return.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Told { error, code: None }
    }
}

impl Failure {
    /// Makes the failure of a wrong use of the command line.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::BadInput, message).into()
    }

    /// Makes the failure of writing to standard output.
    pub(crate) fn output(source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::BrokenPipe {
            Failure::ReaderGone
        } else {
            Error::io("writing to standard output", source).into()
        }
    }

    /// Makes it end with this exit code, whatever its kind.
    pub(crate) fn with_code(self, code: u8) -> Self {
        match self {
            Failure::Told { error, .. } => Failure::Told {
                error,
                code: Some(code),
            },
            Failure::AlreadyTold(_) => Failure::AlreadyTold(code),
            Failure::ReaderGone => Failure::ReaderGone,
        }
    }

    /// Tells the user, and returns the exit code.
    pub(crate) fn tell(&self, json: bool) -> u8 {
        match self {
            Failure::Told { error, code } => {
                tell_error(error, json);
                code.unwrap_or_else(|| error.exit_code())
            }
            Failure::ReaderGone => 0,
            Failure::AlreadyTold(code) => *code,
        }
    }
}

/// Writes an error to standard error. Nothing can be done if that fails, so nothing is.
pub(crate) fn tell_error(error: &Error, json: bool) {
    let text = if json {
        json_line(error)
    } else {
        sentences(
            error,
            io::stderr().is_terminal() && !environment::colours_are_unwanted(),
        )
    };
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

fn json_line(error: &Error) -> String {
    // A struct of strings and a word always serialises; the fallback keeps this function total.
    let problem = serde_json::to_string(&error.to_problem());
    problem.unwrap_or_else(|_| r#"{"kind":"failure","messages":[]}"#.to_owned()) + "\n"
}

fn sentences(error: &Error, colours: bool) -> String {
    let (red, cyan, off) = if colours {
        ("\x1b[1;31m", "\x1b[1;36m", "\x1b[0m")
    } else {
        ("", "", "")
    };
    let chain = error.chain();
    // A cause of many lines (a spec's problems) reads best below what it is the cause of.
    let mut text = format!("{red}error:{off} ");
    for (index, message) in chain.iter().enumerate() {
        if index > 0 {
            text.push_str(if message.contains('\n') { ":\n" } else { ": " });
        }
        // Names of files and words of programs get into messages; none may write to the terminal.
        text.push_str(&terminal_text::lines(message));
    }
    text.push('\n');
    if let Some(hint) = error.hint() {
        text.push_str(&format!("{cyan}hint:{off} {hint}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error() -> Error {
        Error::new(ErrorKind::NotFound, "no such file")
            .while_doing("reading the kernel")
            .while_doing("starting web")
            .with_hint("inn image pull debian:12")
    }

    #[test]
    fn tells_the_chain_and_the_hint() {
        assert_eq!(
            sentences(&error(), false),
            "error: starting web: reading the kernel: no such file\nhint: inn image pull debian:12\n"
        );
    }

    #[test]
    fn puts_causes_of_many_lines_below() {
        let error = Error::new(ErrorKind::BadInput, "a.yaml:1:1: x\na.yaml:2:1: y")
            .while_doing("the spec a.yaml has 2 problems");
        assert_eq!(
            sentences(&error, false),
            "error: the spec a.yaml has 2 problems:\na.yaml:1:1: x\na.yaml:2:1: y\n"
        );
    }

    #[test]
    fn tells_programs_in_json() {
        let line: serde_json::Value = serde_json::from_str(&json_line(&error())).unwrap();
        assert_eq!(line["kind"], "not-found");
        assert_eq!(line["messages"].as_array().unwrap().len(), 3);
        assert_eq!(line["hint"], "inn image pull debian:12");
    }

    #[test]
    fn a_reader_that_went_away_is_no_news() {
        let gone = Failure::output(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(matches!(gone, Failure::ReaderGone));
        let full = Failure::output(io::Error::from(io::ErrorKind::StorageFull));
        assert!(matches!(full, Failure::Told { ref error, .. } if error.exit_code() == 9));
    }
}
