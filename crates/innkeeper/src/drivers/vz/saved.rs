//! What is kept beside a saved state, and what must be the same for it to be continued. Pure.
//!
//! Virtualization.framework restores only into a machine that is configured alike, on the same Mac, and says no more than "error 12" of
//! what differs. So the plan is kept, and what differs is named from it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use innkeeper_api::{ErrorKind, Unsupported};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::host::VzHost;
use super::objects::{Balloon, BootLoader, MachinePlan};
use super::plan::plan;
use crate::driver::{MachineConfig, SavedMachine};
use crate::error::{Error, Result};

/// Name of the state's file.
#[cfg(any(test, target_os = "macos"))]
pub(super) const STATE_FILE: &str = "machine.vzstate";

/// What is kept beside a saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Details {
    /// The state's file, in the directory.
    pub(super) file: String,
    /// The machine's identifier, in hexadecimal digits.
    pub(super) machine_identifier: String,
    /// What the machine is made of.
    pub(super) plan: MachinePlan,
}

impl Details {
    /// Reads what was kept.
    pub(super) fn read(saved: &SavedMachine) -> Result<Self> {
        Details::deserialize(&saved.details).map_err(|error| {
            Error::new(
                ErrorKind::Failure,
                "what is kept beside the saved state can't be read",
            )
            .with_source(error)
        })
    }

    /// Writes it for the engine to keep.
    #[cfg(any(test, target_os = "macos"))]
    pub(super) fn to_value(&self) -> Result<Value> {
        serde_json::to_value(self).map_err(|error| {
            Error::new(ErrorKind::Failure, "the plan can't be written down").with_source(error)
        })
    }
}

/// Writes bytes as hexadecimal digits.
#[cfg(any(test, target_os = "macos"))]
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Tells every reason why a saved state can't be continued as `config` here.
pub(super) fn check(
    config: &MachineConfig,
    saved: &SavedMachine,
    host: &VzHost,
) -> Vec<Unsupported> {
    let reason = |field: &str, reason: String, hint: Option<&str>| Unsupported {
        field: field.to_owned(),
        reason,
        hint: hint.map(str::to_owned),
    };
    if let Some(why) = host.unusable() {
        return vec![reason("", why, None)];
    }
    let (details, now) = match (Details::read(saved), plan(config, host)) {
        (Ok(details), Ok(now)) => (details, now),
        (Err(error), _) | (_, Err(error)) => {
            return vec![reason("", error.chain().join(": "), None)];
        }
    };
    let mut reasons = Vec::new();
    if saved.version != host.build {
        reasons.push(reason(
            "",
            format!(
                "the state was saved by {}, and this is {}",
                saved.version, host.build
            ),
            Some("start the VM anew"),
        ));
    }
    let whole = |plan: &MachinePlan| serde_json::to_value(essence(plan)).unwrap_or_default();
    let (before, now) = (whole(&details.plan), whole(&now));
    if let (Value::Object(before), Value::Object(now)) = (before, now) {
        // Sorted, so that the reasons come in the same order whatever else the program does with JSON.
        for (part, was) in before.into_iter().collect::<BTreeMap<_, _>>() {
            if now.get(&part) != Some(&was) {
                let field = field_of(&part);
                let what = if field.is_empty() { &part } else { field };
                reasons.push(reason(
                    field,
                    format!("{what} is not what it was when the VM was saved"),
                    Some("undo the change, or start the VM anew"),
                ));
            }
        }
    }
    reasons
}

/// Leaves out of a plan what may change: kernel and command line, which are in the saved memory already, and the balloon's target.
fn essence(plan: &MachinePlan) -> MachinePlan {
    let boot_loader = match &plan.boot_loader {
        BootLoader::Linux { .. } => BootLoader::Linux {
            kernel: PathBuf::new(),
            initial_ramdisk: None,
            command_line: String::new(),
        },
        same => same.clone(),
    };
    MachinePlan {
        boot_loader,
        balloon: plan.balloon.as_ref().map(|_| Balloon { target: 0 }),
        ..plan.clone()
    }
}

/// Returns the spec's field that decides a part of the plan.
fn field_of(part: &str) -> &str {
    match part {
        "cpus" | "memory" | "shares" | "consoles" | "networks" => part,
        "boot_loader" => "boot.firmware",
        "platform" => "nested",
        "storage" | "usb_controller" => "disks",
        "balloon" => "memory_target",
        "socket" => "vsock",
        _ => "",
    }
}
