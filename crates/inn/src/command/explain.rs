//! `inn explain`: which driver runs, or would run, a VM; why; and every reason against the others.

use innkeeper::api::ErrorKind;
use innkeeper::{Explanation, Host};

use crate::failure::Result;
use crate::output::Output;
use crate::spec_flags::SpecFlags;
use crate::terminal_text;

/// Say which driver runs a VM, or would run one, and why
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn explain web                      a VM that exists
  inn explain debian:12 --machine microvm
  inn explain -f vm.yaml -o json")]
pub(crate) struct Args {
    #[command(flatten)]
    spec: SpecFlags,
}

impl Args {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        if let Some(name) = self.spec.only_a_name() {
            match host.explain(name).await {
                Ok(explanation) => return show(&explanation, name, output),
                // Not a VM, or not even a VM's name: then it is an image.
                Err(error)
                    if [ErrorKind::NotFound, ErrorKind::BadInput].contains(&error.kind()) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let spec = self.spec.spec()?;
        let name = host.name_for(spec.image.as_deref())?;
        let explanation = host.plan_create(&name, &spec).await.map_err(|error| {
            match self.spec.only_a_name() {
                Some(word) => error.while_doing(format!("no VM is named {word}, and as an image")),
                None => error,
            }
        })?;
        show(&explanation, &name, output)
    }
}

/// Writes an explanation; the exit code is 5 if no driver can.
pub(crate) fn show(explanation: &Explanation, title: &str, output: &Output) -> Result<u8> {
    output.data(explanation, || text(explanation, title))?;
    Ok(match explanation.driver {
        Some(_) => 0,
        None => innkeeper::exit_code(ErrorKind::Unsupported),
    })
}

fn text(explanation: &Explanation, title: &str) -> String {
    let driver = explanation.driver.as_deref().unwrap_or("no driver can");
    let mut text = format!("{title}: {driver}, because {}\n", explanation.because);
    for verdict in &explanation.drivers {
        if verdict.against.is_empty() {
            text.push_str(&format!("{} can run it\n", verdict.driver));
            continue;
        }
        text.push_str(&format!("{} can't:\n", verdict.driver));
        for against in &verdict.against {
            let gap = if against.field.is_empty() { "" } else { ": " };
            text.push_str(&format!("  {}{gap}{}\n", against.field, against.reason));
            if let Some(hint) = &against.hint {
                text.push_str(&format!("    hint: {hint}\n"));
            }
        }
    }
    for (heading, lines) in [
        ("decisions", &explanation.decisions),
        ("steps", &explanation.steps),
    ] {
        if !lines.is_empty() {
            text.push_str(&format!("{heading}:\n"));
        }
        for line in lines {
            text.push_str(&format!("  {line}\n"));
        }
    }
    terminal_text::lines(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use innkeeper::DriverVerdict;
    use innkeeper::api::Unsupported;

    #[test]
    fn tells_every_reason() {
        let explanation = Explanation {
            driver: Some("qemu".into()),
            because: "it is the only one that can".into(),
            drivers: vec![
                DriverVerdict {
                    driver: "qemu".into(),
                    against: Vec::new(),
                },
                DriverVerdict {
                    driver: "vz".into(),
                    against: vec![
                        Unsupported {
                            field: String::new(),
                            reason: "this is not macOS".into(),
                            hint: None,
                        },
                        Unsupported {
                            field: "boot.firmware".into(),
                            reason: "there is no BIOS".into(),
                            hint: Some("firmware: uefi".into()),
                        },
                    ],
                },
            ],
            decisions: vec!["machine q35: the default".into()],
            steps: vec!["build the image debian:12".into()],
        };
        insta::assert_snapshot!(text(&explanation, "debian"));
    }
}
