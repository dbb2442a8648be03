//! Saving and bringing back, against the double.

use std::time::Instant;

use innkeeper::api::ErrorKind;
use innkeeper::driver::{Driver, MachineEvent, SavedMachine};
use innkeeper::spec::Bytes;

use crate::bench::{Bench, SOON, next};

/// Launches a machine, saves it, ends it.
pub async fn saved(bench: &Bench) -> SavedMachine {
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
