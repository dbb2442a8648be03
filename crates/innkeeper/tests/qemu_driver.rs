//! The QEMU driver on a real QEMU, with a guest of a hundred bytes that the tests write themselves.
//!
//! ```text
//!  guest: prints MARKER, then obeys bytes on its serial port:
//!         p power off    r reset    c report a panic    anything else: echo
//! ```
//!
//! Without QEMU each test says why it is skipped, and fails if `INNKEEPER_REQUIRE_DRIVERS` names `qemu`. A test removes what it made.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use innkeeper::api::ErrorKind;
use innkeeper::driver::{
    BootConfig, DiskConfig, Driver, MachineConfig, MachineEvent, MachinePaths, NicConfig, Running,
};
use innkeeper::drivers::qemu::{QemuDriver, QemuOptions};
use innkeeper::spec::{
    AccelChoice, Arch, Bytes, DiskFormat, ForwardSpec, Isolation, MemoryKind, Protocol,
};
use innkeeper_net::UserNetwork;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc::UnboundedReceiver;

const DEADLINE: Duration = Duration::from_secs(60);

/// 32-bit code for address 1 MiB: sends the marker to COM1, then obeys what COM1 receives. Port 0x604 is q35's ACPI PM1a control
/// register as SeaBIOS places it, 0xcf9 its reset register, 0x505 pvpanic.
const GUEST: [u8; 93] = [
    0xfa, 0xbc, 0x00, 0x02, 0x10, 0x00, 0xbe, 0x54, 0x00, 0x10, 0x00, 0xac, 0x84, 0xc0, 0x74, 0x07,
    0x66, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xf4, 0x66, 0xba, 0xfd, 0x03, 0xf3, 0x90, 0xec, 0xa8, 0x01,
    0x74, 0xf5, 0x66, 0xba, 0xf8, 0x03, 0xec, 0x3c, 0x70, 0x74, 0x0b, 0x3c, 0x72, 0x74, 0x13, 0x3c,
    0x63, 0x74, 0x18, 0xee, 0xeb, 0xe1, 0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef,
    0xeb, 0xd5, 0x66, 0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xeb, 0xcc, 0x66, 0xba, 0x05, 0x05, 0xb0,
    0x01, 0xee, 0xeb, 0xc3, 0x4d, 0x41, 0x52, 0x4b, 0x45, 0x52, 0x0d, 0x0a, 0x00,
];

