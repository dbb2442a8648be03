//! The one error of the library: a kind that programs act on, what was being done to what, the source, and a hint that fixes it.

use std::fmt;

use innkeeper_api::{ErrorKind, Problem};

/// What went wrong, while what was being done to what.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Shorthand for results of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Makes an error of a kind with one clear sentence.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error {
            kind,
            message: message.into(),
            hint: None,
            source: None,
        }
    }

    /// Adds what would fix it.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds what caused it.
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Makes an error of an operating system's error, with the kind that belongs to it.
    pub fn io(message: impl Into<String>, source: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match source.kind() {
            Io::NotFound => ErrorKind::NotFound,
            Io::PermissionDenied => ErrorKind::NotPermitted,
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => ErrorKind::NoSpace,
            Io::TimedOut => ErrorKind::TimedOut,
            Io::AddrInUse => ErrorKind::Conflict,
            Io::ConnectionRefused
            | Io::ConnectionReset
            | Io::BrokenPipe
            | Io::NotConnected
            | Io::UnexpectedEof => ErrorKind::Unreachable,
            _ => ErrorKind::Failure,
        };
        Error::new(kind, message).with_source(source)
    }

    /// Wraps this error in what was being done, keeping kind and hint.
    pub fn while_doing(self, message: impl Into<String>) -> Self {
        let hint = self.hint.clone();
        Error {
            kind: self.kind,
            message: message.into(),
            hint,
            source: Some(Box::new(self)),
        }
    }

    /// Returns the kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns what would fix it, if that is known.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Returns the exit code of a command that fails with this error.
    pub fn exit_code(&self) -> u8 {
        exit_code(self.kind)
    }

    /// Returns the HTTP status of a response that carries this error.
    pub fn http_status(&self) -> u16 {
        http_status(self.kind)
    }

    /// Returns the sentences of the whole chain, outermost first.
    pub fn chain(&self) -> Vec<String> {
        let mut messages = vec![self.message.clone()];
        let mut next = std::error::Error::source(self);
        while let Some(error) = next {
            messages.push(error.to_string());
            next = error.source();
        }
        messages
    }

    /// Turns it into its form on the wire.
    pub fn to_problem(&self) -> Problem {
        Problem {
            kind: self.kind,
            messages: self.chain(),
            hint: self.hint.clone(),
        }
    }

    /// Reads an error from the wire, keeping its chain of sentences.
    pub fn from_problem(problem: Problem) -> Self {
        let mut messages = problem.messages.into_iter().rev();
        let innermost = messages
            .next()
            .unwrap_or_else(|| "failed without saying why".to_owned());
        let mut error = Error::new(problem.kind, innermost);
        for message in messages {
            error = error.while_doing(message);
        }
        error.hint = problem.hint;
        error
    }
}

/// Returns the exit code that belongs to a kind of error.
pub fn exit_code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Failure => 1,
        ErrorKind::BadInput => 2,
        ErrorKind::NotFound => 3,
        ErrorKind::Conflict => 4,
        ErrorKind::Unsupported => 5,
        ErrorKind::Unreachable => 6,
        ErrorKind::TimedOut => 7,
        ErrorKind::NotPermitted => 8,
        ErrorKind::NoSpace => 9,
        ErrorKind::Interrupted => 130,
    }
}

/// Returns the HTTP status that belongs to a kind of error.
pub fn http_status(kind: ErrorKind) -> u16 {
    match kind {
        ErrorKind::Failure | ErrorKind::Interrupted => 500,
        ErrorKind::BadInput => 400,
        ErrorKind::NotFound => 404,
        ErrorKind::Conflict => 409,
        ErrorKind::Unsupported => 422,
        ErrorKind::Unreachable => 502,
        ErrorKind::TimedOut => 504,
        ErrorKind::NotPermitted => 403,
        ErrorKind::NoSpace => 507,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn std::error::Error + 'static))
    }
}

impl From<innkeeper_image::Error> for Error {
    fn from(error: innkeeper_image::Error) -> Error {
        use innkeeper_image::ErrorKind as Image;
        let kind = match error.kind() {
            Image::NotFound => ErrorKind::NotFound,
            Image::Invalid => ErrorKind::BadInput,
            Image::Conflict => ErrorKind::Conflict,
            Image::Unsupported => ErrorKind::Unsupported,
            Image::Unreachable => ErrorKind::Unreachable,
            Image::NoSpace => ErrorKind::NoSpace,
            Image::NotPermitted => ErrorKind::NotPermitted,
            Image::Cancelled => ErrorKind::Interrupted,
            Image::Corrupt | Image::Failed => ErrorKind::Failure,
        };
        let message = error.to_string();
        match std::error::Error::source(&error).map(ToString::to_string) {
            Some(source) => Error::new(kind, message).with_source(source),
            None => Error::new(kind, message),
        }
    }
}
