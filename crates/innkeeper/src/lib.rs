//! Virtual machines on one's own computer, as a library.
//!
//! [`Host`] has one method per operation that a user can name: create, start, stop, list, run a command in the guest. All state is in files
//! (see `docs/vm-directory.md`), so several programs may use one host at a time; while a VM runs, a process of ours, its *keeper*, stands
//! beside it, and every change of that VM goes through it.
//!
//! ```no_run
//! # async fn example() -> innkeeper::Result<()> {
//! use innkeeper::{Host, WaitFor, progress::Silent, spec::VmSpec};
//!
//! let host = Host::builder().from_environment().helper("/usr/bin/inn").open()?;
//! let spec = VmSpec { image: Some("tiny".to_owned()), ..VmSpec::default() };
//! host.create("hello", spec, &Silent).await?;
//! host.start("hello").await?;
//! host.wait("hello", WaitFor::Ready, None, &|_| ()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! This crate never prints, reads no environment outside [`HostBuilder::from_environment`], and never exits the process.

mod attach;
mod clock;
mod companion;
mod confinement;
mod disk_files;
pub mod driver;
pub mod drivers;
mod engine;
mod error;
mod export;
pub mod guest;
mod host;
pub mod import;
pub mod keeper;
mod machine;
mod moving;
pub mod network;
pub mod progress;
pub mod snapshot;
pub mod spec;
mod store;
mod streams;
#[cfg(feature = "testing")]
pub mod testing;

pub use confinement::Confinement;
pub use disk_files::{DiskCheck, DiskFile, Shrinking};
pub use engine::{ExportForm, Exported, ImportOptions, ImportPlan, PlannedDisk};
pub use error::{Error, Result, exit_code, http_status};
pub use host::{
    CatalogueEntry, CloneKind, Cloned, DetachOptions, DriverVerdict, Explanation, Host,
    HostBuilder, ImageInfo, LogKind, Present, SpecChange, StopOptions, WaitFor,
};
pub use innkeeper_api as api;
