//! What the fake hypervisor is told: one JSON document, made purely from the config, as the real drivers make their arguments.
//!
//! A guest's misbehaviour is asked for on its kernel command line, by words that begin with `fake.`; real kernels ignore them. An
//! unknown one is refused, since a trial whose misbehaviour is misspelt would pass for the wrong reason.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use innkeeper_api::Capability;
use serde::{Deserialize, Serialize};

use super::FakeOptions;
use crate::driver::{BootConfig, MachineConfig};

/// Everything that the fake hypervisor is told. A field that it does not know is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The VM's name.
    pub name: String,
    /// The VM's identifier.
    pub id: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// Files that must be there and are only read: kernel, initial RAM disk.
    pub files: Vec<PathBuf>,
    /// Disks.
    pub disks: Vec<PlanDisk>,
    /// Folders that must be there.
    pub folders: Vec<PathBuf>,
    /// Ports of the host that lead to ports of the guest, which is this computer.
    pub forwards: Vec<PlanForward>,
    /// Control socket, on which it listens.
    pub control: PathBuf,
    /// Socket of the agent's channel, on which it listens for the host.
    pub agent: PathBuf,
    /// Socket on which it listens for the guest agent.
    pub guest_port: PathBuf,
    /// Socket on which a trial makes the guest do something.
    pub poke: PathBuf,
    /// A pipe that stands for the guest's `/dev/console`.
    pub console: PathBuf,
    /// Where the serial console is written.
    pub serial_log: PathBuf,
    /// Where breaches of the contract are written, one line each.
    pub violations: PathBuf,
    /// Program that plays the guest's agent.
    pub agent_program: Option<PathBuf>,
    /// What it does wrong.
    pub script: Script,
}

/// A disk of the fake hypervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanDisk {
    /// The file.
    pub path: PathBuf,
    /// Whether the guest can't write to it.
    pub read_only: bool,
}

/// A forwarded TCP port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanForward {
    /// Where it listens.
    pub host: SocketAddr,
    /// Port of the guest.
    pub guest_port: u16,
}

/// What a fake hypervisor or its guest does wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// Milliseconds before it listens (`fake.launch-delay=MS`).
    pub launch_delay_ms: u64,
    /// Ends with code 1 and a message after the delay, without ever listening (`fake.launch-fail`).
    pub launch_fail: bool,
    /// Takes connections to its control socket and never answers (`fake.control=mute`).
    pub mute_control: bool,
    /// The guest ignores its power button (`fake.button=ignore`).
    pub ignore_button: bool,
    /// The guest has no agent (`fake.agent=none`).
    pub no_agent: bool,
    /// The guest's agent never shuts the guest down, though it says that it will (`fake.shutdown=ignore`).
    pub ignore_shutdown: bool,
}

impl Script {
    /// Reads the words of a kernel command line that are meant for the fake.
    ///
    /// Errors: the word that is unknown.
    pub fn parse(command_line: &str) -> Result<Script, String> {
        let mut script = Script::default();
        for word in command_line.split_ascii_whitespace() {
            let Some(word) = word.strip_prefix("fake.") else {
                continue;
            };
            match word.split_once('=').unwrap_or((word, "")) {
                ("launch-delay", milliseconds) => {
                    script.launch_delay_ms = milliseconds
                        .parse()
                        .map_err(|_| format!("fake.{word}: not a number of milliseconds"))?;
                }
                ("launch-fail", "") => script.launch_fail = true,
                ("control", "mute") => script.mute_control = true,
                ("button", "ignore") => script.ignore_button = true,
                ("agent", "none") => script.no_agent = true,
                ("shutdown", "ignore") => script.ignore_shutdown = true,
                _ => return Err(format!("fake.{word}: the fake knows no such misbehaviour")),
            }
        }
        Ok(script)
    }
}

/// Makes the plan. Pure.
///
/// Errors: the misbehaviour that is unknown.
pub(super) fn plan(config: &MachineConfig, options: &FakeOptions) -> Result<Plan, String> {
    let socket = |name: &str| config.paths.sockets.join(name);
    let (files, script) = match &config.boot {
        BootConfig::Direct {
            kernel,
            initrd,
            cmdline,
        } => (
            std::iter::once(kernel).chain(initrd).cloned().collect(),
            Script::parse(cmdline)?,
        ),
        BootConfig::Uefi { .. } | BootConfig::Bios => (Vec::new(), Script::default()),
    };
    Ok(Plan {
        name: config.name.clone(),
        id: config.id.clone(),
        cpus: config.cpus,
        memory: config.memory.get(),
        files,
        disks: config
            .disks
            .iter()
            .map(|disk| PlanDisk {
                path: disk.path.clone(),
                read_only: disk.read_only,
            })
            .collect(),
        folders: config
            .shares
            .iter()
            .map(|share| share.host.clone())
            .collect(),
        forwards: config
            .nics
            .iter()
            .flat_map(|nic| &nic.forwards)
            .map(|forward| PlanForward {
                host: SocketAddr::new(forward.host_address, forward.host_port),
                guest_port: forward.guest_port,
            })
            .collect(),
        control: socket("control.sock"),
        agent: socket("agent.sock"),
        guest_port: socket("guest.sock"),
        poke: poke_socket(&config.paths.sockets),
        console: console(&config.paths.sockets),
        serial_log: config.paths.serial_log.clone(),
        violations: options.violations.clone(),
        agent_program: options.agent.clone(),
        script,
    })
}

/// Tells why the fake can't play a capability at all; none if it can.
pub(super) fn not_played(capability: Capability) -> Option<String> {
    use Capability as C;
    matches!(
        capability,
        C::Suspend
            | C::SecureBoot
            | C::CpuHotplug
            | C::Nested
            | C::MemoryHotplug
            | C::Balloon
            | C::HugePages
            | C::DiskNvme
            | C::DiskUsb
            | C::DiskCache
            | C::DiskLimits
            | C::DiskHotplug
            | C::Drive
            | C::NetworkHotplug
            | C::NetworkClosed
            | C::Consoles
            | C::Tpm
            | C::Watchdog
            | C::Vsock
    )
    .then(|| "the fake does not play it".to_owned())
}

/// Returns where a trial pokes the guest.
pub(super) fn poke_socket(sockets: &Path) -> PathBuf {
    sockets.join("poke.sock")
}

/// Returns the pipe that stands for the guest's console.
pub(super) fn console(sockets: &Path) -> PathBuf {
    sockets.join("console")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misbehaviour_is_read_and_misspelling_refused() {
        let script =
            Script::parse("quiet fake.launch-delay=250 fake.button=ignore panic=-1").unwrap();
        assert_eq!(
            script,
            Script {
                launch_delay_ms: 250,
                ignore_button: true,
                ..Script::default()
            }
        );
        assert_eq!(Script::parse("console=ttyS0").unwrap(), Script::default());
        assert!(
            Script::parse("fake.botton=ignore")
                .unwrap_err()
                .contains("botton")
        );
        assert!(Script::parse("fake.launch-delay=soon").is_err());
    }
}
