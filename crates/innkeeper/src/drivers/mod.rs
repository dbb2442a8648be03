//! The hypervisors that Innkeeper knows, one module each. None of them imports the engine or the store.

#[cfg(all(feature = "testing", target_os = "linux"))]
pub mod fake;
pub mod qemu;
pub mod vz;
