//! The commands, a file each, and the few arguments that many of them share.
//!
//! A command reads its arguments, asks `Host` one thing, and writes the answer. What is more than that stands in the library.

pub(crate) mod clone;
pub(crate) mod completion;
pub(crate) mod console;
pub(crate) mod cp;
pub(crate) mod create;
pub(crate) mod disk;
pub(crate) mod disk_of_vm;
pub(crate) mod doctor;
pub(crate) mod drivers;
pub(crate) mod edit;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod explain;
pub(crate) mod export;
pub(crate) mod image;
pub(crate) mod import;
pub(crate) mod info;
pub(crate) mod keeper;
pub(crate) mod kill;
pub(crate) mod logs;
pub(crate) mod ls;
pub(crate) mod man;
pub(crate) mod net;
pub(crate) mod netd;
pub(crate) mod network;
pub(crate) mod pause;
pub(crate) mod protect;
pub(crate) mod rename;
pub(crate) mod restart;
pub(crate) mod rm;
pub(crate) mod run;
#[cfg(test)]
pub(crate) mod sample;
pub(crate) mod schema;
pub(crate) mod set;
pub(crate) mod shell;
pub(crate) mod snapshot;
mod snapshot_tree;
pub(crate) mod ssh;
pub(crate) mod ssh_config;
pub(crate) mod start;
pub(crate) mod stats;
pub(crate) mod stop;
pub(crate) mod vsock;
pub(crate) mod wait;

use std::time::Duration;

use innkeeper::api::{StopOutcome, StoppedBy, VmInfo};
use innkeeper::progress::{Progress, Unit, Update};
use innkeeper::{DetachOptions, Host, StopOptions, WaitFor};
use serde::Serialize;

use crate::failure::Result;
use crate::many;
use crate::output::{Format, Output};
use crate::reporter::Reporter;
use crate::units;

/// Reads a duration.
pub(crate) fn duration(text: &str) -> Result<Duration, innkeeper::spec::DurationError> {
    innkeeper::spec::parse_duration(text)
}

/// For every command that changes something.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct DryRun {
    /// Say what would be done, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// How a device is detached.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct DetachFlags {
    /// How long the guest may take to let go; after that it is told so (exit code 7), and the device goes when the guest lets go
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    timeout: Duration,

    #[command(flatten)]
    pub(crate) dry_run: DryRun,
}

impl DetachFlags {
    /// Returns them as the library takes them.
    pub(crate) fn options(self) -> DetachOptions {
        DetachOptions {
            timeout: self.timeout,
            dry_run: self.dry_run.dry_run,
        }
    }
}

/// For every command that asks before something is lost.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Yes {
    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
}

/// How a guest is asked to stop.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct StopFlags {
    /// How long the guest may take
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = duration)]
    timeout: Duration,

    /// Pull the plug after that time, instead of giving up (exit code 7) and leaving it running
    #[arg(short, long)]
    force: bool,
}

impl StopFlags {
    /// Returns them as the library takes them.
    pub(crate) fn options(self) -> StopOptions {
        StopOptions {
            timeout: self.timeout,
            force: self.force,
        }
    }
}

/// Whether a command waits until the guest is ready.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct ReadyFlags {
    /// Return as soon as the hypervisor runs
    #[arg(long)]
    pub(crate) no_wait: bool,

    /// How long it may take to become ready; by default what its spec says in ready_timeout
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with = "no_wait")]
    timeout: Option<Duration>,
}

impl ReadyFlags {
    /// Makes them of one flag, with the spec's time.
    pub(crate) fn new(no_wait: bool) -> Self {
        ReadyFlags {
            no_wait,
            timeout: None,
        }
    }

    /// Waits until the VM is ready, if it should, and returns what it is then.
    pub(crate) async fn wait(
        &self,
        host: &Host,
        name: &str,
        reporter: &Reporter,
    ) -> Result<VmInfo> {
        if self.no_wait {
            return Ok(host.info(name).await?);
        }
        let timeout = match self.timeout {
            Some(timeout) => Some(timeout),
            None => Some(host.ready_timeout(name)?),
        };
        let show = |info: &VmInfo| {
            reporter.report(Update {
                step: "waiting until ready",
                detail: info.reason.as_deref().unwrap_or(info.state.as_str()),
                done: 0,
                total: None,
                unit: Unit::None,
            });
        };
        let ready = host.wait(name, WaitFor::Ready, timeout, &show).await;
        reporter.finish();
        Ok(ready?)
    }
}

/// What came of stopping one VM, for programs.
#[derive(Debug, Serialize)]
pub(crate) struct Stopped {
    name: String,
    #[serde(flatten)]
    outcome: StopOutcome,
}

impl Stopped {
    /// Says it for people.
    pub(crate) fn sentence(&self) -> String {
        let (name, time) = (&self.name, units::milliseconds(self.outcome.elapsed_ms));
        match self.outcome.by {
            StoppedBy::AlreadyStopped => format!("{name} was not running"),
            StoppedBy::Agent => format!("{name} stopped in {time}, asked by its agent"),
            StoppedBy::PowerButton => format!("{name} stopped in {time}, by its power button"),
            StoppedBy::Guest => format!("{name} had powered off by itself"),
            StoppedBy::Kill => format!("{name} was killed after {time}"),
        }
    }
}

/// Says in one line what a VM is: for a dry run, or after it was made.
pub(crate) fn in_short(info: &VmInfo) -> String {
    let cpus = units::count(info.cpus as usize, "CPU");
    let memory = units::size(info.memory_bytes);
    format!("{}, {}, {cpus}, {memory}", info.driver, info.arch)
}

/// Says that a VM is ready, and how to get in.
pub(crate) fn is_up(info: &VmInfo) -> String {
    let mut text = format!("{} is {}", info.name, info.state);
    if !info.addresses.is_empty() {
        text.push_str(&format!(" at {}", info.addresses.join(", ")));
    }
    for forward in &info.forwards {
        let (address, port, guest) = (&forward.host_address, forward.host_port, forward.guest_port);
        text.push_str(&format!(
            "\n  {address}:{port} leads to its port {guest}/{}",
            forward.protocol
        ));
    }
    crate::terminal_text::lines(&text)
}

/// Tells what came of a command on several VMs: with `-o` the data, with `-q` the names, else a note each.
pub(crate) fn show_each<T: Serialize>(
    done: &[T],
    output: &Output,
    name: impl Fn(&T) -> &str,
    sentence: impl Fn(&T) -> String,
) -> Result<()> {
    if output.format != Format::Table {
        return output.data(&done, String::new);
    }
    for one in done {
        if output.quiet {
            output.line(name(one))?;
        } else {
            output.note(&sentence(one));
        }
    }
    Ok(())
}

/// Says for each VM that it would be done, and what state it is in; each must exist.
pub(crate) async fn dry_run_each(
    names: &[String],
    verb: &str,
    host: &Host,
    output: &Output,
) -> Result<u8> {
    let (steps, code) = many::each(names, output, async |name| {
        let info = host.info(name).await?;
        Ok(format!("{verb} {name} (now {})", info.state))
    })
    .await?;
    output.dry_run(&steps)?;
    Ok(code)
}
