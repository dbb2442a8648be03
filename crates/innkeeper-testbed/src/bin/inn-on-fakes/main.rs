//! `inn` with the fake drivers that the environment names beside those of the product: what tests of whole commands run.

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    match innkeeper_testbed::builder_from_environment() {
        Ok(builder) => inn::main(builder),
        Err(message) => {
            eprintln!("inn-on-fakes: {message}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!("inn-on-fakes runs on Linux only");
    ExitCode::FAILURE
}
