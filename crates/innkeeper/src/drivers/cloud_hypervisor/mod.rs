//! The Cloud Hypervisor driver, on Linux with KVM.
//!
//! ```text
//!  probe ──► CloudHypervisorHost ──┬─► check(config)                pure: every reason why not
//!   (asks one by its ping)         └─► plan(config) ─► launch ─► machine (supervises, tells events)
//!                                        pure           effects    ▲
//!                                                       adopt ─────┘
//! ```
//!
//! Only `probe`, `launch`, `save` and `machine` have effects. The hypervisor is told everything by its control socket (HTTP and JSON) and
//! tells what happens by a pipe (`--event-monitor`); nothing that it writes for people is ever parsed. It has no network of its own. The
//! socket directory holds `api.sock`, `events` (the pipe), `vsock.sock`, one socket for each shared folder, and `tpm.sock`.

mod abilities;
mod api;
mod check;
mod events;
mod host;
mod launch;
mod machine;
mod plan;
#[cfg(test)]
mod plan_tests;
mod probe;
mod record;
mod save;
mod tracker;
mod wire;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use innkeeper_api::{DriverReport, ErrorKind, Unsupported};
use serde_json::Value;

use self::record::Record;
use self::tracker::Tracker;
use super::process;
use crate::driver::{Driver, MachineConfig, Restore, Running, SavedMachine, lacking, refuse};
use crate::error::{Error, Result};
use crate::spec::Arch;

pub use self::host::CloudHypervisorHost;

/// Name that specs and people use.
const NAME: &str = "cloud-hypervisor";

/// The only machine type: Cloud Hypervisor has none to choose from.
const MACHINE: &str = "cloud-hypervisor";

/// Where the driver looks, and what it was told. It reads no environment itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CloudHypervisorOptions {
    /// Directories in which `cloud-hypervisor` and `swtpm` are looked for, in this order.
    pub path: Vec<PathBuf>,
    /// How CPUs are run, if that was told: `kvm` without trying it; anything else rules this driver out.
    pub accel_override: Option<String>,
    /// Files that may be UEFI firmware made for Cloud Hypervisor, in order of preference.
    pub firmware_candidates: Vec<PathBuf>,
    /// Files that may be virtiofsd, in order of preference.
    pub virtiofsd_candidates: Vec<PathBuf>,
    /// What names this boot of the host: a record of another boot is not believed.
    pub boot_id: String,
    /// Directory with a short path in which a probe makes one of its own for its sockets, and removes it.
    pub scratch: PathBuf,
    /// File in which the result of a probe is kept; valid for this boot and for these binaries.
    pub cache: Option<PathBuf>,
}

impl CloudHypervisorOptions {
    /// Returns the options with the places where distributions put things.
    pub fn of(path: Vec<PathBuf>, boot_id: impl Into<String>) -> Self {
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect();
        CloudHypervisorOptions {
            path,
            boot_id: boot_id.into(),
            scratch: "/tmp".into(),
            firmware_candidates: paths(&[
                "/usr/share/cloud-hypervisor/CLOUDHV.fd",
                "/usr/share/OVMF/CLOUDHV.fd",
                "/usr/share/edk2/ovmf/CLOUDHV.fd",
                "/usr/local/share/cloud-hypervisor/CLOUDHV.fd",
                "/usr/share/cloud-hypervisor/hypervisor-fw",
            ]),
            virtiofsd_candidates: paths(&[
                "/usr/libexec/virtiofsd",
                "/usr/lib/virtiofsd",
                "/usr/lib/qemu/virtiofsd",
            ]),
            ..CloudHypervisorOptions::default()
        }
    }
}

/// The Cloud Hypervisor driver.
pub struct CloudHypervisorDriver {
    options: CloudHypervisorOptions,
    found: tokio::sync::Mutex<Option<Arc<CloudHypervisorHost>>>,
}

impl CloudHypervisorDriver {
    /// Makes a driver; nothing is looked for yet.
    pub fn new(options: CloudHypervisorOptions) -> Self {
        CloudHypervisorDriver {
            options,
            found: tokio::sync::Mutex::new(None),
        }
    }

