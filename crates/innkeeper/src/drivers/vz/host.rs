//! What a Mac was found to be able to do, and what that means for each capability. Pure.

use innkeeper_api::{Capability, CapabilityReport, DriverReport, Need};
use serde::{Deserialize, Serialize};

/// A version of macOS: major and minor.
pub type Version = (u32, u32);

/// First macOS that the driver runs on: UEFI, machine identifiers and console ports with names came with it.
pub const OLDEST: Version = (13, 0);

/// What a Mac was found to be able to do. The driver's own part of its report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VzHost {
    /// Version of macOS.
    pub macos: Version,
    /// Version and build of macOS, to which a saved state belongs.
    pub build: String,
    /// Architecture, as specs name it.
    pub arch: String,
    /// Fewest and most CPUs of a machine.
    pub cpus: (u32, u32),
    /// Least and most memory of a machine, in bytes.
    pub memory: (u64, u64),
    /// Whether guests may run virtual machines themselves.
    pub nested: bool,
    /// Why no machine can run here, if none can.
    pub unusable: Option<String>,
}

impl VzHost {
    /// What a computer is that is no Mac.
    pub fn absent(os: &str) -> Self {
        VzHost {
            macos: (0, 0),
            build: String::new(),
            arch: String::new(),
            cpus: (0, 0),
            memory: (0, 0),
            nested: false,
            unusable: Some(format!(
                "Virtualization.framework is macOS's, and this is {os}"
            )),
        }
    }

    /// What a Mac is that lacks nothing: Apple silicon with the newest macOS that the driver knows. It stands for what is written, not for
    /// what was run.
    pub fn newest() -> Self {
        VzHost {
            macos: (26, 0),
            build: String::new(),
            arch: "arm64".to_owned(),
            cpus: (1, u32::MAX),
            memory: (0, u64::MAX),
            nested: true,
            unusable: None,
        }
    }

    /// Tells why no machine can run here, if none can.
    pub fn unusable(&self) -> Option<String> {
        self.unusable.clone().or_else(|| {
            (self.macos < OLDEST).then(|| {
                format!(
                    "macOS {} or later is needed, and this is {}.{}",
                    OLDEST.0, self.macos.0, self.macos.1
                )
            })
        })
    }

    fn lacking(&self, capability: Capability) -> Option<String> {
        use Capability as C;
        let since = |version: Version| {
            (self.macos < version).then(|| format!("macOS {} has it", version.0))
        };
        let no = |reason: &str| Some(reason.to_owned());
        match capability {
            C::BootDirect
            | C::BootUefi
            | C::Disks
            | C::NetworkUser
            | C::ShareVirtiofs
            | C::AgentChannel
            | C::SerialLog
            | C::ShutdownTold
            | C::PowerButton
            | C::Pause
            | C::Balloon
            | C::DiskUsb
            | C::DiskCache
            | C::Consoles
            | C::Vsock
            | C::Entropy => None,
            C::Suspend | C::DiskNvme => since((14, 0)),
            C::DiskHotplug => since((15, 0)),
            C::Nested if self.nested => None,
            C::Nested => no("it needs macOS 15 and an M3 or later"),
            C::BootBios => no("Virtualization.framework has UEFI alone"),
            C::SecureBoot => no("the UEFI of Virtualization.framework checks no signatures"),
            C::ForeignArch => no("Virtualization.framework emulates nothing"),
            C::PinnedMachine => {
                no("Virtualization.framework has one machine, which changes with macOS")
            }
            C::DiskQcow2 => no("Virtualization.framework reads raw images alone"),
            C::NetworkAddresses => no("the NAT of Virtualization.framework chooses the addresses"),
            C::NetworkSwitched => no("Innkeeper's own network is not joined to it yet"),
            C::PortForward | C::NetworkClosed => {
                no("the NAT of Virtualization.framework can't do it")
            }
            C::RebootTold => no("Virtualization.framework reboots a guest without telling"),
            C::Adoption => {
                no("a machine of Virtualization.framework lives in its keeper and ends with it")
            }
            C::CpuHotplug | C::MemoryHotplug | C::NetworkHotplug => {
                no("Virtualization.framework fixes it at the start")
            }
            C::HugePages => no("macOS has none to choose"),
            C::DiskLimits => no("Virtualization.framework limits no disk"),
            C::Drive => {
                no("Virtualization.framework has no drive; attach the medium as a read-only disk")
            }
            C::Tpm => no("Virtualization.framework has no TPM"),
            C::Watchdog => no("Virtualization.framework has no watchdog"),
            C::BlockStatistics => no("Virtualization.framework counts nothing"),
            C::Sandbox => no("the process is Apple's; Innkeeper confines it no further"),
        }
    }

    /// Makes the driver's report.
    pub fn report(&self, driver: &str) -> DriverReport {
        let unusable = self.unusable();
        let usable = unusable.is_none();
        let capabilities = Capability::ALL
            .iter()
            .map(|capability| CapabilityReport {
                capability: *capability,
                lacking: unusable.clone().or_else(|| self.lacking(*capability)),
            })
            .collect();
        let notes = match &unusable {
            Some(reason) => vec![reason.clone()],
            None => vec![
                "type-checked, not run: nobody has tried this driver on a Mac".to_owned(),
                "the guest's vsock context id is Virtualization.framework's choice".to_owned(),
                "what the balloon takes is given to other programs late or not at all".to_owned(),
            ],
        };
        let old = self.unusable.is_none() && !usable;
        DriverReport {
            driver: driver.to_owned(),
            usable,
            version: (!self.build.is_empty()).then(|| self.build.clone()),
            accel: usable.then(|| "hvf".to_owned()),
            notes,
            arches: if usable {
                vec![self.arch.clone()]
            } else {
                Vec::new()
            },
            capabilities,
            needs: if old {
                vec![Need {
                    what: format!("macOS {}", OLDEST.0),
                    without: "Virtualization.framework lacks what the driver needs".to_owned(),
                    fix: "update macOS".to_owned(),
                }]
            } else {
                Vec::new()
            },
            details: serde_json::to_value(self).unwrap_or_default(),
        }
    }
}
