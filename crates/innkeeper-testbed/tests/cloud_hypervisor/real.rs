//! The real Cloud Hypervisor, with a guest of a hundred bytes.

use std::time::{Duration, Instant};

use innkeeper::api::{Capability, ErrorKind};
use innkeeper::driver::{BootConfig, Driver, MachineEvent};
use innkeeper::spec::{Bytes, WatchdogAction};
use rustix::process::{Pid, Signal, kill_process};

use crate::bench::{Bench, exited, next, until};
use crate::saved::saved;

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
    let paused = Instant::now();
    // An unpaused guest writes ten dots in this time.
    while paused.elapsed() < Duration::from_millis(500) {
        assert_eq!(dots(), before, "the CPUs stand still");
        // poll: the time is over, or a dot came
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
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
