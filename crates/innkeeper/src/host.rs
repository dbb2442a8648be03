//! This computer as a host of virtual machines: one method per operation that a user can name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use innkeeper_api::{Admission, Event, HostReport, StopOutcome, Unsupported, VmInfo, VmState, VmStats};

use crate::error::Result;
use crate::progress::Progress;
use crate::spec::{Arch, Bytes, DiskFormat, VmSpec};

// NOTE for the writer of the command line: this file is replaced at the merge by the real one with the same signatures.

/// This computer.
pub struct Host {}
/// Builds a `Host`.
#[derive(Default)]
pub struct HostBuilder {}

#[allow(missing_docs, unused_variables, clippy::unimplemented)]
impl HostBuilder {
    pub fn home(self, path: impl Into<PathBuf>) -> Self { unimplemented!() }
    pub fn runtime(self, path: impl Into<PathBuf>) -> Self { unimplemented!() }
    /// Executable that is run as `HELPER keeper NAME` (this very `inn`).
    pub fn helper(self, path: impl Into<PathBuf>) -> Self { unimplemented!() }
    pub fn libexec(self, path: impl Into<PathBuf>) -> Self { unimplemented!() }
    /// Directories in which programs such as qemu-system-x86_64 are looked for (PATH).
    pub fn search_path(self, path: Vec<PathBuf>) -> Self { unimplemented!() }
    /// `INNKEEPER_ACCEL`.
    pub fn accel(self, accel: Option<String>) -> Self { unimplemented!() }
    /// Takes what is not set from the process's environment (INNKEEPER_HOME, XDG_*, HOME, PATH, INNKEEPER_ACCEL, INNKEEPER_LIBEXEC) and opens.
    pub fn from_environment(self) -> Self { unimplemented!() }
    pub fn open(self) -> Result<Host> { unimplemented!() }
}

#[allow(missing_docs, unused_variables, clippy::unimplemented)]
impl Host {
    pub fn builder() -> HostBuilder { HostBuilder {} }
    pub fn home(&self) -> &Path { unimplemented!() }

    // --- virtual machines: names are checked inside (BadInput for malformed, NotFound with nearest name for unknown)
    pub async fn list(&self) -> Result<Vec<VmInfo>> { unimplemented!() }
    pub async fn info(&self, name: &str) -> Result<VmInfo> { unimplemented!() }
    /// Makes a free name from an image reference: `debian`, `debian-2`.
    pub fn name_for(&self, image: Option<&str>) -> Result<String> { unimplemented!() }
    /// What `create` would do: driver chosen with every reason against the others, bytes copied, image that would be built or downloaded.
    pub async fn plan_create(&self, name: &str, spec: &VmSpec) -> Result<Explanation> { unimplemented!() }
    pub async fn create(&self, name: &str, spec: VmSpec, progress: &dyn Progress) -> Result<VmInfo> { unimplemented!() }
    /// Starts it and returns as soon as the hypervisor runs; `wait` waits for more.
    pub async fn start(&self, name: &str) -> Result<Admission> { unimplemented!() }
    pub async fn stop(&self, name: &str, options: StopOptions) -> Result<StopOutcome> { unimplemented!() }
    pub async fn kill(&self, name: &str) -> Result<StopOutcome> { unimplemented!() }
    pub async fn restart(&self, name: &str, options: StopOptions) -> Result<StopOutcome> { unimplemented!() }
    /// Waits for one of the goals; an error of kind TimedOut after `timeout`, of kind Failure if the VM fails meanwhile (unless that is a goal). `on_change` sees every change on the way.
    pub async fn wait(&self, name: &str, goal: WaitFor, timeout: Option<Duration>, on_change: &(dyn Fn(&VmInfo) + Send + Sync)) -> Result<VmInfo> { unimplemented!() }
    /// Removes it; a running one only with `force` (killed first). Protected ones are refused.
    pub async fn remove(&self, name: &str, force: bool) -> Result<()> { unimplemented!() }
    pub async fn rename(&self, from: &str, to: &str) -> Result<()> { unimplemented!() }
    pub async fn protect(&self, name: &str, protect: bool) -> Result<()> { unimplemented!() }
    /// Changes the spec; `dry_run` only checks.
    pub async fn set(&self, name: &str, edits: &[(String, Option<String>)], dry_run: bool) -> Result<SpecChange> { unimplemented!() }
    pub fn spec_text(&self, name: &str) -> Result<String> { unimplemented!() }
    /// Replaces the whole text of `vm.yaml` (for `edit`); the old text must still be `expected`.
    pub async fn replace_spec(&self, name: &str, expected: &str, text: &str) -> Result<SpecChange> { unimplemented!() }
    pub async fn stats(&self, name: &str) -> Result<VmStats> { unimplemented!() }
    pub async fn explain(&self, name: &str) -> Result<Explanation> { unimplemented!() }
    pub fn log_path(&self, name: &str, log: LogKind) -> Result<PathBuf> { unimplemented!() }

    // --- in the guest: see `innkeeper::guest` for sessions
    // pub async fn exec(&self, name, guest::ExecRequest) -> Result<guest::ExecSession>; copy_in / copy_out come from the agent's part