/// Wraps code in an ELF file with the note that names a PVH entry (Xen `elfnote.h`, type 18, `XEN_ELFNOTE_PHYS32_ENTRY`).
fn pvh_elf(code: &[u8]) -> Vec<u8> {
    const ENTRY: u32 = 0x10_0000;
    let mut note = Vec::new();
    for word in [4u32, 4, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(ENTRY.to_le_bytes());
    let headers = 64 + 2 * 56;
    let note_at = headers as u64;
    let code_at = 0x1000u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend(2u16.to_le_bytes());
    file.extend(62u16.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    for word in [u64::from(ENTRY), 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for (kind, flags, offset, address, length, align) in [
        (
            1u32,
            5u32,
            code_at,
            u64::from(ENTRY),
            code.len() as u64,
            0x1000u64,
        ),
        (4, 4, note_at, 0, note.len() as u64, 4),
    ] {
        file.extend(kind.to_le_bytes());
        file.extend(flags.to_le_bytes());
        for word in [offset, address, address, length, length, align] {
            file.extend(word.to_le_bytes());
        }
    }
    file.extend(note);
    file.resize(code_at as usize, 0);
    file.extend(code);
    file
}

/// Makes an empty qcow2 image of 1 MiB over a backing file, whose format it does not tell.
///
/// Clusters of 64 KiB: header, refcount table, refcount block, L1 table (QEMU `docs/interop/qcow2.txt`).
fn qcow2_over(backing: &Path) -> Vec<u8> {
    const CLUSTER: u64 = 0x1_0000;
    let name = backing.to_str().unwrap().as_bytes();
    let mut file = b"QFI\xfb".to_vec();
    file.extend(3u32.to_be_bytes());
    file.extend(112u64.to_be_bytes());
    file.extend((name.len() as u32).to_be_bytes());
    file.extend(16u32.to_be_bytes());
    file.extend((1u64 << 20).to_be_bytes());
    file.extend(0u32.to_be_bytes());
    file.extend(1u32.to_be_bytes());
    file.extend((3 * CLUSTER).to_be_bytes());
    file.extend(CLUSTER.to_be_bytes());
    file.extend(1u32.to_be_bytes());
    file.extend([0; 4 + 8 + 3 * 8]);
    file.extend(4u32.to_be_bytes());
    file.extend(104u32.to_be_bytes());
    file.extend([0; 8]);
    file.extend(name);
    file.resize(4 * CLUSTER as usize, 0);
    file[CLUSTER as usize..][..8].copy_from_slice(&(2 * CLUSTER).to_be_bytes());
    for cluster in 0..4 {
        file[2 * CLUSTER as usize + 2 * cluster + 1] = 1;
    }
    file
}

/// A VM's directory, its config and a driver; checks at the end that nothing is left.
struct Bench {
    directory: tempfile::TempDir,
    options: QemuOptions,
    config: MachineConfig,
    started: std::sync::Mutex<Vec<u32>>,
}

/// A test that fails leaves nothing either.
impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for pid in self.started.lock().unwrap().iter() {
            let pid = rustix::process::Pid::from_raw(*pid as i32).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

impl Bench {
    /// Returns none, having said why, where there is no QEMU.
    async fn new(name: &str) -> Option<Self> {
        let directory = tempfile::Builder::new().prefix("inn").tempdir().unwrap();
        let path = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
        let mut options = QemuOptions::of(path, "this-boot");
        options.accel_override = Some("tcg".to_owned());
        options.cache = Some(directory.path().join("probe.json"));
        if let Some(data) = std::env::var_os("INNKEEPER_TEST_QEMU_DATA") {
            options.data_directories = std::env::split_paths(&data).collect();
        }
        let driver = QemuDriver::new(options.clone());
        let report = driver.probe().await;
        if !report.arches.iter().any(|arch| arch == "x86_64") {
            let required = std::env::var("INNKEEPER_REQUIRE_DRIVERS").unwrap_or_default();
            assert!(
                !required.split(',').any(|driver| driver == "qemu"),
                "qemu is required and qemu-system-x86_64 was not found: {report:?}"
            );
            println!("skipped: qemu-system-x86_64 was not found");
            return None;
        }
        let kernel = directory.path().join("kernel,with comma");
        std::fs::write(&kernel, pvh_elf(&GUEST)).unwrap();
        for name in ["sockets", "run"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        let at = |name: &str| directory.path().join(name);
        let config = MachineConfig {
            name: name.to_owned(),
            id: "0123456789abcdef0123456789abcdef".to_owned(),
            arch: Arch::X86_64,
            machine: driver.pin_machine(None, Arch::X86_64, &report).unwrap(),
            accel: AccelChoice::Tcg,
            cpu_model: None,
            cpus: 1,
            max_cpus: 1,
            memory: Bytes::mib(64),
            max_memory: Bytes::mib(64),
            memory_target: None,
            memory_kind: MemoryKind::Normal,
            boot: BootConfig::Direct {
                kernel,
                initrd: None,
                cmdline: String::new(),
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
                serial_log: at("serial,log"),
                vmm_log: at("vmm.log"),
                vmm_lock: at("vmm.lock"),
            },
        };
        assert_eq!(driver.check(&config, &report), []);
        Some(Bench {
            directory,
            options,
            config,
            started: std::sync::Mutex::default(),
        })
    }

    fn driver(&self) -> QemuDriver {
        QemuDriver::new(self.options.clone())
    }

    async fn launch(&self) -> Running {
        let running = self.driver().launch(&self.config).await.unwrap();
        self.started.lock().unwrap().push(running.machine.pid());
        running
    }

    async fn serial(&self) -> UnixStream {
        UnixStream::connect(self.config.paths.sockets.join("serial.sock"))
            .await
            .unwrap()
    }

    /// Waits until the serial log holds the marker so many times.
    async fn marker(&self, count: usize) {
        let log = self.config.paths.serial_log.clone();
        until("the marker in the serial log", || {
            std::fs::read_to_string(&log).is_ok_and(|text| text.matches("MARKER").count() >= count)
        })
        .await;
    }

    /// Checks that the process is gone, the lock free and no socket left.
    fn nothing_left(&self, pid: u32) {
        assert!(!alive(pid), "process {pid} is left");
        let lock = std::fs::File::open(&self.config.paths.vmm_lock).unwrap();
        lock.try_lock().expect("the lock is still held");
        let left: Vec<PathBuf> = std::fs::read_dir(self.directory.path().join("sockets"))
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_type().unwrap().is_socket())
            .map(|entry| entry.path())
            .collect();
        assert_eq!(left, Vec::<PathBuf>::new());
    }
}

/// A process that has ended but was not reaped does not count.
fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit_once(')')
            .unwrap()
            .1
            .trim_start()
            .starts_with('Z')
    })
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
async fn exited(events: &mut UnboundedReceiver<MachineEvent>) -> innkeeper::driver::ExitReport {
    let event = next(events).await;
    let MachineEvent::Exited(report) = event else {
        panic!("{event:?} instead of the end");
    };
    assert_eq!(events.recv().await, None);
    report
}

#[tokio::test]
async fn a_guest_resets_powers_off_and_is_quit() {
    let Some(bench) = Bench::new("resets").await else {
        return;
    };
    let mut running = bench.launch().await;
    let pid = running.machine.pid();
    assert_eq!(running.machine.accel(), "tcg");
    assert_eq!(next(&mut running.events).await, MachineEvent::Running);
    bench.marker(1).await;

    let mut serial = bench.serial().await;
    serial.write_all(b"r").await.unwrap();
    assert_eq!(next(&mut running.events).await, MachineEvent::GuestReset);
    bench.marker(2).await;

    serial.write_all(b"p").await.unwrap();
    assert_eq!(next(&mut running.events).await, MachineEvent::GuestShutdown);
    assert!(alive(pid), "it waits to be told to quit");
    running.machine.quit().await.unwrap();
    let report = exited(&mut running.events).await;
    assert_eq!(
        (report.code, report.signal, report.expected),
        (Some(0), None, true)
    );
    bench.nothing_left(pid);
}

#[tokio::test]
async fn a_panic_is_told() {
    let Some(bench) = Bench::new("panics").await else {
        return;
    };
    let mut running = bench.launch().await;
    assert_eq!(next(&mut running.events).await, MachineEvent::Running);
    bench.marker(1).await;
    bench.serial().await.write_all(b"c").await.unwrap();
    assert_eq!(next(&mut running.events).await, MachineEvent::GuestPanicked);
    running.machine.kill().await.unwrap();
    exited(&mut running.events).await;
    bench.nothing_left(running.machine.pid());
}

#[tokio::test]
async fn pause_resume_and_kill_twice() {
    let Some(bench) = Bench::new("pauses").await else {
        return;
    };
    let mut running = bench.launch().await;
    assert_eq!(next(&mut running.events).await, MachineEvent::Running);
    let pause = running.machine.pause().unwrap();
    pause.pause().await.unwrap();
    assert_eq!(next(&mut running.events).await, MachineEvent::Paused);
    pause.resume().await.unwrap();
    assert_eq!(next(&mut running.events).await, MachineEvent::Resumed);
    let totals = running
        .machine
        .block_statistics()
        .unwrap()
        .block_totals()
        .await
        .unwrap();
    assert_eq!((totals.read_bytes, totals.written_bytes), (0, 0));
    running.machine.power_button().await.unwrap();

    let start = Instant::now();
    running.machine.kill().await.unwrap();
    let took = start.elapsed();
    assert!(!alive(running.machine.pid()));
    println!("killed in {took:?}");
    running.machine.kill().await.unwrap();
    let report = exited(&mut running.events).await;
    assert_eq!(
        (report.code, report.signal, report.expected),
        (None, Some(9), true)
    );
    bench.nothing_left(running.machine.pid());
}

#[tokio::test]
async fn a_killed_qemu_is_told_as_unexpected() {
    let Some(bench) = Bench::new("dies").await else {
        return;
    };
    let mut running = bench.launch().await;
    assert_eq!(next(&mut running.events).await, MachineEvent::Running);
    let pid = rustix::process::Pid::from_raw(running.machine.pid() as i32).unwrap();
    let start = Instant::now();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let report = exited(&mut running.events).await;
    println!("told after {:?}", start.elapsed());
    assert_eq!((report.signal, report.expected), (Some(9), false));
    assert_eq!(running.machine.quit().await.unwrap_or(()), ());
    bench.nothing_left(running.machine.pid());
}

#[tokio::test]
async fn dropped_it_runs_on_and_is_adopted() {
    let Some(bench) = Bench::new("adopted").await else {
        return;
    };
    let mut first = bench.launch().await;
    let record = first.record.clone();
    assert_eq!(next(&mut first.events).await, MachineEvent::Running);
    bench.marker(1).await;
    let pid = first.machine.pid();

    // While one process has the machine, a second launch is refused and disturbs nothing.
    let refused = bench
        .driver()
        .launch(&bench.config)
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
    drop(first);
    assert!(alive(pid));

    let mut second = bench.driver().adopt(&bench.config, &record).await.unwrap();
    assert_eq!(second.machine.pid(), pid);
    assert_eq!(next(&mut second.events).await, MachineEvent::Running);
    let mut serial = bench.serial().await;
    serial.write_all(b"xyp").await.unwrap();
    let mut echo = [0; 2];
    serial.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"xy");
    assert_eq!(next(&mut second.events).await, MachineEvent::GuestShutdown);
    drop(second);

    // The power-off is found by whoever comes later.
    let mut third = bench.driver().adopt(&bench.config, &record).await.unwrap();
    assert_eq!(next(&mut third.events).await, MachineEvent::GuestShutdown);
    third.machine.quit().await.unwrap();
    let report = exited(&mut third.events).await;
    assert!(report.expected);
    bench.nothing_left(pid);

    let gone = bench
        .driver()
        .adopt(&bench.config, &record)
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    bench.driver().kill_record(&record).await.unwrap();
}

#[tokio::test]
async fn a_record_kills_only_what_it_names() {
    let Some(bench) = Bench::new("record").await else {
        return;
    };
    let running = bench.launch().await;
    let record = running.record.clone();
    let pid = running.machine.pid();
    drop(running);
    let mut of_other = record.clone();
    of_other["start_time"] = 1.into();
    of_other["sockets"] = serde_json::json!([]);
    bench.driver().kill_record(&of_other).await.unwrap();
    assert!(alive(pid), "another process of the same id was meant");
    let mut other_boot = record.clone();
    other_boot["boot_id"] = "another".into();
    bench.driver().kill_record(&other_boot).await.unwrap();
    assert!(alive(pid), "another boot was meant");
    bench.driver().kill_record(&record).await.unwrap();
    bench.driver().kill_record(&record).await.unwrap();
    bench.nothing_left(pid);
}

#[tokio::test]
async fn an_early_end_is_told_with_the_log() {
    let Some(mut bench) = Bench::new("ends").await else {
        return;
    };
    bench.config.cpu_model = Some("no-such-model".to_owned());
    let error = bench
        .driver()
        .launch(&bench.config)
        .await
        .map(drop)
        .unwrap_err();
    assert!(error.to_string().contains("no-such-model"), "{error}");
    bench.nothing_left(u32::MAX);

    bench.config.cpu_model = None;
    let missing = bench.directory.path().join("missing.qcow2");
    bench.config.disks = vec![DiskConfig::new("root", missing, DiskFormat::Qcow2)];
    let error = bench
        .driver()
        .launch(&bench.config)
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains("missing.qcow2"), "{error}");
    bench.nothing_left(u32::MAX);
}

