//! Asks this host what Cloud Hypervisor can do here: its version by `vmm.ping`, KVM by opening it, Landlock by trying it.
//!
//! ```text
//!  cache file valid? ──yes──► CloudHypervisorHost
//!        │ no
//!        ├─ cloud-hypervisor --api-socket fd=N             ping: version
//!        ├─ cloud-hypervisor --api-socket fd=N --landlock  ping: answered only where the kernel has Landlock
//!        └─ virtiofsd, swtpm, firmware, userfaultfd, nested
//! ```
//!
//! It reads no output that is meant for people. The processes that it starts die with the call.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use command_fds::{CommandFdExt, FdMapping};
use innkeeper_api::{Capability, CapabilityReport, DriverReport, Need};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::api::Client;
use super::host::{CloudHypervisorHost, OLDEST};
use super::wire::Ping;
use super::{CloudHypervisorOptions, NAME};
use crate::drivers::kvm::{Refusal, open_kvm};
use crate::drivers::start::FIRST_DESCRIPTOR;
use crate::drivers::virtiofsd;

/// How long it may take to answer a ping; a few milliseconds are usual.
const DEADLINE: Duration = Duration::from_secs(3);

/// Version of the cache file's meaning.
const CACHE_VERSION: u32 = 2;

/// What a cached result is valid for.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct CacheKey {
    version: u32,
    boot_id: String,
    accel_override: Option<String>,
    /// Path, length in bytes and time of last change of every file that was asked or looked at.
    files: Vec<(PathBuf, u64, Option<SystemTime>)>,
    /// Whether KVM may be opened, which a change of groups alters.
    kvm: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Cache {
    key: CacheKey,
    host: CloudHypervisorHost,
}

/// Returns what is found on this host.
pub(super) async fn host(options: &CloudHypervisorOptions) -> CloudHypervisorHost {
    let program = on_path(&options.path, "cloud-hypervisor");
    let swtpm = on_path(&options.path, "swtpm");
    let kvm_refused = kvm(options);
    let key = cache_key(
        options,
        [&program, &swtpm].into_iter().flatten(),
        &kvm_refused,
    );
    if let Some(host) = options
        .cache
        .as_deref()
        .and_then(|path| read_cache(path, &key))
    {
        return host;
    }
    let mut host = CloudHypervisorHost {
        host_arch: match std::env::consts::ARCH {
            "aarch64" => "arm64".to_owned(),
            other => other.to_owned(),
        },
        program,
        kvm_refused,
        userfaultfd: userfaultfd(),
        nested: nested(),
        swtpm,
        firmware: options
            .firmware_candidates
            .iter()
            .find(|path| path.is_file())
            .cloned(),
        ..CloudHypervisorHost::default()
    };
    if let (Some(program), None) = (&host.program, &host.kvm_refused) {
        let (plain, confined, daemon) = tokio::join!(
            ping(program, options, false),
            ping(program, options, true),
            virtiofsd::find(&options.virtiofsd_candidates, &options.path)
        );
        host.virtiofsd = daemon;
        host.landlock = confined.is_ok();
        match plain {
            Ok(ping) if ping.features.iter().any(|feature| feature == "kvm") => {
                host.version = Some(ping.version);
            }
            Ok(_) => host.silent = Some("it was built without KVM".to_owned()),
            Err(why) => host.silent = Some(why),
        }
    }
    if let (Some(path), Some(_)) = (&options.cache, &host.version) {
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

fn on_path(path: &[PathBuf], name: &str) -> Option<PathBuf> {
    path.iter()
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}

fn kvm(options: &CloudHypervisorOptions) -> Option<Refusal> {
    match options.accel_override.as_deref() {
        Some(other) if other != "kvm" => Some(Refusal {
            reason: format!("this host was told to run CPUs by {other}"),
            fix: Some("unset INNKEEPER_ACCEL, or set it to kvm".to_owned()),
        }),
        // Asked for, so it is not tried.
        Some(_) => None,
        None => open_kvm().err(),
    }
}

fn cache_key<'a>(
    options: &'a CloudHypervisorOptions,
    programs: impl Iterator<Item = &'a PathBuf>,
    kvm: &Option<Refusal>,
) -> CacheKey {
    let files = programs
        .chain(&options.firmware_candidates)
        .chain(&options.virtiofsd_candidates)
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
        kvm: format!("{kvm:?}"),
    }
}

