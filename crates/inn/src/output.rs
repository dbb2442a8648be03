//! Where a command's words go: data to standard output in the asked form, everything else to standard error.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::environment;
use crate::failure::{Failure, Result};

/// Form of the data on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Table,
    /// JSON with stable names
    Json,
    /// YAML with the same names
    Yaml,
}

/// What every command is told about how to speak.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// Form of the data.
    pub(crate) format: Format,
    /// No notes, no progress; where data is a list of things, only their names.
    pub(crate) quiet: bool,
    /// Whether standard output may have colours.
    pub(crate) colours: bool,
}

impl Output {
    /// Makes it of the flags and of what standard output is.
    pub(crate) fn new(format: Format, quiet: bool) -> Self {
        let colours = format == Format::Table
            && io::stdout().is_terminal()
            && !environment::colours_are_unwanted();
        Output {
            format,
            quiet,
            colours,
        }
    }

    /// Returns whether programs read standard error too, so that errors are JSON and notes are left out.
    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Writes text as it is to standard output.
    pub(crate) fn text(&self, text: &str) -> Result<()> {
        self.bytes(text.as_bytes())
    }

    /// Writes bytes as they are to standard output.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<()> {
        let mut stdout = io::stdout().lock();
        stdout
            .write_all(bytes)
            .and_then(|()| stdout.flush())
            .map_err(Failure::output)
    }

    /// Says whether data is asked for in a form for programs.
    pub(crate) fn is_data(&self) -> bool {
        self.format != Format::Table
    }

    /// Writes a line to standard output.
    pub(crate) fn line(&self, line: &str) -> Result<()> {
        self.text(&format!("{line}\n"))
    }

    /// Writes data in the asked form; `table` is called for the form for people.
    pub(crate) fn data<T: Serialize>(
        &self,
        value: &T,
        table: impl FnOnce() -> String,
    ) -> Result<()> {
        match self.format {
            Format::Table => self.text(&table()),
            Format::Json => {
                let text = serde_json::to_string_pretty(value).map_err(unwritable)?;
                self.line(&text)
            }
            Format::Yaml => self.text(&yaml(value)?),
        }
    }

    /// Writes one piece of a stream of data: a line of JSON, or a YAML document.
    pub(crate) fn piece<T: Serialize>(
        &self,
        value: &T,
        table: impl FnOnce() -> String,
    ) -> Result<()> {
        match self.format {
            Format::Table => self.text(&table()),
            Format::Json => self.line(&serde_json::to_string(value).map_err(unwritable)?),
            Format::Yaml => self.text(&format!("---\n{}", yaml(value)?)),
        }
    }

    /// Tells what came of a command that changed something: with `-o` the data, with `-q` the name, else a note.
    pub(crate) fn outcome<T: Serialize>(
        &self,
        name: &str,
        value: &T,
        note: impl FnOnce() -> String,
    ) -> Result<()> {
        match self.format {
            Format::Table if self.quiet => self.line(name),
            Format::Table => {
                self.note(&note());
                Ok(())
            }
            _ => self.data(value, String::new),
        }
    }

    /// Tells a person something on standard error.
    pub(crate) fn note(&self, note: &str) {
        if !self.quiet && !self.is_json() {
            // Nothing can be done about a standard error that can't be written to.
            let _ = writeln!(io::stderr().lock(), "{note}");
        }
    }

    /// Warns on standard error, also when quiet.
    pub(crate) fn warning(&self, warning: &str) {
        if !self.is_json() {
            let _ = writeln!(io::stderr().lock(), "warning: {warning}");
        }
    }

    /// Writes what a dry run would have done.
    pub(crate) fn dry_run(&self, steps: &[String]) -> Result<()> {
        #[derive(Serialize)]
        struct DryRun<'a> {
            would: &'a [String],
        }
        self.data(&DryRun { would: steps }, || {
            steps
                .iter()
                .map(|step| format!("would {step}\n"))
                .collect::<String>()
        })
    }
}

/// Writes a value as YAML that ends in a line break.
fn yaml<T: Serialize>(value: &T) -> Result<String> {
    let mut text = serde_saphyr::to_string(value).map_err(unwritable)?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

fn unwritable(source: impl std::error::Error + Send + Sync + 'static) -> Failure {
    innkeeper::Error::new(
        innkeeper::api::ErrorKind::Failure,
        "writing the answer in the asked form",
    )
    .with_source(source)
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_quotes_what_would_read_as_something_else() {
        #[derive(Serialize)]
        struct Sample {
            plain: &'static str,
            word: &'static str,
            number: &'static str,
            colon: &'static str,
            none: Option<u8>,
            list: Vec<u8>,
        }
        insta::assert_snapshot!(
            yaml(&Sample {
                plain: "web",
                word: "no",
                number: "12",
                colon: "debian: 12",
                none: None,
                list: vec![1, 2],
            })
            .unwrap()
        );
    }
}
