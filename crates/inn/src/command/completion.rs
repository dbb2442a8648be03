//! `inn completion`: completions for shells.

use clap_complete::Shell;

use crate::failure::Result;
use crate::output::Output;

/// Print completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn completion bash > /etc/bash_completion.d/inn
  inn completion zsh > ~/.zfunc/_inn
  inn completion fish > ~/.config/fish/completions/inn.fish")]
pub(crate) struct Args {
    /// Shell
    shell: Shell,
}

impl Args {
    pub(crate) fn run(self, output: &Output) -> Result<u8> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut crate::cli::whole(), "inn", &mut text);
        output.bytes(&text)?;
        Ok(0)
    }
}
