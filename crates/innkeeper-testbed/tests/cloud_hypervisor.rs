//! The Cloud Hypervisor driver: each trap of Cloud Hypervisor against its strict double, and the real one, where it is on the PATH, with a
//! guest of a hundred bytes.
//!
//! A test of the real one says why it is skipped, and fails if `INNKEEPER_REQUIRE_DRIVERS` names `cloud-hypervisor`. A test removes what it
//! made, and checks that neither a process nor a socket is left.
#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use innkeeper::Error;
use innkeeper::api::{Capability, DriverReport, ErrorKind};
use innkeeper::driver::{
    BootConfig, DiskConfig, Driver, ExitReport, MachineConfig, MachineEvent, MachinePaths, Running,
    SavedMachine, ShareConfig,
};
use innkeeper::drivers::cloud_hypervisor::{CloudHypervisorDriver, CloudHypervisorOptions};
use innkeeper::spec::{
    AccelChoice, Arch, Bytes, DiskCache, DiskFormat, DiskLimits, Isolation, MemoryKind,
    WatchdogAction,
};
use innkeeper::testing::pvh;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc::UnboundedReceiver;

/// How long anything may take that is waited for.
const DEADLINE: Duration = Duration::from_secs(30);

/// How long bad input may take to be told.
const SOON: Duration = Duration::from_secs(5);

fn arch() -> Arch {
    match std::env::consts::ARCH {
        "aarch64" => Arch::Arm64,
        "riscv64" => Arch::Riscv64,
        _ => Arch::X86_64,
    }
}

/// A VM's directory, its config, and the programs that are used for it.
struct Bench {
    directory: tempfile::TempDir,
    options: CloudHypervisorOptions,
    config: MachineConfig,
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
    fn fake(script: &str) -> Bench {
        let bench = Bench::new(None);
        let program = env!("CARGO_BIN_EXE_fake-cloud-hypervisor");
        for name in ["cloud-hypervisor", "virtiofsd"] {
            std::os::unix::fs::symlink(program, bench.at("bin").join(name)).unwrap();
        }
        bench.script(script);
        bench
    }

