//! The spec: what is asked of a VM.
//!
//! ```text
//!  vm.yaml ──read──► VmSpec ──write──► vm.yaml (canonical)
//!     │                 └────differences──► paths that need a restart, or not (is_live)
//!     └─────edit──► vm.yaml with its comments, one field changed, read again
//! ```
//! It looks at nothing outside the text. What a host or a driver can do with it is said elsewhere.

mod bytes;
mod differences;
mod duration;
mod edit;
mod fields;
mod model;
mod name;
mod node;
mod problems;
mod reader;
mod schema;
mod short_form;
#[cfg(test)]
mod tests;
mod tree;
mod words;
mod writer;

pub use bytes::{Bytes, BytesError};
pub use differences::{differences, is_live};
pub use duration::{DurationError, format_duration, parse_duration};
pub use edit::{Edit, EditError, edit};
pub use innkeeper_image::Arch;
pub use innkeeper_net::MacAddr;
pub use model::*;
pub use name::{VmName, VmNameError};
pub use problems::{SpecProblem, SpecProblems};
pub use reader::read;
pub use schema::schema;
pub use short_form::{ForwardError, PathError, ReadyError, ShareError};
pub use writer::{check, write};
