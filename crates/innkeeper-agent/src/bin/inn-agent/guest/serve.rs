//! The agent's command line, and the start of its threads.

use crate::guest::link::Link;
use crate::guest::operations::Operations;
use crate::guest::port::Port;
use innkeeper_agent::unit;
use std::process::ExitCode;
use std::sync::Arc;

pub fn main() -> ExitCode {
    let is_init = rustix::process::getpid().is_init();
    if is_init {
        // The kernel passes unknown words of its command line as arguments; they are not ours.
        crate::guest::init::run()
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words
        .first()
        .is_some_and(|verb| verb.starts_with("--vsock-"))
    {
        return crate::guest::vsock::program(&words);
    }
    let mut arguments = words.into_iter();
    let port = match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => Port::Named,
        (Some("--print-unit"), None) => {
            print!("{}", unit::UNIT_TEXT);
            return ExitCode::SUCCESS;
        }
        (Some("--version"), None) => {
            println!("{}", software());
            return ExitCode::SUCCESS;
        }
        (Some("--device"), Some(path)) => Port::Device(path.into()),
        (Some("--connect"), Some(address)) if address.starts_with("unix:") => {
            Port::Unix(address["unix:".len()..].into())
        }
        _ => {
            eprintln!(
                "usage: inn-agent [--device PATH | --connect unix:PATH | --print-unit | --version | --vsock-connect PORT | --vsock-accept PORT]"
            );
            return ExitCode::from(2);
        }
    };
    let allowed = !matches!(port, Port::Unix(_));
    let (link, operations) = start(false, allowed);
    crate::guest::link::run(&link, port, &operations, || {})
}

/// Starts what serves requests; the caller then runs the link.
pub fn start(is_init: bool, may_change_system: bool) -> (Arc<Link>, Arc<Operations>) {
    // CPUs and mounts of the computer that a socket is on are not the guest's.
    let offered =
        |feature: &str| may_change_system || !["bring-online", "unmount"].contains(&feature);
    let link = Link::new(crate::guest::facts::guest_info(is_init), offered);
    let operations = Operations::new(Arc::clone(&link), is_init, may_change_system);
    crate::guest::network::watch(Arc::clone(&link));
    if !is_init {
        crate::guest::facts::watch_cloud_init(Arc::clone(&link));
    }
    (link, operations)
}

pub fn software() -> String {
    concat!("inn-agent ", env!("CARGO_PKG_VERSION")).to_owned()
}
