//! Asks before something is lost. Without a terminal to ask on, only `--yes` will do.

use std::io::{self, BufRead, IsTerminal, Write};

use innkeeper::Error;
use innkeeper::api::ErrorKind;

use crate::failure::Result;

/// Asks `question` unless `yes`; an error if the answer is no, or nobody can be asked.
pub(crate) fn confirm(question: &str, yes: bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !can_ask() || !io::stdout().is_terminal() {
        let message = format!("{question} nobody can be asked: this is not a terminal");
        return Err(Error::new(ErrorKind::BadInput, message)
            .with_hint("add --yes")
            .into());
    }
    if ask(question, Answer::No)? {
        Ok(())
    } else {
        Err(Error::new(
            ErrorKind::Interrupted,
            "nothing was changed, as you answered",
        )
        .into())
    }
}

/// What an empty answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Yes.
    Yes,
    /// No.
    No,
}

/// Returns whether there is somebody to ask.
pub(crate) fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks on standard error and reads a line; the end of input is no.
pub(crate) fn ask(question: &str, default: Answer) -> Result<bool> {
    let choices = match default {
        Answer::Yes => "[Y/n]",
        Answer::No => "[y/N]",
    };
    let mut stderr = io::stderr().lock();
    let mut line = String::new();
    let read = write!(stderr, "{question} {choices} ")
        .and_then(|()| stderr.flush())
        .and_then(|()| io::stdin().lock().read_line(&mut line))
        .map_err(|source| Error::io("asking on the terminal", source))?;
    Ok(read > 0 && means_yes(&line, default))
}

fn means_yes(line: &str, default: Answer) -> bool {
    match line.trim().to_ascii_lowercase().as_str() {
        "" => default == Answer::Yes,
        "y" | "yes" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_yes_is_yes() {
        assert!(means_yes("Y\n", Answer::No));
        assert!(means_yes("yes\n", Answer::No));
        assert!(means_yes("\n", Answer::Yes));
        for line in ["\n", "n\n", "yess\n", "remove\n"] {
            assert!(!means_yes(line, Answer::No), "{line}");
        }
    }
}
