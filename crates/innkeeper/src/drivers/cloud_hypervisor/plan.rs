//! Decides, without looking at anything, what is started for a VM and what it is told: Cloud Hypervisor's few arguments, its descriptors,
//! its sidecars, and the machine as `vm.create` takes it.
//!
//! ```text
//!  MachineConfig + CloudHypervisorHost ── plan ──► Plan ── launch ──► processes, vm.create, vm.boot
//! ```
//!
//! The serial port writes to the standard output, which is the serial log opened to append: as a file of its own it would be emptied at
//! every boot, and as a socket it would hold output back while no keeper reads.

use std::path::{Path, PathBuf};

use innkeeper_api::ErrorKind;

use super::host::CloudHypervisorHost;
use super::wire;
use crate::driver::{BootConfig, DiskConfig, MachineConfig};
use crate::drivers::start::{Descriptor, DescriptorRole, FIRST_DESCRIPTOR, Sidecar};
use crate::drivers::uuid::uuid;
use crate::error::{Error, Result};
use crate::spec::{Arch, DiskCache, DiskFormat, Isolation, MemoryKind};

/// Context id of a guest's vsock device if the spec gives none. It is told to this hypervisor alone, so guests can share it.
const USUAL_CONTEXT_ID: u32 = 3;

/// What is started for a VM.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    /// The hypervisor.
    pub(super) program: PathBuf,
    /// Its arguments; its environment is empty.
    pub(super) arguments: Vec<String>,
    /// The descriptors that it inherits beside the standard three.
    pub(super) descriptors: Vec<Descriptor>,
    /// Processes that are started before it and end with it, each with the socket on which it serves.
    pub(super) sidecars: Vec<(PathBuf, Sidecar)>,
    /// The body of `vm.create`.
    pub(super) config: wire::VmConfig,
    /// Control socket.
    pub(super) api: PathBuf,
    /// Pipe of events.
    pub(super) events: PathBuf,
    /// Socket of the vsock device.
    pub(super) vsock: PathBuf,
    /// Directory that the hypervisor may write when it is confined.
    pub(super) workplace: PathBuf,
}

/// The identifier of a disk's device; the guest's places of devices change when it boots anew, identifiers do not.
pub(super) fn disk_id(name: &str) -> String {
    format!("disk-{name}")
}

/// Returns the name of the disk whose device has this identifier.
pub(super) fn disk_of(id: &str) -> Option<&str> {
    id.strip_prefix("disk-")
}

/// Makes the plan. Pure.
///
/// Errors: what `check` would have refused.
pub(super) fn plan(config: &MachineConfig, host: &CloudHypervisorHost) -> Result<Plan> {
    let unsupported = |what: &str| Error::new(ErrorKind::Unsupported, what.to_owned());
    let program = host
        .program
        .clone()
        .ok_or_else(|| unsupported("cloud-hypervisor was not found on this host"))?;
    let socket = |name: &str| config.paths.sockets.join(name);
    let (api, events) = (socket("api.sock"), socket("events"));
    let confined = host.landlock && config.isolation != Isolation::Unrestricted;
    let mut arguments = vec![
        "--api-socket".to_owned(),
        format!("fd={FIRST_DESCRIPTOR}"),
        "--event-monitor".to_owned(),
        format!("fd={}", FIRST_DESCRIPTOR + 1),
        // Without it a power-off ends the process as an error would.
        "--no-shutdown".to_owned(),
        "--seccomp".to_owned(),
        "true".to_owned(),
    ];
    if confined {
        arguments.push("--landlock".to_owned());
    }
    let descriptors = [
        DescriptorRole::Listener(api.clone()),
        DescriptorRole::Pipe(events.clone()),
        DescriptorRole::Lock(config.paths.vmm_lock.clone()),
    ];
    let mut sidecars = Vec::new();
    let mut fs = Vec::new();
    for (index, share) in config.shares.iter().enumerate() {
        let daemon = host
            .virtiofsd
            .as_ref()
            .ok_or_else(|| unsupported("shared folders need virtiofsd, which was not found"))?;
        let path = socket(&format!("share{index}.sock"));
        let (program, arguments) = daemon.serve(share, FIRST_DESCRIPTOR)?;
        let descriptors = listening(&path);
        sidecars.push((
            path.clone(),
            Sidecar {
                program,
                arguments,
                descriptors,
                serves: None,
            },
        ));
        fs.push(wire::Fs {
            id: format!("share-{index}"),
            tag: share.tag.clone(),
            socket: path,
            num_queues: 1,
            queue_size: 1024,
        });
    }
    let mut tpm = None;
    if let Some(state) = &config.tpm {
        let program = host
            .swtpm
            .clone()
            .ok_or_else(|| unsupported("a TPM needs swtpm, which was not found"))?;
        let path = socket("tpm.sock");
        sidecars.push((
            path.clone(),
            Sidecar {
                program,
                arguments: vec![
                    "socket".to_owned(),
                    "--tpm2".to_owned(),
                    "--tpmstate".to_owned(),
                    format!("dir={}", swtpm_path(state)?),
                    "--ctrl".to_owned(),
                    format!("type=unixio,fd={FIRST_DESCRIPTOR}"),
                ],
                descriptors: listening(&path),
                serves: None,
            },
        ));
        tpm = Some(wire::Tpm { socket: path });
    }
    let vsock = socket("vsock.sock");
    let workplace = config.paths.run.join("hypervisor");
    Ok(Plan {
        program,
        arguments,
        descriptors: descriptors
            .into_iter()
            .zip(FIRST_DESCRIPTOR..)
            .map(|(role, number)| Descriptor { number, role })
            .collect(),
        config: wire::VmConfig {
            cpus: wire::Cpus {
                boot_vcpus: config.cpus,
                max_vcpus: config.max_cpus.max(config.cpus),
                nested: config.nested,
            },
            memory: memory(config),
            payload: payload(config, host)?,
            disks: config.disks.iter().map(disk).collect::<Result<_>>()?,
            rng: wire::Rng {
                src: "/dev/urandom".into(),
            },
            balloon: config.memory_target.map(|target| wire::Balloon {
                size: config.memory.get().saturating_sub(target.get()),
                deflate_on_oom: true,
                free_page_reporting: true,
            }),
            fs,
            serial: wire::Console {
                mode: wire::ConsoleMode::Tty,
            },
            // Its default writes to the standard output as well.
            console: wire::Console {
                mode: wire::ConsoleMode::Off,
            },
            vsock: Some(wire::Vsock {
                id: "vsock".to_owned(),
                cid: config.vsock.unwrap_or(USUAL_CONTEXT_ID),
                socket: vsock.clone(),
            }),
            watchdog: config.watchdog.is_some(),
            pvpanic: true,
            platform: wire::Platform {
                uuid: uuid(&config.id)?,
            },
            tpm,
            landlock_enable: confined,
            // Landlock's rules last for the life of the process, so what will be written later is named now.
            landlock_rules: if confined {
                vec![wire::LandlockRule {
                    path: workplace.clone(),
                    access: "rw".to_owned(),
                }]
            } else {
                Vec::new()
            },
        },
        sidecars,
        api,
        events,
        vsock,
        workplace,
    })
}

