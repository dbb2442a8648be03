//! A hypervisor for tests: a process that behaves like one, runs nothing, and checks whoever uses it.
//!
//! `fake-hypervisor -name NAME -plan JSON`. Standard input is the VM's locked file, held for as long as this process lives and never read
//! or handed on. Breaches of the driver contract are written to the plan's file of violations, and end the process.
//!
//! ```text
//!  control.sock ── JSON lines ──► control ─┐                       ┌─► serial log
//!  poke.sock ───── words ───────► pokes ───┼─► guest (power state, │
//!  con*.sock ───── bytes ───────► consoles ┤    memory, devices) ──┼─► agent process (real, on this computer)
//!  agent.sock ──── frames ──────► channel ─┘   ▲ shutdown request  └─► events on the control connection
//!                                    └─────────┘ is taken out of the frames: the agent must not shut this computer down
//! ```

#[cfg(target_os = "linux")]
mod channel;
#[cfg(target_os = "linux")]
mod consoles;
#[cfg(target_os = "linux")]
mod control;
#[cfg(target_os = "linux")]
mod devices;
#[cfg(target_os = "linux")]
mod forwards;
#[cfg(target_os = "linux")]
mod guest;
#[cfg(target_os = "linux")]
mod run;
#[cfg(target_os = "linux")]
mod saving;

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    run::main()
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!("the fake hypervisor runs on Linux only");
    ExitCode::FAILURE
}
