//! The conformance trials, each with each driver, as tests: `DRIVER::TRIAL`.
//!
//! Each has an installation of its own and is judged by its outcome, by breaches of the driver contract and by what it leaves behind. At
//! most two guests run at once, across processes. `INNKEEPER_REQUIRE_DRIVERS=qemu` turns a driver that is missing, or lacks its guest, into a
//! failure; otherwise what can't be run says why. What came of each is written as JSON for `innkeeper::testing::matrix`.

#[cfg(target_os = "linux")]
mod trials;

#[cfg(target_os = "linux")]
fn main() {
    trials::main();
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("SKIPPED: the trials run on Linux so far");
}
