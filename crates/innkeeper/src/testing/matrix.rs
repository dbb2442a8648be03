//! What came of the trials, written down one file each, and the page that is made of it.
//!
//! The page tells only what the trials showed: a capability that no trial needs is told as claimed, not as passed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use innkeeper_api::{Capability, DriverReport};
use serde::{Deserialize, Serialize};

use super::conformance::{Need, TRIALS};

/// What came of one trial with one driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The trial.
    pub trial: String,
    /// The driver.
    pub driver: String,
    /// What came of it.
    pub outcome: Outcome,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
    /// What the driver found on that computer.
    pub report: DriverReport,
    /// The computer: operating system and architecture.
    pub host: String,
    /// When it ended (RFC 3339, UTC).
    pub time: String,
}

/// What came of a trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was passed.
    Passed,
    /// It was not, for this reason.
    Failed(String),
    /// It could not be run, for this reason.
    Skipped(String),
}

impl Record {
    /// Makes the record of a trial that has just ended.
    pub fn new(
        trial: &str,
        outcome: Outcome,
        elapsed: std::time::Duration,
        report: DriverReport,
    ) -> Self {
        // What only the driver reads is not for a page.
        let report = DriverReport {
            details: serde_json::Value::Null,
            ..report
        };
        Record {
            trial: trial.to_owned(),
            driver: report.driver.clone(),
            outcome,
            elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            report,
            host: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            time: crate::clock::timestamp(),
        }
    }

    /// Writes it into a directory of records, in place of what an earlier run wrote.
    pub fn write(&self, directory: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(directory)?;
        let text = serde_json::to_vec_pretty(self).map_err(std::io::Error::from)?;
        let file = tempfile::NamedTempFile::new_in(directory)?;
        std::fs::write(file.path(), text)?;
        file.persist(directory.join(format!("{}--{}.json", self.driver, self.trial)))
            .map(drop)
            .map_err(|error| error.error)
    }
}

/// Reads every record of a directory, by driver and trial.
pub fn read(directory: &Path) -> std::io::Result<Vec<Record>> {
    let mut records = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            records
                .push(serde_json::from_slice(&std::fs::read(path)?).map_err(std::io::Error::from)?);
        }
    }
    records.sort_by(|one: &Record, other: &Record| {
        (&one.driver, &one.trial).cmp(&(&other.driver, &other.trial))
    });
    Ok(records)
}

/// What the trials showed of every driver, to be printed.
#[derive(Debug)]
pub struct Matrix<'a> {
    drivers: Vec<Column<'a>>,
    outcomes: BTreeMap<(&'a str, &'a str), &'a Outcome>,
    hosts: BTreeSet<&'a str>,
    day: &'a str,
}

/// A driver of the matrix.
#[derive(Debug)]
struct Column<'a> {
    report: &'a DriverReport,
    evidence: Evidence,
}

/// On what a column rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Evidence {
    /// Trials ran with the driver.
    Trials,
    /// The driver was compiled, and never ran.
    TypeChecked,
    /// A double for tests, which is no hypervisor.
    Double,
}

/// Numbered reasons below a table, each told once.
#[derive(Debug, Default)]
struct Footnotes(Vec<String>);

impl Footnotes {
    fn number(&mut self, reason: &str) -> usize {
        let known = self.0.iter().position(|known| known == reason);
        known.unwrap_or_else(|| {
            self.0.push(reason.to_owned());
            self.0.len() - 1
        }) + 1
    }

    fn print(&self, page: &mut String) {
        page.push('\n');
        for (index, reason) in self.0.iter().enumerate() {
            let _ = writeln!(page, "{}. {}", index + 1, cell(reason));
        }
    }
}

impl<'a> Matrix<'a> {
    /// Takes records of trials, and the reports of drivers that were compiled and never ran.
    pub fn new(records: &'a [Record], type_checked: &'a [DriverReport]) -> Self {
        let mut reports: BTreeMap<&str, &DriverReport> = BTreeMap::new();
        let mut outcomes = BTreeMap::new();
        let mut hosts = BTreeSet::new();
        let unrun = |report: &&DriverReport| {
            type_checked
                .iter()
                .all(|other| other.driver != report.driver)
        };
        for record in records.iter().filter(|record| unrun(&&record.report)) {
            reports.insert(&record.driver, &record.report);
            outcomes.insert((&*record.trial, &*record.driver), &record.outcome);
            hosts.insert(&*record.host);
        }
        let mut drivers: Vec<Column<'_>> = reports
            .into_values()
            .map(|report| Column {
                report,
                evidence: if report.driver.starts_with("fake") {
                    Evidence::Double
                } else {
                    Evidence::Trials
                },
            })
            .collect();
        drivers.extend(type_checked.iter().map(|report| Column {
            report,
            evidence: Evidence::TypeChecked,
        }));
        let day = records
            .iter()
            .map(|record| record.time.get(..10).unwrap_or_default())
            .max()
            .unwrap_or("never");
        Matrix {
            drivers,
            outcomes,
            hosts,
            day,
        }
    }

