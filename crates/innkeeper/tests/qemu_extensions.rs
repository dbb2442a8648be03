//! What the QEMU driver does beyond starting and ending, on a real QEMU.

mod qemu_bench;

use std::time::Instant;

use innkeeper::api::{Capability, DriverReport, ErrorKind};
use innkeeper::driver::{
    BootConfig, ConsoleConfig, DiskConfig, DriveConfig, Driver, MachineEvent, Medium, NicConfig,
    NicNetwork, Running, SavedMachine,
};
use innkeeper::spec::{
    Bytes, DiskBus, DiskCache, DiskFormat, DiskLimits, ForwardSpec, MemoryKind, Protocol,
    WatchdogAction,
};
use innkeeper_net::UserNetwork;
use qemu_bench::{Bench, exited, next, qcow2_over};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Asks the guest to count up, and returns the count.
async fn count(serial: &mut UnixStream) -> u8 {
    serial.write_all(b"k").await.unwrap();
    let read = async {
        // What it printed when it came up may stand before.
        loop {
            let told = serial.read_u8().await.unwrap();
            if told.is_ascii_digit() {
                return told;
            }
        }
    };
    tokio::time::timeout(qemu_bench::DEADLINE, read)
        .await
        .expect("the guest counts in time")
}

/// Launches, takes the first event, and waits for the guest.
async fn booted(bench: &Bench) -> Running {
    let mut running = bench.launch().await;
    assert_eq!(next(&mut running.events).await, MachineEvent::Running);
    bench.marker(1).await;
    running
}

async fn end(mut running: Running) {
    running.machine.kill().await.unwrap();
    // poll: events, until the last one
    while !matches!(next(&mut running.events).await, MachineEvent::Exited(_)) {}
}

async fn pause(running: &mut Running) {
    running.machine.pause().unwrap().pause().await.unwrap();
    assert_eq!(next_but_reset(running).await, MachineEvent::Paused);
}

/// A bench whose machine has a disk and an interface.
async fn furnished(name: &str) -> Option<Bench> {
    let mut bench = Bench::new(name).await?;
    let path = bench.directory.path().join("disk");
    std::fs::write(&path, vec![7; 1 << 20]).unwrap();
    bench.config.disks = vec![DiskConfig::new("root", path, DiskFormat::Raw)];
    bench.config.nics = vec![NicConfig {
        mac: "52:54:00:12:34:56".parse().unwrap(),
        network: NicNetwork::User(UserNetwork::of_interface(0).unwrap()),
        outbound: true,
        hostname: "guest".to_owned(),
        forwards: Vec::new(),
    }];
    Some(bench)
}

async fn save(bench: &Bench, running: &Running, name: &str) -> SavedMachine {
    let directory = bench.directory.path().join(name);
    std::fs::create_dir(&directory).unwrap();
    let suspend = running.machine.suspend().unwrap();
    assert_eq!(suspend.obstacle().await.unwrap(), None);
    let start = Instant::now();
    let saved = suspend.save(&directory).await.unwrap();
    let blocks = std::os::unix::fs::MetadataExt::blocks(
        &std::fs::metadata(directory.join("memory")).unwrap(),
    );
    println!(
        "saved as {} in {:?}, {} KiB on disk",
        saved.details["form"],
        start.elapsed(),
        blocks / 2
    );
    saved
}

