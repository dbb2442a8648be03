//! The `inn` command.
fn main() {}
