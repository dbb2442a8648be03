//! Networks between virtual machines: a switch in userspace, and what surrounds it.
//!
//! ```text
//!  sockets ─► io ─► batch (frames behind their lengths) ─► switch ─► outbox ─► io ─► sockets
//! ```
//! - [`switch`]: who gets a frame; learning, VLANs, isolation, back-pressure, counters.
//! - [`link`]: links made bad on purpose: bandwidth, delay, loss and the like, seeded.
//! - [`batch`], [`frame`]: the bytes.
//! - [`io`]: sockets, the loop around a switch, and the only clock.
//!
//! The core (all but [`io`]) has no socket and no clock: time is passed in, as [`Time`].
//! [`MacAddr`] and [`UserNetwork`] are what the hypervisor's own user network needs.

pub mod batch;
pub mod frame;
pub mod io;
pub mod link;
mod mac;
mod rate;
pub mod switch;
mod time;
mod user;

pub use mac::MacAddr;
pub use time::Time;
pub use user::UserNetwork;
