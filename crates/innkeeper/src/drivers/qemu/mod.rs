//! The QEMU driver.
//!
//! ```text
//!  probe ──► QemuHost ──┬─► check(config)            pure: every reason why not
//!   (asks QEMU by QMP)  └─► plan(config) ─► launch ─► machine (supervises, tells events)
//!                             pure           effects      ▲
//!                                            adopt ───────┘
//! ```
//!
//! Only `probe`, `launch` and `machine` have effects. QEMU is told everything by its arguments and by QMP, and nothing that it writes
//! for people is ever parsed. The sockets are `qmp.sock`, `agent.sock` and `serial.sock` (one client each) in the run's socket directory.
//!
//! A vsock device is `vhost-device-vsock`, a daemon beside QEMU; without it the guest's agent joins its ports. The kernel's own (`/dev/vhost-vsock`)
//! is not used: its sockets on the host are every user's, and whoever listens first on a port gets what any guest sends there.

mod arguments;
mod block;
mod board;
mod check;
mod consoles;
mod device;
mod firmware;
mod fittings;
mod host;
mod hotplug;
#[cfg(target_os = "linux")]
mod kvm_trial;
mod launch;
mod machine;
mod media;
mod network;
mod plan;
#[cfg(test)]
mod plan_tests;
mod ports;
mod probe;
mod qmp;
mod record;
mod resize;
mod restore;
mod served;
mod shape;
mod suspend;
mod tracker;
mod trial;

#[cfg(feature = "testing")]
pub use self::qmp::count_messages;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use innkeeper_api::{DriverReport, ErrorKind, Unsupported};
use serde_json::Value;

use self::board::Board;
use self::record::Record;
use super::process;
use crate::driver::{BootConfig, Driver, MachineConfig, Restore, Running, lacking, refuse};
use crate::error::{Error, Result};
use crate::spec::Arch;

pub use self::host::{
    Acceleration, Emulator, MachineType, QemuHost, Refusal, TpmEmulator, UefiFirmware, Virtiofsd,
    VirtiofsdDialect, VirtiofsdSandbox,
};

/// Name that specs and people use.
const NAME: &str = "qemu";

/// Where the driver looks, and what it was told. It reads no environment itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct QemuOptions {
    /// Directories in which `qemu-system-ARCH` is looked for, in this order.
    pub path: Vec<PathBuf>,
    /// How CPUs of guests of the host's architecture are run (`kvm`, `hvf`, `tcg`), without trying; tried if none is given.
    pub accel_override: Option<String>,
    /// Directories of firmware descriptors (QEMU `docs/interop/firmware.json`), in order of preference.
    pub firmware_directories: Vec<PathBuf>,
    /// Files that may be virtiofsd, in order of preference.
    pub virtiofsd_candidates: Vec<PathBuf>,
    /// Directories given to QEMU as `-L`, for one that was not installed where it was built for.
    pub data_directories: Vec<PathBuf>,
    /// What names this boot of the host: a record of another boot is not believed.
    pub boot_id: String,
    /// File in which the result of a probe is kept; valid for this boot and for these binaries.
    pub cache: Option<PathBuf>,
}

impl QemuOptions {
    /// Returns the options with the places where distributions and Homebrew put things.
    pub fn of(path: Vec<PathBuf>, boot_id: impl Into<String>) -> Self {
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect();
        QemuOptions {
            path,
            boot_id: boot_id.into(),
            firmware_directories: paths(&[
                "/etc/qemu/firmware",
                "/usr/share/qemu/firmware",
                "/usr/local/share/qemu/firmware",
                "/opt/homebrew/share/qemu/firmware",
            ]),
            virtiofsd_candidates: paths(&[
                "/usr/libexec/virtiofsd",
                "/usr/lib/virtiofsd",
                "/usr/lib/qemu/virtiofsd",
            ]),
            ..QemuOptions::default()
        }
    }
}

/// The QEMU driver.
pub struct QemuDriver {
    options: QemuOptions,
    found: tokio::sync::Mutex<Option<Arc<QemuHost>>>,
}

impl QemuDriver {
    /// Makes a driver; nothing is looked for yet.
    pub fn new(options: QemuOptions) -> Self {
        QemuDriver {
            options,
            found: tokio::sync::Mutex::new(None),
        }
    }

    /// Returns what was found of QEMU: remembered, from the cache file, or by asking now.
    pub async fn host(&self) -> Arc<QemuHost> {
        let mut found = self.found.lock().await;
        if let Some(host) = &*found {
            return host.clone();
        }
        let host = Arc::new(probe::host(&self.options).await);
        *found = Some(host.clone());
        host
    }
}

