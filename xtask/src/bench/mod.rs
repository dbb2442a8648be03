//! `cargo xtask bench`: one frame for all benchmarks.
//!
//! A benchmark is a pair of things timed in one run, turn by turn and in alternating order, so that a machine that
//! grows slower hits both alike; where there is no peer, a series. It prints medians, intervals and whether the goal is
//! reached, and writes `target/bench/NAME.json`. Figures of different runs are never compared.
//!
//! ```text
//!  installation  an inn with a home of its own ──┐
//!  raw           QEMU by hand ───────────────────┼─► commands, start, kill, memory, copy, boot ─► report
//!  statistics    medians and intervals ──────────┘                                                 table, JSON, page
//! ```

mod boot;
mod circumstances;
mod cloud;
mod commands;
mod copy;
mod guest;
mod installation;
mod kill;
mod lifecycle;
mod memory;
mod monitor;
mod net;
mod raw;
mod report;
mod start;
mod statistics;

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};

use crate::process::say;
use crate::workspace;
use installation::{InnArguments, Installation};
use report::{Circumstances, Goal, Row};

/// Fewer pairs give no usable interval.
const LEAST_PAIRS: usize = 15;

/// Which benchmark.
#[derive(Args)]
pub(crate) struct BenchArguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Raw QEMU: spawn to the guest's marker, our machines against a plain q35 with a bzImage.
    Boot(InnArguments),
    /// `inn start` against raw QEMU with the same everything: to QMP ready, and to ready.
    Run(InnArguments),
    /// `inn kill` to gone, and a killed QEMU until it is told as failed.
    Kill(InnArguments),
    /// Pause, resume, suspend and restore of a 1 GiB guest against raw QMP, and a start from saved against a cold boot.
    Lifecycle(InnArguments),
    /// CPU, disk and network of a guest under our plan, against the best options by hand.
    Guest(InnArguments),
    /// The keeper's private memory.
    Memory(InnArguments),
    /// `inn cp` against the raw channel, and `inn exec` beside it.
    Cp(CopyArguments),
    /// `inn --version` against /bin/true.
    Version(InnArguments),
    /// `inn ls` with 100 VMs, 3 of them running, against /bin/true.
    Ls(InnArguments),
    /// `inn exec NAME true` in a running tiny guest, against /bin/true on the host.
    Exec(InnArguments),
    /// `inn create` from a 10 GiB image, against `qemu-img create -b`.
    Create(InnArguments),
    /// `inn run` against Cloud Hypervisor's own interface called in a row.
    CloudHypervisor(InnArguments),
    /// Frames through our switch against a socket pair, a bare relay, vde_switch and the Linux bridge. Needs no `inn`.
    Net(net::NetArguments),
    /// All of them but `net`, one table, and docs/benchmarks.md.
    All(CopyArguments),
}

/// How much `cp` copies.
#[derive(Args)]
struct CopyArguments {
    #[command(flatten)]
    inn: InnArguments,
    /// Size of the file in MiB; the goal speaks of 1024.
    #[arg(long, default_value_t = 1024)]
    size_mib: u64,
}

/// One measured run of a side.
pub(crate) type Side<'a> = Box<dyn FnMut() -> Result<Duration> + 'a>;

/// Two things to be compared.
pub(crate) struct Pair<'a> {
    /// Name of the row.
    pub(crate) name: String,
    pub(crate) ours: Side<'a>,
    pub(crate) theirs: Side<'a>,
    pub(crate) goal: Option<Goal>,
}

/// Runs the benchmark that was named.
pub(crate) fn run(arguments: &BenchArguments) -> Result<()> {
    match &arguments.bench {
        Bench::Boot(arguments) => single("boot", arguments, Pace::Slow, boot::run),
        Bench::Run(arguments) => single("run", arguments, Pace::Slow, start::run),
        Bench::Kill(arguments) => single("kill", arguments, Pace::Slow, kill::run),
        Bench::Lifecycle(arguments) => single("lifecycle", arguments, Pace::Slow, lifecycle::run),
        Bench::Guest(arguments) => single("guest", arguments, Pace::Slow, guest::run),
        Bench::Memory(arguments) => single("memory", arguments, Pace::Slow, memory::run),
        Bench::Cp(arguments) => single("cp", &arguments.inn, Pace::Slow, |installation, pairs| {
            copy::run(installation, pairs, arguments.size_mib)
        }),
        Bench::Version(arguments) => single("version", arguments, Pace::Quick, commands::version),
        Bench::Ls(arguments) => single("ls", arguments, Pace::Quick, commands::ls),
        Bench::Exec(arguments) => single("exec", arguments, Pace::Quick, commands::exec),
        Bench::Create(arguments) => single("create", arguments, Pace::Quick, commands::create),
        Bench::CloudHypervisor(arguments) => {
            single("cloud-hypervisor", arguments, Pace::Slow, cloud::run)
        }
        Bench::Net(arguments) => net::net(arguments),
        Bench::All(arguments) => all(arguments),
    }
}

/// How long a pair takes, which decides how many there are by default.
#[derive(Debug, Clone, Copy)]
enum Pace {
    /// Milliseconds.
    Quick,
    /// Seconds.
    Slow,
}

impl Pace {
    fn pairs(self, arguments: &InnArguments) -> Result<usize> {
        let pairs = match self {
            Pace::Quick => arguments.quick_pairs(),
            Pace::Slow => arguments.slow_pairs(),
        };
        ensure!(
            pairs >= LEAST_PAIRS,
            "{pairs} pairs are too few: at least {LEAST_PAIRS}"
        );
        Ok(pairs)
    }
}

