//! Asks this host what QEMU can do here: every emulator by QMP, KVM by trying it, firmware and virtiofsd by looking.
//!
//! ```text
//!  cache file valid? ──yes──► QemuHost
//!        │ no
//!        ├─ qemu-system-ARCH -machine none -qmp stdio   version, machine types, sandbox   (all at once)
//!        ├─ trial: is hardware acceleration worth it?
//!        └─ firmware descriptors, virtiofsd
//! ```
//!
//! It reads no output that is meant for people. The processes that it starts die with the call.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use innkeeper_api::{Capability, CapabilityReport, DriverReport, Need};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::process::Command;

use super::board::Board;
use super::check::{OLDEST, install_hint};
use super::firmware::Kind;
use super::host::{Acceleration, Emulator, MachineType, QemuHost, TpmEmulator};
use super::qmp::{Qmp, QmpError};
use super::{NAME, QemuOptions, firmware, trial};
use crate::drivers::virtiofsd;
use crate::spec::Arch;

/// How long an emulator may take for all its answers.
const DEADLINE: Duration = Duration::from_secs(10);

/// Version of the cache file's meaning.
const CACHE_VERSION: u32 = 5;

/// Name of the program that plays a TPM.
const SWTPM: &str = "swtpm";

/// Name of the daemon that is a vsock device.
const VSOCK_DAEMON: &str = "vhost-device-vsock";

/// Where Linux tells of its huge pages.
const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages";

/// Most machine types that are kept of an emulator.
const MACHINE_LIMIT: usize = 512;

/// Devices that are asked for: what is not among those of an emulator is refused by `check`.
const DEVICES: [&str; 16] = [
    "i6300esb",
    "nvme",
    "pcie-root-port",
    "qemu-xhci",
    "scsi-cd",
    "throttle-group",
    "tpm-crb",
    "tpm-tis-device",
    "usb-bot",
    "usb-storage",
    "vhost-user-vsock-device",
    "vhost-user-vsock-pci",
    "virtserialport",
    "virtio-balloon-device",
    "virtio-mem-pci",
    "virtio-scsi-device",
];

/// What a cached result is valid for.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct CacheKey {
    version: u32,
    boot_id: String,
    accel_override: Option<String>,
    /// Path, length in bytes and time of last change of every file that was asked or looked at.
    files: Vec<(PathBuf, u64, Option<SystemTime>)>,
    /// Huge pages that are set aside, which an administrator can change at any time.
    huge_page: Option<u64>,
    /// Whether the accelerator's device may be opened, which a change of groups alters.
    kvm: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Cache {
    key: CacheKey,
    host: QemuHost,
}

/// Returns what is found of QEMU on this host.
pub(super) async fn host(options: &QemuOptions) -> QemuHost {
    let programs = programs(options);
    let key = cache_key(options, &programs);
    if let Some(host) = options
        .cache
        .as_deref()
        .and_then(|path| read_cache(path, &key))
    {
        return host;
    }
    let host = ask(options, &programs).await;
    if let Some(path) = &options.cache {
        // A cache that can't be written costs time only.
        let _ = write_cache(
            path,
            &Cache {
                key,
                host: host.clone(),
            },
        );
    }
    host
}

/// QEMU's name of an architecture.
fn qemu_arch(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "x86_64",
        Arch::Arm64 => "aarch64",
        Arch::Riscv64 => "riscv64",
    }
}

/// This host's architecture.
fn host_arch() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "arm64",
        other => other,
    }
}

fn programs(options: &QemuOptions) -> Vec<(Arch, PathBuf)> {
    let mut programs = Vec::new();
    for arch in [Arch::X86_64, Arch::Arm64, Arch::Riscv64] {
        let name = format!("qemu-system-{}", qemu_arch(arch));
        let found = options
            .path
            .iter()
            .map(|directory| directory.join(&name))
            .find(|path| path.is_file());
        programs.extend(found.map(|path| (arch, path)));
    }
    programs
}

