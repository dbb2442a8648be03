//! What was found of Cloud Hypervisor on this host: the binary, its version, and what of the host it can use.
//!
//! Plain values, made by `probe` and read by the pure `plan` and `check`; they serialise, so that a probe can be remembered.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::drivers::kvm::Refusal;
use crate::drivers::virtiofsd::Virtiofsd;

/// The oldest major version that is supported: the first that keeps the hypervisor alive when a guest powers off (`--no-shutdown`
/// works), takes the type of a disk image by name (`image_type`) and restores memory on demand. Source: its release notes, v52.0.
pub(super) const OLDEST: u32 = 52;

/// What was found of Cloud Hypervisor on this host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CloudHypervisorHost {
    /// Name of the host's own architecture, as [`crate::spec::Arch`] prints it: the only one that it runs.
    pub host_arch: String,
    /// The executable.
    pub program: Option<PathBuf>,
    /// Its version, as it says itself; none if it could not be asked.
    pub version: Option<String>,
    /// Why it could not be asked, if not.
    pub silent: Option<String>,
    /// Why KVM can't be used; none if it can be opened.
    pub kvm_refused: Option<Refusal>,
    /// Whether it confines itself with Landlock here, as a trial showed.
    pub landlock: bool,
    /// Whether memory can be restored on demand by userfaultfd.
    pub userfaultfd: bool,
    /// Whether guests may run virtual machines themselves.
    pub nested: bool,
    /// The daemon that serves shared folders.
    pub virtiofsd: Option<Virtiofsd>,
    /// The program that plays TPMs.
    pub swtpm: Option<PathBuf>,
    /// UEFI firmware made for Cloud Hypervisor.
    pub firmware: Option<PathBuf>,
}

impl CloudHypervisorHost {
    /// Returns the major version, if it is known.
    pub(super) fn major(&self) -> Option<u32> {
        self.version.as_deref().and_then(major)
    }

    /// Tells why it runs no guest here at all, and what would fix it; none if it does.
    pub(super) fn unusable(&self) -> Option<Refusal> {
        let refusal = |reason: String, fix: &str| {
            Some(Refusal {
                reason,
                fix: Some(fix.to_owned()),
            })
        };
        if self.program.is_none() {
            return refusal(
                "cloud-hypervisor was not found on this host".to_owned(),
                "put the binary of a release of Cloud Hypervisor on the PATH as cloud-hypervisor",
            );
        }
        if let Some(refused) = &self.kvm_refused {
            return Some(Refusal {
                reason: format!("Cloud Hypervisor needs KVM: {}", refused.reason),
                fix: refused.fix.clone(),
            });
        }
        match (self.major(), &self.version) {
            (Some(major), Some(version)) if major < OLDEST => refusal(
                too_old(version),
                "put a newer release of Cloud Hypervisor on the PATH",
            ),
            (Some(_), _) => None,
            (None, _) => refusal(
                format!(
                    "cloud-hypervisor does not tell its version: {}",
                    self.silent.as_deref().unwrap_or("its answer can't be read")
                ),
                "put the binary of a release of Cloud Hypervisor on the PATH as cloud-hypervisor",
            ),
        }
    }
}

/// Says that a version is too old.
pub(super) fn too_old(version: &str) -> String {
    format!("Cloud Hypervisor {version} is too old: {OLDEST}.0 or later is needed")
}

/// Reads the major version.
pub(super) fn major(version: &str) -> Option<u32> {
    version
        .trim_start_matches('v')
        .split(['.', '-'])
        .next()?
        .parse()
        .ok()
}
