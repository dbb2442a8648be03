//! From what was asked (spec) and what was chosen for life (identity) to what a driver is told. Pure: it looks at nothing else.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use innkeeper_api::ErrorKind;
use innkeeper_net::{MacAddr, UserNetwork};

use crate::driver::{
    BootConfig, ConsoleConfig, DiskConfig, DriveConfig, MachineConfig, MachinePaths, Medium,
    NicConfig, NicNetwork, ShareConfig,
};
use crate::error::{Error, Result};
use crate::spec::{
    Arch, DiskFormat, DiskSpec, Firmware, ForwardSpec, Isolation, NetworkKind, Protocol, ReadyWhen,
    VmSpec,
};
use crate::store::{Bundle, Identity};

/// Port of a guest's SSH server.
pub(crate) const SSH: u16 = 22;

/// Resolves a VM for its driver.
///
/// `ssh_port` is the port of this run on the host's loopback, where the guest has an SSH server.
pub(crate) fn configure(
    bundle: &Bundle,
    identity: &Identity,
    spec: &VmSpec,
    sockets: PathBuf,
    ssh_port: Option<u16>,
) -> Result<MachineConfig> {
    let name = bundle.name();
    let arch = arch_of(identity)?;
    Ok(MachineConfig {
        name: name.to_owned(),
        id: identity.id.clone(),
        arch,
        machine: identity.machine.clone(),
        accel: spec.accel,
        cpu_model: spec.cpu_model.clone(),
        cpus: spec.cpus,
        max_cpus: spec.max_cpus.unwrap_or(spec.cpus),
        memory: spec.memory,
        max_memory: spec.max_memory.unwrap_or(spec.memory),
        memory_target: spec.memory_target,
        memory_kind: spec.memory_kind,
        boot: boot(bundle, identity, spec)?,
        disks: disks(bundle, identity, spec)?,
        drives: drives(spec),
        nics: nics(name, identity, spec, &sockets, ssh_port)?,
        shares: shares(spec),
        consoles: consoles(bundle, spec),
        tpm: spec.tpm.then(|| bundle.path("tpm")),
        watchdog: spec.watchdog,
        vsock: spec.vsock.then(|| context_id(&identity.id)),
        nested: spec.nested,
        isolation: spec.isolation,
        platform: bundle.path("platform"),
        paths: MachinePaths {
            sockets,
            run: bundle.run_directory(),
            serial_log: bundle.path("log/serial.log"),
            vmm_log: bundle.path("log/vmm.log"),
            vmm_lock: bundle.path("run/vmm.lock"),
        },
    })
}

/// Returns the architecture that an identity names.
pub(crate) fn arch_of(identity: &Identity) -> Result<Arch> {
    identity.arch.parse().map_err(|_| {
        Error::new(
            ErrorKind::Unsupported,
            format!("unknown architecture {:?}", identity.arch),
        )
        .with_hint("update Innkeeper")
    })
}

/// Returns when this VM counts as ready: what its spec says, else what fits its image.
pub(crate) fn ready_when(identity: &Identity, spec: &VmSpec) -> ReadyWhen {
    match (&spec.ready, &identity.image) {
        (Some(ready), _) => ready.clone(),
        (None, Some(image)) if image.agent_is_init => ReadyWhen::Agent,
        (None, Some(image)) if image.cloud_init => ReadyWhen::CloudInit,
        (None, _) => ReadyWhen::None,
    }
}

/// Returns the firmware that this VM starts with.
pub(crate) fn firmware(identity: &Identity, spec: &VmSpec) -> Firmware {
    match spec.boot.firmware {
        Some(firmware) => firmware,
        None if spec.boot.kernel.is_some() || identity.boot.is_some() => Firmware::Direct,
        None => Firmware::Uefi,
    }
}