fn cache_key(options: &QemuOptions, programs: &[(Arch, PathBuf)]) -> CacheKey {
    let tpm: Vec<PathBuf> = options
        .path
        .iter()
        .flat_map(|directory| [directory.join(SWTPM), directory.join(VSOCK_DAEMON)])
        .collect();
    let huge = [PathBuf::from(HUGE_PAGES)];
    let looked_at = programs
        .iter()
        .map(|(_, path)| path)
        .chain(&options.firmware_directories)
        .chain(&options.virtiofsd_candidates)
        .chain(&options.data_directories)
        .chain(&tpm)
        .chain(&huge);
    let files = looked_at
        .map(|path| {
            let metadata = fs::metadata(path).ok();
            (
                path.clone(),
                metadata.as_ref().map_or(0, fs::Metadata::len),
                metadata.and_then(|metadata| metadata.modified().ok()),
            )
        })
        .collect();
    CacheKey {
        version: CACHE_VERSION,
        boot_id: options.boot_id.clone(),
        accel_override: options.accel_override.clone(),
        files,
        huge_page: huge_page(),
        kvm: format!("{:?}", trial::open_kvm().map_err(|refusal| refusal.reason)),
    }
}

fn read_cache(path: &Path, key: &CacheKey) -> Option<QemuHost> {
    let cache: Cache = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (cache.key == *key).then_some(cache.host)
}

fn write_cache(path: &Path, cache: &Cache) -> std::io::Result<()> {
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    let written =
        fs::write(&partial, serde_json::to_vec(cache)?).and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}

async fn ask(options: &QemuOptions, programs: &[(Arch, PathBuf)]) -> QemuHost {
    let of_host = programs
        .iter()
        .find(|(arch, _)| arch.to_string() == host_arch());
    let mut questions = Vec::new();
    for (arch, program) in programs {
        let (arch, program, options) = (*arch, program.clone(), options.clone());
        questions.push(tokio::spawn(async move {
            let asked =
                tokio::time::timeout(DEADLINE, ask_emulator(&program, arch, &options)).await;
            (arch, program, asked)
        }));
    }
    let acceleration = async {
        match of_host {
            Some((arch, program)) => trial::acceleration(program, *arch, options).await,
            None => Acceleration::default(),
        }
    };
    let counter = tokio::task::spawn_blocking(tsc_khz);
    let (acceleration, virtiofsd, swtpm) = tokio::join!(
        acceleration,
        virtiofsd::find(&options.virtiofsd_candidates, &options.path),
        find_swtpm(options)
    );
    let mut host = QemuHost {
        host_arch: host_arch().to_owned(),
        acceleration,
        virtiofsd,
        swtpm,
        vsock_daemon: find_vsock_daemon(options),
        huge_page: huge_page(),
        nested: nested(),
        tsc_khz: counter.await.unwrap_or_default(),
        data_directories: options.data_directories.clone(),
        ..QemuHost::default()
    };
    for question in questions {
        match question.await {
            Ok((arch, _, Ok(Ok(emulator)))) => {
                host.emulators.insert(arch.to_string(), emulator);
            }
            Ok((_, program, Ok(Err(error)))) => host
                .acceleration
                .notes
                .push(format!("{} does not answer: {error}", program.display())),
            Ok((_, program, Err(_))) => host.acceleration.notes.push(format!(
                "{} did not answer within {} s",
                program.display(),
                DEADLINE.as_secs()
            )),
            Err(error) => host
                .acceleration
                .notes
                .push(format!("asking an emulator failed: {error}")),
        }
    }
    host
}

/// Measures the rate of the processor's time-stamp counter; none where it isn't constant or there is none.
fn tsc_khz() -> Option<u64> {
    if !cfg!(target_arch = "x86_64") {
        return None;
    }
    // Without a constant counter the clock counts nanoseconds itself, and this ratio is exactly one.
    const TICKS: u64 = 1 << 40;
    let nanoseconds = quanta::Clock::new().delta_as_nanos(0, TICKS);
    let khz = u128::from(TICKS) * 1_000_000 / u128::from(nanoseconds.max(1));
    u64::try_from(khz)
        .ok()
        .filter(|khz| nanoseconds != TICKS && (100_000..100_000_000).contains(khz))
}