    /// With the real one; none, having said why, where it can't be used.
    async fn real() -> Option<Bench> {
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

    fn new(path: Option<std::ffi::OsString>) -> Bench {
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

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn script(&self, words: &str) {
        std::fs::write(self.at("bin/script.new"), words).unwrap();
        std::fs::rename(self.at("bin/script.new"), self.at("bin/script")).unwrap();
    }

    /// What the last letter tells the guest; the double does not read it.
    fn does(mut self, what: &str) -> Bench {
        if let BootConfig::Direct { cmdline, .. } = &mut self.config.boot {
            *cmdline = what.to_owned();
        }
        self
    }

    fn with_share(mut self) -> Bench {
        std::fs::create_dir(self.at("shared")).unwrap();
        self.config.shares.push(ShareConfig {
            tag: "shared".to_owned(),
            host: self.at("shared"),
            read_only: false,
        });
        self
    }

    fn disk(&self, name: &str) -> DiskConfig {
        let path = self.at(name);
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        DiskConfig::new(name, path, DiskFormat::Raw)
    }

    fn driver(&self) -> CloudHypervisorDriver {
        CloudHypervisorDriver::new(self.options.clone())
    }

    async fn report(&self) -> DriverReport {
        self.driver().probe().await
    }

    async fn launch(&self) -> Running {
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
    async fn fails(&self, kind: ErrorKind, words: &[&str]) -> Error {
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

    async fn adopt(&self, record: &serde_json::Value) -> Running {
        self.driver()
            .adopt(&self.config, record)
            .await
            .unwrap_or_else(|error| {
                panic!("{}", error.chain().join(": "));
            })
    }

    /// Waits until the serial log holds the marker so many times.
    async fn marker(&self, count: usize) {
        let log = self.config.paths.serial_log.clone();
        until("the marker in the serial log", || {
            std::fs::read_to_string(&log)
                .is_ok_and(|text| text.matches(pvh::MARKER).count() >= count)
        })
        .await;
    }

    /// Checks that the lock is free, no socket is left, no process runs of this bench's programs, and nobody broke the rules.
    fn nothing_left(&self) {
        let lock = std::fs::File::open(&self.config.paths.vmm_lock).unwrap();
        let start = Instant::now();
        // poll: killed processes are gone
        while lock.try_lock().is_err() || !processes(self.directory.path()).is_empty() {
            assert!(
                start.elapsed() < SOON,
                "left: {:?}, or the lock is held",
                processes(self.directory.path())
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        let left: Vec<PathBuf> = std::fs::read_dir(self.at("sockets"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert_eq!(left, Vec::<PathBuf>::new());
        self.nothing_violated();
    }

    fn nothing_violated(&self) {
        let violations = std::fs::read_to_string(self.at("bin/violations")).unwrap_or_default();
        assert_eq!(violations, "");
    }

    async fn end(&self, mut running: Running) -> ExitReport {
        running.machine.kill().await.unwrap();
        let report = exited(&mut running.events).await;
        assert!(report.expected);
        self.nothing_left();
        report
    }
}

/// Process ids of everything that was started from a directory or with a path in it, and lives.
fn processes(directory: &Path) -> Vec<String> {
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

async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    // poll: the condition that is named
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn next(events: &mut UnboundedReceiver<MachineEvent>) -> MachineEvent {
    tokio::time::timeout(DEADLINE, events.recv())
        .await
        .expect("an event in time")
        .expect("an event before the end")
}

/// Takes the end, and checks that nothing follows.
async fn exited(events: &mut UnboundedReceiver<MachineEvent>) -> ExitReport {
    let event = next(events).await;
    let MachineEvent::Exited(report) = event else {
        panic!("{event:?} instead of the end");
    };
    assert_eq!(events.recv().await, None);
    report
}

#[tokio::test]
async fn a_life_breaks_no_rule() {
    let mut bench = Bench::fake("events=noisy");
    bench.config.disks = vec![bench.disk("root"), bench.disk("data")];
    bench.config.disks[1].cache = DiskCache::None;
    bench.config.disks[1].limits = DiskLimits {
        requests: Some(100),
        bandwidth: Some(Bytes::mib(1)),
    };
    bench.config.memory_target = Some(Bytes::mib(32));
    bench.config.watchdog = Some(WatchdogAction::Reset);
    bench.config.max_cpus = 4;
    bench.config.max_memory = Bytes::mib(64 + 256);
    bench.config.nested = false;
    let mut running = bench.launch().await;
    bench.marker(1).await;
    let machine = &running.machine;
    assert_eq!(machine.accel(), "kvm");

    let pause = machine.pause().unwrap();
    pause.pause().await.unwrap();
    assert_eq!(next(&mut running.events).await, MachineEvent::Paused);
    pause.resume().await.unwrap();
    assert_eq!(next(&mut running.events).await, MachineEvent::Resumed);

    let totals = machine
        .block_statistics()
        .unwrap()
        .block_totals()
        .await
        .unwrap();
    assert_eq!((totals.read_bytes, totals.written_bytes), (4096, 512));

    let resize = machine.resize().unwrap();
    resize.set_cpus(3).await.unwrap();
    resize.set_memory(Bytes::mib(64 + 128)).await.unwrap();
    let size = resize.size().await.unwrap();
    assert_eq!((size.cpus, size.memory), (3, Bytes::mib(192)));
    for bad in [63, 65, 64 + 129, 1000] {
        let error = resize.set_memory(Bytes::mib(bad)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput);
    }
    for bad in [0, 5] {
        let error = resize.set_cpus(bad).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput);
    }

    let balloon = machine.balloon().unwrap();
    balloon.set_target(Bytes::mib(100)).await.unwrap();
    assert_eq!(balloon.actual().await.unwrap(), Bytes::mib(100));
    assert!(machine.vsock().is_none());

    machine.power_button().await.unwrap();
    bench.script("button=panic");
    machine.power_button().await.unwrap();
    assert_eq!(next(&mut running.events).await, MachineEvent::GuestPanicked);
    bench.script("button=power-off");
    machine.power_button().await.unwrap();
    assert_eq!(next(&mut running.events).await, MachineEvent::GuestShutdown);
    machine.quit().await.unwrap();
    let report = exited(&mut running.events).await;
    assert_eq!((report.code, report.expected), (Some(0), true));
    bench.nothing_left();
}

#[tokio::test]
async fn one_that_is_too_old_is_refused() {
    let bench = Bench::fake("version=51.1.0");
    let driver = bench.driver();
    let start = Instant::now();
    let report = driver.probe().await;
    let reasons = driver.check(&bench.config, &report);
    assert!(start.elapsed() < SOON);
    assert!(!report.usable);
    assert!(
        reasons[0].reason.contains("51.1.0 is too old: 52.0"),
        "{reasons:?}"
    );
    // Put there after the probe: it is found out at the launch.
    let bench = Bench::fake("");
    let driver = bench.driver();
    driver.probe().await;
    bench.script("version=51.1.0");
    let error = driver.launch(&bench.config).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("51.1.0"), "{error}");
    bench.nothing_left();
}

#[tokio::test]
async fn without_landlock_it_is_not_asked_for() {
    let bench = Bench::fake("landlock=none");
    let report = bench.report().await;
    assert!(report.usable);
    assert!(
        report.notes[0].contains("seccomp alone"),
        "{:?}",
        report.notes
    );
    let running = bench.launch().await;
    assert_eq!(running.record["confined"], false);
    bench.end(running).await;
    let bench = Bench::fake("");
    let running = bench.launch().await;
    assert_eq!(running.record["confined"], true);
    bench.end(running).await;
}

#[tokio::test]
async fn what_it_lacks_is_said_and_refused_by_its_field() {
    let mut bench = Bench::fake("");
    let report = bench.report().await;
    let lacks = |capability: Capability| {
        let entries = &report.capabilities;
        let entry = entries.iter().find(|entry| entry.capability == capability);
        entry.unwrap().lacking.clone().unwrap_or_default()
    };
    assert!(lacks(Capability::NetworkUser).contains("write networks: []"));
    assert_eq!(lacks(Capability::Suspend), "");
    bench.config.watchdog = Some(WatchdogAction::Pause);
    bench.config.cpu_model = Some("Skylake".to_owned());
    bench.config.accel = AccelChoice::Tcg;
    bench.config.max_memory = Bytes::mib(65);
    bench.config.boot = BootConfig::Bios;
    bench.config.disks = vec![DiskConfig {
        format: DiskFormat::Qcow2,
        cache: DiskCache::Unsafe,
        ..DiskConfig::new("root", bench.at("root"), DiskFormat::Raw)
    }];
    let reasons = bench.driver().check(&bench.config, &report);
    let mut fields: Vec<&str> = reasons.iter().map(|reason| reason.field.as_str()).collect();
    fields.sort_unstable();
    fields.dedup();
    assert_eq!(
        fields,
        [
            "accel",
            "boot.firmware",
            "cpu_model",
            "disks.root.cache",
            "disks.root.format",
            "max_memory",
            "watchdog"
        ]
    );
}

#[tokio::test]
async fn a_create_that_fails_leaves_no_config_for_the_next() {
    let bench = Bench::fake("create=fail");
    bench
        .fails(ErrorKind::Failure, &["guest", "Cannot apply landlock"])
        .await;
    bench.script("");
    let running = bench.launch().await;
    bench.end(running).await;
}

#[tokio::test]
async fn errors_of_every_shape_are_told() {
    for (script, words) in [
        ("boot=fail", "Cannot open the kernel file"),
        ("boot=fail-object", "Internal Server Error"),
        ("boot=fail-empty", "without a reason (status 500)"),
        ("boot=die", "exit status: 3"),
    ] {
        let bench = Bench::fake(script);
        bench.fails(ErrorKind::Failure, &["guest", words]).await;
    }
}

#[tokio::test]
async fn a_dead_virtiofsd_is_told_at_once_and_not_after_a_minute() {
    let bench = Bench::fake("virtiofsd=dead").with_share();
    let error = bench
        .fails(ErrorKind::Failure, &["virtiofsd", "ended"])
        .await;
    assert!(error.to_string().contains("told to be dead"), "{error}");
    let bench = Bench::fake("virtiofsd=mute").with_share();
    bench
        .fails(ErrorKind::TimedOut, &["virtiofsd", "does not answer"])
        .await;
    // Nothing is lost by it.
    bench.script("");
    let running = bench.launch().await;
    bench.end(running).await;
}

#[tokio::test]
async fn a_guest_with_a_share_boots_anew() {
    let bench = Bench::fake("").with_share();
    let mut running = bench.launch().await;
    bench.script("button=reboot");
    for count in 2..5 {
        // The double of virtiofsd ends when it is disconnected, as the real one does.
        running.machine.power_button().await.unwrap();
        assert_eq!(next(&mut running.events).await, MachineEvent::GuestReset);
        bench.marker(count).await;
    }
    bench.end(running).await;
}

#[tokio::test]
async fn a_power_off_before_the_answer_is_a_power_off() {
    let bench = Bench::fake("boot=power-off");
    let mut running = bench.launch().await;
    assert_eq!(next(&mut running.events).await, MachineEvent::GuestShutdown);
    // Too late, which is no error.
    running.machine.power_button().await.unwrap();
    running.machine.quit().await.unwrap();
    assert!(exited(&mut running.events).await.expected);
    bench.nothing_left();
}

#[tokio::test]
async fn a_crash_that_looks_like_a_power_off_is_told_as_an_end() {
    let bench = Bench::fake("button=crash");
    let mut running = bench.launch().await;
    let _ = running.machine.power_button().await;
    let report = exited(&mut running.events).await;
    assert_eq!((report.code, report.expected), (Some(1), false));
    assert!(report.log_tail.contains("a thread panicked"), "{report:?}");
    bench.nothing_left();
}

#[tokio::test]
async fn a_cpu_that_is_still_leaving_is_a_conflict() {
    let mut bench = Bench::fake("resize=pending");
    bench.config.max_cpus = 2;
    let running = bench.launch().await;
    let error = running
        .machine
        .resize()
        .unwrap()
        .set_cpus(2)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    bench.script("");
    running.machine.resize().unwrap().set_cpus(2).await.unwrap();
    bench.end(running).await;
}

#[tokio::test]
async fn a_disk_comes_and_goes_and_its_name_is_free_when_the_guest_says_so() {
    let bench = Bench::fake("eject=never");
    let data = bench.disk("data");
    let mut running = bench.launch().await;
    let record = running.record.clone();
    let hotplug = running.machine.hotplug().unwrap();
    hotplug.attach_disk(&data).await.unwrap();
    let error = hotplug.attach_disk(&data).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let error = hotplug.request_detach_disk("other").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    hotplug.request_detach_disk("data").await.unwrap();
    let error = hotplug.attach_disk(&data).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    drop(running);

    // A keeper that did not ask for it finds the name taken all the same.
    running = bench.adopt(&record).await;
    assert_eq!(next(&mut running.events).await, MachineEvent::Running);
    let hotplug = running.machine.hotplug().unwrap();
    let error = hotplug.attach_disk(&data).await.unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::Conflict,
        "{}",
        error.chain().join(": ")
    );
    bench.script("");
    // The double's guest lets go at its next chance.
    hotplug.attach_disk(&data).await.unwrap();
    assert_eq!(
        next(&mut running.events).await,
        MachineEvent::Detached("data".to_owned())
    );
    hotplug.request_detach_disk("data").await.unwrap();
    assert_eq!(
        next(&mut running.events).await,
        MachineEvent::Detached("data".to_owned())
    );
    bench.end(running).await;
}

#[tokio::test]
async fn a_call_that_stalls_keeps_nobody_from_killing() {
    let bench = Bench::fake("");
    let mut running = bench.launch().await;
    bench.script("calls=stall");
    let pause = running.machine.pause().unwrap();
    let error = pause.pause().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let event = next(&mut running.events).await;
    assert!(matches!(event, MachineEvent::ControlLost(_)), "{event:?}");
    bench.script("");
    assert_eq!(next(&mut running.events).await, MachineEvent::ControlBack);
    // What it was asked while it stalled it carried out.
    assert_eq!(next(&mut running.events).await, MachineEvent::Paused);

    bench.script("calls=stall");
    let machine = &running.machine;
    let start = Instant::now();
    let (stalled, killed) = tokio::join!(machine.power_button(), machine.kill());
    assert!(stalled.is_err());
    killed.unwrap();
    assert!(start.elapsed() < SOON, "killed after {:?}", start.elapsed());
    exited(&mut running.events).await;
    bench.nothing_left();
}

#[tokio::test]
async fn one_that_stalls_is_not_adopted_and_can_be_killed_by_its_record() {
    let bench = Bench::fake("");
    let running = bench.launch().await;
    let record = running.record.clone();
    drop(running);
    bench.script("calls=stall");
    let start = Instant::now();
    let driver = bench.driver();
    let error = driver
        .adopt(&bench.config, &record)
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(start.elapsed() < SOON);
    driver.kill_record(&record).await.unwrap();
    driver.kill_record(&record).await.unwrap();
    let error = driver
        .adopt(&bench.config, &record)
        .await
        .map(drop)
        .unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::NotFound),
        "{}",
        error.chain().join(": ")
    );
    bench.nothing_left();
}

#[tokio::test]
async fn what_happens_while_no_keeper_listens_is_told_to_the_next() {
    let bench = Bench::fake("button=panic");
    let running = bench.launch().await;
    let record = running.record.clone();
    let machine = running.machine;
    drop(running.events);
    machine.power_button().await.unwrap();
    bench.script("button=power-off");
    machine.power_button().await.unwrap();
    drop(machine);
    let mut running = bench.adopt(&record).await;
    assert_eq!(next(&mut running.events).await, MachineEvent::GuestShutdown);
    running.machine.quit().await.unwrap();
    loop {
        // Who read the panic first is not determined: the first supervisor may have been quicker than its end.
        match next(&mut running.events).await {
            MachineEvent::GuestPanicked => {}
            MachineEvent::Exited(report) => break assert!(report.expected),
            other => panic!("{other:?}"),
        }
    }
    bench.nothing_left();
}

async fn saved(bench: &Bench) -> SavedMachine {
    let mut running = bench.launch().await;
    let directory = bench.at("saved");
    std::fs::create_dir(&directory).unwrap();
    let suspend = running.machine.suspend().unwrap();
    assert_eq!(suspend.obstacle().await.unwrap(), None);
    let error = suspend.save(&directory).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "it runs");
    running.machine.pause().unwrap().pause().await.unwrap();
    assert_eq!(next(&mut running.events).await, MachineEvent::Paused);
    let saved = suspend.save(&directory).await.unwrap();
    let mut names: Vec<_> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["config.json", "memory-ranges", "state.json"]);
    bench.end(running).await;
    saved
}

#[tokio::test]
async fn a_saved_machine_comes_back_and_its_files_are_only_read() {
    let mut bench = Bench::fake("");
    bench.config.disks = vec![bench.disk("root")];
    let saved = saved(&bench).await;
    let before = std::fs::read(saved.directory.join("config.json")).unwrap();
    // The disk was moved since; without userfaultfd all of memory is read at once.
    std::fs::rename(bench.at("root"), bench.at("elsewhere")).unwrap();
    bench.config.disks[0].path = bench.at("elsewhere");
    for script in ["", "restore=no-userfaultfd"] {
        bench.script(script);
        let driver = bench.driver();
        let report = driver.probe().await;
        let restore = driver.restore().unwrap();
        assert_eq!(restore.check_saved(&bench.config, &saved, &report), []);
        let mut running = restore.restore(&bench.config, &saved).await.unwrap();
        assert_eq!(next(&mut running.events).await, MachineEvent::Paused);
        running.machine.pause().unwrap().resume().await.unwrap();
        assert_eq!(next(&mut running.events).await, MachineEvent::Resumed);
        bench.end(running).await;
    }
    assert_eq!(
        std::fs::read(saved.directory.join("config.json")).unwrap(),
        before
    );
}

#[tokio::test]
async fn a_state_of_another_version_or_shape_is_refused_and_kept() {
    let mut bench = Bench::fake("");
    let saved = saved(&bench).await;
    let driver = bench.driver();
    let report = driver.probe().await;
    let restore = driver.restore().unwrap();
    let older = SavedMachine {
        version: "52.0.0".to_owned(),
        ..saved.clone()
    };
    let start = Instant::now();
    let reasons = restore.check_saved(&bench.config, &older, &report);
    assert!(reasons[0].reason.contains("52.0.0"), "{reasons:?}");
    let error = restore
        .restore(&bench.config, &older)
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    // The binary was replaced after the probe.
    bench.script("version=55.0.0");
    let error = restore
        .restore(&bench.config, &saved)
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("55.0.0"), "{error}");
    bench.nothing_left();
    bench.script("");
    // Broken files.
    std::fs::rename(saved.directory.join("state.json"), bench.at("kept")).unwrap();
    let error = restore
        .restore(&bench.config, &saved)
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput);
    assert!(
        error.to_string().contains("state.json is missing"),
        "{error}"
    );
    assert!(start.elapsed() < SOON);
    bench.nothing_left();
    std::fs::rename(bench.at("kept"), saved.directory.join("state.json")).unwrap();

