//! This computer as a host of virtual machines: one method per operation that a user can name. Here, and only here, the parts are put
//! together: drivers, directories, the environment.

mod snapshots;
mod types;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use innkeeper_api::{
    Admission, ErrorKind, Event, HostReport, Need, RestartRequest, StopOutcome, StopRequest,
    VmInfo, VmStats,
};
use innkeeper_image::{Store, disk};

use crate::driver::Driver;
#[cfg(target_os = "linux")]
use crate::drivers::cloud_hypervisor::{CloudHypervisorDriver, CloudHypervisorOptions};
use crate::drivers::qemu::{QemuDriver, QemuOptions};
use crate::drivers::vz::VzDriver;
use crate::engine::{Agents, Engine, Way};
use crate::error::{Error, Result};
use crate::guest::GuestChannel;
use crate::guest::message::ExecRequest;
use crate::keeper::SshKey;
use crate::progress::Progress;
use crate::spec::{self, Arch, DiskFormat, VmSpec};
use crate::store::Root;

pub use crate::engine::{CloneKind, Cloned, DriverVerdict, Explanation, WaitFor};
pub use snapshots::Present;
pub use types::{CatalogueEntry, DetachOptions, ImageInfo, LogKind, SpecChange, StopOptions};

/// This computer as a host of virtual machines. It holds no state that the files don't.
pub struct Host {
    pub(crate) engine: Engine,
}

/// Builds a [`Host`]. What is not set is taken from the environment by [`HostBuilder::from_environment`], or missing.
#[derive(Default)]
pub struct HostBuilder {
    home: Option<PathBuf>,
    runtime: Option<PathBuf>,
    helper: Option<PathBuf>,
    libexec: Option<PathBuf>,
    search_path: Option<Vec<PathBuf>>,
    accel: Option<String>,
    boot_id: Option<String>,
    catalogues: Vec<String>,
    registry_configurations: Vec<PathBuf>,
    drivers: Vec<Arc<dyn Driver>>,
    helper_environment: Vec<(String, OsString)>,
}

impl HostBuilder {
    /// Sets the directory of all state (`INNKEEPER_HOME`).
    pub fn home(mut self, path: impl Into<PathBuf>) -> Self {
        self.home = Some(path.into());
        self
    }

    /// Sets the directory for sockets; it must have a short path.
    pub fn runtime(mut self, path: impl Into<PathBuf>) -> Self {
        self.runtime = Some(path.into());
        self
    }

    /// Sets the executable that is run as `HELPER keeper NAME` and calls [`crate::keeper::run`]: `inn`, or a program that does the same.
    pub fn helper(mut self, path: impl Into<PathBuf>) -> Self {
        self.helper = Some(path.into());
        self
    }

    /// Sets where the guest agents are (`INNKEEPER_LIBEXEC`).
    pub fn libexec(mut self, path: impl Into<PathBuf>) -> Self {
        self.libexec = Some(path.into());
        self
    }

    /// Sets the directories in which programs such as `qemu-system-x86_64` are looked for (`PATH`).
    pub fn search_path(mut self, path: Vec<PathBuf>) -> Self {
        self.search_path = Some(path);
        self
    }

    /// Forces how CPUs are run: `kvm`, `hvf` or `tcg` (`INNKEEPER_ACCEL`).
    pub fn accel(mut self, accel: Option<String>) -> Self {
        self.accel = accel;
        self
    }

    /// Sets the identifier of this boot of the computer.
    pub fn boot_id(mut self, boot_id: impl Into<String>) -> Self {
        self.boot_id = Some(boot_id.into());
        self
    }

    /// Adds a driver beside those that this build has; it is preferred to them.
    pub fn driver(mut self, driver: Arc<dyn Driver>) -> Self {
        self.drivers.push(driver);
        self
    }

    /// Adds a variable to the environment of keepers: settings that the helper reads, for programs that bring drivers of their own.
    pub fn helper_environment(
        mut self,
        name: impl Into<String>,
        value: impl Into<OsString>,
    ) -> Self {
        self.helper_environment.push((name.into(), value.into()));
        self
    }

