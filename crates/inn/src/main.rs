//! The executable `inn`: the command line with the drivers of the product.

use std::process::ExitCode;

fn main() -> ExitCode {
    inn::main(innkeeper::Host::builder())
}
