//! `cargo xtask docs`: the pages that are made from results, not written by hand.
//!
//! `docs/drivers.md` comes from the records that the conformance trials left in the last test run. This runs no trial.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::process::{self, cargo, say};
use crate::workspace;

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
    let arguments = ["run", "--quiet", "--package", "innkeeper-testbed"];
    let made = process::stdout(
        cargo(arguments)
            .args(["--bin", "testbed", "--", "matrix"])
            .arg(results),
    )?;
    let page = workspace::root().join("docs/drivers.md");
    std::fs::write(&page, made).with_context(|| format!("writing {}", page.display()))?;
    say(&format!("wrote {}", page.display()));
    Ok(())
}
