//! Which driver runs a VM, and why not another.

use innkeeper_api::{DriverReport, ErrorKind, Unsupported};
use serde::Serialize;

use super::Engine;
use super::configure::configure;
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::spec::{AccelChoice, Arch, Bytes, DiskFormat, DriverChoice, MachineChoice, VmSpec};
use crate::store::{Bundle, Identity, IdentityDisk};

/// Which driver, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Driver that is, or would be, used; none if none can.
    pub driver: Option<String>,
    /// Why that one.
    pub because: String,
    /// Every driver with every reason against it.
    pub drivers: Vec<DriverVerdict>,
    /// Machine type, acceleration and other decisions, a sentence each.
    pub decisions: Vec<String>,
    /// What would be done to get there, a sentence each.
    pub steps: Vec<String>,
}

/// What speaks against a driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DriverVerdict {
    /// Its name.
    pub driver: String,
    /// Reasons; empty if it can.
    pub against: Vec<Unsupported>,
}

/// A choice that was made.
pub(crate) struct Choice {
    /// The driver's name.
    pub driver: String,
    /// The machine type to pin.
    pub machine: String,
}

impl Engine {
    /// Chooses the driver for a spec: the named one, or the first that can do all of it. `identity` is complete but for driver and machine.
    ///
    /// Errors: `Unsupported` with every reason of every driver if none can, `BadInput` if the named one is unknown.
    pub(crate) async fn choose(
        &self,
        bundle: &Bundle,
        identity: &Identity,
        spec: &VmSpec,
    ) -> Result<Choice> {
        let (choice, explanation) = self.weigh(bundle, identity, spec).await?;
        match choice {
            Some((driver, machine)) => Ok(Choice { driver, machine }),
            None => Err(refusal(bundle.name(), &explanation)),
        }
    }

    /// Weighs every driver against a spec.
    pub(crate) async fn weigh(
        &self,
        bundle: &Bundle,
        identity: &Identity,
        spec: &VmSpec,
    ) -> Result<(Option<(String, String)>, Explanation)> {
        let arch = super::configure::arch_of(identity)?;
        let mut chosen: Option<(String, String)> = None;
        let mut verdicts = Vec::new();
        let mut decisions = Vec::new();
        if let DriverChoice::Named(name) = &spec.driver {
            self.driver(name)?;
        }
        for driver in &self.drivers {
            let report = driver.probe().await;
            let (machine, mut against, choices) =
                self.judge(driver.as_ref(), &report, bundle, identity, spec, arch)?;
            if let DriverChoice::Named(named) = &spec.driver
                && named != driver.name()
            {
                against.push(Unsupported {
                    field: "driver".to_owned(),
                    reason: format!("the spec asks for {named}"),
                    hint: None,
                });
            }
            if let (None, Some(machine), true) = (&chosen, machine, against.is_empty()) {
                decisions.push(format!("machine type {machine}, pinned for the VM's life"));
                match (spec.accel, &report.accel) {
                    (AccelChoice::Auto, Some(accel)) => {
                        decisions.push(format!("CPUs run by {accel}{}", because(&report.notes)));
                    }
                    (AccelChoice::Auto, None) => {}
                    (asked, _) => decisions.push(format!("CPUs run by {asked}, as asked")),
                }
                decisions.extend(choices);
                chosen = Some((driver.name().to_owned(), machine));
            }
            verdicts.push(DriverVerdict {
                driver: driver.name().to_owned(),
                against,
            });
        }
        let explanation = Explanation {
            driver: chosen.as_ref().map(|(driver, _)| driver.clone()),
            because: match (&chosen, &spec.driver) {
                (None, _) => "no driver can do all that the spec asks for here".to_owned(),
                (Some(_), DriverChoice::Named(_)) => "the spec names it, and it can".to_owned(),
                (Some(_), DriverChoice::Auto) => {
                    "it is the lightest driver here that can do all that the spec asks for"
                        .to_owned()
                }
            },
            drivers: verdicts,
            decisions,
            steps: Vec::new(),
        };
        Ok((chosen, explanation))
    }

