//! `inn man`: the manual pages, made from the same descriptions as `--help`.

use std::path::PathBuf;

use clap_mangen::Man;
use innkeeper::Error;

use super::DryRun;
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::reference;

/// Write the manual pages, or this reference
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn man | man -l -                   the page of inn itself
  inn man run | man -l -               of a command
  inn man --directory /usr/local/share/man/man1
  inn man --markdown > docs/cli.md")]
pub(crate) struct Args {
    /// Command whose page is written; inn itself if none is given
    #[arg(value_name = "COMMAND", conflicts_with_all = ["directory", "markdown"])]
    command: Vec<String>,

    /// Write the pages of all commands into this directory
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,

    /// Write the reference of all commands as Markdown
    #[arg(long, conflicts_with = "directory")]
    markdown: bool,

    #[command(flatten)]
    dry_run: DryRun,
}

impl Args {
    pub(crate) fn run(self, output: &Output) -> Result<u8> {
        if self.markdown {
            output.text(&reference::markdown())?;
            return Ok(0);
        }
        let pages = reference::visible_commands();
        let Some(directory) = self.directory else {
            let mut wanted = vec!["inn".to_owned()];
            wanted.extend(self.command);
            let wanted = wanted.join("-");
            let page = pages.into_iter().find(|page| page.get_name() == wanted);
            let page = page.ok_or_else(|| {
                let command = wanted.replace('-', " ");
                Failure::usage(format!("there is no command {command}"))
            })?;
            output.bytes(&render(page)?)?;
            return Ok(0);
        };
        if self.dry_run.dry_run {
            let path = |page: &clap::Command| directory.join(format!("{}.1", page.get_name()));
            let steps = pages
                .iter()
                .map(|page| format!("write {}", path(page).display()));
            output.dry_run(&steps.collect::<Vec<_>>())?;
            return Ok(0);
        }
        std::fs::create_dir_all(&directory)
            .map_err(|source| Error::io(format!("making {}", directory.display()), source))?;
        for page in pages {
            let path = directory.join(format!("{}.1", page.get_name()));
            std::fs::write(&path, render(page)?)
                .map_err(|source| Error::io(format!("writing {}", path.display()), source))?;
        }
        Ok(0)
    }
}

fn render(page: clap::Command) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    Man::new(page)
        .render(&mut text)
        .map_err(|source| Error::io("writing a manual page", source))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let pages = reference::visible_commands();
        let names: Vec<&str> = pages.iter().map(|page| page.get_name()).collect();
        for name in ["inn", "inn-run", "inn-image-pull", "inn-ssh-config"] {
            assert!(names.contains(&name), "{names:?}");
        }
        assert!(!names.contains(&"inn-keeper"));
        for page in pages {
            let name = page.get_name().to_owned();
            let text = String::from_utf8(render(page).unwrap()).unwrap();
            assert!(text.contains(".SH NAME"), "{name}: {text}");
        }
    }
}
