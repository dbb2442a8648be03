//! What the fake hypervisor is told: one JSON document, made purely from the config, as the real drivers make their arguments.
//!
//! A guest's misbehaviour is asked for on its kernel command line, by words that begin with `fake.`; real kernels ignore them. An
//! unknown one is refused, since a trial whose misbehaviour is misspelt would pass for the wrong reason.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use innkeeper_api::Capability;
use serde::{Deserialize, Serialize};

use super::FakeOptions;
use crate::driver::{BootConfig, DiskConfig, MachineConfig, NicConfig};
use crate::spec::ForwardSpec;

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
    /// The most CPUs that it may be given.
    pub max_cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// The most memory that it may be given.
    pub max_memory: u64,
    /// Files that must be there and are only read: kernel, initial RAM disk.
    pub files: Vec<PathBuf>,
    /// Disks.
    pub disks: Vec<PlanDisk>,
    /// Drives with a changeable medium.
    pub drives: Vec<PlanDrive>,
    /// Folders that must be there.
    pub folders: Vec<PathBuf>,
    /// Network interfaces.
    pub nics: Vec<PlanNic>,
    /// Consoles that can be typed at; the first one is the serial port.
    pub consoles: Vec<PlanConsole>,
    /// Directory to restore from, instead of booting.
    pub restore: Option<PathBuf>,
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
    /// Name.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Whether the guest can't write to it.
    pub read_only: bool,
}

impl PlanDisk {
    pub(super) fn of(disk: &DiskConfig) -> PlanDisk {
        PlanDisk {
            name: disk.name.clone(),
            path: disk.path.clone(),
            read_only: disk.read_only,
        }
    }
}

/// A drive of the fake hypervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanDrive {
    /// Name.
    pub name: String,
    /// The file that lies in it.
    pub medium: Option<PathBuf>,
}

/// A network interface of the fake hypervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanNic {
    /// Its MAC address.
    pub mac: String,
    /// Ports of the host that lead to ports of the guest, which is this computer.
    pub forwards: Vec<PlanForward>,
}

impl PlanNic {
    pub(super) fn of(nic: &NicConfig) -> PlanNic {
        let forward = |forward: &ForwardSpec| PlanForward {
            host: SocketAddr::new(forward.host_address, forward.host_port),
            guest_port: forward.guest_port,
        };
        PlanNic {
            mac: nic.mac.to_string(),
            forwards: nic.forwards.iter().map(forward).collect(),
        }
    }
}

/// A console of the fake hypervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanConsole {
    /// Name.
    pub name: String,
    /// Socket on which it listens.
    pub socket: PathBuf,
    /// Where what the guest writes is kept.
    pub log: Option<PathBuf>,
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
    /// Saving fails after half of it is written (`fake.save=fail`).
    pub save_fail: bool,
    /// Milliseconds that saving takes (`fake.save=slow:MS`).
    pub save_delay_ms: u64,
    /// Ends with code 1 and a message instead of restoring (`fake.restore=fail`).
    pub restore_fail: bool,
    /// Milliseconds that restoring takes (`fake.restore=slow:MS`).
    pub restore_delay_ms: u64,
    /// Refuses to continue CPUs that were restored (`fake.resume=fail`).
    pub resume_fail: bool,
    /// The guest lets go of no device until it is poked (`fake.detach=ignore`).
    pub ignore_detach: bool,
    /// The guest has locked the tray of its drives (`fake.tray=locked`).
    pub tray_locked: bool,
    /// The guest gives no memory back (`fake.balloon=ignore`).
    pub ignore_balloon: bool,
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
            let milliseconds = |text: &str| {
                text.parse()
                    .map_err(|_| format!("fake.{word}: not a number of milliseconds"))
            };
            match word.split_once('=').unwrap_or((word, "")) {
                ("launch-delay", text) => script.launch_delay_ms = milliseconds(text)?,
                ("launch-fail", "") => script.launch_fail = true,
                ("control", "mute") => script.mute_control = true,
                ("button", "ignore") => script.ignore_button = true,
                ("agent", "none") => script.no_agent = true,
                ("shutdown", "ignore") => script.ignore_shutdown = true,
                ("save", "fail") => script.save_fail = true,
                ("restore", "fail") => script.restore_fail = true,
                ("resume", "fail") => script.resume_fail = true,
                ("detach", "ignore") => script.ignore_detach = true,
                ("tray", "locked") => script.tray_locked = true,
                ("balloon", "ignore") => script.ignore_balloon = true,
                (what @ ("save" | "restore"), how) if how.starts_with("slow:") => {
                    let delay = milliseconds(how.trim_start_matches("slow:"))?;
                    if what == "save" {
                        script.save_delay_ms = delay;
                    } else {
                        script.restore_delay_ms = delay;
                    }
                }
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
        max_cpus: config.max_cpus,
        memory: config.memory.get(),
        max_memory: config.max_memory.get(),
        files,
        disks: config.disks.iter().map(PlanDisk::of).collect(),
        drives: config
            .drives
            .iter()
            .map(|drive| PlanDrive {
                name: drive.name.clone(),
                medium: drive.medium.as_ref().map(|medium| medium.path.clone()),
            })
            .collect(),
        folders: config
            .shares
            .iter()
            .map(|share| share.host.clone())
            .collect(),
        nics: config.nics.iter().map(PlanNic::of).collect(),
        consoles: consoles(config),
        restore: None,
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

/// The serial port, and the consoles that were asked for.
fn consoles(config: &MachineConfig) -> Vec<PlanConsole> {
    let serial = std::iter::once(("serial", None));
    let others = config
        .consoles
        .iter()
        .map(|console| (console.name.as_str(), console.log.clone()));
    serial
        .chain(others)
        .enumerate()
        .map(|(index, (name, log))| PlanConsole {
            name: name.to_owned(),
            socket: config.paths.sockets.join(format!("con{index}.sock")),
            log,
        })
        .collect()
}

/// Tells why the fake can't play a capability at all; none if it can.
pub(super) fn not_played(capability: Capability) -> Option<String> {
    use Capability as C;
    matches!(
        capability,
        C::SecureBoot
            | C::Nested
            | C::HugePages
            | C::DiskNvme
            | C::DiskUsb
            | C::DiskCache
            | C::DiskLimits
            | C::NetworkClosed
            | C::NetworkSwitched
            | C::Tpm
            | C::Watchdog
            | C::Vsock
            | C::Sandbox
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
        let script = Script::parse(
            "quiet fake.launch-delay=250 fake.button=ignore fake.save=slow:30 panic=-1",
        )
        .unwrap();
        assert_eq!(
            script,
            Script {
                launch_delay_ms: 250,
                ignore_button: true,
                save_delay_ms: 30,
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
        assert!(Script::parse("fake.restore=slow:").is_err());
        assert!(Script::parse("fake.resume=slow:3").is_err());
    }
}