    /// Takes what is not set from the process's environment: `INNKEEPER_HOME`, else the platform's data directory; `XDG_RUNTIME_DIR`;
    /// `PATH`; `INNKEEPER_ACCEL`; `INNKEEPER_LIBEXEC`; `INNKEEPER_CATALOGUES` (paths or URLs, separated by spaces); this very executable
    /// as the helper; where registries' credentials are (`DOCKER_CONFIG`, `REGISTRY_AUTH_FILE`, and the usual files).
    pub fn from_environment(mut self) -> Self {
        let path = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        self.home = self.home.or_else(|| path("INNKEEPER_HOME")).or_else(|| {
            let data = if cfg!(target_os = "macos") {
                path("HOME").map(|home| home.join("Library/Application Support"))
            } else {
                path("XDG_DATA_HOME").or_else(|| path("HOME").map(|home| home.join(".local/share")))
            };
            data.map(|data| data.join("innkeeper"))
        });
        self.runtime = self
            .runtime
            .or_else(|| path("INNKEEPER_RUNTIME"))
            .or_else(|| {
                let user = rustix::process::geteuid().as_raw();
                Some(
                    match path("XDG_RUNTIME_DIR").filter(|directory| directory.is_dir()) {
                        Some(directory) => directory.join("innkeeper"),
                        None => PathBuf::from(format!("/tmp/innkeeper-{user}")),
                    },
                )
            });
        self.helper = self.helper.or_else(|| std::env::current_exe().ok());
        self.libexec = self.libexec.or_else(|| path("INNKEEPER_LIBEXEC"));
        self.search_path = self.search_path.or_else(|| {
            std::env::var_os("PATH").map(|value| std::env::split_paths(&value).collect())
        });
        self.accel = self.accel.or_else(|| {
            std::env::var("INNKEEPER_ACCEL")
                .ok()
                .filter(|value| !value.is_empty())
        });
        if let Ok(catalogues) = std::env::var("INNKEEPER_CATALOGUES") {
            self.catalogues
                .extend(catalogues.split_whitespace().map(str::to_owned));
        }
        // Where Docker, podman and skopeo keep what `login` was told.
        let candidates = [
            ("DOCKER_CONFIG", "config.json"),
            ("HOME", ".docker/config.json"),
            ("REGISTRY_AUTH_FILE", ""),
            ("XDG_RUNTIME_DIR", "containers/auth.json"),
            ("HOME", ".config/containers/auth.json"),
        ];
        self.registry_configurations
            .extend(candidates.iter().filter_map(|(variable, file)| {
                let directory = path(variable)?;
                Some(if file.is_empty() {
                    directory
                } else {
                    directory.join(file)
                })
            }));
        self.boot_id = self.boot_id.or_else(boot_id);
        self
    }

    /// Opens the host, making its directories if need be.
    ///
    /// Errors: `BadInput` naming the setting that is missing or wrong, `NotPermitted` if a directory belongs to somebody else.
    pub fn open(self) -> Result<Host> {
        let needed = |what: &str, setting: &str| {
            Error::new(ErrorKind::BadInput, format!("{what} is not known"))
                .with_hint(format!("set {setting}"))
        };
        let home = self
            .home
            .ok_or_else(|| needed("the data directory", "INNKEEPER_HOME"))?;
        let runtime = self
            .runtime
            .ok_or_else(|| needed("the runtime directory", "INNKEEPER_RUNTIME"))?;
        let helper = self.helper.ok_or_else(|| {
            needed(
                "the executable that runs keepers",
                "it with Host::builder().helper(path)",
            )
        })?;
        let boot_id = self.boot_id.ok_or_else(|| {
            needed(
                "the computer's boot identifier",
                "it with Host::builder().boot_id(id)",
            )
        })?;
        if let Some(accel) = &self.accel
            && !["kvm", "hvf", "tcg"].contains(&accel.as_str())
        {
            return Err(Error::new(
                ErrorKind::BadInput,
                format!("INNKEEPER_ACCEL: {accel:?} is not a way of running CPUs"),
            )
            .with_hint("use kvm, hvf or tcg, or unset it"));
        }
        let root = Root::open(&home, &runtime, &boot_id)?;
        let search_path = self.search_path.unwrap_or_default();
        let mut environment = self.helper_environment;
        let mut set = |name: &str, value: OsString| environment.push((name.to_owned(), value));
        set("INNKEEPER_HOME", root.home().as_os_str().to_owned());
        set("INNKEEPER_RUNTIME", runtime.into_os_string());
        if let Ok(path) = std::env::join_paths(&search_path) {
            set("PATH", path);
        }
        if let Some(accel) = &self.accel {
            set("INNKEEPER_ACCEL", accel.into());
        }
        let mut drivers = self.drivers;
        let beside = agent_directories(self.libexec, &helper);
        // After the places where distributions put it, which don't stand in PATH.
        let virtiofsd: Vec<PathBuf> = beside
            .iter()
            .chain(&search_path)
            .map(|directory| directory.join("virtiofsd"))
            .collect();
        let mut qemu = QemuOptions {
            accel_override: self.accel.clone(),
            cache: Some(root.home().join("cache/qemu.json")),
            ..QemuOptions::of(search_path.clone(), &boot_id)
        };
        qemu.virtiofsd_candidates.extend(virtiofsd.iter().cloned());
        drivers.push(Arc::new(QemuDriver::new(qemu)));
        #[cfg(target_os = "linux")]
        {
            let mut options = CloudHypervisorOptions {
                accel_override: self.accel,
                cache: Some(root.home().join("cache/cloud-hypervisor.json")),
                ..CloudHypervisorOptions::of(search_path.clone(), boot_id.clone())
            };
            options.virtiofsd_candidates.extend(virtiofsd);
            drivers.push(Arc::new(CloudHypervisorDriver::new(options)));
        }
        // After QEMU, since nobody has run it yet: where both can, the one that was tried is taken.
        drivers.push(Arc::new(VzDriver::new(boot_id)));
        let images = Store::open(root.image_store())?;
        Ok(Host {
            engine: Engine {
                drivers,
                agents: Agents::new(beside),
                helper,
                helper_environment: environment,
                catalogues: self.catalogues,
                registry_configurations: self.registry_configurations,
                search_path: search_path.clone(),
                images,
                root,
            },
        })
    }
}