    // --- ssh
    /// `ssh` arguments that lead into the VM (without the program's name).
    pub async fn ssh_arguments(&self, name: &str) -> Result<Vec<String>> { unimplemented!() }
    /// An OpenSSH client configuration with one `Host inn-NAME NAME` block for each running VM that has SSH (or for one VM).
    pub async fn ssh_config(&self, name: Option<&str>) -> Result<String> { unimplemented!() }

    // --- events
    pub fn events(&self, vm: Option<&str>) -> Result<Vec<Event>> { unimplemented!() }
    /// Follows new events until the callback returns false.
    pub async fn follow_events(&self, vm: Option<&str>, each: &mut (dyn FnMut(Event) -> bool + Send)) -> Result<()> { unimplemented!() }

    // --- images
    pub async fn images(&self) -> Result<Vec<ImageInfo>> { unimplemented!() }
    pub async fn image(&self, reference: &str, arch: Option<Arch>) -> Result<ImageInfo> { unimplemented!() }
    /// Names that can be pulled or built, from the catalogue.
    pub fn catalogue(&self) -> Vec<CatalogueEntry> { unimplemented!() }
    pub async fn pull_image(&self, reference: &str, arch: Option<Arch>, progress: &dyn Progress) -> Result<ImageInfo> { unimplemented!() }
    /// As pull, but made anew even if it is cached.
    pub async fn build_image(&self, reference: &str, arch: Option<Arch>, progress: &dyn Progress) -> Result<ImageInfo> { unimplemented!() }
    pub async fn import_image(&self, path: &Path, name: &str, format: DiskFormat, arch: Option<Arch>, progress: &dyn Progress) -> Result<ImageInfo> { unimplemented!() }
    pub async fn remove_image(&self, reference: &str, arch: Option<Arch>, dry_run: bool) -> Result<ImageInfo> { unimplemented!() }

    // --- disks (files)
    pub async fn disk_create(&self, path: &Path, size: Bytes, format: DiskFormat) -> Result<DiskFile> { unimplemented!() }
    pub async fn disk_resize(&self, path: &Path, format: DiskFormat, size: Bytes, shrink: bool) -> Result<DiskFile> { unimplemented!() }
    pub async fn disk_convert(&self, from: &Path, from_format: DiskFormat, to: &Path, to_format: DiskFormat, progress: &dyn Progress) -> Result<DiskFile> { unimplemented!() }
    pub async fn disk_info(&self, path: &Path, format: DiskFormat) -> Result<DiskFile> { unimplemented!() }

    // --- this host
    pub async fn report(&self) -> Result<HostReport> { unimplemented!() }
    /// Leftovers of crashes that were found, and (unless `dry_run`) finished or removed.
    pub async fn tidy_up(&self, dry_run: bool) -> Result<Vec<String>> { unimplemented!() }
}

/// How a stop goes.
#[derive(Debug, Clone, Copy)]
pub struct StopOptions {
    /// How long the guest may take.
    pub timeout: Duration,
    /// Kill it after that time.
    pub force: bool,
}

/// What `wait` waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitFor {
    /// Exactly this state.
    State(VmState),
    /// Ready, or the end of the way there.
    Ready,
    /// No such VM any more.
    Gone,
}

/// Which log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum LogKind { Serial, Keeper, Vmm, Agent }

/// What a change of the spec did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SpecChange {
    /// Fields that changed.
    pub changed: Vec<String>,
    /// Those of them that take effect at the next start.
    pub restart_required: Vec<String>,
}

/// Which driver, and why.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Explanation {
    /// Driver that is, or would be, used; none if none can.
    pub driver: Option<String>,
    /// Why.
    pub because: String,
    /// Every driver with every reason against it.
    pub drivers: Vec<DriverVerdict>,
    /// Machine type, acceleration, and other decisions, with the reason for each.
    pub decisions: Vec<String>,
    /// What would be done to get there (image built, downloaded, bytes copied).
    pub steps: Vec<String>,
}

/// What speaks against a driver.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct DriverVerdict {
    /// Its name.
    pub driver: String,
    /// Reasons; empty if it can.
    pub against: Vec<Unsupported>,
}

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ImageInfo {
    /// Reference, such as `debian:12`.
    pub reference: String,
    /// Architecture.
    pub arch: String,
    /// Digest of its record, as `sha256:...`.
    pub digest: String,
    /// Bytes that it takes on this host's disk.
    pub size_bytes: u64,
    /// When it was made (RFC 3339).
    pub created: String,
    /// Where it came from.
    pub source: String,
    /// Names of VMs that need it.
    pub used_by: Vec<String>,
    /// Layer files by role: `kernel`, `initrd`, `root`...
    pub files: std::collections::BTreeMap<String, PathBuf>,
}

/// An image that can be had.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct CatalogueEntry {
    /// Reference.
    pub reference: String,
    /// Architectures.
    pub arches: Vec<String>,
    /// What it is.
    pub description: String,
    /// How it is had: `built` or `downloaded`.
    pub how: String,
    /// Whether it was tried by those who wrote the entry.
    pub tried: bool,
}

/// A disk file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct DiskFile {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: String,
    /// Size that a guest sees.
    pub virtual_bytes: u64,
    /// Bytes that it takes.
    pub actual_bytes: u64,
    /// File below it, if any.
    pub backing: Option<PathBuf>,
}
