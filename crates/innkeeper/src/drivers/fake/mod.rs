//! A driver for tests that is stricter than the real ones.
//!
//! It launches a real process, the fake hypervisor of the package `innkeeper-testbed`, so that killing, adopting, locks and lost
//! connections are real. It can do almost everything, runs nothing, and writes down every breach of the driver contract by its user: a second
//! launch, a quit of a guest that runs, a channel opened twice, a path that is missing or relative, a disk that somebody else wrote, a
//! save of a guest that runs, CPUs let go while what was saved of them could be used again, a saved guest that runs on twice.
//! The guest's agent is the real one, run on this computer; the guest's memory is a word that it chooses at random when it boots.
//!
//! ```text
//!  FakeDriver ── Plan as JSON ──► fake-hypervisor ── guest.sock ──► inn-agent --connect
//!      ▲                              ▲      ▲
//!      └── control.sock: JSON lines ──┘      └── poke.sock: a trial makes the guest reboot, panic, fall silent
//! ```
//!
//! It runs on Linux only, since it holds processes by pidfd.

mod control;
mod extensions;
mod launch;
mod machine;
mod plan;
mod process;
mod restore;

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use innkeeper_api::{Capability, CapabilityReport, DriverReport, ErrorKind, Unsupported};
use serde::{Deserialize, Serialize};

use crate::driver::{BootConfig, Driver, MachineConfig, Restore, Running};
use crate::error::{Error, Result};
use crate::spec::{AccelChoice, Arch, Protocol};

pub use control::{ControlAnswer, ControlMessage, ControlRequest, GuestState, Numbered};
pub use plan::{Plan, PlanConsole, PlanDisk, PlanDrive, PlanForward, PlanNic, Script};
pub use restore::{DiskMark, SavedGuest};

/// The only machine type of the fake.
const MACHINE: &str = "fake-1";

/// How a fake driver is set up. Its user hands it on to keepers, as JSON in a variable of their environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FakeOptions {
    /// Name of the driver; several may stand side by side.
    pub name: FakeName,
    /// The program `fake-hypervisor`.
    pub program: PathBuf,
    /// The program that plays the guest's agent; without one, guests have none.
    pub agent: Option<PathBuf>,
    /// File to which breaches of the contract are appended, one line each.
    pub violations: PathBuf,
    /// What this one can't do.
    pub lacking: Vec<Capability>,
}

/// Names of fake drivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FakeName {
    /// One that can do all that a fake plays.
    Fake,
    /// One that lacks something.
    FakePoor,
}

impl FakeName {
    /// Returns the name as specs have it.
    pub fn as_str(self) -> &'static str {
        match self {
            FakeName::Fake => "fake",
            FakeName::FakePoor => "fake-poor",
        }
    }
}

/// The driver of the fake hypervisor.
#[derive(Debug)]
pub struct FakeDriver {
    options: FakeOptions,
}

impl FakeDriver {
    /// Makes the driver.
    pub fn new(options: FakeOptions) -> Self {
        FakeDriver { options }
    }

    fn lacks(&self, capability: Capability) -> bool {
        self.options.lacking.contains(&capability)
    }

    /// Writes a breach of the contract down. It must reach the trial even when the caller swallows errors.
    fn violated(&self, what: &str) {
        violated(&self.options.violations, what);
    }
}

/// Returns where a trial pokes the guest of the VM whose sockets are in this directory.
pub fn poke_socket(sockets: &Path) -> PathBuf {
    plan::poke_socket(sockets)
}

/// Returns the pipe that stands for `/dev/console` of that guest.
pub fn console(sockets: &Path) -> PathBuf {
    plan::console(sockets)
}

/// Appends one breach of the contract to the file of them.
pub fn violated(file: &Path, what: &str) {
    use std::io::Write;
    let line = format!("{}\n", what.replace('\n', " "));
    let written = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(file)
        .and_then(|mut file| file.write_all(line.as_bytes()));
    // Who can't write it down must not go on as if nothing had happened.
    assert!(
        written.is_ok(),
        "the driver contract was broken ({what}), and {} can't be written",
        file.display()
    );
}

