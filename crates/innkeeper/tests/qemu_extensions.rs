//! What the QEMU driver does beyond starting and ending, on a real QEMU.

mod qemu_bench;

use std::time::Instant;

use innkeeper::api::{Capability, ErrorKind};
use innkeeper::driver::{DiskConfig, Driver, MachineEvent, NicConfig, Running, SavedMachine};
use innkeeper::spec::{Bytes, DiskFormat};
use innkeeper_net::UserNetwork;
use qemu_bench::{Bench, exited, next};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Asks the guest to count up, and returns the count.
async fn count(serial: &mut UnixStream) -> u8 {
    serial.write_all(b"k").await.unwrap();
    let mut told = [0];
    let read = serial.read_exact(&mut told);
    tokio::time::timeout(qemu_bench::DEADLINE, read)
        .await
        .expect("the guest counts in time")
        .unwrap();
    told[0]
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
    assert_eq!(next(&mut running.events).await, MachineEvent::Paused);
}

/// A bench whose machine has a disk and an interface.
async fn furnished(name: &str) -> Option<Bench> {
    let mut bench = Bench::new(name).await?;
    let path = bench.directory.path().join("disk");
    std::fs::write(&path, vec![7; 1 << 20]).unwrap();
    bench.config.disks = vec![DiskConfig::new("root", path, DiskFormat::Raw)];
    bench.config.nics = vec![NicConfig {
        mac: "52:54:00:12:34:56".parse().unwrap(),
        user_network: UserNetwork::of_interface(0).unwrap(),
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