/// The agents stand beside the helper, in its `libexec`, or where the setting says.
fn agent_directories(libexec: Option<PathBuf>, helper: &Path) -> Vec<PathBuf> {
    if let Some(libexec) = libexec {
        return vec![libexec];
    }
    let Some(beside) = helper.parent() else {
        return Vec::new();
    };
    let mut directories = vec![beside.to_owned()];
    directories.extend(beside.parent().map(|above| above.join("libexec/innkeeper")));
    directories
}

#[cfg(target_os = "linux")]
fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
}

#[cfg(not(target_os = "linux"))]
fn boot_id() -> Option<String> {
    let output = std::process::Command::new("/usr/sbin/sysctl")
        .args(["-n", "kern.bootsessionuuid"])
        .output()
        .ok()?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned()).filter(|id| !id.is_empty())
}

impl Host {
    /// Begins to build a host.
    pub fn builder() -> HostBuilder {
        HostBuilder::default()
    }

    /// Returns the directory of all state.
    pub fn home(&self) -> &Path {
        self.engine.root.home()
    }

    pub(crate) fn root(&self) -> &Root {
        &self.engine.root
    }

    pub(crate) fn driver(&self, name: &str) -> Result<Arc<dyn Driver>> {
        self.engine.driver(name)
    }

    pub(crate) fn settle_snapshots(&self, bundle: &crate::store::Bundle) -> Result<()> {
        crate::engine::snapshots::settle(&self.engine.images, bundle)
    }

    pub(crate) fn ssh_key(&self) -> SshKey {
        self.engine.ssh_key()
    }

    /// Tells of every VM, in the order of their names. One that is damaged is told as `failed`, with the reason.
    pub async fn list(&self) -> Result<Vec<VmInfo>> {
        self.engine.look_at_all().await
    }

    /// Tells of one VM. Errors: `NotFound` with the nearest name.
    pub async fn info(&self, name: &str) -> Result<VmInfo> {
        self.engine.look(&self.root().bundle(name)?).await
    }

    /// Makes a name that is free from an image reference: `debian`, `debian-2`.
    pub fn name_for(&self, image: Option<&str>) -> Result<String> {
        let taken = self.root().names()?;
        let name = spec::VmName::from_image(image.unwrap_or("vm"), |name| {
            taken.iter().any(|other| other == name)
        });
        Ok(name.to_string())
    }

    /// Tells what [`Host::create`] would do, without doing it.
    pub async fn plan_create(&self, name: &str, spec: &VmSpec) -> Result<Explanation> {
        self.engine.plan_create(name, spec).await
    }

    /// Creates a VM; it is stopped. Dropping the future leaves nothing of it.
    pub async fn create(
        &self,
        name: &str,
        spec: VmSpec,
        progress: &dyn Progress,
    ) -> Result<VmInfo> {
        self.engine.create(name, spec, progress).await
    }