/// Reads what a probe put into its report.
fn details(report: &DriverReport) -> Result<QemuHost> {
    serde::Deserialize::deserialize(&report.details).map_err(|error: serde_json::Error| {
        Error::new(
            ErrorKind::Failure,
            "the report of the QEMU driver is not from this version",
        )
        .with_source(error)
    })
}

#[async_trait]
impl Driver for QemuDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn probe(&self) -> DriverReport {
        probe::report(&*self.host().await)
    }

    fn check(&self, config: &MachineConfig, report: &DriverReport) -> Vec<Unsupported> {
        match details(report) {
            Ok(host) => check::check(config, &host)
                .into_iter()
                .chain(lacking(config, report))
                .collect(),
            Err(error) => vec![Unsupported {
                field: String::new(),
                reason: error.to_string(),
                hint: Some("probe this host again".to_owned()),
            }],
        }
    }

    fn choices(&self, config: &MachineConfig, report: &DriverReport) -> Vec<String> {
        details(report)
            .map(|host| check::choices(config, &host))
            .unwrap_or_default()
    }

    fn pin_machine(
        &self,
        asked: Option<&str>,
        arch: Arch,
        report: &DriverReport,
    ) -> Result<String> {
        let host = details(report)?;
        let emulator = host.emulator(arch).ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                format!("no QEMU for {arch} guests was found on this host"),
            )
            .with_hint(check::install_hint(&arch.to_string()))
        })?;
        let name = asked.unwrap_or(Board::family(arch));
        if Board::of(name, arch).is_none() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("machine type {name} is not one that Innkeeper runs {arch} guests on"),
            )
            .with_hint(format!("use {} or auto", Board::family(arch))));
        }
        match emulator.machine(name) {
            Some(machine) => Ok(machine.name.clone()),
            None => {
                let (major, minor, _) = emulator.version;
                Err(Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "QEMU {major}.{minor} on this host does not have the machine type {name}"
                    ),
                )
                .with_hint(format!("use {} or auto", Board::family(arch))))
            }
        }
    }

    async fn launch(&self, config: &MachineConfig) -> Result<Running> {
        let host = self.host().await;
        self.require_supported(config, &host)?;
        require_room_for_tpm(config)?;
        let plan = plan::plan(config, &host, &ports::Placement::default())?;
        let launched = launch::launch(&plan, config, &self.options.boot_id, None).await?;
        machine::supervise_launched(launched, true)
    }

    async fn adopt(&self, _config: &MachineConfig, record: &Value) -> Result<Running> {
        let record = Record::read(record)?;
        self.require_this_boot(&record)?;
        machine::adopt(record).await
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

/// Refuses a TPM beside an ELF kernel with an initial RAM disk on x86-64.
///
/// QEMU puts that RAM disk right below the 160 KiB of ACPI tables that it expects at the end of memory. With a TPM there are 196 KiB, since
/// the TPM's log is there too: the tables are overwritten, and the guest finds neither them nor the TPM (seen with QEMU 10.0). A bzImage
/// places the RAM disk itself, below what is reserved.
fn require_room_for_tpm(config: &MachineConfig) -> Result<()> {
    use std::io::Read;
    let BootConfig::Direct {
        kernel,
        initrd: Some(_),
        ..
    } = &config.boot
    else {
        return Ok(());
    };
    if config.tpm.is_none() || config.arch != Arch::X86_64 {
        return Ok(());
    }
    let mut magic = [0; 4];
    let read = std::fs::File::open(kernel).and_then(|mut file| file.read_exact(&mut magic));
    read.map_err(|error| Error::io(format!("can't read the kernel {}", kernel.display()), error))?;
    if magic != *b"\x7fELF" {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        "tpm: QEMU would put this kernel's initial RAM disk where the guest finds its TPM, since the kernel is uncompressed",
    )
    .with_hint("create the VM with `tpm: true` from the start, name a bzImage as `boot.kernel`, or boot by `firmware: uefi`"))
}

impl QemuDriver {
    /// Refuses, with every reason, what can't be run here.
    /// A spec may have been edited since its driver was chosen: what this QEMU lacks is refused here too, never left out.
    fn require_supported(&self, config: &MachineConfig, host: &QemuHost) -> Result<()> {
        let mut reasons = check::check(config, host);
        reasons.extend(lacking(config, &probe::report(host)));
        refuse(&reasons)
    }

    fn require_this_boot(&self, record: &Record) -> Result<()> {
        if record.boot_id == self.options.boot_id {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::NotFound,
            format!(
                "QEMU (process {}) ended when the host was started anew",
                record.process.pid
            ),
        ))
    }
}