#[tokio::test]
async fn a_port_in_use_is_a_conflict() {
    let Some(mut bench) = Bench::new("port").await else {
        return;
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let forward = |port| ForwardSpec {
        protocol: Protocol::Tcp,
        host_address: [127, 0, 0, 1].into(),
        host_port: port,
        guest_port: 22,
    };
    let port = taken.local_addr().unwrap().port();
    bench.config.nics = vec![NicConfig {
        mac: "52:54:00:12:34:56".parse().unwrap(),
        user_network: UserNetwork::of_interface(0).unwrap(),
        outbound: true,
        hostname: "guest".to_owned(),
        forwards: vec![forward(port)],
    }];
    let error = bench
        .driver()
        .launch(&bench.config)
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains(&port.to_string()), "{error}");
    drop(taken);
    let running = bench.launch().await;
    std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    running.machine.kill().await.unwrap();
}

/// QEMU itself must accept every option that a plan can hold.
#[tokio::test]
async fn every_machine_takes_its_whole_plan() {
    let Some(mut bench) = Bench::new("whole").await else {
        return;
    };
    let driver = bench.driver();
    let report = driver.probe().await;
    let at = |name: &str| bench.directory.path().join(name);
    let disk = |name: &str, format, backing_format, read_only| DiskConfig {
        backing_format,
        read_only,
        boot_index: (!read_only).then_some(0),
        ..DiskConfig::new(name, at(name), format)
    };
    // A raw layer that begins like another format must stay what it was said to be.
    std::fs::write(
        at("layer"),
        [b"QFI\xfb".as_slice(), &[0xff; 0x1000]].concat(),
    )
    .unwrap();
    std::fs::write(at("root"), qcow2_over(&at("layer"))).unwrap();
    std::fs::write(at("seed,1"), [0; 0x1000]).unwrap();
    bench.config.disks = vec![
        disk("root", DiskFormat::Qcow2, Some(DiskFormat::Raw), false),
        disk("seed,1", DiskFormat::Raw, None, true),
    ];
    bench.config.nics = vec![NicConfig {
        mac: "52:54:00:12:34:56".parse().unwrap(),
        user_network: UserNetwork::of_interface(0).unwrap(),
        outbound: true,
        hostname: "guest".to_owned(),
        forwards: Vec::new(),
    }];
    bench.config.cpus = 2;
    let variables = BootConfig::Uefi {
        variables: at("uefi-variables.fd"),
        secure_boot: false,
    };
    let variables_arm64 = BootConfig::Uefi {
        variables: at("uefi-variables-arm64.fd"),
        secure_boot: false,
    };
    let direct = bench.config.boot.clone();
    // Zeroes are a kernel that does nothing, which is enough to be started.
    std::fs::write(at("zeroes"), [0; 0x1000]).unwrap();
    let foreign = BootConfig::Direct {
        kernel: at("zeroes"),
        initrd: None,
        cmdline: String::new(),
    };
    let mut tried = Vec::new();
    for (arch, machine, boot) in [
        (Arch::X86_64, None, &direct),
        (Arch::X86_64, None, &BootConfig::Bios),
        (Arch::X86_64, None, &variables),
        (Arch::X86_64, Some("microvm"), &direct),
        (Arch::Arm64, None, &foreign),
        (Arch::Arm64, None, &variables_arm64),
        (Arch::Riscv64, None, &foreign),
    ] {
        let mut config = bench.config.clone();
        config.arch = arch;
        config.boot = boot.clone();
        let pinned = driver.pin_machine(machine, arch, &report);
        if let Ok(pinned) = &pinned {
            config.machine.clone_from(pinned);
        }
        let lacks = driver.check(&config, &report);
        if pinned.is_err() || !lacks.is_empty() {
            println!(
                "not tried: {arch} {machine:?} {}: {lacks:?}",
                boot_name(boot)
            );
            continue;
        }
        let mut running = driver.launch(&config).await.unwrap();
        assert_eq!(
            next(&mut running.events).await,
            MachineEvent::Running,
            "{arch} {machine:?}"
        );
        let mut agent = running.machine.agent_channel().await.unwrap();
        agent.write_all(b"hello").await.unwrap();
        running
            .machine
            .block_statistics()
            .unwrap()
            .block_totals()
            .await
            .unwrap();
        running.machine.quit().await.unwrap();
        let last = loop {
            if let MachineEvent::Exited(report) = next(&mut running.events).await {
                break report;
            }
        };
        assert_eq!((last.code, last.expected), (Some(0), true), "{last:?}");
        bench.nothing_left(running.machine.pid());
        tried.push(format!("{arch} {} {}", config.machine, boot_name(boot)));
    }
    println!("tried: {tried:?}");
    assert!(tried.len() >= 2, "{tried:?}");
}

