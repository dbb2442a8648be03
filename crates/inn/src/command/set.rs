//! `inn set`: changes fields of a VM's spec, keeping its comments.

use innkeeper::{Host, SpecChange};

use super::DryRun;
use crate::failure::Result;
use crate::output::Output;

/// Change a VM's spec
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn set web cpus=4 memory=2GiB
  inn set web --cpus 4 --memory 2GiB
  inn set web labels.env=dev disks.root.size=40GiB
  inn set web labels.env-              removes the field
  inn set web --unset labels.env")]
pub(crate) struct Args {
    /// VM
    name: String,

    /// Fields: KEY=VALUE sets one, KEY- removes it; a dot leads into a field
    #[arg(value_name = "KEY=VALUE", value_parser = edit)]
    edits: Vec<(String, Option<String>)>,

    /// Virtual CPUs
    #[arg(long, value_name = "N")]
    cpus: Option<String>,

    /// Memory
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<String>,

    /// Driver
    #[arg(long, value_name = "DRIVER")]
    driver: Option<String>,

    /// Field to remove (repeatable)
    #[arg(long, value_name = "KEY")]
    unset: Vec<String>,

    #[command(flatten)]
    dry_run: DryRun,
}

impl Args {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        let edits = self.edits();
        if edits.is_empty() {
            let message = "nothing to change was given: write KEY=VALUE, such as cpus=4";
            return Err(crate::failure::Failure::usage(message));
        }
        let dry_run = self.dry_run.dry_run;
        let change = host.set(&self.name, &edits, dry_run).await?;
        if dry_run {
            output.dry_run(&steps(&change))?;
        } else {
            output.outcome(&self.name, &change, || sentence(&self.name, &change))?;
        }
        Ok(0)
    }

    fn edits(&self) -> Vec<(String, Option<String>)> {
        let mut edits = self.edits.clone();
        for (key, value) in [
            ("cpus", &self.cpus),
            ("memory", &self.memory),
            ("driver", &self.driver),
        ] {
            if value.is_some() {
                edits.push((key.to_owned(), value.clone()));
            }
        }
        edits.extend(self.unset.iter().map(|key| (key.clone(), None)));
        edits
    }
}

/// Reads `KEY=VALUE` or `KEY-`.
fn edit(text: &str) -> Result<(String, Option<String>), String> {
    match (text.split_once('='), text.strip_suffix('-')) {
        (Some((key, value)), _) if !key.is_empty() => Ok((key.to_owned(), Some(value.to_owned()))),
        (None, Some(key)) if !key.is_empty() => Ok((key.to_owned(), None)),
        _ => Err("write KEY=VALUE to set a field, or KEY- to remove it".to_owned()),
    }
}

/// Says what a change did.
pub(crate) fn sentence(name: &str, change: &SpecChange) -> String {
    if change.changed.is_empty() {
        return format!("nothing changed: {name} was like that before");
    }
    let changed = change.changed.join(", ");
    if change.restart_required.is_empty() {
        format!("changed {changed}")
    } else {
        let later = change.restart_required.join(", ");
        format!("changed {changed}; inn restart {name} applies {later}")
    }
}

pub(crate) fn steps(change: &SpecChange) -> Vec<String> {
    let step = |field: &String| {
        let later = change.restart_required.contains(field);
        let when = if later { " at the next start" } else { "" };
        format!("change {field}{when}")
    };
    change.changed.iter().map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_edits() {
        let some = |key: &str, value: &str| Ok((key.to_owned(), Some(value.to_owned())));
        assert_eq!(edit("cpus=4"), some("cpus", "4"));
        assert_eq!(edit("boot.cmdline=a=b-"), some("boot.cmdline", "a=b-"));
        assert_eq!(edit("labels.env="), some("labels.env", ""));
        assert_eq!(edit("labels.env-"), Ok(("labels.env".to_owned(), None)));
        for text in ["", "-", "cpus", "=4"] {
            assert!(edit(text).is_err(), "{text}");
        }
    }

    #[test]
    fn says_what_needs_a_restart() {
        let change = SpecChange {
            changed: vec!["cpus".into(), "labels.env".into()],
            restart_required: vec!["cpus".into()],
        };
        assert_eq!(
            sentence("web", &change),
            "changed cpus, labels.env; inn restart web applies cpus"
        );
        assert_eq!(
            steps(&change),
            ["change cpus at the next start", "change labels.env"]
        );
    }
}