    fn judge(
        &self,
        driver: &dyn Driver,
        report: &DriverReport,
        bundle: &Bundle,
        identity: &Identity,
        spec: &VmSpec,
        arch: Arch,
    ) -> Result<(Option<String>, Vec<Unsupported>, Vec<String>)> {
        let asked = match &spec.machine {
            MachineChoice::Auto => None,
            MachineChoice::Named(name) => Some(name.as_str()),
        };
        let (machine, mut against) = match driver.pin_machine(asked, arch, report) {
            Ok(machine) => (Some(machine), Vec::new()),
            Err(error) => (
                None,
                vec![Unsupported {
                    field: asked.map_or_else(String::new, |_| "machine".to_owned()),
                    reason: error.chain().join(": "),
                    hint: error.hint().map(str::to_owned),
                }],
            ),
        };
        let mut identity = Identity {
            machine: machine.clone().unwrap_or_default(),
            disks: with_disks_to_come(identity, spec),
            ..identity.clone()
        };
        identity.suit(report);
        let sockets = self.root.socket_directory(&identity.id);
        let config = configure(bundle, &identity, spec, sockets, identity.ssh_port)?;
        for reason in driver.check(&config, report) {
            let known =
                |other: &Unsupported| other.field == reason.field && other.field == "machine";
            if !against.iter().any(known) {
                against.push(reason);
            }
        }
        Ok((machine, against, driver.choices(&config, report)))
    }

    /// Returns a driver by its name.
    pub(crate) fn driver(&self, name: &str) -> Result<std::sync::Arc<dyn Driver>> {
        self.drivers
            .iter()
            .find(|driver| driver.name() == name)
            .cloned()
            .ok_or_else(|| {
                let known: Vec<&str> = self.drivers.iter().map(|driver| driver.name()).collect();
                Error::new(
                    ErrorKind::BadInput,
                    format!("driver: there is no driver named {name:?}"),
                )
                .with_hint(format!("this build knows: auto, {}", known.join(", ")))
            })
    }
}

fn because(notes: &[String]) -> String {
    if notes.is_empty() {
        String::new()
    } else {
        format!(" ({})", notes.join("; "))
    }
}

/// The disks that a VM has, and those that its spec asks for and that are not made yet: a driver is asked about all of them.
fn with_disks_to_come(identity: &Identity, spec: &VmSpec) -> Vec<IdentityDisk> {
    let mut disks = identity.disks.clone();
    for asked in spec.disks.iter().filter(|disk| disk.is_own()) {
        if disks.iter().all(|own| own.name != asked.name) {
            disks.push(IdentityDisk {
                name: asked.name.clone(),
                file: format!("disks/{}.raw", asked.name).into(),
                format: DiskFormat::Raw.to_string(),
                backing_format: None,
                layer: None,
                size: asked.size.map_or(0, Bytes::get),
            });
        }
    }
    disks
}

/// One error that names every reason; against drivers that nobody asked for there is nothing to say.
fn refusal(name: &str, explanation: &Explanation) -> Error {
    let asked_for = |verdict: &&DriverVerdict| {
        verdict
            .against
            .iter()
            .all(|against| against.field != "driver")
    };
    let verdicts = || {
        let anybody = explanation
            .drivers
            .iter()
            .any(|verdict| asked_for(&verdict));
        explanation
            .drivers
            .iter()
            .filter(move |verdict| !anybody || asked_for(verdict))
    };
    let reasons: Vec<String> = verdicts()
        .flat_map(|verdict| {
            verdict.against.iter().map(move |against| {
                let field = if against.field.is_empty() {
                    String::new()
                } else {
                    format!("{}: ", against.field)
                };
                format!("{}: {field}{}", verdict.driver, against.reason)
            })
        })
        .collect();
    let hints: Vec<&str> = verdicts()
        .flat_map(|verdict| {
            verdict
                .against
                .iter()
                .filter_map(|against| against.hint.as_deref())
        })
        .collect();
    let error = Error::new(
        ErrorKind::Unsupported,
        format!(
            "no driver of this host can run {name}: {}",
            reasons.join("; ")
        ),
    );
    match hints.first() {
        Some(hint) => error.with_hint((*hint).to_owned()),
        None => error.with_hint("`inn drivers` shows what this host can do"),
    }
}
