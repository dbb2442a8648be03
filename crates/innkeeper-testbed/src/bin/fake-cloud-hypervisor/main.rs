//! A double of Cloud Hypervisor for tests of its driver: it speaks the real interface, is stricter than the real one, and replays the
//! oddities that were seen of it. It runs no guest. Started under the name `virtiofsd` it is a double of that.
//!
//! ```text
//!  DIRECTORY/cloud-hypervisor ─► this program        DIRECTORY/script      oddities, read anew at every call
//!  DIRECTORY/virtiofsd        ─► this program        DIRECTORY/violations  what its user did wrong, one line each
//!                                                    DIRECTORY/guest.sock  where programs "in the guest" connect (see `vsock`)
//! ```
//!
//! Like the real one it carries out one call at a time, so that one which stalls makes all others wait.
#![cfg_attr(not(target_os = "linux"), allow(unused))]

#[cfg(target_os = "linux")]
mod http;
#[cfg(target_os = "linux")]
mod machine;
#[cfg(target_os = "linux")]
mod schema;
#[cfg(target_os = "linux")]
mod script;
#[cfg(target_os = "linux")]
mod share;
#[cfg(target_os = "linux")]
mod vsock;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    let program = std::env::args_os().next().unwrap_or_default();
    let result = if program.to_string_lossy().ends_with("virtiofsd") {
        share::serve(&script::Script::beside(&program))
    } else {
        machine::run(script::Script::beside(&program))
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fake-cloud-hypervisor: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {}
