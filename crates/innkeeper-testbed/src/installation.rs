//! An installation for one test: directories under a short path, a host with the fake drivers, keepers that know them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use innkeeper::api::Capability;
use innkeeper::drivers::fake::{FakeDriver, FakeName, FakeOptions};
use innkeeper::{Host, HostBuilder};

/// Variable by which keepers get the fake drivers: a JSON list of options.
const FAKES: &str = "INNKEEPER_TESTBED_FAKES";

/// The programs of this package, as cargo names them to tests.
#[derive(Debug, Clone, Copy)]
pub struct Programs {
    /// `testbed`.
    pub testbed: &'static str,
    /// `fake-hypervisor`.
    pub fake_hypervisor: &'static str,
}

/// An installation, removed when it is dropped.
#[derive(Debug)]
pub struct Installation {
    opener: Opener,
    // Last: what is in it goes when nobody needs it any more.
    _directory: tempfile::TempDir,
}

/// Opens the host of an installation; must not be used after the installation is gone.
#[derive(Debug, Clone)]
pub struct Opener {
    directory: PathBuf,
    programs: Programs,
    fakes: Vec<FakeOptions>,
    accel: Option<String>,
}

/// Makes the options of a fake driver.
pub fn fake_options(
    name: FakeName,
    programs: Programs,
    agent: Option<PathBuf>,
    violations: &Path,
) -> FakeOptions {
    FakeOptions {
        name,
        program: programs.fake_hypervisor.into(),
        agent,
        violations: violations.to_owned(),
        lacking: match name {
            FakeName::Fake => Vec::new(),
            FakeName::FakePoor => vec![
                Capability::BootUefi,
                Capability::BootBios,
                Capability::Disks,
                Capability::PortForward,
                Capability::ShareVirtiofs,
                Capability::PinnedMachine,
                Capability::Adoption,
                Capability::Pause,
                Capability::Suspend,
                Capability::CpuHotplug,
                Capability::MemoryHotplug,
                Capability::Balloon,
                Capability::DiskHotplug,
                Capability::Drive,
                Capability::NetworkHotplug,
                Capability::Consoles,
            ],
        },
    }
}

impl Installation {
    /// Makes one with these fake drivers, whose breaches of the contract go to a file of its own.
    pub fn new(
        programs: Programs,
        fakes: &[FakeName],
        agent: Option<PathBuf>,
    ) -> std::io::Result<Installation> {
        // Sockets need a short path, whatever the directory for temporary files is.
        let directory = tempfile::Builder::new().prefix("ik").tempdir_in("/tmp")?;
        let violations = directory.path().join("violations");
        let fakes = fakes
            .iter()
            .map(|name| fake_options(*name, programs, agent.clone(), &violations))
            .collect();
        let accel = std::env::var("INNKEEPER_ACCEL")
            .ok()
            .filter(|value| !value.is_empty());
        let opener = Opener {
            directory: directory.path().to_owned(),
            programs,
            fakes,
            accel,
        };
        Ok(Installation {
            opener,
            _directory: directory,
        })
    }

    /// Returns what opens its host.
    pub fn opener(&self) -> Opener {
        self.opener.clone()
    }

    /// Opens its host; with a boot, as if the computer had been restarted since.
    pub fn open(&self, boot: Option<&str>) -> innkeeper::Result<Host> {
        self.opener.open(boot)
    }

    /// Returns the directory of all state.
    pub fn home(&self) -> PathBuf {
        self.opener.home()
    }

    /// Returns the directory for sockets.
    pub fn runtime(&self) -> PathBuf {
        self.opener.runtime()
    }

    /// Returns a directory in which the test may write; it is there once the host was opened.
    pub fn scratch(&self) -> PathBuf {
        self.opener.scratch()
    }

    /// Returns the variables that a program of this installation needs.
    pub fn environment(&self) -> Vec<(String, String)> {
        self.opener.environment()
    }

    /// Returns the breaches of the driver contract so far, one line each.
    pub fn violations(&self) -> Vec<String> {
        let text =
            std::fs::read_to_string(self.opener.directory.join("violations")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

impl Opener {
    fn home(&self) -> PathBuf {
        self.directory.join("home")
    }

    fn runtime(&self) -> PathBuf {
        self.directory.join("run")
    }

    fn scratch(&self) -> PathBuf {
        self.directory.join("scratch")
    }

    fn environment(&self) -> Vec<(String, String)> {
        let mut variables = vec![
            (
                "INNKEEPER_HOME".to_owned(),
                self.home().display().to_string(),
            ),
            (
                "INNKEEPER_RUNTIME".to_owned(),
                self.runtime().display().to_string(),
            ),
            ("PATH".to_owned(), std::env::var("PATH").unwrap_or_default()),
            (
                FAKES.to_owned(),
                serde_json::to_string(&self.fakes).unwrap_or_default(),
            ),
        ];
        if let Some(accel) = &self.accel {
            variables.push(("INNKEEPER_ACCEL".to_owned(), accel.clone()));
        }
        if let Some(libexec) = crate::libexec() {
            variables.push((
                "INNKEEPER_LIBEXEC".to_owned(),
                libexec.display().to_string(),
            ));
        }
        variables
    }

    /// Opens the host; with a boot, as if the computer had been restarted since.
    pub fn open(&self, boot: Option<&str>) -> innkeeper::Result<Host> {
        std::fs::create_dir_all(self.scratch()).map_err(|error| {
            innkeeper::Error::io(format!("can't make {}", self.scratch().display()), error)
        })?;
        let mut builder = Host::builder()
            .home(self.home())
            .runtime(self.runtime())
            .helper(self.programs.testbed)
            .accel(self.accel.clone());
        if let Some(boot) = boot {
            builder = builder.boot_id(boot);
        }
        for options in &self.fakes {
            builder = builder.driver(Arc::new(FakeDriver::new(options.clone())));
        }
        for (name, value) in self.environment() {
            if name == FAKES {
                builder = builder.helper_environment(name, value);
            }
        }
        builder.from_environment().open()
    }
}

/// Returns the builder of a host with the fake drivers that the environment names: for the programs of an installation.
///
/// Errors: in words.
pub fn builder_from_environment() -> Result<HostBuilder, String> {
    let mut builder = Host::builder();
    if let Ok(text) = std::env::var(FAKES) {
        let fakes: Vec<FakeOptions> =
            serde_json::from_str(&text).map_err(|error| format!("{FAKES}: {error}"))?;
        for options in fakes {
            builder = builder.driver(Arc::new(FakeDriver::new(options)));
        }
        builder = builder.helper_environment(FAKES, text);
    }
    Ok(builder)
}

/// Opens the host that the environment describes, with its fake drivers.
///
/// Errors: in words.
pub fn host_from_environment() -> Result<Host, String> {
    builder_from_environment()?
        .from_environment()
        .open()
        .map_err(|error| error.chain().join(": "))
}
