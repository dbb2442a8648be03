//! The guest agent: serves the host over a virtio-serial port or by vsock, and is the init of minimal guests.
//!
//! ```text
//!  inn-agent                      serve the port org.innkeeper.agent.0, or vsock port 1021 (in a full guest, as a service)
//!  inn-agent --device PATH        serve this device
//!  inn-agent --connect unix:PATH  serve a socket, for tests: requests that change the whole system are refused
//!  inn-agent --print-unit         print the systemd unit
//!  inn-agent --vsock-connect PORT, --vsock-accept PORT   join a vsock port to standard input and output (see `vsock`)
//!  as process 1                   set the guest up (see `init`), then serve
//! ```
//! Threads with blocking IO: one reads the port and dispatches, one writes it, each command and copy has its own.
//! Only Linux; elsewhere the program says so and exits.
#![allow(unreachable_pub, reason = "modules of a binary")]

#[cfg(target_os = "linux")]
mod children;
#[cfg(target_os = "linux")]
mod dhcp;
#[cfg(target_os = "linux")]
mod exec;
#[cfg(target_os = "linux")]
mod facts;
#[cfg(target_os = "linux")]
mod init;
#[cfg(target_os = "linux")]
mod link;
#[cfg(target_os = "linux")]
mod log;
#[cfg(target_os = "linux")]
mod modules;
#[cfg(target_os = "linux")]
mod netlink;
#[cfg(target_os = "linux")]
mod network;
#[cfg(target_os = "linux")]
mod online;
#[cfg(target_os = "linux")]
mod operations;
#[cfg(target_os = "linux")]
mod port;
#[cfg(target_os = "linux")]
mod power;
#[cfg(target_os = "linux")]
mod root;
#[cfg(target_os = "linux")]
mod serve;
#[cfg(target_os = "linux")]
mod session;
#[cfg(target_os = "linux")]
mod transfer;
#[cfg(target_os = "linux")]
mod unmount;
#[cfg(target_os = "linux")]
mod users;
#[cfg(target_os = "linux")]
mod vsock;

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    serve::main()
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!("inn-agent runs in Linux guests only");
    ExitCode::FAILURE
}