#[tokio::test]
async fn a_saved_guest_goes_on_where_it_stood_twice() {
    let Some(bench) = furnished("saved").await else {
        return;
    };
    let mut running = booted(&bench).await;
    let mut serial = bench.serial().await;
    assert_eq!(count(&mut serial).await, b'1');
    assert_eq!(count(&mut serial).await, b'2');
    pause(&mut running).await;
    let saved = save(&bench, &running, "state").await;
    end(running).await;

    let driver = bench.driver();
    let report = driver.probe().await;
    let restore = driver.restore().unwrap();
    assert_eq!(restore.check_saved(&bench.config, &saved, &report), []);
    for _ in 0..2 {
        let start = Instant::now();
        let mut again = restore.restore(&bench.config, &saved).await.unwrap();
        println!("restored in {:?}", start.elapsed());
        let pid = again.machine.pid();
        bench.started.lock().unwrap().push(pid);
        assert_eq!(next(&mut again.events).await, MachineEvent::Paused);
        again.machine.pause().unwrap().resume().await.unwrap();
        assert_eq!(next(&mut again.events).await, MachineEvent::Resumed);
        let mut serial = bench.serial().await;
        assert_eq!(count(&mut serial).await, b'3', "memory came back");
        serial.write_all(b"p").await.unwrap();
        assert_eq!(next(&mut again.events).await, MachineEvent::GuestShutdown);
        again.machine.quit().await.unwrap();
        let report = exited(&mut again.events).await;
        assert_eq!((report.code, report.expected), (Some(0), true));
        bench.nothing_left(pid);
    }
}

#[tokio::test]
async fn a_machine_can_be_resumed_after_it_was_saved_or_was_not() {
    let Some(bench) = furnished("resumed").await else {
        return;
    };
    let mut running = booted(&bench).await;
    let mut serial = bench.serial().await;
    assert_eq!(count(&mut serial).await, b'1');
    let directory = bench.directory.path().join("running");
    std::fs::create_dir(&directory).unwrap();
    let suspend = running.machine.suspend().unwrap();
    let refused = suspend.save(&directory).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");

    pause(&mut running).await;
    let missing = bench.directory.path().join("missing");
    let suspend = running.machine.suspend().unwrap();
    let refused = suspend.save(&missing).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound, "{refused}");
    for (after, name) in [(0, "d0"), (1, "d1"), (5, "d5"), (20, "d20")] {
        let directory = bench.directory.path().join(name);
        std::fs::create_dir(&directory).unwrap();
        let deadline = std::time::Duration::from_millis(after);
        let ended = tokio::time::timeout(deadline, suspend.save(&directory)).await;
        println!(
            "dropped after {after} ms: {:?}",
            ended.map(|saved| saved.is_ok())
        );
        running.machine.pause().unwrap().resume().await.unwrap();
        assert_eq!(next(&mut running.events).await, MachineEvent::Resumed);
        count(&mut serial).await;
        running.machine.pause().unwrap().pause().await.unwrap();
        assert_eq!(next(&mut running.events).await, MachineEvent::Paused);
    }
    save(&bench, &running, "state").await;
    running.machine.pause().unwrap().resume().await.unwrap();
    assert_eq!(next(&mut running.events).await, MachineEvent::Resumed);
    assert_eq!(count(&mut serial).await, b'6');
    end(running).await;
}

#[tokio::test]
async fn what_differs_from_a_saved_state_is_named() {
    let Some(bench) = furnished("differs").await else {
        return;
    };
    let mut running = booted(&bench).await;
    pause(&mut running).await;
    let saved = save(&bench, &running, "state").await;
    end(running).await;
    let driver = bench.driver();
    let report = driver.probe().await;
    let restore = driver.restore().unwrap();
    let fields = |config: &innkeeper::driver::MachineConfig, saved: &SavedMachine| {
        restore
            .check_saved(config, saved, &report)
            .into_iter()
            .map(|lack| lack.field)
            .collect::<Vec<_>>()
    };
    let mut other = bench.config.clone();
    other.cpus = 2;
    other.max_cpus = 2;
    other.memory = Bytes::mib(128);
    other.max_memory = Bytes::mib(128);
    other.disks.clear();
    other.nics.clear();
    other.cpu_model = Some("qemu64".to_owned());
    assert_eq!(
        fields(&other, &saved),
        [
            "cpu_model",
            "cpus",
            "max_cpus",
            "memory",
            "max_memory",
            "disks",
            "networks"
        ]
    );
    let refused = restore.restore(&other, &saved).await.map(drop);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unsupported);
    let mut newer = saved.clone();
    newer.version = "99.1.0".to_owned();
    let reasons = restore.check_saved(&bench.config, &newer, &report);
    assert_eq!(reasons.len(), 1);
    assert!(reasons[0].reason.contains("99.1"), "{reasons:?}");

    // A file that is not what it was is told, and leaves nothing.
    std::fs::write(saved.directory.join("memory"), [0x5a; 4096]).unwrap();
    let error = restore
        .restore(&bench.config, &saved)
        .await
        .map(drop)
        .unwrap_err();
    println!("{error}");
    bench.nothing_left(u32::MAX);
    let mut elsewhere = saved.clone();
    elsewhere.details["file"] = "../state/memory".into();
    let error = restore
        .restore(&bench.config, &elsewhere)
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput, "{error}");
    assert!(
        report
            .capabilities
            .iter()
            .any(|entry| entry.capability == Capability::Suspend && entry.lacking.is_none())
    );
}