async fn ask_emulator(
    program: &Path,
    arch: Arch,
    options: &QemuOptions,
) -> Result<Emulator, QmpError> {
    let mut command = Command::new(program);
    command
        .env_clear()
        .args([
            "-machine",
            "none",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-qmp",
            "stdio",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    for directory in &options.data_directories {
        command.arg("-L").arg(directory);
    }
    let mut child = command.spawn()?;
    let (Some(output), Some(input)) = (child.stdout.take(), child.stdin.take()) else {
        return Err(QmpError::Closed);
    };
    let (qmp, _) = Qmp::over(output, input, DEADLINE).await?;
    let machines = qmp.execute("query-machines", json!({}), DEADLINE).await?;
    // Refused where QEMU was built without seccomp.
    let sandbox = qmp
        .execute(
            "query-command-line-options",
            json!({ "option": "sandbox" }),
            DEADLINE,
        )
        .await;
    let sandbox = cfg!(target_os = "linux")
        && matches!(&sandbox, Ok(Value::Array(options)) if !options.is_empty());
    let types = qmp
        .execute("qom-list-types", json!({ "abstract": false }), DEADLINE)
        .await?;
    let devices = types
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| entry["name"].as_str())
        .filter(|name| DEVICES.contains(name))
        .map(str::to_owned)
        .collect();
    let version = qmp.version().unwrap_or_default();
    // It holds nothing that is worth an orderly end.
    let _ = child.kill().await;
    let machines = read_machines(&machines, arch);
    let newest = machines
        .iter()
        .find(|machine| {
            machine.name == Board::family(arch)
                || machine.alias.as_deref() == Some(Board::family(arch))
        })
        .map_or(Board::family(arch), |machine| machine.name.as_str());
    let firmware = |kind| {
        let directories = &options.firmware_directories;
        firmware::find(directories, qemu_arch(arch), newest, kind)
    };
    let (uefi, secure_uefi) = (firmware(Kind::Plain), firmware(Kind::Secure));
    Ok(Emulator {
        program: program.to_owned(),
        version,
        machines,
        sandbox,
        uefi,
        secure_uefi,
        devices,
    })
}

/// Keeps the machine types that Innkeeper builds on.
fn read_machines(reply: &Value, arch: Arch) -> Vec<MachineType> {
    reply
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|machine| {
            let name = machine["name"].as_str()?;
            Board::of(name, arch)?;
            Some(MachineType {
                name: name.to_owned(),
                alias: machine["alias"].as_str().map(str::to_owned),
                cpu_max: machine["cpu-max"]
                    .as_u64()
                    .and_then(|n| u32::try_from(n).ok())
                    .unwrap_or(1),
                cpu_hotplug: machine["hotpluggable-cpus"].as_bool().unwrap_or(false),
            })
        })
        .take(MACHINE_LIMIT)
        .collect()
}

/// Finds the program that plays a TPM, and asks what it can do.
async fn find_swtpm(options: &QemuOptions) -> Option<TpmEmulator> {
    let program = options
        .path
        .iter()
        .map(|directory| directory.join(SWTPM))
        .find(|path| path.is_file())?;
    let mut command = Command::new(&program);
    command
        .env_clear()
        .args(["socket", "--tpm2", "--print-capabilities"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output())
        .await
        .ok()?
        .ok()?;
    let reply: Value = serde_json::from_slice(&output.stdout).ok()?;
    if reply["type"] != "swtpm" {
        return None;
    }
    let features = reply["features"].as_array()?;
    // Versions before 0.7 do not tell versions of the TPM; version 2 is asked for above all the same.
    Some(TpmEmulator {
        program,
        seccomp: features.iter().any(|feature| feature == "cmdarg-seccomp"),
    })
}

/// Finds the daemon that is a vsock device; it serves on Linux alone.
fn find_vsock_daemon(options: &QemuOptions) -> Option<PathBuf> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    let mut candidates = options.path.iter().map(|path| path.join(VSOCK_DAEMON));
    candidates.find(|path| path.is_file())
}

