//! What the tests of whole installations share: an installation of one's own under a short path, the fake drivers, the agent, and images
//! that are built once and lent to each installation.
//!
//! The programs beside this library are the test doubles: `fake-hypervisor`, and `testbed`, which runs keepers that know the fake drivers, and `inn-on-fakes`, the command line on a
//! host that has them.
//! All of it is for Linux, where the fake hypervisor runs.
#![cfg(target_os = "linux")]

mod agent;
mod cache;
mod installation;
pub mod qemu;

pub use agent::{agent_program, libexec};
pub use cache::{lend, lend_tiny, results_directory};
pub use installation::{
    Installation, Opener, Programs, builder_from_environment, fake_options, host_from_environment,
};