    fn hypervisors(&self) -> impl Iterator<Item = &Column<'a>> {
        self.drivers
            .iter()
            .filter(|column| column.evidence != Evidence::Double)
    }

    /// Makes the page `docs/drivers.md`.
    pub fn page(&self) -> String {
        let mut page = String::from(
            "# Drivers\n\nMade by `cargo xtask docs` from what the conformance trials showed; not written by hand.\n\n",
        );
        let hosts: Vec<&str> = self.hosts.iter().copied().collect();
        let _ = writeln!(page, "Last run: {}, on {}.\n", self.day, hosts.join(", "));
        for column in &self.drivers {
            let _ = writeln!(page, "- {}", column.introduce());
        }
        page.push_str("\n## Capabilities\n\n");
        page.push_str(
            "*passed*: every trial that needs it was passed. *claimed*: the driver says so, and no trial needs it yet. \
             *type-checked*: it is written, and was never run. A number is the reason, below.\n\n",
        );
        let mut footnotes = Footnotes::default();
        let hypervisors: Vec<&Column<'_>> = self.hypervisors().collect();
        head(&mut page, "capability", &hypervisors);
        for capability in Capability::ALL {
            let _ = write!(
                page,
                "| `{}` {} |",
                capability.as_str(),
                capability.describe()
            );
            for column in &hypervisors {
                let (word, reason) = self.verdict(*capability, column);
                let note = reason.map_or_else(String::new, |reason| {
                    format!(" ({})", footnotes.number(&reason))
                });
                let _ = write!(page, " {word}{note} |");
            }
            page.push('\n');
        }
        footnotes.print(&mut page);
        self.trials(&mut page);
        page
    }

    /// Makes the table of the README: what each hypervisor can do, in one word.
    pub fn summary(&self) -> String {
        let hypervisors: Vec<&Column<'_>> = self.hypervisors().collect();
        let mut table = String::new();
        head(&mut table, "", &hypervisors);
        for capability in Capability::ALL {
            let _ = write!(table, "| {} |", capability.describe().trim_end_matches('.'));
            for column in &hypervisors {
                let _ = write!(table, " {} |", self.verdict(*capability, column).0);
            }
            table.push('\n');
        }
        table
    }

    fn trials(&self, page: &mut String) {
        page.push_str("\n## Trials\n\n");
        page.push_str(
            "The drivers `fake` and `fake-poor` are doubles for tests, stricter than a hypervisor: they run no guest.\n\n",
        );
        let ran: Vec<&Column<'_>> = self
            .drivers
            .iter()
            .filter(|column| column.evidence != Evidence::TypeChecked)
            .collect();
        let mut footnotes = Footnotes::default();
        head(page, "trial", &ran);
        for trial in TRIALS {
            let _ = write!(page, "| {} |", trial.name.replace('_', " "));
            for column in &ran {
                let outcome = self.outcomes.get(&(trial.name, &*column.report.driver));
                let _ = match outcome {
                    None => write!(page, " – |"),
                    Some(Outcome::Passed) => write!(page, " passed |"),
                    Some(Outcome::Failed(_)) => write!(page, " **failed** |"),
                    Some(Outcome::Skipped(why)) => {
                        write!(page, " not run ({}) |", footnotes.number(why))
                    }
                };
            }
            page.push('\n');
        }
        footnotes.print(page);
    }

    /// Tells in a word whether a driver can do something, and the reason if it can't.
    fn verdict(
        &self,
        capability: Capability,
        column: &Column<'_>,
    ) -> (&'static str, Option<String>) {
        if !column.report.usable {
            return ("not run", None);
        }
        let entry = column
            .report
            .capabilities
            .iter()
            .find(|entry| entry.capability == capability);
        match entry {
            None => return ("not told", None),
            Some(entry) => {
                if let Some(lacking) = &entry.lacking {
                    return ("no", Some(lacking.clone()));
                }
            }
        }
        if column.evidence == Evidence::TypeChecked {
            return ("type-checked", None);
        }
        let told: Vec<&&Outcome> = TRIALS
            .iter()
            .filter(|trial| trial.needs.contains(&Need::Can(capability)))
            .filter_map(|trial| self.outcomes.get(&(trial.name, &*column.report.driver)))
            .collect();
        let any = |which: fn(&Outcome) -> bool| told.iter().any(|outcome| which(outcome));
        if any(|outcome| matches!(outcome, Outcome::Failed(_))) {
            ("**failed**", None)
        } else if any(|outcome| matches!(outcome, Outcome::Passed)) {
            ("passed", None)
        } else {
            ("claimed", None)
        }
    }
}