/// Tells whether the driver has a capability here; says why if it has not.
fn capable(report: &DriverReport, capability: Capability) -> bool {
    let entry = report
        .capabilities
        .iter()
        .find(|entry| entry.capability == capability)
        .unwrap();
    if let Some(reason) = &entry.lacking {
        println!("without {capability}: {reason}");
    }
    entry.lacking.is_none()
}

#[tokio::test]
async fn a_starved_watchdog_does_what_it_was_told() {
    let Some(mut bench) = Bench::new("watchdog").await else {
        return;
    };
    for (index, (action, then)) in [
        (WatchdogAction::Reset, Some(MachineEvent::GuestReset)),
        (WatchdogAction::Poweroff, Some(MachineEvent::GuestShutdown)),
        (WatchdogAction::Pause, Some(MachineEvent::Paused)),
        (WatchdogAction::Tell, None),
    ]
    .into_iter()
    .enumerate()
    {
        bench.config.watchdog = Some(action);
        std::fs::write(&bench.config.paths.serial_log, b"").unwrap();
        let mut running = booted(&bench).await;
        bench.serial().await.write_all(b"w").await.unwrap();
        let told = next(&mut running.events).await;
        assert_eq!(told, MachineEvent::WatchdogFired, "{index} {action:?}");
        if let Some(then) = then {
            assert_eq!(next(&mut running.events).await, then, "{action:?}");
        } else {
            let mut serial = bench.serial().await;
            assert_eq!(count(&mut serial).await, b'1', "it runs on");
        }
        if action == WatchdogAction::Poweroff {
            // Whoever comes later finds it off as well.
            let record = running.record.clone();
            drop(running);
            running = bench.driver().adopt(&bench.config, &record).await.unwrap();
            let found = next(&mut running.events).await;
            assert_eq!(found, MachineEvent::GuestShutdown);
        }
        end(running).await;
    }
}

/// Takes the next event that is no reset: of two resets within half a second one is told.
async fn next_but_reset(running: &mut Running) -> MachineEvent {
    loop {
        let event = next(&mut running.events).await;
        if event != MachineEvent::GuestReset {
            return event;
        }
    }
}

/// Resets the guest, and waits until what it was asked to let go of is gone.
async fn detached_by_reset(running: &mut Running, serial: &mut UnixStream, name: &str) {
    serial.write_all(b"r").await.unwrap();
    let expected = MachineEvent::Detached(name.to_owned());
    assert_eq!(next_but_reset(running).await, expected);
}

