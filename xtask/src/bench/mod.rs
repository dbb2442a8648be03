//! `cargo xtask bench`: one frame for all benchmarks.
//!
//! A benchmark is a pair of things timed in one run, turn by turn and in alternating order, so that a machine that
//! grows slower hits both alike. It prints medians, intervals and whether the goal is reached, and writes
//! `target/bench/NAME.json`. Figures of different runs are never compared. It judges nothing by a single timing, and
//! an interval that holds the goal is told as "not shown".

mod boot;
mod commands;
mod statistics;

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::workspace;
use statistics::{Summary, summarise};

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
    /// Raw QEMU: spawn to the guest's marker, our boot variants against a plain q35 bzImage.
    Boot(boot::BootArguments),
    /// `inn --version` against /bin/true.
    Version(commands::CommandArguments),
    /// `inn ls` with 100 VMs, 3 of them running, against /bin/true.
    Ls(commands::CommandArguments),
    /// `inn exec NAME true` in a running tiny guest, against /bin/true on the host.
    Exec(commands::CommandArguments),
    /// `inn create` from a 10 GiB image, against `qemu-img create -b`.
    Create(commands::CommandArguments),
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

/// What is to be reached.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) enum Goal {
    /// Ours over theirs, at most.
    RatioAtMost(f64),
    /// Ours, in milliseconds, whatever the peer takes.
    OursAtMost(f64),
}

/// How a goal stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum Verdict {
    /// The whole interval is within.
    Reached,
    /// The interval holds the goal: more pairs, or a quieter machine.
    NotShown,
    /// The whole interval is beyond.
    NotReached,
}

impl Goal {
    fn judge(self, summary: &Summary) -> Verdict {
        let (estimate, limit) = match self {
            Goal::RatioAtMost(limit) => (summary.ratio, limit),
            Goal::OursAtMost(limit) => (summary.ours_alone_ms, limit),
        };
        if estimate.high <= limit {
            Verdict::Reached
        } else if estimate.low > limit {
            Verdict::NotReached
        } else {
            Verdict::NotShown
        }
    }
}

/// One row of a result.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    #[serde(flatten)]
    summary: Summary,
    goal: Option<Goal>,
    verdict: Option<Verdict>,
    /// All timings in order, in milliseconds: (ours, theirs).
    pairs_ms: Vec<(f64, f64)>,
}

/// Runs the benchmark that was named.
pub(crate) fn run(arguments: &BenchArguments) -> Result<()> {
    match &arguments.bench {
        Bench::Boot(arguments) => boot::run(arguments),
        Bench::Version(arguments) => commands::version(arguments),
        Bench::Ls(arguments) => commands::ls(arguments),
        Bench::Exec(arguments) => commands::exec(arguments),
        Bench::Create(arguments) => commands::create(arguments),
    }
}

/// Times all pairs in interleaved rounds, prints and writes the result.
pub(crate) fn measure(name: &str, mut pairs: Vec<Pair<'_>>, count: usize) -> Result<()> {
    ensure!(
        count >= LEAST_PAIRS,
        "{count} pairs are too few: at least {LEAST_PAIRS}"
    );
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
    let rows: Vec<Row> = pairs
        .iter()
        .zip(timings)
        .map(|(pair, pairs_ms)| {
            let summary = summarise(&pairs_ms).context("no pairs")?;
            let verdict = pair.goal.map(|goal| goal.judge(&summary));
            Ok(Row {
                name: pair.name.clone(),
                summary,
                goal: pair.goal,
                verdict,
                pairs_ms,
            })
        })
        .collect::<Result<_>>()?;
    print!("{}", table(&rows));
    let directory = workspace::target_directory()?.join("bench");
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let path = directory.join(format!("{name}.json"));
    fs::write(&path, serde_json::to_vec_pretty(&rows)?)
        .with_context(|| format!("writing {}", path.display()))?;
    println!("written to {}", path.display());
    Ok(())
}

fn time_once(pair: &mut Pair<'_>, round: usize) -> Result<(f64, f64)> {
    let milliseconds = |duration: Duration| duration.as_secs_f64() * 1000.0;
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

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<28} {:>5} {:>10} {:>10} {:>26} {:>20}  goal\n",
        "benchmark", "pairs", "ours ms", "theirs ms", "difference ms [95%]", "ratio [95%]"
    );
    for row in rows {
        let (difference, ratio) = (row.summary.difference_ms, row.summary.ratio);
        let goal = match (row.goal, row.verdict) {
            (Some(goal), Some(verdict)) => {
                let word = match verdict {
                    Verdict::Reached => "reached",
                    Verdict::NotShown => "not shown",
                    Verdict::NotReached => "not reached",
                };
                match goal {
                    Goal::RatioAtMost(limit) => format!("ratio <= {limit}: {word}"),
                    Goal::OursAtMost(limit) => format!("ours <= {limit} ms: {word}"),
                }
            }
            _ => "-".to_owned(),
        };
        text.push_str(&format!(
            "{:<28} {:>5} {:>10.1} {:>10.1} {:>26} {:>20}  {goal}\n",
            row.name,
            row.summary.pairs,
            row.summary.ours_ms,
            row.summary.theirs_ms,
            format!(
                "{:.1} [{:.1}, {:.1}]",
                difference.value, difference.low, difference.high
            ),
            format!("{:.3} [{:.3}, {:.3}]", ratio.value, ratio.low, ratio.high),
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

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
    fn goals_are_judged_by_the_interval() {
        let judge = |ours: f64| {
            let pairs: Vec<_> = (0..15).map(|i| (ours + f64::from(i % 5), 100.0)).collect();
            Goal::RatioAtMost(0.85).judge(&summarise(&pairs).expect("a summary"))
        };
        assert_eq!(judge(70.0), Verdict::Reached);
        assert_eq!(judge(83.0), Verdict::NotShown);
        assert_eq!(judge(95.0), Verdict::NotReached);
    }

    #[test]
    fn too_few_pairs_are_refused() {
        assert!(measure("none", Vec::new(), 3).is_err());
    }
}
