//! The QEMU driver on a real QEMU: starts, ends, adoption, and what each machine takes.

mod qemu_bench;

use std::path::Path;
use std::time::{Duration, Instant};

use innkeeper::api::ErrorKind;
use innkeeper::driver::{BootConfig, DiskConfig, Driver, MachineEvent, NicConfig, NicNetwork};
use innkeeper::drivers::qemu::{QemuDriver, QemuOptions};
use innkeeper::spec::{Arch, DiskFormat, ForwardSpec, Protocol};
use innkeeper_net::UserNetwork;
use qemu_bench::{Bench, alive, exited, next, qcow2_over, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

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
        network: NicNetwork::User(UserNetwork::of_interface(0).unwrap()),
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
        network: NicNetwork::User(UserNetwork::of_interface(0).unwrap()),
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
