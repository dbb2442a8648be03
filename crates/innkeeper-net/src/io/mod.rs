//! Sockets, and the loop that moves frames between them and the switch.
//!
//! ```text
//!  poller ─► network (one thread, one switch) ─► attachment: stream (QEMU), datagram, TAP
//!               ▲ commands, by a closure: handle
//! ```
//! All `unsafe` of this crate is below this module.

#[cfg(test)]
mod allocations;
mod attachment;
mod datagram;
mod handle;
mod network;
mod poller;
mod stream;
#[cfg(target_os = "linux")]
mod tap;
#[cfg(test)]
mod tests;

pub use attachment::{Attachment, Framing};
pub use datagram::DatagramPort;
pub use handle::{Handle, Stopped, spawn};
pub use network::{Network, Target};
pub use stream::StreamPort;
#[cfg(target_os = "linux")]
pub use tap::TapPort;