fn boot(bundle: &Bundle, identity: &Identity, spec: &VmSpec) -> Result<BootConfig> {
    Ok(match firmware(identity, spec) {
        Firmware::Uefi => BootConfig::Uefi {
            variables: bundle.path("efi-variables.fd"),
            secure_boot: spec.boot.secure_boot,
        },
        Firmware::Bios => BootConfig::Bios,
        Firmware::Direct => {
            let (kernel, initrd, base) = match (&spec.boot.kernel, &identity.boot) {
                (Some(kernel), _) => (kernel.clone(), spec.boot.initrd.clone(), ""),
                (None, Some(boot)) => (
                    boot.kernel.clone(),
                    spec.boot.initrd.clone().or_else(|| boot.initrd.clone()),
                    boot.cmdline.as_str(),
                ),
                (None, None) => {
                    return Err(Error::new(
                        ErrorKind::BadInput,
                        "boot.firmware is `direct` but there is no kernel",
                    )
                    .with_hint(
                        "set boot.kernel, or use an image that has one, or boot.firmware: uefi",
                    ));
                }
            };
            let mut words = vec![base.to_owned()];
            if identity
                .image
                .as_ref()
                .is_some_and(|image| image.agent_is_init)
            {
                words.extend(init_words(bundle.name(), identity, spec)?);
            }
            words.extend(spec.boot.cmdline.clone());
            words.retain(|word| !word.is_empty());
            BootConfig::Direct {
                kernel,
                initrd,
                cmdline: words.join(" "),
            }
        }
    })
}

/// What the agent, as init, reads from the kernel's command line (`inn-agent`, module `init`).
fn init_words(name: &str, identity: &Identity, spec: &VmSpec) -> Result<Vec<String>> {
    let hostname = spec.seed.hostname.as_deref().unwrap_or(name);
    let mut words = vec![format!("inn.hostname={hostname}")];
    for (index, mac) in identity.macs.iter().enumerate() {
        if is_switched(spec, index) {
            words.push(format!(
                "inn.net={mac},{}/{}",
                mac.link_local(),
                MacAddr::LINK_LOCAL_PREFIX
            ));
            continue;
        }
        if identity.dhcp {
            words.push(format!("inn.net={mac},dhcp"));
            continue;
        }
        let plan = user_network(index)?;
        words.push(format!(
            "inn.net={mac},{}/{},{},{}",
            plan.guest(),
            UserNetwork::PREFIX,
            plan.gateway(),
            plan.dns()
        ));
    }
    for disk in &spec.disks {
        if let Some(path) = &disk.mount {
            let path = path.display().to_string();
            if path.contains([' ', ':', '"']) {
                return Err(Error::new(
                    ErrorKind::BadInput,
                    format!(
                        "disks.{}.mount: {path:?} can't be told to this image's init",
                        disk.name
                    ),
                )
                .with_hint("use a path without spaces, colons and quotes"));
            }
            let mode = if disk.read_only { ":ro" } else { "" };
            words.push(format!("inn.mount=serial={}:{path}:ext4{mode}", disk.name));
        }
    }
    Ok(words)
}

/// Tells whether an interface is on a network of our own.
pub(crate) fn is_switched(spec: &VmSpec, index: usize) -> bool {
    let network = spec.networks.get(index);
    network.is_some_and(|network| network.kind == NetworkKind::Network)
}

/// Returns where a hypervisor listens for the switch of an interface's network.
pub(crate) fn switch_socket(sockets: &Path, index: usize) -> PathBuf {
    sockets.join(format!("nic{index}.sock"))
}

fn user_network(index: usize) -> Result<UserNetwork> {
    UserNetwork::of_interface(index).ok_or_else(|| {
        Error::new(
            ErrorKind::BadInput,
            "networks: at most 32 interfaces of kind `user` are possible",
        )
    })
}