    bench.config.memory = Bytes::mib(128);
    bench.config.max_memory = Bytes::mib(128);
    bench.config.disks = vec![bench.disk("data")];
    let reasons = restore.check_saved(&bench.config, &saved, &report);
    let fields: Vec<&str> = reasons.iter().map(|reason| reason.field.as_str()).collect();
    assert_eq!(fields, ["memory", "max_memory", "disks"]);
}

#[tokio::test]
async fn a_saved_config_from_elsewhere_opens_no_file_of_the_host() {
    let bench = Bench::fake("");
    let saved = saved(&bench).await;
    let file = saved.directory.join("config.json");
    let text = std::fs::read(&file).unwrap();
    let honest: serde_json::Value = serde_json::from_slice(&text).unwrap();
    for (field, value) in [
        (
            "disks",
            serde_json::json!([{ "id": "disk-x", "path": "/etc/shadow" }]),
        ),
        (
            "devices",
            serde_json::json!([{ "path": "/sys/bus/pci/devices/0000:00:02.0" }]),
        ),
        ("pmem", serde_json::json!([{ "file": "/etc/shadow" }])),
    ] {
        let mut config = honest.clone();
        config[field] = value;
        std::fs::write(&file, config.to_string()).unwrap();
        let driver = bench.driver();
        let restore = driver.restore().unwrap();
        let error = restore
            .restore(&bench.config, &saved)
            .await
            .map(drop)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput, "{field}");
        bench.nothing_left();
    }
}

