//! Finds out by trying whether hardware acceleration works here and is worth it.

use std::path::Path;

use super::QemuOptions;
use super::host::{Acceleration, Refusal};
use crate::spec::Arch;

/// Opens the accelerator's device, as QEMU will.
pub(super) fn open_kvm() -> Result<(), Refusal> {
    let device = Path::new("/dev/kvm");
    match std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(device)
    {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Err(Refusal {
            reason: "/dev/kvm may not be opened by this user".to_owned(),
            fix: Some("sudo usermod -aG kvm $USER, then log in again".to_owned()),
        }),
        Err(error) => Err(Refusal {
            reason: format!("/dev/kvm can't be opened: {error}"),
            fix: None,
        }),
    }
}

/// Finds out how CPUs are run here.
pub(super) async fn acceleration(
    _program: &Path,
    _arch: Arch,
    options: &QemuOptions,
) -> Acceleration {
    if let Some(accel) = &options.accel_override {
        return Acceleration {
            hardware: (accel != "tcg").then(|| accel.clone()),
            kvm_refused: open_kvm().err(),
            notes: vec![format!(
                "{accel} is used because it was asked for, without trying others"
            )],
        };
    }
    Acceleration {
        hardware: None,
        kvm_refused: open_kvm().err(),
        notes: vec!["hardware acceleration was not tried".to_owned()],
    }
}
