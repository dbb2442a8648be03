//! Every error of VZ, with its domain and code, as a value that can cross threads.

use std::fmt;

use objc2_foundation::NSError;

/// Domain of VZ's own errors (`VZErrorDomain`, `VZError.h`).
const VZ_DOMAIN: &str = "VZErrorDomain";

/// Domain of the errors that this crate makes itself.
const OWN_DOMAIN: &str = "innkeeper-vz";

/// How many levels of underlying errors are kept.
const DEPTH: usize = 4;

/// What went wrong in VZ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VzError {
    domain: String,
    code: isize,
    description: String,
    reason: Option<String>,
    underlying: Option<Box<VzError>>,
}

/// What an error of VZ means (`VZErrorCode`, `VZError.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum VzErrorKind {
    /// Something failed inside VZ (1).
    Internal,
    /// The configuration is not valid (2).
    InvalidConfiguration,
    /// The machine is not in a state for this (3, 4).
    InvalidState,
    /// The disk image can't be used (5).
    InvalidDiskImage,
    /// More machines run than are allowed, such as a third macOS guest (6).
    LimitExceeded,
    /// The network failed (7).
    Network,
    /// No space is left (8).
    NoSpace,
    /// It was cancelled (9).
    Cancelled,
    /// This Mac or its macOS can't do it (10, and what this crate asks for itself).
    NotSupported,
    /// The state could not be written (11).
    Save,
    /// The state could not be read: another Mac, another machine identifier, another MAC address (12).
    Restore,
    /// A network block device can't be reached or has gone (20001, 20002).
    NetworkBlockDevice,
    /// A USB device or controller: not found, attached already, could not be begun (30001 to 30004).
    Usb,
    /// The machine is gone, so nobody answers.
    Gone,
    /// Anything else: see domain and code.
    Other,
}

impl VzError {
    pub(crate) fn from_ns(error: &NSError) -> Self {
        Self::read(error, DEPTH)
    }

    fn read(error: &NSError, depth: usize) -> Self {
        let underlying = (depth > 0)
            .then(|| error.underlyingErrors().to_vec().into_iter().next())
            .flatten()
            .map(|inner| Box::new(Self::read(&inner, depth - 1)));
        VzError {
            domain: error.domain().to_string(),
            code: error.code(),
            description: error.localizedDescription().to_string(),
            reason: error
                .localizedFailureReason()
                .map(|reason| reason.to_string()),
            underlying,
        }
    }

    /// Reads what a completion handler was given: null if all went well.
    ///
    /// # Safety
    ///
    /// `error` is null or points to an error that lives for the call, as VZ guarantees for the argument of a completion handler.
    pub(crate) unsafe fn from_handler(error: *mut NSError) -> Result<(), Self> {
        // SAFETY: the caller's guarantee.
        match unsafe { error.as_ref() } {
            None => Ok(()),
            Some(error) => Err(Self::from_ns(error)),
        }
    }

    fn own(code: isize, description: String) -> Self {
        VzError {
            domain: OWN_DOMAIN.to_owned(),
            code,
            description,
            reason: None,
            underlying: None,
        }
    }

    /// Makes the error of something that this Mac or its macOS does not have.
    pub fn unavailable(what: &str, needs: &str) -> Self {
        Self::own(1, format!("{what} needs {needs}"))
    }

    /// Makes the error of a machine that was let go of before it answered.
    pub fn gone() -> Self {
        Self::own(
            2,
            "the virtual machine is gone and does not answer".to_owned(),
        )
    }

    /// Makes the error of a value that VZ refuses without saying why.
    pub fn refused(what: impl fmt::Display) -> Self {
        Self::own(3, format!("Virtualization.framework refuses {what}"))
    }

    /// Makes the error of something that is not there.
    pub fn missing(what: impl fmt::Display) -> Self {
        Self::own(4, format!("there is no {what}"))
    }

    /// Returns the domain, such as `VZErrorDomain`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Returns the code within the domain.
    pub fn code(&self) -> isize {
        self.code
    }

    /// Returns what it means.
    pub fn kind(&self) -> VzErrorKind {
        match (self.domain.as_str(), self.code) {
            (OWN_DOMAIN, 1) => VzErrorKind::NotSupported,
            (OWN_DOMAIN, 2) => VzErrorKind::Gone,
            (OWN_DOMAIN, 3) => VzErrorKind::InvalidConfiguration,
            (VZ_DOMAIN, 1) => VzErrorKind::Internal,
            (VZ_DOMAIN, 2) => VzErrorKind::InvalidConfiguration,
            (VZ_DOMAIN, 3 | 4) => VzErrorKind::InvalidState,
            (VZ_DOMAIN, 5) => VzErrorKind::InvalidDiskImage,
            (VZ_DOMAIN, 6) => VzErrorKind::LimitExceeded,
            (VZ_DOMAIN, 7) => VzErrorKind::Network,
            (VZ_DOMAIN, 8) => VzErrorKind::NoSpace,
            (VZ_DOMAIN, 9) => VzErrorKind::Cancelled,
            (VZ_DOMAIN, 10) => VzErrorKind::NotSupported,
            (VZ_DOMAIN, 11) => VzErrorKind::Save,
            (VZ_DOMAIN, 12) => VzErrorKind::Restore,
            (VZ_DOMAIN, 20001 | 20002) => VzErrorKind::NetworkBlockDevice,
            (VZ_DOMAIN, 30001..=30004) => VzErrorKind::Usb,
            _ => VzErrorKind::Other,
        }
    }
}

impl fmt::Display for VzError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description)?;
        if let Some(reason) = &self.reason {
            write!(f, " {reason}")?;
        }
        if self.domain != OWN_DOMAIN {
            write!(f, " ({} {})", self.domain, self.code)?;
        }
        Ok(())
    }
}

impl std::error::Error for VzError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.underlying
            .as_deref()
            .map(|underlying| underlying as &(dyn std::error::Error + 'static))
    }
}