impl Column<'_> {
    fn introduce(&self) -> String {
        let report = self.report;
        let name = &report.driver;
        match self.evidence {
            Evidence::TypeChecked => {
                format!("`{name}`: type-checked, not run: nobody has tried it on a Mac")
            }
            Evidence::Double => format!("`{name}`: a double for tests"),
            Evidence::Trials if !report.usable => {
                format!("`{name}`: not run{}", notes(report))
            }
            Evidence::Trials => format!(
                "`{name}` {}, CPUs run by {}{}",
                report.version.as_deref().unwrap_or("of unknown version"),
                report.accel.as_deref().unwrap_or("nothing"),
                notes(report)
            ),
        }
    }
}

fn head(page: &mut String, first: &str, columns: &[&Column<'_>]) {
    let names: Vec<String> = columns
        .iter()
        .map(|column| format!(" {} |", column.report.driver))
        .collect();
    let _ = writeln!(
        page,
        "| {first} |{}\n|---|{}",
        names.concat(),
        "---|".repeat(columns.len())
    );
}

fn notes(report: &DriverReport) -> String {
    if report.notes.is_empty() {
        String::new()
    } else {
        format!(" ({})", cell(&report.notes.join("; ")))
    }
}

/// A text that does not end its cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use innkeeper_api::CapabilityReport;

    use super::*;

    fn record(trial: &str, driver: &str, outcome: Outcome) -> Record {
        let capabilities = Capability::ALL
            .iter()
            .map(|capability| CapabilityReport {
                capability: *capability,
                lacking: (*capability == Capability::Sandbox).then(|| "no | here".to_owned()),
            })
            .collect();
        let report = DriverReport {
            driver: driver.to_owned(),
            usable: true,
            version: Some("1.2.3".to_owned()),
            accel: Some("tcg".to_owned()),
            notes: Vec::new(),
            arches: Vec::new(),
            capabilities,
            needs: Vec::new(),
            details: serde_json::Value::Null,
        };
        let host = "linux x86_64".to_owned();
        Record {
            trial: trial.to_owned(),
            driver: driver.to_owned(),
            outcome,
            elapsed_ms: 1,
            report,
            host,
            time: "2026-11-21T00:00:00Z".to_owned(),
        }
    }

    #[test]
    fn records_come_back_and_the_page_tells_only_what_they_say() {
        let directory = tempfile::tempdir().unwrap();
        let adopted = "a_killed_keeper_is_replaced_and_nothing_stops";
        let records = [
            record(
                "commands_give_their_codes",
                "one",
                Outcome::Skipped("no agent".to_owned()),
            ),
            record(adopted, "one", Outcome::Passed),
            record(adopted, "two", Outcome::Failed("it stopped".to_owned())),
        ];
        for record in records.iter().rev() {
            record.write(directory.path()).unwrap();
            record.write(directory.path()).unwrap();
        }
        let mut read = read(directory.path()).unwrap();
        read.sort_by_key(|record| records.iter().position(|other| other == record));
        assert_eq!(read, records);
        let unrun = [DriverReport {
            driver: "unrun".to_owned(),
            ..records[0].report.clone()
        }];
        let matrix = Matrix::new(&records, &unrun);
        let page = matrix.page();
        let line = |start: &str| {
            page.lines()
                .find(|line| line.starts_with(start))
                .unwrap_or_default()
                .to_owned()
        };
        assert!(
            line("| `adoption`").ends_with("| passed | **failed** | type-checked |"),
            "{page}"
        );
        assert!(line("| `sandbox`").ends_with("| no (1) | no (1) | no (1) |"));
        assert!(page.contains("\n1. no \\| here\n"));
        assert!(line("| `entropy`").ends_with("| claimed | claimed | type-checked |"));
        assert!(line("| commands give their codes").ends_with("| not run (1) | – |"));
        assert!(page.contains("\n1. no agent\n"));
        assert!(page.contains("type-checked, not run"));
        assert!(
            matrix
                .summary()
                .contains("| Gives the guest random numbers | claimed | claimed | type-checked |")
        );
    }
}