/// The guest has no driver, so a PCI device goes when the guest is reset, as QEMU does with what was asked for.
#[tokio::test]
async fn disks_come_and_go_and_come_again() {
    let Some(bench) = furnished("hotplug").await else {
        return;
    };
    let mut running = booted(&bench).await;
    let mut serial = bench.serial().await;
    let path = bench.directory.path().join("more,disk");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    let mut disk = DiskConfig::new("data", path, DiskFormat::Raw);
    disk.limits = DiskLimits {
        requests: Some(1000),
        bandwidth: Some(Bytes::mib(50)),
    };
    for (round, bus) in [DiskBus::Virtio, DiskBus::Nvme, DiskBus::Virtio]
        .into_iter()
        .enumerate()
    {
        disk.bus = bus;
        let hotplug = running.machine.hotplug().unwrap();
        hotplug.attach_disk(&disk).await.unwrap();
        let again = hotplug.attach_disk(&disk).await.unwrap_err();
        assert_eq!(again.kind(), ErrorKind::Conflict, "{again}");
        // The guest finds what is there when it comes up.
        serial.write_all(b"r").await.unwrap();
        bench.marker(2 + 2 * round).await;
        let hotplug = running.machine.hotplug().unwrap();
        hotplug.request_detach_disk("data").await.unwrap();
        let again = hotplug.request_detach_disk("data").await.unwrap_err();
        assert_eq!(again.kind(), ErrorKind::Conflict, "{again}");
        let pending = hotplug.attach_disk(&disk).await.unwrap_err();
        assert_eq!(pending.kind(), ErrorKind::Conflict, "{pending}");
        let suspend = running.machine.suspend().unwrap();
        let obstacle = suspend.obstacle().await.unwrap();
        assert_eq!(obstacle.is_some(), bus == DiskBus::Nvme, "{obstacle:?}");
        detached_by_reset(&mut running, &mut serial, "data").await;
        // What can't be saved is in the way only while it is there.
        let suspend = running.machine.suspend().unwrap();
        assert_eq!(suspend.obstacle().await.unwrap(), None);
        bench.marker(3 + 2 * round).await;
    }
    let hotplug = running.machine.hotplug().unwrap();
    let none = hotplug.request_detach_disk("data").await.unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NotFound, "{none}");
    let root = hotplug.request_detach_disk("root").await.unwrap_err();
    assert_eq!(root.kind(), ErrorKind::Unsupported, "{root}");
    disk.bus = DiskBus::Usb;
    let usb = hotplug.attach_disk(&disk).await.unwrap_err();
    assert_eq!(usb.kind(), ErrorKind::Unsupported, "{usb}");
    disk.bus = DiskBus::Virtio;
    disk.path = bench.directory.path().join("missing");
    let missing = hotplug.attach_disk(&disk).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound, "{missing}");
    // A file that QEMU refuses leaves nothing that would be in the way.
    disk.path = bench.directory.path().join("disk");
    disk.format = DiskFormat::Qcow2;
    hotplug.attach_disk(&disk).await.unwrap_err();
    let layer = bench.directory.path().join("layer");
    std::fs::write(&layer, [b"QFI\xfb".as_slice(), &[0xff; 0x1000]].concat()).unwrap();
    disk.path = bench.directory.path().join("overlay");
    std::fs::write(&disk.path, qcow2_over(&layer)).unwrap();
    disk.backing_format = Some(DiskFormat::Raw);
    hotplug.attach_disk(&disk).await.unwrap();
    end(running).await;
}

#[tokio::test]
async fn a_usb_stick_goes_at_once() {
    let Some(mut bench) = furnished("usb").await else {
        return;
    };
    let path = bench.directory.path().join("stick");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    let mut stick = DiskConfig::new("stick", path.clone(), DiskFormat::Raw);
    stick.bus = DiskBus::Usb;
    bench.config.disks.push(stick.clone());
    let mut running = booted(&bench).await;
    for _ in 0..2 {
        let hotplug = running.machine.hotplug().unwrap();
        hotplug.request_detach_disk("stick").await.unwrap();
        let detached = MachineEvent::Detached("stick".to_owned());
        assert_eq!(next(&mut running.events).await, detached);
        let hotplug = running.machine.hotplug().unwrap();
        hotplug.attach_disk(&stick).await.unwrap();
    }
    end(running).await;
}

#[tokio::test]
async fn interfaces_come_and_go() {
    let Some(bench) = furnished("nics").await else {
        return;
    };
    let mut running = booted(&bench).await;
    let mut serial = bench.serial().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    let mut nic = bench.config.nics[0].clone();
    nic.mac = "52:54:00:12:34:99".parse().unwrap();
    nic.network = NicNetwork::User(UserNetwork::of_interface(1).unwrap());
    nic.outbound = false;
    nic.forwards = vec![ForwardSpec {
        protocol: Protocol::Tcp,
        host_address: [127, 0, 0, 1].into(),
        host_port: port,
        guest_port: 22,
    }];
    let hotplug = running.machine.hotplug().unwrap();
    let taken = hotplug.attach_nic(&nic).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Conflict, "{taken}");
    drop(free);
    for round in 0..2 {
        let hotplug = running.machine.hotplug().unwrap();
        hotplug.attach_nic(&nic).await.unwrap();
        std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        hotplug.request_detach_nic(nic.mac).await.unwrap();
        detached_by_reset(&mut running, &mut serial, &nic.mac.to_string()).await;
        std::net::TcpStream::connect(("127.0.0.1", port)).unwrap_err();
        bench.marker(2 + round).await;
    }
    end(running).await;
}

