//! The spec: what is asked of a VM.

mod bytes;
mod model;

pub use bytes::{Bytes, BytesError};
pub use innkeeper_image::Arch;
pub use innkeeper_net::MacAddr;
pub use model::*;