fn read_cache(path: &Path, key: &CacheKey) -> Option<CloudHypervisorHost> {
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

/// Starts one without a machine and asks it who it is.
///
/// Errors: why not, in words.
async fn ping(
    program: &Path,
    options: &CloudHypervisorOptions,
    landlock: bool,
) -> Result<Ping, String> {
    let directory = tempfile::Builder::new()
        .prefix("innkeeper-probe-")
        .tempdir_in(&options.scratch)
        .map_err(|error| {
            format!(
                "can't make a directory in {}: {error}",
                options.scratch.display()
            )
        })?;
    let socket = directory.path().join("api.sock");
    let listener = UnixListener::bind(&socket)
        .map_err(|error| format!("can't listen on {}: {error}", socket.display()))?;
    ping_at(program, &socket, listener, landlock).await
}

async fn ping_at(
    program: &Path,
    socket: &Path,
    listener: UnixListener,
    landlock: bool,
) -> Result<Ping, String> {
    let mut command = Command::new(program);
    command
        .env_clear()
        .arg("--api-socket")
        .arg(format!("fd={FIRST_DESCRIPTOR}"))
        .args(landlock.then_some("--landlock"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    command
        .fd_mappings(vec![FdMapping {
            parent_fd: listener.into(),
            child_fd: FIRST_DESCRIPTOR,
        }])
        .map_err(|error| error.to_string())?;
    let mut child = command
        .spawn()
        .map_err(|error| format!("it can't be started: {error}"))?;
    // Our end of the listening socket must be closed, so that a hypervisor that ended refuses us.
    drop(command);
    let client = Client::new(socket);
    let answer = tokio::select! {
        answer = client.get::<Ping>("vmm.ping", DEADLINE) => answer.map_err(|error| error.to_string()),
        status = child.wait() => Err(match status {
            Ok(status) => format!("it ended at once ({status})"),
            Err(error) => format!("it can't be waited for: {error}"),
        }),
    };
    // It holds nothing that is worth an orderly end.
    let _ = child.kill().await;
    answer
}

/// Whether this user may serve page faults: by the device, as root, or by the kernel's setting (its `vm.unprivileged_userfaultfd`).
fn userfaultfd() -> bool {
    let device = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/userfaultfd");
    device.is_ok()
        || (rustix::process::geteuid().is_root()
            && Path::new("/proc/sys/vm/unprivileged_userfaultfd").exists())
        || fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd")
            .is_ok_and(|text| text.trim() == "1")
}

/// Whether KVM lets guests run virtual machines (kernel documentation, "Nested VMX").
fn nested() -> bool {
    ["kvm_intel", "kvm_amd"].iter().any(|module| {
        fs::read_to_string(format!("/sys/module/{module}/parameters/nested"))
            .is_ok_and(|text| ["Y", "1"].contains(&text.trim()))
    })
}

/// Turns what was found into what is shown.
pub(super) fn report(host: &CloudHypervisorHost) -> DriverReport {
    let unusable = host.unusable();
    let mut needs = Vec::new();
    if let Some(refusal) = &unusable {
        let what = if host.program.is_none() {
            "cloud-hypervisor".to_owned()
        } else if host.kvm_refused.is_some() {
            "kvm".to_owned()
        } else {
            format!("cloud-hypervisor {OLDEST}.0 or later")
        };
        needs.push(Need {
            what,
            without: format!("VMs by Cloud Hypervisor: {}", refusal.reason),
            fix: refusal
                .fix
                .clone()
                .unwrap_or_else(|| "none is known on this host".to_owned()),
        });
    }
    let mut notes = Vec::new();
    if unusable.is_none() {
        notes.push(if host.landlock {
            "the hypervisor is confined by seccomp and Landlock".to_owned()
        } else {
            "the hypervisor is confined by seccomp alone: Landlock does not work here".to_owned()
        });
    }
    DriverReport {
        driver: NAME.to_owned(),
        usable: unusable.is_none(),
        version: host.version.clone(),
        accel: unusable.is_none().then(|| "kvm".to_owned()),
        notes,
        arches: match &host.program {
            Some(_) => vec![host.host_arch.clone()],
            None => Vec::new(),
        },
        capabilities: capabilities(host, unusable.as_ref()),
        needs,
        details: serde_json::to_value(host).unwrap_or_default(),
    }
}

fn capabilities(host: &CloudHypervisorHost, unusable: Option<&Refusal>) -> Vec<CapabilityReport> {
    Capability::ALL
        .iter()
        .map(|capability| CapabilityReport {
            capability: *capability,
            lacking: match unusable {
                Some(_) => Some("Cloud Hypervisor can't be used here at all".to_owned()),
                None => lacking(host, *capability).map(str::to_owned),
            },
        })
        .collect()
}

fn lacking(host: &CloudHypervisorHost, capability: Capability) -> Option<&'static str> {
    use Capability as C;
    let missing = |there: bool, reason: &'static str| (!there).then_some(reason);
    match capability {
        C::BootDirect
        | C::Disks
        | C::SerialLog
        | C::ShutdownTold
        | C::RebootTold
        | C::PowerButton
        | C::Adoption
        | C::Pause
        | C::Suspend
        | C::CpuHotplug
        | C::MemoryHotplug
        | C::Balloon
        | C::HugePages
        | C::DiskCache
        | C::DiskLimits
        | C::DiskHotplug
        | C::Watchdog
        | C::Vsock
        | C::AgentChannel
        | C::BlockStatistics
        | C::Entropy
        | C::Sandbox => None,
        C::BootUefi => missing(
            host.firmware.is_some(),
            "no UEFI firmware made for Cloud Hypervisor (CLOUDHV.fd, hypervisor-fw) was found on this host",
        ),
        C::BootBios => Some("Cloud Hypervisor has no BIOS"),
        C::SecureBoot => {
            Some("Cloud Hypervisor's firmware keeps no variables, so it enrols no keys")
        }
        C::ForeignArch => Some("Cloud Hypervisor runs guests of the host's own architecture only"),
        C::PinnedMachine => {
            Some("Cloud Hypervisor has no machine types: its version is recorded instead")
        }
        C::DiskQcow2 => {
            Some("qcow2 is left to QEMU: Cloud Hypervisor corrupted it before version 52")
        }
        C::DiskNvme | C::DiskUsb => Some("Cloud Hypervisor has virtio disks only"),
        C::Drive => Some("Cloud Hypervisor has no drive whose medium can be changed"),
        C::NetworkSwitched => {
            Some("Cloud Hypervisor joins a switch by vhost-user, which ours does not speak yet")
        }
        C::NetworkUser | C::NetworkAddresses | C::PortForward | C::NetworkClosed => {
            Some("not here, because Cloud Hypervisor has no network of its own; write networks: []")
        }
        C::NetworkHotplug => Some("Cloud Hypervisor has no network of its own"),
        C::ShareVirtiofs => missing(
            host.virtiofsd.is_some(),
            "virtiofsd was not found on this host",
        ),
        C::Nested => missing(
            host.nested,
            "KVM of this host does not let guests run virtual machines",
        ),
        C::Consoles => Some(
            "Cloud Hypervisor's serial port either keeps its log or takes input, and its console has no name",
        ),
        C::Tpm => missing(host.swtpm.is_some(), "swtpm was not found on this host"),
    }
}