#[async_trait]
impl Driver for FakeDriver {
    fn name(&self) -> &'static str {
        self.options.name.as_str()
    }

    async fn probe(&self) -> DriverReport {
        let usable = self.options.program.is_file();
        DriverReport {
            driver: self.name().to_owned(),
            usable,
            version: Some(restore::VERSION.to_owned()),
            accel: Some("fake".to_owned()),
            notes: vec!["a double for tests: it runs no guest".to_owned()],
            arches: [Arch::X86_64, Arch::Arm64, Arch::Riscv64]
                .iter()
                .map(ToString::to_string)
                .collect(),
            capabilities: Capability::ALL
                .iter()
                .map(|capability| CapabilityReport {
                    capability: *capability,
                    lacking: if !usable {
                        Some(format!("there is no {}", self.options.program.display()))
                    } else {
                        plan::not_played(*capability).or_else(|| {
                            self.lacks(*capability)
                                .then(|| "this fake was told to lack it".to_owned())
                        })
                    },
                })
                .collect(),
            needs: Vec::new(),
            details: serde_json::Value::Null,
        }
    }

    fn check(&self, config: &MachineConfig, report: &DriverReport) -> Vec<Unsupported> {
        let mut reasons = crate::driver::lacking(config, report);
        let mut refuse = |field: &str, reason: String| {
            reasons.push(Unsupported {
                field: field.to_owned(),
                reason,
                hint: None,
            });
        };
        if !self.options.program.is_file() {
            refuse(
                "",
                format!(
                    "there is no fake hypervisor at {}",
                    self.options.program.display()
                ),
            );
        }
        if !matches!(config.accel, AccelChoice::Auto) {
            refuse(
                "accel",
                "the fake runs no CPUs, so there is no way of running them to choose".to_owned(),
            );
        }
        if let BootConfig::Direct { cmdline, .. } = &config.boot
            && let Err(reason) = Script::parse(cmdline)
        {
            refuse("boot.cmdline", reason);
        }
        for (index, nic) in config.nics.iter().enumerate() {
            if nic
                .forwards
                .iter()
                .any(|forward| forward.protocol == Protocol::Udp)
            {
                refuse(
                    &format!("networks[{index}].forwards"),
                    "the fake forwards TCP only".to_owned(),
                );
            }
        }
        reasons
    }

    fn pin_machine(&self, asked: Option<&str>, _: Arch, _: &DriverReport) -> Result<String> {
        match asked {
            None | Some(MACHINE) => Ok(MACHINE.to_owned()),
            Some(_) if self.lacks(Capability::PinnedMachine) => Err(Error::new(
                ErrorKind::Unsupported,
                "this fake pins no machine types",
            )),
            Some(other) => Err(Error::new(
                ErrorKind::Unsupported,
                format!("the fake has no machine type {other}, only {MACHINE}"),
            )),
        }
    }

    async fn launch(&self, config: &MachineConfig) -> Result<Running> {
        if config.machine != MACHINE {
            self.violated(&format!(
                "{}: launched with the machine type {:?} that was not pinned",
                config.name, config.machine
            ));
        }
        // A spec may have been edited since its driver was chosen.
        crate::driver::refuse(&crate::driver::lacking(config, &self.probe().await))?;
        launch::launch(self, config, None).await
    }

    async fn adopt(&self, config: &MachineConfig, record: &serde_json::Value) -> Result<Running> {
        launch::adopt(&config.name, record).await
    }

    async fn kill_record(&self, record: &serde_json::Value) -> Result<()> {
        launch::kill_record(record).await
    }

    fn restore(&self) -> Option<&dyn Restore> {
        (!self.lacks(Capability::Suspend)).then_some(self)
    }
}
