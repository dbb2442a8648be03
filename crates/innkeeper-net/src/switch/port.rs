//! What a port is: its settings, and what it counts. Nothing here decides.

use std::collections::BTreeSet;

use crate::frame::Station;

/// Names a port for as long as it exists. A port that is removed leaves its place to another with a new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// Number of a VLAN, 1 to 4094 (IEEE 802.1Q, table 9-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VlanId(u16);

impl VlanId {
    /// Makes the VLAN of this number; none for 0 and beyond 4094, which name none.
    pub fn new(number: u16) -> Option<Self> {
        (1..=4094).contains(&number).then_some(VlanId(number))
    }

    /// Returns the number.
    pub fn number(self) -> u16 {
        self.0
    }
}

/// In which VLANs a port is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum VlanMode {
    /// In none: tags pass through unread. Such ports exchange frames with each other alone.
    #[default]
    Transparent,
    /// In one, without tags; frames that have one are dropped.
    Access(VlanId),
    /// In several, told by tags.
    Trunk {
        /// VLAN of frames without a tag; without one they are dropped.
        native: Option<VlanId>,
        /// VLANs that pass with a tag.
        allowed: BTreeSet<VlanId>,
    },
}

/// How many flooded frames of a port pass in a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FloodLimit {
    /// Frames in a second, over time.
    pub per_second: u64,
    /// Frames at once.
    pub burst: u64,
}

/// Settings of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortConfig {
    /// Longest payload of a frame in bytes, up to 9000. What is longer is dropped on its way in or out.
    pub mtu: u16,
    /// Its VLANs.
    pub vlan: VlanMode,
    /// Whether it exchanges frames only with ports that are not isolated.
    pub isolated: bool,
    /// The only address that it may send from, if it is bound to one.
    pub source: Option<Station>,
    /// Bound of the frames of its own that go to many ports: broadcast, multicast, and to stations that nobody knows.
    pub flood_limit: Option<FloodLimit>,
    /// Whether what it sends and gets is copied to the switch's mirror port.
    pub mirrored: bool,
}

/// Largest MTU that a port may have, in bytes.
pub const LARGEST_MTU: u16 = 9000;

impl Default for PortConfig {
    fn default() -> Self {
        PortConfig {
            mtu: LARGEST_MTU,
            vlan: VlanMode::Transparent,
            isolated: false,
            source: None,
            flood_limit: None,
            mirrored: false,
        }
    }
}

/// Why a frame went no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DropReason {
    /// Shorter than a header.
    Runt,
    /// Longer than an MTU.
    TooLong,
    /// Of a VLAN that the port is not in, or with a tag where none may be.
    Vlan,
    /// From an address that is not the port's, or from a group's.
    Spoofed,
    /// To an address that stays on the link.
    LinkLocal,
    /// To a station behind the same port.
    SamePort,
    /// From an isolated port to an isolated one.
    Isolated,
    /// Beyond the limit of flooded frames.
    Storm,
    /// From the mirror port, which only listens.
    FromMirror,
    /// To a port whose guest does not read.
    Full,
    /// To a port that has nobody at its other end.
    Down,
}

impl DropReason {
    /// Returns the reason's word, which is stable.
    pub fn word(self) -> &'static str {
        match self {
            DropReason::Runt => "runt",
            DropReason::TooLong => "too-long",
            DropReason::Vlan => "vlan",
            DropReason::Spoofed => "spoofed",
            DropReason::LinkLocal => "link-local",
            DropReason::SamePort => "same-port",
            DropReason::Isolated => "isolated",
            DropReason::Storm => "storm",
            DropReason::FromMirror => "from-mirror",
            DropReason::Full => "full",
            DropReason::Down => "down",
        }
    }

    /// All reasons, in the order of their numbers.
    pub const ALL: [DropReason; 11] = [
        DropReason::Runt,
        DropReason::TooLong,
        DropReason::Vlan,
        DropReason::Spoofed,
        DropReason::LinkLocal,
        DropReason::SamePort,
        DropReason::Isolated,
        DropReason::Storm,
        DropReason::FromMirror,
        DropReason::Full,
        DropReason::Down,
    ];
}

/// What a port has counted since it was added. Bytes are those of frames, without prefixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Frames that came from the guest.
    pub received_frames: u64,
    /// Bytes of them.
    pub received_bytes: u64,
    /// Frames given to the guest.
    pub sent_frames: u64,
    /// Bytes of them.
    pub sent_bytes: u64,
    /// Frames of the guest that went to many.
    pub flooded: u64,
    /// How often a station was heard here that had been heard elsewhere.
    pub moves: u64,
    dropped_in: [u64; DropReason::ALL.len()],
    dropped_out: [u64; DropReason::ALL.len()],
}

impl Counters {
    /// Returns how many of the guest's own frames were dropped for a reason.
    pub fn dropped_in(&self, reason: DropReason) -> u64 {
        self.dropped_in[reason as usize]
    }

    /// Returns how many frames to the guest were dropped for a reason.
    pub fn dropped_out(&self, reason: DropReason) -> u64 {
        self.dropped_out[reason as usize]
    }

    pub(super) fn count_received(&mut self, frame: &[u8]) {
        self.received_frames += 1;
        self.received_bytes += frame.len() as u64;
    }

    pub(super) fn drop_in(&mut self, reason: DropReason) {
        self.dropped_in[reason as usize] += 1;
    }

    pub(super) fn drop_out(&mut self, reason: DropReason) {
        self.dropped_out[reason as usize] += 1;
    }
}
