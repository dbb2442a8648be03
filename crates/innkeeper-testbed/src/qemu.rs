//! Whether tests that need real guests can run on this computer.

use innkeeper::Host;

/// Says why guests can't be tried here; a driver that is required must not be missing.
pub fn missing(what: &str) -> bool {
    let required = std::env::var("INNKEEPER_REQUIRE_DRIVERS")
        .is_ok_and(|names| names.split(',').any(|name| name == "qemu"));
    assert!(
        !required,
        "{what}, and INNKEEPER_REQUIRE_DRIVERS asks for qemu"
    );
    println!("skipped: {what}");
    true
}

/// Says whether QEMU can run guests here.
pub async fn usable(host: &Host) -> bool {
    let report = host.report().await.expect("a report");
    report
        .drivers
        .iter()
        .any(|driver| driver.driver == "qemu" && driver.usable)
}