/// What was attached while it ran is where it was when it is brought back.
#[tokio::test]
async fn a_machine_that_grew_is_saved_as_it_is() {
    let Some(mut bench) = furnished("grown").await else {
        return;
    };
    bench.config.max_cpus = 3;
    bench.config.max_memory = Bytes::mib(192);
    bench.config.memory_target = Some(Bytes::mib(64));
    let report = bench.driver().probe().await;
    if capable(&report, Capability::Tpm) {
        bench.config.tpm = Some(bench.directory.path().join("tpm"));
    }
    let mut running = booted(&bench).await;
    let mut serial = bench.serial().await;
    let mut attached = Vec::new();
    for name in ["one", "two"] {
        let path = bench.directory.path().join(name);
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        let disk = DiskConfig::new(name, path, DiskFormat::Raw);
        let hotplug = running.machine.hotplug().unwrap();
        hotplug.attach_disk(&disk).await.unwrap();
        attached.push(disk);
    }
    serial.write_all(b"r").await.unwrap();
    bench.marker(2).await;
    let hotplug = running.machine.hotplug().unwrap();
    hotplug.request_detach_disk("one").await.unwrap();
    detached_by_reset(&mut running, &mut serial, "one").await;
    bench.marker(3).await;

    let resize = running.machine.resize().unwrap();
    let size = resize.size().await.unwrap();
    assert_eq!((size.cpus, size.memory), (1, Bytes::mib(64)));
    resize.set_cpus(2).await.unwrap();
    assert_eq!(resize.size().await.unwrap().cpus, 2);
    assert_eq!(resize.set_cpus(2).await.map_err(|e| e.kind()), Ok(()));
    let fewer = resize.set_cpus(1).await.unwrap_err();
    assert_eq!(fewer.kind(), ErrorKind::Unsupported, "{fewer}");
    let more = resize.set_cpus(4).await.unwrap_err();
    assert_eq!(more.kind(), ErrorKind::BadInput, "{more}");
    resize.set_memory(Bytes::mib(128)).await.unwrap();
    for odd in [Bytes::mib(32), Bytes::mib(65), Bytes::mib(256)] {
        let refused = resize.set_memory(odd).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::BadInput, "{refused}");
    }

    assert_eq!(count(&mut serial).await, b'1');
    pause(&mut running).await;
    let saved = save(&bench, &running, "state").await;
    end(running).await;
    let driver = bench.driver();
    let report = driver.probe().await;
    let restore = driver.restore().unwrap();
    assert_eq!(restore.check_saved(&bench.config, &saved, &report).len(), 1);
    let mut config = bench.config.clone();
    config.disks.push(attached.pop().unwrap());
    assert_eq!(restore.check_saved(&config, &saved, &report), []);
    let mut again = restore.restore(&config, &saved).await.unwrap();
    bench.started.lock().unwrap().push(again.machine.pid());
    assert_eq!(next(&mut again.events).await, MachineEvent::Paused);
    again.machine.pause().unwrap().resume().await.unwrap();
    assert_eq!(next(&mut again.events).await, MachineEvent::Resumed);
    let mut serial = bench.serial().await;
    assert_eq!(count(&mut serial).await, b'2');
    let resize = again.machine.resize().unwrap();
    assert_eq!(resize.size().await.unwrap().cpus, 2);
    let hotplug = again.machine.hotplug().unwrap();
    hotplug.request_detach_disk("two").await.unwrap();
    detached_by_reset(&mut again, &mut serial, "two").await;
    end(again).await;
}