#[tokio::test]
async fn a_share_is_an_obstacle_to_saving() {
    let bench = Bench::fake("").with_share();
    let running = bench.launch().await;
    let suspend = running.machine.suspend().unwrap();
    let why = suspend.obstacle().await.unwrap().unwrap();
    assert_eq!(why.field, "shares");
    bench.end(running).await;
}

#[tokio::test]
async fn a_launch_that_is_dropped_leaves_nothing() {
    let bench = Bench::fake("virtiofsd=mute").with_share();
    let driver = bench.driver();
    let launch = driver.launch(&bench.config);
    assert!(
        tokio::time::timeout(Duration::from_millis(300), launch)
            .await
            .is_err()
    );
    bench.nothing_left();
}

#[tokio::test]
async fn a_second_launch_is_refused_and_disturbs_nothing() {
    let bench = Bench::fake("");
    let mut running = bench.launch().await;
    let error = bench
        .driver()
        .launch(&bench.config)
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    running.machine.pause().unwrap().pause().await.unwrap();
    assert_eq!(next(&mut running.events).await, MachineEvent::Paused);
    bench.end(running).await;
}

#[tokio::test]
async fn real_a_guest_powers_off_and_is_quit() {
    let Some(bench) = Bench::real().await else {
        return;
    };
    let bench = bench.does("p");
    let mut running = bench.launch().await;
    bench.marker(1).await;
    assert_eq!(next(&mut running.events).await, MachineEvent::GuestShutdown);
    running.machine.power_button().await.unwrap();
    running.machine.quit().await.unwrap();
    let report = exited(&mut running.events).await;
    assert_eq!((report.code, report.expected), (Some(0), true));
    bench.nothing_left();
}

