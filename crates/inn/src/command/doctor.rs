//! `inn doctor`: whether VMs can run here, what is lacking, and the command that fixes each lack.

use innkeeper::api::{ErrorKind, HostReport, Need};
use innkeeper::{Confinement, Host};
use serde::Serialize;

use super::DryRun;
use crate::failure::Result;
use crate::output::Output;
use crate::terminal_text;

/// Check this computer: 0 if VMs can run here, else 5; every lack with the command that fixes it
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn doctor
  inn doctor web                       what the processes of a running VM may do, as the kernel tells it
  inn doctor --tidy                    also remove what crashes left behind
  inn doctor -o json")]
pub(crate) struct Args {
    /// Running VM whose processes are looked at
    #[arg(conflicts_with_all = ["tidy", "dry_run"])]
    name: Option<String>,

    /// Remove what crashes left half-made
    #[arg(long)]
    tidy: bool,

    #[command(flatten)]
    dry_run: DryRun,
}

/// What was found, for programs.
#[derive(Debug, Serialize)]
struct Findings {
    ok: bool,
    #[serde(flatten)]
    report: HostReport,
    leftovers: Vec<String>,
    leftovers_removed: bool,
}

impl Args {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        if let Some(name) = &self.name {
            let told = host.confinement(name).await?;
            output.data(&told, || confinement(&told))?;
            return Ok(0);
        }
        let report = host.report().await?;
        let remove = self.tidy && !self.dry_run.dry_run;
        let findings = Findings {
            ok: report.drivers.iter().any(|driver| driver.usable),
            leftovers: host.tidy_up(!remove).await?,
            leftovers_removed: remove,
            report,
        };
        output.data(&findings, || text(&findings))?;
        Ok(if findings.ok {
            0
        } else {
            innkeeper::exit_code(ErrorKind::Unsupported)
        })
    }
}

fn confinement(told: &[Confinement]) -> String {
    let mut text = String::new();
    for process in told {
        let say =
            |held: bool, what: &str| format!("{}  {what}\n", if held { "  yes" } else { "  no " });
        text.push_str(&format!("{} (process {})\n", process.role, process.pid));
        text.push_str(&say(process.no_new_privileges, "can't gain privileges"));
        text.push_str(&say(process.seccomp, "system calls are filtered"));
        let none = process.capabilities.chars().all(|digit| digit == '0');
        text.push_str(&say(none, "has no capabilities"));
        text.push_str(&say(process.environment_empty, "has an empty environment"));
        text.push_str(&format!(
            "       user {}, in {}, {} descriptors open\n",
            process.user, process.directory, process.descriptors
        ));
    }
    text
}

fn text(findings: &Findings) -> String {
    let report = &findings.report;
    let mut text = format!("{}\n", report.host);
    for driver in &report.drivers {
        let state = if driver.usable { "ok " } else { "no " };
        let version = driver.version.as_deref().unwrap_or("not found");
        let accel = driver
            .accel
            .as_ref()
            .map(|accel| format!(", CPUs by {accel}"));
        text.push_str(&format!(
            "{state} {} {version}{}\n",
            driver.driver,
            accel.unwrap_or_default()
        ));
        for note in &driver.notes {
            text.push_str(&format!("      {note}\n"));
        }
        needs(&mut text, &driver.needs);
    }
    text.push_str(match report.clones.as_str() {
        "reflink" => "ok  new disks share their image's blocks (reflink)\n",
        _ => "ok  new disks are overlays: the file system has no reflinks\n",
    });
    needs(&mut text, &report.needs);
    for leftover in &findings.leftovers {
        let done = match findings.leftovers_removed {
            true => "removed",
            false => "left by a crash (inn doctor --tidy removes it)",
        };
        text.push_str(&format!("    {done}: {leftover}\n"));
    }
    text.push_str(match findings.ok {
        true => "VMs can run here.\n",
        false => "No VM can run here until one of the drivers is usable.\n",
    });
    terminal_text::lines(&text)
}

fn needs(text: &mut String, needs: &[Need]) {
    for need in needs {
        text.push_str(&format!(
            "    {} is missing: {}\n      fix: {}\n",
            need.what, need.without, need.fix
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use innkeeper::api::DriverReport;

    #[test]
    fn each_lack_has_its_fix() {
        let findings = Findings {
            ok: false,
            report: HostReport {
                host: "linux x86_64".into(),
                drivers: vec![DriverReport {
                    driver: "qemu".into(),
                    usable: false,
                    version: None,
                    accel: None,
                    details: Default::default(),
                    notes: Vec::new(),
                    arches: Vec::new(),
                    capabilities: Vec::new(),
                    needs: vec![Need {
                        what: "qemu-system-x86_64".into(),
                        without: "no VM can run".into(),
                        fix: "apt-get install qemu-system-x86".into(),
                    }],
                }],
                clones: "overlay".into(),
                needs: Vec::new(),
            },
            leftovers: vec!["half-made VM web".into()],
            leftovers_removed: false,
        };
        insta::assert_snapshot!(text(&findings));
    }
}
