//! A bench on which a real QEMU runs a guest of a hundred bytes that the tests write themselves.
//!
//! ```text
//!  guest: prints MARKER, then obeys bytes on its serial port:
//!         p power off    r reset    c report a panic    k count up and tell the count
//!         w start the watchdog and starve it    anything else: echo
//! ```
//!
//! Without QEMU each test says why it is skipped, and fails if `INNKEEPER_REQUIRE_DRIVERS` names `qemu`. A test removes what it made.

// Every test program uses a part of it.
#![allow(dead_code)]

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use innkeeper::driver::{BootConfig, Driver, MachineConfig, MachineEvent, MachinePaths, Running};
use innkeeper::drivers::qemu::{QemuDriver, QemuOptions};
use innkeeper::spec::{AccelChoice, Arch, Bytes, Isolation, MemoryKind};
use tokio::net::UnixStream;
use tokio::sync::mpsc::UnboundedReceiver;

pub const DEADLINE: Duration = Duration::from_secs(60);

/// 32-bit code for address 1 MiB: sends the marker to COM1, then obeys what COM1 receives; its count is a byte in memory. Port 0x604 is q35's ACPI PM1a control
/// register as SeaBIOS places it, 0xcf9 its reset register, 0x505 pvpanic. The
/// watchdog is found on PCI bus 0 by its id, unlocked, given two timers of a millisecond, and enabled (QEMU `hw/watchdog/wdt_i6300esb.c`).
const GUEST: [u8; 227] = [
    0xfa, 0xbc, 0x00, 0x80, 0x10, 0x00, 0xbe, 0xd9, 0x00, 0x10, 0x00, 0xac, 0x84, 0xc0, 0x74, 0x07,
    0x66, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xf4, 0x66, 0xba, 0xfd, 0x03, 0xf3, 0x90, 0xec, 0xa8, 0x01,
    0x74, 0xf9, 0x66, 0xba, 0xf8, 0x03, 0xec, 0x3c, 0x70, 0x74, 0x20, 0x3c, 0x72, 0x74, 0x28, 0x3c,
    0x63, 0x74, 0x2d, 0x3c, 0x6b, 0x74, 0x07, 0x3c, 0x77, 0x74, 0x2e, 0xee, 0xeb, 0xd9, 0xfe, 0x05,
    0xe2, 0x00, 0x10, 0x00, 0xa0, 0xe2, 0x00, 0x10, 0x00, 0xeb, 0xf0, 0x66, 0xba, 0x04, 0x06, 0x66,
    0xb8, 0x00, 0x20, 0x66, 0xef, 0xeb, 0xc0, 0x66, 0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xeb, 0xb7,
    0x66, 0xba, 0x05, 0x05, 0xb0, 0x01, 0xee, 0xeb, 0xae, 0xb9, 0x00, 0x00, 0x00, 0x80, 0x89, 0xc8,
    0x66, 0xba, 0xf8, 0x0c, 0xef, 0xb2, 0xfc, 0xed, 0x3d, 0x86, 0x80, 0xab, 0x25, 0x74, 0x10, 0x81,
    0xc1, 0x00, 0x08, 0x00, 0x00, 0x81, 0xf9, 0x00, 0x00, 0x01, 0x80, 0x75, 0xe1, 0xeb, 0x88, 0x8d,
    0x41, 0x10, 0xe8, 0x2d, 0x00, 0x00, 0x00, 0xed, 0x83, 0xe0, 0xf0, 0x89, 0xc3, 0xe8, 0x2a, 0x00,
    0x00, 0x00, 0xc7, 0x03, 0x01, 0x00, 0x00, 0x00, 0xe8, 0x1f, 0x00, 0x00, 0x00, 0xc7, 0x43, 0x04,
    0x01, 0x00, 0x00, 0x00, 0x8d, 0x41, 0x68, 0xe8, 0x08, 0x00, 0x00, 0x00, 0xb0, 0x02, 0xee, 0xe9,
    0x53, 0xff, 0xff, 0xff, 0x66, 0xba, 0xf8, 0x0c, 0xef, 0xb2, 0xfc, 0xc3, 0x66, 0xc7, 0x43, 0x0c,
    0x80, 0x00, 0x66, 0xc7, 0x43, 0x0c, 0x86, 0x00, 0xc3, 0x4d, 0x41, 0x52, 0x4b, 0x45, 0x52, 0x0d,
    0x0a, 0x00, 0x30,
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
pub fn qcow2_over(backing: &Path) -> Vec<u8> {
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
pub struct Bench {
    pub directory: tempfile::TempDir,
    pub options: QemuOptions,
    pub config: MachineConfig,
    pub started: std::sync::Mutex<Vec<u32>>,
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
    pub async fn new(name: &str) -> Option<Self> {
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

    pub fn driver(&self) -> QemuDriver {
        QemuDriver::new(self.options.clone())
    }

    pub async fn launch(&self) -> Running {
        let running = self.driver().launch(&self.config).await.unwrap();
        self.started.lock().unwrap().push(running.machine.pid());
        running
    }

    pub async fn serial(&self) -> UnixStream {
        UnixStream::connect(self.config.paths.sockets.join("serial.sock"))
            .await
            .unwrap()
    }

    /// Waits until the serial log holds the marker so many times.
    pub async fn marker(&self, count: usize) {
        let log = self.config.paths.serial_log.clone();
        until("the marker in the serial log", || {
            std::fs::read_to_string(&log).is_ok_and(|text| text.matches("MARKER").count() >= count)
        })
        .await;
    }

    /// Checks that the process is gone, the lock free and no socket left.
    pub fn nothing_left(&self, pid: u32) {
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
pub fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit_once(')')
            .unwrap()
            .1
            .trim_start()
            .starts_with('Z')
    })
}

pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    // poll: the condition that is named
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "waited in vain for {what}");
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
pub async fn exited(events: &mut UnboundedReceiver<MachineEvent>) -> innkeeper::driver::ExitReport {
    let event = next(events).await;
    let MachineEvent::Exited(report) = event else {
        panic!("{event:?} instead of the end");
    };
    assert_eq!(events.recv().await, None);
    report
}