/// The guest has no driver for the balloon, so only what QEMU is asked and tells is seen.
#[tokio::test]
async fn a_balloon_is_there_exactly_if_it_was_asked_for() {
    let Some(mut bench) = Bench::new("balloon").await else {
        return;
    };
    let without = booted(&bench).await;
    assert!(without.machine.balloon().is_none());
    end(without).await;
    bench.config.memory_target = Some(Bytes::mib(48));
    let mut with = bench.launch().await;
    assert_eq!(next(&mut with.events).await, MachineEvent::Running);
    let balloon = with.machine.balloon().unwrap();
    assert_eq!(balloon.actual().await.unwrap(), Bytes::mib(64));
    balloon.set_target(Bytes::mib(32)).await.unwrap();
    balloon.set_target(Bytes::mib(64)).await.unwrap();
    let none = balloon.set_target(Bytes::new(0)).await.unwrap_err();
    assert_eq!(none.kind(), ErrorKind::BadInput);
    end(with).await;
}

#[tokio::test]
async fn media_are_changed() {
    let Some(mut bench) = furnished("media").await else {
        return;
    };
    let iso = |name: &str| {
        let path = bench.directory.path().join(name);
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        Medium {
            path,
            format: DiskFormat::Raw,
        }
    };
    let (one, two) = (iso("one,iso"), iso("two"));
    for bus in [DiskBus::Virtio, DiskBus::Usb] {
        let drive = |name: &str, medium| DriveConfig {
            name: name.to_owned(),
            bus,
            medium,
            boot_index: None,
        };
        bench.config.drives = vec![drive("cd", Some(one.clone())), drive("empty", None)];
        let mut running = bench.launch().await;
        assert_eq!(next(&mut running.events).await, MachineEvent::Running);
        let hotplug = running.machine.hotplug().unwrap();
        for name in ["cd", "empty"] {
            for medium in [Some(&two), Some(&one), Some(&two), None, None, Some(&one)] {
                hotplug.change_medium(name, medium).await.unwrap();
            }
        }
        let none = hotplug.change_medium("dvd", None).await.unwrap_err();
        assert_eq!(none.kind(), ErrorKind::NotFound, "{none}");
        let missing = Medium {
            path: bench.directory.path().join("missing"),
            format: DiskFormat::Raw,
        };
        let missing = hotplug.change_medium("cd", Some(&missing)).await;
        assert_eq!(missing.unwrap_err().kind(), ErrorKind::NotFound);
        hotplug.change_medium("cd", Some(&two)).await.unwrap();
        // Opened by QEMU for reading alone, and no longer once it is out.
        let open = |path: &std::path::Path| {
            std::fs::read_dir(format!("/proc/{}/fd", running.machine.pid()))
                .unwrap()
                .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
                .filter(|target| target == path)
                .count()
        };
        assert_eq!((open(&one.path), open(&two.path)), (1, 1));
        end(running).await;
    }
}

#[tokio::test]
async fn consoles_are_opened_by_name() {
    let Some(mut bench) = Bench::new("consoles").await else {
        return;
    };
    let log = bench.directory.path().join("debug,log");
    bench.config.consoles = vec![ConsoleConfig {
        name: "debug".to_owned(),
        log: Some(log.clone()),
    }];
    let running = booted(&bench).await;
    let consoles = running.machine.consoles().unwrap();
    let mut first = consoles.open("serial").await.unwrap();
    let mut second = consoles.open("serial").await.unwrap();
    let mut byte = [0];
    assert_eq!(first.read(&mut byte).await.unwrap(), 0, "it was replaced");
    second.write_all(b"x").await.unwrap();
    second.read_exact(&mut byte).await.unwrap();
    assert_eq!(&byte, b"x");
    consoles.open("debug").await.unwrap();
    assert!(log.is_file());
    let none = consoles.open("other").await.map(drop).unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NotFound);
    assert!(none.to_string().contains("serial, debug"), "{none}");
    end(running).await;
}

