//! Errors as they travel: a kind that programs act on, a sentence that people read.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What kind of error it is. Each kind has one exit code and one HTTP status, both in `innkeeper::Error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// Something failed that has no kind of its own.
    Failure,
    /// The request or the spec is wrong as written.
    BadInput,
    /// There is no such VM, image, disk or file.
    NotFound,
    /// The state does not allow it, or somebody else is doing it.
    Conflict,
    /// This driver or this host can't do it.
    Unsupported,
    /// Something that should answer can't be reached.
    Unreachable,
    /// It took longer than was allowed.
    TimedOut,
    /// The operating system or the policy forbids it.
    NotPermitted,
    /// No space or quota left.
    NoSpace,
    /// The user interrupted it.
    Interrupted,
}

/// An error on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// What kind it is.
    pub kind: ErrorKind,
    /// What was being done to what, and what went wrong: the whole chain, outermost first.
    pub messages: Vec<String>,
    /// What would fix it, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}