fn single(
    name: &str,
    arguments: &InnArguments,
    pace: Pace,
    bench: impl FnOnce(&mut Installation, usize) -> Result<Vec<Row>>,
) -> Result<()> {
    let pairs = pace.pairs(arguments)?;
    let mut installation = Installation::new(arguments)?;
    publish(name, bench(&mut installation, pairs)?)
}

/// One benchmark of `all`.
type Bound<'a> = Box<dyn FnOnce(&mut Installation, usize) -> Result<Vec<Row>> + 'a>;

/// Runs all in one home. One that fails is told on the page and at the end, and does not stop the others.
fn all(arguments: &CopyArguments) -> Result<()> {
    let CopyArguments {
        inn: arguments,
        size_mib,
    } = arguments;
    let (quick, slow) = (Pace::Quick.pairs(arguments)?, Pace::Slow.pairs(arguments)?);
    let mut installation = Installation::new(arguments)?;
    let circumstances = Circumstances::ask(&mut installation)?;
    let benches: Vec<(&str, usize, Bound)> = vec![
        ("boot", slow, Box::new(boot::run)),
        ("run", slow, Box::new(start::run)),
        ("kill", slow, Box::new(kill::run)),
        ("lifecycle", slow, Box::new(lifecycle::run)),
        ("guest", slow, Box::new(guest::run)),
        ("cloud-hypervisor", slow, Box::new(cloud::run)),
        ("version", quick, Box::new(commands::version)),
        ("ls", quick, Box::new(commands::ls)),
        ("exec", quick, Box::new(commands::exec)),
        ("create", quick, Box::new(commands::create)),
        ("memory", slow, Box::new(memory::run)),
        (
            "cp",
            slow,
            Box::new(|installation, pairs| copy::run(installation, pairs, *size_mib)),
        ),
    ];
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    for (name, pairs, bench) in benches {
        say(&format!("bench {name}"));
        match bench(&mut installation, pairs) {
            Ok(more) => rows.extend(more),
            Err(error) => {
                let failure = format!("{name}: {error:#}");
                say(&failure);
                failures.push(failure);
                // What it left running would slow the next one down.
                installation.remove_all();
            }
        }
    }
    drop(installation);
    let path = workspace::root().join("docs/benchmarks.md");
    fs::write(&path, report::page(&circumstances, &rows, &failures))
        .with_context(|| format!("writing {}", path.display()))?;
    publish("all", rows)?;
    println!("written to {}", path.display());
    if !failures.is_empty() {
        bail!("not measured: {}", failures.join("; "));
    }
    Ok(())
}

/// Times all pairs in interleaved rounds.
fn measure(mut pairs: Vec<Pair<'_>>, count: usize) -> Result<Vec<Row>> {
    for pair in &mut pairs {
        // Once unmeasured: the page cache is to be warm for both.
        (pair.ours)().with_context(|| format!("{}, warming up", pair.name))?;
        (pair.theirs)().with_context(|| format!("{}, warming up", pair.name))?;
    }
    let mut timings = vec![Vec::with_capacity(count); pairs.len()];
    for round in 0..count {
        for (pair, timings) in pairs.iter_mut().zip(&mut timings) {
            timings.push(
                time_once(pair, round).with_context(|| format!("{}, round {round}", pair.name))?,
            );
        }
    }
    pairs
        .into_iter()
        .zip(&timings)
        .map(|(pair, timings)| Row::of_pairs(pair.name, timings, pair.goal))
        .collect()
}

/// Prints rows and keeps them with all their values.
fn publish(name: &str, rows: Vec<Row>) -> Result<()> {
    print!("{}", report::table(&rows));
    let directory = workspace::target_directory()?.join("bench");
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let path = directory.join(format!("{name}.json"));
    fs::write(&path, serde_json::to_vec_pretty(&rows)?)
        .with_context(|| format!("writing {}", path.display()))?;
    println!("written to {}", path.display());
    Ok(())
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn time_once(pair: &mut Pair<'_>, round: usize) -> Result<(f64, f64)> {
    // Who goes first changes each round, so that neither always finds the other's warmth.
    if round.is_multiple_of(2) {
        let ours = (pair.ours)()?;
        let theirs = (pair.theirs)()?;
        Ok((milliseconds(ours), milliseconds(theirs)))
    } else {
        let theirs = (pair.theirs)()?;
        let ours = (pair.ours)()?;
        Ok((milliseconds(ours), milliseconds(theirs)))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use clap::Parser;

    use super::*;

    #[test]
    fn sides_take_turns_in_going_first() {
        let order = RefCell::new(String::new());
        let side = |letter| {
            let order = &order;
            Box::new(move || {
                order.borrow_mut().push(letter);
                Ok(Duration::from_millis(1))
            })
        };
        let mut pair = Pair {
            name: String::new(),
            ours: side('o'),
            theirs: side('t'),
            goal: None,
        };
        for round in 0..4 {
            time_once(&mut pair, round).expect("a timing");
        }
        assert_eq!(*order.borrow(), "ottootto");
    }

    #[test]
    fn too_few_pairs_are_refused() {
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            bench: BenchArguments,
        }
        let line = Line::try_parse_from(["bench", "version", "--pairs", "3"]).expect("a line");
        let error = run(&line.bench).expect_err("too few");
        assert!(error.to_string().contains("at least 15"), "{error}");
    }
}
