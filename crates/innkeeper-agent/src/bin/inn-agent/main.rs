//! The guest agent: serves the host over a virtio-serial port or by vsock, and is the init of minimal guests.
//!
//! ```text
//!  inn-agent                      serve the port org.innkeeper.agent.0, or vsock port 1021 (in a full guest, as a service)
//!  inn-agent --device PATH        serve this device
//!  inn-agent --connect unix:PATH  serve a socket, for tests: requests that change the whole system are refused
//!  inn-agent --print-unit         print the systemd unit
//!  inn-agent --vsock-connect PORT, --vsock-accept PORT   join a vsock port to standard input and output (see `guest::vsock`)
//!  as process 1                   set the guest up (see `guest::init`), then serve
//! ```
//! Threads with blocking IO: one reads the port and dispatches, one writes it, each command and copy has its own.
//! Only Linux; elsewhere the program says so and exits.
#![allow(unreachable_pub, reason = "modules of a binary")]

#[cfg(target_os = "linux")]
mod guest;

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    guest::main()
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!("inn-agent runs in Linux guests only");
    ExitCode::FAILURE
}