    /// Returns what was found on this host: remembered, from the cache file, or by asking now.
    pub async fn host(&self) -> Arc<CloudHypervisorHost> {
        let mut found = self.found.lock().await;
        if let Some(host) = &*found {
            return host.clone();
        }
        let host = Arc::new(probe::host(&self.options).await);
        *found = Some(host.clone());
        host
    }

    fn require_this_boot(&self, record: &Record) -> Result<()> {
        if record.boot_id == self.options.boot_id {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::NotFound,
            format!(
                "Cloud Hypervisor (process {}) ended when the host was started anew",
                record.process.pid
            ),
        ))
    }
}

/// Reads what a probe put into its report.
fn details(report: &DriverReport) -> Result<CloudHypervisorHost> {
    serde::Deserialize::deserialize(&report.details).map_err(|error: serde_json::Error| {
        Error::new(
            ErrorKind::Failure,
            "the report of the Cloud Hypervisor driver is not from this version",
        )
        .with_source(error)
    })
}

fn probe_again(error: &Error) -> Vec<Unsupported> {
    vec![Unsupported {
        field: String::new(),
        reason: error.to_string(),
        hint: Some("probe this host again".to_owned()),
    }]
}

#[async_trait]
impl Driver for CloudHypervisorDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn probe(&self) -> DriverReport {
        probe::report(&*self.host().await)
    }

    fn check(&self, config: &MachineConfig, report: &DriverReport) -> Vec<Unsupported> {
        match details(report) {
            Ok(host) => {
                let mut reasons = check::check(config, &host);
                // Where it runs nothing at all, every field would say the same.
                if host.unusable().is_none() {
                    reasons.extend(lacking(config, report));
                }
                reasons
            }
            Err(error) => probe_again(&error),
        }
    }

    fn pin_machine(&self, asked: Option<&str>, _: Arch, _: &DriverReport) -> Result<String> {
        match asked {
            None | Some(MACHINE) => Ok(MACHINE.to_owned()),
            Some(other) => Err(Error::new(
                ErrorKind::Unsupported,
                format!("Cloud Hypervisor has no machine type {other}, only {MACHINE}"),
            )
            .with_hint("use machine: auto")),
        }
    }

    async fn launch(&self, config: &MachineConfig) -> Result<Running> {
        let host = self.host().await;
        let mut reasons = check::check(config, &host);
        reasons.extend(lacking(config, &probe::report(&host)));
        refuse(&reasons)?;
        let plan = plan::plan(config, &host)?;
        let started = launch::start(&plan, config, &self.options.boot_id).await?;
        let launched = started.boot(&plan).await?;
        machine::supervise_launched(launched, config, Tracker::launched())
    }

    async fn adopt(&self, config: &MachineConfig, record: &Value) -> Result<Running> {
        let record = Record::read(record)?;
        self.require_this_boot(&record)?;
        machine::adopt(record, config).await
    }

    async fn kill_record(&self, record: &Value) -> Result<()> {
        let record = Record::read(record)?;
        if self.require_this_boot(&record).is_err() {
            // Nothing outlives a boot.
            return Ok(());
        }
        machine::kill_record(&record).await
    }

    fn restore(&self) -> Option<&dyn Restore> {
        Some(self)
    }
}

#[async_trait]
impl Restore for CloudHypervisorDriver {
    fn check_saved(
        &self,
        config: &MachineConfig,
        saved: &SavedMachine,
        report: &DriverReport,
    ) -> Vec<Unsupported> {
        match details(report) {
            Ok(host) => save::check_saved(config, saved, &host),
            Err(error) => probe_again(&error),
        }
    }

    async fn restore(&self, config: &MachineConfig, saved: &SavedMachine) -> Result<Running> {
        let host = self.host().await;
        refuse(&save::check_saved(config, saved, &host))?;
        let plan = plan::plan(config, &host)?;
        let started = launch::start(&plan, config, &self.options.boot_id).await?;
        let launched = save::restore(started, &plan, saved, host.userfaultfd).await?;
        machine::supervise_launched(launched, config, Tracker::restored())
    }
}
