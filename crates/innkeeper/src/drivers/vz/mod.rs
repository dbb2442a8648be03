//! The driver of Apple's Virtualization.framework (VZ), on macOS.
//!
//! ```text
//!  probe ──► VzHost ──┬─► check(config)            pure: every reason why not
//!   (asks macOS)      └─► plan(config) ─► launch ─► machine (supervises, tells events)
//!                           pure           walks the plan on the VM's queue, by innkeeper-vz
//! ```
//!
//! The machine lives in the keeper's own process, and macOS ends it with that: there is nothing to adopt, and the run's lock is held by
//! the keeper. Everything but `macos/` is pure and is compiled and tested everywhere; `macos/` alone has effects, and is type-checked and
//! linted for macOS but has not been run by those who wrote it.

mod check;
mod host;
#[cfg(target_os = "macos")]
mod macos;
mod needs;
pub mod objects;
mod plan;
#[cfg(test)]
mod plan_tests;
#[cfg(any(test, target_os = "macos"))]
mod ports;
mod saved;
#[cfg(any(test, target_os = "macos"))]
mod tracker;

use async_trait::async_trait;
use innkeeper_api::{DriverReport, ErrorKind, Unsupported};
use serde_json::Value;

#[cfg(target_os = "macos")]
use crate::driver::refuse;
use crate::driver::{Driver, MachineConfig, Restore, Running, SavedMachine};
use crate::error::{Error, Result};
use crate::spec::Arch;

/// The main thread's loop, for what macOS allows there alone. A keeper runs beside it.
#[cfg(target_os = "macos")]
pub use innkeeper_vz::main_loop;

pub use self::host::{OLDEST, Version, VzHost};
pub use self::needs::Requirement;
pub use self::plan::{AGENT_PORT, MacGuest, SERIAL, disk_image, mac_guest, plan, stick_uuid};

/// Name that specs and people use.
const NAME: &str = "vz";

/// The only machine type.
const MACHINE: &str = "vz";

/// The driver of Virtualization.framework. Off macOS it says so, and can do nothing.
#[derive(Debug, Default)]
pub struct VzDriver {
    #[cfg(target_os = "macos")]
    boot_id: String,
}

impl VzDriver {
    /// Makes the driver; `boot_id` names this boot of the computer.
    pub fn new(boot_id: impl Into<String>) -> Self {
        #[cfg(target_os = "macos")]
        return VzDriver {
            boot_id: boot_id.into(),
        };
        #[cfg(not(target_os = "macos"))]
        {
            let _ = boot_id.into();
            VzDriver::default()
        }
    }

    fn host() -> VzHost {
        #[cfg(target_os = "macos")]
        return macos::probe();
        #[cfg(not(target_os = "macos"))]
        VzHost::absent(std::env::consts::OS)
    }
}

/// Reads what a probe put into its report.
fn details(report: &DriverReport) -> Result<VzHost> {
    serde::Deserialize::deserialize(&report.details).map_err(|error: serde_json::Error| {
        Error::new(
            ErrorKind::Failure,
            "the report of the driver vz is not from this version",
        )
        .with_source(error)
    })
}

#[async_trait]
impl Driver for VzDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn probe(&self) -> DriverReport {
        Self::host().report(NAME)
    }

    fn check(&self, config: &MachineConfig, report: &DriverReport) -> Vec<Unsupported> {
        match details(report) {
            // One reason is enough where nothing can run.
            Ok(host) if host.unusable().is_some() => check::check(config, &host),
            Ok(host) => check::check(config, &host)
                .into_iter()
                .chain(crate::driver::lacking(config, report))
                .collect(),
            Err(error) => vec![Unsupported {
                field: String::new(),
                reason: error.to_string(),
                hint: Some("probe this host again".to_owned()),
            }],
        }
    }

    fn pin_machine(&self, asked: Option<&str>, _: Arch, _: &DriverReport) -> Result<String> {
        match asked {
            None | Some(MACHINE) => Ok(MACHINE.to_owned()),
            Some(other) => Err(Error::new(
                ErrorKind::Unsupported,
                format!("Virtualization.framework has one machine, {MACHINE}, and not {other}"),
            )
            .with_hint("use machine: auto")),
        }
    }

    async fn launch(&self, config: &MachineConfig) -> Result<Running> {
        self.begin(config, None).await
    }

    async fn adopt(&self, config: &MachineConfig, _record: &Value) -> Result<Running> {
        Err(Error::new(
            ErrorKind::NotFound,
            format!(
                "the machine of VM {} ended with the keeper that it lived in",
                config.name
            ),
        ))
    }

    async fn kill_record(&self, record: &Value) -> Result<()> {
        #[cfg(target_os = "macos")]
        return macos::kill_record(record, &self.boot_id).await;
        #[cfg(not(target_os = "macos"))]
        {
            let _ = record;
            Err(Self::nowhere())
        }
    }

    fn restore(&self) -> Option<&dyn Restore> {
        cfg!(target_os = "macos").then_some(self)
    }
}

impl VzDriver {
    #[cfg(target_os = "macos")]
    async fn begin(&self, config: &MachineConfig, saved: Option<&SavedMachine>) -> Result<Running> {
        let host = Self::host();
        let report = host.report(NAME);
        refuse(&self.check(config, &report))?;
        let saved = match saved {
            None => None,
            Some(saved) => {
                refuse(&saved::check(config, saved, &host))?;
                Some((saved.directory.as_path(), saved::Details::read(saved)?))
            }
        };
        let plan = plan(config, &host)?;
        macos::launch(plan, config, &host, &self.boot_id, saved).await
    }

    #[cfg(not(target_os = "macos"))]
    async fn begin(&self, _: &MachineConfig, _: Option<&SavedMachine>) -> Result<Running> {
        Err(Self::nowhere())
    }

    #[cfg(not(target_os = "macos"))]
    fn nowhere() -> Error {
        Error::new(
            ErrorKind::Unsupported,
            Self::host().unusable().unwrap_or_default(),
        )
    }
}

#[async_trait]
impl Restore for VzDriver {
    fn check_saved(
        &self,
        config: &MachineConfig,
        saved: &SavedMachine,
        report: &DriverReport,
    ) -> Vec<Unsupported> {
        match details(report) {
            Ok(host) => saved::check(config, saved, &host),
            Err(error) => vec![Unsupported {
                field: String::new(),
                reason: error.to_string(),
                hint: Some("probe this host again".to_owned()),
            }],
        }
    }

    async fn restore(&self, config: &MachineConfig, saved: &SavedMachine) -> Result<Running> {
        self.begin(config, Some(saved)).await
    }
}