/// Returns the size of the huge pages that are set aside, if any are: the smallest, of which most are usually there.
fn huge_page() -> Option<u64> {
    // Source: kernel documentation, `admin-guide/mm/hugetlbpage.rst`: `hugepages-<size>kB/nr_hugepages`.
    fs::read_dir(HUGE_PAGES)
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let size: u64 = name
                .to_str()?
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse()
                .ok()?;
            let count = fs::read_to_string(entry.path().join("nr_hugepages")).ok()?;
            (count.trim() != "0").then_some(size * 1024)
        })
        .min()
}

/// Returns whether KVM lets guests run virtual machines themselves.
fn nested() -> bool {
    // Source: kernel documentation, `virt/kvm/x86/nested-vmx.rst`; Y or 1, by the parameter's type.
    ["kvm_intel", "kvm_amd"].iter().any(|module| {
        fs::read_to_string(format!("/sys/module/{module}/parameters/nested"))
            .is_ok_and(|value| matches!(value.trim(), "Y" | "1"))
    })
}

/// Turns what was found into what is shown.
pub(super) fn report(host: &QemuHost) -> DriverReport {
    let of_host = host.emulators.get(&host.host_arch);
    let shown = of_host.or_else(|| host.emulators.values().next());
    let usable = shown.is_some_and(|emulator| emulator.at_least(OLDEST.0, OLDEST.1));
    let mut needs = Vec::new();
    if of_host.is_none() {
        let what = if host.host_arch == "arm64" {
            "aarch64"
        } else {
            &host.host_arch
        };
        needs.push(Need {
            what: format!("qemu-system-{what}"),
            without: format!("{} guests", host.host_arch),
            fix: install_hint(&host.host_arch),
        });
    }
    for emulator in host
        .emulators
        .values()
        .filter(|emulator| !emulator.at_least(OLDEST.0, OLDEST.1))
    {
        needs.push(Need {
            what: format!(
                "{} {}.{} or later",
                emulator.program.display(),
                OLDEST.0,
                OLDEST.1
            ),
            without: "VMs: this version is too old".to_owned(),
            fix: "install a newer QEMU, on Debian 12 from bookworm-backports".to_owned(),
        });
    }
    if let Some(refusal) = &host.acceleration.kvm_refused
        && let Some(fix) = &refusal.fix
    {
        needs.push(Need {
            what: "kvm".to_owned(),
            without: format!("guests near the host's own speed: {}", refusal.reason),
            fix: fix.clone(),
        });
    }
    if let Some(emulator) = of_host
        && emulator.uefi.is_none()
    {
        needs.push(Need {
            what: "UEFI firmware".to_owned(),
            without: "guests that boot by UEFI".to_owned(),
            fix: if host.host_arch == "arm64" {
                "apt-get install qemu-efi-aarch64".to_owned()
            } else {
                "apt-get install ovmf".to_owned()
            },
        });
    }
    if usable && host.vsock_daemon.is_none() && cfg!(target_os = "linux") {
        needs.push(Need {
            what: VSOCK_DAEMON.to_owned(),
            without: "a vsock device in guests: the agent joins their ports, and their programs reach the host at context id 1 instead of 2".to_owned(),
            fix: format!("cargo install {VSOCK_DAEMON}, into a directory of PATH"),
        });
    }
    DriverReport {
        driver: NAME.to_owned(),
        usable,
        version: shown.map(|emulator| {
            let (major, minor, micro) = emulator.version;
            format!("{major}.{minor}.{micro}")
        }),
        accel: of_host.map(|_| {
            host.acceleration
                .hardware
                .clone()
                .unwrap_or_else(|| "tcg".to_owned())
        }),
        notes: host.acceleration.notes.clone(),
        arches: host.emulators.keys().cloned().collect(),
        capabilities: capabilities(host, shown),
        needs,
        details: serde_json::to_value(host).unwrap_or_default(),
    }
}

