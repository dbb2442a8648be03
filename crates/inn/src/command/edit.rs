//! `inn edit`: a VM's spec in the user's editor, asked again until it is right or given up.
//!
//! ```text
//!  spec ──► temporary file ──► editor ──► checked ──► spec replaced, if nobody changed it meanwhile
//!                                 ▲          │ mistakes
//!                                 └── again ─┘── no: the text is kept in the file, and the file is named
//! ```
//! The editor is a list of words, split as a shell would split them; no shell runs.

use std::fs;
use std::io::Write;
use std::process::Command;

use innkeeper::api::ErrorKind;
use innkeeper::{Error, Host, SpecChange};
use tempfile::NamedTempFile;

use super::{DryRun, set};
use crate::confirm::{Answer, ask, can_ask};
use crate::environment;
use crate::failure::{self, Result};
use crate::output::Output;

/// Edit a VM's spec in your editor ($VISUAL or $EDITOR)
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn edit web
  inn edit web --dry-run               what your edit would change, without changing it")]
pub(crate) struct Args {
    /// VM
    name: String,

    #[command(flatten)]
    dry_run: DryRun,
}

impl Args {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        let before = host.spec_text(&self.name)?;
        let editor = editor_words()?;
        let mut file = new_file(&self.name, &before)
            .map_err(|source| Error::io("making a file for the editor", source))?;
        loop {
            run_editor(&editor, &file)?;
            let text = fs::read_to_string(file.path()).map_err(|source| {
                Error::io(
                    format!("reading {} after the editor", file.path().display()),
                    source,
                )
            })?;
            if text == before {
                output.note(&format!("{} is unchanged", self.name));
                return Ok(0);
            }
            let edited = match self.dry_run.dry_run {
                true => host.preview_spec(&self.name, &text).await,
                false => host.replace_spec(&self.name, &before, &text).await,
            };
            let error = match edited {
                Ok(change) if self.dry_run.dry_run => {
                    output.dry_run(&set::steps(&change))?;
                    return Ok(0);
                }
                Ok(change) => return self.done(&change, output),
                Err(error) => error,
            };
            if error.kind() == ErrorKind::BadInput && can_ask() {
                failure::tell_error(&error, false);
                if ask("edit it again?", Answer::Yes)? {
                    continue;
                }
            }
            // What somebody wrote is not thrown away with a mistake in it.
            file.disable_cleanup(true);
            let kept = format!("your text is kept in {}", file.path().display());
            return Err(error.with_hint(kept).into());
        }
    }

    fn done(&self, change: &SpecChange, output: &Output) -> Result<u8> {
        output.outcome(&self.name, change, || set::sentence(&self.name, change))?;
        Ok(0)
    }
}

fn new_file(name: &str, text: &str) -> std::io::Result<NamedTempFile> {
    let mut file = tempfile::Builder::new()
        .prefix(&format!("inn-{name}-"))
        .suffix(".yaml")
        .tempfile()?;
    file.write_all(text.as_bytes())?;
    file.flush()?;
    Ok(file)
}

/// Returns the editor's program and first arguments.
fn editor_words() -> Result<Vec<String>> {
    let (value, variable) = environment::editor();
    let wrong = || {
        Error::new(
            ErrorKind::BadInput,
            format!("{variable} is no command: {}", value.display()),
        )
        .with_hint("set EDITOR to your editor, such as EDITOR=nano")
    };
    let text = value.to_str().ok_or_else(wrong)?;
    let words = shlex::split(text).filter(|words| !words.is_empty());
    Ok(words.ok_or_else(wrong)?)
}

fn run_editor(words: &[String], file: &NamedTempFile) -> Result<()> {
    let (program, arguments) = (&words[0], &words[1..]);
    let status = Command::new(program)
        .args(arguments)
        .arg(file.path())
        .status()
        .map_err(|source| {
            Error::io(format!("running the editor {program}"), source)
                .with_hint("set EDITOR to your editor, such as EDITOR=nano")
        })?;
    if status.success() {
        Ok(())
    } else {
        let message = format!("the editor {program} failed ({status}); nothing was changed");
        Err(Error::new(ErrorKind::Failure, message).into())
    }
}