#[tokio::test]
async fn real_a_guest_resets_and_its_log_is_kept() {
    let Some(bench) = Bench::real().await else {
        return;
    };
    let bench = bench.does("r");
    let mut running = bench.launch().await;
    for _ in 0..3 {
        assert_eq!(next(&mut running.events).await, MachineEvent::GuestReset);
    }
    bench.marker(3).await;
    running.machine.kill().await.unwrap();
    // Resets that were told before the end.
    while !matches!(next(&mut running.events).await, MachineEvent::Exited(_)) {}
    bench.nothing_left();
}

#[tokio::test]
async fn real_pauses_resumes_is_asked_and_killed() {
    let Some(mut bench) = Bench::real().await else {
        return;
    };
    bench.config.disks = vec![bench.disk("root")];
    bench.config.disks[0].limits.bandwidth = Some(Bytes::mib(1));
    bench.config.memory_target = Some(Bytes::mib(32));
    bench.config.watchdog = Some(WatchdogAction::Reset);
    bench.config.vsock = Some(42);
    bench.config.max_cpus = 2;
    bench.config.max_memory = Bytes::mib(64 + 128);
    let bench = bench.does("h");
    let mut running = bench.launch().await;
    bench.marker(1).await;
    let machine = &running.machine;
    let pause = machine.pause().unwrap();
    pause.pause().await.unwrap();
    assert_eq!(next(&mut running.events).await, MachineEvent::Paused);
    let dots = || {
        std::fs::metadata(&bench.config.paths.serial_log)
            .unwrap()
            .len()
    };
    let before = dots();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(dots(), before, "the CPUs stand still");
    pause.resume().await.unwrap();
    assert_eq!(next(&mut running.events).await, MachineEvent::Resumed);
    until("a dot after the pause", || dots() > before).await;

    machine.power_button().await.unwrap();
    machine
        .block_statistics()
        .unwrap()
        .block_totals()
        .await
        .unwrap();
    machine.resize().unwrap().set_cpus(2).await.unwrap();
    machine
        .resize()
        .unwrap()
        .set_memory(Bytes::mib(192))
        .await
        .unwrap();
    assert_eq!(machine.resize().unwrap().size().await.unwrap().cpus, 2);
    machine
        .balloon()
        .unwrap()
        .set_target(Bytes::mib(48))
        .await
        .unwrap();
    machine.balloon().unwrap().actual().await.unwrap();
    let error = machine
        .vsock()
        .unwrap()
        .connect(7)
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    let hotplug = machine.hotplug().unwrap();
    let data = bench.disk("data");
    hotplug.attach_disk(&data).await.unwrap();
    hotplug.request_detach_disk("data").await.unwrap();
    // This guest lets go of nothing.
    let error = hotplug.attach_disk(&data).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    bench.end(running).await;
}