fn boot_name(boot: &BootConfig) -> &'static str {
    match boot {
        BootConfig::Direct { .. } => "direct",
        BootConfig::Uefi { .. } => "uefi",
        BootConfig::Bios => "bios",
    }
}

#[tokio::test]
async fn a_backing_file_that_nobody_named_is_not_opened() {
    let Some(mut bench) = Bench::new("backing").await else {
        return;
    };
    let path = bench.directory.path().join("hostile");
    // The header names a file that is not there: opening it would fail, so success shows that it was not tried.
    std::fs::write(&path, qcow2_over(Path::new("/nonexistent/secret"))).unwrap();
    let mut disk = DiskConfig::new("root", path, DiskFormat::Qcow2);
    bench.config.disks = vec![disk.clone()];
    bench.launch().await.machine.kill().await.unwrap();
    disk.backing_format = Some(DiskFormat::Raw);
    bench.config.disks = vec![disk];
    let driver = bench.driver();
    let lock = bench.config.paths.vmm_lock.clone();
    until("the lock to be free", || {
        std::fs::File::open(&lock).unwrap().try_lock().is_ok()
    })
    .await;
    let error = driver.launch(&bench.config).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("secret"), "{error}");
}

/// The trial of the accelerator included, as a host is asked for the first time, and again from the cache.
#[tokio::test]
async fn a_host_is_asked_once() {
    let Some(bench) = Bench::new("asked").await else {
        return;
    };
    let mut options = bench.options.clone();
    options.accel_override = None;
    options.cache = Some(bench.directory.path().join("asked.json"));
    let start = Instant::now();
    let asked = QemuDriver::new(options.clone()).probe().await;
    let first = start.elapsed();
    let start = Instant::now();
    let remembered = QemuDriver::new(options.clone()).probe().await;
    println!("asked in {first:?}, remembered in {:?}", start.elapsed());
    println!("{:?} {:?} {:?}", asked.accel, asked.notes, asked.needs);
    println!("counter {:?}", asked.details["tsc_khz"]);
    assert_eq!(asked, remembered);
    assert!(asked.usable, "{asked:?}");
    assert!(
        !asked.notes.is_empty(),
        "it says why it runs CPUs as it does"
    );
    options.boot_id = "another-boot".to_owned();
    let cache = std::fs::read(options.cache.as_ref().unwrap()).unwrap();
    QemuDriver::new(options.clone()).probe().await;
    assert_ne!(
        cache,
        std::fs::read(options.cache.as_ref().unwrap()).unwrap()
    );
}

