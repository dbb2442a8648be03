//! Virtual machines on one's own computer, as a library.

pub mod driver;
pub mod drivers;
mod error;
pub mod host;
pub mod progress;
pub mod spec;

pub use error::{Error, Result, exit_code, http_status};
pub use innkeeper_api as api;
