//! Images, layers, disks and seeds.

mod arch;
pub use arch::Arch;
