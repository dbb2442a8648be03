//! The agent protocol, spoken between the host (keeper, library) and the agent in a guest, and what both ends share.
//!
//! ```text
//!  inn exec ──frames──► keeper (relay) ──frames over virtio-serial or vsock──► inn-agent in the guest
//! ```
//! - [`frame`]: the header of 16 bytes; [`message`]: the JSON inside.
//! - [`mux`]: many streams with credit windows over one pipe, without IO.
//! - [`copy`]: file trees as a byte stream; both ends write only below a root that they opened.
//! - [`mod@unit`]: the systemd unit that starts the agent in a full guest.
//!
//! The library does no network or device IO and reads no clock; files are touched by [`copy`] alone. The agent itself is
//! the binary `inn-agent` (Linux).

pub mod copy;
pub mod frame;
pub mod message;
pub mod mux;
pub mod unit;
