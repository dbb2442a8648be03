//! Everything about the house that is more than one cargo command: `cargo xtask demo|test|check|tidy|bench|docs|dist|agent`.
//!
//! Each subcommand is one module. Nothing here is part of the product, and no crate of the product knows of it.
//! It deliberately downloads nothing but Debian packages, and those only in `demo` and `test`, saying which and why.

mod agent;
mod bench;
mod check;
mod demo;
mod dist;
mod docs;
mod licences;
mod packages;
mod process;
mod requirements;
mod testing;
mod tidy;
mod virtiofsd;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The arguments of `cargo xtask`.
#[derive(Parser)]
#[command(name = "cargo xtask", about = "Project tasks of Innkeeper")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

/// One task each.
#[derive(Subcommand)]
enum Task {
    /// From nothing to a VM: installs what is missing, builds, runs a VM and a command in it.
    Demo(demo::DemoArguments),
    /// Installs what the tests need, then runs the checks and all tests, as an unprivileged user.
    Test(testing::TestArguments),
    /// Formatting, lints on Linux and macOS, documentation, licences, lock file, house rules.
    Check,
    /// The house rules alone.
    Tidy,
    /// The licences and sources of all dependencies alone.
    Licences,
    /// Benchmarks as interleaved pairs.
    Bench(bench::BenchArguments),
    /// Writes the pages that come from results: docs/drivers.md.
    Docs(docs::DocsArguments),
    /// Makes what is handed out, into target/dist: inn, the agents and the licences in one archive.
    Dist(dist::DistArguments),
    /// Builds the static guest agents into target/libexec/innkeeper.
    Agent,
    /// Runs a written test plan; `test` calls this as the unprivileged user.
    #[command(hide = true)]
    RunTestPlan(testing::PlanArguments),
    /// Opens closed paths in a private mount namespace, then becomes a command; `test` calls this as root.
    #[command(hide = true)]
    InView(testing::ViewArguments),
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Test(arguments) => testing::run(&arguments),
        Task::Check => check::run(),
        Task::Tidy => tidy::run(),
        Task::Licences => licences::run(),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Docs(arguments) => docs::run(&arguments),
        Task::Dist(arguments) => dist::run(&arguments),
        Task::Agent => agent::build(agent::Architectures::All).map(|_| ()),
        Task::RunTestPlan(arguments) => testing::run_plan(&arguments),
        Task::InView(arguments) => testing::enter_view(&arguments),
    }
}
