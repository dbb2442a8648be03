//! The Cloud Hypervisor driver: each trap of Cloud Hypervisor against its strict double, and the real one, where it is on the PATH, with a
//! guest of a hundred bytes.
//!
//! A test of the real one says why it is skipped, and fails if `INNKEEPER_REQUIRE_DRIVERS` names `cloud-hypervisor`. A test removes what it
//! made, and checks that neither a process nor a socket is left.
#![cfg(target_os = "linux")]

mod agent;
mod bench;
mod real;
mod saved;
mod traps;