    /// Starts a VM; returns as soon as its hypervisor runs. [`Host::wait`] waits for more.
    pub async fn start(&self, name: &str) -> Result<Admission> {
        Ok(self.engine.start(name).await?.admission)
    }

    /// Lets the guest power off: the agent is asked, then the power button pressed. Errors: `TimedOut` if it does not; it is left running then.
    pub async fn stop(&self, name: &str, options: StopOptions) -> Result<StopOutcome> {
        self.engine
            .stop(
                name,
                &StopRequest {
                    timeout_ms: options.millis(),
                    force: options.force,
                },
            )
            .await
    }

    /// Ends the hypervisor at once, as by pulling the plug.
    pub async fn kill(&self, name: &str) -> Result<StopOutcome> {
        self.engine.kill(name).await
    }

    /// Stops and starts a VM.
    pub async fn restart(&self, name: &str, options: StopOptions) -> Result<StopOutcome> {
        self.engine
            .restart(
                name,
                &RestartRequest {
                    timeout_ms: options.millis(),
                    force: options.force,
                },
            )
            .await
    }

    /// Stops a VM's CPUs; its memory is kept. Returns when they stand still. Errors: `Unsupported` if its driver can't.
    pub async fn pause(&self, name: &str) -> Result<Admission> {
        Ok(self.engine.pause(name).await?.admission)
    }

    /// Continues a paused VM, or brings back a suspended one. Returns when its CPUs run.
    pub async fn resume(&self, name: &str) -> Result<Admission> {
        Ok(self.engine.resume(name).await?.admission)
    }

    /// Writes a VM's memory and devices to disk and ends its hypervisor; [`Host::start`] brings it back as it was.
    ///
    /// Errors: `Unsupported` if its driver can't, or something that is attached can't be saved. The VM goes on then.
    pub async fn suspend(&self, name: &str) -> Result<Admission> {
        Ok(self.engine.suspend(name).await?.admission)
    }

    /// Throws away what was saved of a suspended VM: it is stopped, as after a power cut.
    pub async fn discard_saved(&self, name: &str) -> Result<()> {
        self.engine.discard_saved(name).await
    }

    /// Waits until a VM is where it should be; `on_change` sees every change on the way.
    ///
    /// Errors: `TimedOut` after `timeout`; `Failure` if it failed or stopped instead.
    pub async fn wait(
        &self,
        name: &str,
        goal: WaitFor,
        timeout: Option<Duration>,
        on_change: &(dyn Fn(&VmInfo) + Send + Sync),
    ) -> Result<VmInfo> {
        self.engine.wait(name, &goal, timeout, on_change).await
    }

    /// Returns how long the spec of a VM allows until it is ready.
    pub fn ready_timeout(&self, name: &str) -> Result<Duration> {
        Ok(self.root().bundle(name)?.spec()?.ready_timeout)
    }

    /// Removes a VM and its disks; a running one only with `force`. A protected one is refused.
    pub async fn remove(&self, name: &str, force: bool) -> Result<()> {
        self.engine.remove(name, force).await
    }