#[tokio::test]
async fn real_dropped_it_runs_on_and_is_adopted() {
    let Some(bench) = Bench::real().await else {
        return;
    };
    let bench = bench.does("h");
    let mut running = bench.launch().await;
    let record = running.record.clone();
    drop(running);
    running = bench.adopt(&record).await;
    assert_eq!(next(&mut running.events).await, MachineEvent::Running);
    let pid = Pid::from_raw(running.machine.pid() as i32).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    assert!(!exited(&mut running.events).await.expected);
    bench.nothing_left();
}

#[tokio::test]
async fn real_sigterm_is_an_end_and_no_power_off() {
    let Some(bench) = Bench::real().await else {
        return;
    };
    let mut running = bench.launch().await;
    bench.marker(1).await;
    let pid = Pid::from_raw(running.machine.pid() as i32).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let report = exited(&mut running.events).await;
    assert!(!report.expected);
    bench.nothing_left();
}

#[tokio::test]
async fn real_a_machine_is_saved_and_comes_back_twice() {
    let Some(mut bench) = Bench::real().await else {
        return;
    };
    bench.config.disks = vec![bench.disk("root")];
    bench.config.vsock = Some(42);
    let bench = bench.does("h");
    let saved = saved(&bench).await;
    for _ in 0..2 {
        let driver = bench.driver();
        let restore = driver.restore().unwrap();
        let start = Instant::now();
        let restored = restore.restore(&bench.config, &saved).await;
        let mut running = restored.unwrap_or_else(|error| panic!("{}", error.chain().join(": ")));
        println!("restored in {:?}", start.elapsed());
        assert_eq!(next(&mut running.events).await, MachineEvent::Paused);
        let dots = || {
            std::fs::metadata(&bench.config.paths.serial_log)
                .unwrap()
                .len()
        };
        let before = dots();
        running.machine.pause().unwrap().resume().await.unwrap();
        assert_eq!(next(&mut running.events).await, MachineEvent::Resumed);
        until("a dot after the restore", || dots() > before).await;
        bench.end(running).await;
    }
}