#[tokio::test]
async fn a_host_without_qemu_says_what_to_install() {
    let directory = tempfile::tempdir().unwrap();
    let options = QemuOptions::of(vec![directory.path().to_owned()], "this-boot");
    let report = QemuDriver::new(options).probe().await;
    assert!(!report.usable);
    assert_eq!(report.arches, Vec::<String>::new());
    assert!(
        report
            .needs
            .iter()
            .any(|need| need.what.starts_with("qemu-system-")),
        "{report:?}"
    );
    assert!(
        report
            .capabilities
            .iter()
            .all(|capability| capability.lacking.is_some())
    );
}

#[tokio::test]
async fn a_launch_that_is_dropped_leaves_nothing() {
    let Some(bench) = Bench::new("dropped").await else {
        return;
    };
    let driver = bench.driver();
    driver.host().await;
    for after in [0, 1, 5, 20, 60] {
        let launch =
            tokio::time::timeout(Duration::from_millis(after), driver.launch(&bench.config));
        if let Ok(running) = launch.await {
            running.unwrap().machine.kill().await.unwrap();
        }
        let lock: &Path = &bench.config.paths.vmm_lock;
        until("the lock to be free", || {
            std::fs::File::open(lock).map_or(true, |file| file.try_lock().is_ok())
        })
        .await;
    }
}
