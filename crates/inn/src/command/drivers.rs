//! `inn drivers`: what each driver can do on this host, and why not what it can't.

use innkeeper::Host;
use innkeeper::api::{Capability, DriverReport};

use crate::failure::Result;
use crate::output::Output;
use crate::table::Table;
use crate::terminal_text;

/// Show what each driver can do here
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn drivers
  inn drivers -o json")]
pub(crate) struct Args {}

impl Args {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        let report = host.report().await?;
        output.data(&report.drivers, || text(&report.drivers))?;
        Ok(0)
    }
}

fn text(drivers: &[DriverReport]) -> String {
    let mut table = Table::new(&["DRIVER", "USABLE", "VERSION", "CPUS BY", "GUESTS"]);
    for driver in drivers {
        table.row([
            driver.driver.clone(),
            if driver.usable { "yes" } else { "no" }.to_owned(),
            driver.version.clone().unwrap_or_default(),
            driver.accel.clone().unwrap_or_default(),
            driver.arches.join(","),
        ]);
    }
    let mut text = table.render();
    for driver in drivers {
        text.push_str(&format!("\n{}\n", driver.driver));
        for note in &driver.notes {
            text.push_str(&format!("  {note}\n"));
        }
        for need in &driver.needs {
            text.push_str(&format!(
                "  lacks {}: {}; {}\n",
                need.what, need.without, need.fix
            ));
        }
        // Where nothing can be done for one reason, that is the note above.
        if driver.capabilities.iter().all(|report| {
            report.lacking.is_some() && report.lacking.as_ref() == driver.notes.first()
        }) {
            continue;
        }
        let width = Capability::ALL.iter().map(|it| it.as_str().len()).max();
        let width = width.unwrap_or_default();
        for report in &driver.capabilities {
            let (can, why) = match &report.lacking {
                None => ("yes", report.capability.describe()),
                Some(reason) => ("no ", reason.as_str()),
            };
            text.push_str(&format!("  {:width$}  {can}  {why}\n", report.capability));
        }
    }
    terminal_text::lines(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use innkeeper::api::{CapabilityReport, Need};

    #[test]
    fn tells_what_and_why_not() {
        let driver = DriverReport {
            driver: "qemu".into(),
            usable: true,
            version: Some("10.0.2".into()),
            accel: Some("tcg".into()),
            details: Default::default(),
            notes: vec!["KVM: /dev/kvm is not there".into()],
            arches: vec!["x86_64".into(), "arm64".into()],
            capabilities: vec![
                CapabilityReport {
                    capability: Capability::BootDirect,
                    lacking: None,
                },
                CapabilityReport {
                    capability: Capability::BootUefi,
                    lacking: Some("no firmware".into()),
                },
            ],
            needs: vec![Need {
                what: "OVMF".into(),
                without: "no UEFI guests".into(),
                fix: "apt-get install ovmf".into(),
            }],
        };
        insta::assert_snapshot!(text(&[driver]));
    }
}
