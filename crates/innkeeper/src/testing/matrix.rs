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

/// Makes the page `docs/drivers.md`. Pure.
pub fn page(records: &[Record]) -> String {
    let mut reports: BTreeMap<&str, &DriverReport> = BTreeMap::new();
    let mut outcomes: BTreeMap<(&str, &str), &Outcome> = BTreeMap::new();
    let mut hosts = BTreeSet::new();
    for record in records {
        reports.insert(&record.driver, &record.report);
        outcomes.insert((&record.trial, &record.driver), &record.outcome);
        hosts.insert(&record.host);
    }
    let drivers: Vec<&str> = reports.keys().copied().collect();
    let mut page = String::from(
        "# Drivers\n\nMade by `cargo xtask docs` from what the conformance trials showed; not written by hand.\n\n",
    );
    let day = records
        .iter()
        .map(|record| record.time.get(..10).unwrap_or_default())
        .max()
        .unwrap_or("never");
    let hosts: Vec<&str> = hosts.iter().map(|host| host.as_str()).collect();
    let _ = writeln!(page, "Last run: {day}, on {}.\n", hosts.join(", "));
    for (name, report) in &reports {
        let version = report.version.as_deref().unwrap_or("of unknown version");
        let accel = report.accel.as_deref().unwrap_or("nothing");
        let _ = writeln!(
            page,
            "- `{name}` {version}, CPUs run by {accel}{}",
            notes(report)
        );
    }
    page.push_str(
        "\nThe drivers `fake` and `fake-poor` are doubles for tests: they run no guest and are not in the product. What Apple's \
         Virtualization.framework can do is type-checked, not run, and so is not here.\n",
    );
    page.push_str("\n## Capabilities\n\n");
    page.push_str("*passed*: every trial that needs it was passed. *claimed*: the driver says so, and no trial needs it yet.\n\n");
    let head = |page: &mut String, first: &str| {
        let names: Vec<String> = drivers
            .iter()
            .map(|driver| format!(" {driver} |"))
            .collect();
        let _ = writeln!(
            page,
            "| {first} |{}\n|---|{}",
            names.concat(),
            "---|".repeat(drivers.len())
        );
    };
    head(&mut page, "capability");
    for capability in Capability::ALL {
        let cells: Vec<String> = drivers
            .iter()
            .map(|driver| {
                format!(
                    " {} |",
                    capability_cell(*capability, driver, &reports, &outcomes)
                )
            })
            .collect();
        let _ = writeln!(
            page,
            "| `{}` {} |{}",
            capability.as_str(),
            capability.describe(),
            cells.concat()
        );
    }
    page.push_str("\n## Trials\n\n");
    head(&mut page, "trial");
    for trial in TRIALS {
        let cells: Vec<String> = drivers
            .iter()
            .map(|driver| match outcomes.get(&(trial.name, *driver)) {
                None => " not run |".to_owned(),
                Some(Outcome::Passed) => " passed |".to_owned(),
                Some(Outcome::Failed(_)) => " **failed** |".to_owned(),
                Some(Outcome::Skipped(why)) => format!(" not run: {} |", cell(why)),
            })
            .collect();
        let _ = writeln!(
            page,
            "| {} |{}",
            trial.name.replace('_', " "),
            cells.concat()
        );
    }
    page
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

fn capability_cell(
    capability: Capability,
    driver: &str,
    reports: &BTreeMap<&str, &DriverReport>,
    outcomes: &BTreeMap<(&str, &str), &Outcome>,
) -> String {
    let entry = reports[driver]
        .capabilities
        .iter()
        .find(|entry| entry.capability == capability);
    match entry {
        None => return "not told".to_owned(),
        Some(entry) => {
            if let Some(lacking) = &entry.lacking {
                return format!("no: {}", cell(lacking));
            }
        }
    }
    let needing = TRIALS
        .iter()
        .filter(|trial| trial.needs.contains(&Need::Can(capability)));
    let told: Vec<&&Outcome> = needing
        .filter_map(|trial| outcomes.get(&(trial.name, driver)))
        .collect();
    if told
        .iter()
        .any(|outcome| matches!(outcome, Outcome::Failed(_)))
    {
        "**failed**".to_owned()
    } else if told
        .iter()
        .any(|outcome| matches!(outcome, Outcome::Passed))
    {
        "passed".to_owned()
    } else {
        "claimed".to_owned()
    }
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
        let page = page(&records);
        let line = |start: &str| {
            page.lines()
                .find(|line| line.starts_with(start))
                .unwrap_or_default()
                .to_owned()
        };
        assert!(
            line("| `adoption`").ends_with("| passed | **failed** |"),
            "{page}"
        );
        assert!(line("| `sandbox`").ends_with("| no: no \\| here | no: no \\| here |"));
        assert!(line("| `entropy`").ends_with("| claimed | claimed |"));
        assert!(line("| commands give their codes").ends_with("| not run: no agent | not run |"));
        assert!(page.contains("type-checked, not run"));
    }
}
