//! What was measured: rows with their goals, as a table for people, as JSON, and as the page of published figures.
//!
//! It judges nothing by a single timing, and an interval that holds the goal is told as "not shown".

use anyhow::{Context, Result};
use serde::Serialize;

use super::statistics::{Estimate, Summary, bootstrap, summarise};

/// What is to be reached: at most so much of what is named.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) enum Goal {
    /// Ours over theirs.
    Ratio(f64),
    /// Ours less theirs.
    Difference(f64),
    /// Ours alone, whatever the peer takes.
    Ours(f64),
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

/// In what a row is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum Unit {
    Milliseconds,
    Microseconds,
    Mebibytes,
}

/// One row of a result.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(super) name: String,
    pub(super) unit: Unit,
    pub(super) ours: Estimate,
    /// What the pairs say, where there is a peer.
    pub(super) peer: Option<Summary>,
    pub(super) goal: Option<Goal>,
    pub(super) verdict: Option<Verdict>,
    /// All values in order; those of the peer are empty or as many.
    pub(super) ours_values: Vec<f64>,
    pub(super) theirs_values: Vec<f64>,
}

impl Row {
    /// Makes a row of timed pairs (ours, theirs) in milliseconds.
    pub(super) fn of_pairs(name: String, pairs: &[(f64, f64)], goal: Option<Goal>) -> Result<Self> {
        Self::of_pairs_in(name, Unit::Milliseconds, pairs, goal)
    }

    /// Makes a row of pairs (ours, theirs) in another unit.
    pub(super) fn of_pairs_in(
        name: String,
        unit: Unit,
        pairs: &[(f64, f64)],
        goal: Option<Goal>,
    ) -> Result<Self> {
        let summary = summarise(pairs).context("no pairs")?;
        let (ours_values, theirs_values) = pairs.iter().copied().unzip();
        Ok(Self {
            name,
            unit,
            ours: summary.ours_alone_ms,
            verdict: goal.map(|goal| goal.judge(summary.ours_alone_ms, Some(&summary))),
            peer: Some(summary),
            goal,
            ours_values,
            theirs_values,
        })
    }

    /// Makes a row of values that have no peer.
    pub(super) fn alone(name: &str, unit: Unit, values: Vec<f64>, goal: Goal) -> Result<Self> {
        let ours = bootstrap(&values).context("no values")?;
        Ok(Self {
            name: name.to_owned(),
            unit,
            ours,
            peer: None,
            goal: Some(goal),
            verdict: Some(goal.judge(ours, None)),
            ours_values: values,
            theirs_values: Vec::new(),
        })
    }
}

impl Unit {
    fn symbol(self) -> &'static str {
        match self {
            Unit::Milliseconds => "ms",
            Unit::Microseconds => "us",
            Unit::Mebibytes => "MiB",
        }
    }
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Reached => "reached",
            Verdict::NotShown => "not shown",
            Verdict::NotReached => "not reached",
        }
    }
}

impl Goal {
    /// What is compared without a peer shows nothing of a goal that is about the peer.
    fn judge(self, ours: Estimate, peer: Option<&Summary>) -> Verdict {
        let (estimate, limit) = match (self, peer) {
            (Goal::Ours(limit), _) => (ours, limit),
            (Goal::Ratio(limit), Some(peer)) => (peer.ratio, limit),
            (Goal::Difference(limit), Some(peer)) => (peer.difference_ms, limit),
            (Goal::Ratio(_) | Goal::Difference(_), None) => return Verdict::NotShown,
        };
        if estimate.high <= limit {
            Verdict::Reached
        } else if estimate.low > limit {
            Verdict::NotReached
        } else {
            Verdict::NotShown
        }
    }

    fn text(self, unit: Unit) -> String {
        match self {
            Goal::Ratio(limit) => format!("ratio <= {limit:.3}"),
            Goal::Difference(limit) => format!("difference <= {limit} {}", unit.symbol()),
            Goal::Ours(limit) => format!("ours <= {limit} {}", unit.symbol()),
        }
    }
}

/// The cells of a row: name, unit, count, ours, theirs, difference, ratio, goal, verdict.
fn cells(row: &Row) -> [String; 9] {
    let interval = |estimate: Estimate, places: usize| {
        format!(
            "{:.places$} [{:.places$}, {:.places$}]",
            estimate.value, estimate.low, estimate.high
        )
    };
    let of_peer = |text: &dyn Fn(&Summary) -> String| match &row.peer {
        Some(peer) => text(peer),
        None => "-".to_owned(),
    };
    [
        row.name.clone(),
        row.unit.symbol().to_owned(),
        row.ours_values.len().to_string(),
        interval(row.ours, 1),
        of_peer(&|peer| format!("{:.1}", peer.theirs_ms)),
        of_peer(&|peer| interval(peer.difference_ms, 1)),
        of_peer(&|peer| interval(peer.ratio, 3)),
        row.goal.map_or("-".to_owned(), |goal| goal.text(row.unit)),
        row.verdict
            .map_or("-".to_owned(), |verdict| verdict.word().to_owned()),
    ]
}