#[tokio::test]
async fn real_bad_input_is_told_soon() {
    let Some(mut bench) = Bench::real().await else {
        return;
    };
    std::fs::write(bench.at("kernel"), "no kernel").unwrap();
    bench.fails(ErrorKind::Failure, &["guest"]).await;
    bench.config.boot = BootConfig::Direct {
        kernel: bench.at("missing"),
        initrd: None,
        cmdline: String::new(),
    };
    let error = bench
        .driver()
        .launch(&bench.config)
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("missing"), "{error}");
}

#[tokio::test]
async fn real_a_tpm_is_there() {
    let Some(mut bench) = Bench::real().await else {
        return;
    };
    let report = bench.report().await;
    let tpm = report
        .capabilities
        .iter()
        .find(|entry| entry.capability == Capability::Tpm);
    if let Some(why) = &tpm.unwrap().lacking {
        println!("SKIPPED: {why}");
        return;
    }
    bench.config.tpm = Some(bench.at("tpm"));
    let bench = bench.does("r");
    let mut running = bench.launch().await;
    // It is connected to anew when the guest boots anew.
    for _ in 0..2 {
        assert_eq!(next(&mut running.events).await, MachineEvent::GuestReset);
    }
    let why = running.machine.suspend().unwrap().obstacle().await.unwrap();
    assert_eq!(why.unwrap().field, "tpm");
    running.machine.kill().await.unwrap();
    // Resets that were told before the end.
    while !matches!(next(&mut running.events).await, MachineEvent::Exited(_)) {}
    bench.nothing_left();
}
