//! Networks between virtual machines.
//!
//! The switch, the gateway and the simulated links come with their own issue; for now this crate holds what the hypervisor's own
//! user network needs: MAC addresses and the address plan of a user-mode network.

mod mac;
mod user;

pub use mac::MacAddr;
pub use user::UserNetwork;
