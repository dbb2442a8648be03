//! Each trap of Cloud Hypervisor, against its double.

use std::time::{Duration, Instant};

use innkeeper::api::{Capability, ErrorKind};
use innkeeper::driver::{BootConfig, DiskConfig, Driver, MachineEvent};
use innkeeper::spec::{AccelChoice, Bytes, DiskCache, DiskFormat, DiskLimits, WatchdogAction};

use crate::bench::{Bench, SOON, exited, next};

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
async fn a_power_off_whose_event_is_lost_is_told_all_the_same() {
    let bench = Bench::fake("events=lost button=power-off");
    let mut running = bench.launch().await;
    running.machine.power_button().await.unwrap();
    assert_eq!(next(&mut running.events).await, MachineEvent::GuestShutdown);
    bench.end(running).await;
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
async fn one_that_hangs_is_told_though_nobody_asks_it_anything() {
    let bench = Bench::fake("");
    let mut running = bench.launch().await;
    bench.script("calls=stall");
    let event = next(&mut running.events).await;
    assert!(matches!(event, MachineEvent::ControlLost(_)), "{event:?}");
    bench.script("");
    assert_eq!(next(&mut running.events).await, MachineEvent::ControlBack);
    bench.end(running).await;
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