fn capabilities(host: &QemuHost, shown: Option<&Emulator>) -> Vec<CapabilityReport> {
    let lacking = |capability: Capability| -> Option<String> {
        let Some(emulator) = shown else {
            return Some("QEMU was not found on this host".to_owned());
        };
        let missing = |there: bool, reason: &str| (!there).then(|| reason.to_owned());
        match capability {
            Capability::BootUefi => missing(
                emulator.uefi.is_some(),
                "no UEFI firmware was found on this host",
            ),
            Capability::BootBios => missing(
                host.emulators.contains_key("x86_64"),
                "only x86_64 machines have a BIOS, and no QEMU for them was found",
            ),
            Capability::ForeignArch => missing(
                host.emulators.keys().any(|arch| *arch != host.host_arch),
                "no QEMU for another architecture was found on this host",
            ),
            Capability::ShareVirtiofs => missing(
                host.virtiofsd.is_some(),
                "virtiofsd was not found on this host",
            ),
            Capability::SecureBoot => missing(
                emulator.secure_uefi.is_some(),
                "no UEFI firmware with secure boot and enrolled keys was found on this host (apt-get install ovmf), or this architecture has none that enforces it",
            ),
            Capability::CpuHotplug => missing(
                emulator.machines.iter().any(|machine| machine.cpu_hotplug),
                "no machine type of this QEMU takes CPUs while it runs",
            ),
            Capability::Nested => missing(
                host.nested && host.acceleration.hardware.as_deref() == Some("kvm"),
                "it needs KVM with nested=1 on this host (a parameter of the module kvm_intel or kvm_amd)",
            ),
            Capability::MemoryHotplug => missing(
                emulator.has("virtio-mem-pci"),
                "this QEMU was built without virtio-mem",
            ),
            Capability::Balloon => missing(
                emulator.has("virtio-balloon-device"),
                "this QEMU was built without virtio-balloon",
            ),
            Capability::HugePages => missing(
                host.huge_page.is_some(),
                "this host has set no huge pages aside (sysctl vm.nr_hugepages=N)",
            ),
            Capability::DiskNvme => missing(
                emulator.has("nvme"),
                "this QEMU was built without NVMe drives",
            ),
            Capability::DiskUsb => missing(
                emulator.has("qemu-xhci") && emulator.has("usb-storage"),
                "this QEMU was built without USB",
            ),
            Capability::DiskLimits => missing(
                emulator.has("throttle-group"),
                "this QEMU was built without limits for disks",
            ),
            Capability::DiskHotplug | Capability::NetworkHotplug => missing(
                emulator.has("pcie-root-port"),
                "this QEMU was built without PCI Express ports",
            ),
            Capability::Drive => missing(
                emulator.has("scsi-cd") && emulator.has("virtio-scsi-device"),
                "this QEMU was built without SCSI drives",
            ),
            Capability::Consoles => missing(
                emulator.has("virtserialport"),
                "this QEMU was built without virtio ports",
            ),
            Capability::Tpm => missing(
                host.swtpm.is_some(),
                "swtpm was not found on this host (apt-get install swtpm)",
            ),
            Capability::Watchdog => missing(
                emulator.has("i6300esb"),
                "this QEMU was built without the watchdog i6300esb",
            ),
            Capability::Sandbox => missing(emulator.sandbox, "this QEMU was built without seccomp"),
            Capability::BootDirect
            | Capability::PinnedMachine
            | Capability::Disks
            | Capability::DiskQcow2
            | Capability::NetworkUser
            | Capability::NetworkAddresses
            | Capability::NetworkSwitched
            | Capability::PortForward
            | Capability::AgentChannel
            // Without the daemon the guest's agent joins the ports.
            | Capability::Vsock
            | Capability::SerialLog
            | Capability::ShutdownTold
            | Capability::RebootTold
            | Capability::PowerButton
            | Capability::Adoption
            | Capability::Pause
            | Capability::Suspend
            | Capability::BlockStatistics
            | Capability::Entropy
            | Capability::DiskCache
            | Capability::NetworkClosed => None,
        }
    };
    Capability::ALL
        .iter()
        .map(|capability| CapabilityReport {
            capability: *capability,
            lacking: lacking(*capability),
        })
        .collect()
}
