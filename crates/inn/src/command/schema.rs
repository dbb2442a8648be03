//! `inn schema`: the JSON Schema of `vm.yaml`.

use crate::failure::Result;
use crate::output::{Format, Output};

/// Print the JSON Schema of vm.yaml, for editors and programs
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn schema > vm.schema.json")]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(self, output: &Output) -> Result<u8> {
        let schema = innkeeper::spec::schema();
        // A table makes no sense of a schema.
        let format = match output.format {
            Format::Table => Format::Json,
            other => other,
        };
        Output { format, ..*output }.data(&schema, String::new)?;
        Ok(0)
    }
}
