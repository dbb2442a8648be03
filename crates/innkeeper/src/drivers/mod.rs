//! The hypervisors that Innkeeper knows, one module each. None of them imports the engine or the store.

mod channel;
#[cfg(target_os = "linux")]
pub mod cloud_hypervisor;
#[cfg(all(feature = "testing", target_os = "linux"))]
pub mod fake;
mod kvm;
mod log;
mod process;
pub mod qemu;
mod start;
mod uuid;
mod virtiofsd;
mod vsock;
pub mod vz;
