//! A VM's directory with its config and programs, and what every test waits for.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use innkeeper::Error;
use innkeeper::api::{DriverReport, ErrorKind};
use innkeeper::driver::{
    BootConfig, DiskConfig, Driver, ExitReport, MachineConfig, MachineEvent, MachinePaths, Running,
    ShareConfig,
};
use innkeeper::drivers::cloud_hypervisor::{CloudHypervisorDriver, CloudHypervisorOptions};
use innkeeper::spec::{AccelChoice, Arch, Bytes, DiskFormat, Isolation, MemoryKind};
use innkeeper::testing::pvh;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc::UnboundedReceiver;

/// How long anything may take that is waited for.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// How long bad input may take to be told.
pub const SOON: Duration = Duration::from_secs(5);

fn arch() -> Arch {
    match std::env::consts::ARCH {
        "aarch64" => Arch::Arm64,
        "riscv64" => Arch::Riscv64,
        _ => Arch::X86_64,
    }
}

/// A VM's directory, its config, and the programs that are used for it.
pub struct Bench {
    directory: tempfile::TempDir,
    options: CloudHypervisorOptions,
    pub config: MachineConfig,
    started: std::sync::Mutex<Vec<u32>>,
}

/// A test that fails leaves nothing either.
impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let log = std::fs::read_to_string(self.at("vmm.log")).unwrap_or_default();
        eprintln!("-- vmm.log\n{log}");
        for pid in self.started.lock().unwrap().iter() {
            let _ = kill_process(Pid::from_raw(*pid as i32).unwrap(), Signal::KILL);
        }
    }
}

impl Bench {
    /// With the double, told to do these things wrong.
    pub fn fake(script: &str) -> Bench {
        let bench = Bench::new(None);
        let program = env!("CARGO_BIN_EXE_fake-cloud-hypervisor");
        for name in ["cloud-hypervisor", "virtiofsd"] {
            std::os::unix::fs::symlink(program, bench.at("bin").join(name)).unwrap();
        }
        bench.script(script);
        bench
    }

    /// With the real one; none, having said why, where it can't be used.
    pub async fn real() -> Option<Bench> {
        let bench = Bench::new(Some(std::env::var_os("PATH").unwrap_or_default()));
        let report = bench.report().await;
        if report.usable {
            return Some(bench);
        }
        let why: Vec<&str> = report
            .needs
            .iter()
            .map(|need| need.without.as_str())
            .collect();
        let required = std::env::var("INNKEEPER_REQUIRE_DRIVERS").unwrap_or_default();
        assert!(
            !required
                .split(',')
                .any(|driver| driver == "cloud-hypervisor"),
            "cloud-hypervisor is required: {why:?}"
        );
        println!(
            "SKIPPED: Cloud Hypervisor can't be used here: {}",
            why.join(", ")
        );
        None
    }