/// Which of these hold is told by the kernel, not by what QEMU was asked for.
#[tokio::test]
async fn the_process_has_little_to_give() {
    let Some(bench) = furnished("confined").await else {
        return;
    };
    let running = booted(&bench).await;
    let of = |name: &str| format!("/proc/{}/{name}", running.machine.pid());
    let status = std::fs::read_to_string(of("status")).unwrap();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
            .unwrap()
            .to_owned()
    };
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    assert_eq!(std::fs::read(of("environ")).unwrap(), b"");
    let directory = std::fs::read_link(of("cwd")).unwrap();
    assert_eq!(directory, std::path::Path::new("/"));
    let mut paths: Vec<String> = std::fs::read_dir(of("fd"))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|target| target.display().to_string())
        .filter(|target| target.starts_with('/') && !target.starts_with("/memfd:"))
        .map(|target| {
            let own = bench.directory.path().display().to_string();
            target.replace(&own, "VM")
        })
        .collect();
    paths.sort();
    paths.dedup();
    println!("{paths:?}");
    let foreign: Vec<&String> = paths
        .iter()
        .filter(|path| !path.starts_with("VM/") && *path != "/dev/null")
        .collect();
    assert_eq!(foreign, Vec::<&String>::new());
    end(running).await;
}

/// Starts what this host can, as `everything_that_can_be_fitted` plans it.
#[tokio::test]
async fn qemu_takes_every_fitting() {
    let Some(mut bench) = furnished("fitted").await else {
        return;
    };
    let report = bench.driver().probe().await;
    let can = |capability| capable(&report, capability);
    let at = |name: &str| bench.directory.path().join(name);
    let disk = |name: &str, bus, cache| {
        std::fs::write(at(name), vec![0; 1 << 20]).unwrap();
        DiskConfig {
            bus,
            cache,
            limits: DiskLimits {
                requests: Some(100),
                bandwidth: Some(Bytes::mib(1)),
            },
            ..DiskConfig::new(name, at(name), DiskFormat::Raw)
        }
    };
    let config = &mut bench.config;
    config.max_cpus = 2;
    config.max_memory = Bytes::mib(128);
    config.memory_target = Some(Bytes::mib(32));
    std::fs::write(bench.directory.path().join("base"), [0; 512]).unwrap();
    let mut layered = disk("layered", DiskBus::Virtio, DiskCache::Unsafe);
    std::fs::write(&layered.path, qcow2_over(&at("base"))).unwrap();
    layered.format = DiskFormat::Qcow2;
    layered.backing_format = Some(DiskFormat::Raw);
    config.disks.extend([
        disk("fast", DiskBus::Nvme, DiskCache::Unsafe),
        disk("stick", DiskBus::Usb, DiskCache::Writeback),
        disk("safe", DiskBus::Virtio, DiskCache::Writethrough),
        disk("direct", DiskBus::Virtio, DiskCache::None),
        layered,
    ]);
    config.watchdog = Some(WatchdogAction::Poweroff);
    config.nics[0].outbound = false;
    let state = bench.directory.path().join("tpm-state");
    if can(Capability::Tpm) {
        config.tpm = Some(state.clone());
    }
    if can(Capability::HugePages) {
        config.memory_kind = MemoryKind::Huge;
    }
    if can(Capability::SecureBoot) {
        config.boot = BootConfig::Uefi {
            variables: bench.directory.path().join("variables.fd"),
            secure_boot: true,
        };
    }
    assert_eq!(bench.driver().check(&bench.config, &report), []);
    let mut running = bench.launch().await;
    assert_eq!(next(&mut running.events).await, MachineEvent::Running);
    if bench.config.tpm.is_some() {
        qemu_bench::until("the TPM's state", || {
            std::fs::read_dir(&state).is_ok_and(|mut entries| entries.next().is_some())
        })
        .await;
    }
    let obstacle = running.machine.suspend().unwrap().obstacle().await.unwrap();
    assert_eq!(
        obstacle.unwrap().field,
        "disks",
        "an NVMe disk is not saved"
    );
    let pid = running.machine.pid();
    running.machine.quit().await.unwrap();
    assert!(exited(&mut running.events).await.expected);
    bench.nothing_left(pid);
}