/// The descriptors of a process that serves on one socket.
pub(super) fn listening(path: &Path) -> Vec<Descriptor> {
    vec![Descriptor {
        number: FIRST_DESCRIPTOR,
        role: DescriptorRole::Listener(path.to_owned()),
    }]
}

/// Words of the kernel's command line that let it write where the serial log is.
pub(super) fn console_words(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 | Arch::Riscv64 => "console=ttyS0",
        Arch::Arm64 => "console=ttyAMA0",
    }
}

fn payload(config: &MachineConfig, host: &CloudHypervisorHost) -> Result<wire::Payload> {
    match &config.boot {
        BootConfig::Direct {
            kernel,
            initrd,
            cmdline,
        } => Ok(wire::Payload {
            kernel: Some(kernel.clone()),
            initramfs: initrd.clone(),
            cmdline: Some(
                format!("{} {cmdline}", console_words(config.arch))
                    .trim_end()
                    .to_owned(),
            ),
            firmware: None,
        }),
        BootConfig::Uefi {
            secure_boot: false, ..
        } if host.firmware.is_some() => Ok(wire::Payload {
            firmware: host.firmware.clone(),
            ..wire::Payload::default()
        }),
        BootConfig::Uefi { .. } | BootConfig::Bios => Err(Error::new(
            ErrorKind::Unsupported,
            "Cloud Hypervisor can't boot by this firmware here",
        )),
    }
}

fn memory(config: &MachineConfig) -> wire::Memory {
    let more = config.max_memory.get().saturating_sub(config.memory.get());
    wire::Memory {
        size: config.memory.get(),
        hotplug_size: (more > 0).then_some(more),
        // The other way, by ACPI, can't take memory back.
        hotplug_method: (more > 0).then_some(wire::HotplugMethod::VirtioMem),
        // virtiofsd maps the guest's memory.
        shared: !config.shares.is_empty(),
        hugepages: config.memory_kind == MemoryKind::Huge,
    }
}

/// Says how a disk is attached, at the start or later. Pure.
///
/// Errors: `Unsupported` if its format or cache is none that is offered.
pub(super) fn disk(disk: &DiskConfig) -> Result<wire::Disk> {
    if disk.format != DiskFormat::Raw || disk.backing_format.is_some() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "disk {}: Cloud Hypervisor is given raw disks only",
                disk.name
            ),
        ));
    }
    let direct = match disk.cache {
        DiskCache::Writeback => false,
        DiskCache::None => true,
        DiskCache::Writethrough | DiskCache::Unsafe => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "disk {}: Cloud Hypervisor caches a disk as writeback or none only",
                    disk.name
                ),
            ));
        }
    };
    let bucket = |each_second: u64| wire::TokenBucket {
        size: each_second,
        refill_time: 1000,
    };
    let limited = disk.limits.requests.is_some() || disk.limits.bandwidth.is_some();
    Ok(wire::Disk {
        id: disk_id(&disk.name),
        path: disk.path.clone(),
        readonly: disk.read_only,
        direct,
        serial: disk.name.clone(),
        image_type: wire::ImageType::Raw,
        backing_files: false,
        sparse: disk.discard,
        rate_limiter_config: limited.then(|| wire::RateLimiter {
            bandwidth: disk.limits.bandwidth.map(|bytes| bucket(bytes.get())),
            ops: disk.limits.requests.map(|count| bucket(u64::from(count))),
        }),
    })
}

/// swtpm splits its options at commas and has no way to write one.
fn swtpm_path(path: &Path) -> Result<&str> {
    path.to_str()
        .filter(|text| !text.contains(','))
        .ok_or_else(|| {
            Error::new(
                ErrorKind::BadInput,
                format!(
                    "swtpm can't keep its state in {}: the path holds a comma or is not UTF-8",
                    path.display()
                ),
            )
        })
}