fn disks(bundle: &Bundle, identity: &Identity, spec: &VmSpec) -> Result<Vec<DiskConfig>> {
    let format = |word: &str| match word {
        "raw" => Ok(DiskFormat::Raw),
        "qcow2" => Ok(DiskFormat::Qcow2),
        other => Err(Error::new(
            ErrorKind::Unsupported,
            format!("unknown disk format {other:?}"),
        )),
    };
    let mut disks = Vec::new();
    for own in &identity.disks {
        let asked = spec.disks.iter().find(|disk| disk.name == own.name);
        let usual = DiskSpec::named(&own.name);
        let file = bundle.path(&own.file);
        disks.push(DiskConfig {
            backing_format: own.backing_format.as_deref().map(format).transpose()?,
            ..disk(asked.unwrap_or(&usual), file, format(&own.format)?)
        });
    }
    for asked in &spec.disks {
        if let (Some(path), Some(format), false) = (&asked.path, asked.format, asked.removable) {
            disks.push(disk(asked, path.clone(), format));
        }
    }
    if identity.seed {
        disks.push(DiskConfig {
            read_only: true,
            ..DiskConfig::new("cidata", bundle.path("seed.img"), DiskFormat::Raw)
        });
    }
    Ok(disks)
}

fn disk(asked: &DiskSpec, path: std::path::PathBuf, format: DiskFormat) -> DiskConfig {
    DiskConfig {
        read_only: asked.read_only,
        boot_index: (asked.name == "root").then_some(0),
        bus: asked.bus,
        cache: asked.cache,
        discard: asked.discard,
        limits: asked.limits,
        ..DiskConfig::new(&asked.name, path, format)
    }
}

fn drives(spec: &VmSpec) -> Vec<DriveConfig> {
    spec.disks
        .iter()
        .filter(|disk| disk.removable)
        .enumerate()
        .map(|(index, disk)| DriveConfig {
            name: disk.name.clone(),
            bus: disk.bus,
            medium: match (&disk.path, disk.format) {
                (Some(path), Some(format)) => Some(Medium {
                    path: path.clone(),
                    format,
                }),
                _ => None,
            },
            // After the root disk: an installer's disc boots while that is empty.
            boot_index: u32::try_from(index + 1).ok(),
        })
        .collect()
}

fn consoles(bundle: &Bundle, spec: &VmSpec) -> Vec<ConsoleConfig> {
    spec.consoles
        .iter()
        .map(|console| ConsoleConfig {
            name: console.name.clone(),
            log: console
                .log
                .then(|| bundle.path(format!("log/console-{}.log", console.name))),
        })
        .collect()
}

/// Returns the vsock context id of a VM: from its id, so that it stays; 0 to 2 have a meaning of their own (vsock(7)).
fn context_id(id: &str) -> u32 {
    const FIRST: u32 = 3;
    let number = id
        .get(..8)
        .and_then(|digits| u32::from_str_radix(digits, 16).ok())
        .unwrap_or(0);
    FIRST + number % (u32::MAX - FIRST)
}

fn nics(
    name: &str,
    identity: &Identity,
    spec: &VmSpec,
    sockets: &Path,
    ssh_port: Option<u16>,
) -> Result<Vec<NicConfig>> {
    let hostname = spec.seed.hostname.as_deref().unwrap_or(name);
    let mut nics = Vec::new();
    for (index, (network, mac)) in spec.networks.iter().zip(&identity.macs).enumerate() {
        let connected = match network.kind {
            NetworkKind::User => NicNetwork::User(user_network(index)?),
            NetworkKind::Network => NicNetwork::Switched {
                socket: switch_socket(sockets, index),
            },
        };
        let mut forwards = network.forwards.clone();
        if let (0, Some(port), NetworkKind::User) = (index, ssh_port, network.kind) {
            forwards.push(ForwardSpec {
                protocol: Protocol::Tcp,
                host_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
                host_port: port,
                guest_port: SSH,
            });
        }
        nics.push(NicConfig {
            mac: *mac,
            network: connected,
            hostname: hostname.to_owned(),
            outbound: spec.isolation != Isolation::Agent,
            forwards,
        });
    }
    Ok(nics)
}

fn shares(spec: &VmSpec) -> Vec<ShareConfig> {
    spec.shares
        .iter()
        .enumerate()
        .map(|(index, share)| ShareConfig {
            tag: share_tag(index),
            host: share.host.clone(),
            read_only: share.read_only,
        })
        .collect()
}

/// Returns the tag under which the guest mounts share number `index`.
pub(crate) fn share_tag(index: usize) -> String {
    format!("share{index}")
}
