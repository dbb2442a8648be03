//! `cargo xtask test`: installs what the tests need, checks, builds, and runs every test as an unprivileged user.
//!
//! ```text
//! root ──► make user innkeeper-test ─► plan.json ─► unshare --mount xtask in-view ─► setpriv xtask run-test-plan
//! other ─► plan.json ─────────────────────────────────────────────────────────────► run the plan right here
//! ```
//! Tests are built by cargo as whoever calls, and run by [`runner`], one process per test, because the user who runs
//! them may see neither cargo nor its directories. Doctests are run by cargo itself, as whoever calls.

mod account;
mod plan;
mod runner;
mod view;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

pub(crate) use view::{ViewArguments, enter as enter_view};

use crate::process::{self, cargo, is_root, say};
use crate::requirements::Purpose;
use crate::{agent, check, packages, virtiofsd, workspace};

/// What to test.
#[derive(Args)]
pub(crate) struct TestArguments {
    /// Leaves out `cargo xtask check`.
    #[arg(long)]
    no_check: bool,
    /// Leaves out installing packages.
    #[arg(long)]
    no_install: bool,
    /// Only this package; may stand several times.
    #[arg(short, long)]
    package: Vec<String>,
    /// Only tests whose name (`package::target name`) contains this.
    filter: Option<String>,
    /// Tests at once; by default one per processor.
    #[arg(long)]
    jobs: Option<usize>,
}

/// Where the plan is.
#[derive(Args)]
pub(crate) struct PlanArguments {
    plan: PathBuf,
}

/// Runs checks and tests; an error when any fails.
pub(crate) fn run(arguments: &TestArguments) -> Result<()> {
    if !arguments.no_install {
        packages::ensure(Purpose::Test)?;
    }
    if !arguments.no_check {
        check::run()?;
    }
    let libexec = agent::build(agent::Architectures::All)?;
    if !arguments.no_install {
        virtiofsd::ensure()?;
    }
    let account = if is_root() {
        account::Account::make()?
    } else {
        account::Account::own()?
    };
    let executables = plan::build(&arguments.package)?;
    let doctests = doctests(&arguments.package);
    let plan = plan::Plan {
        executables,
        environment: account.environment(&libexec),
        filter: arguments.filter.clone(),
        jobs: arguments
            .jobs
            .or_else(|| std::thread::available_parallelism().ok().map(usize::from))
            .unwrap_or(1)
            .max(1),
        scratch: account.scratch(),
        doctests_failed: doctests.is_err(),
    };
    if let Err(error) = doctests {
        say(&format!("{error:#}"));
    }
    let file = account.write_plan(&plan)?;
    if !is_root() {
        return run_plan(&PlanArguments { plan: file });
    }
    say(&format!("running the tests as user {}", account.name));
    let this = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--"]).arg(&this).arg("in-view");
    for path in plan.needed_paths(&this, &libexec) {
        command.arg("--need").arg(path);
    }
    command
        .arg("--stage")
        .arg(account.stage())
        .args(["--", "setpriv"]);
    command.args([
        format!("--reuid={}", account.uid),
        format!("--regid={}", account.gid),
        "--init-groups".to_owned(),
    ]);
    command.arg(&this).arg("run-test-plan").arg(&file);
    command.env_clear().envs(&plan.environment).current_dir("/");
    let status = command
        .stdin(std::process::Stdio::null())
        .status()
        .context("starting unshare")?;
    ensure!(status.success(), "tests failed");
    Ok(())
}

/// Runs a plan that was written before, as whoever this process is.
pub(crate) fn run_plan(arguments: &PlanArguments) -> Result<()> {
    let plan = plan::Plan::read(&arguments.plan)?;
    let mut tally = runner::run(&plan)?;
    if plan.doctests_failed {
        tally.failed += 1;
    }
    if tally.skipped > 0 {
        println!("{} skipped", tally.skipped);
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 {
        std::process::exit(1);
    }
    if tally.passed == 0 {
        bail!("no test was run");
    }
    Ok(())
}

fn doctests(packages: &[String]) -> Result<()> {
    // cargo refuses `--doc` where there is no library.
    let metadata = workspace::metadata()?;
    let libraries: Vec<String> = metadata
        .workspace_packages()
        .into_iter()
        .filter(|package| package.targets.iter().any(|target| target.is_lib()))
        .map(|package| package.name.to_string())
        .filter(|name| packages.is_empty() || packages.contains(name))
        .collect();
    if libraries.is_empty() {
        return Ok(());
    }
    let mut command = cargo(["test", "--locked", "--quiet", "--doc"]);
    plan::select(&mut command, &libraries);
    process::run(&mut command).context("doctests")
}