const HEADINGS: [&str; 9] = [
    "benchmark",
    "unit",
    "count",
    "ours [95%]",
    "theirs",
    "difference [95%]",
    "ratio [95%]",
    "goal",
    "",
];

/// Writes the rows as a table for a terminal.
pub(super) fn table(rows: &[Row]) -> String {
    let lines: Vec<[String; 9]> = std::iter::once(HEADINGS.map(str::to_owned))
        .chain(rows.iter().map(cells))
        .collect();
    let mut text = String::new();
    for line in &lines {
        for (column, cell) in line.iter().enumerate() {
            let width = lines
                .iter()
                .map(|line| line[column].chars().count())
                .max()
                .unwrap_or(0);
            let gap = if column == 0 { "" } else { "  " };
            text.push_str(&format!("{gap}{cell:<width$}"));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// In what circumstances the figures were taken.
pub(super) struct Circumstances {
    pub(super) date: String,
    pub(super) cpu: String,
    pub(super) cpus: usize,
    pub(super) qemu: String,
    pub(super) accel: String,
}

/// Writes the page of published figures.
pub(super) fn page(circumstances: &Circumstances, rows: &[Row], failures: &[String]) -> String {
    let mut text = format!(
        "# Benchmarks\n\n\
         Written by `cargo xtask bench all`. Sides were timed turn by turn in one run; figures are medians with 95% \
         intervals (bootstrap). Compare no figure with one of another run. A goal is reached when the whole interval is \
         within, and not shown when the interval holds it.\n\n\
         - date: {}\n- host: {} ({} CPUs)\n- {}\n- accelerator: {}\n\n",
        circumstances.date,
        circumstances.cpu,
        circumstances.cpus,
        circumstances.qemu,
        circumstances.accel,
    );
    let line = |cells: &[String]| {
        let escaped: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        format!("| {} |\n", escaped.join(" | "))
    };
    text.push_str(&line(&HEADINGS.map(str::to_owned)));
    text.push_str(&line(&HEADINGS.map(|_| "---".to_owned())));
    for row in rows {
        text.push_str(&line(&cells(row)));
    }
    if !failures.is_empty() {
        text.push_str("\nNot measured:\n\n");
        for failure in failures {
            text.push_str(&format!("- {}\n", failure.replace('\n', " ")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ours: f64, goal: Goal) -> Row {
        let pairs: Vec<_> = (0..15).map(|i| (ours + f64::from(i % 5), 100.0)).collect();
        Row::of_pairs("a | b".to_owned(), &pairs, Some(goal)).expect("a row")
    }

    #[test]
    fn goals_are_judged_by_the_interval() {
        let ratio = |ours| row(ours, Goal::Ratio(0.85)).verdict;
        assert_eq!(ratio(70.0), Some(Verdict::Reached));
        assert_eq!(ratio(83.0), Some(Verdict::NotShown));
        assert_eq!(ratio(95.0), Some(Verdict::NotReached));
        let difference = |ours| row(ours, Goal::Difference(20.0)).verdict;
        assert_eq!(difference(110.0), Some(Verdict::Reached));
        assert_eq!(difference(118.0), Some(Verdict::NotShown));
        assert_eq!(difference(130.0), Some(Verdict::NotReached));
    }

    #[test]
    fn what_has_no_peer_shows_nothing_about_it() {
        let alone = |goal| {
            Row::alone("x", Unit::Mebibytes, vec![3.0; 15], goal)
                .expect("a row")
                .verdict
        };
        assert_eq!(alone(Goal::Ours(12.0)), Some(Verdict::Reached));
        assert_eq!(alone(Goal::Ours(2.0)), Some(Verdict::NotReached));
        assert_eq!(alone(Goal::Ratio(12.0)), Some(Verdict::NotShown));
    }

    #[test]
    fn the_page_has_every_row_and_every_failure() {
        let circumstances = Circumstances {
            date: "2026-11-21".to_owned(),
            cpu: "a CPU".to_owned(),
            cpus: 2,
            qemu: "QEMU 10.0".to_owned(),
            accel: "tcg".to_owned(),
        };
        let text = page(
            &circumstances,
            &[row(70.0, Goal::Ratio(0.85))],
            &["kill: it\nhung".to_owned()],
        );
        assert!(text.contains("| a \\| b | ms | 15 |"), "{text}");
        assert!(text.contains("| ratio <= 0.850 | reached |"), "{text}");
        assert!(text.contains("- kill: it hung\n"), "{text}");
        assert!(text.contains("2 CPUs"), "{text}");
    }
}
