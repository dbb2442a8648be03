//! Whether KVM may be used by this user.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Why something can't be used, and what would fix it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Why not, in a sentence.
    pub reason: String,
    /// What would fix it.
    pub fix: Option<String>,
}

/// Opens the accelerator's device, as a hypervisor will.
pub(super) fn open_kvm() -> Result<(), Refusal> {
    let device = Path::new("/dev/kvm");
    let refusal = |reason: String, fix: Option<&str>| Refusal {
        reason,
        fix: fix.map(str::to_owned),
    };
    match std::fs::OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(refusal(
            "/dev/kvm may not be opened by this user".to_owned(),
            Some("sudo usermod -aG kvm $USER, then log in again"),
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(refusal(
            "this host has no /dev/kvm: its processor or its own hypervisor offers no virtualization, or it is off in the firmware".to_owned(),
            None,
        )),
        Err(error) => Err(refusal(format!("/dev/kvm can't be opened: {error}"), None)),
    }
}
