//! What happened, in the order it happened.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::VmState;

/// One line of the host's event log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// When it happened (RFC 3339 with milliseconds, UTC).
    pub time: String,
    /// The VM it happened to, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum EventKind {
    /// A VM was created.
    Created {
        /// Driver that was chosen.
        driver: String,
    },
    /// A VM's state changed.
    State {
        /// State before.
        from: VmState,
        /// State now.
        to: VmState,
        /// Why, where there is a reason.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The guest rebooted itself.
    GuestReboot,
    /// The agent said hello.
    AgentHello {
        /// Its version.
        version: String,
    },
    /// The agent has said nothing for a while.
    AgentSilent {
        /// Seconds since the last word.
        seconds: u64,
    },
    /// A keeper took over a hypervisor whose keeper had died.
    Adopted {
        /// Process id of the hypervisor.
        vmm_pid: u32,
    },
    /// A VM was asked to stop.
    StopRequested {
        /// True if it will be killed after the timeout.
        force: bool,
    },
    /// The spec was changed.
    SpecChanged {
        /// Fields that changed.
        fields: Vec<String>,
    },
    /// A VM was renamed.
    Renamed {
        /// Name before.
        from: String,
    },
    /// A VM was removed.
    Removed,
    /// An image was added to the store.
    ImageAdded {
        /// Its reference.
        image: String,
    },
    /// An image was removed from the store.
    ImageRemoved {
        /// Its reference.
        image: String,
    },
    /// Something worth knowing that has no kind of its own.
    Note {
        /// The sentence.
        message: String,
    },
}