    pub fn new(path: Option<std::ffi::OsString>) -> Bench {
        let directory = tempfile::Builder::new().prefix("inn").tempdir().unwrap();
        for name in ["sockets", "run", "bin"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("kernel"), pvh::kernel()).unwrap();
        let options = match path {
            Some(path) => {
                CloudHypervisorOptions::of(std::env::split_paths(&path).collect(), "this-boot")
            }
            None => CloudHypervisorOptions {
                // The double needs no KVM, so it is not tried.
                accel_override: Some("kvm".to_owned()),
                virtiofsd_candidates: vec![at("bin/virtiofsd")],
                ..CloudHypervisorOptions::of(vec![at("bin")], "this-boot")
            },
        };
        let config = MachineConfig {
            name: "guest".to_owned(),
            id: "0123456789abcdef0123456789abcdef".to_owned(),
            arch: arch(),
            machine: "cloud-hypervisor".to_owned(),
            accel: AccelChoice::Auto,
            cpu_model: None,
            cpus: 1,
            max_cpus: 1,
            memory: Bytes::mib(64),
            max_memory: Bytes::mib(64),
            memory_target: None,
            memory_kind: MemoryKind::Normal,
            boot: BootConfig::Direct {
                kernel: at("kernel"),
                initrd: None,
                cmdline: "idle".to_owned(),
            },
            disks: Vec::new(),
            drives: Vec::new(),
            nics: Vec::new(),
            shares: Vec::new(),
            consoles: Vec::new(),
            tpm: None,
            watchdog: None,
            vsock: None,
            nested: false,
            isolation: Isolation::Isolated,
            platform: at("platform"),
            paths: MachinePaths {
                sockets: at("sockets"),
                run: at("run"),
                serial_log: at("serial.log"),
                vmm_log: at("vmm.log"),
                vmm_lock: at("vmm.lock"),
            },
        };
        Bench {
            directory,
            options,
            config,
            started: std::sync::Mutex::default(),
        }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn script(&self, words: &str) {
        std::fs::write(self.at("bin/script.new"), words).unwrap();
        std::fs::rename(self.at("bin/script.new"), self.at("bin/script")).unwrap();
    }

    /// What the last letter tells the guest; the double does not read it.
    pub fn does(mut self, what: &str) -> Bench {
        if let BootConfig::Direct { cmdline, .. } = &mut self.config.boot {
            *cmdline = what.to_owned();
        }
        self
    }

    pub fn with_share(mut self) -> Bench {
        std::fs::create_dir(self.at("shared")).unwrap();
        self.config.shares.push(ShareConfig {
            tag: "shared".to_owned(),
            host: self.at("shared"),
            read_only: false,
        });
        self
    }

    pub fn disk(&self, name: &str) -> DiskConfig {
        let path = self.at(name);
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        DiskConfig::new(name, path, DiskFormat::Raw)
    }

    pub fn driver(&self) -> CloudHypervisorDriver {
        CloudHypervisorDriver::new(self.options.clone())
    }

    pub async fn report(&self) -> DriverReport {
        self.driver().probe().await
    }

    pub async fn launch(&self) -> Running {
        let driver = self.driver();
        let report = driver.probe().await;
        assert_eq!(driver.check(&self.config, &report), []);
        let mut running = driver.launch(&self.config).await.unwrap_or_else(|error| {
            panic!("{}", error.chain().join(": "));
        });
        self.started.lock().unwrap().push(running.machine.pid());
        assert_eq!(next(&mut running.events).await, MachineEvent::Running);
        running
    }

    /// A launch that must fail, soon and with these words, and leave nothing.
    pub async fn fails(&self, kind: ErrorKind, words: &[&str]) -> Error {
        let start = Instant::now();
        let result = self.driver().launch(&self.config).await;
        let error = result.map(|running| running.machine.pid()).unwrap_err();
        assert!(start.elapsed() < SOON, "it took {:?}", start.elapsed());
        let said = error.chain().join(": ");
        assert_eq!(error.kind(), kind, "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is not in: {said}");
        }
        self.nothing_left();
        error
    }

    pub async fn adopt(&self, record: &serde_json::Value) -> Running {
        self.driver()
            .adopt(&self.config, record)
            .await
            .unwrap_or_else(|error| {
                panic!("{}", error.chain().join(": "));
            })
    }

    /// Waits until the serial log holds the marker so many times.
    pub async fn marker(&self, count: usize) {
        let log = self.config.paths.serial_log.clone();
        until("the marker in the serial log", || {
            std::fs::read_to_string(&log)
                .is_ok_and(|text| text.matches(pvh::MARKER).count() >= count)
        })
        .await;
    }

    /// Checks that the lock is free, no socket is left, no process runs of this bench's programs, and nobody broke the rules.
    pub fn nothing_left(&self) {
        let lock = std::fs::File::open(&self.config.paths.vmm_lock).unwrap();
        let start = Instant::now();
        while lock.try_lock().is_err() || !processes(self.directory.path()).is_empty() {
            assert!(
                start.elapsed() < SOON,
                "left: {:?}, or the lock is held",
                processes(self.directory.path())
            );
            // poll: killed processes are gone, and the lock with them
            std::thread::sleep(Duration::from_millis(5));
        }
        let left: Vec<PathBuf> = std::fs::read_dir(self.at("sockets"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert_eq!(left, Vec::<PathBuf>::new());
        self.nothing_violated();
    }

    pub fn nothing_violated(&self) {
        let violations = std::fs::read_to_string(self.at("bin/violations")).unwrap_or_default();
        assert_eq!(violations, "");
    }

    pub async fn end(&self, mut running: Running) -> ExitReport {
        running.machine.kill().await.unwrap();
        let report = exited(&mut running.events).await;
        assert!(report.expected);
        self.nothing_left();
        report
    }
}

/// Process ids of everything that was started from a directory or with a path in it, and lives.
pub fn processes(directory: &Path) -> Vec<String> {
    let text = directory.to_str().unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        if String::from_utf8_lossy(&line).contains(text) {
            found.push(entry.file_name().into_string().unwrap());
        }
    }
    found
}

pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "waited in vain for {what}");
        // poll: the condition that is named
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub async fn next(events: &mut UnboundedReceiver<MachineEvent>) -> MachineEvent {
    tokio::time::timeout(DEADLINE, events.recv())
        .await
        .expect("an event in time")
        .expect("an event before the end")
}

/// Takes the end, and checks that nothing follows.
pub async fn exited(events: &mut UnboundedReceiver<MachineEvent>) -> ExitReport {
    let event = next(events).await;
    let MachineEvent::Exited(report) = event else {
        panic!("{event:?} instead of the end");
    };
    assert_eq!(events.recv().await, None);
    report
}