    /// Gives a stopped VM another name.
    pub async fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.engine.rename(from, to).await
    }

    /// Sets or lifts a VM's protection from removal.
    pub async fn protect(&self, name: &str, protect: bool) -> Result<()> {
        self.engine.protect(name, protect).await
    }

    /// Changes fields of a VM's spec, keeping its comments; none as a value removes the field. With `dry_run` it is only checked.
    pub async fn set(
        &self,
        name: &str,
        edits: &[(String, Option<String>)],
        dry_run: bool,
    ) -> Result<SpecChange> {
        self.set_within(name, edits, dry_run, LET_GO).await
    }

    /// As `set`; a guest that is to let go of a device may take so long.
    pub(crate) async fn set_within(
        &self,
        name: &str,
        edits: &[(String, Option<String>)],
        dry_run: bool,
        let_go: Duration,
    ) -> Result<SpecChange> {
        let text = self.spec_text(name)?;
        let edits: Vec<spec::Edit> = edits
            .iter()
            .map(|(path, value)| spec::Edit {
                path: path.clone(),
                value: value.clone(),
            })
            .collect();
        let new = spec::edit(&text, &edits)?;
        self.engine
            .replace_spec(name, &text, &new, dry_run, let_go)
            .await
    }

    /// Returns the text of a VM's spec.
    pub fn spec_text(&self, name: &str) -> Result<String> {
        self.root().bundle(name)?.spec_text()
    }

    /// Replaces the text of a VM's spec, which must still be `expected`.
    pub async fn replace_spec(&self, name: &str, expected: &str, text: &str) -> Result<SpecChange> {
        self.engine
            .replace_spec(name, expected, text, false, LET_GO)
            .await
    }

    /// Tells what replacing the spec of a VM with another text would change, or why it can't be; changes nothing.
    pub async fn preview_spec(&self, name: &str, text: &str) -> Result<SpecChange> {
        self.engine
            .replace_spec(name, text, text, true, LET_GO)
            .await
    }

    /// Counts what a running VM uses. A VM that does not run has no figures.
    pub async fn stats(&self, name: &str) -> Result<VmStats> {
        let bundle = self.root().bundle(name)?;
        let info = self.engine.look(&bundle).await?;
        if info.vmm_pid.is_none() {
            return Ok(VmStats {
                name: info.name,
                state: Some(info.state),
                ..VmStats::default()
            });
        }
        self.engine.keeper(&bundle)?.read("/v1/vm/stats").await
    }

    /// Tells which driver runs a VM, and every reason against the others.
    pub async fn explain(&self, name: &str) -> Result<Explanation> {
        let bundle = self.root().bundle(name)?;
        let identity = bundle.identity()?;
        let (_, mut explanation) = self
            .engine
            .weigh(&bundle, &identity, &bundle.spec()?)
            .await?;
        if explanation.driver.as_deref() != Some(&identity.driver) {
            explanation.because = format!("it was chosen when {name} was created, and stays");
        }
        explanation.driver = Some(identity.driver);
        Ok(explanation)
    }

    /// Returns the file of one of a VM's logs.
    pub fn log_path(&self, name: &str, log: LogKind) -> Result<PathBuf> {
        let bundle = self.root().bundle(name)?;
        Ok(bundle.path(match log {
            LogKind::Serial => "log/serial.log",
            LogKind::Keeper => "log/keeper.log",
            LogKind::Vmm => "log/vmm.log",
        }))
    }

    /// Opens a way to a running VM's agent: to run commands and copy files.
    ///
    /// Errors: `Conflict` if the VM does not run, `Unreachable` if it has no agent that answers.
    pub async fn guest(&self, name: &str) -> Result<GuestChannel> {
        self.engine.guest(name).await
    }

    /// Returns the arguments that lead OpenSSH's `ssh` into a running VM.
    pub async fn ssh_arguments(&self, name: &str) -> Result<Vec<String>> {
        self.engine.ssh_arguments(name).await
    }

    /// Returns a configuration for OpenSSH's client: one block for one VM, or for each that has an SSH server.
    pub async fn ssh_config(&self, name: Option<&str>) -> Result<String> {
        self.engine.ssh_config(name).await
    }

    /// Returns the events of the log, oldest first.
    pub fn events(&self, vm: Option<&str>) -> Result<Vec<Event>> {
        let (events, _) = self.root().event_log().read(None)?;
        Ok(events
            .into_iter()
            .filter(|event| concerns(event, vm))
            .collect())
    }

    /// Follows new events until `each` returns false.
    pub async fn follow_events(
        &self,
        vm: Option<&str>,
        each: &mut (dyn FnMut(Event) -> bool + Send),
    ) -> Result<()> {
        /// The log is a file that tells nobody when it grows.
        const LOOK: Duration = Duration::from_millis(100);
        let log = self.root().event_log();
        let (_, mut place) = log.read(None)?;
        loop {
            let (events, next) = log.read(Some(place))?;
            place = next;
            for event in events.into_iter().filter(|event| concerns(event, vm)) {
                if !each(event) {
                    return Ok(());
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Lists the images in the store.
    pub async fn images(&self) -> Result<Vec<ImageInfo>> {
        self.engine.image_infos()
    }

    /// Tells of one image in the store.
    pub async fn image(&self, reference: &str, arch: Option<Arch>) -> Result<ImageInfo> {
        let arch = arch.map_or_else(|| self.engine.default_arch(), Ok)?;
        self.engine.image_info(
            &self
                .engine
                .images
                .info(&self.engine.reference(reference)?, arch)?,
        )
    }

    /// Lists the images that can be had.
    pub fn catalogue(&self) -> Vec<CatalogueEntry> {
        self.engine.catalogue()
    }

    /// Gets an image: from its vendor, or made here where that is how it is had. A registry is asked again what a tag leads to by now.
    pub async fn pull_image(
        &self,
        reference: &str,
        arch: Option<Arch>,
        progress: &dyn Progress,
    ) -> Result<ImageInfo> {
        let way = match self.engine.reference(reference)? {
            innkeeper_image::Reference::Oci(_) => Way::Pull,
            _ => Way::Ensure,
        };
        self.obtain(way, reference, arch, progress).await
    }

    /// Tells whether an image says itself what is to be run: one of a registry does.
    pub fn has_workload(&self, image: &str) -> Result<bool> {
        Ok(matches!(
            self.engine.reference(image)?,
            innkeeper_image::Reference::Oci(_)
        ))
    }

    /// Makes the request that runs a command as a VM's image says: its entrypoint before it, its variables, user and directory. Without a
    /// command its own one is taken; none for a VM whose image says nothing.
    ///
    /// Errors: `BadInput` when there is neither a command nor one of the image.
    pub fn workload(&self, name: &str, command: &[String]) -> Result<Option<ExecRequest>> {
        let identity = self.engine.root.bundle(name)?.identity()?;
        let Some(workload) = identity.image.and_then(|image| image.workload) else {
            return Ok(None);
        };
        let mut argv = workload.entrypoint;
        if command.is_empty() {
            argv.extend(workload.command);
        } else {
            argv.extend_from_slice(command);
        }
        if argv.is_empty() {
            return Err(
                Error::new(ErrorKind::BadInput, "the image names no command to run")
                    .with_hint("give one after --"),
            );
        }
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        Ok(Some(ExecRequest {
            argv,
            env: workload.environment,
            cwd: given(workload.directory).or_else(|| Some("/".to_owned())),
            user: given(workload.user),
            ..ExecRequest::default()
        }))
    }

    /// Builds an image from packages, anew even if it is in the store.
    pub async fn build_image(
        &self,
        reference: &str,
        arch: Option<Arch>,
        progress: &dyn Progress,
    ) -> Result<ImageInfo> {
        self.obtain(Way::Build, reference, arch, progress).await
    }

    async fn obtain(
        &self,
        way: Way,
        reference: &str,
        arch: Option<Arch>,
        progress: &dyn Progress,
    ) -> Result<ImageInfo> {
        let arch = arch.map_or_else(|| self.engine.default_arch(), Ok)?;
        let image = self
            .engine
            .obtain(way, &self.engine.reference(reference)?, arch, progress)
            .await?;
        self.engine.image_info(&image)
    }

    /// Adds a disk image of the user's to the store under a name.
    pub async fn import_image(
        &self,
        path: &Path,
        name: &str,
        format: DiskFormat,
        arch: Option<Arch>,
        progress: &dyn Progress,
    ) -> Result<ImageInfo> {
        let arch = arch.map_or_else(|| self.engine.default_arch(), Ok)?;
        let image = self
            .engine
            .import(path, name, format, arch, progress)
            .await?;
        self.engine.image_info(&image)
    }

    /// Removes an image that no VM needs. With `dry_run` it is only checked.
    pub async fn remove_image(
        &self,
        reference: &str,
        arch: Option<Arch>,
        dry_run: bool,
    ) -> Result<ImageInfo> {
        let arch = arch.map_or_else(|| self.engine.default_arch(), Ok)?;
        self.engine
            .remove_image(&self.engine.reference(reference)?, arch, dry_run)
    }

    /// Asks this host what it can do: every driver, and what is lacking with the command that fixes it.
    pub async fn report(&self) -> Result<HostReport> {
        let mut drivers = Vec::new();
        for driver in &self.engine.drivers {
            drivers.push(driver.probe().await);
        }
        let clones = if disk::capabilities(self.home())?.reflink {
            "reflink"
        } else {
            "overlay"
        };
        let mut needs: Vec<Need> = self.engine.host_needs();
        needs.dedup();
        Ok(HostReport {
            host: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            drivers,
            clones: clones.to_owned(),
            needs,
        })
    }

    /// Finds what crashes left half-made and, unless `dry_run`, removes it; a sentence each.
    pub async fn tidy_up(&self, dry_run: bool) -> Result<Vec<String>> {
        let mut found = self.engine.clear_away(dry_run)?;
        found.extend(self.engine.clear_away_snapshots(dry_run)?);
        Ok(found)
    }
}

/// How long a guest may take to let go of a device before the command that asked for it says so, unless it names another time.
const LET_GO: Duration = Duration::from_secs(30);

fn concerns(event: &Event, vm: Option<&str>) -> bool {
    vm.is_none_or(|vm| event.vm.as_deref() == Some(vm))
}
