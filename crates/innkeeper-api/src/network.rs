//! Networks of our own: what netd tells and takes.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A network of our own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkInfo {
    /// Its name.
    pub name: String,
    /// When it was made, in RFC 3339.
    pub created: String,
    /// Process of its switch; none if nothing needs it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its ports, by VM and interface; empty if nothing needs it now.
    #[serde(default)]
    pub ports: Vec<NetworkPort>,
}

/// A port of a network's switch, with what it has counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkPort {
    /// The VM.
    pub vm: String,
    /// Number of the VM's interface, from 0.
    pub interface: u32,
    /// MAC address of the interface.
    pub mac: String,
    /// Whether its hypervisor is connected.
    pub connected: bool,
    /// Frames that came from the guest.
    pub received_frames: u64,
    /// Bytes of them.
    pub received_bytes: u64,
    /// Frames given to the guest.
    pub sent_frames: u64,
    /// Bytes of them.
    pub sent_bytes: u64,
    /// Frames from the guest that were dropped, by reason.
    #[serde(default)]
    pub dropped_from_guest: BTreeMap<String, u64>,
    /// Frames to the guest that were dropped, by reason.
    #[serde(default)]
    pub dropped_to_guest: BTreeMap<String, u64>,
    /// How what the guest sends is shaped, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_guest: Option<LinkShape>,
    /// How what it gets is shaped, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_guest: Option<LinkShape>,
}

/// How bad a direction of a link is made. What is missing is not made worse; all missing is a good link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LinkShape {
    /// Bits of frames in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits_per_second: Option<u64>,
    /// Delay in microseconds.
    #[serde(default)]
    pub delay_us: u64,
    /// How far delays spread, evenly to both sides, in microseconds.
    #[serde(default)]
    pub jitter_us: u64,
    /// Loss, as a percentage such as `1%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<String>,
    /// Frames that arrive twice, as a percentage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicate: Option<String>,
    /// Frames that pass those before them, as a percentage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reorder: Option<String>,
    /// Frames with a bit turned, as a percentage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corrupt: Option<String>,
    /// Whether nothing passes.
    #[serde(default)]
    pub partition: bool,
}

/// Asks netd to hold a port for as long as the answer is read; it is an endless one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortRequest {
    /// The VM.
    pub vm: String,
    /// Number of its interface, from 0.
    pub interface: u32,
    /// MAC address of the interface.
    pub mac: String,
    /// Socket on which its hypervisor listens for the switch.
    pub socket: String,
}

/// Asks netd to shape a port. The shape replaces the one before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ShapeRequest {
    /// The VM.
    pub vm: String,
    /// Number of its interface, from 0.
    pub interface: u32,
    /// What the guest sends; left as it is if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_guest: Option<LinkShape>,
    /// What the guest gets; left as it is if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_guest: Option<LinkShape>,
    /// Seed of chance; the same seed and frames give the same losses.
    #[serde(default)]
    pub seed: u64,
}
