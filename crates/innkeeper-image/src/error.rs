//! What can go wrong with images, layers, disks and seeds.
//!
//! Every variant names the thing and the operation; where a person can fix it, the message says how. `Display` never repeats
//! its source: print the chain. This module maps nothing to exit codes; [`Error::kind`] gives the class for that.

use std::io;
use std::path::{Path, PathBuf};

/// The result of every operation in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The class of a failure, for exit codes and HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The thing asked for does not exist.
    NotFound,
    /// What was asked is malformed or makes no sense.
    Invalid,
    /// The thing is in use, exists already, or is in the wrong state.
    Conflict,
    /// This host lacks what is needed.
    Unsupported,
    /// A server cannot be reached.
    Unreachable,
    /// The file system is full or a quota is used up.
    NoSpace,
    /// The operating system refuses.
    NotPermitted,
    /// Received data does not have the promised content.
    Corrupt,
    /// The caller gave up.
    Cancelled,
    /// Anything else.
    Failed,
}

/// A failure of an image, layer, disk or seed operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was being done, as a verb.
        operation: &'static str,
        /// To which file.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// A reference names no image that is known.
    #[error("unknown image {reference:?}{}", suggestion.as_ref().map(|name| format!("; did you mean {name:?}?")).unwrap_or_default())]
    UnknownImage {
        /// As the user wrote it.
        reference: String,
        /// The nearest known name.
        suggestion: Option<String>,
    },
    /// Something that was asked is malformed.
    #[error("{what} {value:?}: {problem}")]
    Invalid {
        /// What kind of thing it is.
        what: &'static str,
        /// As given.
        value: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// Received bytes do not have the promised digest.
    #[error("{url}: the checksum is {actual}, expected {expected}; nothing was kept")]
    Checksum {
        /// Where it came from.
        url: String,
        /// What was promised.
        expected: String,
        /// What arrived.
        actual: String,
    },
    /// The connection ended before all bytes had come.
    #[error(
        "{url}: the download ended after {received} of {expected} bytes; the next try goes on from there"
    )]
    Truncated {
        /// Where it comes from.
        url: String,
        /// Bytes that are here.
        received: u64,
        /// Bytes that were promised.
        expected: u64,
    },
    /// A server answered with an error or not at all.
    #[error("cannot download {url}: {problem}")]
    Download {
        /// Where it should come from.
        url: String,
        /// The status, or what failed.
        problem: String,
    },
    /// A layer is needed by something, so it stays.
    #[error("{what} is in use by {}", users.join(", "))]
    InUse {
        /// The image or layer.
        what: String,
        /// Who uses it.
        users: Vec<String>,
    },
    /// A disk would be smaller than what is on it.
    #[error(
        "a disk of {asked} bytes is smaller than its image ({needed} bytes); ask for at least {needed}"
    )]
    DiskTooSmall {
        /// Bytes asked for.
        asked: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// A program that is needed is not installed.
    #[error("{tool} is not installed; {fix}")]
    ToolMissing {
        /// The program.
        tool: &'static str,
        /// The command that installs it.
        fix: String,
    },
    /// A program ended with an error.
    #[error("{tool} failed while it was to {operation} ({status}): {stderr}")]
    ToolFailed {
        /// The program.
        tool: String,
        /// What it was to do.
        operation: String,
        /// Its exit status.
        status: String,
        /// The end of what it wrote to standard error.
        stderr: String,
    },
    /// This host cannot do it.
    #[error("{what}: {reason}; {fix}")]
    Unsupported {
        /// What was asked.
        what: String,
        /// Why not.
        reason: String,
        /// What helps.
        fix: String,
    },
    /// A file that came from outside has not the form it should have.
    #[error("{what} is damaged or hostile: {problem}")]
    Malformed {
        /// Which file or structure.
        what: String,
        /// What was found.
        problem: String,
    },
    /// The caller dropped the operation.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// Wraps an I/O error with its operation and path; meant for `map_err`.
    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io {
            operation,
            path,
            source,
        }
    }

    pub(crate) fn invalid(
        what: &'static str,
        value: impl Into<String>,
        problem: impl Into<String>,
    ) -> Error {
        Error::Invalid {
            what,
            value: value.into(),
            problem: problem.into(),
        }
    }

    pub(crate) fn malformed(what: impl Into<String>, problem: impl Into<String>) -> Error {
        Error::Malformed {
            what: what.into(),
            problem: problem.into(),
        }
    }

    pub(crate) fn missing(path: &Path, operation: &'static str) -> Error {
        Error::Io {
            operation,
            path: path.to_owned(),
            source: io::Error::from(io::ErrorKind::NotFound),
        }
    }

    /// Tells the class of this failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                io::ErrorKind::StorageFull
                | io::ErrorKind::QuotaExceeded
                | io::ErrorKind::FileTooLarge => ErrorKind::NoSpace,
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    ErrorKind::NotPermitted
                }
                io::ErrorKind::AlreadyExists => ErrorKind::Conflict,
                _ => ErrorKind::Failed,
            },
            Error::UnknownImage { .. } => ErrorKind::NotFound,
            Error::Invalid { .. } | Error::DiskTooSmall { .. } => ErrorKind::Invalid,
            Error::Checksum { .. } | Error::Malformed { .. } => ErrorKind::Corrupt,
            Error::Truncated { .. } | Error::Download { .. } => ErrorKind::Unreachable,
            Error::InUse { .. } => ErrorKind::Conflict,
            Error::ToolMissing { .. } | Error::Unsupported { .. } => ErrorKind::Unsupported,
            // The tools' own words are prose, but this one is strerror(ENOSPC), which they print in the C locale we give them.
            Error::ToolFailed { stderr, .. } if stderr.contains("No space left on device") => {
                ErrorKind::NoSpace
            }
            Error::ToolFailed { .. } => ErrorKind::Failed,
            Error::Cancelled => ErrorKind::Cancelled,
        }
    }
}
