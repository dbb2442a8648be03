//! What a keeper is asked, and what it answers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Problem, VmState};

/// Asks a keeper to start its VM.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct StartRequest {}

/// Asks a keeper to stop its VM: first by the agent, then by the power button.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct StopRequest {
    /// How long the guest may take, in milliseconds.
    pub timeout_ms: u64,
    /// Kill it after that time instead of leaving it running.
    pub force: bool,
}

/// Asks a keeper to stop its VM's CPUs.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct PauseRequest {}

/// Asks a keeper to continue its VM's CPUs.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct ResumeRequest {}

/// Asks a keeper to write its VM's memory and devices to disk and to end the hypervisor.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct SuspendRequest {}

/// Asks a keeper to give its running VM what its spec asks for by now.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ApplyRequest {
    /// How long the guest may take to let go of devices, in milliseconds.
    pub timeout_ms: u64,
}

/// What a running VM was given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApplyOutcome {
    /// Fields that hold now.
    pub applied: Vec<String>,
    /// Fields that hold from the next start.
    pub later: Vec<Later>,
}

/// A field that a running VM could not be given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Later {
    /// Path of the field.
    pub field: String,
    /// Why not now.
    pub reason: String,
    /// What went wrong, if it was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// Asks a keeper to end the hypervisor at once.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct KillRequest {}

/// Asks a keeper to stop and start its VM.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RestartRequest {
    /// How long the guest may take to stop, in milliseconds.
    pub timeout_ms: u64,
    /// Kill it after that time instead of giving up.
    pub force: bool,
}

/// What came of a stop.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct StopOutcome {
    /// What made the guest stop.
    pub by: StoppedBy,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
}

/// What made a guest stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StoppedBy {
    /// It was not running.
    AlreadyStopped,
    /// The agent shut it down.
    Agent,
    /// It followed the power button.
    PowerButton,
    /// It powered off by itself meanwhile.
    Guest,
    /// The hypervisor was killed.
    Kill,
}

/// Whether a request was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Admission {
    /// It was taken and will be carried out.
    Enqueued,
    /// Nothing needs to be done.
    AlreadySo,
}

/// Says that a request was taken.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Accepted {
    /// Whether anything will be done.
    pub admission: Admission,
    /// The state when it was taken.
    pub state: VmState,
}
