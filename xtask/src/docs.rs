//! `cargo xtask docs`: the pages that are made from results, not written by hand.
//!
//! `docs/drivers.md`, and the table of the README, come from the records that the conformance trials left in the last test run. This runs no trial.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::process::{self, cargo, say};
use crate::workspace;

/// Where the README's table stands.
const BEGIN: &str = "<!-- drivers: made by `cargo xtask docs` -->";
const END: &str = "<!-- /drivers -->";

/// Where the results are.
#[derive(Args)]
pub(crate) struct DocsArguments {
    /// The directory of records that the trials wrote (`INNKEEPER_TEST_RESULTS`).
    #[arg(
        long,
        default_value = "/var/lib/innkeeper-test/.cache/innkeeper-tests/results"
    )]
    results: PathBuf,
}

/// Writes the pages.
pub(crate) fn run(arguments: &DocsArguments) -> Result<()> {
    let results = &arguments.results;
    ensure!(
        results.is_dir(),
        "there are no results in {}: run `cargo xtask test`, or name their directory with --results",
        results.display()
    );
    let made = |form: &str| -> Result<String> {
        let arguments = ["run", "--quiet", "--package", "innkeeper-testbed"];
        let printed = process::stdout(
            cargo(arguments)
                .args(["--bin", "testbed", "--", form])
                .arg(results),
        )?;
        String::from_utf8(printed).context("the testbed prints UTF-8")
    };
    write("docs/drivers.md", &made("matrix")?)?;
    let readme = std::fs::read_to_string(workspace::root().join("README.md"))?;
    write("README.md", &between_marks(&readme, &made("summary")?)?)
}

fn write(page: &str, text: &str) -> Result<()> {
    let page = workspace::root().join(page);
    std::fs::write(&page, text).with_context(|| format!("writing {}", page.display()))?;
    say(&format!("wrote {}", page.display()));
    Ok(())
}

/// Puts a table in place of the one between the marks.
fn between_marks(text: &str, table: &str) -> Result<String> {
    let lacks = || format!("the README lacks the marks {BEGIN} and {END}");
    let (before, rest) = text.split_once(BEGIN).with_context(lacks)?;
    let (_, after) = rest.split_once(END).with_context(lacks)?;
    Ok(format!("{before}{BEGIN}\n\n{table}\n{END}{after}"))
}
